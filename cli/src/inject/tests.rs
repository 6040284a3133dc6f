use std::{fs, path::PathBuf, process::ExitCode};

use clap::Parser;
use towpath_inject::{Kind, Options, Source, inject, systemd};

use super::{Args, Staged, missing, put, run};

#[derive(Parser)]
struct Program {
    #[command(flatten)]
    args: Args,
}

#[derive(Parser)]
struct Proxy {
    #[command(flatten)]
    args: towpath_proxy::Args,
}

fn success(args: &[&str]) -> bool {
    let program = Program::parse_from([&["inject"], args].concat());
    run(&program.args).unwrap() == ExitCode::SUCCESS
}

const POD: &str =
    "# ours\napiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec:\n  containers:\n  - name: a\n";

#[test]
fn the_proxy_knows_every_argument_it_is_given() {
    let tuned = POD.replace(
        "{name: a}",
        "{name: a, annotations: {towpath.dev/access-log: \"-\", towpath.dev/log-level: info, \
         towpath.dev/drain-timeout: 1h30m, towpath.dev/workers: \"3\", towpath.dev/admin: pod}}",
    );
    let options = Options::new("0.1.0");
    let compose = Options {
        kind: Some(Kind::Compose),
        source: Some(Source::Policies("./policies".to_owned())),
        ..options.clone()
    };
    let mesh = Some(Source::ControlPlane("mesh:18000".to_owned()));
    let unit = Options { source: mesh, ..options.clone() };
    let texts = [
        inject("f", POD, &options).unwrap().text,
        inject("f", &tuned, &options).unwrap().text,
        inject("f", "services:\n  web: {image: w}\n", &compose).unwrap().text,
        systemd::inject("etl", systemd::PROXY, 9901, &unit).unwrap()[0].text.replace(' ', "\n"),
        systemd::inject(
            "etl@",
            systemd::PROXY,
            9901,
            &Options { kind: None, source: Some(Source::Policies("/p".to_owned())), ..options },
        )
        .unwrap()[0]
            .text
            .replace(' ', "\n"),
    ];
    for text in texts {
        let arguments: Vec<&str> = text
            .lines()
            .map(|line| line.trim().trim_start_matches("- ").trim_matches('"'))
            .filter(|line| line.starts_with("--"))
            .filter(|line| !line.starts_with("--systemd") && !line.starts_with("--uninject"))
            .collect();
        assert!(arguments.len() >= 5, "{text}");
        let parsed = Proxy::try_parse_from([&["towpath-proxy"], arguments.as_slice()].concat());
        let proxy = parsed.unwrap_or_else(|error| panic!("{error}\n{text}"));
        proxy.args.into_config().unwrap();
    }
}

#[test]
fn files_are_written_in_place_and_back_or_none_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let (good, bad, link) = (path("good.yaml"), path("bad.yaml"), path("link.yaml"));
    fs::write(&good, POD).unwrap();
    fs::write(&bad, "kind: {").unwrap();
    std::os::unix::fs::symlink(&good, &link).unwrap();

    assert!(!success(&["--in-place", &good, &bad]));
    assert_eq!(fs::read_to_string(&good).unwrap(), POD);

    assert!(success(&["--dry-run", &good]));
    assert_eq!(fs::read_to_string(&good).unwrap(), POD);

    assert!(success(&["--in-place", &link]));
    assert!(fs::read_to_string(&good).unwrap().contains("towpath-proxy"));
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());

    assert!(success(&["--in-place", "--uninject", &good]));
    assert_eq!(fs::read_to_string(&good).unwrap(), POD);
    let left: Vec<PathBuf> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().path()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn units_are_written_and_removed_with_nothing_left() {
    let dir = tempfile::tempdir().unwrap();
    let units = dir.path().to_str().unwrap();
    let common = ["--systemd", "etl.service", "--units", units];
    assert!(!success(&common), "without a source");
    let wanted = [&common[..], &["--policies", "/etc/towpath"]].concat();
    assert!(success(&[&wanted[..], &["--dry-run"]].concat()));
    assert_eq!(fs::read_dir(units).unwrap().count(), 0);
    assert!(success(&wanted));
    assert!(dir.path().join("etl-towpath.service").exists());
    assert!(dir.path().join("etl.service.d/50-towpath.conf").exists());
    // Somebody else's drop-in keeps its folder.
    fs::write(dir.path().join("etl.service.d/other.conf"), "").unwrap();
    assert!(success(&[&common[..], &["--uninject"]].concat()));
    assert!(dir.path().join("etl.service.d/other.conf").exists());
    fs::remove_file(dir.path().join("etl.service.d/other.conf")).unwrap();
    assert!(success(&wanted));
    assert!(success(&[&common[..], &["--uninject"]].concat()));
    assert_eq!(fs::read_dir(units).unwrap().count(), 0);
}

#[test]
fn a_service_that_is_not_there_is_told_of_where_its_place_is_known() {
    let root = tempfile::tempdir().unwrap();
    let units = root.path().join("etc/systemd/system");
    let told = missing("etl", &units).unwrap().to_string();
    assert!(told.contains("no unit file of `etl` is found"), "{told}");
    let installed = root.path().join("usr/lib/systemd/system");
    fs::create_dir_all(&installed).unwrap();
    fs::write(installed.join("etl.service"), "").unwrap();
    assert_eq!(missing("etl", &units), None);
    assert!(missing("etl@", &units).is_some(), "a template is another file");
    // Where files are gathered for a package nothing is known of the others.
    assert_eq!(missing("etl", root.path()), None);
}

#[test]
fn units_that_somebody_else_wrote_are_neither_replaced_nor_removed() {
    let dir = tempfile::tempdir().unwrap();
    let units = dir.path().to_str().unwrap();
    let put_in = ["--systemd", "etl", "--units", units, "--policies", "/etc/towpath"];
    let take_out = ["--systemd", "etl", "--units", units, "--uninject"];
    let unit = dir.path().join("etl-towpath.service");
    for theirs in ["[Service]\nExecStart=/bin/true\n", "# Added by towpath inject 999.0.0; …\n"] {
        fs::write(&unit, theirs).unwrap();
        assert!(!success(&put_in));
        assert!(!success(&take_out));
        assert_eq!(fs::read_to_string(&unit).unwrap(), theirs);
        assert_eq!(fs::read_dir(units).unwrap().count(), 1);
    }
    fs::write(&unit, "# Added by towpath inject 0.0.1; …\n").unwrap();
    assert!(success(&put_in));
    assert!(success(&take_out));
    assert_eq!(fs::read_dir(units).unwrap().count(), 0);
}

#[test]
fn files_become_what_they_were_when_one_cannot_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let (good, folder) = (dir.path().join("good.yaml"), dir.path().join("folder"));
    fs::write(&good, "before").unwrap();
    fs::create_dir(&folder).unwrap();
    let first = Staged::new(&good, "after").unwrap();
    let mut second = Staged::new(&good, "after").unwrap();
    second.path = folder;
    assert!(put(vec![(first, "before"), (second, "")]).is_err());
    assert_eq!(fs::read_to_string(&good).unwrap(), "before");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

/// Holds for root; for anyone else the owner is the same anyway.
#[test]
fn a_file_keeps_its_owner_and_its_permissions() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pod.yaml");
    fs::write(&path, POD).unwrap();
    let _ = chown(&path, Some(1234), Some(1234));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    let about = || fs::metadata(&path).map(|m| (m.uid(), m.gid(), m.mode())).unwrap();
    let before = about();
    assert!(success(&["--in-place", path.to_str().unwrap()]));
    assert_eq!(about(), before);
    assert_ne!(fs::read_to_string(&path).unwrap(), POD);
}
