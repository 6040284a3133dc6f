//! Connections of clients that go to the sidecar of the server as streams of one.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use towpath_intercept::Spec;

use crate::{
    inbound::{behind, inbound, tells_who},
    machines::*,
    outbound::outbound,
    pairs::both,
};

/// A Service of opaque bytes that goes through a tunnel.
pub(crate) fn tunnelled(name: &str, address: SocketAddr) -> String {
    behind(name, "TCP", address).replace("protocol: TCP", "protocol: TCP\n  tunnel: true")
}

/// How many of the clients' connections went through the tunnel.
pub(crate) fn through_tunnel(sidecar: &Sidecar<'_>) -> f64 {
    sidecar.metric("towpath_tunnelled_connections_total", &[])
}

/// The first clients may not wait for a tunnel, on a busy machine or where neighbours have to be found.
fn assert_mostly(sidecar: &Sidecar<'_>, clients: u32) {
    let (through, most) = (through_tunnel(sidecar), f64::from(clients));
    assert!((most / 2.0..=most).contains(&through), "{through} of {clients} through the tunnel");
}

/// Reads to its end what a connection says, or how it breaks.
fn end(tcp: &mut TcpStream) -> Result<String, ErrorKind> {
    let mut said = String::new();
    tcp.read_to_string(&mut said).map_err(|error| error.kind())?;
    Ok(said)
}

/// Tells how much came once the client has said all.
fn counts(mut tcp: TcpStream) {
    let counted = std::io::copy(&mut tcp, &mut std::io::sink()).unwrap();
    tcp.write_all(format!("{counted}").as_bytes()).unwrap();
}

/// Breaks off, by a reset, when the client has said something.
fn breaks(mut tcp: TcpStream) {
    tcp.read_exact(&mut [0]).unwrap();
    socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
}

#[test]
fn what_goes_through_a_tunnel_begins_ends_and_breaks_as_without() {
    let (client, server) = Machine::pair();
    server.serve(7001, says("first"));
    server.serve(7002, counts);
    server.serve(7003, breaks);
    let (told, heard_of) = std::sync::mpsc::channel();
    server.serve(7004, move |mut tcp| {
        tcp.write_all(b"!").unwrap();
        let broke = tcp.read(&mut [0]).map_err(|error| error.kind());
        told.send(broke).unwrap();
    });
    let documents: String = (7001..=7004)
        .map(|port| tunnelled(&format!("s{port}"), (server.v4, port).into()))
        .collect();
    let (out, inward) = both(&client, &server, &documents);
    for _ in 0..3 {
        let mut greeted = client.connect((server.v4, 7001));
        assert_eq!(heard(&mut greeted), "first");
        let mut half = client.connect((server.v4, 7002));
        half.write_all(&[7; 300_000]).unwrap();
        half.shutdown(Shutdown::Write).unwrap();
        assert_eq!(end(&mut half).as_deref(), Ok("300000"));
        let mut broken = client.connect((server.v4, 7003));
        broken.write_all(b"!").unwrap();
        assert_eq!(end(&mut broken), Err(ErrorKind::ConnectionReset));
        let mut breaking = client.connect((server.v4, 7004));
        breaking.read_exact(&mut [0]).unwrap();
        socket2::SockRef::from(&breaking).set_linger(Some(Duration::ZERO)).unwrap();
        drop(breaking);
        assert_eq!(heard_of.recv().unwrap(), Err(ErrorKind::ConnectionReset));
    }
    assert_mostly(&out, 12);
    for (service, reason) in [("s7003", "upstream_reset"), ("s7004", "client_reset")] {
        let line = out.logged(|line| line["service"] == service);
        assert_eq!(line["reason"], reason, "{line}");
        let of = format!("inbound/{service}/only");
        let line = inward.logged(|line| line["service"] == of.as_str());
        assert_eq!(line["reason"], reason, "{line}");
    }
    for sidecar in [&out, &inward] {
        eventually("an end of each stream", || (sidecar.under_way() == 0).then_some(()));
    }
}

#[test]
fn large_transfers_and_slow_readers_share_a_tunnel() {
    const LARGE: usize = 24 << 20;
    let (client, server) = Machine::pair();
    server.serve(7000, echo);
    let (out, _inward) = both(&client, &server, &tunnelled("echo", (server.v4, 7000).into()));
    let sent: Vec<u8> =
        (0..LARGE as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    // Nobody reads what these get back.
    let mut slow: Vec<TcpStream> = (0..3).map(|_| client.connect((server.v4, 7000))).collect();
    for tcp in &mut slow {
        tcp.set_nonblocking(true).unwrap();
        // Until neither kernels nor windows take more.
        eventually("back-pressure", || {
            let sent = tcp.write(&sent);
            sent.is_err_and(|error| error.kind() == ErrorKind::WouldBlock).then_some(())
        });
    }
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                let received = there_and_back(client.connect((server.v4, 7000)), &sent);
                assert!(received == sent, "{} bytes came back", received.len());
            });
        }
        let mut small = client.connect((server.v4, 7000));
        for n in 0..100 {
            let word = format!("word {n}");
            exchange(&mut small, word.as_bytes(), word.as_bytes());
        }
    });
    assert_mostly(&out, 6);
    assert_eq!(out.metric("towpath_overflow_total", &[]), 0.0);
}

#[test]
fn where_no_sidecar_takes_a_tunnel_each_client_has_a_connection_of_its_own() {
    let (client, server) = Machine::pair();
    server.serve(7000, echo);
    let out = Sidecar::start(&client, &outbound(&tunnelled("echo", (server.v4, 7000).into())));
    client.redirect_outbound();
    for _ in 0..3 {
        exchange(&mut client.connect((server.v4, 7000)), b"word", b"word");
    }
    // One that does not speak it: whatever is at the tunnels' port is only an application.
    drop(out);
    server.serve(15008, says("220 not HTTP/2\r\n"));
    let out = Sidecar::start(&client, &outbound(&tunnelled("echo", (server.v4, 7000).into())));
    for _ in 0..3 {
        exchange(&mut client.connect((server.v4, 7000)), b"word", b"word");
    }
    assert_eq!(through_tunnel(&out), 0.0);
    assert_eq!(out.log().matches("no tunnel to the sidecar").count(), 1, "{}", out.log());
}

#[test]
fn an_application_that_is_away_behind_its_sidecar_is_passed_over() {
    let (client, server) = Machine::pair();
    server.serve(7000, echo);
    let away =
        format!("- {{name: away, address: \"{}:7999\", sidecar: {{node: here}}}}", server.v4);
    let documents = tunnelled("echo", (server.v4, 7000).into())
        .replace(
            "endpoints: [",
            &format!("addresses: [\"10.99.0.1\"]\n  endpoints:\n  {away}\n  - "),
        )
        .replace("}}]", "}}");
    let (out, _inward) = both(&client, &server, &documents);
    // By a connection of its own half of them would find nobody, as the sidecar takes those all the same.
    let mut in_a_row = 0;
    eventually("clients that are all served", || {
        let mut tcp = client.connect(([10, 99, 0, 1], 7000));
        let mut answer = [0; 4];
        let served = tcp.write_all(b"word").is_ok() && tcp.read_exact(&mut answer).is_ok();
        in_a_row = if served && answer == *b"word" { in_a_row + 1 } else { 0 };
        (in_a_row == 30).then_some(())
    });
    assert!(through_tunnel(&out) >= 30.0);
}

#[test]
fn by_tproxy_the_application_sees_the_clients_address_at_the_end_of_a_tunnel() {
    let (client, server) = Machine::pair();
    server.serve(7000, tells_who);
    let documents = tunnelled("who", (server.v6, 7000).into());
    let out = Sidecar::start(&client, &outbound(&documents));
    client.redirect_outbound();
    let inward = inbound(", towpath.dev/tproxy: \"true\"", &documents);
    let _inward = Sidecar::start_with(&server, &inward, &[]);
    server.intercept(&Spec { outbound: None, tproxy: true, ..Spec::default() });
    // The first may not wait for it: neighbours have to be found.
    eventually("a tunnel", || {
        assert_eq!(heard(&mut client.connect((server.v6, 7000))), client.v6.to_string());
        (through_tunnel(&out) >= 3.0).then_some(())
    });
}

#[test]
fn what_a_sidecar_drops_when_it_dies_breaks_and_what_comes_later_finds_the_next() {
    let (client, server) = Machine::pair();
    server.serve(7000, echo);
    let documents = tunnelled("echo", (server.v4, 7000).into());
    let (out, inward) = both(&client, &server, &documents);
    let mut under_way = client.connect((server.v4, 7000));
    exchange(&mut under_way, b"word", b"word");
    inward.kill();
    assert_eq!(end(&mut under_way), Err(ErrorKind::ConnectionReset));
    let _next = Sidecar::start(&server, &inbound("", &documents));
    exchange(&mut client.connect((server.v4, 7000)), b"word", b"word");
    // Nobody waits for an idle tunnel when its sidecar goes.
    out.stop();
}

#[test]
fn a_client_learns_that_its_stream_broke_after_the_server_had_ended_its_side() {
    let (client, server) = Machine::pair();
    server.serve(7000, |tcp| {
        tcp.shutdown(Shutdown::Write).unwrap();
        // It stays, and never reads.
        thread::park();
    });
    let documents = tunnelled("half", (server.v4, 7000).into());
    let (_out, inward) = both(&client, &server, &documents);
    let mut tcp = client.connect((server.v4, 7000));
    assert_eq!(end(&mut tcp).as_deref(), Ok(""));
    inward.kill();
    tcp.set_nonblocking(true).unwrap();
    eventually("a reset", || {
        tcp.write(&[0; 4096]).is_err_and(|e| e.kind() != ErrorKind::WouldBlock).then_some(())
    });
}

#[test]
fn streams_that_the_application_does_not_read_hold_up_no_other() {
    const STUCK: u32 = 100;
    let (client, server) = Machine::pair();
    server.serve(7000, |mut tcp| {
        let mut kind = [0];
        tcp.read_exact(&mut kind).unwrap();
        match kind {
            [b'e'] => echo(tcp),
            _ => thread::park(),
        }
    });
    let (out, _inward) = both(&client, &server, &tunnelled("app", (server.v4, 7000).into()));
    for _ in 0..STUCK {
        let mut tcp = client.connect((server.v4, 7000));
        // Of its own, since it ends with the test.
        thread::spawn(move || tcp.write_all(&vec![b's'; 4 << 20]));
    }
    let sent = [("service", "app"), ("direction", "request")];
    let mut before = 0.0;
    eventually("an end of what is taken", || {
        let taken = out.metric("towpath_endpoint_bytes_total", &sent);
        let windows = f64::from(STUCK) * f64::from(256 << 10);
        let stuck = taken >= windows && taken == std::mem::replace(&mut before, taken);
        stuck.then_some(())
    });
    for _ in 0..4 {
        let mut tcp = client.connect((server.v4, 7000));
        tcp.write_all(b"e").unwrap();
        for _ in 0..20 {
            exchange(&mut tcp, b"word", b"word");
        }
    }
    assert_mostly(&out, STUCK + 4);
}

#[test]
fn what_policies_do_not_say_of_the_sidecar_is_not_reached_through_it_but_as_without() {
    let (client, server) = Machine::pair();
    server.serve(7000, says("known"));
    server.serve(7001, says("unknown"));
    let known = tunnelled("known", (server.v4, 7000).into());
    let both = known.clone() + &tunnelled("unknown", (server.v4, 7001).into());
    let out = Sidecar::start(&client, &outbound(&both));
    let inward = Sidecar::start(&server, &inbound("", &known));
    client.redirect_outbound();
    server.redirect_inbound();
    for _ in 0..4 {
        assert_eq!(heard(&mut client.connect((server.v4, 7000))), "known");
        assert_eq!(heard(&mut client.connect((server.v4, 7001))), "unknown");
    }
    let through =
        |service| out.metric("towpath_tunnelled_connections_total", &[("service", service)]);
    assert_mostly(&out, 4);
    assert_eq!(through("unknown"), 0.0);
    let picks = |service| inward.metric("towpath_picks_total", &[("service", service)]);
    assert_eq!((picks("inbound/known/only"), picks("passthrough")), (4.0, 4.0));
}

#[test]
fn what_comes_under_tls_to_a_gateway_goes_through_a_tunnel_too() {
    const LARGE: usize = 6 << 20;
    let (client, server) = Machine::pair();
    server.serve(7000, |mut tcp| {
        let mut word = [0; 4];
        while tcp.read_exact(&mut word).is_ok() {
            tcp.write_all(&vec![7; LARGE]).unwrap();
        }
    });
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    let (key, certificate) = (at("key.pem"), at("cert.pem"));
    let made = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let named = ["-subj", "/CN=db.test", "-days", "2", "-keyout", &key, "-out", &certificate];
    client.output("openssl", &[&made[..], &named].concat());
    let gateway = format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: front}}
spec:
  gatewayClassName: towpath
  listeners:
  - name: tls
    port: 7443
    protocol: TLS
    tls:
      mode: Terminate
      options: {{towpath.dev/certificate-file: {certificate}, towpath.dev/private-key-file: {key}}}
---
apiVersion: gateway.networking.k8s.io/v1
kind: TCPRoute
metadata: {{name: db}}
spec:
  parentRefs: [{{name: front}}]
  rules: [{{backendRefs: [{{name: db}}]}}]
"
    );
    let documents = tunnelled("db", (server.v4, 7000).into());
    let _inward = Sidecar::start(&server, &inbound("", &documents));
    server.redirect_inbound();
    let front = Sidecar::start_with(&client, &(gateway + &documents), &[]);
    eventually("a tunnel", || {
        // As somebody who looks whether the port is open.
        let looks = ["s_client", "-brief", "-connect", "127.0.0.1:7443"];
        client.command("openssl").args(looks).stdin(Stdio::null()).output().unwrap();
        (through_tunnel(&front) > 0.0).then_some(())
    });
    let mut tls = client
        .command("openssl")
        .args(["s_client", "-quiet", "-connect", "127.0.0.1:7443"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let (mut ask, mut answer) = (tls.stdin.take().unwrap(), tls.stdout.take().unwrap());
    for _ in 0..3 {
        ask.write_all(b"word").unwrap();
        let mut read = vec![0; LARGE];
        answer.read_exact(&mut read).unwrap();
        assert!(read.iter().all(|byte| *byte == 7));
    }
    drop((ask, answer));
    tls.kill().unwrap();
    tls.wait().unwrap();
}

#[test]
fn an_answer_that_ends_an_upload_early_ends_it_for_the_client_too() {
    let (client, server) = Machine::pair();
    server.serve(7000, |mut tcp| {
        tcp.read_exact(&mut [0; 1000]).unwrap();
        tcp.write_all(b"enough").unwrap();
        // And a reset right behind it, for what is unread.
        tcp.shutdown(Shutdown::Write).unwrap();
    });
    let (out, inward) = both(&client, &server, &tunnelled("app", (server.v4, 7000).into()));
    let begun = Instant::now();
    for _ in 0..20 {
        let mut tcp = client.connect((server.v4, 7000));
        // Ends as soon as nobody takes it any more.
        let broke = std::io::copy(&mut std::io::repeat(7), &mut tcp);
        assert!(broke.is_err());
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    for sidecar in [&out, &inward] {
        eventually("an end of each stream", || (sidecar.under_way() == 0).then_some(()));
    }
    assert_mostly(&out, 20);
}
