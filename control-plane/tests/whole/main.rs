//! The whole control plane in this process, on free ports, with the real `git`.

mod folder;
mod git;
mod remote;
mod restart;
mod serving;
mod support;
