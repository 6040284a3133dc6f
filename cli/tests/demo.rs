//! The demonstration as a newcomer starts it: the real program, with all its processes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::{
    fs,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

/// Enough for every act, and no more.
const SCALE: &str = "0.004";
const UPLOAD_MIB: &str = "24";

fn demo(temporary: &Path, args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_towpath"))
        .args(["demo", "--quick", "--scale", SCALE, "--upload-mib", UPLOAD_MIB])
        .args(args)
        .env("TMPDIR", temporary)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Reads lines until one contains `text`.
fn read_until(output: &mut impl BufRead, text: &str) -> String {
    let mut told = String::new();
    while output.read_line(&mut told).unwrap() > 0 {
        if told.lines().last().is_some_and(|line| line.contains(text)) {
            return told;
        }
    }
    panic!("{text:?} was never told:\n{told}");
}

/// Processes whose command line names this folder.
fn processes(folder: &Path) -> Vec<String> {
    let folder = folder.to_str().unwrap();
    fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read(entry.ok()?.path().join("cmdline")).ok())
        .map(|line| String::from_utf8_lossy(&line).replace('\0', " "))
        .filter(|line| line.contains(folder))
        .collect()
}

#[test]
fn the_demo_proves_that_every_row_arrived_once() {
    let temporary = tempfile::tempdir().unwrap();
    let report = temporary.path().join("report.json");
    let child = demo(temporary.path(), &["--seed", "3", "--report", report.to_str().unwrap()]);
    let output = child.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{}\n{told}", output.status);

    let report: Value = serde_json::from_str(&fs::read_to_string(&report).unwrap()).unwrap();
    assert_eq!(report["rows_in"], report["rows_loaded"]);
    assert!(report["rows_in"].as_u64().unwrap() > 29_000, "{report}");
    assert_eq!(report["rows_duplicated"], 0);
    assert_eq!(report["digests_equal"], true);
    assert_eq!(report["q1_equal"], true);
    let survivor = &report["survivor"];
    assert_eq!(survivor["digest_equal"], true, "{survivor}");
    assert_eq!(survivor["bytes"], 24 << 20);
    assert_ne!(survivor["killed_worker"], survivor["finished_by"]);
    assert!(survivor["bytes_sent_again"].as_u64().unwrap() > 12 << 20, "{survivor}");
    let events: Vec<&str> =
        report["events"].as_array().unwrap().iter().filter_map(|e| e["event"].as_str()).collect();
    for event in ["kill", "slow", "restart_control_plane", "broken_commit"] {
        assert!(events.contains(&event), "{event} happened: {events:?}\n{told}");
    }
    assert_eq!(report["traffic_shifted"], true, "{told}");
    assert_eq!(report["commits"].as_array().unwrap().len(), 3);
    for protocol in ["h1", "h2", "grpc"] {
        assert!(report["protocols"][protocol]["p99_ms"].as_f64().unwrap() > 0.0, "{protocol}");
    }
    assert_eq!(processes(temporary.path()), [""; 0], "everything that was started has ended");
    let left: Vec<_> = fs::read_dir(temporary.path()).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(left.len(), 1, "only the report is left: {left:?}");
}

#[test]
fn an_interrupt_ends_everything_and_leaves_nothing() {
    for moment in ["TPC-H at scale", "the freight rolls"] {
        let temporary = tempfile::tempdir().unwrap();
        let mut child = demo(temporary.path(), &[]);
        let mut output = BufReader::new(child.stdout.take().unwrap());
        read_until(&mut output, moment);
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        kill_process(pid, Signal::INT).unwrap();
        read_until(&mut output, "interrupted");
        assert_eq!(child.wait().unwrap().code(), Some(130), "after {moment:?}");
        assert_eq!(processes(temporary.path()), [""; 0], "after {moment:?}");
        let left = fs::read_dir(temporary.path()).unwrap().count();
        assert_eq!(left, 0, "files are left after {moment:?}");
    }
}
