//! What is known of the energy that goes with the bytes of an endpoint. Atomics only.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use towpath_policies::model::Region;

use super::learn::Real;
use crate::energy::MOST_JOULES_PER_BYTE;

/// Of one endpoint.
#[derive(Debug, Default)]
pub(crate) struct Energy {
    /// What its region's electricity emits.
    grams_per_joule: Real,
    /// By its sidecar's reports, of late.
    joules_per_byte: Real,
    /// When the last report came.
    reported_ms: AtomicU64,
    /// The log has a line of its reports.
    doubted: AtomicBool,
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

    /// As its sidecar measured, if that is not long ago. Much less than is usual is not believed.
    pub(super) fn joules_per_byte(&self, now_ms: u64, usual: f32) -> Option<f32> {
        Some(self.measured(now_ms)?.max(usual * LEAST_OF_USUAL))
    }

    /// Whether it reports less than is believed, for the first time.
    pub(super) fn is_doubtful(&self, now_ms: u64, usual: f32) -> bool {
        let less = |measured| measured < usual * LEAST_OF_USUAL;
        self.measured(now_ms).is_some_and(less) && !self.doubted.swap(true, Relaxed)
    }

    fn measured(&self, now_ms: u64) -> Option<f32> {
        let measured = self.joules_per_byte.get()?;
        let until = self.reported_ms.load(Relaxed).saturating_add(REPORT_HOLDS_MS);
        (now_ms <= until).then_some(measured)
    }

    /// Its sidecar reports so much. What is no number, or less than nothing, is ignored; more than can
    /// be is taken for the most, since to ignore it would make the worst look usual.
    pub(crate) fn reported(&self, joules_per_byte: f64, now_ms: u64) {
        if joules_per_byte.is_nan() || joules_per_byte < 0.0 {
            return;
        }
        #[expect(clippy::cast_possible_truncation, reason = "in bounds")]
        let reported = (joules_per_byte.min(MOST_JOULES_PER_BYTE) as f32).max(LEAST_KEPT);
        let before = self.measured(now_ms).unwrap_or(reported);
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
/// Who claims less than this share of what the policy says is not believed to be better: else whoever
/// claims nothing gets all that tolerates delay.
const LEAST_OF_USUAL: f32 = 0.1;
/// What is known must differ from what is not.
const LEAST_KEPT: f32 = 1e-12;

#[cfg(test)]
mod tests {
    use super::*;

    const USUAL: f32 = 3.6e-6;

    #[test]
    fn a_report_counts_in_steps_and_not_for_ever() {
        let energy = Energy::default();
        assert_eq!(energy.joules_per_byte(1, USUAL), None);
        energy.reported(1e-5, 1000);
        assert_eq!(energy.joules_per_byte(1000, USUAL), Some(1e-5));
        energy.reported(2e-5, 2000);
        let after = energy.joules_per_byte(2000, USUAL).unwrap();
        assert!((1.19e-5..1.21e-5).contains(&after), "{after}");
        assert!(energy.joules_per_byte(602_000, USUAL).is_some());
        assert_eq!(energy.joules_per_byte(602_001, USUAL), None);
        energy.reported(3e-5, 700_000);
        assert_eq!(
            energy.joules_per_byte(700_000, USUAL),
            Some(3e-5),
            "what was before is forgotten"
        );
    }

    #[test]
    fn lies_are_bounded() {
        let after = |reported: f64| {
            let energy = Energy::default();
            energy.reported(reported, 1);
            energy.joules_per_byte(1, USUAL)
        };
        for odd in [f64::NAN, -1.0, f64::NEG_INFINITY] {
            assert_eq!(after(odd), None, "{odd}");
        }
        // The dirtiest are not taken for usual ones.
        for most in [1e-3, 1.1e-3, 5.0, f64::INFINITY] {
            assert_eq!(after(most), Some(1e-3), "{most}");
        }
        for least in [0.0, -0.0, 1e-9, 3e-7] {
            assert_eq!(after(least), Some(USUAL * 0.1), "{least}");
        }
        assert_eq!(after(4e-7), Some(4e-7));
    }

    #[test]
    fn a_doubtful_report_is_told_once() {
        let energy = Energy::default();
        energy.reported(1e-6, 1);
        assert!(!energy.is_doubtful(1, USUAL));
        energy.reported(0.0, 700_000);
        assert!(energy.is_doubtful(700_000, USUAL));
        assert!(!energy.is_doubtful(700_000, USUAL));
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
