//! The proxies under comparison: how each is set up for a case and started.
//!
//! Settings are equal where the proxies allow it: one worker, keep-alive on both sides, no access
//! log, metrics on, timeouts that never strike. Everything else stays at each proxy's default,
//! unless a user with that kind of traffic would surely change it; then the generated file says
//! why.

pub(crate) mod envoy;
pub(crate) mod haproxy;
mod hyper;
mod nginx;
pub(crate) mod towpath;

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::ValueEnum;

use crate::case::{Case, Setup};
use crate::origin::Origin;
use crate::tools::Tools;

/// A proxy of the comparison.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum)]
pub enum Contender {
    /// Ours.
    Towpath,
    /// Envoy.
    Envoy,
    /// `HAProxy`.
    Haproxy,
    /// nginx.
    Nginx,
    /// A bare forwarder on hyper, built into the bench: what a proxy in Rust costs at least.
    Hyper,
}

/// Where a proxy under test listens and forwards to.
#[derive(Debug, Clone, Copy)]
pub struct Ports {
    /// Where the load connects.
    pub listen: SocketAddr,
    /// Where the proxy's metrics are served.
    pub metrics: SocketAddr,
    /// The origin's port for the case.
    pub origin: SocketAddr,
}

/// A proxy's command line.
pub type CommandLine = Vec<std::ffi::OsString>;

impl Contender {
    /// All contenders in the order they are listed.
    #[must_use]
    pub fn all() -> &'static [Self] {
        Self::value_variants()
    }

    /// The name on the command line and in the results.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Towpath => "towpath",
            Self::Envoy => "envoy",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Hyper => "hyper",
        }
    }

    /// Why this proxy cannot do a case, if it cannot.
    #[must_use]
    pub fn cannot(self, case: Case, tools: &Tools) -> Option<String> {
        match (self, case) {
            (Self::Nginx, Case::Tcp) if !tools.nginx_has_stream() => {
                Some("nginx's stream module is not installed (Debian: libnginx-mod-stream)".into())
            }
            _ => None,
        }
    }

    /// What differs from the other proxies in a case that it can do.
    #[must_use]
    pub fn remark(self, case: Case) -> Option<&'static str> {
        match (self, case) {
            (Self::Nginx, Case::H2Small | Case::H2Down | Case::H2Up) => {
                Some("HTTP/1.1 to the origin: nginx speaks HTTP/2 to a backend for gRPC only")
            }
            (Self::Hyper, Case::Idle) => {
                Some("keeps a connection to the origin open for every client; the others share one")
            }
            _ => None,
        }
    }

    /// Writes the proxy's configuration into `folder` and gives its command line.
    ///
    /// # Errors
    /// If a file cannot be written or the program is missing.
    pub fn prepare(
        self,
        setup: Setup,
        ports: Ports,
        tools: &Tools,
        folder: &Path,
    ) -> anyhow::Result<CommandLine> {
        match self {
            Self::Towpath => towpath::prepare(setup, ports, tools, folder),
            Self::Envoy => envoy::prepare(setup, ports, tools, folder),
            Self::Haproxy => haproxy::prepare(setup, ports, tools, folder),
            Self::Nginx => nginx::prepare(setup, ports, tools, folder),
            Self::Hyper => hyper::prepare(setup, ports),
        }
    }

    /// The origin's port this proxy forwards to in a setup.
    #[must_use]
    pub fn origin_port(self, setup: Setup, origin: &Origin) -> SocketAddr {
        match setup {
            Setup::H2Small | Setup::H2Bulk if self == Self::Nginx => origin.http1,
            Setup::H1Small | Setup::H1Bulk => origin.http1,
            Setup::H2Small => origin.small_h2,
            Setup::Grpc => origin.grpc,
            Setup::H2Bulk => origin.bulk_h2,
            Setup::Tcp => origin.tcp,
        }
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Writes a configuration file, naming it in the error.
pub(crate) fn write(folder: &Path, name: &str, text: &str) -> anyhow::Result<PathBuf> {
    use anyhow::Context as _;
    let path = folder.join(name);
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contender_is_called_the_same_on_the_command_line_and_in_the_results() {
        for contender in Contender::all() {
            assert_eq!(Contender::from_str(contender.name(), false), Ok(*contender));
        }
    }
}
