//! `PUT /archive/{name}`: takes bytes of any kind, and acknowledges them by their digest.

use http::Request;
use hyper::body::Incoming;
use sha2::{Digest, Sha256};

use super::{Refusal, Worker, next_piece};
use crate::etl::wire::ArchiveReply;

impl Worker {
    /// Takes the whole body. Nothing is kept: what matters of it is that all of it came.
    pub(super) async fn archive(
        &self,
        request: Request<Incoming>,
    ) -> Result<ArchiveReply, Refusal> {
        let mut body = request.into_body();
        let (mut bytes, mut digest) = (0, Sha256::new());
        while let Some(piece) = next_piece(&mut body).await? {
            bytes += piece.len() as u64;
            digest.update(&piece);
        }
        let sha256 = format!("{:x}", digest.finalize());
        Ok(ArchiveReply { bytes, sha256, worker: self.name.clone() })
    }
}
