//! The body of an upload.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

use crate::etl::{
    rows::Table,
    wire::{self, IngestRequest},
};

/// The text of a batch.
#[derive(Debug)]
pub enum Rows {
    /// At once.
    Whole(Bytes),
    /// Piece by piece as it is made; ends with [`Piece::End`].
    Stream(mpsc::Receiver<Piece>),
}

/// A piece of a streamed batch.
#[derive(Debug)]
pub enum Piece {
    /// Text.
    Text(Bytes),
    /// The batch is complete. A stream that closes without it is broken off.
    End,
}

/// [`Rows`] as a request body; in gRPC messages when `grpc` says of what.
#[derive(Debug)]
pub(super) struct Outgoing {
    rows: Rows,
    grpc: Option<(Table, String)>,
    ended: bool,
}

impl Default for Outgoing {
    fn default() -> Self {
        Self::new(Rows::Whole(Bytes::new()), None)
    }
}

impl Outgoing {
    pub(super) fn new(rows: Rows, grpc: Option<(Table, String)>) -> Self {
        let rows = match (rows, &grpc) {
            (Rows::Whole(text), Some((table, batch))) => {
                Rows::Whole(wire::frame(&message(*table, batch, text)))
            }
            (rows, _) => rows,
        };
        Self { rows, grpc, ended: false }
    }
}

fn message(table: Table, batch: &str, rows: Bytes) -> IngestRequest {
    IngestRequest { table: table.name().to_owned(), batch: batch.to_owned(), rows }
}

impl Body for Outgoing {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let text = match &mut this.rows {
            Rows::Whole(text) => {
                this.ended = true;
                let text = std::mem::take(text);
                return Poll::Ready((!text.is_empty()).then(|| Ok(Frame::data(text))));
            }
            Rows::Stream(pieces) => match ready!(pieces.poll_recv(cx)) {
                Some(Piece::Text(text)) => text,
                Some(Piece::End) => {
                    this.ended = true;
                    return Poll::Ready(None);
                }
                None => {
                    this.ended = true;
                    let error = io::Error::other("the batch was not made to its end");
                    return Poll::Ready(Some(Err(error)));
                }
            },
        };
        let data = match &this.grpc {
            Some((table, batch)) => wire::frame(&message(*table, batch, text)),
            None => text,
        };
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || matches!(&self.rows, Rows::Whole(text) if text.is_empty())
    }

    fn size_hint(&self) -> SizeHint {
        match &self.rows {
            Rows::Whole(text) => SizeHint::with_exact(text.len() as u64),
            Rows::Stream(_) => SizeHint::default(),
        }
    }
}
