//! Encryption of what is on disk.
//!
//! A spool has a key of its own, made of random bytes and held in memory alone, so that the file
//! says nothing to anybody once its spool is gone. Its content is cut into blocks; each is sealed
//! by AES-256-GCM with its number as nonce, which no other block of this key has: a block is
//! written once. One that was changed, or stands in another's place, does not open.

use std::io;

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    rand::{SecureRandom, SystemRandom},
};

/// Bytes of content in a block, as in a TLS record.
pub(super) const BLOCK: usize = 16 * 1024;
/// Bytes of a block on disk.
pub(super) const SEALED: usize = BLOCK + 16;

/// The key of one spool.
#[derive(Debug)]
pub(super) struct Seal(LessSafeKey);

impl Seal {
    /// With a fresh key.
    ///
    /// # Errors
    /// When the system has no random bytes.
    pub(super) fn new() -> io::Result<Self> {
        let mut key = [0; 32];
        SystemRandom::new().fill(&mut key).map_err(|_| io::Error::other("no random bytes"))?;
        let key = UnboundKey::new(&AES_256_GCM, &key).map_err(|_| io::Error::other("no key"))?;
        Ok(Self(LessSafeKey::new(key)))
    }

    /// Appends the block of this number, whose content is [`BLOCK`] bytes, to `sealed`.
    pub(super) fn seal(&self, number: u64, content: &[u8], sealed: &mut Vec<u8>) -> io::Result<()> {
        debug_assert_eq!(content.len(), BLOCK, "the last block waits in memory until it is full");
        let start = sealed.len();
        sealed.extend_from_slice(content);
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce(number), Aad::empty(), &mut sealed[start..])
            .map_err(|_| io::Error::other("cannot encrypt"))?;
        sealed.extend_from_slice(tag.as_ref());
        Ok(())
    }

    /// Opens the block of this number where it lies.
    ///
    /// # Errors
    /// When it is not as it was sealed.
    pub(super) fn open<'a>(&self, number: u64, sealed: &'a mut [u8]) -> io::Result<&'a [u8]> {
        let content = self.0.open_in_place(nonce(number), Aad::empty(), sealed);
        content.map(|content| &*content).map_err(|_| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("block {number} of the spool was changed on disk"),
            )
        })
    }
}

fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; 12];
    bytes[4..].copy_from_slice(&number.to_be_bytes());
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_block_in_its_own_place_opens() {
        let seal = Seal::new().unwrap();
        let content = vec![7; BLOCK];
        let mut sealed = Vec::new();
        for number in 0..2 {
            seal.seal(number, &content, &mut sealed).unwrap();
        }
        let (first, second) = sealed.split_at(SEALED);
        assert_ne!(first, second, "equal blocks do not look equal");
        assert_eq!(seal.open(0, &mut first.to_vec()).unwrap(), content);
        assert_eq!(seal.open(1, &mut second.to_vec()).unwrap(), content);
        assert!(seal.open(1, &mut first.to_vec()).is_err(), "another place");
        assert!(Seal::new().unwrap().open(0, &mut first.to_vec()).is_err(), "another key");
        for bit in [0, 8 * BLOCK / 2, 8 * SEALED - 1] {
            let mut changed = first.to_vec();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(seal.open(0, &mut changed).is_err(), "bit {bit}");
        }
    }
}
