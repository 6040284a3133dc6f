//! Starts a proxy, in a program of its own or inside a test, and ends it.

use std::{
    collections::BTreeMap,
    io::Write,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::Notify,
    task::AbortHandle,
    time::Instant,
};
use towpath_policies::model::Snapshot;

use crate::{
    Args, Config, Kin,
    access_log::AccessLog,
    admin,
    control::Control,
    drain::{self, Leftovers},
    energy,
    geoip::ClientPlaces,
    gpu,
    load::{self, NodeLoad},
    logging,
    overload::{self, Overload},
    source::{self, Source},
    spool::Space,
    supervisor,
    transfers::Transfers,
    upgrade::{self, Place, Sockets},
    worker::Workers,
    world::{Rejection, Terms, World},
};

/// A proxy that runs. Dropping it cuts everything.
#[derive(Debug)]
pub struct Running {
    control: Arc<Control>,
    admin: Option<SocketAddr>,
    tasks: Vec<Owned>,
    source: Option<source::Following>,
    clients: Option<Arc<ClientPlaces>>,
    /// Has the file that says so looked at before its time.
    look_now: Arc<Notify>,
}

#[derive(Debug)]
struct Owned(AbortHandle);

impl Owned {
    fn spawn(task: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(task).abort_handle())
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How often certificate files and the database of places are looked at.
const FILE_CHECK: Duration = Duration::from_secs(2);
/// Time for what is read just then, when the proxy ends.
const LAST_READS: Duration = Duration::from_millis(100);
/// Time for the newest configuration to get to the disk, when the proxy ends.
const LAST_WRITES: Duration = Duration::from_secs(2);
/// Time for the last lines of the access log, when the proxy ends.
const LAST_LINES: Duration = Duration::from_secs(2);
/// How often a drain looks whether it is done.
const DRAIN_CHECK: Duration = Duration::from_millis(10);

/// Runs a proxy until a signal or `POST /drain` ends it.
///
/// # Errors
/// When it cannot start: the policies are wrong, or an address cannot be had.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    if args.die_with_parent {
        use rustix::process::{Signal, getppid, set_parent_process_death_signal};
        let parent = getppid();
        set_parent_process_death_signal(Some(Signal::TERM)).context("--die-with-parent")?;
        // One that died before that sends no signal any more.
        if getppid() != parent || adopted_by_init() {
            return Ok(ExitCode::SUCCESS);
        }
    }
    logging::start(&args.log_level, None)?;
    raise_file_limit();
    let config = args.into_config()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let ended = runtime.block_on(serve(config));
    // Something large may be read just now, and nobody waits for it any more.
    runtime.shutdown_timeout(LAST_READS);
    ended
}

async fn serve(config: Config) -> anyhow::Result<ExitCode> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut user1 = signal(SignalKind::user_defined1())?;
    let mut user2 = signal(SignalKind::user_defined2())?;
    // Asked for now: later the file may be another one.
    let program = config.upgrade_socket.as_ref().and_then(|_| std::env::current_exe().ok());
    // A limit on the size of files is an error of the write, and not the end of the process.
    let _file_size = signal(SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw()))?;
    let mut running = start(config).await?;
    let asked = running.control.drain.watch();
    let mut told = false;
    let mut charged = running.control.in_charge.subscribe();
    let stopped = loop {
        tokio::select! {
            _ = charged.wait_for(|now| *now), if !told => {
                told = true;
                // Nobody reading is no reason not to serve.
                let _ = writeln!(std::io::stdout(), "ready admin={}", running.admin_addr());
                supervisor::tell(&format!("READY=1\nMAINPID={}", std::process::id()));
            }
            _ = terminate.recv() => break true,
            _ = interrupt.recv() => break true,
            () = asked.drained() => break false,
            _ = hangup.recv() => running.rotate(),
            _ = user1.recv() => running.rotate(),
            _ = user2.recv() => upgrade::start_successor(program.as_deref()),
        }
    };
    // One that hands over has the time it needs, and another speaks for the service.
    let mut patient = running.control.handed_over.fired();
    if !patient {
        supervisor::tell("STOPPING=1");
    }
    if stopped || !patient {
        patient = false;
        running.drain();
    }
    tracing::info!(timeout = ?running.control.drain_timeout, "draining: nothing new is accepted");
    let left = loop {
        tokio::select! {
            left = running.drained() => break left,
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if !std::mem::take(&mut patient) {
            break Some(running.leftovers());
        }
        running.drain();
    };
    match left {
        None => tracing::info!("drained"),
        Some(left) => drain::report(&left),
    }
    if let Some(source) = running.source.take() {
        source.end(LAST_WRITES).await;
    }
    running.shutdown();
    Ok(ExitCode::SUCCESS)
}

/// Starts a proxy. The runtime this is called on becomes its control thread:
/// it applies configuration, probes, and answers the admin endpoint.
///
/// With a policy folder the configuration is in force when this returns; with
/// a control plane, see [`Running::ready`].
///
/// # Errors
/// When the policies are wrong, the admin address cannot be had, or the access
/// log cannot be opened; in this order.
pub async fn start(config: Config) -> anyhow::Result<Running> {
    let source = Source::open(config.source.clone()).await?;
    let clients = config.geoip.as_deref().map(ClientPlaces::open).transpose().context("--geoip")?;
    let clients = clients.map(Arc::new);
    let inherited = Arc::new(Sockets::default());
    let predecessor = match &config.upgrade_socket {
        Some(path) => upgrade::inherit(path, &inherited)
            .await
            .with_context(|| format!("--upgrade-socket {}", path.display()))?,
        None => None,
    };
    let opened = config.admin.map(|asked| admin_socket(asked, &inherited)).transpose()?;
    let (listener, spare) = opened.unzip();
    let admin = listener.as_ref().map(TcpListener::local_addr).transpose()?;
    let access_log = AccessLog::start_with(&config.access_log, config.ledger.clone())?;
    let workers = Arc::new(Workers::start(config.workers).context("cannot start worker threads")?);
    let overload = Arc::new(Overload::default());
    let load = Arc::<NodeLoad>::default();
    let (gpus, energy) = (load.gpus.clone(), load.energy.clone());
    let terms = Terms {
        overload: overload.clone(),
        load: load.clone(),
        workers: workers.clone(),
        place: config.place,
        clients: clients.clone(),
        access_log: access_log.clone(),
        max_connections: config.max_connections,
        inherited: inherited.clone(),
        transfers: Arc::new(Transfers::new(config.workers)),
        opens_listeners: config.opens_listeners,
        programs: config.programs.clone(),
        spool: spool(&config),
    };
    let transfers = terms.transfers.clone();
    let control = Control::new(
        World::new(terms),
        workers,
        access_log,
        transfers,
        config.drain_timeout,
        gpus.clone(),
    );
    let mut succession = Succession { path: config.upgrade_socket, door: None, spare };
    if predecessor.is_none() {
        succession.open()?;
    }
    let leading = lead(control.clone(), listener, predecessor, inherited, succession);
    let looking =
        overload::watch(overload, config.ceilings, config.readings.0, control.shared_view());
    let measuring = energy::watch(config.energy, energy, gpus.clone(), control.shared_view());
    let mut tasks = vec![
        Owned::spawn(leading),
        Owned::spawn(looking),
        Owned::spawn(load::watch(load)),
        Owned::spawn(gpu::watch(config.gpu, gpus)),
        Owned::spawn(measuring),
        Owned::spawn(watch_certificates(control.clone())),
    ];
    let look_now = Arc::<Notify>::default();
    if let Some(clients) = &clients {
        tasks.push(Owned::spawn(watch_places(clients.clone(), look_now.clone())));
    }
    let source = source.follow(config.opens_listeners, &control)?;
    Ok(Running { control, admin, tasks, source, clients, look_now })
}

/// Where request bodies are kept on disk for another try.
fn spool(config: &Config) -> Option<Arc<Space>> {
    (config.spool_bytes > 0).then(|| {
        let space = Space::new(config.spool_dir.clone(), config.spool_bytes)
            .with_memory(config.spool_memory_bytes)
            .encrypted(config.spool_encrypt);
        Arc::new(space)
    })
}

/// The admin endpoint's socket: the one that another process handed over, or a new one.
/// Also for the next process.
fn admin_socket(
    asked: SocketAddr,
    inherited: &Sockets,
) -> anyhow::Result<(TcpListener, (Place, std::net::TcpListener))> {
    let socket = match inherited.find(None, asked) {
        Some(socket) => socket,
        None => std::net::TcpListener::bind(asked).with_context(|| {
            format!(
                "cannot listen on the admin address {asked} (--admin); is another proxy running?"
            )
        })?,
    };
    socket.set_nonblocking(true)?;
    let spare = (Place { listener: None, asked }, socket.try_clone()?);
    Ok((TcpListener::from_std(socket)?, spare))
}

/// Where the next process will take over.
struct Succession {
    path: Option<PathBuf>,
    door: Option<upgrade::Door>,
    /// The admin endpoint's socket.
    spare: Option<(Place, std::net::TcpListener)>,
}

impl Succession {
    fn open(&mut self) -> anyhow::Result<()> {
        if let Some(path) = &self.path {
            let door = upgrade::Door::open(path)
                .with_context(|| format!("cannot listen at --upgrade-socket {}", path.display()))?;
            self.door = Some(door);
        }
        Ok(())
    }
}

/// Takes over from the process that ran before, if one did; answers the admin endpoint, and
/// hands over to the next.
async fn lead(
    control: Arc<Control>,
    admin: Option<TcpListener>,
    predecessor: Option<upgrade::Predecessor>,
    inherited: Arc<Sockets>,
    mut succession: Succession,
) {
    if let Some(predecessor) = predecessor {
        upgrade::take_over(predecessor, &inherited, &control).await;
        if let Err(error) = succession.open() {
            tracing::error!(
                error = format!("{error:#}"),
                "no other process can take over from this one"
            );
        }
    }
    let charge = async {
        // The sender lives in `control`, so this cannot fail.
        let _ = control.applied().wait_for(|count| *count > 0).await;
        control.in_charge.send_replace(true);
    };
    let handing_over = async {
        if let (Some(door), Some(admin)) = (succession.door.take(), succession.spare) {
            upgrade::hand_over(door, admin, &control).await;
        }
    };
    let answering = async {
        if let Some(admin) = admin {
            admin::serve(admin, control.clone()).await;
        }
    };
    tokio::join!(answering, charge, handing_over);
}

async fn watch_certificates(control: Arc<Control>) {
    loop {
        tokio::time::sleep(FILE_CHECK).await;
        control.reload_certificates();
    }
}

async fn watch_places(clients: Arc<ClientPlaces>, look_now: Arc<Notify>) {
    loop {
        // Either way it is looked at again.
        let _ = tokio::time::timeout(FILE_CHECK, look_now.notified()).await;
        reload_places(&clients).await;
    }
}

async fn reload_places(clients: &Arc<ClientPlaces>) {
    let clients = clients.clone();
    // It is large, and all of it is looked through.
    let reloading = tokio::task::spawn_blocking(move || match clients.reload() {
        Ok(false) => {}
        Ok(true) => {
            tracing::info!(file = %clients.path().display(), "places of addresses read again")
        }
        Err(error) => {
            tracing::error!(%error, "--geoip changed but cannot be used, keeping what was read before")
        }
    });
    // One that panicked has said so, and what was read before stays.
    let _ = reloading.await;
}

impl Running {
    #[cfg(test)]
    pub(crate) fn control(&self) -> &Control {
        &self.control
    }

    /// Where the admin endpoint is reached; an address of nobody, with port 0, where there is none.
    pub fn admin_addr(&self) -> SocketAddr {
        self.admin.unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0))
    }

    /// Where each listener is reached, by name.
    pub fn listener_addrs(&self) -> BTreeMap<String, SocketAddr> {
        self.control.addresses()
    }

    /// Puts a snapshot in force, or says what is wrong with it and changes nothing.
    ///
    /// # Errors
    /// One [`Rejection`] per resource that cannot be obeyed.
    pub fn apply(&self, snapshot: Arc<Snapshot>) -> Result<(), Vec<Rejection>> {
        self.control.apply(snapshot)
    }

    /// Waits until a configuration is in force.
    pub async fn ready(&self) {
        // The sender lives in `control`, so this cannot fail.
        let _ = self.control.applied().wait_for(|count| *count > 0).await;
    }

    /// Version of the configuration in force; `None` before the first.
    pub fn version(&self) -> Option<String> {
        let view = self.control.view();
        view.applied.map(|_| view.snapshot.version.clone())
    }

    /// Waits until the configuration in force has this version.
    pub async fn version_is(&self, version: &str) {
        let mut applied = self.control.applied();
        let _ = applied.wait_for(|_| self.version().as_deref() == Some(version)).await;
    }

    /// What is wrong with the newest configuration, or what of it has not come yet.
    pub fn complaints(&self) -> Vec<String> {
        self.control.source().errors
    }

    /// Begins the drain: nothing new is accepted, what runs is asked to finish.
    pub fn drain(&self) {
        self.control.begin_drain();
    }

    /// Waits for the drain to end; returns what is left when its time is over.
    pub async fn drained(&self) -> Option<Leftovers> {
        let asked = Instant::now();
        let gone_on = || self.control.draining_for().unwrap_or_else(|| asked.elapsed());
        while !self.control.workers.are_idle() {
            if gone_on() >= self.control.drain_timeout {
                return Some(self.leftovers());
            }
            tokio::time::sleep(DRAIN_CHECK).await;
        }
        None
    }

    /// What is under way now.
    pub fn leftovers(&self) -> Leftovers {
        self.control.leftovers()
    }

    /// Ends the proxy: whatever still runs is cut.
    pub fn shutdown(mut self) {
        self.tasks.clear();
        self.source = None;
        self.control.begin_drain();
        self.control.workers.stop();
        if let Some(log) = &self.control.access_log {
            log.flush(LAST_LINES);
        }
    }

    /// Reads the database of places again if its file changed; done every two seconds anyway.
    pub async fn reload_places(&self) {
        if let Some(clients) = &self.clients {
            reload_places(clients).await;
        }
    }

    /// Reads certificates again whose files changed; done every two seconds anyway.
    pub fn reload_certificates(&self) {
        self.control.reload_certificates();
    }

    /// Opens the access log anew, and reads certificates and places of addresses that changed.
    fn rotate(&self) {
        if let Some(log) = &self.control.access_log {
            log.reopen();
        }
        self.control.reload_certificates();
        self.look_now.notify_one();
    }
}

/// Whether process 1 is our parent without having started us: in a container it
/// may well have, and then we are of its session. Where `/proc` hides others (`hidepid`) it is not known.
fn adopted_by_init() -> bool {
    let of_others = || {
        let own = Kin::of("self")?;
        Some(own.session != Kin::of(&own.parent.to_string())?.session)
    };
    rustix::process::getppid() == Some(rustix::process::Pid::INIT) && of_others().unwrap_or(false)
}

/// A proxy holds many sockets: takes as many files as the system lets it. What is started after that has that limit, too.
pub fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        // Not being allowed leaves the limit that was.
        let _ =
            setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpStream,
        sync::oneshot,
        time::timeout,
    };
    use towpath_policies::model::{
        Bind, Chain, ChainKind, Endpoint, EndpointSet, Listener, Location, Protocol, Service,
        TcpForward, WeightedBackend,
    };

    use super::*;
    use crate::geoip::writer::{city, database};

    fn opaque(listen: SocketAddr, origin: SocketAddr) -> Snapshot {
        let backend = WeightedBackend::new("s");
        let kind = ChainKind::Tcp(TcpForward { backends: vec![backend], idle_timeout: None });
        let chains = vec![Chain::new(vec![], None, kind)];
        let listener = Listener {
            name: "in".into(),
            bind: Bind::Socket(listen),
            chains,
            location: Location::default(),
            proxy_protocol: None,
        };
        let set = EndpointSet::new("s".into(), vec![Endpoint::new(origin)]);
        let mut snapshot = Snapshot { version: "v1".into(), ..Snapshot::default() };
        snapshot.listeners.insert("in".into(), Arc::new(listener));
        snapshot.endpoints.insert("s".into(), Arc::new(set));
        snapshot.services.insert("s".into(), Arc::new(Service::new("s", Protocol::Tcp)));
        snapshot
    }

    #[tokio::test]
    async fn a_drain_is_not_over_before_all_that_the_kernel_accepted_is_served() {
        let any = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
        let origin = TcpListener::bind(any).await.unwrap();
        let running = start(Config::new(crate::SourceConfig::Manual)).await.unwrap();
        running.apply(Arc::new(opaque(any, origin.local_addr().unwrap()))).unwrap();
        // The one worker is busy, so that nobody hears of the connection.
        let (free, until_free) = std::sync::mpsc::channel::<()>();
        let (busy, is_busy) = oneshot::channel();
        running.control.workers.spawn_on(0, async move {
            busy.send(()).unwrap();
            let _ = until_free.recv();
        });
        is_busy.await.unwrap();
        let mut client = TcpStream::connect(running.listener_addrs()["in"]).await.unwrap();
        running.drain();
        let over = timeout(Duration::ZERO, running.drained()).await;
        assert!(over.is_err(), "drained with a connection in the queue: {over:?}");
        drop(free);
        let (mut served, _) = origin.accept().await.unwrap();
        served.write_all(b"x").await.unwrap();
        client.read_exact(&mut [0]).await.unwrap();
        drop((served, client));
        assert_eq!(running.drained().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_asks_has_places_read_before_their_time() {
        let folder = tempfile::tempdir().unwrap();
        let (file, next) = (folder.path().join("places.mmdb"), folder.path().join("next"));
        let somewhere = |north| {
            let loopback = ([127, 0, 0, 0].into(), 8, city(north, 0.0));
            std::fs::write(&next, database(4, &[loopback])).unwrap();
            std::fs::rename(&next, &file).unwrap();
        };
        somewhere(1.0);
        let clients = Arc::new(ClientPlaces::open(&file).unwrap());
        let look_now = Arc::<Notify>::default();
        let _watching = Owned::spawn(watch_places(clients.clone(), look_now.clone()));
        somewhere(2.0);
        look_now.notify_one();
        let moved = async {
            while clients.find(Ipv4Addr::LOCALHOST.into()).unwrap().latitude < 2.0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(FILE_CHECK / 2, moved).await.unwrap();
    }
}
