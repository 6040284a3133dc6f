//! One consistent world: what a request loads once and keeps to its end.

use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc};

use serde::{Deserialize, Serialize};

use super::{EndpointSet, Listener, RouteTable, Service};

/// An immutable, validated state of the mesh (or of one proxy's part of it).
///
/// Resources are shared by `Arc`, so two snapshots that differ in one endpoint
/// set share everything else, and "did this change" is a pointer comparison
/// before it is a deep one.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Snapshot {
    /// The version of the source: a Git commit id, or a content digest of a folder.
    pub version: String,
    /// Listeners by name (LDS).
    pub listeners: BTreeMap<String, Arc<Listener>>,
    /// Route tables by name (RDS).
    pub routes: BTreeMap<String, Arc<RouteTable>>,
    /// Services by name (CDS).
    pub services: BTreeMap<String, Arc<Service>>,
    /// Endpoint sets by service name (EDS).
    pub endpoints: BTreeMap<String, Arc<EndpointSet>>,
    /// Where each resource was written, for errors that point at a line.
    #[serde(skip)]
    pub sources: BTreeMap<ResourceKey, Source>,
}

/// The four kinds of resource a snapshot holds, in their warming order's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ResourceKind {
    /// A [`Listener`], delivered by LDS.
    Listener,
    /// A [`RouteTable`], delivered by RDS.
    RouteTable,
    /// A [`Service`], delivered by CDS.
    Service,
    /// An [`EndpointSet`], delivered by EDS.
    EndpointSet,
}

/// Names one resource of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ResourceKey {
    /// Which of the four kinds.
    pub kind: ResourceKind,
    /// The resource's name within its kind.
    pub name: String,
}

/// A place in a policy folder. Displays as `file:line`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Source {
    /// Path relative to the policy folder.
    pub file: PathBuf,
    /// One-based line.
    pub line: u32,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

impl fmt::Display for ResourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Listener => "listener",
            Self::RouteTable => "route table",
            Self::Service => "service",
            Self::EndpointSet => "endpoint set",
        })
    }
}
