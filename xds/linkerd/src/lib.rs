//! Linkerd's proxy API for Towpath: the services and routes of a [`Snapshot`](towpath_policies::model::Snapshot)
//! as a Linkerd proxy asks for them, by a name or an address at a time (`Destination`, `OutboundPolicies`).
//!
//! Two layers, as beside it for Envoy: the translation, which is pure (what a [`Target`] is found to be in a
//! [`World`], and what is said of it), and [`Server`], the thin tonic shell.
//!
//! This is the only crate that knows Linkerd's protobuf. It does not know where a snapshot comes from, nor
//! Envoy's API; what Linkerd has no words for is left out, or, where a request would then be treated as its
//! policy forbids, refused.

mod endpoints;
mod names;
mod policy;
mod profile;
mod server;
mod target;
mod world;

/// Linkerd's messages, services and clients, for whoever talks to a [`Server`].
pub use linkerd2_proxy_api as api;

pub use server::Server;
pub use target::{Malformed, Target};
pub use world::World;

use std::time::Duration;

/// Ten years: more would only be a way to overflow somebody's clock.
const LONGEST: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

fn duration(time: Duration) -> prost_types::Duration {
    let time = time.min(LONGEST);
    let seconds = i64::try_from(time.as_secs()).unwrap_or_default();
    prost_types::Duration { seconds, nanos: i32::try_from(time.subsec_nanos()).unwrap_or_default() }
}
