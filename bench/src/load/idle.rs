//! Connections that were used once and then stay open.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context as _;

use super::small_h1::{Connection, request};

/// How long one unit of idling lasts.
pub const IDLE: Duration = Duration::from_secs(2);

/// The open connections.
#[derive(Debug)]
pub struct Session {
    connections: Vec<Connection>,
    body: usize,
}

impl Session {
    /// Opens `count` connections, one after the other, each of which makes one request: that way
    /// the proxy keeps one connection to the origin and what is measured is the clients' side.
    ///
    /// # Errors
    /// If one is refused, or its request is answered wrong.
    pub async fn connect(target: SocketAddr, count: usize, body: usize) -> anyhow::Result<Self> {
        let request = request();
        let mut connections = Vec::with_capacity(count);
        for nth in 0..count {
            let mut connection = Connection::open(target).await?;
            let exchange = connection.exchange(&request, body).await;
            exchange.with_context(|| format!("on connection {nth} of {count}"))?;
            connections.push(connection);
        }
        Ok(Self { connections, body })
    }

    /// Stays idle `count` times [`IDLE`].
    pub async fn idle(&self, count: u64) {
        for _ in 0..count {
            tokio::time::sleep(IDLE).await;
        }
    }

    /// Uses every connection once more, which shows that none was lost.
    ///
    /// # Errors
    /// If one was lost, or its request is answered wrong.
    pub async fn use_again(&mut self) -> anyhow::Result<()> {
        let request = request();
        for connection in &mut self.connections {
            connection
                .exchange(&request, self.body)
                .await
                .context("on a connection that was idle")?;
        }
        Ok(())
    }
}
