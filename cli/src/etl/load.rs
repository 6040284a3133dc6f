//! The loader: reads files of rows and pushes them, batch by batch.

use std::{
    fs::File,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail, ensure};

use super::{
    batch::Tally,
    client::{Client, Protocol, Rows, Upload},
    rows::{MAX_LINE_BYTES, Row, Table},
};

const DEADLINE: Duration = Duration::from_secs(120);
const PAUSE: Duration = Duration::from_millis(200);

/// Options of the loader.
#[derive(Debug, clap::Args)]
pub struct LoadArgs {
    /// A worker, or a gateway before workers
    #[arg(long, value_name = "ADDR")]
    pub to: SocketAddr,
    /// Host to ask for; the address when left out
    #[arg(long)]
    pub host: Option<String>,
    /// What the files hold: lineitem or orders
    #[arg(long, value_parser = |name: &str| Table::named(name).ok_or("there are lineitem and orders"))]
    pub table: Table,
    /// h1, h2 or grpc
    #[arg(long, default_value = "h1", value_parser = |name: &str| name.parse::<Protocol>())]
    pub protocol: Protocol,
    /// Rows of a batch
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub batch_rows: u32,
    /// Tries for a batch. Repeating one is safe: it is loaded once
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub attempts: u32,
    /// Files of `|`-separated rows, as `tpchgen-cli --format tbl` writes them
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

/// Pushes every file, in batches named after it. Running it again loads nothing twice.
///
/// # Errors
/// When a file cannot be read or a batch is not acknowledged.
pub fn run_load(args: LoadArgs) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let host = args.host.clone().unwrap_or_else(|| args.to.to_string());
        let client = Client::new(args.to, host);
        for file in &args.files {
            let (rows, already) = load(&args, &client, file).await?;
            println!("{}: {rows} rows acknowledged, {already} loaded before", file.display());
        }
        Ok(ExitCode::SUCCESS)
    })
}

async fn load(args: &LoadArgs, client: &Client, file: &Path) -> anyhow::Result<(u64, u64)> {
    let context = || format!("cannot read {}", file.display());
    let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or("batch");
    let mut lines = BufReader::new(File::open(file).with_context(context)?);
    let (mut rows, mut already) = (0, 0);
    for number in 0.. {
        let text = next_batch(&mut lines, args.batch_rows).with_context(context)?;
        if text.is_empty() {
            break;
        }
        let reply = push(args, client, format!("{stem}-{number:06}"), text).await?;
        rows += reply.0;
        already += if reply.1 { reply.0 } else { 0 };
    }
    Ok((rows, already))
}

fn next_batch(lines: &mut impl BufRead, rows: u32) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    for _ in 0..rows {
        let start = text.len();
        if lines.read_until(b'\n', &mut text)? == 0 {
            break;
        }
        ensure!(text.len() - start <= MAX_LINE_BYTES, "a line longer than {MAX_LINE_BYTES} bytes");
    }
    Ok(text)
}

async fn push(
    args: &LoadArgs,
    client: &Client,
    batch: String,
    text: Vec<u8>,
) -> anyhow::Result<(u64, bool)> {
    let mut expected = Tally::default();
    for line in std::str::from_utf8(&text)?.lines().filter(|line| !line.trim_ascii().is_empty()) {
        expected.add(&Row::parse(args.table, line).with_context(|| format!("batch {batch}"))?);
    }
    let expected = expected.receipt();
    let text = bytes::Bytes::from(text);
    let mut tries = 0;
    loop {
        let upload =
            Upload { table: args.table, batch: batch.clone(), rows: Rows::Whole(text.clone()) };
        tries += 1;
        match client.push(args.protocol, upload, DEADLINE).await {
            Ok(reply) => {
                if reply.rows != expected.rows || reply.digest != expected.digest.to_string() {
                    bail!("batch {batch}: acknowledged with other rows than were sent");
                }
                return Ok((reply.rows, reply.already));
            }
            Err(error) if tries < args.attempts => {
                eprintln!("batch {batch}: {error}; trying again");
                tokio::time::sleep(PAUSE * tries).await;
            }
            Err(error) => {
                return Err(error).with_context(|| format!("batch {batch}, {tries} tries"));
            }
        }
    }
}
