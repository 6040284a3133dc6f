//! HTTP/2 on either side, and between the versions.

use std::{future::poll_fn, net::SocketAddr, sync::atomic::Ordering::Relaxed};

use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream, client::SendRequest, server::SendResponse};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};
use towpath_policies::model::Protocol;

use crate::harness::{Input, Proxy, Setup, answering, eventually, origin, read_all, soon};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

pub(crate) async fn client(proxy: &Proxy) -> SendRequest<Bytes> {
    let (send, connection) = h2::client::Builder::new()
        .initial_connection_window_size(1 << 20)
        .handshake(proxy.connect().await)
        .await
        .unwrap();
    tokio::spawn(connection);
    send
}

/// An HTTP/2 origin; every stream is played by `script`.
pub(crate) async fn h2_origin<F: Future<Output = ()> + Send>(
    script: impl Fn(Request<RecvStream>, SendResponse<Bytes>) -> F + Clone + Send + 'static,
) -> SocketAddr {
    origin(move |io, _| {
        let script = script.clone();
        async move {
            let mut connection = h2::server::Builder::new()
                .data_frame_budget(1 << 30)
                .handshake::<_, Bytes>(io)
                .await
                .unwrap();
            while let Some(Ok((request, respond))) = connection.accept().await {
                let script = script.clone();
                tokio::spawn(async move { script(request, respond).await });
            }
        }
    })
    .await
    .0
}

pub(crate) async fn collect(
    body: &mut RecvStream,
) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut all = Vec::new();
    while let Some(bytes) = body.data().await {
        let bytes = bytes?;
        body.flow_control().release_capacity(bytes.len())?;
        all.extend_from_slice(&bytes);
    }
    Ok((all, body.trailers().await?))
}

fn post(uri: &str) -> Request<()> {
    Request::post(uri).body(()).unwrap()
}

async fn echo(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) {
    let (parts, mut body) = request.into_parts();
    let (bytes, trailers) = collect(&mut body).await.unwrap();
    let response = Response::builder()
        .header("x-uri", parts.uri.to_string())
        .header("x-te", parts.headers.get("te").cloned().unwrap_or(HeaderValue::from_static("-")))
        .header("x-cookies", parts.headers.get_all("cookie").iter().count());
    let mut send = respond.send_response(response.body(()).unwrap(), false).unwrap();
    send.send_data(bytes.into(), false).unwrap();
    let mut back = trailers.unwrap_or_default();
    back.insert("x-end", HeaderValue::from_static("1"));
    send.send_trailers(back).unwrap();
}

#[tokio::test]
async fn a_stream_passes_with_its_trailers_over_every_pair_of_versions() {
    let proxy = Setup::to(h2_origin(echo).await).speaking(Protocol::Http2).start().await;
    let mut request = post("http://etl.example/a?b");
    request.headers_mut().insert("te", HeaderValue::from_static("trailers"));
    let (response, mut send) = client(&proxy).await.send_request(request, false).unwrap();
    send.send_data("hello".into(), false).unwrap();
    send.send_trailers(
        [("x-rows".parse().unwrap(), HeaderValue::from_static("7"))].into_iter().collect(),
    )
    .unwrap();
    let (parts, mut body) = soon(response).await.unwrap().into_parts();
    assert_eq!(parts.headers["x-uri"], "http://etl.example/a?b");
    assert_eq!(parts.headers["x-te"], "trailers");
    let (bytes, trailers) = soon(collect(&mut body)).await.unwrap();
    let trailers = trailers.unwrap();
    assert_eq!(
        (bytes.as_slice(), &trailers["x-rows"], &trailers["x-end"]),
        (&b"hello"[..], &HeaderValue::from_static("7"), &HeaderValue::from_static("1"))
    );

    // HTTP/1.1 to HTTP/2.
    let mut io = proxy.connect().await;
    io.write_all(b"POST /a HTTP/1.1\r\nHost: etl.example\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nx-rows: 7\r\n\r\n")
        .await
        .unwrap();
    let reply = soon(Input::default().message(&mut io)).await.unwrap();
    assert!(reply.contains("x-uri: http://etl.example/a\r\n"), "{reply}");
    assert!(
        reply.contains("5\r\nhello\r\n0\r\n")
            && reply.contains("x-rows: 7")
            && reply.contains("x-end: 1"),
        "{reply}"
    );

    // HTTP/2 to HTTP/1.1.
    let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\nconnection: close\r\n\r\n2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n";
    let (addr, requests) = answering(answer).await;
    let proxy = Setup::to(addr).start().await;
    let mut request = post("http://etl.example/a");
    request.headers_mut().append("cookie", HeaderValue::from_static("a=1"));
    request.headers_mut().append("cookie", HeaderValue::from_static("b=2"));
    let (response, mut send) = client(&proxy).await.send_request(request, false).unwrap();
    send.send_data("hello".into(), false).unwrap();
    send.send_trailers(
        [("x-rows".parse().unwrap(), HeaderValue::from_static("7"))].into_iter().collect(),
    )
    .unwrap();
    let (parts, mut body) = soon(response).await.unwrap().into_parts();
    assert!(
        !parts.headers.contains_key("connection")
            && !parts.headers.contains_key("transfer-encoding")
    );
    let (bytes, trailers) = soon(collect(&mut body)).await.unwrap();
    assert_eq!(
        (bytes.as_slice(), &trailers.unwrap()["x-sum"]),
        (&b"ok"[..], &HeaderValue::from_static("1"))
    );
    let sent = requests.only();
    assert!(sent.starts_with("POST /a HTTP/1.1\r\nhost: etl.example\r\n"), "{sent}");
    assert!(sent.contains("cookie: a=1; b=2\r\n"), "{sent}");
    assert!(sent.ends_with("5\r\nhello\r\n0\r\nx-rows: 7\r\n\r\n"), "{sent}");
}

#[tokio::test]
async fn a_malformed_http2_request_resets_its_stream_and_no_origin_sees_it() {
    let (addr, requests) = answering(OK).await;
    let proxy = Setup::to(addr).start().await;
    let with = |name: &'static str, value: &'static str| {
        let mut request = post("http://a.example/");
        request.headers_mut().append(name, HeaderValue::from_static(value));
        request
    };
    let mut two_hosts = with("host", "a.example");
    two_hosts.headers_mut().append("host", HeaderValue::from_static("a.example"));
    let mut two_lengths = with("content-length", "0");
    two_lengths.headers_mut().append("content-length", HeaderValue::from_static("0"));
    for (what, request) in [
        ("host against :authority", with("host", "b.example")),
        ("two hosts", two_hosts),
        ("two content-lengths", two_lengths),
    ] {
        let (response, _) = client(&proxy).await.send_request(request, true).unwrap();
        let error = soon(response).await.err().unwrap_or_else(|| panic!("{what} was answered"));
        assert_eq!(error.reason(), Some(Reason::PROTOCOL_ERROR), "{what}: {error}");
    }
    assert!(requests.all().is_empty());
    let (response, _) = client(&proxy).await.send_request(with("host", "A.example"), true).unwrap();
    assert_eq!(soon(response).await.unwrap().status(), 200, "equal but for case");
}

#[tokio::test]
async fn connect_is_refused_and_a_bad_path_is_a_400() {
    let (addr, requests) = answering(OK).await;
    let proxy = Setup::to(addr).start().await;
    let mut connect = Request::new(());
    *connect.method_mut() = Method::CONNECT;
    *connect.uri_mut() = "a.example:443".parse().unwrap();
    let (response, _) = client(&proxy).await.send_request(connect, false).unwrap();
    assert_eq!(soon(response).await.unwrap().status(), StatusCode::METHOD_NOT_ALLOWED);
    let (response, _) =
        client(&proxy).await.send_request(post("http://a.example/%00"), true).unwrap();
    assert_eq!(soon(response).await.unwrap().status(), StatusCode::BAD_REQUEST);
    assert!(requests.all().is_empty());
}

#[tokio::test]
async fn grpc_gets_its_own_kind_of_error() {
    let proxy = Setup::to_all(&[]).speaking(Protocol::Http2).start().await;
    let mut request = post("http://etl.example/etl.Load/Put");
    request
        .headers_mut()
        .insert("content-type", HeaderValue::from_static("application/grpc+proto"));
    let (response, _) = client(&proxy).await.send_request(request, true).unwrap();
    let (parts, body) = soon(response).await.unwrap().into_parts();
    assert_eq!(
        (parts.status, &parts.headers["grpc-status"]),
        (StatusCode::OK, &HeaderValue::from_static("14"))
    );
    assert!(parts.headers.contains_key("grpc-message") && body.is_end_stream());
    assert_eq!(parts.headers["x-towpath-reason"], "no_healthy_endpoint");
}

#[tokio::test]
async fn an_interim_answer_passes_between_the_versions() {
    let script = |request: Request<RecvStream>, mut respond: SendResponse<Bytes>| async move {
        assert_eq!(request.headers()["expect"], "100-continue");
        respond.send_informational(Response::builder().status(100).body(()).unwrap()).unwrap();
        let (bytes, _) = collect(&mut request.into_body()).await.unwrap();
        let mut send = respond.send_response(Response::new(()), false).unwrap();
        send.send_data(bytes.into(), true).unwrap();
    };
    let proxy = Setup::to(h2_origin(script).await).speaking(Protocol::Http2).start().await;
    let mut io = proxy.connect().await;
    io.write_all(
        b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n",
    )
    .await
    .unwrap();
    let mut input = Input::default();
    assert_eq!(
        soon(input.until(&mut io, "\r\n\r\n")).await.unwrap(),
        "HTTP/1.1 100 Continue\r\n\r\n"
    );
    io.write_all(b"abc").await.unwrap();
    let reply = soon(input.until(&mut io, "abc")).await.unwrap();
    assert!(reply.starts_with("HTTP/1.1 200 "), "{reply}");
}

#[tokio::test]
async fn a_reset_in_the_middle_is_passed_on_with_its_reason() {
    let (go, held) = tokio::sync::watch::channel(0);
    let script = move |_, mut respond: SendResponse<Bytes>| {
        let mut held = held.clone();
        let turn = *held.borrow() + 1;
        async move {
            let mut send = respond.send_response(Response::new(()), false).unwrap();
            send.send_data("half".into(), false).unwrap();
            held.wait_for(|seen| *seen == turn).await.unwrap();
            send.send_reset(Reason::ENHANCE_YOUR_CALM);
        }
    };
    let addr = h2_origin(script).await;
    let proxy = Setup::to(addr).speaking(Protocol::Http2).start().await;
    let (response, _) = client(&proxy).await.send_request(post("http://a/"), true).unwrap();
    let mut body = soon(response).await.unwrap().into_body();
    assert_eq!(soon(body.data()).await.unwrap().unwrap(), "half");
    go.send_replace(1);
    let error = soon(collect(&mut body)).await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::ENHANCE_YOUR_CALM));

    let mut io = proxy.connect().await;
    io.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    soon(Input::default().until(&mut io, "half\r\n")).await.unwrap();
    go.send_replace(2);
    assert_eq!(soon(read_all(&mut io)).await.0, "", "no last chunk");
}

#[tokio::test]
async fn a_connection_that_breaks_mid_body_resets_the_clients_stream() {
    let (addr, _) = origin(|mut io, _| async move {
        Input::default().message(&mut io).await.unwrap();
        io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await.unwrap();
    })
    .await;
    let proxy = Setup::to(addr).start().await;
    let (response, _) = client(&proxy)
        .await
        .send_request(Request::get("http://a/").body(()).unwrap(), true)
        .unwrap();
    match soon(response).await {
        Ok(response) => {
            let error = soon(collect(&mut response.into_body())).await.unwrap_err();
            assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR));
        }
        Err(error) => assert_eq!(error.reason(), Some(Reason::INTERNAL_ERROR)),
    }
}

#[tokio::test]
async fn a_client_that_cancels_cancels_the_origins_stream() {
    let (sender, mut reasons) = tokio::sync::mpsc::channel(4);
    let script = move |request: Request<RecvStream>, mut respond: SendResponse<Bytes>| {
        let sender = sender.clone();
        async move {
            let _request = request;
            let mut send = respond.send_response(Response::new(()), false).unwrap();
            sender.send(None).await.unwrap();
            let reason = poll_fn(|cx| send.poll_reset(cx)).await.unwrap();
            sender.send(Some(reason)).await.unwrap();
        }
    };
    let proxy = Setup::to(h2_origin(script).await).speaking(Protocol::Http2).start().await;
    let (response, mut send) = client(&proxy).await.send_request(post("http://a/"), false).unwrap();
    let _response = soon(response).await.unwrap();
    assert_eq!(soon(reasons.recv()).await, Some(None));
    send.send_reset(Reason::CANCEL);
    assert_eq!(soon(reasons.recv()).await, Some(Some(Reason::CANCEL)));
    let live = proxy.service.live.clone();
    eventually("nothing is in flight", || {
        live.requests.load(std::sync::atomic::Ordering::Relaxed) == 0
    })
    .await;
}

pub(crate) async fn push_all(send: &mut SendStream<Bytes>, mut bytes: Bytes) {
    while !bytes.is_empty() {
        send.reserve_capacity(bytes.len());
        let room = poll_fn(|cx| send.poll_capacity(cx)).await.unwrap().unwrap();
        send.send_data(bytes.split_to(room.min(bytes.len())), false).unwrap();
    }
    send.send_data(Bytes::new(), true).unwrap();
}

#[tokio::test]
async fn a_large_body_passes_whole_under_flow_control() {
    let proxy = Setup::to(h2_origin(echo).await).speaking(Protocol::Http2).start().await;
    let body = Bytes::from((0..6_000_000u32).map(|n| (n / 7).to_le_bytes()[0]).collect::<Vec<_>>());
    let (response, mut send) = client(&proxy).await.send_request(post("http://a/"), false).unwrap();
    soon(push_all(&mut send, body.clone())).await;
    let (back, _) = soon(collect(&mut soon(response).await.unwrap().into_body())).await.unwrap();
    assert!(back == body, "the body changed");
}

#[tokio::test]
async fn a_reader_that_stalls_stalls_the_writer_and_not_its_neighbours() {
    let sent = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = sent.clone();
    let script = move |request: Request<RecvStream>, mut respond: SendResponse<Bytes>| {
        let count = count.clone();
        async move {
            let mut send = respond.send_response(Response::new(()), false).unwrap();
            if request.uri().path() == "/small" {
                return send.send_data("small".into(), true).unwrap();
            }
            loop {
                send.reserve_capacity(65_536);
                let Some(Ok(room)) = poll_fn(|cx| send.poll_capacity(cx)).await else { return };
                if send.send_data(vec![0; room].into(), false).is_err() {
                    return;
                }
                count.fetch_add(room, std::sync::atomic::Ordering::SeqCst);
            }
        }
    };
    let proxy = Setup::to(h2_origin(script).await).speaking(Protocol::Http2).start().await;
    let mut client = client(&proxy).await;
    let (response, _) = client.send_request(post("http://a/endless"), true).unwrap();
    let _stalled = soon(response).await.unwrap();
    let mut last = usize::MAX;
    // Quiet when two looks, far apart in work done by others, see the same.
    for _ in 0..200 {
        for _ in 0..20 {
            let (response, _) = client.send_request(post("http://a/small"), true).unwrap();
            let (bytes, _) =
                soon(collect(&mut soon(response).await.unwrap().into_body())).await.unwrap();
            assert_eq!(bytes, b"small");
        }
        let now = sent.load(std::sync::atomic::Ordering::SeqCst);
        if now == last {
            break;
        }
        last = now;
    }
    assert!(last < 8 << 20, "{last} bytes were taken from the origin and not delivered");
}

#[tokio::test]
async fn clients_that_read_nothing_hold_up_no_others_on_a_shared_connection() {
    let script = |request: Request<RecvStream>, mut respond: SendResponse<Bytes>| async move {
        let mut send = respond.send_response(Response::new(()), false).unwrap();
        if request.uri().path() == "/large" {
            return push_all(&mut send, vec![7; 3 << 20].into()).await;
        }
        loop {
            send.reserve_capacity(65_536);
            let Some(Ok(room)) = poll_fn(|cx| send.poll_capacity(cx)).await else { return };
            if send.send_data(vec![0; room].into(), false).is_err() {
                return;
            }
        }
    };
    let proxy = Setup::to(h2_origin(script).await).speaking(Protocol::Http2).start().await;
    let mut hoarder = client(&proxy).await;
    let mut unread = Vec::new();
    // More than a connection's window and what may be lent to it: 64 and 32 MiB.
    for _ in 0..120 {
        let (response, _) = hoarder.send_request(post("http://a/endless"), true).unwrap();
        unread.push(soon(response).await.unwrap());
    }
    for _ in 0..3 {
        let (response, _) =
            client(&proxy).await.send_request(post("http://a/large"), true).unwrap();
        let mut body = soon(response).await.unwrap().into_body();
        assert_eq!(soon(collect(&mut body)).await.unwrap().0.len(), 3 << 20);
    }
}

#[tokio::test]
async fn a_limit_on_connections_is_an_overflow_and_no_failure_of_the_endpoint() {
    let (at, _) = origin(|io, _| async move {
        let mut server = h2::server::Builder::new();
        let mut connection =
            server.max_concurrent_streams(1).handshake::<_, Bytes>(io).await.unwrap();
        let mut unanswered = Vec::new();
        while let Some(Ok(request)) = connection.accept().await {
            unanswered.push(request);
        }
    })
    .await;
    let setup = Setup::to(at).speaking(Protocol::Http2);
    let proxy = setup.with(|s| s.service.breaker.service.max_connections = Some(1)).start().await;
    let mut client = client(&proxy).await;
    let (_first, _) = client.send_request(post("http://a/"), true).unwrap();
    eventually("the one stream", || proxy.service.live.requests.load(Relaxed) == 1).await;
    // More than it takes in a row for a failing endpoint to be ejected.
    for _ in 0..8 {
        let (refused, _) = client.send_request(post("http://a/"), true).unwrap();
        let refused = soon(refused).await.unwrap();
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(refused.headers()["x-towpath-reason"], "overflow");
    }
}

#[tokio::test]
async fn many_small_records_do_not_end_the_connection() {
    const RECORDS: usize = 20_000;
    let (go, held) = tokio::sync::watch::channel(false);
    let script = move |request: Request<RecvStream>, mut respond: SendResponse<Bytes>| {
        let mut held = held.clone();
        async move {
            held.wait_for(|go| *go).await.unwrap();
            let (bytes, _) = collect(&mut request.into_body()).await.unwrap();
            let response = Response::builder().header("x-bytes", bytes.len()).body(()).unwrap();
            respond.send_response(response, true).unwrap();
        }
    };
    let proxy = Setup::to(h2_origin(script).await).speaking(Protocol::Http2).start().await;
    let (response, mut send) = client(&proxy).await.send_request(post("http://a/"), false).unwrap();
    let record = Bytes::from(vec![7; 64]);
    let pushed = tokio::spawn(async move {
        for n in 0..RECORDS {
            send.reserve_capacity(64);
            while send.capacity() < 64 {
                if poll_fn(|cx| send.poll_capacity(cx)).await.unwrap().is_err() {
                    return;
                }
            }
            if n == RECORDS / 2 {
                go.send_replace(true);
            }
            send.send_data(record.clone(), n + 1 == RECORDS).unwrap();
        }
    });
    let response = soon(response).await.unwrap();
    assert_eq!(response.headers()["x-bytes"], (RECORDS * 64).to_string());
    soon(pushed).await.unwrap();
}

#[tokio::test]
async fn a_drained_connection_says_goaway_and_finishes_its_streams() {
    let (go, held) = tokio::sync::watch::channel(false);
    let script = move |_, mut respond: SendResponse<Bytes>| {
        let mut held = held.clone();
        async move {
            held.wait_for(|go| *go).await.unwrap();
            respond.send_response(Response::new(()), true).unwrap();
        }
    };
    let proxy = Setup::to(h2_origin(script).await).speaking(Protocol::Http2).start().await;
    let (mut send, connection) = h2::client::handshake(proxy.connect().await).await.unwrap();
    let ended = tokio::spawn(connection);
    let (response, _) = send.send_request(post("http://a/"), true).unwrap();
    eventually("the request is under way", || {
        proxy.service.live.requests.load(std::sync::atomic::Ordering::Relaxed) == 1
    })
    .await;
    proxy.drain.fire();
    go.send_replace(true);
    assert_eq!(soon(response).await.unwrap().status(), 200);
    drop(send);
    soon(ended).await.unwrap().unwrap();
}

#[tokio::test]
async fn pseudo_headers_in_trailers_are_refused() {
    let (addr, requests) = answering(OK).await;
    let proxy = Setup::to(addr).start().await;
    let mut io: TcpStream = proxy.connect().await;
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    // POST / with :authority a, open; then trailers with a second :path.
    let head = [0x83, 0x86, 0x84, 0x41, 1, b'a'];
    bytes.extend([0, 0, head.len() as u8, 1, 4, 0, 0, 0, 1]);
    bytes.extend(head);
    let trailers = [0x04, 4, b'/', b'b', b'a', b'd'];
    bytes.extend([0, 0, trailers.len() as u8, 1, 5, 0, 0, 0, 1]);
    bytes.extend(trailers);
    io.write_all(&bytes).await.unwrap();
    loop {
        let mut frame = [0; 9];
        soon(io.read_exact(&mut frame)).await.unwrap();
        let length = u32::from_be_bytes([0, frame[0], frame[1], frame[2]]);
        let mut payload = vec![0; length as usize];
        soon(io.read_exact(&mut payload)).await.unwrap();
        assert_ne!(frame[3], 1, "it is answered");
        if frame[8] == 1 && frame[3] == 3 {
            assert_eq!(payload, u32::from(Reason::PROTOCOL_ERROR).to_be_bytes());
            break;
        }
    }
    for request in requests.all() {
        assert!(!request.contains("bad"), "{request}");
    }
}
