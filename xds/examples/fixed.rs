//! Serves a small fixed mesh by ADS, to look at how some other xDS client
//! takes it: `cargo run -p towpath-xds --example fixed -- XDS LISTENER BACKEND`
//! with three loopback ports. A line on stdin that is a port number moves the
//! backend there; any other line changes every service's connect timeout.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncBufReadExt, BufReader},
    net::TcpListener,
    sync::watch,
};
use towpath_policies::model::{
    Action, Bind, Breaker, Chain, ChainKind, DirectResponse, Endpoint, EndpointSet, Forward,
    ForwardedHeader, Gpu, HeaderEdit, HealthCheck, HealthProbe, HostRewrite, HttpOptions, Listener,
    Location, Mirror, Node, PathMatch, PathRewrite, Pattern, Protocol, Redirect, RetryCondition,
    RetryPolicy, Route, RouteMatch, RouteTable, Service, Snapshot, TcpForward, Thresholds,
    ValueMatch, VirtualHost, WeightedBackend,
};
use towpath_xds::server::{AdsServer, StreamEvent, Views};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let ports: Vec<u16> = std::env::args().skip(1).map(|a| a.parse()).collect::<Result<_, _>>()?;
    let [xds, listener, backend] = ports[..] else {
        return Err("three ports are needed: XDS LISTENER BACKEND".into());
    };
    let snapshots = watch::Sender::new(Arc::new(snapshot(1, listener, backend)));
    let server = AdsServer::new(Arc::new(Fixed(snapshots.subscribe())));
    let socket = TcpListener::bind(("127.0.0.1", xds)).await?;
    tokio::spawn(async move {
        let mut lines = BufReader::new(tokio::io::stdin()).lines();
        let mut version = 1;
        while let Ok(Some(line)) = lines.next_line().await {
            version += 1;
            let mut next = (**snapshots.borrow()).clone();
            next.version = version.to_string();
            if let Ok(port) = line.trim().parse() {
                next.endpoints = self::snapshot(version, listener, port).endpoints;
            } else {
                for service in next.services.values_mut() {
                    Arc::make_mut(service).connect_timeout += Duration::from_secs(1);
                }
            }
            snapshots.send_replace(Arc::new(next));
        }
        // Without stdin the mesh stays as it is.
        std::future::pending::<()>().await;
    });
    println!("serving on {}", socket.local_addr()?);
    server.serve(socket, std::future::pending()).await?;
    Ok(())
}

struct Fixed(watch::Receiver<Arc<Snapshot>>);

impl Views for Fixed {
    fn watch(&self, _: &Node) -> watch::Receiver<Arc<Snapshot>> {
        self.0.clone()
    }

    fn observe(&self, event: StreamEvent) {
        println!("{event:?}");
    }
}

fn snapshot(version: u64, port: u16, backend: u16) -> Snapshot {
    let mut snapshot = Snapshot { version: version.to_string(), ..Snapshot::default() };
    for (name, protocol) in [
        ("etl", Protocol::Http1),
        ("etl-2", Protocol::Http2),
        ("etl-follow", Protocol::Follow),
        ("raw", Protocol::Tcp),
    ] {
        snapshot.services.insert(name.to_owned(), Arc::new(service(name, protocol)));
        snapshot.endpoints.insert(name.to_owned(), Arc::new(endpoints(name, backend)));
    }
    for listener in [http(port), tcp(port + 1), sni(port + 2), api("etl"), api("etl-2")] {
        snapshot.listeners.insert(listener.name.clone(), Arc::new(listener));
    }
    for table in [table(), mesh("etl", "/"), mesh("etl-2", "/helloworld.Greeter")] {
        snapshot.routes.insert(table.name.clone(), Arc::new(table));
    }
    snapshot
}

fn service(name: &str, protocol: Protocol) -> Service {
    Service {
        breaker: Breaker {
            service: Thresholds {
                max_requests: Some(1000),
                max_bytes_in_flight: Some(4 << 30),
                ..Thresholds::default()
            },
            endpoint: Thresholds { max_connections: Some(50), ..Thresholds::default() },
        },
        health_check: (name == "etl").then(|| HealthCheck {
            probe: HealthProbe::Http { path: "/".to_owned(), host: None },
            interval: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            unhealthy_threshold: 2,
            healthy_threshold: 1,
        }),
        ..Service::new(name, protocol)
    }
}

fn endpoints(service: &str, port: u16) -> EndpointSet {
    let mut near = Endpoint::new(SocketAddr::from(([127, 0, 0, 1], port)));
    near.name = "near".to_owned();
    near.locality.region = "us-east".to_owned();
    near.gpu = Some(Gpu { vendor: "amd".to_owned(), model: "MI300X".to_owned(), count: 1 });
    let mut far = Endpoint::new(SocketAddr::from(([127, 0, 0, 2], port)));
    far.locality.region = "eu-west".to_owned();
    far.priority = 7;
    EndpointSet::new(service.to_owned(), vec![far, near])
}

fn socket(port: u16) -> Bind {
    Bind::Socket(SocketAddr::from(([127, 0, 0, 1], port)))
}

fn http(port: u16) -> Listener {
    let options = HttpOptions {
        via: Some("towpath".to_owned()),
        max_head_bytes: 10_000,
        forwarded: ForwardedHeader::Rfc7239,
        ..HttpOptions::default()
    };
    let kind = ChainKind::Http { route_table: "gateway/edge".to_owned(), options };
    let chains = vec![Chain::new(vec![], None, kind)];
    Listener {
        name: "gateway/edge".to_owned(),
        bind: socket(port),
        chains,
        location: Location::default(),
        proxy_protocol: None,
    }
}

fn tcp_forward() -> ChainKind {
    ChainKind::Tcp(TcpForward { backends: vec![backend("raw", 3)], idle_timeout: None })
}

fn tcp(port: u16) -> Listener {
    let chains = vec![Chain::new(vec![], None, tcp_forward())];
    Listener {
        name: "gateway/tcp".to_owned(),
        bind: socket(port),
        chains,
        location: Location::default(),
        proxy_protocol: None,
    }
}

fn sni(port: u16) -> Listener {
    let chain = |name: &str| Chain::new(vec![name.to_owned()], None, tcp_forward());
    let chains = vec![chain("db.example"), chain("*.db.example")];
    Listener {
        name: "gateway/sni".to_owned(),
        bind: socket(port),
        chains,
        location: Location::default(),
        proxy_protocol: None,
    }
}

fn api(service: &str) -> Listener {
    let kind =
        ChainKind::Http { route_table: format!("mesh/{service}"), options: HttpOptions::default() };
    let chains = vec![Chain::new(vec![], None, kind)];
    Listener {
        name: service.to_owned(),
        bind: Bind::Api,
        chains,
        location: Location::default(),
        proxy_protocol: None,
    }
}

fn mesh(service: &str, prefix: &str) -> RouteTable {
    let mut forward = forward(vec![backend(service, 1)]);
    forward.timeout = Some(Duration::from_secs(5));
    let route = route(PathMatch::Prefix(prefix.to_owned()), Action::Forward(forward));
    let host = VirtualHost {
        name: service.to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![route],
    };
    RouteTable { name: format!("mesh/{service}"), virtual_hosts: vec![host] }
}

fn backend(service: &str, weight: u32) -> WeightedBackend {
    WeightedBackend { weight, ..WeightedBackend::new(service) }
}

fn forward(backends: Vec<WeightedBackend>) -> Forward {
    Forward {
        idle_timeout: Some(Duration::from_secs(60)),
        retry: RetryPolicy {
            attempts: 2,
            on: vec![
                RetryCondition::ConnectFailure,
                RetryCondition::RefusedStream,
                RetryCondition::Timeout,
                RetryCondition::Status(vec![502, 503]),
                RetryCondition::GrpcStatus(vec![14]),
            ],
            per_try_timeout: Some(Duration::from_secs(3)),
            ..RetryPolicy::default()
        },
        ..Forward::to(backends)
    }
}

fn route(path: PathMatch, action: Action) -> Route {
    Route {
        name: format!("{path:?}").chars().filter(char::is_ascii_alphanumeric).collect(),
        matches: RouteMatch { path, ..RouteMatch::everything() },
        action,
        request_headers: HeaderEdit::default(),
        response_headers: HeaderEdit::default(),
    }
}

fn table() -> RouteTable {
    let prefix = |p: &str| PathMatch::Prefix(p.to_owned());
    let to = |path| {
        let mut forward = forward(vec![backend("etl", 1)]);
        forward.path = Some(path);
        Action::Forward(forward)
    };
    let mut guarded = route(
        PathMatch::Exact("/guarded".to_owned()),
        Action::Respond(DirectResponse { status: 418, body: "guarded\n".to_owned() }),
    );
    guarded.matches.method = Some("POST".to_owned());
    guarded.matches.headers = vec![
        ("x-class".to_owned(), ValueMatch::Exact("bulk".to_owned())),
        ("x-any".to_owned(), ValueMatch::Present),
    ];
    if let Ok(pattern) = Pattern::new("[0-9]+") {
        guarded.matches.query = vec![("v".to_owned(), ValueMatch::Regex(pattern))];
    }
    let mut weighted = forward(vec![backend("etl", 9), backend("etl-follow", 1)]);
    weighted.backends[0].request_headers.set = vec![("x-backend".to_owned(), "100%".to_owned())];
    weighted.mirrors =
        vec![Mirror { service: "etl-follow".to_owned(), parts_per_million: 500_000 }];
    weighted.host = HostRewrite::Literal("etl.internal".to_owned());
    let mut weighted = route(prefix("/weighted"), Action::Forward(weighted));
    weighted.request_headers.add = vec![("x-added".to_owned(), "50% %PROTOCOL%".to_owned())];
    weighted.response_headers.remove = vec!["server".to_owned()];
    let mut grpc = route(prefix("/grpc"), Action::Forward(forward(vec![backend("etl-2", 1)])));
    grpc.matches.grpc = true;
    let redirect = Redirect {
        scheme: Some("https".to_owned()),
        host: None,
        port: Some(8443),
        path: Some(PathRewrite::Prefix("/new".to_owned())),
        status: 308,
    };
    let mut routes = vec![
        guarded,
        weighted,
        grpc,
        route(prefix("/full"), to(PathRewrite::Full("/whole\\1".to_owned()))),
        route(prefix("/strip"), to(PathRewrite::Prefix("/".to_owned()))),
        route(prefix("/swap"), to(PathRewrite::Prefix("/to/".to_owned()))),
        route(prefix("/old"), Action::Redirect(redirect)),
    ];
    if let Ok(pattern) = Pattern::new("/re/[a-z]+") {
        routes.push(route(
            PathMatch::Regex(pattern),
            Action::Forward(forward(vec![backend("etl", 1)])),
        ));
    }
    routes.push(route(prefix("/"), Action::Forward(forward(vec![backend("etl", 1)]))));
    let host = VirtualHost {
        name: "all".to_owned(),
        domains: vec!["etl.example".to_owned(), "*.etl.example".to_owned(), "*".to_owned()],
        routes,
    };
    RouteTable { name: "gateway/edge".to_owned(), virtual_hosts: vec![host] }
}
