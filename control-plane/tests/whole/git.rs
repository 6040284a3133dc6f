//! A repository on this machine.

use towpath_control_plane::{Outcome, source::SourceSpec, start};

use crate::support::*;

fn local(repository: &Repository) -> SourceSpec {
    spec(repository.path().to_str().unwrap())
}

fn branch(repository: &Repository, branch: &str) -> SourceSpec {
    SourceSpec::parse(repository.path().to_str().unwrap(), Some(branch), None).unwrap()
}

#[tokio::test]
async fn a_broken_commit_is_rejected_with_its_line_and_harms_nothing() {
    let repository = Repository::new();
    let good = repository.commit_policies(&policies(9000));
    let running = started(local(&repository)).await;
    assert_eq!(served(&running.status()), Some(good.as_str()));

    let broken = repository.commit_policies(&broken_policies());
    let refreshed = running.refresh().await;
    assert_eq!((refreshed.outcome, refreshed.version), (Outcome::Rejected, Some(good.clone())));
    let rejected = running.status().rejected.unwrap();
    assert_eq!(rejected.version, broken);
    assert_eq!(rejected.commit.unwrap().author, "Ada");
    let finding = &rejected.diagnostics[0];
    assert_eq!((finding.file.to_str(), finding.line), (Some("policies.yaml"), 15));
    assert!(finding.message.contains("elt"), "{finding}");
    // Asked again, it says so again; it does not count again.
    assert_eq!(running.refresh().await.outcome, Outcome::Rejected);
    assert_eq!(running.status().counters.rejects, 1);

    let better = repository.commit_policies(&policies(9001));
    assert_eq!(running.refresh().await.outcome, Outcome::Applied);
    let status = running.status();
    assert_eq!((served(&status), &status.rejected), (Some(better.as_str()), &None));
    assert_eq!(running.refresh().await.outcome, Outcome::Unchanged);
    running.shutdown().await;
}

#[tokio::test]
async fn going_back_to_the_served_commit_clears_the_rejection() {
    let repository = Repository::new();
    let good = repository.commit_policies(&policies(9000));
    let running = started(local(&repository)).await;
    repository.commit_policies(&broken_policies());
    assert_eq!(running.refresh().await.outcome, Outcome::Rejected);
    repository.git(&["reset", "--quiet", "--hard", &good]);
    assert_eq!(running.refresh().await.outcome, Outcome::Unchanged);
    let status = running.status();
    assert_eq!((served(&status), &status.rejected), (Some(good.as_str()), &None));
    assert_eq!(status.counters.snapshots, 1);
}

#[tokio::test]
async fn a_repository_that_is_being_replaced_is_not_taken_for_a_plain_folder() {
    let repository = Repository::new();
    let good = repository.commit_policies(&policies(9000));
    let running = started(local(&repository)).await;
    let (dot_git, aside) = (repository.path().join(".git"), repository.path().join("aside"));
    std::fs::rename(&dot_git, &aside).unwrap();
    repository.write("policies.yaml", policies(9001));
    let refreshed = running.refresh().await;
    assert_eq!((refreshed.outcome, refreshed.version), (Outcome::Failed, Some(good.clone())));
    let error = refreshed.error.unwrap();
    assert!(error.contains("was a Git repository"), "{error}");
    std::fs::rename(&aside, &dot_git).unwrap();
    assert_eq!(running.refresh().await.outcome, Outcome::Unchanged);
    assert_eq!(served(&running.status()), Some(good.as_str()));
}

#[tokio::test]
async fn commits_are_found_without_being_asked_for() {
    let repository = Repository::new();
    repository.commit_policies(&policies(9000));
    let running = started(local(&repository)).await;
    let next = repository.commit_policies(&policies(9001));
    when(&running, |status| served(status) == Some(&next)).await;
}

#[tokio::test]
async fn uncommitted_files_are_not_served() {
    let repository = Repository::new();
    let good = repository.commit_policies(&policies(9000));
    let running = started(local(&repository)).await;
    repository.write("policies.yaml", broken_policies());
    repository.write("more.yaml", "nonsense");
    repository.git(&["add", "--all"]);
    assert_eq!(running.refresh().await.outcome, Outcome::Unchanged);
    assert_eq!(served(&running.status()), Some(good.as_str()));
}

#[tokio::test]
async fn head_is_followed_unless_a_branch_is_named() {
    let repository = Repository::new();
    let main = repository.commit_policies(&policies(9000));
    let head = started(local(&repository)).await;
    let pinned = started(branch(&repository, "main")).await;

    repository.git(&["checkout", "--quiet", "-b", "canary"]);
    let canary = repository.commit_policies(&policies(9001));
    assert_eq!(head.refresh().await.version, Some(canary.clone()));
    assert_eq!(head.status().current.unwrap().branch.as_deref(), Some("canary"));
    assert_eq!(pinned.refresh().await.version, Some(main.clone()));
    assert_eq!(pinned.status().current.unwrap().branch.as_deref(), Some("main"));

    repository.git(&["checkout", "--quiet", "--detach", &main]);
    assert_eq!(head.refresh().await.version, Some(main));
    assert_eq!(head.status().current.unwrap().branch, None);
}

#[tokio::test]
async fn a_missing_branch_is_told_with_those_that_are_there() {
    let repository = Repository::new();
    repository.commit_policies(&policies(9000));
    repository.git(&["branch", "release/1"]);
    let running = started(branch(&repository, "mian")).await;
    let error = running.refresh().await.error.unwrap();
    assert!(error.contains("no branch `mian`; there are: main, release/1"), "{error}");
    repository.git(&["branch", "mian"]);
    assert_eq!(running.refresh().await.outcome, Outcome::Applied);
    assert_eq!(running.status().source.error, None);
}

#[tokio::test]
async fn a_sub_folder_is_all_that_counts() {
    let repository = Repository::new();
    repository.write("mesh/prod/policies.yaml", policies(9000));
    repository.write("other.yaml", "not a policy: at all");
    let first = repository.commit("Two folders");
    let path = repository.path().to_str().unwrap();
    let spec = SourceSpec::parse(path, None, Some("mesh/prod/".as_ref())).unwrap();
    let running = started(spec).await;
    assert_eq!(served(&running.status()), Some(first.as_str()));

    repository.write("mesh/prod/policies.yaml", broken_policies());
    repository.commit("Break it");
    let rejected = running.refresh().await.rejected.unwrap();
    assert_eq!(rejected.diagnostics[0].file.to_str(), Some("policies.yaml"));

    repository.git(&["rm", "-r", "--quiet", "mesh"]);
    let gone = repository.commit("Remove it");
    let refreshed = running.refresh().await;
    assert_eq!((refreshed.outcome, refreshed.version), (Outcome::Failed, Some(first)));
    let error = refreshed.error.unwrap();
    assert!(error.contains(&gone[..12]) && error.contains("`mesh/prod`"), "{error}");
}

#[tokio::test]
async fn what_points_out_of_the_commit_is_left_out_and_told() {
    let repository = Repository::new();
    repository.write("policies.yaml", policies(9000));
    std::os::unix::fs::symlink("/etc/passwd", repository.path().join("secret.yaml")).unwrap();
    let submodule = format!("160000,{},vendor", "1".repeat(40));
    repository.git(&["update-index", "--add", "--cacheinfo", &submodule]);
    repository.git(&["add", "policies.yaml", "secret.yaml"]);
    repository.git(&["commit", "--quiet", "-m", "Odd things"]);
    let running = started(local(&repository)).await;
    let warnings = running.status().current.unwrap().warnings;
    assert_eq!(
        warnings,
        ["secret.yaml: a symbolic link, left out", "vendor: a submodule, left out"]
    );
}

#[tokio::test]
async fn a_commit_that_is_no_text_is_rejected() {
    let repository = Repository::new();
    let good = repository.commit_policies(&policies(9000));
    let running = started(local(&repository)).await;
    repository.write("image.yaml", [0xff, 0xd8, 0xff]);
    repository.commit("Not a policy");
    let refreshed = running.refresh().await;
    assert_eq!((refreshed.outcome, refreshed.version), (Outcome::Rejected, Some(good)));
    let message = &refreshed.rejected.unwrap().diagnostics[0].message;
    assert!(message.contains("image.yaml"), "{message}");
}

#[tokio::test]
async fn a_start_with_broken_policies_waits_for_better_ones() {
    let repository = Repository::new();
    repository.commit_policies(&broken_policies());
    let running = started(local(&repository)).await;
    let status = running.status();
    assert!(!status.ready && status.rejected.is_some() && status.current.is_none());
    let good = repository.commit_policies(&policies(9000));
    let status = when(&running, |status| status.ready).await;
    assert_eq!(served(&status), Some(good.as_str()));
}

#[tokio::test]
async fn a_repository_without_commits_is_followed_from_its_first_one() {
    let repository = Repository::new();
    let running = started(local(&repository)).await;
    let error = running.status().source.error.unwrap();
    assert!(error.contains("no commit yet"), "{error}");
    repository.commit_policies(&policies(9000));
    when(&running, |status| status.ready && status.source.error.is_none()).await;
}

#[tokio::test]
async fn a_linked_work_tree_is_followed_too() {
    let repository = Repository::new();
    repository.commit_policies(&policies(9000));
    let beside = tempfile::tempdir().unwrap();
    let tree = beside.path().join("tree");
    repository.git(&["worktree", "add", "--quiet", "-b", "side", tree.to_str().unwrap()]);
    let running = started(spec(tree.to_str().unwrap())).await;
    assert_eq!(running.status().current.unwrap().branch.as_deref(), Some("side"));
}

#[tokio::test]
async fn what_cannot_be_followed_is_told_at_the_start() {
    let folder = folder_of(&[("a.yaml", &policies(9000))]);
    let path = folder.path().to_str().unwrap();
    let error = start(config(spec("/nowhere/at/all"))).await.unwrap_err().to_string();
    assert!(error.contains("/nowhere/at/all: no such folder"), "{error}");
    let branch = SourceSpec::parse(path, Some("main"), None).unwrap();
    let error = start(config(branch)).await.unwrap_err().to_string();
    assert!(error.contains("no branch to follow"), "{error}");
}
