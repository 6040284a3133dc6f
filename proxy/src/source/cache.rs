//! The last good configuration, on disk.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use towpath_policies::model::{EndpointSet, Listener, Node, RouteTable, Service, Snapshot};

/// One file, replaced as a whole, so that a crash leaves the old or the new one.
#[derive(Debug)]
pub(crate) struct Cache {
    file: PathBuf,
    node: String,
}

/// What is written, and how it is told from what another version wrote.
const FORMAT: u32 = 1;

#[derive(Serialize)]
struct Writing<'a> {
    format: u32,
    node: &'a str,
    snapshot: &'a Snapshot,
}

#[derive(Deserialize)]
struct Header {
    format: u32,
    node: String,
}

#[derive(Deserialize)]
struct Reading {
    snapshot: Kept,
}

#[derive(Deserialize)]
struct Kept {
    version: String,
    listeners: BTreeMap<String, Arc<Listener>>,
    routes: BTreeMap<String, Arc<RouteTable>>,
    services: BTreeMap<String, Arc<Service>>,
    endpoints: BTreeMap<String, Arc<EndpointSet>>,
}

impl Cache {
    /// Keeps the configuration of `node` in `dir`, which is made if it is not there.
    pub(crate) fn new(dir: &Path, node: &Node) -> anyhow::Result<Self> {
        fs::create_dir_all(dir)
            .with_context(|| format!("cannot make --cache-dir {}", dir.display()))?;
        Ok(Self { file: dir.join("last-good.json"), node: node.id.clone() })
    }

    /// What was kept; `None` when nothing was.
    pub(crate) fn load(&self) -> anyhow::Result<Option<Snapshot>> {
        let text = match fs::read(&self.file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).context(self.file.display().to_string()),
        };
        let named = || self.file.display().to_string();
        let header: Header = serde_json::from_slice(&text).with_context(named)?;
        if header.format != FORMAT {
            bail!("{}: written by another version (format {})", named(), header.format);
        }
        if header.node != self.node {
            bail!("{}: kept for node `{}`, this is `{}`", named(), header.node, self.node);
        }
        let Reading { snapshot: kept } = serde_json::from_slice(&text).with_context(named)?;
        Ok(Some(Snapshot {
            version: kept.version,
            listeners: kept.listeners,
            routes: kept.routes,
            services: kept.services,
            endpoints: kept.endpoints,
            sources: BTreeMap::new(),
        }))
    }

    /// Replaces what was kept.
    pub(crate) fn save(&self, snapshot: &Snapshot) -> anyhow::Result<()> {
        let written = Writing { format: FORMAT, node: &self.node, snapshot };
        let text = serde_json::to_vec(&written)?;
        let temporary = self.file.with_extension("tmp");
        let named = || temporary.display().to_string();
        let mut file = fs::File::create(&temporary).with_context(named)?;
        file.write_all(&text).and_then(|()| file.sync_all()).with_context(named)?;
        fs::rename(&temporary, &self.file).with_context(named)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use towpath_policies::model::{Endpoint, Protocol};

    #[test]
    fn what_is_kept_comes_back_equal_and_only_to_its_node() {
        let dir = tempfile::tempdir().unwrap();
        let node = |id: &str| Node { id: id.into(), cluster: String::new(), sidecar: false };
        let cache = Cache::new(&dir.path().join("deep/er"), &node("a")).unwrap();
        assert!(cache.load().unwrap().is_none());
        let mut snapshot = Snapshot { version: "v1".into(), ..Snapshot::default() };
        let service = Service::new("etl", Protocol::Http2);
        snapshot.services.insert("etl".into(), Arc::new(service));
        let endpoints = vec![Endpoint::new("[::1]:80".parse().unwrap())];
        let set = EndpointSet::new("etl".into(), endpoints);
        snapshot.endpoints.insert("etl".into(), Arc::new(set));
        cache.save(&snapshot).unwrap();
        assert_eq!(cache.load().unwrap(), Some(snapshot));
        let other = Cache::new(&dir.path().join("deep/er"), &node("b")).unwrap();
        assert!(other.load().unwrap_err().to_string().contains("kept for node `a`"));
        fs::write(&cache.file, "{").unwrap();
        assert!(cache.load().is_err());
    }
}
