//! Whatever is done to valid documents, nothing panics, and what is still
//! accepted is a mesh that can be obeyed.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{collections::BTreeSet, path::Path};

use proptest::prelude::*;
use towpath_policies::{
    check, folder,
    model::{Action, ChainKind, Mesh},
};

fn good() -> String {
    let folder = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/good"));
    let texts: Vec<_> = folder::read(folder).unwrap().into_iter().map(|(_, text)| text).collect();
    texts.join("\n---\n")
}

/// One change of a text.
#[derive(Clone, Debug)]
enum Change {
    /// Cut some characters out.
    Cut(prop::sample::Index, usize),
    /// Put something in.
    Insert(prop::sample::Index, String),
    /// Copy a line to another place.
    CopyLine(prop::sample::Index, prop::sample::Index),
    /// Swap the values of two lines, from the colon on.
    SwapValues(prop::sample::Index, prop::sample::Index),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    use prop::sample::Index;
    let snippet = prop_oneof![
        Just("0".to_owned()),
        Just("-1".to_owned()),
        Just("[]".to_owned()),
        Just("{}".to_owned()),
        Just("\n".to_owned()),
        Just("\t".to_owned()),
        Just("---\n".to_owned()),
        Just("&a ".to_owned()),
        Just("*a".to_owned()),
        Just("!!str ".to_owned()),
        Just("\"".to_owned()),
        Just("*".to_owned()),
        Just("null".to_owned()),
        Just("99999999999".to_owned()),
        Just("é\u{0}".to_owned()),
        Just(": ".to_owned()),
        "[ -~]{1,6}",
    ];
    let change = prop_oneof![
        (any::<Index>(), 1..30_usize).prop_map(|(at, length)| Change::Cut(at, length)),
        (any::<Index>(), snippet).prop_map(|(at, text)| Change::Insert(at, text)),
        (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Change::CopyLine(from, to)),
        (any::<Index>(), any::<Index>()).prop_map(|(a, b)| Change::SwapValues(a, b)),
    ];
    prop::collection::vec(change, 1..4)
}

fn apply(text: &str, change: &Change) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    match change {
        Change::Cut(at, length) if !chars.is_empty() => {
            let at = at.index(chars.len());
            chars[..at].iter().chain(chars.iter().skip(at + length)).collect()
        }
        Change::Insert(at, text) => {
            let at = at.index(chars.len() + 1);
            chars[..at]
                .iter()
                .copied()
                .chain(text.chars())
                .chain(chars[at..].iter().copied())
                .collect()
        }
        Change::CopyLine(from, to) if !lines.is_empty() => {
            let line = lines[from.index(lines.len())].clone();
            lines.insert(to.index(lines.len()), line);
            lines.join("\n")
        }
        Change::SwapValues(a, b) if !lines.is_empty() => {
            let (a, b) = (a.index(lines.len()), b.index(lines.len()));
            let part = |line: &str| {
                line.find(": ").map(|at| (line[..at].to_owned(), line[at..].to_owned()))
            };
            if let (Some(x), Some(y)) = (part(&lines[a]), part(&lines[b])) {
                lines[a] = x.0 + &y.1;
                lines[b] = y.0 + &x.1;
            }
            lines.join("\n")
        }
        _ => text.to_owned(),
    }
}

/// What every consumer of a mesh relies on.
fn assert_obeyable(mesh: &Mesh) {
    let service = |name: &str| assert!(mesh.services.contains_key(name), "no service {name}");
    for (name, scoped) in &mesh.listeners {
        assert_eq!(name, &scoped.listener.name);
        assert!(!scoped.listener.chains.is_empty(), "{name} has no chain");
        let own = scoped.own.values().flat_map(|listener| &listener.chains);
        for chain in scoped.listener.chains.iter().chain(own) {
            match &chain.kind {
                ChainKind::Http { route_table, .. } => {
                    assert!(mesh.routes.contains_key(route_table), "no table {route_table}")
                }
                ChainKind::Tcp(tcp) => {
                    assert!(!tcp.backends.is_empty());
                    tcp.backends.iter().for_each(|b| service(&b.service));
                }
            }
        }
    }
    for table in mesh.routes.values() {
        let mut domains = BTreeSet::new();
        for host in &table.virtual_hosts {
            assert!(!host.domains.is_empty());
            host.domains
                .iter()
                .for_each(|d| assert!(domains.insert(d), "{d} twice in {}", table.name));
            for route in &host.routes {
                if let Action::Forward(forward) = &route.action {
                    assert!(forward.backends.iter().map(|b| u64::from(b.weight)).sum::<u64>() > 0);
                    forward.backends.iter().for_each(|b| service(&b.service));
                    forward.mirrors.iter().for_each(|m| service(&m.service));
                }
            }
        }
    }
    for name in mesh.services.keys() {
        assert!(mesh.endpoints.contains_key(name), "no endpoints of {name}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn mutations_never_panic(changes in changes()) {
        let text = changes.iter().fold(good(), |text, change| apply(&text, change));
        let checked = check([("a.yaml".into(), text.clone())], "v".to_owned());
        prop_assert_eq!(checked.mesh.is_some(), checked.report.is_ok());
        let lines: Vec<&str> = text.lines().collect();
        for found in &checked.report.diagnostics {
            prop_assert!(found.line >= 1 && found.column >= 1, "{}", found);
            prop_assert!(found.line as usize <= lines.len() + 1, "{}", found);
        }
        if let Some(mesh) = &checked.mesh {
            assert_obeyable(mesh);
            prop_assert!(checked.explain().is_some());
        }
    }

    #[test]
    fn noise_never_panics(text in "[-\\[\\]{}:,&*!|>%@'\"#?a1 \n\t]{0,200}") {
        let checked = check([("a.yaml".into(), text)], "v".to_owned());
        prop_assert_eq!(checked.mesh.is_some(), checked.report.is_ok());
    }
}

#[test]
fn the_examples_are_obeyable() {
    let checked = check([("a.yaml".into(), good())], "v".to_owned());
    assert_obeyable(&checked.mesh.unwrap());
}
