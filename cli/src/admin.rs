//! Asks the admin endpoint of a control plane or a proxy.

use std::{net::SocketAddr, time::Duration};

use anyhow::bail;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;

/// Time allowed for an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer: some ten thousand proxies, or as many endpoints.
const ANSWER_BYTES: usize = 64 << 20;

/// The body of the answer to `GET path`. `what` is asked: "control plane" or "proxy".
///
/// # Errors
/// When it cannot be reached, does not answer in time, or answers something else than 2xx.
pub(crate) async fn ask(admin: SocketAddr, path: &str, what: &str) -> anyhow::Result<Bytes> {
    let place = format!("http://{admin}{}", path.split('?').next().unwrap_or_default());
    match tokio::time::timeout(ANSWER_TIMEOUT, exchange(admin, path, what, &place)).await {
        Ok(body) => body,
        Err(_) => bail!("{place}: no answer within {} s", ANSWER_TIMEOUT.as_secs()),
    }
}

async fn exchange(admin: SocketAddr, path: &str, what: &str, place: &str) -> anyhow::Result<Bytes> {
    let stream = match tokio::net::TcpStream::connect(admin).await {
        Ok(stream) => stream,
        Err(error) => {
            let command = what.replace(' ', "-");
            bail!(
                "no {what} at {admin}: {error}\n  next: start one (towpath {command} --policies DIR), or give its --admin address"
            )
        }
    };
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    let request = http::Request::get(path)
        .header(http::header::HOST, admin.to_string())
        .body(Empty::<Bytes>::new())?;
    let exchange = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES);
        let body = body.collect().await.map_err(|e| anyhow::anyhow!(e))?.to_bytes();
        anyhow::Ok((status, body))
    };
    // The connection drives the exchange; it ends with it or before it.
    let (status, body) = tokio::select! {
        outcome = exchange => outcome?,
        ended = connection => {
            ended?;
            bail!("{place}: the connection was closed");
        }
    };
    if !status.is_success() {
        let said = String::from_utf8_lossy(&body);
        bail!("{place}: {status}: {}", plain(said.lines().next().unwrap_or_default()));
    }
    Ok(body)
}

/// Names and reasons come from strangers; what could play with a terminal is left out.
pub(crate) fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
