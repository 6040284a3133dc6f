//! The same prediction, for a person.

use std::{
    net::IpAddr,
    sync::{Arc, atomic::Ordering::Relaxed},
};

use serde::{Deserialize, Serialize};
use towpath_policies::model::Class;

use super::super::{EndpointState, ServiceState, now_ms};
pub use super::cost::{Footprint, Parts};
use crate::upstream::pick::Ask;

/// What is predicted of the endpoints of a service for one request, the soonest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The region that data comes from, or where that is; empty = from beside the proxy.
    pub origin: String,
    /// The region whose prices its bytes have; `*` = those that other regions ask for any other, empty = nobody
    /// knows.
    #[serde(default)]
    pub priced_from: String,
    /// Bytes that the request is taken to move, both ways.
    pub bytes: f32,
    /// Those that may be used first, by priority, and the soonest of each priority first.
    pub endpoints: Vec<Prediction>,
}

/// What is predicted of one endpoint.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// Of the endpoint.
    pub name: String,
    /// Where it is reached.
    pub address: String,
    /// Of its locality; may be empty.
    pub region: String,
    /// As in the policy.
    pub priority: u32,
    /// Why it gets nothing new; `None` = it may.
    pub out: Option<String>,
    /// From this proxy.
    pub requests_in_flight: u32,
    /// From this proxy.
    pub bytes_in_flight: u64,
    /// In which it works off what it has, in health; `None` = nothing was measured yet.
    pub goodput_bytes_per_second: Option<f32>,
    /// The share of its goodput that it has, by its reports, 0 to 1.
    pub health: f32,
    /// The sum of the terms.
    pub seconds: f32,
    /// What it is made of.
    pub terms: Parts,
    /// What it would emit and cost, whether that counts or not.
    #[serde(default)]
    pub footprint: Footprint,
}

/// Why there is no explanation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unexplained {
    /// Another policy.
    #[error("its endpoints are not picked by CompletionTime, so nothing is predicted for them")]
    OtherPolicy,
    /// Neither coordinates nor a region.
    #[error(
        "the origin is neither `latitude,longitude` in degrees nor a region that is known here"
    )]
    Origin,
    /// No policy of the service knows this tenant or device.
    #[error("no place is registered under this name, or none whose coordinates are known")]
    Unregistered,
    /// There is no database, or it does not say.
    #[error("the proxy does not know where this client is (--geoip)")]
    Client,
}

/// What a request says of where its data comes from.
#[derive(Clone, Debug)]
pub(crate) enum Whence {
    /// Nothing.
    Here,
    /// Coordinates, or a region.
    Origin(String),
    /// The name of a tenant or device.
    Registered(String),
    /// The address of its client.
    Client(IpAddr),
}

impl ServiceState {
    /// What a request of this class and of so many bytes from this origin is predicted to take with each endpoint.
    ///
    /// # Errors
    /// [`Unexplained`].
    pub(crate) fn explain(
        &self,
        whence: &Whence,
        declared: u64,
        class: Class,
    ) -> Result<Explanation, Unexplained> {
        let completion = self.completion.as_ref().ok_or(Unexplained::OtherPolicy)?;
        let (map, origins) = (&completion.map, &completion.origins);
        let origin = match whence {
            Whence::Here => map.here(),
            Whence::Origin(text) => map.named(text.as_bytes()).ok_or(Unexplained::Origin)?,
            Whence::Registered(name) => {
                origins.registered(name).ok_or(Unexplained::Unregistered)?
            }
            Whence::Client(ip) => origins.client(map, *ip).ok_or(Unexplained::Client)?,
        };
        let ask = Ask { bytes: declared, origin, ..Ask::default() };
        let bytes = completion.expected(&ask);
        let now = now_ms();
        let load = completion.load(&ask, now);
        let row = |endpoint: &Arc<EndpointState>| {
            let live = &endpoint.live;
            #[expect(clippy::cast_precision_loss, reason = "at most 1000")]
            let warmth = live.warmth(now, &self.spec.recovery).max(1) as f32 / 1000.0;
            let mut terms =
                completion.predict(live, origin.cell, bytes, warmth, || endpoint.spec.declared());
            if let Some(footprints) = completion.footprints(class) {
                (terms.carbon, terms.price) = footprints.seconds(live, &load);
            }
            let footprint = self.per_byte(live, origin).unwrap_or_default();
            Prediction {
                name: endpoint.spec.name.clone(),
                address: endpoint.spec.address.to_string(),
                region: endpoint.spec.locality.region.clone(),
                priority: endpoint.spec.priority,
                out: out(endpoint, now).map(str::to_owned),
                requests_in_flight: live.requests.load(Relaxed),
                bytes_in_flight: live.bytes_in_flight.load(Relaxed),
                goodput_bytes_per_second: live.learned.per_byte().map(f32::recip),
                health: live.learned.strain().recip(),
                seconds: terms.total(),
                terms,
                footprint: footprint.footprint(load.up, load.down),
            }
        };
        let mut endpoints: Vec<_> = self.endpoints.iter().map(row).collect();
        let rank = |row: &Prediction| (row.out.is_some(), row.priority);
        endpoints.sort_by(|a, b| rank(a).cmp(&rank(b)).then(a.seconds.total_cmp(&b.seconds)));
        let (cells, priced_from) = (&map.cells, map.zones.name(origin.zone).to_owned());
        Ok(Explanation { origin: cells.name(origin.cell), priced_from, bytes, endpoints })
    }
}

fn out(endpoint: &EndpointState, now: u64) -> Option<&'static str> {
    if !endpoint.allowed() {
        Some("the control plane does not let it be used")
    } else if !endpoint.live.probe_healthy.load(Relaxed) {
        Some("its probes fail")
    } else if endpoint.live.ejected(now) {
        Some("it is ejected")
    } else {
        None
    }
}
