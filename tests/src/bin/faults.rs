//! Runs the fault campaign: `cargo run --release -p towpath-tests --bin faults -- --help`.

use std::{process::ExitCode, str::FromStr, time::Instant};

use towpath_tests::faults::{Campaign, Limits};

const HELP: &str = "\
Runs proxies between clients and endpoints that fail, and checks what is promised.

  --runs N        how many runs [default: 1000]
  --seed N        seed of the first; each further run has the next [default: 1]
  --max-size N    largest body in bytes [default: 1073741824]
  --skip A,B      leave faults out, by name
  -v              print the story of every run

A failing run prints its seed; `--runs 1 --seed THAT` makes it again.
";

fn main() -> ExitCode {
    match parse(std::env::args().skip(1)) {
        Ok(Some(campaign)) => run(&campaign),
        Ok(None) => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("faults: {why}\n\n{HELP}");
            ExitCode::from(2)
        }
    }
}

fn run(campaign: &Campaign) -> ExitCode {
    let begun = Instant::now();
    let report = campaign.run();
    let seeds: Vec<_> = report.failures.iter().map(|failure| failure.seed.to_string()).collect();
    let took = begun.elapsed().as_secs_f64();
    println!("{report}");
    println!("{} runs in {took:.1} s, {} failed {}", campaign.runs, seeds.len(), seeds.join(" "));
    if report.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Campaign>, String> {
    let limits = Limits { max_size: 1 << 30, skip: Default::default() };
    let mut campaign = Campaign { seed: 1, runs: 1000, limits, verbose: false };
    while let Some(flag) = arguments.next() {
        let mut value = || arguments.next().ok_or(format!("{flag} wants a value"));
        match flag.as_str() {
            "--runs" => campaign.runs = number(&flag, &value()?)?,
            "--seed" => campaign.seed = number(&flag, &value()?)?,
            "--max-size" => campaign.limits.max_size = number(&flag, &value()?)?,
            "--skip" => campaign.limits.skip = value()?.split(',').map(str::to_owned).collect(),
            "-v" => campaign.verbose = true,
            "--help" | "-h" => return Ok(None),
            _ => return Err(format!("{flag} is unknown")),
        }
    }
    Ok(Some(campaign))
}

fn number<T: FromStr>(flag: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|_| format!("{flag} wants a number, not {text}"))
}
