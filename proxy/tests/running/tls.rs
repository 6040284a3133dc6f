//! TLS that ends at the proxy, and TLS that passes through it.

use std::{fs, io, path::Path, process::Stdio, sync::Arc, time::Duration};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedKey, DnType, IsCa, Issuer, KeyPair,
    PKCS_RSA_SHA256, RsaKeySize, generate_simple_self_signed,
};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig, SignatureScheme,
    crypto::{WebPkiSupportedAlgorithms, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};
use towpath_policies::model::*;
use towpath_proxy::Running;

use crate::support::*;

/// Writes a certificate for `name` and its key into `dir`; both start with `file`.
pub(crate) fn write_certificate(dir: &Path, file: &str, name: &str) -> TlsServer {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed(vec![name.to_owned()]).unwrap();
    let (certificate_file, private_key_file) =
        (dir.join(format!("{file}.crt")), dir.join(format!("{file}.key")));
    fs::write(&certificate_file, cert.pem()).unwrap();
    fs::write(&private_key_file, signing_key.serialize_pem()).unwrap();
    TlsServer { certificate_file, private_key_file, second: None, alpn: vec![] }
}

/// Trusts nothing but the certificate in this file.
fn trusting(certificate: &Path, alpn: &[&str]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|p| p.as_bytes().to_vec()).collect();
    Arc::new(config).into()
}

async fn handshake(
    proxy: &Running,
    connector: &TlsConnector,
    name: &str,
) -> io::Result<TlsStream<TcpStream>> {
    let name = name.to_owned().try_into().unwrap();
    connector.connect(name, connect(proxy, "in").await).await
}

/// Everything the other side says, after the handshake.
async fn hear(mut stream: TlsStream<TcpStream>) -> String {
    let mut text = String::new();
    stream.read_to_string(&mut text).await.unwrap();
    text
}

fn chain(names: &[&str], tls: Option<&TlsServer>, kind: ChainKind) -> Chain {
    let server_names = names.iter().map(ToString::to_string).collect();
    Chain::new(server_names, tls.cloned(), kind)
}

#[tokio::test]
async fn the_server_name_chooses_certificate_and_service() {
    let dir = tempfile::tempdir().unwrap();
    let a = write_certificate(dir.path(), "a", "a.test");
    let b = write_certificate(dir.path(), "b", "x.b.test");
    let (one, two) = (named("one").await, named("two").await);
    let world = World::default()
        .service("one", Protocol::Tcp, &[one.address])
        .service("two", Protocol::Tcp, &[two.address])
        .listener(
            "in",
            vec![
                chain(&["a.test"], Some(&a), tcp("one")),
                chain(&["*.b.test"], Some(&b), tcp("two")),
            ],
        );
    let proxy = proxy_with(world).await;
    let (trust_a, trust_b) =
        (trusting(&a.certificate_file, &[]), trusting(&b.certificate_file, &[]));
    assert_eq!(hear(handshake(&proxy, &trust_a, "a.test").await.unwrap()).await, "one");
    assert_eq!(hear(handshake(&proxy, &trust_b, "x.b.test").await.unwrap()).await, "two");
    assert!(handshake(&proxy, &trust_a, "c.test").await.is_err(), "no chain for this name");
    let mut plain = connect(&proxy, "in").await;
    plain.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    assert!(matches!(plain.read(&mut [0; 16]).await, Ok(0) | Err(_)), "no TLS, no answer");
}

#[tokio::test]
async fn much_passes_under_tls_and_both_ends_are_told_of_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let tls = write_certificate(dir.path(), "a", "a.test");
    let echo = echo().await;
    let world = World::default()
        .service("echo", Protocol::Tcp, &[echo.address])
        .listener("in", vec![chain(&[], Some(&tls), tcp("echo"))]);
    let proxy = proxy_with(world).await;
    let stream = handshake(&proxy, &trusting(&tls.certificate_file, &[]), "a.test").await.unwrap();
    let (mut read, mut write) = tokio::io::split(stream);
    let sent: Vec<u8> = (0..3_000_000_u32).map(|i| ((i * 7) >> 3) as u8).collect();
    let expected = sent.clone();
    let sending = tokio::spawn(async move {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
        write
    });
    let mut received = Vec::new();
    read.read_to_end(&mut received).await.unwrap();
    sending.await.unwrap();
    assert!(received == expected);
}

/// A TLS server of its own behind the proxy.
async fn secured(tls: &TlsServer, says: &'static str) -> Origin {
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![CertificateDer::from_pem_file(&tls.certificate_file).unwrap()],
            PrivateKeyDer::from_pem_file(&tls.private_key_file).unwrap(),
        )
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    origin(move |tcp| {
        let acceptor = acceptor.clone();
        async move {
            if let Ok(mut stream) = acceptor.accept(tcp).await {
                let _ = stream.write_all(says.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
        }
    })
    .await
}

#[tokio::test]
async fn passed_through_tls_is_the_origins_own_beside_plain_and_terminated_chains() {
    let dir = tempfile::tempdir().unwrap();
    let theirs = write_certificate(dir.path(), "theirs", "db.test");
    let ours = write_certificate(dir.path(), "ours", "here.test");
    let (db, here, other) = (secured(&theirs, "db").await, named("here").await, echo().await);
    let world = World::default()
        .service("db", Protocol::Tcp, &[db.address])
        .service("here", Protocol::Tcp, &[here.address])
        .service("other", Protocol::Tcp, &[other.address])
        .listener(
            "in",
            vec![
                chain(&["db.test"], None, tcp("db")),
                chain(&["here.test"], Some(&ours), tcp("here")),
                chain(&[], None, tcp("other")),
            ],
        );
    let proxy = proxy_with(world).await;
    let trust = trusting(&theirs.certificate_file, &[]);
    assert_eq!(hear(handshake(&proxy, &trust, "db.test").await.unwrap()).await, "db");
    let trust = trusting(&ours.certificate_file, &[]);
    assert_eq!(hear(handshake(&proxy, &trust, "here.test").await.unwrap()).await, "here");
    let mut plain = connect(&proxy, "in").await;
    plain.write_all(b"hello").await.unwrap();
    plain.shutdown().await.unwrap();
    let mut text = String::new();
    plain.read_to_string(&mut text).await.unwrap();
    assert_eq!(text, "hello", "what is no TLS takes the chain without names");
}

#[tokio::test]
async fn towards_an_endpoint_under_tls_its_certificate_is_verified() {
    let dir = tempfile::tempdir().unwrap();
    let tls = write_certificate(dir.path(), "a", "db.internal");
    let db = secured(&tls, "db").await;
    let mut service = Service::new("db", Protocol::Tcp);
    let ca_file = Some(tls.certificate_file.clone());
    service.tls = Some(UpstreamTls { server_name: "db.internal".into(), ca_file });
    let mut wrong = service.clone();
    wrong.name = "wrong".into();
    wrong.tls.as_mut().unwrap().server_name = "other.internal".into();
    let world = World::default()
        .service_with(service, &[db.address])
        .service_with(wrong, &[db.address])
        .tcp("in", "db")
        .tcp("wrong", "wrong");
    let proxy = proxy_with(world).await;
    assert_eq!(told(&proxy, "in").await, "db");
    let mut refused = connect(&proxy, "wrong").await;
    assert!(refused.read(&mut [0]).await.is_err(), "a certificate for another name");
}

#[tokio::test]
async fn http_protocols_are_agreed_upon() {
    let dir = tempfile::tempdir().unwrap();
    let mut tls = write_certificate(dir.path(), "a", "a.test");
    tls.alpn = vec!["h2".into(), "http/1.1".into()];
    let world = World::default()
        .service("web", Protocol::Http1, &[local(9)])
        .routes("web", "web")
        .listener("in", vec![chain(&[], Some(&tls), http("web"))]);
    let proxy = proxy_with(world).await;
    for (offered, agreed) in
        [(&["h2", "http/1.1"][..], Some("h2")), (&["http/1.1"], Some("http/1.1")), (&[], None)]
    {
        let trust = trusting(&tls.certificate_file, offered);
        let stream = handshake(&proxy, &trust, "a.test").await.unwrap();
        let got = stream.get_ref().1.alpn_protocol();
        assert_eq!(got, agreed.map(str::as_bytes), "{offered:?}");
    }
}

#[tokio::test]
async fn a_rotated_certificate_is_served_without_a_new_configuration() {
    let dir = tempfile::tempdir().unwrap();
    let tls = write_certificate(dir.path(), "a", "a.test");
    let origin = named("hello").await;
    let world = World::default()
        .service("s", Protocol::Tcp, &[origin.address])
        .listener("in", vec![chain(&[], Some(&tls), tcp("s"))]);
    let proxy = proxy_with(world).await;
    let before = trusting(&tls.certificate_file, &[]);
    handshake(&proxy, &before, "a.test").await.unwrap();
    write_certificate(dir.path(), "a", "a.test");
    let after = trusting(&tls.certificate_file, &[]);
    eventually("the new certificate", || async {
        handshake(&proxy, &after, "a.test").await.ok().map(|_| ())
    })
    .await;
    // A new one that cannot be used leaves the one before.
    fs::write(&tls.private_key_file, "nonsense").unwrap();
    proxy.reload_certificates();
    handshake(&proxy, &after, "a.test").await.unwrap();
}

/// Takes certificates with RSA keys only.
fn old_client(certificate: &Path) -> TlsConnector {
    let mut provider = aws_lc_rs::default_provider();
    let all = provider.signature_verification_algorithms;
    let rsa = |(scheme, _): &&(SignatureScheme, _)| format!("{scheme:?}").starts_with("RSA");
    let mapping = all.mapping.iter().filter(rsa).copied().collect::<Vec<_>>().leak();
    provider.signature_verification_algorithms =
        WebPkiSupportedAlgorithms { all: all.all, mapping };
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    Arc::new(config).into()
}

#[tokio::test]
async fn of_two_certificates_a_client_gets_the_one_whose_key_it_takes() {
    let dir = tempfile::tempdir().unwrap();
    let mut tls = write_certificate(dir.path(), "ecdsa", "a.test");
    let key = KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).unwrap();
    let certificate = CertificateParams::new(vec!["a.test".to_owned()]).unwrap();
    let rsa = KeyFiles {
        certificate_file: dir.path().join("rsa.crt"),
        private_key_file: dir.path().join("rsa.key"),
    };
    fs::write(&rsa.certificate_file, certificate.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(&rsa.private_key_file, key.serialize_pem()).unwrap();
    let ecdsa_alone = tls.clone();
    tls.second = Some(rsa.clone());
    let origin = named("hello").await;
    let world = |tls: &TlsServer| {
        World::default()
            .service("s", Protocol::Tcp, &[origin.address])
            .listener("in", vec![chain(&[], Some(tls), tcp("s"))])
    };
    let proxy = proxy_with(world(&tls)).await;
    let new = trusting(&tls.certificate_file, &[]);
    assert_eq!(hear(handshake(&proxy, &new, "a.test").await.unwrap()).await, "hello");
    let old = old_client(&rsa.certificate_file);
    assert_eq!(hear(handshake(&proxy, &old, "a.test").await.unwrap()).await, "hello");
    proxy.apply(world(&ecdsa_alone).build("v2")).unwrap();
    assert!(
        handshake(&proxy, &old, "a.test").await.is_err(),
        "it would be served one it cannot take"
    );
}

/// As Kubernetes updates what it mounts: the files are links through a link that is swapped.
#[tokio::test]
async fn a_swapped_link_brings_new_certificates_and_cuts_no_connection() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let certify = |folder: &str| {
        fs::create_dir(at(folder)).unwrap();
        write_certificate(&at(folder), "tls", "a.test")
    };
    let swap = |folder: &str| {
        std::os::unix::fs::symlink(folder, at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
    };
    let first = certify("..1");
    swap("..1");
    for file in ["tls.crt", "tls.key"] {
        std::os::unix::fs::symlink(Path::new("..data").join(file), at(file)).unwrap();
    }
    let (certificate_file, private_key_file) = (at("tls.crt"), at("tls.key"));
    let tls = TlsServer { certificate_file, private_key_file, second: None, alpn: vec![] };
    let echo = echo().await;
    let world = World::default()
        .service("s", Protocol::Tcp, &[echo.address])
        .listener("in", vec![chain(&[], Some(&tls), tcp("s"))]);
    let proxy = proxy_with(world).await;
    let before = trusting(&first.certificate_file, &[]);
    let mut open = handshake(&proxy, &before, "a.test").await.unwrap();
    let second = certify("..2");
    swap("..2");
    proxy.reload_certificates();
    handshake(&proxy, &trusting(&second.certificate_file, &[]), "a.test").await.unwrap();
    assert!(handshake(&proxy, &before, "a.test").await.is_err(), "the first is served no more");
    open.write_all(b"still here").await.unwrap();
    let mut said = [0; 10];
    open.read_exact(&mut said).await.unwrap();
    assert_eq!(&said, b"still here");
}

/// A root that clients trust, and what it has signed to sign certificates with.
struct Authority {
    root: String,
    intermediate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let params = |name: &str| {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.distinguished_name.push(DnType::CommonName, name);
            params
        };
        let (root_key, key) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
        let root = params("root").self_signed(&root_key).unwrap().pem();
        let above = Issuer::new(params("root"), root_key);
        let intermediate = params("intermediate").signed_by(&key, &above).unwrap().pem();
        Self { root, intermediate, issuer: Issuer::new(params("intermediate"), key) }
    }

    /// Writes a certificate for `name`, with the one above it, and its key; returns it alone.
    fn certify(&self, dir: &Path, file: &str, name: &str) -> (TlsServer, String) {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        let (certificate_file, private_key_file) =
            (dir.join(format!("{file}.crt")), dir.join(format!("{file}.key")));
        fs::write(&certificate_file, format!("{certificate}{}", self.intermediate)).unwrap();
        fs::write(&private_key_file, key.serialize_pem()).unwrap();
        let alpn = vec!["h2".into(), "http/1.1".into()];
        (TlsServer { certificate_file, private_key_file, second: None, alpn }, certificate)
    }
}

/// What OpenSSL's client says of a connection, and hears when it sends `request`; without one it ends after the
/// handshake.
async fn openssl(proxy: &Running, root: &Path, arguments: &str, request: Option<&str>) -> String {
    let mut child = Command::new("openssl")
        .args(["s_client", "-verify_return_error", "-connect"])
        .arg(proxy.listener_addrs()["in"].to_string())
        .arg("-CAfile")
        .arg(root)
        .args(arguments.split(' '))
        .args(request.map(|_| "-ign_eof"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("openssl; ./test tools installs it");
    // It may have ended already, and then it says why.
    let _ = child.stdin.take().unwrap().write_all(request.unwrap_or_default().as_bytes()).await;
    let ended = tokio::time::timeout(Duration::from_secs(60), child.wait_with_output()).await;
    let output = ended.expect("the connection ends").unwrap();
    let said = String::from_utf8_lossy(&output.stdout).replace('\r', "");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments}: {error}{said}");
    said
}

#[tokio::test]
async fn openssl_is_served_by_name_version_and_protocol_and_after_a_reload() {
    const REQUEST: &str = "GET / HTTP/1.1\r\nhost: a.test\r\nconnection: close\r\n\r\n";
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let root = dir.path().join("root.crt");
    fs::write(&root, &authority.root).unwrap();
    let certify = |file, name| authority.certify(dir.path(), file, name);
    let ((a_tls, a), (b_tls, b), (rest_tls, rest)) =
        (certify("a", "a.test"), certify("b", "*.b.test"), certify("rest", "rest.test"));
    let web = web("hello").await;
    let world = World::default()
        .service("web", Protocol::Http1, &[web.address])
        .routes("web", "web")
        .listener(
            "in",
            vec![
                chain(&["a.test"], Some(&a_tls), http("web")),
                chain(&["*.b.test"], Some(&b_tls), http("web")),
                chain(&[], Some(&rest_tls), http("web")),
            ],
        );
    let proxy = proxy_with(world).await;
    let expect = async |arguments: &str, version: &str, alpn: &str, certificate: &str| {
        let request = (alpn != "h2").then_some(REQUEST);
        let said = openssl(&proxy, &root, arguments, request).await;
        for part in
            ["Verify return code: 0 (ok)", &format!("New, {version}, Cipher is "), certificate]
        {
            assert!(said.contains(part), "{arguments}: {part} in {said}");
        }
        let agreed = said.lines().find_map(|line| line.strip_prefix("ALPN protocol: "));
        assert_eq!(agreed.unwrap_or_default(), alpn, "{arguments}: {said}");
        assert_eq!(said.contains("HTTP/1.1 200 OK"), alpn != "h2", "{arguments}: {said}");
    };
    let of_a = "-servername a.test -verify_hostname a.test";
    let of_b = "-servername x.b.test -verify_hostname x.b.test";
    let of_nobody = "-noservername -verify_hostname rest.test";
    expect(&format!("{of_a} -tls1_3 -alpn h2,http/1.1"), "TLSv1.3", "h2", &a).await;
    expect(&format!("{of_b} -tls1_2 -alpn h2"), "TLSv1.2", "h2", &b).await;
    expect(&format!("{of_nobody} -tls1_3 -alpn http/1.1"), "TLSv1.3", "http/1.1", &rest).await;
    expect(&format!("{of_nobody} -tls1_2"), "TLSv1.2", "", &rest).await;
    let (_, renewed) = certify("a", "a.test");
    assert_ne!(a, renewed);
    proxy.reload_certificates();
    expect(&format!("{of_a} -tls1_2 -alpn http/1.1"), "TLSv1.2", "http/1.1", &renewed).await;
    expect(&format!("{of_b} -tls1_3 -alpn http/1.1,h2"), "TLSv1.3", "h2", &b).await;
}

#[tokio::test]
async fn certificates_that_cannot_be_used_reject_the_listener_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let good = write_certificate(dir.path(), "good", "a.test");
    let other = write_certificate(dir.path(), "other", "a.test");
    let origin = named("hello").await;
    let services = World::default().service("s", Protocol::Tcp, &[origin.address]);
    let proxy = proxy_with(services.clone().tcp("in", "s")).await;
    let empty = dir.path().join("empty");
    fs::write(&empty, "").unwrap();
    let missing = dir.path().join("missing");
    for (certificate, key, expected) in [
        (
            &missing,
            &good.private_key_file,
            format!("certificate file {}: No such file", missing.display()),
        ),
        (
            &empty,
            &good.private_key_file,
            format!("certificate file {}: there is no certificate", empty.display()),
        ),
        (
            &good.certificate_file,
            &missing,
            format!("private key file {}: No such file", missing.display()),
        ),
        (
            &good.certificate_file,
            &empty,
            format!("private key file {}: there is no PEM", empty.display()),
        ),
        (&good.certificate_file, &other.private_key_file, "does not belong to certificate".into()),
    ] {
        let tls = TlsServer {
            certificate_file: certificate.clone(),
            private_key_file: key.clone(),
            second: None,
            alpn: vec![],
        };
        let world = services.clone().listener("in", vec![chain(&[], Some(&tls), tcp("s"))]);
        let rejections = proxy.apply(world.build("v2")).unwrap_err();
        assert_eq!(rejections.len(), 1);
        assert_eq!(rejections[0].key.name, "in");
        assert!(
            rejections[0].reason.contains(&expected),
            "{} has no {expected}",
            rejections[0].reason
        );
    }
    assert_eq!(told(&proxy, "in").await, "hello");
    assert_eq!(proxy.version().as_deref(), Some("v1"));
}
