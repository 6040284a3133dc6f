//! TCPRoutes and TLSRoutes: where opaque connections go.

use crate::{
    diagnostic::Rule,
    document::{
        Documents, Kind, Object,
        route::{BackendRef, TcpRule},
        value::Hostname,
    },
    model::WeightedBackend,
    problem::{At, Problems, Span},
};

use super::{
    index::{BackendName, Index},
    routes::{Parent, parent_refs},
};

/// A route of connections whose references are followed.
pub(crate) struct PreparedStream<'d> {
    pub(crate) kind: Kind,
    pub(crate) id: String,
    pub(crate) namespace: &'d str,
    pub(crate) parents: Vec<Parent<'d>>,
    pub(crate) hostnames: &'d [At<Hostname>],
    pub(crate) backends: Vec<WeightedBackend>,
    pub(crate) span: Span,
}

pub(crate) fn prepare<'d>(
    documents: &'d Documents,
    index: &Index<'_>,
    problems: &mut Problems,
) -> Vec<PreparedStream<'d>> {
    let mut streams = Vec::new();
    for route in documents.tcp_routes.iter().filter(|r| index.is_first(Kind::TcpRoute, r)) {
        let spec = &route.spec;
        let parents = parent_refs(Kind::TcpRoute, route, &spec.parent_refs, index, problems);
        let backends = backends(route, &spec.rules, index, problems);
        streams.extend(stream(Kind::TcpRoute, route, parents, &[], backends));
    }
    for route in documents.tls_routes.iter().filter(|r| index.is_first(Kind::TlsRoute, r)) {
        let spec = &route.spec;
        let parents = parent_refs(Kind::TlsRoute, route, &spec.parent_refs, index, problems);
        let backends = backends(route, &spec.rules, index, problems);
        streams.extend(stream(Kind::TlsRoute, route, parents, &spec.hostnames, backends));
    }
    streams
}

fn stream<'d, S>(
    kind: Kind,
    route: &'d Object<S>,
    parents: Vec<Parent<'d>>,
    hostnames: &'d [At<Hostname>],
    backends: Option<Vec<WeightedBackend>>,
) -> Option<PreparedStream<'d>> {
    let backends = backends?;
    let (id, namespace, span) = (route.id(), route.namespace.as_str(), route.span);
    Some(PreparedStream { kind, id, namespace, parents, hostnames, backends, span })
}

fn backends<S>(
    route: &Object<S>,
    rules: &[TcpRule],
    index: &Index<'_>,
    problems: &mut Problems,
) -> Option<Vec<WeightedBackend>> {
    let before = problems.errors();
    if let [_, second, ..] = rules {
        problems
            .error(Rule::Unsupported, second.span, "a second rule is not supported yet")
            .help("connections carry nothing to tell rules apart; use weights, or another route");
    }
    let written = &rules.first()?.backend_refs;
    let mut backends = Vec::new();
    for reference in written.iter() {
        backends.extend(backend(reference, &route.namespace, index, problems));
    }
    let sum: u64 = backends.iter().map(|b: &WeightedBackend| u64::from(b.weight)).sum();
    if sum == 0 && problems.errors() == before && backends.len() == written.len() {
        let span = written[0].weight.as_ref().map_or(written[0].span, |w| w.span);
        problems
            .error(
                Rule::InvalidValue,
                span,
                "the weights add up to 0: no connection could be served",
            )
            .help("give a backend a weight above 0");
    }
    (problems.errors() == before && sum > 0).then_some(backends)
}

fn backend(
    written: &BackendRef,
    home: &str,
    index: &Index<'_>,
    problems: &mut Problems,
) -> Option<WeightedBackend> {
    let name = BackendName {
        group: &written.group,
        kind: &written.kind,
        namespace: &written.namespace,
        name: &written.name,
        port: written.port.as_ref().map(|p| p.span),
    };
    let backend = index.backend(&name, home, problems)?;
    let weight = written.weight.as_ref().map_or(1, |w| ***w);
    Some(WeightedBackend { weight, ..WeightedBackend::new(backend.service) })
}
