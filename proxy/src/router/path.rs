//! Paths as they are matched and sent on.
//!
//! A path is brought into one form before it is matched, and sent on in that
//! form, so that what was matched is what the origin sees: dot segments are
//! resolved (RFC 3986 §5.2.4), also when their dots are percent-encoded. What
//! could mean different things to different servers is refused: an encoded NUL
//! and a backslash. Everything else stays byte for byte; `%2F` is data, and
//! `//` stays two slashes.

use std::borrow::Cow;

/// Why a path is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BadPath(pub(crate) &'static str);

/// Brings a path into the form it is matched and sent in.
pub(crate) fn normalise(path: &str) -> Result<Cow<'_, str>, BadPath> {
    let bytes = path.as_bytes();
    if memchr::memchr2(b'%', b'\\', bytes).is_some() {
        refuse(bytes)?;
    }
    if !has_dot_segment(bytes) {
        return Ok(Cow::Borrowed(path));
    }
    let mut kept: Vec<&str> = Vec::new();
    let mut directory = false;
    for segment in path.split('/').skip(1) {
        directory = true;
        match dots(segment) {
            1 => {}
            2 => drop(kept.pop()),
            _ => {
                kept.push(segment);
                directory = false;
            }
        }
    }
    let mut out = String::with_capacity(path.len());
    for segment in &kept {
        out.push('/');
        out.push_str(segment);
    }
    if directory || kept.is_empty() {
        out.push('/');
    }
    Ok(Cow::Owned(out))
}

fn refuse(path: &[u8]) -> Result<(), BadPath> {
    if path.contains(&b'\\') {
        return Err(BadPath("a path cannot contain a backslash"));
    }
    for at in memchr::memchr_iter(b'%', path) {
        match path.get(at + 1..at + 3) {
            Some(b"00") => return Err(BadPath("a path cannot contain %00")),
            Some(hex) if hex.iter().all(u8::is_ascii_hexdigit) => {}
            _ => return Err(BadPath("a path contains a % that starts no percent-encoding")),
        }
    }
    Ok(())
}

fn has_dot_segment(path: &[u8]) -> bool {
    memchr::memchr_iter(b'/', path).any(|at| {
        let rest = &path[at + 1..];
        let starts = rest.first() == Some(&b'.')
            || rest.get(..3).is_some_and(|p| p.eq_ignore_ascii_case(b"%2e"));
        starts && {
            let end = memchr::memchr(b'/', rest).unwrap_or(rest.len());
            std::str::from_utf8(&rest[..end]).is_ok_and(|s| dots(s) > 0)
        }
    })
}

/// 1 for `.`, 2 for `..` (dots may be `%2e`), 0 for any other segment.
fn dots(segment: &str) -> usize {
    let mut rest = segment.as_bytes();
    let mut count = 0;
    while !rest.is_empty() {
        rest = match rest {
            [b'.', rest @ ..] => rest,
            [b'%', b'2', b'e' | b'E', rest @ ..] => rest,
            _ => return 0,
        };
        count += 1;
    }
    if count <= 2 { count } else { 0 }
}
