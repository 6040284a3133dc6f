//! A stand-in for the API, after the published shapes of Electricity Maps' version 3: it wants its
//! token, knows some zones, and fails in all the ways there are.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::CarbonApi;
use crate::fetch::{Dial, Http};

pub(super) const TOKEN: &str = "a-token";

/// What comes instead of an answer.
#[derive(Clone, Debug)]
pub(super) enum Instead {
    /// A documented error, perhaps with `Retry-After`.
    Error(u16, Option<&'static str>),
    /// This body with status 200.
    Body(&'static str),
    /// Nothing, for an hour.
    Silence,
    /// The end of the connection.
    HangUp,
}

pub(super) struct Standin {
    state: Mutex<State>,
    since: Instant,
}

#[derive(Default)]
struct State {
    zones: BTreeMap<String, f64>,
    calls: Vec<(Duration, String)>,
    script: VecDeque<Instead>,
    away: bool,
    failing: BTreeMap<String, Instead>,
}

impl Standin {
    pub(super) fn new(zones: &[(&str, f64)]) -> Arc<Self> {
        let zones = zones.iter().map(|(zone, grams)| ((*zone).to_owned(), *grams)).collect();
        let state = Mutex::new(State { zones, ..State::default() });
        Arc::new(Self { state, since: Instant::now() })
    }

    /// A client with this token.
    pub(super) fn client(self: &Arc<Self>, token: &str) -> CarbonApi {
        let standin = self.clone();
        let dial: Dial = Arc::new(move || {
            let (ours, theirs) = tokio::io::duplex(64 << 10);
            let standin = standin.clone();
            let service = service_fn(move |request| {
                let standin = standin.clone();
                async move { standin.answer(&request).await }
            });
            let served = http1::Builder::new().serve_connection(TokioIo::new(theirs), service);
            // A client that hangs up is no concern of ours.
            tokio::spawn(async move { drop(served.await) });
            Box::pin(async { Ok(Box::new(ours) as _) })
        });
        CarbonApi::over(Http::over(dial), token.to_owned())
    }

    /// When it was asked, and for which zone.
    pub(super) fn calls(&self) -> Vec<(Duration, String)> {
        self.state().calls.clone()
    }

    /// Says something else the next time it is asked.
    pub(super) fn instead(&self, what: impl IntoIterator<Item = Instead>) {
        self.state().script.extend(what);
    }

    pub(super) fn set(&self, zone: &str, grams: f64) {
        self.state().zones.insert(zone.to_owned(), grams);
    }

    /// Says something else whenever it is asked for this zone.
    pub(super) fn fails(&self, zone: &str, instead: Instead) {
        self.state().failing.insert(zone.to_owned(), instead);
    }

    /// Whether it hangs up on everybody.
    pub(super) fn set_away(&self, away: bool) {
        self.state().away = away;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    async fn answer(
        &self,
        request: &Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, &'static str> {
        assert_eq!(request.uri().path(), "/v3/carbon-intensity/latest");
        let zone = request.uri().query().and_then(|query| query.strip_prefix("zone="));
        let zone = zone.unwrap_or_default().to_owned();
        let scripted = {
            let mut state = self.state();
            state.calls.push((self.since.elapsed(), zone.clone()));
            if state.away {
                return Err("hang up");
            }
            state.script.pop_front().or_else(|| state.failing.get(&zone).cloned())
        };
        match scripted {
            None => {}
            Some(Instead::Error(status, retry_after)) => {
                return Ok(respond(status, retry_after, &json!({"error": "as it was told"})));
            }
            Some(Instead::Body(body)) => return Ok(Response::new(body.into())),
            Some(Instead::Silence) => tokio::time::sleep(Duration::from_secs(3600)).await,
            Some(Instead::HangUp) => return Err("hang up"),
        }
        if request.headers().get("auth-token").is_none_or(|token| token != TOKEN) {
            return Ok(respond(401, None, &json!({"error": "Invalid auth-token"})));
        }
        let Some(grams) = self.state().zones.get(&zone).copied() else {
            let message = format!("No recent data for zone \"{zone}\"");
            return Ok(respond(404, None, &json!({"status": "error", "message": message})));
        };
        Ok(respond(
            200,
            None,
            &json!({
                "zone": zone,
                "carbonIntensity": grams,
                "datetime": "2026-11-29T13:00:00.000Z",
                "updatedAt": "2026-11-29T12:47:41.563Z",
                "createdAt": "2026-11-26T13:49:42.193Z",
                "emissionFactorType": "lifecycle",
                "isEstimated": true,
                "estimationMethod": "TIME_SLICER_AVERAGE",
                "temporalGranularity": "hourly",
            }),
        ))
    }
}

fn respond(status: u16, retry_after: Option<&str>, body: &Value) -> Response<Full<Bytes>> {
    let mut response = Response::builder().status(status);
    if let Some(after) = retry_after {
        response = response.header("retry-after", after);
    }
    response.body(body.to_string().into()).unwrap()
}
