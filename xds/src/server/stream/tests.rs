use std::{net::SocketAddr, time::Duration};

use towpath_policies::model::{
    Action, Chain, ChainKind, Endpoint, EndpointSet, Forward, HeaderEdit, HttpOptions, Listener,
    Location, Protocol, Route, RouteMatch, RouteTable, Service, TcpForward, VirtualHost,
    WeightedBackend,
};

use super::{kind::blame, *};
use ResourceKind::{
    EndpointSet as Endpoints, Listener as Listeners, RouteTable as Routes, Service as Services,
};

/// `l` → `r` → `s`, and an API listener `api` → `mesh` → `s`.
fn world() -> Snapshot {
    let mut world = Snapshot { version: "1".to_owned(), ..Snapshot::default() };
    put_listener(&mut world, "l", "r", Bind::Socket(SocketAddr::from(([127, 0, 0, 1], 80))));
    put_listener(&mut world, "api", "mesh", Bind::Api);
    put_table(&mut world, "r", "s");
    put_table(&mut world, "mesh", "s");
    put_service(&mut world, "s", 1);
    world
}

fn put_listener(world: &mut Snapshot, name: &str, table: &str, bind: Bind) {
    let kind = ChainKind::Http { route_table: table.to_owned(), options: HttpOptions::default() };
    let chains = vec![Chain::new(vec![], None, kind)];
    world.listeners.insert(
        name.to_owned(),
        Arc::new(Listener {
            name: name.to_owned(),
            bind,
            chains,
            location: Location::default(),
            proxy_protocol: None,
        }),
    );
}

fn put_table(world: &mut Snapshot, name: &str, service: &str) {
    let route = Route {
        name: String::new(),
        matches: RouteMatch::everything(),
        action: Action::Forward(Forward::to(vec![WeightedBackend::new(service)])),
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
    };
    let host =
        VirtualHost { name: "h".to_owned(), domains: vec!["*".to_owned()], routes: vec![route] };
    let table = RouteTable { name: name.to_owned(), virtual_hosts: vec![host] };
    world.routes.insert(name.to_owned(), Arc::new(table));
}

fn put_service(world: &mut Snapshot, name: &str, port: u16) {
    world.services.insert(name.to_owned(), Arc::new(Service::new(name, Protocol::Http1)));
    put_endpoint(world, name, port);
}

fn put_endpoint(world: &mut Snapshot, name: &str, port: u16) {
    let endpoints = vec![Endpoint::new(SocketAddr::from(([10, 0, 0, 1], port)))];
    world.endpoints.insert(name.to_owned(), Arc::new(EndpointSet::new(name.to_owned(), endpoints)));
}

/// A stream and its obedient client.
struct Peer {
    stream: Stream,
    flavour: Flavour,
    names: BTreeMap<ResourceKind, Vec<String>>,
}

impl Peer {
    fn new(flavour: Flavour, world: &Snapshot) -> Self {
        let mut stream = Stream::new(flavour, Arc::default());
        stream.set_keeps_endpoints(true);
        let mut peer = Self { stream, flavour, names: BTreeMap::new() };
        peer.update(world);
        peer
    }

    /// Everything subscribed to and accepted.
    fn served(flavour: Flavour, world: &Snapshot) -> Self {
        let mut peer = Self::new(flavour, world);
        peer.ask(Services, &[]);
        peer.ask(Listeners, &[]);
        peer.ask(Endpoints, &["s"]);
        peer.ask(Routes, &["r"]);
        peer.drain();
        peer
    }

    fn update(&mut self, world: &Snapshot) {
        self.stream.update(&Arc::new(world.clone()));
    }

    fn ask(&mut self, kind: ResourceKind, names: &[&str]) {
        self.ask_holding(kind, names, &[], "");
    }

    fn ask_holding(
        &mut self,
        kind: ResourceKind,
        names: &[&str],
        held: &[(&str, &str)],
        version: &str,
    ) {
        let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
        self.names.insert(kind, names.clone());
        let subscription = match self.flavour {
            Flavour::Delta => Subscription::Delta {
                subscribe: names,
                unsubscribe: vec![],
                held: held.iter().map(|&(n, v)| (n.to_owned(), v.to_owned())).collect(),
            },
            Flavour::StateOfTheWorld => Subscription::World { version: version.to_owned(), names },
        };
        let request = Request { kind, nonce: String::new(), rejection: None, subscription };
        self.stream.handle(request).unwrap();
    }

    fn answer(&mut self, response: &Response, rejection: Option<Rejection>) -> Option<Event> {
        let subscription = match self.flavour {
            Flavour::Delta => Subscription::Delta {
                subscribe: vec![],
                unsubscribe: vec![],
                held: BTreeMap::new(),
            },
            Flavour::StateOfTheWorld => Subscription::World {
                version: response.version.clone(),
                names: self.names[&response.kind].clone(),
            },
        };
        let (kind, nonce) = (response.kind, response.nonce.clone());
        self.stream.handle(Request { kind, nonce, rejection, subscription }).unwrap()
    }

    /// What comes while everything is accepted, as `kind +name -name`.
    fn drain(&mut self) -> Vec<String> {
        let mut told = Vec::new();
        while let Some(response) = self.stream.outgoing() {
            told.push(describe(&response));
            self.answer(&response, None);
        }
        told
    }
}

fn describe(response: &Response) -> String {
    let mut text = response.kind.to_string();
    for item in &response.resources {
        text.push_str(&format!(" +{}", item.name));
    }
    for name in &response.removed {
        text.push_str(&format!(" -{name}"));
    }
    text
}

const BOTH: [Flavour; 2] = [Flavour::Delta, Flavour::StateOfTheWorld];

#[test]
fn services_and_endpoints_come_before_what_leads_to_them() {
    for flavour in BOTH {
        let mut peer = Peer::new(flavour, &world());
        for (kind, names) in
            [(Routes, &["r"][..]), (Listeners, &[]), (Endpoints, &["s"]), (Services, &[])]
        {
            peer.ask(kind, names);
        }
        let expected = ["service +s", "endpoint set +s", "listener +l", "route table +r"];
        assert_eq!(peer.drain(), expected, "{flavour:?}");
        assert_eq!(peer.stream.newly_synced(), Some("1".to_owned()));
        assert_eq!(peer.stream.newly_synced(), None);
    }
}

#[test]
fn routes_wait_for_the_answer_about_services() {
    for flavour in BOTH {
        let mut world = world();
        let mut peer = Peer::served(flavour, &world);
        world.version = "2".to_owned();
        put_service(&mut world, "t", 2);
        put_table(&mut world, "r", "t");
        peer.update(&world);
        let services = peer.stream.outgoing().unwrap();
        assert_eq!(services.kind, Services);
        assert_eq!(peer.stream.outgoing(), None, "{flavour:?}: nothing overtakes it");
        peer.ask(Endpoints, &["s", "t"]);
        if flavour == Flavour::Delta {
            // Endpoint sets may, because warming needs them.
            let sets = peer.stream.outgoing().unwrap();
            assert_eq!(sets.kind, Endpoints);
            peer.answer(&sets, None);
        }
        peer.answer(&services, None);
        assert!(peer.drain().contains(&"route table +r".to_owned()), "{flavour:?}");
    }
}

#[test]
fn removals_come_last_and_from_the_top() {
    let mut world = world();
    let mut peer = Peer::served(Flavour::Delta, &world);
    world.version = "2".to_owned();
    world.listeners.remove("l");
    world.routes.remove("r");
    world.listeners.remove("api");
    world.services.remove("s");
    world.endpoints.remove("s");
    put_service(&mut world, "t", 2);
    put_table(&mut world, "r2", "t");
    put_listener(&mut world, "l2", "r2", Bind::Socket(SocketAddr::from(([127, 0, 0, 1], 81))));
    peer.update(&world);
    let expected = [
        "service +t",
        "listener +l2",
        "listener -l",
        "route table -r",
        "service -s",
        "endpoint set -s",
    ];
    assert_eq!(peer.drain(), expected);
}

#[test]
fn complete_responses_keep_what_goes_until_last() {
    let mut world = world();
    let mut peer = Peer::served(Flavour::StateOfTheWorld, &world);
    put_service(&mut world, "t", 2);
    put_table(&mut world, "r", "t");
    world.listeners.remove("api");
    peer.update(&Snapshot { version: "2".to_owned(), ..world });
    assert_eq!(peer.drain(), ["service +s +t", "route table +r", "service +t"]);
}

#[test]
fn one_endpoint_costs_one_resource() {
    for flavour in BOTH {
        let mut world = world();
        let mut peer = Peer::served(flavour, &world);
        put_endpoint(&mut world, "s", 2);
        world.version = "2".to_owned();
        peer.update(&world);
        assert_eq!(peer.drain(), ["endpoint set +s"], "{flavour:?}");
        world.version = "3".to_owned();
        peer.update(&world);
        assert_eq!(peer.drain(), [""; 0], "{flavour:?}");
        assert_eq!(peer.stream.newly_synced(), Some("3".to_owned()));
    }
}

#[test]
fn a_changed_service_tells_its_endpoint_set_again_to_those_who_need_it() {
    for (keeps, expected) in
        [(true, vec!["service +s"]), (false, vec!["service +s", "endpoint set +s"])]
    {
        let mut world = world();
        let mut peer = Peer::served(Flavour::Delta, &world);
        peer.stream.set_keeps_endpoints(keeps);
        world.services.insert("s".to_owned(), Arc::new(Service::new("s", Protocol::Http2)));
        world.version = "2".to_owned();
        peer.update(&world);
        assert_eq!(peer.drain(), expected);
    }
}

#[test]
fn a_slow_client_gets_the_newest_and_no_queue() {
    let mut world = world();
    let mut peer = Peer::served(Flavour::Delta, &world);
    let mut waiting = None;
    for port in 2..50 {
        put_endpoint(&mut world, "s", port);
        world.version = port.to_string();
        peer.update(&world);
        waiting = waiting.or_else(|| peer.stream.outgoing());
    }
    let first = waiting.unwrap();
    assert_eq!(first.version, "2");
    peer.answer(&first, None);
    let second = peer.stream.outgoing().unwrap();
    assert_eq!(second.version, "49");
    peer.answer(&second, None);
    assert_eq!(peer.drain(), [""; 0]);
}

#[test]
fn wildcards_leave_out_api_listeners_which_come_by_name() {
    for flavour in BOTH {
        let mut peer = Peer::new(flavour, &world());
        peer.ask(Listeners, &[]);
        assert_eq!(peer.drain(), ["listener +l"], "{flavour:?}");
        let mut peer = Peer::new(flavour, &world());
        peer.ask(Listeners, &["api"]);
        assert_eq!(peer.drain(), ["listener +api"], "{flavour:?}");
    }
}

/// Whose names a program may say: those of Services too that no gateway leads to.
#[test]
fn for_who_opens_none_wildcards_cover_api_listeners_and_where_they_lead() {
    for flavour in BOTH {
        let mut world = world();
        put_table(&mut world, "mesh", "t");
        put_service(&mut world, "t", 1);
        for (opens, expected) in
            [(true, ["listener +l", "service +s"]), (false, ["listener +api +l", "service +s +t"])]
        {
            let mut peer = Peer::new(flavour, &Snapshot::default());
            peer.stream.set_opens_listeners(opens);
            peer.update(&world);
            for (kind, expected) in [Listeners, Services].into_iter().zip(expected) {
                peer.ask(kind, &[]);
                assert_eq!(peer.drain(), [expected], "{flavour:?} {opens}");
            }
        }
    }
}

#[test]
fn who_asks_for_api_listeners_only_or_says_so_opens_no_sockets() {
    for flavour in BOTH {
        for (names, opens) in [(&["api"][..], false), (&["l"], true), (&[], true)] {
            let mut peer = Peer::new(flavour, &world());
            assert!(!peer.stream.opens_sockets(), "nothing is asked for yet");
            peer.ask(Listeners, names);
            assert_eq!(peer.stream.opens_sockets(), opens, "{flavour:?} {names:?}");
            peer.stream.set_opens_listeners(false);
            assert!(!peer.stream.opens_sockets(), "it says so");
        }
    }
}

#[test]
fn a_client_that_comes_back_is_told_what_changed_meanwhile() {
    let mut world = world();
    let mut peer = Peer::new(Flavour::Delta, &world);
    peer.ask(Services, &[]);
    let told = peer.stream.outgoing().unwrap();
    let version = told.resources[0].version.clone();

    // Another server with equal content: nothing to say.
    let mut again = Peer::new(Flavour::Delta, &world.clone());
    again.ask_holding(Services, &[], &[("s", &version)], "");
    assert_eq!(again.drain(), [""; 0]);

    // Something is new, something is gone.
    put_service(&mut world, "t", 2);
    put_table(&mut world, "r", "t");
    let mut later = Peer::new(Flavour::Delta, &world);
    later.ask_holding(Services, &[], &[("s", &version), ("old", "v")], "");
    assert_eq!(later.drain(), ["service +t", "service -old -s"]);
}

#[test]
fn a_whole_state_that_is_held_already_is_not_sent() {
    let world = world();
    let mut peer = Peer::new(Flavour::StateOfTheWorld, &world);
    peer.ask(Listeners, &[]);
    let version = peer.stream.outgoing().unwrap().version;
    for (held, expected) in [(version.as_str(), 0), ("other", 1)] {
        let mut again = Peer::new(Flavour::StateOfTheWorld, &world);
        again.ask_holding(Listeners, &[], &[], held);
        assert_eq!(again.drain().len(), expected, "{held}");
    }
}

#[test]
fn a_rejected_version_is_not_offered_again_but_the_next_one_is() {
    for flavour in BOTH {
        let mut world = world();
        let mut peer = Peer::served(flavour, &world);
        put_endpoint(&mut world, "s", 2);
        world.version = "2".to_owned();
        peer.update(&world);
        let response = peer.stream.outgoing().unwrap();
        let rejection = Rejection::new(vec![("s".to_owned(), "no".to_owned())]);
        let event = peer.answer(&response, Some(rejection.clone()));
        let expected = Event::Nack { kind: Endpoints, version: "2".to_owned(), rejection };
        assert_eq!(event, Some(expected));
        assert_eq!(peer.stream.held_version(Endpoints, "s"), None);
        assert_eq!(peer.drain(), [""; 0], "{flavour:?}");
        put_endpoint(&mut world, "s", 3);
        world.version = "3".to_owned();
        peer.update(&world);
        assert_eq!(peer.drain(), ["endpoint set +s"], "{flavour:?}");
        assert!(peer.stream.held_version(Endpoints, "s").is_some());
    }
}

#[test]
fn a_rejection_blames_whom_its_text_names() {
    let names = ["gateway/a".to_owned(), "gateway/b".to_owned()];
    let text = "Error adding/updating listener(s) gateway/b: cannot bind";
    assert_eq!(blame(&names, &names[..1], text), [("gateway/b".to_owned(), text.to_owned())]);
    assert_eq!(blame(&names, &names[..1], "no").len(), 1);
}

#[test]
fn an_acceptance_may_be_taken_back() {
    let mut peer = Peer::new(Flavour::Delta, &world());
    peer.ask(Listeners, &[]);
    let response = peer.stream.outgoing().unwrap();
    let ack = Event::Ack { kind: Listeners, version: "1".to_owned() };
    assert_eq!(peer.answer(&response, None), Some(ack));
    let late =
        peer.answer(&response, Some(Rejection::new(vec![("l".to_owned(), "busy".to_owned())])));
    assert!(matches!(late, Some(Event::Nack { .. })));
    assert_eq!(peer.stream.held_version(Listeners, "l"), None);
}

#[test]
fn answers_to_older_responses_are_ignored() {
    let mut world = world();
    let mut peer = Peer::served(Flavour::StateOfTheWorld, &world);
    put_endpoint(&mut world, "s", 2);
    world.version = "2".to_owned();
    peer.update(&world);
    let response = peer.stream.outgoing().unwrap();
    let stale = Response { nonce: "older".to_owned(), ..response.clone() };
    let rejection = Some(Rejection::new(vec![("s".to_owned(), "no".to_owned())]));
    assert_eq!(peer.answer(&stale, rejection), None);
    assert!(peer.stream.held_version(Endpoints, "s").is_some());
    let ack = Event::Ack { kind: Endpoints, version: "2".to_owned() };
    assert_eq!(peer.answer(&response, None), Some(ack));
}

#[test]
fn what_does_not_exist_is_told_and_what_is_late_is_not() {
    let mut world = world();
    world.endpoints.remove("s");
    let mut peer = Peer::new(Flavour::Delta, &world);
    peer.ask(Endpoints, &["s", "nobody"]);
    assert_eq!(peer.drain(), ["endpoint set -nobody"]);
    put_endpoint(&mut world, "s", 1);
    world.version = "2".to_owned();
    peer.update(&world);
    assert_eq!(peer.drain(), ["endpoint set +s"]);
}

#[test]
fn an_empty_world_is_told_once_and_an_unready_one_never() {
    for flavour in BOTH {
        let mut peer = Peer::new(flavour, &Snapshot::default());
        peer.ask(Services, &[]);
        assert_eq!(peer.drain(), [""; 0], "{flavour:?}: not ready");
        peer.update(&Snapshot { version: "1".to_owned(), ..Snapshot::default() });
        assert_eq!(peer.drain(), ["service"], "{flavour:?}");
    }
}

#[test]
fn a_name_subscribed_again_is_told_again() {
    let mut peer = Peer::served(Flavour::Delta, &world());
    peer.ask(Routes, &["r"]);
    assert_eq!(peer.drain(), ["route table +r"]);
}

#[test]
fn subscriptions_are_bounded() {
    for flavour in BOTH {
        let mut stream = Stream::new(flavour, Arc::default());
        let mut batch = |from: usize| {
            let names: Vec<String> = (from..from + MAX_NAMES).map(|i| i.to_string()).collect();
            let subscription = match flavour {
                Flavour::Delta => Subscription::Delta {
                    subscribe: names,
                    unsubscribe: vec![],
                    held: BTreeMap::new(),
                },
                Flavour::StateOfTheWorld => Subscription::World { version: String::new(), names },
            };
            let nonce = String::new();
            stream.handle(Request { kind: Endpoints, nonce, rejection: None, subscription })
        };
        assert_eq!(batch(0), Ok(None));
        // Delta adds to the subscription, the other variant replaces it.
        assert_eq!(batch(MAX_NAMES).is_err(), flavour == Flavour::Delta);
    }
}

#[test]
fn what_a_rejected_resource_led_to_before_stays() {
    for flavour in BOTH {
        let mut world = world();
        let mut peer = Peer::served(flavour, &world);
        put_service(&mut world, "t", 2);
        put_table(&mut world, "r", "t");
        put_table(&mut world, "mesh", "t");
        world.services.remove("s");
        world.endpoints.remove("s");
        world.version = "2".to_owned();
        peer.update(&world);
        let services = peer.stream.outgoing().unwrap();
        peer.answer(&services, None);
        let table = peer.stream.outgoing().unwrap();
        assert_eq!(describe(&table), "route table +r");
        peer.answer(&table, Some(Rejection::new(vec![("r".to_owned(), "no".to_owned())])));
        assert_eq!(peer.drain(), [""; 0], "{flavour:?}");
        assert_eq!(peer.stream.newly_synced(), None);

        put_service(&mut world, "u", 3);
        put_table(&mut world, "r", "u");
        world.version = "3".to_owned();
        peer.update(&world);
        let expected = match flavour {
            Flavour::Delta => {
                &["service +u", "route table +r", "service -s -t", "endpoint set -s"][..]
            }
            Flavour::StateOfTheWorld => &["service +s +t +u", "route table +r", "service +u"],
        };
        assert_eq!(peer.drain(), expected);
    }
}

#[test]
fn a_rejected_listener_can_go() {
    for flavour in BOTH {
        let mut world = world();
        let mut peer = Peer::served(flavour, &world);
        put_service(&mut world, "t", 2);
        put_table(&mut world, "r2", "t");
        put_listener(&mut world, "l2", "r2", Bind::Socket(SocketAddr::from(([127, 0, 0, 1], 81))));
        world.version = "2".to_owned();
        peer.update(&world);
        let services = peer.stream.outgoing().unwrap();
        peer.answer(&services, None);
        let listeners = peer.stream.outgoing().unwrap();
        assert_eq!(listeners.kind, Listeners);
        peer.answer(&listeners, Some(Rejection::new(vec![("l2".to_owned(), "no".to_owned())])));
        assert_eq!(peer.drain(), [""; 0]);
        world.listeners.remove("l2");
        world.version = "3".to_owned();
        peer.update(&world);
        let expected = match flavour {
            Flavour::Delta => ["listener -l2", "service -t"],
            Flavour::StateOfTheWorld => ["listener +l", "service +s"],
        };
        assert_eq!(peer.drain(), expected);
    }
}

#[test]
fn a_late_endpoint_set_that_the_client_holds_is_not_told_as_gone() {
    let mut world = world();
    let set = world.endpoints.remove("s").unwrap();
    let mut peer = Peer::new(Flavour::Delta, &world);
    peer.ask_holding(Endpoints, &["s"], &[("s", "v")], "");
    assert_eq!(peer.drain(), [""; 0]);
    world.endpoints.insert("s".to_owned(), set);
    world.version = "2".to_owned();
    peer.update(&world);
    assert_eq!(peer.drain(), ["endpoint set +s"]);
}

#[test]
fn a_name_that_does_not_resolve_takes_no_addresses_from_a_client_that_has_some() {
    for flavour in BOTH {
        let mut world = world();
        let mut service = Service::new("s", Protocol::Http1);
        let refresh = Duration::from_secs(30);
        service.discovery = Discovery::Dns { host: "s".to_owned(), port: 1, refresh };
        world.services.insert("s".to_owned(), Arc::new(service));
        let none = EndpointSet::new("s".to_owned(), vec![]);
        world.endpoints.insert("s".to_owned(), Arc::new(none));

        let mut back = Peer::new(flavour, &world);
        back.ask_holding(Endpoints, &["s"], &[("s", "v")], "v");
        assert_eq!(back.drain(), [""; 0], "{flavour:?}");
        let mut fresh = Peer::new(flavour, &world);
        fresh.ask(Endpoints, &["s"]);
        assert_eq!(fresh.drain(), ["endpoint set +s"], "{flavour:?}");

        put_endpoint(&mut world, "s", 1);
        world.version = "2".to_owned();
        for mut peer in [back, fresh] {
            peer.update(&world);
            assert_eq!(peer.drain(), ["endpoint set +s"], "{flavour:?}");
        }
    }
}

#[test]
fn a_client_without_routes_is_in_sync_without_asking_for_them() {
    let mut world = world();
    let tcp = TcpForward { backends: vec![WeightedBackend::new("s")], idle_timeout: None };
    let mut listener = (*world.listeners["l"]).clone();
    listener.chains[0].kind = ChainKind::Tcp(tcp);
    world.listeners.insert("l".to_owned(), Arc::new(listener));
    let mut peer = Peer::new(Flavour::Delta, &world);
    for (kind, names) in [(Services, &[][..]), (Listeners, &[]), (Endpoints, &["s"])] {
        peer.ask(kind, names);
    }
    peer.drain();
    assert_eq!(peer.stream.newly_synced(), Some("1".to_owned()));

    // One with routes is not, until it has them.
    let mut peer = Peer::new(Flavour::Delta, &self::world());
    peer.ask(Listeners, &[]);
    peer.drain();
    assert_eq!(peer.stream.newly_synced(), None);
}

#[test]
fn a_name_left_to_the_wildcard_is_told_again() {
    let mut peer = Peer::served(Flavour::Delta, &world());
    peer.ask(Services, &["s"]);
    peer.drain();
    let subscription = Subscription::Delta {
        subscribe: vec![],
        unsubscribe: vec!["s".to_owned()],
        held: BTreeMap::new(),
    };
    let request = Request { kind: Services, nonce: String::new(), rejection: None, subscription };
    peer.stream.handle(request).unwrap();
    assert_eq!(peer.drain(), ["service +s"]);
}

#[test]
fn the_text_of_a_rejection_is_not_copied_without_bound() {
    let names: Vec<String> = (0..10_000).map(|i| format!("name-{i}")).collect();
    let text = "x".repeat(1_000);
    let blamed = blame(&names, &names, &text);
    assert_eq!(blamed.len(), names.len());
    assert_eq!(blamed.iter().filter(|(_, reason)| *reason == text).count(), 256);
}
