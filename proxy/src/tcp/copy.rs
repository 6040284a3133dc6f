//! Copies bytes by hand: where one side is under TLS.

use std::{
    io,
    pin::Pin,
    sync::{Mutex, MutexGuard},
    task::{Context, Poll},
    time::Duration,
};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};

use super::{Direction, End, Meter, both};
use crate::{http::ClientIo, lock::lock, upstream::io::UpstreamIo};

/// One TLS record and a little, for each direction.
const TLS_BUFFER: usize = 16 * 1024 + 256;

/// Relays both ways until both ends are done; returns why, when that was no clean end.
pub(super) async fn relay<C>(
    client: C,
    upstream: UpstreamIo,
    meter: &Meter,
    idle: Option<Duration>,
) -> Option<&'static str>
where
    C: ClientIo,
{
    let (client, upstream) = (Shared(Mutex::new(client)), Shared(Mutex::new(upstream)));
    let mut breaks = Breaks { client: &client, upstream: &upstream, armed: true };
    let reason = both(
        one_way(&client, &upstream, meter, Direction::Up),
        one_way(&upstream, &client, meter, Direction::Down),
        meter.idle(idle),
        // The guard tells both.
        |_| {},
    )
    .await;
    breaks.armed = reason.is_some();
    reason
}

/// Tells both ends of a break when it is dropped, unless both directions ended
/// cleanly: by a reset in clear, and under TLS by the close that is missing.
struct Breaks<'a, C: ClientIo> {
    client: &'a Shared<C>,
    upstream: &'a Shared<UpstreamIo>,
    armed: bool,
}

impl<C: ClientIo> Drop for Breaks<'_, C> {
    fn drop(&mut self) {
        if self.armed {
            self.client.lock().reset_on_close();
            self.upstream.lock().reset_on_close();
        }
    }
}

/// A stream that both directions use, and the guard above.
struct Shared<S>(Mutex<S>);

impl<S> Shared<S> {
    fn lock(&self) -> MutexGuard<'_, S> {
        lock(&self.0)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for &Shared<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for &Shared<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.lock()).poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.lock()).poll_shutdown(cx)
    }
}

async fn one_way<R: AsyncRead + Unpin, W: AsyncWrite + Unpin>(
    mut from: &Shared<R>,
    mut to: &Shared<W>,
    meter: &Meter,
    direction: Direction,
) -> End {
    let mut buffer = vec![0; TLS_BUFFER];
    loop {
        let n = match from.read(&mut buffer).await {
            Ok(0) => break,
            Ok(n) => n,
            Err(error) => return End::ReadFailed(error),
        };
        if let Err(error) = to.write_all(&buffer[..n]).await {
            return meter.write_failed(direction, error);
        }
        if let Err(error) = to.flush().await {
            return meter.write_failed(direction, error);
        }
        meter.moved(direction, n);
    }
    if let Some(broken) = meter.broken(direction) {
        return broken;
    }
    match to.shutdown().await {
        Ok(()) => End::Finished,
        Err(error) => meter.write_failed(direction, error),
    }
}
