//! Opaque TCP and TLS passed through: not a byte changed, ends as they came.

use std::{sync::Arc, time::Duration};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use towpath_tests::{End, Proxy, RawOrigin, Wire, digest, listener_port};

async fn pair() -> (RawOrigin, Proxy, Wire, Wire) {
    let origin = RawOrigin::start().await;
    let proxy = Proxy::before("TCP", &[origin.address]).await;
    let client = Wire::connect(proxy.address).await;
    let upstream = origin.accept().await;
    (origin, proxy, client, upstream)
}

#[tokio::test]
async fn bytes_pass_both_ways_whoever_speaks_first() {
    let (_origin, _proxy, mut client, mut upstream) = pair().await;
    upstream.send("220 ready\r\n").await;
    assert_eq!(client.exactly(11).await, b"220 ready\r\n");
    client.send(b"\0\xff\r\nGET / HTTP/1.1\r\n\r\n").await;
    assert_eq!(upstream.exactly(22).await, b"\0\xff\r\nGET / HTTP/1.1\r\n\r\n");
    for n in 0..100_u8 {
        client.send([n]).await;
        assert_eq!(upstream.exactly(1).await, [n]);
        upstream.send([n, n]).await;
        assert_eq!(client.exactly(2).await, [n, n]);
    }
}

#[tokio::test]
async fn one_side_may_finish_while_the_other_goes_on() {
    let (_origin, _proxy, mut client, mut upstream) = pair().await;
    client.send("last words").await;
    client.finish().await;
    assert_eq!(upstream.rest().await, (b"last words".to_vec(), End::Clean));
    upstream.send(vec![7; 1 << 20]).await;
    upstream.finish().await;
    assert_eq!(client.rest().await, (vec![7; 1 << 20], End::Clean));

    let (_origin, _proxy, mut client, mut upstream) = pair().await;
    upstream.send("last words").await;
    upstream.finish().await;
    assert_eq!(client.rest().await, (b"last words".to_vec(), End::Clean));
    client.send(vec![7; 1 << 20]).await;
    client.finish().await;
    assert_eq!(upstream.rest().await, (vec![7; 1 << 20], End::Clean));
}

#[tokio::test]
async fn a_reset_is_never_a_clean_end() {
    let (_origin, _proxy, mut client, mut upstream) = pair().await;
    client.send("half a").await;
    assert_eq!(upstream.exactly(6).await, b"half a");
    client.reset();
    assert_eq!(upstream.ended().await, End::Reset);

    let (_origin, _proxy, mut client, mut upstream) = pair().await;
    upstream.send("half a").await;
    assert_eq!(client.exactly(6).await, b"half a");
    upstream.reset();
    assert_eq!(client.ended().await, End::Reset);
}

#[tokio::test]
async fn a_connection_that_no_endpoint_takes_is_closed() {
    let gone = ([127, 0, 0, 1], listener_port()).into();
    let proxy = Proxy::before("TCP", &[gone]).await;
    // The end may come before `connect` has even returned.
    match tokio::net::TcpStream::connect(proxy.address).await {
        Ok(stream) => drop(Wire::new(stream).ended().await),
        Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset),
    }
    // And one that refuses costs nothing while another takes it.
    let origin = RawOrigin::start().await;
    let proxy = Proxy::before("TCP", &[gone, origin.address]).await;
    for _ in 0..4 {
        let mut client = Wire::connect(proxy.address).await;
        client.send("hello").await;
        assert_eq!(origin.accept().await.exactly(5).await, b"hello");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_transfer_both_ways_at_once_arrives_whole() {
    const BLOCK: usize = 1 << 20;
    const BLOCKS: u64 = 200;
    let (_origin, _proxy, client, upstream) = pair().await;
    let run = |wire: Wire, seed: u64| async move {
        let (mut read, mut write) = wire.into_stream().into_split();
        let send = tokio::spawn(async move {
            let mut sum = 0_u64;
            let mut rng = fastrand::Rng::with_seed(seed);
            let mut block = vec![0; BLOCK];
            rng.fill(&mut block);
            for n in 0..BLOCKS {
                // Each block differs, so that a swapped or doubled one shows.
                block[..8].copy_from_slice(&rng.u64(..).to_be_bytes());
                sum = sum.rotate_left(1) ^ sample(&block) ^ n;
                write.write_all(&block).await.expect("takes it all");
            }
            write.shutdown().await.expect("finishes");
            sum
        });
        let (mut sum, mut block) = (0_u64, vec![0; BLOCK]);
        for n in 0..BLOCKS {
            read.read_exact(&mut block).await.expect("brings it all");
            sum = sum.rotate_left(1) ^ sample(&block) ^ n;
        }
        assert_eq!(read.read(&mut block).await.expect("a clean end"), 0);
        (send.await.expect("sent"), sum)
    };
    let ((sent_up, got_down), (sent_down, got_up)) = tokio::join!(run(client, 1), run(upstream, 2));
    assert_eq!((sent_up, sent_down), (got_up, got_down));
}

/// A digest over the beginning and every 61st byte: in a debug build all of them would take most of the test.
fn sample(block: &[u8]) -> u64 {
    let some: Vec<u8> = block[..64].iter().chain(block.iter().step_by(61)).copied().collect();
    digest(&some)
}

#[tokio::test]
async fn tls_passes_through_by_name() {
    let (first, second) = (TlsOrigin::start("a.test").await, TlsOrigin::start("b.test").await);
    let port = listener_port();
    let mut policies = format!(
        "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: edge, annotations: {{towpath.dev/bind: 127.0.0.1}}}}
spec:
  gatewayClassName: towpath
  listeners:
  - {{name: a, port: {port}, protocol: TLS, hostname: a.test, tls: {{mode: Passthrough}}}}
  - {{name: b, port: {port}, protocol: TLS, hostname: b.test, tls: {{mode: Passthrough}}}}
"
    );
    for (name, origin) in [("a", &first), ("b", &second)] {
        policies += &format!(
            "---
apiVersion: gateway.networking.k8s.io/v1alpha2
kind: TLSRoute
metadata: {{name: {name}}}
spec:
  parentRefs: [{{name: edge, sectionName: {name}}}]
  hostnames: [{name}.test]
  rules: [{{backendRefs: [{{name: {name}}}]}}]
---
apiVersion: towpath.dev/v1alpha1
kind: Service
metadata: {{name: {name}}}
spec: {{protocol: TCP, endpoints: [{{name: e, address: \"{}\"}}]}}
",
            origin.address
        );
    }
    let proxy = Proxy::start(port, &policies).await;
    for (origin, name) in [(&first, "a.test"), (&second, "b.test")] {
        let answer =
            origin.ask(proxy.address, name).await.expect("a handshake with the origin itself");
        assert_eq!(answer, name, "the origin whose certificate only its own root signs");
    }
    // A name nobody serves gets no connection, nor do bytes that are no TLS.
    assert!(first.ask(proxy.address, "c.test").await.is_err());
    let mut client = Wire::connect(proxy.address).await;
    client.try_send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    client.ended().await;
    // A ClientHello that comes byte by byte is still one.
    let answer = first.ask_slowly(proxy.address, "a.test").await.expect("a handshake");
    assert_eq!(answer, "a.test");
}

/// Speaks TLS with a certificate of its own making, and says its name.
struct TlsOrigin {
    address: std::net::SocketAddr,
    root: rustls::pki_types::CertificateDer<'static>,
    task: tokio::task::JoinHandle<()>,
}

impl TlsOrigin {
    async fn start(name: &'static str) -> Self {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
        let root = made.cert.der().clone();
        let key =
            rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into();
        let config = rustls::ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![root.clone()], key)
            .expect("a usable certificate");
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound");
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(socket).await else { continue };
                let mut word = [0; 4];
                if stream.read_exact(&mut word).await.is_ok()
                    && stream.write_all(name.as_bytes()).await.is_ok()
                {
                    // A client that does not wait for the end has its answer already.
                    let _ = stream.shutdown().await;
                }
            }
        });
        Self { address, root, task }
    }

    async fn ask(
        &self,
        address: std::net::SocketAddr,
        name: &'static str,
    ) -> std::io::Result<String> {
        let socket = tokio::net::TcpStream::connect(address).await?;
        self.handshake(socket, name).await
    }

    /// The same through a relay that sends a byte at a time.
    async fn ask_slowly(
        &self,
        address: std::net::SocketAddr,
        name: &'static str,
    ) -> std::io::Result<String> {
        let relay = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let near = tokio::net::TcpStream::connect(relay.local_addr()?).await?;
        let (mut near_read, mut near_write) = relay.accept().await?.0.into_split();
        let far = tokio::net::TcpStream::connect(address).await?;
        far.set_nodelay(true)?;
        let (mut far_read, mut far_write) = far.into_split();
        tokio::spawn(async move {
            let mut byte = [0];
            while near_read.read_exact(&mut byte).await.is_ok()
                && far_write.write_all(&byte).await.is_ok()
            {}
        });
        tokio::spawn(async move { tokio::io::copy(&mut far_read, &mut near_write).await });
        self.handshake(near, name).await
    }

    async fn handshake(
        &self,
        socket: tokio::net::TcpStream,
        name: &'static str,
    ) -> std::io::Result<String> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.root.clone()).expect("a root");
        let config = rustls::ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let server = rustls::pki_types::ServerName::try_from(name).expect("a name");
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let ask = async {
            let mut stream = connector.connect(server, socket).await?;
            stream.write_all(b"who?").await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            Ok(answer)
        };
        tokio::time::timeout(Duration::from_secs(10), ask)
            .await
            .unwrap_or_else(|_| panic!("{name} hangs"))
    }
}

impl Drop for TlsOrigin {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
