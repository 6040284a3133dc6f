//! How much energy goes with the bytes through this machine, for the load reports of sidecars.
//!
//! What its processors took by the kernel's counters (RAPL) and what its GPUs draw, over the bytes that
//! went through the proxy meanwhile. What is above the quietest of the last day is put down to them: where that
//! is little, or few bytes went, nothing is said.

mod meter;
mod rapl;

use std::{
    path::PathBuf,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use towpath_gpu::Reading;

use crate::{gpu::Gpus, metrics::registry, world::View};
use meter::Meter;
use rapl::{Packages, ROOT};

/// Where this machine's energy is read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Counters {
    /// Nowhere.
    #[default]
    Off,
    /// Where the kernel shows them.
    Auto,
    /// In a tree like `/sys/class/powercap`.
    Powercap(PathBuf),
}

/// What is known of it now.
#[derive(Debug, Default)]
pub(crate) struct Energy {
    /// Somebody wants to know.
    asked: AtomicBool,
    /// As bits; 0 = not known.
    joules_per_byte: AtomicU64,
}

/// 1 kW at 1 MB/s: more is a lie, or a machine that does something else than to move bytes.
pub(crate) const MOST_JOULES_PER_BYTE: f64 = 1e-3;
/// What one look is worth.
const LOOK: Duration = Duration::from_secs(1);

impl FromStr for Counters {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "auto" => Ok(Self::Auto),
            None if text == "off" => Ok(Self::Off),
            Some(("powercap", path)) if !path.is_empty() => Ok(Self::Powercap(path.into())),
            _ => Err(format!("`{text}` is none of auto, off, powercap:PATH")),
        }
    }
}

impl Energy {
    /// Joules that went with a byte, of late. From the first call on it is looked at.
    pub(crate) fn joules_per_byte(&self) -> Option<f64> {
        if !self.asked.load(Relaxed) {
            self.asked.store(true, Relaxed);
        }
        Some(f64::from_bits(self.joules_per_byte.load(Relaxed))).filter(|joules| *joules > 0.0)
    }
}

/// Looks for as long as it is polled.
pub(crate) async fn watch(
    counters: Counters,
    energy: Arc<Energy>,
    gpus: Arc<Gpus>,
    view: Arc<ArcSwap<View>>,
) {
    let root = match counters {
        Counters::Off => return,
        Counters::Auto => ROOT.into(),
        Counters::Powercap(root) => root,
    };
    let mut packages = Packages::new(root);
    let mut meter = Meter::default();
    let mut before: Option<Before> = None;
    let mut told = false;
    let mut tick = tokio::time::interval(LOOK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if !energy.asked.load(Relaxed) {
            continue;
        }
        let now = Before { at: Instant::now(), view: view.load_full(), bytes: 0 };
        let now = Before { bytes: bytes(&now.view), ..now };
        let since = |before: &Before| now.at.duration_since(before.at).as_secs_f64();
        let seconds = before.as_ref().map_or(0.0, since);
        let joules = packages.joules(seconds);
        if let Some(before) = before.replace(now.clone()) {
            // Endpoints come and go with a configuration, and their counts with them.
            let moved = Arc::ptr_eq(&before.view, &now.view)
                .then(|| now.bytes.saturating_sub(before.bytes));
            let drawn = Drawn::by(&gpus);
            if drawn == Drawn::Untold && !std::mem::replace(&mut told, true) {
                tracing::info!(
                    "not all GPUs tell their power, so nothing is told of joules per byte"
                );
            }
            match (joules, drawn, moved) {
                (Some(joules), Drawn::Watts(watts), Some(bytes)) => {
                    meter.add(seconds, joules + watts * seconds, bytes);
                }
                // Of this time nothing is known.
                _ => meter.passes(seconds),
            }
        }
        let known = meter.joules_per_byte().map_or(0.0, |joules| joules.min(MOST_JOULES_PER_BYTE));
        energy.joules_per_byte.store(known.to_bits(), Relaxed);
        registry().real("towpath_energy_joules_per_byte", &[]).set(known);
    }
}

/// What there was at the last look.
#[derive(Clone)]
struct Before {
    at: Instant,
    view: Arc<View>,
    bytes: u64,
}

/// Body bytes to and from all endpoints.
fn bytes(view: &View) -> u64 {
    let endpoints = view.services.values().flat_map(|service| &service.endpoints);
    endpoints.fold(0, |sum: u64, endpoint| {
        let metrics = &endpoint.live.metrics;
        sum.wrapping_add(metrics.bytes_sent.value()).wrapping_add(metrics.bytes_received.value())
    })
}

/// What the GPUs draw.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Drawn {
    /// Nobody has looked yet.
    Unseen,
    /// There are some that do not say.
    Untold,
    /// All of them.
    Watts(f64),
}

impl Drawn {
    fn by(gpus: &Gpus) -> Self {
        if !gpus.has_looked() {
            return Self::Unseen;
        }
        let Some(seen) = gpus.seen().filter(|seen| seen.has_source) else {
            return Self::Watts(0.0);
        };
        let told = |cards: &Vec<Reading>| cards.iter().map(|card| card.power_watts).sum();
        seen.cards.as_ref().and_then(told).map_or(Self::Untold, Self::Watts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gpu::GpuConfig;

    /// It would be taken for what the machine takes at its quietest.
    #[tokio::test]
    async fn gpus_that_nobody_has_looked_at_yet_do_not_count_as_none() {
        let gpus = Arc::new(Gpus::default());
        assert_eq!(Drawn::by(&gpus), Drawn::Unseen);
        crate::gpu::watch(GpuConfig::default(), gpus.clone()).await;
        assert_eq!(Drawn::by(&gpus), Drawn::Watts(0.0), "there are none");
    }

    #[test]
    fn sources_are_read_as_they_are_written() {
        for (text, counters) in [
            ("auto", Some(Counters::Auto)),
            ("off", Some(Counters::Off)),
            (
                "powercap:/sys/class/powercap",
                Some(Counters::Powercap("/sys/class/powercap".into())),
            ),
            ("powercap:", None),
            ("rapl", None),
            ("", None),
        ] {
            assert_eq!(text.parse::<Counters>().ok(), counters, "{text}");
        }
    }
}
