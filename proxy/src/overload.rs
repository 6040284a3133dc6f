//! The proxy as a whole under more load than the machine carries: the lowest classes are shed
//! first, and what was accepted goes on.
//!
//! The control thread looks ten times a second at memory, descriptors and streams, and publishes
//! one level; a request reads it with one relaxed load. Knows nothing of requests.

mod decide;
mod reading;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use tokio::time::Instant;
use towpath_policies::model::Class;

pub use decide::{Level, Resource};
pub(crate) use reading::resident;
pub use reading::{Ceilings, Reading, read};

use crate::{
    metrics::{Counter, Gauge, registry},
    world::View,
};
use decide::Shedding;

/// Where readings come from: [`read`], or what a test says.
pub type Source = Arc<dyn Fn() -> Reading + Send + Sync>;

/// What is shed now. Written by the control thread, read by every request.
#[derive(Debug)]
pub struct Overload {
    level: AtomicU8,
    resource: AtomicU8,
    /// `towpath_shed_total{class,reason}`.
    shed: [[Counter; Resource::ALL.len()]; Class::ALL.len()],
    gauge: Gauge,
}

/// Time between two looks.
const LOOK: Duration = Duration::from_millis(100);

impl Default for Overload {
    fn default() -> Self {
        let shed = Class::ALL.map(|class| {
            Resource::ALL.map(|resource| {
                let labels = [("class", class.name()), ("reason", resource.name())];
                registry().counter("towpath_shed_total", &labels)
            })
        });
        let gauge = registry().gauge("towpath_overload_level", &[]);
        Self { level: AtomicU8::new(0), resource: AtomicU8::new(0), shed, gauge }
    }
}

impl Overload {
    /// Whether a request of this class may come in.
    ///
    /// # Errors
    /// What is used up; counted.
    pub fn admit(&self, class: Class) -> Result<(), Resource> {
        let level = self.level.load(Relaxed);
        if level == 0 || !Level::from(level).sheds(class) {
            return Ok(());
        }
        let resource = self.resource.load(Relaxed);
        self.shed[class as usize][usize::from(resource)].inc();
        Err(Resource::ALL[usize::from(resource)])
    }

    /// Whether not even connections are to be accepted.
    pub fn is_full(&self) -> bool {
        Level::from(self.level.load(Relaxed)) == Level::All
    }

    /// Has requests shed from now on as this level says.
    pub fn publish(&self, level: Level, resource: Resource) {
        self.resource.store(resource as u8, Relaxed);
        let before = Level::from(self.level.swap(level as u8, Relaxed));
        self.gauge.set(level as i64);
        if level > before {
            tracing::warn!(
                ?level,
                used_up = resource.name(),
                "overload: the lowest classes are shed"
            );
        } else if level < before {
            tracing::info!(?level, "overload is less, or over");
        }
    }
}

/// Looks for as long as it is polled. `view` says how many streams there are.
pub(crate) async fn watch(
    overload: Arc<Overload>,
    ceilings: Ceilings,
    source: Source,
    view: Arc<ArcSwap<View>>,
) {
    let mut shedding = Shedding::default();
    let began = Instant::now();
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        let mut reading = source();
        for service in view.load().services.values() {
            reading.streams += u64::from(service.live.requests.load(Relaxed));
        }
        let (level, resource) = shedding.look(&reading, &ceilings, began.elapsed());
        if Level::from(overload.level.load(Relaxed)) != level {
            overload.publish(level, resource);
        }
    }
}
