//! NVIDIA's cards through NVML, the library that comes with the driver.
//!
//! It is opened at run time: without it there are no cards of NVIDIA's here, and
//! nothing was linked. Its calls can hang while a card falls off the bus, so
//! that they belong on a thread that may.

use std::fmt::Display;

use nvml_wrapper::{
    Device, Nvml,
    bitmasks::device::ThrottleReasons,
    enum_wrappers::device::{
        Clock, EccCounter, MemoryError, TemperatureSensor, TemperatureThreshold,
    },
    error::NvmlError,
};

use crate::reading::{
    Clocks, Fault, Heat, Problem, Reading, State, Throttle, Vendor, label, pci_address,
};

/// The library, opened.
pub struct Library(Nvml);

impl Library {
    /// Opens the library.
    ///
    /// # Errors
    /// When it is not there, or finds no driver.
    pub fn open() -> Result<Self, Fault> {
        Nvml::init().map(Self).map_err(|error| unreadable("NVML", error))
    }

    /// Reads all cards.
    ///
    /// # Errors
    /// When not even their number can be had, which says nothing about them.
    pub fn read(&self) -> Result<Vec<Reading>, Fault> {
        let count = self.0.device_count().map_err(|error| unreadable("NVML", error))?;
        Ok((0..count.min(MAX_CARDS)).map(|index| self.read_card(index)).collect())
    }

    fn read_card(&self, index: u32) -> Reading {
        match self.0.device_by_index(index) {
            Ok(device) => read_card(index, &device),
            Err(error) => {
                let mut calls = Calls::default();
                calls.note("device", &error);
                Reading {
                    id: format!("nvidia{index}"),
                    vendor: Some(Vendor::Nvidia),
                    state: if calls.lost { State::Lost } else { State::Ready },
                    faults: calls.faults,
                    ..Reading::default()
                }
            }
        }
    }
}

fn read_card(index: u32, device: &Device<'_>) -> Reading {
    let mut calls = Calls::default();
    let pci = calls.take("PCI address", device.pci_info()).and_then(|pci| pci_address(&pci.bus_id));
    let unique_id = calls.take("UUID", device.uuid()).and_then(|text| label(&text));
    let memory = calls.take("memory", device.memory_info());
    let limit = |calls: &mut Calls, threshold| {
        calls.take("temperature limit", device.temperature_threshold(threshold)).map(f64::from)
    };
    let edge = Heat {
        now: calls.take("temperature", device.temperature(TemperatureSensor::Gpu)).map(f64::from),
        critical: limit(&mut calls, TemperatureThreshold::Slowdown),
        emergency: limit(&mut calls, TemperatureThreshold::Shutdown),
    };
    let errors = |calls: &mut Calls, kind| {
        calls.take("ECC", device.total_ecc_errors(kind, EccCounter::Volatile))
    };
    let now = calls.take("clock", device.clock_info(Clock::SM));
    let most = calls.take("clock", device.max_clock_info(Clock::SM));
    let milliwatts = |milliwatts: u32| f64::from(milliwatts) / 1e3;
    let reading = Reading {
        id: pci.clone().or_else(|| unique_id.clone()).unwrap_or_else(|| format!("nvidia{index}")),
        vendor: Some(Vendor::Nvidia),
        name: calls.take("name", device.name()).and_then(|text| label(&text)),
        pci,
        unique_id,
        busy: calls
            .take("utilization", device.utilization_rates())
            .map(|share| f64::from(share.gpu) / 100.0),
        // What the driver keeps for itself is taken as well.
        vram_used_bytes: memory.as_ref().map(|memory| memory.used.saturating_add(memory.reserved)),
        vram_total_bytes: memory.as_ref().map(|memory| memory.total),
        edge,
        power_watts: calls.take("power", device.power_usage()).map(milliwatts),
        power_cap_watts: calls.take("power limit", device.enforced_power_limit()).map(milliwatts),
        energy_joules: calls
            .take("energy", device.total_energy_consumption())
            .map(|count| count as f64 / 1e3),
        ecc_corrected: errors(&mut calls, MemoryError::Corrected),
        ecc_uncorrected: errors(&mut calls, MemoryError::Uncorrected),
        throttle: calls.take("throttle reasons", device.current_throttle_reasons()).map(throttle),
        clocks: now.zip(most).map(|(now, most)| Clocks { now: now.into(), most: most.into() }),
        ..Reading::default()
    };
    calls.conclude(reading)
}

/// What holds the clocks down; to be idle or to have a lower clock set does not.
fn throttle(reasons: ThrottleReasons) -> Throttle {
    if reasons
        .intersects(ThrottleReasons::SW_THERMAL_SLOWDOWN | ThrottleReasons::HW_THERMAL_SLOWDOWN)
    {
        Throttle::Heat
    } else if reasons
        .intersects(ThrottleReasons::SW_POWER_CAP | ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN)
    {
        Throttle::Power
    } else if reasons.intersects(ThrottleReasons::HW_SLOWDOWN) {
        Throttle::Unsaid
    } else {
        Throttle::No
    }
}

/// What the calls for one card said.
#[derive(Default)]
struct Calls {
    faults: Vec<Fault>,
    lost: bool,
}

impl Calls {
    fn take<T>(&mut self, what: &str, result: Result<T, NvmlError>) -> Option<T> {
        result.map_err(|error| self.note(what, &error)).ok()
    }

    fn note(&mut self, what: &str, error: &NvmlError) {
        match error {
            // Many cards lack a sensor, and old drivers a call.
            NvmlError::NotSupported
            | NvmlError::FailedToLoadSymbol(_)
            | NvmlError::FunctionNotFound => {}
            NvmlError::GpuLost | NvmlError::ResetRequired => self.lost = true,
            error => self.faults.push(unreadable(what, error)),
        }
    }

    fn conclude(self, mut reading: Reading) -> Reading {
        if self.lost {
            reading.state = State::Lost;
        }
        reading.faults = self.faults;
        reading.bounded()
    }
}

fn unreadable(what: &str, error: impl Display) -> Fault {
    Fault::new(what, Problem::Unreadable(error.to_string()))
}

const MAX_CARDS: u32 = 128;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_cap_is_told_from_heat() {
        use ThrottleReasons as Reason;
        for (reasons, expected) in [
            (Reason::NONE, Throttle::No),
            (Reason::GPU_IDLE, Throttle::No),
            (Reason::APPLICATIONS_CLOCKS_SETTING, Throttle::No),
            (Reason::SW_POWER_CAP, Throttle::Power),
            (Reason::SW_POWER_CAP | Reason::SW_THERMAL_SLOWDOWN, Throttle::Heat),
            (Reason::HW_SLOWDOWN | Reason::HW_THERMAL_SLOWDOWN, Throttle::Heat),
            (Reason::HW_SLOWDOWN | Reason::HW_POWER_BRAKE_SLOWDOWN, Throttle::Power),
            (Reason::HW_SLOWDOWN, Throttle::Unsaid),
        ] {
            assert_eq!(throttle(reasons), expected, "{reasons:?}");
        }
    }

    #[test]
    fn a_lost_card_is_told_from_one_that_lacks_a_sensor() {
        for (error, state, faults) in [
            (NvmlError::GpuLost, State::Lost, 0),
            (NvmlError::ResetRequired, State::Lost, 0),
            (NvmlError::NotSupported, State::Ready, 0),
            (NvmlError::NoPermission, State::Ready, 1),
        ] {
            let mut calls = Calls::default();
            assert_eq!(calls.take::<u32>("temperature", Err(error)), None);
            let reading = calls.conclude(Reading::default());
            assert_eq!((reading.state, reading.faults.len()), (state, faults));
        }
    }

    #[test]
    fn a_machine_without_the_library_says_so() {
        // Where there is one, it must answer.
        match Library::open() {
            Ok(library) => assert!(library.read().is_ok()),
            Err(fault) => assert_eq!(fault.what, "NVML"),
        }
    }
}
