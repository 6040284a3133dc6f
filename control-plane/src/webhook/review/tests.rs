use std::{fs, path::PathBuf};

use serde_json::{Value, json};

use super::*;
use crate::webhook::patch::tests::applied;

fn folder() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/admission"))
}

fn options() -> Options {
    let mut options = Options::new("0.1.0");
    options.kind = Some(towpath_inject::Kind::Kubernetes);
    options
}

fn review(name: &str) -> Value {
    let text = fs::read(folder().join(format!("{name}.json"))).unwrap();
    serde_json::from_slice(&text).unwrap()
}

fn answered(review: &Value, among: Among, on_problem: OnProblem) -> (Value, Outcome) {
    answered_with(&options(), review, among, on_problem)
}

/// The answer as JSON, its patch decoded.
fn answered_with(
    options: &Options,
    review: &Value,
    among: Among,
    on_problem: OnProblem,
) -> (Value, Outcome) {
    let body = review.to_string();
    let Reviewed { answer, outcome, trouble } =
        answer(body.as_bytes(), options, among, on_problem).unwrap();
    assert_eq!(trouble.is_some(), outcome == Outcome::Problem);
    let mut answer = serde_json::to_value(answer).unwrap();
    if let Some(patch) = answer["response"].get_mut("patch") {
        let bytes = STANDARD.decode(patch.as_str().unwrap()).unwrap();
        *patch = serde_json::from_slice(&bytes).unwrap();
    }
    assert_eq!(answer["response"]["uid"], review["request"]["uid"]);
    (answer, outcome)
}

/// The pod of a review as its patch makes it.
fn patched(name: &str) -> Value {
    let review = review(name);
    let (answer, _) = answered(&review, Among::All, OnProblem::Warn);
    let patch = answer["response"]["patch"].as_array().unwrap();
    applied(review["request"]["object"].clone(), patch)
}

fn golden(name: &str, value: &Value) {
    let path = folder().join("answers").join(format!("{name}.json"));
    let text = serde_json::to_string_pretty(value).unwrap() + "\n";
    if std::env::var_os("BLESS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, &text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert!(text == expected, "{} differs; BLESS=1 writes it\n{text}", path.display());
}

/// Who is asked about, what becomes of it, and (golden) the answer and the pod that it makes.
#[test]
fn reviews_are_answered_as_the_golden_files_say() {
    for (name, expected) in [
        ("deployment", Outcome::Injected),
        ("job", Outcome::Injected),
        ("cron-job", Outcome::Injected),
        ("stateful-set", Outcome::Injected),
        ("bare", Outcome::Injected),
        ("restricted", Outcome::Injected),
        ("pooled", Outcome::Injected),
        ("dry-run", Outcome::Injected),
        ("odd-text", Outcome::Injected),
        ("host-network", Outcome::Injected),
        ("asked", Outcome::Injected),
        ("already-injected", Outcome::Already),
        ("refused", Outcome::PassedOver),
        ("mirror", Outcome::PassedOver),
        ("windows", Outcome::PassedOver),
        ("update", Outcome::PassedOver),
        ("ephemeral-container", Outcome::PassedOver),
        ("binding", Outcome::PassedOver),
        ("not-a-pod", Outcome::PassedOver),
        ("port-taken", Outcome::Problem),
    ] {
        let review = review(name);
        let (answer, outcome) = answered(&review, Among::All, OnProblem::Warn);
        assert_eq!(outcome, expected, "{name}: {answer}");
        assert_eq!(answer["response"]["allowed"], true, "{name}");
        golden(name, &answer);
        let patch = answer["response"].get("patch");
        assert_eq!(patch.is_some(), outcome == Outcome::Injected, "{name}");
        if let Some(patch) = patch {
            let pod = applied(review["request"]["object"].clone(), patch.as_array().unwrap());
            golden(&format!("{name}.pod"), &pod);
        }
    }
}

/// The pod at its admission and the manifest before get the same sidecar.
#[test]
fn the_patch_is_what_injection_into_the_text_makes() {
    for name in [
        "deployment",
        "job",
        "cron-job",
        "stateful-set",
        "bare",
        "restricted",
        "pooled",
        "dry-run",
        "odd-text",
        "host-network",
    ] {
        let review = review(name);
        let pod = &review["request"]["object"];
        let (answer, _) = answered(&review, Among::All, OnProblem::Warn);
        let patch = answer["response"]["patch"].as_array().unwrap();
        let patched = applied(pod.clone(), patch);
        let with = Options { workload: workload(pod), ..options() };
        let text = inject("pod", &yaml(pod), &with).unwrap().text;
        assert_eq!(patched, serde_json::from_str::<Value>(&text).unwrap(), "{name}");
        let out = towpath_inject::uninject("pod", &yaml(&patched), None).unwrap().text;
        assert_eq!(&serde_json::from_str::<Value>(&out).unwrap(), pod, "{name}");
        // Nothing of the pod itself is touched: a list is added to, or made.
        for step in patch {
            assert_eq!(step["op"], "add", "{name}: {step}");
        }
        // Asked again about what came of it, nothing is to be done.
        let mut again = review.clone();
        again["request"]["object"] = patched;
        let (_, outcome) = answered(&again, Among::All, OnProblem::Warn);
        assert_eq!(outcome, Outcome::Already, "{name}");
    }
}

#[test]
fn pods_are_called_by_what_was_written_not_by_what_it_made() {
    for (kind, name, hash, expected) in [
        ("ReplicaSet", "etl-6c9f7d5b84", Some("6c9f7d5b84"), Some("etl")),
        ("ReplicaSet", "etl-6c9f7d5b84", None, Some("etl-6c9f7d5b84")),
        ("ReplicaSet", "6c9f7d5b84", Some("6c9f7d5b84"), Some("6c9f7d5b84")),
        ("Job", "nightly-29384730", None, Some("nightly")),
        ("Job", "nightly-2", None, Some("nightly-2")),
        ("StatefulSet", "db-12345678", None, Some("db-12345678")),
        ("DaemonSet", "a b", None, None),
        ("DaemonSet", "$(SECRET)", None, None),
        ("DaemonSet", "", None, None),
    ] {
        let owner = json!([{ "kind": "X", "name": "x" }, { "controller": true, "kind": kind, "name": name }]);
        let labels = hash.map_or(json!({}), |hash| json!({ "pod-template-hash": hash }));
        let pod = json!({ "metadata": { "ownerReferences": owner, "labels": labels } });
        assert_eq!(workload(&pod).as_deref(), expected, "{kind} {name}");
    }
    assert_eq!(workload(&json!({ "metadata": {} })), None);
}

/// By pods as controllers of Kubernetes make them.
#[test]
fn a_proxys_group_is_what_somebody_wrote() {
    for (name, expected) in [
        ("deployment", "loader"),
        ("job", "backfill"),
        ("cron-job", "nightly"),
        ("stateful-set", "lake"),
        ("host-network", "collector"),
        ("bare", "bare"),
    ] {
        let pod = patched(name);
        let arguments = pod["spec"]["initContainers"][0]["args"].as_array().unwrap();
        let mut arguments = arguments.iter().filter_map(Value::as_str);
        let group = arguments.find_map(|argument| argument.strip_prefix("--cluster="));
        assert_eq!(group, Some(format!("{expected}.$(POD_NAMESPACE)").as_str()), "{name}");
    }
}

#[test]
fn a_guaranteed_pod_stays_one_and_a_pool_is_not_added_to() {
    let resources = |name: &str| patched(name)["spec"]["initContainers"][0]["resources"].clone();
    let own = resources("stateful-set");
    assert!(own["limits"]["cpu"].is_string() && own["limits"]["memory"].is_string(), "{own}");
    assert_eq!(own["requests"], own["limits"]);
    assert_eq!(resources("pooled"), Value::Null);
}

#[test]
fn where_only_those_who_ask_get_one_the_others_get_none() {
    for (name, expected) in [
        ("deployment", Outcome::PassedOver),
        ("refused", Outcome::PassedOver),
        ("asked", Outcome::Injected),
    ] {
        let (_, outcome) = answered(&review(name), Among::Annotated, OnProblem::Refuse);
        assert_eq!(outcome, expected, "{name}");
    }
}

#[test]
fn a_pod_that_cannot_have_one_is_refused_only_where_told() {
    let (answer, outcome) = answered(&review("port-taken"), Among::All, OnProblem::Refuse);
    assert_eq!(outcome, Outcome::Problem);
    let response = &answer["response"];
    assert_eq!(response["allowed"], false);
    let message = response["status"]["message"].as_str().unwrap();
    assert!(message.contains("port 9901") && message.contains("admin-port"), "{message}");
    // Interception of a pod on its machine's network would intercept the machine.
    let intercepting = Options { intercept: true, ..options() };
    let host = review("host-network");
    let (answer, outcome) = answered_with(&intercepting, &host, Among::All, OnProblem::Warn);
    assert_eq!((outcome, &answer["response"]["allowed"]), (Outcome::Problem, &json!(true)));
    let warning = answer["response"]["warnings"][0].as_str().unwrap();
    assert!(
        warning.starts_with("no Towpath sidecar: intercepting a pod on its machine"),
        "{warning}"
    );
    assert!(answer["response"].get("patch").is_none());
}

/// Its pods are created by a controller, which shows the warning to nobody.
#[test]
fn the_log_can_say_which_pod_has_none_and_why() {
    let told = |review: &Value, on_problem| {
        let body = review.to_string();
        answer(body.as_bytes(), &options(), Among::All, on_problem).unwrap().trouble.unwrap()
    };
    let mut review = review("port-taken");
    for (on_problem, allowed) in [(OnProblem::Warn, true), (OnProblem::Refuse, false)] {
        let Trouble { why, .. } = told(&review, on_problem);
        assert!(why.contains("port 9901") && why.contains("admin-port"), "{why}");
        let expected = Trouble {
            namespace: "etl".to_owned(),
            name: "port-taken-6d5f96fbd5-".to_owned(),
            owner: "ReplicaSet/port-taken-6d5f96fbd5".to_owned(),
            why,
            allowed,
        };
        assert_eq!(told(&review, on_problem), expected);
    }
    // What anybody may send stays on its line.
    review["request"]["name"] = format!("a\nb{}", "c".repeat(1000)).into();
    review["request"]["object"]["metadata"]["ownerReferences"] = json!(null);
    let Trouble { name, owner, .. } = told(&review, OnProblem::Warn);
    assert!(name.starts_with("a bc") && name.len() <= 512, "{name}");
    assert_eq!(owner, "");
}

/// `kubectl diff`, and whoever tries something out, asks as well.
#[test]
fn of_a_dry_run_nobody_is_told_that_a_pod_starts() {
    let mut review = review("port-taken");
    review["request"]["dryRun"] = true.into();
    let body = review.to_string();
    let reviewed = answer(body.as_bytes(), &options(), Among::All, OnProblem::Warn).unwrap();
    assert_eq!((reviewed.outcome, reviewed.trouble), (Outcome::Problem, None));
}

/// Whoever evicts a pod, say, sends an object of its own, whatever its kind is said to be.
#[test]
fn what_is_created_of_a_pod_that_is_there_is_passed_over() {
    let mut review = review("deployment");
    review["request"]["subResource"] = "eviction".into();
    let (answer, outcome) = answered(&review, Among::All, OnProblem::Refuse);
    assert_eq!(outcome, Outcome::PassedOver);
    assert_eq!(answer["response"]["allowed"], true);
    assert!(answer["response"].get("patch").is_none(), "{answer}");
}

#[test]
fn a_pod_that_refuses_is_asked_nothing_else() {
    for (key, value) in [
        ("towpath.dev/workers", "many"),
        ("towpath.dev/unknown", "1"),
        ("towpath.dev/injected", "999.0.0 from a newer one"),
    ] {
        let mut review = review("refused");
        review["request"]["object"]["metadata"]["annotations"][key] = value.into();
        let (answer, outcome) = answered(&review, Among::All, OnProblem::Refuse);
        let allowed = &answer["response"]["allowed"];
        assert_eq!((outcome, allowed), (Outcome::PassedOver, &json!(true)), "{key}: {answer}");
        assert!(answer["response"].get("warnings").is_none(), "{key}: {answer}");
    }
    // Nor is one that can have no sidecar, whatever it says of it.
    for (name, why) in [("mirror", "static pod"), ("windows", "Windows")] {
        let mut review = review(name);
        let annotations = &mut review["request"]["object"]["metadata"]["annotations"];
        annotations["towpath.dev/workers"] = "many".into();
        annotations["towpath.dev/unknown"] = "1".into();
        let (answer, outcome) = answered(&review, Among::All, OnProblem::Refuse);
        let response = &answer["response"];
        assert_eq!(
            (outcome, &response["allowed"]),
            (Outcome::PassedOver, &json!(true)),
            "{answer}"
        );
        let warnings = response["warnings"].as_array().unwrap();
        assert!(warnings.len() == 1 && warnings[0].as_str().unwrap().contains(why), "{answer}");
    }
}

#[test]
fn an_annotation_without_a_sidecar_is_not_believed() {
    let mut review = review("already-injected");
    review["request"]["object"]["spec"]["initContainers"].as_array_mut().unwrap().remove(0);
    review["request"]["object"]["spec"]["volumes"].as_array_mut().unwrap().remove(0);
    let (_, outcome) = answered(&review, Among::All, OnProblem::Warn);
    assert_eq!(outcome, Outcome::Injected);
}

#[test]
fn what_is_no_review_is_not_answered() {
    let mut old = review("deployment");
    old["apiVersion"] = "admission.k8s.io/v1beta1".into();
    let mut empty = review("deployment");
    empty.as_object_mut().unwrap().remove("request");
    let deep = "[".repeat(10_000);
    for (body, why) in [
        (old.to_string(), "v1beta1"),
        (empty.to_string(), "no request"),
        ("{}".to_owned(), "found \"\""),
        (String::new(), "not an AdmissionReview"),
        ("\u{0}".to_owned(), "not an AdmissionReview"),
        (deep, "not an AdmissionReview"),
        (r#"{"request": {"uid": 1}}"#.to_owned(), "not an AdmissionReview"),
    ] {
        let error = answer(body.as_bytes(), &options(), Among::All, OnProblem::Warn).unwrap_err();
        assert!(error.to_string().contains(why), "{error}");
    }
}

#[test]
fn whatever_stands_where_a_pod_should_is_admitted() {
    let mut review = review("deployment");
    for object in [
        json!(null),
        json!(1),
        json!([]),
        json!({}),
        json!({"kind": "Pod", "apiVersion": "v1"}),
        json!({"kind": "Pod", "apiVersion": "v1", "metadata": [], "spec": 3}),
        json!({"kind": "Pod", "apiVersion": "v1", "spec": {"containers": [null, 1, {}]}}),
        json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"annotations": 5, "ownerReferences": {}},
            "spec": {"containers": [{"name": 7}], "initContainers": "x", "volumes": null}}),
    ] {
        review["request"]["object"] = object;
        let (answer, _) = answered(&review, Among::All, OnProblem::Warn);
        assert_eq!(answer["response"]["allowed"], true, "{review}");
        for warning in answer["response"]["warnings"].as_array().into_iter().flatten() {
            let warning = warning.as_str().unwrap();
            assert!(warning.len() <= MAX_WARNING && !warning.contains(char::is_control));
        }
    }
}

#[test]
fn warnings_fit_a_header() {
    assert_eq!(cut("two\nlines\u{85}", MAX_WARNING), "two lines ");
    let long = "é".repeat(MAX_WARNING);
    assert_eq!(cut(&long, MAX_WARNING).len(), MAX_WARNING);
}
