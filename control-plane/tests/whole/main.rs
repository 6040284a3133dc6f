//! The whole control plane in this process, on free ports, with the real `git`.

#![allow(clippy::unwrap_used, reason = "where something is not as expected, a test ends")]

mod folder;
mod git;
mod linkerd;
mod places;
mod remote;
mod restart;
mod serving;
#[path = "../../src/places/apple/standin.rs"]
#[allow(dead_code, reason = "not all that it can do is tested here")]
mod standin;
mod support;
mod webhook;
