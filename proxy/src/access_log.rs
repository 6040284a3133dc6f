//! One JSON line per exchange, written by a thread of its own.
//!
//! The data path fills a [`Record`] and hands it over without waiting: when the
//! writer cannot keep up the line is dropped and counted, never the traffic.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufWriter, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use http::{HeaderValue, Method};
use serde::{Serialize, Serializer};

use crate::{
    ledger::Ledger,
    metrics::{Counter, registry},
};

/// What is known of one exchange (or one opaque connection) when it is over.
///
/// Fields that do not apply stay `None`, and are left out of the line.
#[derive(Clone, Debug, Serialize)]
pub struct Record {
    /// When the request head (or the connection) came in.
    #[serde(serialize_with = "rfc3339", rename = "time")]
    pub start: SystemTime,
    /// From then to the last byte, written as `duration_ms` with three decimals.
    #[serde(serialize_with = "millis", rename = "duration_ms")]
    pub duration: Duration,
    /// `HTTP/1.1`, `HTTP/2`, `TCP` or `TLS`.
    pub protocol: &'static str,
    /// Request method.
    #[serde(serialize_with = "display", skip_serializing_if = "Option::is_none")]
    pub method: Option<Method>,
    /// `Host` or `:authority`; the SNI of passed-through TLS.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<Box<str>>,
    /// Path and query as they came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<Box<str>>,
    /// Status sent to the client; `None` when none was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Token of `grpc-status`, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc_status: Option<u32>,
    /// Why it ended as it did, when the proxy decided it or something broke (e.g. `no_route`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    /// Listener that accepted it.
    pub listener: Arc<str>,
    /// Route it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub route: Option<Arc<str>>,
    /// Kind of freight, as the route says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<&'static str>,
    /// Service it was sent to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service: Option<Arc<str>>,
    /// Endpoint that served the last try.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Arc<str>>,
    /// Tries made; 0 when it never left the proxy.
    pub attempts: u32,
    /// Times a response that broke midway went on with another endpoint; left out when it never did.
    #[serde(skip_serializing_if = "is_zero")]
    pub resumes: u32,
    /// Time in the queue of its service, over all tries; left out where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queued_ms: Option<u64>,
    /// What came of a hedge, `won` or `lost`; left out when there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hedged: Option<&'static str>,
    /// Body bytes received from the client.
    pub request_bytes: u64,
    /// Body bytes sent to the client.
    pub response_bytes: u64,
    /// `User-Agent`.
    #[serde(serialize_with = "header", skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<HeaderValue>,
    /// `X-Request-Id`, when the client sent one.
    #[serde(serialize_with = "header", skip_serializing_if = "Option::is_none")]
    pub request_id: Option<HeaderValue>,
    /// Where the connection was made to, if it was redirected here.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<SocketAddr>,
    /// The peer's address.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<SocketAddr>,
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Nowhere.
    Off,
    /// Standard output.
    Stdout,
    /// Appended to a file, which is reopened when [`AccessLog::reopen`] is called.
    File(PathBuf),
}

/// A handle to the writer; cheap to clone. The writer ends, after what it has
/// been given, when the last handle is dropped.
#[derive(Clone, Debug)]
pub struct AccessLog {
    writer: Option<Writer>,
    ledger: Option<Arc<Ledger>>,
}

#[derive(Clone, Debug)]
struct Writer {
    queue: SyncSender<Message>,
    reopen: Arc<AtomicBool>,
    dropped: Counter,
}

/// What the writer is sent.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "nearly all are records: a box each would only cost")]
enum Message {
    Write(Record),
    /// Answered when everything before it is written.
    Flush(SyncSender<()>),
}

/// Lines that may wait for the writer.
const QUEUE: usize = 8192;
/// Bytes of lines written in one go.
const MOST_AT_ONCE: usize = 256 * 1024;
/// How often a flush tries a full queue again.
const FULL_PAUSE: Duration = Duration::from_millis(5);
/// How long a request to reopen may go unseen on an idle proxy.
const REOPEN_CHECK: Duration = Duration::from_millis(500);

impl AccessLog {
    /// Starts the writer; `None` when the target is [`Target::Off`].
    ///
    /// # Errors
    /// When the file cannot be opened for appending.
    pub fn start(target: &Target) -> io::Result<Option<Self>> {
        Self::start_with(target, None)
    }

    /// As [`Self::start`], with a ledger that is told of every record, too; `None` when there is
    /// neither.
    ///
    /// # Errors
    /// As there.
    pub fn start_with(target: &Target, ledger: Option<Arc<Ledger>>) -> io::Result<Option<Self>> {
        let writer = Writer::start(target)?;
        Ok((writer.is_some() || ledger.is_some()).then_some(Self { writer, ledger }))
    }

    /// Hands a record over; never waits.
    pub fn send(&self, record: Record) {
        if let Some(ledger) = &self.ledger {
            ledger.add(&record);
        }
        if let Some(writer) = &self.writer
            && writer.queue.try_send(Message::Write(record)).is_err()
        {
            writer.dropped.inc();
        }
    }

    /// Waits, no longer than `limit`, until everything handed over before is
    /// written. Blocks: for the end of the program.
    pub fn flush(&self, limit: Duration) {
        if let Some(writer) = &self.writer {
            writer.flush(limit);
        }
    }

    /// Opens the file anew (after a log rotation) before the next line.
    pub fn reopen(&self) {
        if let Some(writer) = &self.writer {
            writer.reopen.store(true, Ordering::Relaxed);
        }
    }
}

impl Writer {
    fn start(target: &Target) -> io::Result<Option<Self>> {
        let sink = match target {
            Target::Off => return Ok(None),
            Target::Stdout => Sink { path: None, out: Box::new(io::stdout()) },
            Target::File(path) => Sink { path: Some(path.clone()), out: Box::new(open(path)?) },
        };
        let (queue, records) = sync_channel(QUEUE);
        let reopen = Arc::new(AtomicBool::new(false));
        let flag = reopen.clone();
        std::thread::Builder::new()
            .name("access-log".into())
            .stack_size(128 * 1024)
            .spawn(move || sink.write_all(&records, &flag))?;
        let dropped = registry().counter("towpath_access_log_dropped_total", &[]);
        Ok(Some(Self { queue, reopen, dropped }))
    }

    fn flush(&self, limit: Duration) {
        let (done, written) = sync_channel(1);
        let end = Instant::now() + limit;
        let mut message = Message::Flush(done);
        // The queue may be full for as long as nobody reads what is written.
        loop {
            match self.queue.try_send(message) {
                Ok(()) => break,
                Err(TrySendError::Full(back)) if Instant::now() < end => message = back,
                // A writer that is gone has nothing left to write.
                Err(_) => return,
            }
            std::thread::sleep(FULL_PAUSE);
        }
        let _ = written.recv_timeout(end.saturating_duration_since(Instant::now()));
    }
}

impl Record {
    /// A record in which nothing but what every exchange has is known.
    pub fn new(protocol: &'static str, listener: Arc<str>, client: Option<SocketAddr>) -> Self {
        Self {
            start: SystemTime::now(),
            duration: Duration::ZERO,
            protocol,
            method: None,
            host: None,
            path: None,
            status: None,
            grpc_status: None,
            reason: None,
            listener,
            route: None,
            class: None,
            service: None,
            endpoint: None,
            attempts: 0,
            queued_ms: None,
            resumes: 0,
            hedged: None,
            request_bytes: 0,
            response_bytes: 0,
            user_agent: None,
            request_id: None,
            destination: None,
            client,
        }
    }
}

impl FromStr for Target {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "off" | "" => Self::Off,
            "-" => Self::Stdout,
            path => Self::File(path.into()),
        })
    }
}

struct Sink {
    path: Option<PathBuf>,
    out: Box<dyn Write + Send>,
}

impl Sink {
    fn write_all(mut self, queue: &Receiver<Message>, reopen: &AtomicBool) {
        let mut lines = Vec::with_capacity(4096);
        let mut waiting = Vec::new();
        loop {
            let mut message = match queue.recv_timeout(REOPEN_CHECK) {
                Ok(message) => Some(message),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            if reopen.swap(false, Ordering::Relaxed) {
                self.reopen();
            }
            while let Some(next) = message {
                match next {
                    Message::Write(record) => append(&mut lines, &record),
                    Message::Flush(done) => waiting.push(done),
                }
                message = if lines.len() < MOST_AT_ONCE { queue.try_recv().ok() } else { None };
            }
            if let Err(error) = self.out.write_all(&lines).and_then(|()| self.out.flush()) {
                tracing::warn!(%error, "access log: cannot write, lines are lost");
            }
            lines.clear();
            for done in waiting.drain(..) {
                // Whoever asked may have stopped waiting.
                let _ = done.try_send(());
            }
        }
    }

    fn reopen(&mut self) {
        let Some(path) = &self.path else { return };
        match open(path) {
            Ok(file) => self.out = Box::new(file),
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "access log: cannot reopen, keeping the old file");
            }
        }
    }
}

fn open(path: &Path) -> io::Result<BufWriter<File>> {
    let file = OpenOptions::new().create(true).append(true).open(path).map_err(|error| {
        io::Error::new(error.kind(), format!("access log {}: {error}", path.display()))
    })?;
    Ok(BufWriter::new(file))
}

fn append(lines: &mut Vec<u8>, record: &Record) {
    let start = lines.len();
    match serde_json::to_writer(&mut *lines, record) {
        Ok(()) => lines.push(b'\n'),
        Err(_) => lines.truncate(start),
    }
}

fn rfc3339<S: Serializer>(time: &SystemTime, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(&Rfc3339(*time))
}

fn millis<S: Serializer>(duration: &Duration, s: S) -> Result<S::Ok, S::Error> {
    s.serialize_f64(duration.as_micros() as f64 / 1000.0)
}

fn display<S: Serializer, T: std::fmt::Display>(
    value: &Option<T>,
    s: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => s.collect_str(value),
        None => s.serialize_none(),
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
fn is_zero(count: &u32) -> bool {
    *count == 0
}

fn header<S: Serializer>(value: &Option<HeaderValue>, s: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => s.serialize_str(&String::from_utf8_lossy(value.as_bytes())),
        None => s.serialize_none(),
    }
}

/// UTC with milliseconds, e.g. `2026-11-21T01:04:32.250Z`.
pub(crate) struct Rfc3339(pub(crate) SystemTime);

impl std::fmt::Display for Rfc3339 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let since = self.0.duration_since(UNIX_EPOCH).unwrap_or_default();
        let (days, second) = (since.as_secs() / 86_400, since.as_secs() % 86_400);
        let (year, month, day) = civil(days);
        let (h, m, s) = (second / 3600, second / 60 % 60, second % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{:03}Z",
            since.subsec_millis()
        )
    }
}

/// Year, month and day of a day count since 1970-01-01 (Gregorian, from years that begin in March).
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let era = days / 146_097;
    let of_era = days % 146_097;
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_in_utc() {
        for (seconds, expected) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_782_400, "2000-02-29T00:00:00.000Z"),
            (1_795_223_072, "2026-11-21T01:04:32.000Z"),
            (4_107_542_399, "2100-02-28T23:59:59.000Z"),
            (4_107_542_400, "2100-03-01T00:00:00.000Z"),
        ] {
            assert_eq!(Rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)).to_string(), expected);
        }
    }

    #[test]
    fn a_line_is_json_and_leaves_out_what_is_unknown() {
        let mut record = Record::new("HTTP/1.1", "edge".into(), None);
        record.start = UNIX_EPOCH;
        record.duration = Duration::from_micros(1500);
        record.method = Some(Method::GET);
        record.path = Some("/a\"b".into());
        record.status = Some(200);
        let mut line = Vec::new();
        append(&mut line, &record);
        assert_eq!(
            String::from_utf8(line).unwrap(),
            concat!(
                r#"{"time":"1970-01-01T00:00:00.000Z","duration_ms":1.5,"protocol":"HTTP/1.1","method":"GET","#,
                r#""path":"/a\"b","status":200,"listener":"edge","attempts":0,"request_bytes":0,"response_bytes":0}"#,
                "\n"
            )
        );
    }
}
