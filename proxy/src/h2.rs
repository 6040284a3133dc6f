//! HTTP/2 connections (RFC 9113), ours to the last frame.
//!
//! [`Connection`] owns a socket and drives it; what its streams are and what waits to be sent
//! is a [`core::Core`] that it shares with the [`Stream`]s, each in the hands of one exchange.
//! A connection and its streams run on one worker, so the lock between them is never contended.
//!
//! Streams write straight into the connection's send queue, which leaves in one system call
//! when all that could be read is dealt with. Bodies pass through uncopied. What a peer can
//! make us hold is bounded: by flow control, and where that does not reach, by limits here.
//! Knows nothing of routes, services or HTTP/1.1.

mod accepted;
mod budget;
mod connection;
mod core;
mod error;
mod frame;
mod head;
pub(crate) mod hpack;
mod lending;
mod lifecycle;
mod memory;
mod out;
mod receive;
mod send;
mod settings;
mod stream;
mod streams;
#[cfg(test)]
mod tests;
mod window;

pub(crate) use self::{
    connection::{Client, Connection, Incoming, Unopened},
    core::Config,
    error::{ErrorCode, StreamError},
    head::{Request, RequestRef, Response},
    memory::MEMORY,
    receive::ENDED_SHORT,
    stream::{Part, Stream},
};
