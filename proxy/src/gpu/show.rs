//! What was seen, for metrics, the log and people.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use towpath_gpu::{Reading, ServerLoad};

use super::Seen;
use crate::metrics::registry;

/// What was shown last.
#[derive(Debug, Default)]
pub(super) struct Shown {
    cards: BTreeSet<String>,
    /// In fifths, and the reason without its numbers, which change all the time.
    logged: Option<(u8, Option<String>)>,
    faults: Vec<String>,
}

impl Shown {
    pub(super) fn show(&mut self, seen: &Seen) {
        let verdict = &seen.verdict;
        registry().real("towpath_gpu_goodput_factor", &[]).set(verdict.factor);
        self.measure(seen.cards.as_deref().unwrap_or_default(), seen.cards.is_some());
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to 1")]
        let fifths = (verdict.factor * 5.0).ceil() as u8;
        let words = |reason: &String| reason.chars().filter(|c| !c.is_ascii_digit()).collect();
        let now = Some((fifths, verdict.reason.as_ref().map(words)));
        if now != self.logged {
            let well = verdict.factor >= 1.0;
            let reason = verdict.reason.as_deref().unwrap_or("well");
            match (&self.logged, well) {
                (None, true) => tracing::debug!("the GPUs are well"),
                (_, true) => tracing::info!("the GPUs are well"),
                (_, false) => tracing::warn!(goodput_factor = verdict.factor, reason, "the GPUs"),
            }
            self.logged = now;
        }
        if seen.faults != self.faults {
            for fault in &seen.faults {
                tracing::warn!(fault, "a source of the GPUs' health does not answer");
            }
            self.faults.clone_from(&seen.faults);
        }
    }

    fn measure(&mut self, cards: &[Reading], heard: bool) {
        for card in cards {
            self.cards.insert(card.id.clone());
            let of = [("card", card.id.as_str())];
            #[expect(clippy::cast_possible_truncation, reason = "what a card can say")]
            let set = |name, value: Option<f64>| {
                if let Some(value) = value {
                    registry().gauge(name, &of).set(value.round() as i64);
                }
            };
            #[expect(clippy::cast_precision_loss, reason = "bytes of a card")]
            let bytes = |value: Option<u64>| value.map(|bytes| bytes as f64);
            set("towpath_gpu_busy_percent", card.busy.map(|share| share * 100.0));
            set("towpath_gpu_vram_used_bytes", bytes(card.vram_used_bytes));
            set("towpath_gpu_vram_bytes", bytes(card.vram_total_bytes));
            set("towpath_gpu_temperature_celsius", card.hottest());
        }
        if heard {
            self.cards.retain(|id| {
                let there = cards.iter().any(|card| card.id == *id);
                if !there {
                    registry().forget(&[("card", id)]);
                }
                there
            });
        }
    }
}

impl Seen {
    /// For a person.
    pub(crate) fn json(&self) -> Value {
        json!({
            "goodput_factor": self.verdict.factor,
            "reason": self.verdict.reason,
            "busy": self.verdict.busy,
            "resets": self.verdict.resets,
            "cards": self.cards.as_ref().map(|cards| cards.iter().map(card).collect::<Value>()),
            "model_server": self.server.as_ref().map(server),
            "faults": self.faults,
        })
    }
}

fn card(card: &Reading) -> Value {
    json!({
        "id": card.id,
        "vendor": card.vendor.map(|vendor| vendor.to_string()),
        "name": card.name,
        "state": format!("{:?}", card.state).to_lowercase(),
        "busy": card.busy,
        "vram_used_bytes": card.vram_used_bytes,
        "vram_total_bytes": card.vram_total_bytes,
        "temperature_celsius": card.hottest(),
        "power_watts": card.power_watts,
        "power_cap_watts": card.power_cap_watts,
        "ecc_corrected": card.ecc_corrected,
        "ecc_uncorrected": card.ecc_uncorrected,
        "faults": card.faults.iter().map(ToString::to_string).collect::<Vec<_>>(),
    })
}

fn server(server: &ServerLoad) -> Value {
    json!({
        "requests_waiting": server.waiting,
        "requests_running": server.running,
        "kv_cache": server.kv_cache,
    })
}
