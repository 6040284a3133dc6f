//! From readings to the share of its goodput that a node has left.
//!
//! [`Judge`] is a state machine without a clock. It falls at once and rises
//! slowly, so that a node on the brink does not flap; it remembers what it saw,
//! so that a sensor or a card that vanishes makes nothing look better. What each
//! number does is in `docs/gpu-health.md`, and why in [`Limits`].

use std::time::Duration;

use crate::{
    faults::FaultLog,
    reading::{Reading, ServerLoad},
};

mod card;
mod limits;
mod pace;
mod terms;

pub use limits::Limits;

use card::Card;
use pace::{Clock, Pace, Remembered};
use terms::Term;

/// How much of its goodput a node has left, and why it is not all of it.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// 0 (drained) to 1 (all of it).
    pub factor: f64,
    /// Why it is not 1, for a person: the worst there is, with its card where there are several.
    pub reason: Option<String>,
    /// How busy the cards are on average, 0 to 1. It does not enter the factor: to be busy is to be well.
    pub busy: Option<f64>,
    /// How many resets of cards were seen.
    pub resets: u64,
}

/// Judges a node by what is read of it over time.
#[derive(Debug)]
pub struct Judge {
    limits: Limits,
    clock: Clock,
    cards: Vec<Card>,
    /// The most cards that were seen at once.
    most: usize,
    /// The resets of cards that are no longer remembered.
    past_resets: u64,
    server: Remembered,
    /// A model server takes most of the memory for its cache, and tells how full that is. Kept when it is silent once.
    own_cache: bool,
    pace: Pace,
    faults: FaultLog,
    /// Why the factor is where it is, while it has not risen again.
    why: Option<String>,
}

impl Judge {
    /// A judge who has seen nothing.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            clock: Clock::default(),
            cards: Vec::new(),
            most: 0,
            past_resets: 0,
            server: Remembered::default(),
            own_cache: false,
            pace: Pace::default(),
            faults: FaultLog::default(),
            why: None,
        }
    }

    /// Takes what was read at `now` and says how well the node is.
    ///
    /// `cards` are all cards of the node, or `None` when their source did not answer: a source that answers without a card
    /// says that the card is gone, and one that is silent says nothing. `server` is the model server, where there is one
    /// and it answered. `now` may count from anywhere.
    pub fn observe(
        &mut self,
        now: Duration,
        cards: Option<&[Reading]>,
        server: Option<&ServerLoad>,
    ) -> Verdict {
        let at = self.clock.advance(now, self.limits.longest_step);
        let server = server.map(|load| load.bounded());
        let readings: Option<Vec<Reading>> = cards
            .map(|cards| cards.iter().take(MAX_CARDS).map(|card| card.clone().bounded()).collect());
        if let Some(readings) = &readings {
            self.faults.note(readings);
            self.meet(readings);
        }
        let served = server.as_ref().and_then(|load| terms::server(load, &self.limits));
        let served = self.server.follow(served, "the model server", at, &self.limits);
        self.own_cache |= server.is_some_and(|load| load.kv_cache.is_some());
        let target = self.target(readings.as_deref(), served, at);
        let factor = self.pace.follow(target.factor, at, &self.limits);
        Verdict {
            factor,
            reason: self.explain(target, factor),
            busy: readings.as_deref().and_then(mean_busy),
            resets: self.past_resets + self.cards.iter().map(Card::resets).sum::<u64>(),
        }
    }

    /// Remembers cards that are seen for the first time. Where as many are seen as ever, those that are not are no loss: they
    /// were changed for others, or their source calls them by another name now.
    fn meet(&mut self, readings: &[Reading]) {
        if readings.len() >= self.most {
            self.most = readings.len();
            let seen = |card: &mut Card| readings.iter().any(|reading| reading.id == card.id());
            self.past_resets += self
                .cards
                .extract_if(.., |card| !seen(card))
                .map(|card| card.resets())
                .sum::<u64>();
        }
        for reading in readings {
            let known = self.cards.iter().any(|card| card.id() == reading.id);
            if !known && self.cards.len() < MAX_CARDS {
                self.cards.push(Card::new(reading.id.clone()));
            }
        }
    }

    /// What the node should come to: the mean of its cards, as far as the model server leaves it.
    fn target(&mut self, readings: Option<&[Reading]>, served: Option<Term>, at: Duration) -> Term {
        let count = self.cards.len();
        let (limits, own_cache) = (&self.limits, self.own_cache);
        let judged = self.cards.iter_mut().map(|card| {
            let term = match readings {
                None => card.unheard(at, limits),
                Some(readings) => match readings.iter().find(|reading| reading.id == card.id()) {
                    Some(reading) => card.observe(reading, own_cache, at, limits),
                    None => card.missed(at, limits),
                },
            };
            if count == 1 { term } else { term.of(card.id()) }
        });
        let cards = match Term::mean(judged) {
            Some(term) => Some(term),
            // A model server speaks for the cards that nobody reads.
            None if served.is_some() => None,
            None => Some(Term::new(limits.unknown, "no GPU is seen")),
        };
        match (cards, served) {
            (Some(cards), Some(served)) => cards.times(served),
            (Some(term), None) | (None, Some(term)) => term,
            (None, None) => Term::good(),
        }
    }

    /// The reason for `factor`, which may still be below what `target` asks for.
    fn explain(&mut self, target: Term, factor: f64) -> Option<String> {
        if factor >= target.factor {
            self.why.clone_from(&target.reason);
            return target.reason;
        }
        let why = self.why.as_deref().unwrap_or("a fault");
        Some(format!("recovering from: {why}"))
    }
}

impl Default for Judge {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

fn mean_busy(readings: &[Reading]) -> Option<f64> {
    let busy: Vec<f64> = readings.iter().filter_map(|reading| reading.busy).collect();
    (!busy.is_empty()).then(|| busy.iter().sum::<f64>() / busy.len() as f64)
}

/// Eight cards in eight partitions, twice.
const MAX_CARDS: usize = 128;

#[cfg(test)]
mod tests;
