//! A worker behind a link.
//!
//! It takes jobs over HTTP/1.1 and makes them wait as their way from the region of their data would:
//! the input is read at the link's rate and is there one delay after that, the answer leaves one
//! delay after the work is done. The work is that of a [`Shop`], which takes no CPU, so that two
//! cores are enough for twelve workers. What the way to a worker over a new connection would cost
//! is left out: proxies keep theirs open.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::Context as _;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

use super::report::{self, Reporter};
use super::shop::Shop;
use super::world::{FALLEN, Link, Machine, REGIONS, SLOTS, link};
use crate::pattern::Verifier;
use crate::wire::{ReadBuffer, h1, write_all};

/// Names the region a job's data comes from, for the worker alone.
pub const REGION_HEADER: &str = "x-bench-region";
/// Says how often the data is gone over.
pub const PASSES_HEADER: &str = "x-bench-passes";
/// Where proxies look whether a worker is there.
pub const HEALTH_PATH: &str = "/health";

/// Bytes that may lie in a worker's socket: a slow link is felt by who sends.
const RECEIVE_BUFFER: u32 = 128 << 10;
const BACKLOG: u32 = 4096;
/// Jobs whose arrival the shop has not noticed yet.
const ORDERS: usize = 1024;

/// A job's arrival at a worker.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Arrival {
    /// When its head came, before its way.
    pub at: std::time::Instant,
    /// Its number.
    pub job: usize,
    /// Bytes of its input.
    pub bytes: u64,
}

/// A running worker. It ends when this is dropped.
#[derive(Debug)]
pub struct Worker {
    /// Where it listens.
    pub address: SocketAddr,
    /// What it is.
    pub machine: Machine,
    shared: Arc<Shared>,
    cut: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    region: usize,
    fails: AtomicBool,
    /// While it fails.
    taken: AtomicU64,
    failed: AtomicU64,
    orders: mpsc::Sender<Order>,
    report: Mutex<Option<String>>,
    arrivals: Mutex<Vec<Arrival>>,
}

/// What the shop is told.
#[derive(Debug)]
enum Order {
    Job { work: f64, done: oneshot::Sender<()> },
    Fall,
}

impl Worker {
    /// Starts one whose reports come so many looks late.
    ///
    /// # Errors
    /// If a socket cannot be had.
    pub fn start(machine: Machine, report_lag: usize) -> anyhow::Result<Self> {
        let first = bind(SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).context("a worker")?;
        let address = first.local_addr()?;
        let listener = first.listen(BACKLOG).context("a worker")?;
        let (orders, taken) = mpsc::channel(ORDERS);
        let shared = Arc::new(Shared {
            region: machine.region,
            fails: AtomicBool::new(false),
            taken: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            orders,
            report: Mutex::new(None),
            arrivals: Mutex::new(Vec::new()),
        });
        let (cut, is_cut) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn(work(machine.bytes_per_second(), report_lag, taken, Arc::clone(&shared)));
        tasks.spawn(accept(listener, address, is_cut, Arc::clone(&shared)));
        Ok(Self { address, machine, shared, cut, _tasks: tasks })
    }

    /// Its accelerator degrades, and its next report says so.
    pub async fn fall(&self) {
        // The shop ends with the worker.
        let _ = self.shared.orders.send(Order::Fall).await;
    }

    /// Every other job fails at once from now on.
    pub fn fail(&self) {
        self.shared.fails.store(true, Relaxed);
    }

    /// Jobs that failed.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.shared.failed.load(Relaxed)
    }

    /// Cuts it off: connections are reset and refused. Or it is back.
    pub fn set_cut(&self, cut: bool) {
        self.cut.send_replace(cut);
    }

    /// The jobs that came, since the last call.
    #[must_use]
    pub fn take_arrivals(&self) -> Vec<Arrival> {
        self.shared.arrivals.lock().map(|mut a| std::mem::take(&mut *a)).unwrap_or_default()
    }
}

/// A socket that holds an address without listening, beside one that does.
fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseport(true)?;
    // Connections inherit it.
    socket.set_recv_buffer_size(RECEIVE_BUFFER)?;
    socket.bind(address)?;
    Ok(socket)
}

/// Accepts connections while the worker is not cut off. Somebody else could take its port meanwhile
/// if nothing held it.
async fn accept(
    mut listener: TcpListener,
    address: SocketAddr,
    mut cut: watch::Receiver<bool>,
    shared: Arc<Shared>,
) {
    loop {
        let Ok(reserved) = bind(address) else { return };
        serve_until_cut(listener, &mut cut, &shared).await;
        if cut.wait_for(|cut| !*cut).await.is_err() {
            return;
        }
        let Ok(again) = reserved.listen(BACKLOG) else { return };
        listener = again;
    }
}

async fn serve_until_cut(
    listener: TcpListener,
    cut: &mut watch::Receiver<bool>,
    shared: &Arc<Shared>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let shared = Arc::clone(shared);
                connections.spawn(async move {
                    let _ = stream.set_nodelay(true);
                    // However it ends: a cut is a reset, and a peer that closes does not mind.
                    let _ = stream.set_zero_linger();
                    // The proxy may go at any time; the client tells what broke.
                    let _ = shared.serve(&stream).await;
                });
            }
            Some(_) = connections.join_next() => {}
            _ = cut.wait_for(|cut| *cut) => break,
        }
    }
    // First, so that nobody whose connection is reset finds it open.
    drop(listener);
    connections.shutdown().await;
}

/// Works jobs off and looks at itself.
async fn work(speed: f64, lag: usize, mut orders: mpsc::Receiver<Order>, shared: Arc<Shared>) {
    let start = Instant::now();
    let mut shop = Shop::new(speed, SLOTS);
    let mut reporter = Reporter::new(lag);
    let mut waiting: HashMap<u64, oneshot::Sender<()>> = HashMap::new();
    let (mut next_id, mut ended, mut factor) = (0, 0, 1.0);
    let mut looks = interval(Duration::from_secs_f64(report::PERIOD));
    looks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    looks.tick().await;
    loop {
        let end = shop.next_end().map(|end| start + Duration::from_secs_f64(end));
        let mut look = false;
        let order = tokio::select! {
            order = orders.recv() => match order {
                Some(order) => Some(order),
                None => return,
            },
            () = sleep_until(end.unwrap_or(start)), if end.is_some() => None,
            _ = looks.tick() => { look = true; None }
        };
        for id in shop.advance(start.elapsed().as_secs_f64()) {
            ended += 1;
            // Its connection may be gone by now.
            waiting.remove(&id).map(|done| done.send(()));
        }
        // A job whose connection is gone is not worked on.
        waiting.retain(|_, done| !done.is_closed());
        shop.retain(|id| waiting.contains_key(&id));
        match order {
            Some(Order::Job { work, done }) => {
                next_id += 1;
                waiting.insert(next_id, done);
                shop.push(next_id, work);
            }
            Some(Order::Fall) => {
                factor = FALLEN;
                shop.set_speed(speed * factor);
            }
            None if look => {
                reporter.look(shop.busy(), ended, shop.queued(), factor);
                if let Ok(mut report) = shared.report.lock() {
                    *report = reporter.text();
                }
            }
            None => {}
        }
    }
}

/// What a request asks.
enum Asked {
    Health,
    Job { nth: usize, origin: usize, passes: f64 },
    Unknown,
}

impl Shared {
    async fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        let mut buffer = ReadBuffer::new(64 * 1024);
        loop {
            let Some(head) = h1::request(buffer.filled())? else {
                if buffer.fill(stream).await? == 0 {
                    return Ok(());
                }
                continue;
            };
            let asked = asked(head.target, &buffer.filled()[..head.length]);
            let (bytes, consumed) = (head.content_length, head.length);
            buffer.consume(consumed);
            match asked {
                Asked::Health => write_all(stream, answer("200 OK", "", "").as_bytes()).await?,
                Asked::Job { nth, origin, passes } => {
                    if !self.load(stream, &mut buffer, nth, origin, bytes).await? {
                        return write_all(stream, answer("400 Bad Request", "", "").as_bytes())
                            .await;
                    }
                    if self.fails_next() {
                        let failed = answer("500 Internal Server Error", "", "");
                        write_all(stream, failed.as_bytes()).await?;
                    } else {
                        self.job(stream, nth, origin, bytes as f64 * passes).await?;
                    }
                }
                // What follows could be a body.
                Asked::Unknown => {
                    return write_all(stream, answer("404 Not Found", "", "").as_bytes()).await;
                }
            }
        }
    }

    fn fails_next(&self) -> bool {
        let fails = self.fails.load(Relaxed) && self.taken.fetch_add(1, Relaxed) % 2 == 1;
        self.failed.fetch_add(fails.into(), Relaxed);
        fails
    }

    /// Loads a job's input over its link, and returns whether it is right.
    async fn load(
        &self,
        stream: &TcpStream,
        buffer: &mut ReadBuffer,
        nth: usize,
        origin: usize,
        bytes: u64,
    ) -> io::Result<bool> {
        let start = Instant::now();
        if let Ok(mut arrivals) = self.arrivals.lock() {
            arrivals.push(Arrival { at: start.into_std(), job: nth, bytes });
        }
        let Link { delay, bytes_per_second } = link(origin, self.region);
        let sent = |bytes: u64| start + Duration::from_secs_f64(bytes as f64 / bytes_per_second);
        let mut input = Verifier::default();
        while input.received() < bytes {
            if buffer.filled().is_empty() && buffer.fill(stream).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            let left = usize::try_from(bytes - input.received()).unwrap_or(usize::MAX);
            let piece = buffer.filled().len().min(left);
            input.push(&buffer.filled()[..piece]);
            buffer.consume(piece);
            let due = sent(input.received());
            if due > Instant::now() {
                sleep_until(due).await;
            }
        }
        sleep(delay).await;
        Ok(input.finish(bytes).is_ok())
    }

    /// Does a job whose input is there, and answers.
    async fn job(
        &self,
        stream: &TcpStream,
        nth: usize,
        origin: usize,
        work: f64,
    ) -> io::Result<()> {
        let (done, ended) = oneshot::channel();
        if self.orders.send(Order::Job { work, done }).await.is_err() || ended.await.is_err() {
            return Ok(());
        }
        let report = self.report.lock().ok().and_then(|report| report.clone());
        sleep(link(origin, self.region).delay).await;
        let header = report.map(|text| format!("{}: {text}\r\n", report::HEADER));
        let text = answer("200 OK", &header.unwrap_or_default(), &format!("job {nth} done"));
        write_all(stream, text.as_bytes()).await
    }
}

fn asked(target: &str, head: &[u8]) -> Asked {
    let job = || {
        let nth = target.strip_prefix("/job/")?.parse().ok()?;
        let region = h1::header(head, REGION_HEADER.as_bytes())?;
        let origin = REGIONS.iter().position(|known| known.name.as_bytes() == region)?;
        let passes = match h1::header(head, PASSES_HEADER.as_bytes()) {
            Some(text) => f64::from(std::str::from_utf8(text).ok()?.parse::<u32>().ok()?),
            None => 1.0,
        };
        Some(Asked::Job { nth, origin, passes })
    };
    if target == HEALTH_PATH { Asked::Health } else { job().unwrap_or(Asked::Unknown) }
}

fn answer(status: &str, headers: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n{body}", body.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_names_its_region_or_is_none() {
        let region = |text: &str| format!("PUT /job/7 HTTP/1.1\r\nX-Bench-Region: {text}\r\n\r\n");
        let us_east = region("us-east");
        assert!(matches!(
            asked("/job/7", us_east.as_bytes()),
            Asked::Job { nth: 7, origin: 1, passes: 1.0 }
        ));
        let thrice = region(
            "us-east
x-bench-passes: 3",
        );
        assert!(matches!(asked("/job/7", thrice.as_bytes()), Asked::Job { passes: 3.0, .. }));
        let wrong = region(
            "us-east
x-bench-passes: many",
        );
        assert!(matches!(asked("/job/7", wrong.as_bytes()), Asked::Unknown));
        assert!(matches!(asked("/job/7", region("mars").as_bytes()), Asked::Unknown));
        assert!(matches!(asked("/job/x", us_east.as_bytes()), Asked::Unknown));
        assert!(matches!(asked("/health", b"GET /health HTTP/1.1\r\n\r\n"), Asked::Health));
    }
}
