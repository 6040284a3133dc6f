//! Copies bytes by hand: where one side is under TLS, or there are no pipes.

use std::{io, time::Duration};

use tokio::{
    io::{
        AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest, ReadHalf, WriteHalf, split,
    },
    net::TcpStream,
};

use super::{Direction, End, Meter, both, splice::finish};
use crate::upstream::io::UpstreamIo;

/// One TLS record and a little, for each direction.
const TLS_BUFFER: usize = 16 * 1024 + 256;
const TCP_BUFFER: usize = 64 * 1024;

/// Relays both ways until both ends are done; returns why, when that was no clean end.
pub(super) async fn relay<C>(
    client: C,
    upstream: UpstreamIo,
    meter: &Meter,
    idle: Option<Duration>,
) -> Option<&'static str>
where
    C: AsyncRead + AsyncWrite + Unpin,
{
    let (mut client_read, mut client_write) = split(client);
    let (mut upstream_read, mut upstream_write) = split(upstream);
    // Dropping both ends without a TLS close is what tells the peers of a break.
    both(
        one_way(&mut client_read, &mut upstream_write, meter, Direction::Up),
        one_way(&mut upstream_read, &mut client_write, meter, Direction::Down),
        meter.idle(idle),
        |_| {},
    )
    .await
}

async fn one_way<R: AsyncRead, W: AsyncWrite>(
    from: &mut ReadHalf<R>,
    to: &mut WriteHalf<W>,
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
            return End::WriteFailed(error);
        }
        if let Err(error) = to.flush().await {
            return End::WriteFailed(error);
        }
        meter.moved(direction, n);
    }
    match to.shutdown().await {
        Ok(()) => End::Finished,
        Err(error) => End::WriteFailed(error),
    }
}

/// As the splicing one, through a buffer.
pub(super) async fn one_way_tcp(
    from: &TcpStream,
    to: &TcpStream,
    meter: &Meter,
    direction: Direction,
) -> End {
    let mut buffer = vec![0; TCP_BUFFER];
    loop {
        if let Err(error) = from.readable().await {
            return End::ReadFailed(error);
        }
        let n = match from.try_read(&mut buffer) {
            Ok(0) => return finish(to),
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return End::ReadFailed(error),
        };
        let mut rest = &buffer[..n];
        while !rest.is_empty() {
            if let Err(error) = to.ready(Interest::WRITABLE).await {
                return End::WriteFailed(error);
            }
            match to.try_write(rest) {
                Ok(n) => {
                    meter.moved(direction, n);
                    rest = &rest[n..];
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return End::WriteFailed(error),
            }
        }
    }
}
