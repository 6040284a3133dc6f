//! The sum itself.

use towpath_policies::model::Terms;

/// What a prediction is made from. Finite, and none below zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Facts {
    /// Seconds between the data's origin and the endpoint, there and back.
    pub(crate) network: f32,
    /// Of the try, both ways.
    pub(crate) bytes: f32,
    /// Between their origin and the endpoint.
    pub(crate) seconds_per_byte_on_the_way: f32,
    /// In flight at the endpoint.
    pub(crate) bytes_ahead: f32,
    /// In which the endpoint works off all of them.
    pub(crate) seconds_per_byte: f32,
    /// In flight, and this one.
    pub(crate) requests: f32,
    /// Seconds that a small request takes.
    pub(crate) seconds_per_request: f32,
    /// So many times longer than in health; at least 1.
    pub(crate) strain: f32,
    /// Until one succeeds; at least 1.
    pub(crate) tries: f32,
}

/// How much each part counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Factors {
    network: f32,
    transfer: f32,
    queue: f32,
    pub(crate) health: f32,
    failures: f32,
}

/// The parts of a prediction, in seconds, each as far as it counts.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Parts {
    /// The round trip between origin and endpoint.
    pub network: f32,
    /// The bytes of the request.
    pub transfer: f32,
    /// Bytes and requests in flight, and this request.
    pub queue: f32,
    /// What takes longer at the endpoint than in health.
    pub health: f32,
    /// What tries that fail cost besides.
    pub failures: f32,
}

impl Facts {
    /// The parts.
    #[inline]
    pub(crate) fn parts(&self, factors: &Factors) -> Parts {
        let network = self.network * factors.network;
        let on_the_way = self.bytes * self.seconds_per_byte_on_the_way * factors.transfer;
        let own = self.bytes * self.seconds_per_byte * factors.transfer;
        let ahead = self.bytes_ahead * self.seconds_per_byte;
        let queue = (ahead + self.requests * self.seconds_per_request) * factors.queue;
        let health = (own + queue) * (self.strain - 1.0) * factors.health;
        let transfer = on_the_way + own;
        let once = network + transfer + queue + health;
        let failures = once * (self.tries - 1.0) * factors.failures;
        Parts { network, transfer, queue, health, failures }
    }
}

impl Parts {
    /// Seconds to completion.
    #[inline]
    pub fn total(&self) -> f32 {
        self.network + self.transfer + self.queue + self.health + self.failures
    }
}

impl Parts {
    /// The parts and their names, as in a policy.
    pub const fn named(&self) -> [(&'static str, f32); 5] {
        [
            ("network", self.network),
            ("transfer", self.transfer),
            ("queue", self.queue),
            ("health", self.health),
            ("failures", self.failures),
        ]
    }
}

impl From<&Terms> for Factors {
    fn from(terms: &Terms) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "from 0 to 100")]
        let [network, transfer, queue, health, failures] =
            terms.named().map(|(_, factor)| factor as f32);
        Self { network, transfer, queue, health, failures }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts = Facts {
        network: 0.1,
        bytes: 3e6,
        seconds_per_byte_on_the_way: 5e-7,
        bytes_ahead: 1e6,
        seconds_per_byte: 5e-7,
        requests: 2.0,
        seconds_per_request: 0.25,
        strain: 2.0,
        tries: 4.0,
    };

    fn seconds(facts: Facts, terms: Terms) -> f32 {
        (facts.parts(&(&terms).into()).total() * 1000.0).round() / 1000.0
    }

    #[test]
    fn each_term_is_seconds_and_can_be_switched_off() {
        let all = Terms::default();
        // 0.1 + (1.5 + 1.5) + (0.5 + 0.5), and 1.5 + 1 for its health; × 4
        assert_eq!(seconds(FACTS, all), 26.4);
        for (without, left) in [
            (Terms { network: 0.0, ..all }, 26.0),
            (Terms { transfer: 0.0, ..all }, 8.4),
            (Terms { queue: 0.0, ..all }, 18.4),
            (Terms { health: 0.0, ..all }, 16.4),
            (Terms { failures: 0.0, ..all }, 6.6),
            (Terms { transfer: 2.0, ..all }, 44.4),
        ] {
            assert_eq!(seconds(FACTS, without), left, "{without:?}");
        }
    }

    #[test]
    fn the_worst_facts_stay_finite() {
        let worst = Facts {
            network: 1e4,
            bytes: 2e19,
            seconds_per_byte_on_the_way: 1e-2,
            bytes_ahead: 2e19,
            seconds_per_byte: 1e-2,
            requests: 4.3e9,
            seconds_per_request: 1e5,
            strain: 1e5,
            tries: 20.0,
        };
        let most = [100.0; 5];
        let [network, transfer, queue, health, failures] = most;
        let terms = Terms { network, transfer, queue, health, failures };
        assert!(worst.parts(&(&terms).into()).total().is_finite());
    }
}
