//! What is served right now: the last good mesh with the addresses its names
//! resolved to, cut to each connected node.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;
use towpath_policies::model::{
    Coordinates, Discovery, EndpointSet, Mesh, Node, Region, ResourceKey, ResourceKind,
    ScopedListener, Snapshot, Weights,
};

use crate::{
    loads::{Shares, weighed},
    places::Locate,
};

/// Most different nodes served at a time.
pub(crate) const MAX_NODES: usize = 10_000;
/// Most streams of clients that call themselves the same.
const MAX_STREAMS_PER_NODE: usize = 1_000;

/// The state of the whole mesh, and a channel per node that is connected.
#[derive(Debug, Default)]
pub(crate) struct Hub {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// With the resolved endpoint sets put in; without those of names whose
    /// first answer is still waited for.
    mesh: Mesh,
    /// Latest answers and what was asked, by service; kept while a mesh asks the same.
    resolved: BTreeMap<String, (Discovery, Arc<EndpointSet>)>,
    /// Where places are by a map service's word; it goes before what the mesh says itself.
    places: BTreeMap<String, Coordinates>,
    /// Of services whose weights follow the load: the sets without that, and what is made of them.
    declared: BTreeMap<String, Arc<EndpointSet>>,
    shares: BTreeMap<String, Arc<Shares>>,
    /// Carbon intensities by zone, as an API says; they go before what the mesh says itself.
    intensities: BTreeMap<String, f64>,
    /// What the mesh says itself, by region.
    written: BTreeMap<String, Option<f64>>,
    /// Nodes that are connected, or were a moment ago.
    nodes: HashMap<Node, watch::Sender<Arc<Snapshot>>>,
    /// The whole mesh, once somebody asked for it.
    whole: Option<watch::Sender<Arc<Snapshot>>>,
}

impl Hub {
    /// The node's part of the mesh, now and from now on. Ends at once when too
    /// many nodes are connected already.
    pub(crate) fn watch(&self, node: &Node) -> watch::Receiver<Arc<Snapshot>> {
        let mut state = self.state();
        let State { mesh, nodes, .. } = &mut *state;
        if nodes.len() >= MAX_NODES {
            sweep(nodes);
        }
        let full = match nodes.get(node) {
            Some(view) => view.receiver_count() >= MAX_STREAMS_PER_NODE,
            None => nodes.len() >= MAX_NODES,
        };
        if full {
            tracing::error!(node = %node.id, "turned away: too many nodes, or too many streams of this one");
            return watch::channel(Arc::default()).1;
        }
        let view = || watch::Sender::new(Arc::new(mesh.view(node)));
        nodes.entry(node.clone()).or_insert_with(view).subscribe()
    }

    /// The whole mesh, now and from now on.
    pub(crate) fn watch_whole(&self) -> watch::Receiver<Arc<Snapshot>> {
        let mut state = self.state();
        let State { mesh, whole, .. } = &mut *state;
        whole.get_or_insert_with(|| watch::Sender::new(Arc::new(mesh.whole()))).subscribe()
    }

    /// The last stream of a node ended, or is about to.
    pub(crate) fn left(&self, node: &Node) {
        let mut state = self.state();
        // One may be that of the stream that is ending.
        if state.nodes.get(node).is_some_and(|view| view.receiver_count() <= 1) {
            state.nodes.remove(node);
        }
    }

    /// Serves another mesh from now on; the nodes it changes something for.
    ///
    /// Every stream is told, because all of them hold the new version from now
    /// on; those for which nothing changed find that by comparing pointers.
    pub(crate) fn publish(&self, mut mesh: Mesh) -> HashSet<Node> {
        let mut state = self.state();
        let State {
            mesh: held,
            resolved,
            places,
            declared,
            shares,
            intensities,
            written,
            nodes,
            whole,
        } = &mut *state;
        resolved.retain(|name, (asked, _)| {
            mesh.services.get(name).is_some_and(|service| service.discovery == *asked)
        });
        for (name, service) in &mesh.services {
            if !matches!(service.discovery, Discovery::Dns { .. }) {
                continue;
            }
            // Neither an answer nor the verdict that there is none yet: proxies wait a moment.
            match resolved.get(name) {
                Some((_, set)) => mesh.endpoints.insert(name.clone(), set.clone()),
                None => mesh.endpoints.remove(name),
            };
        }
        locate_all(mesh.endpoints.values_mut(), places);
        locate_all(mesh.services.values_mut(), places);
        locate_all(mesh.listeners.values_mut().map(|scoped| &mut scoped.listener), places);
        locate_all(mesh.listeners.values_mut().flat_map(|scoped| scoped.own.values_mut()), places);
        let regions = mesh.endpoints.values().flat_map(|set| &set.regions);
        *written = regions.map(|(name, region)| (name.clone(), region.carbon_intensity)).collect();
        for set in mesh.endpoints.values_mut() {
            if let Some(current) = at_this_hour(set, intensities, written) {
                *set = current;
            }
        }
        declared.clear();
        shares.retain(|name, _| follows_load(&mesh, name));
        for (name, set) in &mut mesh.endpoints {
            if mesh.services.get(name).is_some_and(|s| s.weights == Weights::FromLoad) {
                declared.insert(name.clone(), set.clone());
                if let Some(weighed) = weighed(set, shares.get(name).map(|shares| &**shares)) {
                    *set = Arc::new(weighed);
                }
            }
        }
        share(&mut mesh, held);
        *held = mesh;
        sweep(nodes);
        let mut changed = HashSet::new();
        for (node, view) in nodes {
            let next = Arc::new(held.view(node));
            if !same_resources(&view.borrow(), &next) {
                changed.insert(node.clone());
            }
            view.send_replace(next);
        }
        if let Some(whole) = whole {
            whole.send_replace(Arc::new(held.whole()));
        }
        changed
    }

    /// Takes the answer that one service `asked` for; costs nothing but that endpoint set.
    pub(crate) fn set_resolved(&self, asked: &Discovery, set: EndpointSet) {
        let mut state = self.state();
        let State { mesh, resolved, .. } = &mut *state;
        let known = resolved.get(&set.service);
        if known.is_some_and(|(question, known)| question == asked && **known == set) {
            return;
        }
        let name = set.service.clone();
        let set = Arc::new(set);
        resolved.insert(name.clone(), (asked.clone(), set.clone()));
        // Not what the mesh asks: the answer came before the mesh that does.
        if mesh.services.get(&name).is_none_or(|service| service.discovery != *asked) {
            return;
        }
        state.serve(set);
    }

    /// Where the places of the next mesh are, as far as that is known; others are forgotten.
    pub(crate) fn set_places(&self, known: BTreeMap<String, Coordinates>) {
        self.state().places = known;
    }

    /// Takes a map service's word for where a place is; costs nothing but the resources that name it.
    pub(crate) fn set_place(&self, name: &str, at: Coordinates) {
        let mut state = self.state();
        let State { mesh, places, declared, .. } = &mut *state;
        places.insert(name.to_owned(), at);
        let this = BTreeMap::from([(name.to_owned(), at)]);
        let sets = mesh.endpoints.iter().map(|(name, set)| declared.get(name).unwrap_or(set));
        let moved: Vec<_> = sets.filter_map(|set| located(set, &this)).collect();
        for set in moved {
            state.serve(set);
        }
        let State { mesh, nodes, whole, .. } = &mut *state;
        let services = locate_all(mesh.services.values_mut(), &this);
        let listeners = mesh.listeners.values_mut().flat_map(|scoped| {
            std::iter::once(&mut scoped.listener).chain(scoped.own.values_mut())
        });
        let moved: BTreeSet<String> =
            locate_all(listeners, &this).iter().map(|l| l.name.clone()).collect();
        let views = nodes.iter().map(|(node, view)| (Some(node), view));
        for (node, view) in views.chain(whole.iter().map(|view| (None, view))) {
            view.send_if_modified(|current| {
                let services = services.iter().filter(|s| current.services.contains_key(&s.name));
                let services: Vec<_> = services.cloned().collect();
                let listeners = moved.iter().filter(|name| current.listeners.contains_key(*name));
                let listeners = listeners.filter_map(|name| mesh.listeners.get(name));
                let own = |scoped: &ScopedListener| match node {
                    Some(node) => scoped.of(node).clone(),
                    None => scoped.listener.clone(),
                };
                let listeners: Vec<_> = listeners.map(own).collect();
                let news = !services.is_empty() || !listeners.is_empty();
                if news {
                    let current = Arc::make_mut(current);
                    current.services.extend(services.into_iter().map(|s| (s.name.clone(), s)));
                    current.listeners.extend(listeners.into_iter().map(|l| (l.name.clone(), l)));
                }
                news
            });
        }
    }

    /// The endpoints of a service, as they are served.
    pub(crate) fn endpoints(&self, service: &str) -> Option<Arc<EndpointSet>> {
        self.state().mesh.endpoints.get(service).cloned()
    }

    /// The endpoints of the services whose weights follow the load, with the weights declared; and the
    /// shares of them that are in force.
    pub(crate) fn declared(&self) -> Vec<(Arc<EndpointSet>, Arc<Shares>)> {
        let state = self.state();
        let shares = |name| state.shares.get(name).cloned().unwrap_or_default();
        state.declared.iter().map(|(name, set)| (set.clone(), shares(name))).collect()
    }

    /// Serves a service whose weights follow the load with other ones; costs nothing but its set.
    pub(crate) fn set_shares(&self, service: &str, shares: Shares) {
        let mut state = self.state();
        let Some(set) = state.declared.get(service).cloned() else { return };
        state.shares.insert(service.to_owned(), Arc::new(shares));
        state.serve(set);
    }

    /// The carbon intensities for the next mesh, by zone; others are forgotten.
    pub(crate) fn set_intensities(&self, known: BTreeMap<String, f64>) {
        self.state().intensities = known;
    }

    /// Takes an API's word for the carbon intensity of a zone, or the mesh's own again; costs nothing but
    /// the sets with endpoints in regions of that zone.
    pub(crate) fn set_intensity(&self, zone: &str, grams_per_kwh: Option<f64>) {
        let mut state = self.state();
        let State { mesh, declared, intensities, written, .. } = &mut *state;
        match grams_per_kwh {
            Some(grams) => intensities.insert(zone.to_owned(), grams),
            None => intensities.remove(zone),
        };
        let sets = mesh.endpoints.iter().map(|(name, set)| declared.get(name).unwrap_or(set));
        let changed: Vec<_> =
            sets.filter_map(|set| at_this_hour(set, intensities, written)).collect();
        for set in changed {
            state.serve(set);
        }
    }

    /// The service's name did not resolve in time. Until it does, its endpoint
    /// set is empty, so that nobody waits for it; a set that is known stays.
    pub(crate) fn set_unresolved(&self, asked: &Discovery, service: &str) {
        let known = {
            let state = self.state();
            state.resolved.get(service).is_some_and(|(question, _)| question == asked)
        };
        if !known {
            let set = EndpointSet::new(service.to_owned(), Vec::new());
            self.set_resolved(asked, set);
        }
    }

    /// Version that is served; empty before the first.
    pub(crate) fn version(&self) -> String {
        self.state().mesh.version.clone()
    }

    /// The part of the mesh that a node would be served.
    pub(crate) fn view(&self, node: &Node) -> Arc<Snapshot> {
        let state = self.state();
        match state.nodes.get(node) {
            Some(view) => view.borrow().clone(),
            None => Arc::new(state.mesh.view(node)),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in here panics half-way through a change that could be seen.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Serves another endpoint set of a service, with weights by its load where they follow it.
    fn serve(&mut self, mut set: Arc<EndpointSet>) {
        if follows_load(&self.mesh, &set.service) {
            self.declared.insert(set.service.clone(), set.clone());
            if let Some(weighed) =
                weighed(&set, self.shares.get(&set.service).map(|shares| &**shares))
            {
                set = Arc::new(weighed);
            }
        }
        put(&mut self.mesh, self.nodes.values().chain(&self.whole), &set);
    }
}

fn follows_load(mesh: &Mesh, service: &str) -> bool {
    mesh.services.get(service).is_some_and(|service| service.weights == Weights::FromLoad)
}

/// Serves another endpoint set of a service in the views that have it.
fn put<'a>(
    mesh: &mut Mesh,
    views: impl Iterator<Item = &'a watch::Sender<Arc<Snapshot>>>,
    set: &Arc<EndpointSet>,
) {
    let name = &set.service;
    mesh.endpoints.insert(name.clone(), set.clone());
    let key = ResourceKey { kind: ResourceKind::EndpointSet, name: name.clone() };
    let source = mesh.sources.get(&key);
    for view in views {
        view.send_if_modified(|current| {
            let serves = current.services.contains_key(name);
            if serves {
                let current = Arc::make_mut(current);
                current.endpoints.insert(name.clone(), set.clone());
                // A view without the set has no source of it either.
                current.sources.extend(source.map(|at| (key.clone(), at.clone())));
            }
            serves
        });
    }
}

/// Puts the coordinates of these places in; those that this changes.
fn locate_all<'a, T: Locate + 'a>(
    all: impl Iterator<Item = &'a mut Arc<T>>,
    places: &BTreeMap<String, Coordinates>,
) -> Vec<Arc<T>> {
    all.filter_map(|this| {
        *this = located(this, places)?;
        Some(this.clone())
    })
    .collect()
}

/// The same with the coordinates of these places put in; `None` where that changes nothing.
fn located<T: Locate>(this: &Arc<T>, places: &BTreeMap<String, Coordinates>) -> Option<Arc<T>> {
    let mut news = false;
    this.places(|place, at, _| news |= places.get(place).is_some_and(|told| at != Some(*told)));
    news.then(|| {
        let mut this = T::clone(this);
        this.locate(|place| places.get(place).copied());
        Arc::new(this)
    })
}

/// The set with the carbon intensities of its regions as they are now; `None` where that changes nothing.
fn at_this_hour(
    set: &Arc<EndpointSet>,
    intensities: &BTreeMap<String, f64>,
    written: &BTreeMap<String, Option<f64>>,
) -> Option<Arc<EndpointSet>> {
    let now = |name: &String, region: &Region| {
        let said = region.electricity_maps_zone.as_ref().and_then(|zone| intensities.get(zone));
        said.copied().or_else(|| written.get(name).copied().flatten())
    };
    if set.regions.iter().all(|(name, region)| now(name, region) == region.carbon_intensity) {
        return None;
    }
    let mut set = EndpointSet::clone(set);
    for (name, region) in &mut set.regions {
        region.carbon_intensity = now(name, region);
    }
    Some(Arc::new(set))
}

/// Forgets nodes that nobody listens for any more.
fn sweep(nodes: &mut HashMap<Node, watch::Sender<Arc<Snapshot>>>) {
    nodes.retain(|_, view| view.receiver_count() > 0);
}

/// Takes over the old `Arc` of everything that did not change, so that "is it
/// the same" stays a pointer comparison from here to each stream.
fn share(next: &mut Mesh, held: &Mesh) {
    fn reuse<T: PartialEq>(next: &mut BTreeMap<String, Arc<T>>, held: &BTreeMap<String, Arc<T>>) {
        for (name, value) in next {
            if let Some(old) = held.get(name).filter(|old| *old == value) {
                *value = old.clone();
            }
        }
    }
    reuse(&mut next.routes, &held.routes);
    reuse(&mut next.services, &held.services);
    reuse(&mut next.endpoints, &held.endpoints);
    for (name, ScopedListener { listener, own, .. }) in &mut next.listeners {
        let Some(old) = held.listeners.get(name) else { continue };
        reuse(own, &old.own);
        if old.listener == *listener {
            *listener = old.listener.clone();
        }
    }
}

/// Whether two views say the same, whatever their versions. Pointers suffice after [`share`].
fn same_resources(a: &Snapshot, b: &Snapshot) -> bool {
    fn same<T>(a: &BTreeMap<String, Arc<T>>, b: &BTreeMap<String, Arc<T>>) -> bool {
        a.len() == b.len() && a.iter().zip(b).all(|((n, v), (m, w))| n == m && Arc::ptr_eq(v, w))
    }
    same(&a.listeners, &b.listeners)
        && same(&a.routes, &b.routes)
        && same(&a.services, &b.services)
        && same(&a.endpoints, &b.endpoints)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use towpath_policies::model::{
        Bind, Chain, ChainKind, Endpoint, Listener, Location, NodeSelector, Protocol, Service,
        Source, TcpForward, WeightedBackend,
    };

    use super::*;

    fn asks(host: &str) -> Discovery {
        Discovery::Dns { host: host.into(), port: 1, refresh: Duration::from_secs(30) }
    }

    /// A TCP listener `name` for the nodes `pattern`, with a service found by DNS.
    fn add(mesh: &mut Mesh, name: &str, pattern: &str) {
        let backend = WeightedBackend::new(name);
        let forward = TcpForward { backends: vec![backend], idle_timeout: None };
        let kind = ChainKind::Tcp(forward);
        let listener = Listener {
            name: name.to_owned(),
            bind: Bind::Socket(([127, 0, 0, 1], 1).into()),
            chains: vec![Chain::new(vec![], None, kind)],
            location: Location::default(),
            proxy_protocol: None,
        };
        let nodes = NodeSelector::Matching(vec![pattern.to_owned()]);
        let own = BTreeMap::new();
        let scoped = ScopedListener { nodes, listener: Arc::new(listener), own };
        mesh.listeners.insert(name.to_owned(), scoped);
        let mut service = Service::new(name, Protocol::Tcp);
        service.discovery = asks(name);
        mesh.services.insert(name.to_owned(), Arc::new(service));
        // As the compiler does for every service.
        let none = EndpointSet::new(name.to_owned(), vec![]);
        mesh.endpoints.insert(name.to_owned(), Arc::new(none));
        let key = ResourceKey { kind: ResourceKind::EndpointSet, name: name.to_owned() };
        mesh.sources.insert(key, Source { file: "a.yaml".into(), line: 1 });
    }

    /// A listener and a service for each of these nodes.
    pub(crate) fn tcp_mesh(version: &str, nodes: &[&str]) -> Mesh {
        let mut mesh = Mesh { version: version.to_owned(), ..Mesh::default() };
        for node in nodes {
            add(&mut mesh, node, node);
        }
        mesh
    }

    fn mesh(version: &str) -> Mesh {
        tcp_mesh(version, &["a", "b"])
    }

    pub(crate) fn node(id: &str) -> Node {
        Node { id: id.to_owned(), cluster: String::new(), sidecar: false }
    }

    fn addresses(name: &str, port: u16) -> EndpointSet {
        let endpoints = vec![Endpoint::new(([127, 0, 0, 1], port).into())];
        EndpointSet::new(name.to_owned(), endpoints)
    }

    #[test]
    fn before_the_first_mesh_the_version_is_empty() {
        let hub = Hub::default();
        let view = hub.watch(&node("a"));
        assert_eq!(view.borrow().version, "");
        hub.publish(mesh("1"));
        assert_eq!(view.borrow().version, "1");
    }

    #[test]
    fn a_commit_names_the_nodes_it_changes_and_shares_the_rest() {
        let hub = Hub::default();
        hub.publish(mesh("1"));
        let (a, b) = (hub.watch(&node("a")), hub.watch(&node("b")));
        let before = b.borrow().clone();
        let mut next = mesh("2");
        let mut service = Service::clone(&next.services["a"]);
        service.connect_timeout = Duration::from_secs(1);
        next.services.insert("a".into(), Arc::new(service));
        assert_eq!(hub.publish(next), HashSet::from([node("a")]));
        assert_eq!((a.borrow().version.as_str(), b.borrow().version.as_str()), ("2", "2"));
        assert!(Arc::ptr_eq(&before.listeners["b"], &b.borrow().listeners["b"]));
        assert!(Arc::ptr_eq(&before.services["b"], &b.borrow().services["b"]));
    }

    #[test]
    fn an_answer_changes_one_endpoint_set_of_the_nodes_that_use_it() {
        let hub = Hub::default();
        hub.publish(mesh("1"));
        let (mut a, mut b) = (hub.watch(&node("a")), hub.watch(&node("b")));
        a.borrow_and_update();
        b.borrow_and_update();
        hub.set_resolved(&asks("a"), addresses("a", 1));
        assert!(a.has_changed().unwrap() && !b.has_changed().unwrap());
        assert_eq!(*a.borrow_and_update().endpoints["a"], addresses("a", 1));
        hub.set_resolved(&asks("a"), addresses("a", 1));
        assert!(!a.has_changed().unwrap(), "the same answer is no change");
    }

    #[test]
    fn a_set_that_was_never_answered_is_not_served_as_an_empty_one() {
        let hub = Hub::default();
        let a = hub.watch(&node("a"));
        hub.publish(mesh("1"));
        let key = ResourceKey { kind: ResourceKind::EndpointSet, name: "a".into() };
        assert!(a.borrow().services.contains_key("a") && a.borrow().endpoints.is_empty());
        assert!(!a.borrow().sources.contains_key(&key));
        hub.set_resolved(&asks("a"), addresses("a", 1));
        assert_eq!(*a.borrow().endpoints["a"], addresses("a", 1));
        assert!(a.borrow().sources.contains_key(&key));
        assert_eq!(*hub.watch(&node("a")).borrow().endpoints["a"], addresses("a", 1));
    }

    #[test]
    fn a_name_without_an_answer_is_served_empty_unless_one_is_known() {
        let hub = Hub::default();
        let a = hub.watch(&node("a"));
        hub.publish(mesh("1"));
        hub.set_unresolved(&asks("a"), "a");
        assert!(a.borrow().endpoints["a"].endpoints.is_empty());
        hub.publish(mesh("2"));
        assert!(a.borrow().endpoints["a"].endpoints.is_empty());
        hub.set_resolved(&asks("a"), addresses("a", 1));
        hub.set_unresolved(&asks("a"), "a");
        assert_eq!(*a.borrow().endpoints["a"], addresses("a", 1));
        // The verdict about another question is none about this one.
        hub.set_unresolved(&asks("other"), "a");
        assert_eq!(*a.borrow().endpoints["a"], addresses("a", 1));
    }

    #[test]
    fn an_answer_counts_only_for_the_question_it_answers() {
        let hub = Hub::default();
        hub.publish(mesh("1"));
        hub.set_resolved(&asks("a"), addresses("a", 1));
        let a = hub.watch(&node("a"));
        // The next mesh asks another name; its answer comes before it.
        hub.set_resolved(&asks("other"), addresses("a", 2));
        assert_eq!(*a.borrow().endpoints["a"], addresses("a", 1));
        let mut next = mesh("2");
        let mut service = Service::clone(&next.services["a"]);
        service.discovery = asks("other");
        next.services.insert("a".into(), Arc::new(service));
        hub.publish(next);
        assert_eq!(*a.borrow().endpoints["a"], addresses("a", 2));
        // And the one after it asks the first name again, which has not answered anew.
        hub.publish(mesh("3"));
        assert!(a.borrow().endpoints.is_empty());
        hub.set_resolved(&asks("other"), addresses("a", 2));
        assert!(a.borrow().endpoints.is_empty());
    }

    #[test]
    fn answers_outlive_commits_and_may_come_before_them() {
        let hub = Hub::default();
        hub.set_resolved(&asks("a"), addresses("a", 1));
        hub.publish(mesh("1"));
        let a = hub.watch(&node("a"));
        assert_eq!(*a.borrow().endpoints["a"], addresses("a", 1));
        hub.publish(mesh("2"));
        assert_eq!(*a.borrow().endpoints["a"], addresses("a", 1));
    }

    #[test]
    fn weights_follow_the_load_through_answers_and_commits_until_a_policy_says_otherwise() {
        let follows = |version: &str, weights| {
            let mut mesh = mesh(version);
            let mut service = Service::clone(&mesh.services["a"]);
            service.weights = weights;
            mesh.services.insert("a".into(), Arc::new(service));
            mesh
        };
        let hub = Hub::default();
        let (mut a, mut b) = (hub.watch(&node("a")), hub.watch(&node("b")));
        hub.publish(follows("1", Weights::FromLoad));
        hub.set_resolved(&asks("a"), addresses("a", 1));
        a.borrow_and_update();
        b.borrow_and_update();
        let share = Shares::from([(([127, 0, 0, 1], 1).into(), 0.1)]);
        hub.set_shares("a", share.clone());
        hub.set_shares("b", share);
        assert!(a.has_changed().unwrap() && !b.has_changed().unwrap());
        let weights = |set: &EndpointSet| -> Vec<(u32, u32)> {
            set.endpoints.iter().map(|e| (e.weight, e.declared())).collect()
        };
        let served = || weights(&a.borrow().endpoints["a"]);
        assert_eq!(served(), [(10, 100)]);
        assert_eq!(weights(&hub.declared()[0].0), [(100, 100)]);
        // Another answer, and another commit.
        let mut more = addresses("a", 1);
        more.endpoints.push(Endpoint::new(([127, 0, 0, 1], 2).into()));
        hub.set_resolved(&asks("a"), more);
        assert_eq!(served(), [(10, 100), (100, 100)]);
        hub.publish(follows("2", Weights::FromLoad));
        assert_eq!(served(), [(10, 100), (100, 100)]);
        assert_eq!(weights(&hub.declared()[0].0), [(100, 100), (100, 100)]);
        hub.set_shares("a", Shares::new());
        assert_eq!(served(), [(100, 100), (100, 100)]);
        assert_eq!(a.borrow().endpoints["a"].endpoints[0].declared_weight, None);
        hub.set_shares("a", Shares::from([(([127, 0, 0, 1], 2).into(), 2.0)]));
        hub.publish(follows("3", Weights::Declared));
        assert_eq!(served(), [(100, 100), (100, 100)]);
        assert!(hub.declared().is_empty());
        // What was in force is not any more, and is known not to be.
        hub.publish(follows("4", Weights::FromLoad));
        assert_eq!(served(), [(100, 100), (100, 100)]);
        assert!(hub.declared()[0].1.is_empty());
    }

    #[test]
    fn the_whole_mesh_follows_commits_and_answers() {
        let hub = Hub::default();
        let mut whole = hub.watch_whole();
        hub.publish(mesh("1"));
        // What is for different nodes, each of which sees the other's not.
        assert_eq!(whole.borrow_and_update().listeners.len(), 2);
        assert_eq!(hub.watch(&node("a")).borrow().listeners.len(), 1);
        hub.set_resolved(&asks("b"), addresses("b", 1));
        assert_eq!(*whole.borrow_and_update().endpoints["b"], addresses("b", 1));
        hub.publish(tcp_mesh("2", &["b"]));
        assert_eq!((whole.borrow().version.as_str(), whole.borrow().services.len()), ("2", 1));
        assert_eq!(*hub.watch_whole().borrow().endpoints["b"], addresses("b", 1));
    }

    #[test]
    fn nodes_are_forgotten_when_their_last_stream_ends() {
        let hub = Hub::default();
        let (first, second) = (hub.watch(&node("a")), hub.watch(&node("a")));
        drop(first);
        hub.left(&node("a"));
        assert!(hub.state().nodes.is_empty());
        drop(second);
        let gone = hub.watch(&node("b"));
        drop(gone);
        hub.publish(mesh("1"));
        assert!(hub.state().nodes.is_empty());
    }

    #[test]
    fn too_many_nodes_are_turned_away() {
        let hub = Hub::default();
        let held: Vec<_> = (0..MAX_NODES).map(|i| hub.watch(&node(&i.to_string()))).collect();
        assert!(hub.watch(&node("one more")).has_changed().is_err());
        assert!(hub.watch(&node("0")).has_changed().is_ok());
        drop(held);
        assert!(hub.watch(&node("one more")).has_changed().is_ok());
    }
}
