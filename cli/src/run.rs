//! `towpath run -- COMMAND`: any command with a sidecar for as long as it lives.
//!
//! The command is a child in this process's own group, so that the terminal, its signals and job
//! control reach it as if nothing stood between. The sidecar runs on threads of this process; when
//! the command ends, this process ends within a second, with the command's status. Knows of the
//! proxy only its library's front door.

mod command;
mod environment;
mod namespace;
mod sidecar;
mod signals;
mod summary;

use std::{
    ffi::OsString,
    io::{self, Write as _},
    net::{Ipv4Addr, TcpListener, UdpSocket},
    path::PathBuf,
    process::ExitCode,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, bail};
use towpath_proxy::{Credentials, Ledger, Programs};

use command::Running;
use namespace::Namespace;
pub(crate) use namespace::inside::Args as InsideArgs;
use sidecar::Sidecar;
use signals::{Kept, Passing};
use summary::{Account, Summary};

/// Options.
#[derive(Debug, clap::Args)]
#[group(skip)]
#[command(
    mut_arg("admin", |arg| arg.help("Where the admin endpoint listens; it has no authentication [default: nowhere]")),
    mut_arg("log_level", |arg| arg.default_value("error")),
    mut_arg("drain_timeout", |arg| arg.default_value("400ms")),
    mut_arg("workers", |arg| arg.help("Worker threads [default: one per core, at most 4]")),
    mut_arg("upgrade_socket", |arg| arg.hide(true)),
    after_help = "Examples:
  towpath run -- ./job.sh                                         counted, and nothing else
  towpath run --policies mesh -- curl -T part.parquet http://etl/ingest/part
  towpath run --control-plane mesh:18000 --node nightly -- python3 load.py
  towpath run --summary report.json -- dbt run

Where it is allowed (root, or user namespaces) the command has a network namespace of its own, in which every connection
comes to the sidecar; elsewhere it finds it by proxy variables (HTTP_PROXY, HTTPS_PROXY and their kin).
Exit status: the command's; 128+n when signal n ended it; 126 not executable, 127 not found;
125 when the sidecar could not be had, in which case the command was not started."
)]
pub(crate) struct Args {
    #[command(flatten)]
    proxy: towpath_proxy::Args,

    /// Where what the command transferred is written when it ends: table (to standard error), json (likewise), off,
    /// or a file that gets the JSON
    #[arg(long, value_name = "WHERE", default_value = "table")]
    summary: Summary,

    /// How long the sidecar may take to be ready; the command starts only then
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time)]
    ready_timeout: Duration,

    /// Start the command without a sidecar when there is none to be had
    #[arg(long)]
    or_without: bool,

    /// How the command's connections come to the sidecar
    #[arg(long, value_enum, value_name = "HOW", default_value_t = Network::Auto)]
    network: Network,

    /// In a namespace: further ports of this machine's loopback that the command is to reach [default: those on which
    /// something listens when it starts]
    #[arg(long, value_name = "PORTS", value_delimiter = ',')]
    share_loopback: Vec<u16>,

    /// Take the place of proxy variables that are set already; else they are a reason not to start
    #[arg(long)]
    replace_proxy: bool,

    /// Also open the listeners that policies give this node, as `towpath proxy` does
    #[arg(long)]
    listeners: bool,

    /// Where the sidecar's own log goes [default: standard error, and only errors]
    #[arg(long, value_name = "FILE")]
    log_file: Option<PathBuf>,

    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// How the command's connections come to the sidecar.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Network {
    /// In a network namespace where that is allowed, by proxy variables elsewhere
    Auto,
    /// All of them, in a network namespace of the command's own
    Namespace,
    /// Those of programs that heed HTTP_PROXY and its kin
    Variables,
}

/// How a command that is about to start comes to its sidecar.
#[derive(Debug)]
enum Way {
    Namespace(Namespace, Kept),
    Variables(Vec<(&'static str, OsString)>, Option<Kept>),
}

/// The sidecar could not be had; as `env`, `nohup` and `timeout` say it of themselves.
const EXIT_NO_SIDECAR: u8 = 125;
/// Connections of the command at a time.
const MAX_CONNECTIONS: u32 = 16 * 1024;
/// Worker threads where nobody says: a job needs its cores itself.
const MOST_WORKERS: usize = 4;

/// Runs the command.
pub(crate) fn run(args: Args) -> ExitCode {
    let (summary, command) = (args.summary.clone(), args.command.clone());
    let or_without = args.or_without;
    let meshed = args.proxy.policies.is_some() || args.proxy.control_plane.is_some();
    let ledger = Arc::new(Ledger::default());
    let prepared = match prepare(args, ledger.clone()) {
        Ok(prepared) => Some(prepared),
        Err(error) => {
            tell(&format!("towpath: no sidecar: {error:#}\n"));
            if !or_without {
                return ExitCode::from(EXIT_NO_SIDECAR);
            }
            None
        }
    };
    let (sidecar, way) = prepared.unzip();
    let began = Instant::now();
    let network = way.as_ref().map_or("none", Way::name);
    let running = match way {
        Some(Way::Namespace(namespace, kept)) => Running::inside(namespace, kept),
        Some(Way::Variables(variables, kept)) => Running::start(&command, &variables, kept),
        None => Running::start(&command, &[], None),
    };
    let running = match running {
        Ok(running) => running,
        Err(error) => {
            tell(&format!("towpath: {}: {}\n", command[0].display(), error.source));
            return ExitCode::from(error.status);
        }
    };
    // Not before: the command has the limits that it would have without a sidecar.
    towpath_proxy::raise_file_limit();
    let status = running.wait();
    let took = began.elapsed();
    if let Some(sidecar) = sidecar {
        if let Err(error) = sidecar.end() {
            tell(&format!("towpath: the sidecar failed: {error:#}\n"));
        }
        Account::of(&ledger, network, meshed, took, status).write(&summary);
    }
    ExitCode::from(status)
}

/// Becomes a command inside the namespace that was made for it.
pub(crate) fn inside(args: &InsideArgs) -> ExitCode {
    namespace::inside::run(args)
}

/// A sidecar that is ready, and how the command comes to it.
fn prepare(args: Args, ledger: Arc<Ledger>) -> anyhow::Result<(Sidecar, Way)> {
    towpath_proxy::start_log(&args.proxy.log_level, args.log_file.as_deref())?;
    let (way, programs, names) = way(&args)?;
    let mut proxy = args.proxy;
    // Gateways open no ports beside a command; where none are opened at all, their routes are for it.
    proxy.sidecar |= args.listeners;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let workers = u16::try_from(cores.min(MOST_WORKERS)).unwrap_or(1);
    proxy.workers.get_or_insert(workers);
    proxy.max_connections.get_or_insert(MAX_CONNECTIONS);
    let mut config = proxy.into_config_of_any()?;
    config.opens_listeners = args.listeners;
    config.programs = programs;
    config.ledger = Some(ledger);
    Ok((Sidecar::start(config, names, args.ready_timeout)?, way))
}

/// How the command comes to its sidecar, and the sockets where that meets it.
fn way(args: &Args) -> anyhow::Result<(Way, Programs, Vec<UdpSocket>)> {
    if args.network == Network::Variables {
        return by_variables(args.replace_proxy, None);
    }
    // Before there is a process that they could be meant for.
    let kept = Passing::begin()?;
    match Namespace::make(&args.command, &args.share_loopback) {
        Ok((namespace, sockets)) => {
            let taken = sockets.connections.into_iter().map(Arc::new).collect();
            let programs = Programs { taken, ..Programs::default() };
            Ok((Way::Namespace(namespace, kept), programs, sockets.names))
        }
        Err(error) if args.network == Network::Auto => {
            tell(&format!(
                "towpath: by proxy variables, as there is no network namespace: {error:#}\n"
            ));
            by_variables(args.replace_proxy, Some(kept))
        }
        Err(error) => Err(error.context("there is no network namespace")),
    }
}

fn by_variables(
    replace: bool,
    kept: Option<Kept>,
) -> anyhow::Result<(Way, Programs, Vec<UdpSocket>)> {
    let given = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    if !replace && let Some(name) = environment::taken(&given) {
        bail!(
            "{name} is set already, and the sidecar would go around that proxy: unset it, or give \
             --replace-proxy"
        );
    }
    let socket =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("cannot listen on loopback")?;
    let credentials = Credentials::random().context("no randomness")?;
    let variables = environment::variables(socket.local_addr()?, credentials.as_str(), &given);
    let told = Some((Arc::new(socket), credentials));
    let programs = Programs { told, ..Programs::default() };
    Ok((Way::Variables(variables, kept), programs, Vec::new()))
}

impl Way {
    fn name(&self) -> &'static str {
        match self {
            Self::Namespace(..) => "namespace",
            Self::Variables(..) => "variables",
        }
    }
}

/// Says something on standard error. That nobody can hear it changes nothing.
fn tell(text: &str) {
    let _ = io::stderr().write_all(text.as_bytes());
}

/// A time as policies write it.
fn time(text: &str) -> Result<Duration, String> {
    towpath_policies::parse_time(text)
        .ok_or_else(|| format!("`{text}` is no time: write 30s, 1h30m or 250ms"))
}
