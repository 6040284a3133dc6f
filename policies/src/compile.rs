//! Documents to a [`Mesh`]: references are followed, defaults filled in,
//! policies merged, routes sorted.

mod adaptive;
mod addresses;
mod balancer;
mod conditions;
mod filters;
mod gateways;
mod index;
mod limits;
mod listeners;
mod matches;
mod origin;
mod outlier;
mod place;
mod policies;
mod queue;
mod region;
mod routes;
mod rules;
mod services;
mod sockets;
mod spread;
mod stream_age;
mod streams;
mod subset;
mod table;
mod tries;

use std::{collections::BTreeMap, path::PathBuf, sync::Arc};

pub(crate) use self::origin::{Notes, Origin};
use self::{
    addresses::Addresses,
    index::Index,
    origin::{Origins, RouteNote},
    place::Places,
    policies::{Policies, Terms},
    rules::PreparedRule,
    sockets::Sockets,
};
use crate::{
    conditions::ObjectStatus,
    diagnostic::Rule,
    document::Documents,
    model::{
        Chain, EndpointSet, Listener, Mesh, NodeSelector, Redirected, ResourceKey, ResourceKind,
        RouteTable, ScopedListener, Service,
    },
    problem::{Problems, Span, source},
};

/// Compiles all documents. What cannot be compiled is left out and told.
pub(crate) fn compile(
    documents: &Documents,
    files: &[(PathBuf, String)],
    version: String,
    problems: &mut Problems,
) -> (Mesh, Notes, Vec<ObjectStatus>) {
    let resolved = subset::resolve(documents, problems);
    let written = documents;
    let documents = resolved.as_ref().unwrap_or(documents);
    let index = Index::new(documents, problems);
    let policies = Policies::new(documents, &index, problems);
    let mut output = Output::new(files, version);
    let mut sockets = Sockets::default();
    services::compile(documents, &index, &policies, &mut sockets, &mut output, problems);
    let routes = routes::prepare(documents, &index, problems);
    let streams = streams::prepare(documents, &index, problems);
    let addresses = Addresses::new(written, documents, &index, problems);
    let all = gateways::Routes { http: &routes, streams: &streams, addresses: &addresses };
    gateways::compile(documents, &index, &all, &policies, &mut sockets, &mut output, problems);
    routes::compile_mesh(documents, &index, &routes, &policies, &mut output, problems);
    queue::check_routes(&output.mesh, &policies, problems);
    region::check_classes(&output.mesh, &policies, documents, problems);
    let conditions = conditions::all(documents, &index, &output.mesh);
    (output.mesh, output.notes, conditions)
}

/// An endpoint that stands behind a proxy without a socket of its own.
pub(crate) struct Intercepted {
    /// Id of the proxy.
    node: String,
    chains: Vec<Chain>,
    /// The application's.
    port: u16,
    /// Clients' connections may come to it as streams of one.
    tunnel: bool,
    span: Span,
}

impl Intercepted {
    /// Whether one of two that are behind the same proxy listens where the other's tunnels come in.
    fn is_in_the_way_of(&self, other: &Self) -> bool {
        self.port == Redirected::TUNNELS && other.tunnel
            || other.port == Redirected::TUNNELS && self.tunnel
    }
}

/// The mesh in the making.
pub(crate) struct Output<'f> {
    files: &'f [(PathBuf, String)],
    mesh: Mesh,
    notes: Notes,
    places: Places,
    /// Endpoints whose connections a listener for redirected ones takes.
    intercepted: Vec<Intercepted>,
    /// Where each resource was first claimed.
    claimed: BTreeMap<ResourceKey, Span>,
}

impl<'f> Output<'f> {
    fn new(files: &'f [(PathBuf, String)], version: String) -> Self {
        let mesh = Mesh { version, ..Mesh::default() };
        let (notes, places) = (Notes::default(), Places::default());
        let intercepted = Vec::new();
        Self { files, mesh, notes, places, intercepted, claimed: BTreeMap::new() }
    }

    /// Takes a name for a resource; false when it is taken.
    fn claim(
        &mut self,
        kind: ResourceKind,
        name: &str,
        span: Span,
        problems: &mut Problems,
    ) -> bool {
        let key = ResourceKey { kind, name: name.to_owned() };
        if let Some(first) = self.claimed.get(&key) {
            problems
                .error(Rule::Conflict, span, format!("two resources would be the {kind} `{name}`"))
                .related(*first, "first here")
                .help("rename one of them");
            return false;
        }
        self.mesh.sources.insert(key.clone(), source(self.files, span));
        self.claimed.insert(key, span);
        true
    }

    fn note_route(&mut self, table: &str, rule: &PreparedRule<'_>, terms: &Terms) {
        let key = (table.to_owned(), rule.name.clone());
        let span = rule.matches.first().map(|(_, span)| *span).unwrap_or_default();
        let note = RouteNote { span, origins: terms.origins.clone() };
        self.notes.routes.insert(key, note);
    }

    fn note_service(&mut self, service: &str, origins: Origins) {
        self.notes.services.insert(service.to_owned(), origins);
    }

    fn listener(
        &mut self,
        nodes: NodeSelector,
        listener: Listener,
        span: Span,
        problems: &mut Problems,
    ) {
        self.listener_with(nodes, listener, BTreeMap::new(), span, problems);
    }

    /// A listener, and what the proxies with these ids get instead.
    fn listener_with(
        &mut self,
        nodes: NodeSelector,
        listener: Listener,
        own: BTreeMap<String, Arc<Listener>>,
        span: Span,
        problems: &mut Problems,
    ) {
        let name = listener.name.clone();
        if self.claim(ResourceKind::Listener, &name, span, problems) {
            let listener = Arc::new(listener);
            self.mesh.listeners.insert(name, ScopedListener { nodes, listener, own });
        }
    }

    fn route_table(&mut self, table: RouteTable, span: Span, problems: &mut Problems) {
        let name = table.name.clone();
        if self.claim(ResourceKind::RouteTable, &name, span, problems) {
            self.mesh.routes.insert(name, Arc::new(table));
        }
    }

    fn service(&mut self, service: Service, span: Span, problems: &mut Problems) {
        let name = service.name.clone();
        if self.claim(ResourceKind::Service, &name, span, problems) {
            self.mesh.services.insert(name, Arc::new(service));
        }
    }

    fn endpoints(&mut self, set: EndpointSet, span: Span, problems: &mut Problems) {
        let name = set.service.clone();
        if self.claim(ResourceKind::EndpointSet, &name, span, problems) {
            self.mesh.endpoints.insert(name, Arc::new(set));
        }
    }
}
