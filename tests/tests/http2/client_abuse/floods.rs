//! More streams than may be open, at once or one after the other.

use std::collections::BTreeSet;

use towpath_tests::frames::{
    CANCEL, DATA, END_STREAM, GET, HEADERS, MAX_CONCURRENT_STREAMS, POST, PRIORITY, PROTOCOL_ERROR,
    REFUSED_STREAM, RST_STREAM, Verdict, frame, headers, reset, window,
};

use super::{SERVED, announced, connect, framed, good, said};

#[tokio::test]
async fn streams_that_end_at_once_open_no_crowd_at_the_origin() {
    type Kill = fn(u32) -> Vec<u8>;
    // The first is a rapid reset (CVE-2023-44487); with the others we are made to reset
    // (CVE-2025-8671).
    let ways: &[(&str, Kill)] = &[
        ("RST_STREAM", |s| reset(s, CANCEL)),
        ("a window grown by nothing", |s| window(s, 0)),
        ("a window too large", |s| window(s, 0x7fff_ffff)),
        ("DATA after the end", |s| frame(DATA, 0, s, "x")),
        ("a head after the end", |s| headers(END_STREAM, s, GET)),
        ("PRIORITY of 4 bytes", |s| frame(PRIORITY, 0, s, [0; 4])),
    ];
    // At once with its head, and when the origin has heard of it.
    for ((name, kill), crowd) in ways.iter().flat_map(|way| [(way, 1), (way, 100)]) {
        let (origin, proxy) = framed().await;
        let most = announced(&proxy).await[&MAX_CONCURRENT_STREAMS] as usize;
        let mut client = connect(&proxy).await;
        let mut sent = 0;
        let streams: Vec<u32> = (1..6_000).step_by(2).collect();
        for streams in streams.chunks(crowd) {
            let each = |bytes: &dyn Fn(u32) -> Vec<u8>| {
                streams.iter().flat_map(|s| bytes(*s)).collect::<Vec<_>>()
            };
            let heads = each(&|s| headers(END_STREAM, s, GET));
            let open = client.wire.try_send(heads).await;
            if !open || (crowd > 1 && !client.settled().await) {
                break;
            }
            if !client.wire.try_send(each(kill)).await {
                break;
            }
            sent += streams.len();
        }
        // Whoever took them all still answers; whoever did not has ended the connection.
        let last = good(&mut client, 6_001).await;
        assert!(
            matches!(last, Some(Verdict::Status(200) | Verdict::GoAway(_) | Verdict::Closed)),
            "{name}: {last:?} after {sent}"
        );
        assert_eq!(good(&mut connect(&proxy).await, 1).await, SERVED, "{name}");
        let (mut open, mut peak) = (BTreeSet::new(), 0);
        for (connection, seen) in origin.take() {
            match seen.kind {
                HEADERS => open.insert((connection, seen.stream)),
                RST_STREAM => open.remove(&(connection, seen.stream)),
                _ => false,
            };
            peak = peak.max(open.len());
        }
        assert!(crowd == 1 || peak > 50, "{name}: the origin heard of {peak} at once");
        assert!(peak <= most + 1, "{name}, {crowd}: {peak} at once at the origin, {most} allowed");
    }
}

#[tokio::test]
async fn one_stream_too_many_is_refused_alone() {
    let (_origin, proxy) = framed().await;
    let most = announced(&proxy).await[&MAX_CONCURRENT_STREAMS];
    assert!(most >= 100, "§6.5.2: no smaller than 100, so as not to limit parallelism: {most}");
    let mut client = connect(&proxy).await;
    // The limit binds whoever acknowledged it.
    let settings = client.any().await.expect("settings");
    client.acknowledge(&settings).await;
    let all: Vec<u8> = (0..=most).flat_map(|n| headers(0, 2 * n + 1, POST)).collect();
    client.send(all).await;
    let refused = said(&mut client, 2 * most + 1).await;
    assert!(
        matches!(refused, Some(Verdict::Reset(REFUSED_STREAM | PROTOCOL_ERROR))),
        "stream {} of {most}: {refused:?}",
        most + 1
    );
    client.send(frame(DATA, END_STREAM, 1, "ok")).await;
    assert_eq!(client.verdict(1).await, Verdict::Status(200), "the first goes on");
    assert_eq!(good(&mut client, 2 * most + 3).await, SERVED, "there is room again");
}
