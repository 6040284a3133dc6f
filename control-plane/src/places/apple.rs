//! The Apple Maps Server API: geocoding both ways and times of arrival.
//!
//! Calls are made one after the other, each on a connection of its own: they are few and far
//! between. A token that the service no longer accepts is renewed once; after that, and after
//! anything else that goes wrong, the service is left alone for a while ([`crate::pace`]).

mod key;
mod shapes;
#[cfg(test)]
pub(crate) mod standin;
#[cfg(test)]
mod tests;

use std::{
    fmt,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use http::{StatusCode, header::AUTHORIZATION};
use rustls::RootCertStore;
use serde::de::DeserializeOwned;
use tokio::{sync::Mutex, time::Instant};
use towpath_policies::model::Coordinates;

pub use self::key::{AppleKey, KeyError};
use self::shapes::{Etas, Failure, PlaceResults, TokenResponse};
use super::{Answer, Eta, Found, Limits, MapService, PlaceError};
use crate::{
    fetch::{self, Http, HttpError, Response},
    pace::{Pace, Trouble},
};

/// A pause up to this long is waited for; before a longer one the call fails.
const SHORT_WAIT: Duration = Duration::from_secs(2);
/// A token is not used in the last part of its life.
const TOKEN_MARGIN: Duration = Duration::from_secs(60);
/// No token is kept longer, whatever the service says.
const TOKEN_LIFE: Duration = Duration::from_secs(24 * 3600);
/// Destinations that one call may name.
const DESTINATIONS: usize = 10;

/// A client of the Apple Maps Server API.
pub struct AppleMaps {
    http: Http,
    key: AppleKey,
    state: Mutex<State>,
}

struct State {
    pace: Pace,
    token: Option<Token>,
}

#[derive(Clone)]
struct Token {
    text: String,
    until: Instant,
}

impl AppleMaps {
    /// Where Apple answers.
    pub const URL: &str = "https://maps-api.apple.com";

    /// A client of the service at `url`, believed by `roots`. Cleartext is spoken with this
    /// machine only.
    ///
    /// # Errors
    /// When the URL is none of those.
    pub fn new(
        url: &str,
        roots: RootCertStore,
        key: AppleKey,
        limits: Limits,
    ) -> Result<Self, HttpError> {
        Ok(Self::over(Http::new(url, roots)?, key, limits))
    }

    fn over(http: Http, key: AppleKey, limits: Limits) -> Self {
        let state = State { pace: Pace::new(limits), token: None };
        Self { http, key, state: Mutex::new(state) }
    }

    async fn call<T: DeserializeOwned>(&self, target: &str) -> Result<T, PlaceError> {
        let mut state = self.state.lock().await;
        let mut renewed = false;
        loop {
            let token = match state.token.clone().filter(|token| token.until > Instant::now()) {
                Some(token) => token,
                None => self.renew(&mut state).await?,
            };
            let response = self.ask(&mut state, target, &token.text).await?;
            if response.status == StatusCode::UNAUTHORIZED && !renewed {
                renewed = true;
                state.token = None;
                continue;
            }
            let value = state.read(&response)?;
            // A token alone is no sign that questions are welcome again.
            state.pace.answered();
            return Ok(value);
        }
    }

    async fn renew(&self, state: &mut State) -> Result<Token, PlaceError> {
        let signed = self.key.sign(SystemTime::now());
        let response = self.ask(state, "/v1/token", &signed).await?;
        let TokenResponse { access_token, expires_in_seconds } = state.read(&response)?;
        let life = Duration::from_secs(expires_in_seconds).min(TOKEN_LIFE);
        let life = life.saturating_sub(TOKEN_MARGIN.min(life / 10));
        let token = Token { text: access_token, until: Instant::now() + life };
        state.token = Some(token.clone());
        Ok(token)
    }

    /// One request, as soon as the pace allows it.
    async fn ask(
        &self,
        state: &mut State,
        target: &str,
        bearer: &str,
    ) -> Result<Response, PlaceError> {
        loop {
            let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            match state.pace.admit(Instant::now(), since_1970) {
                Ok(()) => break,
                Err((wait, _)) if wait <= SHORT_WAIT => tokio::time::sleep(wait).await,
                Err((wait, why)) => return Err(PlaceError::Waiting { wait, why }),
            }
        }
        let answer = self.http.get(target, (AUTHORIZATION, &format!("Bearer {bearer}"))).await;
        answer.map_err(|error| state.away(format!("Apple Maps cannot be asked: {error}")))
    }
}

impl State {
    /// What a response holds, or what its failure means for the next ones.
    fn read<T: DeserializeOwned>(&mut self, response: &Response) -> Result<T, PlaceError> {
        let Response { status, retry_after, body } = response;
        if *status == StatusCode::OK {
            return serde_json::from_slice(body).map_err(|error| {
                self.away(format!("Apple Maps answers what it does not document: {error}"))
            });
        }
        let why = Failure::words(*status, body);
        match *status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let wait = self.rest(Trouble::Credentials);
                Err(PlaceError::Credentials { wait, why })
            }
            StatusCode::TOO_MANY_REQUESTS => {
                let wait = self.rest(Trouble::TooMuch(*retry_after));
                let why = format!("Apple Maps is asked too much: {why}");
                Err(PlaceError::Unavailable { wait, why })
            }
            StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND => {
                self.pace.answered();
                Err(PlaceError::Refused(format!("Apple Maps does not take the question: {why}")))
            }
            _ => Err(self.away(format!("Apple Maps fails: {why}"))),
        }
    }

    fn away(&mut self, why: String) -> PlaceError {
        PlaceError::Unavailable { wait: self.rest(Trouble::Away), why }
    }

    fn rest(&mut self, trouble: Trouble) -> Duration {
        self.pace.failed(trouble, Instant::now(), fastrand::f64())
    }
}

impl MapService for AppleMaps {
    fn find<'a>(&'a self, name: &'a str) -> Answer<'a, Vec<Found>> {
        let target = format!("/v1/geocode?q={}&lang=en-US", fetch::escaped(name));
        Box::pin(async move { Ok(self.call::<PlaceResults>(&target).await?.found()) })
    }

    fn at(&self, point: Coordinates) -> Answer<'_, Vec<Found>> {
        let target = format!("/v1/reverseGeocode?loc={}&lang=en-US", degrees(point));
        Box::pin(async move { Ok(self.call::<PlaceResults>(&target).await?.found()) })
    }

    fn etas<'a>(
        &'a self,
        origin: Coordinates,
        destinations: &'a [Coordinates],
        departure: Option<SystemTime>,
    ) -> Answer<'a, Vec<Option<Eta>>> {
        Box::pin(async move {
            let mut etas = Vec::with_capacity(destinations.len());
            for some in destinations.chunks(DESTINATIONS) {
                let named: Vec<_> = some.iter().map(|d| degrees(*d)).collect();
                let (from, to) = (degrees(origin), named.join("%7C"));
                let mut target =
                    format!("/v1/etas?origin={from}&destinations={to}&transportType=Automobile");
                if let Some(departure) = departure {
                    target += &format!("&departureDate={}", crate::utc::utc(departure));
                }
                etas.extend(self.call::<Etas>(&target).await?.of(some));
            }
            Ok(etas)
        })
    }
}

impl fmt::Debug for AppleMaps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AppleMaps").field("http", &self.http).finish_non_exhaustive()
    }
}

/// As the API writes a point. Six digits are a decimetre.
fn degrees(point: Coordinates) -> String {
    format!("{:.6},{:.6}", point.latitude, point.longitude)
}
