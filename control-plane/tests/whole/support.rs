//! Policy texts, throw-away repositories, and a control plane to look at them.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use towpath_control_plane::{Config, Running, StateDir, source::SourceSpec, start, status::Status};

/// Long enough that only a hint or a request leads to a look.
const NEVER: Duration = Duration::from_secs(3600);
/// Nothing in these tests takes this long, unless it would for ever.
const LONG: Duration = Duration::from_secs(60);

/// A gateway `edge`, a route, and a service `etl` with one endpoint at `port`.
pub(crate) fn policies(port: u16) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge}}
spec:
  gatewayClassName: towpath
  listeners:
  - {{name: http, port: 8080, protocol: HTTP}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: ingest}}
spec:
  parentRefs: [{{name: edge}}]
  rules:
  - backendRefs: [{{name: etl}}]
---
apiVersion: towpath.dev/v1alpha1
kind: Service
metadata: {{name: etl}}
spec:
  endpoints:
  - {{address: \"127.0.0.1:{port}\"}}
"
    )
}

/// The same, with a route to a service that is not there, on line 15.
pub(crate) fn broken_policies() -> String {
    policies(9000).replace("backendRefs: [{name: etl}]", "backendRefs: [{name: elt}]")
}

/// A repository in a folder of its own.
pub(crate) struct Repository {
    folder: tempfile::TempDir,
}

impl Repository {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        git(folder.path(), &["init", "--quiet", "--initial-branch=main"]);
        Self { folder }
    }

    pub(crate) fn bare() -> Self {
        let folder = tempfile::tempdir().unwrap();
        git(folder.path(), &["init", "--quiet", "--bare", "--initial-branch=main"]);
        Self { folder }
    }

    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn url(&self) -> String {
        format!("file://{}", self.path().display())
    }

    pub(crate) fn git(&self, arguments: &[&str]) -> String {
        git(self.path(), arguments)
    }

    pub(crate) fn write(&self, file: &str, text: impl AsRef<[u8]>) {
        let path = self.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Commits everything; the commit's id.
    pub(crate) fn commit(&self, subject: &str) -> String {
        self.git(&["add", "--all"]);
        self.git(&["commit", "--quiet", "--allow-empty", "-m", subject]);
        self.head()
    }

    /// Commits `policies.yaml` with this text.
    pub(crate) fn commit_policies(&self, text: &str) -> String {
        self.write("policies.yaml", text);
        self.commit("Change the policies")
    }

    pub(crate) fn head(&self) -> String {
        self.git(&["rev-parse", "HEAD"])
    }
}

/// Runs git as nobody in particular, without this machine's settings.
fn git(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .current_dir(folder)
        .args(arguments)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .envs([("GIT_AUTHOR_NAME", "Ada"), ("GIT_AUTHOR_EMAIL", "ada@example.com")])
        .envs([("GIT_COMMITTER_NAME", "Bob"), ("GIT_COMMITTER_EMAIL", "bob@example.com")])
        .output()
        .unwrap();
    assert!(output.status.success(), "git {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

pub(crate) fn spec(policies: &str) -> SourceSpec {
    SourceSpec::parse(policies, None, None).unwrap()
}

/// Follows only on request or by a hint, remembers nothing.
pub(crate) fn config(source: SourceSpec) -> Config {
    Config { poll: NEVER, ..Config::new(source) }
}

pub(crate) fn remembering(source: SourceSpec, state: &Path) -> Config {
    Config { state: StateDir::At(state.to_owned()), ..config(source) }
}

pub(crate) async fn started(source: SourceSpec) -> Running {
    start(config(source)).await.unwrap()
}

/// Waits until the status is as wanted; shows it where that never happens.
pub(crate) async fn when(running: &Running, wanted: impl FnMut(&Status) -> bool) -> Status {
    match tokio::time::timeout(LONG, running.status_when(wanted)).await {
        Ok(status) => status,
        Err(_) => panic!("it never came; the status is {:#?}", running.status()),
    }
}

/// The version that is served.
pub(crate) fn served(status: &Status) -> Option<&str> {
    status.current.as_ref().map(|current| current.version.as_str())
}

pub(crate) fn folder_of(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (file, text) in files {
        let path: PathBuf = folder.path().join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    folder
}
