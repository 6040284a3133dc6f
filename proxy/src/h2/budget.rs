//! A bound on what a peer may make us do for nothing.

use std::time::Duration;

use tokio::time::Instant;

/// So much of it in one [`PERIOD`], and as much again for what is under way to finish.
const MOST: u32 = 1000;
const PERIOD: Duration = Duration::from_secs(1);

/// Frames that cost work and carry none are charged: streams reset before they were served
/// (CVE-2023-44487) or that made us reset them (CVE-2025-8671), PING, SETTINGS, empty fragments
/// (CVE-2019-9512, -9515, -9518). No honest peer sends a thousand of them in a second more than
/// it has streams that end well: those earn back what others cost, since behind a proxy's
/// connection are many clients.
#[derive(Debug, Default)]
pub(super) struct Budget {
    spent: u32,
    since: Option<Instant>,
}

/// How far a peer has gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Charged {
    Within,
    Beyond,
    FarBeyond,
}

impl Budget {
    /// Charges one.
    pub(super) fn charge(&mut self) -> Charged {
        self.spent += 1;
        if self.spent == 1 {
            self.since = Some(Instant::now());
        }
        if self.spent <= MOST {
            return Charged::Within;
        }
        if self.since.is_none_or(|since| since.elapsed() >= PERIOD) {
            *self = Self { spent: 1, since: Some(Instant::now()) };
            return Charged::Within;
        }
        if self.spent <= 2 * MOST { Charged::Beyond } else { Charged::FarBeyond }
    }

    /// A stream ended well.
    pub(super) fn earn(&mut self) {
        self.spent = self.spent.saturating_sub(1);
    }
}
