//! Client and server machines against each other over a bad link: seeded, in
//! virtual time, through the real bytes.
//!
//! A run mutates the mesh at random while streams break, messages lag, the
//! server restarts (and forgets every nonce), and a consumer rejects some of
//! what it is given. What must hold:
//! * No snapshot ever refers to something it does not hold.
//! * A rejected resource is never held, let alone in use.
//! * Nothing that a stream's client holds is sent to it again.
//! * In the end the client has exactly what the server has.

use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use envoy_types::pb::envoy::service::discovery::v3::{
    DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest, DiscoveryResponse,
};
use prost::Message;
use towpath_policies::model::*;
use towpath_xds::{
    Flavour,
    client::Machine,
    server::{Cache, Stream},
    wire::{Request, Response, Subscription},
};

#[test]
fn delta_converges_through_faults() {
    for seed in 0..SEEDS {
        Simulation::new(Flavour::Delta, seed).run();
    }
}

#[test]
fn state_of_the_world_converges_through_faults() {
    for seed in 0..SEEDS {
        Simulation::new(Flavour::StateOfTheWorld, seed).run();
    }
}

const SEEDS: u64 = 200;
const STEPS: usize = 150;
const WARM_WAIT: Duration = Duration::from_secs(15);
const KINDS: [ResourceKind; 4] = [
    ResourceKind::Listener,
    ResourceKind::RouteTable,
    ResourceKind::Service,
    ResourceKind::EndpointSet,
];

struct Simulation {
    seed: u64,
    flavour: Flavour,
    rng: fastrand::Rng,
    now: Instant,
    mesh: Generator,
    world: Arc<Snapshot>,
    cache: Arc<Cache>,
    client: Machine,
    consumer: Arc<Mutex<Consumer>>,
    /// Streams the server still believes in; the client speaks on the newest.
    streams: BTreeMap<u64, Link>,
    speaking: Option<u64>,
    next_stream: u64,
}

/// One stream: the server's machine and what is under way.
struct Link {
    server: Stream,
    up: VecDeque<(Instant, Vec<u8>)>,
    down: VecDeque<(Instant, Vec<u8>)>,
    /// What the client holds as far as this stream has told.
    told: BTreeMap<(ResourceKind, String), String>,
    names: BTreeMap<ResourceKind, BTreeSet<String>>,
    lag: Duration,
}

/// Takes snapshots into use, unless something in them is bad.
#[derive(Default)]
struct Consumer {
    applied: Option<Arc<Snapshot>>,
    rejections: usize,
    seed: u64,
}

impl Drop for Simulation {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("failed with seed {} ({:?})", self.seed, self.flavour);
        }
    }
}

impl Simulation {
    fn new(flavour: Flavour, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let mesh = Generator::new(&mut rng);
        let world = Arc::new(mesh.snapshot());
        Self {
            seed,
            flavour,
            rng,
            now: Instant::now(),
            mesh,
            world,
            cache: Arc::default(),
            client: Machine::new(flavour, WARM_WAIT),
            consumer: Arc::new(Mutex::new(Consumer { seed, ..Consumer::default() })),
            streams: BTreeMap::new(),
            speaking: None,
            next_stream: 0,
        }
    }

    fn run(mut self) {
        for _ in 0..STEPS {
            let (moment, a_while) = (self.rng.u64(0..60), self.rng.u64(1..20));
            match self.rng.u32(0..100) {
                0..60 => self.pass(Duration::from_millis(moment)),
                60..85 => self.mutate(),
                85..90 => self.disconnect(),
                90..92 => self.restart_server(),
                92..95 => self.lag(),
                _ => self.pass(Duration::from_secs(a_while)),
            }
            if self.speaking.is_none() && self.rng.u32(0..3) == 0 {
                self.connect();
            }
        }
        self.settle();
    }

    /// Everything good, nothing breaks any more: both must come to agree.
    fn settle(&mut self) {
        self.mesh.heal();
        self.publish();
        self.disconnect();
        self.streams.clear();
        self.connect();
        for _ in 0..1_000 {
            self.pass(Duration::from_millis(100));
            let quiet = self.streams.values().all(|l| l.up.is_empty() && l.down.is_empty());
            if quiet && self.client.deadline().is_none() {
                break;
            }
        }
        let expected = self.mesh.snapshot();
        let got = self.client.snapshot().expect("a snapshot was published").clone();
        assert_eq!(got.listeners, expected.listeners);
        assert_eq!(got.routes, expected.routes);
        assert_eq!(got.services, expected.services);
        assert_eq!(got.endpoints, expected.endpoints);
        for kind in KINDS {
            let held: Vec<String> = self.client.held(kind).into_keys().collect();
            assert_eq!(held, names(&expected, kind), "held {kind}s");
        }
        let status = self.client.status();
        assert_eq!(status.rejected, vec![]);
        assert!(status.connected);
        let link = self.streams.values_mut().next().expect("the stream stands");
        assert_eq!(link.server.newly_synced(), Some(expected.version));
    }

    fn mutate(&mut self) {
        self.mesh.mutate(&mut self.rng);
        self.publish();
    }

    fn publish(&mut self) {
        self.world = Arc::new(self.mesh.snapshot());
        for link in self.streams.values_mut() {
            link.server.update(&self.world);
        }
    }

    fn connect(&mut self) {
        let mut server = Stream::new(self.flavour, self.cache.clone());
        server.set_keeps_endpoints(true);
        server.update(&self.world);
        self.streams.insert(self.next_stream, Link::new(server));
        self.speaking = Some(self.next_stream);
        self.next_stream += 1;
        self.client.connected();
        self.client.established();
    }

    /// The client notices at once; the server may go on for a while with what
    /// is under way.
    fn disconnect(&mut self) {
        if let Some(stream) = self.speaking.take() {
            self.client.disconnected("cut");
            if self.rng.bool() {
                self.streams.remove(&stream);
            }
        }
    }

    /// Same content, other objects, no memory of streams or nonces.
    fn restart_server(&mut self) {
        self.streams.clear();
        self.cache = Arc::default();
        self.mesh.reload();
        self.world = Arc::new(self.mesh.snapshot());
        if self.speaking.take().is_some() {
            self.client.disconnected("server restarts");
        }
    }

    fn lag(&mut self) {
        let lag = Duration::from_millis(self.rng.u64(0..20_000));
        if let Some(link) = self.speaking.and_then(|s| self.streams.get_mut(&s)) {
            link.lag = lag;
        }
    }

    /// Lets time pass, delivering what arrives meanwhile.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            self.pump();
            let due = |queue: &VecDeque<(Instant, Vec<u8>)>| queue.front().map(|(at, _)| *at);
            let arrivals = self.streams.values().flat_map(|l| [due(&l.up), due(&l.down)]);
            let next = arrivals.chain([self.client.deadline()]).flatten().min();
            match next.filter(|next| *next <= end) {
                Some(next) => self.now = next.max(self.now),
                None => break,
            }
            self.deliver_up();
            self.deliver_down();
            let mut apply = Consumer::apply(&self.consumer);
            self.client.tick(self.now, &mut apply);
            self.check_client();
        }
        self.now = end;
    }

    /// Puts on the way what the machines have to say.
    fn pump(&mut self) {
        if let Some(link) = self.speaking.and_then(|s| self.streams.get_mut(&s)) {
            while let Some(request) = self.client.outgoing() {
                let at = link.arrival(&mut self.rng, self.now, true);
                link.up.push_back((at, request_bytes(self.flavour, request)));
            }
        }
        for link in self.streams.values_mut() {
            // A window of two responses: a slow stream.
            while link.down.len() < 2 {
                let Some(response) = link.server.outgoing() else { break };
                link.check_response(self.flavour, &response);
                let at = link.arrival(&mut self.rng, self.now, false);
                link.down.push_back((at, response_bytes(self.flavour, response)));
            }
        }
    }

    fn deliver_up(&mut self) {
        for link in self.streams.values_mut() {
            while link.up.front().is_some_and(|(at, _)| *at <= self.now) {
                let Some((_, bytes)) = link.up.pop_front() else { break };
                let request = read_request(self.flavour, &bytes);
                link.note_request(&request);
                link.server.handle(request).expect("a well-formed request");
            }
        }
    }

    fn deliver_down(&mut self) {
        let speaking = self.speaking;
        for (stream, link) in &mut self.streams {
            while link.down.front().is_some_and(|(at, _)| *at <= self.now) {
                let Some((_, bytes)) = link.down.pop_front() else { break };
                if speaking == Some(*stream) {
                    let response = read_response(self.flavour, &bytes);
                    let mut apply = Consumer::apply(&self.consumer);
                    self.client.handle(response, self.now, &mut apply);
                }
            }
        }
        self.check_client();
    }

    fn check_client(&self) {
        let consumer = self.consumer.lock().expect("not poisoned");
        assert_eq!(
            consumer.applied.as_ref().map(Arc::as_ptr),
            self.client.snapshot().map(Arc::as_ptr),
            "the machine says in use what the consumer has not taken"
        );
    }
}

impl Link {
    fn new(server: Stream) -> Self {
        Self {
            server,
            up: VecDeque::new(),
            down: VecDeque::new(),
            told: BTreeMap::new(),
            names: BTreeMap::new(),
            lag: Duration::ZERO,
        }
    }

    /// In order within a direction, at any speed.
    fn arrival(&self, rng: &mut fastrand::Rng, now: Instant, up: bool) -> Instant {
        let queue = if up { &self.up } else { &self.down };
        let at = now + self.lag + Duration::from_millis(rng.u64(0..40));
        queue.back().map_or(at, |(last, _)| at.max(*last))
    }

    fn note_request(&mut self, request: &Request) {
        let kind = request.kind;
        match &request.subscription {
            Subscription::Delta { subscribe, held, .. } => {
                for name in subscribe {
                    self.told.remove(&(kind, name.clone()));
                }
                for (name, version) in held {
                    self.told.insert((kind, name.clone()), version.clone());
                }
            }
            Subscription::World { names, .. } => {
                let names: BTreeSet<String> = names.iter().cloned().collect();
                let old = self.names.insert(kind, names.clone()).unwrap_or_default();
                for name in names.difference(&old) {
                    self.told.remove(&(kind, name.clone()));
                }
            }
        }
    }

    /// Nothing the client holds is sent again.
    fn check_response(&mut self, flavour: Flavour, response: &Response) {
        let kind = response.kind;
        let whole = flavour == Flavour::StateOfTheWorld
            && matches!(kind, ResourceKind::Listener | ResourceKind::Service);
        let mut news = false;
        for item in &response.resources {
            let told = self.told.insert((kind, item.name.clone()), item.version.clone());
            let again = told.as_ref() == Some(&item.version);
            assert!(whole || !again, "{kind} {} {} was sent twice", item.name, item.version);
            news |= !again;
        }
        if whole {
            let sent: BTreeSet<&String> =
                response.resources.iter().map(|item| &item.name).collect();
            let before = self.told.len();
            self.told.retain(|(k, name), _| *k != kind || sent.contains(name));
            news |= self.told.len() < before || response.resources.is_empty();
            assert!(news, "a {kind} response without news");
        }
        for name in &response.removed {
            self.told.remove(&(kind, name.clone()));
        }
    }
}

impl Consumer {
    fn apply(
        this: &Arc<Mutex<Self>>,
    ) -> impl FnMut(Arc<Snapshot>) -> Result<(), Vec<(ResourceKey, String)>> + Send + use<> {
        let this = this.clone();
        move |snapshot| {
            let mut consumer = this.lock().expect("not poisoned");
            check_closed(&snapshot);
            let bad = bad_resources(&snapshot);
            if !bad.is_empty() {
                consumer.rejections += 1;
                // Sometimes the consumer cannot say what it is.
                if (consumer.rejections as u64 + consumer.seed).is_multiple_of(7) {
                    return Err(Vec::new());
                }
                return Err(bad.into_iter().map(|key| (key, "is bad".to_owned())).collect());
            }
            consumer.applied = Some(snapshot);
            Ok(())
        }
    }
}

/// Every reference leads somewhere, and nothing is there without one.
fn check_closed(snapshot: &Snapshot) {
    let mut tables = BTreeSet::new();
    let mut services = BTreeSet::new();
    for listener in snapshot.listeners.values() {
        for chain in &listener.chains {
            match &chain.kind {
                ChainKind::Http { route_table, .. } => {
                    tables.insert(route_table.clone());
                }
                ChainKind::Tcp(tcp) => {
                    services.extend(tcp.backends.iter().map(|b| b.service.clone()));
                }
            }
        }
    }
    for table in &tables {
        let table = snapshot.routes.get(table).unwrap_or_else(|| panic!("no route table {table}"));
        for route in table.virtual_hosts.iter().flat_map(|h| &h.routes) {
            if let Action::Forward(forward) = &route.action {
                services.extend(forward.backends.iter().map(|b| b.service.clone()));
            }
        }
    }
    for service in &services {
        assert!(snapshot.services.contains_key(service), "no service {service}");
        assert!(snapshot.endpoints.contains_key(service), "no endpoint set {service}");
    }
    // A table may be there for a listener that waits for another one.
    assert!(snapshot.services.len() >= services.len());
}

/// What the consumer refuses: marks that the generator leaves.
fn bad_resources(snapshot: &Snapshot) -> Vec<ResourceKey> {
    let key = |kind, name: &str| ResourceKey { kind, name: name.to_owned() };
    let services = snapshot
        .services
        .values()
        .filter(|s| s.connect_timeout == BAD)
        .map(|s| key(ResourceKind::Service, &s.name));
    let listeners = snapshot
        .listeners
        .values()
        .filter(|l| l.bind == Bind::Socket(SocketAddr::from(([127, 0, 0, 1], BAD_PORT))))
        .map(|l| key(ResourceKind::Listener, &l.name));
    services.chain(listeners).collect()
}

fn names(snapshot: &Snapshot, kind: ResourceKind) -> Vec<String> {
    match kind {
        ResourceKind::Listener => snapshot.listeners.keys().cloned().collect(),
        ResourceKind::RouteTable => snapshot.routes.keys().cloned().collect(),
        ResourceKind::Service => snapshot.services.keys().cloned().collect(),
        ResourceKind::EndpointSet => snapshot.endpoints.keys().cloned().collect(),
    }
}

fn request_bytes(flavour: Flavour, request: Request) -> Vec<u8> {
    match flavour {
        Flavour::Delta => request.into_delta(None).encode_to_vec(),
        Flavour::StateOfTheWorld => request.into_world(None).encode_to_vec(),
    }
}

fn read_request(flavour: Flavour, bytes: &[u8]) -> Request {
    match flavour {
        Flavour::Delta => {
            Request::from_delta(DeltaDiscoveryRequest::decode(bytes).expect("our own bytes"))
        }
        Flavour::StateOfTheWorld => {
            Request::from_world(DiscoveryRequest::decode(bytes).expect("our own bytes"))
        }
    }
    .expect("a known type")
}

fn response_bytes(flavour: Flavour, response: Response) -> Vec<u8> {
    match flavour {
        Flavour::Delta => response.into_delta().encode_to_vec(),
        Flavour::StateOfTheWorld => response.into_world().encode_to_vec(),
    }
}

fn read_response(flavour: Flavour, bytes: &[u8]) -> Response {
    match flavour {
        Flavour::Delta => {
            Response::from_delta(DeltaDiscoveryResponse::decode(bytes).expect("our own bytes"))
        }
        Flavour::StateOfTheWorld => {
            Response::from_world(DiscoveryResponse::decode(bytes).expect("our own bytes"))
        }
    }
    .expect("a known type")
}

/// A small mesh that changes at random and is consistent at all times.
struct Generator {
    version: u64,
    /// Listener to route table.
    listeners: BTreeMap<String, Arc<Listener>>,
    routes: BTreeMap<String, Arc<RouteTable>>,
    services: BTreeMap<String, Arc<Service>>,
    endpoints: BTreeMap<String, Arc<EndpointSet>>,
    counter: Cell<u16>,
}

/// Marks a service that the consumer rejects.
const BAD: Duration = Duration::from_secs(13);
/// Marks a listener that the consumer rejects.
const BAD_PORT: u16 = 13;

impl Generator {
    fn new(rng: &mut fastrand::Rng) -> Self {
        let mut this = Self {
            version: 1,
            listeners: BTreeMap::new(),
            routes: BTreeMap::new(),
            services: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            counter: Cell::default(),
        };
        for i in 0..6 {
            this.put_service(&format!("s{i}"), false);
            this.put_endpoints(&format!("s{i}"), rng);
        }
        for i in 0..4 {
            this.put_table(&format!("r{i}"), rng, false);
        }
        for i in 0..3 {
            this.put_listener(&format!("l{i}"), rng, false);
        }
        this
    }

    fn tick(&self) -> u16 {
        self.counter.set(self.counter.get().wrapping_add(1).max(100));
        self.counter.get()
    }

    fn mutate(&mut self, rng: &mut fastrand::Rng) {
        self.version += 1;
        let bad = rng.u32(0..4) == 0;
        let service = format!("s{}", rng.u32(0..6));
        let table = format!("r{}", rng.u32(0..4));
        let listener = format!("l{}", rng.u32(0..3));
        match rng.u32(0..10) {
            0..5 => self.put_endpoints(&service, rng),
            5 => self.put_service(&service, bad),
            6 | 7 => self.put_table(&table, rng, bad),
            8 => self.put_listener(&listener, rng, bad),
            _ => {
                self.listeners.remove(&listener);
            }
        }
    }

    /// Replaces everything bad by something good.
    fn heal(&mut self) {
        self.version += 1;
        let mut rng = fastrand::Rng::with_seed(self.version);
        for name in self.services.keys().cloned().collect::<Vec<_>>() {
            if self.services[&name].connect_timeout == BAD {
                self.put_service(&name, false);
            }
        }
        for name in self.routes.keys().cloned().collect::<Vec<_>>() {
            if self.routes[&name].virtual_hosts.len() > 1 {
                self.put_table(&name, &mut rng, false);
            }
        }
        for name in self.listeners.keys().cloned().collect::<Vec<_>>() {
            let bad = SocketAddr::from(([127, 0, 0, 1], BAD_PORT));
            if self.listeners[&name].bind == Bind::Socket(bad) {
                self.put_listener(&name, &mut rng, false);
            }
        }
    }

    /// Equal content in other objects.
    fn reload(&mut self) {
        fn copy<T: Clone>(map: &mut BTreeMap<String, Arc<T>>) {
            for value in map.values_mut() {
                *value = Arc::new((**value).clone());
            }
        }
        copy(&mut self.listeners);
        copy(&mut self.routes);
        copy(&mut self.services);
        copy(&mut self.endpoints);
    }

    fn put_service(&mut self, name: &str, bad: bool) {
        let mut service = Service::new(name, Protocol::Http1);
        let millis = Duration::from_millis(self.tick().into());
        service.connect_timeout = if bad { BAD } else { millis };
        self.services.insert(name.to_owned(), Arc::new(service));
    }

    fn put_endpoints(&mut self, name: &str, rng: &mut fastrand::Rng) {
        let endpoints = (0..rng.u8(0..4))
            .map(|i| Endpoint::new(SocketAddr::from(([10, 0, 0, i], self.tick()))))
            .collect();
        let set = EndpointSet::new(name.to_owned(), endpoints);
        self.endpoints.insert(name.to_owned(), Arc::new(set));
    }

    /// A bad table names a domain twice: it does not even decode.
    fn put_table(&mut self, name: &str, rng: &mut fastrand::Rng, bad: bool) {
        let backends: Vec<WeightedBackend> = (0..rng.u32(1..3))
            .map(|_| {
                let backend = WeightedBackend::new(format!("s{}", rng.u32(0..6)));
                WeightedBackend { weight: self.tick().into(), ..backend }
            })
            .collect();
        let route = Route {
            name: "all".to_owned(),
            matches: RouteMatch::everything(),
            action: Action::Forward(Forward::to(backends)),
            request_headers: HeaderEdit::default(),
            response_headers: HeaderEdit::default(),
        };
        let host = VirtualHost {
            name: "all".to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![route],
        };
        let virtual_hosts = vec![host; if bad { 2 } else { 1 }];
        let table = RouteTable { name: name.to_owned(), virtual_hosts };
        self.routes.insert(name.to_owned(), Arc::new(table));
    }

    fn put_listener(&mut self, name: &str, rng: &mut fastrand::Rng, bad: bool) {
        let port = if bad { BAD_PORT } else { self.tick() };
        let route_table = format!("r{}", rng.u32(0..4));
        let kind = ChainKind::Http { route_table, options: HttpOptions::default() };
        let chain = Chain::new(vec![], None, kind);
        let listener = Listener {
            name: name.to_owned(),
            bind: Bind::Socket(SocketAddr::from(([127, 0, 0, 1], port))),
            chains: vec![chain],
            location: Location::default(),
            proxy_protocol: None,
        };
        self.listeners.insert(name.to_owned(), Arc::new(listener));
    }

    /// As much as the listeners lead to, as a control plane cuts it.
    fn snapshot(&self) -> Snapshot {
        let listeners = self.listeners.iter().map(|(name, listener)| {
            let nodes = NodeSelector::Unclaimed;
            let own = BTreeMap::new();
            (name.clone(), ScopedListener { nodes, listener: listener.clone(), own })
        });
        let mesh = Mesh {
            version: self.version.to_string(),
            listeners: listeners.collect(),
            routes: self.routes.clone(),
            services: self.services.clone(),
            endpoints: self.endpoints.clone(),
            sources: BTreeMap::new(),
        };
        mesh.view(&Node::default())
    }
}
