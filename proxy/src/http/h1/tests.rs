use std::task::{Context, Poll, Waker};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;

use super::{Body, Framing, Reader, Writer};
use crate::http::message::{Broken, Piece};

/// Decodes `wire`, cut into pieces of `step` bytes.
fn decode(
    wire: &[u8],
    framing: Framing,
    step: usize,
) -> Result<(String, Option<HeaderMap>), Broken> {
    let mut reader = Reader::default();
    reader.start(framing);
    let mut io = tokio_test_io(wire, step);
    let mut body = String::new();
    let mut context = Context::from_waker(Waker::noop());
    loop {
        match reader.poll_body(&mut io, &mut context) {
            Poll::Ready(Ok(Piece::Data { bytes, last })) => {
                body += std::str::from_utf8(&bytes).unwrap();
                if last {
                    return Ok((body, None));
                }
            }
            Poll::Ready(Ok(Piece::End(trailers))) => return Ok((body, trailers)),
            Poll::Ready(Err(broken)) => return Err(broken),
            Poll::Pending => {}
        }
    }
}

/// Gives `wire` out in steps, then the end.
fn tokio_test_io(wire: &[u8], step: usize) -> impl tokio::io::AsyncRead + Unpin {
    struct Steps(Vec<u8>, usize);
    impl tokio::io::AsyncRead for Steps {
        fn poll_read(
            mut self: std::pin::Pin<&mut Self>,
            _: &mut Context<'_>,
            buf: &mut tokio::io::ReadBuf<'_>,
        ) -> Poll<std::io::Result<()>> {
            let length = self.1.min(self.0.len()).min(buf.remaining());
            let rest = self.0.split_off(length);
            buf.put_slice(&self.0);
            self.0 = rest;
            Poll::Ready(Ok(()))
        }
    }
    Steps(wire.to_vec(), step)
}

#[test]
fn bodies_are_read_the_same_however_the_bytes_arrive() {
    let trailer = |value: &str| Some(("x-a", value.to_owned()));
    for (wire, framing, expected, trailers) in [
        ("hello", Framing::Length(5), "hello", None),
        ("hello more", Framing::Length(5), "hello", None),
        ("", Framing::Empty, "", None),
        ("5\r\nhello\r\n0\r\n\r\n", Framing::Chunked, "hello", None),
        (
            "0005;x=y\r\nhello\r\n00\r\nx-a: b\r\nhost: c\r\n\r\n",
            Framing::Chunked,
            "hello",
            trailer("b"),
        ),
        (
            "A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n",
            Framing::Chunked,
            "01234567890123456789",
            None,
        ),
        ("to the end", Framing::UntilClose, "to the end", None),
    ] {
        for step in [1, 2, 3, 7, 100] {
            let (body, found) = decode(wire.as_bytes(), framing, step).unwrap();
            assert_eq!(body, expected, "{wire:?} by {step}");
            let found = found.map(|t| ("x-a", t["x-a"].to_str().unwrap().to_owned()));
            assert_eq!(found, trailers, "{wire:?} by {step}");
        }
    }
}

#[test]
fn a_body_cut_short_or_malformed_is_an_error_however_the_bytes_arrive() {
    for (wire, framing) in [
        ("hell", Framing::Length(5)),
        ("5\r\nhell", Framing::Chunked),
        ("5\r\nhello\r\n", Framing::Chunked),
        ("5\r\nhello\r\n0\r\n", Framing::Chunked),
        ("5\r\nhello\r\n0\r\nx-a: b\r\n", Framing::Chunked),
        ("5\nhello\r\n0\r\n\r\n", Framing::Chunked),
        ("5\r\nhelloxx0\r\n\r\n", Framing::Chunked),
        ("-1\r\n", Framing::Chunked),
        ("\r\n", Framing::Chunked),
        ("fffffffffffffffff\r\n", Framing::Chunked),
        ("5\rx\r\nhello\r\n0\r\n\r\n", Framing::Chunked),
        ("5 5\r\nhello\r\n0\r\n\r\n", Framing::Chunked),
        ("0\r\nx a: b\r\n\r\n", Framing::Chunked),
        ("0\r\nx-a: b\n\r\n\r\n", Framing::Chunked),
    ] {
        for step in [1, 2, 3, 7, 100] {
            assert!(decode(wire.as_bytes(), framing, step).is_err(), "{wire:?} by {step}");
        }
    }
}

/// Whoever looks again at what is malformed sees the same, and never an end.
#[test]
fn what_is_malformed_stays_malformed_however_often_it_is_looked_at() {
    for wire in [
        "5\r\nhelloxx0\r\n\r\n",
        "5\r\nhello\r\nx\r\n\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nx a: b\r\n\r\n0\r\n\r\n",
        "5\r\nhello\r\n0\r\nx-a: b\n\r\n\r\n",
        "5\r\nhello\r\n0\r\nx-a: \x01\r\n\r\n\r\n",
        "5\r\nhello\r\n0\r\nhost: a\r\nhost: b\r\n\r\n\r\n",
        &format!("5\r\nhello\r\n0\r\nx-a: {}\r\n\r\n\r\n", "b".repeat(20_000)),
    ] {
        for step in [1, 7, 100_000] {
            let mut reader = Reader::default();
            reader.start(Framing::Chunked);
            let mut io = tokio_test_io(wire.as_bytes(), step);
            let mut context = Context::from_waker(Waker::noop());
            let (mut body, mut said) = (0, Vec::new());
            while said.len() < 4 {
                match reader.poll_body(&mut io, &mut context) {
                    Poll::Ready(Ok(Piece::Data { bytes, .. })) if said.is_empty() => {
                        body += bytes.len();
                    }
                    Poll::Ready(Err(Broken::Malformed(what))) => said.push(what),
                    other => panic!("{wire:.60?} by {step}: {other:?} after {said:?}"),
                }
            }
            said.dedup();
            assert!(body == 5 && said.len() == 1, "{wire:.60?} by {step}: {said:?}");
            assert!(!reader.is_done(), "{wire:.60?}");
        }
    }
}

#[test]
fn a_writer_sends_what_was_declared_or_says_that_it_did_not() {
    let mut writer = Writer::default();
    writer.end_head(Body::Length(5));
    assert!(writer.data(Bytes::from_static(b"hel")));
    assert!(!writer.data(Bytes::from_static(b"loo")), "more than declared");
    assert!(!writer.end(None), "less than declared");
    writer.end_head(Body::Empty);
    assert!(!writer.data(Bytes::from_static(b"x")));
}

#[tokio::test]
async fn what_is_written_is_what_is_read() {
    for piece in [1, 100, 5000, 70_000] {
        let mut writer = Writer::default();
        writer.end_head(Body::Chunked);
        let mut wire = Vec::new();
        let mut io = std::pin::pin!(&mut wire);
        let mut expected = BytesMut::new();
        for n in 0..10u8 {
            let bytes = Bytes::from(vec![b'a' + n; piece]);
            expected.extend_from_slice(&bytes);
            std::future::poll_fn(|cx| writer.poll_room(&mut *io, cx)).await.unwrap();
            assert!(writer.data(bytes));
        }
        assert!(writer.end(None));
        std::future::poll_fn(|cx| writer.poll_flush(&mut *io, cx)).await.unwrap();
        assert!(writer.is_flushed());
        let body = wire.split_off("transfer-encoding: chunked\r\n\r\n".len());
        let (decoded, _) = decode(&body, Framing::Chunked, 1000).unwrap();
        assert!(decoded.as_bytes() == expected, "{piece}");
    }
}
