//! Receive windows that follow bandwidth × delay.
//!
//! A window bounds what is under way in one round trip: 1 MiB over 100 ms is 10 MB/s, however
//! wide the road. So while bulk comes in, a PING measures what arrives in a round trip, and
//! where that is most of a stream's window, windows double (as gRPC's BDP estimation does). A
//! reader that is slow, a short road, or small messages never fill a window in a round trip
//! and leave it as it is; they are never even measured.

use std::time::Duration;

use tokio::time::Instant;

use super::{
    core::Core,
    frame,
    memory::{Memory, Taken},
    streams::Key,
};

/// The PING that measures a round trip.
pub(super) const PROBE: [u8; 8] = *b"bytes/rt";
/// The widest window of a stream, in bytes: 1.3 Gbit/s over 100 ms.
const MOST_STREAM: u32 = 16 << 20;
/// Time between two probes.
const INTERVAL: Duration = Duration::from_millis(100);

/// What is being measured on a connection.
#[derive(Debug)]
pub(super) struct Estimate {
    /// Body bytes since the probe was sent, or since measuring ended.
    seen: u64,
    /// Bulk is coming in.
    bulk: bool,
    /// A probe is under way.
    pub(super) probing: bool,
    /// No probe before this: peers count them.
    next: Option<Instant>,
    grown: Taken,
}

impl Estimate {
    pub(super) fn new(memory: &'static Memory) -> Self {
        let grown = Taken::of(&memory.growth);
        Self { seen: 0, bulk: false, probing: false, next: None, grown }
    }
}

impl Core {
    /// Notes body bytes that came, and starts to measure where they are many.
    pub(super) fn measure(&mut self, bytes: u32) {
        let window = self.config.stream_window;
        if window >= MOST_STREAM || self.config.fixed {
            return;
        }
        let estimate = &mut self.estimate;
        estimate.seen += u64::from(bytes);
        estimate.bulk |= estimate.seen >= u64::from(window / 2);
        if estimate.probing || !estimate.bulk {
            return;
        }
        let now = Instant::now();
        if estimate.next.is_some_and(|next| now < next) {
            return;
        }
        estimate.next = now.checked_add(INTERVAL);
        estimate.probing = true;
        estimate.seen = bytes.into();
        self.accepted.pinged();
        frame::put_ping(&mut self.out.tail, false, PROBE);
    }

    /// A probe came back: so much came in a round trip.
    pub(super) fn measured(&mut self) {
        let window = self.config.stream_window;
        let estimate = &mut self.estimate;
        if !std::mem::take(&mut estimate.probing) {
            return;
        }
        let seen = std::mem::take(&mut estimate.seen);
        estimate.bulk = seen >= u64::from(window) / 8;
        if seen >= u64::from(window) / 3 * 2 {
            self.widen();
        }
    }

    /// Somebody reads a stream: from now on its window is that of a stream in use, unless what
    /// it holds already is enough for all that comes. So a request that waits here holds little
    /// of its body, and one that is forwarded is held up by nothing.
    pub(super) fn open_wide(&mut self, key: Key) {
        let Some(stream) = self.streams.get_mut(key).filter(|s| !s.wide) else { return };
        let more = self.config.stream_window.saturating_sub(self.config.first_window);
        let enough = |left| left <= u64::from(stream.receive_window);
        if more == 0 || stream.remote_closed || stream.remaining.is_some_and(enough) {
            return;
        }
        stream.wide = true;
        stream.receive_window += more;
        frame::put_window(&mut self.out.tail, stream.id, more);
        self.notify_driver();
    }

    /// Doubles the windows of streams, and sees to it that two of them fit the connection's.
    fn widen(&mut self) {
        let window = self.config.stream_window.saturating_mul(2).min(MOST_STREAM);
        let connection = self.config.connection_window.max(window.saturating_mul(2));
        let more_connection = connection - self.config.connection_window;
        if !self.estimate.grown.take(more_connection.into()) {
            return;
        }
        let more = window - self.config.stream_window;
        self.config.stream_window = window;
        self.config.connection_window = connection;
        for key in self.streams.keys() {
            let Some(stream) = self.streams.get_mut(key) else { continue };
            if stream.wide && !stream.remote_closed {
                stream.receive_window = stream.receive_window.saturating_add(more);
                frame::put_window(&mut self.out.tail, stream.id, more);
            }
        }
        if more_connection > 0 {
            self.receive_window += more_connection;
            frame::put_window(&mut self.out.tail, 0, more_connection);
        }
        tracing::debug!(window, connection, "HTTP/2 windows widened");
    }
}
