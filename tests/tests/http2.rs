//! What a client and an origin see of the proxy over HTTP/2, frame by frame,
//! judged by RFC 9113 and by `httpwg`.

#[path = "http2/bystanders.rs"]
mod bystanders;
#[path = "http2/client_abuse.rs"]
mod client_abuse;
#[path = "http2/conformance.rs"]
mod conformance;
#[path = "http2/floods.rs"]
mod floods;
#[path = "http2/malformed.rs"]
mod malformed;
#[path = "http2/origin_abuse.rs"]
mod origin_abuse;
#[path = "http2/streams.rs"]
mod streams;
