//! Receive windows that follow bandwidth × delay.
//!
//! A window bounds what is under way in one round trip: 1 MiB over 100 ms is 10 MB/s, however
//! wide the road. So while bulk comes in, a PING measures what arrives in a round trip, and
//! where that is most of a stream's window, windows double (as gRPC's BDP estimation does). A
//! reader that is slow, a short road, or small messages never fill a window in a round trip
//! and leave it as it is; they are never even measured.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use tokio::time::Instant;

use super::{core::Core, frame, streams::Key};

/// The PING that measures a round trip.
pub(super) const PROBE: [u8; 8] = *b"bytes/rt";
/// The widest window of a stream, in bytes: 1.3 Gbit/s over 100 ms.
const MOST_STREAM: u32 = 16 << 20;
/// What all connections of the process may have taken together beyond their first windows, in
/// bytes: to carry more, or to hold what readers leave lying.
const MOST_TAKEN: u64 = 256 << 20;

/// Time between two probes.
const INTERVAL: Duration = Duration::from_millis(100);

static TAKEN: AtomicU64 = AtomicU64::new(0);

/// What is being measured on a connection.
#[derive(Debug, Default)]
pub(super) struct Estimate {
    /// Body bytes since the probe was sent, or since measuring ended.
    seen: u64,
    /// Bulk is coming in.
    bulk: bool,
    probing: bool,
    /// No probe before this: peers count them.
    next: Option<Instant>,
    grown: Taken,
}

/// A connection's part of [`MOST_TAKEN`], given back with it.
#[derive(Debug, Default)]
pub(super) struct Taken(u64);

impl Drop for Taken {
    fn drop(&mut self) {
        TAKEN.fetch_sub(self.0, Relaxed);
    }
}

impl Taken {
    pub(super) fn bytes(&self) -> u64 {
        self.0
    }

    /// Takes all of it or nothing.
    fn take(&mut self, bytes: u64) -> bool {
        let fits = |taken: u64| taken.checked_add(bytes).filter(|sum| *sum <= MOST_TAKEN);
        let taken = TAKEN.fetch_update(Relaxed, Relaxed, fits).is_ok();
        self.0 += if taken { bytes } else { 0 };
        taken
    }

    /// Takes what there is of it. How much that was.
    pub(super) fn take_some(&mut self, bytes: u64) -> u64 {
        let some = bytes.min(MOST_TAKEN.saturating_sub(TAKEN.load(Relaxed)));
        if some > 0 && self.take(some) { some } else { 0 }
    }

    pub(super) fn give_back(&mut self, bytes: u64) {
        let bytes = bytes.min(self.0);
        self.0 -= bytes;
        TAKEN.fetch_sub(bytes, Relaxed);
    }
}

impl Core {
    /// Notes body bytes that came, and starts to measure where they are many.
    pub(super) fn measure(&mut self, bytes: u32) {
        let window = self.config.stream_window;
        if window >= MOST_STREAM {
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
