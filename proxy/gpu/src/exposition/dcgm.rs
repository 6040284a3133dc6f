//! NVIDIA's dcgm-exporter.

use super::{
    series::{Series, by_card},
    text::Sample,
};
use crate::reading::{Clocks, Fault, Heat, Reading, Throttle, Vendor, label, pci_address};

/// Reads the cards of NVIDIA's dcgm-exporter: `DCGM_FI_*`.
///
/// An instance of a card that is split (MIG) is a card of its own, since each has its memory.
///
/// # Errors
/// When the text is too large to be read.
pub fn read(text: &str) -> Result<Vec<Reading>, Fault> {
    Ok(by_card(text, name, id)?.into_iter().map(card).collect())
}

fn name<'a>(sample: &Sample<'a>) -> Option<&'a str> {
    // A field that the card does not have is told as a number near the end of its type.
    let told = sample.value.is_finite() && sample.value.abs() < BLANK;
    (told && sample.name.starts_with(FIELDS)).then_some(sample.name)
}

fn id(sample: &Sample<'_>) -> Option<String> {
    let card = sample.label(&["pci_bus_id", "uuid", "gpu"])?;
    let card = pci_address(card).unwrap_or_else(|| card.to_owned());
    Some(match sample.label(&["GPU_I_ID"]) {
        None => card,
        Some(instance) => format!("{card}/{instance}"),
    })
}

fn card(series: Series<'_>) -> Reading {
    let field = |name: &str| series.number(&format!("{FIELDS}{name}"));
    let count = |name: &str| series.count(&format!("{FIELDS}{name}"));
    let bytes = |name: &str| series.mebibytes(&format!("{FIELDS}{name}"));
    let (used, free) = (bytes("FB_USED"), bytes("FB_FREE"));
    // What the driver keeps for itself is taken as well.
    let reserved = bytes("FB_RESERVED").unwrap_or(0);
    let total = bytes("FB_TOTAL").or_else(|| used?.checked_add(free?)?.checked_add(reserved));
    let heat = |now, limit| Heat { now: field(now), critical: field(limit), emergency: None };
    let reading = Reading {
        vendor: Some(Vendor::Nvidia),
        name: series.labels.label(&["modelName"]).and_then(label),
        pci: series.labels.label(&["pci_bus_id"]).and_then(pci_address),
        unique_id: series.labels.label(&["uuid"]).and_then(label),
        healthy: field("ROW_REMAP_FAILURE").map(|failed| failed == 0.0),
        busy: field("GPU_UTIL").map(|percent| percent / 100.0),
        vram_used_bytes: used.and_then(|used| used.checked_add(reserved)),
        vram_total_bytes: total,
        edge: Heat { emergency: field("SHUTDOWN_TEMP"), ..heat("GPU_TEMP", "SLOWDOWN_TEMP") },
        memory: heat("MEMORY_TEMP", "MEM_MAX_OP_TEMP"),
        power_watts: field("POWER_USAGE"),
        power_cap_watts: field("ENFORCED_POWER_LIMIT").or_else(|| field("POWER_MGMT_LIMIT")),
        energy_joules: field("TOTAL_ENERGY_CONSUMPTION").map(|millijoules| millijoules / 1e3),
        ecc_corrected: count("ECC_SBE_VOL_TOTAL"),
        ecc_uncorrected: count("ECC_DBE_VOL_TOTAL"),
        xid: count("XID_ERRORS"),
        throttle: count("CLOCKS_EVENT_REASONS")
            .or_else(|| count("CLOCK_THROTTLE_REASONS"))
            .map(throttle),
        clocks: field("SM_CLOCK")
            .zip(field("MAX_SM_CLOCK"))
            .map(|(now, most)| Clocks { now, most }),
        id: series.id,
        ..Reading::default()
    };
    reading.bounded()
}

/// NVML's bits: 0x20 and 0x40 are heat in software and hardware, 0x4 and 0x80 power, 0x8 hardware of either kind.
fn throttle(reasons: u64) -> Throttle {
    match reasons {
        reasons if reasons & 0x60 != 0 => Throttle::Heat,
        reasons if reasons & 0x84 != 0 => Throttle::Power,
        reasons if reasons & 0x08 != 0 => Throttle::Unsaid,
        _ => Throttle::No,
    }
}

const FIELDS: &str = "DCGM_FI_DEV_";
/// `DCGM_INT64_BLANK` is 0x7ffffffffffffff0 and `DCGM_FP64_BLANK` 2⁴⁷; no field comes near either, but energy in mJ.
const BLANK: f64 = 140_737_488_355_328.0;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throttle_reasons_are_those_of_nvml() {
        for (reasons, expected) in [
            (0, Throttle::No),
            (0x1, Throttle::No),
            (0x2, Throttle::No),
            (0x4, Throttle::Power),
            (0x80 | 0x8, Throttle::Power),
            (0x20, Throttle::Heat),
            (0x40 | 0x8, Throttle::Heat),
            (0x8, Throttle::Unsaid),
        ] {
            assert_eq!(throttle(reasons), expected, "{reasons:#x}");
        }
    }
}
