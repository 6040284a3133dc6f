//! Sends a network namespace's connections to the proxy in it, and lets them go again.
//!
//! What is wanted ([`Spec`]) becomes one list of rules. The kernel gets them as an nftables table
//! of our own, or where there is no `nft` as chains of `iptables`; [`explain()`] goes through the
//! same list, so that what it says is what happens. What was wanted is written into the rules
//! themselves: no file has to be kept, and any later program can say what is there.
//!
//! Knows the texts of nftables and iptables and the programs `nft`, `iptables-restore` and `ip`,
//! which it runs in the namespace of the thread that calls. Knows neither the proxy, whose ports
//! and user it is told, nor policies. Blocks while a program runs.

mod error;
mod explain;
mod install;
mod iptables;
mod listeners;
mod network;
mod nft;
mod program;
mod routes;
mod rules;
mod spec;

pub use crate::{
    error::Error,
    explain::{Connection, Direction, Explanation, Protocol, Verdict, explain},
    install::{Counter, Installed, Status, Tool, install, install_with, remove, status},
    listeners::{proxy_warnings, warnings},
    network::Network,
    spec::{Fail, Loopback, MARK, PROXY_USER, Spec},
};

#[cfg(test)]
mod tests;
