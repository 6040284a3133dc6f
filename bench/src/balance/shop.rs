//! A worker's work: a few jobs at a time that share its speed, the others in the order they came.
//!
//! It knows neither clock nor socket: times are seconds that the caller counts.

use std::collections::VecDeque;

/// Work under way and waiting.
#[derive(Debug)]
pub struct Shop {
    speed: f64,
    slots: usize,
    now: f64,
    active: Vec<Task>,
    waiting: VecDeque<Task>,
    busy: f64,
}

#[derive(Debug, Clone, Copy)]
struct Task {
    id: u64,
    left: f64,
}

/// Work that rounding leaves of a task that has ended.
const CRUMB: f64 = 1e-6;

impl Shop {
    /// A shop that does so much work a second, in so many slots.
    #[must_use]
    pub fn new(speed: f64, slots: usize) -> Self {
        let (active, waiting) = (Vec::new(), VecDeque::new());
        Self { speed, slots: slots.max(1), now: 0.0, active, waiting, busy: 0.0 }
    }

    /// Takes a job on. The caller has advanced to the present.
    pub fn push(&mut self, id: u64, work: f64) {
        self.waiting.push_back(Task { id, left: work });
        self.fill();
    }

    /// Works at another speed from now on.
    pub fn set_speed(&mut self, speed: f64) {
        self.speed = speed;
    }

    /// Drops the jobs that are not `wanted`.
    pub fn retain(&mut self, mut wanted: impl FnMut(u64) -> bool) {
        self.active.retain(|task| wanted(task.id));
        self.waiting.retain(|task| wanted(task.id));
        self.fill();
    }

    /// Works until `now` and returns the jobs that ended, in order.
    pub fn advance(&mut self, now: f64) -> Vec<u64> {
        let mut ended = Vec::new();
        while let Some(next) = self.next_end().filter(|next| *next <= now) {
            self.work(next);
            self.active.retain(|task| {
                let done = task.left <= CRUMB;
                if done {
                    ended.push(task.id);
                }
                !done
            });
            self.fill();
        }
        self.work(now);
        ended
    }

    /// When the next job ends if nothing else happens.
    #[must_use]
    pub fn next_end(&self) -> Option<f64> {
        let least = self.active.iter().map(|task| task.left).reduce(f64::min)?;
        Some(self.now + least * self.active.len() as f64 / self.speed)
    }

    /// Seconds in which there was work.
    #[must_use]
    pub fn busy(&self) -> f64 {
        self.busy
    }

    /// Jobs that wait for a slot.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.waiting.len()
    }

    fn work(&mut self, now: f64) {
        let time = (now - self.now).max(0.0);
        if !self.active.is_empty() {
            self.busy += time;
            let each = time * self.speed / self.active.len() as f64;
            self.active.iter_mut().for_each(|task| task.left -= each);
        }
        self.now = self.now.max(now);
    }

    fn fill(&mut self) {
        while self.active.len() < self.slots {
            let Some(task) = self.waiting.pop_front() else { return };
            self.active.push(task);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Everything that ends until `until`, with its time.
    fn ends(shop: &mut Shop, until: f64) -> Vec<(u64, f64)> {
        let mut all = Vec::new();
        while let Some(next) = shop.next_end().filter(|next| *next <= until) {
            all.extend(shop.advance(next).into_iter().map(|id| (id, (next * 1e6).round() / 1e6)));
        }
        shop.advance(until);
        all
    }

    #[test]
    fn jobs_share_the_speed_and_more_than_slots_wait_in_order() {
        let mut shop = Shop::new(10.0, 2);
        for (id, work) in [(1, 10.0), (2, 5.0), (3, 5.0), (4, 1.0)] {
            shop.push(id, work);
        }
        assert_eq!(shop.queued(), 2);
        // 1 and 2 at 5 each: 2 ends at 1. Then 3 beside 1: both have 5 left and end at 2, then 4.
        assert_eq!(ends(&mut shop, 9.0), [(2, 1.0), (1, 2.0), (3, 2.0), (4, 2.1)]);
        assert!((shop.busy() - 2.1).abs() < 1e-9);
    }

    #[test]
    fn no_work_is_lost_or_made_however_time_passes() {
        for step in [0.001, 0.013, 0.5, 100.0] {
            let mut shop = Shop::new(7.0, 3);
            for id in 0..20 {
                shop.push(id, 1.0 + f64::from(u32::try_from(id % 5).expect("small")));
            }
            let (mut now, mut ended) = (0.0, Vec::new());
            while ended.len() < 20 {
                now += step;
                ended.extend(shop.advance(now));
            }
            // 20 jobs of 3 on average: 60 units of work at 7 a second.
            assert!((shop.busy() - 60.0 / 7.0).abs() < 1e-6, "{step}: {}", shop.busy());
            ended.sort_unstable();
            assert_eq!(ended, (0..20).collect::<Vec<u64>>());
        }
    }

    #[test]
    fn a_fall_slows_what_is_under_way() {
        let mut shop = Shop::new(10.0, 4);
        shop.push(1, 10.0);
        assert!(shop.advance(0.5).is_empty());
        shop.set_speed(1.0);
        assert_eq!(ends(&mut shop, 9.0), [(1, 5.5)]);
    }

    #[test]
    fn what_nobody_waits_for_is_dropped_and_makes_room() {
        let mut shop = Shop::new(1.0, 1);
        shop.push(1, 100.0);
        shop.push(2, 1.0);
        shop.advance(1.0);
        shop.retain(|id| id != 1);
        assert_eq!(ends(&mut shop, 5.0), [(2, 2.0)]);
    }
}
