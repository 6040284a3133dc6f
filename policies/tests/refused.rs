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
