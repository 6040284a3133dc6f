//! Everything that runs: put up, changed by the story, and taken down.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, bail, ensure};
use http::StatusCode;
use serde_json::Value;
use tokio::time::Instant;

use super::{
    admin::{self, Metrics},
    place::{Capacity, Node, Places},
    policies,
    process::Fleet,
    repository::{BRANCH, Commit, Repository},
};
use crate::etl::store::Store;

pub(super) const GATEWAY: &str = "gateway";
pub(super) const CONTROL_PLANE: &str = "control-plane";
/// Name that the gateway gives itself.
const GATEWAY_NODE: &str = "edge-1";
/// Time that anything that is waited for may take.
const PATIENCE: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(15);

/// The running mesh.
#[derive(Debug)]
pub(super) struct Stage {
    pub(super) folder: PathBuf,
    pub(super) places: Places,
    pub(super) fleet: Fleet,
    pub(super) repository: Repository,
    pub(super) store: Store,
    /// Told by the control plane at its first start, and kept when it is restarted.
    xds: SocketAddr,
    control_admin: SocketAddr,
}

impl Stage {
    /// Makes folders below `folder` and finds ports; starts nothing.
    pub(super) fn new(folder: &Path, capacity: Capacity) -> anyhow::Result<Self> {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        Ok(Self {
            folder: folder.to_owned(),
            places: Places::find(capacity).context("finding free ports on loopback")?,
            fleet: Fleet::new(&folder.join("logs"))?,
            repository: Repository::create(folder.join("policies"))?,
            store: Store::open(folder.join("loaded"))?,
            xds: any,
            control_admin: any,
        })
    }

    /// Starts everything and waits until the gateway uses every worker.
    pub(super) async fn put_up(&mut self) -> anyhow::Result<Commit> {
        let subject = "Six workers in three regions, and the road to them";
        let commit = self.repository.commit(subject, &policies::files(&self.places))?;
        for index in 0..self.places.nodes.len() {
            self.start_worker(index).await?;
        }
        self.start_control_plane().await?;
        for index in 0..self.places.nodes.len() {
            let node = &self.places.nodes[index];
            let (name, sidecar) = (node.name.clone(), node.sidecar());
            self.start_proxy(&format!("sidecar {name}"), &sidecar).await?;
        }
        self.start_proxy(GATEWAY, GATEWAY_NODE).await?;
        self.until_in_sync(&commit).await?;
        let nodes: Vec<String> = self.places.nodes.iter().map(|n| n.name.clone()).collect();
        for name in nodes {
            self.until_usable(&name, true).await?;
        }
        Ok(commit)
    }

    /// Starts a worker, also anew on its old port.
    pub(super) async fn start_worker(&mut self, index: usize) -> anyhow::Result<()> {
        let node = &self.places.nodes[index];
        let mut args = vec!["etl-worker".to_owned()];
        for (flag, value) in [
            ("--listen", node.app.to_string()),
            ("--load", self.folder.join("loaded").display().to_string()),
            ("--name", node.name.clone()),
            ("--region", node.region.name.to_owned()),
            ("--delay-ms", node.region.delay_ms.to_string()),
            ("--batch-ms", self.places.capacity.batch_ms.to_string()),
            ("--rate-mib", self.places.rate_mib(node).to_string()),
        ] {
            args.extend([flag.to_owned(), value]);
        }
        self.fleet.start(&worker(node), &args).await
    }

    /// Starts the control plane, also anew on its old ports.
    pub(super) async fn start_control_plane(&mut self) -> anyhow::Result<()> {
        let mut args = vec!["control-plane".to_owned()];
        for (flag, value) in [
            ("--policies", self.repository.folder().display().to_string()),
            ("--branch", BRANCH.to_owned()),
            ("--path", "mesh".to_owned()),
            ("--poll", "1s".to_owned()),
            ("--xds", self.xds.to_string()),
            ("--admin", self.control_admin.to_string()),
            ("--state-dir", self.folder.join("control-plane").display().to_string()),
        ] {
            args.extend([flag.to_owned(), value]);
        }
        self.fleet.start(CONTROL_PLANE, &args).await?;
        self.xds = self.fleet.address(CONTROL_PLANE, "xds")?;
        self.control_admin = self.fleet.address(CONTROL_PLANE, "admin")?;
        Ok(())
    }

    async fn start_proxy(&mut self, name: &str, node: &str) -> anyhow::Result<()> {
        let log = match name {
            GATEWAY => self.folder.join("logs/gateway-access.json").display().to_string(),
            _ => "off".to_owned(),
        };
        let cache = self.folder.join("cache").join(node);
        std::fs::create_dir_all(&cache)
            .with_context(|| format!("cannot make {}", cache.display()))?;
        let mut args = vec!["proxy".to_owned()];
        for (flag, value) in [
            ("--control-plane", self.xds.to_string()),
            ("--node", node.to_owned()),
            ("--admin", "127.0.0.1:0".to_owned()),
            ("--workers", "1".to_owned()),
            ("--drain-timeout", "2s".to_owned()),
            ("--cache-dir", cache.display().to_string()),
            ("--access-log", log),
            ("--spool-dir", self.folder.display().to_string()),
        ] {
            args.extend([flag.to_owned(), value]);
        }
        self.fleet.start(name, &args).await
    }

    /// Ends everything: first who asks, then who answers.
    pub(super) async fn take_down(&mut self) {
        for prefix in [GATEWAY, "sidecar ", CONTROL_PLANE, "worker ", ""] {
            self.fleet.stop_all(prefix).await;
        }
    }

    pub(super) fn gateway_admin(&self) -> anyhow::Result<SocketAddr> {
        self.fleet.address(GATEWAY, "admin")
    }

    pub(super) fn control_admin(&self) -> SocketAddr {
        self.control_admin
    }

    /// What the gateway counts.
    pub(super) async fn gateway_metrics(&self) -> anyhow::Result<Metrics> {
        Metrics::of(self.gateway_admin()?).await
    }

    /// What the control plane tells.
    pub(super) async fn status(&self) -> anyhow::Result<Value> {
        let text = admin::get(self.control_admin, "/status").await?;
        serde_json::from_str(&text).context("the control plane's status is not JSON")
    }

    /// Tells the control plane to look for a new commit, as a webhook would.
    pub(super) async fn refresh(&self) -> anyhow::Result<()> {
        let (status, text) = admin::post(self.control_admin, "/refresh").await?;
        // 422: it looked, and what it saw is not fit to be served
        ensure!(
            status.is_success() || status == StatusCode::UNPROCESSABLE_ENTITY,
            "the control plane cannot look for commits: {status}: {}",
            text.trim()
        );
        Ok(())
    }

    /// Slows a worker down, by its harness.
    pub(super) async fn slow_down(&self, node: usize, factor: u32) -> anyhow::Result<()> {
        let name = worker(&self.places.nodes[node]);
        let harness = self.fleet.address(&name, "harness")?;
        let path = format!("/_harness/slow?factor={factor}");
        let (status, text) = admin::post(harness, &path).await?;
        ensure!(status.is_success(), "{name} cannot be slowed down: {status}: {}", text.trim());
        Ok(())
    }

    /// Waits until the gateway obeys this commit; says how long that took.
    pub(super) async fn until_obeyed(&self, commit: &Commit) -> anyhow::Result<Duration> {
        let what = format!("the gateway obeys commit {}", commit.short());
        let done = async || {
            let metrics = self.gateway_metrics().await?;
            let version = metrics.label_of("towpath_config_version_info", "version");
            Ok(version.is_some_and(|version| version.starts_with(&commit.id)))
        };
        until(&what, done).await
    }

    /// Waits until the control plane says that every proxy holds this commit.
    pub(super) async fn until_in_sync(&self, commit: &Commit) -> anyhow::Result<Duration> {
        let expected = self.places.nodes.len() + 1;
        let what = format!("{expected} proxies hold commit {}", commit.short());
        let done = async || {
            let status = self.status().await?;
            let proxies = status["proxies"].as_array().map_or(&[][..], Vec::as_slice);
            let holding = proxies.iter().filter(|proxy| {
                let version = proxy["version"].as_str().unwrap_or_default();
                proxy["in_sync"] == true && version.starts_with(&commit.id)
            });
            Ok(holding.count() == expected)
        };
        until(&what, done).await
    }

    /// Waits until the control plane has rejected this commit; its first finding.
    pub(super) async fn until_rejected(
        &self,
        commit: &Commit,
    ) -> anyhow::Result<(Duration, Value)> {
        let what = format!("the control plane rejects commit {}", commit.short());
        let done = async || {
            let status = self.status().await?;
            let version = status["rejected"]["version"].as_str().unwrap_or_default();
            Ok(version.starts_with(&commit.id))
        };
        let took = until(&what, done).await?;
        let finding = self.status().await?["rejected"]["diagnostics"][0].take();
        Ok((took, finding))
    }

    /// Waits until the gateway would, or would not, pick a worker.
    pub(super) async fn until_usable(&self, node: &str, usable: bool) -> anyhow::Result<Duration> {
        let what = format!("{node} is {} rotation", if usable { "in" } else { "out of" });
        let done = async || {
            let metrics = self.gateway_metrics().await?;
            let labels = [("service", "etl"), ("endpoint", node)];
            Ok((metrics.sum("towpath_endpoint_usable", &labels) > 0.0) == usable)
        };
        until(&what, done).await
    }
}

/// Name of a worker's process.
pub(super) fn worker(node: &Node) -> String {
    format!("worker {}", node.name)
}

/// Asks again and again, through failures, until the answer is yes.
async fn until(
    what: &str,
    mut done: impl AsyncFnMut() -> anyhow::Result<bool>,
) -> anyhow::Result<Duration> {
    let started = Instant::now();
    loop {
        let outcome = done().await;
        if matches!(outcome, Ok(true)) {
            return Ok(started.elapsed());
        }
        if started.elapsed() > PATIENCE {
            match outcome {
                Err(error) => return Err(error).with_context(|| format!("waited that {what}")),
                Ok(_) => bail!("waited {} s that {what}", PATIENCE.as_secs()),
            }
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}
