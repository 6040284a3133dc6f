//! Base64 (RFC 4648 §4).

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// With padding.
pub(super) fn encode(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for three in bytes.chunks(3) {
        let bits = three.iter().fold(0u32, |bits, b| (bits << 8) | u32::from(*b));
        let bits = bits << (8 * (3 - three.len()));
        for at in 0..4 {
            let six = (bits >> (18 - 6 * at)) & 63;
            text.push(if at <= three.len() { char::from(ALPHABET[six as usize]) } else { '=' });
        }
    }
    text
}

/// As [`encode`], backwards; padding may be left out (RFC 9651 §4.2.7).
pub(super) fn decode(text: &[u8]) -> Option<Vec<u8>> {
    let padding = text.iter().rev().take_while(|b| **b == b'=').count();
    if padding > 2 || (padding > 0 && !text.len().is_multiple_of(4)) {
        return None;
    }
    let text = &text[..text.len() - padding];
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for four in text.chunks(4) {
        if four.len() == 1 {
            return None;
        }
        let mut bits = 0u32;
        for byte in four {
            let six = ALPHABET.iter().position(|b| b == byte)?;
            bits = (bits << 6) | u32::try_from(six).ok()?;
        }
        bits <<= 6 * (4 - four.len());
        bytes.extend_from_slice(&bits.to_be_bytes()[1..four.len()]);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vectors_of_rfc_4648_are_written_and_read() {
        for (plain, expected) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foob", "Zm9vYg=="),
            ("foobar", "Zm9vYmFy"),
        ] {
            assert_eq!(encode(plain.as_bytes()), expected);
            assert_eq!(decode(expected.as_bytes()).as_deref(), Some(plain.as_bytes()));
        }
    }
}
