//! Joules over bytes, of late. Knows neither clocks nor counters.

/// Sums of what went, forgotten with time.
#[derive(Debug, Default)]
pub(super) struct Meter {
    joules: f64,
    /// Those of them beyond what the machine took when it was quietest.
    above: f64,
    bytes: f64,
    quietest: Quietest,
}

/// The least that the machine took of late, by hours.
///
/// Not since the start: what else the machine has got to do since would be put down to bytes for ever. Of no
/// less than a day, since a machine that is busy all night would look clean by the morning, and get busier.
#[derive(Debug, Default)]
struct Quietest {
    watts: [Option<f64>; HOURS],
    hour: usize,
    seconds: f64,
}

const HOURS: usize = 24;
const HOUR_SECONDS: f64 = 3600.0;
/// After this a share of 1/e is left.
const MEMORY_SECONDS: f64 = 60.0;
/// Of fewer bytes than these within that time nothing is said: the machine was idle, or did something else.
const LEAST_BYTES: f64 = 64.0 * 1024.0 * 1024.0;
/// With less than this share above the quietest, bytes cannot be told from noise.
const LEAST_ABOVE: f64 = 0.1;
/// A machine that took more than this was not read right: ten racks' worth.
const MOST_WATTS: f64 = 1e6;

impl Meter {
    /// So much went in so many seconds.
    pub(super) fn add(&mut self, seconds: f64, joules: f64, bytes: u64) {
        self.passes(seconds);
        if joules.is_finite() && (0.0..=MOST_WATTS * seconds).contains(&joules) {
            let watts = joules / seconds;
            if watts > 0.0 {
                self.quietest.took(watts);
            }
            self.joules += joules;
            self.above += joules - self.quietest.watts().unwrap_or(0.0).min(watts) * seconds;
            #[expect(clippy::cast_precision_loss, reason = "a measurement")]
            let bytes = bytes as f64;
            self.bytes += bytes;
        }
    }

    /// Seconds of which nothing is known.
    pub(super) fn passes(&mut self, seconds: f64) {
        self.quietest.passes(seconds);
        let left = (-seconds.max(0.0) / MEMORY_SECONDS).exp();
        self.joules *= left;
        self.above *= left;
        self.bytes *= left;
    }

    /// What a byte more takes: with all that the machine takes, whoever is busy would look clean, and get
    /// busier.
    pub(super) fn joules_per_byte(&self) -> Option<f64> {
        let clear = self.joules > 0.0 && self.above >= self.joules * LEAST_ABOVE;
        (self.bytes >= LEAST_BYTES && clear).then(|| self.above / self.bytes)
    }
}

impl Quietest {
    fn passes(&mut self, seconds: f64) {
        self.seconds += seconds.max(0.0);
        // After a day of nothing, nothing is left to be forgotten.
        for _ in 0..HOURS {
            if self.seconds < HOUR_SECONDS {
                return;
            }
            self.seconds -= HOUR_SECONDS;
            self.hour = (self.hour + 1) % HOURS;
            self.watts[self.hour] = None;
        }
        self.seconds = 0.0;
    }

    fn took(&mut self, watts: f64) {
        let hour = &mut self.watts[self.hour];
        *hour = Some(hour.map_or(watts, |least| least.min(watts)));
    }

    fn watts(&self) -> Option<f64> {
        self.watts.iter().flatten().copied().reduce(f64::min)
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
        meter.add(1.0, 100.0, 0);
        meter.add(1.0, 200.0, 32 * MIB);
        assert_eq!(meter.joules_per_byte(), None, "too few bytes");
        (0..300).for_each(|_| meter.add(1.0, 200.0, 100_000_000));
        let busy = meter.joules_per_byte().unwrap();
        assert!((0.9e-6..1.1e-6).contains(&busy), "100 W more at 100 MB/s: {busy}");
        (0..300).for_each(|_| meter.add(1.0, 200.0, 50_000_000));
        let half = meter.joules_per_byte().unwrap();
        assert!((1.9e-6..2.1e-6).contains(&half), "{half}");
        (0..300).for_each(|_| meter.add(1.0, 100.0, 1000));
        assert_eq!(meter.joules_per_byte(), None, "idle");
    }

    #[test]
    fn who_is_busy_does_not_look_cleaner_for_it() {
        let at = |megabytes: u32| {
            let mut meter = Meter::default();
            meter.add(1.0, 100.0, 0);
            let watts = 100.0 + f64::from(megabytes);
            let bytes = u64::from(megabytes) * 1_000_000;
            (0..300).for_each(|_| meter.add(1.0, watts, bytes));
            meter.joules_per_byte()
        };
        for megabytes in [20, 100, 500] {
            let joules = at(megabytes).unwrap();
            assert!((0.99e-6..1.01e-6).contains(&joules), "{megabytes}: {joules}");
        }
        assert_eq!(at(5), None, "noise");
    }

    #[test]
    fn what_a_machine_took_when_it_had_less_to_do_is_forgotten_after_a_day() {
        let mut meter = Meter::default();
        meter.add(1.0, 100.0, 0);
        // Something else has come that takes 100 W; bytes take 50 W more now and then.
        let hour = |meter: &mut Meter| {
            (0..59).for_each(|_| meter.add(60.0, 60.0 * 200.0, 0));
            meter.add(60.0, 60.0 * 250.0, 6_000_000_000);
            meter.joules_per_byte().unwrap()
        };
        let before = hour(&mut meter);
        assert!(before > 1.4e-6, "the bytes pay for it: {before}");
        let at_night = (0..21).map(|_| hour(&mut meter)).last().unwrap();
        assert!(at_night > 1.4e-6, "within a day the quietest hour counts: {at_night}");
        let after = (0..4).map(|_| hour(&mut meter)).last().unwrap();
        assert!((0.4e-6..0.6e-6).contains(&after), "{after}");
        // Nothing is known of what was before a pause of days.
        meter.passes(1e6);
        assert_eq!(meter.quietest.watts(), None);
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
