//! AMD's cards through amdgpu's tree below `/sys/class/drm`.
//!
//! The files are those of Documentation/gpu/amdgpu in Linux. Any may be missing
//! (they differ by card and kernel), and each is read up to a bound. A card that
//! sleeps is let sleep: some kernels would wake it to answer, others would
//! refuse as they do in a reset, so `power/runtime_status` is asked first.

use std::{fs, path::Path};

use crate::reading::{Clocks, Fault, Heat, Problem, Reading, State, Vendor, label, pci_address};

mod file;
mod metrics;

use file::{Device, Failure};

/// Where the kernel shows its cards.
pub const ROOT: &str = "/sys/class/drm";

/// Reads all cards of the amdgpu driver below `root`, in the order of their addresses.
///
/// # Errors
/// When `root` itself cannot be read, which says nothing about cards. A `root` without cards is an answer.
pub fn read(root: &Path) -> Result<Vec<Reading>, Fault> {
    let unreadable = |error: std::io::Error| {
        Fault::new(root.display().to_string(), Problem::Unreadable(error.to_string()))
    };
    let mut cards: Vec<Reading> = fs::read_dir(root)
        .map_err(unreadable)?
        .take(MAX_ENTRIES)
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| is_card(name))
        .filter_map(|name| read_card(&root.join(name).join("device")))
        .take(MAX_CARDS)
        .collect();
    cards.sort_by(|one, other| one.id.cmp(&other.id));
    Ok(cards)
}

/// `card0`, and not its connectors (`card0-DP-1`).
fn is_card(name: &str) -> bool {
    name.strip_prefix("card").is_some_and(|number| {
        !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

/// Reads one card; `None` for those of other drivers, and one that does not say which it is.
fn read_card(path: &Path) -> Option<Reading> {
    let mut device = Device::new(path);
    let uevent = device.text("uevent").unwrap_or_default();
    let field = |key: &str| {
        uevent.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('=')).map(str::trim)
    };
    let ours = match field("DRIVER") {
        Some(driver) => driver == "amdgpu",
        None => device.text("vendor").is_some_and(|vendor| vendor.trim() == AMD),
    };
    if !ours {
        return None;
    }
    // A card under another name would look like a second one, and a well one at that.
    let pci = field("PCI_SLOT_NAME").and_then(pci_address).or_else(|| linked_address(path))?;
    let model = device.optional_text("product_name").and_then(|text| label(&text));
    let mut reading = Reading {
        id: pci.clone(),
        vendor: Some(Vendor::Amd),
        name: model.or_else(|| {
            label(field("PCI_ID")?).map(|id| format!("AMD {}", id.to_ascii_lowercase()))
        }),
        pci: Some(pci),
        unique_id: device.optional_text("unique_id").and_then(|text| label(&text)),
        vram_vendor: device.optional_text("mem_info_vram_vendor").and_then(|text| label(&text)),
        ..Reading::default()
    };
    let status = device.optional_text("power/runtime_status").unwrap_or_default();
    if matches!(status.trim(), "suspended" | "suspending") {
        reading.state = State::Asleep;
    } else {
        read_load(&mut device, &mut reading);
        // A card that does not answer would only be at fault once more for each file.
        if reading.state == State::Ready {
            read_monitor(&mut device, &mut reading);
            read_errors(&mut device, &mut reading);
            read_metrics(&mut device, &mut reading);
        }
    }
    reading.faults = device.into_faults();
    Some(reading.bounded())
}

/// The address that the link to the device ends with.
fn linked_address(device: &Path) -> Option<String> {
    pci_address(fs::canonicalize(device).ok()?.file_name()?.to_str()?)
}

/// What runs on the card and what it takes.
fn read_load(device: &mut Device, reading: &mut Reading) {
    let busy = device.try_number::<f64>("gpu_busy_percent");
    if let Err(failure) = &busy {
        reading.state = state_of(failure);
        if reading.state != State::Ready {
            return;
        }
    }
    reading.busy = device.noted("gpu_busy_percent", busy).map(|percent| percent / 100.0);
    reading.vram_used_bytes = device.number("mem_info_vram_used");
    reading.vram_total_bytes = device.number("mem_info_vram_total");
    if let Some(levels) = device.optional_text("pp_dpm_sclk") {
        reading.clocks = clocks(&levels);
        if reading.clocks.is_none() && !levels.trim().is_empty() {
            device.fault("pp_dpm_sclk", Problem::Garbled("levels in MHz"));
        }
    }
}

/// Whether a card that does not answer is gone or will be back: amdgpu answers EPERM (EBUSY since the end of 2025) while it
/// resets a card, and the drm core ENODEV once a card is off the bus.
fn state_of(failure: &Failure) -> State {
    match failure {
        Failure::System { code: Some(EPERM | EBUSY), .. } => State::Resetting,
        Failure::System { code: Some(ENODEV), .. } => State::Lost,
        _ => State::Ready,
    }
}

/// Temperatures and power, from the `hwmon` of the card.
fn read_monitor(device: &mut Device, reading: &mut Reading) {
    let Some(monitor) = device.monitor() else {
        device.fault("hwmon", Problem::Missing);
        return;
    };
    for number in 1..=MAX_SENSORS {
        let Some(name) = device.optional_text(&format!("{monitor}/temp{number}_label")) else {
            continue;
        };
        let heat = match name.trim() {
            "edge" => &mut reading.edge,
            "junction" => &mut reading.junction,
            "mem" => &mut reading.memory,
            _ => continue,
        };
        let celsius = |millidegrees: f64| millidegrees / 1e3;
        *heat = Heat {
            now: device.number(&format!("{monitor}/temp{number}_input")).map(celsius),
            critical: device.optional_number(&format!("{monitor}/temp{number}_crit")).map(celsius),
            emergency: device
                .optional_number(&format!("{monitor}/temp{number}_emergency"))
                .map(celsius),
        };
    }
    let watts = |microwatts: f64| microwatts / 1e6;
    reading.power_watts = device
        .optional_number(&format!("{monitor}/power1_average"))
        .or_else(|| device.optional_number(&format!("{monitor}/power1_input")))
        .map(watts);
    reading.power_cap_watts = device.optional_number(&format!("{monitor}/power1_cap")).map(watts);
}

/// Sums the counters of all blocks: memory (`umc`), caches (`gfx`), engines (`sdma`) and links (`xgmi_wafl`). When one
/// cannot be read there is no sum: that of the others would look as if it had fallen, and then as if it had risen.
fn read_errors(device: &mut Device, reading: &mut Reading) {
    let files = device.names("ras", |name| name.ends_with("_err_count"));
    let mut sum = (!files.is_empty()).then_some((0_u64, 0_u64));
    for file in files {
        let file = format!("ras/{file}");
        let text = device.text(&file);
        if text.as_deref().is_some_and(|text| text.trim() == RAS_CLOSED) {
            reading.state = State::Resetting;
            return;
        }
        let counts = text.as_deref().and_then(error_counts);
        if text.is_some() && counts.is_none() {
            device.fault(&file, Problem::Garbled("\"ue: N\" and \"ce: N\""));
        }
        sum = sum
            .zip(counts)
            .map(|(sum, counts)| (sum.0.saturating_add(counts.0), sum.1.saturating_add(counts.1)));
    }
    (reading.ecc_uncorrected, reading.ecc_corrected) = sum.unzip();
}

/// The uncorrected and the corrected errors of a block.
fn error_counts(text: &str) -> Option<(u64, u64)> {
    let count =
        |key: &str| text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse().ok());
    Some((count("ue:")?, count("ce:")?))
}

/// Adds what only the firmware's table tells.
fn read_metrics(device: &mut Device, reading: &mut Reading) {
    let Some(bytes) = device.optional_bytes("gpu_metrics") else { return };
    match metrics::parse(&bytes) {
        Some(table) => table.complete(reading),
        None => device.fault("gpu_metrics", Problem::Garbled("a table of a known version")),
    }
}

/// The level marked by a star, of lines like `1: 1250Mhz *`, and the highest. They are not always sorted.
fn clocks(levels: &str) -> Option<Clocks> {
    let (mut now, mut most) = (None, None::<f64>);
    for line in levels.lines().take(MAX_LEVELS) {
        let Some((_, level)) = line.split_once(':') else { continue };
        let starred = level.contains('*');
        let level = level.trim().trim_end_matches('*').trim().to_ascii_lowercase();
        let Some(megahertz) =
            level.strip_suffix("mhz").and_then(|number| number.trim().parse().ok())
        else {
            continue;
        };
        most = Some(most.map_or(megahertz, |most| most.max(megahertz)));
        if starred {
            now = Some(megahertz);
        }
    }
    Some(Clocks { now: now?, most: most? })
}

/// AMD's number as a PCI vendor.
const AMD: &str = "0x1002";
/// What the error counters say while a card is reset.
const RAS_CLOSED: &str = "Query currently inaccessible";
const EPERM: i32 = 1;
const EBUSY: i32 = 16;
const ENODEV: i32 = 19;
const MAX_ENTRIES: usize = 4096;
const MAX_CARDS: usize = 128;
const MAX_SENSORS: u8 = 16;
const MAX_LEVELS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_in_reset_is_told_from_one_that_is_gone_and_one_that_is_closed_to_us() {
        let system = |code| Failure::System { code: Some(code), text: String::new() };
        for (failure, state) in [
            (system(EPERM), State::Resetting),
            (system(EBUSY), State::Resetting),
            (system(ENODEV), State::Lost),
            (system(13), State::Ready), // EACCES: our own rights
            (system(2), State::Ready),
            (Failure::Garbled, State::Ready),
        ] {
            assert_eq!(state_of(&failure), state, "{failure:?}");
        }
    }

    #[test]
    fn clock_levels_are_read_in_any_order() {
        let of = |now, most| Some(Clocks { now, most });
        for (levels, clocks_are) in [
            ("0: 500Mhz\n1: 31Mhz *\n2: 2219Mhz\n", of(31.0, 2219.0)),
            ("0: 132Mhz *\n1: 2100Mhz\n", of(132.0, 2100.0)),
            ("S: 19Mhz *\n0: 615Mhz\n1: 800Mhz\n2: 888Mhz\n3: 1000Mhz\n", of(19.0, 1000.0)),
            ("0: 500Mhz\n1: 800Mhz\n", None),
            ("0: *\n", None),
            ("*", None),
            ("", None),
        ] {
            assert_eq!(clocks(levels), clocks_are, "{levels}");
        }
    }

    #[test]
    fn connectors_and_renderers_are_no_cards() {
        for (name, card) in [
            ("card0", true),
            ("card12", true),
            ("card0-DP-1", false),
            ("renderD128", false),
            ("card", false),
        ] {
            assert_eq!(is_card(name), card, "{name}");
        }
    }
}
