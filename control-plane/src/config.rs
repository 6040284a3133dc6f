//! What a control plane is told at its start.

use std::{
    fmt,
    net::{Ipv4Addr, SocketAddr},
    ops::RangeInclusive,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use towpath_policies::parse_time;

use crate::{
    carbon::{CarbonApi, CarbonArgs, CarbonOptionsError},
    dns::Resolver,
    places::{APPLE_HEADING, AppleArgs, AppleError, AskFor, Limits, Maps},
    source::{SourceSpec, SpecError},
    webhook::{Webhook, WebhookArgs, WebhookOptionsError},
};

/// Options of `towpath control-plane`.
#[derive(Clone, Debug, clap::Args)]
#[command(after_help = "Examples:
  towpath control-plane --policies ./policies
  towpath control-plane --policies /srv/policies.git --branch main
  towpath control-plane --policies https://git.example.com/team/policies.git --path mesh

A sub-folder of a work tree is followed as plain files; to follow its commits instead,
name the top of the repository and give --path.
SIGHUP, or POST /refresh on the admin address, looks for a new commit at once.
SIGTERM and SIGINT end it cleanly.")]
pub struct Args {
    /// Policy files: a plain folder, a Git repository (its commits are followed, not its
    /// uncommitted files), or the URL of one (https, http, ssh, file)
    #[arg(long, value_name = "PATH|GIT-URL", env = "TOWPATH_POLICIES")]
    pub policies: String,

    /// Branch to follow; without it, whatever the repository's HEAD is
    #[arg(long, value_name = "BRANCH")]
    pub branch: Option<String>,

    /// Sub-folder that holds the policy files
    #[arg(long, value_name = "SUBFOLDER")]
    pub path: Option<PathBuf>,

    /// Time between looks for a new version, e.g. 500ms, 5s, 1m
    #[arg(long, value_name = "DURATION", default_value = "5s", value_parser = parse_duration)]
    pub poll: Duration,

    /// Where proxies connect (xDS over gRPC, cleartext); port 0 takes a free one
    #[arg(long, value_name = "ADDR", default_value_t = DEFAULT_XDS)]
    pub xds: SocketAddr,

    /// Where Linkerd's proxies connect (destination and outbound policies over gRPC, cleartext);
    /// without it they are not served
    #[arg(long, value_name = "ADDR")]
    pub linkerd: Option<SocketAddr>,

    /// How often proxies and other clients report the load they make (LRS), 1s to 1h
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "10s",
        value_parser = parse_report_interval
    )]
    pub load_report_interval: Duration,

    /// Where /status, /metrics, /ready and /refresh are served; keep it on loopback
    #[arg(long, value_name = "ADDR", default_value_t = DEFAULT_ADMIN)]
    pub admin: SocketAddr,

    /// Folder for the mirror of a remote repository and the last good policies
    /// [default: $STATE_DIRECTORY, or towpath below $XDG_STATE_HOME or ~/.local/state]
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// Who is asked for places, besides the built-in gazetteer
    #[command(flatten)]
    pub apple: AppleArgs,

    /// Which places Apple Maps is asked for
    #[arg(
        long,
        value_name = "WHICH",
        value_enum,
        default_value = "unknown",
        help_heading = APPLE_HEADING
    )]
    pub apple_maps_for: AskFor,

    /// Most calls of Apple Maps in a second
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = Limits::default().per_second,
        value_parser = clap::value_parser!(u32).range(1..=1000),
        help_heading = APPLE_HEADING
    )]
    pub apple_maps_per_second: u32,

    /// Most calls of Apple Maps in a day (UTC)
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t = Limits::default().per_day,
        help_heading = APPLE_HEADING
    )]
    pub apple_maps_per_day: u32,

    /// Who is asked for the carbon intensity of this hour
    #[command(flatten)]
    pub carbon: CarbonArgs,

    /// Sidecars for pods as they are created
    #[command(flatten)]
    pub webhook: WebhookArgs,

    /// What is logged to standard error: error, warn, info, debug, trace, or a filter
    /// like towpath_xds=debug
    #[arg(long, value_name = "LEVEL", default_value = "info", env = "TOWPATH_LOG")]
    pub log_level: String,

    /// End when the starting process ends (for tests and the demo)
    #[arg(long, hide = true)]
    pub die_with_parent: bool,
}

/// Where proxies connect unless told otherwise.
pub const DEFAULT_XDS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 18000);
/// Where the admin endpoint listens unless told otherwise.
pub const DEFAULT_ADMIN: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 18001);

/// Shortest time between two looks.
const MIN_POLL: Duration = Duration::from_millis(50);
/// Longest time between two looks.
const MAX_POLL: Duration = Duration::from_secs(24 * 3600);

/// What [`crate::start`] needs.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where the policies come from.
    pub source: SourceSpec,
    /// Time between looks for a new version; 50 ms to 24 h.
    pub poll: Duration,
    /// Address of the xDS server.
    pub xds: SocketAddr,
    /// Address of the server for Linkerd's proxies; `None` = they are not served.
    pub linkerd: Option<SocketAddr>,
    /// Address of the admin endpoint.
    pub admin: SocketAddr,
    /// How often clients report the load they make; 100 ms to 1 h.
    pub load_report_interval: Duration,
    /// Where the mirror and the last good policies are kept.
    pub state: StateDir,
    /// Asks for the addresses of a host.
    pub resolver: Resolver,
    /// Who is asked for places that the policies name; `None` = only the built-in gazetteer.
    pub maps: Option<Maps>,
    /// Who is asked for carbon intensities; `None` = what the policies say counts.
    pub carbon: Option<Arc<CarbonApi>>,
    /// Gives pods their sidecars as they are created; `None` = not at all.
    pub webhook: Option<Webhook>,
}

/// The folder that outlives a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum StateDir {
    /// A new folder that is removed at the end: nothing outlives a restart.
    #[default]
    Temporary,
    /// This folder. An error when another control plane of the same source uses it.
    At(PathBuf),
    /// The user's own place for such things; a temporary one when that is in use or cannot be written.
    User,
}

/// Options that cannot be obeyed.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The source of the policies.
    #[error(transparent)]
    Source(#[from] SpecError),
    /// Apple Maps.
    #[error(transparent)]
    Apple(#[from] AppleError),
    /// The carbon API.
    #[error(transparent)]
    Carbon(#[from] CarbonOptionsError),
    /// The admission webhook.
    #[error(transparent)]
    Webhook(#[from] WebhookOptionsError),
}

impl Config {
    /// Ports chosen by the system on loopback, a poll every 5 s, no memory of earlier runs.
    pub fn new(source: SourceSpec) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self {
            source,
            poll: Duration::from_secs(5),
            xds: any,
            linkerd: None,
            admin: any,
            load_report_interval: Duration::from_secs(10),
            state: StateDir::Temporary,
            resolver: Resolver::system(),
            maps: None,
            carbon: None,
            webhook: None,
        }
    }
}

impl TryFrom<&Args> for Config {
    type Error = ConfigError;

    fn try_from(args: &Args) -> Result<Self, ConfigError> {
        let source =
            SourceSpec::parse(&args.policies, args.branch.as_deref(), args.path.as_deref())?;
        let state = args.state_dir.clone().map_or(StateDir::User, StateDir::At);
        let (poll, xds, linkerd, admin) = (args.poll, args.xds, args.linkerd, args.admin);
        let limits =
            Limits { per_second: args.apple_maps_per_second, per_day: args.apple_maps_per_day };
        let maps = args
            .apple
            .client(limits)?
            .map(|client| Maps { service: Arc::new(client), ask_for: args.apple_maps_for });
        let load_report_interval = args.load_report_interval;
        let carbon = args.carbon.client()?.map(Arc::new);
        let webhook = args.webhook.webhook()?;
        Ok(Self {
            poll,
            xds,
            linkerd,
            admin,
            load_report_interval,
            state,
            maps,
            carbon,
            webhook,
            ..Self::new(source)
        })
    }
}

/// A duration that is not one, or out of bounds.
#[derive(Debug, Clone, PartialEq, Eq)]
struct DurationError;

impl fmt::Display for DurationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("expected a time from 50ms to 24h, like 500ms, 5s, 2m or 1h")
    }
}

impl std::error::Error for DurationError {}

fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    let duration = parse_time(text).ok_or(DurationError)?;
    if (MIN_POLL..=MAX_POLL).contains(&duration) { Ok(duration) } else { Err(DurationError) }
}

fn parse_report_interval(text: &str) -> Result<Duration, &'static str> {
    let interval = parse_time(text).filter(|interval| REPORT_INTERVALS.contains(interval));
    interval.ok_or("expected a time from 1s to 1h, like 10s or 1m")
}

/// Oftener than that figures say little, and more rarely nothing.
const REPORT_INTERVALS: RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(3600);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_a_unit_and_bounds() {
        for (text, millis) in [("50ms", 50), ("5s", 5000), ("2m", 120_000), ("24h", 86_400_000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "5", "s", "49ms", "25h", "-1s", "1.5s", "5 s", "99999999999999999999h"] {
            assert_eq!(parse_duration(text), Err(DurationError), "{text}");
        }
    }
}
