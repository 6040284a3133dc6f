//! Fetches Prometheus text over HTTP/1.1, within bounds.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Request, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::{net::TcpStream, time::timeout};
use towpath_gpu::exposition::MAX_BYTES;

use super::MetricsUrl;

pub(super) async fn fetch(url: &MetricsUrl, patience: Duration) -> Result<String, String> {
    match timeout(patience, fetched(url)).await {
        Ok(text) => text,
        Err(_) => Err("did not answer in time".to_owned()),
    }
}

async fn fetched(url: &MetricsUrl) -> Result<String, String> {
    let (host, port) = (url.authority.host(), url.authority.port_u16().unwrap_or(80));
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let tcp = TcpStream::connect((host, port)).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(tcp))
        .await
        .map_err(|error| error.to_string())?;
    let asking = async {
        let request = Request::get(url.path.as_str())
            .header(header::HOST, url.authority.as_str())
            .header(header::USER_AGENT, USER_AGENT)
            .header(header::CONNECTION, HeaderValue::from_static("close"))
            .body(Empty::<Bytes>::new())
            .map_err(|error| error.to_string())?;
        let answer = sender.send_request(request).await.map_err(|error| error.to_string())?;
        if !answer.status().is_success() {
            return Err(format!("answered {}", answer.status()));
        }
        let body = Limited::new(answer.into_body(), MAX_BYTES).collect().await;
        let body = body.map_err(|error| error.to_string())?.to_bytes();
        String::from_utf8(body.into()).map_err(|_| "answered with something that is no text".into())
    };
    tokio::pin!(asking);
    tokio::select! {
        text = &mut asking => text,
        // The answer and the close it asked for come together: the answer is there by now, or never.
        _ = connection => asking.await,
    }
}

const USER_AGENT: HeaderValue =
    HeaderValue::from_static(concat!("towpath/", env!("CARGO_PKG_VERSION")));

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    /// What is made of a server that says this to whoever connects and leaves.
    async fn says(answer: &'static str) -> Result<String, String> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/metrics", listener.local_addr().unwrap()).parse().unwrap();
        let serving = async {
            let (mut tcp, _) = listener.accept().await.unwrap();
            let _ = tcp.read(&mut [0; 1024]).await;
            tcp.write_all(answer.as_bytes()).await.unwrap();
        };
        tokio::join!(fetch(&url, Duration::from_secs(20)), serving).0
    }

    #[tokio::test]
    async fn a_text_is_fetched_and_all_else_is_an_error() {
        let text = "HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nup ";
        assert_eq!(says(text).await.as_deref(), Ok("up "));
        assert_eq!(says("HTTP/1.1 200 OK\r\n\r\nup 1").await.as_deref(), Ok("up 1"));
        for (answer, error) in [
            ("HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\n\r\n", "answered 500"),
            ("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nup", ""),
            ("SSH-2.0\r\n", ""),
            ("", ""),
        ] {
            let said = says(answer).await.unwrap_err();
            assert!(said.starts_with(error), "{answer:?}: {said}");
        }
        let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let url = format!("http://{closed}/").parse().unwrap();
        fetch(&url, Duration::from_secs(20)).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_says_nothing_is_not_waited_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap()).parse().unwrap();
        let said = fetch(&url, Duration::from_millis(800)).await;
        assert_eq!(said, Err("did not answer in time".to_owned()));
    }
}
