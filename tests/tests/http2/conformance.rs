//! `httpwg`, the conformance suite for RFC 9113, against our listener.

use std::process::Stdio;

use towpath_tests::{Proxy, StrictOrigin, tool};

/// A stock hyper server passes so many of the 107.
const AT_LEAST: usize = 89;

/// What matters for smuggling, for memory, and for the framing as a whole. Of the
/// others, most ask for another error code of the same refusal; a pseudo-header in
/// trailers is dropped by the h2 crate before anyone sees it (`malformed.rs` shows
/// that nothing of it reaches the origin).
const MUST_PASS: &[&str] = &[
    "3. starting http2 :: sends invalid connection preface",
    "4. http frames :: data frame with max length",
    "4. http frames :: headers frame to another stream",
    "4. http frames :: priority frame while sending headers",
    "5. streams and multiplexing :: exceeds concurrent stream limit",
    "5. streams and multiplexing :: idle sends data frame",
    "5. streams and multiplexing :: sends even numbered stream identifier",
    "5. streams and multiplexing :: sends smaller stream identifier",
    "6. frame definitions :: sends continuation frame followed by non continuation frame",
    "6. frame definitions :: sends data frame with invalid pad length",
    "6. frame definitions :: sends headers frame with invalid pad length",
    "6. frame definitions :: sends multiple window update frames increasing flow control window above max",
    "8. expressing http semantics in http2 :: sends connect with path",
    "8. expressing http semantics in http2 :: sends connect with scheme",
    "8. expressing http semantics in http2 :: sends connect without authority",
    "8. expressing http semantics in http2 :: sends headers frame with colon in field name",
    "8. expressing http semantics in http2 :: sends headers frame with connection header",
    "8. expressing http semantics in http2 :: sends headers frame with cr in field value",
    "8. expressing http semantics in http2 :: sends headers frame with duplicate pseudo headers",
    "8. expressing http semantics in http2 :: sends headers frame with empty path component",
    "8. expressing http semantics in http2 :: sends headers frame with incorrect content length multiple data frames",
    "8. expressing http semantics in http2 :: sends headers frame with incorrect content length single data frame",
    "8. expressing http semantics in http2 :: sends headers frame with keep alive header",
    "8. expressing http semantics in http2 :: sends headers frame with lf in field value",
    "8. expressing http semantics in http2 :: sends headers frame with mismatched host authority",
    "8. expressing http semantics in http2 :: sends headers frame with nul in field value",
    "8. expressing http semantics in http2 :: sends headers frame with proxy connection header",
    "8. expressing http semantics in http2 :: sends headers frame with pseudo headers after regular headers",
    "8. expressing http semantics in http2 :: sends headers frame with response pseudo header",
    "8. expressing http semantics in http2 :: sends headers frame with space in field name",
    "8. expressing http semantics in http2 :: sends headers frame with te not trailers",
    "8. expressing http semantics in http2 :: sends headers frame with transfer encoding header",
    "8. expressing http semantics in http2 :: sends headers frame with upgrade header",
    "8. expressing http semantics in http2 :: sends headers frame with uppercase field name",
    "8. expressing http semantics in http2 :: sends headers frame without method",
    "8. expressing http semantics in http2 :: sends headers frame without path",
    "8. expressing http semantics in http2 :: sends headers frame without scheme",
];

#[tokio::test]
async fn httpwg_passes_where_it_matters() {
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
    println!("httpwg: {} of 107 passed; missed:\n  {}", passed.len(), failed.join("\n  "));
    // A case in which the suite itself panics is in neither list.
    assert!(text.contains("/107 tests"), "httpwg did not finish: {text}");
    let needed: Vec<_> =
        MUST_PASS.iter().filter(|name| !passed.iter().any(|p| p == *name)).collect();
    assert!(needed.is_empty(), "must pass: {needed:#?}");
    assert!(passed.len() >= AT_LEAST, "{} of 107 pass", passed.len());
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
