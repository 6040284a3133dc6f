//! Where configuration comes from: a policy folder, or any xDS server.
//!
//! Whatever a source does, what is in force stays in force until something
//! better was checked and applied.

mod cache;
mod folder;

use std::{path::PathBuf, sync::Arc, time::Duration};

use anyhow::{Context, anyhow};
use tokio::{
    sync::watch,
    task::{AbortHandle, JoinHandle},
    time::timeout,
};
use towpath_policies::model::{Node, Snapshot};
use towpath_xds::client::{AdsClient, Options, Status};

use crate::control::{Control, SourceStatus};
use cache::Cache;

/// Where a proxy takes its configuration from.
#[derive(Clone, Debug)]
pub enum SourceConfig {
    /// A folder of policy files, followed as it changes.
    Folder {
        /// The folder.
        folder: PathBuf,
        /// Whose view of it: listeners for other nodes are left out.
        node: Node,
    },
    /// An ADS server.
    ControlPlane {
        /// `host:port`.
        address: String,
        /// How this proxy names itself; the id must not be empty.
        node: Node,
        /// Where the last good configuration is kept, if anywhere.
        cache_dir: Option<PathBuf>,
    },
    /// Whoever embeds the proxy calls [`crate::Running::apply`].
    Manual,
}

/// A source that is followed, until this is dropped.
#[derive(Debug)]
pub(crate) struct Following {
    task: AbortHandle,
    /// What is followed is kept on disk.
    keeping: Option<JoinHandle<()>>,
}

/// A source before there is a proxy that follows it.
#[derive(Debug)]
pub(crate) enum Source {
    /// A folder that was read and has no mistakes.
    Folder {
        opened: folder::Opened,
        location: String,
        node: Node,
    },
    ControlPlane {
        address: String,
        node: Node,
        cache_dir: Option<PathBuf>,
    },
    Manual,
}

impl Source {
    /// Reads what can be read before anything is opened: who has it wrong is to hear of that first, and not of
    /// a port.
    ///
    /// # Errors
    /// When a folder cannot be read, or its policies have mistakes.
    pub(crate) async fn open(config: SourceConfig) -> anyhow::Result<Self> {
        Ok(match config {
            SourceConfig::Manual => Self::Manual,
            SourceConfig::Folder { folder, node } => {
                let location = folder.display().to_string();
                Self::Folder { opened: folder::open(folder).await?, location, node }
            }
            SourceConfig::ControlPlane { address, node, cache_dir } => {
                Self::ControlPlane { address, node, cache_dir }
            }
        })
    }

    /// Follows the source; what a folder says is in force when this returns.
    ///
    /// # Errors
    /// When this proxy cannot obey a folder, or the control plane's address or the cache cannot be used.
    pub(crate) fn follow(
        self,
        opens_listeners: bool,
        control: &Arc<Control>,
    ) -> anyhow::Result<Option<Following>> {
        match self {
            Self::Manual => {
                control.note_source(|s| *s = status("manual", String::new()));
                Ok(None)
            }
            Self::Folder { opened, location, node } => {
                control.note_source(|s| *s = status("folder", location));
                Ok(Some(Following { task: opened.follow(node, control)?, keeping: None }))
            }
            Self::ControlPlane { address, node, cache_dir } => {
                control.note_source(|s| *s = status("control-plane", address.clone()));
                let cache = cache_dir.map(|dir| Cache::new(&dir, &node)).transpose()?;
                let options = Options { opens_listeners, ..Options::new(address, node) };
                follow_control_plane(options, cache, control).map(Some)
            }
        }
    }
}

fn status(kind: &'static str, location: String) -> SourceStatus {
    SourceStatus { kind, location, ..SourceStatus::default() }
}

fn follow_control_plane(
    options: Options,
    cache: Option<Cache>,
    control: &Arc<Control>,
) -> anyhow::Result<Following> {
    if let Some(cache) = &cache {
        start_from(cache, control);
    }
    let (opens_listeners, node) = (options.opens_listeners, options.node.id.clone());
    let (keep, kept) = watch::channel(None);
    let applying = Arc::downgrade(control);
    let apply = move |snapshot: Arc<Snapshot>| {
        let Some(control) = applying.upgrade() else { return Ok(()) };
        let first = control.view().applied.is_none() || control.source().from_cache;
        let listened = first || !control.addresses().is_empty();
        control.apply(snapshot.clone()).map_err(|rejections| {
            rejections
                .into_iter()
                .map(|rejection| {
                    tracing::error!(error = %rejection, "configuration from the control plane cannot be obeyed, keeping the last good one");
                    (rejection.key, rejection.reason)
                })
                .collect::<Vec<_>>()
        })?;
        control.note_source(|s| s.from_cache = false);
        if opens_listeners && listened && control.addresses().is_empty() {
            tracing::warn!(
                "nothing listens: the control plane has no listener for node `{node}` (towpath.dev/nodes of a Gateway says which nodes serve it)"
            );
        }
        // Nobody reads where there is no cache.
        let _ = keep.send(Some(snapshot));
        Ok(())
    };
    let counting = Arc::downgrade(control);
    let count = move || {
        let Some(control) = counting.upgrade() else { return Vec::new() };
        control.view().services.values().map(|service| service.counted()).collect()
    };
    let client = AdsClient::start_reporting(options, Arc::new(count), apply)
        .map_err(|error| anyhow!(error))
        .context("--control-plane")?;
    let control = control.clone();
    let task = tokio::spawn(async move {
        note_status(client.status(), &control).await;
        drop(client);
    });
    let keeping = cache.map(|cache| {
        tokio::spawn(keep_newest(kept, move |snapshot: &Snapshot| cache.save(snapshot)))
    });
    Ok(Following { task: task.abort_handle(), keeping })
}

impl Following {
    /// Follows no longer, and waits so long until what was followed to is on disk.
    pub(crate) async fn end(mut self, patience: Duration) {
        self.task.abort();
        let Some(keeping) = &mut self.keeping else { return };
        if timeout(patience, keeping).await.is_err() {
            tracing::warn!(?patience, "the newest configuration is not on disk yet, going anyway");
        }
    }
}

impl Drop for Following {
    fn drop(&mut self) {
        self.task.abort();
        if let Some(keeping) = &self.keeping {
            keeping.abort();
        }
    }
}

fn start_from(cache: &Cache, control: &Arc<Control>) {
    match cache.load() {
        Ok(None) => {}
        Ok(Some(snapshot)) => match control.apply(Arc::new(snapshot)) {
            Ok(()) => {
                control.note_source(|s| s.from_cache = true);
                tracing::info!("started from the last good configuration on disk");
            }
            Err(rejections) => {
                for error in rejections {
                    tracing::warn!(%error, "the configuration on disk cannot be obeyed, waiting for the control plane");
                }
            }
        },
        Err(error) => {
            tracing::warn!(
                error = format!("{error:#}"),
                "the configuration on disk cannot be read, waiting for the control plane"
            );
        }
    }
}

async fn note_status(mut status: watch::Receiver<Status>, control: &Control) {
    loop {
        let now = status.borrow_and_update().clone();
        control.note_source(|source| {
            source.connected = now.connected;
            source.errors = now
                .error
                .into_iter()
                .chain(
                    now.rejected
                        .into_iter()
                        .map(|(key, reason)| format!("{} `{}`: {reason}", key.kind, key.name)),
                )
                .chain(
                    now.waiting_for
                        .into_iter()
                        .map(|key| format!("{} `{}` has not come yet", key.kind, key.name)),
                )
                .collect();
        });
        if status.changed().await.is_err() {
            return;
        }
    }
}

/// Writes the newest applied snapshot to disk, until there can be no newer one; those it replaces
/// meanwhile are skipped.
async fn keep_newest(
    mut newest: watch::Receiver<Option<Arc<Snapshot>>>,
    save: impl Fn(&Snapshot) -> anyhow::Result<()> + Send + Sync + 'static,
) {
    let save = Arc::new(save);
    while newest.changed().await.is_ok() {
        let Some(snapshot) = newest.borrow_and_update().clone() else { continue };
        let save = save.clone();
        let saved = tokio::task::spawn_blocking(move || save(&snapshot)).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(
                error = format!("{error:#}"),
                "the configuration cannot be kept on disk"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, mpsc};

    use super::*;

    #[tokio::test]
    async fn however_slow_the_disk_the_end_waits_for_the_newest_configuration() {
        let (keep, kept) = watch::channel(None);
        let (begun, mut begins) = tokio::sync::mpsc::unbounded_channel();
        let (go, may_go) = mpsc::channel();
        let (disk, may_go) = (Arc::<Mutex<Vec<String>>>::default(), Mutex::new(may_go));
        let written = disk.clone();
        let slowly = move |snapshot: &Snapshot| {
            begun.send(()).unwrap();
            may_go.lock().unwrap().recv().unwrap();
            written.lock().unwrap().push(snapshot.version.clone());
            Ok(())
        };
        let keeping = Some(tokio::spawn(keep_newest(kept, slowly)));
        let apply = |version: &str| {
            let snapshot = Snapshot { version: version.to_owned(), ..Snapshot::default() };
            keep.send(Some(Arc::new(snapshot))).unwrap();
        };
        apply("1");
        begins.recv().await.unwrap();
        apply("2");
        apply("3");
        // As in a client, which goes with the task.
        let task = tokio::spawn(async move {
            let _keep = keep;
            std::future::pending::<()>().await;
        });
        let following = Following { task: task.abort_handle(), keeping };
        let ending = tokio::spawn(following.end(Duration::from_secs(20)));
        tokio::task::yield_now().await;
        assert_eq!(*disk.lock().unwrap(), [""; 0]);
        go.send(()).unwrap();
        begins.recv().await.unwrap();
        assert!(!ending.is_finished(), "the newest is not written yet");
        go.send(()).unwrap();
        ending.await.unwrap();
        assert_eq!(*disk.lock().unwrap(), ["1", "3"]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_hangs_is_not_waited_for() {
        let hangs = tokio::spawn(std::future::pending());
        let hanging = hangs.abort_handle();
        let task = tokio::spawn(std::future::pending::<()>()).abort_handle();
        let begun = tokio::time::Instant::now();
        Following { task, keeping: Some(hangs) }.end(Duration::from_secs(2)).await;
        assert_eq!(begun.elapsed().as_secs(), 2);
        tokio::task::yield_now().await;
        assert!(hanging.is_finished());
    }
}
