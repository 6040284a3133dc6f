use std::{fs, process::Command};

use towpath_policies::model::ResourceKind;

use super::*;

const SERVICE: &str = "apiVersion: towpath.dev/v1alpha1
kind: Service
metadata: {name: etl}
spec:
  endpoints: [{name: one, address: \"10.0.0.1:80\", weight: 100}]
";

fn git(repo: &Path, args: &[&str]) {
    let status = Command::new("git")
        .arg("-C")
        .arg(repo)
        .args(["-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false"])
        .args(args)
        .stdout(std::process::Stdio::null())
        .status()
        .unwrap();
    assert!(status.success(), "git {args:?}");
}

fn args(repo: &Path, old: &str, new: &str, path: Option<&str>) -> Args {
    Args {
        old: old.to_owned(),
        new: new.to_owned(),
        repo: repo.to_owned(),
        path: path.map(PathBuf::from),
        format: Format::Text,
        exit_code: false,
    }
}

fn repository() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let repo = dir.path();
    git(repo, &["init", "--quiet", "--initial-branch=main"]);
    fs::create_dir(repo.join("mesh")).unwrap();
    fs::write(repo.join("mesh/ä etl.yaml"), SERVICE).unwrap();
    fs::write(repo.join("broken.yaml"), "kind: [").unwrap();
    git(repo, &["add", "."]);
    git(repo, &["commit", "--quiet", "-m", "one"]);
    fs::write(repo.join("mesh/ä etl.yaml"), SERVICE.replace("weight: 100", "weight: 50")).unwrap();
    git(repo, &["commit", "--quiet", "-am", "two"]);
    dir
}

#[test]
fn two_commits_are_compared_by_what_they_come_to() {
    let dir = repository();
    let args = args(dir.path(), "HEAD~1", "main", Some("mesh"));
    let (old, new) = (mesh(&args, &args.old).unwrap(), mesh(&args, &args.new).unwrap());
    assert_eq!(old.version.len(), 40);
    let changes = diff(&old, &new);
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].resource.kind, ResourceKind::EndpointSet);
    assert_eq!(
        text(&changes),
        "~ endpoint set etl  (ä etl.yaml:5)\n    endpoint one, weight: 100 -> 50\n0 added, 0 removed, 1 changed\n"
    );
}

#[test]
fn a_folder_and_a_commit_can_be_compared() {
    let dir = repository();
    let folder = dir.path().join("mesh");
    let args = args(dir.path(), "HEAD", folder.to_str().unwrap(), Some("./mesh/"));
    let (old, new) = (mesh(&args, &args.old).unwrap(), mesh(&args, &args.new).unwrap());
    assert_eq!(text(&diff(&old, &new)), "no difference\n");
}

#[test]
fn of_many_errors_the_first_are_told_and_the_others_counted() {
    let dir = tempfile::tempdir().unwrap();
    let side = dir.path().to_str().unwrap();
    let args = args(dir.path(), side, side, None);
    let told = |broken: usize| {
        let one = |index| SERVICE.replace("etl", &format!("e{index}")).replace("weight", "wait");
        let documents: Vec<_> = (0..broken).map(one).collect();
        fs::write(dir.path().join("a.yaml"), documents.join("---\n")).unwrap();
        format!("{:#}", mesh(&args, side).unwrap_err())
    };
    let few = told(ERRORS_SHOWN);
    assert!(few.lines().last().unwrap().contains("`wait`"), "{few}");
    let many = told(ERRORS_SHOWN + 3);
    assert_eq!(many.lines().count(), 1 + ERRORS_SHOWN + 1, "{many}");
    assert!(many.ends_with("\nand 3 more; towpath check shows them"), "{many}");
}

#[test]
fn what_cannot_be_compared_says_why() {
    let dir = repository();
    for (side, path, expected) in [
        ("nowhere", Some("mesh"), "neither a folder nor a commit"),
        ("--help", Some("mesh"), "neither a folder nor a commit"),
        ("HEAD", None, "broken.yaml:1"),
        ("HEAD", Some("other"), "has no policy files"),
    ] {
        let args = args(dir.path(), side, side, path);
        let error = format!("{:#}", mesh(&args, side).unwrap_err());
        assert!(error.contains(expected), "{side}: {error}");
    }
}
