//! Which documents there are, by kind and name, and how references find them.

use std::collections::{HashMap, HashSet};

use crate::{
    diagnostic::{Rule, nearest},
    document::{
        Documents, Kind, OWN_GROUP, Object, own::ServiceProtocol, qualified, read::ticked,
        value::Name,
    },
    problem::{At, Problems, Span},
};

/// Names of all documents.
pub(crate) struct Index<'d> {
    documents: &'d Documents,
    names: HashMap<(Kind, String), Span>,
    protocols: HashMap<String, ServiceProtocol>,
    sections: HashSet<(Kind, String, String)>,
}

impl<'d> Index<'d> {
    pub(crate) fn new(documents: &'d Documents, problems: &mut Problems) -> Self {
        let mut index = Self {
            documents,
            names: HashMap::new(),
            protocols: HashMap::new(),
            sections: HashSet::new(),
        };
        index.all(Kind::Gateway, &documents.gateways, problems);
        index.all(Kind::HttpRoute, &documents.http_routes, problems);
        index.all(Kind::GrpcRoute, &documents.grpc_routes, problems);
        index.all(Kind::TcpRoute, &documents.tcp_routes, problems);
        index.all(Kind::TlsRoute, &documents.tls_routes, problems);
        index.all(Kind::Service, &documents.services, problems);
        index.all(Kind::TransferPolicy, &documents.transfer_policies, problems);
        index.all(Kind::BalancerPolicy, &documents.balancer_policies, problems);
        index.all(Kind::BreakerPolicy, &documents.breaker_policies, problems);
        index.all(Kind::ListenerPolicy, &documents.listener_policies, problems);
        index.all(Kind::Region, &documents.regions, problems);
        for service in &documents.services {
            let protocol =
                service.spec.protocol.as_ref().map_or(ServiceProtocol::Follow, |p| p.value);
            index.protocols.insert(service.id(), protocol);
        }
        index.sections();
        index
    }

    fn all<S>(&mut self, kind: Kind, objects: &[Object<S>], problems: &mut Problems) {
        for object in objects {
            let id = object.id();
            if let Some(first) = self.names.get(&(kind, id.clone())) {
                problems
                    .error(
                        Rule::Duplicate,
                        object.span,
                        format!("there are two {} `{id}`", kind.name()),
                    )
                    .related(*first, "first here")
                    .help("rename or remove one of them");
            } else {
                self.names.insert((kind, id), object.span);
            }
        }
    }

    fn sections(&mut self) {
        for gateway in &self.documents.gateways {
            for listener in gateway.spec.listeners.iter() {
                self.sections.insert((Kind::Gateway, gateway.id(), listener.name.to_string()));
            }
        }
        for route in &self.documents.http_routes {
            for name in route.spec.rules.iter().filter_map(|r| r.name.as_ref()) {
                self.sections.insert((Kind::HttpRoute, route.id(), name.to_string()));
            }
        }
        for route in &self.documents.grpc_routes {
            for name in route.spec.rules.iter().filter_map(|r| r.name.as_ref()) {
                self.sections.insert((Kind::GrpcRoute, route.id(), name.to_string()));
            }
        }
    }

    /// Whether an object is the first of its name; the others have been told of and count for nothing.
    pub(crate) fn is_first<S>(&self, kind: Kind, object: &Object<S>) -> bool {
        self.names.get(&(kind, object.id())) == Some(&object.span)
    }

    /// Whether a document of this kind and name is there, broken or not.
    pub(crate) fn contains(&self, kind: Kind, id: String) -> bool {
        let key = (kind, id);
        self.names.contains_key(&key) || self.documents.broken.contains(&key)
    }

    /// Follows a reference; tells when nothing has the name. `None` also when
    /// the document is there but broken, without telling again.
    pub(crate) fn follow(
        &self,
        kind: Kind,
        namespace: &str,
        name: &At<Name>,
        problems: &mut Problems,
    ) -> Option<String> {
        let id = qualified(namespace, name);
        if self.names.contains_key(&(kind, id.clone())) {
            return Some(id);
        }
        if self.documents.broken.contains(&(kind, id.clone())) || self.documents.incomplete {
            return None;
        }
        let known = || self.names.keys().filter(|(k, _)| *k == kind).map(|(_, id)| id.as_str());
        let message = format!("there is no {} `{id}`", kind.name());
        let help = match nearest(&id, known()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => list(known().collect(), kind.name()),
        };
        problems.error(Rule::DanglingReference, name.span, message).help(help);
        None
    }

    /// Follows the name of a listener or rule within what [`Index::follow`] found.
    pub(crate) fn section(
        &self,
        kind: Kind,
        id: &str,
        section: &At<Name>,
        problems: &mut Problems,
    ) -> bool {
        if self.sections.contains(&(kind, id.to_owned(), section.to_string())) {
            return true;
        }
        let known = || {
            let of_it = |s: &&(Kind, String, String)| s.0 == kind && s.1 == id;
            self.sections.iter().filter(of_it).map(|(_, _, name)| name.as_str())
        };
        let part = if kind == Kind::Gateway { "listener" } else { "rule" };
        let help = match nearest(section, known()) {
            Some(near) => format!("did you mean `{near}`?"),
            None => list(known().collect(), part),
        };
        let message = format!("{} `{id}` has no {part} {}", kind.name(), ticked(section));
        problems.error(Rule::DanglingReference, section.span, message).help(help);
        false
    }

    /// Follows a backendRef to a Service.
    pub(crate) fn backend(
        &self,
        reference: &BackendName<'_>,
        home: &str,
        problems: &mut Problems,
    ) -> Option<Backend> {
        let group = reference.group.as_ref().filter(|g| !g.is_empty() && g.value != OWN_GROUP);
        let kind = reference.kind.as_ref().filter(|k| k.value != Kind::Service.name());
        if let Some(wrong) = group.or(kind) {
            problems
                .error(
                    Rule::InvalidValue,
                    wrong.span,
                    format!("{} cannot be a backend", ticked(wrong)),
                )
                .help("a backend is a Service of towpath.dev; leave group and kind out");
            return None;
        }
        if let Some(port) = reference.port {
            problems
                .warning(Rule::NoEffect, port, "the port has no effect")
                .help("a Service's endpoints carry their own ports");
        }
        let namespace = reference.namespace.as_ref().map_or(home, |n| n);
        let service = self.follow(Kind::Service, namespace, reference.name, problems)?;
        let protocol = self.protocols.get(&service).copied().unwrap_or(ServiceProtocol::Follow);
        Some(Backend { service, protocol })
    }

    /// What a group and kind of a reference stand for; tells when it is none of `allowed`.
    pub(crate) fn kind(
        group: Option<&At<String>>,
        kind: Option<&At<String>>,
        default: Kind,
        allowed: &[Kind],
        problems: &mut Problems,
    ) -> Option<Kind> {
        let names = || allowed.iter().map(|k| k.name()).collect::<Vec<_>>().join(", ");
        let found = match kind {
            None => default,
            Some(kind) => match allowed.iter().find(|k| k.name() == kind.value) {
                Some(found) => *found,
                None => {
                    let help = match nearest(kind, allowed.iter().map(|k| k.name())) {
                        Some(near) => format!("did you mean `{near}`? one of {}", names()),
                        None => format!("one of {}", names()),
                    };
                    let message = format!("{} is not possible here", ticked(kind));
                    problems.error(Rule::InvalidValue, kind.span, message).help(help);
                    return None;
                }
            },
        };
        match group {
            Some(group) if group.value != found.group() => {
                problems
                    .error(
                        Rule::InvalidValue,
                        group.span,
                        format!("{} has no {}", ticked(group), found.name()),
                    )
                    .help(format!("{} is of {}", found.name(), found.group()));
                None
            }
            _ => Some(found),
        }
    }
}

/// The parts of a backendRef that name a Service.
pub(crate) struct BackendName<'a> {
    pub(crate) group: &'a Option<At<String>>,
    pub(crate) kind: &'a Option<At<String>>,
    pub(crate) namespace: &'a Option<At<Name>>,
    pub(crate) name: &'a At<Name>,
    pub(crate) port: Option<Span>,
}

/// A backend that is there.
pub(crate) struct Backend {
    pub(crate) service: String,
    pub(crate) protocol: ServiceProtocol,
}

/// The namespace of a reference.
pub(crate) fn namespace_of<'a>(namespace: Option<&'a At<Name>>, home: &'a str) -> &'a str {
    namespace.map_or(home, |n| n)
}

fn list(mut names: Vec<&str>, what: &str) -> String {
    const MOST: usize = 8;
    names.sort_unstable();
    if names.is_empty() {
        return format!("there is no {what} at all");
    }
    let more = if names.len() > MOST { ", …" } else { "" };
    names.truncate(MOST);
    format!("there is {}{more}", names.join(", "))
}
