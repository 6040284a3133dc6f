//! Which of our streams a server has accepted, so that it will not refuse them any more.
//!
//! A server deals with frames in order. Once it acknowledges a PING (which it must, RFC 9113 §6.7) it has
//! seen every HEADERS before it, and a refusal of the stream, or a GOAWAY that leaves it out, is on its way to us
//! already if there is one. What it sends for a stream itself, a head or a WINDOW_UPDATE, says as much and
//! costs nothing, so that a PING is sent only for a stream that waits for the word. One vouches
//! for all streams opened before it, and at most one is under way. Servers count PINGs, and close the connection of a
//! client that sends too many: it is better to believe one than to break what is under way.

use std::time::Duration;

use tokio::time::Instant;

use super::{core::Core, frame, streams::Key};

/// How a PING begins that asks; the first stream it does not vouch for follows.
const ASKS: [u8; 4] = *b"took";
/// PINGs in a row that a server of gRPC endures, which has sent neither HEADERS nor DATA meanwhile. The
/// fourth within five minutes closes the connection in gRPC's own ("too_many_pings").
const ENDURED: u8 = 2;

/// PINGs in a [`PERIOD`]. Jetty takes more than 50 in a second for an attack (128 since version 12); twice these, at the
/// edge of two periods, and ten probes of windows are no more.
const MOST: u8 = 20;
const PERIOD: Duration = Duration::from_secs(1);

/// What is known of all streams of a connection.
#[derive(Debug, Default)]
pub(super) struct Accepted {
    /// Streams below this were open when a PING was sent that came back.
    below: u32,
    /// The same for the PING under way.
    asked: Option<u32>,
    /// PINGs that the server got, or may get, since it last sent HEADERS or DATA.
    in_a_row: u8,
    /// Those of the period that began then.
    lately: u8,
    since: Option<Instant>,
}

impl Accepted {
    fn vouches_for(&self, stream: u32) -> bool {
        stream < self.below
    }

    /// Whether a server, of gRPC if `sparing`, would mind another PING.
    fn is_much(&mut self, sparing: bool, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.duration_since(since) >= PERIOD) {
            self.since = Some(now);
            self.lately = 0;
        }
        self.lately >= MOST || sparing && self.in_a_row >= ENDURED
    }

    /// The PING to be sent for a stream that waits, when `next` is the first that is not open yet.
    fn ask(&mut self, next: u32) -> Option<[u8; 8]> {
        if self.asked.is_some() {
            return None;
        }
        self.asked = Some(next);
        self.pinged();
        self.lately = self.lately.saturating_add(1);
        Some(payload(next))
    }

    /// Takes an acknowledgement. False when it is not that of the PING under way.
    fn acknowledged(&mut self, opaque: [u8; 8]) -> bool {
        match self.asked {
            Some(next) if payload(next) == opaque => {
                self.below = next;
                self.asked = None;
                true
            }
            _ => false,
        }
    }

    /// A PING is sent. Servers count them all, whatever they are for.
    pub(super) fn pinged(&mut self) {
        self.in_a_row = self.in_a_row.saturating_add(1);
    }

    /// The server has sent HEADERS or DATA: perhaps before it got the PINGs under way.
    pub(super) fn heard(&mut self, probing: bool) {
        self.in_a_row = u8::from(self.asked.is_some()) + u8::from(probing);
    }
}

fn payload(next: u32) -> [u8; 8] {
    let mut payload = [0; 8];
    let (asks, number) = payload.split_at_mut(4);
    asks.copy_from_slice(&ASKS);
    number.copy_from_slice(&next.to_be_bytes());
    payload
}

impl Core {
    /// Whether the server has accepted a stream that has not failed. If that is not known it is asked,
    /// and the stream woken once it is. One that would mind, of gRPC if `sparing`, is not asked but believed.
    pub(super) fn has_accepted(&mut self, key: Key, sparing: bool) -> bool {
        let Some(stream) = self.streams.get_mut(key).filter(|s| s.failed.is_none()) else {
            return false;
        };
        if stream.accepted
            || self.accepted.vouches_for(stream.id)
            || self.accepted.asked.is_none() && self.accepted.is_much(sparing, Instant::now())
        {
            stream.accepted = true;
            return true;
        }
        stream.wants_word = true;
        if let Some(opaque) = self.accepted.ask(self.next) {
            frame::put_ping(&mut self.out.tail, false, opaque);
            self.notify_driver();
        }
        false
    }

    /// A PING came back: those who wait look again, or ask again.
    pub(super) fn heard_back(&mut self, opaque: [u8; 8]) {
        if !self.accepted.acknowledged(opaque) {
            return;
        }
        for key in self.streams.keys() {
            if let Some(stream) = self.streams.get_mut(key)
                && std::mem::take(&mut stream.wants_word)
            {
                stream.wake();
            }
        }
    }

    /// What the server sent for a stream says that it has accepted it.
    pub(super) fn accept(&mut self, key: Key) {
        let Some(stream) = self.streams.get_mut(key) else { return };
        stream.accepted = true;
        if std::mem::take(&mut stream.wants_word) {
            stream.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::{super::window::PROBE, *};

    #[test]
    fn a_server_is_not_asked_more_often_than_any_would_mind() {
        let (mut accepted, start) = (Accepted::default(), Instant::now());
        for (ms, asks) in [(0, 20), (999, 0), (1000, 20), (1500, 0), (9000, 20)] {
            let now = start + Duration::from_millis(ms);
            let mut asked = 0;
            while asked < 100 && !accepted.is_much(false, now) {
                let ping = accepted.ask(1).unwrap();
                accepted.acknowledged(ping);
                asked += 1;
            }
            assert_eq!(asked, asks, "after {ms} ms");
        }
    }

    /// What gRPC's own server in Go makes of PINGs (`handlePing`).
    #[derive(Debug, Default)]
    struct Strict {
        sent: bool,
        strikes: u32,
    }

    impl Strict {
        fn ping(&mut self) {
            self.strikes = if std::mem::take(&mut self.sent) { 0 } else { self.strikes + 1 };
        }
    }

    /// Whatever crosses what, and though bulk has its own PINGs.
    #[test]
    fn a_server_of_grpc_never_has_too_many() {
        for seed in 0..2000 {
            let mut rng = fastrand::Rng::with_seed(seed);
            let (mut accepted, mut probing) = (Accepted::default(), false);
            let mut server = Strict { sent: true, strikes: 0 };
            let mut now = Instant::now();
            // PINGs to the server; what comes from it: acknowledgements, and DATA as `None`.
            let (mut to, mut from) = (VecDeque::new(), VecDeque::new());
            for _ in 0..100 {
                now += PERIOD;
                match rng.u8(..8) {
                    0 => {
                        server.sent = true;
                        from.push_back(None);
                    }
                    1 | 2 if accepted.asked.is_none() && !accepted.is_much(true, now) => {
                        to.extend(accepted.ask(1));
                    }
                    3..6 => {
                        let Some(ping) = to.pop_front() else { continue };
                        server.ping();
                        from.push_back(Some(ping));
                    }
                    _ => match from.pop_front() {
                        None => {}
                        Some(None) => {
                            accepted.heard(probing);
                            if !std::mem::replace(&mut probing, true) {
                                accepted.pinged();
                                to.push_back(PROBE);
                            }
                        }
                        Some(Some(PROBE)) => probing = false,
                        Some(Some(ping)) => assert!(accepted.acknowledged(ping)),
                    },
                }
                assert!(server.strikes <= 2, "seed {seed}: {accepted:?}");
            }
        }
    }

    #[test]
    fn a_ping_vouches_for_what_was_open_before_it_and_only_one_is_under_way() {
        let mut accepted = Accepted::default();
        assert!(!accepted.vouches_for(1));
        let first = accepted.ask(5).unwrap();
        assert_eq!(accepted.ask(9), None, "one at a time");
        assert!(!accepted.acknowledged(payload(9)), "never sent");
        assert!(!accepted.vouches_for(3), "not before it is back");
        assert!(accepted.acknowledged(first));
        assert!(accepted.vouches_for(3) && !accepted.vouches_for(5));
        assert!(!accepted.acknowledged(first), "twice");
        let second = accepted.ask(9).unwrap();
        assert!(!accepted.acknowledged(first), "an old one");
        assert!(accepted.acknowledged(second));
        assert!(accepted.vouches_for(7) && !accepted.vouches_for(9));
    }
}
