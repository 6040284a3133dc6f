//! The same rules for `iptables-restore` and `ip6tables-restore`, where there is no `nft`: chains
//! of our own in the tables `nat` and `mangle`.
//!
//! What is said of one family is one transaction per table, not one altogether; nftables is better
//! where it is there.

use std::fmt::Write as _;

use crate::{
    Error, Network, Spec,
    install::Counter,
    program::{self, Program},
    rules::{Act, Chain, Hook, INBOUND_MARK, Rule, Select},
};

/// What our chains begin with.
const PREFIX: &str = "TOWPATH_";
const RECORD: &str = "RECORD";
/// Most ports that `multiport` takes.
const MULTIPORT: usize = 15;
const NEEDS: &str = "iptables' nat and mangle tables with owner, mark, multiport and addrtype, and for \
                     --tproxy TPROXY, connmark and conntrack";
const TABLES: [&str; 2] = ["nat", "mangle"];

/// One IP version's pair of programs.
#[derive(Clone, Debug)]
pub(crate) struct Family {
    ipv6: bool,
    restore: Program,
    save: Program,
}

/// What is in the kernel.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// The lines of the record; in IPv4's rules only.
    pub(crate) record: Vec<String>,
    pub(crate) counters: Vec<Counter>,
    /// All of our chains and the jumps to them, by table.
    chains: Vec<(String, String)>,
    jumps: Vec<(String, String)>,
}

impl Found {
    pub(crate) fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.jumps.is_empty()
    }

    /// Whether each of these is there and gone through.
    pub(crate) fn is_whole(&self, chains: &[Chain]) -> bool {
        chains.iter().all(|chain| {
            let (table, from) = place(chain.hook);
            let jump = format!("{from} -j {}", ours(chain.name));
            let has = |list: &[(String, String)], what: &str| {
                list.iter().any(|(in_table, found)| in_table == table && found == what)
            };
            has(&self.chains, &ours(chain.name)) && has(&self.jumps, &jump)
        })
    }
}

impl Family {
    /// Those that are here, IPv4 first.
    pub(crate) fn all() -> Vec<Self> {
        let pair = |ipv6, restore, save| {
            let (restore, save) = (Program::find(restore)?, Program::find(save)?);
            Some(Self { ipv6, restore, save })
        };
        let four = pair(false, "iptables-restore", "iptables-save");
        let six = pair(true, "ip6tables-restore", "ip6tables-save");
        let six = six.filter(|_| crate::routes::has_ipv6());
        four.into_iter().chain(six).collect()
    }

    pub(crate) fn is_ipv6(&self) -> bool {
        self.ipv6
    }

    /// What its rules are called.
    pub(crate) fn name(&self) -> &'static str {
        if self.ipv6 { "ip6tables chains TOWPATH_*" } else { "iptables chains TOWPATH_*" }
    }

    pub(crate) fn find(&self) -> Result<Found, Error> {
        let output = self.save.run(&["-c"], None)?;
        if output.success {
            return Ok(read(&output.text));
        }
        match program::failure(self.save.name, &output.said, NEEDS) {
            // A kernel that knows no such rules has none of ours.
            Error::Kernel { .. } => Ok(Found::default()),
            error => Err(error),
        }
    }

    /// Sets the rules in place of what is there of ours.
    pub(crate) fn apply(&self, spec: &Spec, chains: &[Chain]) -> Result<(), Error> {
        self.restore(&ruleset(spec, chains, self.ipv6, &self.find()?))
    }

    /// Takes everything of ours out; says whether there was anything.
    pub(crate) fn remove(&self) -> Result<bool, Error> {
        let found = self.find()?;
        if found.is_empty() {
            return Ok(false);
        }
        self.restore(&removal(&found))?;
        Ok(true)
    }

    fn restore(&self, text: &str) -> Result<(), Error> {
        // Another program may hold the lock for a moment.
        let output = self.restore.run(&["--noflush", "--wait=5"], Some(text))?;
        if output.success {
            return Ok(());
        }
        Err(program::failure(self.restore.name, &output.said, NEEDS))
    }
}

/// The text for one family, that also takes out what was `found` and is wanted no more.
pub(crate) fn ruleset(spec: &Spec, chains: &[Chain], ipv6: bool, found: &Found) -> String {
    let mut text = String::new();
    for table in TABLES {
        let wanted: Vec<&Chain> =
            chains.iter().filter(|chain| place(chain.hook).0 == table).collect();
        let record = table == "nat" && !ipv6;
        let mut names: Vec<String> = wanted.iter().map(|chain| ours(chain.name)).collect();
        names.extend(record.then(|| ours(&RECORD.to_lowercase())));
        let mut lines: Vec<String> = names.iter().map(|name| format!(":{name} - [0:0]")).collect();
        lines.extend(cleaning(found, table, &names));
        if record {
            let version = format!("towpath {}", env!("CARGO_PKG_VERSION"));
            for line in std::iter::once(version).chain(spec.options()) {
                lines.push(format!("-A {}{RECORD} {} -j RETURN", PREFIX, comment(&line)));
            }
        }
        for chain in &wanted {
            let rules = chain.rules.iter().flat_map(|rule| texts(rule, ipv6));
            lines.extend(rules.map(|rule| format!("-A {} {rule}", ours(chain.name))));
        }
        for chain in &wanted {
            lines.push(format!("-I {} 1 -j {}", place(chain.hook).1, ours(chain.name)));
        }
        section(&mut text, table, &lines);
    }
    text
}

fn removal(found: &Found) -> String {
    let mut text = String::new();
    for table in TABLES {
        section(&mut text, table, &cleaning(found, table, &[]));
    }
    text
}

/// Takes out the jumps to our chains, and those of them that are not to be kept.
fn cleaning(found: &Found, table: &str, keep: &[String]) -> Vec<String> {
    let jumps = found.jumps.iter().filter(|(in_table, _)| in_table == table);
    let mut lines: Vec<String> = jumps.map(|(_, jump)| format!("-D {jump}")).collect();
    let chains = found.chains.iter().filter(|(of, name)| of == table && !keep.contains(name));
    let chains: Vec<&String> = chains.map(|(_, name)| name).collect();
    // One may jump to another: all are emptied before any goes.
    lines.extend(chains.iter().map(|name| format!("-F {name}")));
    lines.extend(chains.iter().map(|name| format!("-X {name}")));
    lines
}

fn section(text: &mut String, table: &str, lines: &[String]) {
    if lines.is_empty() {
        return;
    }
    let _ = writeln!(text, "*{table}");
    for line in lines {
        let _ = writeln!(text, "{line}");
    }
    text.push_str("COMMIT\n");
}

/// The table and the chain of the kernel from which ours is gone through.
fn place(hook: Hook) -> (&'static str, &'static str) {
    match hook {
        Hook::OutputNat => ("nat", "OUTPUT"),
        Hook::PreroutingNat => ("nat", "PREROUTING"),
        Hook::Prerouting => ("mangle", "PREROUTING"),
        Hook::OutputRoute => ("mangle", "OUTPUT"),
    }
}

fn ours(chain: &str) -> String {
    format!("{PREFIX}{}", chain.to_uppercase())
}

fn comment(text: &str) -> String {
    format!("-m comment --comment \"{text}\"")
}

/// The lines of one rule: several where it is about more than one can hold, none where it is about
/// the other family or about what only nftables can tell.
fn texts(rule: &Rule, ipv6: bool) -> Vec<String> {
    let mut acts = Vec::new();
    match rule.act {
        Act::Leave => acts.push("RETURN".to_owned()),
        Act::Redirect(port) => acts.push(format!("REDIRECT --to-ports {port}")),
        Act::Tproxy(port) => {
            acts.extend((rule.select == Select::Opening).then(|| connmark(INBOUND_MARK)));
            let any = if ipv6 { "::" } else { "0.0.0.0" };
            acts.push(format!("TPROXY --on-port {port} --on-ip {any}"));
        }
        // TPROXY drops what nobody listens for, and ends there.
        Act::Refuse => {}
        Act::MarkConnection(mark) => acts.push(connmark(mark)),
        Act::Mark(mark) => acts.push(format!("MARK --set-mark {mark:#x}")),
    }
    let name = comment(rule.name);
    let selects = select(&rule.select, ipv6);
    selects
        .iter()
        .flat_map(|select| acts.iter().map(move |act| (select, act)))
        .map(|(select, act)| format!("{select} {name} -j {act}"))
        .collect()
}

fn connmark(mark: u32) -> String {
    format!("CONNMARK --set-mark {mark:#x}")
}

fn select(select: &Select, ipv6: bool) -> Vec<String> {
    let one = match select {
        Select::Mark(mark) => format!("-m mark --mark {mark:#x}"),
        Select::Users(users) => return owner("uid", users),
        Select::Groups(groups) => return owner("gid", groups),
        Select::OutByLoopback => "-o lo".to_owned(),
        Select::InByLoopback => "-i lo".to_owned(),
        Select::ToLoopback => format!("-d {}", if ipv6 { "::1/128" } else { "127.0.0.0/8" }),
        Select::NotHere => "-m addrtype ! --dst-type LOCAL".to_owned(),
        // It is not asked of IPv4, and the other family has no rules then.
        Select::Ipv6 => return Vec::new(),
        Select::To(networks) => return of_family("-d", networks, ipv6),
        Select::From(networks) => return of_family("-s", networks, ipv6),
        Select::Ports(ports) => {
            let parts = ports.chunks(MULTIPORT);
            return parts
                .map(|part| format!("-p tcp -m multiport --dports {}", list(part)))
                .collect();
        }
        Select::OtherPorts(ports) => {
            let parts = ports.chunks(MULTIPORT);
            let parts = parts.map(|part| format!(" -m multiport ! --dports {}", list(part)));
            format!("-p tcp{}", parts.collect::<String>())
        }
        Select::DnsRequest => "-p udp --dport 53".to_owned(),
        Select::DnsConnection => "-p tcp --syn --dport 53".to_owned(),
        Select::Opening => "-p tcp --syn".to_owned(),
        Select::Later(mark) => {
            format!("-p tcp -m connmark --mark {mark:#x} -m conntrack --ctdir ORIGINAL")
        }
        Select::Answers(mark) => format!("-m connmark --mark {mark:#x} -m conntrack --ctdir REPLY"),
        Select::FromElsewhere => "-i lo -p tcp --syn -m addrtype ! --src-type LOCAL".to_owned(),
    };
    vec![one]
}

fn owner(of: &str, ids: &[u32]) -> Vec<String> {
    ids.iter().map(|id| format!("-m owner --{of}-owner {id}")).collect()
}

fn of_family(side: &str, networks: &[Network], ipv6: bool) -> Vec<String> {
    let networks = networks.iter().filter(|network| network.is_ipv6() == ipv6);
    networks.map(|network| format!("{side} {network}")).collect()
}

fn list(ports: &[u16]) -> String {
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",")
}

/// Reads what `iptables-save -c` prints, as far as it is ours.
fn read(text: &str) -> Found {
    let mut found = Found::default();
    let mut table = "";
    for line in text.lines() {
        if let Some(name) = line.strip_prefix('*') {
            table = name.trim();
        } else if let Some(chain) = line.strip_prefix(':') {
            let name = chain.split(' ').next().unwrap_or_default();
            if name.starts_with(PREFIX) {
                found.chains.push((table.to_owned(), name.to_owned()));
            }
        } else {
            read_rule(&mut found, table, line);
        }
    }
    found
}

/// Reads `[PACKETS:BYTES] -A CHAIN …`.
fn read_rule(found: &mut Found, table: &str, line: &str) {
    let Some((counts, rule)) = line.split_once("] -A ") else { return };
    let Some((chain, rest)) = rule.split_once(' ') else { return };
    let Some(chain) = chain.strip_prefix(PREFIX) else {
        if rest.contains(&format!("-j {PREFIX}")) {
            found.jumps.push((table.to_owned(), rule.to_owned()));
        }
        return;
    };
    let Some((_, comment)) = rest.split_once("--comment ") else { return };
    // One of several words is in quotes.
    let comment = match comment.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next(),
        None => comment.split(' ').next(),
    };
    let comment = comment.unwrap_or_default();
    if chain == RECORD {
        found.record.push(comment.to_owned());
        return;
    }
    let counts = counts.trim_start_matches('[').split_once(':');
    let amount = |text: Option<&str>| text.and_then(|text| text.parse().ok()).unwrap_or(0);
    let (packets, bytes) = (amount(counts.map(|c| c.0)), amount(counts.map(|c| c.1)));
    // A rule that only marks the connection for the next one has counted already.
    let marks = rest.contains("-j CONNMARK") && comment == "taken";
    let (packets, bytes) = if marks { (0, 0) } else { (packets, bytes) };
    Counter::add(&mut found.counters, &chain.to_lowercase(), comment, packets, bytes);
}
