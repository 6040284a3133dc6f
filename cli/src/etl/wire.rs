//! What worker and clients say to each other: paths, headers, messages and gRPC framing.
//!
//! As a `.proto` file the gRPC side reads:
//! ```proto
//! package towpath.etl.v1;
//! service Loader { rpc Ingest(stream IngestRequest) returns (IngestReply); }
//! message IngestRequest { string table = 1; string batch = 2; bytes rows = 3; }
//! message IngestReply { string batch = 1; uint64 rows = 2; string digest = 3;
//!                       bool already = 4; string worker = 5; string region = 6; }
//! ```
//! `table` and `batch` are read from the first message only; a unary call is a
//! stream of one.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use prost::Message;
use serde::{Deserialize, Serialize};

/// `:path` of the gRPC method.
pub const GRPC_PATH: &str = "/towpath.etl.v1.Loader/Ingest";
/// `content-type` of gRPC.
pub const GRPC_TYPE: &str = "application/grpc";
/// Path prefix of the HTTP interface: `POST /ingest/{table}?batch=ID`.
pub const INGEST_PREFIX: &str = "/ingest/";
/// Path prefix for bytes of any kind: `PUT /archive/{name}`.
pub const ARCHIVE_PREFIX: &str = "/archive/";
/// Says that a request may be repeated; carries the batch id.
pub const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// Largest gRPC message that is read, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;

const PREFIX_BYTES: usize = 5;

/// A piece of a batch.
#[derive(Clone, PartialEq, Message)]
pub struct IngestRequest {
    /// Table name.
    #[prost(string, tag = "1")]
    pub table: String,
    /// Batch id.
    #[prost(string, tag = "2")]
    pub batch: String,
    /// Lines; a line may go on in the next message.
    #[prost(bytes = "bytes", tag = "3")]
    pub rows: Bytes,
}

/// The acknowledgement: these rows are in the store. Also the JSON answer over plain HTTP.
#[derive(Clone, PartialEq, Eq, Message, Serialize, Deserialize)]
pub struct IngestReply {
    /// Batch id.
    #[prost(string, tag = "1")]
    pub batch: String,
    /// Rows loaded.
    #[prost(uint64, tag = "2")]
    pub rows: u64,
    /// Their digest.
    #[prost(string, tag = "3")]
    pub digest: String,
    /// An earlier delivery had already loaded them.
    #[prost(bool, tag = "4")]
    pub already: bool,
    /// Name of the worker.
    #[prost(string, tag = "5")]
    pub worker: String,
    /// Where the worker stands.
    #[prost(string, tag = "6")]
    pub region: String,
}

/// The acknowledgement of bytes of any kind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArchiveReply {
    /// How many came.
    pub bytes: u64,
    /// Their SHA-256, in hexadecimal.
    pub sha256: String,
    /// Name of the worker.
    pub worker: String,
}

/// A peer that does not speak gRPC as this program does.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Compressed messages are not read.
    #[error("compressed gRPC message")]
    Compressed,
    /// Beyond [`MAX_MESSAGE_BYTES`].
    #[error("gRPC message of {0} bytes, more than {MAX_MESSAGE_BYTES}")]
    TooLarge(usize),
    /// Not protobuf of this shape.
    #[error("gRPC message: {0}")]
    Decode(#[from] prost::DecodeError),
    /// The stream ended within a message.
    #[error("the stream ends within a gRPC message")]
    Truncated,
}

/// Encodes a message with its length prefix.
pub fn frame(message: &impl Message) -> Bytes {
    let length = message.encoded_len();
    let mut out = BytesMut::with_capacity(PREFIX_BYTES + length);
    out.put_u8(0);
    // lengths beyond u32 cannot occur: callers frame pieces of at most some 100 KiB
    out.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    message.encode_raw(&mut out);
    out.freeze()
}

/// Finds messages in a stream of bytes.
#[derive(Debug, Default)]
pub struct Deframer {
    buffer: BytesMut,
}

impl Deframer {
    /// Takes bytes in. Call [`Self::next_message`] until it has nothing more before the next piece.
    pub fn push(&mut self, piece: &[u8]) {
        self.buffer.extend_from_slice(piece);
    }

    /// The next complete message.
    ///
    /// # Errors
    /// When the stream is not one of this service.
    pub fn next_message<M: Message + Default>(&mut self) -> Result<Option<M>, FrameError> {
        let Some((prefix, _)) = self.buffer.split_first_chunk::<PREFIX_BYTES>() else {
            return Ok(None);
        };
        let [compressed, a, b, c, d] = *prefix;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if compressed != 0 {
            return Err(FrameError::Compressed);
        }
        if length > MAX_MESSAGE_BYTES {
            return Err(FrameError::TooLarge(length));
        }
        if self.buffer.len() < PREFIX_BYTES + length {
            return Ok(None);
        }
        self.buffer.advance(PREFIX_BYTES);
        Ok(Some(M::decode(self.buffer.split_to(length).freeze())?))
    }

    /// Checks that nothing is left over.
    ///
    /// # Errors
    /// When the stream ended within a message.
    pub fn end(&self) -> Result<(), FrameError> {
        if self.buffer.is_empty() { Ok(()) } else { Err(FrameError::Truncated) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(rows: &'static str) -> IngestRequest {
        IngestRequest { table: "orders".into(), batch: "b".into(), rows: Bytes::from(rows) }
    }

    #[test]
    fn messages_are_found_however_the_bytes_are_cut() {
        let sent = [request("one\n"), request(""), request("three\n")];
        let bytes: Vec<u8> = sent.iter().flat_map(frame).collect();
        for size in 1..=bytes.len() {
            let mut deframer = Deframer::default();
            let mut found = Vec::new();
            for piece in bytes.chunks(size) {
                deframer.push(piece);
                while let Some(message) = deframer.next_message::<IngestRequest>().unwrap() {
                    found.push(message);
                }
            }
            assert_eq!((found.as_slice(), deframer.end()), (&sent[..], Ok(())), "by {size}");
        }
    }

    #[test]
    fn what_is_no_message_is_refused() {
        for (bytes, error) in [
            (&[1, 0, 0, 0, 0][..], FrameError::Compressed),
            (&[0, 0xff, 0, 0, 0], FrameError::TooLarge(0xff00_0000)),
        ] {
            let mut deframer = Deframer::default();
            deframer.push(bytes);
            assert_eq!(deframer.next_message::<IngestRequest>(), Err(error));
        }
        let mut deframer = Deframer::default();
        deframer.push(&[0, 0, 0, 0, 9, 1]);
        assert_eq!(deframer.next_message::<IngestRequest>(), Ok(None));
        assert_eq!(deframer.end(), Err(FrameError::Truncated));
    }
}
