//! Origins that break RFC 9113, and origins that use all it allows: a client
//! gets a whole answer, an error that says so, or a break; never a part that
//! looks whole. The next request is served.

#[path = "origin_abuse/answers.rs"]
mod answers;
#[path = "origin_abuse/floods.rs"]
mod floods;
#[path = "origin_abuse/frames.rs"]
mod frames;
#[path = "origin_abuse/streams.rs"]
mod streams;

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::time::timeout;
use towpath_tests::{
    Proxy, Script, Then, Wire,
    frames::{
        DATA, END_STREAM, FrameOrigin, Frames, GET, HEADER_TABLE_SIZE, HEADERS,
        INITIAL_WINDOW_SIZE, RST_STREAM, SETTINGS, frame, headers, setting, window,
    },
    show,
    strict::{self, Parsed},
};

/// `:status: 200` as a literal, to go on from.
const OK: (&str, &str) = (":status", "200");

/// What a client has in the end.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// A whole answer.
    Whole(u16, Vec<u8>),
    /// The part of an answer that shows that it is one, if it had begun at all.
    Broken(Option<u16>),
    /// What no client may be sent.
    Garbage(String),
}

use Outcome::{Broken, Garbage, Whole};

/// What a client should have in the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    /// This status and body.
    Answer(u16, &'static str),
    /// 502: nothing of the answer could be used.
    BadGateway,
    /// 502, or a break once the answer has begun.
    NothingWhole,
}

use Expect::{Answer, BadGateway, NothingWhole};

impl Expect {
    fn holds(self, outcome: &Outcome, http1: bool) -> bool {
        match (self, outcome) {
            (Answer(status, body), Whole(s, b)) => (*s, &b[..]) == (status, body.as_bytes()),
            (BadGateway | NothingWhole, Whole(502, _)) | (NothingWhole, Broken(_)) => true,
            // A reset before the head is passed on as a reset where it can be.
            (BadGateway, Broken(None)) => !http1,
            _ => false,
        }
    }
}

/// A request over HTTP/1.1.
async fn over_http1(proxy: &Proxy, method: &str) -> Outcome {
    let mut client = Wire::connect(proxy.address).await;
    client.send(format!("{method} /x HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")).await;
    let (bytes, _) = client.rest().await;
    read_http1(&bytes, method)
}

fn read_http1(mut bytes: &[u8], method: &str) -> Outcome {
    loop {
        match strict::response(bytes, method) {
            Parsed::Message(response, length) if (100..200).contains(&response.status) => {
                bytes = &bytes[length..];
            }
            Parsed::Message(response, length) if length == bytes.len() => {
                let close = response.until_close;
                return if close { Garbage("no framing".into()) } else { whole(response) };
            }
            Parsed::Message(..) => return Garbage(format!("more than one: {}", show(bytes))),
            Parsed::Invalid(why) => return Garbage(format!("{why}: {}", show(bytes))),
            Parsed::Incomplete => {
                return Broken(match strict::response_head(bytes) {
                    Parsed::Message(head, _) => Some(head.status),
                    _ => None,
                });
            }
        }
    }
}

fn whole(response: strict::Response) -> Outcome {
    if response.status == 204 && response.fields.one("content-length").is_some() {
        return Garbage("RFC 9110 §8.6: no length in a 204".into());
    }
    Whole(response.status, response.body)
}

/// A request over HTTP/2 (these bytes, on stream 1).
async fn over_http2(proxy: &Proxy, request: Vec<u8>) -> Outcome {
    let settings = [setting(HEADER_TABLE_SIZE, 0), setting(INITIAL_WINDOW_SIZE, 1 << 24)];
    let mut client = Frames::connect_with(proxy.address, &settings.concat()).await;
    client.send([window(0, 1 << 24), request].concat()).await;
    let (mut status, mut body) = (None, Vec::new());
    while let Some(next) = client.next().await {
        match next.kind {
            HEADERS if next.stream == 1 && status.is_none_or(|s| s < 200) => {
                status = Some(next.status());
            }
            DATA if next.stream == 1 => body.extend(&next.payload),
            RST_STREAM if next.stream == 1 => break,
            _ => {}
        }
        if next.stream == 1 && matches!(next.kind, HEADERS | DATA) && next.flags & END_STREAM != 0 {
            return Whole(status.unwrap_or_default(), body);
        }
    }
    Broken(status)
}

/// HEADERS of an answer that goes on or, with `END_STREAM`, does not.
fn head(flags: u8, stream: u32, more: &[(&str, &str)]) -> Vec<u8> {
    headers(flags, stream, &[&[OK], more].concat())
}

/// The answer of an origin that behaves.
fn fine(stream: u32) -> Vec<u8> {
    [head(0, stream, &[]), frame(DATA, END_STREAM, stream, "fine")].concat()
}

/// What clients of an origin that behaves are answered.
const WELL: Expect = Answer(200, "fine");

type Play = fn(u32) -> Vec<u8>;

/// An origin that answers each request as the current play says.
struct Stage {
    proxy: Proxy,
    play: Arc<Mutex<(Play, Then)>>,
    origin: FrameOrigin,
}

impl Stage {
    async fn start() -> Self {
        let play: Arc<Mutex<(Play, Then)>> = Arc::new(Mutex::new((fine, Then::Next)));
        let current = play.clone();
        let origin = FrameOrigin::start(frame(SETTINGS, 0, 0, []), move |_, seen| {
            if seen.kind != HEADERS {
                return Script::keep([]);
            }
            let (play, then) = *current.lock().expect("whole");
            Script { bytes: play(seen.stream), then }
        })
        .await;
        let proxy = Proxy::before("HTTP2", &[origin.address]).await;
        Self { proxy, play, origin }
    }

    /// From now on, requests are answered like this.
    fn plays(&self, play: Play, then: Then) {
        *self.play.lock().expect("whole") = (play, then);
    }

    /// What a client has of this play, and whether the next request is served.
    async fn judge(&self, name: &str, play: Play, then: Then, expect: Expect) -> Vec<String> {
        let mut wrong = Vec::new();
        for http1 in [true, false] {
            let limit = Duration::from_secs(5);
            self.plays(play, then);
            let client = if http1 { "HTTP/1.1" } else { "HTTP/2" };
            let outcome = if http1 {
                timeout(limit, over_http1(&self.proxy, "GET")).await
            } else {
                timeout(limit, over_http2(&self.proxy, headers(END_STREAM, 1, GET))).await
            };
            match outcome {
                Ok(outcome) if expect.holds(&outcome, http1) => {}
                Ok(outcome) => wrong.push(format!("{name}, {client}: {outcome:?}, not {expect:?}")),
                Err(_) => wrong.push(format!("{name}, {client}: nothing in time")),
            }
            self.plays(fine, Then::Next);
            let next = timeout(limit, over_http1(&self.proxy, "GET")).await;
            if next != Ok(Whole(200, b"fine".to_vec())) {
                wrong.push(format!("after {name}, {client}: {next:?}"));
            }
            self.origin.take();
        }
        wrong
    }
}

async fn table(cases: &[(&str, Play, Expect)], then: Then) {
    let stage = Stage::start().await;
    let mut wrong = Vec::new();
    for (name, play, expect) in cases {
        wrong.extend(stage.judge(name, *play, then, *expect).await);
    }
    assert!(wrong.is_empty(), "{}:\n{}", wrong.len(), wrong.join("\n"));
}
