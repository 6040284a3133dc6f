//! A far end that speaks HTTP/2 frame by frame, and says exactly what a test has it say.

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RESET: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW: u8 = 8;

pub(crate) const ACK: u8 = 1;
pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

/// `:status: 200`.
pub(crate) const OK: &[u8] = &[0x88];
/// `:status: 103`.
pub(crate) const HINTS: &[u8] = &[0x08, 3, b'1', b'0', b'3'];

pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

/// The server's side of a connection.
pub(crate) struct Far(TcpStream);

impl Far {
    /// Greets a client, which may send so much on each stream, and on all together without end.
    pub(crate) async fn greet(mut io: TcpStream, window: u32) -> Option<Self> {
        io.read_exact(&mut [0; 24]).await.ok()?;
        let mut far = Self(io);
        let [a, b, c, d] = window.to_be_bytes();
        far.send(SETTINGS, 0, 0, &[0, 4, a, b, c, d]).await?;
        far.send(WINDOW, 0, 0, &(0x7fff_ffff_u32 - 65_535).to_be_bytes()).await?;
        Some(far)
    }

    /// `None` when the client is gone.
    pub(crate) async fn send(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
    ) -> Option<()> {
        let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
        bytes.extend([kind, flags]);
        bytes.extend(stream.to_be_bytes());
        bytes.extend(payload);
        self.0.write_all(&bytes).await.ok()
    }

    pub(crate) async fn acknowledge(&mut self, ping: &Frame) -> Option<()> {
        self.send(PING, ACK, 0, &ping.payload).await
    }

    /// That streams beyond `last` were not looked at.
    pub(crate) async fn go_away(&mut self, last: u32) -> Option<()> {
        let [a, b, c, d] = last.to_be_bytes();
        self.send(GOAWAY, 0, 0, &[a, b, c, d, 0, 0, 0, 0]).await
    }

    /// The next frame but SETTINGS, which are acknowledged; `None` at the end.
    pub(crate) async fn next(&mut self) -> Option<Frame> {
        loop {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.ok()?;
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            let mut payload = vec![0; length as usize];
            self.0.read_exact(&mut payload).await.ok()?;
            let frame = Frame { kind: head[3], flags: head[4], stream, payload };
            match frame.kind {
                SETTINGS if frame.flags == 0 => self.send(SETTINGS, ACK, 0, &[]).await?,
                SETTINGS => {}
                _ => return Some(frame),
            }
        }
    }
}
