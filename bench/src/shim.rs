//! Sets the stage for a process and becomes it.
//!
//! A proxy is started as `towpath-bench exec …`, which binds itself to a core, asks the kernel to
//! end it with the bench, and then replaces itself by the proxy: both settings survive the
//! replacement, and the proxy needs no help of its own. (Doing this between `fork` and `exec`
//! would take unsafe code.)

use std::convert::Infallible;
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::Context as _;
use rustix::process::{Gid, Resource, Rlimit, Signal};
use rustix::thread::CpuSet;

/// The hidden `exec` command.
#[derive(Debug, clap::Args)]
pub struct ExecArgs {
    /// Core to run on; any if left out.
    #[arg(long)]
    core: Option<usize>,
    /// Group to belong to, by number; this one's if left out.
    #[arg(long)]
    group: Option<u32>,
    /// Program and arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

/// Becomes the command of `args`.
///
/// # Errors
/// If a step fails; on success it does not return.
pub fn exec(args: &ExecArgs) -> anyhow::Result<Infallible> {
    if let Some(core) = args.core {
        pin_this_thread(core)?;
    }
    if let Some(group) = args.group {
        let group = Gid::from_raw(group);
        rustix::thread::set_thread_res_gid(group, group, group)
            .with_context(|| format!("cannot join group {group}"))?;
    }
    // After that, which would undo it. SIGTERM and not SIGKILL: nginx's master must get the chance to end its workers.
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))
        .context("cannot tie the proxy's life to the bench's")?;
    let (program, arguments) = args.command.split_first().context("no command given")?;
    let error = Command::new(program).args(arguments).exec();
    Err(error).with_context(|| format!("cannot run {}", program.display()))
}

/// Binds the calling thread, and what it starts from now on, to one core.
///
/// # Errors
/// If the core is not among those this process may use.
pub fn pin_this_thread(core: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    rustix::thread::sched_setaffinity(None, &set)
        .with_context(|| format!("cannot run on core {core}; try --no-pin"))
}

/// The cores this process may use, lowest first.
#[must_use]
pub fn allowed_cores() -> Vec<usize> {
    let Ok(set) = rustix::thread::sched_getaffinity(None) else { return Vec::new() };
    (0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect()
}

/// Lets every other thread go before the calling one.
pub fn go_last() {
    // Best effort: it concerns nothing but how quiet a measurement is.
    let _ = rustix::process::setpriority_process(None, 19);
}

/// Raises the limit of open files to the most this process may have; children inherit it.
pub fn raise_file_limit() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, maximum: limit.maximum };
    // Best effort: where the limit is too low, the case that needs more says so.
    let _ = rustix::process::setrlimit(Resource::Nofile, raised);
}
