//! The program itself, whose reader has seen enough (`| head`).
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::{
    path::Path,
    process::{Command, Stdio},
};

#[test]
fn a_reader_that_is_gone_is_a_quiet_end() {
    let quickstart = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/quickstart");
    let quickstart = quickstart.to_str().unwrap();
    let gateway = quickstart.replace("quickstart", "gateway/kubernetes.yaml");
    for arguments in [
        &["--help"][..],
        &["completions", "bash"],
        &["schema"],
        &["schema", "--crds"],
        &["check", quickstart],
        &["diff", quickstart, quickstart],
        &["place", "find", "London"],
        &["inject", &gateway],
    ] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ended = Command::new(env!("CARGO_BIN_EXE_towpath"))
            .args(arguments)
            .stdout(writer)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&ended.stderr);
        assert!(ended.status.success(), "{arguments:?}: {}: {said}", ended.status);
        assert!(!said.contains("panicked") && !said.contains("pipe"), "{arguments:?}: {said}");
    }
}
