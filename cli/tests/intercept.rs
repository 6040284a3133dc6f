//! The program itself, in a network namespace of its own that ends with each line of shell.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so by panicking")]

use std::process::{Command, Output};

/// Runs a line of shell in which `towpath` is the program.
fn shell(line: &str) -> Output {
    let script =
        format!("set -u; towpath() {{ {} \"$@\"; }}; {line}", env!("CARGO_BIN_EXE_towpath"));
    Command::new("unshare").args(["--net", "sh", "-c", &script]).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn what_is_installed_is_told_explained_and_removed() {
    let output = shell(
        "ip link set lo up
         towpath intercept status && exit 7
         towpath intercept install --exclude-outbound-ports 443 --tproxy || exit 8
         towpath intercept status || exit 9
         towpath intercept explain 10.0.0.7:443 || exit 10
         towpath intercept remove || exit 11
         towpath intercept status && exit 12
         nft list ruleset && ip rule",
    );
    let said = said(&output);
    assert!(output.status.success(), "{} {said}", output.status);
    for part in [
        "nothing is installed here\ninstalled, by nft: outbound connections to port 15001, inbound",
        "--tproxy --exclude-outbound-ports=443\n",
        "outbound TCP 10.0.0.7:443: left alone\nbecause  port 443 is excluded\n",
        "as of    what is installed here (towpath ",
        "removed: nftables table inet towpath, ip -4 rule lookup 29809, ",
    ] {
        assert!(said.contains(part), "{part}\nis not in\n{said}");
    }
    let last =
        "nothing is installed here\n0:\tfrom all lookup local\n32766:\tfrom all lookup main\n";
    assert!(said.contains(last), "{said}");
}

#[test]
fn it_is_told_who_listens_at_the_ports_and_who_does_not() {
    let listening = r#"
import os, socket, subprocess, sys
os.seteuid(1900)
ports = [socket.create_server(("127.0.0.1", port)) for port in (15001, 15006)]
os.seteuid(0)
subprocess.run([sys.argv[1], "intercept", "status"], check=True)
subprocess.run([sys.argv[1], "intercept", "install", "--proxy-user=1900"], check=True)
"#;
    let output = shell(&format!(
        "ip link set lo up
         towpath intercept install 2>&1 || exit 7
         towpath intercept status || exit 8
         echo now they listen
         python3 -c '{listening}' {} 2>&1 || exit 9",
        env!("CARGO_BIN_EXE_towpath")
    ));
    let said = said(&output);
    assert!(output.status.success(), "{} {said}", output.status);
    let (before, after) = said.split_once("now they listen\n").unwrap();
    let nobody = "warning: nobody listens at ports 15001 and 15006: what is sent there is refused";
    assert_eq!(before.matches(nobody).count(), 2, "{said}");
    let stranger = "warning: the program at ports 15001 and 15006 runs as user 1900, whose";
    assert_eq!(after.matches("warning: ").count(), 1, "{said}");
    assert!(after.contains(stranger), "{said}");
}

#[test]
fn what_cannot_be_is_refused_in_words_and_nothing_is_installed() {
    let output = shell("towpath intercept install --fail open; echo $?; nft list ruleset");
    let said = said(&output);
    assert!(said.starts_with("1\n"), "{said}");
    assert!(said.contains("REDIRECT does not know whether anybody listens"), "{said}");
}

/// A program in front of the real one, that fails with these words.
fn failing(program: &str, words: &str) -> tempfile::TempDir {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(program);
    std::fs::write(&path, format!("#!/bin/sh\necho '{words}' >&2\nexit 1\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    folder
}

#[test]
fn where_one_family_of_iptables_fails_nothing_is_left_of_the_other() {
    let folder = failing("ip6tables-restore", "iptables-restore: line 3 failed");
    let output = shell(&format!(
        "ip link set lo up; PATH={}:$PATH
         towpath intercept install --tool iptables --tproxy; echo $?
         iptables-save | grep TOWPATH; ip rule | grep 29809; towpath intercept status",
        folder.path().display()
    ));
    let said = said(&output);
    assert!(said.starts_with("1\nnothing is installed here\n"), "{said}");
    assert!(said.contains("ip6tables-restore failed: iptables-restore: line 3 failed"), "{said}");
}

#[test]
fn what_the_kernel_lacks_is_said() {
    let words = "/dev/stdin:3:1-5: Error: Could not process rule: Operation not supported";
    let folder = failing("nft", words);
    let output =
        shell(&format!("PATH={}:$PATH; towpath intercept install", folder.path().display()));
    let said = said(&output);
    assert!(!output.status.success() && said.contains("this kernel cannot do"), "{said}");
    assert!(said.contains("nf_tables with nat for inet (Linux 5.2 and newer)"), "{said}");
}
