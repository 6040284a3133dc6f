//! The samples of a text sorted by card.

use std::collections::HashMap;

use super::text::{Sample, samples};
use crate::reading::{Fault, label};

/// The metrics of one card by name.
pub(super) struct Series<'a> {
    pub(super) id: String,
    pub(super) labels: Sample<'a>,
    values: HashMap<&'a str, f64>,
}

impl Series<'_> {
    /// The number called `name`.
    pub(super) fn number(&self, name: &str) -> Option<f64> {
        self.values.get(name).copied()
    }

    /// A number that counts, as far as it can be one.
    pub(super) fn count(&self, name: &str) -> Option<u64> {
        self.number(name).filter(|count| (0.0..MAX_COUNT).contains(count)).map(|count| count as u64)
    }

    /// A size that is told in MiB.
    pub(super) fn mebibytes(&self, name: &str) -> Option<u64> {
        self.count(name).and_then(|mebibytes| mebibytes.checked_mul(1 << 20))
    }
}

/// Sorts the samples of `text` by card. `name` says what a metric is called, or `None` when it is not wanted; `id` names
/// the card. Of samples that differ only in what else they say (a pod, an index), the highest counts.
pub(super) fn by_card<'a>(
    text: &'a str,
    name: impl Fn(&Sample<'a>) -> Option<&'a str>,
    id: impl Fn(&Sample<'a>) -> Option<String>,
) -> Result<Vec<Series<'a>>, Fault> {
    let mut cards: Vec<Series<'a>> = Vec::new();
    let mut places: HashMap<String, usize> = HashMap::new();
    for sample in samples(text)? {
        let Some(name) = name(&sample) else { continue };
        let Some(id) = id(&sample).and_then(|id| label(&id)) else { continue };
        let place = match places.get(&id) {
            Some(place) => *place,
            None if cards.len() == MAX_CARDS => continue,
            None => {
                places.insert(id.clone(), cards.len());
                cards.push(Series { id, labels: sample.clone(), values: HashMap::new() });
                cards.len() - 1
            }
        };
        let value = cards[place].values.entry(name).or_insert(sample.value);
        if sample.value > *value || value.is_nan() {
            *value = sample.value;
        }
    }
    cards.sort_by(|one, other| one.id.cmp(&other.id));
    Ok(cards)
}

/// Beyond it, a float no longer counts by one.
const MAX_COUNT: f64 = 9e15;
const MAX_CARDS: usize = 128;
