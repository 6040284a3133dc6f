//! How streams and the connection end.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    core::{Asked, Core, Ending, Role},
    error::{ErrorCode, Fatal, StreamError},
    frame,
    streams::Key,
};

/// The PING that tells when a client has heard of our going away.
pub(super) const FAREWELL: [u8; 8] = *b"towpath!";

/// Time for a peer to take the last that is left for it.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(10);

/// How streams ended of late.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Endings {
    well: u32,
    reset: u32,
}

impl Endings {
    /// Forgets: what went well for days excuses no cancels of today.
    fn of_late(&mut self) -> Self {
        if self.well + self.reset >= 5 * MOST_RESET {
            *self = Self { well: self.well / 2, reset: self.reset / 2 };
        }
        *self
    }
}

/// A client that resets more streams than it finishes leaves the connection after so many, before
/// its server takes it for an attacker: Envoy does after 500, most others after 1,000. Behind us
/// are many clients, and one that cancels all it asks for must not cost the others their streams.
const MOST_RESET: u32 = 200;

impl Core {
    /// Resets a stream, for `failure`.
    pub(super) fn reset(&mut self, key: Key, code: ErrorCode, failure: StreamError) {
        let Some(stream) = self.streams.get(key) else { return };
        let id = stream.id;
        frame::put_reset(&mut self.out.tail, id, code);
        self.streams.note_reset(id);
        self.notify_driver();
        self.fail(key, failure);
        self.endings.reset += 1;
        let Endings { well, reset } = self.endings.of_late();
        if self.role == Role::Client && reset >= MOST_RESET && reset >= well {
            self.leave();
        }
    }

    /// Resets a stream that the peer misused.
    pub(super) fn misused(
        &mut self,
        key: Key,
        code: ErrorCode,
        why: &'static str,
    ) -> Result<(), Fatal> {
        self.reset(key, code, StreamError::Malformed(why));
        self.charge()
    }

    /// Ends a stream; what had come before can still be read.
    pub(super) fn fail(&mut self, key: Key, failure: StreamError) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        stream.failed.get_or_insert(failure);
        stream.pending.clear();
        stream.pending_end = None;
        stream.local_closed = true;
        stream.remote_closed = true;
        stream.wake();
        if stream.released {
            self.free(key);
        }
    }

    /// Its owner has no more use for a stream. An answer that is all there still goes out, if
    /// the client takes it in time.
    pub(super) fn release(&mut self, key: Key) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        stream.released = true;
        stream.waker = None;
        if self.role == Role::Client || stream.local_closed || stream.pending_end.is_none() {
            return self.settle(key);
        }
        let deadline = Instant::now() + LAST_WORDS;
        stream.deadline = Some(deadline);
        self.wake_by(deadline);
    }

    /// Has the driver look at deadlines at this time at the latest.
    pub(super) fn wake_by(&mut self, deadline: Instant) {
        if self.deadline.is_none_or(|earliest| deadline < earliest) {
            self.deadline = Some(deadline);
            self.notify_driver();
        }
    }

    /// Tells the streams whose time has come, and ends those that nobody waits for.
    pub(super) fn look_at_deadlines(&mut self, now: Instant) {
        self.deadline = None;
        self.look_who_holds_up(now);
        for key in self.streams.keys() {
            let Some(stream) = self.streams.get_mut(key) else { continue };
            let Some(deadline) = stream.deadline else { continue };
            if deadline > now {
                self.wake_by(deadline);
                continue;
            }
            stream.deadline = None;
            stream.due = true;
            stream.wake();
            if stream.released {
                self.settle(key);
            }
        }
    }

    /// Frees a released stream from which nothing more is to be sent.
    pub(super) fn settle(&mut self, key: Key) {
        let Some(stream) = self.streams.get(key) else { return };
        if stream.local_closed && stream.remote_closed {
            self.free(key);
            return;
        }
        let code = match self.role {
            // The answer is whole: the rest of the request is not needed (RFC 9113 §8.1).
            Role::Server if stream.local_closed => ErrorCode::NO_ERROR,
            Role::Server => ErrorCode::INTERNAL_ERROR,
            Role::Client => ErrorCode::CANCEL,
        };
        self.reset(key, code, StreamError::Closed);
    }

    fn free(&mut self, key: Key) {
        let Some(stream) = self.streams.remove(key) else { return };
        if stream.failed.is_none() {
            self.endings.well += 1;
            self.endings.of_late();
            self.budget.earn();
        }
        if stream.queued {
            self.blocked.retain(|blocked| *blocked != key);
        }
        self.passed_on(stream.uncredited);
        if self.streams.len() == 0 {
            self.idle_since = Instant::now();
            // It may be over now, and has memory to give back.
            self.notify_driver();
        }
    }

    /// Whether so many streams are open. Those that both sides ended do not count, though their
    /// owners still have them, unless they are as many again.
    pub(super) fn is_full(&self, most: u32) -> bool {
        let most = most as usize;
        self.streams.len() >= most
            && (self.config.fixed
                || self.streams.len() >= most.saturating_mul(2)
                || self.streams.open() >= most)
    }

    /// Nothing can be sent any more; what has come can still be read.
    pub(super) fn write_failed(&mut self) {
        self.out.give_up();
        if matches!(self.ending, Ending::No | Ending::Announced) {
            self.ending = Ending::Final;
        }
    }

    /// Begins a graceful end: what is under way is finished, and nothing new taken. A client
    /// hears of it before a stream is refused (RFC 9113 §6.8).
    pub(super) fn leave(&mut self) {
        if self.ending != Ending::No {
            return;
        }
        match self.role {
            Role::Server => {
                self.ending = Ending::Announced;
                self.announce(frame::MOST, ErrorCode::NO_ERROR, "");
                frame::put_ping(&mut self.out.tail, false, FAREWELL);
            }
            Role::Client => {
                self.ending = Ending::Final;
                self.announce(0, ErrorCode::NO_ERROR, "");
            }
        }
        self.notify_driver();
    }

    /// Says that streams beyond `last` are not looked at. What crossed such a word is not, whatever
    /// is said later (RFC 9113 §6.8).
    fn announce(&mut self, last: u32, code: ErrorCode, why: &str) {
        self.announced = self.announced.min(last);
        frame::put_goaway(&mut self.out.tail, self.announced, code, why);
    }

    /// Takes no more streams of a peer that goes too far, and lets those under way finish.
    pub(super) fn refuse_more(&mut self, Fatal(code, why): Fatal) {
        if matches!(self.ending, Ending::No | Ending::Announced) {
            self.ending = Ending::Final;
            self.announce(self.highest, code, why);
            self.notify_driver();
        }
    }

    /// The client has heard of the end, or had time enough to.
    pub(super) fn left(&mut self) {
        if self.ending == Ending::Announced {
            self.ending = Ending::Final;
            self.announce(self.highest, ErrorCode::NO_ERROR, "");
            self.notify_driver();
        }
    }

    /// The peer goes away: it did not and will not look at our streams beyond `last`.
    pub(super) fn peer_leaves(&mut self, last: u32) {
        if self.role == Role::Server {
            return;
        }
        if self.ending == Ending::No {
            self.ending = Ending::Final;
        }
        for key in self.streams.keys() {
            if self.streams.get(key).is_some_and(|s| s.id > last) {
                self.fail(key, StreamError::Refused);
            }
        }
        self.notify_driver();
    }

    /// Whether a graceful end is complete.
    pub(super) fn is_finished(&self) -> bool {
        self.ending == Ending::Over
            || (self.ending == Ending::Final && self.streams.len() == 0 && self.asked.is_empty())
    }

    /// Ends everything that is left. `fatal` is told to the peer.
    pub(super) fn end(&mut self, fatal: Option<Fatal>) {
        if self.ending == Ending::Over {
            return;
        }
        if let Some(Fatal(code, why)) = fatal {
            self.announce(self.highest, code, why);
        }
        self.ending = Ending::Over;
        // What nobody has taken up yet has no owner to release it.
        for asked in std::mem::take(&mut self.asked) {
            if let Asked::Request(key, _) | Asked::TooLarge(key) = asked {
                self.release(key);
            }
        }
        for key in self.streams.keys() {
            self.fail(key, StreamError::Closed);
        }
    }
}
