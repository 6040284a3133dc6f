//! The control plane: follows policy files in Git or a folder, keeps the last
//! good version, finds endpoints by DNS and places by map services, and serves each node its part over xDS.
//!
//! `source → follow → hub → views → xDS`, one direction; [`status`] hears of
//! everything and is asked by the admin endpoint. Knows no proxy: any xDS v3
//! client is one.

mod admin;
pub mod carbon;
mod conditions;
mod config;
mod dns;
mod fetch;
mod follow;
mod hub;
mod loads;
mod pace;
pub mod places;
mod run;
mod serve;
pub mod source;
pub mod status;
mod store;
mod utc;
mod views;
pub mod webhook;

pub use config::{Args, Config, ConfigError, DEFAULT_ADMIN, DEFAULT_XDS, StateDir};
pub use dns::Resolver;
pub use follow::{Outcome, Refreshed};
pub use run::run;
pub use serve::{Running, StartError, start};
pub use store::StoreError;
