use std::{fs, path::Path, process::Command};

use super::{PROXY, inject, ours, paths, then};
use crate::{Options, Source};

fn options(source: Source) -> Options {
    Options { source: Some(source), ..Options::new("0.1.0") }
}

fn folder() -> Options {
    options(Source::Policies("/etc/towpath".to_owned()))
}

#[test]
fn a_unit_gets_a_sidecar_it_wants_and_does_not_need() {
    let files = inject("etl.service", PROXY, 9901, &folder()).unwrap();
    assert_eq!(files[0].path, "etl-towpath.service");
    assert_eq!(files[1].path, "etl.service.d/50-towpath.conf");
    assert!(
        files[1].text.ends_with("[Unit]\nWants=etl-towpath.service\nAfter=etl-towpath.service\n")
    );
    for line in [
        "PartOf=etl.service",
        "StopWhenUnneeded=yes",
        "Type=notify",
        "DynamicUser=yes",
        "BindReadOnlyPaths=/etc/towpath",
        "ExecStart=/usr/bin/towpath-proxy --policies=/etc/towpath --node=etl --sidecar --admin=127.0.0.1:9901 \
         --spool-dir=${STATE_DIRECTORY} --drain-timeout=25s",
    ] {
        assert!(files[0].text.lines().any(|other| other == line), "{line} in\n{}", files[0].text);
    }
    let (written, left) = paths("etl").unwrap();
    assert_eq!(written, [files[0].path.clone(), files[1].path.clone()]);
    assert_eq!(left, "etl.service.d");
}

#[test]
fn each_instance_of_a_template_gets_its_own() {
    let options = options(Source::ControlPlane("mesh:18000".to_owned()));
    let files = inject("worker@.service", PROXY, 9902, &options).unwrap();
    assert_eq!(files[0].path, "worker-towpath@.service");
    assert_eq!(files[1].path, "worker@.service.d/50-towpath.conf");
    assert!(files[1].text.contains("Wants=worker-towpath@%i.service\n"));
    assert!(files[0].text.contains("PartOf=worker@%i.service\n"));
    assert!(files[0].text.contains("StateDirectory=towpath/worker-%i\n"));
    // A control plane that is away keeps no service from starting.
    assert!(files[0].text.contains("Type=exec\n"));
}

#[test]
fn what_is_no_unit_is_refused() {
    for unit in [
        "",
        "etl.timer.service.d/x",
        "a/b.service",
        "etl@1.service",
        "a b",
        "-x",
        "../etl",
        "etl%i",
    ] {
        assert!(inject(unit, PROXY, 9901, &folder()).is_err(), "{unit}");
        assert!(paths(unit).is_err(), "{unit}");
    }
    for path in ["relative", "/with blank", "/with%n", "/with$HOME", "/a:/b", "/a\nExecStartPre=/b"]
    {
        assert!(inject("etl", path, 9901, &folder()).is_err(), "{path}");
        let source = options(Source::Policies(path.to_owned()));
        assert!(inject("etl", PROXY, 9901, &source).is_err(), "{path}");
    }
    for address in ["", "mesh 18000", "mesh:1\nExecStartPre=/b", "mesh:%i", "$MESH", "a;b"] {
        let source = options(Source::ControlPlane(address.to_owned()));
        assert!(inject("etl", PROXY, 9901, &source).is_err(), "{address}");
    }
    assert!(inject("etl", PROXY, 9901, &Options::new("0.1.0")).is_err());
}

#[test]
fn only_what_this_or_an_older_version_wrote_is_ours() {
    for file in inject("etl", PROXY, 9901, &folder()).unwrap() {
        assert_eq!(ours(&file.path, &file.text, "0.1.0"), Ok(()));
        assert_eq!(ours(&file.path, &file.text, "0.2.0"), Ok(()));
        let newer = ours(&file.path, &file.text, "0.0.9").unwrap_err();
        assert!(newer.message.contains("written by towpath 0.1.0, which is newer"), "{newer}");
    }
    for text in
        ["", "[Unit]\n", "# ours\n# Added by towpath inject 0.1.0;", "# Added by towpath inject 1"]
    {
        let other = ours("etl-towpath.service", text, "0.1.0").unwrap_err();
        assert!(other.message.contains("did not write it"), "{other}");
    }
}

#[test]
fn the_way_out_stops_the_sidecar_while_systemd_still_knows_it() {
    assert_eq!(
        then("etl", false).unwrap(),
        "now: systemctl daemon-reload && systemctl restart etl.service"
    );
    assert_eq!(
        then("etl", true).unwrap(),
        "now: systemctl stop etl-towpath.service && systemctl daemon-reload && systemctl restart \
         etl.service\nwhat the sidecar kept stays in /var/lib/private/towpath/etl"
    );
    assert_eq!(
        then("etl@.service", true).unwrap(),
        "now: systemctl stop 'etl-towpath@*.service' && systemctl daemon-reload && systemctl restart \
         'etl@*.service'\nwhat the sidecar kept stays in /var/lib/private/towpath/etl-INSTANCE"
    );
}

#[test]
fn systemd_accepts_the_units_and_finds_the_sandbox_tight() {
    let dir = tempfile::tempdir().unwrap();
    // `verify` wants the program to be there.
    let proxy = dir.path().join("towpath-proxy");
    fs::write(&proxy, "").unwrap();
    std::os::unix::fs::symlink("/bin/true", dir.path().join("true")).unwrap();
    let proxy = dir.path().join("true").to_str().unwrap().to_owned();
    for (app, source) in [
        ("etl.service", Source::Policies("/etc/towpath".to_owned())),
        ("worker@.service", Source::ControlPlane("mesh:18000".to_owned())),
    ] {
        let files = inject(app, &proxy, 9901, &options(source)).unwrap();
        fs::write(dir.path().join(app), "[Service]\nExecStart=/bin/true\n").unwrap();
        for file in &files {
            let path = dir.path().join(&file.path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, &file.text).unwrap();
        }
        let instance = |name: &str| name.replace('@', "@1");
        for name in [app, &files[0].path] {
            let said = analyze(
                &["verify", "--man=no", "--recursive-errors=yes"],
                dir.path(),
                &instance(name),
            );
            assert_eq!(said, (true, String::new()), "{name}");
        }
        let (_, said) = analyze(
            &["security", "--offline=yes", "--no-pager", "--threshold=30"],
            dir.path(),
            &instance(&files[0].path),
        );
        let exposure: f64 = said
            .lines()
            .find_map(|line| {
                line.split("exposure level for ")
                    .nth(1)?
                    .split(": ")
                    .nth(1)?
                    .split(' ')
                    .next()?
                    .parse()
                    .ok()
            })
            .unwrap_or_else(|| panic!("no exposure in {said}"));
        assert!(exposure < 3.0, "{exposure} in {said}");
    }
}

/// Success, and what was said.
fn analyze(arguments: &[&str], folder: &Path, unit: &str) -> (bool, String) {
    let path = format!("{}:/lib/systemd/system:/usr/lib/systemd/system", folder.display());
    let output = Command::new("systemd-analyze")
        .args(arguments)
        .arg(unit)
        .env("SYSTEMD_UNIT_PATH", path)
        .output()
        .expect("systemd-analyze, which is a part of systemd, runs");
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}
