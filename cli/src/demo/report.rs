//! The end of the story: the proof in words, a table of what the mesh did, and both as JSON.

use std::{path::Path, time::Duration};

use anyhow::Context;
use serde_json::{Value, json};

use super::{
    admin::Metrics,
    ledger::{Counts, Details},
    proof::Proof,
    show::{Show, Tone, count},
    source::Cargo,
    story::Chronicle,
    survivor::Survivor,
};
use crate::etl::{
    client::Protocol,
    q1::{Q1, decimal},
};

/// Everything that is reported.
pub(super) struct Report<'a> {
    pub(super) cargo: Cargo,
    pub(super) quick: bool,
    pub(super) proof: &'a Proof,
    pub(super) survivor: &'a Survivor,
    pub(super) chronicle: &'a Chronicle,
    pub(super) counts: Counts,
    pub(super) details: &'a Details,
    pub(super) gateway: &'a Metrics,
    /// Time the freight took.
    pub(super) carried: Duration,
    /// Whole time so far.
    pub(super) took: Duration,
}

/// A row of a table.
type Line = (String, String);

impl Report<'_> {
    /// Whether everything that was promised held.
    pub(super) fn good(&self) -> bool {
        self.proof.holds() && self.counts.rows == self.proof.rows_in && self.survivor.holds()
    }

    /// Prints proof and table.
    pub(super) fn print(&self, show: &Show) {
        show.print("");
        show.print("What was loaded, read back from Parquet, against the source");
        print_lines(show, &self.proof_lines());
        show.print("");
        show.print("TPC-H Q1 over what was loaded");
        for line in q1_lines(&self.proof.line_items.1.q1) {
            show.print(&format!("  {line}"));
        }
        show.print("");
        show.print("What the mesh did");
        print_lines(show, &self.mesh_lines());
        if self.counts.failures > 0 {
            show.print("  failures that clients saw, and repeated:");
            for note in &self.details.notes {
                show.print(&format!("    {note}"));
            }
        }
        show.print("");
        if self.good() {
            show.say(Tone::Good, "proven: nothing lost, nothing doubled, nothing changed");
        } else {
            show.say(Tone::Bad, "NOT PROVEN: see the lines above that are not equal");
        }
    }

    fn proof_lines(&self) -> Vec<Line> {
        let proof = self.proof;
        let equal = |yes: bool| if yes { "equal" } else { "NOT EQUAL" };
        let digests = |source: String, loaded: String| {
            format!("{source} = {loaded}  {}", equal(source == loaded))
        };
        let (items_in, items) = &proof.line_items;
        let (orders_in, orders) = &proof.orders;
        let mut lines = vec![
            line("rows in the source", count(proof.rows_in)),
            line("rows acknowledged", count(self.counts.rows)),
            line(
                "rows loaded",
                format!("{} in {} files", count(proof.rows_loaded), count(proof.files)),
            ),
            line(
                "lost, doubled, foreign",
                format!("{}, {}, {}", proof.rows_lost, proof.rows_duplicated, proof.rows_foreign),
            ),
            line(
                "digest of lineitem",
                digests(items_in.digest.to_string(), items.digest.to_string()),
            ),
            line(
                "digest of orders",
                digests(orders_in.digest.to_string(), orders.digest.to_string()),
            ),
            line("Q1 of source, store, workers", equal(proof.q1_equal()).to_owned()),
        ];
        lines.extend(self.survivor.lines().map(|(name, value)| line(name, value)));
        lines
    }

    fn mesh_lines(&self) -> Vec<Line> {
        let mut lines = vec![
            line("picks by region, at first", self.chronicle.before.to_string()),
            line("picks by region, shifted", self.chronicle.after.to_string()),
            line("tries repeated by the gateway", by_reason(self.gateway, "towpath_retries_total")),
            line("workers ejected", by_reason(self.gateway, "towpath_ejections_total")),
            line("failures that clients saw", count(self.counts.failures)),
            line(
                "batches loaded by an earlier try",
                match self.counts.already {
                    0 => "0".to_owned(),
                    some => format!("{some} (whose answer was lost; loaded once)"),
                },
            ),
            line(
                "carried",
                format!(
                    "{} MB in {} batches, {:.1} s: {:.1} MB/s",
                    megabytes(self.counts.bytes),
                    count(self.counts.batches),
                    self.carried.as_secs_f64(),
                    self.goodput()
                ),
            ),
        ];
        for (protocol, lane) in &self.details.lanes {
            lines.push(line(
                &format!("small batches over {protocol}"),
                format!(
                    "{:>5}   p50 {:>7.1} ms   p99 {:>7.1} ms",
                    count(lane.batches()),
                    lane.millis(0.5),
                    lane.millis(0.99)
                ),
            ));
        }
        for upload in &self.details.uploads {
            lines.push(line(
                &format!("large upload over {}", upload.protocol),
                format!(
                    "{} MB in {:.1} s to {}: {:.1} MB/s{}",
                    megabytes(upload.bytes),
                    upload.took.as_secs_f64(),
                    upload.region,
                    upload.bytes as f64 / 1e6 / upload.took.as_secs_f64().max(1e-6),
                    if upload.tries > 1 {
                        format!(", try {}", upload.tries)
                    } else {
                        String::new()
                    }
                ),
            ));
        }
        for times in &self.chronicle.commits {
            lines.push(line(
                &format!("commit {} applied", times.commit.short()),
                format!(
                    "{}every proxy {:.0} ms   ({})",
                    times.gateway.map_or_else(String::new, |gateway| format!(
                        "gateway {:.0} ms, ",
                        gateway.as_secs_f64() * 1e3
                    )),
                    times.all.as_secs_f64() * 1e3,
                    times.commit.subject
                ),
            ));
        }
        lines
    }

    /// MB a second, acknowledged.
    fn goodput(&self) -> f64 {
        self.counts.bytes as f64 / 1e6 / self.carried.as_secs_f64().max(1e-6)
    }

    /// Writes the JSON file.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn write(&self, path: &Path) -> anyhow::Result<()> {
        let mut text = serde_json::to_string_pretty(&self.json())?;
        text.push('\n');
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
    }

    fn json(&self) -> Value {
        let proof = self.proof;
        let by = |name, label| json!(self.gateway.by(name, label));
        json!({
            "ok": self.good(),
            "scale": self.cargo.scale,
            "seed": self.cargo.seed,
            "quick": self.quick,
            "rows_in": proof.rows_in,
            "rows_acknowledged": self.counts.rows,
            "rows_loaded": proof.rows_loaded,
            "rows_duplicated": proof.rows_duplicated,
            "rows_lost": proof.rows_lost,
            "rows_foreign": proof.rows_foreign,
            "digests_equal": proof.digests_equal(),
            "q1_equal": proof.q1_equal(),
            "survivor": self.survivor.json(),
            "digests": {
                "lineitem": proof.line_items.1.digest.to_string(),
                "orders": proof.orders.1.digest.to_string(),
            },
            "q1": q1_json(&proof.line_items.1.q1),
            "files": proof.files,
            "file_bytes": proof.file_bytes,
            "batches": self.counts.batches,
            "bytes": self.counts.bytes,
            "client_failures": self.counts.failures,
            "client_failure_notes": self.details.notes,
            "already_loaded": self.counts.already,
            "retries": self.gateway.sum("towpath_retries_total", &[]),
            "retries_by_reason": by("towpath_retries_total", "reason"),
            "ejections": self.gateway.sum("towpath_ejections_total", &[]),
            "ejections_by_endpoint": by("towpath_ejections_total", "endpoint"),
            "picks_by_region": by("towpath_picks_total", "region"),
            "picks_by_endpoint": by("towpath_picks_total", "endpoint"),
            "picks_percent_before_shift": self.chronicle.before.regions,
            "picks_percent_after_shift": self.chronicle.after.regions,
            "traffic_shifted": self.chronicle.shifted(),
            "batches_by_region": self.details.regions,
            "protocols": self.protocols(),
            "uploads": self.uploads(),
            "commits": self.commits(),
            "events": self.chronicle.events,
            "goodput_mb_s": self.goodput(),
            "carried_s": self.carried.as_secs_f64(),
            "proof_s": proof.took.as_secs_f64(),
            "took_s": self.took.as_secs_f64(),
        })
    }

    fn protocols(&self) -> Value {
        let lane = |protocol: &Protocol| {
            let lane = self.details.lanes.get(protocol)?;
            let figures = json!({
                "batches": lane.batches(), "p50_ms": lane.millis(0.5), "p99_ms": lane.millis(0.99),
            });
            Some((protocol.name().to_owned(), figures))
        };
        Value::Object(Protocol::ALL.iter().filter_map(lane).collect())
    }

    fn uploads(&self) -> Vec<Value> {
        let upload = |upload: &super::ledger::Upload| {
            json!({
                "batch": upload.batch, "protocol": upload.protocol.name(), "bytes": upload.bytes,
                "rows": upload.rows, "seconds": upload.took.as_secs_f64(), "tries": upload.tries,
                "region": upload.region,
            })
        };
        self.details.uploads.iter().map(upload).collect()
    }

    fn commits(&self) -> Vec<Value> {
        let commit = |times: &super::story::CommitTimes| {
            json!({
                "commit": times.commit.id, "subject": times.commit.subject,
                "gateway_s": times.gateway.map(|gateway| gateway.as_secs_f64()),
                "all_s": times.all.as_secs_f64(),
            })
        };
        self.chronicle.commits.iter().map(commit).collect()
    }
}

fn q1_lines(q1: &Q1) -> Vec<String> {
    let head = format!(
        "{:4} {:>14} {:>18} {:>20} {:>22} {:>8} {:>10} {:>8} {:>9}",
        "",
        "quantity",
        "base price",
        "discounted",
        "charge",
        "avg qty",
        "avg price",
        "avg disc",
        "rows"
    );
    let group = |(flag, status, sums): (char, char, &crate::etl::q1::Sums)| {
        format!(
            "{flag} {status}  {:>14} {:>18} {:>20} {:>22} {:>8} {:>10} {:>8} {:>9}",
            decimal(sums.quantity, 2),
            decimal(sums.base_price, 2),
            decimal(sums.discounted_price, 4),
            decimal(sums.charge, 6),
            decimal(sums.average(sums.quantity), 2),
            decimal(sums.average(sums.base_price), 2),
            decimal(sums.average(sums.discount), 2),
            sums.count
        )
    };
    std::iter::once(head).chain(q1.lines().map(group)).collect()
}

fn q1_json(q1: &Q1) -> Vec<Value> {
    q1.lines()
        .map(|(flag, status, sums)| {
            json!({
                "l_returnflag": flag, "l_linestatus": status,
                "sum_qty": decimal(sums.quantity, 2),
                "sum_base_price": decimal(sums.base_price, 2),
                "sum_disc_price": decimal(sums.discounted_price, 4),
                "sum_charge": decimal(sums.charge, 6),
                "count_order": sums.count as u64,
            })
        })
        .collect()
}

/// `12 (reset 8, status 4)`.
fn by_reason(metrics: &Metrics, name: &str) -> String {
    let total = metrics.sum(name, &[]);
    let reasons: Vec<String> = metrics
        .by(name, "reason")
        .into_iter()
        .filter(|(_, count)| *count > 0.0)
        .map(|(reason, count)| format!("{reason} {count}"))
        .collect();
    if reasons.is_empty() {
        format!("{total}")
    } else {
        format!("{total} ({})", reasons.join(", "))
    }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}

fn line(name: &str, value: String) -> Line {
    (name.to_owned(), value)
}

fn print_lines(show: &Show, lines: &[Line]) {
    for (name, value) in lines {
        show.print(&format!("  {name:<34} {value}"));
    }
}
