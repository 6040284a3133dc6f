//! Envoy's v3 configuration protocol for Towpath: the four resources (LDS,
//! RDS, CDS, EDS) as the domain types of [`towpath_policies::model`], and the
//! aggregated discovery service in both of its variants, delta and
//! state-of-the-world, as client and as server.
//!
//! Three layers, each usable without the one above it:
//! * [`codec`]: protobuf bytes ↔ domain types, pure.
//! * [`server::Stream`] and [`client::Machine`]: the protocol's state without
//!   sockets, clocks or tasks. Time is an argument.
//! * [`server::AdsServer`] and [`client::AdsClient`]: the thin tonic shells.
//!
//! Beside them stand load reports: [`orca`], by which endpoints tell of themselves, and [`load`], what
//! clients tell the server of the load they make (LRS), on a stream of its own beside ADS.
//!
//! This is the only crate that knows Envoy's protobuf. It does not know where a
//! snapshot comes from, nor what is done with one.

pub mod client;
pub mod codec;
pub mod load;
pub mod orca;
mod reach;
pub mod server;
pub mod wire;

pub use wire::Flavour;
