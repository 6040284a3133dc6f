//! Puts the parts together, and takes them apart again.

use std::{
    fmt,
    future::{Future, IntoFuture as _},
    io,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use tokio::{
    net::TcpListener,
    sync::{Notify, mpsc, watch},
    task::JoinHandle,
};
use tokio_util::task::AbortOnDropHandle;
use towpath_xds::server::AdsServer;

use crate::{
    admin::{self, Admin},
    carbon::Intensities,
    config::Config,
    dns::Names,
    follow::{First, Follow, MAX_REQUESTS, Refreshed, Request},
    hub::Hub,
    loads::Loads,
    places::Places,
    source::{Follower, SourceSpec},
    status::{Moment, Shared, SourceStatus, Status, Tracker},
    store::{Store, StoreError},
    views::Served,
    webhook::{CertificateError, Door, Webhook},
};

/// How long a start waits for the source before it goes on without.
const FIRST_LOOK: Duration = Duration::from_secs(10);
/// How long an end waits for the servers to hang up.
const FAREWELL: Duration = Duration::from_secs(5);

/// A control plane at work. Ends, less politely, when dropped.
#[derive(Debug)]
pub struct Running {
    /// Where proxies connect.
    pub xds_addr: SocketAddr,
    /// Where Linkerd's proxies connect, if they are served.
    pub linkerd_addr: Option<SocketAddr>,
    /// Where the admin endpoint listens.
    pub admin_addr: SocketAddr,
    /// Where the API server asks for sidecars, where it may.
    pub webhook_addr: Option<SocketAddr>,
    shared: Arc<Shared>,
    requests: mpsc::Sender<Request>,
    changed: Arc<Notify>,
    stop: watch::Sender<bool>,
    failed: Arc<watch::Sender<bool>>,
    follow: AbortOnDropHandle<()>,
    released: watch::Receiver<()>,
    servers: Vec<AbortOnDropHandle<()>>,
    _loads: AbortOnDropHandle<()>,
}

/// Why a control plane did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// An address is taken, or not ours.
    #[error(
        "cannot listen on {address} for {what}: {cause}\n  next: choose another address with --{what}; port 0 takes a free one"
    )]
    Bind {
        /// `xds`, `linkerd`, `admin` or `webhook`.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why not.
        cause: io::Error,
    },
    /// No place for state.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// No certificate for the webhook.
    #[error(
        "the webhook has no certificate: {0}\n  next: --webhook-ca or --webhook-certificate, a folder with tls.crt and tls.key"
    )]
    Certificate(#[from] CertificateError),
    /// The source is not there, and there are no earlier policies to serve.
    #[error("{0}")]
    Source(String),
}

/// Starts a control plane. Returns when its sockets stand and the source was
/// looked at for the first time (or is slow, which is told in the status).
///
/// Proxies may connect before there are valid policies; they wait.
///
/// # Errors
/// When an address cannot be bound, the state folder cannot be used, or the
/// source cannot be there (a missing folder, no `git`) and nothing is left of
/// an earlier run.
pub async fn start(config: Config) -> Result<Running, StartError> {
    let Config { source, poll, .. } = config;
    let (listener, xds_addr) = bind("xds", config.xds).await?;
    let linkerd = bind_if("linkerd", config.linkerd).await?;
    let linkerd_addr = linkerd.as_ref().map(|(_, address)| *address);
    let (admin, admin_addr) = bind("admin", config.admin).await?;
    let store = Store::open(&config.state, &source.identity())?;
    let door = door(config.webhook, &store).await?;
    let (hub, changed) = (Arc::new(Hub::default()), Arc::new(Notify::new()));
    let tracker = Tracker::new(source_status(&source, poll), Moment::now());
    let shared = Arc::new(Shared::new(tracker));
    let (requests, asked) = mpsc::channel(MAX_REQUESTS);
    let (stop, stopped) = watch::channel(false);
    let (first, mut looked) = watch::channel(None::<First>);

    let released = store.released();
    let follow = Follow {
        follower: Follower::new(source, store.folder()),
        intensities: Intensities::new(config.carbon, hub.clone(), store.place()),
        places: Places::new(config.maps, hub.clone(), shared.clone(), store.place()),
        store,
        names: Names::new(config.resolver, hub.clone(), shared.clone()),
        hub: hub.clone(),
        shared: shared.clone(),
        poll,
    };
    let follow = AbortOnDropHandle::new(tokio::spawn(follow.run(changed.clone(), asked, first)));
    first_look(&mut looked, &shared).await?;

    let views = Served { hub: hub.clone(), shared: shared.clone() };
    let loads = Loads::new(hub.clone(), config.load_report_interval);
    let xds = AdsServer::new(Arc::new(views)).with_loads(loads.clone());
    let xds = xds.serve(listener, told(stopped.clone()));
    let loads = AbortOnDropHandle::new(tokio::spawn(loads.watch(shared.clone())));
    let linkerd =
        linkerd.map(|(listener, _)| (towpath_linkerd::Server::new(hub.watch_whole()), listener));
    let page = admin::router(Admin {
        hub,
        linkerd: linkerd.as_ref().map(|(server, _)| server.clone()),
        shared: shared.clone(),
        requests: requests.clone(),
        transitions: Arc::default(),
        address: admin_addr.ip(),
        webhook: door.as_ref().map(|door| door.counts.clone()),
    });
    let linkerd = linkerd.map(|(server, listener)| server.serve(listener, told(stopped.clone())));
    let page = axum::serve(admin, page).with_graceful_shutdown(told(stopped.clone()));
    let failed = Arc::new(watch::Sender::new(false));
    let mut servers = vec![
        server("xds", failed.clone(), xds),
        server("admin", failed.clone(), page.into_future()),
    ];
    servers.extend(linkerd.map(|linkerd| server("linkerd", failed.clone(), linkerd)));
    let webhook_addr = door.as_ref().map(|door| door.address);
    servers.extend(door.map(|door| server("webhook", failed.clone(), door.serve(stopped))));
    Ok(Running {
        xds_addr,
        linkerd_addr,
        admin_addr,
        webhook_addr,
        shared,
        requests,
        changed,
        stop,
        failed,
        follow,
        released,
        servers,
        _loads: loads,
    })
}

impl Running {
    /// What `GET /status` tells.
    pub fn status(&self) -> Status {
        self.shared.look(Tracker::status)
    }

    /// The status as soon as it is as `wanted` says, now or later.
    pub async fn status_when(&self, mut wanted: impl FnMut(&Status) -> bool) -> Status {
        let mut told = self.shared.subscribe();
        loop {
            let status = told.borrow_and_update().status();
            // The sender lives in `self`.
            if wanted(&status) || told.changed().await.is_err() {
                return status;
            }
        }
    }

    /// Looks for a new version now, and tells what came of it (`POST /refresh`).
    pub async fn refresh(&self) -> Refreshed {
        admin::ask(&self.requests).await
    }

    /// Looks for a new version soon, without waiting for it (`SIGHUP`).
    pub fn nudge(&self) {
        self.changed.notify_one();
    }

    /// Completes when a server ended by itself, which none should.
    pub async fn wait(&self) {
        let mut failed = self.failed.subscribe();
        let _ = failed.wait_for(|failed| *failed).await;
    }

    /// Hangs up, and returns when all is closed.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        // Awaited, so that the state folder is free when this returns: a save
        // that is under way is not ended by the end of the task.
        self.follow.abort();
        let _ = self.follow.await;
        let _ = tokio::time::timeout(FAREWELL, self.released.changed()).await;
        for server in self.servers {
            // One that does not end in time is aborted by its drop.
            let _ = tokio::time::timeout(FAREWELL, server).await;
        }
    }
}

async fn bind(
    what: &'static str,
    address: SocketAddr,
) -> Result<(TcpListener, SocketAddr), StartError> {
    let failed = |cause| StartError::Bind { what, address, cause };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    Ok((listener, bound))
}

async fn bind_if(
    what: &'static str,
    address: Option<SocketAddr>,
) -> Result<Option<(TcpListener, SocketAddr)>, StartError> {
    match address {
        Some(address) => bind(what, address).await.map(Some),
        None => Ok(None),
    }
}

/// Waits for the first look at the source, unless it is slow.
async fn first_look(
    looked: &mut watch::Receiver<Option<First>>,
    shared: &Shared,
) -> Result<(), StartError> {
    if let Ok(Ok(first)) = tokio::time::timeout(FIRST_LOOK, looked.wait_for(Option::is_some)).await
        && let Some(First { hopeless: Some(error) }) = &*first
        && !shared.look(Tracker::is_ready)
    {
        return Err(StartError::Source(error.clone()));
    }
    Ok(())
}

/// The webhook, where there is one.
async fn door(webhook: Option<Webhook>, store: &Store) -> Result<Option<Door>, StartError> {
    let Some(webhook) = webhook else { return Ok(None) };
    let listener = bind("webhook", webhook.address).await?;
    Ok(Some(Door::new(webhook, listener, store.folder())?))
}

fn server(
    name: &'static str,
    failed: Arc<watch::Sender<bool>>,
    serve: impl Future<Output = Result<(), impl fmt::Display>> + Send + 'static,
) -> AbortOnDropHandle<()> {
    let task: JoinHandle<()> = tokio::spawn(async move {
        if let Err(error) = serve.await {
            tracing::error!(name, %error, "server ended");
        }
        failed.send_replace(true);
    });
    AbortOnDropHandle::new(task)
}

async fn told(mut stop: watch::Receiver<bool>) {
    // An error means that the owner is gone, which is as good as told.
    let _ = stop.wait_for(|stop| *stop).await;
}

fn source_status(source: &SourceSpec, poll: Duration) -> SourceStatus {
    SourceStatus {
        location: source.location.to_string(),
        branch: source.branch.clone(),
        path: source.folder.clone(),
        poll_ms: u64::try_from(poll.as_millis()).unwrap_or(u64::MAX),
        ..SourceStatus::default()
    }
}
