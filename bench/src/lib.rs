//! Measures Towpath's proxy side by side with its peers: every proxy does the same work, on the
//! same core, in the same run, turn by turn ([`peers`]), shows what becomes of bulk traffic when
//! something else goes on at the same time ([`bulk`]), where jobs go among workers that differ
//! ([`balance`]), and what sidecars cost that nobody asked for ([`intercept`]).
//!
//! The bench deliberately does not link the proxy it measures. Each contender is a process of its
//! own, started from a configuration the bench writes ([`contender`]); the load ([`load`]) and the
//! origin ([`origin`]) live in the bench and verify every byte at both ends; the cost is read from
//! the kernel's accounting of the proxy's process tree ([`meter`]). What the figures mean, and how
//! to repeat them, is written in `BENCHMARKS.md`.

pub mod balance;
pub mod bulk;
pub mod case;
pub mod check;
pub mod contender;
pub mod forward;
pub mod intercept;
pub mod load;
pub mod machine;
pub mod meter;
pub mod origin;
pub(crate) mod output;
pub mod pattern;
pub mod peers;
pub mod process;
pub mod report;
pub mod results;
pub mod shim;
pub(crate) mod stage;
pub mod stats;
pub mod tools;
pub mod wire;
