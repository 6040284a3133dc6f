//! The admission webhook as an API server meets it: over TLS, by its name.

use std::{fs, path::Path, sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use towpath_control_plane::{
    Config, Running, start,
    webhook::{Identity, OnProblem, Webhook},
};

use crate::support::{config, folder_of, policies, spec};

const NAME: &str = "towpath-control-plane.towpath.svc";
const ADMISSION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/testdata/admission");

fn webhook(identity: Identity) -> Webhook {
    Webhook {
        address: ([127, 0, 0, 1], 0).into(),
        names: vec![NAME.to_owned()],
        identity,
        options: towpath_inject::Options::new("0.1.0"),
        on_problem: OnProblem::Warn,
    }
}

async fn started(folder: &Path, identity: Identity) -> Running {
    let source = spec(folder.to_str().unwrap());
    start(Config { webhook: Some(webhook(identity)), ..config(source) }).await.unwrap()
}

async fn connected(
    running: &Running,
    authority: &Path,
    protocol: &str,
) -> std::io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(authority.join("tls.crt")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.as_bytes().to_vec()];
    let stream = TcpStream::connect(running.webhook_addr.unwrap()).await?;
    TlsConnector::from(Arc::new(config)).connect(ServerName::try_from(NAME).unwrap(), stream).await
}

fn post(path: &str, kind: &str, body: Vec<u8>) -> Request<Full<Bytes>> {
    Request::post(format!("https://{NAME}{path}"))
        .header("host", NAME)
        .header("content-type", kind)
        .body(Full::new(body.into()))
        .unwrap()
}

/// Asks over HTTP/2, as API servers do.
async fn asked(
    running: &Running,
    authority: &Path,
    request: Request<Full<Bytes>>,
) -> (StatusCode, String) {
    let stream = TokioIo::new(connected(running, authority, "h2").await.unwrap());
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), stream).await.unwrap();
    let driver = tokio::spawn(connection);
    let response = sender.send_request(request).await.unwrap();
    let status = response.status();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    driver.abort();
    (status, String::from_utf8(body.to_vec()).unwrap())
}

fn review(name: &str) -> Vec<u8> {
    fs::read(Path::new(ADMISSION).join(format!("{name}.json"))).unwrap()
}

#[tokio::test]
async fn an_api_server_is_answered_over_tls() {
    let folder = folder_of(&[("a.yaml", &policies(9000))]);
    let authority = tempfile::tempdir().unwrap();
    let identity = Identity::Authority(Some(authority.path().to_owned()));
    let running = started(folder.path(), identity).await;
    let json = "application/json";
    for (path, kind, body, expected) in [
        ("/inject?timeout=10s", json, review("deployment"), 200),
        ("/inject/annotated?timeout=10s", json, review("deployment"), 200),
        ("/inject?timeout=10s", json, b"{".to_vec(), 400),
        ("/inject?timeout=10s", "text/yaml", review("deployment"), 415),
        ("/inject?timeout=10s", json, vec![b' '; 5 << 20], 413),
        ("/", json, review("deployment"), 404),
    ] {
        let (status, body) = asked(&running, authority.path(), post(path, kind, body)).await;
        assert_eq!(status.as_u16(), expected, "{path} {kind}: {body}");
        if expected == 200 {
            let answer: Value = serde_json::from_str(&body).unwrap();
            assert_eq!(answer["response"]["allowed"], true);
            let patched = answer["response"]["patchType"] == "JSONPatch";
            assert_eq!(patched, path.starts_with("/inject?"), "{path}");
        }
    }
    // What was counted is told to operators.
    let metrics = metrics(&running).await;
    for line in
        ["{outcome=\"injected\"} 1", "{outcome=\"passed_over\"} 1", "{outcome=\"bad_request\"} 4"]
    {
        let line = format!("towpath_control_plane_webhook_reviews_total{line}\n");
        assert!(metrics.contains(&line), "{line} in\n{metrics}");
    }
    running.shutdown().await;
}

#[tokio::test]
async fn handshakes_that_fail_are_counted_and_looks_at_the_port_are_not() {
    let folder = folder_of(&[("a.yaml", &policies(9000))]);
    let (authority, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let of = |folder: &Path| Identity::Authority(Some(folder.to_owned()));
    let running = started(folder.path(), of(authority.path())).await;
    let second = started(folder.path(), of(other.path())).await;
    second.shutdown().await;
    // Read to its end, so that it was dealt with.
    let sent = async |bytes: &[u8]| {
        let mut stream = TcpStream::connect(running.webhook_addr.unwrap()).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let _ = stream.read_to_end(&mut Vec::new()).await;
    };
    let failed =
        |count| format!("towpath_control_plane_webhook_tls_handshake_errors_total {count}\n");
    assert!(connected(&running, other.path(), "h2").await.is_err(), "it trusts another authority");
    // What the client says of that may still be on its way.
    let counted = async {
        while metrics(&running).await.contains(&failed(0)) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), counted).await.expect("it is counted");
    sent(b"").await;
    sent(b"GET / HTTP/1.1\r\n\r\n").await;
    let text = metrics(&running).await;
    assert!(text.contains(&failed(2)), "{text}");
    running.shutdown().await;
}

/// Reviews that an API server sent, at the path it sent them to, and the pods that came of them.
#[tokio::test]
async fn pods_of_an_api_server_become_what_their_golden_files_say() {
    let folder = folder_of(&[("a.yaml", &policies(9000))]);
    let authority = tempfile::tempdir().unwrap();
    let identity = Identity::Authority(Some(authority.path().to_owned()));
    let running = started(folder.path(), identity).await;
    let mut patched = 0;
    for file in fs::read_dir(ADMISSION).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let name = path.file_stem().unwrap().to_str().unwrap();
        let inject = if name == "asked" { "/inject/annotated" } else { "/inject" };
        let request = post(&format!("{inject}?timeout=5s"), "application/json", review(name));
        let (status, body) = asked(&running, authority.path(), request).await;
        assert_eq!(status, StatusCode::OK, "{name}: {body}");
        let (asked, answer): (Value, Value) =
            (serde_json::from_slice(&review(name)).unwrap(), serde_json::from_str(&body).unwrap());
        let response = &answer["response"];
        assert_eq!(response["uid"], asked["request"]["uid"], "{name}");
        assert_eq!(response["allowed"], true, "{name}");
        let golden = Path::new(ADMISSION).join(format!("answers/{name}.pod.json"));
        let Ok(expected) = fs::read(&golden) else {
            assert!(response.get("patch").is_none(), "{name}: {body}");
            continue;
        };
        let pod = applied(asked["request"]["object"].clone(), &response["patch"]);
        assert_eq!(pod, serde_json::from_slice::<Value>(&expected).unwrap(), "{name}");
        patched += 1;
    }
    assert!(patched >= 11, "{patched}");
    running.shutdown().await;
}

/// Does what a patch says that only adds (RFC 6902 §4.1), as an API server gets it: in base64.
fn applied(mut pod: Value, patch: &Value) -> Value {
    let steps = STANDARD.decode(patch.as_str().unwrap()).unwrap();
    for step in serde_json::from_slice::<Vec<Value>>(&steps).unwrap() {
        assert_eq!(step["op"], "add", "{step}");
        let (parent, last) = step["path"].as_str().unwrap().rsplit_once('/').unwrap();
        match pod.pointer_mut(parent).unwrap() {
            Value::Array(list) => list.insert(last.parse().unwrap(), step["value"].clone()),
            parent => {
                let key = last.replace("~1", "/").replace("~0", "~");
                parent[key] = step["value"].clone();
            }
        }
    }
    pod
}

async fn metrics(running: &Running) -> String {
    let stream = TokioIo::new(TcpStream::connect(running.admin_addr).await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    let driver = tokio::spawn(connection);
    let request = Request::get("/metrics").header("host", "localhost");
    let response =
        sender.send_request(request.body(Full::<Bytes>::default()).unwrap()).await.unwrap();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    driver.abort();
    String::from_utf8(body.to_vec()).unwrap()
}

#[tokio::test]
async fn http_1_is_spoken_too_and_another_authority_is_not_trusted() {
    let folder = folder_of(&[("a.yaml", &policies(9000))]);
    let (authority, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let of = |folder: &Path| Identity::Authority(Some(folder.to_owned()));
    let running = started(folder.path(), of(authority.path())).await;
    let second = started(folder.path(), of(other.path())).await;
    assert!(connected(&running, other.path(), "h2").await.is_err());
    assert!(connected(&second, other.path(), "h2").await.is_ok());

    let stream = TokioIo::new(connected(&running, authority.path(), "http/1.1").await.unwrap());
    let (mut sender, connection) = hyper::client::conn::http1::handshake(stream).await.unwrap();
    let driver = tokio::spawn(connection);
    for _ in 0..2 {
        let request = post("/inject", "application/json", review("job"));
        let response = sender.send_request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        response.into_body().collect().await.unwrap();
        sender.ready().await.unwrap();
    }
    driver.abort();
    // The end of a connection that nobody closes is not waited for.
    let _idle = connected(&running, authority.path(), "h2").await.unwrap();
    running.shutdown().await;
    second.shutdown().await;
}

#[tokio::test]
async fn one_address_cannot_hold_all_connections() {
    let folder = folder_of(&[("a.yaml", &policies(9000))]);
    let authority = tempfile::tempdir().unwrap();
    let identity = Identity::Authority(Some(authority.path().to_owned()));
    let running = started(folder.path(), identity).await;
    let mut held = Vec::new();
    for _ in 0..32 {
        held.push(connected(&running, authority.path(), "h2").await.unwrap());
    }
    assert!(connected(&running, authority.path(), "h2").await.is_err());
    let metrics = metrics(&running).await;
    let refused = "towpath_control_plane_webhook_connections_refused_total 1\n";
    assert!(metrics.contains(refused), "{metrics}");
    // What is let go is free again, once that is seen.
    held.clear();
    let again = async {
        while connected(&running, authority.path(), "h2").await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), again).await.unwrap();
    running.shutdown().await;
}

#[tokio::test]
async fn without_a_certificate_nothing_starts_and_it_says_what_to_give() {
    let folder = folder_of(&[("a.yaml", &policies(9000))]);
    let nowhere = folder.path().join("nowhere");
    let source = spec(folder.path().to_str().unwrap());
    let config = Config { webhook: Some(webhook(Identity::Given(nowhere))), ..config(source) };
    let error = start(config).await.unwrap_err().to_string();
    assert!(error.contains("tls.crt") && error.contains("--webhook-certificate"), "{error}");
}
