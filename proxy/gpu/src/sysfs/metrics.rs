//! `gpu_metrics`: the table that the firmware of a card fills, of which each
//! generation has its own version (`kgd_pp_interface.h` in Linux).
//!
//! It is read by offset, each behind a check of length. Versions that are not
//! known are left alone, since fields have moved between all of them.

use crate::reading::{Reading, Residency, Throttle};

/// What the table adds to what the files say.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Table {
    energy_joules: Option<f64>,
    throttle: Option<Throttle>,
    residency: Option<Residency>,
    activity: Option<f64>,
    hotspot: Option<f64>,
    memory: Option<f64>,
    power_watts: Option<f64>,
}

impl Table {
    /// Puts into `reading` what it lacks.
    pub(super) fn complete(self, reading: &mut Reading) {
        reading.energy_joules = self.energy_joules;
        reading.throttle = self.throttle;
        reading.residency = self.residency;
        reading.busy = reading.busy.or(self.activity);
        reading.junction.now = reading.junction.now.or(self.hotspot);
        reading.memory.now = reading.memory.now.or(self.memory);
        reading.power_watts = reading.power_watts.or(self.power_watts);
    }
}

/// Reads a table; `None` when it is none, or of a version that is not known.
pub(super) fn parse(bytes: &[u8]) -> Option<Table> {
    let (size, format, content) = (half(bytes, 0)?, *bytes.get(2)?, *bytes.get(3)?);
    // What lies behind the size that the table claims is not its own.
    let bytes = bytes.get(..usize::from(size))?;
    Some(match (format, content) {
        (1, 1 | 2) => card_table(bytes, None),
        (1, 3) => card_table(bytes, long(bytes, 112).map(independent_throttle)),
        (1, 4) => accelerator_table(bytes, 24, word(bytes, 40).map(accelerator_throttle)),
        (1, 5) => accelerator_table(bytes, 88, word(bytes, 104).map(accelerator_throttle)),
        (1, 6) => Table { residency: residency(bytes, 104), ..accelerator_table(bytes, 88, None) },
        // Newer accelerators and APUs: their files say the rest.
        (1..=3, _) => Table::default(),
        _ => return None,
    })
}

/// Versions 1.1 to 1.3: Radeon, and Instinct up to MI200. What holds the clocks down is said independently of the
/// generation only from 1.3 on.
fn card_table(bytes: &[u8], throttle: Option<Throttle>) -> Table {
    Table {
        hotspot: small(bytes, 6),
        memory: small(bytes, 8),
        activity: small(bytes, 16).map(share),
        power_watts: small(bytes, 22),
        energy_joules: energy(bytes, 24),
        throttle,
        residency: None,
    }
}

/// Versions 1.4 to 1.6: MI300.
fn accelerator_table(bytes: &[u8], energy_at: usize, throttle: Option<Throttle>) -> Table {
    Table {
        hotspot: small(bytes, 4),
        memory: small(bytes, 6),
        power_watts: small(bytes, 10),
        activity: small(bytes, 12).map(share),
        energy_joules: energy(bytes, energy_at),
        throttle,
        residency: None,
    }
}

/// `indep_throttle_status`: power from bit 0, current from 16, temperature from 32.
fn independent_throttle(bits: u64) -> Throttle {
    if bits & 0xffff_0000_0000 != 0 {
        Throttle::Heat
    } else if bits & 0xffff_ffff != 0 {
        Throttle::Power
    } else if bits != 0 && bits != u64::MAX {
        Throttle::Unsaid
    } else {
        Throttle::No
    }
}

/// `throttle_status` of MI300: the board's signal, power, die, voltage regulator, memory.
fn accelerator_throttle(bits: u32) -> Throttle {
    match bits {
        0 | u32::MAX => Throttle::No,
        bits if bits & 0b11101 != 0 => Throttle::Heat,
        bits if bits & 0b00010 != 0 => Throttle::Power,
        _ => Throttle::Unsaid,
    }
}

/// A counter of looks, then of those at which the board's signal, power, die, voltage regulator and memory held it down.
fn residency(bytes: &[u8], at: usize) -> Option<Residency> {
    let looks = word(bytes, at)?;
    let hot = [4, 12, 16, 20].into_iter().filter_map(|offset| word(bytes, at + offset));
    let hot = hot.filter(|count| *count != u32::MAX).max()?;
    (looks != u32::MAX).then_some(Residency { looks, hot })
}

/// The accumulator counts 2⁻¹⁶ J. Many Radeon cards have none and say 0.
fn energy(bytes: &[u8], at: usize) -> Option<f64> {
    let count = long(bytes, at)?;
    (count != 0 && count != u64::MAX).then(|| count as f64 / 65_536.0)
}

fn share(percent: f64) -> f64 {
    percent / 100.0
}

/// A number of 16 bits, all of which are set when the sensor is not there.
fn small(bytes: &[u8], at: usize) -> Option<f64> {
    half(bytes, at).filter(|number| *number != u16::MAX).map(f64::from)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A table of `size` bytes, all set, with `fields` written into it.
    fn table(size: u16, version: (u8, u8), fields: &[(usize, &[u8])]) -> Vec<u8> {
        let mut bytes = vec![0xff; usize::from(size)];
        bytes[..2].copy_from_slice(&size.to_le_bytes());
        (bytes[2], bytes[3]) = version;
        for (at, field) in fields {
            bytes[*at..*at + field.len()].copy_from_slice(field);
        }
        bytes
    }

    #[test]
    fn a_radeon_tells_what_holds_it_down() {
        for (bits, throttle) in [
            (0_u64, Throttle::No),
            (1 << 1, Throttle::Power),
            (1 << 16, Throttle::Power),
            (1 << 36, Throttle::Heat),
            (1 << 36 | 1, Throttle::Heat),
            (1 << 47, Throttle::Heat),
            (1 << 56, Throttle::Unsaid),
        ] {
            let bytes = table(
                120,
                (1, 3),
                &[
                    (6, &104_u16.to_le_bytes()),
                    (16, &97_u16.to_le_bytes()),
                    (22, &355_u16.to_le_bytes()),
                    (24, &(65_536_u64 * 1000).to_le_bytes()),
                    (112, &bits.to_le_bytes()),
                ],
            );
            let expected = Table {
                energy_joules: Some(1000.0),
                throttle: Some(throttle),
                activity: Some(0.97),
                hotspot: Some(104.0),
                power_watts: Some(355.0),
                ..Table::default()
            };
            assert_eq!(parse(&bytes), Some(expected), "{bits:#x}");
        }
    }

    #[test]
    fn an_mi300_counts_how_long_it_was_held_down() {
        let bytes = table(
            300,
            (1, 6),
            &[
                (104, &5000_u32.to_le_bytes()),
                (108, &0_u32.to_le_bytes()),
                (112, &4000_u32.to_le_bytes()), // power: not counted
                (116, &700_u32.to_le_bytes()),
                (120, &0_u32.to_le_bytes()),
            ],
        );
        assert_eq!(
            parse(&bytes).and_then(|table| table.residency),
            Some(Residency { looks: 5000, hot: 700 })
        );
    }

    #[test]
    fn an_mi300_of_older_firmware_has_its_own_bits() {
        for (bits, throttle) in
            [(0_u32, Throttle::No), (2, Throttle::Power), (4, Throttle::Heat), (6, Throttle::Heat)]
        {
            let bytes = table(200, (1, 4), &[(40, &bits.to_le_bytes())]);
            assert_eq!(parse(&bytes).and_then(|table| table.throttle), Some(throttle));
            let bytes = table(264, (1, 5), &[(104, &bits.to_le_bytes())]);
            assert_eq!(parse(&bytes).and_then(|table| table.throttle), Some(throttle));
        }
    }

    #[test]
    fn a_table_cut_off_anywhere_is_read_as_far_as_it_goes() {
        for version in
            [(1, 0), (1, 1), (1, 3), (1, 4), (1, 5), (1, 6), (1, 9), (2, 1), (3, 0), (9, 9)]
        {
            let bytes = table(300, version, &[]);
            for length in 0..bytes.len() {
                assert_eq!(parse(&bytes[..length]), None, "shorter than it claims");
                let mut honest = bytes[..length].to_vec();
                if length >= 2 {
                    honest[..2]
                        .copy_from_slice(&u16::try_from(length).expect("short").to_le_bytes());
                }
                parse(&honest);
            }
        }
    }
}
