//! What the API said, kept over restarts. Time is an argument.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use towpath_policies::model::Region;

/// Raised when the stored shape changes; a file of another one is not read.
const FORMAT: u32 = 1;
/// So long what was said counts where nothing newer is.
const COUNTS_FOR: Duration = Duration::from_secs(6 * 3600);

/// Carbon intensities by zone.
#[derive(Debug, Default)]
pub(super) struct Cache(BTreeMap<String, Entry>);

#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
struct Entry {
    grams_per_kwh: f64,
    /// When that was said.
    unix_seconds: u64,
}

#[derive(Serialize, Deserialize)]
struct Stored {
    format: u32,
    zones: BTreeMap<String, Entry>,
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
        let possible = |grams: f64| (0.0..=Region::MOST_CARBON).contains(&grams);
        stored.zones.retain(|_, entry| possible(entry.grams_per_kwh));
        Ok(Self(stored.zones))
    }

    pub(super) fn write(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec(&Stored { format: FORMAT, zones: self.0.clone() })
    }

    pub(super) fn put(&mut self, zone: &str, grams_per_kwh: f64, now: SystemTime) {
        let entry = Entry { grams_per_kwh, unix_seconds: unix(now) };
        self.0.insert(zone.to_owned(), entry);
    }

    /// What is known of all zones.
    pub(super) fn known(&self) -> BTreeMap<String, f64> {
        self.0.iter().map(|(zone, entry)| (zone.clone(), entry.grams_per_kwh)).collect()
    }

    /// Forgets what does not count any more: the zones of which that is so.
    pub(super) fn expire(&mut self, now: SystemTime) -> Vec<String> {
        let old = self.0.iter().filter(|(_, entry)| entry.counts_for(now).is_zero());
        let old: Vec<_> = old.map(|(zone, _)| zone.clone()).collect();
        self.0.retain(|zone, _| !old.contains(zone));
        old
    }

    /// Time until something does not count any more.
    pub(super) fn expires_in(&self, now: SystemTime) -> Option<Duration> {
        self.0.values().map(|entry| entry.counts_for(now)).min()
    }
}

impl Entry {
    /// One from the future, as a clock that was set back leaves it, is old.
    fn counts_for(&self, now: SystemTime) -> Duration {
        match unix(now).checked_sub(self.unix_seconds) {
            Some(age) => COUNTS_FOR.saturating_sub(Duration::from_secs(age)),
            None => Duration::ZERO,
        }
    }
}

fn unix(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hour(hours: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs((500_000 + hours) * 3600)
    }

    #[test]
    fn what_was_said_counts_for_six_hours() {
        let mut cache = Cache::default();
        assert_eq!(cache.expires_in(hour(0)), None);
        cache.put("DE", 380.0, hour(0));
        cache.put("NO-NO1", 30.5, hour(3));
        assert_eq!(cache.expires_in(hour(5)), Some(Duration::from_secs(3600)));
        assert_eq!(cache.expire(hour(5)), [""; 0]);
        assert_eq!(cache.expire(hour(6)), ["DE"]);
        assert_eq!(cache.known(), [("NO-NO1".to_owned(), 30.5)].into());
        // The clock was set back.
        assert_eq!(cache.expire(hour(2)), ["NO-NO1"]);
    }

    #[test]
    fn what_is_written_is_read_and_nonsense_is_not() {
        let mut cache = Cache::default();
        cache.put("DE", 380.0, hour(0));
        cache.put("XX", -1.0, hour(0));
        let bytes = cache.write().unwrap();
        assert_eq!(Cache::read(&bytes).unwrap().known(), [("DE".to_owned(), 380.0)].into());
        assert!(Cache::read(&bytes[..bytes.len() / 2]).is_err());
        assert!(Cache::read(br#"{"format":2,"zones":{}}"#).unwrap().known().is_empty());
    }
}
