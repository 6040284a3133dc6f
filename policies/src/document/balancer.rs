//! `BalancerPolicy` (towpath.dev/v1alpha1).

use super::{
    own::TargetRef,
    read::{AtLeastOne, choice, object},
    value::{Factor, HeaderName},
};
use crate::problem::At;

object! {
    /// How an endpoint is picked.
    struct BalancerPolicySpec {
        /// The Services it is attached to.
        "targetRefs" => target_refs: AtLeastOne<TargetRef>,
        /// Default `BytesInFlight`.
        "policy" => policy: At<BalancerKind>,
        /// With `CompletionTime`: where the data of a request comes from; default: from beside the proxy.
        "origin" => origin: Option<OriginSpec>,
        /// With `CompletionTime`: how much each part of the predicted time counts.
        "terms" => terms: Option<TermsSpec>,
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
        /// At random, by weight.
        "Random" => Random,
    }
}

object! {
    /// How a request tells where its data comes from.
    struct OriginSpec {
        /// This header says so: `48.1,11.6` (degrees, WGS 84), or the region of an endpoint.
        "header" => header: At<HeaderName>,
    }
}

object! {
    /// Factors by which the parts of a predicted time count, 0 to 100; 0 is not at all, default 1.
    struct TermsSpec {
        /// The round trip between the data's origin and the endpoint.
        "network" => network: Option<At<Factor>>,
        /// The bytes in flight and those of the request, at the endpoint's goodput.
        "transfer" => transfer: Option<At<Factor>>,
        /// The requests at the endpoint, each as long as small ones of late.
        "queue" => queue: Option<At<Factor>>,
        /// How much slower it works than it could, by its load reports.
        "health" => health: Option<At<Factor>>,
        /// Tries that it fails and others have to repeat.
        "failures" => failures: Option<At<Factor>>,
    }
}
