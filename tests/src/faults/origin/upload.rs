//! Uploads that go on where they broke (draft-ietf-httpbis-resumable-upload, interop version 8).

use super::{
    super::{
        exchange::Gone,
        plan::{At, Fault},
        scene::Stored,
    },
    serve::{Asked, Try},
};

const INTEROP: (&str, &str) = ("upload-draft-interop-version", "8");
/// Uploads are resources under it.
const FOLDER: &str = "/uploads/";

impl Try<'_> {
    /// Names the upload, where the client knows what to make of that.
    pub(super) async fn offer_upload(&mut self, asked: &Asked<'_>) {
        let (name, version) = INTEROP;
        if !self.request.resumable || (asked.field)(name).as_deref() != Some(version) {
            return;
        }
        let upload = self.scene.store(Stored {
            request: self.request.index,
            endpoint: self.endpoint,
            bytes: 0,
            complete: false,
            owner: self.at,
        });
        self.take_up(upload);
        let fields = [("location", format!("{FOLDER}{upload}")), (name, version.to_owned())];
        // Whether it came to be known shows in what follows.
        let _ = self.exchange.inform(104, &fields).await;
    }

    /// Says how much there is of an upload.
    pub(super) async fn tell_standing(&mut self, asked: &Asked<'_>) -> Result<(), Gone> {
        self.reach(At::Head).await?;
        if matches!(self.fault, Fault::Unavailable { .. }) {
            return self.exchange.respond_bodiless(503, &[]).await;
        }
        let Some(stored) = self.find(asked) else {
            return self.exchange.respond_bodiless(404, &[]).await;
        };
        self.reach(At::Answer).await?;
        let complete = format!("?{}", u8::from(stored.complete));
        let fields = [("upload-offset", stored.bytes.to_string()), ("upload-complete", complete)];
        self.exchange.respond_bodiless(204, &fields).await
    }

    /// Appends to an upload, and answers it when that is all.
    pub(super) async fn go_on(&mut self, asked: &Asked<'_>) -> Result<(), Gone> {
        let offset = (asked.field)("upload-offset").and_then(|text| text.parse().ok());
        let stored = self.find(asked);
        let agreed = stored.filter(|stored| Some(stored.bytes) == offset);
        let Some(stored) = agreed else {
            let (status, at) = stored.map_or((404, 0), |stored| (409, stored.bytes));
            let fields = [("upload-offset", at.to_string())];
            self.exchange.respond(status, Some(0), &fields).await?;
            self.exchange.end(None).await?;
            return Err("appended where nothing can be".into());
        };
        self.upload_from = stored.bytes;
        self.verifier.skip(stored.bytes);
        self.scene.note(self.at, |attempt| attempt.from = stored.bytes);
        self.run().await
    }

    /// Finds an upload that this endpoint knows of; whoever appended to it until now, does no more.
    fn find(&mut self, asked: &Asked<'_>) -> Option<Stored> {
        let upload: usize = asked.path.strip_prefix(FOLDER)?.parse().ok()?;
        let stored = *self.scene.uploads().get(upload)?;
        let known = self.scene.plan.shares_uploads || stored.endpoint == self.endpoint;
        if !known || stored.request != self.request.index {
            return None;
        }
        self.take_up(upload);
        Some(stored)
    }

    fn take_up(&mut self, upload: usize) {
        self.upload = Some(upload);
        self.scene.uploads()[upload].owner = self.at;
        self.scene.note(self.at, |attempt| attempt.upload = Some(upload));
    }

    /// Notes how much there is of the upload.
    pub(super) fn append(&mut self, complete: bool) -> Result<(), Gone> {
        let Some(upload) = self.upload else { return Ok(()) };
        let stored = &mut self.scene.uploads()[upload];
        if stored.owner != self.at {
            return Err("another appends".into());
        }
        stored.bytes = self.upload_from + self.verifier.received;
        stored.complete |= complete;
        Ok(())
    }

    /// What came last was not written yet.
    pub(super) fn lose(&mut self) {
        let Some(upload) = self.upload else { return };
        let stored = &mut self.scene.uploads()[upload];
        if stored.owner == self.at && !stored.complete {
            let kept = stored.bytes.saturating_sub(self.request.lost);
            stored.bytes = kept.max(self.upload_from);
        }
    }
}
