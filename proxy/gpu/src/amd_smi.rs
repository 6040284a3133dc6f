//! AMD's cards through the program `amd-smi`, where the tree of the kernel is
//! out of reach and the program is not.
//!
//! It takes a second of CPU for each run, so that sysfs is to be preferred.

use std::{
    ffi::OsStr,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use serde_json::Value;

use crate::reading::{Clocks, Fault, Heat, Problem, Reading, Throttle, Vendor, label, pci_address};

/// Looks for the program in `path` (the variable `PATH`) and where ROCm installs it.
pub fn find(path: &OsStr) -> Option<PathBuf> {
    std::env::split_paths(path)
        .chain([PathBuf::from("/opt/rocm/bin")])
        .filter(|folder| folder.is_absolute())
        .map(|folder| folder.join("amd-smi"))
        .find(|program| program.is_file())
}

/// Runs `program metric --json` and reads what it prints; ends it after `limit`.
///
/// # Errors
/// When it cannot be started, prints something else, or takes longer.
pub fn read(program: &Path, limit: Duration) -> Result<Vec<Reading>, Fault> {
    let mut child = Command::new(program)
        .args(["metric", "--json"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| fault(Problem::Unreadable(error.to_string())))?;
    let text = output(&mut child, limit);
    // It has closed its output, or has had its time.
    let _ = child.kill();
    let _ = child.wait();
    parse(&text?)
}

/// Reads what `amd-smi metric --json` printed.
///
/// # Errors
/// When it is no list of cards.
pub fn parse(text: &str) -> Result<Vec<Reading>, Fault> {
    let garbled = || fault(Problem::Garbled("a list of GPUs"));
    let document: Value = serde_json::from_str(text).map_err(|_| garbled())?;
    // ROCm 6 prints the list, ROCm 7 an object with the list in it.
    let cards = document.get("gpu_data").unwrap_or(&document).as_array().ok_or_else(garbled)?;
    Ok(cards
        .iter()
        .take(MAX_CARDS)
        .enumerate()
        .map(|(index, card)| read_card(index, card))
        .collect())
}

fn read_card(index: usize, card: &Value) -> Reading {
    let index = card.get("gpu").and_then(Value::as_u64).unwrap_or(index as u64);
    let pci = card.get("bdf").and_then(Value::as_str).and_then(pci_address);
    let number = |path: &[&str]| number(card, path);
    let share = |path: &[&str]| number(path).map(|percent| percent / 100.0);
    let count = |path: &[&str]| {
        number(path).filter(|count| (0.0..1e15).contains(count)).map(|count| count as u64)
    };
    let heat = |name| Heat { now: number(&["temperature", name]), ..Heat::default() };
    let clock =
        |name| number(&["clock", "gfx_0", name]).or_else(|| number(&["clock", "GFX_0", name]));
    let reading = Reading {
        id: pci.clone().unwrap_or_else(|| format!("gpu{index}")),
        vendor: Some(Vendor::Amd),
        name: card.get("market_name").and_then(Value::as_str).and_then(label),
        pci,
        busy: share(&["usage", "gfx_activity"]),
        vram_used_bytes: bytes(card, "used_vram"),
        vram_total_bytes: bytes(card, "total_vram"),
        edge: heat("edge"),
        junction: heat("hotspot"),
        memory: heat("mem"),
        power_watts: number(&["power", "socket_power"]),
        energy_joules: number(&["energy", "total_energy_consumption"])
            .filter(|joules| *joules > 0.0),
        ecc_corrected: count(&["ecc", "total_correctable_count"]),
        ecc_uncorrected: count(&["ecc", "total_uncorrectable_count"]),
        throttle: throttle(card),
        clocks: clock("clk").zip(clock("max_clk")).map(|(now, most)| Clocks { now, most }),
        ..Reading::default()
    };
    reading.bounded()
}

/// By what the clocks are held down. `throttle_status` alone does not say: a card at its limit of power is THROTTLED.
fn throttle(card: &Value) -> Option<Throttle> {
    let violation = |name: &str| match at(card, &["throttle", name])?.as_str()? {
        "ACTIVE" => Some(true),
        "NOT ACTIVE" | "INACTIVE" => Some(false),
        _ => None,
    };
    let heat: Vec<bool> = HOT.into_iter().filter_map(violation).collect();
    if heat.contains(&true) {
        return Some(Throttle::Heat);
    }
    if violation("ppt_violation_status") == Some(true) {
        return Some(Throttle::Power);
    }
    match at(card, &["power", "throttle_status"]).and_then(Value::as_str) {
        _ if !heat.is_empty() => Some(Throttle::No),
        Some("UNTHROTTLED") => Some(Throttle::No),
        Some("THROTTLED") => Some(Throttle::Unsaid),
        _ => None,
    }
}

fn at<'a>(card: &'a Value, path: &[&str]) -> Option<&'a Value> {
    path.iter().try_fold(card, |value, key| value.get(key))
}

/// A number, or the `value` of one with its unit. What a card does not have is "N/A".
fn number(card: &Value, path: &[&str]) -> Option<f64> {
    let value = at(card, path)?;
    value.get("value").unwrap_or(value).as_f64()
}

/// An amount of memory; its MB are 2²⁰ bytes.
fn bytes(card: &Value, name: &str) -> Option<u64> {
    let amount = number(card, &["mem_usage", name])?;
    let unit = match at(card, &["mem_usage", name, "unit"]).and_then(Value::as_str)? {
        "B" => 0,
        "KB" => 10,
        "MB" => 20,
        "GB" => 30,
        _ => return None,
    };
    let bytes = amount * f64::from(1_u32 << unit);
    (0.0..1e18).contains(&bytes).then_some(bytes as u64)
}

/// What `child` prints, up to a bound and within `limit`.
fn output(child: &mut Child, limit: Duration) -> Result<String, Fault> {
    let Some(pipe) = child.stdout.take() else { return Err(fault(Problem::Missing)) };
    let (done, finished) = mpsc::sync_channel(1);
    // It ends with the pipe, which ends with the child; nobody waits for it.
    thread::Builder::new()
        .name("amd-smi".into())
        .spawn(move || {
            let mut text = String::new();
            let read = File::from(std::os::fd::OwnedFd::from(pipe))
                .take(MAX_BYTES + 1)
                .read_to_string(&mut text);
            let _ = done.send(read.map(|_| text));
        })
        .map_err(|error| fault(Problem::Unreadable(error.to_string())))?;
    match finished.recv_timeout(limit) {
        Ok(Ok(text)) if text.len() as u64 > MAX_BYTES => Err(fault(Problem::TooMuch("4 MiB"))),
        Ok(Ok(text)) => Ok(text),
        Ok(Err(error)) => Err(fault(Problem::Unreadable(error.to_string()))),
        Err(_) => Err(fault(Problem::TooSlow)),
    }
}

fn fault(problem: Problem) -> Fault {
    Fault::new("amd-smi", problem)
}

/// What of `throttle` comes of heat.
const HOT: [&str; 4] = [
    "prochot_violation_status",
    "socket_thermal_violation_status",
    "vr_thermal_violation_status",
    "hbm_thermal_violation_status",
];
const MAX_BYTES: u64 = 4 << 20;
const MAX_CARDS: usize = 128;

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::PermissionsExt, time::Instant};

    use super::*;

    fn program(script: &str) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("amd-smi");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("a script");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("to be run");
        (folder, path)
    }

    /// One after the other: a script cannot be run while another thread's child still holds it open for writing.
    #[test]
    fn the_program_is_asked_for_metrics_and_ended_when_it_hangs_or_never_stops() {
        let (_folder, path) = program(r#"[ "$*" = "metric --json" ] && echo '[{"gpu": 3}]'"#);
        let cards = read(&path, LONG).expect("cards");
        assert_eq!(cards.iter().map(|card| card.id.as_str()).collect::<Vec<_>>(), ["gpu3"]);
        let (_folder, path) = program("exec cat /dev/zero");
        assert_eq!(read(&path, LONG), Err(fault(Problem::TooMuch("4 MiB"))));
        let (_folder, path) = program("exec sleep 60");
        let started = Instant::now();
        assert_eq!(read(&path, Duration::from_millis(50)), Err(fault(Problem::TooSlow)));
        assert!(started.elapsed() < LONG, "it is waited for until it has ended, and was ended");
        assert!(matches!(
            read(Path::new("/nowhere"), LONG),
            Err(Fault { problem: Problem::Unreadable(_), .. })
        ));
    }

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn what_is_no_list_of_cards_is_refused() {
        for text in
            ["", "{", "null", "3", "{\"gpu_data\": 3}", "Error: driver not initialized", "\u{0}"]
        {
            assert_eq!(parse(text), Err(fault(Problem::Garbled("a list of GPUs"))), "{text}");
        }
        let deep = "[".repeat(100_000);
        assert!(parse(&deep).is_err());
    }

    #[test]
    fn only_absolute_folders_are_looked_into() {
        let (folder, path) = program("");
        let here = std::env::join_paths([Path::new("."), Path::new("bin"), folder.path()])
            .expect("a path");
        assert_eq!(find(&here), Some(path));
    }
}
