//! Clients that break RFC 9113, and clients that use all it allows: what they
//! get, what the origin hears of it, and what their neighbours notice.
//!
//! What only costs memory is in the `floods.rs` next to this, what only concerns
//! one request in `malformed.rs`.

#[path = "client_abuse/floods.rs"]
mod floods;
#[path = "client_abuse/flow.rs"]
mod flow;
#[path = "client_abuse/frames.rs"]
mod frames;
#[path = "client_abuse/heads.rs"]
mod heads;

use std::{collections::BTreeMap, time::Duration};

use tokio::time::timeout;
use towpath_tests::{
    Proxy, Script,
    frames::{
        DATA, END_HEADERS, END_STREAM, FrameOrigin, Frames, HEADER_TABLE_SIZE, HEADERS,
        INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE, POST, SETTINGS, Verdict, frame, headers, setting,
    },
};

/// A client whose answers are not compressed by reference, so that every status can be read.
async fn connect(proxy: &Proxy) -> Frames {
    Frames::connect_with(proxy.address, &setting(HEADER_TABLE_SIZE, 0)).await
}

/// An HTTP/2 origin that answers what ends in DATA, and nothing else.
async fn framed_origin() -> FrameOrigin {
    FrameOrigin::start(frame(SETTINGS, 0, 0, []), |_, seen| {
        let last = seen.kind == DATA && seen.flags & END_STREAM != 0;
        let head = || frame(HEADERS, END_STREAM | END_HEADERS, seen.stream, [0x88]);
        Script::keep(if last { head() } else { Vec::new() })
    })
    .await
}

const SERVED: Option<Verdict> = Some(Verdict::Status(200));

/// That origin, and a proxy before it.
async fn framed() -> (FrameOrigin, Proxy) {
    let origin = framed_origin().await;
    let proxy = Proxy::before("HTTP2", &[origin.address]).await;
    (origin, proxy)
}

/// A request that every origin here answers with 200.
async fn good(client: &mut Frames, stream: u32) -> Option<Verdict> {
    client.wire.try_send(good_request(stream)).await;
    said(client, stream).await
}

fn good_request(stream: u32) -> Vec<u8> {
    [headers(0, stream, POST), frame(DATA, END_STREAM, stream, "ok")].concat()
}

/// What the proxy says of a stream, `None` when it says nothing.
async fn said(client: &mut Frames, stream: u32) -> Option<Verdict> {
    timeout(Duration::from_secs(5), client.verdict(stream)).await.ok()
}

/// What the proxy says of itself, with the defaults of RFC 9113 §6.5.2.
async fn announced(proxy: &Proxy) -> BTreeMap<u16, u32> {
    let mut client = connect(proxy).await;
    let first = client.any().await.expect("settings, not the end");
    assert_eq!((first.kind, first.flags, first.stream), (SETTINGS, 0, 0), "§3.4: SETTINGS first");
    let mut all = BTreeMap::from([
        (HEADER_TABLE_SIZE, 4096),
        (INITIAL_WINDOW_SIZE, 65_535),
        (MAX_FRAME_SIZE, 16_384),
    ]);
    all.extend(first.settings());
    all
}

fn report(wrong: &[String]) {
    assert!(wrong.is_empty(), "{} cases:\n{}", wrong.len(), wrong.join("\n"));
}
