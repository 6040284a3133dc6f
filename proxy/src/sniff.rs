//! Looks at the first bytes of a connection: which HTTP, and which TLS server name.
//!
//! Decides as soon as the bytes allow it, so that no protocol is held up, and
//! reads no more than [`MAX_HELLO_BYTES`] before it gives up. The parsers are
//! pure functions of the bytes so far.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// Most bytes a client may take to complete its TLS ClientHello: one handshake
/// message of 16 KiB and its record headers.
pub(crate) const MAX_HELLO_BYTES: usize = 17 * 1024;

/// The HTTP/2 connection preface (RFC 9113 §3.4).
pub(crate) const H2_PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// What the first bytes of a possible TLS connection say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Hello {
    /// The ClientHello is not complete yet.
    Incomplete,
    /// These bytes do not begin a TLS connection.
    NotTls,
    /// A ClientHello, and the server name in it (lower case).
    Client(Option<String>),
}

/// How a client begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum First {
    /// With a request of HTTP/1, for this host (without port).
    Http1 {
        /// As it came; `None` when it names none.
        host: Option<String>,
    },
    /// With the preface of HTTP/2.
    Http2,
    /// With a ClientHello, and this server name in it.
    Tls(Option<String>),
    /// With something else, or not at all.
    Opaque,
}

/// How the first bytes of a client begin; `None` while that cannot be told.
pub(crate) fn first(bytes: &[u8]) -> Option<First> {
    match client_hello(bytes) {
        Hello::Incomplete => return None,
        Hello::Client(name) => return Some(First::Tls(name)),
        Hello::NotTls => {}
    }
    match is_http2(bytes) {
        Some(true) => return Some(First::Http2),
        None => return None,
        Some(false) => {}
    }
    http1(bytes)
}

/// The host of a request of HTTP/1, as soon as its line has come. Whether the rest of the head is as it must be
/// is for others to say.
fn http1(bytes: &[u8]) -> Option<First> {
    const LONGEST_METHOD: usize = 32;
    let is_token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    let method = bytes.iter().take(LONGEST_METHOD + 1).take_while(|b| is_token(b)).count();
    match bytes.get(method) {
        None if method <= LONGEST_METHOD => return None,
        Some(b' ') if (1..=LONGEST_METHOD).contains(&method) => {}
        _ => return Some(First::Opaque),
    }
    let mut lines = bytes.split_inclusive(|b| *b == b'\n');
    let Some(line) = lines.next().and_then(whole_line) else {
        // What a request line cannot have in it is seen before it ends.
        return bytes.iter().any(|b| b.is_ascii_control() && *b != b'\r').then_some(First::Opaque);
    };
    let rest = line.split_once(' ').and_then(|(_, rest)| rest.rsplit_once(' '));
    let Some((target, version)) = rest else { return Some(First::Opaque) };
    // CONNECT asks a proxy, and what follows is not HTTP.
    if !version.starts_with("HTTP/1.") || line.starts_with("CONNECT ") {
        return Some(First::Opaque);
    }
    // In absolute form it names the host; a path may have another's address in it.
    if !target.starts_with('/')
        && let Some((_, rest)) = target.split_once("://")
    {
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        return Some(First::Http1 { host: host_of(&rest[..end]) });
    }
    for line in lines {
        let line = match line {
            b"\r\n" | b"\n" => return Some(First::Http1 { host: None }),
            line => whole_line(line)?,
        };
        if let Some((name, value)) = line.split_once(':')
            && name.eq_ignore_ascii_case("host")
        {
            return Some(First::Http1 { host: host_of(value.trim()) });
        }
    }
    None
}

/// A line that has ended, without its end; empty when it is no text.
fn whole_line(line: &[u8]) -> Option<&str> {
    let line = line.strip_suffix(b"\n")?;
    Some(std::str::from_utf8(line.strip_suffix(b"\r").unwrap_or(line)).unwrap_or_default())
}

/// The host of an authority, without port and final dot.
fn host_of(authority: &str) -> Option<String> {
    let authority: http::uri::Authority = authority.parse().ok()?;
    let host = authority.host();
    Some(host.strip_suffix('.').unwrap_or(host).to_owned())
}

/// Whether bytes begin an HTTP/2 connection; `None` while they could be either.
pub(crate) fn is_http2(bytes: &[u8]) -> Option<bool> {
    let length = bytes.len().min(H2_PREFACE.len());
    if bytes[..length] != H2_PREFACE[..length] {
        return Some(false);
    }
    (length == H2_PREFACE.len()).then_some(true)
}

/// Reads the ClientHello (RFC 8446 §4.1.2) out of the TLS records in `bytes`.
pub(crate) fn client_hello(bytes: &[u8]) -> Hello {
    const HANDSHAKE_RECORD: u8 = 22;
    const CLIENT_HELLO: u8 = 1;
    let mut message = Vec::new();
    let mut rest = bytes;
    loop {
        match rest {
            [] | [HANDSHAKE_RECORD] => return Hello::Incomplete,
            [HANDSHAKE_RECORD, 3, ..] => {}
            _ => return Hello::NotTls,
        }
        let [_, _, _, high, low, payload @ ..] = rest else { return Hello::Incomplete };
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        if length == 0 {
            return Hello::NotTls;
        }
        message.extend_from_slice(&payload[..payload.len().min(length)]);
        match message.as_slice() {
            [] => return Hello::Incomplete,
            [CLIENT_HELLO, ..] => {}
            _ => return Hello::NotTls,
        }
        if let [_, a, b, c, body @ ..] = message.as_slice() {
            let needed = u32::from_be_bytes([0, *a, *b, *c]) as usize;
            if needed > MAX_HELLO_BYTES {
                return Hello::NotTls;
            }
            if let Some(body) = body.get(..needed) {
                return server_name(body).map_or(Hello::NotTls, Hello::Client);
            }
        }
        if payload.len() < length {
            return Hello::Incomplete;
        }
        rest = &payload[length..];
    }
}

/// The `server_name` extension (RFC 6066 §3) of a ClientHello's body; outer
/// `None` when the body is malformed.
fn server_name(body: &[u8]) -> Option<Option<String>> {
    const VERSION_AND_RANDOM: usize = 2 + 32;
    const SERVER_NAME: u16 = 0;
    const HOST_NAME: u8 = 0;
    let mut hello = Cursor(body);
    hello.take(VERSION_AND_RANDOM)?;
    let session_id = hello.u8()?;
    hello.take(session_id.into())?;
    let cipher_suites = hello.u16()?;
    hello.take(cipher_suites.into())?;
    let compression = hello.u8()?;
    hello.take(compression.into())?;
    if hello.0.is_empty() {
        return Some(None);
    }
    let length = hello.u16()?;
    let mut extensions = Cursor(hello.take(length.into())?);
    while !extensions.0.is_empty() {
        let kind = extensions.u16()?;
        let length = extensions.u16()?;
        let mut extension = Cursor(extensions.take(length.into())?);
        if kind != SERVER_NAME {
            continue;
        }
        let length = extension.u16()?;
        let mut names = Cursor(extension.take(length.into())?);
        while !names.0.is_empty() {
            let kind = names.u8()?;
            let length = names.u16()?;
            let name = names.take(length.into())?;
            if kind == HOST_NAME {
                let name = std::str::from_utf8(name).ok()?;
                return Some(Some(name.trim_end_matches('.').to_ascii_lowercase()));
            }
        }
    }
    Some(None)
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take(1).map(|b| b[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.take(2).map(|b| u16::from_be_bytes([b[0], b[1]]))
    }
}

/// Reads until `decide` has decided on the bytes so far, those in `seen` first, or `limit` is reached;
/// `None` when the client sent no more than could be decided.
pub(crate) async fn read_until<T>(
    tcp: &TcpStream,
    seen: &mut BytesMut,
    limit: usize,
    mut decide: impl FnMut(&[u8]) -> Option<T>,
) -> io::Result<Option<T>> {
    if !seen.is_empty()
        && let Some(decided) = decide(seen)
    {
        return Ok(Some(decided));
    }
    while seen.len() < limit {
        tcp.readable().await?;
        // On the stack only between two waits, so that an idle connection holds no buffer.
        let mut buffer = [0; 2048];
        match tcp.try_read(&mut buffer) {
            Ok(0) => return Ok(None),
            Ok(n) => seen.extend_from_slice(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        if let Some(decided) = decide(seen) {
            return Ok(Some(decided));
        }
    }
    Ok(None)
}

/// A stream, and bytes of it that were read already.
#[derive(Debug)]
pub struct Prefixed<S> {
    prefix: Bytes,
    inner: S,
}

impl<S> Prefixed<S> {
    /// Puts `prefix` back in front of `inner`.
    pub fn new(prefix: Bytes, inner: S) -> Self {
        Self { prefix, inner }
    }

    /// The stream underneath.
    pub fn get_ref(&self) -> &S {
        &self.inner
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Prefixed<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.prefix.is_empty() {
            return Pin::new(&mut self.inner).poll_read(cx, buf);
        }
        let n = self.prefix.len().min(buf.remaining());
        buf.put_slice(&self.prefix[..n]);
        self.prefix.advance(n);
        if self.prefix.is_empty() {
            self.prefix = Bytes::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Prefixed<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn http2_is_told_from_http1_at_the_first_byte_that_differs() {
        for (bytes, expected) in [
            (&b"P"[..], None),
            (b"PR", None),
            (b"PRO", Some(false)),
            (b"PU", Some(false)),
            (b"G", Some(false)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", None),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(true)),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nmore", Some(true)),
            (b"PRI * HTTP/1.1\r\n", Some(false)),
            (b"\x16\x03\x01", Some(false)),
        ] {
            assert_eq!(is_http2(bytes), expected, "{bytes:?}");
        }
    }

    #[test]
    fn who_speaks_http_or_tls_is_told_from_who_does_not() {
        let http = |host: &str| Some(First::Http1 { host: Some(host.into()) });
        let opaque = Some(First::Opaque);
        for (bytes, expected) in [
            (&b"G"[..], None),
            (b"GET / HTTP/1.1\r\n", None),
            (b"GET / HTTP/1.1\r\nHost: a.tes", None),
            (b"GET / HTTP/1.1\r\nHost: A.test:80\r\n", http("A.test")),
            (b"GET / HTTP/1.1\nx: \xff\nhost:a.test.\n", http("a.test")),
            (b"PUT / HTTP/1.0\r\nx: y\r\n\r\n", Some(First::Http1 { host: None })),
            (b"GET http://b.test:81/x HTTP/1.1\r\nHost: a.test\r\n", http("b.test")),
            (b"GET /x?then=http://b.test/ HTTP/1.1\r\nHost: a.test\r\n", http("a.test")),
            (b"GET / HTTP/1.1\r\nHost: [::1]:80\r\n", http("[::1]")),
            (b"GET / HTTP/1.1\r\nHost: a b\r\n", Some(First::Http1 { host: None })),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Some(First::Http2)),
            (b"PRI * HTTP/2.0\r\n\r\nS", None),
            (b"CONNECT a.test:443 HTTP/1.1\r\n", opaque.clone()),
            // PostgreSQL, Redis, SSH, SMTP, memcached, MQTT, nothing.
            (b"\0\0\0\x08\x04\xd2\x16\x2f", opaque.clone()),
            (b"*1\r\n$4\r\nPING\r\n", opaque.clone()),
            (b"SSH-2.0-OpenSSH_9.2 Debian\r\n", opaque.clone()),
            (b"EHLO a.test\r\n", opaque.clone()),
            (b"get key\r\n", opaque.clone()),
            (b"\x10\x0c\0\x04MQTT", opaque.clone()),
            (b"\n", opaque.clone()),
            (b"\x16\x02", opaque.clone()),
            (b"AMQP\0\0\x09\x01", opaque.clone()),
            (b"0123456789012345678901234567890123456789", opaque.clone()),
            (b"GET \x01", opaque.clone()),
            (b"", None),
        ] {
            assert_eq!(first(bytes), expected, "{:?}", bytes.escape_ascii().to_string());
        }
        let whole = hello("Db.Example.com");
        assert_eq!(first(&whole), Some(First::Tls(Some("db.example.com".into()))));
        assert_eq!(first(&whole[..20]), None);
    }

    /// A ClientHello as rustls writes it.
    fn hello(name: &'static str) -> Vec<u8> {
        let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = name.try_into().unwrap();
        let mut client = rustls::ClientConnection::new(config.into(), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[test]
    fn the_server_name_is_found_however_the_hello_is_cut() {
        let whole = hello("Db.Example.com");
        let found = Hello::Client(Some("db.example.com".into()));
        assert_eq!(client_hello(&whole), found);
        for cut in 0..whole.len() {
            assert_eq!(client_hello(&whole[..cut]), Hello::Incomplete, "first {cut} bytes");
        }
        assert_eq!(client_hello(&hello("127.0.0.1")), Hello::Client(None));
        // The same message in records of seven bytes.
        let mut records = Vec::new();
        for part in whole[5..].chunks(7) {
            records.extend([22, 3, 1, 0, part.len() as u8]);
            records.extend(part);
        }
        assert_eq!(client_hello(&records), found);
    }

    #[test]
    fn what_is_no_hello_is_told_early_and_nothing_panics() {
        for bytes in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"\x16\x02",
            b"\x16\x03\x01\x00\x00",
            b"\x16\x03\x01\x00\x01\x02",
            b"\x16\x03\x01\x40\x00\x01\xff\xff\xff",
            b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x03",
            b"\x15\x03\x01\x00\x02\x01\x00",
        ] {
            assert_eq!(client_hello(bytes), Hello::NotTls, "{bytes:?}");
        }
        let whole = hello("a.example");
        for at in 0..whole.len() {
            for value in [0, 1, 0x7f, 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = value;
                client_hello(&damaged);
            }
        }
    }

    #[tokio::test]
    async fn what_was_read_comes_first() {
        use tokio::io::AsyncReadExt;
        let mut stream = Prefixed::new(Bytes::from_static(b"hello "), &b"world"[..]);
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "hello world");
    }
}
