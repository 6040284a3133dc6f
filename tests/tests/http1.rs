//! What a client and an origin see of the proxy over HTTP/1.1, byte by byte,
//! judged by RFC 9110 and RFC 9112.

#[path = "http1/expect.rs"]
mod expect;
#[path = "http1/framing.rs"]
mod framing;
#[path = "http1/lifetimes.rs"]
mod lifetimes;
#[path = "http1/mutations.rs"]
mod mutations;
#[path = "http1/requests.rs"]
mod requests;
#[path = "http1/responses.rs"]
mod responses;
