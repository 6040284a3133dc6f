//! One try: what the endpoint does with it, and what it saw.

use bytes::Bytes;

use super::super::{
    body::{Hasher, Source, Verifier, digest_of, wrong_digest},
    exchange::{Exchange, Gone},
    plan::{At, Break, Direction, Fault, Request},
    scene::{Attempt, Scene},
    tap::Ending,
};

/// The head of a request.
pub(super) struct Asked<'a> {
    pub(super) method: String,
    pub(super) path: String,
    pub(super) field: &'a (dyn Fn(&str) -> Option<String> + Sync),
}

/// A try on its way.
pub(super) struct Try<'a> {
    pub(super) scene: &'a Scene,
    pub(super) request: &'a Request,
    pub(super) exchange: Exchange<'a>,
    pub(super) fault: Fault,
    pub(super) endpoint: usize,
    /// Position in the scene.
    pub(super) at: usize,
    number: usize,
    pub(super) verifier: Verifier,
    /// The digest that the body came with, or may yet come with.
    told: Option<String>,
    hasher: Option<Hasher>,
    /// Where the part that is asked for begins; `None` where the whole is.
    from: Option<u64>,
    /// The upload it is part of, and where in that it begins.
    pub(super) upload: Option<usize>,
    pub(super) upload_from: u64,
    sent: u64,
    /// Of what is sent, where its digest follows.
    sending: Option<Hasher>,
    /// The fault has come to pass.
    struck: bool,
    /// The answer's head is out.
    answered: bool,
}

/// Body of an answer that is none.
const SHORT: u64 = 32;
const DIGEST: &str = "content-digest";

/// Serves a try; true when the connection can go on.
pub(super) async fn serve(
    exchange: Exchange<'_>,
    asked: Asked<'_>,
    scene: &Scene,
    endpoint: usize,
) -> bool {
    let field = asked.field;
    let index = field("x-request").and_then(|text| text.parse().ok());
    let Some(request) = index.and_then(|index| scene.request(index)) else {
        scene.tell(format_args!("e{endpoint}: a request that nobody sent"));
        return false;
    };
    let (at, number) = scene.begin(Attempt {
        request: request.index,
        endpoint,
        key: field("idempotency-key"),
        method: asked.method.clone(),
        ranged: field("range").is_some(),
        working: true,
        connection: exchange.control().clone(),
        stream: exchange.stream(),
        ..Attempt::default()
    });
    let fault = request.tries.get(number).copied().unwrap_or(Fault::None);
    scene.tell(format_args!(
        "e{endpoint}: #{}.{number} begins on stream {}: {} {}, meets {fault:?}",
        request.index,
        exchange.stream(),
        asked.method,
        asked.path,
    ));
    let mut this = Try {
        scene,
        request,
        exchange,
        fault,
        endpoint,
        at,
        number,
        verifier: Verifier::new(Source::new(scene.plan.seed, request.index, None)),
        told: field(DIGEST),
        hasher: (scene.plan.policy.integrity.make || field(DIGEST).is_some()).then(Hasher::new),
        from: asked_from(request, fault, field),
        upload: None,
        upload_from: 0,
        sent: 0,
        sending: None,
        struck: false,
        answered: false,
    };
    let outcome = match asked.method.as_str() {
        "HEAD" => this.tell_standing(&asked).await,
        "PATCH" => this.go_on(&asked).await,
        _ => {
            this.offer_upload(&asked).await;
            this.run().await
        }
    };
    let (received, sent) = (this.verifier.received, this.sent);
    scene.note(at, |attempt| attempt.working = false);
    scene.tell(format_args!(
        "e{endpoint}: #{}.{number} ends, received {received}, sent {sent}: {outcome:?}",
        request.index
    ));
    if outcome.is_err() && matches!(this.exchange, Exchange::Http1(_)) {
        // Whatever it was, the connection is no use any more.
        this.exchange.control().kill(Ending::Close);
    }
    outcome.is_ok()
}

/// Where a request for the rest of a body has it begin, if that is of the version this try serves.
fn asked_from(
    request: &Request,
    fault: Fault,
    field: &dyn Fn(&str) -> Option<String>,
) -> Option<u64> {
    let from = field("range")?.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()?;
    let same = field("if-range").is_some_and(|held| held == tag(fault));
    (request.tagged && same && from < request.down.size).then_some(from)
}

/// What a try serves under a tag.
fn version(fault: Fault) -> usize {
    usize::from(fault == Fault::OtherVersion)
}

fn tag(fault: Fault) -> String {
    format!("\"version-{}\"", version(fault))
}

impl Try<'_> {
    pub(super) async fn run(&mut self) -> Result<(), Gone> {
        self.reach(At::Head).await?;
        if let Fault::Interims { count, status } = self.fault {
            for _ in 0..count {
                self.exchange.inform(status, &[]).await?;
            }
        }
        if let Fault::Early { status, at, read_on } = self.fault {
            return self.answer_early(status, at, read_on).await;
        }
        if self.request.direction == Direction::Echo && !self.answers_otherwise() {
            self.head().await?;
            while let Some(bytes) = self.read().await? {
                self.write(bytes).await?;
            }
            return self.end().await;
        }
        while self.read().await?.is_some() {}
        self.reach(At::Processed).await?;
        if let Fault::Unavailable { retry_after } = self.fault {
            let retry = retry_after.then(|| ("retry-after", "0".to_owned()));
            return self.short(503, retry).await;
        }
        self.head().await?;
        let mut body = self.answer_body();
        let from = self.from.unwrap_or(0);
        body.skip(from);
        let mut left = self.request.down.size - from;
        while left > 0 {
            let bytes = body.next(left.min(self.request.piece));
            left -= bytes.len() as u64;
            self.write(bytes).await?;
        }
        self.end().await
    }

    async fn end(&mut self) -> Result<(), Gone> {
        let size = self.request.down.size;
        self.reach(At::Download(size)).await?;
        let trailer = self.trailer();
        self.exchange.end(trailer).await?;
        match self.fault {
            Fault::WrongLength(_) => Err("the length was wrong".into()),
            _ => Ok(()),
        }
    }

    /// The digest that follows the body of an answer.
    fn trailer(&mut self) -> Option<(&'static str, String)> {
        if (self.fault == Fault::WrongDigest { trailer: true }) {
            return Some((DIGEST, wrong_digest()));
        }
        Some((DIGEST, self.sending.take()?.field()))
    }

    fn answers_otherwise(&self) -> bool {
        matches!(self.fault, Fault::Unavailable { .. })
    }

    /// Which body the answer has; `None` where it is the request's.
    fn answer(&self) -> Option<usize> {
        let echo = self.request.direction == Direction::Echo && !self.answers_otherwise();
        let own = if self.request.tagged { version(self.fault) } else { self.number };
        (!echo).then_some(own)
    }

    fn answer_body(&self) -> Source {
        Source::new(self.scene.plan.seed, self.request.index, self.answer())
    }

    /// Says whose answer this is, and which.
    fn fields(&self, whole: u64) -> Vec<(&'static str, String)> {
        let mut fields =
            vec![("x-attempt", self.number.to_string()), ("x-whole", whole.to_string())];
        fields.extend(self.answer().map(|answer| ("x-answer", answer.to_string())));
        fields
    }

    async fn head(&mut self) -> Result<(), Gone> {
        self.reach(At::Answer).await?;
        let size = self.request.down.size;
        let (declared, whole) = match self.fault {
            Fault::WrongLength(by) => {
                let told = size.saturating_add_signed(by);
                (Some(told), told)
            }
            _ => (self.request.down.declared.then_some(size), size),
        };
        let mut fields = self.fields(whole);
        if self.request.tagged {
            fields.push(("etag", tag(self.fault)));
        }
        if self.upload.is_some() {
            fields.push(("upload-complete", "?1".to_owned()));
        }
        self.prove(&mut fields);
        self.answered = true;
        let Some(from) = self.from else {
            return self.exchange.respond(200, declared, &fields).await;
        };
        fields.push(("content-range", format!("bytes {from}-{}/{whole}", size - 1)));
        let declared = declared.map(|whole| whole.saturating_sub(from));
        self.exchange.respond(206, declared, &fields).await
    }

    /// Gives the answer the digest that is right, or wrong; before it or after it.
    fn prove(&mut self, fields: &mut Vec<(&'static str, String)>) {
        match self.fault {
            Fault::WrongDigest { trailer: false } => fields.push((DIGEST, wrong_digest())),
            Fault::WrongDigest { trailer: true } => {}
            _ if !self.request.proved || self.from.is_some() => {}
            _ if self.request.down.declared => {
                let digest = digest_of(self.answer_body(), self.request.down.size);
                fields.push((DIGEST, digest));
            }
            _ => self.sending = Some(Hasher::new()),
        }
    }

    /// Passes a point of the try, where the fault may strike.
    pub(super) async fn reach(&mut self, point: At) -> Result<(), Gone> {
        let (Fault::Break(at, _) | Fault::Stall(at, _)) = self.fault else { return Ok(()) };
        let here = match (at, point) {
            (At::Upload(at), At::Upload(now)) | (At::Download(at), At::Download(now)) => at <= now,
            (at, point) => at == point,
        };
        if !here || std::mem::replace(&mut self.struck, true) {
            return Ok(());
        }
        match self.fault {
            Fault::Stall(_, pause) => tokio::time::sleep(pause).await,
            Fault::Break(_, how) => {
                self.lose();
                if self.exchange.break_off(how, !self.answered).await {
                    self.scene.note(self.at, |attempt| attempt.refused = true);
                }
                if !matches!(how, Break::GoAway { below: false, abrupt: false }) {
                    if !matches!(how, Break::Stream(_)) {
                        // Until the connection is gone.
                        self.exchange.control().gone().await;
                    }
                    return Err(format!("broke off by {how:?}"));
                }
            }
            _ => {}
        }
        Ok(())
    }

    async fn read(&mut self) -> Result<Option<Bytes>, Gone> {
        let piece = self.exchange.read().await?;
        if let Some(bytes) = &piece {
            self.verifier.take(bytes);
            self.scene.pass(bytes.len());
            if let Some(hasher) = &mut self.hasher {
                hasher.take(bytes);
            }
        }
        self.append(piece.is_none())?;
        let Verifier { received, wrong, .. } = self.verifier;
        let proved = if piece.is_none() { self.proved() } else { None };
        self.scene.note(self.at, |attempt| {
            (attempt.received, attempt.wrong) = (received, wrong);
            attempt.complete |= piece.is_none();
            attempt.proved = attempt.proved.or(proved);
        });
        if piece.is_some() {
            self.reach(At::Upload(self.upload_from + received)).await?;
        }
        Ok(piece)
    }

    /// Whether the body that is there was what its digest says.
    fn proved(&mut self) -> Option<bool> {
        let made = self.hasher.take()?.field();
        let told = self.told.take().or_else(|| self.exchange.trailer(DIGEST))?;
        Some(told == made)
    }

    async fn write(&mut self, mut bytes: Bytes) -> Result<(), Gone> {
        let at = self.from.unwrap_or(0) + self.sent;
        if let Fault::Break(At::Download(until), _) | Fault::Stall(At::Download(until), _) =
            self.fault
            && (at + 1..at + bytes.len() as u64).contains(&until)
        {
            // The fault strikes at its byte, not before or after the piece.
            let first = bytes.split_to((until - at) as usize);
            self.send(first).await?;
        }
        self.send(bytes).await
    }

    async fn send(&mut self, bytes: Bytes) -> Result<(), Gone> {
        self.reach(At::Download(self.from.unwrap_or(0) + self.sent)).await?;
        self.sent += bytes.len() as u64;
        let (sent, upto) = (self.sent, self.from.unwrap_or(0) + self.sent);
        self.scene.note(self.at, |attempt| {
            attempt.sent = sent;
            // Who has the last of it may come back before this is known to have gone.
            attempt.working = upto < self.request.down.size;
        });
        if let Some(sending) = &mut self.sending {
            sending.take(&bytes);
        }
        self.exchange.write(bytes).await
    }

    async fn answer_early(&mut self, status: u16, at: u64, read_on: bool) -> Result<(), Gone> {
        while self.verifier.received < at && self.read().await?.is_some() {}
        self.short(status, None).await?;
        if !read_on {
            self.exchange.want_no_more();
            return Err("wanted no more".into());
        }
        while self.read().await?.is_some() {}
        Ok(())
    }

    /// Answers with little.
    async fn short(&mut self, status: u16, more: Option<(&str, String)>) -> Result<(), Gone> {
        let mut fields = self.fields(SHORT);
        fields.extend(more);
        self.answered = true;
        self.exchange.respond(status, Some(SHORT), &fields).await?;
        let mut body = self.answer_body();
        let mut left = SHORT;
        while left > 0 {
            let bytes = body.next(left);
            left -= bytes.len() as u64;
            self.write(bytes).await?;
        }
        self.exchange.end(None).await
    }
}
