//! The private key of a Maps identifier, and the tokens that are signed with it (RFC 7519, ES256).

use std::{
    fmt, io,
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use rustls_pki_types::{PrivatePkcs8KeyDer, pem::PemObject as _};

/// How long a signed token may be exchanged for an access token.
const LIFE: Duration = Duration::from_secs(20 * 60);
/// Largest file that is read as a key.
const MAX_FILE_BYTES: u64 = 16 << 10;
/// Longest identifier of a key or team; Apple's have ten characters.
const MAX_ID: usize = 64;

/// A key, its identifier, and the team it belongs to.
pub struct AppleKey {
    pair: EcdsaKeyPair,
    random: SystemRandom,
    key_id: String,
    team_id: String,
}

/// Why a key is none.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file cannot be read.
    #[error("{}: {cause}", .path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        cause: io::Error,
    },
    /// It holds something else.
    #[error("{}: no PKCS#8 private key in PEM (\"BEGIN PRIVATE KEY\"), such as Apple's AuthKey_….p8", .0.display())]
    NotPkcs8(PathBuf),
    /// Another kind of key.
    #[error("{}: not a key of the curve P-256, which ES256 needs", .0.display())]
    NotP256(PathBuf),
    /// Not an identifier.
    #[error("{0:?} is not an identifier of Apple's: ten letters and digits")]
    Id(String),
}

impl AppleKey {
    /// The key in a file as Apple gives it out (`AuthKey_….p8`).
    ///
    /// # Errors
    /// When the file or an identifier is not what it should be.
    pub fn read(path: &Path, key_id: &str, team_id: &str) -> Result<Self, KeyError> {
        let io = |cause| KeyError::Io { path: path.to_owned(), cause };
        if std::fs::metadata(path).map_err(io)?.len() > MAX_FILE_BYTES {
            return Err(KeyError::NotPkcs8(path.to_owned()));
        }
        let pem = std::fs::read(path).map_err(io)?;
        Self::from_pem(&pem, path, key_id, team_id)
    }

    fn from_pem(pem: &[u8], path: &Path, key_id: &str, team_id: &str) -> Result<Self, KeyError> {
        for id in [key_id, team_id] {
            if id.is_empty() || id.len() > MAX_ID || !id.bytes().all(|b| b.is_ascii_alphanumeric())
            {
                return Err(KeyError::Id(id.to_owned()));
            }
        }
        let der = PrivatePkcs8KeyDer::from_pem_slice(pem)
            .map_err(|_| KeyError::NotPkcs8(path.to_owned()))?;
        let pair =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der())
                .map_err(|_| KeyError::NotP256(path.to_owned()))?;
        let (key_id, team_id) = (key_id.to_owned(), team_id.to_owned());
        Ok(Self { pair, random: SystemRandom::new(), key_id, team_id })
    }

    /// A token for the exchange, valid from now on for a while.
    pub(super) fn sign(&self, now: SystemTime) -> String {
        let seconds = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let header = serde_json::json!({ "alg": "ES256", "kid": self.key_id, "typ": "JWT" });
        let claims = serde_json::json!({
            "iss": self.team_id,
            "iat": seconds,
            "exp": seconds + LIFE.as_secs(),
        });
        let part = |json: serde_json::Value| base64url(json.to_string().as_bytes());
        let signed = format!("{}.{}", part(header), part(claims));
        // Signing fails only where the system has no randomness; then the exchange is refused.
        let signature = self.pair.sign(&self.random, signed.as_bytes());
        let signature = signature.map_or_else(|_| String::new(), |s| base64url(s.as_ref()));
        format!("{signed}.{signature}")
    }
}

impl fmt::Debug for AppleKey {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("AppleKey");
        text.field("key_id", &self.key_id).field("team_id", &self.team_id).finish_non_exhaustive()
    }
}

/// RFC 4648 §5, without padding.
fn base64url(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for group in bytes.chunks(3) {
        let at = |index: usize| u32::from(group.get(index).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for digit in 0..=group.len() {
            let index = (bits >> (18 - 6 * digit)) & 63;
            text.push(char::from(DIGITS[index as usize]));
        }
    }
    text
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn base64url_is_that_of_the_rfc() {
        for (bytes, text) in [
            ("", ""),
            ("f", "Zg"),
            ("fo", "Zm8"),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg"),
            ("fooba", "Zm9vYmE"),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(base64url(bytes.as_bytes()), text);
        }
        assert_eq!(base64url(&[0xfb, 0xff, 0xfe]), "-__-");
    }

    #[test]
    fn what_is_no_key_of_apples_is_refused_with_the_reason() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = folder.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let pem = |algorithm| rcgen::KeyPair::generate_for(algorithm).unwrap().serialize_pem();
        let p256 = file("p256.p8", &pem(&rcgen::PKCS_ECDSA_P256_SHA256));
        let p384 = file("p384.p8", &pem(&rcgen::PKCS_ECDSA_P384_SHA384));
        let ed = file("ed.p8", &pem(&rcgen::PKCS_ED25519));
        let words =
            file("words.p8", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n");
        let large = file("large.p8", &"x".repeat(1 << 20));
        let none = folder.path().join("none.p8");
        let read = |path: &Path, key: &str, team: &str| {
            AppleKey::read(path, key, team).map_err(|error| error.to_string())
        };
        read(&p256, "ABC123DEFG", "DEF123GHIJ").unwrap();
        for (path, expected) in [
            (&p384, "not a key of the curve P-256"),
            (&ed, "not a key of the curve P-256"),
            (&words, "no PKCS#8 private key"),
            (&large, "no PKCS#8 private key"),
            (&none, "No such file"),
        ] {
            let error = read(path, "ABC123DEFG", "DEF123GHIJ").unwrap_err();
            assert!(error.contains(expected) && error.contains(".p8"), "{error}");
        }
        for id in ["", "ABC 123", "ABC\"", &"A".repeat(65)] {
            assert!(read(&p256, id, "DEF123GHIJ").unwrap_err().contains("not an identifier"));
            assert!(read(&p256, "ABC123DEFG", id).unwrap_err().contains("not an identifier"));
        }
    }

    #[test]
    fn the_key_is_not_shown() {
        let pem = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let key = AppleKey::from_pem(pem.as_bytes(), Path::new("k"), "ABC123DEFG", "T").unwrap();
        assert_eq!(format!("{key:?}"), "AppleKey { key_id: \"ABC123DEFG\", team_id: \"T\", .. }");
    }
}
