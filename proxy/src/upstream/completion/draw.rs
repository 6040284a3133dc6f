//! Which endpoints are looked at where there are too many to weigh them all.

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use super::{
    super::Level,
    places::{Cell, Cells, NUMBERS},
};

/// The endpoints of a level by their cells, and how often each cell is drawn.
#[derive(Debug)]
pub(crate) struct Draw {
    groups: Box<[Group]>,
    /// For each origin the groups' shares, added up, of the whole `u32` range.
    shares: Box<[AtomicU32]>,
}

/// Endpoints of one cell, which lie side by side in [`Level::members`].
#[derive(Debug)]
struct Group {
    cell: Cell,
    first: u32,
    count: u32,
    weight: u64,
}

impl Draw {
    /// The members of the level must lie in order of their cells.
    pub(crate) fn new(level: &Level, cell_of: &[Cell], weight: impl Fn(u32) -> u32) -> Self {
        let mut groups: Vec<Group> = Vec::new();
        for (at, member) in (0..).zip(&level.members) {
            let (cell, weight) = (cell_of[*member as usize], u64::from(weight(*member)));
            match groups.last_mut().filter(|group| group.cell == cell) {
                Some(group) => {
                    group.count += 1;
                    group.weight += weight;
                }
                None => groups.push(Group { cell, first: at, count: 1, weight }),
            }
        }
        let shares = (0..NUMBERS * groups.len()).map(|_| AtomicU32::new(u32::MAX)).collect();
        Self { groups: groups.into(), shares }
    }

    /// Draws cells from here on in proportion to their capacity and to how soon they complete what is
    /// usual (`seconds`, by the cell of the endpoint and that of the origin).
    pub(crate) fn weigh(&self, cells: &Cells, seconds: impl Fn(Cell, Cell) -> f32) {
        for origin in cells.all() {
            let weight = |group: &Group| {
                #[expect(clippy::cast_precision_loss, reason = "a share")]
                let capacity = group.weight as f64;
                capacity / f64::from(seconds(group.cell, origin).max(1e-4))
            };
            let all: f64 = self.groups.iter().map(weight).sum();
            let mut sum = 0.0;
            for (group, share) in self.groups.iter().zip(self.shares(origin)) {
                sum += weight(group);
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "saturates"
                )]
                share.store((sum / all * f64::from(u32::MAX)) as u32, Relaxed);
            }
        }
    }

    /// An endpoint drawn for this origin: its place in [`Level::members`], and its group.
    pub(crate) fn likely(&self, origin: Cell) -> (usize, usize) {
        let random = fastrand::u64(..);
        let high = u32::try_from(random >> 32).unwrap_or(u32::MAX);
        let shares = self.shares(origin);
        let group = shares.iter().position(|share| high <= share.load(Relaxed));
        let group = group.unwrap_or(shares.len() - 1);
        (self.member(group, random & 0xFFFF_FFFF), group)
    }

    /// An endpoint of any other group, if there is one: those that are rarely drawn are where there is
    /// room when the likely ones are full.
    pub(crate) fn beside(&self, group: usize) -> usize {
        let random = fastrand::u64(..);
        let others = (self.groups.len() - 1).max(1);
        let nth = usize::try_from(((random >> 32) * others as u64) >> 32).unwrap_or(0);
        let other = if nth >= group { nth + 1 } else { nth };
        self.member(other.min(self.groups.len() - 1), random & 0xFFFF_FFFF)
    }

    fn member(&self, group: usize, random: u64) -> usize {
        let group = &self.groups[group];
        let nth = (random * u64::from(group.count)) >> 32;
        group.first as usize + usize::try_from(nth).unwrap_or(0)
    }

    fn shares(&self, origin: Cell) -> &[AtomicU32] {
        let groups = self.groups.len();
        &self.shares[origin.index() * groups..][..groups]
    }
}

#[cfg(test)]
mod tests {
    use super::{super::places::Numbers, *};

    #[test]
    fn cells_are_drawn_by_capacity_and_nearness() {
        let mut numbers = Numbers::default();
        let mut settling = numbers.settle(None);
        let mut cell = |region: &str| settling.endpoint(region, None);
        // Ten of weight 100 near, ten of weight 300 ten times as far.
        let cell_of: Vec<_> = (0..20).map(|i| cell(if i < 10 { "near" } else { "far" })).collect();
        let cells = settling.finish().0;
        let level =
            Level { priority: 0, members: (0..20).collect(), lives: [].into(), weight: 4000 };
        let draw = Draw::new(&level, &cell_of, |i| if i < 10 { 100 } else { 300 });
        draw.weigh(&cells, |cell, _| if cell == cell_of[0] { 0.01 } else { 0.1 });
        let mut counts = [0_u32; 20];
        (0..26_000).for_each(|_| counts[draw.likely(Cell::HERE).0] += 1);
        for (at, count) in counts.into_iter().enumerate() {
            let expected = if at < 10 { 1800..2200 } else { 480..720 };
            assert!(expected.contains(&count), "{at}: {count}");
        }
        assert!((0..100).all(|_| draw.beside(0) >= 10));
        assert!((0..100).all(|_| draw.beside(1) < 10));
    }
}
