//! How well the GPUs of this machine are: looked at once a second, told to load reports, to metrics
//! and to people.
//!
//! `towpath-gpu` reads and judges; threads, sockets and the clock are here. A card's driver may hang
//! for good, so cards are read on a thread of their own that nothing waits for.

mod cards;
mod scrape;
mod show;

use std::{
    path::PathBuf,
    str::FromStr,
    sync::{
        Arc,
        atomic::{
            AtomicBool,
            Ordering::{Acquire, Release},
        },
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use http::Uri;
use towpath_gpu::{
    Fault, Reading, ServerLoad, exposition,
    health::{Judge, Verdict},
};

use cards::Reader;

/// What is looked at, and how often.
#[derive(Clone, Debug)]
pub struct GpuConfig {
    /// Where cards are found.
    pub cards: Cards,
    /// An exporter that tells of the cards instead.
    pub exporter: Option<MetricsUrl>,
    /// A model server on this machine.
    pub model_server: Option<MetricsUrl>,
    /// Time between two looks.
    pub every: Duration,
}

/// Where cards are found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cards {
    /// Nowhere: they are not looked for.
    #[default]
    Off,
    /// Where the kernel and the driver's library show them.
    Auto,
    /// In a tree of amdgpu's, like `/sys/class/drm`.
    Sysfs(PathBuf),
}

/// Where Prometheus text is fetched: over HTTP without TLS, so on this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsUrl {
    /// Host and port.
    authority: http::uri::Authority,
    path: String,
}

/// What is known of the GPUs now.
#[derive(Debug, Default)]
pub(crate) struct Gpus {
    seen: ArcSwapOption<Seen>,
    /// There was a first look, or nobody looks.
    looked: AtomicBool,
}

/// One look.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) verdict: Verdict,
    /// Something is asked for cards.
    pub(crate) has_source: bool,
    /// `None` = their source did not answer, or there is none.
    pub(crate) cards: Option<Vec<Reading>>,
    pub(crate) server: Option<ServerLoad>,
    /// Why a source did not answer.
    pub(crate) faults: Vec<String>,
}

/// An answer that takes longer comes with a later look.
const PATIENCE: Duration = Duration::from_millis(800);
/// A machine without a GPU is not asked again sooner.
const LOOK_FOR_CARDS_EVERY: Duration = Duration::from_secs(60);

impl Default for GpuConfig {
    fn default() -> Self {
        let every = Duration::from_secs(1);
        Self { cards: Cards::Off, exporter: None, model_server: None, every }
    }
}

impl FromStr for Cards {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "auto" => Ok(Self::Auto),
            None if text == "off" => Ok(Self::Off),
            Some(("sysfs", path)) if !path.is_empty() => Ok(Self::Sysfs(path.into())),
            _ => Err(format!("`{text}` is none of auto, off, sysfs:PATH")),
        }
    }
}

impl FromStr for MetricsUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no URL like http://127.0.0.1:8000/metrics");
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let authority = uri.authority().filter(|_| uri.scheme_str() == Some("http"));
        let authority = authority.filter(|authority| !authority.as_str().contains('@'));
        let path = uri.path_and_query().map_or("/", |path| path.as_str());
        let path = if path == "/" { "/metrics" } else { path };
        Ok(Self { authority: authority.ok_or_else(wrong)?.clone(), path: path.to_owned() })
    }
}

impl Gpus {
    /// The share of its goodput that this machine has left; `None` = it is not judged.
    pub(crate) fn goodput_factor(&self) -> Option<f64> {
        self.seen.load().as_ref().map(|seen| seen.verdict.factor)
    }

    /// Whether what was seen is all there is, which may be nothing.
    pub(crate) fn has_looked(&self) -> bool {
        self.looked.load(Acquire)
    }

    /// The last look.
    pub(crate) fn seen(&self) -> Option<Arc<Seen>> {
        self.seen.load_full()
    }
}

/// Looks for as long as it is polled.
pub(crate) async fn watch(config: GpuConfig, gpus: Arc<Gpus>) {
    let GpuConfig { cards, exporter, model_server, every } = config;
    let mut reader = match (&exporter, cards) {
        // One source for each card.
        (Some(_), _) | (None, Cards::Off) => None,
        (None, cards) => Reader::start(cards),
    };
    if reader.is_none() && exporter.is_none() && model_server.is_none() {
        gpus.looked.store(true, Release);
        return;
    }
    let (mut judge, mut shown) = (Judge::default(), show::Shown::default());
    let mut judged = exporter.is_some() || model_server.is_some();
    let has_source = exporter.is_some() || reader.is_some();
    let began = Instant::now();
    let mut next_search = began;
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        if !judged && Instant::now() < next_search {
            continue;
        }
        let mut faults = Vec::new();
        let cards = match (&exporter, &mut reader) {
            (Some(url), _) => fetch(url, exposition::cards, &mut faults).await,
            (None, Some(reader)) => noted(reader.read(PATIENCE).await, &mut faults),
            (None, None) => None,
        };
        let server = match &model_server {
            Some(url) => fetch(url, exposition::server, &mut faults).await,
            None => None,
        };
        judged |= cards.as_ref().is_some_and(|cards| !cards.is_empty());
        if !judged {
            next_search = Instant::now() + LOOK_FOR_CARDS_EVERY;
            gpus.looked.store(true, Release);
            continue;
        }
        let verdict = judge.observe(began.elapsed(), cards.as_deref(), server.as_ref());
        let seen = Seen { verdict, has_source, cards, server, faults };
        shown.show(&seen);
        gpus.seen.store(Some(Arc::new(seen)));
        gpus.looked.store(true, Release);
    }
}

async fn fetch<T>(
    url: &MetricsUrl,
    read: fn(&str) -> Result<T, Fault>,
    faults: &mut Vec<String>,
) -> Option<T> {
    let fetched = scrape::fetch(url, PATIENCE).await;
    let read = fetched.and_then(|text| read(&text).map_err(|fault| fault.to_string()));
    read.map_err(|fault| faults.push(format!("{}{}: {fault}", url.authority, url.path))).ok()
}

fn noted<T>(answer: Result<T, Fault>, faults: &mut Vec<String>) -> Option<T> {
    answer.map_err(|fault| faults.push(fault.to_string())).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_read_as_they_are_written() {
        for (text, cards) in [
            ("auto", Some(Cards::Auto)),
            ("off", Some(Cards::Off)),
            ("sysfs:/sys/class/drm", Some(Cards::Sysfs("/sys/class/drm".into()))),
            ("sysfs:", None),
            ("sysfs", None),
            ("nvml", None),
            ("", None),
        ] {
            assert_eq!(text.parse::<Cards>().ok(), cards, "{text}");
        }
        for (text, authority, path) in [
            ("http://127.0.0.1:8000/metrics", "127.0.0.1:8000", "/metrics"),
            ("http://gpu.local:9400", "gpu.local:9400", "/metrics"),
            ("http://[::1]:9400/a?b=c", "[::1]:9400", "/a?b=c"),
        ] {
            let url: MetricsUrl = text.parse().unwrap();
            assert_eq!((url.authority.as_str(), url.path.as_str()), (authority, path));
        }
        for text in ["", "127.0.0.1:8000", "https://a/metrics", "file:///etc", "http://u:p@a/", "/"]
        {
            assert!(text.parse::<MetricsUrl>().is_err(), "{text}");
        }
    }
}
