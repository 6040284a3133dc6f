//! Policy documents as they are written: typed, each value with its place,
//! references not yet followed.

pub(crate) mod balancer;
pub(crate) mod gateway;
pub(crate) mod listener;
pub(crate) mod own;
pub(crate) mod read;
pub(crate) mod region;
pub(crate) mod route;
pub(crate) mod value;

use std::collections::HashSet;

use serde_json::Value as Json;

use self::{
    balancer::BalancerPolicySpec,
    gateway::{GatewaySpec, Metadata},
    listener::ListenerPolicySpec,
    own::{BreakerPolicySpec, ServiceSpec, TransferPolicySpec},
    read::{Anything, Definitions, Field, Read, Shape, ticked},
    region::RegionSpec,
    route::{GrpcRouteSpec, HttpRouteSpec, TcpRouteSpec, TlsRouteSpec},
};
use crate::{
    diagnostic::{Rule, nearest},
    problem::{At, Problems, Span},
    yaml::Node,
};

/// API group of the Gateway API.
pub(crate) const GATEWAY_GROUP: &str = "gateway.networking.k8s.io";
/// API group of our own kinds.
pub(crate) const OWN_GROUP: &str = "towpath.dev";

/// The kinds of documents that are obeyed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Kind {
    Gateway,
    HttpRoute,
    GrpcRoute,
    TcpRoute,
    TlsRoute,
    Service,
    TransferPolicy,
    BalancerPolicy,
    BreakerPolicy,
    ListenerPolicy,
    Region,
}

impl Kind {
    pub(crate) const ALL: [Self; 11] = [
        Self::Gateway,
        Self::HttpRoute,
        Self::GrpcRoute,
        Self::TcpRoute,
        Self::TlsRoute,
        Self::Service,
        Self::TransferPolicy,
        Self::BalancerPolicy,
        Self::BreakerPolicy,
        Self::ListenerPolicy,
        Self::Region,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Gateway => "Gateway",
            Self::HttpRoute => "HTTPRoute",
            Self::GrpcRoute => "GRPCRoute",
            Self::TcpRoute => "TCPRoute",
            Self::TlsRoute => "TLSRoute",
            Self::Service => "Service",
            Self::TransferPolicy => "TransferPolicy",
            Self::BalancerPolicy => "BalancerPolicy",
            Self::BreakerPolicy => "BreakerPolicy",
            Self::ListenerPolicy => "ListenerPolicy",
            Self::Region => "Region",
        }
    }

    pub(crate) fn group(self) -> &'static str {
        match self {
            Self::Gateway | Self::HttpRoute | Self::GrpcRoute | Self::TcpRoute | Self::TlsRoute => {
                GATEWAY_GROUP
            }
            _ => OWN_GROUP,
        }
    }

    pub(crate) fn versions(self) -> &'static [&'static str] {
        if self.group() == OWN_GROUP {
            &["v1alpha1"]
        } else {
            &["v1", "v1beta1", "v1alpha3", "v1alpha2"]
        }
    }

    /// The schema of `spec`.
    pub(crate) fn spec_schema(self, definitions: &mut Definitions) -> Json {
        match self {
            Self::Gateway => GatewaySpec::schema(definitions),
            Self::HttpRoute => HttpRouteSpec::schema(definitions),
            Self::GrpcRoute => GrpcRouteSpec::schema(definitions),
            Self::TcpRoute => TcpRouteSpec::schema(definitions),
            Self::TlsRoute => TlsRouteSpec::schema(definitions),
            Self::Service => ServiceSpec::schema(definitions),
            Self::TransferPolicy => TransferPolicySpec::schema(definitions),
            Self::BalancerPolicy => BalancerPolicySpec::schema(definitions),
            Self::BreakerPolicy => BreakerPolicySpec::schema(definitions),
            Self::ListenerPolicy => ListenerPolicySpec::schema(definitions),
            Self::Region => RegionSpec::schema(definitions),
        }
    }
}

/// A document of one kind.
#[derive(Clone, Debug)]
pub(crate) struct Object<S> {
    /// Where its name is written.
    pub(crate) span: Span,
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) metadata: Metadata,
    pub(crate) spec: S,
}

impl<S> Object<S> {
    /// The name of what it becomes: without the namespace when that is `default`.
    pub(crate) fn id(&self) -> String {
        qualified(&self.namespace, &self.name)
    }
}

/// `name` in the default namespace, `namespace/name` in others.
pub(crate) fn qualified(namespace: &str, name: &str) -> String {
    if namespace == DEFAULT_NAMESPACE { name.to_owned() } else { format!("{namespace}/{name}") }
}

/// The namespace of documents that name none.
pub(crate) const DEFAULT_NAMESPACE: &str = "default";

/// Annotations that a Gateway may carry.
pub(crate) const GATEWAY_ANNOTATIONS: [&str; 7] = [
    "towpath.dev/nodes",
    "towpath.dev/bind",
    "towpath.dev/via",
    "towpath.dev/forwarded",
    "towpath.dev/opaque-ports",
    "towpath.dev/tproxy",
    "towpath.dev/place",
];

/// All documents of a folder, by kind, in order of appearance.
#[derive(Clone, Default)]
pub(crate) struct Documents {
    pub(crate) gateways: Vec<Object<GatewaySpec>>,
    pub(crate) http_routes: Vec<Object<HttpRouteSpec>>,
    pub(crate) grpc_routes: Vec<Object<GrpcRouteSpec>>,
    pub(crate) tcp_routes: Vec<Object<TcpRouteSpec>>,
    pub(crate) tls_routes: Vec<Object<TlsRouteSpec>>,
    pub(crate) services: Vec<Object<ServiceSpec>>,
    pub(crate) transfer_policies: Vec<Object<TransferPolicySpec>>,
    pub(crate) balancer_policies: Vec<Object<BalancerPolicySpec>>,
    pub(crate) breaker_policies: Vec<Object<BreakerPolicySpec>>,
    pub(crate) listener_policies: Vec<Object<ListenerPolicySpec>>,
    pub(crate) regions: Vec<Object<RegionSpec>>,
    /// Documents of our kinds, whether they could be read or not.
    pub(crate) count: usize,
    /// Names of documents that could not be read: references to them are no second problem.
    pub(crate) broken: HashSet<(Kind, String)>,
    /// A part of some file, or a name, is not known: what seems missing may be there.
    pub(crate) incomplete: bool,
}

static TOP: Shape = Shape {
    doc: &["A policy document."],
    fields: &[
        Field {
            key: "apiVersion",
            doc: &["Group and version."],
            required: true,
            schema: String::schema,
        },
        Field { key: "kind", doc: &["Kind."], required: true, schema: String::schema },
        Field {
            key: "metadata",
            doc: &["Name and notes."],
            required: true,
            schema: Metadata::schema,
        },
        Field { key: "spec", doc: &["What is wanted."], required: true, schema: Anything::schema },
        Field { key: "status", doc: &["Not used."], required: false, schema: Anything::schema },
    ],
    unsupported: &[],
    renamed: &[],
    exactly_one: &[],
};

impl Documents {
    /// Reads one document into its place.
    pub(crate) fn add(&mut self, node: &Node, problems: &mut Problems) {
        let Some(kind) = self.kind(node, problems) else { return };
        self.count += 1;
        let before = problems.errors();
        match kind {
            Kind::Gateway => self.gateways.extend(object(kind, node, problems)),
            Kind::HttpRoute => self.http_routes.extend(object(kind, node, problems)),
            Kind::GrpcRoute => self.grpc_routes.extend(object(kind, node, problems)),
            Kind::TcpRoute => self.tcp_routes.extend(object(kind, node, problems)),
            Kind::TlsRoute => self.tls_routes.extend(object(kind, node, problems)),
            Kind::Service => self.services.extend(object(kind, node, problems)),
            Kind::TransferPolicy => self.transfer_policies.extend(object(kind, node, problems)),
            Kind::BalancerPolicy => self.balancer_policies.extend(object(kind, node, problems)),
            Kind::BreakerPolicy => self.breaker_policies.extend(object(kind, node, problems)),
            Kind::ListenerPolicy => self.listener_policies.extend(object(kind, node, problems)),
            Kind::Region => self.regions.extend(object(kind, node, problems)),
        }
        if problems.errors() > before {
            self.remember_broken(kind, node);
        }
    }

    fn remember_broken(&mut self, kind: Kind, node: &Node) {
        let metadata = node.get("metadata");
        let part = |key| metadata.and_then(|m| m.get(key)).and_then(Node::text);
        match part("name") {
            Some(name) => {
                let namespace = part("namespace").unwrap_or(DEFAULT_NAMESPACE);
                self.broken.insert((kind, qualified(namespace, name)));
            }
            None => self.incomplete = true,
        }
    }

    /// What kind of document this is; `None` when it is not one of ours, after saying so.
    fn kind(&mut self, node: &Node, problems: &mut Problems) -> Option<Kind> {
        let before = problems.errors();
        let entries = TOP.open_lenient(node, problems)?;
        let version = entries.field::<At<String>>(&TOP.fields[0], problems);
        let kind = entries.field::<At<String>>(&TOP.fields[1], problems);
        if problems.errors() > before {
            self.incomplete = true;
        }
        let (version, kind) = (version?, kind?);
        let found = find_kind(&version, &kind, problems);
        if problems.errors() > before {
            self.incomplete = true;
        }
        found
    }
}

fn find_kind(api_version: &At<String>, kind: &At<String>, problems: &mut Problems) -> Option<Kind> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    if group != OWN_GROUP && group != GATEWAY_GROUP {
        foreign(api_version, group, kind, problems);
        return None;
    }
    let ours = || Kind::ALL.into_iter().filter(|k| k.group() == group);
    let Some(found) = ours().find(|k| k.name() == kind.value) else {
        unknown_kind(group, kind, problems);
        return None;
    };
    if !found.versions().contains(&version) {
        let allowed = found.versions().join(", ");
        problems
            .error(
                Rule::UnknownKind,
                api_version.span,
                format!("unknown version {}", ticked(version)),
            )
            .help(format!("{} is there in {allowed} of {group}", found.name()));
        return None;
    }
    Some(found)
}

fn unknown_kind(group: &str, kind: &At<String>, problems: &mut Problems) {
    let silent = ["GatewayClass", "ReferenceGrant"];
    if group == GATEWAY_GROUP && silent.contains(&kind.as_str()) {
        problems
            .warning(Rule::NoEffect, kind.span, format!("{} is passed over", kind.value))
            .help("all documents of a folder may refer to each other");
        return;
    }
    let known = [
        "UDPRoute",
        "BackendTLSPolicy",
        "BackendTrafficPolicy",
        "ListenerSet",
        "XListenerSet",
        "XMesh",
    ];
    if group == GATEWAY_GROUP && known.contains(&kind.as_str()) {
        problems
            .error(Rule::Unsupported, kind.span, format!("{} is not supported yet", kind.value))
            .help("remove the document");
        return;
    }
    let names: Vec<_> = Kind::ALL.iter().filter(|k| k.group() == group).map(|k| k.name()).collect();
    let all = names.join(", ");
    let help = match nearest(kind, names.iter().copied()) {
        Some(near) => format!("did you mean `{near}`? {group} has {all}"),
        None => match Kind::ALL.iter().find(|k| k.name() == kind.value) {
            Some(other) => format!("{} is of {}", other.name(), other.group()),
            None => format!("{group} has {all}"),
        },
    };
    let message = format!("unknown kind {}", ticked(kind));
    problems.error(Rule::UnknownKind, kind.span, message).help(help);
}

fn foreign(api_version: &At<String>, group: &str, kind: &At<String>, problems: &mut Problems) {
    let near = nearest(group, [OWN_GROUP, GATEWAY_GROUP]);
    let ours = Kind::ALL.iter().find(|k| k.name() == kind.value);
    if let (Some(near), Some(_)) = (near, ours) {
        problems
            .error(Rule::UnknownKind, api_version.span, format!("unknown group {}", ticked(group)))
            .help(format!("did you mean `{near}`?"));
        return;
    }
    let message =
        format!("{} of {} is not Towpath's and is passed over", ticked(kind), ticked(api_version));
    let problem = problems.warning(Rule::NoEffect, kind.span, message);
    if let Some(ours) = ours {
        let version = ours.versions()[0];
        problem.help(format!("Towpath's {} is of {}/{version}", ours.name(), ours.group()));
    }
}

fn object<S: Read>(kind: Kind, node: &Node, problems: &mut Problems) -> Option<Object<S>> {
    let entries = TOP.open(node, problems)?;
    let metadata = entries.field::<Metadata>(&TOP.fields[2], problems);
    if let Some(metadata) = &metadata {
        check_annotations(kind, metadata, problems);
    }
    let spec = entries.field::<S>(&TOP.fields[3], problems);
    let (metadata, spec) = (metadata?, spec?);
    Some(Object {
        span: metadata.name.span,
        namespace: metadata
            .namespace
            .as_ref()
            .map_or_else(|| DEFAULT_NAMESPACE.to_owned(), |n| n.to_string()),
        name: metadata.name.to_string(),
        metadata,
        spec,
    })
}

fn check_annotations(kind: Kind, metadata: &Metadata, problems: &mut Problems) {
    let allowed: &[&str] = if kind == Kind::Gateway { &GATEWAY_ANNOTATIONS } else { &[] };
    for (key, (span, _)) in &metadata.annotations {
        if !key.starts_with("towpath.dev/") || allowed.contains(&key.as_str()) {
            continue;
        }
        let help = match nearest(key, allowed.iter().copied()) {
            Some(near) => format!("did you mean `{near}`?"),
            None if allowed.is_empty() => format!("{} has none of towpath.dev", kind.name()),
            None => format!("{} has {}", kind.name(), allowed.join(", ")),
        };
        let message = format!("unknown annotation {}", ticked(key));
        problems.error(Rule::UnknownField, *span, message).help(help);
    }
}

/// JSON Schema of a whole document of a kind.
pub(crate) fn schema(kind: Kind) -> Json {
    let mut definitions = Definitions::default();
    let spec = kind.spec_schema(&mut definitions);
    let metadata = Metadata::schema(&mut definitions);
    let versions: Vec<_> =
        kind.versions().iter().map(|version| format!("{}/{version}", kind.group())).collect();
    serde_json::json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": kind.name(),
        "type": "object",
        "properties": {
            "apiVersion": { "enum": versions, "description": read::join(TOP.fields[0].doc) },
            "kind": { "const": kind.name(), "description": read::join(TOP.fields[1].doc) },
            "metadata": metadata,
            "spec": spec,
            "status": { "description": read::join(TOP.fields[4].doc) },
        },
        "required": ["apiVersion", "kind", "metadata", "spec"],
        "additionalProperties": false,
        "$defs": definitions.into_json(),
    })
}
