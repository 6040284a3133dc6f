//! systemd: a unit for the sidecar, in a sandbox, and a drop-in that has the service start it.
//!
//! The service itself is not touched. It *wants* its sidecar: it starts after it, and starts all
//! the same should the sidecar fail. The sidecar stops after the service, with nothing left to
//! need it (`StopWhenUnneeded`), so that a job's sidecar ends with its job.

use std::{
    cmp::Ordering,
    path::{Path, PathBuf},
};

use crate::{Options, Source, problem::Problem, record::compare};

/// A file to be written, its path relative to the folder of units.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct File {
    /// E.g. `etl.service.d/50-towpath.conf`.
    pub path: String,
    /// What is in it.
    pub text: String,
}

/// Where units that an administrator writes belong.
pub const FOLDER: &str = "/etc/systemd/system";

/// Where the proxy is looked for unless told otherwise.
pub const PROXY: &str = "/usr/bin/towpath-proxy";

/// The drop-in and the unit that give `unit` a sidecar; `proxy` is the proxy's program file.
///
/// # Errors
/// When `unit` is no name of a service, a path is not absolute, or nothing says where the
/// configuration comes from.
pub fn inject(
    unit: &str,
    proxy: &str,
    admin: u16,
    options: &Options,
) -> Result<Vec<File>, Problem> {
    let names = Names::parse(unit)?;
    let paths = match &options.source {
        Some(Source::Policies(folder)) => vec![proxy, folder],
        Some(Source::ControlPlane(_)) => vec![proxy],
        None => {
            return Err(Problem::general("where does the sidecar get its configuration?")
                .help("name a folder (--policies DIR) or a control plane (--control-plane ADDR)"));
        }
    };
    // A blank or a % would be read by systemd as something else, a line's end as another setting.
    let plain = |word: &str| {
        !word.is_empty() && word.bytes().all(|b| b.is_ascii_graphic() && !b"%\"'\\$;".contains(&b))
    };
    // A folder is also bound into the sandbox, as FROM:TO.
    let bad = |path: &&str| !path.starts_with('/') || !plain(path) || path.contains(':');
    if let Some(path) = paths.into_iter().find(bad) {
        return Err(Problem::general(format!("`{path}` cannot stand in a unit"))
            .help("give an absolute path without blanks, quotes, $, :, ; and %"));
    }
    if let Some(Source::ControlPlane(address)) = &options.source
        && !plain(address)
    {
        return Err(Problem::general(format!(
            "`{}` cannot stand in a unit",
            address.escape_debug()
        ))
        .help("give the address of a control plane, HOST:PORT"));
    }
    let Names { app, sidecar, wanted, .. } = &names;
    let drop_in = format!(
        "{MARK}{}; towpath inject --systemd {app} --uninject takes it out.\n\
         [Unit]\nWants={wanted}\nAfter={wanted}\n",
        options.version
    );
    Ok(vec![
        File { path: sidecar.clone(), text: names.unit(proxy, admin, options) },
        File { path: format!("{app}.d/50-towpath.conf"), text: drop_in },
    ])
}

/// The paths of what [`inject`] writes, and the folder that is left over if nothing else is in it.
///
/// # Errors
/// When `unit` is no name of a service.
pub fn paths(unit: &str) -> Result<([String; 2], String), Problem> {
    let names = Names::parse(unit)?;
    let folder = format!("{}.d", names.app);
    Ok(([names.sidecar, format!("{folder}/50-towpath.conf")], folder))
}

/// Where systemd looks for units, below the root of a machine; where an administrator's are, first.
const UNIT_PATH: [&str; 6] = [
    "etc/systemd/system",
    "run/systemd/system",
    "run/systemd/generator",
    "usr/local/lib/systemd/system",
    "usr/lib/systemd/system",
    "lib/systemd/system",
];

/// The places of which one should have the file of `unit`, where `folder` is the one in which a machine, or one below
/// another root, has its administrator's units. None for another folder: it tells of no machine.
///
/// # Errors
/// When `unit` is no name of a service.
pub fn places(unit: &str, folder: &Path) -> Result<Vec<PathBuf>, Problem> {
    let app = Names::parse(unit)?.app;
    if !folder.ends_with(UNIT_PATH[0]) {
        return Ok(Vec::new());
    }
    let root = folder.ancestors().nth(Path::new(UNIT_PATH[0]).iter().count());
    let root = root.unwrap_or(Path::new(""));
    Ok(UNIT_PATH.iter().map(|path| root.join(path).join(&app)).collect())
}

/// That none of them is there. No error: the service may be installed later.
pub fn missing(unit: &str) -> Problem {
    Problem::general(format!("no unit file of `{unit}` is found"))
        .help("the sidecar is started by that service alone: is the name right?")
}

/// What the first line of our files begins with; the version follows.
const MARK: &str = "# Added by towpath inject ";

/// Whether the version `own` may write anew or remove a file of which `text` is what is in it.
///
/// # Errors
/// When `inject` did not write the file, or a newer version did.
pub fn ours(path: &str, text: &str, own: &str) -> Result<(), Problem> {
    let version = text.strip_prefix(MARK).and_then(|rest| Some(rest.split_once(';')?.0));
    let Some(version) = version else {
        return Err(Problem::general(format!(
            "{path} is there, and towpath inject did not write it"
        ))
        .help("move it away: a sidecar's unit would have this name"));
    };
    if compare(version, own) == Ordering::Greater {
        let message =
            format!("{path} was written by towpath {version}, which is newer than this one, {own}");
        return Err(Problem::general(message).help("use that version"));
    }
    Ok(())
}

/// What is to be done once the files of `unit` are written, or (`out`) removed: commands for
/// systemd, and the folder that stays.
///
/// # Errors
/// When `unit` is no name of a service.
pub fn then(unit: &str, out: bool) -> Result<String, Problem> {
    let Names { app, sidecar, node, .. } = Names::parse(unit)?;
    // A glob stands for the instances that run.
    let all = |unit: &str| match unit.split_once('@') {
        Some((name, _)) => format!("'{name}@*.service'"),
        None => unit.to_owned(),
    };
    let (app, sidecar) = (all(&app), all(&sidecar));
    if !out {
        return Ok(format!("now: systemctl daemon-reload && systemctl restart {app}"));
    }
    // Without its unit nothing would tell systemd to stop the sidecar that runs.
    let folder = node.replace("%i", "INSTANCE");
    Ok(format!(
        "now: systemctl stop {sidecar} && systemctl daemon-reload && systemctl restart {app}\n\
         what the sidecar kept stays in /var/lib/private/towpath/{folder}"
    ))
}

/// Names of units.
struct Names {
    /// `etl.service`, `etl@.service`.
    app: String,
    /// Its sidecar's file: `etl-towpath.service`, `etl-towpath@.service`.
    sidecar: String,
    /// The sidecar, as the app's unit names it: `etl-towpath@%i.service`.
    wanted: String,
    /// What the sidecar is called in the mesh and on disk: `etl`, `etl-%i`.
    node: String,
}

impl Names {
    fn parse(unit: &str) -> Result<Self, Problem> {
        let stem = unit.strip_suffix(".service").unwrap_or(unit);
        let (name, instance) = stem.split_once('@').map_or((stem, None), |(n, i)| (n, Some(i)));
        let good = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if name.is_empty()
            || !name.bytes().all(good)
            || name.starts_with(['.', '-'])
            || unit.contains(".service.")
        {
            return Err(Problem::general(format!("`{unit}` is no name of a service"))
                .help("name a unit, e.g. etl.service, or a template, etl@.service"));
        }
        match instance {
            None => Ok(Self {
                app: format!("{name}.service"),
                sidecar: format!("{name}-towpath.service"),
                wanted: format!("{name}-towpath.service"),
                node: name.to_owned(),
            }),
            Some("") => Ok(Self {
                app: format!("{name}@.service"),
                sidecar: format!("{name}-towpath@.service"),
                wanted: format!("{name}-towpath@%i.service"),
                node: format!("{name}-%i"),
            }),
            Some(_) => Err(Problem::general(format!("`{unit}` is one instance of a template"))
                .help(format!("give all of them their sidecars: {name}@.service"))),
        }
    }

    fn unit(&self, proxy: &str, admin: u16, options: &Options) -> String {
        let Self { app, node, .. } = self;
        let (kind, source, reads) = match &options.source {
            // Told when it serves: the service starts when its sidecar is there.
            Some(Source::Policies(folder)) => {
                ("notify", format!("--policies={folder}"), format!("BindReadOnlyPaths={folder}\n"))
            }
            // Without a control plane it would not be told for long, and the service not started.
            Some(Source::ControlPlane(address)) => (
                "exec",
                format!("--control-plane={address} --cache-dir=${{STATE_DIRECTORY}}"),
                String::new(),
            ),
            None => ("exec", String::new(), String::new()),
        };
        let part_of = app.replace('@', "@%i");
        format!(
            "{MARK}{version}; towpath inject --systemd {app} --uninject takes it out.\n\
             [Unit]\n\
             Description=Towpath sidecar of {part_of}\n\
             PartOf={part_of}\n\
             StopWhenUnneeded=yes\n\
             After=network-online.target\n\
             Wants=network-online.target\n\
             \n\
             [Service]\n\
             Type={kind}\n\
             ExecStart={proxy} {source} --node={node} --sidecar --admin=127.0.0.1:{admin} --spool-dir=${{STATE_DIRECTORY}} --drain-timeout=25s\n\
             Restart=on-failure\n\
             TimeoutStopSec=30s\n\
             KillMode=mixed\n\
             StateDirectory=towpath/{node}\n\
             StateDirectoryMode=0700\n\
             LimitNOFILE=524288\n\
             {reads}{SANDBOX}",
            version = options.version,
        )
    }
}

/// A proxy needs the network, its folder and nothing else. Ports below 1024 are the exception
/// that is left.
const SANDBOX: &str = "\
DynamicUser=yes
AmbientCapabilities=CAP_NET_BIND_SERVICE
CapabilityBoundingSet=CAP_NET_BIND_SERVICE
NoNewPrivileges=yes
ProtectSystem=strict
ProtectHome=tmpfs
PrivateTmp=yes
PrivateDevices=yes
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
RemoveIPC=yes
SystemCallArchitectures=native
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
SystemCallErrorNumber=EPERM
UMask=0077
";

#[cfg(test)]
mod tests;
