//! Envoy v3 protobuf ↔ domain types.
//!
//! Standard first: what Envoy's API can say is said in it, so that Envoy and
//! gRPC clients obey. What it cannot say rides beside it as metadata under
//! `extension::KEY`, in the shape of the domain type's JSON: the encoder
//! decodes its own standard part again and adds exactly what did not survive,
//! so encoding and decoding again gives an equal value.
//!
//! Decoding accepts what other servers send, with the meaning it has for
//! Envoy, and refuses, with the field's path, whatever would be disobeyed
//! silently: a filter that guards, a match condition that narrows, a
//! certificate demand.

mod action;
mod common;
mod endpoints;
mod extension;
mod hashing;
mod headers;
mod http;
mod listener;
pub(crate) mod loads;
mod matching;
mod outlier;
mod proxy_protocol;
mod redirected;
mod retry;
mod route;
mod service;
mod tls;
mod upstream;
mod weighing;

use std::{fmt, sync::Arc};

use envoy_types::pb::google::protobuf::Any;
use towpath_policies::model::{EndpointSet, Listener, ResourceKind, RouteTable, Service};

use crate::wire::type_url;

/// A decoded resource.
#[derive(Clone, Debug, PartialEq)]
pub enum Decoded {
    /// LDS.
    Listener(DecodedListener),
    /// RDS.
    RouteTable(RouteTable),
    /// CDS.
    Service(DecodedService),
    /// EDS.
    EndpointSet(EndpointSet),
}

/// A listener, and the route tables written inside it.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodedListener {
    /// The listener; its chains refer to inline tables by name too.
    pub listener: Arc<Listener>,
    /// Their names begin with `inline/` and the listener's name.
    pub inline: Vec<Arc<RouteTable>>,
}

/// A service, and where its endpoints come from.
#[derive(Clone, Debug, PartialEq)]
pub struct DecodedService {
    /// The service.
    pub service: Arc<Service>,
    /// Its endpoints.
    pub endpoints: EndpointSource,
}

/// Where a decoded service's endpoints come from.
#[derive(Clone, Debug, PartialEq)]
pub enum EndpointSource {
    /// By EDS, under this name.
    Delivered(String),
    /// They were written inside the cluster.
    Inline(Arc<EndpointSet>),
    /// The proxy finds them itself, as [`Service::discovery`] says.
    Resolved,
}

/// Why a resource cannot be obeyed: the field's path and the reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Invalid {
    path: String,
    reason: String,
}

/// Encodes a listener for LDS.
pub fn encode_listener(listener: &Listener) -> Any {
    common::pack(&listener::encode(listener))
}

/// Encodes a route table for RDS.
pub fn encode_route_table(table: &RouteTable) -> Any {
    common::pack(&route::encode(table, false))
}

/// Encodes a route table that proxyless gRPC clients read too. They refuse
/// what they do not know, `path_separated_prefix` among it, so the same is
/// said by a regular expression.
pub fn encode_proxyless_route_table(table: &RouteTable) -> Any {
    common::pack(&route::encode(table, true))
}

/// Encodes a service for CDS.
pub fn encode_service(service: &Service) -> Any {
    common::pack(&service::encode(service))
}

/// Encodes an endpoint set for EDS.
pub fn encode_endpoint_set(set: &EndpointSet) -> Any {
    common::pack(&endpoints::encode(set))
}

/// Decodes a resource of a kind. The name is given too, as far as it can be
/// read, so that a rejection can name the resource.
///
/// # Errors
/// [`Invalid`] when the bytes are not of that kind or cannot be obeyed.
pub fn decode(kind: ResourceKind, any: &Any) -> (Option<String>, Result<Decoded, Invalid>) {
    if any.type_url != type_url(kind) {
        let url: String = any.type_url.chars().take(256).collect();
        return (
            None,
            Err(Invalid::new(format!("has type {url:?} instead of {}", type_url(kind)))),
        );
    }
    match kind {
        ResourceKind::Listener => decode_with(
            any,
            |pb: &listener::Pb| pb.name.clone(),
            |pb| listener::decode(&pb).map(Decoded::Listener),
        ),
        ResourceKind::RouteTable => decode_with(
            any,
            |pb: &route::Pb| pb.name.clone(),
            |pb| route::decode(&pb).map(Decoded::RouteTable),
        ),
        ResourceKind::Service => decode_with(
            any,
            |pb: &service::Pb| pb.name.clone(),
            |pb| service::decode(&pb).map(Decoded::Service),
        ),
        ResourceKind::EndpointSet => decode_with(
            any,
            |pb: &endpoints::Pb| pb.cluster_name.clone(),
            |pb| endpoints::decode(&pb).map(Decoded::EndpointSet),
        ),
    }
}

fn decode_with<M: prost::Message + Default>(
    any: &Any,
    name: impl FnOnce(&M) -> String,
    decode: impl FnOnce(M) -> Result<Decoded, Invalid>,
) -> (Option<String>, Result<Decoded, Invalid>) {
    match M::decode(any.value.as_slice()) {
        Ok(pb) => (Some(name(&pb)), decode(pb)),
        Err(error) => (None, Err(Invalid::new(format!("is not valid protobuf: {error}")))),
    }
}

impl Decoded {
    /// Which kind it is.
    pub fn kind(&self) -> ResourceKind {
        match self {
            Self::Listener(_) => ResourceKind::Listener,
            Self::RouteTable(_) => ResourceKind::RouteTable,
            Self::Service(_) => ResourceKind::Service,
            Self::EndpointSet(_) => ResourceKind::EndpointSet,
        }
    }
}

impl DecodedListener {
    /// A route table written inside this listener.
    pub fn inline_table(&self, name: &str) -> Option<&Arc<RouteTable>> {
        self.inline.iter().find(|table| table.name == name)
    }
}

impl Invalid {
    fn new(reason: impl Into<String>) -> Self {
        Self { path: String::new(), reason: reason.into() }
    }

    fn within(mut self, field: &str) -> Self {
        if !self.path.is_empty() && !self.path.starts_with('[') {
            self.path.insert(0, '.');
        }
        self.path.insert_str(0, field);
        self
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.path.is_empty() {
            f.write_str(&self.reason)
        } else {
            write!(f, "{}: {}", self.path, self.reason)
        }
    }
}

#[cfg(test)]
mod tests;
