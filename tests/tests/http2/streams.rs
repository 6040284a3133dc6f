//! Streams end to end: trailers, resets, GOAWAY, small frames, early answers,
//! and the way between HTTP/2 and HTTP/1.1.

use bytes::Bytes;
use h2::{Reason, client::SendRequest};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use tokio::task::JoinSet;
use towpath_tests::{
    Proxy, RawOrigin, Script, ScriptedOrigin, Wire,
    frames::{
        ACK, CANCEL, DATA, END_HEADERS, END_STREAM, Frames, GET, GOAWAY, HEADERS,
        MAX_CONCURRENT_STREAMS, NO_ERROR, PING, POST, REFUSED_STREAM, RST_STREAM, SETTINGS,
        Verdict, frame, goaway, headers, reset, setting, window,
    },
};

/// `:status: 200` by its index.
const OK: [u8; 1] = [0x88];

async fn client(proxy: &Proxy) -> SendRequest<Bytes> {
    let socket = tokio::net::TcpStream::connect(proxy.address).await.expect("connects");
    let (sender, connection) = h2::client::handshake(socket).await.expect("speaks HTTP/2");
    tokio::spawn(connection);
    sender.ready().await.expect("ready")
}

fn post(path: &str) -> Request<()> {
    Request::post(format!("http://a{path}")).body(()).expect("a valid request")
}

/// An origin of the h2 crate that hands each request to `serve`.
async fn h2_origin<F, S>(serve: F) -> std::net::SocketAddr
where
    F: Fn(Request<h2::RecvStream>, h2::server::SendResponse<Bytes>) -> S
        + Send
        + Sync
        + Clone
        + 'static,
    S: Future<Output = ()> + Send + 'static,
{
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let serve = serve.clone();
            tokio::spawn(async move {
                // Half of the connection's window is what many small frames may waste
                // in the memory of this origin, which is not what is tested here.
                let mut origin = h2::server::Builder::new();
                let connection =
                    origin.initial_connection_window_size(16 << 20).handshake(socket).await;
                let mut connection = connection.expect("speaks HTTP/2");
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(serve(request, respond));
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn grpc_trailers_and_trailers_only_answers_arrive_as_sent() {
    let origin = h2_origin(|request, mut respond| async move {
        let grpc = Response::builder().header("content-type", "application/grpc");
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static("7"));
        trailers.insert("grpc-message", HeaderValue::from_static("no%20way"));
        if request.uri().path() == "/only" {
            let mut head = grpc.body(()).expect("valid");
            head.headers_mut().extend(trailers);
            respond.send_response(head, true).expect("sends");
            return;
        }
        assert_eq!(request.headers()["te"], "trailers", "gRPC asks for it on every hop");
        let mut body = respond.send_response(grpc.body(()).expect("valid"), false).expect("sends");
        body.send_data(Bytes::from_static(&[0, 0, 0, 0, 2, 1, 2]), false).expect("sends");
        body.send_trailers(trailers).expect("sends");
    })
    .await;
    let proxy = Proxy::before("HTTP2", &[origin]).await;
    let mut client = client(&proxy).await;
    for path in ["/whole", "/only"] {
        let mut request = post(path);
        request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
        request.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        let (response, mut body) = client.send_request(request, false).expect("sends");
        body.send_data(Bytes::from_static(&[0; 5]), true).expect("sends");
        let (head, mut body) = response.await.expect("answers").into_parts();
        assert_eq!(head.status, StatusCode::OK);
        if path == "/only" {
            assert!(body.is_end_stream(), "one HEADERS frame that ends the stream");
            assert_eq!(
                (&head.headers["grpc-status"], &head.headers["grpc-message"]),
                (&"7".parse().unwrap(), &"no%20way".parse().unwrap())
            );
            continue;
        }
        assert_eq!(head.headers.get("grpc-status"), None);
        let message = body.data().await.expect("a message").expect("whole");
        assert_eq!(&message[..], [0, 0, 0, 0, 2, 1, 2]);
        assert!(body.data().await.is_none());
        let trailers = body.trailers().await.expect("whole").expect("trailers");
        assert_eq!(
            (&trailers["grpc-status"], &trailers["grpc-message"]),
            (&"7".parse().unwrap(), &"no%20way".parse().unwrap())
        );
    }
}

#[tokio::test]
async fn the_code_of_a_reset_passes_both_ways() {
    for code in
        [Reason::CANCEL, Reason::INTERNAL_ERROR, Reason::ENHANCE_YOUR_CALM, Reason::from(0x1234)]
    {
        let (told, tell) = tokio::sync::oneshot::channel();
        let told = std::sync::Arc::new(std::sync::Mutex::new(Some(told)));
        let origin = h2_origin(move |request, mut respond| {
            let told = told.clone();
            async move {
                let mut body = respond.send_response(Response::new(()), false).expect("sends");
                if request.uri().path() == "/origin" {
                    body.send_data(Bytes::from_static(b"part"), false).expect("sends");
                    // The part is acknowledged before the reset may overtake it.
                    request.into_body().data().await;
                    body.send_reset(code);
                    return;
                }
                let reason = std::future::poll_fn(|cx| body.poll_reset(cx)).await;
                let told = told.lock().expect("whole").take().expect("told once");
                let _ = told.send(reason.expect("a reset, not the end"));
            }
        })
        .await;
        let proxy = Proxy::before("HTTP2", &[origin]).await;
        let mut client = client(&proxy).await;
        let (response, mut upload) = client.send_request(post("/origin"), false).expect("sends");
        let mut body = response.await.expect("answers").into_body();
        assert_eq!(body.data().await.expect("a part").expect("whole"), "part");
        upload.send_data(Bytes::from_static(b"seen"), false).expect("sends");
        let error = body.data().await.expect("an error").expect_err("a reset is no end");
        assert_eq!(error.reason(), Some(code), "from the origin");
        let (response, mut upload) = client.send_request(post("/client"), false).expect("sends");
        let _body = response.await.expect("answers").into_body();
        upload.send_reset(code);
        assert_eq!(tell.await.expect("the origin hears of it"), code, "from the client");
    }
}

#[tokio::test]
async fn a_truncated_answer_of_http_1_1_is_a_reset() {
    'scripts: for script in [
        "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n",
    ] {
        let origin = ScriptedOrigin::start(move |_| Script::close(script)).await;
        let proxy = Proxy::before("HTTP", &[origin.address]).await;
        let mut client = Frames::connect(proxy.address).await;
        client.send(headers(END_STREAM, 1, GET)).await;
        let end = loop {
            let frame = client.next_of(&[HEADERS, DATA, RST_STREAM]).await;
            match (frame.kind, frame.flags & END_STREAM) {
                (RST_STREAM, _) => break frame,
                (HEADERS, 0) if frame.status() == 502 => continue 'scripts,
                (_, 0) => {}
                _ => panic!("a clean end: {frame:?}"),
            }
        };
        assert_ne!(end.code(), 0, "an error, not NO_ERROR");
    }
}

#[tokio::test]
async fn a_download_that_the_origin_resets_is_a_break_over_http_1_1() {
    let origin = h2_origin(|_, mut respond| async move {
        let mut body = respond.send_response(Response::new(()), false).expect("sends");
        body.send_data(Bytes::from_static(b"part"), false).expect("sends");
        body.send_reset(Reason::INTERNAL_ERROR);
    })
    .await;
    let proxy = Proxy::before("HTTP2", &[origin]).await;
    let mut client = Wire::connect(proxy.address).await;
    client.send("GET /x HTTP/1.1\r\nHost: a\r\n\r\n").await;
    // The reset may overtake the head.
    if client.response_head().await.status != 502 {
        let (rest, _) = client.rest().await;
        assert!(!rest.ends_with(b"0\r\n\r\n"), "{}", rest.escape_ascii());
    }
}

#[tokio::test]
async fn streams_that_a_leaving_origin_did_not_process_are_sent_again() {
    // RFC 9113 §6.8 and §8.7: safe even for POST.
    let origin = RawOrigin::start().await;
    let proxy = Proxy::before("HTTP2", &[origin.address]).await;
    let mut client = Frames::connect(proxy.address).await;
    client.send(headers(END_STREAM, 1, POST)).await;
    let mut leaving = Frames::accept(origin.accept().await, &frame(SETTINGS, 0, 0, [])).await;
    assert_eq!(leaving.next_of(&[HEADERS]).await.stream, 1);
    client.send(headers(END_STREAM, 3, POST)).await;
    assert_eq!(leaving.next_of(&[HEADERS]).await.stream, 3, "many streams share a connection");
    // Stream 1 was the last one seen.
    leaving.send(goaway(1, NO_ERROR)).await;
    let mut next = Frames::accept(origin.accept().await, &frame(SETTINGS, 0, 0, [])).await;
    let again = next.next_of(&[HEADERS]).await;
    next.send(frame(HEADERS, END_STREAM | END_HEADERS, again.stream, OK)).await;
    assert_eq!(client.verdict(3).await, Verdict::Status(200));
    // What it did see is still answered.
    leaving.send(frame(HEADERS, END_STREAM | END_HEADERS, 1, OK)).await;
    assert_eq!(client.verdict(1).await, Verdict::Status(200));
    // And new requests go to the new connection.
    client.send(headers(END_STREAM, 5, POST)).await;
    let more = next.next_of(&[HEADERS]).await;
    next.send(frame(HEADERS, END_STREAM | END_HEADERS, more.stream, OK)).await;
    assert_eq!(client.verdict(5).await, Verdict::Status(200));
}

#[tokio::test]
async fn a_refused_stream_is_sent_again() {
    let origin = RawOrigin::start().await;
    let proxy = Proxy::before("HTTP2", &[origin.address]).await;
    let mut client = Frames::connect(proxy.address).await;
    client.send(headers(0, 1, POST)).await;
    client.send(frame(DATA, END_STREAM, 1, "ab")).await;
    let mut upstream = Frames::accept(origin.accept().await, &frame(SETTINGS, 0, 0, [])).await;
    let first = upstream.next_of(&[HEADERS]).await.stream;
    upstream.send(reset(first, REFUSED_STREAM)).await;
    // On this connection or another.
    let answered = async {
        loop {
            let head = tokio::select! {
                head = upstream.next_of(&[HEADERS]) => head,
                other = origin.accept() => {
                    upstream = Frames::accept(other, &frame(SETTINGS, 0, 0, [])).await;
                    continue;
                }
            };
            let data = upstream.next_of(&[DATA]).await;
            assert_eq!(
                (data.stream, data.payload.as_slice()),
                (head.stream, &b"ab"[..]),
                "body and all"
            );
            upstream.send(frame(HEADERS, END_STREAM | END_HEADERS, head.stream, OK)).await;
            return upstream;
        }
    };
    let (_upstream, verdict) = tokio::join!(answered, client.verdict(1));
    assert_eq!(verdict, Verdict::Status(200));
}

/// Answers each stream once the proxy has had a turn to send another on top of it, which it
/// may not once it has acknowledged the limit of one. `held` waited since before.
async fn answer_one_at_a_time(mut peer: Frames, held: Option<u32>) {
    let (mut limited, mut open) = (held.is_some(), Vec::from_iter(held));
    if held.is_some() {
        peer.send(frame(PING, 0, 0, [0; 8])).await;
    }
    while let Some(next) = peer.any().await {
        peer.acknowledge(&next).await;
        match (next.kind, next.flags & ACK != 0) {
            (SETTINGS, true) => limited = true,
            (HEADERS, _) => {
                open.push(next.stream);
                assert!(!limited || open.len() == 1, "at once: {open:?}");
                peer.send(frame(PING, 0, 0, [0; 8])).await;
            }
            (PING, true) => {
                let stream = open.remove(0);
                peer.send(frame(HEADERS, END_STREAM | END_HEADERS, stream, OK)).await;
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn an_origin_that_takes_one_stream_at_a_time_gets_one_at_a_time() {
    let origin = RawOrigin::start().await;
    let proxy = Proxy::before("HTTP2", &[origin.address]).await;
    let mut client = Frames::connect(proxy.address).await;
    client.send(headers(END_STREAM, 1, GET)).await;
    let limit = setting(MAX_CONCURRENT_STREAMS, 1);
    let mut first = Frames::accept(origin.accept().await, &limit).await;
    let (mut held, mut limited) = (None, false);
    while held.is_none() || !limited {
        let next = first.any().await.expect("a frame, not the end");
        first.acknowledge(&next).await;
        held = held.or((next.kind == HEADERS).then_some(next.stream));
        limited |= next.kind == SETTINGS && next.flags & ACK != 0;
    }
    client.send([headers(END_STREAM, 3, GET), headers(END_STREAM, 5, GET)].concat()).await;
    assert!(client.settled().await, "the proxy has both");
    // Each further one waits, or gets a connection of its own.
    let serve = async {
        let mut peers = JoinSet::new();
        peers.spawn(answer_one_at_a_time(first, held));
        loop {
            tokio::select! {
                other = origin.accept() => {
                    let limit = limit.clone();
                    peers.spawn(async move {
                        answer_one_at_a_time(Frames::accept(other, &limit).await, None).await;
                    });
                }
                Some(ended) = peers.join_next() => ended.expect("one stream at a time"),
            }
        }
    };
    let ask = async {
        let mut answered = Vec::new();
        while answered.len() < 3 {
            let head = client.next_of(&[HEADERS, RST_STREAM]).await;
            assert_eq!((head.kind, head.status()), (HEADERS, 200));
            answered.push(head.stream);
        }
        answered.sort_unstable();
        assert_eq!(answered, [1, 3, 5]);
    };
    tokio::select! { never = serve => never, () = ask => {} }
}

#[tokio::test]
async fn small_frames_to_a_slow_origin_kill_no_connection_and_slow_no_neighbour() {
    const FRAMES: usize = 20_000;
    let (begin, may_begin) = tokio::sync::watch::channel(false);
    let origin = h2_origin(move |request, mut respond| {
        let mut may_begin = may_begin.clone();
        async move {
            if request.uri().path() == "/small" {
                respond.send_response(Response::new(()), true).expect("sends");
                return;
            }
            // Reads nothing, and so grants nothing, until most of what fits is under way.
            may_begin.wait_for(|b| *b).await.expect("begins");
            let (mut body, mut got, mut sum) = (request.into_body(), 0, 0u64);
            while let Some(data) = body.data().await {
                let data = data.expect("no frame is lost");
                sum += data.iter().map(|b| u64::from(*b)).sum::<u64>();
                got += data.len();
                body.flow_control().release_capacity(data.len()).expect("was taken");
            }
            let text = Bytes::from(format!("{got} {sum}"));
            let mut reply = respond.send_response(Response::new(()), false).expect("sends");
            reply.send_data(text, true).expect("sends");
        }
    })
    .await;
    let proxy = Proxy::before("HTTP2", &[origin]).await;
    let mut client = client(&proxy).await;
    let (response, mut upload) = client.send_request(post("/x"), false).expect("sends");
    for n in 0..FRAMES {
        upload.reserve_capacity(64);
        // The proxy's windows close when the origin takes no more: that is when it begins.
        let granted = std::future::poll_fn(|cx| upload.poll_capacity(cx));
        let granted =
            match tokio::time::timeout(std::time::Duration::from_millis(300), granted).await {
                Ok(granted) => granted,
                Err(_) => {
                    // Nothing moves on this stream, and on its neighbours everything.
                    let (small, _) = client.send_request(post("/small"), true).expect("sends");
                    assert_eq!(small.await.expect("answered").status(), 200);
                    begin.send_replace(true);
                    std::future::poll_fn(|cx| upload.poll_capacity(cx)).await
                }
            };
        granted.expect("the stream lives").expect("the connection lives");
        upload
            .send_data(Bytes::from(vec![(n % 251) as u8; 64]), n + 1 == FRAMES)
            .expect("the stream lives");
    }
    begin.send_replace(true);
    let mut body = response.await.expect("answered").into_body();
    let text = body.data().await.expect("a body").expect("whole");
    let sum: u64 = (0..FRAMES).map(|n| (n % 251) as u64 * 64).sum();
    assert_eq!(text, format!("{} {sum}", FRAMES * 64));
}

#[tokio::test]
async fn small_frames_to_a_slow_client_kill_no_connection() {
    let origin = h2_origin(|_, mut respond| async move {
        let mut body = respond.send_response(Response::new(()), false).expect("sends");
        for n in 0..20_000 {
            body.reserve_capacity(64);
            let granted = std::future::poll_fn(|cx| body.poll_capacity(cx)).await;
            granted.expect("the stream lives").expect("the connection lives");
            body.send_data(Bytes::from_static(&[7; 64]), n == 19_999).expect("sends");
        }
    })
    .await;
    let proxy = Proxy::before("HTTP2", &[origin]).await;
    let mut client = Frames::connect(proxy.address).await;
    client.send(headers(END_STREAM, 1, GET)).await;
    let (mut got, mut stalled) = (0, true);
    loop {
        let frame = client.next_of(&[HEADERS, DATA, RST_STREAM, GOAWAY]).await;
        assert!(matches!(frame.kind, HEADERS | DATA), "{frame:?}");
        got += if frame.kind == DATA { frame.payload.len() } else { 0 };
        if frame.flags & END_STREAM != 0 {
            break;
        }
        // The whole first window is used up before more is granted, then in small steps.
        stalled = stalled && got < 65_535;
        if !stalled && frame.kind == DATA {
            let by = frame.payload.len() as u32 + 1;
            client.send([window(0, by), window(1, by)].concat()).await;
        }
    }
    assert_eq!(got, 20_000 * 64);
}

#[tokio::test]
async fn an_early_answer_ends_an_upload_without_an_error() {
    let origin = RawOrigin::start().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    let mut client = Frames::connect(proxy.address).await;
    client.send(headers(0, 1, POST)).await;
    client.send(frame(DATA, 0, 1, "begin")).await;
    let mut upstream = origin.accept().await;
    upstream.request_head().await;
    upstream
        .send("HTTP/1.1 413 Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig")
        .await;
    assert_eq!(client.verdict(1).await, Verdict::Status(413));
    let mut body = Vec::new();
    loop {
        let frame = client.next_of(&[DATA, RST_STREAM]).await;
        if frame.kind == RST_STREAM {
            // RFC 9113 §8.1: after a whole answer, NO_ERROR.
            assert_eq!((frame.code(), body.as_slice()), (0, &b"big"[..]));
            break;
        }
        body.extend(frame.payload);
        if frame.flags & END_STREAM != 0 {
            assert_eq!(body, b"big");
            break;
        }
    }
    // The connection goes on.
    client.send(headers(END_STREAM, 3, GET)).await;
    let mut upstream = origin.accept().await;
    upstream.request().await;
    upstream.send("HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(client.verdict(3).await, Verdict::Status(200));
}

#[tokio::test]
async fn an_upload_that_the_client_resets_is_a_break_at_the_origin() {
    let origin = RawOrigin::start().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    for whole_connection in [false, true] {
        let mut client = Frames::connect(proxy.address).await;
        client.send(headers(0, 1, POST)).await;
        client.send(frame(DATA, 0, 1, "begin")).await;
        let mut upstream = origin.accept().await;
        upstream.request_head().await;
        assert_eq!(upstream.exactly(10).await, b"5\r\nbegin\r\n");
        if whole_connection {
            drop(client);
            upstream.ended().await;
        } else {
            client.send(reset(1, CANCEL)).await;
            upstream.ended().await;
        }
    }
}

#[tokio::test]
async fn interim_responses_reach_a_client_of_http_2() {
    let origin = RawOrigin::start().await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    let mut client = Frames::connect(proxy.address).await;
    client.send(headers(0, 1, &[POST, &[("expect", "100-continue")]].concat())).await;
    let mut upstream = origin.accept().await;
    upstream.request_head().await;
    upstream.send("HTTP/1.1 100 Continue\r\n\r\n").await;
    assert_eq!(client.verdict(1).await, Verdict::Status(100));
    client.send(frame(DATA, END_STREAM, 1, "ab")).await;
    assert_eq!(upstream.exactly(12).await, b"2\r\nab\r\n0\r\n\r\n");
    upstream.send("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await;
    assert_eq!(client.verdict(1).await, Verdict::Status(103));
    assert_eq!(client.verdict(1).await, Verdict::Status(200));
}

#[tokio::test]
async fn a_stream_that_nobody_reads_does_not_stop_the_others() {
    let origin = ScriptedOrigin::start(|request| {
        let body = if request.target == "/x" { vec![7; 8 << 20] } else { b"ok".to_vec() };
        Script::keep(
            [
                format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()).into_bytes(),
                body,
            ]
            .concat(),
        )
    })
    .await;
    let proxy = Proxy::before("HTTP", &[origin.address]).await;
    let mut client = Frames::connect(proxy.address).await;
    // The connection may take anything, the first stream only its initial window.
    client.send(window(0, 1 << 30)).await;
    client.send(headers(END_STREAM, 1, GET)).await;
    let mut got = 0;
    while got < 65_535 {
        let frame = client.next_of(&[HEADERS, DATA]).await;
        got += if frame.kind == DATA { frame.payload.len() } else { 0 };
    }
    for stream in (3..43).step_by(2) {
        let small = [&GET[..3], &[(":path", "/small")]].concat();
        client.send(headers(END_STREAM, stream, &small)).await;
        assert_eq!(client.verdict(stream).await, Verdict::Status(200));
    }
}
