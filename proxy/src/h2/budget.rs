//! A bound on what a peer may make us do for nothing.

use std::time::Duration;

use tokio::time::Instant;

/// So much of it in one [`PERIOD`].
const MOST: u32 = 1000;
const PERIOD: Duration = Duration::from_secs(1);

/// Frames that cost work and carry none are charged: streams reset before they were served
/// (CVE-2023-44487) or that made us reset them (CVE-2025-8671), PING, SETTINGS, empty fragments
/// (CVE-2019-9512, -9515, -9518). No honest peer sends a thousand of them in a second.
#[derive(Debug, Default)]
pub(super) struct Budget {
    spent: u32,
    since: Option<Instant>,
}

impl Budget {
    /// Charges one. False when the peer has gone too far.
    pub(super) fn charge(&mut self) -> bool {
        self.spent += 1;
        if self.spent == 1 {
            self.since = Some(Instant::now());
        }
        if self.spent <= MOST {
            return true;
        }
        let calm = self.since.is_none_or(|since| since.elapsed() >= PERIOD);
        if calm {
            *self = Self { spent: 1, since: Some(Instant::now()) };
        }
        calm
    }
}
