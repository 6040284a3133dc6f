//! A plain folder.

use std::{fs, os::unix::fs::symlink};

use towpath_control_plane::Outcome;

use crate::support::*;

#[tokio::test]
async fn edits_are_served_as_they_are_made() {
    let folder = folder_of(&[("a.yaml", &policies(9000))]);
    let file = folder.path().join("a.yaml");
    let running = started(spec(folder.path().to_str().unwrap())).await;
    let first = running.status().current.unwrap().version;

    fs::write(&file, broken_policies()).unwrap();
    let status = when(&running, |status| status.rejected.is_some()).await;
    assert_eq!(served(&status), Some(first.as_str()));
    assert_eq!(status.rejected.unwrap().diagnostics[0].line, 15);

    fs::write(&file, policies(9001)).unwrap();
    let status = when(&running, |status| status.rejected.is_none()).await;
    assert_ne!(served(&status), Some(first.as_str()));
}

#[tokio::test]
async fn a_config_map_is_swapped_as_a_whole() {
    let folder = folder_of(&[("..1/a.yaml", &policies(9000)), ("..2/a.yaml", &policies(9001))]);
    let at = |name: &str| folder.path().join(name);
    symlink("..1", at("..data")).unwrap();
    symlink("..data/a.yaml", at("a.yaml")).unwrap();
    let running = started(spec(folder.path().to_str().unwrap())).await;
    let first = running.status().current.unwrap().version;
    symlink("..2", at("..data_tmp")).unwrap();
    fs::rename(at("..data_tmp"), at("..data")).unwrap();
    when(&running, |status| served(status) != Some(&first)).await;
}

#[tokio::test]
async fn a_folder_that_goes_and_comes_back_is_told() {
    let outside = tempfile::tempdir().unwrap();
    let folder = outside.path().join("policies");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("a.yaml"), policies(9000)).unwrap();
    let running = started(spec(folder.to_str().unwrap())).await;
    fs::rename(&folder, outside.path().join("away")).unwrap();
    let refreshed = running.refresh().await;
    assert_eq!(refreshed.outcome, Outcome::Failed);
    assert!(refreshed.error.unwrap().contains("no such folder"));
    assert!(running.status().ready);
    fs::rename(outside.path().join("away"), &folder).unwrap();
    assert_eq!(running.refresh().await.outcome, Outcome::Unchanged);
}

#[tokio::test]
async fn a_folder_that_was_replaced_is_watched_anew() {
    let outside = folder_of(&[("old/a.yaml", &policies(9000)), ("new/a.yaml", &policies(9001))]);
    let at = |name: &str| outside.path().join(name);
    symlink("old", at("current")).unwrap();
    let running = started(spec(at("current").to_str().unwrap())).await;
    symlink("new", at("next")).unwrap();
    fs::rename(at("next"), at("current")).unwrap();
    assert_eq!(running.refresh().await.outcome, Outcome::Applied);
    let second = running.status().current.unwrap().version;
    fs::write(at("new/a.yaml"), policies(9002)).unwrap();
    when(&running, |status| served(status) != Some(&second)).await;
}

#[tokio::test]
async fn an_emptied_folder_is_taken_for_a_mistake() {
    let folder = folder_of(&[("a.yaml", &policies(9000))]);
    let running = started(spec(folder.path().to_str().unwrap())).await;
    fs::remove_file(folder.path().join("a.yaml")).unwrap();
    let status = when(&running, |status| status.rejected.is_some()).await;
    assert!(status.ready && status.current.unwrap().services == 1);
    let message = &status.rejected.unwrap().diagnostics[0].message;
    assert!(message.contains("no policy files"), "{message}");
}
