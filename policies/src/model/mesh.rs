//! The whole mesh, and the part of it one proxy is served.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use super::{
    Action, Bind, Chain, ChainKind, EndpointSet, Listener, ResourceKey, ResourceKind, RouteTable,
    Service, Snapshot, Source,
};

/// Everything a policy folder says, before it is cut to one proxy's view.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Mesh {
    /// The version of the source: a Git commit id, or a content digest of a folder.
    pub version: String,
    /// Listeners and who gets them.
    pub listeners: BTreeMap<String, ScopedListener>,
    /// Route tables by name.
    pub routes: BTreeMap<String, Arc<RouteTable>>,
    /// Services by name.
    pub services: BTreeMap<String, Arc<Service>>,
    /// Endpoint sets by service name.
    pub endpoints: BTreeMap<String, Arc<EndpointSet>>,
    /// Where each resource was written.
    pub sources: BTreeMap<ResourceKey, Source>,
}

/// A listener and the proxies it is for.
#[derive(Clone, Debug, PartialEq)]
pub struct ScopedListener {
    /// Who gets it.
    pub nodes: NodeSelector,
    /// What they get.
    pub listener: Arc<Listener>,
    /// What the proxies with these ids get instead.
    pub own: BTreeMap<String, Arc<Listener>>,
}

/// Chooses proxies by the names they give themselves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NodeSelector {
    /// Every proxy that no other listener names (gateways without an explicit selection); sidecars get of these only
    /// what takes redirected connections.
    Unclaimed,
    /// Proxies whose id or cluster matches one of these patterns; `*` matches any run of characters.
    Matching(Vec<String>),
    /// Every client, by name only (API listeners).
    Any,
}

/// How a proxy names itself (`--node`, `--cluster`; Envoy's `node.id`, `node.cluster`).
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Node {
    /// Unique id.
    pub id: String,
    /// Group; may be empty.
    pub cluster: String,
    /// It stands beside one application (`--sidecar`): gateways' sockets that no policy gives to it by name are not for
    /// it.
    pub sidecar: bool,
}

impl NodeSelector {
    /// Whether a pattern names the node.
    pub fn names(&self, node: &Node) -> bool {
        match self {
            Self::Matching(patterns) => patterns
                .iter()
                .any(|p| glob(p, &node.id) || (!node.cluster.is_empty() && glob(p, &node.cluster))),
            Self::Unclaimed | Self::Any => false,
        }
    }
}

impl ScopedListener {
    /// Whether a node gets it, which is `claimed` where a listener names it.
    fn is_for(&self, node: &Node, claimed: bool) -> bool {
        match self.nodes {
            // What is redirected would be refused where nobody listens for it.
            NodeSelector::Unclaimed => !claimed && (!node.sidecar || self.is_redirected()),
            NodeSelector::Matching(_) => self.nodes.names(node),
            NodeSelector::Any => self.listener.bind == Bind::Api,
        }
    }

    /// Whether connections are redirected to it.
    pub(crate) fn is_redirected(&self) -> bool {
        matches!(self.listener.bind, Bind::Redirected(_))
    }

    /// As a proxy gets it.
    pub fn of(&self, node: &Node) -> &Arc<Listener> {
        self.own.get(&node.id).unwrap_or(&self.listener)
    }
}

impl Mesh {
    /// Cuts the mesh to what `node` needs: its listeners, the API listeners,
    /// and every route table, service and endpoint set they reach.
    pub fn view(&self, node: &Node) -> Snapshot {
        let claimed = self.claims(node);
        let mut view = Snapshot { version: self.version.clone(), ..Snapshot::default() };
        for (name, scoped) in &self.listeners {
            if scoped.is_for(node, claimed) {
                view.listeners.insert(name.clone(), scoped.of(node).clone());
            }
        }
        let mut services = BTreeSet::new();
        let listeners: Vec<_> = view.listeners.values().cloned().collect();
        for chain in listeners.iter().flat_map(|l| &l.chains) {
            self.reach(chain, &mut view.routes, &mut services);
        }
        for name in services {
            if let Some(service) = self.services.get(name) {
                view.services.insert(name.to_owned(), service.clone());
            }
            if let Some(set) = self.endpoints.get(name) {
                view.endpoints.insert(name.to_owned(), set.clone());
            }
        }
        view.sources = self
            .sources
            .iter()
            .filter(|(key, _)| view.holds(key))
            .map(|(key, source)| (key.clone(), source.clone()))
            .collect();
        view
    }

    /// The listeners that `node` does not get, and whom they are for.
    pub fn withheld(&self, node: &Node) -> Vec<(&str, String)> {
        let claimed = self.claims(node);
        let mut withheld = Vec::new();
        for (name, scoped) in self.listeners.iter().filter(|(_, l)| !l.is_for(node, claimed)) {
            let whom = match &scoped.nodes {
                NodeSelector::Matching(patterns) => format!("nodes {}", patterns.join(", ")),
                NodeSelector::Unclaimed if claimed => "nodes that no listener names".to_owned(),
                NodeSelector::Unclaimed => "nodes that are no sidecars".to_owned(),
                // Whoever wants it asks for it.
                NodeSelector::Any => continue,
            };
            withheld.push((name.as_str(), whom));
        }
        withheld
    }

    fn claims(&self, node: &Node) -> bool {
        self.listeners.values().any(|l| l.nodes.names(node))
    }

    /// All of it, for whoever serves every client the same.
    pub fn whole(&self) -> Snapshot {
        let listener =
            |(name, scoped): (&String, &ScopedListener)| (name.clone(), scoped.listener.clone());
        Snapshot {
            version: self.version.clone(),
            listeners: self.listeners.iter().map(listener).collect(),
            routes: self.routes.clone(),
            services: self.services.clone(),
            endpoints: self.endpoints.clone(),
            sources: self.sources.clone(),
        }
    }

    fn reach<'a>(
        &'a self,
        chain: &'a Chain,
        routes: &mut BTreeMap<String, Arc<RouteTable>>,
        services: &mut BTreeSet<&'a str>,
    ) {
        match &chain.kind {
            ChainKind::Tcp(tcp) => services.extend(tcp.backends.iter().map(|b| b.service.as_str())),
            ChainKind::Http { route_table, .. } => {
                let Some(table) = self.routes.get(route_table) else { return };
                routes.insert(route_table.clone(), table.clone());
                for route in table.virtual_hosts.iter().flat_map(|h| &h.routes) {
                    if let Action::Forward(forward) = &route.action {
                        services.extend(forward.backends.iter().map(|b| b.service.as_str()));
                        services.extend(forward.mirrors.iter().map(|m| m.service.as_str()));
                    }
                }
            }
        }
    }
}

impl Snapshot {
    /// Whether the snapshot has this resource.
    pub fn holds(&self, key: &ResourceKey) -> bool {
        match key.kind {
            ResourceKind::Listener => self.listeners.contains_key(&key.name),
            ResourceKind::RouteTable => self.routes.contains_key(&key.name),
            ResourceKind::Service => self.services.contains_key(&key.name),
            ResourceKind::EndpointSet => self.endpoints.contains_key(&key.name),
        }
    }
}

/// Matches `*` against any run of characters; everything else literally.
fn glob(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        let Some(at) = rest.find(part) else { return false };
        rest = &rest[at + part.len()..];
    }
    true
}

/// Whether a name exists that both patterns match.
pub(crate) fn overlap(a: &str, b: &str) -> bool {
    let Some((a_head, a_rest)) = a.split_once('*') else { return glob(b, a) };
    let Some((b_head, b_rest)) = b.split_once('*') else { return glob(a, b) };
    let a_tail = a_rest.rsplit('*').next().unwrap_or_default();
    let b_tail = b_rest.rsplit('*').next().unwrap_or_default();
    // Between the longer head and the longer tail there is room for all that either wants.
    (a_head.starts_with(b_head) || b_head.starts_with(a_head))
        && (a_tail.ends_with(b_tail) || b_tail.ends_with(a_tail))
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::Arc};

    use super::{Mesh, Node, NodeSelector, ScopedListener, glob, overlap};
    use crate::model::{Bind, Listener, Location, Redirected};

    #[test]
    fn gateways_that_name_nobody_are_for_proxies_that_are_neither_named_nor_sidecars() {
        let listener = |name: &str, bind, nodes| {
            let listener = Listener {
                name: name.to_owned(),
                bind,
                chains: Vec::new(),
                location: Location::default(),
                proxy_protocol: None,
            };
            (
                name.to_owned(),
                ScopedListener { nodes, listener: Arc::new(listener), own: BTreeMap::new() },
            )
        };
        let some = NodeSelector::Matching(vec!["worker-*".to_owned()]);
        let socket = Bind::Socket(([0, 0, 0, 0], 80).into());
        let outbound = Bind::Redirected(Redirected {
            tunnels: false,
            address: ([127, 0, 0, 1], 15001).into(),
            transparent: false,
            opaque_ports: Vec::new(),
        });
        let listeners = [
            listener("outbound", outbound, NodeSelector::Unclaimed),
            listener("rest", socket.clone(), NodeSelector::Unclaimed),
            listener("workers", socket, some),
        ];
        let mesh = Mesh { listeners: BTreeMap::from(listeners), ..Mesh::default() };
        let (named, unnamed) = ("nodes worker-*", "nodes that no listener names");
        for (id, sidecar, expected, withheld) in [
            ("edge-1", false, &["outbound", "rest"][..], &[("workers", named)][..]),
            ("worker-1", false, &["workers"], &[("outbound", unnamed), ("rest", unnamed)]),
            (
                "app-1",
                true,
                &["outbound"],
                &[("rest", "nodes that are no sidecars"), ("workers", named)],
            ),
            ("worker-1", true, &["workers"], &[("outbound", unnamed), ("rest", unnamed)]),
        ] {
            let node = Node { id: id.to_owned(), cluster: String::new(), sidecar };
            let view = mesh.view(&node);
            let names: Vec<_> = view.listeners.keys().map(String::as_str).collect();
            assert_eq!(names, expected, "{id}, sidecar: {sidecar}");
            let told = mesh.withheld(&node);
            let told: Vec<_> = told.iter().map(|(name, whom)| (*name, whom.as_str())).collect();
            assert_eq!(told, withheld, "{id}, sidecar: {sidecar}");
        }
    }

    #[test]
    fn globs_match_whole_names() {
        for (pattern, text, expected) in [
            ("edge", "edge", true),
            ("edge", "edge-1", false),
            ("edge-*", "edge-1", true),
            ("*", "", true),
            ("*-east-*", "worker-us-east-1", true),
            ("a*b*c", "abc", true),
            ("a*b*c", "acb", false),
            ("*a", "aa", true),
        ] {
            assert_eq!(glob(pattern, text), expected, "{pattern} {text}");
        }
    }

    #[test]
    fn patterns_overlap_when_a_name_matches_both() {
        for (a, b, expected) in [
            ("edge", "edge", true),
            ("edge", "edge-1", false),
            ("edge-*", "edge-1", true),
            ("edge-*", "*-1", true),
            ("edge-*", "edge-1-*", true),
            ("edge-*", "worker-*", false),
            ("*-east", "*-west", false),
            ("a*b*c", "a*d*c", true),
            ("a*c", "b*c", false),
            ("*", "anything", true),
            ("*", "x*", true),
            ("ab*", "*ba", true),
            ("a*bc", "abc", true),
            ("ab*bc", "abc", false),
        ] {
            assert_eq!(overlap(a, b), expected, "{a} {b}");
            assert_eq!(overlap(b, a), expected, "{b} {a}");
        }
    }
}
