//! A repository behind a URL.

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
};
use towpath_control_plane::{Outcome, source::SourceSpec, start};

use crate::support::*;

/// A work tree that pushes to a bare repository.
struct Pushed {
    tree: Repository,
    bare: Repository,
}

impl Pushed {
    fn new() -> Self {
        let (tree, bare) = (Repository::new(), Repository::bare());
        tree.git(&["remote", "add", "origin", &bare.url()]);
        Self { tree, bare }
    }

    fn push(&self, text: &str) -> String {
        let commit = self.tree.commit_policies(text);
        self.tree.git(&["push", "--quiet", "--force", "origin", "HEAD"]);
        commit
    }
}

#[tokio::test]
async fn pushes_are_followed_also_when_forced() {
    let pushed = Pushed::new();
    let first = pushed.push(&policies(9000));
    let second = pushed.push(&policies(9001));
    let running = started(spec(&pushed.bare.url())).await;
    let status = running.status();
    assert_eq!(served(&status), Some(second.as_str()));
    assert_eq!(status.current.unwrap().branch.as_deref(), Some("main"));

    pushed.tree.git(&["reset", "--quiet", "--hard", &first]);
    let other = pushed.push(&policies(9002));
    let refreshed = running.refresh().await;
    assert_eq!((refreshed.outcome, refreshed.version), (Outcome::Applied, Some(other)));

    pushed.tree.git(&["reset", "--quiet", "--hard", &first]);
    pushed.tree.git(&["push", "--quiet", "--force", "origin", "HEAD"]);
    assert_eq!(running.refresh().await.version, Some(first));
}

#[tokio::test]
async fn a_branch_is_followed_from_before_it_exists() {
    let pushed = Pushed::new();
    pushed.push(&policies(9000));
    let spec = SourceSpec::parse(&pushed.bare.url(), Some("canary"), None).unwrap();
    let running = started(spec).await;
    let error = running.status().source.error.unwrap();
    assert!(error.contains("no branch `canary`; there are: main"), "{error}");
    pushed.tree.git(&["checkout", "--quiet", "-b", "canary"]);
    let canary = pushed.push(&policies(9001));
    assert_eq!(running.refresh().await.version, Some(canary));
}

#[tokio::test]
async fn a_broken_mirror_is_made_anew() {
    let pushed = Pushed::new();
    pushed.push(&policies(9000));
    let state = tempfile::tempdir().unwrap();
    let running = start(remembering(spec(&pushed.bare.url()), state.path())).await.unwrap();
    let folder = std::fs::read_dir(state.path()).unwrap().next().unwrap().unwrap().path();
    let mirror = folder.join("mirror.git");
    // What a killed fetch leaves behind.
    std::fs::write(mirror.join("shallow.lock"), "").unwrap();
    let next = pushed.push(&policies(9001));
    assert_eq!(running.refresh().await.version, Some(next));
    // And what a full disk does.
    std::fs::remove_dir_all(mirror.join("objects")).unwrap();
    let next = pushed.push(&policies(9002));
    assert_eq!(running.refresh().await.version, Some(next));
}

#[tokio::test]
async fn a_repository_that_is_away_is_told_and_tried_again() {
    let pushed = Pushed::new();
    let first = pushed.push(&policies(9000));
    let running = started(spec(&pushed.bare.url())).await;
    let (here, away) = (pushed.bare.path(), pushed.bare.path().with_extension("away"));
    std::fs::rename(here, &away).unwrap();
    for failures in 1..=2 {
        let refreshed = running.refresh().await;
        assert_eq!(refreshed.outcome, Outcome::Failed);
        assert_eq!(refreshed.version.as_deref(), Some(first.as_str()));
        let error = refreshed.error.unwrap();
        assert!(error.contains("cannot be reached") && error.contains("next:"), "{error}");
        assert_eq!(running.status().source.failures, failures);
    }
    std::fs::rename(&away, here).unwrap();
    assert_eq!(running.refresh().await.outcome, Outcome::Unchanged);
    let source = running.status().source;
    assert_eq!((source.failures, source.error), (0, None));
}

/// A server that lets nobody in; its `host:port`.
async fn closed_door() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let answer = "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\n\
                Content-Length: 0\r\nConnection: close\r\n\r\n";
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    address
}

#[tokio::test]
async fn a_closed_door_is_told_without_a_prompt_and_without_the_password() {
    let door = closed_door().await;
    for user in ["", "me:s3cret@"] {
        let running = started(spec(&format!("http://{user}{door}/policies.git"))).await;
        let status = running.status();
        let error = status.source.error.clone().unwrap();
        assert!(error.contains("access denied") && error.contains("git ls-remote"), "{error}");
        assert_eq!(status.source.location, format!("http://{door}/policies.git"));
        assert!(!serde_json::to_string(&status).unwrap().contains("s3cret"));
        running.shutdown().await;
    }
}
