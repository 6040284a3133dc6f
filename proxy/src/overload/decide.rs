//! What is shed at which pressure. Pure: readings and times go in, a level comes out.

use std::time::Duration;

use towpath_policies::model::Class;

use super::reading::{Ceilings, Reading};

/// What is shed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing.
    #[default]
    None,
    /// Background.
    Background,
    /// Bulk as well.
    Bulk,
    /// Everything new; connections are not accepted either.
    All,
}

/// What can be used up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Resource {
    /// Resident memory.
    #[default]
    Memory,
    /// Open descriptors.
    Descriptors,
    /// Exchanges and opaque connections in flight.
    Streams,
}

/// Thousandths of a ceiling at which a level begins, for each level above none.
const BEGINS: [u64; 3] = [800, 900, 970];
/// And so much below its beginning it may end.
const MARGIN: u64 = 50;
/// A level that began stays for so long at least, and so does each one below it on the way back.
const STAYS: Duration = Duration::from_secs(1);

/// The level, and since when.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shedding {
    level: Level,
    resource: Resource,
    /// When the pressure last called for this level.
    called: Duration,
}

impl Level {
    /// Whether requests of this class are shed.
    pub fn sheds(self, class: Class) -> bool {
        self as u8 + class as u8 >= 3
    }
}

impl From<u8> for Level {
    fn from(level: u8) -> Self {
        match level {
            0 => Self::None,
            1 => Self::Background,
            2 => Self::Bulk,
            _ => Self::All,
        }
    }
}

impl Resource {
    /// All of them, in order.
    pub const ALL: [Self; 3] = [Self::Memory, Self::Descriptors, Self::Streams];

    /// Its name in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Descriptors => "descriptors",
            Self::Streams => "streams",
        }
    }
}

impl Shedding {
    /// The level after a look at this time. Up at once; down one level at a time, when the pressure
    /// has been well below for a while, so that it does not flap around a limit.
    pub(super) fn look(
        &mut self,
        reading: &Reading,
        ceilings: &Ceilings,
        now: Duration,
    ) -> (Level, Resource) {
        let (pressure, resource) = pressure(reading, ceilings);
        let reached = |margin| {
            let over = BEGINS.iter().filter(|begins| pressure + margin >= **begins).count();
            Level::from(u8::try_from(over).unwrap_or(u8::MAX))
        };
        if reached(0) > self.level {
            *self = Self { level: reached(0), resource, called: now };
        } else if reached(MARGIN) >= self.level {
            self.called = now;
        } else if now.saturating_sub(self.called) >= STAYS {
            *self = Self { level: Level::from(self.level as u8 - 1), resource, called: now };
        }
        (self.level, self.resource)
    }
}

/// Thousandths of the ceiling that is nearest, and which one that is.
fn pressure(reading: &Reading, ceilings: &Ceilings) -> (u64, Resource) {
    let of = |used: u64, ceiling: u64| match ceiling {
        0 => 0,
        _ => used.saturating_mul(1000) / ceiling,
    };
    let memory = of(reading.resident, ceilings.memory).max(of(reading.group, reading.group_most));
    let descriptors = of(reading.descriptors, ceilings.descriptors);
    let all = [memory, descriptors, of(reading.streams, ceilings.streams)];
    // Of equals the first.
    let (most, resource) =
        all.into_iter().zip(Resource::ALL).rev().max_by_key(|(p, _)| *p).unwrap_or_default();
    (most, resource)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CEILINGS: Ceilings = Ceilings { memory: 1000, descriptors: 1000, streams: 1000 };

    fn at(memory: u64) -> Reading {
        Reading { resident: memory, ..Reading::default() }
    }

    #[test]
    fn the_lowest_classes_go_first() {
        for (memory, shed) in [
            (0, [false, false, false]),
            (799, [false, false, false]),
            (800, [false, false, true]),
            (899, [false, false, true]),
            (900, [false, true, true]),
            (969, [false, true, true]),
            (970, [true, true, true]),
            (u64::MAX, [true, true, true]),
        ] {
            let (level, _) = Shedding::default().look(&at(memory), &CEILINGS, Duration::ZERO);
            assert_eq!(Class::ALL.map(|class| level.sheds(class)), shed, "{memory}");
        }
    }

    #[test]
    fn whatever_is_nearest_its_ceiling_decides() {
        let reading = Reading { resident: 100, descriptors: 850, streams: 910, ..at(0) };
        let look = |r: &Reading, c: &Ceilings| Shedding::default().look(r, c, Duration::ZERO);
        assert_eq!(look(&reading, &CEILINGS), (Level::Bulk, Resource::Streams));
        let fewer = Reading { streams: 0, ..reading };
        assert_eq!(look(&fewer, &CEILINGS), (Level::Background, Resource::Descriptors));
        let group = Reading { group: 98, group_most: 100, ..fewer };
        assert_eq!(look(&group, &CEILINGS), (Level::All, Resource::Memory));
        let unknown = Ceilings { memory: 0, descriptors: 0, streams: 0 };
        assert_eq!(look(&reading, &unknown).0, Level::None, "no ceiling, no pressure");
    }

    #[test]
    fn it_recovers_by_itself_a_level_at_a_time_and_only_when_well_below() {
        let mut shedding = Shedding::default();
        let mut look =
            |memory, ms| shedding.look(&at(memory), &CEILINGS, Duration::from_millis(ms)).0;
        for (ms, memory, expected) in [
            (0, 980, Level::All),
            (100, 930, Level::All),
            (1000, 930, Level::All),
            (5000, 930, Level::All),
            (5100, 910, Level::All),
            (5900, 910, Level::All),
            (6000, 910, Level::Bulk),
            (6100, 0, Level::Bulk),
            (6500, 860, Level::Bulk),
            (7500, 0, Level::Background),
            (8400, 0, Level::Background),
            (8500, 0, Level::None),
            (8600, 810, Level::Background),
        ] {
            assert_eq!(look(memory, ms), expected, "at {ms} ms with {memory}");
        }
    }

    #[test]
    fn around_a_limit_it_does_not_flap() {
        for seed in 0..50 {
            let mut random = fastrand::Rng::with_seed(seed);
            let (mut shedding, mut changes, mut last) = (Shedding::default(), 0, Level::None);
            for tick in 0..1000 {
                let memory = 780 + random.u64(..40);
                let now = Duration::from_millis(tick * 100);
                let (level, _) = shedding.look(&at(memory), &CEILINGS, now);
                changes += u32::from(level != std::mem::replace(&mut last, level));
            }
            assert_eq!(changes, 1, "seed {seed}");
        }
    }
}
