//! `towpath intercept`: sends the connections of a network namespace to its proxy, and lets them
//! go again.
//!
//! Exit status 0: done, and for `status`: installed and whole. 1: not.

use std::{
    fmt::Write as _,
    fs,
    net::{IpAddr, SocketAddr, ToSocketAddrs as _, UdpSocket},
    process::ExitCode,
};

use anyhow::Context as _;
use towpath_intercept::{
    Connection, Direction, Fail, Installed, Loopback, Network, PROXY_USER, Protocol, Spec, Status,
    Tool, Verdict, explain, install, install_with, proxy_warnings, remove, status, warnings,
};

use crate::output::print;

/// Options of `towpath intercept`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  towpath intercept explain 10.0.0.7:5432              what would happen, before anything does
  towpath intercept install --exclude-inbound-ports 22
  towpath intercept install --no-inbound --exclude-outbound-networks 10.96.0.1/32
  towpath intercept status
  towpath intercept remove                             as it was before")]
pub(crate) struct Args {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Install the rules, in place of those of an earlier time
    Install(InstallArgs),
    /// Take all of it out, also what is there by halves
    Remove,
    /// Say what is installed, and how often each rule was used
    Status(StatusArgs),
    /// Say what happens to a connection, and which rule says so
    Explain(ExplainArgs),
}

#[derive(Debug, clap::Args)]
struct InstallArgs {
    #[command(flatten)]
    options: Options,

    /// What writes the rules [default: nft, or iptables where there is no nft]
    #[arg(long, value_name = "nft|iptables")]
    tool: Option<Tool>,

    /// Show the nftables rules and install nothing
    #[arg(long, conflicts_with = "tool")]
    dry_run: bool,
}

#[derive(Debug, clap::Args)]
struct StatusArgs {
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = "Without options of install it is about what is installed here.")]
struct ExplainArgs {
    /// Where the connection goes
    #[arg(value_name = "HOST:PORT")]
    destination: String,

    /// It comes in from outside; without this it begins here
    #[arg(long)]
    inbound: bool,

    /// Where it comes from, for inbound ones
    #[arg(long, value_name = "IP", requires = "inbound")]
    from: Option<IpAddr>,

    /// Whose it is, for outbound ones: a user's name or number
    #[arg(long, value_name = "USER", value_parser = user, conflicts_with = "inbound")]
    user: Option<u32>,

    /// Of which group
    #[arg(long, value_name = "GROUP", value_parser = group, conflicts_with = "inbound")]
    group: Option<u32>,

    /// The mark of its packets
    #[arg(long = "packet-mark", value_name = "MARK", value_parser = mark, default_value = "0")]
    packet_mark: u32,

    /// It is UDP
    #[arg(long)]
    udp: bool,

    #[command(flatten)]
    options: Options,
}

/// What is intercepted.
#[derive(Debug, clap::Args)]
struct Options {
    /// Port at which the proxy takes outbound connections
    #[arg(long, value_name = "PORT", default_value_t = 15001, value_parser = port())]
    outbound_port: u16,

    /// Port at which the proxy takes inbound connections
    #[arg(long, value_name = "PORT", default_value_t = 15006, value_parser = port())]
    inbound_port: u16,

    /// Leave outbound connections alone
    #[arg(long)]
    no_outbound: bool,

    /// Leave inbound connections alone
    #[arg(long)]
    no_inbound: bool,

    /// User the proxy runs as, whose connections are left alone; or none
    #[arg(long, value_name = "USER", default_value_t = Id(Some(PROXY_USER)), value_parser = user_or_none)]
    proxy_user: Id,

    /// Group the proxy runs as, whose connections are left alone; or none
    #[arg(long, value_name = "GROUP", default_value_t = Id(None), value_parser = group_or_none)]
    proxy_group: Id,

    /// Mark of packets that are left alone
    #[arg(long, value_name = "MARK", default_value = "0x746f", value_parser = mark)]
    mark: u32,

    /// Leave outbound connections of these users alone, too
    #[arg(long, value_name = "USER,…", value_delimiter = ',', value_parser = user)]
    exclude_user: Vec<u32>,

    /// Leave outbound connections of these groups alone, too
    #[arg(long, value_name = "GROUP,…", value_delimiter = ',', value_parser = group)]
    exclude_group: Vec<u32>,

    /// Leave outbound connections to these ports alone
    #[arg(long, value_name = "PORT,…", value_delimiter = ',')]
    exclude_outbound_ports: Vec<u16>,

    /// Leave inbound connections to these ports alone
    #[arg(long, value_name = "PORT,…", value_delimiter = ',')]
    exclude_inbound_ports: Vec<u16>,

    /// Leave outbound connections to these networks alone
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',')]
    exclude_outbound_networks: Vec<Network>,

    /// Leave inbound connections from these networks alone
    #[arg(long, value_name = "CIDR,…", value_delimiter = ',')]
    exclude_inbound_networks: Vec<Network>,

    /// Take outbound connections to these ports only
    #[arg(long, value_name = "PORT,…", value_delimiter = ',')]
    only_outbound_ports: Vec<u16>,

    /// Take inbound connections to these ports only
    #[arg(long, value_name = "PORT,…", value_delimiter = ',')]
    only_inbound_ports: Vec<u16>,

    /// Send DNS requests to this port, over UDP and TCP; without it they are left alone
    #[arg(long, value_name = "PORT", value_parser = port())]
    dns: Option<u16>,

    /// Outbound connections over loopback: leave all, take those to own addresses but not to
    /// 127.0.0.0/8 and ::1, or take all
    #[arg(long, value_name = "leave|own|all", default_value_t = Loopback::Leave)]
    loopback: Loopback,

    /// Give inbound connections to the proxy by TPROXY, so that it can go on to the application
    /// from the client's address
    #[arg(long)]
    tproxy: bool,

    /// Leave IPv6 alone
    #[arg(long)]
    no_ipv6: bool,

    /// Connections while the proxy is down: refused, or let through (with --tproxy --no-outbound)
    #[arg(long, value_name = "closed|open", default_value_t = Fail::Closed)]
    fail: Fail,
}

/// Runs the command.
///
/// # Errors
/// When options cannot be, a program is missing or the kernel refuses.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.action {
        Action::Install(args) => run_install(args),
        Action::Remove => run_remove(),
        Action::Status(args) => run_status(&args),
        Action::Explain(args) => run_explain(args),
    }
}

fn run_install(args: InstallArgs) -> anyhow::Result<ExitCode> {
    let spec = args.options.spec();
    spec.check()?;
    if args.dry_run {
        print(&spec.ruleset())?;
        return Ok(ExitCode::SUCCESS);
    }
    for warning in warnings(&spec) {
        eprintln!("warning: {warning}");
    }
    let tool = match args.tool {
        Some(tool) => install_with(&spec, tool).map(|()| tool)?,
        None => install(&spec)?,
    };
    print(&format!(
        "installed, by {tool}: {}\nout again: towpath intercept remove\n",
        summary(&spec)
    ))?;
    Ok(ExitCode::SUCCESS)
}

fn run_remove() -> anyhow::Result<ExitCode> {
    let removed = remove()?;
    let told = if removed.is_empty() { "nothing was there".to_owned() } else { removed.join(", ") };
    print(&format!("removed: {told}\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn run_status(args: &StatusArgs) -> anyhow::Result<ExitCode> {
    let status = status()?;
    let warnings = status.installed.as_ref().map(|installed| proxy_warnings(&installed.spec));
    let warnings = warnings.unwrap_or_default();
    let page = match args.json {
        true => format!("{:#}\n", json(&status, &warnings)),
        false => text(&status, &warnings),
    };
    print(&page)?;
    let whole = status.installed.as_ref().is_some_and(|installed| installed.missing.is_empty());
    Ok(if whole { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn run_explain(args: ExplainArgs) -> anyhow::Result<ExitCode> {
    let destination = &args.destination;
    let addresses = destination
        .to_socket_addrs()
        .with_context(|| format!("{destination} is no HOST:PORT, or its host has no address"))?;
    let asked = args.options.spec();
    let (spec, source) = if asked == Spec::default() {
        installed_or(asked)
    } else {
        asked.check()?;
        (asked, "the options given".to_owned())
    };
    let mut page = String::new();
    for address in addresses {
        let direction = if args.inbound { Direction::Inbound } else { Direction::Outbound };
        let connection = Connection {
            protocol: if args.udp { Protocol::Udp } else { Protocol::Tcp },
            source: args.from,
            user: args.user,
            group: args.group,
            mark: args.packet_mark,
            local: is_local(address.ip()),
            ..Connection::new(direction, address)
        };
        page += &explained(&spec, &connection);
    }
    let _ = writeln!(page, "as of    {source}");
    print(&page)?;
    Ok(ExitCode::SUCCESS)
}

/// What is installed, or else what would be.
fn installed_or(asked: Spec) -> (Spec, String) {
    match status() {
        Ok(Status { installed: Some(installed), .. }) => {
            let Installed { spec, tool, version, missing, .. } = installed;
            let but = if missing.is_empty() { "" } else { "; some of it is missing, see status" };
            (spec, format!("what is installed here (towpath {version}, by {tool}){but}"))
        }
        Ok(_) => (asked, "the defaults; nothing is installed here".to_owned()),
        Err(error) => (asked, format!("the defaults; what is installed cannot be seen: {error}")),
    }
}

fn explained(spec: &Spec, connection: &Connection) -> String {
    let told = explain(spec, connection);
    let way = match connection.direction {
        Direction::Outbound => "outbound",
        Direction::Inbound => "inbound",
    };
    let protocol = if connection.protocol == Protocol::Udp { "UDP" } else { "TCP" };
    let verdict = match told.verdict {
        Verdict::Left => "left alone".to_owned(),
        Verdict::Redirected(port) => format!("sent to port {port} (REDIRECT)"),
        Verdict::Tproxied(port) => format!("given to port {port} (TPROXY)"),
    };
    let mut text = format!("{way} {protocol} {}: {verdict}\n", connection.destination);
    let _ = writeln!(text, "because  {}", told.why);
    if let Some((chain, rule, line)) = told.rule {
        let _ = writeln!(text, "rule     {chain}, {rule}: {line}");
    }
    text
}

/// Whether an address is one of this machine: only such can be bound to.
fn is_local(ip: IpAddr) -> bool {
    ip.is_loopback() || UdpSocket::bind(SocketAddr::new(ip, 0)).is_ok()
}

fn text(status: &Status, warnings: &[String]) -> String {
    let mut page = String::new();
    match &status.installed {
        None => page += "nothing is installed here\n",
        Some(installed) => about(installed, &mut page),
    }
    for left in &status.remains {
        let _ = writeln!(page, "left over: {left} (towpath intercept remove takes it out)");
    }
    for warning in warnings {
        let _ = writeln!(page, "warning: {warning}");
    }
    page
}

fn about(installed: &Installed, page: &mut String) {
    let Installed { tool, version, spec, counters, missing } = installed;
    let _ = writeln!(page, "installed  {} (towpath {version}, by {tool})", summary(spec));
    let _ = writeln!(page, "options    {}", spec.options().join(" "));
    for what in missing {
        let _ = writeln!(page, "missing    {what} (install again)");
    }
    let _ = writeln!(page, "\n{:<10} {:<16} {:>12} {:>14}", "chain", "rule", "packets", "bytes");
    for counter in counters {
        let _ = writeln!(
            page,
            "{:<10} {:<16} {:>12} {:>14}",
            counter.chain, counter.rule, counter.packets, counter.bytes
        );
    }
}

fn json(status: &Status, warnings: &[String]) -> serde_json::Value {
    let installed = status.installed.as_ref().map(|installed| {
        let counters: Vec<_> = installed
            .counters
            .iter()
            .map(|counter| {
                serde_json::json!({
                    "chain": counter.chain,
                    "rule": counter.rule,
                    "packets": counter.packets,
                    "bytes": counter.bytes,
                })
            })
            .collect();
        serde_json::json!({
            "tool": installed.tool.to_string(),
            "version": installed.version,
            "options": installed.spec.options(),
            "counters": counters,
            "missing": installed.missing,
        })
    });
    serde_json::json!({
        "installed": installed,
        "remains": status.remains,
        "warnings": warnings,
    })
}

fn summary(spec: &Spec) -> String {
    let way = |name: &str, port: Option<u16>| match port {
        Some(port) => format!("{name} connections to port {port}"),
        None => format!("{name} connections left alone"),
    };
    format!("{}, {}", way("outbound", spec.outbound), way("inbound", spec.inbound))
}

impl Options {
    fn spec(self) -> Spec {
        Spec {
            outbound: (!self.no_outbound).then_some(self.outbound_port),
            inbound: (!self.no_inbound).then_some(self.inbound_port),
            tproxy: self.tproxy,
            dns: self.dns,
            loopback: self.loopback,
            ipv6: !self.no_ipv6,
            fail: self.fail,
            proxy_user: self.proxy_user.0,
            proxy_group: self.proxy_group.0,
            mark: self.mark,
            exclude_users: self.exclude_user,
            exclude_groups: self.exclude_group,
            exclude_outbound_ports: self.exclude_outbound_ports,
            exclude_inbound_ports: self.exclude_inbound_ports,
            exclude_outbound_networks: self.exclude_outbound_networks,
            exclude_inbound_networks: self.exclude_inbound_networks,
            only_outbound_ports: self.only_outbound_ports,
            only_inbound_ports: self.only_inbound_ports,
        }
    }
}

/// The number of a user or group, or none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Id(Option<u32>);

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0 {
            Some(id) => id.fmt(f),
            None => f.write_str("none"),
        }
    }
}

fn port() -> clap::builder::RangedI64ValueParser<u16> {
    clap::value_parser!(u16).range(1..)
}

fn user_or_none(text: &str) -> Result<Id, String> {
    if text == "none" { Ok(Id(None)) } else { user(text).map(|id| Id(Some(id))) }
}

fn group_or_none(text: &str) -> Result<Id, String> {
    if text == "none" { Ok(Id(None)) } else { group(text).map(|id| Id(Some(id))) }
}

fn user(text: &str) -> Result<u32, String> {
    number(text, "/etc/passwd")
}

fn group(text: &str) -> Result<u32, String> {
    number(text, "/etc/group")
}

/// A number, or the one that a file has for the name.
fn number(text: &str, file: &str) -> Result<u32, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let names = fs::read_to_string(file).unwrap_or_default();
    let find = |line: &str| -> Option<u32> {
        let mut fields = line.split(':');
        (fields.next() == Some(text)).then(|| fields.nth(1))??.parse().ok()
    };
    names.lines().find_map(find).ok_or_else(|| format!("{file} has no `{text}`; give its number"))
}

fn mark(text: &str) -> Result<u32, String> {
    let parsed = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "a number such as 29807 or 0x746f".to_owned())
}

#[cfg(test)]
mod tests;
