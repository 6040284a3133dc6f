//! A policy folder, followed as it changes.

use std::{
    fs,
    hash::{DefaultHasher, Hash, Hasher},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, anyhow};
use notify::{RecursiveMode, Watcher};
use tokio::{sync::Notify, task::AbortHandle, time::timeout};
use towpath_policies::model::{Mesh, Node, ResourceKey, ResourceKind};

use crate::control::Control;

/// Changes come in bursts: this long without one, and the burst is over.
const QUIET: Duration = Duration::from_millis(50);
/// A burst that does not end is looked at after this.
const LONGEST_BURST: Duration = Duration::from_secs(1);
/// File systems that do not tell of changes (network mounts) are looked at this often.
const POLL: Duration = Duration::from_secs(3);

/// A folder that was read; what changes in it since then is seen.
#[derive(Debug)]
pub(crate) struct Opened {
    folder: PathBuf,
    mesh: Mesh,
    seen: u64,
    changed: Arc<Notify>,
    watcher: Option<notify::RecommendedWatcher>,
}

/// Reads the folder, and watches it.
///
/// # Errors
/// When it cannot be read, or its policies have mistakes.
pub(super) async fn open(folder: PathBuf) -> anyhow::Result<Opened> {
    // Looked at before it is read: what changes in between is then seen as a change.
    let seen = fingerprint(&folder);
    let changed = Arc::new(Notify::new());
    let watcher = watch(&folder, changed.clone());
    let mesh = load(&folder).await?;
    // Said only now: one that is not there cannot be read either, and that is what is to be said.
    let watcher = watcher
        .inspect_err(|error| {
            tracing::warn!(%error, "cannot be told of changed policies, looking every {POLL:?} instead");
        })
        .ok();
    Ok(Opened { folder, mesh, seen, changed, watcher })
}

impl Opened {
    /// Puts the folder in force, and follows it from then on.
    ///
    /// # Errors
    /// When this proxy cannot obey it.
    pub(super) fn follow(self, node: Node, control: &Arc<Control>) -> anyhow::Result<AbortHandle> {
        let Self { folder, mesh, seen, changed, watcher } = self;
        put_in_force(control, &mesh, &node).map_err(|errors| {
            anyhow!("the policies in {} cannot be obeyed:\n{}", folder.display(), errors.join("\n"))
        })?;
        let control = control.clone();
        let task = tokio::spawn(async move {
            let _watcher = watcher;
            follow(&folder, &node, &control, &changed, seen).await;
        });
        Ok(task.abort_handle())
    }
}

async fn follow(folder: &Path, node: &Node, control: &Arc<Control>, changed: &Notify, seen: u64) {
    let mut seen = seen;
    loop {
        if timeout(POLL, changed.notified()).await.is_ok() {
            let burst = async { while timeout(QUIET, changed.notified()).await.is_ok() {} };
            // Whether it ended or not, it is time to look.
            let _ = timeout(LONGEST_BURST, burst).await;
        }
        let now = fingerprint(folder);
        if now == seen {
            continue;
        }
        seen = now;
        let outcome = match load(folder).await {
            Ok(mesh) if mesh.version == control.view().snapshot.version => Ok(()),
            Ok(mesh) => put_in_force(control, &mesh, node),
            Err(error) => Err(format!("{error:#}").lines().map(str::to_owned).collect()),
        };
        if let Err(errors) = &outcome {
            for error in errors {
                tracing::error!("{error}");
            }
            tracing::error!(
                folder = %folder.display(),
                "the changed policies cannot be used, keeping the last good ones"
            );
        }
        let errors = outcome.err().unwrap_or_default();
        control.note_source(|status| {
            status.connected = true;
            status.errors = errors;
        });
    }
}

fn put_in_force(control: &Arc<Control>, mesh: &Mesh, node: &Node) -> Result<(), Vec<String>> {
    control.apply(Arc::new(mesh.view(node))).map_err(|rejections| {
        rejections
            .iter()
            .map(|rejection| match mesh.sources.get(&rejection.key) {
                Some(source) => format!("{source}: {rejection}"),
                None => rejection.to_string(),
            })
            .collect::<Vec<_>>()
    })?;
    control.note_source(|status| status.connected = true);
    if control.opens_listeners() {
        match unserved(mesh, node) {
            Unserved::All(told) => tracing::warn!("nothing listens: {told}"),
            Unserved::Some(told) => tracing::info!("not for this proxy: {told}"),
            Unserved::Nothing => {}
        }
    }
    Ok(())
}

/// What of a folder's listeners this proxy does not serve, for a person.
#[derive(Debug, PartialEq, Eq)]
enum Unserved {
    All(String),
    Some(String),
    Nothing,
}

/// Listeners named in the log at a time.
const MAX_TOLD: usize = 10;

fn unserved(mesh: &Mesh, node: &Node) -> Unserved {
    let serves = mesh.view(node).listeners.values().any(|l| l.bind.socket().is_some());
    let mut withheld = mesh.withheld(node);
    if serves {
        // That the listeners of other sidecars are not for this one goes without saying.
        withheld.retain(|(name, _)| name.starts_with("gateway/"));
    }
    let more = withheld.len().saturating_sub(MAX_TOLD);
    let told = withheld.iter().take(MAX_TOLD).map(|(name, whom)| {
        let key = ResourceKey { kind: ResourceKind::Listener, name: (*name).to_owned() };
        let at = mesh.sources.get(&key).map(|source| format!(" ({source})")).unwrap_or_default();
        format!("{name}{at} is for {whom}")
    });
    let mut told = told.collect::<Vec<_>>().join("; ");
    if more > 0 {
        told += &format!("; and {more} more");
    }
    match (serves, withheld.is_empty()) {
        (true, true) => Unserved::Nothing,
        (true, false) => Unserved::Some(told),
        (false, true) => Unserved::All("the policies have no Gateway with a listener".to_owned()),
        (false, false) => Unserved::All(format!("{}; {told}", who(node))),
    }
}

/// What a proxy says of itself.
fn who(node: &Node) -> String {
    let name = match node.id.as_str() {
        "" => "this proxy has no name (--node)".to_owned(),
        id => format!("this proxy is `{id}`"),
    };
    let cluster = match node.cluster.as_str() {
        "" => String::new(),
        cluster => format!(" of the cluster `{cluster}`"),
    };
    format!("{name}{cluster}{}", if node.sidecar { ", a sidecar" } else { "" })
}

/// Reads and compiles the folder, off the control thread.
async fn load(folder: &Path) -> anyhow::Result<Mesh> {
    let folder = folder.to_owned();
    tokio::task::spawn_blocking(move || read(&folder)).await.context("reading policies")?
}

fn read(folder: &Path) -> anyhow::Result<Mesh> {
    let files = towpath_policies::folder::read(folder)?;
    let version = towpath_policies::folder::digest(&files);
    towpath_policies::load(files, version)
        .map_err(|report| anyhow!("the policies in {} have mistakes:\n{report}", folder.display()))
}

/// Asks the system to tell of changes; polling does where it cannot.
fn watch(folder: &Path, changed: Arc<Notify>) -> notify::Result<notify::RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Being read is no change, and reading is what we answer a change with.
        if !event.is_ok_and(|event| event.kind.is_access()) {
            changed.notify_one();
        }
    })?;
    watcher.watch(folder, RecursiveMode::Recursive)?;
    Ok(watcher)
}

/// Changes when a file in the folder comes, goes or is written, or a symbolic
/// link leads elsewhere (as a mounted ConfigMap's does).
fn fingerprint(folder: &Path) -> u64 {
    let mut hasher = DefaultHasher::new();
    mix(folder, 0, &mut hasher);
    hasher.finish()
}

/// Deeper than any folder that is accepted.
const MAX_DEPTH: usize = towpath_policies::folder::MAX_DEPTH + 1;

fn mix(path: &Path, depth: usize, hasher: &mut DefaultHasher) {
    path.hash(hasher);
    let Ok(meta) = fs::metadata(path) else { return };
    (meta.dev(), meta.ino(), meta.is_dir()).hash(hasher);
    if !meta.is_dir() {
        (meta.len(), meta.mtime(), meta.mtime_nsec(), meta.ctime_nsec()).hash(hasher);
        return;
    }
    let Ok(entries) = fs::read_dir(path) else { return };
    let mut entries: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
    entries.sort_unstable();
    for entry in entries {
        let hidden =
            entry.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if depth < MAX_DEPTH && !hidden {
            mix(&entry, depth + 1, hasher);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GATEWAY: &str = "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: NAME, annotations: {towpath.dev/nodes: \"NODES\"}}
spec:
  gatewayClassName: towpath
  listeners:
  - {name: http, port: 80, protocol: HTTP}
---
";

    fn mesh(gateways: &[(&str, &str)]) -> Mesh {
        let text =
            |(name, nodes): &(&str, &str)| GATEWAY.replace("NAME", name).replace("NODES", nodes);
        let files = [("edge.yaml".into(), gateways.iter().map(text).collect())];
        towpath_policies::load(files, "v1".to_owned()).unwrap()
    }

    #[test]
    fn a_proxy_that_no_gateway_names_hears_whom_they_are_for() {
        let node = |id: &str| Node { id: id.to_owned(), ..Node::default() };
        let mesh = mesh(&[("edge", "edge-*, front"), ("inner", "inner")]);
        let inner = "gateway/inner/80 (edge.yaml:15) is for nodes inner";
        let edge = "gateway/edge/80 (edge.yaml:7) is for nodes edge-*, front";
        assert_eq!(unserved(&mesh, &node("edge-1")), Unserved::Some(inner.to_owned()));
        for (node, who) in [
            (node(""), "this proxy has no name (--node)"),
            (node("egde-1"), "this proxy is `egde-1`"),
            (
                Node { cluster: "jobs".to_owned(), sidecar: true, ..node("a") },
                "this proxy is `a` of the cluster `jobs`, a sidecar",
            ),
        ] {
            assert_eq!(unserved(&mesh, &node), Unserved::All(format!("{who}; {edge}; {inner}")));
        }
    }

    #[test]
    fn of_many_gateways_a_few_are_told() {
        let names: Vec<_> = (0..MAX_TOLD + 2).map(|index| format!("g{index}")).collect();
        let gateways: Vec<_> = names.iter().map(|name| (name.as_str(), name.as_str())).collect();
        let Unserved::All(told) = unserved(&mesh(&gateways), &Node::default()) else {
            panic!("none is for a proxy without a name")
        };
        assert_eq!(told.matches("is for nodes").count(), MAX_TOLD);
        assert!(told.ends_with("; and 2 more"), "{told}");
    }

    #[test]
    fn who_serves_all_there_is_hears_nothing_and_who_serves_none_hears_that_there_is_none() {
        assert_eq!(unserved(&mesh(&[("all", "*")]), &Node::default()), Unserved::Nothing);
        let none = Unserved::All("the policies have no Gateway with a listener".to_owned());
        assert_eq!(unserved(&mesh(&[]), &Node::default()), none);
    }
}
