//! The state of a connection: what both its driver and its streams work on.

use std::{
    collections::VecDeque,
    task::{Context, Waker},
};

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use tokio::time::Instant;

use super::{
    accepted::Accepted,
    budget::{Budget, Charged},
    error::{Fatal, StreamError},
    frame,
    head::{Request, Response},
    hpack,
    lending::Lending,
    lifecycle::Endings,
    memory::Memory,
    out::Out,
    settings::{self, Peer},
    streams::{Key, Streams},
    window::Estimate,
};

/// Bytes of the table with which heads are decoded (RFC 7541 §4.2); the default.
pub(super) const HEADER_TABLE: usize = 4096;

/// Our side's terms.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    /// Bytes a peer may send on a stream that nobody reads yet; at most `stream_window`.
    pub(crate) first_window: u32,
    /// Bytes a peer may send on a stream ahead of what was taken.
    pub(crate) stream_window: u32,
    /// The same for all streams together; at least 65,535.
    pub(crate) connection_window: u32,
    /// Largest frame taken, in bytes; at least 16,384.
    pub(crate) frame: u32,
    /// Most streams at a time: those a client may open, or those we open as one.
    pub(crate) streams: u32,
    /// Most bytes of a head as RFC 9113 §6.5.2 counts them.
    pub(crate) header_list: u32,
    /// Most fields of a head.
    pub(crate) fields: usize,
    /// What it may take together with other connections.
    pub(crate) memory: &'static Memory,
    /// With several streams, sockets are looked at once more before anything is written: where most of it is small, what
    /// comes in the meantime may go out with it.
    pub(crate) gathers: bool,
    /// Windows stay as they are, and the connection's is that of all its streams together: none can hold up another.
    pub(crate) fixed: bool,
}

impl Config {
    /// For clients' connections between two proxies, each a stream. A database in which one waits for another must not
    /// find that one's bytes behind those of who does not read: all may lie here at once.
    pub(crate) const TUNNEL: Self = Self {
        first_window: Self::TUNNEL_WINDOW,
        stream_window: Self::TUNNEL_WINDOW,
        connection_window: (Self::TUNNEL_STREAMS + 4) * Self::TUNNEL_WINDOW,
        frame: 64 * 1024,
        streams: Self::TUNNEL_STREAMS,
        header_list: 16 * 1024,
        fields: 32,
        memory: &super::MEMORY,
        gathers: true,
        fixed: true,
    };
    const TUNNEL_STREAMS: u32 = 256;
    const TUNNEL_WINDOW: u32 = 256 * 1024;

    /// For one request of our own at a time, whose answers are small.
    pub(crate) const SMALL: Self = Self {
        first_window: 65_535,
        stream_window: 65_535,
        connection_window: 65_535,
        frame: 16_384,
        streams: 1,
        header_list: 64 * 1024,
        fields: 100,
        memory: &super::MEMORY,
        gathers: false,
        fixed: false,
    };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    Client,
    Server,
}

/// How far the end of the connection has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// Streams may be opened.
    No,
    /// GOAWAY was sent; streams on their way to us are still taken (RFC 9113 §6.8).
    Announced,
    /// No stream is taken any more. It ends with the last one.
    Final,
    /// Over; streams know.
    Over,
}

/// What a client asked for.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly always the large one, and short-lived")]
pub(super) enum Asked {
    Request(Key, Request),
    TooLarge(Key),
    Malformed,
}

/// All of a connection but its socket.
#[derive(Debug)]
pub(super) struct Core {
    pub(super) role: Role,
    pub(super) config: Config,
    pub(super) peer: Peer,
    pub(super) streams: Streams,
    pub(super) decoder: hpack::Decoder,
    pub(super) encoder: hpack::Encoder,
    /// A header block whose end is still to come.
    pub(super) block: Option<Block>,
    /// The highest stream the peer opened, or the next we open.
    pub(super) highest: u32,
    pub(super) next: u32,
    /// The last stream that we said we look at, at most.
    pub(super) announced: u32,
    /// What the peer may still send on all streams, and what it may send again but was not told.
    pub(super) receive_window: u32,
    pub(super) owed: u32,
    pub(super) lending: Lending,
    pub(super) estimate: Estimate,
    pub(super) accepted: Accepted,
    pub(super) send_window: i64,
    /// Since when the peer takes no more on any stream.
    pub(super) send_blocked: Option<Instant>,
    pub(super) out: Out,
    /// Streams that wait for the connection's window or for room in `out`, first come first.
    pub(super) blocked: VecDeque<Key>,
    pub(super) asked: VecDeque<Asked>,
    pub(super) ending: Ending,
    pub(super) budget: Budget,
    /// How the streams that we opened ended.
    pub(super) endings: Endings,
    /// No stream's deadline is earlier.
    pub(super) deadline: Option<Instant>,
    /// Since when there is no stream.
    pub(super) idle_since: Instant,
    driver: Option<Waker>,
    notified: bool,
}

#[derive(Debug)]
pub(super) struct Block {
    pub(super) stream: u32,
    pub(super) end_stream: bool,
    pub(super) bytes: BytesMut,
    /// When it has taken too long.
    pub(super) deadline: Instant,
}

/// One stream.
#[derive(Debug, Default)]
pub(super) struct StreamState {
    pub(super) id: u32,
    pub(super) waker: Option<Waker>,

    // what comes in
    pub(super) interims: VecDeque<Response>,
    pub(super) response: Option<Response>,
    /// The final head is here.
    pub(super) headed: bool,
    /// The answer to a HEAD.
    pub(super) bodiless: bool,
    pub(super) chunks: VecDeque<Bytes>,
    /// Small payloads behind the chunks, joined.
    pub(super) joined: BytesMut,
    /// What the declared length leaves to come.
    pub(super) remaining: Option<u64>,
    pub(super) end: Option<Option<HeaderMap>>,
    pub(super) remote_closed: bool,
    pub(super) receive_window: u32,
    pub(super) owed: u32,
    /// Bytes that nobody has credited yet.
    pub(super) uncredited: u32,
    /// Somebody reads it, so that its window is `stream_window`.
    pub(super) wide: bool,
    /// Some were credited since it was last looked who holds up the others.
    pub(super) moves: bool,
    /// Its owner would read on, but for a limit of ours.
    pub(super) held_back: bool,

    // what goes out
    pub(super) pending: VecDeque<Bytes>,
    pub(super) pending_end: Option<Option<HeaderMap>>,
    pub(super) local_closed: bool,
    pub(super) window: i64,
    /// It is among the blocked.
    pub(super) queued: bool,
    /// Its owner waits for room, or for all to be out.
    pub(super) wants_room: bool,
    /// The server will not refuse it any more.
    pub(super) accepted: bool,
    /// Its owner waits for that.
    pub(super) wants_word: bool,

    pub(super) failed: Option<StreamError>,
    /// The peer reset it, and may send nothing more on it.
    pub(super) peer_reset: bool,
    /// Its owner is gone.
    pub(super) released: bool,
    pub(super) deadline: Option<Instant>,
    pub(super) due: bool,
}

impl Core {
    pub(super) fn new(role: Role, config: Config) -> Self {
        let mut out = Out::default();
        if role == Role::Client {
            out.tail.extend_from_slice(frame::PREFACE);
        }
        settings::put_ours(&mut out.tail, &config, role == Role::Server);
        Self {
            role,
            config,
            peer: Peer::default(),
            streams: Streams::default(),
            decoder: hpack::Decoder::new(HEADER_TABLE),
            encoder: hpack::Encoder::default(),
            block: None,
            highest: 0,
            next: 1,
            announced: frame::MOST,
            receive_window: config.connection_window,
            owed: 0,
            lending: Lending::new(config.memory),
            estimate: Estimate::new(config.memory),
            accepted: Accepted::default(),
            send_window: i64::from(settings::DEFAULT_WINDOW),
            send_blocked: None,
            out,
            blocked: VecDeque::new(),
            asked: VecDeque::new(),
            ending: Ending::No,
            budget: Budget::default(),
            endings: Endings::default(),
            deadline: None,
            idle_since: Instant::now(),
            driver: None,
            notified: false,
        }
    }

    /// A new stream, in the state both sides begin in.
    pub(super) fn add_stream(&mut self, id: u32) -> Key {
        self.streams.add(StreamState {
            id,
            receive_window: self.config.first_window,
            window: i64::from(self.peer.window),
            ..StreamState::default()
        })
    }

    /// Charges the peer for work that carries nothing. Beyond the budget it may finish what is
    /// under way, which may be others' behind a proxy; beyond twice the budget it may not.
    pub(super) fn charge(&mut self) -> Result<(), Fatal> {
        let excess =
            Fatal(super::ErrorCode::ENHANCE_YOUR_CALM, "too many frames that carry nothing");
        match self.budget.charge() {
            Charged::Within => Ok(()),
            Charged::Beyond => {
                self.refuse_more(excess);
                Ok(())
            }
            Charged::FarBeyond => Err(excess),
        }
    }

    /// Registers the driver, which looks at everything now.
    pub(super) fn driven_by(&mut self, cx: &Context<'_>) {
        self.notified = true;
        register(&mut self.driver, cx);
    }

    /// The driver has dealt with everything.
    pub(super) fn left_by_driver(&mut self) {
        self.notified = false;
    }

    pub(super) fn has_failed(&self, key: Key) -> bool {
        self.streams.get(key).is_none_or(|stream| stream.failed.is_some())
    }

    /// Has the driver look again.
    pub(super) fn notify_driver(&mut self) {
        if !std::mem::replace(&mut self.notified, true)
            && let Some(driver) = &self.driver
        {
            driver.wake_by_ref();
        }
    }
}

impl StreamState {
    pub(super) fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }

    pub(super) fn watched_by(&mut self, cx: &Context<'_>) {
        register(&mut self.waker, cx);
    }

    /// Nothing waits to be framed.
    pub(super) fn is_sent(&self) -> bool {
        self.pending.is_empty() && self.pending_end.is_none()
    }
}

fn register(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}
