//! How well the GPUs of this node are, from what the kernel, the driver's
//! library, an exporter or a model server says, and what that does to the
//! node's goodput.
//!
//! Readers ([`sysfs`], [`nvml`], [`amd_smi`], [`exposition`]) turn a source into
//! [`Reading`]s; [`health::Judge`] turns readings into a factor between 0 and 1
//! and a reason that a person can read. What a source gets wrong ends in the
//! reading as `None` and a [`Fault`].
//!
//! It knows files, NVML and text formats. It knows no proxy, no policy, no
//! socket and no clock: time is an argument, and exporters are scraped by the
//! caller.

pub mod amd_smi;
pub mod exposition;
pub mod health;
pub mod nvml;
pub mod sysfs;

mod faults;
mod reading;

pub use faults::FaultLog;
pub use reading::{
    Clocks, Fault, Heat, Problem, Reading, Residency, ServerLoad, State, Throttle, Vendor,
};
