//! What a client learns of its answer.

use super::{
    body::{Source, Verifier},
    plan::{Quirk, Request},
    scene::Scene,
};

/// What a client saw of its request.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub(super) request: usize,
    /// The request's head may have reached the proxy.
    pub(super) asked: bool,
    /// Body bytes that may have been sent.
    pub(super) sent: u64,
    pub(super) status: Option<u16>,
    /// The try that answered; `None` where the proxy did.
    pub(super) attempt: Option<usize>,
    /// Length of the body according to who made it.
    pub(super) whole: Option<u64>,
    /// `x-towpath-reason`.
    pub(super) reason: Option<String>,
    /// It was told when to come again.
    pub(super) retry_after: bool,
    pub(super) received: u64,
    /// Where the answer's body first was not what the endpoint sent.
    pub(super) wrong: Option<u64>,
    pub(super) end: End,
}

/// How it ended.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum End {
    /// Not yet.
    #[default]
    Open,
    /// As a complete message ends.
    Whole,
    /// Visibly not.
    Broken(String),
    /// The client went away itself.
    Left,
}

/// What is being learned of an answer.
pub(super) struct Answer<'a> {
    pub(super) scene: &'a Scene,
    pub(super) request: &'a Request,
    verifier: Option<Verifier>,
    pub(super) outcome: Outcome,
    paused_at: u64,
}

impl<'a> Answer<'a> {
    pub(super) fn new(scene: &'a Scene, request: &'a Request) -> Self {
        let outcome = Outcome { request: request.index, ..Outcome::default() };
        Self { scene, request, verifier: None, outcome, paused_at: 0 }
    }

    pub(super) fn begin(&mut self, status: u16, field: impl Fn(&str) -> Option<String>) {
        let outcome = &mut self.outcome;
        outcome.status = Some(status);
        outcome.reason = field("x-towpath-reason");
        outcome.retry_after = field("retry-after").is_some();
        outcome.whole = field("x-whole").and_then(|text| text.parse().ok());
        outcome.attempt = field("x-attempt").and_then(|text| text.parse().ok());
        let answer = field("x-answer").and_then(|text| text.parse().ok());
        self.verifier = outcome
            .attempt
            .map(|_| Verifier::new(Source::new(self.scene.plan.seed, self.request.index, answer)));
    }

    pub(super) fn take(&mut self, bytes: &[u8]) {
        if let Some(verifier) = &mut self.verifier {
            verifier.take(bytes);
            self.outcome.received = verifier.received;
        }
        self.scene.pass(bytes.len());
    }

    /// Pauses where the client is slow; true where it goes away.
    pub(super) async fn leaves(&mut self) -> bool {
        let received = self.outcome.received;
        match self.request.quirk {
            Quirk::SlowReader { every, pause } if received >= self.paused_at => {
                self.paused_at = received + every;
                tokio::time::sleep(pause).await;
                false
            }
            Quirk::Linger { pause } if received > self.paused_at => {
                self.paused_at = u64::MAX;
                tokio::time::sleep(pause).await;
                false
            }
            Quirk::VanishDownload { at, .. } => at <= received,
            _ => false,
        }
    }

    pub(super) fn finish(mut self) -> Outcome {
        if let Some(verifier) = &self.verifier {
            self.outcome.wrong = verifier.wrong;
        }
        self.outcome
    }
}
