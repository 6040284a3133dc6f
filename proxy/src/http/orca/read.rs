//! A report as it stands in header fields: found, and read as far as it makes sense.

use http::HeaderMap;
use serde_json::{Map, Value};
use towpath_xds::orca::{GOODPUT_FACTOR, JOULES_PER_BYTE, LoadReport};

use super::{METRICS, METRICS_BIN};
use crate::{http::base64, upstream::tally::Figures};

/// A report that was not read yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found<'a> {
    /// `cpu_utilization=0.3, named_metrics.queue=12`; Envoy takes a colon for an equals sign too.
    Text(&'a str),
    /// The message in JSON.
    Json(&'a str),
    /// The message, in base64.
    Binary(&'a str),
}

/// A longer report is none.
pub(super) const MAX_BYTES: usize = 4096;
pub(super) const NAMED: &str = "named_metrics.";

/// The report among these fields: gRPC's field goes before the other, as with Envoy.
pub(super) fn find(headers: &HeaderMap) -> Option<Found<'_>> {
    let text = |name| {
        let value: &http::HeaderValue = headers.get(name)?;
        value.to_str().ok().filter(|text| text.len() <= MAX_BYTES)
    };
    match text(&METRICS_BIN) {
        // gRPC joins several values of a binary field by commas.
        Some(binary) => Some(Found::Binary(binary.split(',').next().unwrap_or(binary).trim())),
        None => found(text(&METRICS)?.trim()),
    }
}

/// The format is said by the first word. Some servers leave it out.
fn found(value: &str) -> Option<Found<'_>> {
    let (word, rest) = value.split_once(' ').unwrap_or((value, ""));
    match word {
        "TEXT" => Some(Found::Text(rest)),
        "JSON" => Some(Found::Json(rest)),
        "BIN" => Some(Found::Binary(rest.trim())),
        _ if word.starts_with('{') => Some(Found::Json(value)),
        _ if word.contains(['=', ':']) => Some(Found::Text(value)),
        _ => None,
    }
}

impl Found<'_> {
    /// All of it, without what cannot be; `None` when it is none.
    pub(super) fn report(self) -> Option<LoadReport> {
        match self {
            Self::Text(text) => Some(of_text(text)),
            Self::Json(json) => of_json(json),
            Self::Binary(binary) => LoadReport::from_bytes(&base64::decode(binary.as_bytes())?),
        }
    }

    /// What counts for us, as it was sent. Allocates nothing where it comes as text, as most
    /// do.
    pub(super) fn figures(self) -> Figures {
        let Self::Text(text) = self else {
            return self.report().as_ref().map_or(Figures::default(), Figures::of);
        };
        let mut figures = Figures::default();
        for (name, value) in metrics(text) {
            match name {
                "application_utilization" => figures.application = Figures::said(value),
                "cpu_utilization" => figures.cpu = Figures::said(value),
                _ => match name.strip_prefix(NAMED) {
                    Some(GOODPUT_FACTOR) => figures.goodput_factor = Some(value),
                    Some(JOULES_PER_BYTE) => figures.joules_per_byte = Some(value),
                    _ => {}
                },
            }
        }
        figures
    }
}

fn metrics(text: &str) -> impl Iterator<Item = (&str, f64)> {
    text.split(',').filter_map(|metric| {
        let (name, value) = metric.split_once(['=', ':'])?;
        Some((name.trim(), value.trim().parse().ok()?))
    })
}

fn of_text(text: &str) -> LoadReport {
    let mut report = LoadReport::default();
    for (name, value) in metrics(text) {
        set(&mut report, name, value);
    }
    report.keep_possible();
    report
}

fn set(report: &mut LoadReport, name: &str, value: f64) {
    let place = match name {
        "cpu_utilization" => &mut report.cpu_utilization,
        "mem_utilization" => &mut report.mem_utilization,
        // What it was called before it could be a fraction.
        "rps_fractional" | "rps" => &mut report.rps_fractional,
        "eps" => &mut report.eps,
        "application_utilization" => &mut report.application_utilization,
        _ => {
            let (map, name) = match name.split_once('.') {
                Some(("named_metrics", name)) => (&mut report.named_metrics, name),
                Some(("utilization", name)) => (&mut report.utilization, name),
                Some(("request_cost", name)) => (&mut report.request_cost, name),
                _ => return,
            };
            map.insert(name.to_owned(), value);
            return;
        }
    };
    *place = value;
}

/// Fields by either of the names that protobuf has for them in JSON, numbers as such or as strings.
fn of_json(json: &str) -> Option<LoadReport> {
    let fields: Map<String, Value> = serde_json::from_str(json).ok()?;
    let mut report = LoadReport::default();
    for (name, value) in &fields {
        let name = snake(name);
        match value {
            Value::Object(map) => {
                for (inner, value) in map {
                    if let Some(value) = number(value) {
                        set(&mut report, &format!("{name}.{inner}"), value);
                    }
                }
            }
            _ if name.contains('.') => {}
            _ => {
                if let Some(value) = number(value) {
                    set(&mut report, &name, value);
                }
            }
        }
    }
    report.keep_possible();
    Some(report)
}

fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.parse().ok())
}

fn snake(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 2);
    for letter in name.chars() {
        if letter.is_ascii_uppercase() {
            snake.push('_');
        }
        snake.push(letter.to_ascii_lowercase());
    }
    snake
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn fields(name: &http::HeaderName, value: &[u8]) -> HeaderMap {
        let value = HeaderValue::from_bytes(value).unwrap();
        HeaderMap::from_iter([(name.clone(), value)])
    }

    fn read(value: &str) -> Option<LoadReport> {
        find(&fields(&METRICS, value.as_bytes()))?.report()
    }

    fn whole() -> LoadReport {
        LoadReport {
            cpu_utilization: 0.3,
            mem_utilization: 0.8,
            rps_fractional: 10.0,
            eps: 1.0,
            application_utilization: 1.25,
            named_metrics: [("custom.util".into(), 0.4)].into(),
            utilization: [("disk".into(), 0.5)].into(),
            request_cost: [("bytes".into(), 3487.0)].into(),
            ..LoadReport::default()
        }
    }

    #[test]
    fn all_encodings_say_the_same() {
        let binary = base64::encode(&whole().to_bytes());
        let text = "cpu_utilization=0.3, mem_utilization=0.8,rps_fractional=10.0 , eps=1, \
            application_utilization=1.25, named_metrics.custom.util=0.4, utilization.disk=0.5, \
            request_cost.bytes=3487";
        let json = r#"{"cpu_utilization": 0.3, "mem_utilization": 0.8, "rps_fractional": 10,
            "eps": "1", "application_utilization": 1.25, "named_metrics": {"custom.util": 0.4},
            "utilization": {"disk": 0.5}, "request_cost": {"bytes": 3487}}"#
            .replace('\n', "");
        let camel = r#"{"cpuUtilization": 0.3, "memUtilization": 0.8, "rpsFractional": 10,
            "eps": 1, "applicationUtilization": 1.25, "namedMetrics": {"custom.util": 0.4},
            "utilization": {"disk": 0.5}, "requestCost": {"bytes": 3487}}"#
            .replace('\n', "");
        for value in [
            format!("TEXT {text}"),
            format!("TEXT {}", text.replace('=', ":")),
            text.to_owned(),
            format!("JSON {json}"),
            format!("JSON {camel}"),
            json,
            format!("BIN {binary}"),
            format!("BIN {}", binary.trim_end_matches('=')),
        ] {
            assert_eq!(read(&value), Some(whole()), "{value}");
            let figures = find(&fields(&METRICS, value.as_bytes())).unwrap().figures();
            assert_eq!((figures.application, figures.cpu), (Some(1.25), Some(0.3)), "{value}");
        }
        for value in [binary.clone(), format!("{binary},AAAA")] {
            let mut fields = fields(&METRICS_BIN, value.as_bytes());
            fields.insert(METRICS, HeaderValue::from_static("TEXT eps=7"));
            assert_eq!(find(&fields).unwrap().report(), Some(whole()), "{value}");
        }
    }

    #[test]
    fn what_counts_is_found_and_nonsense_is_none() {
        let long = format!("TEXT {}named_metrics.towpath.goodput_factor=0.25", "a=1,".repeat(2000));
        for (value, factor) in [
            ("TEXT cpu_utilization=0.3, named_metrics.towpath.goodput_factor=0.25", Some(0.25)),
            ("TEXT named_metrics.towpath.goodput_factor=0", Some(0.0)),
            ("TEXT named_metrics.other=0.25", None),
            ("TEXT towpath.goodput_factor=0.25", None),
            ("TEXT named_metrics.towpath.goodput_factor=much", None),
            (r#"JSON {"named_metrics": {"towpath.goodput_factor": 0.5}}"#, Some(0.5)),
            (r#"JSON {"namedMetrics": {"towpath.goodput_factor": 1}}"#, Some(1.0)),
            (r#"JSON {"namedMetrics": {"towpath.goodput_factor": "0.5"}}"#, Some(0.5)),
            (r#"JSON {"named_metrics": {"towpath.goodput_factor": true}}"#, None),
            (r#"JSON {"named_metrics.towpath.goodput_factor": 0.5}"#, None),
            (r#"JSON {"named_metrics": 1}"#, None),
            ("JSON [1]", None),
            ("JSON {", None),
            ("BIN", None),
            ("BIN !", None),
            ("BIN AAAA", None),
            ("XML <report/>", None),
            ("TEXT", None),
            ("", None),
            (&long, None),
        ] {
            let fields = fields(&METRICS, value.as_bytes());
            assert_eq!(find(&fields).and_then(|f| f.figures().goodput_factor), factor, "{value:?}");
        }
        let text = "TEXT named_metrics.towpath.joules_per_byte=2e-6";
        let json = r#"JSON {"named_metrics": {"towpath.joules_per_byte": 2e-6}}"#;
        for value in [text, json] {
            let figures = find(&fields(&METRICS, value.as_bytes())).map(Found::figures).unwrap();
            assert_eq!(figures.joules_per_byte, Some(2e-6), "{value:?}");
        }
        assert_eq!(find(&HeaderMap::new()), None);
    }

    proptest! {
        #[test]
        fn no_bytes_are_more_than_a_report_of_numbers_that_can_be(
            name in prop::sample::select(vec![METRICS, METRICS_BIN]),
            format in prop::sample::select(&["TEXT ", "JSON ", "BIN ", ""][..]),
            rest in prop_oneof![
                prop::collection::vec(prop_oneof![32u8..127, 128u8..=255], 0..200),
                r"(cpu_utilization|eps|named_metrics\.a|utilization\.b)[=:](-?[0-9]{1,3}|NaN|inf|1e999)"
                    .prop_map(String::into_bytes),
                r#"\{"(eps|named_metrics|utilization)": ?(-?[0-9e]{1,5}|\{"a":-?[0-9]{1,4}\})\}"#
                    .prop_map(String::into_bytes),
                prop::collection::vec(any::<u8>(), 0..60)
                    .prop_map(|bytes| base64::encode(&bytes).into_bytes()),
            ],
        ) {
            let value = [format.as_bytes(), &rest].concat();
            let fields = fields(&name, &value);
            let Some(found) = find(&fields) else { return Ok(()) };
            let _ = found.figures();
            if let Some(report) = found.report() {
                let mut again = report.clone();
                again.keep_possible();
                prop_assert_eq!(again, report);
            }
        }
    }
}
