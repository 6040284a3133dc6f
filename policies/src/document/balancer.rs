//! `BalancerPolicy` (towpath.dev/v1alpha1).

use super::{
    own::{ClientAddressSpec, CoordinatesSpec, TargetRef},
    read::{AtLeastOne, Definitions, OneOrMore, Read, choice, invalid, object, wrong_type},
    value::{
        Decimal, Factor, HeaderName, HeaderValue, PlaceName, PositiveTime, QueryName, Time, Whole,
        text,
    },
};
use crate::{
    diagnostic::Rule,
    model::Registered,
    problem::{At, Problems},
    yaml::{Node, Value},
};

object! {
    /// How an endpoint is picked.
    struct BalancerPolicySpec {
        /// The Services it is attached to.
        "targetRefs" => target_refs: AtLeastOne<TargetRef>,
        /// Default `BytesInFlight`.
        "policy" => policy: At<BalancerKind>,
        /// With `CompletionTime`: where the data of a request comes from, by the first of these that says
        /// it; else from beside the proxy.
        "origin" => origin: Option<At<OneOrMore<OriginSpec>>>,
        /// With `CompletionTime`: how much each part of the predicted time counts.
        "terms" => terms: Option<TermsSpec>,
        /// Energy that goes with a gigabyte (10^9 bytes) at endpoints whose sidecars do not measure it, 0 to
        /// 1000000 joules; default 3600. For what is counted of emissions, whatever the policy.
        "joulesPerGigabyte" => joules_per_gigabyte: Option<At<Decimal<1_000_000>>>,
        /// With `Maglev` and `RingHash`: how a request tells what it is about.
        "key" => key: Option<KeySpec>,
        /// With `Maglev` and `RingHash`: an endpoint has at most so many per cent of the mean number of
        /// requests in flight (in proportion to weight), what is beyond it goes to the next; 0 = not
        /// bounded, default 125.
        "loadBoundPercent" => load_bound_percent: Option<At<LoadBound>>,
        /// With `WeightedRoundRobin`: what weights are made of.
        "weighing" => weighing: Option<WeighingSpec>,
        /// With `WeightedRoundRobin` and `CompletionTime`: how endpoints are asked for load reports;
        /// default: by the requests to them.
        "loadReports" => load_reports: Option<LoadReportsSpec>,
        /// Where the endpoints' weights come from; default `Declared`.
        "weights" => weights: Option<At<WeightsKind>>,
        /// First a locality is drawn by these weights, then an endpoint is picked there. Every locality of
        /// the Services' endpoints must be named; default: localities do not matter.
        "localities" => localities: Option<AtLeastOne<LocalityWeightSpec>>,
        /// A priority or locality has all of its share as long as the usable part of its endpoints times
        /// this is at least 100 %, 100 to 1000; what it has less goes to the next priority, or to the other
        /// localities. Default: 140 with `localities`, else a priority is left only when none is usable.
        "overprovisioningPercent" => overprovisioning_percent: Option<At<Whole<100, 1000>>>,
    }
}

object! {
    /// What a locality counts for.
    struct LocalityWeightSpec {
        /// As at the endpoints.
        "region" => region: Option<At<String>>,
        /// As at the endpoints.
        "zone" => zone: Option<At<String>>,
        /// As at the endpoints.
        "subZone" => sub_zone: Option<At<String>>,
        /// Beside the other localities, 0 to 1000000; 0 = nothing while another can be used.
        "weight" => weight: At<Whole<0, 1_000_000>>,
    }
}

choice! {
    /// Ways to pick an endpoint.
    enum BalancerKind {
        /// The least predicted time to completion.
        "CompletionTime" => CompletionTime,
        /// Fewest bytes in flight in proportion to weight.
        "BytesInFlight" => BytesInFlight,
        /// Fewest requests in flight.
        "LeastRequest" => LeastRequest,
        /// In turn, by weight.
        "RoundRobin" => RoundRobin,
        /// In turn, by weights that load reports tell: requests per second by utilization.
        "WeightedRoundRobin" => WeightedRoundRobin,
        /// At random, by weight.
        "Random" => Random,
        /// The same endpoint for the same key, by a table that spreads keys evenly.
        "Maglev" => Maglev,
        /// The same endpoint for the same key, by the nearest point on a ring.
        "RingHash" => RingHash,
    }
}

choice! {
    /// Where weights come from.
    enum WeightsKind {
        /// From the Service.
        "Declared" => Declared,
        /// From the Service, and from there on as load reports tell the control plane; not with
        /// `Maglev` and `RingHash`, whose keys would move.
        "FromLoad" => FromLoad,
    }
}

/// 0, or 100 and more.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LoadBound(pub(crate) Option<u32>);

impl Read for LoadBound {
    fn read(node: &Node, problems: &mut Problems) -> Option<Self> {
        let percent = Whole::<0, 1000>::read(node, problems)?.0;
        if (1..100).contains(&percent) {
            let message = "less than the mean cannot be the most";
            problems.error(Rule::InvalidValue, node.span, message).help("0, or from 100 to 1000");
            return None;
        }
        Some(Self((percent > 0).then_some(percent)))
    }

    fn schema(_: &mut Definitions) -> serde_json::Value {
        serde_json::json!({
            "anyOf": [{ "const": 0 }, { "type": "integer", "minimum": 100, "maximum": 1000 }],
        })
    }
}

object! {
    /// How a request tells what it is about. One that does not is balanced as by `BytesInFlight`.
    struct KeySpec {
        /// The value of this header.
        "header" => header: Option<At<HeaderName>>,
        /// The segment of the path at this place, as it is sent to the endpoint; 1 is the first.
        "pathSegment" => path_segment: Option<At<Whole<1, 64>>>,
        /// The value of this query parameter, not decoded.
        "query" => query: Option<At<QueryName>>,
        /// The client's IP address.
        "clientAddress" => client_address: Option<ClientAddressSpec>,
    }
    exactly_one { ["header", "pathSegment", "query", "clientAddress"] }
}

object! {
    /// What weights are made of: requests per second by utilization (gRFC A58).
    struct WeighingSpec {
        /// Metrics of a report of which the largest is the utilization; where none is above 0, and by
        /// default, it is `application_utilization`, else `cpu_utilization`. At most 16.
        "metrics" => metrics: Option<At<Vec<At<MetricName>>>>,
        /// An endpoint must have reported for so long before its weight counts; default 10s.
        "blackout" => blackout: Option<At<Time>>,
        /// A weight without a new report for so long counts no more; default 3m.
        "expiration" => expiration: Option<At<PositiveTime>>,
        /// Weights come into force so often, at least 100ms; default 1s.
        "updatePeriod" => update_period: Option<At<PositiveTime>>,
        /// How much the share of errors counts beside the utilization, 0 to 100; default 1.
        "errorPenalty" => error_penalty: Option<At<Factor>>,
    }
}

text!(
    /// A metric of a load report.
    MetricName,
    "^((cpu|mem|application)_utilization|(named_metrics|utilization)\\.[!-~]{1,128})$",
    |text| if is_metric(text) { Ok(()) } else { Err("is no metric of a load report") },
    "cpu_utilization, mem_utilization, application_utilization, named_metrics.NAME or utilization.NAME"
);

fn is_metric(text: &str) -> bool {
    let named = text.strip_prefix("named_metrics.").or_else(|| text.strip_prefix("utilization."));
    let is_name = |name: &str| {
        (1..=128).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic())
    };
    matches!(text, "cpu_utilization" | "mem_utilization" | "application_utilization")
        || named.is_some_and(is_name)
}

object! {
    /// How endpoints are asked for load reports.
    struct LoadReportsSpec {
        /// By a stream to each endpoint (`OpenRcaService`, HTTP/2), a report so often: 1s to 1h.
        "outOfBand" => out_of_band: At<PositiveTime>,
    }
}

object! {
    /// How a request tells where its data comes from.
    struct OriginSpec {
        /// This header says so: `48.1,11.6` (degrees, WGS 84), or a region.
        "header" => header: Option<At<HeaderName>>,
        /// The place that is registered for the tenant or device that it names.
        "registered" => registered: Option<RegisteredSpec>,
        /// Where the client's IP address is, by the proxy's database (`--geoip`).
        "clientAddress" => client_address: Option<ClientAddressSpec>,
    }
    exactly_one { ["header", "registered", "clientAddress"] }
}

object! {
    /// Where tenants or devices are.
    struct RegisteredSpec {
        /// This header names the tenant or device.
        "header" => header: At<HeaderName>,
        /// By name: a place as an endpoint's (`Frankfurt`), or coordinates.
        "places" => places: RegisteredPlaces,
    }
}

/// Names, and the place of each.
#[derive(Clone, Debug)]
pub(crate) struct RegisteredPlaces(pub(crate) Vec<(At<String>, RegisteredPlace)>);

/// A place of somebody.
#[derive(Clone, Debug)]
pub(crate) enum RegisteredPlace {
    Named(At<PlaceName>),
    Point(CoordinatesSpec),
}

impl Read for RegisteredPlaces {
    fn read(node: &Node, problems: &mut Problems) -> Option<Self> {
        const HELP: &str = "e.g. {acme: Frankfurt, globex: {latitude: 45.5, longitude: -122.7}}";
        let Value::Map(entries) = &node.value else {
            wrong_type(node, "an object of names and places", problems).help(HELP);
            return None;
        };
        if entries.is_empty() {
            problems.error(Rule::MissingField, node.span, "nobody is registered").help(HELP);
            return None;
        }
        if entries.len() > Registered::MOST {
            let message = format!("{} names are too many", entries.len());
            invalid(node.span, message, format!("at most {}", Registered::MOST), problems);
            return None;
        }
        let before = problems.errors();
        let read = |(name, place): &(At<String>, Node)| {
            // What a header can say.
            let said = Value::Scalar { text: name.value.clone(), plain: false };
            HeaderValue::read(&Node { span: name.span, value: said }, problems)?;
            Some((name.clone(), RegisteredPlace::read(place, problems)?))
        };
        let places: Vec<_> = entries.iter().filter_map(read).collect();
        (problems.errors() == before).then_some(Self(places))
    }

    fn schema(definitions: &mut Definitions) -> serde_json::Value {
        serde_json::json!({
            "type": "object",
            "minProperties": 1,
            "maxProperties": Registered::MOST,
            "additionalProperties": RegisteredPlace::schema(definitions),
        })
    }
}

impl Read for RegisteredPlace {
    fn read(node: &Node, problems: &mut Problems) -> Option<Self> {
        match &node.value {
            Value::Map(_) => CoordinatesSpec::read(node, problems).map(Self::Point),
            _ => At::read(node, problems).map(Self::Named),
        }
    }

    fn schema(definitions: &mut Definitions) -> serde_json::Value {
        let (name, point) = (PlaceName::schema(definitions), CoordinatesSpec::schema(definitions));
        serde_json::json!({ "anyOf": [name, point] })
    }
}

object! {
    /// Factors by which the parts of a predicted time count, 0 to 100; 0 is not at all, default 1. And the
    /// time that emissions and money are worth to requests of the classes `bulk` and `background`.
    struct TermsSpec {
        /// The round trip between the data's origin and the endpoint.
        "network" => network: Option<At<Factor>>,
        /// The bytes of the request, on the way from their origin and at the endpoint's goodput.
        "transfer" => transfer: Option<At<Factor>>,
        /// What the endpoint has to do before: the bytes in flight at its goodput, and the requests, each as
        /// long as small ones of late.
        "queue" => queue: Option<At<Factor>>,
        /// How much slower it works than it could, by its load reports.
        "health" => health: Option<At<Factor>>,
        /// Tries that it fails and others have to repeat.
        "failures" => failures: Option<At<Factor>>,
        /// Seconds that a gram of CO2 equivalent is worth, 0 to 1000000; default 0.
        "carbon" => carbon: Option<At<Decimal<1_000_000>>>,
        /// Seconds that a cent for egress is worth, 0 to 1000000; default 0.
        "price" => price: Option<At<Decimal<1_000_000>>>,
    }
}
