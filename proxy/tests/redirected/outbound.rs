//! What programs beside the sidecar connect to.

use std::{
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    time::Instant,
};

use crate::machines::*;

/// Policies of a sidecar that takes what is sent, and these documents.
pub(crate) fn outbound(documents: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata:
  name: sidecars
  annotations: {{towpath.dev/nodes: \"*\"}}
spec:
  gatewayClassName: towpath
  listeners:
  - {{name: outbound, port: 15001, protocol: towpath.dev/Outbound}}
{documents}"
    )
}

#[test]
fn what_nothing_is_known_of_passes_through_unharmed_and_is_counted() {
    let (client, server) = Machine::pair();
    server.serve(7000, echo);
    let sidecar = Sidecar::start(&client, &outbound(""));
    client.redirect_outbound();
    let sent: Vec<u8> =
        (0..3_000_000_u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    let ips: [IpAddr; 2] = [server.v4.into(), server.v6.into()];
    for (n, ip) in (1..).zip(ips) {
        let received = there_and_back(client.connect((ip, 7000)), &sent);
        assert!(received == sent, "{} bytes came back over {ip}", received.len());
        let line =
            sidecar.logged(|line| line["destination"] == SocketAddr::new(ip, 7000).to_string());
        assert_eq!(
            (&line["service"], &line["endpoint"]),
            (&"passthrough".into(), &line["destination"])
        );
        assert_eq!(line["response_bytes"], 3_000_000, "{line}");
        for direction in ["request", "response"] {
            let labels = [("service", "passthrough"), ("direction", direction)];
            let passed = sidecar.metric("towpath_endpoint_bytes_total", &labels);
            assert_eq!(passed, f64::from(n) * 3e6, "{direction}");
        }
    }
    let listeners = ["gateway/sidecars/15001", "gateway/sidecars/15001/v6"];
    for listener in listeners {
        let labels = [("listener", listener)];
        assert_eq!(sidecar.metric("towpath_tcp_connections_total", &labels), 1.0, "{listener}");
    }
}

#[test]
fn who_connects_to_the_sidecar_itself_is_closed_and_counted() {
    let (client, _server) = Machine::pair();
    let sidecar = Sidecar::start(&client, &outbound(""));
    client.redirect_outbound();
    for _ in 0..3 {
        let mut tcp = client.connect(([127, 0, 0, 1], 15001));
        assert!(matches!(tcp.read(&mut [0]), Ok(0) | Err(_)));
    }
    let labels = [("listener", "gateway/sidecars/15001")];
    assert_eq!(sidecar.metric("towpath_not_redirected_total", &labels), 3.0);
}

#[test]
fn a_refused_connection_is_reset_and_a_sidecar_that_is_gone_lets_nothing_pass() {
    let (client, server) = Machine::pair();
    server.serve(7000, echo);
    let sidecar = Sidecar::start(&client, &outbound(""));
    client.redirect_outbound();
    let mut nobody = client.connect((server.v4, 7001));
    let begun = Instant::now();
    let end = nobody.read(&mut [0]).map_err(|e| e.kind());
    assert_eq!(end, Err(ErrorKind::ConnectionReset));
    assert!(begun.elapsed().as_secs() < 5, "{:?}", begun.elapsed());
    exchange(&mut client.connect((server.v4, 7000)), b"x", b"x");
    sidecar.kill();
    let refused = client.enter(|| TcpStream::connect((server.v4, 7000)).map_err(|e| e.kind()));
    assert_eq!(refused.err(), Some(ErrorKind::ConnectionRefused));
}

/// A Service of namespace `default` and its endpoints.
fn service(name: &str, more: &str, endpoints: &[(&str, SocketAddr)]) -> String {
    let endpoints: String = endpoints
        .iter()
        .map(|(name, address)| format!("  - {{name: {name}, address: \"{address}\"}}\n"))
        .collect();
    format!(
        "---
apiVersion: towpath.dev/v1alpha1
kind: Service
metadata: {{name: {name}}}
spec:
{more}  endpoints:
{endpoints}"
    )
}

fn route(kind: &str, host: &str, service: &str) -> String {
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: {kind}
metadata: {{name: {service}}}
spec:
  parentRefs: [{{name: sidecars}}]
  hostnames: [{host}]
  rules: [{{backendRefs: [{{name: {service}}}]}}]
"
    )
}

#[test]
fn an_address_leads_to_its_service_and_an_endpoints_own_address_to_that_endpoint() {
    let (client, server) = Machine::pair();
    server.serve(7001, says("a"));
    server.serve(7002, says("b"));
    let at = |port| SocketAddr::from((server.v4, port));
    let six = SocketAddr::from((server.v6, 7001));
    let addresses =
        "  protocol: TCP\n  addresses: [10.96.0.5, \"10.97.0.5:5432\", \"[fd96::5]:5432\"]\n";
    let sidecar = Sidecar::start(
        &client,
        &outbound(&service("db", addresses, &[("a", at(7001)), ("b", at(7002)), ("c", six)])),
    );
    client.redirect_outbound();
    for known in ["10.96.0.5:1234", "10.96.0.5:5432", "10.97.0.5:5432"] {
        let heard = heard(&mut client.connect(known.parse::<SocketAddr>().unwrap()));
        assert!(["a", "b"].contains(&heard.as_str()), "{known}: {heard}");
        let line = sidecar.logged(|line| line["destination"] == known);
        assert_eq!(line["service"], "db", "{line}");
    }
    for _ in 0..10 {
        assert_eq!(heard(&mut client.connect(at(7002))), "b", "the client means this very one");
        assert_eq!(heard(&mut client.connect(six)), "a");
    }
    let picks = |labels: &[(&str, &str)]| sidecar.metric("towpath_picks_total", labels);
    assert_eq!(picks(&[("service", "db")]), 23.0);
    // And some that the balancer chose.
    assert!(picks(&[("service", "db"), ("endpoint", "c")]) >= 10.0);
    assert_eq!(picks(&[("service", "passthrough")]), 0.0);
}

#[test]
fn http_goes_by_its_host_and_what_no_route_knows_passes_as_it_is() {
    let (client, server) = Machine::pair();
    server.serve(8000, http("there"));
    server.serve(8001, http("orders"));
    let orders = service("orders", "", &[("o", (server.v4, 8001).into())]);
    let documents = orders + &route("HTTPRoute", "orders.test", "orders");
    let sidecar = Sidecar::start(&client, &outbound(&documents));
    client.redirect_outbound();
    let mut tcp = client.connect((server.v4, 8000));
    let answer = get(&mut tcp, "Orders.test:8000");
    assert!(answer.starts_with("orders\n") && answer.contains("x-forwarded-for"), "{answer}");
    // Another host on the same connection goes on to where the connection was made to, in HTTP.
    let answer = get(&mut tcp, "other.test");
    assert!(answer.starts_with("there\n") && answer.contains("x-forwarded-for"), "{answer}");
    assert!(get(&mut tcp, "orders.test").starts_with("orders\n"));
    // And one that begins with it, as it is.
    let answer = get(&mut client.connect((server.v4, 8000)), "other.test");
    assert_eq!(answer, "there\nGET /x HTTP/1.1\r\nHost: other.test\r\n\r\n");
    let logged = |host: &str, protocol: &str| {
        sidecar.logged(|line| {
            line["protocol"] == protocol && line["host"].as_str().unwrap_or_default() == host
        })
    };
    let there = format!("{}:8000", server.v4);
    let line = logged("Orders.test:8000", "HTTP/1.1");
    assert_eq!(
        (&line["service"], &line["destination"]),
        (&"orders".into(), &there.as_str().into())
    );
    let line = logged("other.test", "HTTP/1.1");
    assert_eq!(
        (&line["service"], &line["endpoint"]),
        (&"passthrough".into(), &there.as_str().into())
    );
    assert_eq!(logged("", "TCP")["service"], "passthrough");
}

#[test]
fn http_to_a_services_address_is_routed_and_an_endpoint_that_is_meant_is_kept() {
    let (client, server) = Machine::pair();
    server.serve(8001, http("a"));
    server.serve(8002, http("b"));
    let at = |port| SocketAddr::from((server.v4, port));
    let lake =
        service("lake", "  addresses: [10.97.0.0/16]\n", &[("a", at(8001)), ("b", at(8002))]);
    let sidecar = Sidecar::start(&client, &outbound(&lake));
    client.redirect_outbound();
    let mut tcp = client.connect("10.97.1.2:80".parse::<SocketAddr>().unwrap());
    let answer = get(&mut tcp, "whatever.test");
    assert!(answer.contains("x-forwarded-for"), "{answer}");
    let mut meant = client.connect(at(8002));
    for _ in 0..10 {
        assert!(get(&mut meant, "whatever.test").starts_with("b\n"));
    }
    // A request is counted when it is over, which is after its last byte has gone.
    eventually("the last of 11 requests", || {
        let requests = sidecar.metric("towpath_requests_total", &[("service", "lake")]);
        (requests == 11.0).then_some(())
    });
}

#[test]
fn tls_goes_by_its_server_name() {
    let (client, server) = Machine::pair();
    server.serve(8443, answers("there"));
    server.serve(8444, answers("vault"));
    let vault = service("vault", "  protocol: TCP\n", &[("v", (server.v4, 8444).into())]);
    let _sidecar =
        Sidecar::start(&client, &outbound(&(vault + &route("TLSRoute", "vault.test", "vault"))));
    client.redirect_outbound();
    for (name, expected) in [("vault.test", "vault"), ("other.test", "there")] {
        let mut tcp = client.connect((server.v4, 8443));
        tcp.write_all(&hello(name)).unwrap();
        assert_eq!(heard(&mut tcp), expected, "{name}");
    }
}

fn hello(name: &'static str) -> Vec<u8> {
    let config = rustls::ClientConfig::builder_with_provider(
        rustls::crypto::aws_lc_rs::default_provider().into(),
    )
    .with_safe_default_protocol_versions()
    .unwrap()
    .with_root_certificates(rustls::RootCertStore::empty())
    .with_no_client_auth();
    let mut connection =
        rustls::ClientConnection::new(config.into(), name.try_into().unwrap()).unwrap();
    let mut bytes = Vec::new();
    connection.write_tls(&mut bytes).unwrap();
    bytes
}

/// With a route for HTTP, connections are looked at before they are passed on.
#[test]
fn a_server_that_speaks_first_is_heard_at_once_and_a_client_that_speaks_late_is_routed() {
    let (client, server) = Machine::pair();
    // SMTP and MySQL by their ports, and a port of which nothing is known.
    for port in [25, 3306, 7000] {
        server.serve(port, says("220 ready\r\n"));
    }
    server.serve(8001, http("orders"));
    let (tell, connected) = std::sync::mpsc::channel();
    let there = http("there");
    server.serve(8000, move |tcp| {
        tell.send(()).unwrap();
        there(tcp);
    });
    let orders = service("orders", "", &[("o", (server.v4, 8001).into())]);
    let documents = orders + &route("HTTPRoute", "orders.test", "orders");
    let sidecar = Sidecar::start(&client, &outbound(&documents));
    let time = |port| {
        let mut times: Vec<_> = (0..11)
            .map(|_| {
                let begun = Instant::now();
                assert_eq!(heard(&mut client.connect((server.v4, port))), "220 ready\r\n");
                begun.elapsed()
            })
            .collect();
        times.sort_unstable();
        times[5]
    };
    let direct = time(7000);
    client.redirect_outbound();
    let [smtp, mysql, unknown] = [25, 3306, 7000].map(time);
    println!("greeting: direct {direct:?}, port 25 {smtp:?}, 3306 {mysql:?}, 7000 {unknown:?}");
    for (port, time, most) in [(25, smtp, 20), (3306, mysql, 20), (7000, unknown, 40)] {
        let most = std::time::Duration::from_millis(most);
        assert!(time < direct + most, "port {port}: {time:?}, directly {direct:?}");
    }
    // Nobody has said anything, and the server is connected already.
    let mut late = client.connect((server.v4, 8000));
    connected.recv().unwrap();
    assert!(get(&mut late, "orders.test").starts_with("orders\n"));
    let mut late = client.connect((server.v4, 8000));
    connected.recv().unwrap();
    assert_eq!(get(&mut late, "a.test"), "there\nGET /x HTTP/1.1\r\nHost: a.test\r\n\r\n");
    assert!(connected.try_recv().is_err(), "what was connected meanwhile is used");
    // A client that stops in the middle of what could have been a head.
    let mut odd = client.connect((server.v4, 7000));
    odd.write_all(b"GET /").unwrap();
    assert_eq!(heard(&mut odd), "220 ready\r\n");
    // Only what was used is counted and logged.
    let labels = [("listener", "gateway/sidecars/15001")];
    assert_eq!(sidecar.metric("towpath_tcp_connections_total", &labels), 3.0 * 11.0 + 2.0);
}
