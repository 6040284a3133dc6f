//! Parts of a cluster: protocol, limits, outliers, probes, balancing.

use std::{collections::HashMap, time::Duration};

use envoy_types::pb::{
    envoy::{
        config::{
            cluster::v3::{
                self as cds, CircuitBreakers, LoadBalancingPolicy,
                circuit_breakers::{Thresholds as PbThresholds, thresholds::RetryBudget},
                cluster::{LbPolicy, common_lb_config::LocalityConfigSpecifier},
                load_balancing_policy::Policy,
            },
            core::v3::{
                self as core, Http1ProtocolOptions, Http2ProtocolOptions,
                HttpProtocolOptions as CommonOptions, RuntimeDouble, TypedExtensionConfig,
                health_check::{GrpcHealthCheck, HealthChecker, HttpHealthCheck, TcpHealthCheck},
            },
        },
        extensions::{
            load_balancing_policies::{
                common::v3::{
                    LocalityLbConfig,
                    locality_lb_config::{
                        LocalityConfigSpecifier as Specifier, LocalityWeightedLbConfig,
                    },
                },
                least_request::v3::LeastRequest,
                random::v3::Random,
                round_robin::v3::RoundRobin,
                wrr_locality::v3::WrrLocality,
            },
            upstreams::http::v3::{
                HttpProtocolOptions,
                http_protocol_options::{
                    ExplicitHttpConfig, UpstreamProtocolOptions, UseDownstreamHttpConfig,
                    explicit_http_config::ProtocolConfig,
                },
            },
        },
        r#type::v3::{CodecClientType, Int64Range, Percent},
    },
    google::protobuf::Any,
};
use prost::Name;
use towpath_policies::model::{
    Balancer, Breaker, BudgetShare, Hashing, HealthCheck, HealthProbe, Protocol, Service,
    Thresholds, Weighing, Weights,
};

use super::{
    common::{
        At, Result, duration, optional_duration, pack, read_u32, refuse, refuse_if, u32_value,
        unpack,
    },
    extension::{typed_struct, typed_struct_url},
    hashing,
    outlier::encode_slow_start,
    weighing,
};

/// HTTP version and pool options, under their fixed key; none for opaque bytes.
pub(super) fn encode_protocol(service: &Service) -> HashMap<String, Any> {
    let http1 = Http1ProtocolOptions::default;
    let http2 = Http2ProtocolOptions::default;
    let explicit = |config| {
        UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(config),
        })
    };
    let protocol = match service.protocol {
        Protocol::Tcp => return HashMap::new(),
        Protocol::Http1 => explicit(ProtocolConfig::HttpProtocolOptions(http1())),
        Protocol::Http2 => explicit(ProtocolConfig::Http2ProtocolOptions(http2())),
        Protocol::Follow => {
            UpstreamProtocolOptions::UseDownstreamProtocolConfig(UseDownstreamHttpConfig {
                http_protocol_options: Some(http1()),
                http2_protocol_options: Some(http2()),
                ..Default::default()
            })
        }
    };
    let options = HttpProtocolOptions {
        common_http_protocol_options: Some(CommonOptions {
            idle_timeout: Some(duration(service.pool_idle_timeout)),
            ..Default::default()
        }),
        upstream_protocol_options: Some(protocol),
        ..Default::default()
    };
    HashMap::from([(HTTP_OPTIONS.to_owned(), pack(&options))])
}

/// Protocol and idle timeout of pooled connections.
pub(super) fn decode_protocol(pb: &cds::Cluster) -> Result<(Protocol, Duration)> {
    let Some(any) = pb.typed_extension_protocol_options.get(HTTP_OPTIONS) else {
        #[expect(deprecated, reason = "older servers still write it")]
        let http2 = pb.http2_protocol_options.is_some();
        return Ok((if http2 { Protocol::Http2 } else { Protocol::Http1 }, DEFAULT_POOL_IDLE));
    };
    let options: HttpProtocolOptions = unpack(any).at(HTTP_OPTIONS)?;
    refuse_if(
        options.http_filters.iter().any(|f| !f.name.ends_with(".upstream_codec") && !f.is_optional),
        "http_filters",
        "upstream filters are not supported",
    )?;
    let protocol = match options.upstream_protocol_options {
        Some(UpstreamProtocolOptions::ExplicitHttpConfig(explicit)) => {
            match explicit.protocol_config {
                Some(ProtocolConfig::Http2ProtocolOptions(_)) => Protocol::Http2,
                Some(ProtocolConfig::Http3ProtocolOptions(_)) => {
                    return refuse("HTTP/3 is not supported").at(HTTP_OPTIONS);
                }
                Some(ProtocolConfig::HttpProtocolOptions(_)) | None => Protocol::Http1,
            }
        }
        Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(_)) => Protocol::Follow,
        // Chosen by ALPN; HTTP/1.1 is what every such server speaks.
        Some(UpstreamProtocolOptions::AutoConfig(_)) | None => Protocol::Http1,
    };
    let common = options.common_http_protocol_options.unwrap_or_default();
    let idle = match optional_duration(common.idle_timeout.as_ref(), "idle_timeout")? {
        Some(Duration::ZERO) | None => DEFAULT_POOL_IDLE,
        Some(idle) => idle,
    };
    Ok((protocol, idle))
}

/// Limits. Envoy counts no bytes; those limits ride as metadata.
pub(super) fn encode_breakers(breaker: &Breaker, budget: BudgetShare) -> CircuitBreakers {
    let limit = |limit: Option<u32>| u32_value(limit.unwrap_or(u32::MAX));
    let whole = PbThresholds {
        max_connections: limit(breaker.service.max_connections),
        max_pending_requests: limit(breaker.service.max_pending),
        max_requests: limit(breaker.service.max_requests),
        retry_budget: Some(RetryBudget {
            budget_percent: Some(Percent { value: budget.percent.into() }),
            min_retry_concurrency: u32_value(budget.min_concurrent),
            ..Default::default()
        }),
        ..Default::default()
    };
    // Envoy knows connections per host only.
    let each = breaker
        .endpoint
        .max_connections
        .map(|max| PbThresholds { max_connections: u32_value(max), ..Default::default() });
    CircuitBreakers { thresholds: vec![whole], per_host_thresholds: each.into_iter().collect() }
}

pub(super) fn decode_breakers(pb: Option<&CircuitBreakers>) -> (Breaker, BudgetShare) {
    let normal = |list: &[PbThresholds]| list.iter().find(|t| t.priority == 0).cloned();
    let whole = pb.and_then(|b| normal(&b.thresholds)).unwrap_or_default();
    let each = pb.and_then(|b| normal(&b.per_host_thresholds)).unwrap_or_default();
    // Envoy's default limit is 1,024, and its largest number means none.
    let limit = |value: Option<u32>| Some(value.unwrap_or(1_024)).filter(|v| *v != u32::MAX);
    let breaker = Breaker {
        service: Thresholds {
            max_connections: limit(read_u32(whole.max_connections.as_ref())),
            max_requests: limit(read_u32(whole.max_requests.as_ref())),
            max_pending: limit(read_u32(whole.max_pending_requests.as_ref())),
            max_bytes_in_flight: None,
        },
        endpoint: Thresholds {
            max_connections: read_u32(each.max_connections.as_ref()).filter(|v| *v != u32::MAX),
            ..Thresholds::default()
        },
    };
    let budget = match &whole.retry_budget {
        Some(budget) => BudgetShare {
            percent: budget.budget_percent.map_or(20, |p| whole_percent(p.value)),
            min_concurrent: read_u32(budget.min_retry_concurrency.as_ref()).unwrap_or(3),
        },
        None => BudgetShare {
            percent: 0,
            min_concurrent: read_u32(whole.max_retries.as_ref()).unwrap_or(3),
        },
    };
    (breaker, budget)
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped before")]
pub(super) fn whole_percent(value: f64) -> u32 {
    // A NaN becomes 0.
    value.clamp(0.0, f64::from(u32::MAX)).round() as u32
}

pub(super) fn encode_health_check(check: &HealthCheck, protocol: Protocol) -> core::HealthCheck {
    let checker = match &check.probe {
        HealthProbe::Http { path, host } => HealthChecker::HttpHealthCheck(HttpHealthCheck {
            path: path.clone(),
            host: host.clone().unwrap_or_default(),
            expected_statuses: vec![Int64Range { start: 200, end: 300 }],
            codec_client_type: match protocol {
                Protocol::Http2 => CodecClientType::Http2 as i32,
                _ => CodecClientType::Http1 as i32,
            },
            ..Default::default()
        }),
        HealthProbe::Grpc { service } => HealthChecker::GrpcHealthCheck(GrpcHealthCheck {
            service_name: service.clone(),
            ..Default::default()
        }),
        HealthProbe::Tcp => HealthChecker::TcpHealthCheck(TcpHealthCheck::default()),
    };
    core::HealthCheck {
        timeout: Some(duration(check.timeout)),
        interval: Some(duration(check.interval)),
        // Envoy would probe a service without traffic once a minute.
        no_traffic_interval: Some(duration(check.interval)),
        unhealthy_threshold: u32_value(check.unhealthy_threshold),
        healthy_threshold: u32_value(check.healthy_threshold),
        health_checker: Some(checker),
        ..Default::default()
    }
}

pub(super) fn decode_health_check(checks: &[core::HealthCheck]) -> Result<Option<HealthCheck>> {
    let pb = match checks {
        [] => return Ok(None),
        [only] => only,
        _ => return refuse("only one health check is supported"),
    };
    let probe = match &pb.health_checker {
        Some(HealthChecker::HttpHealthCheck(http)) => {
            let plain = http.expected_statuses.iter().all(|r| r.start >= 200 && r.end <= 300);
            refuse_if(!plain, "expected_statuses", "only 2xx is supported")?;
            refuse_if(http.send.is_some(), "send", "is not supported")?;
            HealthProbe::Http {
                path: http.path.clone(),
                host: (!http.host.is_empty()).then(|| http.host.clone()),
            }
        }
        Some(HealthChecker::GrpcHealthCheck(grpc)) => {
            HealthProbe::Grpc { service: grpc.service_name.clone() }
        }
        Some(HealthChecker::TcpHealthCheck(tcp)) => {
            refuse_if(
                tcp.send.is_some() || !tcp.receive.is_empty(),
                "tcp_health_check",
                "only connecting is supported",
            )?;
            HealthProbe::Tcp
        }
        Some(HealthChecker::CustomHealthCheck(_)) | None => {
            return refuse("only http, grpc and tcp health checks are supported");
        }
    };
    let interval = optional_duration(pb.interval.as_ref(), "interval")?;
    let timeout = optional_duration(pb.timeout.as_ref(), "timeout")?;
    let positive = |d: Option<Duration>, default| d.filter(|d| !d.is_zero()).unwrap_or(default);
    Ok(Some(HealthCheck {
        probe,
        interval: positive(interval, Duration::from_secs(10)),
        timeout: positive(timeout, Duration::from_secs(2)),
        unhealthy_threshold: read_u32(pb.unhealthy_threshold.as_ref()).unwrap_or(3).max(1),
        healthy_threshold: read_u32(pb.healthy_threshold.as_ref()).unwrap_or(1).max(1),
    }))
}

/// How an endpoint is picked, as far as a policy says it.
#[derive(Default)]
pub(super) struct Balancing {
    pub(super) balancer: Balancer,
    pub(super) hashing: Hashing,
    pub(super) weighing: Weighing,
    pub(super) out_of_band: Option<Duration>,
    pub(super) by_locality: bool,
}

/// Ours first, then the nearest that Envoy has, then one that everybody has:
/// a client takes the first it knows.
pub(super) fn encode_balancer(service: &Service) -> LoadBalancingPolicy {
    let slow_start_config = encode_slow_start(&service.recovery);
    let locality_lb_config = service.by_locality.then(by_locality);
    let ours = |name: &str, url: &str| policy(name, typed_struct(url));
    let least = || {
        // What is in flight says already what weights by the load say, so Envoy is to go by one of them.
        let bias = RuntimeDouble { default_value: 0.0, runtime_key: BIAS_KEY.to_owned() };
        let config = LeastRequest {
            active_request_bias: (service.weights == Weights::FromLoad).then_some(bias),
            slow_start_config: slow_start_config.clone(),
            locality_lb_config,
            ..Default::default()
        };
        policy("envoy.load_balancing_policies.least_request", pack(&config))
    };
    let random = Random { locality_lb_config };
    let random = || policy("envoy.load_balancing_policies.random", pack(&random));
    let config = RoundRobin { slow_start_config: slow_start_config.clone(), locality_lb_config };
    let round = policy("envoy.load_balancing_policies.round_robin", pack(&config));
    let mut policies = match service.balancer {
        Balancer::BytesInFlight => vec![ours("towpath.bytes_in_flight", BYTES_IN_FLIGHT), least()],
        Balancer::CompletionTime => vec![ours("towpath.completion_time", COMPLETION_TIME), least()],
        Balancer::LeastRequest => vec![least()],
        Balancer::Random => vec![random()],
        Balancer::RoundRobin => vec![],
        Balancer::WeightedRoundRobin => {
            let config = weighing::encode(service);
            let name = "envoy.load_balancing_policies.client_side_weighted_round_robin";
            let within = policy(name, config);
            vec![if service.by_locality {
                weighing::encode_within_locality(within)
            } else {
                within
            }]
        }
        Balancer::Maglev => {
            let config = hashing::encode_maglev(service);
            vec![policy("envoy.load_balancing_policies.maglev", config)]
        }
        Balancer::RingHash => {
            let config = hashing::encode_ring(service);
            vec![policy("envoy.load_balancing_policies.ring_hash", config)]
        }
    };
    let spreads = service.by_locality && service.balancer != Balancer::WeightedRoundRobin;
    if (service.weights == Weights::FromLoad || spreads) && !policies.is_empty() {
        // That of gRPC knows no weights of endpoints, but those of places if this says so. Behind one
        // that Envoy takes, since it refuses this with any but its weighted one within.
        let within = LoadBalancingPolicy { policies: vec![round.clone()] };
        let config = WrrLocality { endpoint_picking_policy: Some(within) };
        policies.push(policy("envoy.load_balancing_policies.wrr_locality", pack(&config)));
    }
    policies.push(round);
    LoadBalancingPolicy { policies }
}

/// How an endpoint is picked, and what that goes by.
pub(super) fn decode_balancer(pb: &cds::Cluster) -> Result<Balancing> {
    if let Some(list) = &pb.load_balancing_policy {
        return match first_known(list, true).at("load_balancing_policy")? {
            Some(balancing) => Ok(balancing),
            None => refuse("none of the policies is supported").at("load_balancing_policy"),
        };
    }
    let balancer = match LbPolicy::try_from(pb.lb_policy) {
        Ok(LbPolicy::RoundRobin) => Balancer::RoundRobin,
        Ok(LbPolicy::LeastRequest) => Balancer::LeastRequest,
        Ok(LbPolicy::Random) => Balancer::Random,
        Ok(LbPolicy::RingHash) => Balancer::RingHash,
        Ok(LbPolicy::Maglev) => Balancer::Maglev,
        Ok(other) => {
            return refuse(format!("{} is not supported", other.as_str_name())).at("lb_policy");
        }
        Err(_) => return refuse(format!("unknown policy {}", pb.lb_policy)).at("lb_policy"),
    };
    let hashing = match balancer.hashes() {
        true => hashing::decode_old(pb, balancer)?,
        false => Hashing::default(),
    };
    let by_locality = pb.common_lb_config.as_ref().is_some_and(|config| {
        let specifier = config.locality_config_specifier.as_ref();
        matches!(specifier, Some(LocalityConfigSpecifier::LocalityWeightedLbConfig(_)))
    });
    Ok(Balancing { balancer, hashing, by_locality, ..Balancing::default() })
}

/// The first of the policies that is known; `outermost` ones may say it of localities.
fn first_known(list: &LoadBalancingPolicy, outermost: bool) -> Result<Option<Balancing>> {
    let configs = list.policies.iter().filter_map(|p| p.typed_extension_config.as_ref());
    for config in configs.filter_map(|c| c.typed_config.as_ref()) {
        if let Some((balancer, by_locality)) = known_balancer(config)? {
            return Ok(Some(Balancing { balancer, by_locality, ..Balancing::default() }));
        }
        if let Some((balancer, hashing, by_locality)) = hashing::decode(config)? {
            return Ok(Some(Balancing { balancer, hashing, by_locality, ..Balancing::default() }));
        }
        if let Some((weighing, out_of_band)) = weighing::decode(config)? {
            let balancer = Balancer::WeightedRoundRobin;
            return Ok(Some(Balancing { balancer, weighing, out_of_band, ..Balancing::default() }));
        }
        let inner = if outermost { weighing::within_locality(config)? } else { None };
        if let Some(known) = inner.map_or(Ok(None), |inner| first_known(&inner, false))? {
            return Ok(Some(Balancing { by_locality: true, ..known }));
        }
    }
    Ok(None)
}

/// How an endpoint is picked, and whether a locality is drawn first.
fn known_balancer(any: &Any) -> Result<Option<(Balancer, bool)>> {
    match typed_struct_url(any).as_deref() {
        Some(BYTES_IN_FLIGHT) => return Ok(Some((Balancer::BytesInFlight, false))),
        Some(COMPLETION_TIME) => return Ok(Some((Balancer::CompletionTime, false))),
        _ => {}
    }
    let (balancer, config) = if any.type_url == LeastRequest::type_url() {
        (Balancer::LeastRequest, unpack::<LeastRequest>(any)?.locality_lb_config)
    } else if any.type_url == RoundRobin::type_url() {
        (Balancer::RoundRobin, unpack::<RoundRobin>(any)?.locality_lb_config)
    } else if any.type_url == Random::type_url() {
        (Balancer::Random, unpack::<Random>(any)?.locality_lb_config)
    } else {
        return Ok(None);
    };
    let specifier = config.and_then(|config| config.locality_config_specifier);
    let by_locality = matches!(specifier, Some(Specifier::LocalityWeightedLbConfig(_)));
    Ok(Some((balancer, by_locality)))
}

fn by_locality() -> LocalityLbConfig {
    let specifier = Specifier::LocalityWeightedLbConfig(LocalityWeightedLbConfig::default());
    LocalityLbConfig { locality_config_specifier: Some(specifier) }
}

fn policy(name: &str, config: Any) -> Policy {
    Policy {
        typed_extension_config: Some(TypedExtensionConfig {
            name: name.to_owned(),
            typed_config: Some(config),
        }),
    }
}

const HTTP_OPTIONS: &str = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions";
const COMPLETION_TIME: &str = "type.googleapis.com/towpath.v1.CompletionTime";
const BYTES_IN_FLIGHT: &str = "type.googleapis.com/towpath.v1.BytesInFlight";
/// Envoy wants a name under which an operator may change it.
const BIAS_KEY: &str = "towpath.active_request_bias";
const DEFAULT_POOL_IDLE: Duration = Duration::from_secs(60);
