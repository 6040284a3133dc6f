//! The asking side: [`Machine`] is the protocol, [`AdsClient`] the gRPC shell
//! around it. Beside it [`Reports`] tells the server of the load that is made.

mod loads;
mod machine;
mod shell;
mod world;

use std::{sync::Arc, time::Duration};

use towpath_policies::model::{Node, ResourceKey, Snapshot};

pub use loads::{Count, Counted, CountedEndpoint, Reports};
pub use machine::Machine;
pub use shell::AdsClient;

use crate::Flavour;

/// Takes a snapshot into use.
///
/// `Err` means that nothing of the snapshot was taken into use, and names the
/// resources that cannot be, with a reason for people. They are rejected (the
/// server is told), put back to what they were, and `apply` is called again
/// with what results.
pub type Apply = dyn FnMut(Arc<Snapshot>) -> Result<(), Vec<(ResourceKey, String)>> + Send;

/// Whom a client asks, and how.
#[derive(Clone, Debug)]
pub struct Options {
    /// `host:port`, or an `http://` URL.
    pub address: String,
    /// How it names itself.
    pub node: Node,
    /// Whether it opens the listeners that it is sent; else it takes them for their routes, and says so. Default true.
    pub opens_listeners: bool,
    /// The protocol variant.
    pub flavour: Flavour,
    /// How long a snapshot waits for resources that it refers to and that the
    /// server has not sent. Default 15 s (Envoy's `initial_fetch_timeout`).
    pub warm_wait: Duration,
    /// First pause before a reconnect; doubles, jittered. Default 100 ms.
    pub backoff_base: Duration,
    /// Longest pause before a reconnect. Default 10 s.
    pub backoff_max: Duration,
}

/// Where a client stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Whether a stream to the server stands.
    pub connected: bool,
    /// Version of the snapshot in use.
    pub version: Option<String>,
    /// Why the last connection ended; `None` while connected.
    pub error: Option<String>,
    /// Resources the server offers that were rejected, and why.
    pub rejected: Vec<(ResourceKey, String)>,
    /// Resources that are referred to and have not come.
    pub waiting_for: Vec<ResourceKey>,
}

impl Options {
    /// Delta, with every default.
    pub fn new(address: impl Into<String>, node: Node) -> Self {
        Self {
            address: address.into(),
            node,
            opens_listeners: true,
            flavour: Flavour::Delta,
            warm_wait: Duration::from_secs(15),
            backoff_base: Duration::from_millis(100),
            backoff_max: Duration::from_secs(10),
        }
    }
}
