//! Whole proxies in this process, on port 0: what they do with connections,
//! configurations and signals, apart from HTTP itself.

#![allow(clippy::unwrap_used, reason = "a failed step of a test is a failed test")]

mod admin;
mod control_plane;
mod drain;
#[path = "../../src/geoip/writer.rs"]
mod geoip_writer;
mod health;
mod load_reports;
mod origins;
mod outlier;
mod overload;
mod program;
mod proxy_protocol;
mod reload;
mod shares;
mod spool;
mod support;
mod tcp;
mod tls;
mod upgrade;
mod weights;
