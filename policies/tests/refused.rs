//! What is said of the documents of `testdata/bad`: each `NAME.yaml` is checked
//! by itself, and `NAME.txt` holds every line of the answer.
//!
//! `BLESS=1 cargo test -p towpath-policies --test refused` writes the answers;
//! read the difference before it is committed.

use std::{fs, path::PathBuf};

use towpath_policies::{check, folder};

fn bad() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/bad"))
}

#[test]
fn every_mistake_is_told_with_its_place_and_what_is_allowed() {
    let mut differ = Vec::new();
    let files = folder::read(&bad()).unwrap();
    assert!(files.len() >= 15, "the documents are there");
    for (path, text) in files {
        let report = check([(path.clone(), text)], "v".to_owned()).report;
        let said = format!("{report}\n");
        let expected_at = bad().join(path.with_extension("txt"));
        if std::env::var_os("BLESS").is_some() {
            fs::write(&expected_at, &said).unwrap();
        }
        let expected = fs::read_to_string(&expected_at).unwrap_or_default();
        if said != expected {
            differ.push(format!("--- {}\n{said}", path.display()));
        }
    }
    assert!(differ.is_empty(), "other answers than expected:\n{}", differ.join("\n"));
}

#[test]
fn places_lie_within_the_text() {
    for (path, text) in folder::read(&bad()).unwrap() {
        let lines: Vec<&str> = text.lines().collect();
        for found in check([(path, text.clone())], "v".to_owned()).report.diagnostics {
            let line = lines.get(found.line as usize - 1).copied().unwrap_or("");
            let width = u32::try_from(line.chars().count()).unwrap();
            assert!(found.column >= 1 && found.column <= width + 1, "{found}");
            assert!(found.length >= 1, "{found}");
            assert!(found.column + found.length <= width + 2, "{found}");
            assert!(found.text == line || found.text.is_empty(), "{found}");
        }
    }
}

#[test]
fn very_many_mistakes_are_counted() {
    let one = "apiVersion: towpath.dev/v1alpha1\nkind: Srvice\n---\n";
    let report = check([("a.yaml".into(), one.repeat(3000))], "v".to_owned()).report;
    assert_eq!(report.diagnostics.len(), 1000);
    assert_eq!(report.left_out, 2000);
    assert!(!report.is_ok());
}

#[test]
fn of_very_many_regions_the_first_beyond_the_bound_is_told() {
    let region = |n: usize| {
        format!(
            "apiVersion: towpath.dev/v1alpha1\nkind: Region\nmetadata: {{name: r{n}}}\nspec: {{place: Munich}}\n---\n"
        )
    };
    for (count, told) in [(200, None), (203, Some("a.yaml:1003:18: error: more than 200"))] {
        let text: String = (0..count).map(region).collect();
        let report = check([("a.yaml".into(), text)], "v".to_owned()).report;
        assert_eq!(report.is_ok(), told.is_none());
        assert!(report.to_string().contains(told.unwrap_or_default()), "{report}");
        assert!(report.to_string().lines().count() <= 1, "{report}");
    }
}

/// A sidecar's listener, and Services without ports of their own addresses, at each port that another has an endpoint at;
/// and routes by name.
fn redirected(services: usize, addresses: usize, ports: usize, routes: usize) -> String {
    let mut text = "\
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: sidecars}
spec:
  gatewayClassName: towpath
  listeners: [{name: out, port: 15001, protocol: towpath.dev/Outbound}]
"
    .to_owned();
    let list = |items: Vec<String>| items.join(", ");
    for nth in 0..services {
        let own = (0..addresses).map(|a| format!("10.{nth}.{}.{}", a / 256, a % 256)).collect();
        let here = (nth..ports).step_by(services).map(|port| 1000 + port);
        let endpoints = here.map(|port| format!("{{address: \"10.255.0.1:{port}\"}}")).collect();
        text += &format!(
            "---\napiVersion: towpath.dev/v1alpha1\nkind: Service\nmetadata: {{name: s{nth}}}\nspec:\n  \
             protocol: TCP\n  addresses: [{}]\n  endpoints: [{}]\n",
            list(own),
            list(endpoints)
        );
    }
    for nth in 0..routes {
        text += &format!(
            "---\napiVersion: gateway.networking.k8s.io/v1\nkind: TLSRoute\nmetadata: {{name: r{nth}}}\nspec:\n  \
             parentRefs: [{{name: sidecars}}]\n  hostnames: [h{nth}.test]\n  rules: [{{backendRefs: [{{name: s0}}]}}]\n"
        );
    }
    text
}

#[test]
fn very_many_destinations_of_redirected_connections_are_refused_before_their_chains_are_made() {
    for ((services, addresses, ports, routes), expected) in [
        ((49, 1, 49, 3), None),
        ((150, 1, 150, 0), Some("22650 destinations")),
        ((1, 1000, 200, 0), Some("201200 networks")),
        ((2, 1, 200, 60), Some("12462 destinations")),
    ] {
        let text = redirected(services, addresses, ports, routes);
        let report = check([("mesh.yaml".into(), text)], "v".to_owned()).report.to_string();
        match expected {
            Some(what) => {
                let told = format!("mesh.yaml:6:33: error: {what} are to be told apart here");
                assert!(report.contains(&told), "{report}");
            }
            None => assert!(!report.contains("error"), "{report}"),
        }
    }
}
