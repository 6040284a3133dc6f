//! HTTPRoutes and GRPCRoutes with their parents, and the tables of the mesh itself.

use crate::{
    diagnostic::Rule,
    document::{
        Documents, Kind, Object,
        own::ServiceProtocol,
        route::ParentRef,
        value::{Hostname, Name, Port},
    },
    model::{Bind, Chain, ChainKind, HttpOptions, Listener, Location, NodeSelector},
    problem::{At, Problems, Span},
};

use super::{
    Output,
    index::{Index, namespace_of},
    policies::Policies,
    rules::{self, Home, PreparedRule},
    table::{self, HostedRule, Section},
};

/// A route whose references are followed.
pub(crate) struct PreparedRoute<'d> {
    pub(crate) kind: Kind,
    pub(crate) id: String,
    pub(crate) namespace: &'d str,
    pub(crate) parents: Vec<Parent<'d>>,
    pub(crate) hostnames: &'d [At<Hostname>],
    pub(crate) rules: Vec<PreparedRule<'d>>,
}

/// What a route is attached to.
pub(crate) struct Parent<'d> {
    pub(crate) kind: Kind,
    pub(crate) id: String,
    pub(crate) section: Option<&'d At<Name>>,
    pub(crate) port: Option<&'d At<Port>>,
    pub(crate) span: Span,
}

/// Follows the references of all HTTPRoutes and GRPCRoutes.
pub(crate) fn prepare<'d>(
    documents: &'d Documents,
    index: &Index<'_>,
    problems: &mut Problems,
) -> Vec<PreparedRoute<'d>> {
    let mut routes = Vec::new();
    for route in documents.http_routes.iter().filter(|r| index.is_first(Kind::HttpRoute, r)) {
        let spec = &route.spec;
        let mut prepared =
            bare(Kind::HttpRoute, route, &spec.parent_refs, &spec.hostnames, index, problems);
        for (order, rule) in spec.rules.iter().enumerate() {
            let home = Home { id: &prepared.id, namespace: &route.namespace, order };
            prepared.rules.extend(rules::http(rule, home, index, problems));
        }
        empty(spec.rules.is_empty(), route, problems);
        rule_names(spec.rules.iter().filter_map(|r| r.name.as_ref()), problems);
        routes.push(prepared);
    }
    for route in documents.grpc_routes.iter().filter(|r| index.is_first(Kind::GrpcRoute, r)) {
        let spec = &route.spec;
        let mut prepared =
            bare(Kind::GrpcRoute, route, &spec.parent_refs, &spec.hostnames, index, problems);
        for (order, rule) in spec.rules.iter().enumerate() {
            let home = Home { id: &prepared.id, namespace: &route.namespace, order };
            prepared.rules.extend(rules::grpc(rule, home, index, problems));
        }
        empty(spec.rules.is_empty(), route, problems);
        rule_names(spec.rules.iter().filter_map(|r| r.name.as_ref()), problems);
        routes.push(prepared);
    }
    routes
}

fn empty<S>(empty: bool, route: &Object<S>, problems: &mut Problems) {
    if empty {
        problems
            .warning(Rule::NoEffect, route.span, "the route has no rules")
            .help("add `rules` with backendRefs");
    }
}

fn rule_names<'a>(names: impl Iterator<Item = &'a At<Name>>, problems: &mut Problems) {
    let mut seen: Vec<&At<Name>> = Vec::new();
    for name in names {
        if let Some(first) = seen.iter().find(|earlier| earlier.value == name.value) {
            problems
                .error(Rule::Duplicate, name.span, "two rules have this name")
                .related(first.span, "first here");
        }
        seen.push(name);
    }
}

fn bare<'d, S>(
    kind: Kind,
    route: &'d Object<S>,
    parents: &'d [ParentRef],
    hostnames: &'d [At<Hostname>],
    index: &Index<'_>,
    problems: &mut Problems,
) -> PreparedRoute<'d> {
    let parents = parent_refs(kind, route, parents, index, problems);
    let mut seen: Vec<&At<Hostname>> = Vec::new();
    for host in hostnames {
        if let Some(first) = seen.iter().find(|earlier| earlier.value == host.value) {
            problems
                .error(Rule::Duplicate, host.span, "this host is there twice")
                .related(first.span, "first here");
        }
        seen.push(host);
    }
    if let Some(host) = hostnames.first()
        && !parents.is_empty()
        && parents.iter().all(|p| p.kind == Kind::Service)
    {
        problems
            .warning(Rule::NoEffect, host.span, "hosts have no effect on a route of a Service")
            .help("leave `hostnames` out");
    }
    PreparedRoute {
        kind,
        id: route.id(),
        namespace: &route.namespace,
        parents,
        hostnames,
        rules: Vec::new(),
    }
}

/// Follows the parentRefs of any kind of route.
pub(crate) fn parent_refs<'d, S>(
    kind: Kind,
    route: &'d Object<S>,
    written: &'d [ParentRef],
    index: &Index<'_>,
    problems: &mut Problems,
) -> Vec<Parent<'d>> {
    if written.is_empty() {
        problems
            .warning(Rule::NoEffect, route.span, "the route is attached to nothing")
            .help("name a Gateway in `parentRefs`");
    }
    let streams = matches!(kind, Kind::TcpRoute | Kind::TlsRoute);
    let allowed: &[Kind] = if streams { &[Kind::Gateway] } else { &[Kind::Gateway, Kind::Service] };
    let mut parents = Vec::new();
    for parent in written {
        let group = parent.group.as_ref();
        let found = Index::kind(group, parent.kind.as_ref(), Kind::Gateway, allowed, problems);
        let Some(found) = found else { continue };
        let namespace = namespace_of(parent.namespace.as_ref(), &route.namespace);
        let Some(id) = index.follow(found, namespace, &parent.name, problems) else { continue };
        let section = parent.section_name.as_ref();
        if found == Kind::Service && !fits_service(parent, &id, &parents, problems) {
            continue;
        }
        if let Some(section) = section
            && !index.section(found, &id, section, problems)
        {
            continue;
        }
        let port = parent.port.as_ref();
        parents.push(Parent { kind: found, id, section, port, span: parent.name.span });
    }
    parents
}

/// Whether a reference to a Service says nothing that only a Gateway has, and
/// is the only one to it.
fn fits_service(
    written: &ParentRef,
    id: &str,
    earlier: &[Parent<'_>],
    problems: &mut Problems,
) -> bool {
    let before = problems.errors();
    if let Some(section) = &written.section_name {
        problems
            .error(Rule::InvalidValue, section.span, "a Service has no sections")
            .help("leave sectionName out");
    }
    if let Some(port) = &written.port {
        problems
            .error(Rule::InvalidValue, port.span, "a Service has no listening port")
            .help("leave port out");
    }
    if let Some(first) = earlier.iter().find(|p| p.kind == Kind::Service && p.id == id) {
        problems
            .error(
                Rule::Duplicate,
                written.name.span,
                "the route is attached to this Service twice",
            )
            .related(first.span, "first here");
    }
    problems.errors() == before
}

/// An API listener and a route table for every service that speaks HTTP: the
/// routes that are attached to it, or one that sends everything to it.
pub(crate) fn compile_mesh(
    documents: &Documents,
    index: &Index<'_>,
    routes: &[PreparedRoute<'_>],
    policies: &Policies<'_>,
    output: &mut Output<'_>,
    problems: &mut Problems,
) {
    let mesh_routes = |id: &str| {
        let id = id.to_owned();
        routes.iter().filter_map(move |route| {
            let parent = route.parents.iter().find(|p| p.kind == Kind::Service && p.id == id)?;
            Some((route, parent.span))
        })
    };
    for service in documents.services.iter().filter(|s| index.is_first(Kind::Service, s)) {
        let id = service.id();
        let tcp = service.spec.protocol.as_ref().is_some_and(|p| p.value == ServiceProtocol::Tcp);
        if tcp {
            for (_, span) in mesh_routes(&id) {
                problems
                    .error(
                        Rule::InvalidValue,
                        span,
                        format!("the Service `{id}` speaks TCP, which has no requests to route"),
                    )
                    .help("set its protocol to HTTP, HTTP2, GRPC or FOLLOW");
            }
            continue;
        }
        let name = format!("mesh/{id}");
        let mut span = service.span;
        let mut hosted: Vec<HostedRule> = Vec::new();
        for (route, parent) in mesh_routes(&id) {
            if hosted.is_empty() {
                span = parent;
            }
            for rule in &route.rules {
                let terms = policies.terms(rule, None);
                output.note_route(&name, rule, &terms);
                hosted.push(HostedRule::new("*", rule, &terms));
            }
        }
        if mesh_routes(&id).next().is_none() {
            let rule = PreparedRule::everything_to(name.clone(), &id, service.span);
            let terms = policies.terms(&rule, None);
            output.note_route(&name, &rule, &terms);
            hosted.push(HostedRule::new("*", &rule, &terms));
        }
        let section = Section { host: "*".to_owned(), rules: hosted };
        let table = table::build(&name, vec![section], problems);
        output.route_table(table, span, problems);
        let kind = ChainKind::Http { route_table: name, options: HttpOptions::default() };
        let chain = Chain::new(Vec::new(), None, kind);
        let listener = Listener {
            name: id,
            bind: Bind::Api,
            chains: vec![chain],
            location: Location::default(),
            proxy_protocol: None,
        };
        output.listener(NodeSelector::Any, listener, service.span, problems);
    }
}
