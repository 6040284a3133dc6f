//! The whole control plane in this process, on free ports, with the real `git`.

#![allow(clippy::unwrap_used, reason = "where something is not as expected, a test ends")]

mod folder;
mod git;
mod remote;
mod restart;
mod serving;
mod support;
