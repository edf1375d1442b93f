//! Drills: what goes wrong in years, on real processes and Bitcoin Core, while wallets pay. Nothing final is lost, and
//! the books agree with the chain.

use anyhow::{Context as _, Result, ensure};
use quorate_tests::{bitcoind, daemon::Daemon, drill::Drill, operator::status, operator::status_where};
use serde_json::Value;
use std::time::Duration;

const NODE: &str = env!("CARGO_BIN_EXE_test-node");

async fn drill(nodes: u16) -> Result<Option<Drill>> {
    let Some(binary) = bitcoind() else {
        eprintln!("skipped: no bitcoind, neither in BITCOIND_EXE nor on the PATH");
        return Ok(None);
    };
    Ok(Some(Drill::start(Daemon::start(&binary, &[])?, NODE, nodes, 4).await?))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_is_killed_amid_payments_and_comes_back() -> Result<()> {
    let Some(mut drill) = drill(4).await? else { return Ok(()) };
    let mut load = drill.load();
    for _ in 0..3 {
        load.paid(10).await?;
        drill.cluster.chain.kill().await?;
        // Nodes know the coins, and the chain has not gone on: payments do not stop.
        load.paid(5).await?;
        drill.cluster.chain.start_again(&[]).await?;
        drill.cluster.chain.mine(1).await?;
    }
    let done = load.stop().await?;
    drill.settle().await?;
    drill.check_books(&done).await
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_killed_amid_payments_and_comes_back() -> Result<()> {
    let Some(mut drill) = drill(4).await? else { return Ok(()) };
    let mut load = drill.load();
    for _ in 0..2 {
        load.paid(10).await?;
        for node in 1..=4 {
            drill.cluster.kill(node)?;
        }
        drill.cluster.chain.kill().await?;
        drill.cluster.chain.start_again(&[]).await?;
        for node in 1..=4 {
            drill.cluster.start_node(node, None)?;
        }
        for home in drill.cluster.files.nodes.clone() {
            status(&home, "voting").await?;
        }
        drill.cluster.chain.mine(1).await?;
    }
    load.paid(10).await?;
    let done = load.stop().await?;
    drill.settle().await?;
    drill.check_books(&done).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_node_after_the_other_is_away_under_load() -> Result<()> {
    let Some(mut drill) = drill(7).await? else { return Ok(()) };
    let mut load = drill.load();
    for round in 0..10 {
        let node = round % 7 + 1;
        drill.cluster.kill(node)?;
        load.paid(5).await?;
        drill.cluster.start_node(node, None)?;
        let home = drill.cluster.files.nodes.get(node - 1).context("a node")?;
        status(home, "voting").await?;
        drill.cluster.chain.mine(1).await?;
    }
    let done = load.stop().await?;
    drill.settle().await?;
    drill.check_books(&done).await
}

/// Two of seven are cut off, stopped as a machine that is suspended is, while blocks come and payments go on.
#[tokio::test(flavor = "multi_thread")]
async fn two_of_seven_are_cut_off_and_catch_up() -> Result<()> {
    let Some(mut drill) = drill(7).await? else { return Ok(()) };
    let mut load = drill.load();
    load.paid(5).await?;
    let away = [2, 5];
    for node in away {
        drill.cluster.signal(node, "STOP")?;
    }
    for _ in 0..6 {
        load.paid(5).await?;
        drill.cluster.chain.mine(1).await?;
    }
    // Longer than connections live, and than a vote is waited for.
    let missed = |status: &Value| {
        let silence =
            |node: &str| status.pointer(&format!("/seconds_since_heard/{node}")).and_then(Value::as_f64);
        ["2", "5"].iter().all(|node| silence(node) > Some(32.0))
    };
    let first = drill.cluster.files.nodes.first().context("a node")?.clone();
    // Blocks come meanwhile: without any, payments would soon hang on more unconfirmed ones than the network relays.
    while !missed(&status(&first, "voting").await?) {
        load.paid(20).await?;
        drill.cluster.chain.mine(1).await?;
    }
    drill.cluster.chain.reorganise(3, vec![]).await?;
    drill.cluster.chain.mine(1).await?;
    load.paid(5).await?;
    for node in away {
        drill.cluster.signal(node, "CONT")?;
    }
    let height = drill.cluster.chain.height().await?;
    for node in away {
        let home = drill.cluster.files.nodes.get(node - 1).context("a node")?;
        let caught_up = |status: &Value| {
            status.get("standing").is_some_and(|standing| standing == "voting")
                && status.pointer("/tip/height").and_then(Value::as_u64) >= Some(u64::from(height))
        };
        status_where(home, "caught up", caught_up).await?;
    }
    // The quorum is five of seven: these two are needed now.
    for node in [1, 3] {
        drill.cluster.kill(node)?;
    }
    load.paid(5).await?;
    let done = load.stop().await?;
    drill.settle().await?;
    drill.check_books(&done).await
}

/// Chains of the daemon that leave each other, up to six blocks deep, while wallets pay.
#[tokio::test(flavor = "multi_thread")]
async fn reorganisations_under_load_lose_nothing_final() -> Result<()> {
    let Some(drill) = drill(4).await? else { return Ok(()) };
    let mut load = drill.load();
    for depth in 1..=6 {
        load.paid(8).await?;
        drill.cluster.chain.mine(depth).await?;
        load.paid(3).await?;
        drill.cluster.chain.reorganise(depth, vec![]).await?;
    }
    let done = load.stop().await?;
    ensure!(done.payments() >= 60, "{}", done.payments());
    drill.settle().await?;
    drill.check_books(&done).await
}

/// A mempool that becomes dear, with payments in it, and cheap again.
#[tokio::test(flavor = "multi_thread")]
async fn a_mempool_that_becomes_dear_delays_and_loses_nothing() -> Result<()> {
    let Some(mut drill) = drill(4).await? else { return Ok(()) };
    let mut load = drill.load();
    load.paid(20).await?;
    drill.cluster.chain.restart(&["-minrelaytxfee=0.0001"]).await?;
    // Wallets are told the new floor with the next tip, and pay it.
    drill.cluster.chain.mine(1).await?;
    load.paid(10).await?;
    drill.cluster.chain.mine(1).await?;
    tokio::time::timeout(Duration::from_secs(60), drill.cluster.chain.restart(&[])).await??;
    drill.cluster.chain.mine(1).await?;
    let done = load.stop().await?;
    drill.settle().await?;
    drill.check_books(&done).await
}
