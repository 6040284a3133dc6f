//! Thousands of small corruptions of valid requests. Whatever the client sent,
//! the origin sees a prefix of the requests that RFC 9112 reads in it, bodies
//! and all, and each answer is the answer to its own request.

use std::panic::AssertUnwindSafe;

use futures_util::FutureExt;
use towpath_tests::{
    Proxy, Seen, StrictOrigin, Wire, echo, panic_text, show,
    strict::{self, Parsed, Reading, Request},
};

const CASES: usize = 1500;

const SEEDS: [&str; 8] = [
    "GET /a HTTP/1.1\r\nHost: a\r\nX-One: 1\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 11\r\n\r\nhello worldGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n6;x=y\r\n world\r\n0\r\n\r\nGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
    "PUT /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n10\r\n0123456789abcdef\r\n0\r\nX-T: 1\r\n\r\n",
    // Bodies that look like requests, so that a slip of the framing shows.
    "POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 37\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\nxyzPOST /b HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nab",
    "POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n22\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n\r\n0\r\n\r\nHEAD /b HTTP/1.1\r\nHost: a\r\n\r\n",
    "GET http://a/a?x=1 HTTP/1.1\r\nHost: a\r\nAccept: */*\r\nConnection: keep-alive, X-One\r\nX-One: 1\r\n\r\nDELETE /b HTTP/1.1\r\nHost: a\r\n\r\n",
    "POST /a HTTP/1.0\r\nHost: a\r\nConnection: keep-alive\r\nContent-Length: 5\r\n\r\nhelloGET /b HTTP/1.1\r\nHost: a\r\n\r\n",
];

const LINES: [&str; 14] = [
    "Content-Length: 5\r\n",
    "Content-Length: 0\r\n",
    "Content-Length: 5, 5\r\n",
    "Content-Length : 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Transfer-Encoding:\tchunked\r\n",
    "Transfer-Encoding: gzip, chunked\r\n",
    "Transfer-Encoding: identity\r\n",
    " folded: yes\r\n",
    "Connection: content-length, transfer-encoding\r\n",
    "Host: b\r\n",
    "0\r\n\r\n",
    "\r\n",
    "\n",
];

const BYTES: &[u8] = b"\r\n\0 \t:;,0159aAfFxX/+-\x0b\x0c\x7f\x80\xff\"#%";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn corrupted_requests_never_become_others() {
    let lanes = [0x51, 0x7e].map(|seed| tokio::spawn(lane(seed)));
    let (mut wrong, mut served, mut refused) = (Vec::new(), 0, 0);
    for lane in lanes {
        let (failures, s, r) = lane.await.expect("a lane ends");
        wrong.extend(failures);
        served += s;
        refused += r;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    // Both outcomes have to be common, or this says nothing.
    assert!(
        served > CASES / 2 && refused > CASES / 4,
        "{served} requests served, {refused} refused"
    );
}

/// Failures, requests served, requests refused.
async fn lane(seed: u64) -> (Vec<String>, usize, usize) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let origin = StrictOrigin::start().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    let (mut wrong, mut served, mut refused) = (Vec::new(), 0, 0);
    for case in 0..CASES {
        let bytes = corrupted(&mut rng);
        let judged = AssertUnwindSafe(judge(&proxy, &origin, &bytes)).catch_unwind().await;
        match judged.unwrap_or_else(|panic| Err(panic_text(&*panic))) {
            Ok(Outcome { requests, error }) => {
                served += requests;
                refused += usize::from(error);
            }
            Err(what) => {
                wrong.push(format!(
                    "case {case} of seed {seed:#x}: {what}\n    sent {}",
                    show(&bytes)
                ));
                origin.take();
            }
        }
        if wrong.len() == 10 {
            break;
        }
    }
    (wrong, served, refused)
}

fn corrupted(rng: &mut fastrand::Rng) -> Vec<u8> {
    let mut bytes = SEEDS[rng.usize(..SEEDS.len())].as_bytes().to_vec();
    for _ in 0..rng.usize(1..=3) {
        let at = rng.usize(..bytes.len());
        let line = |at: usize| {
            let start = bytes[..at].iter().rposition(|&b| b == b'\n').map_or(0, |n| n + 1);
            let end =
                bytes[at..].iter().position(|&b| b == b'\n').map_or(bytes.len(), |n| at + n + 1);
            start..end
        };
        match rng.u8(..9) {
            0 => drop(bytes.remove(at)),
            1 => bytes.insert(at, bytes[at]),
            2 | 3 => bytes.insert(at, BYTES[rng.usize(..BYTES.len())]),
            4 => bytes[at] = BYTES[rng.usize(..BYTES.len())],
            5 => {
                let other = (at + 1) % bytes.len();
                bytes.swap(at, other);
            }
            6 => drop(bytes.drain(line(at))),
            7 => {
                let copy = bytes[line(at)].to_vec();
                let start = line(at).start;
                bytes.splice(start..start, copy);
            }
            _ => {
                let start = line(at).start;
                bytes.splice(start..start, LINES[rng.usize(..LINES.len())].bytes());
            }
        }
        if bytes.is_empty() {
            bytes.push(b'G');
        }
    }
    bytes
}

struct Outcome {
    requests: usize,
    error: bool,
}

async fn judge(proxy: &Proxy, origin: &StrictOrigin, bytes: &[u8]) -> Result<Outcome, String> {
    let expected = reference(bytes);
    let mut client = Wire::connect(proxy.address).await;
    client.try_send(bytes).await;
    let (mut answers, mut error) = (Vec::new(), false);
    for request in &expected {
        let Some(response) = client.next_response(&request.method).await else { break };
        if response.status >= 400 {
            error = true;
            // A head that could not be read was no HEAD to the proxy: its refusal has a body.
            let length = response.fields.one("content-length").and_then(|l| l.parse().ok());
            if request.method == "HEAD" {
                client.up_to(length.unwrap_or(0)).await;
            }
            break;
        }
        answers.push((request.method.as_str(), response));
    }
    // Only now: a proxy may take a half-closed client for one that left.
    client.finish().await;
    let (rest, _) = client.rest().await;
    if !rest.is_empty() {
        match strict::response(&rest, "GET") {
            Parsed::Message(r, length) if r.status >= 400 && length == rest.len() && !error => {
                error = true
            }
            _ => return Err(format!("{} answers, and then {}", answers.len(), show(&rest))),
        }
    }
    let mut seen = Vec::new();
    for what in origin.take() {
        match what {
            Seen::Request(request) => seen.push(request),
            Seen::Broken(_) => {}
            Seen::Malformed(why, got) => {
                return Err(format!("the origin got {why}: {}", show(&got)));
            }
        }
    }
    let known = |r: &Request| (r.method.clone(), r.resource().1, r.body.clone());
    let prefix = seen.len() <= expected.len()
        && seen.iter().zip(&expected).all(|(s, e)| known(s) == known(e));
    if !prefix {
        return Err(format!("the origin saw {seen:?}\n    instead of {expected:?}"));
    }
    for (n, (method, response)) in answers.iter().enumerate() {
        let Some(request) = seen.get(n) else {
            return Err(format!("answer {n} is nobody's: {response:?}"));
        };
        let text = echo(&request.method, &request.target, &request.body);
        let body = if *method == "HEAD" { "" } else { &text };
        if response.status != 200 || response.body != body.as_bytes() {
            return Err(format!("{response:?} answers {request:?}"));
        }
    }
    Ok(Outcome { requests: seen.len(), error })
}

/// The requests in `bytes`, up to where they must be refused or break off.
fn reference(mut bytes: &[u8]) -> Vec<Request> {
    let mut requests = Vec::new();
    while let Parsed::Message(request, length) = strict::request(bytes, Reading::Tolerant) {
        bytes = &bytes[length..];
        let last = request.last;
        requests.push(request);
        if last {
            break;
        }
    }
    requests
}
