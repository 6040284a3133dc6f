//! Medians, ranges and ratios over rounds: pure functions, so that they can be tested.

use serde::Serialize;

/// A figure over several rounds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// The middle value; the mean of the two middle ones for an even count.
    pub median: f64,
    /// The smallest value.
    pub min: f64,
    /// The largest value.
    pub max: f64,
}

impl Summary {
    /// Summarises the finite ones among `values`; `None` when there is none.
    #[must_use]
    pub fn of(values: &[f64]) -> Option<Self> {
        let mut sorted: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = if sorted.len() % 2 == 1 {
            sorted[middle]
        } else {
            f64::midpoint(sorted[middle - 1], sorted[middle])
        };
        Some(Self { median, min, max })
    }
}

/// Ratios of two figures taken round by round.
///
/// A disturbance that lasts longer than a turn hits both sides of one round's ratio, so the median
/// of ratios is steadier than the ratio of medians. A round that one side lacks is left out.
#[must_use]
pub fn ratio_by_round(ours: &[Option<f64>], theirs: &[Option<f64>]) -> Option<Summary> {
    let ratios: Vec<f64> = ours
        .iter()
        .zip(theirs)
        .filter_map(|(a, b)| Some((*a)? / (*b)?))
        .filter(|ratio| ratio.is_finite())
        .collect();
    Summary::of(&ratios)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_ranges() {
        let table = [
            (&[][..], None),
            (&[f64::NAN], None),
            (&[3.0], Some((3.0, 3.0, 3.0))),
            (&[9.0, 1.0, 5.0], Some((5.0, 1.0, 9.0))),
            (&[4.0, 1.0, 2.0, 100.0], Some((3.0, 1.0, 100.0))),
            (&[2.0, f64::INFINITY, 4.0], Some((3.0, 2.0, 4.0))),
        ];
        for (values, expected) in table {
            let expected: Option<Summary> =
                expected.map(|(median, min, max)| Summary { median, min, max });
            assert_eq!(Summary::of(values), expected, "{values:?}");
        }
    }

    #[test]
    fn ratios_pair_the_values_of_one_round() {
        let ours = [Some(10.0), Some(30.0), None, Some(8.0)];
        let theirs = [Some(20.0), Some(30.0), Some(1.0), Some(0.0)];
        let ratio = ratio_by_round(&ours, &theirs).expect("two usable rounds");
        assert_eq!(ratio, Summary { median: 0.75, min: 0.5, max: 1.0 });
        assert_eq!(ratio_by_round(&[None], &[Some(1.0)]), None);
    }
}
