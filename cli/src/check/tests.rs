use serde_json::Value;
use towpath_policies::{Checked, check};

use super::*;

const BAD: &str = "apiVersion: towpath.dev/v1alpha1
kind: Service
metadata: {name: etl}
spec:
  endpoint:
  - address: 10.0.0.1:80
";

fn checked(text: &str) -> Checked {
    check([(PathBuf::from("a b.yaml"), text.to_owned())], "v".to_owned())
}

fn root() -> Root {
    Root { folder: PathBuf::from("policies") }
}

#[test]
fn text_marks_what_is_wrong_in_its_line() {
    let text = text(&checked(BAD).report, &root(), None, false);
    let expected = "\
error[unknown-field]: unknown field `endpoint`
 --> policies/a b.yaml:5:3
  |
5 |   endpoint:
  |   ^^^^^^^^
  = help: did you mean `endpoints`? fields: protocol, connectTimeout, poolIdleTimeout, healthCheck, tls, proxyProtocol, tunnel, endpoints, dns, addresses, subset

1 file, 1 document: 1 error
";
    assert_eq!(text, expected);
}

#[test]
fn a_file_without_a_policy_is_told_as_that() {
    let others = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\n";
    let text = text(&checked(others).report, &root(), None, false);
    let last = text.lines().last().unwrap();
    assert_eq!(
        last, "1 file, no document of Towpath's or the Gateway API's kinds: 1 warning",
        "{text}"
    );
}

#[test]
fn colour_is_only_added_around_the_text() {
    let report = checked(BAD).report;
    let plain = text(&report, &root(), None, false);
    let painted = text(&report, &root(), None, true);
    assert_ne!(plain, painted);
    let mut stripped = String::new();
    let mut rest = painted.as_str();
    while let Some(at) = rest.find("\x1b[") {
        stripped += &rest[..at];
        let end = rest[at..].find('m').unwrap();
        rest = &rest[at + end + 1..];
    }
    stripped += rest;
    assert_eq!(stripped, plain);
}

#[test]
fn control_characters_of_a_file_do_not_reach_the_terminal() {
    let text = text(&checked("kind: \"a\\e[2Jb\"\u{7f}: 1\n").report, &root(), None, false);
    assert!(!text.contains('\u{1b}') && !text.contains('\u{7f}'), "{text:?}");
}

#[test]
fn json_tells_counts_and_diagnostics() {
    let value: Value = serde_json::from_str(&json(&checked(BAD), None).unwrap()).unwrap();
    assert_eq!(value["ok"], false);
    assert_eq!(value["errors"], 1);
    assert_eq!(value["diagnostics"][0]["rule"], "unknown-field");
    assert_eq!(value["diagnostics"][0]["line"], 5);
    assert_eq!(value["diagnostics"][0]["severity"], "error");
}

#[test]
fn sarif_names_rules_and_places() {
    let text = sarif::document(&checked(BAD).report, &root()).unwrap();
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["version"], "2.1.0");
    let run = &value["runs"][0];
    let result = &run["results"][0];
    assert_eq!(result["ruleId"], "unknown-field");
    let index = usize::try_from(result["ruleIndex"].as_u64().unwrap()).unwrap();
    assert_eq!(run["tool"]["driver"]["rules"][index]["id"], "unknown-field");
    let place = &result["locations"][0]["physicalLocation"];
    assert_eq!(place["artifactLocation"]["uri"], "policies/a%20b.yaml");
    assert_eq!(place["region"]["startLine"], 5);
    assert_eq!(place["region"]["startColumn"], 3);
    assert_eq!(place["region"]["endColumn"], 11);
}

#[test]
fn exit_status_tells_wrong_from_unreadable() {
    let dir = tempfile::tempdir().unwrap();
    let status = |path: PathBuf| {
        let args = Args { path, explain: false, format: Format::Json };
        format!("{:?}", run(args).unwrap())
    };
    assert_eq!(status(dir.path().join("nothing")), format!("{:?}", ExitCode::from(2)));
    assert_eq!(status(dir.path().to_owned()), format!("{:?}", ExitCode::from(2)));
    std::fs::write(dir.path().join("a.yaml"), BAD).unwrap();
    assert_eq!(status(dir.path().to_owned()), format!("{:?}", ExitCode::FAILURE));
    std::fs::write(dir.path().join("a.yaml"), BAD.replace("endpoint:", "endpoints:")).unwrap();
    assert_eq!(status(dir.path().to_owned()), format!("{:?}", ExitCode::SUCCESS));
}
