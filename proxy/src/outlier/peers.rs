//! Whether an endpoint differs from its peers by more than they differ from
//! each other: medians and median absolute deviations, which one or two odd
//! endpoints cannot move. Pure.

/// One endpoint at the table.
#[derive(Clone, Copy, Debug)]
pub struct Seat<T> {
    /// Only those of one group are compared.
    pub group: u32,
    /// It is out already: neither judged nor a measure for others.
    pub ejected: bool,
    /// What is known of it.
    pub figure: T,
}

/// What is usual among the others.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Usual {
    /// The median.
    pub median: f64,
    /// The standard deviation, estimated from the median absolute deviation.
    pub deviation: f64,
}

/// A standard deviation, in median absolute deviations of a normal distribution.
const DEVIATION: f64 = 1.4826;

/// What is usual among the peers of seat `of`, this one left out; `None` when,
/// with it, they are fewer than `min_endpoints`.
pub fn usual<T>(
    seats: &[Seat<T>],
    of: usize,
    min_endpoints: u32,
    figure: impl Fn(&T) -> Option<f64>,
) -> Option<Usual> {
    let group = seats.get(of)?.group;
    let mut figures: Vec<f64> = seats
        .iter()
        .enumerate()
        .filter(|(at, seat)| *at != of && seat.group == group && !seat.ejected)
        .filter_map(|(_, seat)| figure(&seat.figure))
        .collect();
    if figures.len() + 1 < (min_endpoints as usize).max(2) {
        return None;
    }
    let median = median(&mut figures);
    let mut distances: Vec<f64> = figures.iter().map(|x| (x - median).abs()).collect();
    Some(Usual { median, deviation: DEVIATION * self::median(&mut distances) })
}

/// Of numbers; not of none.
fn median(numbers: &mut [f64]) -> f64 {
    numbers.sort_unstable_by(f64::total_cmp);
    let half = numbers.len() / 2;
    if numbers.len() % 2 == 1 {
        numbers[half]
    } else {
        f64::midpoint(numbers[half - 1], numbers[half])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seats(figures: &[f64]) -> Vec<Seat<f64>> {
        figures.iter().map(|f| Seat { group: 0, ejected: false, figure: *f }).collect()
    }

    #[test]
    fn the_middle_of_the_others_is_usual_whatever_one_of_them_says() {
        for (figures, median, deviation) in [
            (&[0.0, 10.0, 10.0][..], 10.0, 0.0),
            (&[0.0, 10.0, 12.0], 11.0, 1.0),
            (&[0.0, 10.0, 11.0, 1e9], 11.0, 1.0),
            (&[5.0, 1.0, 2.0, 3.0, 4.0], 2.5, 1.0),
        ] {
            let usual = usual(&seats(figures), 0, 3, |f| Some(*f)).unwrap();
            assert_eq!((usual.median, usual.deviation), (median, deviation * DEVIATION));
        }
    }

    #[test]
    fn too_few_peers_say_nothing() {
        let mut table = seats(&[1.0, 2.0, 3.0]);
        assert!(usual(&table, 0, 3, |f| Some(*f)).is_some());
        assert_eq!(usual(&table, 0, 4, |f| Some(*f)), None);
        assert_eq!(usual(&table, 0, 3, |f| (*f < 3.0).then_some(*f)), None);
        table[1].ejected = true;
        assert_eq!(usual(&table, 0, 3, |f| Some(*f)), None);
        table[1].ejected = false;
        table[2].group = 1;
        assert_eq!(usual(&table, 0, 3, |f| Some(*f)), None);
        assert_eq!(usual(&table[..1], 0, 0, |f| Some(*f)), None);
    }
}
