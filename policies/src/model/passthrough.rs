//! What goes on to where it was going, because no policy says anything of it.

use std::time::Duration;

use super::{
    Action, Discovery, Forward, HeaderEdit, Protocol, Route, RouteMatch, Service, WeightedBackend,
};

impl Service {
    /// The name under which it is counted.
    pub const PASSTHROUGH: &'static str = "passthrough";

    /// As it would be without a proxy, as far as that can be.
    pub fn passthrough() -> Self {
        Self {
            discovery: Discovery::OriginalDestination,
            // There is nobody to be compared with, and nobody said that it may be left alone for its failures.
            outlier: None,
            // Longer than within a mesh: it is not known how far it is.
            connect_timeout: Duration::from_secs(60),
            ..Self::new(Self::PASSTHROUGH, Protocol::Follow)
        }
    }
}

impl Route {
    /// For all requests, on the terms that hold without a policy.
    pub fn passthrough() -> Self {
        let forward = Forward {
            // Nobody said that silence is an end.
            idle_timeout: None,
            ..Forward::to(vec![WeightedBackend::new(Service::PASSTHROUGH)])
        };
        Self {
            name: Service::PASSTHROUGH.to_owned(),
            matches: RouteMatch::everything(),
            action: Action::Forward(forward),
            request_headers: HeaderEdit::default(),
            response_headers: HeaderEdit::default(),
        }
    }
}
