//! What a map service answered, kept over restarts. Time is an argument.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use towpath_policies::model::Coordinates;

use super::Found;

/// Raised when the stored shape changes; a file of another one is not read.
const FORMAT: u32 = 1;
/// Most places that are remembered; those that nobody asks for go first, the oldest first.
const MAX_ENTRIES: usize = 20_000;
/// A place that was found is asked for again after this: cities do not move, but services mend
/// their answers.
const FRESH: Duration = Duration::from_secs(30 * 24 * 3600);
/// A name that nobody knew is asked for again after this.
const UNKNOWN_AGAIN: Duration = Duration::from_secs(24 * 3600);

/// Answers by name.
#[derive(Debug, Default)]
pub(super) struct Cache {
    entries: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    /// `None` = the service knows no such place.
    found: Option<Found>,
    /// When that was said.
    unix_seconds: u64,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    entries: BTreeMap<String, Entry>,
}

impl Entry {
    /// Time for which it is not asked for again. One from the future, as a clock that was set
    /// back leaves it, is old.
    fn fresh_for(&self, now: SystemTime) -> Duration {
        let life = if self.found.is_some() { FRESH } else { UNKNOWN_AGAIN };
        match unix(now).checked_sub(self.unix_seconds) {
            Some(age) => life.saturating_sub(Duration::from_secs(age)),
            None => Duration::ZERO,
        }
    }
}

impl Cache {
    /// What was stored. Entries that make no sense are left out.
    ///
    /// # Errors
    /// When it is of another form, or cut.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, serde_json::Error> {
        let mut stored: Stored = serde_json::from_slice(bytes)?;
        if stored.format != FORMAT {
            return Ok(Self::default());
        }
        stored.entries.retain(|_, entry| {
            entry.found.as_ref().is_none_or(|found| on_earth(found.coordinates))
        });
        Ok(Self { entries: stored.entries })
    }

    pub(super) fn write(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&Stored { format: FORMAT, entries: self.entries.clone() })
    }

    /// Where a place is, however long ago that was said.
    pub(super) fn coordinates(&self, name: &str) -> Option<Coordinates> {
        Some(self.entries.get(name)?.found.as_ref()?.coordinates)
    }

    /// Takes an answer; one that a place is unknown does not undo where it was.
    pub(super) fn put(&mut self, name: &str, found: Option<Found>, now: SystemTime) {
        let known = self.entries.get(name).and_then(|entry| entry.found.clone());
        let entry = Entry { found: found.or(known), unix_seconds: unix(now) };
        self.entries.insert(name.to_owned(), entry);
    }

    /// The time until a name is to be asked for; zero = now.
    pub(super) fn due_in(&self, name: &str, now: SystemTime) -> Duration {
        self.entries.get(name).map_or(Duration::ZERO, |entry| entry.fresh_for(now))
    }

    /// Forgets what is too much, and what is old and not wanted any more.
    pub(super) fn tidy(&mut self, wanted: impl Fn(&str) -> bool, now: SystemTime) {
        self.entries.retain(|name, entry| wanted(name) || !entry.fresh_for(now).is_zero());
        let excess = self.entries.len().saturating_sub(MAX_ENTRIES);
        if excess > 0 {
            let mut order: Vec<_> =
                self.entries.iter().map(|(n, e)| (wanted(n), e.unix_seconds, n.clone())).collect();
            order.sort_unstable();
            for (_, _, name) in order.into_iter().take(excess) {
                self.entries.remove(&name);
            }
        }
    }
}

fn on_earth(at: Coordinates) -> bool {
    at.latitude.abs() <= 90.0 && at.longitude.abs() <= 180.0
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(latitude: f64) -> Option<Found> {
        let coordinates = Coordinates { latitude, longitude: 1.0 };
        Some(Found { name: "Atlantis".into(), country: String::new(), coordinates })
    }

    fn day(days: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(20_000 * 24 * 3600 + days * 24 * 3600)
    }

    #[test]
    fn answers_are_fresh_for_a_month_and_unknown_names_for_a_day() {
        let mut cache = Cache::default();
        assert_eq!(cache.due_in("a", day(0)), Duration::ZERO);
        cache.put("a", found(1.0), day(0));
        cache.put("b", None, day(0));
        assert!(cache.due_in("a", day(29)) > Duration::ZERO);
        assert_eq!(cache.due_in("a", day(30)), Duration::ZERO);
        assert_eq!(cache.due_in("b", day(0)), UNKNOWN_AGAIN);
        assert_eq!(cache.due_in("b", day(1)), Duration::ZERO);
        // The clock was set back: nothing is fresh for longer than it would have been.
        let before = day(0) - Duration::from_secs(60);
        assert_eq!(cache.due_in("a", before), Duration::ZERO);
    }

    #[test]
    fn an_old_answer_is_kept_where_there_is_no_newer() {
        let mut cache = Cache::default();
        cache.put("a", found(1.0), day(0));
        assert_eq!(cache.coordinates("a").unwrap().latitude, 1.0);
        cache.put("a", None, day(40));
        assert_eq!(cache.coordinates("a").unwrap().latitude, 1.0);
        cache.put("a", found(2.0), day(41));
        assert_eq!(cache.coordinates("a").unwrap().latitude, 2.0);
        assert_eq!(cache.coordinates("b"), None);
    }

    #[test]
    fn what_is_written_is_read_and_nonsense_is_not() {
        let mut cache = Cache::default();
        cache.put("a", found(1.0), day(0));
        cache.put("b", None, day(0));
        cache.put("c", found(91.0), day(0));
        let bytes = cache.write().unwrap();
        let read = Cache::read(&bytes).unwrap();
        assert_eq!(read.entries.keys().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(read.entries["a"], cache.entries["a"]);
        assert!(Cache::read(&bytes[..bytes.len() / 2]).is_err());
        assert!(Cache::read(br#"{"format":2,"entries":{}}"#).unwrap().entries.is_empty());
    }

    #[test]
    fn what_is_not_wanted_goes_first_when_it_is_too_much() {
        let mut cache = Cache::default();
        for n in 0..MAX_ENTRIES + 10 {
            cache.put(&format!("{n}"), found(1.0), day(u64::from(n > 100)));
        }
        cache.put("old", found(1.0), day(0));
        cache.tidy(|name| name == "7", day(2));
        assert_eq!(cache.entries.len(), MAX_ENTRIES);
        assert!(cache.entries.contains_key("7") && cache.entries.contains_key("200"));
        cache.tidy(|name| name == "7", day(100));
        assert_eq!(cache.entries.keys().collect::<Vec<_>>(), ["7"]);
    }
}
