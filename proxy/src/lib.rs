//! The data plane: sidecar and gateway in one program, as a library and a
//! small binary.
//!
//! A proxy obeys a [`Snapshot`](towpath_policies::model::Snapshot), wherever it
//! comes from: a policy folder or any xDS server. Worker threads, each with a
//! runtime of its own, carry the traffic; one control thread applies
//! configuration, probes endpoints and answers the admin endpoint.
//!
//! Deliberately unknown here: Git, the control plane, and how policies are
//! written.

pub mod access_log;
mod admin;
mod args;
mod chains;
mod control;
pub mod drain;
mod energy;
mod explicit;
mod flow;
pub mod geoip;
mod gpu;
mod h2;
pub mod health;
pub mod http;
mod kin;
mod ledger;
mod listener;
mod load;
mod lock;
mod logging;
pub mod metrics;
pub mod outlier;
pub mod overload;
mod proxy_protocol;
pub mod router;
mod run;
mod sniff;
mod source;
pub mod spool;
mod stamp;
mod supervisor;
mod tcp;
mod timer;
mod tls;
pub mod transfers;
mod upgrade;
pub mod upstream;
mod worker;
mod world;

pub use args::{Args, Config, Programs, Readings};
pub use drain::Leftovers;
pub use energy::Counters;
pub use gpu::{Cards, GpuConfig, MetricsUrl};
pub use http::Credentials;
pub use kin::Kin;
pub use ledger::{Ledger, Line, MOST_DESTINATIONS, Sum};
pub use logging::start as start_log;
pub use run::{Running, raise_file_limit, run, start};
pub use source::SourceConfig;
pub use upstream::completion::explain;
pub use world::Rejection;
