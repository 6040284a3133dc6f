//! `Service`, `TransferPolicy`, `BreakerPolicy` (towpath.dev/v1alpha1).

use std::net::SocketAddr;

use super::{
    read::{AtLeastOne, Texts, choice, object},
    value::{
        Bytes, Count, Degrees, FilePath, HeaderName, Name, Percent, PlaceName, Port, Positive,
        PositiveTime, PreciseHostname, ServiceAddress, Time, UrlPath, Whole,
    },
};
use crate::{model::Coordinates, problem::At};

object! {
    /// A set of endpoints that serve the same, and how they are reached.
    struct ServiceSpec {
        /// What the endpoints speak; default `FOLLOW`.
        "protocol" => protocol: Option<At<ServiceProtocol>>,
        /// Time allowed for a connection to stand; default 5s.
        "connectTimeout" => connect_timeout: Option<At<PositiveTime>>,
        /// An idle pooled connection is closed after this; default 60s.
        "poolIdleTimeout" => pool_idle_timeout: Option<At<PositiveTime>>,
        /// Active probes; left out means none.
        "healthCheck" => health_check: Option<HealthCheckSpec>,
        /// TLS towards the endpoints; left out means cleartext.
        "tls" => tls: Option<ServiceTls>,
        /// Each connection begins with a header of the PROXY protocol that says for which client it is; left out
        /// means none.
        "proxyProtocol" => proxy_protocol: Option<At<ProxyProtocolVersion>>,
        /// TCP only: clients' connections to an endpoint that has a `sidecar` without `app` share one to that (HTTP/2
        /// `CONNECT`, port 15008); where none answers, each has its own. Default false.
        "tunnel" => tunnel: Option<At<bool>>,
        /// Listed endpoints.
        "endpoints" => endpoints: Option<At<Vec<EndpointSpec>>>,
        /// Endpoints from all addresses of a DNS name.
        "dns" => dns: Option<DnsSpec>,
        /// Where clients that know nothing of the mesh reach it: IP addresses, with a port or without, and
        /// networks. Those of listed endpoints are known.
        "addresses" => addresses: Vec<At<ServiceAddress>>,
        /// Those endpoints of another Service that have some labels. What is left out above is as there.
        "subset" => subset: Option<SubsetSpec>,
    }
    exactly_one { ["endpoints", "dns", "subset"] }
}

object! {
    /// A part of another Service.
    struct SubsetSpec {
        /// The Service, of the same namespace; its `endpoints` are listed.
        "of" => of: At<Name>,
        /// Its endpoints that have all of these are taken.
        "labels" => labels: Texts,
    }
}

choice! {
    /// Protocol of a service.
    enum ServiceProtocol {
        /// HTTP/1.1.
        "HTTP" => Http,
        /// HTTP/2, with prior knowledge in cleartext.
        "HTTP2" => Http2,
        /// The same as HTTP2.
        "GRPC" => Grpc,
        /// The version that the client used.
        "FOLLOW" => Follow,
        /// Opaque bytes.
        "TCP" => Tcp,
    }
}

choice! {
    /// Versions of the PROXY protocol.
    enum ProxyProtocolVersion {
        /// A line of text.
        "v1" => V1,
        /// Binary.
        "v2" => V2,
    }
}

object! {
    /// Active probes of every endpoint.
    struct HealthCheckSpec {
        /// `GET`, where any 2xx is healthy.
        "http" => http: Option<HttpProbe>,
        /// `grpc.health.v1.Health/Check`.
        "grpc" => grpc: Option<GrpcProbe>,
        /// A connection can be made.
        "tcp" => tcp: Option<TcpProbe>,
        /// Time between probes; default 10s.
        "interval" => interval: Option<At<PositiveTime>>,
        /// Time allowed for an answer; default 2s.
        "timeout" => timeout: Option<At<PositiveTime>>,
        /// Failures in a row that make an endpoint unhealthy; default 3.
        "unhealthyThreshold" => unhealthy_threshold: Option<At<Positive>>,
        /// Successes in a row that make it healthy again; default 1.
        "healthyThreshold" => healthy_threshold: Option<At<Positive>>,
    }
    exactly_one { ["http", "grpc", "tcp"] }
}

object! {
    /// An HTTP probe.
    struct HttpProbe {
        /// Default `/`.
        "path" => path: Option<At<UrlPath>>,
        /// `Host`; default: the service's name.
        "host" => host: Option<At<PreciseHostname>>,
    }
}

object! {
    /// A gRPC probe.
    struct GrpcProbe {
        /// Service asked for; default empty, the server as a whole.
        "service" => service: Option<At<String>>,
    }
}

object! {
    /// A TCP probe.
    struct TcpProbe {
    }
}

object! {
    /// TLS towards the endpoints.
    struct ServiceTls {
        /// Server name that is sent and verified.
        "serverName" => server_name: At<PreciseHostname>,
        /// PEM file with the roots, on the proxy's machine; default: the system's.
        "caFile" => ca_file: Option<At<FilePath>>,
    }
}

object! {
    /// Endpoints from DNS.
    struct DnsSpec {
        /// Host name.
        "host" => host: At<PreciseHostname>,
        /// Port of every address.
        "port" => port: At<Port>,
        /// Time between look-ups, at least 1s; default 30s.
        "refresh" => refresh: Option<At<PositiveTime>>,
    }
}

object! {
    /// One address that serves.
    struct EndpointSpec {
        /// Unique within the Service; for logs and metrics. Default: the address.
        "name" => name: Option<At<Name>>,
        /// IP address and port where peers reach it.
        "address" => address: At<SocketAddr>,
        /// Where it stands.
        "locality" => locality: Option<LocalitySpec>,
        /// Name of the place where it stands, instead of `coordinates`: a city (`Frankfurt`,
        /// `Portland, OR`, `London, CA`) or a cloud's region (`eu-central-1`).
        "place" => place: Option<At<PlaceName>>,
        /// Where that is, if `place` is not given.
        "coordinates" => coordinates: Option<CoordinatesSpec>,
        /// Relative capacity, 1 to 1000000; default 100.
        "weight" => weight: Option<At<Whole<1, 1_000_000>>>,
        /// 0 (default) is used first; a higher one only when no lower has a usable endpoint.
        "priority" => priority: Option<At<Whole<0, 127>>>,
        /// The accelerator it works on.
        "gpu" => gpu: Option<GpuSpec>,
        /// Requests it works on at a time, where its Service has a queue; default: as the queue says.
        "slots" => slots: Option<At<Whole<1, 100_000>>>,
        /// A proxy beside it that takes its traffic.
        "sidecar" => sidecar: Option<SidecarSpec>,
        /// What it is, for a `subset`.
        "labels" => labels: Texts,
    }
}

object! {
    /// Region, zone and sub-zone.
    struct LocalitySpec {
        /// E.g. `us-east`.
        "region" => region: Option<At<String>>,
        /// E.g. `us-east-1a`.
        "zone" => zone: Option<At<String>>,
        /// E.g. a rack.
        "subZone" => sub_zone: Option<At<String>>,
    }
}

object! {
    /// Degrees (WGS 84).
    struct CoordinatesSpec {
        /// North positive, -90 to 90.
        "latitude" => latitude: At<Degrees<90>>,
        /// East positive, -180 to 180.
        "longitude" => longitude: At<Degrees<180>>,
    }
}

impl CoordinatesSpec {
    /// The point.
    pub(crate) fn coordinates(&self) -> Coordinates {
        Coordinates { latitude: self.latitude.0, longitude: self.longitude.0 }
    }
}

object! {
    /// An accelerator.
    struct GpuSpec {
        /// Who made it.
        "vendor" => vendor: At<GpuVendor>,
        /// E.g. `MI300X`.
        "model" => model: At<String>,
        /// How many; default 1.
        "count" => count: Option<At<Positive>>,
    }
}

choice! {
    /// Makers of accelerators.
    enum GpuVendor {
        /// AMD.
        "amd" => Amd,
        /// NVIDIA.
        "nvidia" => Nvidia,
    }
}

object! {
    /// A proxy beside an endpoint that takes its connections and forwards them to the app.
    struct SidecarSpec {
        /// Name of the proxy (`--node`).
        "node" => node: At<NodeName>,
        /// IP address and port of the app behind it. Left out, the app has the endpoint's own address, and the
        /// proxy takes connections that are redirected to it (`towpath.dev/Inbound`).
        "app" => app: Option<At<SocketAddr>>,
    }
}

super::value::text!(
    /// Name of a proxy.
    NodeName,
    "^[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9])?$",
    |text| {
        let inner = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
        let ends = |c: char| c.is_ascii_alphanumeric();
        let fits = (1..=253).contains(&text.len()) && text.bytes().all(inner);
        if fits && text.starts_with(ends) && text.ends_with(ends) { Ok(()) } else { Err("is not a node name") }
    },
    "the proxy's --node: letters, digits, ., _ and -, no wildcard"
);

object! {
    /// What a policy is attached to.
    struct TargetRef {
        /// `towpath.dev` for a Service, `gateway.networking.k8s.io` for the others; may be left out.
        "group" => group: Option<At<String>>,
        /// `Service`, `HTTPRoute`, `GRPCRoute` or `Gateway`.
        "kind" => kind: At<String>,
        /// Default: the policy's own namespace.
        "namespace" => namespace: Option<At<Name>>,
        /// Name of the target.
        "name" => name: At<Name>,
        /// Name of one rule of a route, or of one listener of a Gateway.
        "sectionName" => section_name: Option<At<Name>>,
    }
}

object! {
    /// Time limits and retries of transfers. The nearest says: route over service over gateway over defaults.
    struct TransferPolicySpec {
        /// What it is attached to.
        "targetRefs" => target_refs: AtLeastOne<TargetRef>,
        /// Who goes first where there is not room for all; default interactive.
        "class" => class: Option<At<ClassName>>,
        /// Whose a request is; default: all are of one tenant.
        "tenant" => tenant: Option<At<TenantSpec>>,
        /// What one proxy lets pass; default unlimited.
        "limits" => limits: Option<RateLimitsSpec>,
        /// Largest request body; larger ones are answered 413. Default unlimited.
        "maxRequestBytes" => max_request_bytes: Option<At<Bytes>>,
        /// Time limits.
        "timeouts" => timeouts: Option<TransferTimeouts>,
        /// Further tries after a failed one.
        "retry" => retry: Option<TransferRetry>,
        /// What goes on elsewhere when an endpoint breaks midway.
        "resume" => resume: Option<TransferResume>,
        /// Digests of bodies, made and checked.
        "integrity" => integrity: Option<TransferIntegrity>,
        /// A second try of a small read whose answer is late; off unless it is there.
        "hedge" => hedge: Option<At<HedgeSpec>>,
    }
}

choice! {
    /// Kinds of freight.
    enum ClassName {
        /// Somebody waits for the answer.
        "interactive" => Interactive,
        /// Freight: takes what is left.
        "bulk" => Bulk,
        /// Tolerates delay, and is the first to be shed.
        "background" => Background,
    }
}

object! {
    /// How a request tells whose it is.
    struct TenantSpec {
        /// By the value of this header; requests without it are one tenant.
        "header" => header: Option<At<HeaderName>>,
        /// By the client's IP address.
        "clientAddress" => client_address: Option<ClientAddressSpec>,
    }
    exactly_one { ["header", "clientAddress"] }
}

object! {
    /// Nothing more to say.
    struct ClientAddressSpec {
    }
}

object! {
    /// What one proxy lets pass: of all requests, and of each tenant's.
    struct RateLimitsSpec {
        /// Over the whole rule of a route, on one listener.
        "route" => route: Option<RateLimitSpec>,
        /// For each tenant; the policy says how a request tells its `tenant`.
        "tenant" => tenant: Option<RateLimitSpec>,
    }
}

object! {
    /// A rate, and what may go beyond it after a pause.
    struct RateLimitSpec {
        /// Requests, 1 to 1000000; those beyond it are refused.
        "requestsPerSecond" => requests_per_second: Option<At<Whole<1, 1_000_000>>>,
        /// So many requests at once after a pause; default a second's worth.
        "requestBurst" => request_burst: Option<At<Whole<1, 10_000_000>>>,
        /// Body bytes of requests and responses together, at least 1KiB; transfers beyond it are slowed.
        "bytesPerSecond" => bytes_per_second: Option<At<Bytes>>,
        /// So many bytes at once after a pause, at least 256KiB; default a tenth of a second's worth, at
        /// least 1MiB.
        "byteBurst" => byte_burst: Option<At<Bytes>>,
    }
}

object! {
    /// Time limits; `0s` is unlimited.
    struct TransferTimeouts {
        /// For the whole exchange with all its tries; default unlimited.
        "request" => request: Option<At<Time>>,
        /// For one try, up to the response head; default unlimited.
        "perTry" => per_try: Option<At<Time>>,
        /// An exchange in which no byte moves for this long is ended; default 5m.
        "idle" => idle: Option<At<Time>>,
        /// The least that bodies must move while they are waited for; default none.
        "stall" => stall: Option<At<StallSpec>>,
    }
}

object! {
    /// A try whose endpoint takes or sends less than so much in so long is given up, before the
    /// response head for another try and after it to go on elsewhere; a client that is as slow is cut off.
    struct StallSpec {
        /// Floor of both bodies together, in bytes per second; 0 is none.
        "below" => below: At<Bytes>,
        /// Time over which it is held, at least 1s.
        "for" => time: Option<At<PositiveTime>>,
    }
}

object! {
    /// When a failed try is followed by another.
    struct TransferRetry {
        /// Most further tries; default 1, and 0 is none.
        "attempts" => attempts: Option<At<Whole<0, 100>>>,
        /// Failures that are tried again; default connect-failure, refused-stream, reset.
        "conditions" => conditions: Option<At<Vec<At<RetryOn>>>>,
        /// Codes for `status`; default 502, 503, 504.
        "statusCodes" => status_codes: Option<At<Vec<At<Whole<400, 599>>>>>,
        /// Codes for `grpc-status`; default 14 (UNAVAILABLE).
        "grpcStatusCodes" => grpc_status_codes: Option<At<Vec<At<Whole<1, 16>>>>>,
        /// Pause before a further try.
        "backoff" => backoff: Option<BackoffSpec>,
        /// Largest request body kept in memory for replay; default 64KiB.
        "replayLimit" => replay_limit: Option<At<Bytes>>,
        /// What of a larger one is kept on the proxy's disk; default 0, nothing.
        "replayDiskLimit" => replay_disk_limit: Option<At<Bytes>>,
        /// Also retry methods that are not idempotent when the request has an Idempotency-Key; default true.
        "withIdempotencyKey" => with_idempotency_key: Option<At<bool>>,
        /// Give such requests an Idempotency-Key where they have none, the same for all tries; default false.
        "mintIdempotencyKey" => mint_idempotency_key: Option<At<bool>>,
        /// Most retries at a time; only in policies that target a Service.
        "budget" => budget: Option<At<BudgetSpec>>,
    }
    // YAML 1.1 reads a bare `on` as true.
    renamed { "on" => "conditions", }
}

object! {
    /// What goes on elsewhere when an endpoint breaks midway; each time takes one of the attempts of `retry`.
    struct TransferResume {
        /// A GET goes on with another endpoint from the byte it had got to, by Range and If-Range, if its
        /// response has a strong ETag; default: true where `retry` has attempts and its conditions name `reset`.
        "downloads" => downloads: Option<At<bool>>,
        /// A PUT or POST is offered to endpoints as a resumable upload (IETF draft), and goes on where it broke at one
        /// that answers 104; default false.
        "uploads" => uploads: Option<At<bool>>,
    }
}

object! {
    /// `Content-Digest` and `Repr-Digest` of bodies (RFC 9530). One policy may serve all hops: a digest is made
    /// where there is none, and checked where there is one.
    struct TransferIntegrity {
        /// Give request bodies a Content-Digest, and response bodies one where the request wants it by
        /// Want-Content-Digest; in trailers, for which HTTP/1.1 needs a chunked body. Default false.
        "make" => make: Option<At<bool>>,
        /// Hold bodies against the digests that come with them, let none end well that does not match, and
        /// ask for digests of responses by Want-Content-Digest. Default false.
        "check" => check: Option<At<bool>>,
        /// What is made, wanted, and checked in trailers; default sha-256.
        "algorithm" => algorithm: Option<At<DigestName>>,
    }
}

choice! {
    /// Algorithms of digests.
    enum DigestName {
        /// SHA-256.
        "sha-256" => Sha256,
        /// SHA-512.
        "sha-512" => Sha512,
    }
}

object! {
    /// A GET or HEAD without a body whose response head is late is asked for once more, of another
    /// endpoint and within the retry budget; the first head wins. It takes one of the attempts of `retry`.
    struct HedgeSpec {
        /// True turns it off.
        "disabled" => disabled: Option<At<bool>>,
        /// What is late: a percentile of the route's own times, `p50` to `p99`, or a time; default p95.
        "after" => after: Option<At<Lateness>>,
        /// A second answer that declares more than this does not win; default 64KiB.
        "maxBytes" => max_bytes: Option<At<Bytes>>,
        /// Times to know before a percentile counts; default 100.
        "minSamples" => min_samples: Option<At<Positive>>,
    }
    // YAML 1.1 reads a bare `off` as false.
    renamed { "off" => "disabled", }
}

super::value::text!(
    /// When an answer is late.
    Lateness,
    "^(p[5-9][0-9]|([0-9]{1,5}(h|m|s|ms)){1,4})$",
    |text| {
        let percentile = text.strip_prefix('p').and_then(|p| p.parse().ok());
        let late = percentile.is_some_and(|p: u32| text.len() == 3 && (50..=99).contains(&p))
            || super::value::parse_time(text).is_some_and(|time| !time.is_zero());
        if late { Ok(()) } else { Err("is neither a percentile nor a time above 0") }
    },
    "a percentile such as p95 (p50 to p99), or a time such as 50ms"
);

choice! {
    /// A failure that may be tried again.
    enum RetryOn {
        /// The connection could not be made.
        "connect-failure" => ConnectFailure,
        /// The stream was refused unprocessed.
        "refused-stream" => RefusedStream,
        /// The connection broke before a response head.
        "reset" => Reset,
        /// The time for one try passed before a response head.
        "timeout" => Timeout,
        /// The endpoint took the request body more slowly than `timeouts.stall` says.
        "stall" => Stall,
        /// One of `statusCodes`.
        "status" => Status,
        /// One of `grpcStatusCodes`.
        "grpc-status" => GrpcStatus,
    }
}

object! {
    /// Jittered exponential back-off.
    struct BackoffSpec {
        /// First pause; default 25ms.
        "base" => base: Option<At<PositiveTime>>,
        /// Longest pause; default 250ms, or ten times the base if that is longer.
        "max" => max: Option<At<PositiveTime>>,
    }
}

object! {
    /// Most retries at a time: the larger of a share and a floor.
    struct BudgetSpec {
        /// Per cent of the requests and of the bytes in flight; default 20.
        "percent" => percent: Option<At<Percent>>,
        /// Always allowed; default 3.
        "minConcurrent" => min_concurrent: Option<At<Count>>,
    }
}

object! {
    /// Limits beyond which requests are refused at once, and ejection of endpoints that fail or lag.
    struct BreakerPolicySpec {
        /// The Services it is attached to.
        "targetRefs" => target_refs: AtLeastOne<TargetRef>,
        /// Limits over the whole service; default unlimited.
        "service" => service: Option<LimitsSpec>,
        /// Limits of each endpoint; default unlimited.
        "endpoint" => endpoint: Option<LimitsSpec>,
        /// The bandwidth through one proxy, and how classes share it; default unlimited.
        "bandwidth" => bandwidth: Option<BandwidthSpec>,
        /// Ejection of endpoints that fail (on by default), or lag behind the others.
        "outlier" => outlier: Option<OutlierSpec>,
        /// Requests wait in the proxy until an endpoint has a slot for them; off unless it is there.
        "queue" => queue: Option<QueueSpec>,
        /// An endpoint that comes back gets its full share only after this, and more and more until then;
        /// default 10s, `0s` is at once.
        "slowStart" => slow_start: Option<At<Time>>,
        /// Share of its weight with which it begins, 1 to 100; default 10.
        "slowStartFloorPercent" => slow_start_floor_percent: Option<At<Whole<1, 100>>>,
        /// When a smaller share of the endpoints than this is usable, ejections and probes are
        /// ignored; default 10, and 0 is never.
        "panicPercent" => panic_percent: Option<At<Percent>>,
        /// Streams and connections that last give way to endpoints that are added; off unless it is there.
        "streamAge" => stream_age: Option<StreamAgeSpec>,
        /// A limit of each endpoint that follows what it can do; off unless it is there.
        "adaptiveConcurrency" => adaptive_concurrency: Option<AdaptiveConcurrencySpec>,
    }
}

object! {
    /// Requests that wait for their response heads at one endpoint, as many as it answers in good time.
    struct AdaptiveConcurrencySpec {
        /// The limit never falls below; default 3.
        "minRequests" => min_requests: Option<At<Whole<1, 100_000>>>,
        /// The limit never rises above; default 1000.
        "maxRequests" => max_requests: Option<At<Whole<1, 100_000>>>,
        /// The time to the head that is tolerated, in per cent of what it is while nothing queues,
        /// 120 to 1000; default 150.
        "tolerancePercent" => tolerance_percent: Option<At<Whole<120, 1_000>>>,
    }
}

object! {
    /// From an age on, downloads move to endpoints that have less to do, and connections take nothing new.
    struct StreamAgeSpec {
        /// The age, at least 10s; default 10m.
        "max" => max: Option<At<PositiveTime>>,
        /// Each has an age of its own, so many per cent longer or shorter, 0 to 50; default 20.
        "jitterPercent" => jitter_percent: Option<At<Whole<0, 50>>>,
    }
}

object! {
    /// A bounded bandwidth, shared by those who have something to move.
    struct BandwidthSpec {
        /// Body bytes of requests and responses together, at least 64KiB.
        "bytesPerSecond" => bytes_per_second: At<Bytes>,
        /// Shares of the classes.
        "weights" => weights: Option<WeightsSpec>,
    }
}

object! {
    /// Limits; what is left out is unlimited.
    struct LimitsSpec {
        /// Open connections.
        "maxConnections" => max_connections: Option<At<Positive>>,
        /// Requests in flight.
        "maxRequests" => max_requests: Option<At<Positive>>,
        /// Requests that wait for a connection.
        "maxPending" => max_pending: Option<At<Count>>,
        /// Body bytes of unfinished exchanges.
        "maxBytesInFlight" => max_bytes_in_flight: Option<At<Bytes>>,
    }
}

object! {
    /// A queue before the endpoints: a request gets one of them when a slot comes free there.
    struct QueueSpec {
        /// Requests an endpoint works on at a time, where it does not say so itself; default 1.
        "slots" => slots: Option<At<Whole<1, 100_000>>>,
        /// Most requests that wait; default 1000.
        "maxRequests" => max_requests: Option<At<Whole<1, 1_000_000>>>,
        /// Most declared body bytes of those that wait; default 10GiB.
        "maxBytes" => max_bytes: Option<At<Bytes>>,
        /// Longest wait; default 60s.
        "maxWait" => max_wait: Option<At<PositiveTime>>,
        /// Shares of the slots where not all can be served.
        "weights" => weights: Option<At<WeightsSpec>>,
    }
}

object! {
    /// Shares of the classes, in proportion to each other.
    struct WeightsSpec {
        /// 1 to 1000; default 16.
        "interactive" => interactive: Option<At<Whole<1, 1_000>>>,
        /// 1 to 1000; default 4.
        "bulk" => bulk: Option<At<Whole<1, 1_000>>>,
        /// 1 to 1000; default 1.
        "background" => background: Option<At<Whole<1, 1_000>>>,
    }
}

object! {
    /// Ejection of endpoints that fail in a row, or lag behind the others of their priority and region.
    struct OutlierSpec {
        /// True turns it off.
        "disabled" => disabled: Option<At<bool>>,
        /// Failures in a row that eject; default 5.
        "consecutiveFailures" => consecutive_failures: Option<At<Positive>>,
        /// First ejection, longer with each further one; default 30s.
        "baseEjection" => base_ejection: Option<At<PositiveTime>>,
        /// Longest ejection; default 5m.
        "maxEjection" => max_ejection: Option<At<PositiveTime>>,
        /// Largest share of the endpoints ejected at once; default 50.
        "maxEjectedPercent" => max_ejected_percent: Option<At<Percent>>,
        /// Success rate and latency are judged over this time, 1s to 1h; default 10s.
        "interval" => interval: Option<At<PositiveTime>>,
        /// With fewer endpoints that have enough traffic, none is compared with the others; at
        /// least 2, default 3.
        "minEndpoints" => min_endpoints: Option<At<Whole<2, 1_000>>>,
        /// Ejection by the share of successes; on by default.
        "successRate" => success_rate: Option<SuccessRateSpec>,
        /// Ejection by the time to the response head; off unless it is there.
        "latency" => latency: Option<LatencySpec>,
        /// Ejection by goodput; off unless it is there.
        "goodput" => goodput: Option<GoodputSpec>,
    }
    renamed { "off" => "disabled", }
}

object! {
    /// Out is an endpoint whose share of successes lies far below the others' median.
    struct SuccessRateSpec {
        /// True turns it off.
        "disabled" => disabled: Option<At<bool>>,
        /// Requests within the interval below which an endpoint is not judged; default 100.
        "minRequests" => min_requests: Option<At<Positive>>,
        /// Percentage points below the median, 1 to 100; default 10.
        "marginPercent" => margin_percent: Option<At<Whole<1, 100>>>,
    }
    renamed { "off" => "disabled", }
}

object! {
    /// Out is an endpoint whose median time to the response head, without the time of the upload,
    /// lies far above the others'.
    struct LatencySpec {
        /// Requests within the interval below which an endpoint is not judged; default 100.
        "minRequests" => min_requests: Option<At<Positive>>,
        /// Per cent of the others' median, above 100; default 400.
        "abovePercent" => above_percent: Option<At<Whole<101, 1_000_000>>>,
        /// And so much longer than it; default 100ms.
        "margin" => margin: Option<At<PositiveTime>>,
    }
}

object! {
    /// Out is an endpoint that moves far fewer bytes per second than the others while transfers
    /// wait for it. Time in which a transfer waits for its client does not count, nor do
    /// transfers under 256KiB, responses of unknown length, and opaque connections.
    struct GoodputSpec {
        /// True turns it off.
        "disabled" => disabled: Option<At<bool>>,
        /// Per cent of the others' median, 1 to 90; default 25.
        "belowPercent" => below_percent: Option<At<Whole<1, 90>>>,
        /// Judged over this time, 250ms to 1m; default 1s.
        "window" => window: Option<At<PositiveTime>>,
        /// An endpoint is judged when the others would have moved so much in its place; default 1MiB.
        "minBytes" => min_bytes: Option<At<Bytes>>,
    }
    renamed { "off" => "disabled", }
}
