//! A peer that only makes work: what it costs is bounded, and others are served.

use towpath_tests::{
    Proxy, RawOrigin, StrictOrigin,
    frames::{
        CANCEL, CONTINUATION, DATA, END_STREAM, Frames, GET, HEADERS, PING, POST, SETTINGS,
        Verdict, frame, headers, reset, section, setting, window,
    },
};

/// More memory than any of these attacks may pin, in bytes.
pub(super) const BOUND: u64 = 96 << 20;

/// One at a time: they measure the memory of the process they share.
pub(super) static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

async fn still_serves(proxy: &Proxy) {
    let mut client = Frames::connect(proxy.address).await;
    client.send(headers(END_STREAM, 1, GET)).await;
    assert_eq!(client.verdict(1).await, Verdict::Status(200), "others are served");
}

/// Resident memory of this process, in which the proxy runs.
pub(super) fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    let pages: u64 =
        text.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a number of pages");
    pages * 4096
}

#[tokio::test]
async fn rapid_resets_are_cut_off_or_cheap() {
    let _turn = TURN.lock().await;
    let origin = StrictOrigin::start().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    still_serves(&proxy).await;
    let before = resident();
    let mut client = Frames::connect(proxy.address).await;
    let mut sent = 0;
    for stream in (1..20_000).step_by(2) {
        let mut pair = headers(END_STREAM, stream, GET);
        pair.extend(reset(stream, CANCEL));
        if !client.wire.try_send(pair).await {
            break;
        }
        sent += 1;
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < BOUND, "{grown} bytes after {sent} resets");
    still_serves(&proxy).await;
    let reached = origin.take().len();
    // Not every stream may cost the origin a request: that would be a lever.
    assert!(reached < 5_000, "{reached} of {sent} reached the origin");
}

#[tokio::test]
async fn a_field_section_without_end_is_cut_off() {
    let _turn = TURN.lock().await;
    let origin = StrictOrigin::start().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    still_serves(&proxy).await;
    let before = resident();
    let field = section(&[("x", &"y".repeat(8000))]);
    for (name, piece, most) in [
        ("long", frame(CONTINUATION, 0, 1, field), 16_000),
        ("empty", frame(CONTINUATION, 0, 1, []), 1_000_000),
    ] {
        let mut client = Frames::connect(proxy.address).await;
        client.send(frame(HEADERS, 0, 1, section(GET))).await;
        let flood = piece.repeat(64);
        let mut open = true;
        for _ in 0..most / 64 {
            open = client.wire.try_send(&flood).await;
            if !open {
                break;
            }
        }
        assert!(!open, "{name}: still taken after {most} CONTINUATION frames");
        let grown = resident().saturating_sub(before);
        assert!(grown < BOUND, "{name}: {grown} bytes");
        still_serves(&proxy).await;
    }
}

#[tokio::test]
async fn many_small_fields_that_unpack_large_are_refused() {
    let _turn = TURN.lock().await;
    let origin = StrictOrigin::start().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    still_serves(&proxy).await;
    let before = resident();
    // One entry of 4000 bytes in the dynamic table, then 16,000 references of one byte to it: 64 MB.
    let mut block = section(GET);
    block.extend([0x40, 1, b'x', 127, 0xa1, 0x1e]);
    block.extend([b'y'; 4000]);
    block.extend([0xbe; 10_000]);
    let mut client = Frames::connect(proxy.address).await;
    client.send(frame(HEADERS, END_STREAM | 4, 1, block)).await;
    match client.verdict(1).await {
        Verdict::Status(431) | Verdict::Reset(_) | Verdict::GoAway(_) => {}
        other => panic!("{other:?}"),
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < BOUND, "{grown} bytes");
    assert_eq!(origin.take().len(), 1, "only the request before");
}

#[tokio::test]
async fn answers_that_nobody_reads_do_not_pile_up() {
    let _turn = TURN.lock().await;
    let origin = StrictOrigin::start().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    still_serves(&proxy).await;
    let before = resident();
    let settings = [setting(4, 65_535), setting(1, 0)].concat();
    for (name, piece) in [
        ("PING", frame(PING, 0, 0, [0; 8])),
        ("SETTINGS", settings),
        ("empty SETTINGS", frame(SETTINGS, 0, 0, [])),
        ("WINDOW_UPDATE", window(0, 1)),
        ("requests", Vec::new()),
    ] {
        let mut client = Frames::connect(proxy.address).await;
        let flood = match name {
            "requests" => {
                (1..60_000).step_by(2).flat_map(|s| headers(END_STREAM, s, GET)).collect()
            }
            _ => piece.repeat((24 << 20) / piece.len()),
        };
        let sent = client.wire.push(&flood).await;
        let grown = resident().saturating_sub(before);
        assert!(grown < BOUND + flood.len() as u64, "{name}: {grown} bytes after {sent} sent");
        still_serves(&proxy).await;
    }
}

#[tokio::test]
async fn empty_data_frames_cost_nothing_for_ever() {
    let _turn = TURN.lock().await;
    let origin = RawOrigin::start().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    let before = resident();
    let mut client = Frames::connect(proxy.address).await;
    client.send(headers(0, 1, POST)).await;
    let mut upstream = origin.accept().await;
    upstream.request_head().await;
    let flood = frame(DATA, 0, 1, []).repeat(1000);
    for _ in 0..300 {
        if !client.wire.try_send(&flood).await {
            break;
        }
    }
    let grown = resident().saturating_sub(before);
    assert!(grown < BOUND, "{grown} bytes");
    // Whoever took them all still carries the stream; or the connection was ended.
    client.wire.try_send(frame(DATA, END_STREAM, 1, "ab")).await;
    if upstream.up_to(12).await == b"2\r\nab\r\n0\r\n\r\n" {
        upstream.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
        assert_eq!(client.verdict(1).await, Verdict::Status(200));
    } else {
        let verdict = client.verdict(1).await;
        assert!(matches!(verdict, Verdict::GoAway(11) | Verdict::Closed), "{verdict:?}");
    }
}
