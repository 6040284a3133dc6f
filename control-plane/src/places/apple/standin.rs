//! A stand-in for the Apple Maps Server API, after Apple's documentation: it checks tokens as the
//! service does, answers in its shapes, and fails in all the ways there are.
//!
//! Also part of the tests of the whole control plane, so it knows nothing of this crate.

use std::{
    collections::{BTreeMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};
use bytes::Bytes;
use http::{Request, Response, header::AUTHORIZATION};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    time::Instant,
};

pub(crate) const KEY_ID: &str = "ABC123DEFG";
pub(crate) const TEAM_ID: &str = "DEF123GHIJ";

/// Larger than any client should take.
const GIANT: usize = 8 << 20;

/// What comes instead of an answer.
#[derive(Clone, Debug)]
pub(crate) enum Instead {
    /// A documented error, perhaps with `Retry-After`.
    Error(u16, Option<String>),
    /// This body with status 200.
    Body(&'static str),
    /// A body without end.
    Giant,
    /// Nothing, for an hour.
    Silence,
    /// The end of the connection.
    HangUp,
}

pub(crate) struct Standin {
    key: rcgen::KeyPair,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    calls: Vec<String>,
    script: VecDeque<Instead>,
    /// Access tokens, and when they expire.
    tokens: BTreeMap<String, Instant>,
    issued: u32,
    token_life: Duration,
    away: bool,
}

impl Standin {
    pub(crate) fn new() -> Arc<Self> {
        let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
        let state = State { token_life: Duration::from_secs(1800), ..State::default() };
        Arc::new(Self { key, state: Mutex::new(state) })
    }

    /// The private key as Apple gives it out.
    pub(crate) fn pem(&self) -> String {
        self.key.serialize_pem()
    }

    /// What was asked for, in order.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }

    /// Says something else the next time it is asked (for anything but a token).
    pub(crate) fn instead(&self, what: impl IntoIterator<Item = Instead>) {
        self.state().script.extend(what);
    }

    /// Forgets all tokens that it gave out.
    pub(crate) fn revoke(&self) {
        self.state().tokens.clear();
    }

    /// Whether it hangs up on everybody.
    pub(crate) fn set_away(&self, away: bool) {
        self.state().away = away;
    }

    /// Serves at an address of this machine until the end of the test; its URL.
    pub(crate) async fn listen(self: &Arc<Self>) -> String {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let standin = self.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(standin.clone().serve(stream));
            }
        });
        format!("http://{address}")
    }

    /// Serves one connection.
    pub(crate) async fn serve<S>(self: Arc<Self>, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let service = service_fn(move |request| {
            let standin = self.clone();
            async move { standin.answer(&request).await }
        });
        // A client that hangs up is no concern of ours.
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }

    async fn answer(
        &self,
        request: &Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, &'static str> {
        let target = request.uri().path_and_query().map_or("", |target| target.as_str());
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        self.state().calls.push(target.to_owned());
        if self.state().away {
            return Err("hang up");
        }
        let header = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
        let Some(bearer) = header.and_then(|value| value.strip_prefix("Bearer ")) else {
            return Ok(error(401, "Not Authorized", None));
        };
        if path == "/v1/token" {
            return Ok(match self.check(bearer) {
                Ok(()) => self.issue(),
                Err(why) => error(401, why, None),
            });
        }
        let valid = self.state().tokens.get(bearer).is_some_and(|until| *until > Instant::now());
        if !valid {
            return Ok(error(401, "Not Authorized", None));
        }
        let scripted = self.state().script.pop_front();
        match scripted {
            Some(Instead::Error(status, retry_after)) => {
                Ok(error(status, "as it was told", retry_after.as_deref()))
            }
            Some(Instead::Body(body)) => Ok(respond(200, body)),
            Some(Instead::Giant) => Ok(respond(200, vec![b' '; GIANT])),
            Some(Instead::Silence) => {
                tokio::time::sleep(Duration::from_secs(3600)).await;
                Ok(respond(200, "{}"))
            }
            Some(Instead::HangUp) => Err("hang up"),
            None => Ok(answer(path, query)),
        }
    }

    /// As the service checks a token that the key's owner signed.
    fn check(&self, token: &str) -> Result<(), &'static str> {
        let (signed, signature) = token.rsplit_once('.').ok_or("not three parts")?;
        let (header, claims) = signed.split_once('.').ok_or("not three parts")?;
        let json = |part: &str| -> Result<Value, &'static str> {
            serde_json::from_slice(&base64url(part).ok_or("not base64url")?).map_err(|_| "not JSON")
        };
        let (header, claims) = (json(header)?, json(claims)?);
        if header != json!({ "alg": "ES256", "kid": KEY_ID, "typ": "JWT" }) {
            return Err("another header");
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
        let (issued, expires) = (claims["iat"].as_u64(), claims["exp"].as_u64());
        if claims["iss"] != TEAM_ID
            || issued.is_none_or(|at| at > now)
            || expires.is_none_or(|at| at <= now || at > now + 365 * 24 * 3600)
        {
            return Err("other claims");
        }
        let signature = base64url(signature).ok_or("not base64url")?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key_raw())
            .verify(signed.as_bytes(), &signature)
            .map_err(|_| "another signature")
    }

    fn issue(&self) -> Response<Full<Bytes>> {
        let mut state = self.state();
        state.issued += 1;
        let token = format!("access-{}", state.issued);
        let life = state.token_life;
        state.tokens.insert(token.clone(), Instant::now() + life);
        let body = json!({ "accessToken": token, "expiresInSeconds": life.as_secs() });
        respond(200, body.to_string())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn answer(path: &str, query: &str) -> Response<Full<Bytes>> {
    let query: BTreeMap<&str, String> = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key, unescaped(value)))
        .collect();
    let field = |name: &str| query.get(name).cloned().unwrap_or_default();
    match path {
        "/v1/geocode" => match field("q").as_str() {
            "" => error(400, "Bad Request", None),
            "Atlantis" => respond(200, places(31.25, -24.25, "Atlantis", "Atlantic", "PT")),
            "Avalon" => respond(200, places(51.144, -2.699, "Glastonbury", "Somerset", "GB")),
            "Frankfurt" => respond(200, places(50.1109, 8.6821, "Frankfurt", "Hesse", "DE")),
            _ => respond(200, json!({ "results": [] }).to_string()),
        },
        "/v1/reverseGeocode" => match point(&field("loc")) {
            Some((latitude, longitude)) => {
                respond(200, places(latitude, longitude, "Somewhere", "", "US"))
            }
            None => error(400, "Bad Request", None),
        },
        "/v1/etas" => etas(&field("origin"), &field("destinations"), &field("departureDate")),
        _ => error(404, "Not Found", None),
    }
}

fn places(latitude: f64, longitude: f64, city: &str, area: &str, code: &str) -> String {
    json!({ "results": [{
        "coordinate": { "latitude": latitude, "longitude": longitude },
        "displayMapRegion": {
            "southLatitude": latitude - 0.1, "westLongitude": longitude - 0.1,
            "northLatitude": latitude + 0.1, "eastLongitude": longitude + 0.1,
        },
        "name": city,
        "formattedAddressLines": [city, area],
        "structuredAddress": { "administrativeArea": area, "locality": city },
        "country": "Country",
        "countryCode": code,
    }] })
    .to_string()
}

/// A second for each metre of a degree; nobody gets to latitude 0. Departing in 2030 takes twice
/// as long.
fn etas(origin: &str, destinations: &str, departure: &str) -> Response<Full<Bytes>> {
    let destinations: Option<Vec<_>> = destinations.split('|').map(point).collect();
    let (Some(origin), Some(destinations)) = (point(origin), destinations) else {
        return error(400, "Bad Request", None);
    };
    if destinations.len() > 10 {
        return error(400, "Too many destinations", None);
    }
    let factor = if departure == "2030-01-01T08:00:00Z" { 2.0 } else { 1.0 };
    let reached = destinations.into_iter().filter(|(latitude, _)| *latitude != 0.0);
    let etas = reached.map(|(latitude, longitude)| {
        let way = ((latitude - origin.0).abs() + (longitude - origin.1).abs()) * 1000.0;
        json!({
            "destination": { "latitude": latitude, "longitude": longitude },
            "transportType": "AUTOMOBILE",
            "distanceMeters": way.round(),
            "expectedTravelTimeSeconds": (way * factor).round(),
            "staticTravelTimeSeconds": (way / 2.0).round(),
        })
    });
    respond(200, json!({ "etas": etas.collect::<Vec<_>>() }).to_string())
}

fn point(text: &str) -> Option<(f64, f64)> {
    let (latitude, longitude) = text.split_once(',')?;
    Some((latitude.parse().ok()?, longitude.parse().ok()?))
}

fn respond(status: u16, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let response = Response::builder().status(status).header("Content-Type", "application/json");
    response.body(Full::new(body.into())).unwrap()
}

fn error(status: u16, message: &str, retry_after: Option<&str>) -> Response<Full<Bytes>> {
    let body = json!({ "error": { "message": message, "details": ["of the stand-in"] } });
    let mut response = respond(status, body.to_string());
    if let Some(value) = retry_after {
        response.headers_mut().insert("Retry-After", value.parse().unwrap());
    }
    response
}

fn unescaped(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [byte, after @ ..] = rest {
        rest = after;
        bytes.push(match (byte, after) {
            (b'%', [high, low, after @ ..]) => {
                rest = after;
                let digits = [*high, *low];
                u8::from_str_radix(std::str::from_utf8(&digits).unwrap(), 16).unwrap()
            }
            _ => *byte,
        });
    }
    String::from_utf8(bytes).unwrap()
}

fn base64url(text: &str) -> Option<Vec<u8>> {
    let (mut bytes, mut bits, mut held) = (Vec::new(), 0_u32, 0);
    for digit in text.bytes() {
        let value = match digit {
            b'A'..=b'Z' => digit - b'A',
            b'a'..=b'z' => digit - b'a' + 26,
            b'0'..=b'9' => digit - b'0' + 52,
            b'-' => 62,
            b'_' => 63,
            _ => return None,
        };
        bits = bits << 6 | u32::from(value);
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push(u8::try_from(bits >> held & 0xff).unwrap());
        }
    }
    Some(bytes)
}
