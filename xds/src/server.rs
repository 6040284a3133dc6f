//! The serving side: [`Stream`] is the protocol, [`AdsServer`] the gRPC shell
//! around it.
//!
//! A stream is told the newest snapshot and nothing in between, so a slow
//! client costs one snapshot and one unacknowledged response per type, never
//! a queue.

mod cache;
mod loads;
mod shell;
mod stream;

use std::{net::SocketAddr, sync::Arc};

use tokio::sync::watch;
use towpath_policies::model::{Node, ResourceKind, Snapshot};

pub use cache::Cache;
pub use loads::Loads;
pub use shell::AdsServer;
pub use stream::{Event, Stream};

use crate::Flavour;

/// Where the server takes snapshots from, and whom it tells about its clients.
pub trait Views: Send + Sync + 'static {
    /// The snapshots for one client, now and from now on. A snapshot whose
    /// `version` is empty means "not ready yet": nothing is sent.
    ///
    /// The stream ends when the sender is dropped.
    fn watch(&self, node: &Node) -> watch::Receiver<Arc<Snapshot>>;

    /// Something happened on a stream. Called from the stream's task: must not block.
    fn observe(&self, event: StreamEvent);
}

/// Names one stream of one server, unique over its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub u64);

/// What happened on a stream.
#[derive(Clone, Debug, PartialEq)]
pub enum StreamEvent {
    /// A client named itself; the first event of a stream.
    Connected {
        /// The stream.
        stream: StreamId,
        /// The client.
        node: Node,
        /// Its address.
        peer: Option<SocketAddr>,
        /// What it speaks.
        flavour: Flavour,
    },
    /// A response was accepted.
    Ack {
        /// The stream.
        stream: StreamId,
        /// The type of resource.
        kind: ResourceKind,
        /// The snapshot's version behind the response.
        version: String,
    },
    /// A response was rejected; the client keeps what it had.
    Nack {
        /// The stream.
        stream: StreamId,
        /// The type of resource.
        kind: ResourceKind,
        /// The snapshot's version behind the response.
        version: String,
        /// The rejected resources and the reasons, as far as the client (or
        /// its message) names them; else everything the response held.
        resources: Vec<(String, String)>,
        /// The client's message.
        message: String,
    },
    /// Everything of this snapshot that the client subscribed to has been
    /// sent and answered: it holds this version (less what it rejected).
    Synced {
        /// The stream.
        stream: StreamId,
        /// The snapshot's version.
        version: String,
        /// Whether it has listeners that open sockets. gRPC clients ask for API listeners only, and some clients
        /// say that they open none.
        sockets: bool,
    },
    /// The stream ended; the last event of a stream.
    Disconnected {
        /// The stream.
        stream: StreamId,
    },
}
