//! What is left of an earlier run.

use std::fs;

use towpath_control_plane::{Outcome, StartError, start};

use crate::support::*;

#[tokio::test]
async fn a_restart_without_the_source_serves_the_last_good_version() {
    let state = tempfile::tempdir().unwrap();
    let repository = Repository::new();
    let good = repository.commit_policies(&policies(9000));
    let source = || spec(repository.path().to_str().unwrap());
    start(remembering(source(), state.path())).await.unwrap().shutdown().await;

    let away = repository.path().with_extension("away");
    fs::rename(repository.path(), &away).unwrap();
    let running = start(remembering(source(), state.path())).await.unwrap();
    let status = running.status();
    assert_eq!(served(&status), Some(good.as_str()));
    assert!(status.ready && status.current.unwrap().restored && status.source.error.is_some());

    fs::rename(&away, repository.path()).unwrap();
    assert_eq!(running.refresh().await.outcome, Outcome::Unchanged);
    assert!(!running.status().current.unwrap().restored);
}

#[tokio::test]
async fn a_restart_at_a_broken_commit_serves_the_last_good_version() {
    let state = tempfile::tempdir().unwrap();
    let repository = Repository::new();
    let good = repository.commit_policies(&policies(9000));
    let source = || spec(repository.path().to_str().unwrap());
    start(remembering(source(), state.path())).await.unwrap().shutdown().await;

    let broken = repository.commit_policies(&broken_policies());
    let running = start(remembering(source(), state.path())).await.unwrap();
    let status = running.status();
    assert_eq!(served(&status), Some(good.as_str()));
    assert_eq!(status.rejected.unwrap().version, broken);
    assert!(status.current.unwrap().restored);

    let better = repository.commit_policies(&policies(9001));
    assert_eq!(running.refresh().await.version, Some(better));
    assert!(!running.status().current.unwrap().restored);
}

#[tokio::test]
async fn another_source_does_not_get_it() {
    let state = tempfile::tempdir().unwrap();
    let folder = folder_of(&[("a.yaml", &policies(9000))]);
    let config = remembering(spec(folder.path().to_str().unwrap()), state.path());
    start(config).await.unwrap().shutdown().await;
    let elsewhere = remembering(spec("/nowhere/at/all"), state.path());
    assert!(matches!(start(elsewhere).await, Err(StartError::Source(_))));
}

#[tokio::test]
async fn a_state_folder_has_one_owner() {
    let state = tempfile::tempdir().unwrap();
    let folder = folder_of(&[("a.yaml", &policies(9000))]);
    let config = || remembering(spec(folder.path().to_str().unwrap()), state.path());
    let first = start(config()).await.unwrap();
    let error = start(config()).await.unwrap_err().to_string();
    assert!(error.contains("another control plane") && error.contains("--state-dir"), "{error}");
    first.shutdown().await;
    start(config()).await.unwrap();
}
