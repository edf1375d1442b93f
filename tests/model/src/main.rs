//! `model`: explores the protocol and its broken variants, and says how far it came.

#![expect(clippy::print_stdout, reason = "a command-line tool")]

use anyhow::{Result, ensure};
use clap::Parser;
use quorate_model::{
    Protocol, Variant,
    deadlines::{Broken, Deadlines, First},
};
use serde_json::json;
use stateright::{Checker as _, Model as _};
use std::{path::PathBuf, thread::available_parallelism, time::Instant};

/// Explores the model of votes, commits, releases and forced transactions.
#[derive(Debug, Parser)]
struct Arguments {
    /// Most states of three transactions over two outpoints.
    #[arg(long, default_value_t = 400_000)]
    states: usize,
    /// Write the figures to a file as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

const BROKEN: [Variant; 6] = [
    Variant::ReleaseByTimer,
    Variant::MajorityOfReports,
    Variant::NoSyncBeforeSend,
    Variant::FinalAfterPhase1,
    Variant::PromiseHidesCommit,
    Variant::VoidAtWill,
];

/// Each with the configuration in which it shows.
const BROKEN_DEADLINES: [(First, Broken); 5] = [
    (First::Payment, Broken::LateTaken),
    (First::Payment, Broken::NoMargin),
    (First::Payment, Broken::ChildIgnoresItsDelay),
    (First::Home, Broken::HomePaysAtOnce),
    (First::Sole, Broken::AttestedParent),
];

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let threads = available_parallelism().map_or(1, usize::from);
    let started = Instant::now();
    let small =
        Protocol::two_on_one(Variant::Correct).checker().threads(threads).symmetry().spawn_dfs().join();
    small.assert_properties();
    println!(
        "two transactions, one outpoint, rounds 0 to 1: all {} states hold (honest nodes taken for alike)",
        small.unique_state_count()
    );
    let large = Protocol::three_on_two(Variant::Correct).checker().threads(threads);
    let large = large.symmetry().target_state_count(arguments.states).spawn_dfs().join();
    for name in ["no two final transactions spend one outpoint", "no final transaction is released"] {
        ensure!(large.discovery(name).is_none(), "{name}: {:?}", large.discovery(name));
    }
    println!(
        "three transactions, two outpoints: {} states hold, to a depth of {}{}",
        large.unique_state_count(),
        large.max_depth(),
        if large.is_done() { "" } else { ", not all" }
    );
    for variant in BROKEN {
        let found = counterexample(Protocol::two_on_one(variant), threads)
            .or_else(|| counterexample(Protocol::three_on_two(variant), threads));
        let steps = found.ok_or_else(|| anyhow::anyhow!("{variant:?}: no counterexample"))?;
        println!("{variant:?}: broken in {} steps: {}", steps.len(), steps.join(", "));
    }
    let deadlines = deadlines()?;
    println!("{:.1} s", started.elapsed().as_secs_f64());
    if let Some(path) = arguments.json {
        let figures = json!({
            "small_states": small.unique_state_count(),
            "large_states": large.unique_state_count(),
            "deadline_states": deadlines,
            "variants": BROKEN.len() + BROKEN_DEADLINES.len(),
            "seconds": started.elapsed().as_secs_f64(),
        });
        std::fs::write(path, serde_json::to_vec_pretty(&figures)?)?;
    }
    Ok(())
}

/// Explores deadlines and parents; gives the number of states.
fn deadlines() -> Result<usize> {
    let mut states = 0;
    for first in [First::Payment, First::Home, First::Sole] {
        let checked = Deadlines { first, broken: Broken::Nothing }.checker().spawn_bfs().join();
        checked.assert_properties();
        states += checked.unique_state_count();
    }
    println!("a payer with its recovery key, two payments, {states} states hold");
    for (first, broken) in BROKEN_DEADLINES {
        let checked = Deadlines { first, broken }.checker().spawn_bfs().join();
        let path = checked.discovery("no final payment is taken back");
        let path = path.ok_or_else(|| anyhow::anyhow!("{broken:?}: no counterexample"))?;
        let steps: Vec<_> = path.into_actions().iter().map(|action| format!("{action:?}")).collect();
        println!("{broken:?}: broken in {} steps: {}", steps.len(), steps.join(", "));
    }
    Ok(states)
}

fn counterexample(protocol: Protocol, threads: usize) -> Option<Vec<String>> {
    let checked = protocol.checker().threads(threads).target_state_count(2_000_000);
    let checked = checked.finish_when(stateright::HasDiscoveries::AnyFailures).spawn_bfs().join();
    let names = ["no two final transactions spend one outpoint", "no final transaction is released"];
    let path = names.iter().find_map(|name| checked.discovery(name))?;
    Some(path.into_actions().into_iter().map(|action| format!("{action:?}")).collect())
}
