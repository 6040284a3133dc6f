//! Two network namespaces, a client's and a server's, and the rules that lead their connections
//! through sidecars.
//!
//! The rules are the bench's own and the same for every pair of sidecars, so that what is compared
//! is the sidecars.

use std::fs::File;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

use anyhow::{Context as _, ensure};
use rustix::thread::LinkNameSpaceType;

/// The server's address.
pub(super) const SERVER: Ipv4Addr = Ipv4Addr::new(198, 18, 77, 2);
/// The client's.
const CLIENT: Ipv4Addr = Ipv4Addr::new(198, 18, 77, 1);
/// Where a sidecar takes what leaves its namespace.
pub(super) const OUTBOUND: u16 = 15001;
/// Where it takes what comes in.
pub(super) const INBOUND: u16 = 15006;
/// The group of sidecars, whose own connections are left alone.
pub(super) const GROUP: u32 = 13377;

/// The two namespaces, with a link between them. They go when this is dropped.
pub(super) struct Pair {
    pub(super) client: Namespace,
    pub(super) server: Namespace,
    /// The namespace that the bench's thread came from.
    home: File,
}

/// A network namespace that has a name.
pub(super) struct Namespace {
    name: String,
    file: File,
}

impl Pair {
    /// Makes them.
    ///
    /// # Errors
    /// If `ip` or `nft` is missing, or this process is not let.
    pub(super) fn make() -> anyhow::Result<Self> {
        let own = std::process::id();
        let home = File::open("/proc/thread-self/ns/net").context("no network namespaces here")?;
        let client = Namespace::make(format!("towpath-bench-{own}-client"))?;
        let server = Namespace::make(format!("towpath-bench-{own}-server"))?;
        ip(&format!("-n {client} link add eth0 type veth peer name eth0 netns {server}"))?;
        for (namespace, address) in [(&client, CLIENT), (&server, SERVER)] {
            ip(&format!("-n {namespace} address add {address}/30 dev eth0"))?;
            ip(&format!("-n {namespace} link set eth0 up"))?;
            ip(&format!("-n {namespace} link set lo up"))?;
        }
        Ok(Self { client, server, home })
    }

    /// Leads connections from one to the other through the sidecars of both, or no longer.
    ///
    /// # Errors
    /// If the kernel refuses the rules.
    pub(super) fn intercept(&self, on: bool) -> anyhow::Result<()> {
        let out = format!(
            "chain output {{ type nat hook output priority -100; \
             ip daddr {SERVER} meta l4proto tcp meta skgid != {GROUP} redirect to :{OUTBOUND}; }}"
        );
        let inward = format!(
            "chain prerouting {{ type nat hook prerouting priority -100; \
             ip daddr {SERVER} meta l4proto tcp redirect to :{INBOUND}; }}"
        );
        for (namespace, chain) in [(&self.client, out), (&self.server, inward)] {
            let chain = if on { chain } else { String::new() };
            let table = "table ip bench";
            namespace.nft(&format!("{table}\ndelete {table}\n{table} {{\n{chain}\n}}\n"))?;
        }
        Ok(())
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        let _ = enter(&self.home);
    }
}

impl Namespace {
    fn make(name: String) -> anyhow::Result<Self> {
        ip(&format!("netns add {name}"))?;
        let path = format!("/run/netns/{name}");
        let file = File::open(&path).with_context(|| format!("cannot open {path}"))?;
        Ok(Self { name, file })
    }

    /// Takes the calling thread into it: what it binds, connects and starts from now on is there.
    ///
    /// # Errors
    /// If this process is not let.
    pub(super) fn enter(&self) -> anyhow::Result<()> {
        enter(&self.file)
    }

    fn nft(&self, rules: &str) -> anyhow::Result<()> {
        let mut nft = Command::new("ip");
        nft.args(["netns", "exec", &self.name, "nft", "-f", "-"]).stdin(Stdio::piped());
        let mut nft = nft.spawn().context("cannot run ip (Debian: iproute2)")?;
        let mut input = nft.stdin.take().context("nft has no input")?;
        input.write_all(rules.as_bytes()).context("nft does not read (Debian: nftables)")?;
        drop(input);
        ensure!(nft.wait()?.success(), "nft refuses the rules (Debian: nftables)");
        Ok(())
    }
}

impl std::fmt::Display for Namespace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = ip(&format!("netns delete {}", self.name));
    }
}

fn enter(namespace: &File) -> anyhow::Result<()> {
    use std::os::fd::AsFd as _;
    rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .context("cannot enter a network namespace")
}

fn ip(arguments: &str) -> anyhow::Result<()> {
    let output = Command::new("ip")
        .args(arguments.split(' '))
        .output()
        .context("cannot run ip (Debian: iproute2)")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {arguments}: {} (are you root?)", complaint.trim());
    Ok(())
}
