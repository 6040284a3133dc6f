//! HTTP/1.1 on the wire (RFC 9112): heads, framing, bodies, and one connection
//! of either side. Strict where leniency could make two parties see different
//! messages; knows nothing of routes or upstreams.

mod conn;
mod fields;
mod head;
mod reader;
mod writer;

#[cfg(test)]
mod tests;

pub(super) use conn::Conn;
pub(super) use fields::Fields;
pub(super) use head::{BadHead, Limits, RequestFrame, ResponseFrame, request, response};
pub(super) use reader::{Framing, Reader};
pub(super) use writer::{Body, Writer};
