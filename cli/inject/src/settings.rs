//! What a workload says about its sidecar, by annotations (in Compose: labels).

use crate::{
    DEFAULT_CONTROL_PLANE, Options, Source,
    problem::Problem,
    quantity,
    record::INJECTED,
    tree::{Id, Tree},
};

/// What all of them begin with.
pub(crate) const PREFIX: &str = "towpath.dev/";
/// The user the proxy runs as: one that no well-known image uses, so that interception can tell
/// the proxy's own traffic by it.
const USER: u32 = 1802;
const ADMIN_PORT: u16 = 9901;
/// One per core would be many on a large machine that a hundred pods share.
const WORKERS: u32 = 2;

/// What a sidecar is like.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) inject: bool,
    pub(crate) image: String,
    pub(crate) source: Option<Source>,
    pub(crate) node: Option<String>,
    pub(crate) cluster: Option<String>,
    pub(crate) admin_port: u16,
    /// The admin endpoint is open to the pod's network, and probed.
    pub(crate) admin_on_pod: bool,
    pub(crate) log_level: Option<String>,
    pub(crate) access_log: Option<String>,
    pub(crate) drain_timeout: Option<String>,
    pub(crate) workers: u32,
    pub(crate) cpu_request: Option<String>,
    pub(crate) memory_request: Option<String>,
    pub(crate) cpu_limit: Option<String>,
    pub(crate) memory_limit: Option<String>,
    pub(crate) user: u32,
    pub(crate) exclude_inbound_ports: Vec<u16>,
    pub(crate) exclude_outbound_ports: Vec<u16>,
    /// Where the port was set, if it was.
    pub(crate) admin_port_at: Option<Id>,
}

/// Where settings stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Kubernetes,
    Compose,
}

impl Place {
    /// The most that bodies kept for another try take. In Compose they are in memory.
    fn spool(self) -> &'static str {
        match self {
            Self::Kubernetes => "1GiB",
            Self::Compose => "256MiB",
        }
    }

    /// The size of what holds them and the last good configuration.
    pub(crate) fn state_size(self) -> &'static str {
        match self {
            Self::Kubernetes => "1280Mi",
            Self::Compose => "320m",
        }
    }
}

/// Names, and whether they mean something in Compose.
const NAMES: [(&str, bool); 17] = [
    ("inject", true),
    ("image", true),
    ("control-plane", true),
    ("node", true),
    ("cluster", true),
    ("admin-port", true),
    ("admin", false),
    ("log-level", true),
    ("access-log", true),
    ("drain-timeout", true),
    ("workers", true),
    ("cpu-request", false),
    ("memory-request", false),
    ("cpu-limit", false),
    ("memory-limit", false),
    ("user", false),
    ("exclude-inbound-ports", false),
];

impl Settings {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            inject: true,
            image: options.image.clone(),
            source: options.source.clone(),
            node: None,
            cluster: None,
            admin_port: ADMIN_PORT,
            admin_on_pod: false,
            log_level: None,
            access_log: None,
            drain_timeout: None,
            workers: WORKERS,
            cpu_request: None,
            memory_request: None,
            cpu_limit: None,
            memory_limit: None,
            user: USER,
            exclude_inbound_ports: Vec::new(),
            exclude_outbound_ports: Vec::new(),
            admin_port_at: None,
        }
    }

    /// Takes one annotation or label; others than ours are left alone.
    pub(crate) fn set(
        &mut self,
        text: &str,
        (key, value, at): (&str, &str, Id),
        place: Place,
        tree: &Tree,
    ) -> Result<(), Problem> {
        let Some(name) = key.strip_prefix(PREFIX) else { return Ok(()) };
        if key == INJECTED {
            return Ok(());
        }
        let problem = |message: String| Problem::new(text, tree.node(at).range.clone(), message);
        let refuse =
            |help: &str| Err(problem(format!("`{value}` is no value for {key}")).help(help));
        if place == Place::Compose && NAMES.contains(&(name, false)) {
            return Err(
                problem(format!("{key} has no meaning in a Compose file")).help("take it out")
            );
        }
        let amount = quantity::parse(value).is_some();
        let owned = || value.to_owned();
        let word = is_word(value);
        match name {
            "inject" => match value {
                "true" | "false" => self.inject = value == "true",
                _ => return refuse("\"true\" or \"false\""),
            },
            "image" if word => self.image = owned(),
            "control-plane" if word => self.source = Some(Source::ControlPlane(owned())),
            "node" if is_node(value) => self.node = Some(owned()),
            "cluster" if is_node(value) => self.cluster = Some(owned()),
            "admin-port" => match value.parse() {
                Ok(port) if port != 0 => (self.admin_port, self.admin_port_at) = (port, Some(at)),
                _ => return refuse("a port, 1 to 65535"),
            },
            "admin" => match value {
                "loopback" | "pod" => self.admin_on_pod = value == "pod",
                _ => return refuse("\"loopback\", or \"pod\" to have it probed and reachable"),
            },
            "log-level" if word => self.log_level = Some(owned()),
            "access-log" if word => self.access_log = Some(owned()),
            "drain-timeout" if is_time(value) => self.drain_timeout = Some(owned()),
            "workers" => match value.parse() {
                Ok(workers @ 1..=512) => self.workers = workers,
                _ => return refuse("a number, 1 to 512"),
            },
            "cpu-request" if amount => self.cpu_request = Some(owned()),
            "memory-request" if amount => self.memory_request = Some(owned()),
            "cpu-limit" if amount => self.cpu_limit = Some(owned()),
            "memory-limit" if amount => self.memory_limit = Some(owned()),
            "user" => match value.parse() {
                Ok(user) if user != 0 => self.user = user,
                _ => return refuse("the number of a user that is not root"),
            },
            "exclude-inbound-ports" | "exclude-outbound-ports" => {
                let ports: Option<Vec<u16>> =
                    value.split(',').map(|port| port.trim().parse().ok()).collect();
                let Some(ports) = ports else { return refuse("ports separated by commas") };
                if name == "exclude-inbound-ports" {
                    self.exclude_inbound_ports = ports;
                } else {
                    self.exclude_outbound_ports = ports;
                }
            }
            "image" | "control-plane" | "log-level" | "access-log" => {
                return refuse("one word, without blanks");
            }
            "node" | "cluster" => return refuse("letters, digits, ., _ and -, or $(POD_NAME)"),
            "drain-timeout" => return refuse("a time such as 30s, 10m or 1h30m"),
            "cpu-request" | "memory-request" | "cpu-limit" | "memory-limit" => {
                return refuse("a quantity such as 100m, 0.5 or 256Mi");
            }
            _ => return Err(unknown(name, problem(format!("{key} is not known")))),
        }
        Ok(())
    }

    /// What the proxy is started with, but for its name and admin address.
    pub(crate) fn arguments(
        &self,
        node: &str,
        cluster: Option<&str>,
        admin: &str,
        drain: &str,
        place: Place,
    ) -> Vec<String> {
        let mut arguments = match &self.source {
            Some(Source::Policies(_)) => vec![format!("--policies={POLICIES}")],
            Some(Source::ControlPlane(address)) => vec![format!("--control-plane={address}")],
            None => vec![format!("--control-plane={DEFAULT_CONTROL_PLANE}")],
        };
        arguments.push(format!("--node={node}"));
        arguments.extend(cluster.map(|cluster| format!("--cluster={cluster}")));
        arguments.push("--sidecar".to_owned());
        arguments.push(format!("--admin={admin}"));
        arguments.push(format!("--workers={}", self.workers));
        arguments.push(format!("--drain-timeout={drain}"));
        if !matches!(self.source, Some(Source::Policies(_))) {
            arguments.push(format!("--cache-dir={STATE}"));
        }
        arguments.push(format!("--spool-dir={STATE}"));
        // The default of 16 GiB is more than a node can spare for each pod.
        arguments.push(format!("--spool-bytes={}", place.spool()));
        arguments.extend(self.log_level.as_ref().map(|level| format!("--log-level={level}")));
        arguments.extend(self.access_log.as_ref().map(|path| format!("--access-log={path}")));
        arguments
    }
}

/// Where a container finds its policies, if it is given a folder.
pub(crate) const POLICIES: &str = "/etc/towpath";
/// The folder in the container that can be written to.
pub(crate) const STATE: &str = "/var/lib/towpath";

fn unknown(name: &str, problem: Problem) -> Problem {
    let names = || NAMES.iter().map(|(name, _)| *name).chain(["exclude-outbound-ports"]);
    let near = names()
        .min_by_key(|known| distance(known, name))
        .filter(|known| distance(known, name) <= 3);
    problem.help(match near {
        Some(near) => format!("did you mean {PREFIX}{near}?"),
        None => format!("known are {}", names().collect::<Vec<_>>().join(", ")),
    })
}

/// Letters to change, add or take away to make one word of the other.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = i;
        row[0] = i + 1;
        for (j, y) in b.bytes().enumerate() {
            let change = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = change.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}

/// As policies name proxies, with references to variables in between.
fn is_node(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b"._-$()".contains(&b);
    (1..=253).contains(&text.len()) && text.bytes().all(inner)
}

/// What an image, an address or a path in the container may be.
pub(crate) fn is_word(text: &str) -> bool {
    !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c.is_control())
}

fn is_time(text: &str) -> bool {
    let mut rest = text;
    while !rest.is_empty() {
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let unit = ["ms", "s", "m", "h"].into_iter().find(|unit| rest[digits..].starts_with(unit));
        match unit {
            Some(unit) if digits > 0 => rest = &rest[digits + unit.len()..],
            _ => return false,
        }
    }
    !text.is_empty()
}

#[cfg(test)]
mod tests {
    use super::{distance, is_node, is_time};

    #[test]
    fn values_are_checked_before_they_reach_the_proxy() {
        for (text, good) in [
            ("30s", true),
            ("1h30m", true),
            ("250ms", true),
            ("30", false),
            ("", false),
            ("s", false),
            ("1d", false),
        ] {
            assert_eq!(is_time(text), good, "{text}");
        }
        for (text, good) in
            [("etl-1", true), ("$(POD_NAME).etl", true), ("a b", false), ("", false)]
        {
            assert_eq!(is_node(text), good, "{text}");
        }
    }

    #[test]
    fn near_words_are_near() {
        assert_eq!(distance("inject", "inject"), 0);
        assert_eq!(distance("injct", "inject"), 1);
        assert_eq!(distance("admin-prot", "admin-port"), 2);
        assert_eq!(distance("", "abc"), 3);
    }
}
