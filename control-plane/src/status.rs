//! What a control plane tells of itself: the JSON of `GET /status`.
//!
//! Times of day are milliseconds since the Unix epoch (`*_unix_ms`).

mod tracker;

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use towpath_policies::model::{Locality, ResourceKind};

use crate::source::Commit;
pub(crate) use tracker::{APPLY_BOUNDS, Moment, Tracker, unix_ms};

/// Everything a person or a program may ask of a control plane.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Version of this program.
    pub program: String,
    /// When it was started.
    pub started_unix_ms: u64,
    /// Whether policies are served.
    pub ready: bool,
    /// Where policies come from.
    pub source: SourceStatus,
    /// What is served; `None` before the first valid version.
    pub current: Option<Current>,
    /// The newest version of the source, where it was not fit to be served.
    pub rejected: Option<Rejected>,
    /// One entry for each connected stream, by node.
    pub proxies: Vec<Proxy>,
    /// How the latest versions reached the proxies, newest first. At most 20.
    pub applied: Vec<Applied>,
    /// Names that endpoints are found by.
    pub names: Vec<Name>,
    /// Places that are not known so far, where a map service is asked for them.
    #[serde(default)]
    pub places: Vec<UnknownPlace>,
    /// What clients report of the load they make, by service.
    #[serde(default)]
    pub loads: Vec<ServiceFigures>,
    /// Sums since the start.
    pub counters: Counters,
}

/// The source of the policies, and how it was at the last look.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SourceStatus {
    /// Path or URL, without credentials.
    pub location: String,
    /// The branch that was asked for.
    pub branch: Option<String>,
    /// The sub-folder that was asked for.
    pub path: Option<PathBuf>,
    /// Time between looks, in milliseconds.
    pub poll_ms: u64,
    /// When it was last read without error.
    pub read_unix_ms: Option<u64>,
    /// Why the last look failed, and what to do; `None` when it did not.
    pub error: Option<String>,
    /// Looks that failed in a row.
    pub failures: u32,
}

/// The version that is served.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Current {
    /// Commit id, or a digest of a plain folder.
    pub version: String,
    /// The commit; `None` for a plain folder.
    pub commit: Option<Commit>,
    /// The branch it was found on.
    pub branch: Option<String>,
    /// When it was published by this process.
    pub published_unix_ms: u64,
    /// Kept from an earlier run, because the source cannot be read or is not valid now.
    pub restored: bool,
    /// What was left out, and what validation warned of.
    pub warnings: Vec<String>,
    /// Listeners in the whole mesh.
    pub listeners: usize,
    /// Route tables in the whole mesh.
    pub route_tables: usize,
    /// Services in the whole mesh.
    pub services: usize,
}

/// A version that is not served, and why.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Rejected {
    /// Commit id, or a digest of a plain folder.
    pub version: String,
    /// The commit; `None` for a plain folder.
    pub commit: Option<Commit>,
    /// When it was seen.
    pub seen_unix_ms: u64,
    /// What is wrong with it. At most 100.
    pub diagnostics: Vec<Finding>,
    /// How many more there were.
    pub left_out: usize,
}

/// One thing that is wrong, and where.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Finding {
    /// Path relative to the policy folder; empty when it is about the whole.
    pub file: PathBuf,
    /// One-based; 0 when it is about the whole file.
    pub line: u32,
    /// What is wrong.
    pub message: String,
    /// What is allowed, or what to do.
    pub help: Option<String>,
}

/// A client with a stream: a Towpath proxy, an Envoy, a gRPC client.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Proxy {
    /// The name it gave itself.
    pub node: String,
    /// The group it gave itself; may be empty.
    pub cluster: String,
    /// It says that it is a sidecar.
    #[serde(default)]
    pub sidecar: bool,
    /// It has listeners that open sockets, unlike a gRPC client or a job's sidecar.
    #[serde(default)]
    pub sockets: bool,
    /// Where it connects from.
    pub peer: String,
    /// When this stream began.
    pub connected_unix_ms: u64,
    /// The version all of which it has answered: it holds this one, less what
    /// it refused. `None` before the first.
    pub version: Option<String>,
    /// Whether that is the version that is served, and nothing of it was refused.
    pub in_sync: bool,
    /// Per kind of resource (`lds`, `rds`, `cds`, `eds`): the version behind
    /// the response it acknowledged last.
    pub acked: BTreeMap<String, String>,
    /// The last refusal that was not made good since.
    pub nack: Option<Nack>,
    /// Acknowledgements on this stream.
    pub acks: u64,
    /// Refusals on this stream.
    pub nacks: u64,
}

/// A refusal by a client.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Nack {
    /// When it came.
    pub unix_ms: u64,
    /// The version that was refused.
    pub version: String,
    /// The kind of resource.
    pub kind: ResourceKind,
    /// What is refused, as far as the client or we can tell. At most 20.
    pub resources: Vec<Refused>,
    /// What the client said, at most 2,000 characters.
    pub reason: String,
}

/// A resource that was refused, and where it was written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Refused {
    /// Name of the resource.
    pub name: String,
    /// `file:line` in the policy folder, if it was written there.
    pub source: Option<String>,
    /// What the client said of this one, if it said so apart.
    pub reason: Option<String>,
}

/// How one version reached the proxies that were connected when it was published.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Applied {
    /// Commit id, or a digest of a plain folder.
    pub version: String,
    /// When it was first seen in the source.
    pub seen_unix_ms: u64,
    /// From seen to published: reading, validating, first DNS answers.
    pub published_after_ms: f64,
    /// Streams that it changed something for.
    pub proxies: usize,
    /// Of these: acknowledged as a whole.
    pub acked: usize,
    /// Of these: refused.
    pub nacked: usize,
    /// Of these: gone, or overtaken by a newer version, before they acknowledged.
    pub lost: usize,
    /// From seen to the first acknowledgement.
    pub min_ms: Option<f64>,
    /// From seen to the latest acknowledgement; the time to apply, once nobody is waited for.
    pub max_ms: Option<f64>,
}

impl Applied {
    /// Streams that are still waited for.
    pub fn waiting(&self) -> usize {
        self.proxies.saturating_sub(self.acked + self.nacked + self.lost)
    }
}

/// A name that a service's endpoints are found by.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Name {
    /// The service.
    pub service: String,
    /// Host and port; empty before the first answer.
    pub host: String,
    /// File and line of the service.
    #[serde(default)]
    pub source: Option<String>,
    /// Addresses of the last good answer.
    pub addresses: usize,
    /// When that was.
    pub resolved_unix_ms: Option<u64>,
    /// Why the last question failed; `None` when it did not.
    pub error: Option<String>,
}

/// A place that an endpoint names, or a policy or a gateway, and that nobody knows so far.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct UnknownPlace {
    /// As it is written.
    pub place: String,
    /// File and line of a service with such an endpoint, or of what else names it.
    pub source: String,
    /// Why it is not known.
    pub error: String,
}

/// The load that clients make of a service, as they reported it last.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ServiceFigures {
    /// The service.
    pub service: String,
    /// Requests that ended, those that failed among them.
    pub requests_per_second: f64,
    /// Of these: failed for a reason of the endpoint's.
    pub errors_per_second: f64,
    /// Requests that have not ended.
    pub in_progress: u64,
    /// Body bytes both ways, as far as clients tell.
    pub bytes_per_second: f64,
    /// Requests that clients refused instead of sending them.
    pub dropped_per_second: f64,
    /// Endpoints of which something was told.
    pub endpoints: Vec<EndpointFigures>,
    /// Places of which something was told.
    pub places: Vec<PlaceFigures>,
}

/// The load of one endpoint.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct EndpointFigures {
    /// Its name.
    pub endpoint: String,
    /// Its address.
    pub address: String,
    /// Requests that ended, those that failed among them.
    pub requests_per_second: f64,
    /// Of these: failed for a reason of the endpoint's.
    pub errors_per_second: f64,
    /// Requests that have not ended.
    pub in_progress: u64,
    /// Body bytes both ways, as far as clients tell.
    pub bytes_per_second: f64,
    /// The weight it is served with.
    pub weight: u32,
    /// The weight that the policy says.
    pub declared_weight: u32,
    /// Means of what it says of itself, and of what clients measure, by name.
    pub metrics: BTreeMap<String, f64>,
}

/// The load of the endpoints of one place.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PlaceFigures {
    /// The place.
    pub locality: Locality,
    /// Requests that ended, those that failed among them.
    pub requests_per_second: f64,
    /// Of these: failed for a reason of the endpoints'.
    pub errors_per_second: f64,
    /// Requests that have not ended.
    pub in_progress: u64,
    /// Body bytes both ways, as far as clients tell.
    pub bytes_per_second: f64,
}

/// Sums since the start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Versions published.
    pub snapshots: u64,
    /// Versions rejected.
    pub rejects: u64,
    /// Looks at the source that failed.
    pub source_failures: u64,
    /// Streams accepted.
    pub streams: u64,
    /// Acknowledgements.
    pub acks: u64,
    /// Refusals.
    pub nacks: u64,
    /// Questions to DNS that failed.
    pub dns_failures: u64,
}

/// The tracker, shared by those who tell it something and those who ask.
#[derive(Debug)]
pub(crate) struct Shared(watch::Sender<Tracker>);

impl Shared {
    pub(crate) fn new(tracker: Tracker) -> Self {
        Self(watch::Sender::new(tracker))
    }

    /// Tells the tracker something, and wakes who waits for a change.
    pub(crate) fn update(&self, tell: impl FnOnce(&mut Tracker)) {
        self.0.send_modify(tell);
    }

    /// Looks at the tracker. Keep it short: nothing can be told meanwhile.
    pub(crate) fn look<T>(&self, at: impl FnOnce(&Tracker) -> T) -> T {
        at(&self.0.borrow())
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Tracker> {
        self.0.subscribe()
    }
}

/// The discovery service that delivers a kind.
pub(crate) fn kind_name(kind: ResourceKind) -> &'static str {
    match kind {
        ResourceKind::Listener => "lds",
        ResourceKind::RouteTable => "rds",
        ResourceKind::Service => "cds",
        ResourceKind::EndpointSet => "eds",
    }
}
