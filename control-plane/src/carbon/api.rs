//! The API: version 3 of Electricity Maps, and what answers like it.

use std::{fmt, time::Duration};

use http::{HeaderName, StatusCode};
use rustls::RootCertStore;
use serde::Deserialize;
use tokio::{sync::Mutex, time::Instant};
use towpath_policies::model::Region;

use crate::{
    fetch::{Http, HttpError, escaped},
    pace::{Limits, Pace, Trouble},
};

/// Somebody who is asked for carbon intensities.
pub struct CarbonApi {
    http: Http,
    token: String,
    pace: Mutex<Pace>,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CarbonError {
    /// None for now, of any zone.
    #[error("{why}")]
    Unavailable {
        /// Time after which asking makes sense.
        wait: Duration,
        /// What happened.
        why: String,
    },
    /// It says nothing of use of this zone.
    #[error("{0}")]
    Zone(String),
}

/// `GET /v3/carbon-intensity/latest`, as far as it matters here.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Latest {
    zone: String,
    carbon_intensity: f64,
}

/// An error's body; some have the one, some the other.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Failure {
    error: Option<String>,
    message: Option<String>,
}

const AUTH_TOKEN: HeaderName = HeaderName::from_static("auth-token");
/// However long the API asks to be left alone: the answers of all zones grow old meanwhile.
const LONGEST_REST: Duration = Duration::from_secs(3600);
/// Between two calls.
const SPACING: Duration = Duration::from_secs(1);

impl CarbonApi {
    /// A client of the API at `url`, believed by `roots`. Cleartext is spoken with this machine only.
    ///
    /// # Errors
    /// When the URL is none of those.
    pub fn new(url: &str, roots: RootCertStore, token: String) -> Result<Self, HttpError> {
        Ok(Self::over(Http::new(url, roots)?, token))
    }

    pub(super) fn over(http: Http, token: String) -> Self {
        Self { http, token, pace: Mutex::new(Pace::new(Limits::default())) }
    }

    /// Grams of CO₂ equivalent per kilowatt-hour in a zone, now.
    ///
    /// # Errors
    /// [`CarbonError`].
    pub async fn latest(&self, zone: &str) -> Result<f64, CarbonError> {
        let mut pace = self.pace.lock().await;
        if let Some(wait) = pace.rests(Instant::now()) {
            return Err(CarbonError::Unavailable { wait, why: "it is left alone".to_owned() });
        }
        let mut rest = |trouble, why| {
            let wait = pace.failed(trouble, Instant::now(), fastrand::f64());
            CarbonError::Unavailable { wait, why }
        };
        let target = format!("/v3/carbon-intensity/latest?zone={}", escaped(zone));
        let answer = self.http.get(&target, (AUTH_TOKEN, &self.token)).await;
        let answer = answer.map_err(|error| rest(Trouble::Away, error.to_string()))?;
        let asked = answer.retry_after.map(|asked| asked.min(LONGEST_REST));
        let why = || words(answer.status, &answer.body);
        match answer.status {
            StatusCode::OK => {
                pace.answered();
                let latest: Latest = serde_json::from_slice(&answer.body).map_err(|error| {
                    CarbonError::Zone(format!("it answers what it does not document: {error}"))
                })?;
                read(latest, zone)
            }
            StatusCode::UNAUTHORIZED => Err(rest(Trouble::Credentials, why())),
            StatusCode::TOO_MANY_REQUESTS => Err(rest(Trouble::TooMuch(asked), why())),
            // A token may be good for some zones only.
            StatusCode::BAD_REQUEST | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => {
                pace.answered();
                Err(CarbonError::Zone(why()))
            }
            status if status.is_server_error() && asked.is_some() => {
                Err(rest(Trouble::TooMuch(asked), why()))
            }
            _ => Err(rest(Trouble::Away, why())),
        }
    }

    /// The pause between two calls.
    pub(super) const fn spacing() -> Duration {
        SPACING
    }
}

impl fmt::Debug for CarbonApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CarbonApi").field("http", &self.http).finish_non_exhaustive()
    }
}

fn read(latest: Latest, zone: &str) -> Result<f64, CarbonError> {
    let Latest { zone: of, carbon_intensity } = latest;
    if of != zone {
        let of = readable(&of);
        return Err(CarbonError::Zone(format!("it answers for {of} where {zone} was asked for")));
    }
    if !(0.0..=Region::MOST_CARBON).contains(&carbon_intensity) {
        return Err(CarbonError::Zone(format!("{carbon_intensity} g/kWh cannot be")));
    }
    Ok(carbon_intensity)
}

fn words(status: StatusCode, body: &[u8]) -> String {
    let failure: Failure = serde_json::from_slice(body).unwrap_or_default();
    match failure.error.or(failure.message) {
        Some(why) => format!("{status}: {}", readable(&why)),
        None => status.to_string(),
    }
}

/// Text of a stranger, without what could play with a terminal, and not too much of it.
fn readable(text: &str) -> String {
    const KEPT: usize = 200;
    text.chars().take(KEPT).map(|c| if c.is_control() { ' ' } else { c }).collect()
}
