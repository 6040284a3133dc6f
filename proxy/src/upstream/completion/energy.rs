//! What is known of the energy that goes with the bytes of an endpoint. Atomics only.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use towpath_policies::model::Region;

use super::learn::Real;

/// Of one endpoint.
#[derive(Debug, Default)]
pub(crate) struct Energy {
    /// What its region's electricity emits.
    grams_per_joule: Real,
    /// By its sidecar's reports, of late.
    joules_per_byte: Real,
    /// When the last report came.
    reported_ms: AtomicU64,
}

impl Energy {
    /// The endpoint stands in a region of which this is known.
    pub(crate) fn stands_in(&self, region: Option<&Region>) {
        match region.and_then(|region| region.carbon_intensity) {
            Some(intensity) => self.grams_per_joule.set(grams_per_joule(intensity)),
            None => self.grams_per_joule.unset(),
        }
    }

    /// Grams of CO₂ equivalent per joule.
    pub(super) fn grams_per_joule(&self) -> Option<f32> {
        self.grams_per_joule.get()
    }

    /// As its sidecar measured, if that is not long ago.
    pub(super) fn joules_per_byte(&self, now_ms: u64) -> Option<f32> {
        let measured = self.joules_per_byte.get()?;
        let until = self.reported_ms.load(Relaxed).saturating_add(REPORT_HOLDS_MS);
        (now_ms <= until).then_some(measured)
    }

    /// Its sidecar reports so much. What is not a number in bounds is ignored.
    pub(crate) fn reported(&self, joules_per_byte: f64, now_ms: u64) {
        if !(0.0..=MOST_JOULES_PER_BYTE).contains(&joules_per_byte) {
            return;
        }
        #[expect(clippy::cast_possible_truncation, reason = "in bounds")]
        let reported = (joules_per_byte as f32).max(LEAST_JOULES_PER_BYTE);
        let before = self.joules_per_byte(now_ms).unwrap_or(reported);
        self.joules_per_byte.set(before + (reported - before) * REPORT_STEP);
        self.reported_ms.store(now_ms, Relaxed);
    }
}

/// Grams of CO₂ equivalent per joule where a kilowatt-hour emits so many.
#[expect(clippy::cast_possible_truncation, reason = "at most 0.03")]
pub(super) fn grams_per_joule(carbon_intensity: f64) -> f32 {
    ((carbon_intensity / JOULES_PER_KWH) as f32).max(LEAST_GRAMS)
}

/// A kilowatt-hour.
const JOULES_PER_KWH: f64 = 3.6e6;
/// Also hydropower has a little; and what is known must differ from what is not.
const LEAST_GRAMS: f32 = 1e-12;
/// Such a report goes so far towards what it says.
const REPORT_STEP: f32 = 0.2;
/// An endpoint that has said nothing for ten minutes is taken for one that does not say.
const REPORT_HOLDS_MS: u64 = 600_000;
/// 1 kW at 1 MB/s: more is a lie, or a machine that does something else than to move bytes.
const MOST_JOULES_PER_BYTE: f64 = 1e-3;
/// 100 W at 100 GB/s: who claims less than that is not believed to be better.
const LEAST_JOULES_PER_BYTE: f32 = 1e-9;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_counts_in_steps_and_not_for_ever() {
        let energy = Energy::default();
        assert_eq!(energy.joules_per_byte(1), None);
        energy.reported(1e-5, 1000);
        assert_eq!(energy.joules_per_byte(1000), Some(1e-5));
        energy.reported(2e-5, 2000);
        let after = energy.joules_per_byte(2000).unwrap();
        assert!((1.19e-5..1.21e-5).contains(&after), "{after}");
        assert!(energy.joules_per_byte(602_000).is_some());
        assert_eq!(energy.joules_per_byte(602_001), None);
        energy.reported(3e-5, 700_000);
        assert_eq!(energy.joules_per_byte(700_000), Some(3e-5), "what was before is forgotten");
    }

    #[test]
    fn lies_are_bounded() {
        let energy = Energy::default();
        for odd in [f64::NAN, -1.0, 1.1e-3, f64::INFINITY, f64::NEG_INFINITY] {
            energy.reported(odd, 1);
            assert_eq!(energy.joules_per_byte(1), None, "{odd}");
        }
        energy.reported(-0.0, 1);
        assert_eq!(energy.joules_per_byte(1), Some(LEAST_JOULES_PER_BYTE));
    }

    #[test]
    fn clean_electricity_is_known_to_be_clean() {
        let energy = Energy::default();
        let region = |carbon_intensity| Region { carbon_intensity, ..Region::default() };
        for (region, grams) in [
            (None, None),
            (Some(region(Some(360.0))), Some(1e-4)),
            (Some(region(Some(0.0))), Some(LEAST_GRAMS)),
            (Some(region(None)), None),
        ] {
            energy.stands_in(region.as_ref());
            assert_eq!(energy.grams_per_joule(), grams);
        }
    }
}
