//! HPACK (RFC 7541): header blocks to fields and back.
//!
//! The decoder hands on fields that are already parsed and checked one by one; it does not know
//! which of them a message needs, how often or in which order (RFC 9113 §8.3): the caller does.
//! The encoder keeps no table, so what one request says never shows in the size of another.

use bytes::Bytes;
use http::{
    HeaderName, HeaderValue, Method, StatusCode,
    uri::{Authority, PathAndQuery},
};

pub(crate) use self::{decode::Decoder, encode::Encoder};

mod decode;
pub(crate) mod encode;
mod huffman;
mod name;
mod static_table;
mod table;
#[cfg(test)]
mod tests;

/// One field line. Cheap to clone: all its text is shared.
#[derive(Clone, Debug)]
pub(crate) enum Field {
    /// `:method`.
    Method(Method),
    /// `:scheme`, well-formed but in the case it came in.
    Scheme(Bytes),
    /// `:authority`, not empty and without userinfo.
    Authority(Authority),
    /// `:path`, which begins with `/` or is `*`.
    Path(PathAndQuery),
    /// `:status`, 100 to 999.
    Status(StatusCode),
    /// `:protocol` (RFC 8441 §4), a token.
    Protocol(Bytes),
    /// A regular field, not connection-specific.
    Header(HeaderName, HeaderValue),
    /// What makes its message malformed (RFC 9113 §8.1.1), and why.
    Malformed(&'static str),
}

/// Why a block cannot be decoded: a connection error, `COMPRESSION_ERROR` (RFC 9113 §4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HpackError {
    /// The block ends within a field.
    #[error("a header block ends within a field")]
    Truncated,
    /// An integer beyond 32 bits, or with more than five bytes after its prefix (§5.1).
    #[error("a header block holds an integer that is too large")]
    Integer,
    /// Index 0, or beyond both tables (§2.3.3).
    #[error("a header block names an index that is in no table")]
    Index,
    /// A table size above what was announced, or not at the start of a block (§4.2, §6.3).
    #[error("a header block changes the table size wrongly")]
    TableSize,
    /// Text that the Huffman code does not give (§5.2).
    #[error("a header block holds a broken Huffman string")]
    Huffman,
}

/// What an entry costs beside its text, in a table and in a list (RFC 7541 §4.1, RFC 9113 §6.5.2).
const OVERHEAD: usize = 32;
