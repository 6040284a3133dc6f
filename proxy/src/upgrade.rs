//! A new process takes over from the one that runs, without a lost connection.
//!
//! The running process listens at the upgrade socket. A new one that is started with the same
//! path connects, is given the listening sockets, and says when its configuration is in force.
//! Only then does the old one stop accepting; it finishes what it carries and ends. As the
//! kernel's queues are shared, no connection is refused or lost in between. A new process that
//! dies before it is ready changes nothing.
//!
//! The conversation, each line a JSON message in a datagram of its own:
//!
//! ```text
//! new → old   {"hello": {"protocol": 1, "program": "0.1.0"}}
//! old → new   {"sockets": {"places": [...], "more": false}}     with the descriptors
//! new → old   "ready"
//! old → new   "yours"                                           it accepts nothing any more
//! ```

mod channel;
#[cfg(test)]
mod tests;

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::fd::AsFd,
    path::Path,
    process::Command,
    sync::Mutex,
    time::Duration,
};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;

use crate::{control::Control, lock::lock};
pub(crate) use channel::Door;
use channel::{Channel, MOST_DESCRIPTORS};

/// Listening sockets that were handed to this process, and those that it may hand on.
#[derive(Debug, Default)]
pub(crate) struct Sockets(Mutex<Vec<(Place, TcpListener)>>);

/// What a socket is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    /// The listener's name; none for the admin endpoint.
    pub(crate) listener: Option<String>,
    /// The address asked for; port 0 stays 0 here.
    pub(crate) asked: SocketAddr,
}

/// A running process that waits for this one to be ready.
#[derive(Debug)]
pub(crate) struct Predecessor {
    channel: Channel,
    /// Its process, where this one can see it.
    pub(crate) pid: Option<i32>,
}

/// What the new process says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum FromNew {
    /// The first message, of this form in every version.
    Hello { protocol: u32, program: String },
    /// Its configuration is in force, and it accepts.
    Ready,
}

/// What the old process says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum FromOld {
    /// No; of this form in every version.
    Refused { reason: String },
    /// Sockets, as many descriptors as places.
    Sockets { places: Vec<Place>, more: bool },
    /// It accepts nothing any more.
    Yours,
}

/// The conversation above.
const PROTOCOL: u32 = 1;
/// Time for an answer that costs nothing to give.
const ANSWER_TIME: Duration = Duration::from_secs(10);
/// Time for a new process to be ready; after that it is taken to be stuck.
const READY_TIME: Duration = Duration::from_secs(600);
/// Pause after an error of the upgrade socket itself.
const PAUSE: Duration = Duration::from_secs(1);
/// Most sockets taken from another process.
const MOST_SOCKETS: usize = 16 * 1024;

impl Sockets {
    fn put(&self, place: Place, socket: TcpListener) {
        self.lock().push((place, socket));
    }

    /// The socket of a listener that was handed over, or one at the same address.
    pub(crate) fn find(&self, listener: Option<&str>, asked: SocketAddr) -> Option<TcpListener> {
        let sockets = self.lock();
        let fits = |place: &Place, by_name: bool| {
            place.asked == asked
                && place.listener.is_none() == listener.is_none()
                && (!by_name || place.listener.as_deref() == listener)
                && (by_name || asked.port() != 0)
        };
        let found = sockets.iter().find(|(place, _)| fits(place, true));
        let found = found.or_else(|| sockets.iter().find(|(place, _)| fits(place, false)));
        found.and_then(|(_, socket)| socket.try_clone().ok())
    }

    /// Closes what nobody took.
    fn close(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<(Place, TcpListener)>> {
        lock(&self.0)
    }
}

/// Asks the process that runs for its sockets; `None` when none runs.
pub(crate) async fn inherit(path: &Path, sockets: &Sockets) -> anyhow::Result<Option<Predecessor>> {
    let Some(channel) = Channel::connect(path)? else { return Ok(None) };
    let pid = channel.peer();
    let asking = ask(&channel, sockets);
    timeout(ANSWER_TIME, asking)
        .await
        .unwrap_or_else(|_| bail!("no answer in {ANSWER_TIME:?}"))
        .with_context(|| {
            let who = pid.map_or("the process that runs".into(), |pid| format!("process {pid}"));
            format!("{who} does not hand over its sockets")
        })?;
    Ok(Some(Predecessor { channel, pid }))
}

async fn ask(channel: &Channel, sockets: &Sockets) -> anyhow::Result<()> {
    let program = env!("CARGO_PKG_VERSION").to_owned();
    channel.send(&FromNew::Hello { protocol: PROTOCOL, program }, &[]).await?;
    let mut count = 0;
    loop {
        let (message, descriptors) = channel.receive::<FromOld>().await?;
        let (places, more) = match message {
            FromOld::Sockets { places, more } => (places, more),
            FromOld::Refused { reason } => bail!("{reason}"),
            FromOld::Yours => bail!("it speaks out of turn"),
        };
        count += places.len();
        if places.len() != descriptors.len() || count > MOST_SOCKETS {
            bail!("it sent {} descriptors for {} sockets", descriptors.len(), places.len());
        }
        for (place, descriptor) in places.into_iter().zip(descriptors) {
            let socket = TcpListener::from(descriptor);
            socket.set_nonblocking(true)?;
            sockets.put(place, socket);
        }
        if !more {
            return Ok(());
        }
    }
}

impl Predecessor {
    /// Tells it that this process is ready, and waits until it accepts nothing any more. From
    /// here on this process serves, whatever becomes of the other.
    async fn relieve(self) -> anyhow::Result<()> {
        self.channel.send(&FromNew::Ready, &[]).await?;
        match timeout(ANSWER_TIME, self.channel.receive::<FromOld>()).await {
            Ok(Ok((FromOld::Yours, _))) => Ok(()),
            Ok(Ok((other, _))) => bail!("it said {other:?}"),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => bail!("no answer in {ANSWER_TIME:?}"),
        }
    }
}

/// Takes over once the configuration is in force. From here on this process serves, whatever
/// becomes of the other.
pub(crate) async fn take_over(predecessor: Predecessor, sockets: &Sockets, control: &Control) {
    // The sender lives in `control`, so this cannot fail.
    let _ = control.applied().wait_for(|count| *count > 0).await;
    let pid = predecessor.pid;
    match predecessor.relieve().await {
        Ok(()) => tracing::info!(pid, "took over from the process that ran before"),
        Err(error) => tracing::warn!(pid, %error, "the process that ran before is gone"),
    }
    sockets.close();
}

/// Waits for a successor, and hands over to it. Returns when that is done.
pub(crate) async fn hand_over(door: Door, admin: (Place, TcpListener), control: &Control) {
    loop {
        let successor = match door.next().await {
            Ok(successor) => successor,
            Err(error) => {
                tracing::warn!(%error, "the upgrade socket");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        let pid = successor.peer();
        tracing::info!(pid, "a new process asks for the sockets");
        if let Err(error) = until_ready(&successor, &admin, control).await {
            tracing::warn!(pid, %error, "the new process does not take over: serving on");
            continue;
        }
        control.hand_over();
        // Whoever connects from here on is for the new process.
        drop(door);
        // It serves by now, whether it hears this or not.
        let _ = successor.send(&FromOld::Yours, &[]).await;
        tracing::info!(pid, "handed over: finishing what is under way");
        return;
    }
}

/// Starts `program` with this process's own arguments; it finds the upgrade socket among them.
pub(crate) fn start_successor(program: Option<&Path>) {
    let Some(program) = program else {
        tracing::warn!("SIGUSR2 starts a successor only with --upgrade-socket");
        return;
    };
    // It is to outlive this process, which is its parent.
    let arguments = std::env::args_os().skip(1).filter(|a| a != "--die-with-parent");
    match Command::new(program).args(arguments).spawn() {
        // Waited for, lest one that fails stay behind as a zombie.
        Ok(mut child) => drop(std::thread::spawn(move || {
            if let Ok(status) = child.wait() {
                tracing::warn!(%status, "the new process ended");
            }
        })),
        Err(error) => tracing::error!(%error, program = %program.display(), "cannot start"),
    }
}

/// Gives a successor the sockets and waits until it is ready.
async fn until_ready(
    successor: &Channel,
    admin: &(Place, TcpListener),
    control: &Control,
) -> anyhow::Result<()> {
    let hello = timeout(ANSWER_TIME, successor.receive::<FromNew>()).await;
    let refusal = match hello.context("it says nothing")?? {
        (FromNew::Hello { protocol: PROTOCOL, .. }, _) if control.drain.fired() => {
            "the process that runs is about to stop; start this one without it".to_owned()
        }
        (FromNew::Hello { protocol: PROTOCOL, program }, _) => {
            tracing::info!(program, "its version");
            String::new()
        }
        (FromNew::Hello { protocol, program }, _) => format!(
            "version {program} hands over by protocol {protocol}, but version {} by {PROTOCOL}: \
             stop this proxy and start the other",
            env!("CARGO_PKG_VERSION")
        ),
        (FromNew::Ready, _) => "it did not say hello".to_owned(),
    };
    if !refusal.is_empty() {
        let reason = refusal.clone();
        let _ = timeout(ANSWER_TIME, successor.send(&FromOld::Refused { reason }, &[])).await;
        bail!("refused: {refusal}");
    }
    let mut all = control.sockets()?;
    all.push((admin.0.clone(), admin.1.try_clone()?));
    timeout(ANSWER_TIME, give(successor, &all)).await.context("it does not take the sockets")??;
    match timeout(READY_TIME, successor.receive::<FromNew>()).await {
        Ok(Ok((FromNew::Ready, _))) => Ok(()),
        Ok(Ok((other, _))) => bail!("it said {other:?}"),
        Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
            bail!("it ended before it was ready")
        }
        Ok(Err(error)) => Err(error.into()),
        Err(_) => bail!("it was not ready in {READY_TIME:?}"),
    }
}

async fn give(successor: &Channel, all: &[(Place, TcpListener)]) -> io::Result<()> {
    let batches = all.len().div_ceil(MOST_DESCRIPTORS);
    for (batch, sockets) in all.chunks(MOST_DESCRIPTORS).enumerate() {
        let places = sockets.iter().map(|(place, _)| place.clone()).collect();
        let descriptors: Vec<_> = sockets.iter().map(|(_, socket)| socket.as_fd()).collect();
        let message = FromOld::Sockets { places, more: batch + 1 < batches };
        successor.send(&message, &descriptors).await?;
    }
    Ok(())
}
