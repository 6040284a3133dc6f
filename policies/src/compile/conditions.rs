//! What the Gateway API has to say of its objects: what of them is accepted, resolved, in conflict.
//!
//! Beside the compiler and not part of it: the compiler tells people what to mend, at the place where it
//! is written, and this answers in the words that the specification has for programs.

use std::collections::BTreeMap;

use crate::{
    conditions::{
        CONTROLLER, Condition, ListenerStatus, ObjectName, ObjectStatus, ParentReference,
        ParentStatus, RouteKind, Status,
    },
    document::{
        DEFAULT_NAMESPACE, Documents, GATEWAY_GROUP, Kind, OWN_GROUP, Object, gateway::GatewaySpec,
        qualified, route::ParentRef, value::Name,
    },
    model::Mesh,
    problem::At,
};

use super::{
    gateways::{
        CLASS,
        attach::{Candidate, Plan, accept, carries, passes_through},
    },
    index::{Index, namespace_of},
};

/// A Gateway, and its listeners as they are asked for routes.
struct Front<'d> {
    gateway: &'d Object<GatewaySpec>,
    plans: Vec<Plan<'d>>,
    /// Of each listener.
    attached: Vec<u32>,
}

/// A route of any kind.
struct Route<'d> {
    kind: Kind,
    namespace: &'d str,
    name: &'d str,
    parents: &'d [ParentRef],
    hostnames: Vec<&'d str>,
    backends: Vec<Backend<'d>>,
}

/// How a route names a Service.
struct Backend<'d> {
    group: Option<&'d At<String>>,
    kind: Option<&'d At<String>>,
    namespace: Option<&'d At<Name>>,
    name: &'d At<Name>,
}

pub(super) fn all(documents: &Documents, index: &Index<'_>, mesh: &Mesh) -> Vec<ObjectStatus> {
    let ours =
        |g: &&Object<GatewaySpec>| g.spec.class.value == CLASS && index.is_first(Kind::Gateway, g);
    let mut fronts: BTreeMap<String, Front<'_>> = BTreeMap::new();
    for gateway in documents.gateways.iter().filter(ours) {
        let plans: Vec<_> = gateway.spec.listeners.iter().map(Plan::new).collect();
        let attached = vec![0; plans.len()];
        fronts.insert(gateway.id(), Front { gateway, plans, attached });
    }
    let routes: Vec<_> =
        routes(documents, index).map(|route| status_of(&route, &mut fronts, index)).collect();
    let class = ObjectStatus {
        api_version: format!("{GATEWAY_GROUP}/v1"),
        kind: "GatewayClass".to_owned(),
        metadata: ObjectName { namespace: None, name: CLASS.to_owned() },
        status: Status {
            conditions: vec![accepted("Towpath serves Gateways of this class")],
            ..Status::default()
        },
    };
    let mut objects = vec![class];
    objects.extend(fronts.values().map(|front| front.status(mesh)));
    let mut broken: Vec<_> = documents
        .broken
        .iter()
        .filter(|(kind, id)| *kind == Kind::Gateway && !fronts.contains_key(id))
        .collect();
    broken.sort();
    objects.extend(broken.into_iter().map(|(_, id)| unreadable(id)));
    objects.extend(routes.into_iter().filter(|route| !route.status.parents.is_empty()));
    objects
}

fn accepted(message: &str) -> Condition {
    Condition::new("Accepted", true, "Accepted", message)
}

fn object(kind: Kind, namespace: &str, name: &str, status: Status) -> ObjectStatus {
    let version = if matches!(kind, Kind::TcpRoute) { "v1alpha2" } else { "v1" };
    ObjectStatus {
        api_version: format!("{}/{version}", kind.group()),
        kind: kind.name().to_owned(),
        metadata: ObjectName { namespace: Some(namespace.to_owned()), name: name.to_owned() },
        status,
    }
}

/// A Gateway whose document has errors.
fn unreadable(id: &str) -> ObjectStatus {
    let (namespace, name) = id.split_once('/').unwrap_or((DEFAULT_NAMESPACE, id));
    let message = "the document has errors: see towpath check";
    let conditions = vec![Condition::new("Accepted", false, "Invalid", message)];
    object(Kind::Gateway, namespace, name, Status { conditions, ..Status::default() })
}

impl Front<'_> {
    fn status(&self, mesh: &Mesh) -> ObjectStatus {
        let listeners: Vec<_> = (0..self.plans.len()).map(|nth| self.listener(nth, mesh)).collect();
        let good = |l: &&ListenerStatus| l.conditions.iter().any(|c| c.holds("Accepted"));
        let condition = match listeners.iter().filter(good).count() {
            all if all == listeners.len() => accepted("all of its listeners are accepted"),
            0 => Condition::new("Accepted", false, "ListenersNotValid", "no listener is accepted"),
            some => {
                let message = format!("{some} of {} listeners are accepted", listeners.len());
                Condition::new("Accepted", true, "ListenersNotValid", message)
            }
        };
        let status = Status { conditions: vec![condition], listeners, parents: Vec::new() };
        object(Kind::Gateway, &self.gateway.namespace, &self.gateway.name, status)
    }

    fn listener(&self, nth: usize, mesh: &Mesh) -> ListenerStatus {
        let plan = &self.plans[nth];
        let written = plan.written;
        let fits = carries(written);
        let allowed = written.allowed_routes.as_ref().map_or(&[][..], |allowed| &allowed.kinds);
        let is = |kind: &&Kind| {
            allowed.is_empty() || allowed.iter().any(|a| a.kind.value == kind.name())
        };
        let kind = |kind: &Kind| RouteKind {
            group: kind.group().to_owned(),
            kind: kind.name().to_owned(),
        };
        let conflict = self.conflict(nth);
        let mut conditions = vec![match &conflict {
            None => accepted("the listener is well formed"),
            Some((reason, message)) => Condition::new("Accepted", false, reason, message.clone()),
        }];
        conditions.push(match conflict {
            None => Condition::new("Conflicted", false, "NoConflicts", "no listener is in its way"),
            Some((reason, message)) => Condition::new("Conflicted", true, reason, message),
        });
        let odd = allowed.iter().find(|a| !fits.iter().any(|kind| kind.name() == a.kind.value));
        let terminates = plan.family() == 1 && !passes_through(written);
        let certified = written.tls.as_ref().is_some_and(|tls| tls.options.is_some());
        conditions.push(if let Some(odd) = odd {
            let message = format!("{} does not fit the protocol", odd.kind.value);
            Condition::new("ResolvedRefs", false, "InvalidRouteKinds", message)
        } else if terminates && !certified {
            let message = "no certificate is named in tls.options";
            Condition::new("ResolvedRefs", false, "InvalidCertificateRef", message)
        } else {
            Condition::new("ResolvedRefs", true, "ResolvedRefs", "all references are resolved")
        });
        let resource = format!("gateway/{}/{}", self.gateway.id(), **written.port);
        ListenerStatus {
            name: written.name.to_string(),
            supported_kinds: fits.iter().filter(is).map(kind).collect(),
            attached_routes: self.attached[nth],
            conditions,
            resource: mesh.listeners.contains_key(&resource).then_some(resource),
        }
    }

    /// With what a listener is in conflict.
    fn conflict(&self, nth: usize) -> Option<(&'static str, String)> {
        let plan = &self.plans[nth];
        let others = self.plans.iter().enumerate().filter(|(at, other)| {
            *at != nth && other.written.port.value == plan.written.port.value
        });
        others.map(|(_, other)| other).find_map(|other| {
            let name = &other.written.name;
            if other.family() != plan.family() {
                let message = format!("listener {name} has another protocol on this port");
                Some(("ProtocolConflict", message))
            } else if other.host == plan.host || plan.family() >= 2 {
                Some(("HostnameConflict", format!("listener {name} has this port and host, too")))
            } else {
                None
            }
        })
    }
}

/// The routes that are there, whatever they refer to.
fn routes<'d>(documents: &'d Documents, index: &Index<'_>) -> impl Iterator<Item = Route<'d>> {
    macro_rules! backends {
        ($rules:expr) => {
            $rules.iter().flat_map(|rule| rule.backend_refs.iter()).map(|b| Backend {
                group: b.group.as_ref(),
                kind: b.kind.as_ref(),
                namespace: b.namespace.as_ref(),
                name: &b.name,
            })
        };
    }
    macro_rules! routes {
        ($kind:ident, $list:ident, $hosts:expr) => {
            documents.$list.iter().filter(|r| index.is_first(Kind::$kind, r)).map(|r| Route {
                kind: Kind::$kind,
                namespace: &r.namespace,
                name: &r.name,
                parents: &r.spec.parent_refs,
                hostnames: $hosts(&r.spec),
                backends: backends!(r.spec.rules).collect(),
            })
        };
    }
    let http = routes!(HttpRoute, http_routes, |s: &'d crate::document::route::HttpRouteSpec| s
        .hostnames
        .iter()
        .map(|h| &***h)
        .collect());
    let grpc = routes!(GrpcRoute, grpc_routes, |s: &'d crate::document::route::GrpcRouteSpec| s
        .hostnames
        .iter()
        .map(|h| &***h)
        .collect());
    let tcp = routes!(TcpRoute, tcp_routes, |_| Vec::new());
    let tls = routes!(TlsRoute, tls_routes, |s: &'d crate::document::route::TlsRouteSpec| s
        .hostnames
        .iter()
        .map(|h| &***h)
        .collect());
    http.chain(grpc).chain(tcp).chain(tls).collect::<Vec<_>>().into_iter()
}

fn status_of(
    route: &Route<'_>,
    fronts: &mut BTreeMap<String, Front<'_>>,
    index: &Index<'_>,
) -> ObjectStatus {
    let mut parents = Vec::new();
    // A listener that two parentRefs lead to has one route of it.
    let mut counted = Vec::new();
    for parent in route.parents {
        let group = parent.group.as_ref().map_or(GATEWAY_GROUP, |group| group);
        let kind = parent.kind.as_ref().map_or("Gateway", |kind| kind);
        if group != GATEWAY_GROUP || kind != "Gateway" {
            continue;
        }
        let namespace = namespace_of(parent.namespace.as_ref(), route.namespace);
        let id = qualified(namespace, &parent.name);
        // Of a Gateway that is not there, or another's, nothing is to be said.
        let Some(front) = fronts.get_mut(&id) else { continue };
        let (accepted, taken) = attach(route, parent, front);
        for nth in taken {
            if !counted.contains(&(id.clone(), nth)) {
                front.attached[nth] += 1;
                counted.push((id.clone(), nth));
            }
        }
        parents.push(ParentStatus {
            parent_ref: ParentReference {
                group: GATEWAY_GROUP.to_owned(),
                kind: "Gateway".to_owned(),
                namespace: namespace.to_owned(),
                name: parent.name.to_string(),
                section_name: parent.section_name.as_ref().map(ToString::to_string),
                port: parent.port.as_ref().and_then(|port| u16::try_from(***port).ok()),
            },
            controller_name: CONTROLLER.to_owned(),
            conditions: vec![accepted, resolved(route, index)],
        });
    }
    let status = Status { parents, ..Status::default() };
    object(route.kind, route.namespace, route.name, status)
}

/// Whether a Gateway takes a route, and which of its listeners do.
fn attach(route: &Route<'_>, parent: &ParentRef, front: &Front<'_>) -> (Condition, Vec<usize>) {
    let candidate = Candidate {
        kind: route.kind,
        id: route.name,
        namespace: route.namespace,
        hostnames: route.hostnames.clone(),
    };
    let named = |plan: &Plan<'_>| {
        parent.section_name.as_ref().is_none_or(|name| name.value == plan.written.name.value)
            && parent.port.as_ref().is_none_or(|port| port.value == plan.written.port.value)
    };
    let (mut taken, mut refusals) = (Vec::new(), Vec::new());
    for (nth, plan) in front.plans.iter().enumerate().filter(|(_, plan)| named(plan)) {
        match accept(&candidate, &front.gateway.namespace, plan) {
            Ok(_) => taken.push(nth),
            Err(refusal) => refusals.push((&plan.written.name, refusal)),
        }
    }
    let condition = if !taken.is_empty() {
        accepted("a listener takes the route")
    } else if refusals.is_empty() {
        let message = "sectionName and port fit no listener of the Gateway";
        Condition::new("Accepted", false, "NoMatchingParent", message)
    } else {
        let hosts = "NoMatchingListenerHostname";
        // A listener that would take it but for its hosts was the nearest.
        let near = refusals.iter().any(|(_, refusal)| refusal.reason == hosts);
        let reason = if near { hosts } else { refusals[0].1.reason };
        let told: Vec<_> = refusals
            .iter()
            .map(|(name, refusal)| format!("listener {name} {}", refusal.why))
            .collect();
        Condition::new("Accepted", false, reason, told.join("; "))
    };
    (condition, taken)
}

/// Whether all backends are there. Documents of one folder may refer to each other, so none is not permitted.
fn resolved(route: &Route<'_>, index: &Index<'_>) -> Condition {
    for backend in &route.backends {
        let group = backend.group.is_none_or(|group| group.is_empty() || group.value == OWN_GROUP);
        let kind = backend.kind.is_none_or(|kind| kind.value == Kind::Service.name());
        if !group || !kind {
            let message = format!("backend {} is no Service of {OWN_GROUP}", backend.name);
            return Condition::new("ResolvedRefs", false, "InvalidKind", message);
        }
        let id = qualified(namespace_of(backend.namespace, route.namespace), backend.name);
        if !index.contains(Kind::Service, id.clone()) {
            let message = format!("there is no Service {id}");
            return Condition::new("ResolvedRefs", false, "BackendNotFound", message);
        }
    }
    Condition::new("ResolvedRefs", true, "ResolvedRefs", "all backends are there")
}
