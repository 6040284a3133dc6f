//! Rules that do not know the sidecar: what it sends is redirected back to it.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr},
    thread,
    time::{Duration, Instant},
};

use towpath_intercept::{Loopback, Spec};

use crate::{inbound::behind, machines::*, outbound::outbound};

/// A user whom the rules do not know.
const STRANGER: u32 = 1900;

/// Longest time for what takes a moment, and no time-out.
const PROMPT: Duration = Duration::from_secs(5);

const LISTENERS: [&str; 2] = ["gateway/sidecars/15001", "gateway/sidecars/15001/v6"];

/// How many of the sidecar's own connections came back to these listeners, once those of `others` are the only others
/// that it has accepted.
fn came_back(sidecar: &Sidecar<'_>, listeners: &[&str], others: usize) -> f64 {
    let sum = |name| -> f64 {
        listeners.iter().map(|listener| sidecar.metric(name, &[("listener", listener)])).sum()
    };
    // One that tests has done so before it is counted itself.
    eventually("an account of each connection", || {
        let looped = sum("towpath_looped_total");
        (sum("towpath_connections_total") == looped + others as f64).then_some(looped)
    })
}

#[test]
fn what_a_sidecar_sends_never_loops_where_the_rules_do_not_know_it_and_somebody_is_told() {
    let (client, server) = Machine::pair();
    server.serve(7000, echo);
    client.redirect_outbound();
    let sidecar = Sidecar::start_as(&client, STRANGER, &outbound(""));
    let ips: [IpAddr; 2] = [server.v4.into(), server.v6.into()];
    for (ip, listener) in ips.into_iter().zip(LISTENERS) {
        let begun = Instant::now();
        let end = client.connect((ip, 7000)).read(&mut [0]).map_err(|error| error.kind());
        assert_eq!(end, Err(ErrorKind::ConnectionReset), "{ip}");
        assert!(begun.elapsed() < PROMPT, "{ip}: {:?}", begun.elapsed());
        let looped = came_back(&sidecar, &[listener], 1);
        assert!((1.0..=3.0).contains(&looped), "{ip}: {looped} came back");
        let destination = SocketAddr::new(ip, 7000).to_string();
        let line = sidecar.logged(|line| line["destination"] == destination);
        assert_eq!(line["reason"], "looped", "{line}");
    }
    for _ in 0..20 {
        assert!(client.connect((server.v4, 7000)).read(&mut [0]).is_err());
    }
    let told = sidecar.log().matches("--proxy-user 1900").count();
    assert_eq!(told, 2, "once for each listener: {}", sidecar.log());
    // As the log says.
    client.intercept(&Spec { inbound: None, proxy_user: Some(STRANGER), ..Spec::default() });
    eventually("a connection that reaches the server", || {
        let mut tcp = client.connect((server.v4, 7000));
        (tcp.write_all(b"x").is_ok() && matches!(tcp.read(&mut [0]), Ok(1))).then_some(())
    });
}

#[test]
fn requests_that_would_loop_are_answered_and_a_drain_waits_for_nothing() {
    let (client, server) = Machine::pair();
    let documents: String = [("http1", 8001, "HTTP"), ("http2", 8002, "HTTP2")]
        .iter()
        .map(|(name, port, protocol)| {
            let address = SocketAddr::from((server.v4, *port));
            behind(name, protocol, address).replace(", sidecar: {node: here}", "")
        })
        .collect();
    client.redirect_outbound();
    let sidecar = Sidecar::start_as(&client, STRANGER, &outbound(&documents));
    for (nth, port) in [8001, 8002, 8001, 8002].into_iter().enumerate() {
        let begun = Instant::now();
        let mut tcp = client.connect((server.v4, port));
        tcp.write_all(b"GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 "), "{port}: {answer}");
        assert!(answer.contains("x-towpath-reason: looped"), "{port}: {answer}");
        assert!(begun.elapsed() < PROMPT, "{port}: {:?}", begun.elapsed());
        let looped = came_back(&sidecar, &LISTENERS, nth + 1);
        assert!(looped <= 3.0 * (nth as f64 + 1.0), "{port}: {looped} came back");
    }
    let ejected = sidecar.metric("towpath_ejections_total", &[]);
    assert_eq!(ejected, 0.0, "it says nothing of the endpoints");
    let begun = Instant::now();
    sidecar.stop();
    assert!(begun.elapsed() < PROMPT, "{:?}", begun.elapsed());
}

/// What is sent to own addresses is taken only if that is asked for.
#[test]
fn what_a_sidecar_sends_to_the_application_beside_it_never_loops() {
    let (client, server) = Machine::pair();
    server.serve(7000, echo);
    server.intercept(&Spec { loopback: Loopback::Own, ..Spec::default() });
    let listener = "  - {name: inbound, port: 15006, protocol: towpath.dev/Inbound}\n";
    let sidecar = Sidecar::start_as(&server, STRANGER, &outbound(listener));
    let begun = Instant::now();
    assert!(client.connect((server.v4, 7000)).read(&mut [0]).is_err());
    assert!(begun.elapsed() < PROMPT, "{:?}", begun.elapsed());
    let looped = came_back(&sidecar, &LISTENERS, 0);
    assert!((1.0..=3.0).contains(&looped), "{looped} came back");
}

/// By its mark alone, since the programs are of its own user; and with so few ports that programs' connections
/// share them, and have them changed by the kernel where all of them go to one.
#[test]
fn programs_connections_are_never_taken_for_the_sidecars_own() {
    const AT_ONCE: usize = 150;
    let (client, server) = Machine::pair();
    let ports = [7001, 7002, 7003];
    for port in ports {
        server.serve(port, echo);
    }
    let range = "/proc/sys/net/ipv4/ip_local_port_range";
    client.enter(|| std::fs::write(range, "40001 44000").unwrap());
    let sidecar = Sidecar::start_with(&client, &outbound(""), &[]);
    client.intercept(&Spec { inbound: None, proxy_user: None, ..Spec::default() });
    for _ in 0..3 {
        thread::scope(|scope| {
            for port in ports {
                let (client, server) = (&client, &server);
                scope.spawn(move || {
                    let mut held: Vec<_> =
                        (0..AT_ONCE).map(|_| client.connect((server.v4, port))).collect();
                    held.iter_mut().for_each(|tcp| exchange(tcp, b"all of it", b"all of it"));
                });
            }
        });
    }
    assert_eq!(came_back(&sidecar, &LISTENERS, 3 * 3 * AT_ONCE), 0.0);
}
