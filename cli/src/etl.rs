//! The ETL services of the demonstration: a worker that parses, cleans,
//! aggregates and loads batches of rows, and a loader that pushes them.
//!
//! Ordinary programs that know nothing of the mesh: they speak HTTP/1.1,
//! HTTP/2 and gRPC, and could stand behind any proxy or none.

pub mod batch;
pub mod client;
mod columns;
pub mod digest;
mod load;
pub mod q1;
pub mod rows;
pub mod store;
pub mod wire;
pub mod worker;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc, time::Duration};

use anyhow::Context;
use tokio::{
    net::TcpListener,
    signal::unix::{SignalKind, signal},
    sync::watch,
};

pub use self::load::{LoadArgs, run_load};
use self::{
    store::Store,
    worker::{Harness, Speed, Worker},
};

/// Options of the worker.
#[derive(Debug, clap::Args)]
pub struct WorkerArgs {
    /// Where batches are taken: HTTP/1.1, HTTP/2 and gRPC on one port
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub listen: SocketAddr,
    /// Folder that batches are loaded into, shared by all workers
    #[arg(long, value_name = "DIR")]
    pub load: PathBuf,
    /// Name in answers
    #[arg(long, default_value = "worker")]
    pub name: String,
    /// Region in answers
    #[arg(long, default_value = "")]
    pub region: String,
    /// Pretend to be this far away (round trip)
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub delay_ms: u64,
    /// Pretend to spend this long on a batch of any size
    #[arg(long, value_name = "MS", default_value_t = 0)]
    pub batch_ms: u64,
    /// Pretend to be no faster than this
    #[arg(long, value_name = "MIB_PER_S")]
    pub rate_mib: Option<f64>,
    /// Loopback port to slow the worker down and ask what it did
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    pub harness: SocketAddr,
    /// End when the process that started this one ends
    #[arg(long, hide = true)]
    pub die_with_parent: bool,
}

/// Runs a worker until it is told to stop (SIGTERM, SIGINT), then finishes what is under way.
///
/// Prints `ready app=ADDR harness=ADDR` once both sockets stand.
///
/// # Errors
/// When a socket or the folder cannot be opened.
pub fn run_worker(args: WorkerArgs) -> anyhow::Result<ExitCode> {
    let parent = rustix::process::getppid();
    if args.die_with_parent {
        die_with_parent(parent)?;
    }
    let rate = args.rate_mib;
    anyhow::ensure!(
        rate.is_none_or(|rate| rate.is_finite() && rate > 0.0),
        "--rate-mib: a number above 0"
    );
    let speed = Speed {
        delay: Duration::from_millis(args.delay_ms),
        per_batch: Duration::from_millis(args.batch_ms),
        bytes_per_second: rate.map(|mib| mib * f64::from(1 << 20)),
    };
    let store = Store::open(&args.load)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let worker = Worker::new(args.name, args.region, store, Harness::new(speed));
        work(Arc::new(worker), args.listen, args.harness).await
    })?;
    Ok(ExitCode::SUCCESS)
}

/// `parent` is that of the start: the kernel tells nothing of one that ended before it was asked.
fn die_with_parent(parent: Option<rustix::process::Pid>) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .context("cannot ask the kernel to end this process with its parent")?;
    anyhow::ensure!(
        rustix::process::getppid() == parent,
        "--die-with-parent: the parent has ended already"
    );
    Ok(())
}

async fn work(worker: Arc<Worker>, app: SocketAddr, harness: SocketAddr) -> anyhow::Result<()> {
    let app = bind(app).await?;
    let harness = bind(harness).await?;
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    println!("ready app={} harness={}", app.local_addr()?, harness.local_addr()?);
    let (stop, stopped) = watch::channel(());
    let until = |mut stopped: watch::Receiver<()>| async move {
        // an error says that the sender is gone, which means stop as well
        let _ = stopped.changed().await;
    };
    let told = async {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        stop.send_replace(());
        Ok(())
    };
    tokio::try_join!(
        worker::serve(app, worker.clone(), until(stopped.clone())),
        worker::serve_harness(harness, worker.clone(), until(stopped)),
        told,
    )?;
    Ok(())
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_that_ended_before_the_kernel_was_asked_is_noticed() {
        die_with_parent(rustix::process::getppid()).unwrap();
        let ended = Some(rustix::process::getpid());
        assert!(die_with_parent(ended).unwrap_err().to_string().contains("ended already"));
        rustix::process::set_parent_process_death_signal(None).unwrap();
    }
}
