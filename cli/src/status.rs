//! `towpath status`: what a control plane serves, what it rejected, and which
//! proxy holds which version.

mod conditions;

use std::{
    fmt::Write as _,
    io::IsTerminal as _,
    net::SocketAddr,
    process::ExitCode,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use towpath_control_plane::{
    DEFAULT_ADMIN,
    source::{Commit, short},
    status::{Applied, Proxy, Rejected, ServiceFigures, Status, UnknownPlace},
};

use crate::{
    admin::{self, plain},
    output::print,
};

/// Time between two looks of `--watch`.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);
/// Lines of loads shown.
const LOADS_SHOWN: usize = 50;
/// Findings shown of a rejected version.
const FINDINGS_SHOWN: usize = 20;

/// Options of `towpath status`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  towpath status
  towpath status --watch
  towpath status --conditions
  towpath status --format json | jq '.proxies[] | select(.in_sync | not)'")]
pub(crate) struct Args {
    /// Admin address of the control plane
    #[arg(long, value_name = "ADDR", default_value_t = DEFAULT_ADMIN)]
    admin: SocketAddr,

    /// text is a table, json is all there is
    #[arg(long, value_enum, default_value_t = Format::Text)]
    format: Format,

    /// Show the conditions of Gateway API objects instead; as json, as Kubernetes has them
    #[arg(long)]
    conditions: bool,

    /// Show it again every second, until Ctrl-C
    #[arg(long)]
    watch: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Text,
    Json,
}

/// Asks a control plane how things stand, and shows it.
///
/// # Errors
/// When it cannot be reached, or answers something else.
pub(crate) fn run(args: Args) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    if !args.watch {
        print(&runtime.block_on(show(&args))?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let clear = args.format == Format::Text && std::io::stdout().is_terminal();
    loop {
        // A control plane that is away may come back.
        let text = runtime.block_on(show(&args)).unwrap_or_else(|error| format!("{error:#}\n"));
        let before = if clear { "\x1b[H\x1b[2J" } else { "" };
        if !print(&format!("{before}{text}"))? {
            return Ok(ExitCode::SUCCESS);
        }
        std::thread::sleep(WATCH_INTERVAL);
    }
}

async fn show(args: &Args) -> anyhow::Result<String> {
    let path = if args.conditions { "/conditions" } else { "/status" };
    let body = admin::ask(args.admin, path, "control plane").await?;
    if args.format == Format::Json {
        // Through a value, so that what is printed is JSON whatever came, and
        // fields of a newer control plane are kept.
        let value: serde_json::Value =
            serde_json::from_slice(&body).context("the answer is not JSON")?;
        return Ok(format!("{value:#}\n"));
    }
    if args.conditions {
        let told = conditions::text(&body);
        return told.with_context(|| {
            format!("http://{}/conditions: not the answer of a control plane", args.admin)
        });
    }
    let status: Status = serde_json::from_slice(&body).with_context(|| {
        format!("http://{}/status: not the status of a control plane (is this a proxy's admin address?)", args.admin)
    })?;
    Ok(text(&status, now_unix_ms()))
}

fn now_unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The whole page.
fn text(status: &Status, now: u64) -> String {
    let mut lines = Vec::new();
    about_source(status, now, &mut lines);
    about_versions(status, now, &mut lines);
    about_names(status, &mut lines);
    lines.push(String::new());
    if status.proxies.is_empty() {
        lines.push("no proxy is connected".to_owned());
    } else {
        about_proxies(&status.proxies, now, &mut lines);
    }
    about_loads(&status.loads, &mut lines);
    lines.iter().fold(String::new(), |page, line| page + line.trim_end() + "\n")
}

fn about_source(status: &Status, now: u64, lines: &mut Vec<String>) {
    let source = &status.source;
    let mut line = format!("source    {}", plain(&source.location));
    let branch = status.current.as_ref().and_then(|current| current.branch.as_ref());
    if let Some(branch) = source.branch.as_ref().or(branch) {
        let _ = write!(line, "  branch {}", plain(branch));
    }
    if let Some(path) = &source.path {
        let _ = write!(line, "  path {}", plain(&path.display().to_string()));
    }
    let read = source
        .read_unix_ms
        .map_or("never read".to_owned(), |at| format!("read {} ago", ago(at, now)));
    let _ = write!(line, "  ({read})");
    lines.push(line);
    if let Some(error) = &source.error {
        for (index, said) in error.lines().enumerate() {
            let head = if index == 0 { "ERROR     " } else { "        " };
            lines.push(format!("{head}{}", plain(said)));
        }
    }
}

fn about_versions(status: &Status, now: u64, lines: &mut Vec<String>) {
    match &status.current {
        None => lines.push("serving   nothing yet: no valid version was found".to_owned()),
        Some(current) => {
            let about = about_commit(current.commit.as_ref());
            let mut line = format!("serving   {}{about}", plain(short(&current.version)));
            let since = ago(current.published_unix_ms, now);
            let (listeners, services) = (current.listeners, current.services);
            let _ = write!(
                line,
                "  (since {since}; {} and {})",
                count(listeners, "listener"),
                count(services, "service")
            );
            if current.restored {
                line += "  RESTORED from an earlier run";
            }
            lines.push(line);
            lines.extend(current.warnings.iter().map(|w| format!("warning   {}", plain(w))));
        }
    }
    if let Some(rejected) = &status.rejected {
        about_rejected(rejected, now, lines);
    }
    if let Some(applied) = status.applied.first() {
        lines.push(format!("applied   {}", about_applied(applied)));
    }
}

fn about_rejected(rejected: &Rejected, now: u64, lines: &mut Vec<String>) {
    let about = about_commit(rejected.commit.as_ref());
    let (version, seen) = (short(&rejected.version), ago(rejected.seen_unix_ms, now));
    lines.push(format!("REJECTED  {}{about}  (seen {seen} ago; not served)", plain(version)));
    for finding in rejected.diagnostics.iter().take(FINDINGS_SHOWN) {
        lines.push(format!("          {}", plain(&finding.to_string())));
    }
    let more = rejected.diagnostics.len().saturating_sub(FINDINGS_SHOWN) + rejected.left_out;
    if more > 0 {
        lines.push(format!("          and {more} more"));
    }
}

fn about_applied(applied: &Applied) -> String {
    let version = plain(short(&applied.version));
    if applied.proxies == 0 {
        return format!("{version}  no change for the proxies connected then");
    }
    let mut line = format!("{version}  {} of {}", applied.acked, count(applied.proxies, "proxy"));
    match (applied.min_ms, applied.max_ms) {
        (Some(_), Some(max)) if applied.acked == 1 => {
            let _ = write!(line, " in {max:.0} ms");
        }
        (Some(min), Some(max)) => {
            let _ = write!(line, " in {min:.0} to {max:.0} ms");
        }
        _ => {}
    }
    for (number, what) in [
        (applied.waiting(), "waited for"),
        (applied.nacked, "REFUSED"),
        (applied.lost, "gone or overtaken"),
    ] {
        if number > 0 {
            let _ = write!(line, ", {number} {what}");
        }
    }
    line
}

fn about_names(status: &Status, lines: &mut Vec<String>) {
    for name in status.names.iter().filter(|name| name.error.is_some()) {
        let error = name.error.as_deref().unwrap_or_default();
        let place =
            name.source.as_deref().map(|at| format!(" ({})", plain(at))).unwrap_or_default();
        lines.push(format!(
            "DNS       {} of service {}{place}: {} ({} kept)",
            plain(&name.host),
            plain(&name.service),
            plain(error),
            count(name.addresses, "address")
        ));
    }
    for UnknownPlace { place, source, error } in &status.places {
        lines.push(format!("place     {} ({}): {}", plain(place), plain(source), plain(error)));
    }
}

fn about_proxies(proxies: &[Proxy], now: u64, lines: &mut Vec<String>) {
    let heads = ["NODE", "CLUSTER", "VERSION", "STATE", "CONNECTED", "PEER"].map(str::to_owned);
    let mut rows = vec![heads];
    rows.extend(proxies.iter().map(|proxy| {
        let state = match (&proxy.nack, proxy.in_sync) {
            (Some(_), _) => "REFUSES",
            (None, true) => "in sync",
            (None, false) => "behind",
        };
        [
            plain(&proxy.node),
            plain(&proxy.cluster),
            proxy.version.as_deref().map_or("-".to_owned(), |version| plain(short(version))),
            state.to_owned(),
            ago(proxy.connected_unix_ms, now),
            plain(&proxy.peer),
        ]
    }));
    let mut rows = table(&rows);
    lines.extend(rows.next());
    for (row, proxy) in rows.zip(proxies) {
        lines.push(row);
        let Some(nack) = &proxy.nack else { continue };
        for refused in &nack.resources {
            let source = refused.source.as_ref().map_or(String::new(), |s| format!(" ({s})"));
            let reason = refused.reason.as_ref().unwrap_or(&nack.reason);
            let line = format!("{} {}{source}: {reason}", nack.kind, refused.name);
            lines.push(format!("  {}", plain(&line)));
        }
        if nack.resources.is_empty() {
            lines.push(format!("  {}: {}", nack.kind, plain(&nack.reason)));
        }
    }
}

/// What clients report of the load they make: a line for each endpoint, as many as are looked through.
fn about_loads(loads: &[ServiceFigures], lines: &mut Vec<String>) {
    if loads.is_empty() {
        return;
    }
    let heads = ["LOAD", "ENDPOINT", "REQ/S", "ERR/S", "OPEN", "MB/S", "WEIGHT", "SAYS"];
    let mut rows = vec![heads.map(str::to_owned)];
    for service in loads {
        let dropped = service.dropped_per_second;
        rows.push([
            plain(&service.service),
            "all".to_owned(),
            format!("{:.1}", service.requests_per_second),
            format!("{:.1}", service.errors_per_second),
            service.in_progress.to_string(),
            format!("{:.1}", service.bytes_per_second / 1e6),
            String::new(),
            if dropped > 0.0 { format!("refused {dropped:.1}/s") } else { String::new() },
        ]);
        rows.extend(service.endpoints.iter().map(|of| {
            let says = of.metrics.iter().map(|(name, mean)| format!("{}={mean:.3}", plain(name)));
            let declared = match of.weight == of.declared_weight {
                true => String::new(),
                false => format!(" (declared {})", of.declared_weight),
            };
            [
                plain(&service.service),
                plain(&of.endpoint),
                format!("{:.1}", of.requests_per_second),
                format!("{:.1}", of.errors_per_second),
                of.in_progress.to_string(),
                format!("{:.1}", of.bytes_per_second / 1e6),
                format!("{}{declared}", of.weight),
                says.collect::<Vec<_>>().join(" "),
            ]
        }));
    }
    lines.push(String::new());
    let more = rows.len().saturating_sub(LOADS_SHOWN + 1);
    rows.truncate(LOADS_SHOWN + 1);
    lines.extend(table(&rows));
    if more > 0 {
        lines.push(format!("and {more} more; all of them: --format json"));
    }
}

/// Columns one below the other.
fn table<const N: usize>(rows: &[[String; N]]) -> impl Iterator<Item = String> {
    let width =
        |column: usize| rows.iter().map(|row: &[String; N]| row[column].chars().count()).max();
    let widths: [usize; N] = std::array::from_fn(|column| width(column).unwrap_or(0));
    rows.iter().map(move |row| {
        let pad = |(cell, width): (&String, &usize)| format!("{cell:<width$}  ");
        row.iter().zip(&widths).map(pad).collect()
    })
}

fn about_commit(commit: Option<&Commit>) -> String {
    commit.map_or_else(String::new, |commit| {
        format!("  \"{}\" by {}", plain(&commit.subject), plain(&commit.author))
    })
}

fn count(number: usize, what: &str) -> String {
    match (number, what) {
        (1, _) => format!("1 {what}"),
        (_, "proxy") => format!("{number} proxies"),
        (_, "address") => format!("{number} addresses"),
        _ => format!("{number} {what}s"),
    }
}

/// A time that has passed, in its largest unit.
fn ago(then: u64, now: u64) -> String {
    let seconds = now.saturating_sub(then) / 1000;
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3_600 => format!("{} min", seconds / 60),
        3_600..86_400 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use towpath_control_plane::status::{
        Current, EndpointFigures, Finding, Nack, Refused, SourceStatus,
    };
    use towpath_policies::model::ResourceKind;

    use super::*;

    const NOW: u64 = 1_800_000_000_000;

    fn commit(subject: &str, author: &str) -> Option<Commit> {
        let (subject, author) = (subject.to_owned(), author.to_owned());
        Some(Commit { id: "a".repeat(40), author, time: 0, subject })
    }

    fn proxy(node: &str, version: Option<&str>) -> Proxy {
        Proxy {
            node: node.into(),
            peer: "127.0.0.1:4242".into(),
            connected_unix_ms: NOW - 240_000,
            version: version.map(str::to_owned),
            in_sync: version == Some("3f2a1b9c0d1e77"),
            ..Proxy::default()
        }
    }

    fn example() -> Status {
        let refused = Refused {
            name: "gateway/edge/8080".into(),
            source: Some("gateways.yaml:3".into()),
            reason: None,
        };
        let mut refusing = proxy("worker\u{1b}[2J", Some("1a2b"));
        refusing.nack = Some(Nack {
            unix_ms: NOW,
            version: "3f2a1b9c0d1e77".into(),
            kind: ResourceKind::Listener,
            resources: vec![refused],
            reason: "address in use".into(),
        });
        Status {
            source: SourceStatus {
                location: "/srv/policies".into(),
                path: Some("mesh".into()),
                read_unix_ms: Some(NOW - 2_000),
                error: Some("host: cannot be reached\n  next: check the network".into()),
                ..SourceStatus::default()
            },
            current: Some(Current {
                version: "3f2a1b9c0d1e77".into(),
                commit: commit("Shift 10 %", "Ada"),
                branch: Some("main".into()),
                published_unix_ms: NOW - 240_000,
                listeners: 1,
                services: 5,
                ..Current::default()
            }),
            rejected: Some(Rejected {
                version: "9c8d7e6f5a4b33".into(),
                commit: commit("Break it", "Bob"),
                seen_unix_ms: NOW - 10_000,
                diagnostics: vec![Finding {
                    file: "routes.yaml".into(),
                    line: 12,
                    message: "no Service `etk`".into(),
                    help: Some("did you mean `etl`?".into()),
                }],
                left_out: 2,
            }),
            proxies: vec![proxy("edge-1", Some("3f2a1b9c0d1e77")), proxy("new", None), refusing],
            applied: vec![Applied {
                version: "3f2a1b9c0d1e77".into(),
                proxies: 4,
                acked: 2,
                nacked: 1,
                min_ms: Some(12.3),
                max_ms: Some(35.0),
                ..Applied::default()
            }],
            places: vec![UnknownPlace {
                place: "Lemuria".into(),
                source: "services.yaml:7".into(),
                error: "nobody knows it".into(),
            }],
            ..Status::default()
        }
    }

    #[test]
    fn the_page_says_it_all() {
        let expected = "\
source    /srv/policies  branch main  path mesh  (read 2 s ago)
ERROR     host: cannot be reached
          next: check the network
serving   3f2a1b9c0d1e  \"Shift 10 %\" by Ada  (since 4 min; 1 listener and 5 services)
REJECTED  9c8d7e6f5a4b  \"Break it\" by Bob  (seen 10 s ago; not served)
          routes.yaml:12: no Service `etk` (did you mean `etl`?)
          and 2 more
applied   3f2a1b9c0d1e  2 of 4 proxies in 12 to 35 ms, 1 waited for, 1 REFUSED
place     Lemuria (services.yaml:7): nobody knows it

NODE        CLUSTER  VERSION       STATE    CONNECTED  PEER
edge-1               3f2a1b9c0d1e  in sync  4 min      127.0.0.1:4242
new                  -             behind   4 min      127.0.0.1:4242
worker\u{fffd}[2J           1a2b          REFUSES  4 min      127.0.0.1:4242
  listener gateway/edge/8080 (gateways.yaml:3): address in use
";
        assert_eq!(text(&example(), NOW), expected);
    }

    #[test]
    fn loads_are_a_table_of_services_and_endpoints() {
        let endpoint = EndpointFigures {
            endpoint: "gpu-1".into(),
            requests_per_second: 2.54,
            errors_per_second: 0.1,
            in_progress: 3,
            bytes_per_second: 1.5e6,
            weight: 10,
            declared_weight: 100,
            metrics: [("towpath.goodput_factor".to_owned(), 0.1)].into(),
            ..EndpointFigures::default()
        };
        let load = ServiceFigures {
            service: "embed".into(),
            requests_per_second: 2.54,
            errors_per_second: 0.1,
            in_progress: 3,
            bytes_per_second: 1.5e6,
            dropped_per_second: 0.5,
            endpoints: vec![endpoint],
            ..ServiceFigures::default()
        };
        let page = text(&Status { loads: vec![load], ..Status::default() }, NOW);
        let expected = "
LOAD   ENDPOINT  REQ/S  ERR/S  OPEN  MB/S  WEIGHT             SAYS
embed  all       2.5    0.1    3     1.5                      refused 0.5/s
embed  gpu-1     2.5    0.1    3     1.5   10 (declared 100)  towpath.goodput_factor=0.100
";
        assert!(page.ends_with(expected), "{page}");
    }

    #[test]
    fn an_empty_control_plane_says_so() {
        let page = text(&Status::default(), NOW);
        assert!(page.contains("serving   nothing yet"), "{page}");
        assert!(page.ends_with("no proxy is connected\n"), "{page}");
    }

    #[test]
    fn times_are_told_in_their_largest_unit() {
        for (ms, expected) in [
            (0, "0 s"),
            (59_999, "59 s"),
            (60_000, "1 min"),
            (7_200_000, "2 h"),
            (172_800_000, "2 days"),
        ] {
            assert_eq!(ago(NOW - ms, NOW), expected);
        }
        assert_eq!(ago(NOW + 5, NOW), "0 s");
    }
}
