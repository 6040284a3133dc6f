//! What is known of one card, or of a model server, at one time.

use std::fmt;

/// One card at one time. What its source does not tell is `None`.
///
/// Sources: `sysfs` is amdgpu's tree (Linux, Documentation/gpu/amdgpu), `nvml`
/// NVIDIA's library, `dcgm` NVIDIA's dcgm-exporter, `amd` AMD's
/// device-metrics-exporter, `amd-smi` the program.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reading {
    /// What tells this card from others for as long as the node runs: its PCI address, else what the source has.
    pub id: String,
    /// Who made it.
    pub vendor: Option<Vendor>,
    /// Its model. `sysfs`: `product_name`, else the PCI id of `uevent`.
    pub name: Option<String>,
    /// Its PCI address, as the kernel writes it (`0000:c1:00.0`).
    pub pci: Option<String>,
    /// Its serial number. `sysfs`: `unique_id`; `nvml` and `dcgm`: the UUID.
    pub unique_id: Option<String>,
    /// Who made its memory. `sysfs`: `mem_info_vram_vendor`.
    pub vram_vendor: Option<String>,
    /// Whether it can be asked at all.
    pub state: State,
    /// What the source itself thinks of it. `amd`: `gpu_health`; `dcgm`: false when the remapping of rows has failed.
    pub healthy: Option<bool>,
    /// The share of time in which something ran on it, 0 to 1. `sysfs`: `gpu_busy_percent`.
    pub busy: Option<f64>,
    /// Bytes of its memory that are taken. `sysfs`: `mem_info_vram_used`.
    pub vram_used_bytes: Option<u64>,
    /// Bytes of its memory. `sysfs`: `mem_info_vram_total`.
    pub vram_total_bytes: Option<u64>,
    /// The edge of the die. `sysfs`: `hwmon/*/temp*` labelled `edge`; what NVIDIA calls GPU temperature.
    pub edge: Heat,
    /// The hottest spot of the die. `sysfs`: `junction`; elsewhere also called hotspot.
    pub junction: Heat,
    /// Its memory. `sysfs`: `mem`.
    pub memory: Heat,
    /// Watts drawn. `sysfs`: `power1_average`, else `power1_input`.
    pub power_watts: Option<f64>,
    /// Watts it may draw. `sysfs`: `power1_cap`.
    pub power_cap_watts: Option<f64>,
    /// Joules since the driver was loaded. `sysfs`: the accumulator of `gpu_metrics`.
    pub energy_joules: Option<f64>,
    /// Memory errors that were corrected, since the driver was loaded. `sysfs`: the `ce` of all `ras/*_err_count`.
    pub ecc_corrected: Option<u64>,
    /// Memory errors that were not. `sysfs`: the `ue` of all `ras/*_err_count`; NVIDIA: double-bit, volatile.
    pub ecc_uncorrected: Option<u64>,
    /// The last error that the driver reported. `dcgm`: `DCGM_FI_DEV_XID_ERRORS`; 0 is none.
    pub xid: Option<u64>,
    /// Whether its clocks are held down, and by what.
    pub throttle: Option<Throttle>,
    /// Counters of how long its clocks were held down by heat.
    pub residency: Option<Residency>,
    /// The clock of its compute units.
    pub clocks: Option<Clocks>,
    /// What could not be read.
    pub faults: Vec<Fault>,
}

/// Who made a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vendor {
    /// AMD, PCI vendor 0x1002.
    Amd,
    /// NVIDIA, PCI vendor 0x10de.
    Nvidia,
}

/// Whether a card can be asked at all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum State {
    /// It answers.
    #[default]
    Ready,
    /// It sleeps for want of work, and wakes when there is some.
    Asleep,
    /// It is being reset.
    Resetting,
    /// It is on the list, and does not answer before it is reset.
    Lost,
}

/// One temperature and its limits, in degrees Celsius.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Heat {
    /// What it is now. `sysfs`: `tempN_input`, millidegrees.
    pub now: Option<f64>,
    /// Where the card slows down. `sysfs`: `tempN_crit`.
    pub critical: Option<f64>,
    /// Where it switches itself off. `sysfs`: `tempN_emergency`.
    pub emergency: Option<f64>,
}

/// By what a card's clocks are held down.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Throttle {
    /// By nothing.
    No,
    /// By its limit of power or current, which is how a busy card should run.
    Power,
    /// By heat.
    Heat,
    /// The source does not say by what.
    Unsaid,
}

/// How often the firmware looked, and how often heat held the clocks down; both
/// start over at 2³².
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Residency {
    /// How often it looked.
    pub looks: u32,
    /// How often it was hot: die, memory, voltage regulator or the board's own signal, whichever was most.
    pub hot: u32,
}

/// Clocks in MHz. `sysfs`: `pp_dpm_sclk`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Clocks {
    /// What it is now.
    pub now: f64,
    /// The highest it has.
    pub most: f64,
}

/// What a model server says of itself.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ServerLoad {
    /// Requests that wait. vLLM: `vllm:num_requests_waiting`; Triton: `nv_inference_pending_request_count`.
    pub waiting: Option<f64>,
    /// Requests that are worked on. vLLM: `vllm:num_requests_running`.
    pub running: Option<f64>,
    /// The share of the KV cache that is taken, 0 to 1. vLLM: `vllm:kv_cache_usage_perc`, before `vllm:gpu_cache_usage_perc`.
    pub kv_cache: Option<f64>,
    /// Seconds that requests have waited, all together. Triton: `nv_inference_queue_duration_us`. Not judged.
    pub queued_seconds_total: Option<f64>,
    /// How busy the server says its GPUs are, on average, 0 to 1. Triton: `nv_gpu_utilization`. Not judged.
    pub busy: Option<f64>,
}

/// Something that could not be read, and why.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[error("{what} {problem}")]
pub struct Fault {
    /// The file, metric or call.
    pub what: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What can be wrong with a source.
#[derive(Clone, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Problem {
    /// It should be there.
    #[error("is missing")]
    Missing,
    /// It is there and holds something else.
    #[error("does not hold {0}")]
    Garbled(&'static str),
    /// It is a number that cannot be.
    #[error("is out of all bounds")]
    Absurd,
    /// There is more of it than is taken.
    #[error("holds more than {0}")]
    TooMuch(&'static str),
    /// The system or the library says why not.
    #[error("cannot be read: {0}")]
    Unreadable(String),
    /// It took too long.
    #[error("did not answer in time")]
    TooSlow,
}

impl Fault {
    /// A fault of `what`.
    pub fn new(what: impl Into<String>, problem: Problem) -> Self {
        Self { what: what.into(), problem }
    }
}

impl fmt::Display for Vendor {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(match self {
            Self::Amd => "AMD",
            Self::Nvidia => "NVIDIA",
        })
    }
}

impl Reading {
    /// How full its memory is, 0 to 1.
    pub fn vram_share(&self) -> Option<f64> {
        let (used, total) = (self.vram_used_bytes?, self.vram_total_bytes?);
        (total > 0).then(|| (used as f64 / total as f64).min(1.0))
    }

    /// The hottest of its temperatures.
    pub fn hottest(&self) -> Option<f64> {
        [self.edge.now, self.junction.now, self.memory.now].into_iter().flatten().reduce(f64::max)
    }

    /// Takes out what cannot be, each with a fault: what is not a number, negative, or far from anything a card can have.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        let mut faults = std::mem::take(&mut self.faults);
        keep(&mut self.busy, SHARE, "busy", &mut faults);
        for (name, heat) in [
            ("edge", &mut self.edge),
            ("junction", &mut self.junction),
            ("memory", &mut self.memory),
        ] {
            keep(&mut heat.now, CELSIUS, name, &mut faults);
            // A limit that is none (0, or absolute zero) is common and no fault.
            heat.critical = heat.critical.filter(|limit| within(*limit, LIMIT_CELSIUS));
            heat.emergency = heat.emergency.filter(|limit| within(*limit, LIMIT_CELSIUS));
        }
        keep(&mut self.power_watts, WATTS, "power", &mut faults);
        keep(&mut self.power_cap_watts, WATTS, "power cap", &mut faults);
        keep(&mut self.energy_joules, JOULES, "energy", &mut faults);
        if self.vram_total_bytes == Some(0) {
            self.vram_total_bytes = None;
        }
        if let (Some(used), Some(total)) = (self.vram_used_bytes, self.vram_total_bytes)
            && used > total
        {
            self.vram_used_bytes = None;
            faults.push(Fault::new("VRAM used", Problem::Absurd));
        }
        self.clocks = self
            .clocks
            .filter(|clocks| within(clocks.now, MEGAHERTZ) && within(clocks.most, MEGAHERTZ));
        faults.truncate(MAX_FAULTS);
        self.faults = faults;
        self
    }
}

impl ServerLoad {
    /// Takes out what cannot be.
    #[must_use]
    pub fn bounded(mut self) -> Self {
        self.waiting = self.waiting.filter(|count| within(*count, REQUESTS));
        self.running = self.running.filter(|count| within(*count, REQUESTS));
        self.kv_cache =
            self.kv_cache.filter(|share| within(*share, SHARE)).map(|share| share.min(1.0));
        self.queued_seconds_total =
            self.queued_seconds_total.filter(|seconds| within(*seconds, SECONDS));
        self.busy = self.busy.filter(|share| within(*share, SHARE)).map(|share| share.min(1.0));
        self
    }
}

/// The PCI address `text` as the kernel writes it: NVIDIA's libraries write a domain of eight digits and capitals.
pub(crate) fn pci_address(text: &str) -> Option<String> {
    let text = text.trim().to_ascii_lowercase();
    let (domain, rest) = text.split_once(':')?;
    let (bus, slot) = rest.split_once(':')?;
    let (device, function) = slot.split_once('.')?;
    let hex = |part: &str, most: usize| {
        let fits = !part.is_empty()
            && part.len() <= most
            && part.bytes().all(|byte| byte.is_ascii_hexdigit());
        fits.then(|| u32::from_str_radix(part, 16).ok()).flatten()
    };
    let (domain, bus) = (hex(domain, 8)?, hex(bus, 2)?);
    let (device, function) = (hex(device, 2)?, hex(function, 1)?);
    Some(format!("{domain:04x}:{bus:02x}:{device:02x}.{function:x}"))
}

/// `text` as something to show: printable, trimmed and short; `None` when nothing is left.
pub(crate) fn label(text: &str) -> Option<String> {
    let shown: String =
        text.trim().chars().filter(|letter| !letter.is_control()).take(MAX_LABEL).collect();
    (!shown.is_empty()).then_some(shown)
}

fn keep(value: &mut Option<f64>, bounds: (f64, f64), what: &str, faults: &mut Vec<Fault>) {
    let Some(number) = *value else { return };
    if !within(number, bounds) {
        *value = None;
        faults.push(Fault::new(what, Problem::Absurd));
    } else if bounds == SHARE {
        *value = Some(number.min(1.0));
    }
}

/// Also false for what is not a number.
fn within(number: f64, (least, most): (f64, f64)) -> bool {
    number >= least && number <= most
}

/// Rounding may end a little above the whole.
const SHARE: (f64, f64) = (0.0, 1.01);
/// Firmware says 255 or 65535 for a sensor that is not there.
const CELSIUS: (f64, f64) = (-40.0, 200.0);
const LIMIT_CELSIUS: (f64, f64) = (40.0, 150.0);
const WATTS: (f64, f64) = (0.0, 10_000.0);
/// A kilowatt for three centuries.
const JOULES: (f64, f64) = (0.0, 1e13);
const MEGAHERTZ: (f64, f64) = (0.0, 20_000.0);
const REQUESTS: (f64, f64) = (0.0, 1e9);
const SECONDS: (f64, f64) = (0.0, 1e15);
const MAX_LABEL: usize = 96;
const MAX_FAULTS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_cannot_be_are_taken_out_and_told() {
        for busy in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.1, 1.5, 1e300] {
            let reading = Reading { busy: Some(busy), ..Reading::default() }.bounded();
            assert_eq!(reading.busy, None, "{busy}");
            assert_eq!(reading.faults, [Fault::new("busy", Problem::Absurd)]);
        }
        let heat = |now| Heat { now: Some(now), critical: Some(-273.15), emergency: Some(0.0) };
        for now in [f64::NAN, -300.0, 255.0, 65_535.0, 9.2e18] {
            let reading = Reading { junction: heat(now), ..Reading::default() }.bounded();
            assert_eq!(reading.junction, Heat::default(), "{now}");
            assert_eq!(reading.faults.len(), 1);
        }
        let reading =
            Reading { junction: heat(61.0), busy: Some(1.004), ..Reading::default() }.bounded();
        assert_eq!(reading.hottest(), Some(61.0));
        assert_eq!(reading.busy, Some(1.0));
        assert!(reading.faults.is_empty());
    }

    #[test]
    fn more_memory_used_than_there_is_is_no_share() {
        let reading =
            Reading { vram_used_bytes: Some(9), vram_total_bytes: Some(8), ..Reading::default() };
        assert_eq!(reading.bounded().vram_share(), None);
        let reading =
            Reading { vram_used_bytes: Some(9), vram_total_bytes: Some(0), ..Reading::default() };
        assert_eq!(reading.bounded().vram_share(), None);
    }

    #[test]
    fn addresses_are_written_in_one_way() {
        for (text, address) in [
            ("0000:C1:00.0", Some("0000:c1:00.0")),
            ("00000000:1B:00.0", Some("0000:1b:00.0")),
            ("00010000:1B:00.0\n", Some("10000:1b:00.0")),
            ("c1:00.0", None),
            ("0000:c1:00", None),
            ("0000:xx:00.0", None),
            (":::", None),
            ("", None),
            ("0000:+1:00.0", None),
        ] {
            assert_eq!(pci_address(text).as_deref(), address, "{text}");
        }
    }
}
