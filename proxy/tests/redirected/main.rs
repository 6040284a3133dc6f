//! Connections that were made to other addresses and redirected to a sidecar by the kernel, on machines of
//! their own (network namespaces). Nothing in client or server knows of it.
//!
//! Needs root, `ip` and `nft`.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod inbound;
mod loops;
mod machines;
mod outbound;
mod pairs;
mod tunnels;
