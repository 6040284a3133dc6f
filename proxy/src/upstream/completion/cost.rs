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
    /// In flight at the endpoint, as far as they are worked off before it.
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
    /// What it emits, where that counts: no time that passes, but one that it is worth.
    #[serde(default)]
    pub carbon: f32,
    /// What its bytes cost, likewise.
    #[serde(default)]
    pub price: f32,
}

/// What a request leaves behind besides its time.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Footprint {
    /// Of CO₂ equivalent; `None` = not known.
    pub grams: Option<f32>,
    /// For its bytes between regions; `None` = not known.
    pub cents: Option<f32>,
}

/// What goes with a byte besides time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct PerByte {
    /// Either way; `None` = not known.
    pub(crate) grams: Option<f32>,
    /// To the endpoint, and from it; `None` = not known.
    pub(crate) cents: Option<(f32, f32)>,
}

/// Seconds per gram and per cent.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Worth {
    pub(crate) carbon: f32,
    pub(crate) price: f32,
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
        Parts { network, transfer, queue, health, failures, carbon: 0.0, price: 0.0 }
    }
}

impl Parts {
    /// Seconds to completion.
    #[inline]
    pub fn time(&self) -> f32 {
        self.network + self.transfer + self.queue + self.health + self.failures
    }

    /// And those that the rest is worth.
    pub fn total(&self) -> f32 {
        self.time() + self.carbon + self.price
    }

    /// The parts and their names, as in a policy.
    pub const fn named(&self) -> [(&'static str, f32); 7] {
        [
            ("network", self.network),
            ("transfer", self.transfer),
            ("queue", self.queue),
            ("health", self.health),
            ("failures", self.failures),
            ("carbon", self.carbon),
            ("price", self.price),
        ]
    }
}

impl PerByte {
    /// Of so many bytes to the endpoint, and from it.
    #[inline]
    pub(crate) fn footprint(&self, up: f32, down: f32) -> Footprint {
        Footprint {
            grams: self.grams.map(|grams| (up + down) * grams),
            cents: self.cents.map(|(to, from)| up * to + down * from),
        }
    }

    /// Nothing is known.
    pub(crate) const fn is_unknown(&self) -> bool {
        self.grams.is_none() && self.cents.is_none()
    }
}

impl Worth {
    /// Seconds for the grams, and for the cents.
    #[inline]
    pub(crate) fn seconds(&self, footprint: Footprint) -> (f32, f32) {
        let Footprint { grams, cents } = footprint;
        (grams.unwrap_or(0.0) * self.carbon, cents.unwrap_or(0.0) * self.price)
    }
}

impl From<&Terms> for Worth {
    #[expect(clippy::cast_possible_truncation, reason = "at most 1,000,000")]
    fn from(terms: &Terms) -> Self {
        Self { carbon: terms.carbon as f32, price: terms.price as f32 }
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
        let (carbon, price) = (Terms::MOST_SECONDS, Terms::MOST_SECONDS);
        let terms = Terms { network, transfer, queue, health, failures, carbon, price };
        assert!(worst.parts(&(&terms).into()).total().is_finite());
        // 1e-3 J/B at 100,000 g/kWh, and 100,000 cents per gigabyte.
        let dearest = PerByte { grams: Some(2.8e-5), cents: Some((1e-4, 1e-4)) };
        let (carbon, price) = Worth::from(&terms).seconds(dearest.footprint(2e19, 2e19));
        assert!((carbon + price).is_finite());
    }

    #[test]
    fn grams_and_cents_are_worth_seconds() {
        let terms = Terms { carbon: 2.0, price: 10.0, ..Terms::default() };
        let per_byte = PerByte { grams: Some(1e-9), cents: Some((2e-9, 9e-9)) };
        let footprint = per_byte.footprint(1e9, 3e9);
        let rounded = |x: f32| (x * 1000.0).round() / 1000.0;
        assert_eq!(footprint.grams.map(rounded), Some(4.0));
        assert_eq!(footprint.cents.map(rounded), Some(29.0), "2 up, 27 down");
        let (carbon, price) = Worth::from(&terms).seconds(footprint);
        assert_eq!((rounded(carbon), rounded(price)), (8.0, 290.0));
        let nothing = PerByte::default().footprint(1e9, 3e9);
        assert_eq!(nothing, Footprint::default());
        assert_eq!(Worth::from(&terms).seconds(nothing), (0.0, 0.0));
        assert_eq!(Worth::from(&Terms::default()).seconds(footprint), (0.0, 0.0), "off");
    }
}
