//! Asks admin endpoints, and reads Prometheus text.

use std::{collections::BTreeMap, net::SocketAddr, time::Duration};

use anyhow::{Context, ensure};
use bytes::Bytes;
use http::{Method, Request, StatusCode, header::HOST};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

const DEADLINE: Duration = Duration::from_secs(3);
const MAX_BYTES: usize = 16 << 20;

/// `GET` of a path; any answer but success is an error.
pub(super) async fn get(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let (status, text) = ask(Method::GET, address, path).await?;
    ensure!(status.is_success(), "GET http://{address}{path}: {status}: {}", text.trim());
    Ok(text)
}

/// `POST` without a body.
pub(super) async fn post(address: SocketAddr, path: &str) -> anyhow::Result<(StatusCode, String)> {
    ask(Method::POST, address, path).await
}

async fn ask(
    method: Method,
    address: SocketAddr,
    path: &str,
) -> anyhow::Result<(StatusCode, String)> {
    let what = format!("{method} http://{address}{path}");
    tokio::time::timeout(DEADLINE, exchange(method, address, path))
        .await
        .with_context(|| format!("{what}: no answer in {} s", DEADLINE.as_secs()))?
        .with_context(|| what)
}

async fn exchange(
    method: Method,
    address: SocketAddr,
    path: &str,
) -> anyhow::Result<(StatusCode, String)> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(HOST, address.to_string())
        .body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_BYTES).collect().await;
    connection.abort();
    let body = body.map_err(anyhow::Error::from_boxed)?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// The samples of one scrape.
#[derive(Clone, Debug, Default)]
pub(super) struct Metrics {
    samples: Vec<Sample>,
}

#[derive(Clone, Debug, PartialEq)]
struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Metrics {
    /// Scrapes a proxy.
    pub(super) async fn of(address: SocketAddr) -> anyhow::Result<Self> {
        Ok(Self::parse(&get(address, "/metrics").await?))
    }

    fn parse(text: &str) -> Self {
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        Self { samples: lines.filter_map(sample).collect() }
    }

    /// The sum of a metric over all series that carry these labels.
    pub(super) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        self.named(name)
            .filter(|sample| labels.iter().all(|(l, v)| sample.label(l) == Some(v)))
            // not `sum`, whose zero is negative
            .fold(0.0, |sum, sample| sum + sample.value)
    }

    /// The sums of a metric by the values of one label.
    pub(super) fn by(&self, name: &str, label: &str) -> BTreeMap<String, f64> {
        let mut sums = BTreeMap::new();
        for sample in self.named(name) {
            let key = sample.label(label).unwrap_or_default().to_owned();
            *sums.entry(key).or_default() += sample.value;
        }
        sums
    }

    /// The values of a label among series whose value is not 0.
    pub(super) fn label_of(&self, name: &str, label: &str) -> Option<&str> {
        self.named(name).find(|sample| sample.value != 0.0)?.label(label)
    }

    fn named(&self, name: &str) -> impl Iterator<Item = &Sample> {
        self.samples.iter().filter(move |sample| sample.name == name)
    }
}

impl Sample {
    fn label(&self, name: &str) -> Option<&str> {
        self.labels.iter().find(|(label, _)| label == name).map(|(_, value)| value.as_str())
    }
}

/// Reads `name{label="value",…} number`.
fn sample(line: &str) -> Option<Sample> {
    let (series, value) = line.trim().rsplit_once(' ')?;
    let value = value.parse().ok()?;
    let (name, mut rest) = match series.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}')?),
        None => (series, ""),
    };
    let mut labels = Vec::new();
    while !rest.is_empty() {
        let (label, quoted) = rest.split_once("=\"")?;
        let mut text = String::new();
        let mut chars = quoted.char_indices();
        let end = loop {
            match chars.next()? {
                (at, '"') => break at,
                (_, '\\') => match chars.next()?.1 {
                    'n' => text.push('\n'),
                    other => text.push(other),
                },
                (_, other) => text.push(other),
            }
        };
        labels.push((label.to_owned(), text));
        rest = quoted[end + 1..].trim_start_matches(',');
    }
    Some(Sample { name: name.to_owned(), labels, value })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prometheus_text_is_read() {
        let metrics = Metrics::parse(
            "# HELP picks Times.\n# TYPE picks counter\n\
             picks{service=\"etl\",region=\"eu-west\"} 3\n\
             picks{service=\"etl\",region=\"us-east\"} 4\n\
             picks{service=\"a\\\"b,c\\\\\",region=\"eu-west\"} 5\n\
             plain 2.5\nversion{version=\"old\"} 0\nversion{version=\"new\"} 1\nbroken{\n",
        );
        assert_eq!(metrics.sum("picks", &[]), 12.0);
        assert_eq!(metrics.sum("picks", &[("region", "eu-west")]), 8.0);
        assert_eq!(metrics.sum("picks", &[("service", "a\"b,c\\")]), 5.0);
        assert_eq!(metrics.by("picks", "region")["us-east"], 4.0);
        assert_eq!(metrics.sum("plain", &[]), 2.5);
        assert_eq!(metrics.label_of("version", "version"), Some("new"));
        assert_eq!(metrics.sum("absent", &[]), 0.0);
    }
}
