//! The HTTP data path against raw clients and raw origins on real sockets.
#![allow(
    clippy::unwrap_used,
    clippy::too_many_lines,
    unreachable_pub,
    reason = "tests, and tables of cases"
)]

#[path = "http/adaptive.rs"]
mod adaptive;
#[path = "http/age.rs"]
mod age;
#[path = "http/claims.rs"]
mod claims;
#[path = "http/digest.rs"]
mod digest;
#[path = "http/each_byte.rs"]
mod each_byte;
#[path = "http/far.rs"]
mod far;
#[path = "http/flow.rs"]
mod flow;
#[path = "http/framing.rs"]
mod framing;
#[path = "http/harness.rs"]
mod harness;
#[path = "http/hedge.rs"]
mod hedge;
#[path = "http/hold.rs"]
mod hold;
#[path = "http/http2.rs"]
mod http2;
#[path = "http/partition_keys.rs"]
mod partition_keys;
#[path = "http/queue.rs"]
mod queue;
#[path = "http/relay.rs"]
mod relay;
#[path = "http/replay.rs"]
mod replay;
#[path = "http/resume.rs"]
mod resume;
#[path = "http/retries.rs"]
mod retries;
#[path = "http/stall.rs"]
mod stall;
#[path = "http/transfers.rs"]
mod transfers;
#[path = "http/tries.rs"]
mod tries;
#[path = "http/upload_resume.rs"]
mod upload_resume;
