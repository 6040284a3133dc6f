//! Digest fields: dictionaries of structured fields (RFC 9651 §3.2), as far as RFC 9530 needs them.

use http::{HeaderMap, HeaderName, HeaderValue};
use towpath_policies::model::DigestAlgorithm;

use crate::http::base64;

/// A member's value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::http) enum Value {
    Integer(i64),
    Bytes(Vec<u8>),
    /// What no digest field has.
    Other,
}

/// A field is no dictionary, or a digest in it is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a digest field is malformed")]
pub(in crate::http) struct Malformed;

/// Most members of a dictionary; RFC 9651 §3.2 has a parser take 1024.
const MAX_MEMBERS: usize = 1024;

/// The digests in a field by algorithms that are known here; others are passed over (RFC 9530 §2).
///
/// # Errors
/// [`Malformed`].
pub(super) fn digests(
    head: &HeaderMap,
    name: &HeaderName,
) -> Result<Vec<(DigestAlgorithm, Vec<u8>)>, Malformed> {
    if !head.contains_key(name) {
        return Ok(Vec::new());
    }
    let members = dictionary(head, name)?;
    let mut digests = Vec::new();
    for algorithm in [DigestAlgorithm::Sha256, DigestAlgorithm::Sha512] {
        // Of several with one key, the last is meant (RFC 9651 §4.2.2).
        match members.iter().rev().find(|(key, _)| key == algorithm.name()) {
            Some((_, Value::Bytes(bytes))) => digests.push((algorithm, bytes.clone())),
            Some(_) => return Err(Malformed),
            None => {}
        }
    }
    Ok(digests)
}

/// A field with one digest.
pub(super) fn value(algorithm: DigestAlgorithm, digest: &[u8]) -> HeaderValue {
    let text = format!("{}=:{}:", algorithm.name(), base64::encode(digest));
    HeaderValue::try_from(text).expect("a name, and Base64")
}

/// All lines of a field as one dictionary.
///
/// # Errors
/// [`Malformed`].
pub(super) fn dictionary(
    head: &HeaderMap,
    name: &HeaderName,
) -> Result<Vec<(String, Value)>, Malformed> {
    let mut members = Vec::new();
    for line in head.get_all(name) {
        let mut text = Text(line.as_bytes().trim_ascii());
        while !text.0.is_empty() {
            if members.len() >= MAX_MEMBERS {
                return Err(Malformed);
            }
            let key = text.key()?;
            let value = if text.take(b'=') { text.member()? } else { Value::Other };
            text.parameters()?;
            members.push((key, value));
            text.space();
            if text.0.is_empty() {
                break;
            }
            if !text.take(b',') {
                return Err(Malformed);
            }
            text.space();
            if text.0.is_empty() {
                return Err(Malformed);
            }
        }
    }
    Ok(members)
}

/// What is left to be read.
struct Text<'a>(&'a [u8]);

impl<'a> Text<'a> {
    fn take(&mut self, byte: u8) -> bool {
        let rest = self.0.strip_prefix(&[byte]);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn space(&mut self) {
        while self.take(b' ') || self.take(b'\t') {}
    }

    fn run(&mut self, allowed: impl Fn(u8) -> bool) -> &'a [u8] {
        let end = self.0.iter().position(|b| !allowed(*b)).unwrap_or(self.0.len());
        let (run, rest) = self.0.split_at(end);
        self.0 = rest;
        run
    }

    fn key(&mut self) -> Result<String, Malformed> {
        let begins = |b: &u8| b.is_ascii_lowercase() || *b == b'*';
        if !self.0.first().is_some_and(begins) {
            return Err(Malformed);
        }
        let key =
            self.run(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b"_-.*".contains(&b));
        Ok(String::from_utf8_lossy(key).into_owned())
    }

    fn member(&mut self) -> Result<Value, Malformed> {
        if !self.take(b'(') {
            return self.item();
        }
        loop {
            self.space();
            if self.take(b')') {
                return Ok(Value::Other);
            }
            self.item()?;
            self.parameters()?;
            if !self.0.first().is_some_and(|b| matches!(b, b' ' | b')')) {
                return Err(Malformed);
            }
        }
    }

    fn parameters(&mut self) -> Result<(), Malformed> {
        while self.take(b';') {
            self.space();
            self.key()?;
            if self.take(b'=') {
                self.item()?;
            }
        }
        Ok(())
    }

    /// A bare item (RFC 9651 §3.3).
    fn item(&mut self) -> Result<Value, Malformed> {
        match self.0.first().ok_or(Malformed)? {
            b':' => {
                self.take(b':');
                let text = self.run(|b| b != b':');
                if !self.take(b':') {
                    return Err(Malformed);
                }
                base64::decode(text).map(Value::Bytes).ok_or(Malformed)
            }
            b'"' => self.string(),
            b'?' => {
                self.take(b'?');
                let valid = self.take(b'0') || self.take(b'1');
                if valid { Ok(Value::Other) } else { Err(Malformed) }
            }
            b'-' | b'0'..=b'9' | b'@' => {
                self.take(b'@');
                let digits = self.run(|b| b.is_ascii_digit() || b == b'-' || b == b'.');
                let text = std::str::from_utf8(digits).map_err(|_| Malformed)?;
                match text.parse() {
                    // 15 digits (RFC 9651 §3.3.1).
                    Ok(number) if text.len() <= 16 => Ok(Value::Integer(number)),
                    _ => text.parse::<f64>().map(|_| Value::Other).map_err(|_| Malformed),
                }
            }
            b'*' | b'A'..=b'Z' | b'a'..=b'z' => {
                let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~:/".contains(&b);
                self.run(token);
                Ok(Value::Other)
            }
            _ => Err(Malformed),
        }
    }

    fn string(&mut self) -> Result<Value, Malformed> {
        self.take(b'"');
        loop {
            self.run(|b| matches!(b, 0x20 | 0x21 | 0x23..=0x5b | 0x5d..=0x7e));
            if self.take(b'"') {
                return Ok(Value::Other);
            }
            let escaped = self.take(b'\\') && (self.take(b'"') || self.take(b'\\'));
            if !escaped {
                return Err(Malformed);
            }
        }
    }
}
