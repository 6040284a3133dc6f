//! The proxy beside the command, on threads of its own: whatever becomes of them, the command
//! goes on.

use std::{
    net::UdpSocket,
    sync::{
        Arc,
        mpsc::{Receiver, RecvTimeoutError, channel},
    },
    thread,
    time::Duration,
};

use anyhow::{anyhow, bail};
use tokio::{sync::oneshot, time::timeout};
use towpath_policies::model::Snapshot;
use towpath_proxy::{Config, SourceConfig};

use super::namespace;

/// A sidecar that is ready.
#[derive(Debug)]
pub(super) struct Sidecar {
    stop: oneshot::Sender<()>,
    ended: Receiver<anyhow::Result<()>>,
    /// Time it has for its end.
    patience: Duration,
}

/// Beyond the time to drain: for what is left to be cut and counted.
const MARGIN: Duration = Duration::from_millis(400);

impl Sidecar {
    /// Starts it, and waits until its configuration is in force. It answers for names by these
    /// sockets.
    ///
    /// # Errors
    /// When it cannot start, or is not ready in time.
    pub(super) fn start(
        config: Config,
        names: Vec<UdpSocket>,
        ready_timeout: Duration,
    ) -> anyhow::Result<Self> {
        let patience = config.drain_timeout + MARGIN;
        let (say_ready, ready) = channel();
        let (say_ended, ended) = channel();
        let (stop, stopped) = oneshot::channel();
        thread::Builder::new().name("sidecar".into()).spawn(move || {
            let say = say_ready.clone();
            if let Err(error) =
                serve(config, names, ready_timeout, move || drop(say.send(Ok(()))), stopped)
            {
                // One of the two listens.
                let _ = say_ready.send(Err(error));
            }
            let _ = say_ended.send(Ok(()));
        })?;
        match ready.recv() {
            Ok(Ok(())) => Ok(Self { stop, ended, patience }),
            Ok(Err(error)) => Err(error),
            Err(_) => bail!("it panicked while it started"),
        }
    }

    /// Has it finish what is still open, for a while, and end.
    ///
    /// # Errors
    /// When it failed, or does not end in time; it then ends with this process.
    pub(super) fn end(self) -> anyhow::Result<()> {
        // One that is gone needs no telling.
        let _ = self.stop.send(());
        match self.ended.recv_timeout(self.patience) {
            Ok(ended) => ended,
            Err(RecvTimeoutError::Timeout) => Err(anyhow!("it did not end in time")),
            Err(RecvTimeoutError::Disconnected) => Err(anyhow!("its thread panicked")),
        }
    }
}

fn serve(
    config: Config,
    names: Vec<UdpSocket>,
    ready_timeout: Duration,
    say_ready: impl FnOnce(),
    stopped: oneshot::Receiver<()>,
) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let served = runtime.block_on(async {
        let source = config.source.clone();
        let starting = async {
            let running = towpath_proxy::start(config).await?;
            if matches!(source, SourceConfig::Manual) {
                let nothing = Snapshot { version: "none".into(), ..Snapshot::default() };
                running.apply(Arc::new(nothing)).map_err(|_| anyhow!("nothing is not in force"))?;
            }
            if timeout(ready_timeout, running.ready()).await.is_err() {
                bail!("{}", missing(&source, ready_timeout, &running.complaints()));
            }
            Ok(running)
        };
        let running = starting.await?;
        names.into_iter().for_each(|socket| drop(tokio::spawn(namespace::serve_names(socket))));
        say_ready();
        // An error means that the other end is gone, which also means stop.
        let _ = stopped.await;
        running.drain();
        running.drained().await;
        running.shutdown();
        Ok(())
    });
    runtime.shutdown_background();
    served
}

/// What a sidecar waited for in vain.
fn missing(source: &SourceConfig, waited: Duration, complaints: &[String]) -> String {
    let whence = match source {
        SourceConfig::ControlPlane { address, node, .. } => {
            format!("no configuration for `{}` from the control plane {address}", node.id)
        }
        SourceConfig::Folder { folder, .. } => format!("no policies from {}", folder.display()),
        SourceConfig::Manual => "it is not ready".to_owned(),
    };
    let why = match complaints {
        [] => ": is it running, and reachable from here?".to_owned(),
        complaints => format!(": {}", complaints.join("; ")),
    };
    format!("{whence} in {waited:?}{why} (--ready-timeout, --or-without)")
}

#[cfg(test)]
mod tests {
    use towpath_policies::model::Node;

    use super::*;

    #[test]
    fn what_is_missing_is_said() {
        let node = Node { id: "job".into(), cluster: String::new(), sidecar: true };
        let source = SourceConfig::ControlPlane { address: "mesh:1".into(), node, cache_dir: None };
        let told =
            missing(&source, Duration::from_secs(2), &["listener `a` has not come yet".into()]);
        for part in ["mesh:1", "`job`", "2s", "listener `a` has not come yet"] {
            assert!(told.contains(part), "{told}");
        }
    }
}
