//! Bodies, interim answers, aborts, upgrades: what passes between client and origin, and how it ends.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use towpath_policies::model::ForwardedHeader;

use crate::harness::{Input, Setup, answering, origin, read_all, soon};

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn an_answer_cut_short_never_ends_cleanly() {
    for (answer, version, starts) in [
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n",
            "1.1",
            "HTTP/1.1 200",
        ),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n8\r\nhalf", "1.1", "HTTP/1.1 200"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nhalf", "1.1", "HTTP/1.1 200"),
        ("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n4\r\nhalf\r\n", "1.0", ""),
    ] {
        let (addr, _) = origin(move |mut io, _| async move {
            Input::default().message(&mut io).await;
            io.write_all(answer.as_bytes()).await.unwrap();
        })
        .await;
        let proxy = Setup::to(addr).start().await;
        let mut io = proxy.connect().await;
        io.write_all(format!("GET / HTTP/{version}\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
        let (reply, clean) = soon(read_all(&mut io)).await;
        assert!(reply.starts_with(starts), "{reply}");
        assert!(!reply.ends_with("0\r\n\r\n"), "{reply}");
        if version == "1.0" {
            assert!(!clean, "only a reset tells an HTTP/1.0 client: {reply}");
        }
        if let Some(body) =
            reply.split("\r\n\r\n").nth(1).filter(|_| reply.contains("content-length: 8"))
        {
            assert!(body.len() < 8, "{reply}");
        }
    }
}

#[tokio::test]
async fn trailers_pass_both_ways() {
    let answer = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nx-sum: 1\r\ncontent-length: 9\r\n\r\n";
    let (addr, requests) = answering(answer).await;
    let proxy = Setup::to(addr).start().await;
    let mut io = proxy.connect().await;
    io.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Rows: 7\r\nHost: b\r\n\r\n")
        .await
        .unwrap();
    let reply = soon(Input::default().message(&mut io)).await.unwrap();
    assert!(reply.ends_with("2\r\nok\r\n0\r\nx-sum: 1\r\n\r\n"), "{reply}");
    assert!(requests.only().ends_with("3\r\nabc\r\n0\r\nx-rows: 7\r\n\r\n"));
}

#[tokio::test]
async fn interim_answers_reach_the_client() {
    let answer = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    let (addr, _) = answering(answer).await;
    let proxy = Setup::to(addr).start().await;
    let reply = soon(proxy.talk("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await;
    let interim = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nHTTP/1.1 200 OK\r\n";
    assert!(reply.starts_with(interim), "{reply}");
    let reply = soon(proxy.talk("GET / HTTP/1.0\r\nHost: a\r\n\r\n")).await;
    assert!(reply.starts_with("HTTP/1.1 200 OK\r\n"), "HTTP/1.0 knows no interim answers: {reply}");
}

#[tokio::test]
async fn the_origin_decides_when_an_expecting_client_continues() {
    let (addr, _) = origin(|mut io, _| async move {
        let mut input = Input::default();
        let head = input.until(&mut io, "\r\n\r\n").await.unwrap();
        assert!(head.contains("expect: 100-continue"), "{head}");
        io.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
        assert_eq!(input.exactly(&mut io, 3).await.unwrap(), "abc");
        io.write_all(OK.as_bytes()).await.unwrap();
    })
    .await;
    let proxy = Setup::to(addr).start().await;
    let mut io = proxy.connect().await;
    io.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let mut input = Input::default();
    let interim = soon(input.until(&mut io, "\r\n\r\n")).await.unwrap();
    assert_eq!(interim, "HTTP/1.1 100 Continue\r\n\r\n");
    io.write_all(b"abc").await.unwrap();
    assert!(soon(input.message(&mut io)).await.unwrap().starts_with("HTTP/1.1 200 OK"));
}

#[tokio::test]
async fn a_final_answer_before_the_body_is_asked_for_ends_the_connection() {
    let (addr, _) = origin(|mut io, _| async move {
        Input::default().until(&mut io, "\r\n\r\n").await.unwrap();
        io.write_all(b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 0\r\n\r\n").await.unwrap();
        let (more, _) = read_all(&mut io).await;
        assert_eq!(more, "", "the body was never asked for");
    })
    .await;
    let proxy = Setup::to(addr).start().await;
    let mut io = proxy.connect().await;
    io.write_all(
        b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n",
    )
    .await
    .unwrap();
    let head = soon(Input::default().until(&mut io, "\r\n\r\n")).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 413 ") && head.contains("connection: close"), "{head}");
    // What the client sends now is part of the body or of nothing, never a request.
    io.write_all(b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    io.shutdown().await.unwrap();
    assert_eq!(soon(read_all(&mut io)).await.0, "");
}

#[tokio::test]
async fn an_early_answer_arrives_while_the_upload_still_runs() {
    let (addr, _) = origin(|mut io, _| async move {
        let mut input = Input::default();
        input.until(&mut io, "\r\n\r\n").await.unwrap();
        input.exactly(&mut io, 10).await.unwrap();
        io.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nearly\r\n")
            .await
            .unwrap();
        input.exactly(&mut io, 10).await.unwrap();
        io.write_all(b"4\r\nlate\r\n0\r\n\r\n").await.unwrap();
    })
    .await;
    let proxy = Setup::to(addr).start().await;
    let mut io = proxy.connect().await;
    io.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 20\r\n\r\n0123456789")
        .await
        .unwrap();
    let mut input = Input::default();
    soon(input.until(&mut io, "early\r\n")).await.unwrap();
    io.write_all(b"0123456789").await.unwrap();
    soon(input.until(&mut io, "late\r\n0\r\n\r\n")).await.unwrap();
}

#[tokio::test]
async fn a_large_body_passes_whole_both_ways() {
    const SIZE: usize = 8 << 20;
    let (addr, _) = origin(|mut io, _| async move {
        let mut input = Input::default();
        let body = input.message(&mut io).await.unwrap();
        let body = body.split_once("\r\n\r\n").unwrap().1;
        io.write_all(
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes(),
        )
        .await
        .unwrap();
    })
    .await;
    let proxy = Setup::to(addr).start().await;
    let body: String = (0..SIZE / 8).map(|n| format!("{n:08}")).collect();
    let mut io = proxy.connect().await;
    let request = format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {SIZE}\r\n\r\n{body}");
    io.write_all(request.as_bytes()).await.unwrap();
    let reply = soon(Input::default().message(&mut io)).await.unwrap();
    assert!(reply.split_once("\r\n\r\n").unwrap().1 == body, "the body changed");
}

#[tokio::test]
async fn a_client_that_closes_its_sending_side_still_gets_the_answer() {
    let (addr, _) = answering(OK).await;
    let proxy = Setup::to(addr).start().await;
    let mut io = proxy.connect().await;
    io.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    io.shutdown().await.unwrap();
    assert!(soon(read_all(&mut io)).await.0.ends_with("ok"));
}

#[tokio::test]
async fn a_client_that_resets_cancels_the_origins_work() {
    let (sender, mut closed) = tokio::sync::mpsc::channel(1);
    let (addr, _) = origin(move |mut io, _| {
        let sender = sender.clone();
        async move {
            Input::default().message(&mut io).await.unwrap();
            sender.send("request").await.unwrap();
            // Never answers: ends when the proxy closes.
            let _ = io.read(&mut [0; 1]).await;
            sender.send("closed").await.unwrap();
        }
    })
    .await;
    let proxy = Setup::to(addr).start().await;
    let mut io = proxy.connect().await;
    io.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert_eq!(soon(closed.recv()).await, Some("request"));
    io.set_zero_linger().unwrap();
    drop(io);
    assert_eq!(soon(closed.recv()).await, Some("closed"));
}

#[tokio::test]
async fn a_client_that_leaves_in_its_body_cancels_the_origins_work() {
    let (sender, mut seen) = tokio::sync::mpsc::channel(1);
    let (addr, _) = origin(move |mut io, _| {
        let sender = sender.clone();
        async move { sender.send(read_all(&mut io).await.0).await.unwrap() }
    })
    .await;
    let proxy = Setup::to(addr).start().await;
    let mut io = proxy.connect().await;
    io.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n")
        .await
        .unwrap();
    drop(io);
    let sent = soon(seen.recv()).await.unwrap();
    assert!(!sent.ends_with("0\r\n\r\n"), "{sent}");
}

#[tokio::test(start_paused = true)]
async fn a_half_closed_client_is_given_up_after_its_grace() {
    let (sender, mut closed) = tokio::sync::mpsc::channel(1);
    let (addr, _) = origin(move |mut io, _| {
        let sender = sender.clone();
        async move {
            Input::default().message(&mut io).await.unwrap();
            let _ = io.read(&mut [0; 1]).await;
            sender.send(()).await.unwrap();
        }
    })
    .await;
    let proxy = Setup::to(addr).start().await;
    let mut io = proxy.connect().await;
    io.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    io.shutdown().await.unwrap();
    closed.recv().await.unwrap();
}

#[tokio::test]
async fn an_upgraded_connection_is_a_tunnel_with_half_close() {
    let (addr, _) = origin(|mut io, _| async move {
        let mut input = Input::default();
        let head = input.until(&mut io, "\r\n\r\n").await.unwrap();
        assert!(head.contains("connection: upgrade\r\nupgrade: websocket\r\n"), "{head}");
        io.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nhello")
            .await
            .unwrap();
        assert_eq!(input.exactly(&mut io, 4).await.unwrap(), "ping");
        assert_eq!(read_all(&mut io).await.0, "", "the client's half-close arrives");
        io.write_all(b"last words").await.unwrap();
    })
    .await;
    let proxy = Setup::to(addr).start().await;
    let mut io = proxy.connect().await;
    io.write_all(
        b"GET /chat HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nping",
    )
    .await
    .unwrap();
    let mut input = Input::default();
    let head = soon(input.until(&mut io, "hello")).await.unwrap();
    assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
    assert!(head.contains("upgrade: websocket") && head.contains("connection: upgrade"), "{head}");
    io.shutdown().await.unwrap();
    assert_eq!(soon(read_all(&mut io)).await.0, "last words");
}

#[tokio::test]
async fn a_refused_upgrade_is_an_ordinary_answer() {
    let (addr, _) = answering(OK).await;
    let proxy = Setup::to(addr).start().await;
    let reply = soon(proxy.talk(
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\
         GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    ))
    .await;
    assert_eq!(reply.matches("200 OK").count(), 2, "{reply}");
}

#[tokio::test]
async fn the_client_is_told_of_as_the_listener_says() {
    for (mode, expected, gone) in [
        (ForwardedHeader::Off, vec![], vec!["x-forwarded", "forwarded:"]),
        (
            ForwardedHeader::XForwarded,
            vec!["x-forwarded-for: 9.9.9.9, 127.0.0.1\r\n", "x-forwarded-proto: https\r\n"],
            vec![],
        ),
        (ForwardedHeader::Rfc7239, vec!["forwarded: for=127.0.0.1;proto=http\r\n"], vec![]),
    ] {
        let (addr, requests) = answering(OK).await;
        let proxy = Setup::to(addr)
            .with(|s| {
                s.options.forwarded = mode;
                s.options.via = Some("towpath".into());
            })
            .start()
            .await;
        let reply = soon(proxy.talk(
            "GET / HTTP/1.1\r\nHost: a\r\nVia: 1.0 x\r\nX-Forwarded-For: 9.9.9.9\r\nX-Forwarded-Proto: https\r\nConnection: close\r\n\r\n",
        ))
        .await;
        let sent = requests.only();
        for field in expected {
            assert!(sent.contains(field), "{mode:?}: {field} not in {sent}");
        }
        for field in gone {
            assert!(!sent.contains(field), "{mode:?}: {field} in {sent}");
        }
        assert!(sent.contains("via: 1.0 x\r\nvia: 1.1 towpath\r\n"), "{sent}");
        assert!(reply.contains("via: 1.1 towpath\r\n"), "{reply}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_exchange_in_which_nothing_moves_is_ended() {
    let (addr, _) = origin(|mut io, _| async move {
        Input::default().message(&mut io).await.unwrap();
        io.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf").await.unwrap();
        let _ = io.read(&mut [0; 1]).await;
    })
    .await;
    let proxy = Setup::to(addr)
        .with(|s| s.forward.idle_timeout = Some(Duration::from_secs(3)))
        .start()
        .await;
    let reply = proxy.talk("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(reply.ends_with("\r\n\r\nhalf"), "{reply}");
}

#[tokio::test]
async fn a_drain_finishes_the_exchange_and_closes() {
    let (addr, _) = origin(|mut io, _| async move {
        let mut input = Input::default();
        while input.message(&mut io).await.is_some() {
            tokio::task::yield_now().await;
            io.write_all(OK.as_bytes()).await.unwrap();
        }
    })
    .await;
    let proxy = Setup::to(addr).start().await;
    let mut idle = proxy.connect().await;
    let mut input = Input::default();
    idle.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(soon(input.message(&mut idle)).await.unwrap().ends_with("ok"));
    proxy.drain.fire();
    assert_eq!(soon(read_all(&mut idle)).await, (String::new(), true));
    let reply = soon(proxy.talk("GET / HTTP/1.1\r\nHost: a\r\n\r\n")).await;
    assert!(reply.is_empty() || reply.contains("connection: close"), "{reply}");
}

#[tokio::test]
async fn interim_answers_and_trailers_bring_in_no_field_that_the_route_removes_or_sets() {
    let (addr, _) = origin(|mut io, _| async move {
        Input::default().message(&mut io).await.unwrap();
        let fields = "server: apache\r\nx-env: staging\r\nlink: </a>\r\n";
        let final_head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n";
        let answer = format!(
            "HTTP/1.1 103 Early Hints\r\n{fields}\r\n{final_head}{fields}\r\n2\r\nok\r\n0\r\n{fields}\r\n"
        );
        io.write_all(answer.as_bytes()).await.unwrap();
    })
    .await;
    let proxy = Setup::to(addr)
        .with(|s| {
            let edit = &mut s.forward.backends[0].response_headers;
            edit.remove.push("server".into());
            edit.set.push(("x-env".into(), "live".into()));
        })
        .start()
        .await;
    let request = "GET / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\nConnection: close\r\n\r\n";
    let reply = soon(proxy.talk(request)).await;
    assert!(reply.starts_with("HTTP/1.1 103 ") && reply.contains("HTTP/1.1 200 "), "{reply}");
    assert!(!reply.contains("apache") && !reply.contains("staging"), "{reply}");
    assert_eq!(reply.matches("x-env: live").count(), 1, "{reply}");
    assert!(reply.matches("link: </a>").count() >= 2, "{reply}");
}
