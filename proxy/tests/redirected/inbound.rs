//! What is connected to beside the sidecar.

use std::net::{IpAddr, SocketAddr, TcpStream};

use towpath_intercept::{Loopback, Spec};

use crate::machines::*;

/// Policies of a sidecar that takes what comes, and these documents.
pub(crate) fn inbound(annotation: &str, documents: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: sidecars
  annotations: {{towpath.dev/nodes: \"*\"{annotation}}}
spec:
  gatewayClassName: towpath
  listeners:
  - {{name: inbound, port: 15006, protocol: towpath.dev/Inbound}}
{documents}"
    )
}

/// A Service of which one endpoint stands behind the sidecar.
pub(crate) fn behind(name: &str, protocol: &str, address: SocketAddr) -> String {
    format!(
        "---
apiVersion: towpath.dev/v1alpha1
kind: Service
metadata: {{name: {name}}}
spec:
  protocol: {protocol}
  endpoints: [{{name: only, address: \"{address}\", sidecar: {{node: here}}}}]
"
    )
}

/// Tells each client by which address it is seen.
pub(crate) fn tells_who(mut tcp: TcpStream) {
    use std::io::{Read, Write};
    let client = tcp.peer_addr().unwrap().ip().to_string();
    let _ = tcp.write_all(client.as_bytes());
    let _ = tcp.read_to_end(&mut Vec::new());
}

#[test]
fn an_endpoint_behind_the_sidecar_has_its_services_terms_and_others_are_passed_through() {
    let (client, server) = Machine::pair();
    server.serve(8001, http("app"));
    server.serve(5432, says("db"));
    server.serve(7000, says("other"));
    let documents = behind("app", "FOLLOW", (server.v4, 8001).into())
        + &behind("db", "TCP", (server.v6, 5432).into());
    let sidecar = Sidecar::start(&server, &inbound("", &documents));
    server.redirect_inbound();
    let answer = get(&mut client.connect((server.v4, 8001)), "app.test");
    let expected = format!("x-forwarded-for: {}", client.v4);
    assert!(answer.starts_with("app\n") && answer.contains(&expected), "{answer}");
    assert_eq!(heard(&mut client.connect((server.v6, 5432))), "db");
    assert_eq!(heard(&mut client.connect((server.v4, 7000))), "other");
    assert_eq!(heard(&mut client.connect((server.v6, 7000))), "other");
    let requests = [("service", "inbound/app/only")];
    assert_eq!(sidecar.metric("towpath_requests_total", &requests), 1.0);
    let picks = |service| sidecar.metric("towpath_picks_total", &[("service", service)]);
    assert_eq!((picks("inbound/db/only"), picks("passthrough")), (1.0, 2.0));
    let line = sidecar.logged(|line| line["service"] == "inbound/db/only");
    let seen: SocketAddr = line["client"].as_str().unwrap().parse().unwrap();
    assert_eq!(seen.ip(), IpAddr::from(client.v6));
}

#[test]
fn by_tproxy_the_application_sees_the_clients_address() {
    let (client, server) = Machine::pair();
    server.serve(5432, tells_who);
    server.serve(7000, tells_who);
    let documents = behind("db", "TCP", (server.v4, 5432).into());
    let policies = inbound(", towpath.dev/tproxy: \"true\"", &documents);
    // Taking connections to any address, and connecting from any, is a privilege.
    let _sidecar = Sidecar::start_with(&server, &policies, &[]);
    server.intercept(&Spec { outbound: None, tproxy: true, ..Spec::default() });
    for (to, expected) in [
        (SocketAddr::from((server.v4, 5432)), IpAddr::from(client.v4)),
        ((server.v4, 7000).into(), client.v4.into()),
        ((server.v6, 7000).into(), client.v6.into()),
    ] {
        assert_eq!(heard(&mut client.connect(to)), expected.to_string(), "{to}");
    }
}

/// Answers requests with the client's address and port.
fn tells_who_by_http(mut tcp: TcpStream) {
    use std::io::{BufRead, BufReader, Write};
    let answer = tcp.peer_addr().unwrap().to_string();
    let mut lines = BufReader::new(tcp.try_clone().unwrap()).lines();
    while let Some(Ok(line)) = lines.next() {
        let length = answer.len();
        if line.is_empty()
            && write!(tcp, "HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{answer}").is_err()
        {
            return;
        }
    }
}

/// Each client has connections of its own then, which are used again for it and for nobody else.
#[test]
fn by_tproxy_http_comes_from_the_clients_address_on_connections_of_its_own() {
    let (client, server) = Machine::pair();
    server.serve(8001, tells_who_by_http);
    server.serve(9000, tells_who_by_http);
    let documents = behind("app", "HTTP", (server.v4, 8001).into());
    let policies = inbound(", towpath.dev/tproxy: \"true\"", &documents);
    let _sidecar = Sidecar::start_with(&server, &policies, &[]);
    // Nobody takes what is sent from here, the proxy's own connections least of all.
    server.intercept(&Spec {
        tproxy: true,
        loopback: Loopback::Own,
        proxy_user: None,
        proxy_group: None,
        ..Spec::default()
    });
    for to in [SocketAddr::from((server.v4, 8001)), (server.v6, 9000).into()] {
        let seen = |tcp: &mut TcpStream| get(tcp, "app.test").parse::<SocketAddr>().unwrap();
        let (mut one, mut other) = (client.connect(to), client.connect(to));
        let (first, second) = (seen(&mut one), seen(&mut other));
        assert_eq!(first.ip(), one.local_addr().unwrap().ip(), "{to}");
        assert_ne!(first, second, "{to}");
        assert_eq!([seen(&mut one), seen(&mut other)], [first, second], "{to}");
    }
}

/// An address has some thousand ports, and what is closed keeps its own for a minute.
#[test]
fn by_tproxy_a_client_of_short_connections_runs_out_of_no_ports() {
    let (client, server) = Machine::pair();
    server.serve(8001, tells_who_by_http);
    let documents = behind("app", "HTTP", (server.v4, 8001).into());
    let policies = inbound(", towpath.dev/tproxy: \"true\"", &documents);
    let _sidecar = Sidecar::start_with(&server, &policies, &[]);
    server.intercept(&Spec { outbound: None, tproxy: true, ..Spec::default() });
    let range = "/proc/sys/net/ipv4/ip_local_port_range";
    server.enter(|| std::fs::write(range, "40001 40040").unwrap());
    for nth in 0..120 {
        let answer = get(&mut client.connect((server.v4, 8001)), "app.test");
        assert!(answer.starts_with(&format!("{}:", client.v4)), "{nth}: {answer}");
    }
}
