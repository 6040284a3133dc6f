//! The way of answers to connections that the proxy makes from a client's address: a routing rule
//! and a table of their own, that keep them on this machine.

use crate::{
    Error,
    program::{self, Program},
    rules::RETURN_MARK,
};

/// Nobody else's, one hopes: 0x7471.
const TABLE: &str = "29809";
const PRIORITY: &str = "29809";
const NEEDS: &str = "policy routing (CONFIG_IP_MULTIPLE_TABLES, CONFIG_IPV6_MULTIPLE_TABLES)";
/// More copies of our rule than anything leaves behind.
const MAX_COPIES: usize = 64;

/// Sets the way, for IPv6 too if wanted; nothing changes where it is set.
pub(crate) fn add(ipv6: bool) -> Result<(), Error> {
    let ip = Program::find("ip").ok_or(Error::Missing {
        program: "ip",
        what: "--tproxy",
        package: "iproute2",
    })?;
    for family in wanted(ipv6) {
        run(&ip, &[family, "route", "replace", "local", "default", "dev", "lo", "table", TABLE])?;
        if !has_rule(&ip, family)? {
            let mark = format!("{RETURN_MARK:#x}");
            run(
                &ip,
                &[family, "rule", "add", "priority", PRIORITY, "fwmark", &mark, "lookup", TABLE],
            )?;
        }
    }
    Ok(())
}

/// Takes it away, also what is there of it by halves; says what it took.
pub(crate) fn remove() -> Result<Vec<String>, Error> {
    let found = find()?;
    let Some(ip) = Program::find("ip").filter(|_| !found.is_empty()) else { return Ok(found) };
    for family in families() {
        for _ in 0..MAX_COPIES {
            if !has_rule(&ip, family)? {
                break;
            }
            run(&ip, &[family, "rule", "del", "priority", PRIORITY, "lookup", TABLE])?;
        }
        if has_route(&ip, family)? {
            run(&ip, &[family, "route", "del", "local", "default", "dev", "lo", "table", TABLE])?;
        }
    }
    Ok(found)
}

/// What is there, in words. Without the program `ip` nothing can be.
pub(crate) fn find() -> Result<Vec<String>, Error> {
    let Some(ip) = Program::find("ip") else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for family in families() {
        if has_rule(&ip, family)? {
            found.push(rule_name(family));
        }
        if has_route(&ip, family)? {
            found.push(route_name(family));
        }
    }
    Ok(found)
}

/// What should be there.
pub(crate) fn expected(ipv6: bool) -> Vec<String> {
    wanted(ipv6).flat_map(|family| [rule_name(family), route_name(family)]).collect()
}

/// Those in which a connection could be: containers often have IPv6, but switched off.
fn wanted(ipv6: bool) -> impl Iterator<Item = &'static str> {
    let off = std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6");
    let ipv6 = ipv6 && off.is_ok_and(|off| off.trim() == "0");
    families().iter().copied().filter(move |family| ipv6 || *family == "-4")
}

fn rule_name(family: &str) -> String {
    format!("ip {family} rule lookup {TABLE}")
}

fn route_name(family: &str) -> String {
    format!("ip {family} route table {TABLE}")
}

/// IPv6 can be off for the whole machine.
pub(crate) fn has_ipv6() -> bool {
    std::path::Path::new("/proc/thread-self/net/if_inet6").exists()
}

fn families() -> &'static [&'static str] {
    if has_ipv6() { &["-4", "-6"] } else { &["-4"] }
}

/// A kernel that knows no such rules has none of ours.
fn has_rule(ip: &Program, family: &str) -> Result<bool, Error> {
    let ours = |line: &str| line.trim_end().ends_with(&format!("lookup {TABLE}"));
    Ok(ip.run(&[family, "rule", "show"], None)?.text.lines().any(ours))
}

/// A table that is not there is no failure.
fn has_route(ip: &Program, family: &str) -> Result<bool, Error> {
    Ok(ip.run(&[family, "route", "show", "table", TABLE], None)?.text.contains("local default"))
}

fn run(ip: &Program, arguments: &[&str]) -> Result<(), Error> {
    let output = ip.run(arguments, None)?;
    if output.success {
        return Ok(());
    }
    if output.said.contains("device is not up") {
        let said = "the interface lo is down, set it up: ip link set lo up".to_owned();
        return Err(Error::Failed { program: ip.name, said });
    }
    Err(program::failure(ip.name, &output.said, NEEDS))
}
