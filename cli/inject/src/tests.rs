//! Whole files: golden outputs, and what must hold for any of them.

use std::{collections::BTreeMap, fs, path::Path};

use crate::{Kind, Options, Outcome, Problem, Source, inject, tree::Tree, uninject};

mod generated;
mod meaning;

const VERSION: &str = "0.1.0";

/// As a comment `# inject with: plain intercept` at the top of a file says.
fn options(name: &str, text: &str) -> Options {
    let said = text.lines().next().and_then(|line| line.strip_prefix("# inject with: "));
    let has = |word: &str| said.is_some_and(|said| said.split(' ').any(|said| said == word));
    let source = (name.contains("compose") && !has("nothing"))
        .then(|| Source::Policies("./policies".to_owned()));
    Options { plain: has("plain"), intercept: has("intercept"), source, ..Options::new(VERSION) }
}

fn files(folder: &str) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(folder);
    let mut files: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "yaml" || e == "json"))
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, fs::read_to_string(path).unwrap())
        })
        .collect();
    files.sort();
    files
}

/// Compares with a golden file, or writes it when `BLESS` is set.
fn golden(path: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata").join(path);
    if std::env::var_os("BLESS").is_some() {
        fs::write(&path, text).unwrap();
    }
    let expected = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(text, expected, "{} differs; BLESS=1 writes it", path.display());
}

fn told(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("{problem}\n")).collect()
}

fn injected(name: &str, text: &str) -> Outcome {
    inject(name, text, &options(name, text)).unwrap_or_else(|p| panic!("{name}: {}", told(&p)))
}

#[test]
fn manifests_become_what_their_golden_files_say() {
    let files = files("");
    assert!(files.len() >= 30, "{} files", files.len());
    for (name, text) in files {
        let outcome = injected(&name, &text);
        golden(&format!("injected/{name}"), &outcome.text);
        let notes = told(&outcome.notes);
        let notes = format!("{}\n{notes}", outcome.changed.join("\n"));
        golden(&format!("injected/{name}.notes"), &notes);
    }
}

#[test]
fn what_is_taken_out_leaves_the_input_to_the_byte() {
    for (name, text) in files("") {
        let back = uninject(&name, &injected(&name, &text).text, None).unwrap();
        assert!(back.text == text, "{name}:\n{}", crate::unified(&name, &text, &back.text));
        assert_eq!(back.taken_out, injected(&name, &text).changed, "{name}");
    }
}

#[test]
fn injecting_twice_is_injecting_once() {
    for (name, text) in files("") {
        let once = injected(&name, &text);
        // What the options say stands on the first line, which is still there.
        let twice = injected(&name, &once.text);
        assert_eq!((twice.text, twice.changed), (once.text, once.changed), "{name}");
    }
}

#[test]
fn a_newer_version_injects_anew_and_takes_out_what_an_older_one_put_in() {
    for (name, text) in files("") {
        let newer = Options { image: "other:2".to_owned(), ..options(&name, &text) };
        let newer = Options { version: "0.2.0".to_owned(), ..newer };
        let old = injected(&name, &text).text;
        let from_old = inject(&name, &old, &newer).unwrap().text;
        assert_eq!(from_old, inject(&name, &text, &newer).unwrap().text, "{name}");
        assert_eq!(uninject(&name, &from_old, None).unwrap().text, text, "{name}");
    }
}

#[test]
fn what_another_tool_has_written_anew_is_taken_out_as_well() {
    let mut count = 0;
    for (name, text) in files("") {
        let Some(anew) = meaning::anew(&injected(&name, &text).text) else { continue };
        let back =
            uninject(&name, &anew, None).unwrap_or_else(|p| panic!("{name}: {}\n{anew}", told(&p)));
        meaning::check(&name, &text, &back.text);
        for word in ["towpath-proxy", "towpath.dev/injected", "name: towpath,", "name: \"towpath\""]
        {
            // A kind that is not known, or a pod that refuses, may say it of itself.
            assert!(
                text.contains(word) || !back.text.contains(word),
                "{name}: {word} in {}",
                back.text
            );
        }
        count += 1;
    }
    assert!(count > 30, "{count}");
}

#[test]
fn the_output_means_the_input_and_the_sidecar() {
    for (name, text) in files("") {
        meaning::check(&name, &text, &injected(&name, &text).text);
    }
}

#[test]
fn lines_of_block_style_are_only_added_to() {
    for (name, text) in files("") {
        let output = injected(&name, &text).text;
        let mut lines = output.lines();
        // Flow style shares its lines, and a null makes way for what it becomes.
        let flow =
            |line: &&str| line.contains(['{', '[']) || line.contains("null") || line.ends_with('~');
        for line in text.lines().filter(|line| !flow(line)) {
            assert!(lines.any(|other| other == line), "{name}: lost or moved: {line}");
        }
    }
}

#[test]
fn mistakes_are_pointed_at() {
    for (name, text) in files("bad") {
        let problems = match inject(&name, &text, &options(&name, &text)) {
            Ok(outcome) => panic!("{name} became\n{}", outcome.text),
            Err(problems) => problems,
        };
        golden(&format!("bad/{name}.txt"), &told(&problems));
    }
}

#[test]
fn what_is_not_ours_passes_through_untouched() {
    for text in [
        "",
        "# nothing\n",
        "---\n...\n",
        "- a\n- b\n",
        "just text",
        "kind: Deployment\n",
        "apiVersion: example.com/v1\nkind: Deployment\nspec: {template: {spec: {containers: [{}]}}}\n",
        "apiVersion: batch.volcano.sh/v1alpha1\nkind: Job\nspec: {template: {spec: {containers: [{}]}}}\n",
        "a: !custom [1, !!binary aGk=]\n? [complex, key]\n: value\n",
        "apiVersion: v1\nkind: Secret\ndata: {services: {}}\n",
    ] {
        let outcome = inject("f", text, &Options::new(VERSION)).unwrap();
        assert_eq!((outcome.text.as_str(), outcome.changed.len()), (text, 0));
    }
}

#[test]
fn a_folder_of_policies_is_one_in_compose_too() {
    for (folder, written) in
        [("mesh", "./mesh"), ("./mesh", "./mesh"), ("/etc/mesh", "/etc/mesh"), ("../m", "../m")]
    {
        let source = Some(Source::Policies(folder.to_owned()));
        let with = Options { source, ..Options::new(VERSION) };
        let text = inject("f", "services:\n  web: {image: a}\n", &with).unwrap().text;
        let written = format!("- {written}:/etc/towpath:ro");
        assert!(text.replace('"', "").contains(&written), "{text}");
    }
}

#[test]
fn something_added_later_to_what_towpath_made_stays() {
    let text =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - name: a\n";
    let outcome = injected("f", text).text;
    let later = outcome.replace("  volumes:\n", "  volumes:\n  - name: later\n    emptyDir: {}\n");
    assert_ne!(later, outcome);
    let back = uninject("f", &later, None).unwrap().text;
    let expected = text.replace(
        "  containers:\n",
        "  volumes:\n  - name: later\n    emptyDir: {}\n  containers:\n",
    );
    assert_eq!(back, expected);
}

#[test]
fn what_was_taken_out_by_hand_is_not_missed() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  annotations:\n    towpath.dev/injected: \"0.1.0 +spec/volumes/towpath +spec/initContainers/x\"\nspec:\n  containers:\n  - name: a\n";
    let back = uninject("f", text, None).unwrap().text;
    assert_eq!(
        back,
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  annotations:\nspec:\n  containers:\n  - name: a\n"
    );
}

#[test]
fn bytes_at_random_never_panic() {
    let words = [
        "apiVersion: v1\n",
        "kind: Pod\n",
        "spec:\n",
        "  containers:\n",
        "  - name: a\n",
        "{",
        "}",
        "[",
        "]",
        ",",
        ": ",
        "- ",
        "\n",
        "  ",
        "&a ",
        "*a",
        "<<: ",
        "? ",
        "\"",
        "'",
        "|+\n",
        "# c\n",
        "\t",
        "---\n",
        "...\n",
        "\u{feff}",
        "é",
        "annotations:",
        "metadata:",
        "services:\n",
        "apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - name: a\n",
        "services:\n  a: {image: b}\n",
        "towpath.dev/injected: \"0.1.0 +spec/volumes\"\n",
    ];
    let mut seed = 1_u64;
    let mut changed = BTreeMap::new();
    for _ in 0..20_000 {
        let mut text = String::new();
        for _ in 0..seed % 24 {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            text += words[usize::try_from(seed >> 40).unwrap() % words.len()];
        }
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(99);
        // Of a folder Compose files are made, of none pods.
        let name = if seed & (1 << 41) == 0 { "compose" } else { "pod" };
        let mut with = options(name, "");
        with.intercept = seed & (1 << 42) == 0;
        if let Ok(outcome) = inject("f", &text, &with) {
            if !outcome.changed.is_empty() {
                *changed.entry(name).or_insert(0) += 1;
            }
            assert!(Tree::parse(&outcome.text).is_ok(), "{text:?} became {:?}", outcome.text);
        }
        let _ = uninject("f", &text, None);
    }
    assert!(changed.len() == 2 && changed.values().all(|count| *count > 40), "{changed:?}");
}

/// <https://kubernetes.io/docs/concepts/security/pod-security-standards/#restricted>
#[test]
fn the_sidecar_keeps_to_the_restricted_standard_and_only_the_init_step_does_not() {
    let text = "apiVersion: v1\nkind: Pod\nspec: {containers: [{name: a}]}\n";
    let with = Options { intercept: true, ..Options::new(VERSION) };
    let outcome = inject("f", text, &with).unwrap().text;
    let tree = Tree::parse(&outcome).unwrap();
    let spec = tree.find(tree.documents[0], &["spec"]).unwrap();
    let inits = tree.items(tree.find(spec, &["initContainers"]).unwrap());
    let volumes = tree.items(tree.find(spec, &["volumes"]).unwrap());
    assert!(volumes.iter().all(|volume| tree.find(*volume, &["emptyDir"]).is_some()));
    let restricted = |id| {
        let said = |path: &[&str]| tree.find_text(id, &[&["securityContext"], path].concat());
        let added = tree.find(id, &["securityContext", "capabilities", "add"]);
        let dropped = tree.find(id, &["securityContext", "capabilities", "drop"]).unwrap();
        let hosts = tree.entries(id).iter().any(|entry| tree.text(entry.key) == Some("ports"));
        said(&["allowPrivilegeEscalation"]) == Some("false")
            && said(&["runAsNonRoot"]) == Some("true")
            && said(&["runAsUser"]) != Some("0")
            && said(&["privileged"]).is_none()
            && said(&["seccompProfile", "type"]) == Some("RuntimeDefault")
            && added.is_none()
            && tree.items(dropped).iter().any(|name| tree.text(*name) == Some("ALL"))
            && !hosts
    };
    let names: Vec<_> = inits.iter().map(|id| tree.find_text(*id, &["name"]).unwrap()).collect();
    assert_eq!(names, ["towpath-intercept", "towpath-proxy"]);
    assert_eq!(inits.iter().map(|id| restricted(*id)).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn many_ways_to_one_object_are_not_all_walked() {
    // Each level merges the one before eight times: 8^15 ways, 16 objects.
    let mut text = "apiVersion: v1\nkind: Pod\nx0: &x0 {a: b}\n".to_owned();
    for level in 1..16 {
        let below = vec![format!("*x{}", level - 1); 8].join(", ");
        text += &format!("x{level}: &x{level} {{<<: [{below}]}}\n");
    }
    text += "spec:\n  <<: *x15\n  containers:\n  - name: a\n";
    let (done, told) = std::sync::mpsc::channel();
    let worker = std::thread::spawn(move || done.send(injected("f", &text).changed));
    let changed = told.recv_timeout(std::time::Duration::from_secs(30)).expect("an end");
    assert_eq!(changed, ["Pod/?"]);
    worker.join().unwrap().unwrap();
}

#[test]
fn a_pod_keeps_its_class_however_amounts_are_written() {
    for (limits, requests, kept) in [
        ("{cpu: 1, memory: 1Gi}", "{cpu: 1000m, memory: 1024Mi}", true),
        ("{cpu: 0.5, memory: 1e9}", "{cpu: 500m, memory: 1G}", true),
        ("{cpu: 1, memory: 1Gi}", "{cpu: 1, memory: 1G}", false),
        ("{cpu: 0, memory: 1Gi}", "{}", false),
    ] {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - name: a\n    resources:\n      \
             limits: {limits}\n      requests: {requests}\n"
        );
        let outcome = injected("f", &text).text;
        assert_eq!(outcome.matches("500m").count() >= 2, kept, "{outcome}");
    }
}

/// Kubernetes takes what its containers ask for together for a pod's request, before its limit.
#[test]
fn it_is_said_where_the_sidecars_request_would_be_the_whole_pods() {
    let limited = "{limits: {memory: 1Gi}}";
    for (pod, container, annotation, noted) in [
        (limited, "{}", "memory-limit", true),
        (limited, "{}", "memory-request", true),
        (limited, "{requests: {cpu: 1}}", "memory-limit", true),
        (limited, "{}", "cpu-limit", false),
        (limited, "{requests: {memory: 512Mi}}", "memory-limit", false),
        (limited, "{limits: {memory: 512Mi}}", "memory-limit", false),
        ("{limits: {memory: 1Gi}, requests: {memory: 1Gi}}", "{}", "memory-limit", false),
        ("{requests: {memory: 1Gi}}", "{}", "memory-limit", false),
        ("{limits: {cpu: 1}}", "{}", "memory-limit", false),
    ] {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  annotations:\n    towpath.dev/{annotation}: 96Mi\n\
             spec:\n  resources: {pod}\n  containers:\n  - name: a\n    resources: {container}\n"
        );
        let notes = told(&injected("f", &text).notes);
        let said = notes.starts_with("f:5:") && notes.contains("the pod names no memory request");
        assert_eq!((said, notes.is_empty()), (noted, !noted), "{text}{notes}");
    }
}

#[test]
fn an_annotation_that_kubernetes_would_not_take_is_obeyed_and_told_of() {
    for (annotation, noted) in [
        ("towpath.dev/inject: false", Some("write it \"false\"")),
        ("towpath.dev/inject: \"false\"", None),
        ("towpath.dev/inject: !!str false", None),
        ("towpath.dev/workers: 3", Some("write it \"3\"")),
        ("towpath.dev/memory-request: 96Mi", None),
        ("towpath.dev/log-level: info", None),
        ("somebody.else/inject: false", None),
    ] {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  annotations:\n    {annotation}\n\
             spec:\n  containers:\n  - name: a\n"
        );
        let outcome = injected("f", &text);
        let notes = told(&outcome.notes);
        let refused = annotation.starts_with("towpath.dev/inject");
        assert_eq!(outcome.changed.is_empty(), refused, "{annotation}");
        match noted {
            Some(help) => assert!(notes.contains("f:5:") && notes.contains(help), "{notes}"),
            None => assert_eq!(notes, "", "{annotation}"),
        }
    }
}

#[test]
fn what_can_have_no_sidecar_is_not_refused_for_what_it_says_of_one() {
    for (annotation, spec) in [
        ("kubernetes.io/config.mirror: abc", ""),
        ("a: b", "  os: {name: windows}\n"),
        ("a: b", "  nodeSelector: {kubernetes.io/os: windows}\n"),
    ] {
        let pod = |annotation: &str, spec: &str| {
            format!(
                "apiVersion: v1\nkind: Pod\nmetadata:\n  annotations:\n    {annotation}\n    \
                 towpath.dev/workers: many\nspec:\n{spec}  containers:\n  - name: a\n"
            )
        };
        let text = pod(annotation, spec);
        let outcome = injected("f", &text);
        assert_eq!((outcome.text.as_str(), outcome.changed.len()), (text.as_str(), 0));
        assert!(told(&outcome.notes).contains("passed over"), "{:?}", outcome.notes);
        assert!(inject("f", &pod("a: b", ""), &options("f", "")).is_err());
    }
}

#[test]
fn flags_are_held_to_what_annotations_are() {
    let pod = "apiVersion: v1\nkind: Pod\nspec: {containers: [{name: a}]}\n";
    let plane = |address: &str| Some(Source::ControlPlane(address.to_owned()));
    let folder = |folder: &str| Some(Source::Policies(folder.to_owned()));
    for (image, source) in [
        ("", None),
        ("a b", None),
        ("a\n- b", None),
        ("a", plane("")),
        ("a", plane("mesh 18000")),
        ("a", plane("mesh\u{0}")),
        ("a", folder("")),
        ("a", folder("./mesh:rw")),
        ("a", folder("./me\nsh")),
    ] {
        let with = Options { image: image.to_owned(), source, ..Options::new(VERSION) };
        let problems = inject("f", pod, &with).unwrap_err();
        assert!(told(&problems).contains("cannot be given to a sidecar"), "{with:?}");
    }
}

#[test]
fn a_file_said_to_be_compose_is_taken_for_it_on_the_way_out_as_well() {
    let text = "kind: stack\nservices:\n  web: {image: a}\n";
    let with = Options { kind: Some(Kind::Compose), ..options("compose", "") };
    let outcome = inject("f", text, &with).unwrap();
    assert_eq!(outcome.changed, ["web"]);
    assert_eq!(inject("f", &outcome.text, &with).unwrap(), outcome);
    let back = uninject("f", &outcome.text, Some(Kind::Compose)).unwrap();
    assert_eq!((back.text.as_str(), back.taken_out), (text, vec!["web".to_owned()]));
}

#[test]
fn what_is_refused_later_is_said_to_be_taken_out() {
    let text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: a}]}\n";
    let with = injected("f", text).text;
    let refusing =
        with.replace("\"annotations\": {", "\"annotations\": {towpath.dev/inject: \"false\", ");
    let outcome = injected("f", &refusing);
    assert_eq!((outcome.changed.len(), outcome.taken_out), (0, vec!["Pod/a".to_owned()]));
    assert!(!outcome.text.contains("towpath-proxy"));
}
