//! What readers leave lying does not hold up others.
//!
//! Bytes that came and were not passed on count against the connection's window, which all its
//! streams share: a few clients that read slowly, or uploads that wait for their turn, would stop
//! all others. So credit is lent for what lies here once that is half of the window, out of what
//! all connections of the process may take together. Where nothing more can be lent, new streams go
//! to other connections, and streams of which nothing at all moves are given up.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    core::{Core, Role, StreamState},
    error::{ErrorCode, StreamError},
    memory::{Memory, Taken},
    streams::Key,
};

/// What is lent to one connection, in bytes.
const MOST_LENT: u64 = 32 << 20;
/// How long a peer may be without credit before those are given up that hold it and do not move.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the peer may take nothing from us before new bodies go to another connection.
const BLOCKED: Duration = Duration::from_secs(1);

/// What streams hold of the connection's window, and what was lent for it.
#[derive(Debug)]
pub(super) struct Lending {
    /// Bytes of bodies that nobody has credited yet; at least what is lent.
    held: u64,
    lent: Taken,
    /// When those are given up that hold up the others.
    until: Option<Instant>,
}

impl Lending {
    pub(super) fn new(memory: &'static Memory) -> Self {
        Self { held: 0, lent: Taken::of(&memory.loans), until: None }
    }
}

impl Core {
    /// Notes bytes of a body that came and wait to be passed on.
    pub(super) fn hold(&mut self, bytes: u32) {
        self.lending.held += u64::from(bytes);
        if self.is_low() {
            self.lend();
        }
    }

    fn lend(&mut self) {
        let Lending { held, lent, .. } = &mut self.lending;
        let may = (*held - lent.bytes()).min(MOST_LENT.saturating_sub(lent.bytes()));
        let more = lent.take_some(may);
        self.credit_connection(u32::try_from(more).unwrap_or(0));
        if self.is_starved() && self.role == Role::Client && self.lending.until.is_none() {
            self.wait_for_readers(Instant::now());
        }
    }

    /// Notes that bytes of a body were passed on. What was lent is paid back first, unless the
    /// peer has little credit left: then only what is lent for bytes that are no longer here.
    pub(super) fn passed_on(&mut self, bytes: u32) {
        let low = self.is_low();
        let Lending { held, lent, .. } = &mut self.lending;
        *held = held.saturating_sub(u64::from(bytes));
        let least = lent.bytes().saturating_sub(*held);
        let back = if low { least } else { lent.bytes() }.min(u64::from(bytes));
        lent.give_back(back);
        self.credit_connection(bytes - back as u32);
    }

    /// Whether half of the window is taken by what lies here.
    fn is_low(&self) -> bool {
        !self.config.fixed && self.receive_window + self.owed < self.config.connection_window / 2
    }

    /// Whether streams that do not move hold up the others.
    fn is_starved(&self) -> bool {
        let least = self.config.stream_window.min(self.config.connection_window / 4);
        !self.config.fixed && self.receive_window + self.owed < least
    }

    /// Whether a new stream, or one with a body, would wait for others here.
    pub(super) fn holds_up(&self, body: bool) -> bool {
        self.is_starved()
            || body && self.send_blocked.is_some_and(|since| since.elapsed() >= BLOCKED)
    }

    fn wait_for_readers(&mut self, now: Instant) {
        for key in self.streams.keys() {
            if let Some(stream) = self.streams.get_mut(key) {
                stream.moves = false;
            }
        }
        let until = now + PATIENCE;
        self.lending.until = Some(until);
        self.wake_by(until);
    }

    /// Gives up the streams that hold bytes and have not moved, if the others still wait.
    pub(super) fn look_who_holds_up(&mut self, now: Instant) {
        let Some(until) = self.lending.until else { return };
        if until > now {
            return self.wake_by(until);
        }
        self.lending.until = None;
        if !self.is_starved() {
            return;
        }
        for key in self.streams.keys() {
            let stands = |s: &StreamState| s.uncredited > 0 && !s.moves && !s.held_back;
            if self.streams.get(key).is_some_and(stands) {
                self.give_up(key);
            }
        }
        if self.is_starved() {
            self.wait_for_readers(now);
        }
    }

    fn give_up(&mut self, key: Key) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        tracing::debug!(stream = stream.id, "given up: it holds up others and is not read");
        stream.chunks.clear();
        stream.joined.clear();
        stream.end = None;
        let held = std::mem::take(&mut stream.uncredited);
        // The peer may still wait for the rest of a request.
        let done = stream.remote_closed && stream.local_closed;
        self.passed_on(held);
        match done {
            true => self.fail(key, StreamError::Unread),
            false => self.reset(key, ErrorCode::CANCEL, StreamError::Unread),
        }
    }
}
