//! `httpwg`, the conformance suite for RFC 9113, against our listener.

use std::process::Stdio;

use towpath_tests::{Proxy, StrictOrigin, tool};

/// Cases in the suite. A stock hyper server passes 89.
const CASES: usize = 107;

#[tokio::test]
async fn httpwg_passes() {
    let origin = StrictOrigin::start().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    let output = tokio::process::Command::new(tool("httpwg-0.2.5/bin/httpwg"))
        // The program insists on starting the server; ours runs already.
        .args([
            "-a",
            &proxy.address.to_string(),
            "--connect-timeout",
            "5000",
            "--frame-timeout",
            "3000",
        ])
        .args(["--", "sleep", "100"])
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output()
        .await
        .expect("httpwg runs");
    let text =
        plain(&(String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr)));
    let cases = |mark: &str| -> Vec<String> {
        let lines = text.lines().filter_map(|l| l.split_once(mark)).map(|(_, name)| name.trim());
        lines.map(|name| name.replace("RFC 9113 :: ", "")).collect()
    };
    let (passed, failed) = (cases("Test passed:"), cases("Test failed:"));
    // A case in which the suite itself panics is in neither list.
    assert!(text.contains("/107 tests"), "httpwg did not finish: {text}");
    assert_eq!(passed.len(), CASES, "missed:\n  {}", failed.join("\n  "));
}

/// Without the colours.
fn plain(text: &str) -> String {
    let mut plain = String::new();
    for (n, piece) in text.split('\u{1b}').enumerate() {
        let rest = if n == 0 { piece } else { piece.split_once('m').map_or("", |(_, rest)| rest) };
        plain.push_str(rest);
    }
    plain.trim().to_owned()
}
