//! Puts rules into the kernel, takes them out, and says what is there.

use std::{fmt, fmt::Display, str::FromStr};

use crate::{
    Error, Fail, Spec,
    iptables::{self, Family},
    nft,
    program::Program,
    routes,
    rules::{self, Chain},
};

/// What writes the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tool {
    /// nftables, by `nft`.
    Nft,
    /// iptables, by `iptables-restore` and `ip6tables-restore`.
    Iptables,
}

/// What is installed in a network namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Installed {
    /// What wrote it.
    pub tool: Tool,
    /// The version of Towpath that wrote it.
    pub version: String,
    /// What was asked for.
    pub spec: Spec,
    /// What was counted since.
    pub counters: Vec<Counter>,
    /// What should be there and is not.
    pub missing: Vec<String>,
}

/// How often a rule was used: once per connection, but for those about later packets of TPROXY.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counter {
    /// Its chain: `outbound` or `inbound`, or `back` for answers that stay here for TPROXY.
    pub chain: String,
    /// Its name there.
    pub rule: String,
    /// Packets.
    pub packets: u64,
    /// Bytes of those packets.
    pub bytes: u64,
}

/// What is there in a network namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// What is installed.
    pub installed: Option<Installed>,
    /// What is left over and belongs to nothing.
    pub remains: Vec<String>,
}

/// Installs, in place of what is there of an earlier time, in the network namespace of this thread.
///
/// By nftables, or by iptables where there is no `nft`.
///
/// # Errors
/// When the options cannot be, a program is missing, or the kernel refuses. Then nothing has changed
/// with nftables; with iptables nothing of ours is left.
pub fn install(spec: &Spec) -> Result<Tool, Error> {
    let tool = match (Program::find("nft"), Family::all().is_empty()) {
        (Some(_), _) => Tool::Nft,
        (None, false) => Tool::Iptables,
        (None, true) => return Err(Error::NoTool),
    };
    install_with(spec, tool).map(|()| tool)
}

/// Installs by this tool.
///
/// # Errors
/// As [`install`].
pub fn install_with(spec: &Spec, tool: Tool) -> Result<(), Error> {
    spec.check()?;
    if tool == Tool::Iptables && spec.fail == Fail::Open {
        return Err(Error::Options {
            what: "iptables cannot fail open".to_owned(),
            help: "its TPROXY drops what nobody listens for; nftables' does not: install nftables",
        });
    }
    let chains = rules::chains(spec);
    let had_routes = !routes::find()?.is_empty();
    if spec.tproxy {
        routes::add(spec.ipv6)?;
    }
    let done = match tool {
        Tool::Nft => by_nft(spec),
        Tool::Iptables => by_iptables(spec, &chains),
    };
    if done.is_err() && !had_routes || done.is_ok() && !spec.tproxy {
        routes::remove()?;
    }
    done
}

fn by_nft(spec: &Spec) -> Result<(), Error> {
    let missing = Error::Missing { program: "nft", what: "--tool nft", package: "nftables" };
    let nft = Program::find("nft").ok_or(missing)?;
    nft::apply(&nft, &spec.ruleset())?;
    // Both would do the same work; what iptables has is of an earlier time.
    for family in Family::all() {
        family.remove()?;
    }
    Ok(())
}

fn by_iptables(spec: &Spec, chains: &[Chain]) -> Result<(), Error> {
    let families = Family::all();
    if families.first().is_none_or(Family::is_ipv6) {
        return Err(Error::Missing {
            program: "iptables-restore",
            what: "--tool iptables",
            package: "iptables",
        });
    }
    if spec.ipv6 && routes::has_ipv6() && !families.iter().any(Family::is_ipv6) {
        return Err(Error::Missing {
            program: "ip6tables-restore",
            what: "IPv6 (or give --no-ipv6)",
            package: "iptables",
        });
    }
    for family in &families {
        let wanted = spec.ipv6 || !family.is_ipv6();
        let done = if wanted { family.apply(spec, chains) } else { family.remove().map(|_| ()) };
        if let Err(error) = done {
            // One family without the other would be half a promise.
            for family in &families {
                let _ = family.remove();
            }
            return Err(error);
        }
    }
    if let Some(nft) = Program::find("nft")
        && nft::find(&nft)?.is_some()
    {
        nft::apply(&nft, &nft::removal())?;
    }
    Ok(())
}

/// Takes out everything of ours, whoever installed it and however far it came; says what there was.
///
/// # Errors
/// When a program is missing or the kernel refuses. All the rest is taken out nevertheless.
pub fn remove() -> Result<Vec<String>, Error> {
    let mut removed = Vec::new();
    let nft = Program::find("nft");
    let families = Family::all();
    if nft.is_none() && families.is_empty() {
        return Err(Error::NoTool);
    }
    let mut first = Ok(());
    if let Some(nft) = nft {
        match remove_nft(&nft) {
            Ok(true) => removed.push(NFT_NAME.to_owned()),
            Ok(false) => {}
            Err(error) => first = Err(error),
        }
    }
    for family in families {
        match family.remove() {
            Ok(true) => removed.push(family.name().to_owned()),
            Ok(false) => {}
            Err(error) => first = first.and(Err(error)),
        }
    }
    match routes::remove() {
        Ok(routes) => removed.extend(routes),
        Err(error) => first = first.and(Err(error)),
    }
    first.map(|()| removed)
}

const NFT_NAME: &str = "nftables table inet towpath";

fn remove_nft(nft: &Program) -> Result<bool, Error> {
    if nft::find(nft)?.is_none() {
        return Ok(false);
    }
    nft::apply(nft, &nft::removal())?;
    Ok(true)
}

/// Says what is there.
///
/// # Errors
/// When a program is missing, may not look, or finds what it cannot read.
pub fn status() -> Result<Status, Error> {
    let nft = Program::find("nft");
    let families = Family::all();
    if nft.is_none() && families.is_empty() {
        return Err(Error::NoTool);
    }
    let table = nft.as_ref().map(nft::find).transpose()?.flatten();
    let mut chains = Vec::new();
    for family in families {
        let found = family.find()?;
        chains.push((family, found));
    }
    let by_nft = table.as_ref().map(of_nft).transpose()?.flatten();
    let by_iptables = of_iptables(&chains)?;
    let mut remains = routes::find()?;
    if table.is_some() && by_nft.is_none() {
        remains.push(NFT_NAME.to_owned());
    }
    if by_nft.is_some() || by_iptables.is_none() {
        let there = chains.iter().filter(|(_, found)| !found.is_empty());
        remains.extend(there.map(|(family, _)| family.name().to_owned()));
    }
    let mut status = Status { installed: by_nft.or(by_iptables), remains };
    settle(&mut status);
    Ok(status)
}

fn of_nft(table: &nft::Found) -> Result<Option<Installed>, Error> {
    let Some((version, spec)) = read(&table.record)? else { return Ok(None) };
    let mut missing = Vec::new();
    for chain in rules::chains(&spec) {
        for rule in &chain.rules {
            let has = |c: &Counter| c.chain == chain.name && c.rule == rule.name;
            if !table.counters.iter().any(has) {
                missing.push(format!("rule {} of chain {}", rule.name, chain.name));
            }
        }
    }
    let counters = table.counters.clone();
    Ok(Some(Installed { tool: Tool::Nft, version, spec, counters, missing }))
}

fn of_iptables(chains: &[(Family, iptables::Found)]) -> Result<Option<Installed>, Error> {
    let Some((_, four)) = chains.iter().find(|(family, _)| !family.is_ipv6()) else {
        return Ok(None);
    };
    let Some((version, spec)) = read(&four.record)? else { return Ok(None) };
    let mut counters = Vec::new();
    let mut missing = Vec::new();
    for (family, found) in chains {
        let wanted = spec.ipv6 || !family.is_ipv6();
        if wanted && !found.is_whole(&rules::chains(&spec)) {
            missing.push(family.name().to_owned());
        }
        for counter in &found.counters {
            let Counter { chain, rule, packets, bytes } = counter;
            Counter::add(&mut counters, chain, rule, *packets, *bytes);
        }
    }
    Ok(Some(Installed { tool: Tool::Iptables, version, spec, counters, missing }))
}

/// Reads a record; a table or chain may be there without one.
fn read(record: &[String]) -> Result<Option<(String, Spec)>, Error> {
    let Some((version, options)) = record.split_first() else { return Ok(None) };
    let version = version.strip_prefix("towpath ").unwrap_or(version).to_owned();
    Ok(Some((version, Spec::from_options(options.iter().map(String::as_str))?)))
}

/// Tells which routes belong to an installation, and which are left over.
fn settle(status: &mut Status) {
    let Some(installed) = &mut status.installed else { return };
    let spec = &installed.spec;
    let expected = if spec.tproxy { routes::expected(spec.ipv6) } else { Vec::new() };
    installed.missing.extend(expected.iter().filter(|e| !status.remains.contains(e)).cloned());
    status.remains.retain(|found| !expected.contains(found));
}

impl Counter {
    /// Adds to the counter of this name, which may have to be made.
    pub(crate) fn add(list: &mut Vec<Self>, chain: &str, rule: &str, packets: u64, bytes: u64) {
        match list.iter_mut().find(|counter| counter.chain == chain && counter.rule == rule) {
            Some(counter) => {
                counter.packets = counter.packets.saturating_add(packets);
                counter.bytes = counter.bytes.saturating_add(bytes);
            }
            None => {
                list.push(Self { chain: chain.to_owned(), rule: rule.to_owned(), packets, bytes })
            }
        }
    }
}

impl Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Self::Nft { "nft" } else { "iptables" })
    }
}

impl FromStr for Tool {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "nft" => Ok(Self::Nft),
            "iptables" => Ok(Self::Iptables),
            _ => Err("nft or iptables".to_owned()),
        }
    }
}
