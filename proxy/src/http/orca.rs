//! Load reports that endpoints send along with their responses (ORCA, gRFC A51;
//! `xds.data.orca.v3.OrcaLoadReport`).

use http::{HeaderMap, HeaderName};
use serde_json::Value;

use crate::upstream::{admission::Ticket, now_ms};

/// What a report says that is made use of here.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Report {
    /// The share of its goodput that the endpoint has, from 0 to 1, by its accelerators' health:
    /// `named_metrics.towpath.goodput_factor`. As it was sent: it may be anything.
    pub(super) goodput_factor: Option<f64>,
}

const HEADER: HeaderName = HeaderName::from_static("endpoint-load-metrics");
const GOODPUT_FACTOR: &str = "towpath.goodput_factor";
/// A longer report is none.
const MAX_BYTES: usize = 4096;

/// Lets a report count where completion times are predicted.
pub(super) fn heed(headers: &mut HeaderMap, ticket: &Ticket) {
    if ticket.service.completion.is_some()
        && let Some(factor) = take(headers).and_then(|report| report.goodput_factor)
    {
        ticket.endpoint.live.reported(factor, now_ms());
    }
}

/// Takes the report out of a response's headers: it is for who picks the endpoint, and says nothing
/// of us to those before us.
fn take(headers: &mut HeaderMap) -> Option<Report> {
    let value = headers.remove(HEADER)?;
    let text = value.to_str().ok().filter(|text| text.len() <= MAX_BYTES)?;
    let (format, report) = text.split_once(' ')?;
    match format {
        "TEXT" => Some(read_text(report)),
        "JSON" => read_json(report),
        _ => None,
    }
}

/// `name=number, named_metrics.name=number`
fn read_text(report: &str) -> Report {
    let metrics = report.split(',').filter_map(|metric| metric.trim().split_once('='));
    let mut named = metrics.filter_map(|(name, value)| {
        let name = name.trim().strip_prefix("named_metrics.")?;
        Some((name, value.trim().parse().ok()?))
    });
    let factor = named.find(|(name, _)| *name == GOODPUT_FACTOR);
    Report { goodput_factor: factor.map(|(_, value)| value) }
}

fn read_json(report: &str) -> Option<Report> {
    let report: Value = serde_json::from_str(report).ok()?;
    let named = report.get("named_metrics").or_else(|| report.get("namedMetrics"));
    Some(Report { goodput_factor: named.and_then(|named| named.get(GOODPUT_FACTOR)?.as_f64()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_read_and_stripped_and_nonsense_is_none() {
        for (value, factor) in [
            ("TEXT cpu_utilization=0.3, named_metrics.towpath.goodput_factor=0.25", Some(0.25)),
            ("TEXT named_metrics.towpath.goodput_factor=0", Some(0.0)),
            ("TEXT named_metrics.other=0.25", None),
            ("TEXT named_metrics.towpath.goodput_factor=much", None),
            (r#"JSON {"named_metrics": {"towpath.goodput_factor": 0.5}}"#, Some(0.5)),
            (r#"JSON {"namedMetrics": {"towpath.goodput_factor": 1}}"#, Some(1.0)),
            (r#"JSON {"named_metrics": {"towpath.goodput_factor": "1"}}"#, None),
            (r#"JSON {"named_metrics": 1}"#, None),
            ("JSON {", None),
            ("XML <report/>", None),
            ("TEXT", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(HEADER, value.parse().unwrap());
            assert_eq!(take(&mut headers).and_then(|r| r.goodput_factor), factor, "{value:?}");
            assert!(headers.is_empty(), "{value:?}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(HEADER, http::HeaderValue::from_bytes(b"TEXT \xff").unwrap());
        assert_eq!(take(&mut headers), None);
        assert_eq!(take(&mut headers), None, "there is none");
    }
}
