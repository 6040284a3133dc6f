//! The fault campaign: seeded runs of real proxies on loopback, between clients and endpoints that
//! break off, stall, vanish and lie, each followed by a check of what is promised when things fail.
//!
//! A run is drawn whole from its seed (`plan`), so that a failing one can be made again. Threads and
//! sockets keep their own time: a replay makes the same moves, not the same races.

mod answer;
mod body;
mod check;
mod client;
mod exchange;
mod h1;
mod mesh;
mod origin;
mod plan;
mod plane;
mod run;
mod scene;
mod tap;

pub use plan::Limits;
pub use run::{Campaign, Failure, Report};

/// The HTTP/2 library under clients and endpoints ends a connection on which too many small DATA
/// frames wait. Pieces of 64 bytes are what a run may be made of, so this is put out of reach.
const SMALL_FRAMES: usize = 1 << 30;
