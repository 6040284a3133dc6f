//! Resources of other servers: what is taken, and what is refused with which words.

use std::time::Duration;

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{self as cds, cluster},
            core::v3 as core,
            endpoint::v3 as eds,
            listener::v3 as lds,
            route::v3 as rds,
        },
        extensions::filters::{
            http::router::v3::Router,
            listener::{
                proxy_protocol::v3::ProxyProtocol as ProxyFilter, tls_inspector::v3::TlsInspector,
            },
            network::{
                http_connection_manager::v3::{
                    self as hcm, HttpConnectionManager, http_connection_manager::RouteSpecifier,
                },
                tcp_proxy::v3::{TcpProxy, tcp_proxy::ClusterSpecifier},
            },
        },
        extensions::load_balancing_policies::least_request::v3::LeastRequest,
        extensions::transport_sockets::tls::v3::{self as tls_pb},
    },
    google::protobuf as pb,
};
use towpath_policies::model::{
    Action, Balancer, Bind, ChainKind, Coordinates, Discovery, Endpoint, Forward, HostRewrite,
    HttpOptions, Listener, Locality, Location, Only, OriginSource, PathMatch, PathRewrite,
    Protocol, Region, Registered, RetryPolicy, Service, Speaks, Thresholds, ValueMatch, Weights,
};

use super::*;

fn router() -> hcm::HttpFilter {
    http_filter("envoy.filters.http.router", common::pack(&Router::default()))
}

fn http_filter(name: &str, config: Any) -> hcm::HttpFilter {
    hcm::HttpFilter {
        name: name.to_owned(),
        config_type: Some(hcm::http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

/// As go-control-plane's example writes them: nothing but the necessary.
fn foreign_hcm() -> HttpConnectionManager {
    HttpConnectionManager {
        stat_prefix: "http".to_owned(),
        route_specifier: Some(RouteSpecifier::Rds(hcm::Rds {
            config_source: common::ads(),
            route_config_name: "local_route".to_owned(),
        })),
        http_filters: vec![router()],
        ..Default::default()
    }
}

fn foreign_listener(hcm: &HttpConnectionManager) -> lds::Listener {
    let filter = lds::Filter {
        name: "http-connection-manager".to_owned(),
        config_type: Some(lds::filter::ConfigType::TypedConfig(common::pack(hcm))),
    };
    lds::Listener {
        name: "listener_0".to_owned(),
        address: Some(common::address(([0, 0, 0, 0], 10_000).into())),
        filter_chains: vec![lds::FilterChain { filters: vec![filter], ..Default::default() }],
        ..Default::default()
    }
}

fn foreign_route(prefix: &str, action: rds::RouteAction) -> rds::Route {
    rds::Route {
        r#match: Some(rds::RouteMatch {
            path_specifier: Some(rds::route_match::PathSpecifier::Prefix(prefix.to_owned())),
            ..Default::default()
        }),
        action: Some(rds::route::Action::Route(action)),
        ..Default::default()
    }
}

fn to(cluster: &str) -> rds::RouteAction {
    rds::RouteAction {
        cluster_specifier: Some(rds::route_action::ClusterSpecifier::Cluster(cluster.to_owned())),
        ..Default::default()
    }
}

fn foreign_table(routes: Vec<rds::Route>) -> rds::RouteConfiguration {
    rds::RouteConfiguration {
        name: "local_route".to_owned(),
        virtual_hosts: vec![rds::VirtualHost {
            name: "local_service".to_owned(),
            domains: vec!["*".to_owned()],
            routes,
            ..Default::default()
        }],
        ..Default::default()
    }
}

fn host(name: &str, port: u32) -> eds::LbEndpoint {
    let socket = core::SocketAddress {
        address: name.to_owned(),
        port_specifier: Some(core::socket_address::PortSpecifier::PortValue(port)),
        ..Default::default()
    };
    let address = core::Address { address: Some(core::address::Address::SocketAddress(socket)) };
    eds::LbEndpoint {
        host_identifier: Some(eds::lb_endpoint::HostIdentifier::Endpoint(eds::Endpoint {
            address: Some(address),
            ..Default::default()
        })),
        ..Default::default()
    }
}

fn foreign_cluster(kind: cluster::DiscoveryType, hosts: Vec<eds::LbEndpoint>) -> cds::Cluster {
    cds::Cluster {
        name: "c".to_owned(),
        cluster_discovery_type: Some(cluster::ClusterDiscoveryType::Type(kind as i32)),
        load_assignment: Some(eds::ClusterLoadAssignment {
            cluster_name: "inner".to_owned(),
            endpoints: vec![eds::LocalityLbEndpoints { lb_endpoints: hosts, ..Default::default() }],
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn first_forward(table: &RouteTable) -> &Forward {
    match &table.virtual_hosts[0].routes[0].action {
        Action::Forward(forward) => forward,
        other => panic!("no forward: {other:?}"),
    }
}

#[test]
fn a_plain_foreign_listener_is_taken() {
    let decoded = listener::decode(&foreign_listener(&foreign_hcm())).unwrap();
    assert_eq!(decoded.listener.bind, Bind::Socket(([0, 0, 0, 0], 10_000).into()));
    let ChainKind::Http { route_table, options } = &decoded.listener.chains[0].kind else {
        panic!("http")
    };
    assert_eq!(route_table, "local_route");
    // Envoy serves HTTP/1.0 only where it is told to.
    assert_eq!(*options, HttpOptions { http10: false, ..HttpOptions::default() });
}

#[test]
fn an_inline_route_table_gets_a_name_of_its_own() {
    let mut hcm = foreign_hcm();
    let mut table = foreign_table(vec![foreign_route("/", to("c"))]);
    table.name.clear();
    hcm.route_specifier = Some(RouteSpecifier::RouteConfig(table));
    let decoded = listener::decode(&foreign_listener(&hcm)).unwrap();
    let ChainKind::Http { route_table, .. } = &decoded.listener.chains[0].kind else {
        panic!("http")
    };
    assert_eq!(route_table, "inline/listener_0/0");
    assert!(decoded.inline_table(route_table).is_some());
}

#[test]
fn listeners_that_would_be_disobeyed_are_refused() {
    type Change = fn(&mut lds::Listener, &mut HttpConnectionManager);
    let table: [(Change, &str); 10] = [
        (|_, h| h.http_filters.clear(), "must end in the router"),
        (
            |_, h| h.http_filters.insert(0, http_filter("rbac", Any::default())),
            "\"rbac\" is not supported",
        ),
        (|_, h| h.http_filters.push(http_filter("late", Any::default())), "not in \"late\""),
        (|_, h| h.route_specifier = None, "rds or route_config"),
        (|l, _| l.address = Some(core::Address::default()), "address: must be a socket_address"),
        (|l, _| l.filter_chains.clear(), "filter_chains: must not be empty"),
        (|l, _| l.transparent = common::bool_value(true), "transparent: needs"),
        (
            |l, _| {
                l.filter_chains[0].filter_chain_match =
                    Some(lds::FilterChainMatch { source_ports: vec![1], ..Default::default() });
            },
            "filter_chain_match: only server_names",
        ),
        (
            |l, _| {
                l.filter_chains[0].transport_socket = Some(core::TransportSocket {
                    config_type: Some(core::transport_socket::ConfigType::TypedConfig(
                        common::pack(&tls_pb::DownstreamTlsContext {
                            require_client_certificate: common::bool_value(true),
                            ..Default::default()
                        }),
                    )),
                    ..Default::default()
                });
            },
            "require_client_certificate",
        ),
        (|l, _| l.listener_filters = vec![lds::ListenerFilter::default()], "listener_filters[0]"),
    ];
    for (change, expected) in table {
        let mut hcm = foreign_hcm();
        let mut listener = foreign_listener(&hcm);
        change(&mut listener, &mut hcm);
        if !listener.filter_chains.is_empty() {
            listener.filter_chains[0].filters =
                foreign_listener(&hcm).filter_chains[0].filters.clone();
        }
        let error = listener::decode(&listener).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} should say {expected:?}");
    }
}

#[test]
fn optional_filters_are_left_out() {
    let mut hcm = foreign_hcm();
    let mut filter = http_filter("cors", Any::default());
    filter.is_optional = true;
    hcm.http_filters.insert(0, filter);
    assert!(listener::decode(&foreign_listener(&hcm)).is_ok());
}

#[test]
fn a_plain_foreign_route_means_what_envoy_takes_it_for() {
    let table = foreign_table(vec![foreign_route("/", to("c"))]);
    let decoded = route::decode(&table).unwrap();
    let forward = first_forward(&decoded);
    assert_eq!(decoded.virtual_hosts[0].routes[0].matches.path, PathMatch::Prefix("/".to_owned()));
    assert_eq!((forward.backends[0].service.as_str(), forward.backends[0].weight), ("c", 1));
    assert_eq!(forward.timeout, Some(Duration::from_secs(15)));
    assert_eq!(forward.idle_timeout, Some(Duration::from_secs(300)));
    assert_eq!(forward.retry.attempts, 0);
    assert_eq!(forward.host, HostRewrite::Keep);
}

#[test]
fn whether_downloads_are_resumed_survives_though_envoy_has_no_word_for_it() {
    let mut table = route::decode(&foreign_table(vec![foreign_route("/", to("c"))])).unwrap();
    for (attempts, resume_downloads) in [(1, true), (1, false), (3, true), (0, false)] {
        let retry = RetryPolicy { attempts, resume_downloads, ..RetryPolicy::default() };
        let Action::Forward(forward) = &mut table.virtual_hosts[0].routes[0].action else {
            panic!("a forward")
        };
        forward.retry = retry;
        let pb = route::encode(&table, false);
        assert_eq!(route::decode(&pb).unwrap(), table);
    }
}

#[test]
fn foreign_prefixes_match_in_the_middle_of_a_segment() {
    let table = foreign_table(vec![foreign_route("/a.b", to("c"))]);
    let decoded = route::decode(&table).unwrap();
    let PathMatch::Regex(pattern) = &decoded.virtual_hosts[0].routes[0].matches.path else {
        panic!("a regular expression")
    };
    for (path, expected) in [("/a.b", true), ("/a.bc", true), ("/a.b/c", true), ("/axb", false)] {
        assert_eq!(pattern.is_match(path), expected, "{path}");
    }
}

#[test]
fn a_rewritten_foreign_prefix_stays_a_prefix() {
    let action = rds::RouteAction { prefix_rewrite: "/v2/".to_owned(), ..to("c") };
    let decoded = route::decode(&foreign_table(vec![foreign_route("/api/", action)])).unwrap();
    let route = &decoded.virtual_hosts[0].routes[0];
    assert_eq!(route.matches.path, PathMatch::Prefix("/api".to_owned()));
    assert_eq!(first_forward(&decoded).path, Some(PathRewrite::Prefix("/v2".to_owned())));
}

#[test]
#[expect(deprecated, reason = "older servers still write it")]
fn older_header_matchers_are_taken() {
    let mut route = foreign_route("/", to("c"));
    let matcher = rds::HeaderMatcher {
        name: "X-Env".to_owned(),
        header_match_specifier: Some(rds::header_matcher::HeaderMatchSpecifier::PrefixMatch(
            "dev.".to_owned(),
        )),
        ..Default::default()
    };
    route.r#match.as_mut().unwrap().headers.push(matcher);
    let decoded = route::decode(&foreign_table(vec![route])).unwrap();
    let [(name, ValueMatch::Regex(pattern))] =
        &decoded.virtual_hosts[0].routes[0].matches.headers[..]
    else {
        panic!("one regular expression")
    };
    assert_eq!(name, "x-env");
    assert!(pattern.is_match("dev.1") && !pattern.is_match("devx1"));
}

#[test]
fn routes_that_would_be_disobeyed_are_refused() {
    type Change = fn(&mut rds::Route);
    fn matches(route: &mut rds::Route) -> &mut rds::RouteMatch {
        route.r#match.as_mut().unwrap()
    }
    let table: [(Change, &str); 8] = [
        (|r| matches(r).cookies.push(rds::CookieMatcher::default()), "match.cookies"),
        (
            |r| {
                matches(r).headers.push(rds::HeaderMatcher {
                    name: "x".to_owned(),
                    invert_match: true,
                    ..Default::default()
                });
            },
            "match.headers[0].invert_match",
        ),
        (
            |r| {
                matches(r).headers.push(rds::HeaderMatcher {
                    name: ":authority".to_owned(),
                    ..Default::default()
                });
            },
            "\":authority\" cannot be matched",
        ),
        (|r| r.action = None, "an action is needed"),
        (
            |r| r.action = Some(rds::route::Action::Route(rds::RouteAction::default())),
            "needs a cluster",
        ),
        (
            |r| {
                r.action = Some(rds::route::Action::Route(rds::RouteAction {
                    metadata_match: Some(core::Metadata::default()),
                    ..to("c")
                }));
            },
            "metadata_match",
        ),
        (
            |r| {
                r.request_headers_to_add = vec![core::HeaderValueOption {
                    header: Some(core::HeaderValue {
                        key: "x".to_owned(),
                        value: "%PROTOCOL%".to_owned(),
                        ..Default::default()
                    }),
                    ..Default::default()
                }];
            },
            "%COMMAND%",
        ),
        (
            |r| {
                matches(r).runtime_fraction = Some(core::RuntimeFractionalPercent {
                    default_value: Some(Default::default()),
                    ..Default::default()
                });
            },
            "runtime_fraction",
        ),
    ];
    for (change, expected) in table {
        let mut route = foreign_route("/", to("c"));
        change(&mut route);
        let error = route::decode(&foreign_table(vec![route])).unwrap_err().to_string();
        assert!(error.starts_with("virtual_hosts[0].routes[0]"), "{error}");
        assert!(error.contains(expected), "{error:?} should say {expected:?}");
    }
}

#[test]
fn domains_lose_their_ports_and_may_not_repeat() {
    let mut table = foreign_table(vec![]);
    table.virtual_hosts[0].domains =
        ["Foo", "foo:80", "[::1]:80", "::1", "*.bar:*"].map(str::to_owned).to_vec();
    let decoded = route::decode(&table).unwrap();
    assert_eq!(decoded.virtual_hosts[0].domains, ["foo", "[::1]", "::1", "*.bar"]);
    table.virtual_hosts.push(table.virtual_hosts[0].clone());
    let error = route::decode(&table).unwrap_err().to_string();
    assert_eq!(error, "virtual_hosts[1].domains[0]: \"foo\" is in another virtual host too");
}

#[test]
fn a_static_cluster_brings_its_endpoints() {
    let cluster = foreign_cluster(cluster::DiscoveryType::Static, vec![host("10.0.0.1", 80)]);
    let decoded = service::decode(&cluster).unwrap();
    assert_eq!(decoded.service.discovery, Discovery::Listed);
    assert_eq!(decoded.service.protocol, Protocol::Http1);
    assert_eq!(decoded.service.balancer, Balancer::RoundRobin);
    assert_eq!(decoded.service.outlier, None);
    let envoys = Thresholds {
        max_connections: Some(1024),
        max_requests: Some(1024),
        max_pending: Some(1024),
        max_bytes_in_flight: None,
    };
    assert_eq!(decoded.service.breaker.service, envoys);
    let EndpointSource::Inline(set) = decoded.endpoints else { panic!("inline") };
    assert_eq!((set.service.as_str(), set.endpoints.len()), ("c", 1));
}

#[test]
fn localities_count_where_a_foreign_cluster_says_so() {
    use envoy_types::pb::envoy::extensions::load_balancing_policies::{
        common::v3::{
            LocalityLbConfig,
            locality_lb_config::{
                LocalityConfigSpecifier, LocalityWeightedLbConfig, ZoneAwareLbConfig,
            },
        },
        least_request::v3::LeastRequest,
        round_robin::v3::RoundRobin,
        wrr_locality::v3::WrrLocality,
    };
    let list = |any| cds::LoadBalancingPolicy {
        policies: vec![cds::load_balancing_policy::Policy {
            typed_extension_config: Some(core::TypedExtensionConfig {
                name: "any".to_owned(),
                typed_config: Some(any),
            }),
        }],
    };
    let weighted = LocalityLbConfig {
        locality_config_specifier: Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(
            LocalityWeightedLbConfig::default(),
        )),
    };
    let zones = LocalityLbConfig {
        locality_config_specifier: Some(LocalityConfigSpecifier::ZoneAwareLbConfig(
            ZoneAwareLbConfig::default(),
        )),
    };
    let least = |config| LeastRequest { locality_lb_config: config, ..Default::default() };
    let inner = list(common::pack(&RoundRobin::default()));
    let wrr = WrrLocality { endpoint_picking_policy: Some(inner) };
    for (any, balancer, by_locality) in [
        (common::pack(&least(Some(weighted))), Balancer::LeastRequest, true),
        (common::pack(&least(Some(zones))), Balancer::LeastRequest, false),
        (common::pack(&least(None)), Balancer::LeastRequest, false),
        (common::pack(&wrr), Balancer::RoundRobin, true),
    ] {
        let mut cluster = foreign_cluster(cluster::DiscoveryType::Static, vec![]);
        cluster.load_balancing_policy = Some(list(any));
        let service = service::decode(&cluster).unwrap().service;
        assert_eq!((service.balancer, service.by_locality), (balancer, by_locality));
    }
    let mut old = foreign_cluster(cluster::DiscoveryType::Static, vec![]);
    assert!(!service::decode(&old).unwrap().service.by_locality);
    let specifier = cluster::common_lb_config::LocalityConfigSpecifier::LocalityWeightedLbConfig(
        Default::default(),
    );
    old.common_lb_config = Some(cluster::CommonLbConfig {
        locality_config_specifier: Some(specifier),
        ..Default::default()
    });
    assert!(service::decode(&old).unwrap().service.by_locality);
}

#[test]
fn a_foreign_endpoint_set_spreads_as_envoy_would() {
    let group = |zone: &str, weight, port| eds::LocalityLbEndpoints {
        locality: Some(core::Locality { zone: zone.to_owned(), ..Default::default() }),
        load_balancing_weight: weight,
        lb_endpoints: vec![host("10.0.0.1", port), host("10.0.0.2", port)],
        ..Default::default()
    };
    let policy = |percent: Option<u32>| {
        Some(eds::cluster_load_assignment::Policy {
            overprovisioning_factor: percent.and_then(common::u32_value),
            ..Default::default()
        })
    };
    for (policy, percent) in [
        (None, Some(140)),
        (policy(None), Some(140)),
        (policy(Some(200)), Some(200)),
        (policy(Some(100_000)), None),
    ] {
        let assignment = eds::ClusterLoadAssignment {
            cluster_name: "c".to_owned(),
            policy,
            // Said, as usual (the sum of its endpoints' weights), not said, and twice.
            endpoints: vec![
                group("a", common::u32_value(7), 1),
                group("b", common::u32_value(2), 2),
                group("c", None, 3),
                group("d", common::u32_value(4), 4),
                group("d", common::u32_value(5), 5),
            ],
            ..Default::default()
        };
        let set = endpoints::decode(&assignment).unwrap();
        assert_eq!(set.spread.overprovisioning_percent, percent);
        let told = |zone: &str| {
            let locality = Locality { zone: zone.to_owned(), ..Default::default() };
            set.spread.weight(0, &locality)
        };
        assert_eq!(["a", "b", "c", "d"].map(told), [Some(7), Some(2), Some(0), Some(9)]);
        assert_eq!(endpoints::decode(&endpoints::encode(&set)).unwrap(), set);
    }
}

#[test]
fn a_dns_cluster_is_left_to_the_proxy() {
    for kind in [cluster::DiscoveryType::StrictDns, cluster::DiscoveryType::LogicalDns] {
        let decoded =
            service::decode(&foreign_cluster(kind, vec![host("etl.internal", 80)])).unwrap();
        let refresh = Duration::from_secs(5);
        let expected = Discovery::Dns { host: "etl.internal".to_owned(), port: 80, refresh };
        assert_eq!(decoded.service.discovery, expected);
        assert_eq!(decoded.endpoints, EndpointSource::Resolved);
    }
    let two = vec![host("a.internal", 80), host("b.internal", 80)];
    let error =
        service::decode(&foreign_cluster(cluster::DiscoveryType::StrictDns, two)).unwrap_err();
    assert!(error.to_string().contains("only one DNS name"));
}

#[test]
fn an_endpoint_set_may_have_a_name_of_its_own() {
    let mut cluster = foreign_cluster(cluster::DiscoveryType::Eds, vec![]);
    cluster.load_assignment = None;
    cluster.eds_cluster_config = Some(cluster::EdsClusterConfig {
        eds_config: common::ads(),
        service_name: "outbound|80".to_owned(),
    });
    let decoded = service::decode(&cluster).unwrap();
    assert_eq!(decoded.endpoints, EndpointSource::Delivered("outbound|80".to_owned()));
}

#[test]
fn clusters_that_would_be_disobeyed_are_refused() {
    type Change = fn(&mut cds::Cluster);
    let table: [(Change, &str); 6] = [
        (
            |c| c.lb_policy = cluster::LbPolicy::ClusterProvided as i32,
            "lb_policy: CLUSTER_PROVIDED",
        ),
        (|c| c.load_balancing_policy = Some(Default::default()), "load_balancing_policy"),
        (|c| c.transport_socket_matches = vec![Default::default()], "transport_socket_matches"),
        (
            |c| {
                let kind = cluster::DiscoveryType::OriginalDst as i32;
                c.cluster_discovery_type = Some(cluster::ClusterDiscoveryType::Type(kind));
            },
            "ORIGINAL_DST",
        ),
        (|c| c.health_checks = vec![core::HealthCheck::default()], "health_checks"),
        (
            |c| {
                c.transport_socket = Some(core::TransportSocket {
                    config_type: Some(core::transport_socket::ConfigType::TypedConfig(
                        common::pack(&tls_pb::UpstreamTlsContext::default()),
                    )),
                    ..Default::default()
                });
            },
            "transport_socket.sni: is needed",
        ),
    ];
    for (change, expected) in table {
        let mut cluster =
            foreign_cluster(cluster::DiscoveryType::Static, vec![host("10.0.0.1", 80)]);
        change(&mut cluster);
        let error = service::decode(&cluster).unwrap_err().to_string();
        assert!(error.contains(expected), "{error:?} should say {expected:?}");
    }
}

#[test]
fn foreign_weights_are_scaled_into_range_and_equal_addresses_are_one() {
    let mut heavy = host("10.0.0.1", 80);
    heavy.load_balancing_weight = common::u32_value(4_000_000);
    let mut light = host("10.0.0.2", 80);
    light.load_balancing_weight = common::u32_value(2_000_000);
    let cluster =
        foreign_cluster(cluster::DiscoveryType::Static, vec![heavy.clone(), light, heavy]);
    let EndpointSource::Inline(set) = service::decode(&cluster).unwrap().endpoints else {
        panic!("inline")
    };
    let weights: Vec<u32> = set.endpoints.iter().map(|e| e.weight).collect();
    assert_eq!(weights, [1_000_000, 500_000]);
    let group = |zone: &str, port, weight| {
        let mut heavy = host("10.0.0.1", port);
        heavy.load_balancing_weight = common::u32_value(4_000_000);
        eds::LocalityLbEndpoints {
            locality: Some(core::Locality { zone: zone.to_owned(), ..Default::default() }),
            load_balancing_weight: common::u32_value(weight),
            lb_endpoints: vec![heavy],
            ..Default::default()
        }
    };
    let set = endpoints::decode(&eds::ClusterLoadAssignment {
        cluster_name: "c".to_owned(),
        endpoints: vec![group("a", 1, 4_000_000), group("b", 2, 2_000_000)],
        ..Default::default()
    });
    let localities = set.unwrap().spread.localities;
    let weights: Vec<u32> = localities.iter().map(|locality| locality.weight).collect();
    assert_eq!(weights, [4_000_000, 2_000_000], "those of localities stay as they are");
}

#[test]
fn metadata_written_by_hand_is_read_too() {
    let fields = pb::Struct {
        fields: [(
            "balancer".to_owned(),
            pb::Value { kind: Some(pb::value::Kind::StringValue("BytesInFlight".to_owned())) },
        )]
        .into(),
    };
    let mut cluster = foreign_cluster(cluster::DiscoveryType::Static, vec![]);
    cluster.metadata = Some(core::Metadata {
        filter_metadata: [(extension::KEY.to_owned(), fields)].into(),
        ..Default::default()
    });
    assert_eq!(service::decode(&cluster).unwrap().service.balancer, Balancer::BytesInFlight);
}

#[test]
fn places_that_are_not_on_earth_are_refused() {
    let nowhere = Location::at(Coordinates { latitude: 0.0, longitude: 180.5 });
    let mut service = Service::new("s", Protocol::Http1);
    let places = [("acme".to_owned(), nowhere.clone())].into();
    let registered = Registered { header: "x-tenant".to_owned(), places };
    service.prediction.origin = vec![OriginSource::Registered(registered)];
    let error = service::decode(&service::encode(&service)).unwrap_err().to_string();
    assert!(error.contains("prediction.origin"), "{error}");
    let DecodedListener { listener, .. } =
        listener::decode(&foreign_listener(&foreign_hcm())).unwrap();
    let listener = Listener { location: nowhere, ..Listener::clone(&listener) };
    let error = listener::decode(&listener::encode(&listener)).unwrap_err().to_string();
    assert!(error.contains("location.coordinates"), "{error}");
}

#[test]
fn regions_that_data_comes_from_are_told_of_with_the_first_locality_and_bounded() {
    let mut set = EndpointSet::new("s".into(), vec![Endpoint::new(([127, 0, 0, 1], 1).into())]);
    let origin = |n: usize| (n.to_string(), Region::default());
    set.origins = (0..EndpointSet::MOST_ORIGINS).map(origin).collect();
    let pb = endpoints::encode(&set);
    assert_eq!(
        pb.endpoints.len(),
        1,
        "no locality of theirs, which others would have to leave out"
    );
    assert_eq!(endpoints::decode(&pb).unwrap(), set);
    set.origins.extend([origin(EndpointSet::MOST_ORIGINS)]);
    let error = endpoints::decode(&endpoints::encode(&set)).unwrap_err().to_string();
    assert!(error.contains("origins"), "{error}");
    for odd in [
        Region { radius_kilometers: Some(0), ..Region::default() },
        Region { radius_kilometers: Some(20_001), ..Region::default() },
        Region {
            location: Location::at(Coordinates { latitude: 90.5, longitude: 0.0 }),
            ..Region::default()
        },
        Region { egress: [("*".to_owned(), -1.0)].into(), ..Region::default() },
    ] {
        set.origins = [("odd".to_owned(), odd)].into();
        assert!(endpoints::decode(&endpoints::encode(&set)).is_err(), "{set:?}");
    }
}

#[test]
fn envoy_goes_by_what_is_in_flight_or_by_weights_that_follow_the_load_and_not_by_both() {
    let bias = |weights| {
        let mut service = Service::new("s", Protocol::Http1);
        service.balancer = Balancer::LeastRequest;
        service.weights = weights;
        let first = upstream::encode_balancer(&service).policies.remove(0);
        let config = first.typed_extension_config.unwrap().typed_config.unwrap();
        let least: LeastRequest = common::unpack(&config).unwrap();
        least.active_request_bias.map(|bias| (bias.default_value, bias.runtime_key.is_empty()))
    };
    assert_eq!(bias(Weights::Declared), None);
    assert_eq!(bias(Weights::FromLoad), Some((0.0, false)));
}

#[test]
fn another_type_is_refused_by_name() {
    let any = Any { type_url: "type.googleapis.com/x".to_owned(), value: vec![] };
    let (name, decoded) = decode(ResourceKind::Listener, &any);
    assert_eq!(name, None);
    assert!(decoded.unwrap_err().to_string().contains("\"type.googleapis.com/x\""));
}

#[test]
fn what_a_foreign_server_redirects_is_understood_or_refused() {
    let tcp = |cluster: &str| lds::Filter {
        name: "tcp".to_owned(),
        config_type: Some(lds::filter::ConfigType::TypedConfig(common::pack(&TcpProxy {
            stat_prefix: "tcp".to_owned(),
            cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
            ..Default::default()
        }))),
    };
    let cidr = core::CidrRange {
        address_prefix: "10.96.1.2".to_owned(),
        prefix_len: common::u32_value(16),
    };
    let matches = lds::FilterChainMatch {
        destination_port: common::u32_value(5432),
        prefix_ranges: vec![cidr],
        transport_protocol: "raw_buffer".to_owned(),
        application_protocols: ["h2c", "http/1.1", "http/1.0"].map(str::to_owned).into(),
        ..Default::default()
    };
    let outbound = lds::Listener {
        name: "virtualOutbound".to_owned(),
        address: Some(common::address(([0, 0, 0, 0], 15_001).into())),
        use_original_dst: common::bool_value(true),
        filter_chains: vec![lds::FilterChain {
            filter_chain_match: Some(matches),
            filters: vec![tcp("db")],
            ..Default::default()
        }],
        default_filter_chain: Some(lds::FilterChain {
            filters: vec![tcp("PassthroughCluster")],
            ..Default::default()
        }),
        ..Default::default()
    };
    let decoded = listener::decode(&outbound).unwrap().listener;
    assert!(matches!(&decoded.bind, Bind::Redirected(r) if !r.transparent));
    let only = Only {
        port: Some(5432),
        networks: vec!["10.96.0.0/16".parse().unwrap()],
        speaks: Some(Speaks::Http),
    };
    assert_eq!(decoded.chains[0].only, only);
    assert!(decoded.chains[1].only.takes_all());
    type Change = fn(&mut lds::FilterChainMatch);
    let refused: [(Change, &str); 4] = [
        (|m| m.destination_port = common::u32_value(70_000), "destination_port: is no port"),
        (|m| m.prefix_ranges[0].prefix_len = common::u32_value(33), "33 is no length"),
        (|m| m.application_protocols.truncate(1), "application_protocols: only"),
        (|m| m.source_ports = vec![1], "filter_chain_match: only"),
    ];
    for (change, expected) in refused {
        let mut changed = outbound.clone();
        change(changed.filter_chains[0].filter_chain_match.as_mut().unwrap());
        let error = listener::decode(&changed).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    }
    let mut plain = outbound;
    plain.use_original_dst = None;
    assert!(listener::decode(&plain).is_err(), "of a plain listener destinations are not matched");

    let mut passthrough = foreign_cluster(cluster::DiscoveryType::OriginalDst, vec![]);
    passthrough.lb_policy = cluster::LbPolicy::ClusterProvided as i32;
    let decoded = service::decode(&passthrough).unwrap();
    assert_eq!(decoded.service.discovery, Discovery::OriginalDestination);
    assert_eq!(decoded.endpoints, EndpointSource::Resolved);
    let by_header = cluster::OriginalDstLbConfig { use_http_header: true, ..Default::default() };
    passthrough.lb_config = Some(cluster::LbConfig::OriginalDstLbConfig(by_header));
    assert!(service::decode(&passthrough).is_err());
}

/// Changes a listener that is otherwise good.
type Change<'a> = &'a dyn Fn(&mut lds::Listener);

fn takes(filter: &ProxyFilter) -> lds::ListenerFilter {
    let config = lds::listener_filter::ConfigType::TypedConfig(common::pack(filter));
    lds::ListenerFilter { config_type: Some(config), ..Default::default() }
}

fn introduced(pb: &mut lds::Listener) {
    pb.listener_filters.insert(0, takes(&ProxyFilter::default()));
}

fn comes_from(pb: &mut lds::Listener, networks: &[(&str, u32)]) {
    let range = |(address, prefix): &(&str, u32)| core::CidrRange {
        address_prefix: (*address).to_owned(),
        prefix_len: common::u32_value(*prefix),
    };
    let matches = pb.filter_chains[0].filter_chain_match.get_or_insert_default();
    matches.direct_source_prefix_ranges = networks.iter().map(range).collect();
}

fn two_chains(pb: &mut lds::Listener) {
    let mut chain = pb.filter_chains[0].clone();
    chain.filter_chain_match.get_or_insert_default().server_names = vec!["a.test".to_owned()];
    pb.filter_chains.push(chain);
}

#[test]
fn whose_word_is_taken_is_said_by_the_addresses_that_connections_may_come_from() {
    let optional =
        ProxyFilter { allow_requests_without_proxy_protocol: true, ..ProxyFilter::default() };
    let cases: [(Change<'_>, bool, &[&str]); 3] = [
        (&introduced, true, &["0.0.0.0/0", "::/0"]),
        (
            &|pb| {
                pb.listener_filters.push(takes(&optional));
                comes_from(pb, &[("10.1.2.3", 8), ("fd00::", 8)]);
            },
            false,
            &["10.0.0.0/8", "fd00::/8"],
        ),
        (
            &|pb| {
                introduced(pb);
                comes_from(pb, &[("10.0.0.0", 8)]);
                two_chains(pb);
            },
            true,
            &["10.0.0.0/8"],
        ),
    ];
    for (change, required, networks) in cases {
        let mut pb = foreign_listener(&foreign_hcm());
        change(&mut pb);
        let decoded = listener::decode(&pb).unwrap();
        let terms = decoded.listener.proxy_protocol.clone().unwrap();
        let trusted: Vec<_> = terms.trusted.iter().map(ToString::to_string).collect();
        assert_eq!(trusted, networks);
        assert_eq!(terms.required, required);
    }
}

#[test]
fn what_would_take_the_word_of_others_is_refused() {
    let old = ProxyFilter { disallowed_versions: vec![1], ..ProxyFilter::default() };
    let cases: [(Change<'_>, &str); 7] = [
        (
            &|pb| {
                pb.listener_filters.push(takes(&ProxyFilter::default()));
                let config = common::pack(&TlsInspector::default());
                let config = Some(lds::listener_filter::ConfigType::TypedConfig(config));
                let inspector = lds::ListenerFilter { config_type: config, ..Default::default() };
                pb.listener_filters.insert(0, inspector);
            },
            "must come first",
        ),
        (
            &|pb| {
                introduced(pb);
                two_chains(pb);
                comes_from(pb, &[("10.0.0.0", 8)]);
            },
            "the same in all chains",
        ),
        (&|pb| comes_from(pb, &[("10.0.0.0", 8)]), "only beside the PROXY protocol"),
        (
            &|pb| {
                introduced(pb);
                comes_from(pb, &[("10.0.0.0", 33)]);
            },
            "is not a network",
        ),
        (
            &|pb| {
                introduced(pb);
                comes_from(pb, &[("10.0.0.0", 8); 65]);
            },
            "too many networks",
        ),
        (&|pb| pb.listener_filters.push(takes(&old)), "disallowed_versions"),
        (
            &|pb| {
                introduced(pb);
                introduced(pb);
            },
            "not two",
        ),
    ];
    for (change, expected) in cases {
        let mut pb = foreign_listener(&foreign_hcm());
        change(&mut pb);
        let said = listener::decode(&pb).unwrap_err().to_string();
        assert!(said.contains(expected), "{expected}: {said}");
    }
}
