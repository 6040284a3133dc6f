//! What the command transferred: a table for people, JSON for programs.

use std::{
    convert::Infallible,
    fmt::{self, Write as _},
    path::PathBuf,
    str::FromStr,
    time::Duration,
};

use serde::Serialize;
use towpath_proxy::{Ledger, Line, Sum};

use super::tell;

/// Where it goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Summary {
    Table,
    Json,
    Off,
    File(PathBuf),
}

/// What is told when the command has ended.
#[derive(Debug, Serialize)]
pub(super) struct Account {
    /// As a shell would say it.
    status: u8,
    /// How it came to its sidecar.
    network: &'static str,
    /// Whether it had a mesh's names to reach.
    #[serde(skip)]
    meshed: bool,
    seconds: f64,
    total: Sum,
    destinations: Vec<Line>,
}

/// Destinations that a person is shown.
const MOST_SHOWN: usize = 20;

impl FromStr for Summary {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(match text {
            "table" => Self::Table,
            "json" => Self::Json,
            "off" => Self::Off,
            path => Self::File(path.into()),
        })
    }
}

impl Account {
    pub(super) fn of(
        ledger: &Ledger,
        network: &'static str,
        meshed: bool,
        took: Duration,
        status: u8,
    ) -> Self {
        Self {
            status,
            network,
            meshed,
            seconds: took.as_millis() as f64 / 1000.0,
            total: ledger.total(),
            destinations: ledger.lines(),
        }
    }

    /// Writes it where it is wanted. That this fails is said, and changes nothing.
    pub(super) fn write(&self, to: &Summary) {
        match to {
            Summary::Off => {}
            Summary::Table => tell(&self.to_string()),
            Summary::Json => tell(&self.json()),
            Summary::File(path) => {
                if let Err(error) = std::fs::write(path, self.json()) {
                    let path = path.display();
                    tell(&format!("towpath: cannot write the summary {path}: {error}\n"));
                }
            }
        }
    }

    fn json(&self) -> String {
        let text = serde_json::to_string_pretty(self).unwrap_or_default();
        format!("{text}\n")
    }
}

impl fmt::Display for Account {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Sum { requests, failed, retries, bytes_out, bytes_in, .. } = self.total;
        if requests == 0 {
            writeln!(f, "towpath: nothing went through the sidecar in {:.1} s", self.seconds)?;
            if self.meshed && self.network == "namespace" && self.status != 0 {
                writeln!(
                    f,
                    "  were they names that only the mesh knows? they resolve with --network variables"
                )?;
            }
            return Ok(());
        }
        writeln!(
            f,
            "towpath: {requests} requests, {} out, {} in, {retries} retries, {failed} failed, {:.1} s",
            bytes(bytes_out),
            bytes(bytes_in),
            self.seconds
        )?;
        let name = |line: &Line| match (&*line.destination, line.service.as_deref()) {
            ("", _) => "others".to_owned(),
            (destination, None) => destination.to_owned(),
            (destination, Some(service)) => format!("{destination} ({service})"),
        };
        let shown: Vec<_> = self.destinations.iter().take(MOST_SHOWN).collect();
        let width = shown.iter().map(|line| name(line).chars().count()).max().unwrap_or(0).max(11);
        let mut table = String::new();
        writeln!(
            table,
            "  {:<width$}  {:>8}  {:>7}  {:>6}  {:>10}  {:>10}  {:>8}",
            "destination", "requests", "retries", "failed", "out", "in", "seconds"
        )?;
        for line in &shown {
            let Sum { requests, failed, retries, bytes_out, bytes_in, time } = line.sum;
            writeln!(
                table,
                "  {:<width$}  {requests:>8}  {retries:>7}  {failed:>6}  {:>10}  {:>10}  {:>8.1}",
                name(line),
                bytes(bytes_out),
                bytes(bytes_in),
                time.as_secs_f64()
            )?;
        }
        if let Some(more) = self.destinations.len().checked_sub(MOST_SHOWN + 1) {
            writeln!(table, "  and {} more: --summary FILE has them all", more + 1)?;
        }
        f.write_str(&table)
    }
}

/// A size as people read it.
fn bytes(count: u64) -> String {
    let unit = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut size = count as f64;
    let mut at = 0;
    while size >= 1024.0 && at + 1 < unit.len() {
        size /= 1024.0;
        at += 1;
    }
    if at == 0 { format!("{count} B") } else { format!("{size:.1} {}", unit[at]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(destination: &str, service: Option<&str>, bytes_out: u64) -> Line {
        let time = Duration::from_millis(1250);
        let sum = Sum { requests: 2, failed: 1, retries: 3, bytes_out, bytes_in: 512, time };
        Line { destination: destination.into(), service: service.map(Into::into), sum }
    }

    #[test]
    fn a_person_is_shown_what_went_where() {
        let destinations =
            vec![line("us-east-1", Some("etl"), 5 << 20), line("b.test:80", None, 0)];
        let total =
            Sum { requests: 4, failed: 2, retries: 6, bytes_out: 5 << 20, ..Sum::default() };
        let (network, meshed) = ("variables", true);
        let account = Account { status: 3, network, meshed, seconds: 2.34, total, destinations };
        let expected = "\
towpath: 4 requests, 5.0 MiB out, 0 B in, 6 retries, 2 failed, 2.3 s
  destination      requests  retries  failed         out          in   seconds
  us-east-1 (etl)         2        3       1     5.0 MiB       512 B       1.2
  b.test:80               2        3       1         0 B       512 B       1.2
";
        assert_eq!(account.to_string(), expected);
        let json: serde_json::Value = serde_json::from_str(&account.json()).unwrap();
        assert_eq!(json["status"], 3);
        assert_eq!(json["destinations"][0]["bytes_out"], 5 << 20);
        assert_eq!(json["destinations"][1]["service"], serde_json::Value::Null);
    }

    #[test]
    fn who_failed_without_a_connection_in_a_namespace_is_asked_for_names_of_the_mesh() {
        let hint =
            "  were they names that only the mesh knows? they resolve with --network variables\n";
        for (network, meshed, status, hinted) in [
            ("namespace", true, 6, true),
            ("namespace", true, 0, false),
            ("namespace", false, 6, false),
            ("variables", true, 6, false),
        ] {
            let (total, destinations) = (Sum::default(), Vec::new());
            let account = Account { status, network, meshed, seconds: 0.1, total, destinations };
            let expected = format!(
                "towpath: nothing went through the sidecar in 0.1 s\n{}",
                if hinted { hint } else { "" }
            );
            assert_eq!(account.to_string(), expected, "{network} {meshed} {status}");
        }
    }

    #[test]
    fn sizes_are_told_in_the_unit_that_fits() {
        for (count, expected) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (3 << 40, "3.0 TiB"),
            (5 << 50, "5120.0 TiB"),
        ] {
            assert_eq!(bytes(count), expected);
        }
    }
}
