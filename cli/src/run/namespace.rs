//! A network namespace of the command's own, in which every connection comes to the sidecar.
//!
//! Two processes make it: this one, and a copy of this program ([`inside`]) that enters the new
//! namespace, opens the sockets there, hands them over, and becomes the command. So the sidecar
//! listens inside and connects outside, and needs no privilege itself.

mod channel;
mod host;
pub(super) mod inside;
mod names;
mod rules;

use std::{
    ffi::OsString,
    net::{TcpListener, UdpSocket},
    os::unix::process::CommandExt as _,
    process::{Child, Command},
    time::Duration,
};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};

use channel::{Channel, Door};
use host::Host;
pub(super) use names::serve as serve_names;

/// A namespace that stands, and a process in it that waits to become the command.
#[derive(Debug)]
pub(super) struct Namespace {
    child: Child,
    channel: Channel,
    /// It was told to become the command.
    gone: bool,
}

/// The sockets in it.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    /// Where connections come, whatever they were made to.
    pub(super) connections: Vec<TcpListener>,
    /// Where questions for names come.
    pub(super) names: Vec<UdpSocket>,
}

/// What the process inside says.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum FromInside {
    /// The sockets, each of a kind.
    Ready { sockets: Vec<Kind> },
    /// There is no namespace to be had.
    Failed { why: String },
}

/// What the process inside is told.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum FromOutside {
    /// What is to be there.
    Make(Host),
    /// Become the command.
    Go,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Kind {
    Connections,
    Names,
}

/// Where connections come, inside: nobody else is there.
const PORT: u16 = 15001;
/// Where questions for names come, inside.
const NAMES_PORT: u16 = 15053;
/// Time for a namespace to be made.
const PATIENCE: Duration = Duration::from_secs(10);

impl Namespace {
    /// Makes one.
    ///
    /// # Errors
    /// When this process may not, or this machine cannot; the text says what is missing.
    pub(super) fn make(command: &[OsString], ports: &[u16]) -> anyhow::Result<(Self, Sockets)> {
        let mut host = Host::look()?;
        host.loopback_ports.extend(ports);
        host.loopback_ports_v6.extend(ports);
        let folder = tempfile::tempdir().context("no folder for a socket")?;
        let path = folder.path().join("inside");
        let door = Door::open(&path).context("no socket to talk through")?;
        // The file itself, even if another was put in its place meanwhile.
        let mut child = Command::new("/proc/self/exe")
            .arg0("towpath")
            .arg("run-inside")
            .arg(&path)
            .arg("--")
            .args(command)
            .spawn()
            .context("cannot start a process inside")?;
        let made = door.accept(PATIENCE).map_err(anyhow::Error::from).and_then(|channel| {
            channel.send(&FromOutside::Make(host), &[])?;
            let (told, descriptors) = channel.receive(PATIENCE)?;
            let kinds = match told {
                FromInside::Ready { sockets } => sockets,
                FromInside::Failed { why } => bail!("{why}"),
            };
            let mut sockets = Sockets::default();
            for (kind, descriptor) in kinds.into_iter().zip(descriptors) {
                match kind {
                    Kind::Connections => sockets.connections.push(descriptor.into()),
                    Kind::Names => sockets.names.push(descriptor.into()),
                }
            }
            if sockets.connections.is_empty() {
                bail!("no socket came from inside");
            }
            Ok((channel, sockets))
        });
        match made {
            Ok((channel, sockets)) => Ok((Self { child, channel, gone: false }, sockets)),
            Err(error) => {
                // It waits for nothing else, and is not the command yet.
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// The process inside.
    pub(super) fn process(&self) -> &Child {
        &self.child
    }

    /// Has the process inside become the command. One that is gone does not hear it.
    pub(super) fn go(mut self) {
        let _ = self.channel.send(&FromOutside::Go, &[]);
        self.gone = true;
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if !self.gone {
            // It is not the command yet, and will not be.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
