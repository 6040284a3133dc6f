//! The messages of both protocol variants in one neutral shape, and their
//! protobuf forms.
//!
//! Delta and state-of-the-world differ in bookkeeping, not in meaning; the
//! state machines speak the types below, and only this file knows which
//! protobuf message carries them.

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    sync::Arc,
};

use envoy_types::pb::{
    envoy::{
        config::core::v3 as core,
        service::discovery::v3::{
            self as discovery, DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest,
            DiscoveryResponse,
        },
    },
    google::{
        protobuf::{Any, Struct, Value, value::Kind},
        rpc::Status,
    },
};
use prost::{Message, Name};
use towpath_policies::model::{Node, ResourceKind};

/// Most names one stream may subscribe to per resource type, and most
/// resources a client holds per type.
pub const MAX_NAMES: usize = 65_536;
/// Longest accepted resource name, version or nonce in bytes.
pub const MAX_NAME_BYTES: usize = 2_048;
/// Largest accepted gRPC message in bytes.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024 * 1024;

/// Longest text kept of a peer's rejection.
const MAX_REASON_BYTES: usize = 4_096;
/// Most resources named in one rejection.
const MAX_REASONS: usize = 256;
/// Among `node.client_features`. See [`keeps_endpoints`].
const KEEPS_ENDPOINTS: &str = "towpath.dev/keeps-endpoints";
/// Among `node.client_features`. See [`opens_listeners`].
const OPENS_NO_LISTENERS: &str = "towpath.dev/opens-no-listeners";
/// Among `node.client_features`: it can be asked for the load of all its services at once.
const REPORTS_ALL: &str = "envoy.lrs.supports_send_all_clusters";
/// In `node.metadata`, as `true`: the client stands beside one application.
const SIDECAR: &str = "towpath.dev/sidecar";
/// Prefix of `control_plane.identifier` when it carries a snapshot's version.
const IDENTIFIER: &str = "towpath ";

/// The variant of the protocol a stream speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Flavour {
    /// Incremental: only changed resources travel.
    #[default]
    Delta,
    /// State of the world: LDS and CDS responses are always complete.
    StateOfTheWorld,
}

/// A discovery request, whichever variant carried it.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// Which resources it is about.
    pub kind: ResourceKind,
    /// The nonce of the response it answers; empty on the first request of a type.
    pub nonce: String,
    /// Why the response was rejected; `None` accepts it.
    pub rejection: Option<Rejection>,
    /// The subscription.
    pub subscription: Subscription,
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Subscription {
    /// Changes of the subscription.
    Delta {
        /// Names added; `*` is everything.
        subscribe: Vec<String>,
        /// Names given up.
        unsubscribe: Vec<String>,
        /// What the client holds already, on the first request of a type.
        held: BTreeMap<String, String>,
    },
    /// The whole subscription.
    World {
        /// Last accepted version of this type.
        version: String,
        /// Every name wanted; empty is everything (LDS and CDS).
        names: Vec<String>,
    },
}

/// Why a response was not accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rejection {
    /// For people.
    pub message: String,
    /// Resource name and reason, as far as the client tells them apart.
    pub resources: Vec<(String, String)>,
}

/// A discovery response, whichever variant carries it.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// Which resources it is about.
    pub kind: ResourceKind,
    /// To be repeated by the client.
    pub nonce: String,
    /// Version of the type (state of the world) or of the server's state (delta).
    pub version: String,
    /// Version of the snapshot behind it, when the server tells.
    pub snapshot_version: Option<String>,
    /// New and changed resources.
    pub resources: Vec<Item>,
    /// Names that are gone, or were never there (delta only).
    pub removed: Vec<String>,
}

/// One resource on the wire.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    /// Its name; empty in the state-of-the-world variant, where it is inside `any`.
    pub name: String,
    /// Its own version (delta only).
    pub version: String,
    /// The encoded resource.
    pub any: Any,
}

/// An encoded resource, shared by all streams that send it.
#[derive(Debug)]
pub struct Encoded {
    /// Its name.
    pub name: String,
    /// Digest of the encoded bytes: equal content has an equal version, whoever encodes it.
    pub version: Arc<str>,
    /// The bytes.
    pub any: Any,
}

/// A request that this crate does not answer.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// A resource type that is not one of the four.
    #[error("resource type {0:?} is not served here")]
    UnknownType(String),
    /// Something is larger than any honest peer's.
    #[error("{0}")]
    TooLarge(String),
}

impl Encoded {
    /// Wraps encoded bytes and takes their digest.
    pub fn new(name: &str, any: Any) -> Self {
        Self { name: name.to_owned(), version: digest(&any.value).into(), any }
    }
}

/// The type URL of a kind of resource.
pub fn type_url(kind: ResourceKind) -> &'static str {
    match kind {
        ResourceKind::Listener => "type.googleapis.com/envoy.config.listener.v3.Listener",
        ResourceKind::RouteTable => "type.googleapis.com/envoy.config.route.v3.RouteConfiguration",
        ResourceKind::Service => "type.googleapis.com/envoy.config.cluster.v3.Cluster",
        ResourceKind::EndpointSet => {
            "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment"
        }
    }
}

/// The kind of resource a type URL names.
pub fn kind_of(url: &str) -> Option<ResourceKind> {
    MAKE_ORDER.into_iter().find(|kind| type_url(*kind) == url)
}

/// The order in which new things are told, so that nothing refers to what is
/// not there yet.
pub(crate) const MAKE_ORDER: [ResourceKind; 4] = [
    ResourceKind::Service,
    ResourceKind::EndpointSet,
    ResourceKind::Listener,
    ResourceKind::RouteTable,
];

/// Index of a kind in per-type arrays.
pub(crate) fn slot(kind: ResourceKind) -> usize {
    match kind {
        ResourceKind::Service => 0,
        ResourceKind::EndpointSet => 1,
        ResourceKind::Listener => 2,
        ResourceKind::RouteTable => 3,
    }
}

/// 128 bits of SHA-256, as hex.
pub(crate) fn digest(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    use std::fmt::Write;
    let mut text = String::with_capacity(32);
    for byte in &Sha256::digest(bytes)[..16] {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

impl Request {
    /// Reads a delta request.
    ///
    /// # Errors
    /// When the type is unknown or something is too large.
    pub fn from_delta(pb: DeltaDiscoveryRequest) -> Result<Self, Malformed> {
        let kind = kind_of(&pb.type_url).ok_or_else(|| unknown(&pb.type_url))?;
        check_names(pb.resource_names_subscribe.iter(), "resource_names_subscribe")?;
        check_names(pb.resource_names_unsubscribe.iter(), "resource_names_unsubscribe")?;
        check_names(pb.initial_resource_versions.keys(), "initial_resource_versions")?;
        check_names(pb.initial_resource_versions.values(), "initial_resource_versions")?;
        check_names([&pb.response_nonce].into_iter(), "response_nonce")?;
        Ok(Self {
            kind,
            nonce: pb.response_nonce,
            rejection: pb.error_detail.map(Rejection::from_pb),
            subscription: Subscription::Delta {
                subscribe: pb.resource_names_subscribe,
                unsubscribe: pb.resource_names_unsubscribe,
                held: pb.initial_resource_versions.into_iter().collect(),
            },
        })
    }

    /// Reads a state-of-the-world request.
    ///
    /// # Errors
    /// When the type is unknown or something is too large.
    pub fn from_world(pb: DiscoveryRequest) -> Result<Self, Malformed> {
        let kind = kind_of(&pb.type_url).ok_or_else(|| unknown(&pb.type_url))?;
        check_names(pb.resource_names.iter(), "resource_names")?;
        check_names([&pb.version_info, &pb.response_nonce].into_iter(), "version_info")?;
        Ok(Self {
            kind,
            nonce: pb.response_nonce,
            rejection: pb.error_detail.map(Rejection::from_pb),
            subscription: Subscription::World {
                version: pb.version_info,
                names: pb.resource_names,
            },
        })
    }

    /// Writes it as a delta request; `node` on the first of a stream.
    pub fn into_delta(self, node: Option<core::Node>) -> DeltaDiscoveryRequest {
        let mut pb = DeltaDiscoveryRequest {
            node,
            type_url: type_url(self.kind).to_owned(),
            response_nonce: self.nonce,
            error_detail: self.rejection.map(Rejection::into_pb),
            ..Default::default()
        };
        if let Subscription::Delta { subscribe, unsubscribe, held } = self.subscription {
            pb.resource_names_subscribe = subscribe;
            pb.resource_names_unsubscribe = unsubscribe;
            pb.initial_resource_versions = held.into_iter().collect();
        }
        pb
    }

    /// Writes it as a state-of-the-world request; `node` on the first of a stream.
    pub fn into_world(self, node: Option<core::Node>) -> DiscoveryRequest {
        let mut pb = DiscoveryRequest {
            node,
            type_url: type_url(self.kind).to_owned(),
            response_nonce: self.nonce,
            error_detail: self.rejection.map(Rejection::into_pb),
            ..Default::default()
        };
        if let Subscription::World { version, names } = self.subscription {
            pb.version_info = version;
            pb.resource_names = names;
        }
        pb
    }
}

impl Response {
    /// Writes it as a delta response.
    pub fn into_delta(self) -> DeltaDiscoveryResponse {
        DeltaDiscoveryResponse {
            system_version_info: self.version,
            type_url: type_url(self.kind).to_owned(),
            nonce: self.nonce,
            control_plane: self.snapshot_version.map(identify),
            removed_resources: self.removed,
            resources: self
                .resources
                .into_iter()
                .map(|item| discovery::Resource {
                    name: item.name,
                    version: item.version,
                    resource: Some(item.any),
                    ..Default::default()
                })
                .collect(),
            ..Default::default()
        }
    }

    /// Writes it as a state-of-the-world response.
    pub fn into_world(self) -> DiscoveryResponse {
        DiscoveryResponse {
            version_info: self.version,
            type_url: type_url(self.kind).to_owned(),
            nonce: self.nonce,
            control_plane: self.snapshot_version.map(identify),
            resources: self.resources.into_iter().map(|item| item.any).collect(),
            ..Default::default()
        }
    }

    /// Reads a delta response.
    ///
    /// # Errors
    /// When the type is unknown or something is too large.
    pub fn from_delta(pb: DeltaDiscoveryResponse) -> Result<Self, Malformed> {
        let kind = kind_of(&pb.type_url).ok_or_else(|| unknown(&pb.type_url))?;
        check_names(pb.resources.iter().flat_map(|r| [&r.name, &r.version]), "resources")?;
        check_names(pb.removed_resources.iter(), "removed_resources")?;
        check_names([&pb.system_version_info, &pb.nonce].into_iter(), "nonce")?;
        Ok(Self {
            kind,
            nonce: pb.nonce,
            version: pb.system_version_info,
            snapshot_version: identified(pb.control_plane),
            removed: pb.removed_resources,
            resources: pb
                .resources
                .into_iter()
                .map(|r| Item {
                    name: r.name,
                    version: r.version,
                    any: r.resource.unwrap_or_default(),
                })
                .collect(),
        })
    }

    /// Reads a state-of-the-world response.
    ///
    /// # Errors
    /// When the type is unknown or something is too large.
    pub fn from_world(pb: DiscoveryResponse) -> Result<Self, Malformed> {
        let kind = kind_of(&pb.type_url).ok_or_else(|| unknown(&pb.type_url))?;
        check_names([&pb.version_info, &pb.nonce].into_iter(), "version_info")?;
        if pb.resources.len() > MAX_NAMES {
            return Err(too_many("resources"));
        }
        Ok(Self {
            kind,
            nonce: pb.nonce,
            version: pb.version_info,
            snapshot_version: identified(pb.control_plane),
            removed: Vec::new(),
            resources: pb.resources.into_iter().map(Item::from_any).collect(),
        })
    }
}

impl Item {
    /// A resource that may come wrapped in a `Resource` with a name and a version.
    fn from_any(any: Any) -> Self {
        if any.type_url == discovery::Resource::type_url()
            && let Ok(inner) = discovery::Resource::decode(any.value.as_slice())
        {
            return Self {
                name: inner.name,
                version: inner.version,
                any: inner.resource.unwrap_or_default(),
            };
        }
        Self { name: String::new(), version: String::new(), any }
    }
}

impl From<&Encoded> for Item {
    fn from(encoded: &Encoded) -> Self {
        Self {
            name: encoded.name.clone(),
            version: encoded.version.to_string(),
            any: encoded.any.clone(),
        }
    }
}

impl Rejection {
    /// One reason per resource, and a message that lists them.
    pub fn new(resources: Vec<(String, String)>) -> Self {
        let lines: Vec<String> =
            resources.iter().map(|(name, reason)| format!("{name}: {reason}")).collect();
        Self { message: lines.join("; "), resources }
    }

    fn into_pb(self) -> Status {
        let details = self
            .resources
            .into_iter()
            .take(MAX_REASONS)
            .map(|(name, message)| {
                let error = discovery::ResourceError {
                    resource_name: Some(discovery::ResourceName { name, ..Default::default() }),
                    error_detail: Some(Status {
                        code: INVALID_ARGUMENT,
                        message: clip(message),
                        ..Default::default()
                    }),
                };
                Any { type_url: discovery::ResourceError::type_url(), value: error.encode_to_vec() }
            })
            .collect();
        Status { code: INVALID_ARGUMENT, message: clip(self.message), details }
    }

    fn from_pb(pb: Status) -> Self {
        let resources = pb
            .details
            .iter()
            .filter(|any| any.type_url == discovery::ResourceError::type_url())
            .take(MAX_REASONS)
            .filter_map(|any| discovery::ResourceError::decode(any.value.as_slice()).ok())
            .map(|e| {
                let name = e.resource_name.unwrap_or_default().name;
                (clip(name), clip(e.error_detail.unwrap_or_default().message))
            })
            .collect();
        Self { message: clip(pb.message), resources }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// The protobuf form of a client's name.
pub(crate) fn node_to_pb(node: &Node) -> core::Node {
    core::Node {
        id: node.id.clone(),
        cluster: node.cluster.clone(),
        user_agent_name: "towpath".to_owned(),
        metadata: node.sidecar.then(|| Struct {
            fields: HashMap::from([(
                SIDECAR.to_owned(),
                Value { kind: Some(Kind::BoolValue(true)) },
            )]),
        }),
        client_features: vec![KEEPS_ENDPOINTS.to_owned(), REPORTS_ALL.to_owned()],
        user_agent_version_type: Some(core::node::UserAgentVersionType::UserAgentVersion(
            env!("CARGO_PKG_VERSION").to_owned(),
        )),
        ..Default::default()
    }
}

/// Whether a client says that a changed service does without its endpoint
/// set being sent again.
pub(crate) fn keeps_endpoints(node: &core::Node) -> bool {
    node.client_features.iter().any(|feature| feature == KEEPS_ENDPOINTS)
}

/// Says in `node` that its client takes listeners for their routes only.
pub(crate) fn open_no_listeners(node: &mut core::Node) {
    node.client_features.push(OPENS_NO_LISTENERS.to_owned());
}

/// Whether a client opens the listeners that it asks for, unless they are API listeners.
pub(crate) fn opens_listeners(node: &core::Node) -> bool {
    !node.client_features.iter().any(|feature| feature == OPENS_NO_LISTENERS)
}

/// Whether a client can be asked for the load of all its services at once.
pub(crate) fn reports_all(node: &core::Node) -> bool {
    node.client_features.iter().any(|feature| feature == REPORTS_ALL)
}

/// The domain form of a client's name; overlong names are cut.
pub(crate) fn node_from_pb(node: core::Node) -> Node {
    let told = node.metadata.as_ref().and_then(|metadata| metadata.fields.get(SIDECAR));
    let sidecar = told.is_some_and(|told| told.kind == Some(Kind::BoolValue(true)));
    Node { id: cut(node.id, MAX_NAME_BYTES), cluster: cut(node.cluster, MAX_NAME_BYTES), sidecar }
}

fn identify(version: String) -> core::ControlPlane {
    core::ControlPlane { identifier: format!("{IDENTIFIER}{version}") }
}

fn identified(pb: Option<core::ControlPlane>) -> Option<String> {
    let identifier = pb?.identifier;
    let version = identifier.strip_prefix(IDENTIFIER)?;
    (version.len() <= MAX_NAME_BYTES).then(|| version.to_owned())
}

fn check_names<'a>(names: impl Iterator<Item = &'a String>, field: &str) -> Result<(), Malformed> {
    let mut count = 0;
    for name in names {
        count += 1;
        if name.len() > MAX_NAME_BYTES {
            return Err(Malformed::TooLarge(format!(
                "{field}: an entry of {} bytes, at most {MAX_NAME_BYTES} are allowed",
                name.len()
            )));
        }
    }
    if count > 2 * MAX_NAMES { Err(too_many(field)) } else { Ok(()) }
}

fn too_many(field: &str) -> Malformed {
    Malformed::TooLarge(format!("{field}: more than {MAX_NAMES} entries"))
}

fn unknown(url: &str) -> Malformed {
    Malformed::UnknownType(cut(url.to_owned(), 256))
}

fn clip(text: String) -> String {
    cut(text, MAX_REASON_BYTES)
}

fn cut(mut text: String, max: usize) -> String {
    if text.len() > max {
        let mut at = max;
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        text.truncate(at);
    }
    text
}

/// `google.rpc.Code.INVALID_ARGUMENT`.
const INVALID_ARGUMENT: i32 = 3;
