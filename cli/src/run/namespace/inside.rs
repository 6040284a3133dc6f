//! The process inside: it makes the namespace, opens the sockets in it, and becomes the command.
//!
//! It has one thread, since only such a process may enter a new user namespace. Where this
//! process may make a network namespace as it is, it does; else it makes a user namespace first, in
//! which its user is the same and nobody else is.

use std::{
    ffi::OsString,
    fs,
    io::{self, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::CommandExt as _,
    },
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context, bail};
use rustix::{
    io::Errno,
    process::{getegid, geteuid},
    thread::{
        CapabilitySet, CapabilitySets, UnshareFlags, capabilities,
        configure_capability_in_ambient_set, set_capabilities,
    },
};
use socket2::{Domain, Protocol, Socket, Type};

use super::{FromInside, FromOutside, Host, Kind, NAMES_PORT, PORT, channel::Channel, rules};
use crate::run::{
    command::{self, NotStarted},
    tell,
};

/// What the process inside is started with.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Where the one that started it is met
    channel: PathBuf,
    /// The command and its arguments
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Connections that the kernel keeps for us while we are busy.
const BACKLOG: i32 = 4096;
/// Time to be told what to make.
const PATIENCE: Duration = Duration::from_secs(10);

/// Makes the namespace, and becomes the command.
pub(crate) fn run(args: &Args) -> ExitCode {
    let Ok(channel) = Channel::connect(&args.channel) else { return ExitCode::FAILURE };
    let Ok((FromOutside::Make(host), _)) = channel.receive(PATIENCE) else {
        return ExitCode::FAILURE;
    };
    let told = match make(&host) {
        Ok(sockets) => {
            let kinds = sockets.iter().map(|(kind, _)| *kind).collect();
            let descriptors: Vec<_> = sockets.iter().map(|(_, socket)| socket.as_fd()).collect();
            channel.send(&FromInside::Ready { sockets: kinds }, &descriptors)
        }
        Err(error) => channel.send(&FromInside::Failed { why: format!("{error:#}") }, &[]),
    };
    // Where there is no namespace, or nobody who wants it, there is nothing to become.
    if told.is_err() || !matches!(channel.receive(None), Ok((FromOutside::Go, _))) {
        return ExitCode::FAILURE;
    }
    let (program, arguments) = args.command.split_first().expect("clap requires one");
    let source = Command::new(program).arg0(program).args(arguments).exec();
    let NotStarted { source, status } = command::not_started(source);
    tell(&format!("towpath: {}: {source}\n", program.display()));
    ExitCode::from(status)
}

fn make(host: &Host) -> anyhow::Result<Vec<(Kind, OwnedFd)>> {
    enter()?;
    let own = lend_capability().context("cannot lend the capability to set up a network")?;
    feed("ip", &["-batch", "-"], &rules::links(host), "iproute2")?;
    feed("nft", &["-f", "-"], &rules::ruleset(host), "nftables")?;
    // What is no longer inheritable is lent to nobody.
    set_capabilities(None, own).context("cannot take a capability back")?;
    let mut sockets = vec![
        (Kind::Connections, connections(Ipv4Addr::LOCALHOST.into()).context("a socket inside")?),
        (Kind::Names, names(Ipv4Addr::LOCALHOST.into()).context("a socket inside")?),
    ];
    if host.has_ipv6() {
        sockets.push((Kind::Connections, connections(Ipv6Addr::LOCALHOST.into())?));
        sockets.push((Kind::Names, names(Ipv6Addr::LOCALHOST.into())?));
    }
    Ok(sockets)
}

/// Enters a network namespace of its own.
fn enter() -> anyhow::Result<()> {
    let (user, group) = (geteuid().as_raw(), getegid().as_raw());
    match unshare(UnshareFlags::NEWNET) {
        Ok(()) => return Ok(()),
        Err(Errno::PERM) => {}
        Err(error) => bail!("this kernel makes no network namespace: {error}"),
    }
    unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNET).map_err(|error| {
        anyhow::anyhow!("neither root nor allowed to make a user namespace: {error}")
    })?;
    // Where groups could still be dropped, nobody may map any (user_namespaces(7)).
    fs::write("/proc/self/setgroups", "deny").context("a user namespace without groups")?;
    fs::write("/proc/self/uid_map", format!("{user} {user} 1")).context("a user namespace")?;
    fs::write("/proc/self/gid_map", format!("{group} {group} 1")).context("a user namespace")
}

#[expect(deprecated, reason = "unsafe only for UnshareFlags::FILES, which is not among them")]
fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    rustix::thread::unshare(flags)
}

/// Lets the programs that are started next set up the network: those of a user that is not root
/// would lose the capability with their start. Tells what was before.
fn lend_capability() -> Result<CapabilitySets, Errno> {
    let own = capabilities(None)?;
    let mut lent = own;
    lent.inheritable |= CapabilitySet::NET_ADMIN;
    set_capabilities(None, lent)?;
    configure_capability_in_ambient_set(CapabilitySet::NET_ADMIN, true)?;
    Ok(own)
}

/// Runs a program on what it reads from its standard input.
fn feed(program: &str, arguments: &[&str], input: &str, package: &str) -> anyhow::Result<()> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot run `{program}`: install {package}"))?;
    if let Some(mut pipe) = child.stdin.take() {
        // One that does not read it says why.
        let _ = pipe.write_all(input.as_bytes());
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let told = String::from_utf8_lossy(&output.stderr);
        bail!("`{program}` failed: {}", told.lines().next().unwrap_or("it says nothing"));
    }
    Ok(())
}

fn connections(ip: IpAddr) -> io::Result<OwnedFd> {
    let address = SocketAddr::new(ip, PORT);
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_tcp_nodelay(true)?;
    match ip {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        IpAddr::V6(_) => {
            socket.set_only_v6(true)?;
            socket.set_ip_transparent_v6(true)?;
        }
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn names(ip: IpAddr) -> io::Result<OwnedFd> {
    Ok(std::net::UdpSocket::bind((ip, NAMES_PORT))?.into())
}
