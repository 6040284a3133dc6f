//! AMD's device-metrics-exporter.

use super::{
    series::{Series, by_card},
    text::Sample,
};
use crate::reading::{Clocks, Fault, Heat, Reading, Throttle, Vendor, label};

/// Reads the cards of AMD's device-metrics-exporter: `gpu_*`, with the prefix it may be set to put before them.
///
/// In a mode of partitions each is a card of its own, since each has its memory.
///
/// # Errors
/// When the text is too large to be read.
pub fn read(text: &str) -> Result<Vec<Reading>, Fault> {
    Ok(by_card(text, name, id)?.into_iter().map(card).collect())
}

fn name<'a>(sample: &Sample<'a>) -> Option<&'a str> {
    let name = METRICS.into_iter().find(|name| sample.name.ends_with(name))?;
    let before = &sample.name[..sample.name.len() - name.len()];
    // There is a clock for each engine; those of the compute units are meant.
    let meant = !name.ends_with("clock") || sample.label(&["clock_type"]) == Some("system");
    (meant && (before.is_empty() || before.ends_with('_'))).then_some(name)
}

/// Serial numbers come last: both dies of an MI250 have the same.
fn id(sample: &Sample<'_>) -> Option<String> {
    let card = sample.label(&["gpu_uuid", "gpu_id", "serial_number"])?;
    Some(match sample.label(&["gpu_partition_id"]) {
        None | Some("0") => card.to_owned(),
        Some(partition) => format!("{card}/{partition}"),
    })
}

fn card(series: Series<'_>) -> Reading {
    let heat = |name| Heat { now: series.number(name), ..Heat::default() };
    // What a card has no sensor for is left out or 0.
    let watts = ["gpu_package_power", "gpu_average_package_power", "gpu_power_usage"]
        .into_iter()
        .filter_map(|name| series.number(name))
        .find(|watts| *watts > 0.0);
    let clock = |name| series.number(name).filter(|megahertz| *megahertz > 0.0);
    let reading = Reading {
        vendor: Some(Vendor::Amd),
        name: series.labels.label(&["card_model", "card_series"]).and_then(label),
        unique_id: series.labels.label(&["gpu_uuid", "serial_number"]).and_then(label),
        healthy: series.number("gpu_health").map(|flag| flag > 0.0),
        busy: series.number("gpu_gfx_activity").map(|percent| percent / 100.0),
        vram_used_bytes: series.mebibytes("gpu_used_vram"),
        vram_total_bytes: series.mebibytes("gpu_total_vram"),
        edge: heat("gpu_edge_temperature"),
        junction: heat("gpu_junction_temperature"),
        memory: heat("gpu_memory_temperature"),
        power_watts: watts,
        energy_joules: series.number("gpu_energy_consumed").map(|microjoules| microjoules / 1e6),
        ecc_corrected: series.count("gpu_ecc_correct_total"),
        ecc_uncorrected: series.count("gpu_ecc_uncorrect_total"),
        throttle: throttle(&series),
        clocks: clock("gpu_clock")
            .zip(clock("gpu_max_clock"))
            .map(|(now, most)| Clocks { now, most }),
        id: series.id,
        ..Reading::default()
    };
    reading.bounded()
}

/// The exporter says in how much of the last while each cause held the clocks down.
fn throttle(series: &Series<'_>) -> Option<Throttle> {
    let most = |names: [&str; 4]| {
        names.into_iter().filter_map(|name| series.number(name)).reduce(f64::max)
    };
    let heat = most(HOT)?;
    let power = series.number("gpu_violation_ppt_residency_percentage").unwrap_or(0.0);
    Some(match (heat, power) {
        (heat, _) if heat >= NOTABLE_PERCENT => Throttle::Heat,
        (_, power) if power >= NOTABLE_PERCENT => Throttle::Power,
        _ => Throttle::No,
    })
}

/// A card that touches its limit for an instant is not slow.
const NOTABLE_PERCENT: f64 = 10.0;

const HOT: [&str; 4] = [
    "gpu_violation_processor_hot_residency_percentage",
    "gpu_violation_socket_thermal_residency_percentage",
    "gpu_violation_vr_thermal_residency_percentage",
    "gpu_violation_hbm_thermal_residency_percentage",
];

/// The metrics that are read.
const METRICS: [&str; 20] = [
    "gpu_health",
    "gpu_gfx_activity",
    "gpu_used_vram",
    "gpu_total_vram",
    "gpu_edge_temperature",
    "gpu_junction_temperature",
    "gpu_memory_temperature",
    "gpu_average_package_power",
    "gpu_package_power",
    "gpu_power_usage",
    "gpu_energy_consumed",
    "gpu_ecc_correct_total",
    "gpu_ecc_uncorrect_total",
    "gpu_clock",
    "gpu_max_clock",
    HOT[0],
    HOT[1],
    HOT[2],
    HOT[3],
    "gpu_violation_ppt_residency_percentage",
];
