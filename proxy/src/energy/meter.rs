//! Joules over bytes, of late. Knows neither clocks nor counters.

/// Sums of what went, forgotten with time.
#[derive(Debug, Default)]
pub(super) struct Meter {
    joules: f64,
    bytes: f64,
}

/// After this a share of 1/e is left.
const MEMORY_SECONDS: f64 = 60.0;
/// Of fewer bytes than these within that time nothing is said: the machine was idle, or did something else.
const LEAST_BYTES: f64 = 64.0 * 1024.0 * 1024.0;
/// A machine that took more than this was not read right: ten racks' worth.
const MOST_WATTS: f64 = 1e6;

impl Meter {
    /// So much went in so many seconds.
    pub(super) fn add(&mut self, seconds: f64, joules: f64, bytes: u64) {
        self.passes(seconds);
        if joules.is_finite() && (0.0..=MOST_WATTS * seconds).contains(&joules) {
            self.joules += joules;
            #[expect(clippy::cast_precision_loss, reason = "a measurement")]
            let bytes = bytes as f64;
            self.bytes += bytes;
        }
    }

    /// Seconds of which nothing is known.
    pub(super) fn passes(&mut self, seconds: f64) {
        let left = (-seconds.max(0.0) / MEMORY_SECONDS).exp();
        self.joules *= left;
        self.bytes *= left;
    }

    pub(super) fn joules_per_byte(&self) -> Option<f64> {
        (self.bytes >= LEAST_BYTES && self.joules > 0.0).then(|| self.joules / self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn it_takes_bytes_to_say_something_and_what_is_old_is_forgotten() {
        let mut meter = Meter::default();
        assert_eq!(meter.joules_per_byte(), None);
        meter.add(1.0, 200.0, 32 * MIB);
        assert_eq!(meter.joules_per_byte(), None, "too few bytes");
        (0..10).for_each(|_| meter.add(1.0, 200.0, 100_000_000));
        let busy = meter.joules_per_byte().unwrap();
        assert!((1.9e-6..2.3e-6).contains(&busy), "200 W at 100 MB/s: {busy}");
        (0..300).for_each(|_| meter.add(1.0, 200.0, 50_000_000));
        let half = meter.joules_per_byte().unwrap();
        assert!((3.9e-6..4.1e-6).contains(&half), "{half}");
        (0..300).for_each(|_| meter.add(1.0, 100.0, 1000));
        assert_eq!(meter.joules_per_byte(), None, "idle");
    }

    #[test]
    fn what_cannot_be_is_left_out() {
        let mut meter = Meter::default();
        for joules in [f64::NAN, f64::INFINITY, -1.0, 1e9] {
            meter.add(1.0, joules, 1000 * MIB);
            assert_eq!(meter.joules_per_byte(), None, "{joules}");
        }
        meter.add(-5.0, 10.0, 1000 * MIB);
        assert_eq!(meter.joules_per_byte(), None);
    }
}
