//! A PostgreSQL server as Debian has it, and its own load generator.

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use crate::tools;

/// Its port.
pub(super) const PORT: u16 = 5432;
/// Rows are 100,000 times this.
const SCALE: u32 = 1;
/// Connections that pgbench keeps busy.
const CLIENTS: u32 = 8;
/// The user that the server runs as: PostgreSQL refuses to be root.
const USER: &str = "postgres";
const START_LIMIT: Duration = Duration::from_secs(30);

/// A server that runs. It ends when this is dropped.
pub(super) struct Postgres {
    server: Child,
    programs: PathBuf,
    _folder: TempDir,
}

/// What pgbench found.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Found {
    /// Transactions that were done.
    pub(super) transactions: u64,
    /// The same a second, without the time to connect.
    pub(super) per_second: f64,
}

impl Postgres {
    /// Makes a database and starts its server in the calling thread's namespace.
    ///
    /// # Errors
    /// If PostgreSQL cannot be had or does not start.
    pub(super) fn start(at: Ipv4Addr) -> anyhow::Result<Self> {
        let programs = programs()?;
        let folder = TempDir::with_prefix("towpath-bench-postgres-")?;
        let (user, group) = owner()?;
        chown(folder.path(), Some(user), Some(group))?;
        let data = folder.path().join("data");
        let mut initdb = as_user(&programs.join("initdb"));
        initdb.args(["--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C", "-U", USER]);
        done(initdb.arg("-D").arg(&data).output())?;
        // Whoever is on the link between the namespaces may connect.
        let trusted = data.join("pg_hba.conf");
        fs::write(&trusted, "host all all 0.0.0.0/0 trust\nlocal all all trust\n")?;
        let mut server = as_user(&programs.join("postgres"));
        server.arg("-D").arg(&data).args(["-c", "fsync=off", "-c", "jit=off", "-c"]);
        server.arg(format!("listen_addresses={at}")).args(["-p", &PORT.to_string(), "-c"]);
        server.arg(format!("unix_socket_directories={}", folder.path().display()));
        let log = fs::File::create(folder.path().join("log"))?;
        server.stdout(log.try_clone()?).stderr(log).stdin(Stdio::null());
        let server = server.spawn().context("cannot start PostgreSQL")?;
        let postgres = Self { server, programs, _folder: folder };
        postgres.wait_until_ready(at)?;
        Ok(postgres)
    }

    fn wait_until_ready(&self, at: Ipv4Addr) -> anyhow::Result<()> {
        let start = Instant::now();
        loop {
            let mut ask = Command::new(self.programs.join("pg_isready"));
            let asked =
                ask.args(["-q", "-h", &at.to_string(), "-p", &PORT.to_string()]).status()?;
            if asked.success() {
                return Ok(());
            }
            ensure!(start.elapsed() < START_LIMIT, "PostgreSQL is not ready after {START_LIMIT:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Fills the tables that pgbench reads, from the calling thread's namespace.
    ///
    /// # Errors
    /// If pgbench fails.
    pub(super) fn fill(&self, at: Ipv4Addr) -> anyhow::Result<()> {
        let scale = SCALE.to_string();
        done(self.pgbench(at).args(["-i", "-q", "-s", &scale, USER]).output()).map(drop)
    }

    /// Reads single rows for some seconds, from the calling thread's namespace.
    ///
    /// # Errors
    /// If a connection breaks or an answer fails, which is the way's fault.
    pub(super) fn read(&self, at: Ipv4Addr, seconds: u32) -> anyhow::Result<Found> {
        let (clients, seconds) = (CLIENTS.to_string(), seconds.to_string());
        let mut pgbench = self.pgbench(at);
        // Select only, one round trip each.
        pgbench.args(["-S", "-n", "-M", "prepared", "-c", &clients, "-j", "1", "-T", &seconds]);
        let output = done(pgbench.arg(USER).output())?;
        found(&String::from_utf8_lossy(&output.stdout))
    }

    fn pgbench(&self, at: Ipv4Addr) -> Command {
        let mut pgbench = Command::new(self.programs.join("pgbench"));
        pgbench.args(["-h", &at.to_string(), "-p", &PORT.to_string(), "-U", USER]);
        pgbench
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // Fast shutdown: connections are closed, not waited for.
        let pid = i32::try_from(self.server.id()).ok().and_then(Pid::from_raw);
        let _ = pid.map(|pid| rustix::process::kill_process(pid, Signal::INT));
        let _ = self.server.wait();
    }
}

/// What pgbench says at its end.
fn found(text: &str) -> anyhow::Result<Found> {
    let figure = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key));
        line?.trim_start_matches([' ', '=', ':']).split([' ', '/']).next()?.parse::<f64>().ok()
    };
    let failed = figure("number of failed transactions");
    if let Some(failed) = failed.filter(|failed| *failed > 0.0) {
        bail!("pgbench: {failed} transactions failed");
    }
    let all = figure("number of transactions actually processed");
    let (transactions, per_second) = all
        .zip(figure("tps"))
        .with_context(|| format!("pgbench says something else than expected:\n{text}"))?;
    Ok(Found { transactions: transactions as u64, per_second })
}

/// The newest of Debian's PostgreSQL programs.
fn programs() -> anyhow::Result<PathBuf> {
    let folder = || {
        let versions = fs::read_dir("/usr/lib/postgresql").ok()?.flatten();
        let folders = versions.map(|version| version.path().join("bin"));
        folders.filter(|bin| bin.join("pgbench").is_file()).max()
    };
    if let Some(folder) = folder() {
        return Ok(folder);
    }
    tools::install_debian(&["postgresql"])?;
    folder().context("PostgreSQL is still missing after its installation")
}

fn as_user(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--reuid", USER, "--regid", USER, "--init-groups", "--pdeathsig", "INT", "--"]);
    command.arg(program);
    command
}

/// User and group that the server's files belong to.
fn owner() -> anyhow::Result<(u32, u32)> {
    let users = fs::read_to_string("/etc/passwd")?;
    let entry = users.lines().find_map(|line| line.strip_prefix(&format!("{USER}:")));
    let mut numbers = entry.into_iter().flat_map(|entry| entry.split(':').skip(1));
    let owner = numbers.next().zip(numbers.next());
    let owner = owner.and_then(|(user, group)| Some((user.parse().ok()?, group.parse().ok()?)));
    owner.with_context(|| format!("there is no user {USER}"))
}

fn done(output: std::io::Result<Output>) -> anyhow::Result<Output> {
    let output = output.context("cannot start a program of PostgreSQL's")?;
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {}", output.status, complaint.trim());
    Ok(output)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAID: &str = "\
pgbench (15.14 (Debian 15.14-0+deb12u1))
transaction type: <builtin: select only>
number of clients: 8
number of transactions actually processed: 61234
number of failed transactions: 0 (0.000%)
latency average = 0.653 ms
initial connection time = 12.345 ms
tps = 12251.125 (without initial connection time)
";

    #[test]
    fn what_pgbench_says_is_read() {
        let expected = Found { transactions: 61_234, per_second: 12_251.125 };
        assert_eq!(found(SAID).expect("readable"), expected);
        assert!(found(&SAID.replace("transactions: 0 ", "transactions: 3 ")).is_err());
        assert!(found("pgbench: error: connection refused").is_err());
    }
}
