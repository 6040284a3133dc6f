//! Where configuration comes from: a policy folder, or any xDS server.
//!
//! Whatever a source does, what is in force stays in force until something
//! better was checked and applied.

mod cache;
mod folder;

use std::{path::PathBuf, sync::Arc};

use anyhow::{Context, anyhow};
use tokio::{sync::watch, task::AbortHandle};
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

/// Starts a source; a folder's first configuration is in force when this returns.
pub(crate) async fn start(
    config: SourceConfig,
    control: &Arc<Control>,
) -> anyhow::Result<Option<AbortHandle>> {
    match config {
        SourceConfig::Manual => {
            control.note_source(|s| *s = status("manual", String::new()));
            Ok(None)
        }
        SourceConfig::Folder { folder, node } => {
            control.note_source(|s| *s = status("folder", folder.display().to_string()));
            folder::start(folder, node, control).await.map(Some)
        }
        SourceConfig::ControlPlane { address, node, cache_dir } => {
            control.note_source(|s| *s = status("control-plane", address.clone()));
            let cache = cache_dir.map(|dir| Cache::new(&dir, &node)).transpose()?;
            follow_control_plane(address, node, cache, control).map(Some)
        }
    }
}

fn status(kind: &'static str, location: String) -> SourceStatus {
    SourceStatus { kind, location, ..SourceStatus::default() }
}

fn follow_control_plane(
    address: String,
    node: Node,
    cache: Option<Cache>,
    control: &Arc<Control>,
) -> anyhow::Result<AbortHandle> {
    if let Some(cache) = &cache {
        start_from(cache, control);
    }
    let (keep, kept) = watch::channel(None);
    let applying = Arc::downgrade(control);
    let apply = move |snapshot: Arc<Snapshot>| {
        let Some(control) = applying.upgrade() else { return Ok(()) };
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
        // Nobody reads where there is no cache.
        let _ = keep.send(Some(snapshot));
        Ok(())
    };
    let counting = Arc::downgrade(control);
    let count = move || {
        let Some(control) = counting.upgrade() else { return Vec::new() };
        control.view().services.values().map(|service| service.counted()).collect()
    };
    let client = AdsClient::start_reporting(Options::new(address, node), Arc::new(count), apply)
        .map_err(|error| anyhow!(error))
        .context("--control-plane")?;
    let control = control.clone();
    let task = tokio::spawn(async move {
        let status = client.status();
        tokio::join!(note_status(status, &control), keep_newest(kept, cache));
        drop(client);
    });
    Ok(task.abort_handle())
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

/// Writes the newest applied snapshot to disk; those it replaces meanwhile are skipped.
async fn keep_newest(mut newest: watch::Receiver<Option<Arc<Snapshot>>>, cache: Option<Cache>) {
    let Some(cache) = cache else { return };
    let cache = Arc::new(cache);
    while newest.changed().await.is_ok() {
        let Some(snapshot) = newest.borrow_and_update().clone() else { continue };
        let cache = cache.clone();
        let saved = tokio::task::spawn_blocking(move || cache.save(&snapshot)).await;
        if let Ok(Err(error)) = saved {
            tracing::warn!(
                error = format!("{error:#}"),
                "the configuration cannot be kept on disk"
            );
        }
    }
}
