//! `sim`: runs seeds and says what broke, which faults fired, and how fast it went.

#![expect(clippy::print_stdout, reason = "a command-line tool")]

mod corpus;

use anyhow::Result;
use clap::Parser;
use quorate_rules::Bug;
use quorate_simulation::{
    Options,
    fuzz::bridge,
    run,
    suite::{hunt, run_seeds},
};
use rand_chacha::{
    ChaCha20Rng,
    rand_core::{RngCore as _, SeedableRng as _},
};
use std::{
    collections::BTreeMap,
    ops::Range,
    path::PathBuf,
    process::ExitCode,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread::available_parallelism,
};

/// Simulates the whole federation under faults, from seeds.
#[derive(Debug, Parser)]
struct Arguments {
    /// How many seeds to run.
    #[arg(long, default_value_t = 200)]
    seeds: u64,
    /// The first seed.
    #[arg(long, default_value_t = 1)]
    first: u64,
    /// Threads; all cores if absent.
    #[arg(long)]
    threads: Option<usize>,
    /// Run one seed and print every event to standard error.
    #[arg(long)]
    replay: Option<u64>,
    /// Plant each known bug in turn and find it within so many seeds.
    #[arg(long)]
    bugs: Option<u64>,
    /// Have a wallet meet so many hostile bridges, one for each seed, in place of simulating a federation.
    #[arg(long)]
    bridges: Option<u64>,
    /// Write the seeds of the fuzz corpora, from real runs, under this directory.
    #[arg(long)]
    corpus: Option<PathBuf>,
    /// Write the summary to a file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(directory) = &arguments.corpus {
        corpus::write(directory)?;
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(bridges) = arguments.bridges {
        let last = arguments.first.saturating_add(bridges);
        return Ok(if meet_bridges(arguments.first..last) { ExitCode::SUCCESS } else { ExitCode::FAILURE });
    }
    let clean = match (arguments.replay, arguments.bugs) {
        (Some(seed), _) => replay(seed),
        (None, Some(seeds)) => hunt_all(seeds, arguments.json)?,
        (None, None) => simulate(arguments)?,
    };
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn simulate(arguments: Arguments) -> Result<bool> {
    let threads = arguments.threads.unwrap_or_else(|| available_parallelism().map_or(1, usize::from));
    let summary = run_seeds(arguments.first, arguments.seeds, threads);
    for (fault, count) in &summary.faults.0 {
        println!("{count:>10}  {}", serde_json::to_string(fault)?.trim_matches('"'));
    }
    println!(
        "{} seeds ({} compared with a second run), {} events, {} statements checked, {} final transactions",
        summary.seeds, summary.compared, summary.events, summary.checks, summary.finals
    );
    println!(
        "{:.0} s simulated in {:.1} s on {threads} threads: {:.0} times real time on one core, {:.0} seeds a minute",
        summary.simulated_s,
        summary.wall_s,
        summary.simulated_s / summary.cpu_s.max(0.001),
        60.0 * summary.seeds_f64() / summary.wall_s.max(0.001),
    );
    if let Some(path) = arguments.json {
        std::fs::write(path, serde_json::to_vec_pretty(&summary)?)?;
    }
    for (seed, what) in &summary.failures {
        println!("seed {seed} broke an invariant: {what}\n  replay it: npm run sim -- --replay {seed}");
    }
    let missing = summary.missing();
    if !missing.is_empty() {
        println!("these faults never fired: {missing:?}");
    }
    Ok(summary.is_clean())
}

/// What the fuzz target `bridge` does, with bytes from seeds: for who has no fuzzer.
fn meet_bridges(seeds: Range<u64>) -> bool {
    let (next, failed) = (AtomicU64::new(seeds.start), Mutex::new(Vec::new()));
    let meet = |seed| {
        let mut random = ChaCha20Rng::seed_from_u64(seed);
        let mut bytes = vec![0; 64 << (seed % 5)];
        random.fill_bytes(&mut bytes);
        bridge(&bytes);
    };
    std::thread::scope(|scope| {
        for _ in 0..available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if !seeds.contains(&seed) {
                        return;
                    }
                    if std::panic::catch_unwind(|| meet(seed)).is_err() {
                        failed.lock().unwrap_or_else(PoisonError::into_inner).push(seed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap_or_else(PoisonError::into_inner);
    println!("{} hostile bridges, {} of which broke the wallet", seeds.end - seeds.start, failed.len());
    for seed in &failed {
        println!("  meet it again: npm run sim -- --first {seed} --bridges 1");
    }
    failed.is_empty()
}

fn replay(seed: u64) -> bool {
    let report = run(Options { seed, verbose: true, ..Options::default() });
    println!("seed {seed}: {} events, trace {}", report.events, report.trace);
    if let Some(what) = &report.violation {
        println!("seed {seed} broke an invariant: {what}");
    }
    report.violation.is_none()
}

fn hunt_all(seeds: u64, json: Option<PathBuf>) -> Result<bool> {
    let (next, found) = (AtomicUsize::new(0), Mutex::new(BTreeMap::new()));
    std::thread::scope(|scope| {
        for _ in 0..available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(bug) = Bug::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let catch = hunt(*bug, seeds);
                    found.lock().unwrap_or_else(PoisonError::into_inner).insert(*bug, catch);
                }
            });
        }
    });
    let mut caught = Vec::new();
    let mut missed = Vec::new();
    for (bug, catch) in found.into_inner().unwrap_or_else(PoisonError::into_inner) {
        match catch {
            Some(catch) => {
                println!("{bug:?}: seed {} after {:.1} s: {}", catch.seed, catch.seconds, catch.violation);
                caught.push(catch);
            }
            None => {
                println!("{bug:?}: NOT FOUND in {seeds} seeds");
                missed.push(bug);
            }
        }
    }
    println!("{} of {} planted bugs found", caught.len(), Bug::ALL.len());
    if let Some(path) = json {
        std::fs::write(path, serde_json::to_vec_pretty(&caught)?)?;
    }
    Ok(missed.is_empty())
}
