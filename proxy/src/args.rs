//! The command line, and the configuration it becomes.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use towpath_policies::{
    model::{Coordinates, Node},
    parse_bytes, parse_time, places,
};

use crate::{
    Credentials,
    access_log::Target,
    energy::Counters,
    gpu::{Cards, GpuConfig, MetricsUrl},
    ledger::Ledger,
    overload::{self, Ceilings},
    source::SourceConfig,
    spool::DEFAULT_MEMORY,
};

/// Run a proxy: sidecar or gateway, from a policy folder or a control plane
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Signals: SIGTERM or SIGINT drains and stops, a second one stops at once; \
    SIGHUP or SIGUSR1 reopens the access log; SIGUSR2 starts the program file anew, which takes \
    over (--upgrade-socket).")]
pub struct Args {
    /// Folder of policy files to obey; changes are picked up as they happen
    #[arg(long, value_name = "DIR", conflicts_with = "control_plane")]
    pub policies: Option<PathBuf>,

    /// Control plane (any xDS v3 server) to obey, e.g. 127.0.0.1:18000
    #[arg(long, value_name = "ADDR", requires = "node")]
    pub control_plane: Option<String>,

    /// This proxy's name: chooses the listeners it gets
    #[arg(long, value_name = "NAME", env = "TOWPATH_NODE")]
    pub node: Option<String>,

    /// The group this proxy belongs to
    #[arg(long, value_name = "NAME", env = "TOWPATH_CLUSTER", default_value = "")]
    pub cluster: String,

    /// It stands beside one application: gateways are served here only where they name it
    #[arg(long)]
    pub sidecar: bool,

    /// Where this proxy stands: a city, a cloud's region, or LATITUDE,LONGITUDE; requests that say nothing else come
    /// from there [default: as its Gateway or its sidecar's endpoint says]
    #[arg(long, value_name = "PLACE", value_parser = place, allow_hyphen_values = true)]
    pub place: Option<Coordinates>,

    /// A database in MaxMind's format that says where addresses are, for policies that ask where clients are;
    /// read again when it changes
    #[arg(long, value_name = "FILE")]
    pub geoip: Option<PathBuf>,

    /// Where the admin endpoint listens; it has no authentication, so keep it on loopback [default: 127.0.0.1:9901]
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<SocketAddr>,

    /// Worker threads [default: one per core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=512))]
    pub workers: Option<u16>,

    /// What is logged to standard error: error, warn, info, debug, trace, or per module (info,towpath_proxy::h2=debug)
    #[arg(long, value_name = "LEVEL", env = "TOWPATH_LOG", default_value = "info")]
    pub log_level: String,

    /// JSON access log: a file, - for standard output, or off
    #[arg(long, value_name = "PATH", default_value = "off")]
    pub access_log: String,

    /// How long transfers may go on after a stop was asked for, e.g. 30s, 10m
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = time)]
    pub drain_timeout: Duration,

    /// Where a new process takes over from this one, and this one from the one that runs
    #[arg(long, value_name = "PATH")]
    pub upgrade_socket: Option<PathBuf>,

    /// Keep the last good configuration here, and start from it when the control plane is away
    #[arg(long, value_name = "DIR", conflicts_with = "policies")]
    pub cache_dir: Option<PathBuf>,

    /// Most open connections per listener [default: from the open files limit]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_connections: Option<u32>,

    /// Where request bodies are kept for another try, as far as a policy's replayDiskLimit allows
    #[arg(long, value_name = "DIR", default_value = "/var/tmp")]
    pub spool_dir: PathBuf,

    /// Most bytes of disk such bodies take together, e.g. 64GiB; 0 keeps none
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_SPOOL_BYTES,
        value_parser = size::<0>)]
    pub spool_bytes: u64,

    /// Most bytes of such bodies that wait in memory for the disk, together; beyond that uploads wait their turn
    #[arg(long, value_name = "BYTES", default_value_t = DEFAULT_MEMORY,
        value_parser = size::<{ 1 << 20 }>)]
    pub spool_memory_bytes: u64,

    /// Encrypt such bodies on disk (AES-256-GCM), by keys that are nowhere but in memory
    #[arg(long)]
    pub spool_encrypt: bool,

    /// Most resident memory, e.g. 512MiB: requests are shed from 80 % on, the lowest class first
    /// [default: what the control group may have, or 80 % of the machine's if that is less]
    #[arg(long, value_name = "BYTES", value_parser = size::<1>)]
    pub max_memory: Option<u64>,

    /// Most exchanges and opaque connections at a time; shed likewise [default: one per 64KiB of --max-memory]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub max_streams: Option<u64>,

    /// Where this machine's GPUs are found, whose health load reports tell: auto (amdgpu's tree, NVIDIA's library), off,
    /// or sysfs:PATH for a tree like /sys/class/drm
    #[arg(long, value_name = "WHERE", default_value = "off")]
    pub gpu: Cards,

    /// Where this machine's energy is read, for the joules per byte that load reports tell: auto (the kernel's counters,
    /// which the proxy must be let read), off, or powercap:PATH for a tree like /sys/class/powercap
    #[arg(long, value_name = "WHERE", default_value = "off")]
    pub energy: Counters,

    /// An exporter that tells of the GPUs in place of --gpu: dcgm-exporter or AMD's device-metrics-exporter, e.g. http://127.0.0.1:9400/metrics
    #[arg(long, value_name = "URL")]
    pub gpu_exporter: Option<MetricsUrl>,

    /// The metrics of a model server on this machine, vLLM or Triton, e.g. http://127.0.0.1:8000/metrics
    #[arg(long, value_name = "URL")]
    pub model_server: Option<MetricsUrl>,

    /// End with the process that started this one
    #[arg(long, hide = true)]
    pub die_with_parent: bool,
}

/// How a proxy runs; what [`crate::start`] takes.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where configuration comes from.
    pub source: SourceConfig,
    /// Where the admin endpoint binds; port 0 takes a free one, `None` opens none.
    pub admin: Option<SocketAddr>,
    /// Worker threads, at least 1.
    pub workers: usize,
    /// Access log.
    pub access_log: Target,
    /// Time transfers have after [`crate::Running::drain`].
    pub drain_timeout: Duration,
    /// Where processes hand over to each other; `None` = not at all.
    pub upgrade_socket: Option<PathBuf>,
    /// Most open connections per listener.
    pub max_connections: u32,
    /// Folder for request bodies kept for another try.
    pub spool_dir: PathBuf,
    /// Most bytes of disk they take together.
    pub spool_bytes: u64,
    /// Most bytes of them that wait in memory for the disk, together.
    pub spool_memory_bytes: u64,
    /// What is on disk is encrypted.
    pub spool_encrypt: bool,
    /// What may be used before requests are shed.
    pub ceilings: Ceilings,
    /// What says how much is used; [`overload::read`] but in tests.
    pub readings: Readings,
    /// Where the health of this machine's GPUs is read.
    pub gpu: GpuConfig,
    /// Where the proxy stands; `None` = as the configuration says.
    pub place: Option<Coordinates>,
    /// The database of where addresses are.
    pub geoip: Option<PathBuf>,
    /// Where this machine's energy is read.
    pub energy: Counters,
    /// Whether the listeners of the configuration are opened; their routes count either way.
    pub opens_listeners: bool,
    /// Sockets of the programs whose proxy this is.
    pub programs: Programs,
    /// Where what went where is summed up.
    pub ledger: Option<Arc<Ledger>>,
}

/// Sockets that no configuration names, for the programs whose proxy this is.
#[derive(Clone, Debug, Default)]
pub struct Programs {
    /// For those that are told of it as their proxy, and what they have to say (`user:password`): any program of
    /// this machine can connect.
    pub told: Option<(Arc<TcpListener>, Credentials)>,
    /// For those whose connections are taken (TPROXY): their own address is where they were made to.
    pub taken: Vec<Arc<TcpListener>>,
}

/// Where readings of what is used come from.
#[derive(Clone)]
pub struct Readings(pub overload::Source);

impl std::fmt::Debug for Readings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Readings")
    }
}

impl Default for Readings {
    fn default() -> Self {
        Self(Arc::new(overload::read))
    }
}

const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9901);
const DEFAULT_SPOOL_BYTES: u64 = 16 << 30;

impl Config {
    /// One worker, admin on a free port of loopback, no access log: for tests and embedding.
    pub fn new(source: SourceConfig) -> Self {
        Self {
            source,
            admin: Some(([127, 0, 0, 1], 0).into()),
            workers: 1,
            access_log: Target::Off,
            drain_timeout: Duration::from_secs(30),
            upgrade_socket: None,
            max_connections: default_max_connections(),
            spool_dir: std::env::temp_dir(),
            spool_bytes: DEFAULT_SPOOL_BYTES,
            spool_memory_bytes: DEFAULT_MEMORY,
            spool_encrypt: false,
            ceilings: Ceilings::of_this_machine(),
            readings: Readings::default(),
            gpu: GpuConfig::default(),
            place: None,
            geoip: None,
            energy: Counters::Off,
            opens_listeners: true,
            programs: Programs::default(),
            ledger: None,
        }
    }
}

impl Args {
    /// Checks what the parser cannot, and fills in what depends on the machine.
    ///
    /// # Errors
    /// When the flags contradict each other.
    pub fn into_config(mut self) -> anyhow::Result<Config> {
        self.admin.get_or_insert(DEFAULT_ADMIN);
        if self.policies.is_none() && self.control_plane.is_none() {
            bail!("give either --policies <DIR> or --control-plane <ADDR> --node <NAME>");
        }
        self.into_config_of_any()
    }

    /// As [`Self::into_config`]; without a source, whoever embeds the proxy applies what is to be in force, and
    /// without an address there is no admin endpoint.
    ///
    /// # Errors
    /// When the flags contradict each other.
    pub fn into_config_of_any(self) -> anyhow::Result<Config> {
        let (id, cluster) = (self.node.unwrap_or_default(), self.cluster);
        let node = Node { id, cluster, sidecar: self.sidecar };
        let source = match (self.policies, self.control_plane) {
            (Some(folder), None) => SourceConfig::Folder { folder, node },
            (None, Some(control_plane)) => SourceConfig::ControlPlane {
                address: control_plane,
                node,
                cache_dir: self.cache_dir,
            },
            (None, None) => SourceConfig::Manual,
            (Some(_), Some(_)) => bail!("give --policies or --control-plane, not both"),
        };
        let mut ceilings = Ceilings::of_this_machine();
        if let Some(memory) = self.max_memory {
            ceilings = ceilings.with_memory(memory);
        }
        ceilings.streams = self.max_streams.unwrap_or(ceilings.streams);
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Config {
            source,
            admin: self.admin,
            workers: self.workers.map_or(cores, usize::from),
            access_log: self.access_log.parse::<Target>().context("--access-log")?,
            drain_timeout: self.drain_timeout,
            upgrade_socket: self.upgrade_socket,
            max_connections: self.max_connections.unwrap_or_else(default_max_connections),
            spool_dir: self.spool_dir,
            spool_bytes: self.spool_bytes,
            spool_memory_bytes: self.spool_memory_bytes,
            spool_encrypt: self.spool_encrypt,
            ceilings,
            readings: Readings::default(),
            gpu: GpuConfig {
                cards: self.gpu,
                exporter: self.gpu_exporter,
                model_server: self.model_server,
                ..GpuConfig::default()
            },
            place: self.place,
            geoip: self.geoip,
            energy: self.energy,
            opens_listeners: true,
            programs: Programs::default(),
            ledger: None,
        })
    }
}

/// A quarter of the open files this process may have: each connection may need
/// one more towards an endpoint and two for a pipe.
fn default_max_connections() -> u32 {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let files = limit.current.unwrap_or(1 << 20);
    u32::try_from(files / 4).unwrap_or(u32::MAX).clamp(16, 1 << 20)
}

/// A size of at least `LEAST` bytes, as policies write it.
fn size<const LEAST: u64>(text: &str) -> Result<u64, String> {
    match parse_bytes(text) {
        Some(size) if size >= LEAST => Ok(size),
        Some(_) => Err(format!("at least {LEAST} bytes are needed")),
        None => Err(format!("`{text}` is no size: write 536870912, 512MiB or 2GB")),
    }
}

/// A place as policies write it, or coordinates.
fn place(text: &str) -> Result<Coordinates, String> {
    if let Some(point) = Coordinates::read(text) {
        return Ok(point);
    }
    if let Some(place) = places::find(text) {
        return Ok(place.coordinates);
    }
    let near = match &*places::similar(text).join(" or ") {
        "" => "write a larger city near it, or latitude,longitude in degrees".to_owned(),
        near => format!("did you mean {near}?"),
    };
    Err(format!("no place of this name is known; {near}"))
}

/// A time as policies write it.
fn time(text: &str) -> Result<Duration, String> {
    parse_time(text).ok_or_else(|| format!("`{text}` is no time: write 30s, 1h30m or 250ms"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{Args, place};

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        args: Args,
    }

    fn parse(flag: &str, value: &str) -> Option<Args> {
        let program =
            Program::try_parse_from(["towpath-proxy", "--policies", "policies", flag, value]);
        program.ok().map(|program| program.args)
    }

    #[test]
    fn the_gateway_of_the_examples_is_started_by_flags_that_there_are() {
        let manifest = include_str!("../../examples/gateway/kubernetes.yaml");
        let flags: Vec<_> =
            manifest.lines().filter_map(|l| l.trim().strip_prefix("- --")).collect();
        assert!(flags.len() >= 5, "{flags:?}");
        let flags = flags.iter().map(|flag| format!("--{flag}"));
        let program =
            Program::try_parse_from(std::iter::once("towpath-proxy".to_owned()).chain(flags));
        let args = program.map(|program| program.args).unwrap();
        assert!(!args.sidecar && args.into_config().is_ok());
    }

    #[test]
    fn sizes_are_read_as_policies_write_them_and_have_their_least() {
        let spool = |text| parse("--spool-bytes", text).map(|args| args.spool_bytes);
        let memory = |text| parse("--spool-memory-bytes", text).map(|args| args.spool_memory_bytes);
        let most = |text| parse("--max-memory", text).and_then(|args| args.max_memory);
        for (text, spool_bytes, spool_memory, max_memory) in [
            ("2097152", Some(2 << 20), Some(2 << 20), Some(2 << 20)),
            ("512MiB", Some(512 << 20), Some(512 << 20), Some(512 << 20)),
            ("2GB", Some(2_000_000_000), Some(2_000_000_000), Some(2_000_000_000)),
            ("64KiB", Some(65_536), None, Some(65_536)),
            ("0", Some(0), None, None),
            ("MiB", None, None, None),
            ("1.5GiB", None, None, None),
            ("-1", None, None, None),
            ("99999999999TiB", None, None, None),
        ] {
            assert_eq!(spool(text), spool_bytes, "{text}");
            assert_eq!(memory(text), spool_memory, "{text}");
            assert_eq!(most(text), max_memory, "{text}");
        }
    }

    #[test]
    fn the_proxys_place_is_a_name_or_coordinates() {
        for (text, expected) in [
            ("Frankfurt", Some((50.116, 8.684))),
            ("eu-central-1", Some((50.116, 8.684))),
            ("-33.9,18.4", Some((-33.9, 18.4))),
            ("91,0", None),
            ("NaN,0", None),
            ("", None),
        ] {
            let read = place(text).ok().map(|at| (at.latitude, at.longitude));
            let near = |(a, b): (f64, f64), (c, d): (f64, f64)| (a - c).hypot(b - d) < 0.01;
            let right = read.zip(expected).map_or(read == expected, |(a, b)| near(a, b));
            assert!(right, "{text}: {read:?}");
        }
        assert!(parse("--place", "-33.9,18.4").is_some());
        assert!(place("Frankfrt").unwrap_err().contains("did you mean Frankfurt am Main, DE?"));
    }

    #[test]
    fn the_drain_timeout_is_read_as_policies_write_times() {
        for (text, millis) in
            [("1h30m", Some(5_400_000)), ("250ms", Some(250)), ("0s", Some(0)), ("30", None)]
        {
            let timeout = parse("--drain-timeout", text).map(|args| args.drain_timeout.as_millis());
            assert_eq!(timeout, millis, "{text}");
        }
    }
}
