//! Arbitrary valid domain values.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use ipnetwork::IpNetwork;
use proptest::{
    collection::{btree_map, vec},
    option,
    prelude::*,
    sample::select,
};
use towpath_policies::model::*;

pub(crate) fn name() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9-]{0,8}(/[a-z0-9-]{1,8}){0,2}"
}

fn token() -> impl Strategy<Value = String> {
    "[a-z][a-z0-9-]{0,12}"
}

fn text() -> impl Strategy<Value = String> {
    "[ -~äß%]{1,24}"
}

fn duration() -> impl Strategy<Value = Duration> {
    prop_oneof![
        (1u64..10_000).prop_map(Duration::from_millis),
        (1u64..1_000_000, 0u32..1_000_000_000).prop_map(|(s, n)| Duration::new(s, n)),
    ]
}

fn address() -> impl Strategy<Value = SocketAddr> {
    prop_oneof![
        (any::<u32>(), any::<u16>()).prop_map(|(ip, port)| (Ipv4Addr::from(ip), port).into()),
        (any::<u128>(), any::<u16>()).prop_map(|(ip, port)| (Ipv6Addr::from(ip), port).into()),
    ]
}

fn coordinates() -> impl Strategy<Value = Coordinates> {
    (-90.0f64..=90.0, -180.0f64..=180.0)
        .prop_map(|(latitude, longitude)| Coordinates { latitude, longitude })
}

fn location() -> BoxedStrategy<Location> {
    (option::of(text()), option::of(coordinates()))
        .prop_map(|(place, coordinates)| Location { place, coordinates })
        .boxed()
}

fn path() -> impl Strategy<Value = String> {
    prop_oneof![Just("/".to_owned()), "(/[a-zA-Z0-9._~!$&'()*+,;=:@%-]{1,6}){1,3}"]
}

fn pattern() -> impl Strategy<Value = Pattern> {
    select(vec!["/a/.*", "[a-z]+", "(?i)x|y", "/v[0-9]+/items", ".*\\.json", "a{2,3}"])
        .prop_map(|text| Pattern::new(text).expect("a valid pattern"))
}

fn value_match() -> impl Strategy<Value = ValueMatch> {
    prop_oneof![
        text().prop_map(ValueMatch::Exact),
        pattern().prop_map(ValueMatch::Regex),
        Just(ValueMatch::Present),
    ]
}

fn header_edit() -> impl Strategy<Value = HeaderEdit> {
    let pairs = || vec((token(), text()), 0..3);
    (pairs(), pairs(), vec(token(), 0..2)).prop_map(|(set, add, remove)| HeaderEdit {
        set,
        add,
        remove,
    })
}

fn route_match() -> impl Strategy<Value = RouteMatch> {
    let path = prop_oneof![
        path().prop_map(PathMatch::Exact),
        path().prop_map(PathMatch::Prefix),
        pattern().prop_map(PathMatch::Regex),
    ];
    let method = option::of(select(vec!["GET", "POST", "DELETE"]).prop_map(str::to_owned));
    let headers = vec((token(), value_match()), 0..3);
    let query = vec((token(), value_match()), 0..3);
    (path, method, headers, query, any::<bool>()).prop_map(
        |(path, method, headers, query, grpc)| RouteMatch { path, method, headers, query, grpc },
    )
}

fn path_rewrite() -> impl Strategy<Value = PathRewrite> {
    prop_oneof![path().prop_map(PathRewrite::Full), path().prop_map(PathRewrite::Prefix)]
}

fn backends(edited: bool) -> impl Strategy<Value = Vec<WeightedBackend>> {
    let edit =
        move || if edited { header_edit().boxed() } else { Just(HeaderEdit::default()).boxed() };
    let one = (name(), 1u32..1000, edit(), edit()).prop_map(
        |(service, weight, request_headers, response_headers)| WeightedBackend {
            service,
            weight,
            request_headers,
            response_headers,
        },
    );
    vec(one, 1..4)
}

fn retry_condition() -> impl Strategy<Value = RetryCondition> {
    prop_oneof![
        Just(RetryCondition::ConnectFailure),
        Just(RetryCondition::RefusedStream),
        Just(RetryCondition::Reset),
        Just(RetryCondition::Timeout),
        Just(RetryCondition::Stall),
        vec(400u16..600, 1..4).prop_map(RetryCondition::Status),
        vec(0u32..17, 1..4).prop_map(RetryCondition::GrpcStatus),
    ]
}

fn retry_policy() -> impl Strategy<Value = RetryPolicy> {
    let whole = (
        0u32..5,
        vec(retry_condition(), 0..4),
        option::of(duration()),
        duration(),
        duration(),
        0u64..1 << 50,
        any::<bool>(),
        any::<bool>(),
    )
        .prop_map(|(attempts, on, per_try_timeout, base, max, replay, key, resume)| {
            RetryPolicy {
                attempts,
                on,
                per_try_timeout,
                backoff_base: base,
                backoff_max: max,
                replay_limit_bytes: replay,
                replay_disk_limit_bytes: replay * 7,
                mint_idempotency_key: !key,
                with_idempotency_key: key,
                resume_downloads: resume,
            }
        });
    prop_oneof![Just(RetryPolicy::default()), whole]
}

fn transfer() -> impl Strategy<Value = Transfer> {
    let tenant = prop_oneof![Just(TenantKey::ClientAddress), token().prop_map(TenantKey::Header)];
    let algorithm = select(vec![DigestAlgorithm::Sha256, DigestAlgorithm::Sha512]);
    let integrity = (any::<bool>(), any::<bool>(), algorithm)
        .prop_map(|(make, check, algorithm)| Integrity { make, check, algorithm });
    let stall =
        (1u64..1 << 40, duration()).prop_map(|(below_bytes, time)| Stall { below_bytes, time });
    let limits =
        (rate_limit(), rate_limit()).prop_map(|(route, tenant)| RateLimits { route, tenant });
    let tries = (option::of(stall), option::of(hedge()), any::<bool>());
    let limits = (limits, option::of(0u64..1 << 53));
    (select(Class::ALL.to_vec()), option::of(tenant), integrity, tries, limits).prop_map(
        |(class, tenant, integrity, (stall, hedge, resume_uploads), limits)| Transfer {
            class,
            tenant,
            integrity,
            stall,
            hedge,
            limits: limits.0,
            max_request_bytes: limits.1,
            resume_uploads,
        },
    )
}

fn hedge() -> impl Strategy<Value = Hedge> {
    let after = prop_oneof![
        (50u32..=99).prop_map(HedgeAfter::Percentile),
        duration().prop_map(HedgeAfter::Time)
    ];
    (after, 0u64..1 << 40, any::<u32>()).prop_map(|(after, max_bytes, min_samples)| Hedge {
        after,
        max_bytes,
        min_samples,
    })
}

fn rate_limit() -> impl Strategy<Value = RateLimit> {
    let rate = || {
        option::of((1u64..1 << 53, 1u64..1 << 53))
            .prop_map(|rate| rate.map(|(per_second, burst)| Rate { per_second, burst }))
    };
    (rate(), rate()).prop_map(|(requests, bytes)| RateLimit { requests, bytes })
}

fn action() -> impl Strategy<Value = Action> {
    let host = prop_oneof![Just(HostRewrite::Keep), token().prop_map(HostRewrite::Literal)];
    let mirror = (name(), 0u32..=1_000_000)
        .prop_map(|(service, parts_per_million)| Mirror { service, parts_per_million });
    let forward = (
        backends(true),
        host,
        option::of(path_rewrite()),
        vec(mirror, 0..3),
        option::of(duration()),
        option::of(duration()),
        retry_policy(),
        transfer(),
    )
        .prop_map(|(backends, host, path, mirrors, timeout, idle_timeout, retry, transfer)| {
            Forward { backends, host, path, mirrors, timeout, idle_timeout, retry, transfer }
        });
    let redirect = (
        option::of(select(vec!["http", "https"]).prop_map(str::to_owned)),
        option::of(token()),
        option::of(1u16..),
        option::of(path_rewrite()),
        select(vec![301u16, 302, 303, 307, 308]),
    )
        .prop_map(|(scheme, host, port, path, status)| Redirect {
            scheme,
            host,
            port,
            path,
            status,
        });
    let respond =
        (200u16..600, "[ -~]{0,40}").prop_map(|(status, body)| DirectResponse { status, body });
    prop_oneof![
        3 => forward.prop_map(Action::Forward),
        1 => redirect.prop_map(Action::Redirect),
        1 => respond.prop_map(Action::Respond),
    ]
}

fn route() -> impl Strategy<Value = Route> {
    (name(), route_match(), action(), header_edit(), header_edit()).prop_map(
        |(name, matches, action, request_headers, response_headers)| Route {
            name,
            matches,
            action,
            request_headers,
            response_headers,
        },
    )
}

pub(crate) fn route_table() -> impl Strategy<Value = RouteTable> {
    (name(), vec((name(), any::<bool>(), vec(route(), 0..4)), 0..3)).prop_map(|(name, hosts)| {
        let hosts = hosts.into_iter().enumerate().map(|(i, (name, wild, routes))| VirtualHost {
            name,
            domains: match (i, wild) {
                (0, true) => vec!["*".to_owned()],
                (_, true) => vec![format!("h{i}.example"), format!("*.h{i}.example")],
                (_, false) => vec![format!("h{i}.example")],
            },
            routes,
        });
        RouteTable { name, virtual_hosts: hosts.collect() }
    })
}

fn http_options() -> impl Strategy<Value = HttpOptions> {
    let forwarded =
        select(vec![ForwardedHeader::Off, ForwardedHeader::XForwarded, ForwardedHeader::Rfc7239]);
    let whole = (
        1u32..20_000_000,
        1u32..1000,
        duration(),
        duration(),
        1u32..10_000,
        option::of(token()),
        forwarded,
        (any::<bool>(), any::<bool>()),
    )
        .prop_map(
            |(
                head,
                headers,
                head_timeout,
                idle_timeout,
                streams,
                via,
                forwarded,
                (reports, http10),
            )| {
                HttpOptions {
                    max_head_bytes: head,
                    max_headers: headers,
                    head_timeout,
                    idle_timeout,
                    max_concurrent_streams: streams,
                    via,
                    forwarded,
                    reports_load: reports,
                    http10,
                }
            },
        );
    prop_oneof![Just(HttpOptions::default()), whole]
}

fn http_chain() -> impl Strategy<Value = ChainKind> {
    (name(), http_options())
        .prop_map(|(route_table, options)| ChainKind::Http { route_table, options })
}

fn chain_kind() -> impl Strategy<Value = ChainKind> {
    let tcp = (backends(false), option::of(duration()))
        .prop_map(|(backends, idle_timeout)| ChainKind::Tcp(TcpForward { backends, idle_timeout }));
    prop_oneof![http_chain(), tcp]
}

fn tls_server() -> impl Strategy<Value = TlsServer> {
    (select(vec![vec![], vec!["h2", "http/1.1"]]), any::<bool>()).prop_map(|(alpn, two)| {
        TlsServer {
            certificate_file: "/etc/towpath/tls.crt".into(),
            private_key_file: "/etc/towpath/tls.key".into(),
            second: two.then(|| KeyFiles {
                certificate_file: "/etc/towpath/rsa.crt".into(),
                private_key_file: "/etc/towpath/rsa.key".into(),
            }),
            alpn: alpn.into_iter().map(str::to_owned).collect(),
        }
    })
}

fn proxy_protocol() -> impl Strategy<Value = ProxyProtocol> {
    let networks =
        ["0.0.0.0/0", "::/0", "10.0.0.0/8", "192.0.2.7/32", "fd00::/8", "2001:db8::1/128"];
    let networks: Vec<IpNetwork> = networks.iter().filter_map(|n| n.parse().ok()).collect();
    (any::<bool>(), vec(select(networks), 1..4))
        .prop_map(|(required, trusted)| ProxyProtocol { required, trusted })
}

pub(crate) fn listener() -> impl Strategy<Value = Listener> {
    let chains = vec((option::of(tls_server()), chain_kind(), any::<bool>()), 1..4);
    let socket = (name(), address(), chains, location(), option::of(proxy_protocol()));
    let socket = socket.prop_map(|(name, socket, chains, location, proxy_protocol)| Listener {
        name,
        bind: Bind::Socket(socket),
        chains: chains
            .into_iter()
            .enumerate()
            .map(|(i, (tls, kind, two))| {
                let server_names = match (i, two) {
                    (0, true) => vec![],
                    (_, true) => vec![format!("c{i}.example"), format!("*.c{i}.example")],
                    (_, false) => vec![format!("c{i}.example")],
                };
                Chain::new(server_names, tls, kind)
            })
            .collect(),
        location,
        proxy_protocol,
    });
    let api = (name(), http_chain(), location()).prop_map(|(name, kind, location)| Listener {
        name,
        bind: Bind::Api,
        chains: vec![Chain::new(vec![], None, kind)],
        location,
        proxy_protocol: None,
    });
    // Boxed: all of it on one stack would not fit a test's thread.
    prop_oneof![4 => socket.boxed(), 4 => redirected(), 1 => api.boxed()].boxed()
}

/// Connections that were made to other addresses; each chain has a port of its own, so that none takes what
/// another does.
fn redirected() -> BoxedStrategy<Listener> {
    let speaks = option::of(select(vec![Speaks::Http, Speaks::Tls]));
    let names = vec(token().prop_map(|name| format!("{name}.example")), 0..3);
    let chain = (names, option::of(tls_server()), chain_kind(), vec(network(), 0..4), speaks);
    let ports = vec(any::<u16>(), 0..=Redirected::MOST_PORTS);
    let bind = (address(), any::<bool>(), ports, any::<bool>()).prop_map(
        |(address, transparent, opaque_ports, tunnels)| Redirected {
            address,
            transparent,
            opaque_ports,
            tunnels,
        },
    );
    let rest = option::of((option::of(tls_server()), chain_kind())).boxed();
    let (bind, chain) = (bind.boxed(), chain.boxed());
    (name(), bind, vec(chain, 1..4), rest, location())
        .prop_map(|(name, bind, chains, rest, location)| {
            let mut chains: Vec<Chain> = (0u16..)
                .zip(chains)
                .map(|(i, (names, tls, kind, networks, speaks))| Chain {
                    only: Only { port: (i > 0).then_some(i), networks, speaks },
                    ..Chain::new(names, tls, kind)
                })
                .collect();
            chains.retain(|chain| !chain.only.takes_all() || !chain.server_names.is_empty());
            let rest = rest.or_else(|| chains.is_empty().then(|| (None, http_of("rest"))));
            chains.extend(rest.map(|(tls, kind)| Chain::new(vec![], tls, kind)));
            let bind = Bind::Redirected(bind);
            Listener { name, bind, chains, location, proxy_protocol: None }
        })
        .boxed()
}

fn http_of(table: &str) -> ChainKind {
    ChainKind::Http { route_table: table.to_owned(), options: HttpOptions::default() }
}

fn network() -> impl Strategy<Value = IpNetwork> {
    let four = (any::<u32>(), 0u8..=32)
        .prop_map(|(ip, length)| IpNetwork::new(Ipv4Addr::from(ip).into(), length));
    let six = (any::<u128>(), 0u8..=128)
        .prop_map(|(ip, length)| IpNetwork::new(Ipv6Addr::from(ip).into(), length));
    prop_oneof![four, six].prop_map(|network| {
        let network = network.expect("a length there is");
        IpNetwork::new(network.network(), network.prefix()).expect("the same length")
    })
}

fn thresholds() -> impl Strategy<Value = Thresholds> {
    let limit = || option::of(0u32..u32::MAX);
    (limit(), limit(), limit(), option::of(0u64..1 << 53)).prop_map(
        |(max_connections, max_requests, max_pending, max_bytes_in_flight)| Thresholds {
            max_connections,
            max_requests,
            max_pending,
            max_bytes_in_flight,
        },
    )
}

fn health_check() -> impl Strategy<Value = HealthCheck> {
    let probe = prop_oneof![
        (path(), option::of(token())).prop_map(|(path, host)| HealthProbe::Http { path, host }),
        "[a-z.]{0,12}".prop_map(|service| HealthProbe::Grpc { service }),
        Just(HealthProbe::Tcp),
    ];
    (probe, duration(), duration(), 1u32..10, 1u32..10).prop_map(
        |(probe, interval, timeout, unhealthy_threshold, healthy_threshold)| HealthCheck {
            probe,
            interval,
            timeout,
            unhealthy_threshold,
            healthy_threshold,
        },
    )
}

fn outlier() -> impl Strategy<Value = Outlier> {
    let rate = (1u32..10_000, 1u32..=100, 0u32..5_000).prop_map(
        |(min_requests, margin_percent, deviation_permille)| SuccessRate {
            min_requests,
            margin_percent,
            deviation_permille,
        },
    );
    let latency = (1u32..10_000, 101u32..10_000, duration()).prop_map(
        |(min_requests, above_percent, margin)| Latency { min_requests, above_percent, margin },
    );
    let goodput =
        (1u32..=90, duration(), 1u64..1 << 40).prop_map(|(below_percent, window, min_bytes)| {
            Goodput { below_percent, window, min_bytes }
        });
    (
        (1u32..100, duration(), duration(), 0u32..=100, duration(), 2u32..1_000),
        (option::of(rate), option::of(latency), option::of(goodput)),
    )
        .prop_map(
            |(
                (failures, base_ejection, max_ejection, max_ejected_percent, interval, min),
                (success_rate, latency, goodput),
            )| Outlier {
                consecutive_failures: failures,
                base_ejection,
                max_ejection,
                max_ejected_percent,
                interval,
                min_endpoints: min,
                success_rate,
                latency,
                goodput,
            },
        )
}

fn recovery() -> impl Strategy<Value = Recovery> {
    (duration(), 1u32..=100, 0u32..=100).prop_map(|(slow_start, floor, panic_percent)| Recovery {
        slow_start,
        slow_start_floor_percent: floor,
        panic_percent,
    })
}

fn admission() -> impl Strategy<Value = Admission> {
    let weights = || {
        (1u32..=1000, 1u32..=1000, 1u32..=1000).prop_map(|(interactive, bulk, background)| {
            ClassWeights { interactive, bulk, background }
        })
    };
    let bandwidth = (1u64..1 << 53, weights())
        .prop_map(|(bytes_per_second, weights)| Bandwidth { bytes_per_second, weights });
    let queue = (1u32..100, 1u32..=1_000_000, 0u64..1 << 50, duration(), weights()).prop_map(
        |(slots, max_requests, max_bytes, max_wait, weights)| Queue {
            slots,
            max_requests,
            max_bytes,
            max_wait,
            weights,
        },
    );
    let stream_age =
        (duration(), 0u32..=50).prop_map(|(max, jitter_percent)| StreamAge { max, jitter_percent });
    let adaptive = (1u32..1000, 1000u32..=100_000, 120u32..=1000).prop_map(
        |(min_requests, max_requests, tolerance_percent)| AdaptiveConcurrency {
            min_requests,
            max_requests,
            tolerance_percent,
        },
    );
    (option::of(queue), option::of(bandwidth), option::of(stream_age), option::of(adaptive))
        .prop_map(|(queue, bandwidth, stream_age, adaptive_concurrency)| Admission {
            queue,
            bandwidth,
            stream_age,
            adaptive_concurrency,
        })
}

/// On the heap: the strategies that this one is a part of are large, and the stack of a test is not.
fn prediction() -> BoxedStrategy<Prediction> {
    let factor = || select(vec![0.0, 0.25, 1.0, 100.0]);
    let rate = || select(vec![0.0, 0.5, 1_000_000.0]);
    let factors = (factor(), factor(), factor(), factor(), factor());
    let terms = (factors, rate(), rate()).prop_map(
        |((network, transfer, queue, health, failures), carbon, price)| Terms {
            network,
            transfer,
            queue,
            health,
            failures,
            carbon,
            price,
        },
    );
    let registered = (token(), btree_map(token(), location(), 0..4))
        .prop_map(|(header, places)| OriginSource::Registered(Registered { header, places }));
    let source = prop_oneof![
        token().prop_map(OriginSource::Header),
        registered,
        Just(OriginSource::ClientAddress),
    ];
    let sources = vec(source, 0..4);
    let joules = select(vec![Prediction::DEFAULT_JOULES, 0.0, 12.5, Prediction::MOST_JOULES]);
    (sources, terms, joules)
        .prop_map(|(origin, terms, joules_per_gigabyte)| Prediction {
            origin,
            terms,
            joules_per_gigabyte,
        })
        .boxed()
}

fn hashing() -> impl Strategy<Value = Hashing> {
    let key = prop_oneof![
        token().prop_map(KeySource::Header),
        (1..=KeySource::LAST_SEGMENT).prop_map(KeySource::PathSegment),
        token().prop_map(KeySource::Query),
        Just(KeySource::ClientAddress),
    ];
    let ring = select(vec![(1_024, Hashing::MOST_ON_RING), (1, 1), (5_000, 100_000)]);
    (option::of(key), option::of(100u32..=1000), select(vec![65_537u32, 2, 4_999_999]), ring)
        .prop_map(|(key, load_bound_percent, table_size, ring_size)| Hashing {
            key,
            load_bound_percent,
            table_size,
            ring_size,
        })
}

fn weighing() -> impl Strategy<Value = Weighing> {
    let metrics = vec(token().prop_map(|name| format!("named_metrics.{name}")), 0..3);
    let update = select(vec![100u64, 1_000, 60_000]).prop_map(Duration::from_millis);
    let penalty = prop_oneof![Just(1.0f32), 0.0f32..100.0];
    (metrics, duration(), duration(), update, penalty).prop_map(
        |(metrics, blackout, expiration, update_period, error_penalty)| Weighing {
            metrics,
            blackout,
            expiration,
            update_period,
            error_penalty,
        },
    )
}

/// On the heap: what all of a service takes is much of a test's stack.
fn balancing() -> BoxedStrategy<Balancing> {
    let balancer = select(vec![
        Balancer::BytesInFlight,
        Balancer::CompletionTime,
        Balancer::LeastRequest,
        Balancer::RoundRobin,
        Balancer::Random,
        Balancer::Maglev,
        Balancer::RingHash,
        Balancer::WeightedRoundRobin,
    ]);
    let interval = select(vec![100u64, 1_000, 10_000, 3_600_000]).prop_map(Duration::from_millis);
    let weights = select(vec![Weights::Declared, Weights::FromLoad]);
    let weighing = (weights, weighing(), option::of(interval));
    (balancer, prediction(), hashing(), weighing, proptest::bool::ANY).boxed()
}

type Balancing = (Balancer, Prediction, Hashing, (Weights, Weighing, Option<Duration>), bool);

fn breaker() -> impl Strategy<Value = Breaker> {
    (thresholds(), thresholds()).prop_map(|(service, endpoint)| Breaker { service, endpoint })
}

pub(crate) fn service() -> impl Strategy<Value = Service> {
    let protocol = select(vec![Protocol::Http1, Protocol::Http2, Protocol::Follow, Protocol::Tcp]);
    let discovery = prop_oneof![
        Just(Discovery::Listed),
        Just(Discovery::OriginalDestination),
        (token(), any::<u16>(), 1u64..100).prop_map(|(host, port, s)| Discovery::Dns {
            host,
            port,
            refresh: Duration::from_secs(s)
        }),
    ];
    let tls = (token(), option::of(Just("/etc/ca.pem".into())))
        .prop_map(|(server_name, ca_file)| UpstreamTls { server_name, ca_file });
    let balancing = balancing();
    let budget = (0u32..200, 0u32..100)
        .prop_map(|(percent, min_concurrent)| BudgetShare { percent, min_concurrent });
    (
        (name(), protocol, discovery, option::of(tls), balancing, breaker()),
        (
            option::of(outlier()),
            recovery(),
            option::of(health_check()),
            duration(),
            duration(),
            budget,
            (admission(), option::of(select(vec![ProxyVersion::V1, ProxyVersion::V2]))),
        ),
    )
        .prop_map(
            |(
                (
                    name,
                    protocol,
                    discovery,
                    tls,
                    (balancer, prediction, hashing, (weights, weighing, out_of_band), by_locality),
                    breaker,
                ),
                (
                    outlier,
                    recovery,
                    health_check,
                    connect_timeout,
                    pool_idle_timeout,
                    retry_budget,
                    (admission, proxy_protocol),
                ),
            )| Service {
                proxy_protocol,
                name,
                protocol,
                discovery,
                tls,
                balancer,
                weights,
                prediction,
                hashing,
                weighing,
                out_of_band,
                by_locality,
                breaker,
                outlier,
                recovery,
                admission,
                health_check,
                connect_timeout,
                pool_idle_timeout,
                retry_budget,
            },
        )
}

fn region() -> impl Strategy<Value = Region> {
    let carbon = option::of(0.0..=Region::MOST_CARBON);
    let prices = btree_map(select(vec!["*", "eu-west", "ap"]), 0.0..=Region::MOST_CENTS, 0..3);
    let radius = option::of(1..=Region::MOST_KILOMETERS);
    (carbon, option::of(token()), prices, location(), radius).prop_map(
        |(carbon_intensity, electricity_maps_zone, prices, location, radius_kilometers)| Region {
            carbon_intensity,
            electricity_maps_zone,
            egress: prices.into_iter().map(|(to, cents)| (to.to_owned(), cents)).collect(),
            location,
            radius_kilometers,
        },
    )
}

fn endpoint() -> impl Strategy<Value = Endpoint> {
    let locality = select(vec![("", ""), ("us-east", "a"), ("us-east", "b"), ("eu-west", "a")])
        .prop_map(|(region, zone)| Locality {
            region: region.to_owned(),
            zone: zone.to_owned(),
            sub_zone: String::new(),
        });
    let gpu = (select(vec!["amd", "nvidia"]), token(), 1u32..9)
        .prop_map(|(vendor, model, count)| Gpu { vendor: vendor.to_owned(), model, count });
    let health =
        select(vec![Health::Unknown, Health::Healthy, Health::Unhealthy, Health::Draining]);
    let rest = (option::of(gpu), option::of(1u32..100), option::of(token()), any::<bool>());
    (
        address(),
        option::of(token()),
        locality,
        option::of(coordinates()),
        (1u32..=1_000_000, option::of(1u32..=1_000_000)),
        0u32..4,
        health,
        rest,
    )
        .prop_map(|(address, name, locality, coordinates, weights, priority, health, rest)| {
            let plain = Endpoint::new(address);
            Endpoint {
                name: name.unwrap_or(plain.name),
                address,
                locality,
                place: rest.2,
                coordinates,
                weight: weights.0,
                declared_weight: weights.1,
                priority,
                health,
                gpu: rest.0,
                slots: rest.1,
                tunnel: rest.3,
            }
        })
}

pub(crate) fn endpoint_set() -> impl Strategy<Value = EndpointSet> {
    let described = btree_map(select(vec!["us-east", "eu-west", "ap", "moon"]), region(), 0..4);
    let percent = option::of(1u32..1000);
    let parts = vec(option::of(0u32..1_000_000), 8);
    (name(), vec(endpoint(), 0..8), percent, parts, described).prop_map(
        |(service, list, percent, parts, described)| {
            let mut endpoints: Vec<Endpoint> = Vec::new();
            for endpoint in list {
                if endpoints.iter().all(|e| e.address != endpoint.address) {
                    endpoints.push(endpoint);
                }
            }
            let standing: BTreeSet<_> =
                endpoints.iter().map(|e| (e.priority, &e.locality)).collect();
            let named = |((priority, locality), weight): ((u32, &Locality), Option<u32>)| {
                let there = |e: &&Endpoint| e.priority == priority && e.locality == *locality;
                let usual = endpoints.iter().filter(there).map(|e| e.weight).sum();
                // Often what it would be if nothing were said.
                let weight = weight.map(|weight| if weight % 3 == 0 { usual } else { weight })?;
                Some(LocalityWeight { priority, locality: locality.clone(), weight })
            };
            let localities = standing.into_iter().zip(parts).filter_map(named).collect();
            let spread = Spread { overprovisioning_percent: percent, localities };
            let stands = |region: &str| endpoints.iter().any(|e| e.locality.region == region);
            let described = described.into_iter().map(|(name, region)| (name.to_owned(), region));
            let (regions, mut origins): (BTreeMap<_, _>, BTreeMap<_, _>) =
                described.partition(|(name, _)| stands(name));
            if endpoints.is_empty() {
                origins.clear();
            }
            EndpointSet { service, endpoints, regions, origins, spread }
        },
    )
}
