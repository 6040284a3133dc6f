//! [`Service`] ↔ `Cluster` (CDS).

use std::{sync::Arc, time::Duration};

use envoy_types::pb::envoy::{
    config::cluster::v3::{
        self as cds,
        cluster::{
            ClusterDiscoveryType, CommonLbConfig, DiscoveryType, EdsClusterConfig, LbConfig,
            LbPolicy, OriginalDstLbConfig,
        },
    },
    config::endpoint::v3::{ClusterLoadAssignment, lb_endpoint::HostIdentifier},
};
use towpath_policies::model::{
    Admission, Discovery, EndpointSet, OriginSource, Prediction, Registered, Service, Weights,
};

use super::{
    DecodedService, EndpointSource,
    common::{
        At, Result, ads, duration, expect_ads, optional_duration, read_address, read_host, refuse,
        refuse_if, this_server,
    },
    endpoints,
    extension::Extra,
    outlier, proxy_protocol, tls,
    upstream::{self, Balancing},
};

pub(super) type Pb = cds::Cluster;

pub(super) fn encode(service: &Service) -> Pb {
    let original = service.discovery == Discovery::OriginalDestination;
    let mut pb = Pb {
        name: service.name.clone(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds as i32)),
        eds_cluster_config: Some(EdsClusterConfig { eds_config: ads(), ..Default::default() }),
        connect_timeout: Some(duration(service.connect_timeout)),
        typed_extension_protocol_options: upstream::encode_protocol(service),
        circuit_breakers: Some(upstream::encode_breakers(&service.breaker, service.retry_budget)),
        outlier_detection: service.outlier.as_ref().map(outlier::encode),
        health_checks: service
            .health_check
            .iter()
            .map(|check| upstream::encode_health_check(check, service.protocol))
            .collect(),
        transport_socket: proxy_protocol::encode_socket(
            service.proxy_protocol,
            service.tls.as_ref().map(|tls| tls::encode_client(tls, service.protocol)),
        ),
        load_balancing_policy: Some(upstream::encode_balancer(service)),
        common_lb_config: Some(CommonLbConfig {
            healthy_panic_threshold: Some(outlier::encode_panic(&service.recovery)),
            ..Default::default()
        }),
        ..Default::default()
    };
    if original {
        let kind = DiscoveryType::OriginalDst as i32;
        pb.cluster_discovery_type = Some(ClusterDiscoveryType::Type(kind));
        pb.lb_policy = LbPolicy::ClusterProvided as i32;
        (pb.eds_cluster_config, pb.load_balancing_policy) = (None, None);
    }
    if service.weights == Weights::FromLoad {
        // Clients of gRPC report their load where this says so, and both they and Envoy pass on
        // what endpoints report if it is named here.
        pb.lrs_server = this_server();
        pb.lrs_report_endpoint_metrics = PASSED_ON.map(str::to_owned).into();
    }
    pb.metadata = lost(&pb, service).into_metadata();
    pb
}

/// What the standard part of an encoded cluster does not say.
fn lost(pb: &Pb, service: &Service) -> Extra {
    let mut extra = Extra::default();
    let carried = match decode(pb) {
        Ok(decoded) => decoded.service,
        // Nothing to compare with; then everything rides along.
        Err(_) => {
            extra.set("service", service);
            return extra;
        }
    };
    extra.keep("protocol", &service.protocol, &carried.protocol);
    extra.keep("discovery", &service.discovery, &carried.discovery);
    extra.keep("tls", &service.tls, &carried.tls);
    extra.keep("proxyProtocol", &service.proxy_protocol, &carried.proxy_protocol);
    extra.keep("balancer", &service.balancer, &carried.balancer);
    extra.keep("weights", &service.weights, &carried.weights);
    extra.keep("prediction", &service.prediction, &carried.prediction);
    extra.keep("hashing", &service.hashing, &carried.hashing);
    extra.keep("weighing", &service.weighing, &carried.weighing);
    extra.keep("outOfBand", &service.out_of_band, &carried.out_of_band);
    extra.keep("byLocality", &service.by_locality, &carried.by_locality);
    extra.keep("breaker", &service.breaker, &carried.breaker);
    extra.keep("outlier", &service.outlier, &carried.outlier);
    extra.keep("recovery", &service.recovery, &carried.recovery);
    extra.keep("admission", &service.admission, &carried.admission);
    extra.keep("healthCheck", &service.health_check, &carried.health_check);
    extra.keep("connectTimeout", &service.connect_timeout, &carried.connect_timeout);
    extra.keep("poolIdleTimeout", &service.pool_idle_timeout, &carried.pool_idle_timeout);
    extra.keep("retryBudget", &service.retry_budget, &carried.retry_budget);
    extra
}

pub(super) fn decode(pb: &Pb) -> Result<DecodedService> {
    refuse_if(pb.name.is_empty(), "name", "must not be empty")?;
    let mut extra = Extra::read(pb.metadata.as_ref())?;
    let mut whole: Option<Service> = None;
    extra.restore("service", &mut whole)?;
    let (discovery, endpoints) = decode_discovery(pb)?;
    let mut service = match whole {
        Some(service) if service.name == pb.name => service,
        Some(_) => return refuse("is of another name").at("metadata.service"),
        None => decode_standard(pb, discovery)?,
    };
    extra.restore("protocol", &mut service.protocol)?;
    extra.restore("discovery", &mut service.discovery)?;
    extra.restore("tls", &mut service.tls)?;
    extra.restore("proxyProtocol", &mut service.proxy_protocol)?;
    extra.restore("balancer", &mut service.balancer)?;
    extra.restore("weights", &mut service.weights)?;
    extra.restore("prediction", &mut service.prediction)?;
    check_prediction(&service.prediction)?;
    extra.restore("hashing", &mut service.hashing)?;
    if let Err(why) = service.hashing.check() {
        return refuse(why).at("hashing");
    }
    extra.restore("weighing", &mut service.weighing)?;
    if let Err((_, why)) = service.weighing.check() {
        return refuse(why).at("weighing");
    }
    extra.restore("outOfBand", &mut service.out_of_band)?;
    let odd = service.out_of_band.filter(|every| !Service::REPORT_INTERVALS.contains(every));
    refuse_if(odd.is_some(), "outOfBand", "reports come every 100ms to 1h")?;
    extra.restore("byLocality", &mut service.by_locality)?;
    extra.restore("breaker", &mut service.breaker)?;
    extra.restore("outlier", &mut service.outlier)?;
    extra.restore("recovery", &mut service.recovery)?;
    extra.restore("admission", &mut service.admission)?;
    extra.restore("healthCheck", &mut service.health_check)?;
    extra.restore("connectTimeout", &mut service.connect_timeout)?;
    extra.restore("poolIdleTimeout", &mut service.pool_idle_timeout)?;
    extra.restore("retryBudget", &mut service.retry_budget)?;
    Ok(DecodedService { service: Arc::new(service), endpoints })
}

fn check_prediction(prediction: &Prediction) -> Result<()> {
    if let Err(why) = prediction.check() {
        return refuse(why).at("prediction");
    }
    for source in &prediction.origin {
        let OriginSource::Registered(Registered { places, .. }) = source else { continue };
        refuse_if(places.len() > Registered::MOST, "prediction.origin", "too many are registered")?;
        let odd = places.values().any(|place| place.coordinates.is_some_and(|at| !at.on_earth()));
        refuse_if(odd, "prediction.origin", "coordinates are out of range")?;
    }
    Ok(())
}

fn decode_standard(pb: &Pb, discovery: Discovery) -> Result<Service> {
    refuse_if(
        !pb.transport_socket_matches.is_empty() || pb.transport_socket_matcher.is_some(),
        "transport_socket_matches",
        "TLS that differs between endpoints is not supported",
    )?;
    refuse_if(!pb.filters.is_empty(), "filters", "upstream filters are not supported")?;
    let (protocol, pool_idle_timeout) = upstream::decode_protocol(pb)?;
    let (breaker, retry_budget) = upstream::decode_breakers(pb.circuit_breakers.as_ref());
    let connect_timeout = optional_duration(pb.connect_timeout.as_ref(), "connect_timeout")?;
    let Balancing { balancer, hashing, weighing, out_of_band, by_locality } = match discovery {
        Discovery::OriginalDestination => Balancing::default(),
        _ => upstream::decode_balancer(pb)?,
    };
    let (proxy_protocol, socket) =
        proxy_protocol::decode_socket(pb.transport_socket.as_ref()).at("transport_socket")?;
    Ok(Service {
        name: pb.name.clone(),
        protocol,
        discovery,
        tls: tls::decode_client(socket.as_ref()).at("transport_socket")?,
        proxy_protocol,
        balancer,
        weights: Weights::Declared,
        prediction: Prediction::default(),
        hashing,
        weighing,
        out_of_band,
        by_locality,
        breaker,
        outlier: outlier::decode(pb.outlier_detection.as_ref()).at("outlier_detection")?,
        recovery: outlier::decode_recovery(pb)?,
        admission: Admission::default(),
        health_check: upstream::decode_health_check(&pb.health_checks).at("health_checks")?,
        connect_timeout: connect_timeout.filter(|t| !t.is_zero()).unwrap_or(DEFAULT_CONNECT),
        pool_idle_timeout,
        retry_budget,
    })
}

fn decode_discovery(pb: &Pb) -> Result<(Discovery, EndpointSource)> {
    let kind = match &pb.cluster_discovery_type {
        None => DiscoveryType::Static,
        Some(ClusterDiscoveryType::Type(kind)) => match DiscoveryType::try_from(*kind) {
            Ok(kind) => kind,
            Err(_) => return refuse(format!("unknown type {kind}")).at("type"),
        },
        Some(ClusterDiscoveryType::ClusterType(custom)) => {
            let name: String = custom.name.chars().take(128).collect();
            return refuse(format!("{name:?} is not supported")).at("cluster_type");
        }
    };
    match kind {
        DiscoveryType::Eds => {
            let config = pb.eds_cluster_config.clone().unwrap_or_default();
            expect_ads(config.eds_config.as_ref()).at("eds_cluster_config.eds_config")?;
            let name =
                if config.service_name.is_empty() { pb.name.clone() } else { config.service_name };
            Ok((Discovery::Listed, EndpointSource::Delivered(name)))
        }
        DiscoveryType::Static => inline(pb),
        DiscoveryType::StrictDns | DiscoveryType::LogicalDns => match dns(pb)? {
            Some(discovery) => Ok((discovery, EndpointSource::Resolved)),
            None => inline(pb),
        },
        DiscoveryType::OriginalDst => {
            let provided = pb.lb_policy == LbPolicy::ClusterProvided as i32;
            refuse_if(!provided, "lb_policy", "must be CLUSTER_PROVIDED for ORIGINAL_DST")?;
            let by_config = matches!(pb.lb_config, Some(LbConfig::OriginalDstLbConfig(ref config)) if asks(config));
            refuse_if(
                by_config,
                "original_dst_lb_config",
                "only the destination itself is supported",
            )?;
            Ok((Discovery::OriginalDestination, EndpointSource::Resolved))
        }
    }
}

/// Whether the destination is to be something else than the address that a connection was made to.
fn asks(config: &OriginalDstLbConfig) -> bool {
    config.use_http_header
        || config.upstream_port_override.is_some()
        || config.metadata_key.is_some()
}

fn inline(pb: &Pb) -> Result<(Discovery, EndpointSource)> {
    let assignment = pb.load_assignment.clone().unwrap_or_default();
    // Envoy lets the inner name differ.
    let assignment = ClusterLoadAssignment { cluster_name: pb.name.clone(), ..assignment };
    let set: EndpointSet = endpoints::decode(&assignment).at("load_assignment")?;
    Ok((Discovery::Listed, EndpointSource::Inline(Arc::new(set))))
}

/// The one name to look up; `None` when every endpoint is an IP address already.
fn dns(pb: &Pb) -> Result<Option<Discovery>> {
    let groups = pb.load_assignment.iter().flat_map(|a| &a.endpoints);
    let mut hosts = Vec::new();
    for endpoint in groups.flat_map(|group| &group.lb_endpoints) {
        let Some(HostIdentifier::Endpoint(endpoint)) = &endpoint.host_identifier else {
            return refuse("needs endpoints with addresses").at("load_assignment");
        };
        let host = read_host(endpoint.address.as_ref()).at("load_assignment")?;
        let is_ip = read_address(endpoint.address.as_ref()).is_ok();
        hosts.push((host, is_ip));
    }
    if hosts.iter().all(|(_, is_ip)| *is_ip) {
        return Ok(None);
    }
    let [((host, port), _)] = hosts.as_slice() else {
        return refuse("only one DNS name per cluster is supported").at("load_assignment");
    };
    #[expect(deprecated, reason = "its replacement is a cluster type of its own")]
    let refresh = optional_duration(pb.dns_refresh_rate.as_ref(), "dns_refresh_rate")?;
    let refresh = refresh.unwrap_or(DEFAULT_DNS_REFRESH).max(Duration::from_secs(1));
    Ok(Some(Discovery::Dns { host: (*host).to_owned(), port: *port, refresh }))
}

/// Of the load reports of endpoints: what weights are made from.
const PASSED_ON: [&str; 3] =
    ["named_metrics.towpath.goodput_factor", "application_utilization", "cpu_utilization"];
/// Envoy's default.
const DEFAULT_CONNECT: Duration = Duration::from_secs(5);
/// Envoy's default.
const DEFAULT_DNS_REFRESH: Duration = Duration::from_secs(5);
