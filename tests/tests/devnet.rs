//! `quorate-devnet`, as `npm start` runs it; its chain is accepted by Bitcoin Core.

use anyhow::{Context as _, Result};
use bitcoin::consensus::encode::serialize_hex;
use quorate_devnet::DevnetChain;
use quorate_node::chain::{Bitcoind, Chain as _};
use quorate_tests::{bitcoind, daemon::Daemon};
use serde_json::{Value, json};
use std::process::{Command, Stdio};

const DEVNET: &str = env!("CARGO_BIN_EXE_test-devnet");

fn devnet(directory: &std::path::Path) -> Result<Value> {
    let output = Command::new(DEVNET)
        .args(["--once", "--json", "--data-dir"])
        .arg(directory)
        .stderr(Stdio::inherit())
        .output()?;
    assert!(output.status.success());
    Ok(serde_json::from_slice(&output.stdout)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_devnet_pays_verifies_and_makes_a_chain_that_bitcoin_core_accepts() -> Result<()> {
    let directory = tempfile::tempdir()?;
    // Twice: the second run goes on with the federation and chain of the first.
    for _ in 0..2 {
        let timeline = devnet(directory.path())?;
        assert_eq!(timeline["verified"], true);
        assert_eq!((&timeline["n"], &timeline["quorum"]), (&json!(7), &json!(5)));
        let names: Vec<_> =
            timeline["steps"].as_array().context("steps")?.iter().map(|step| &step["name"]).collect();
        for expected in ["submitted", "votes 5/5", "verified by the payee"] {
            assert!(names.iter().any(|name| **name == expected), "{expected} in {names:?}");
        }
    }
    let chain = DevnetChain::open(directory.path())?;
    let Some(daemon) = bitcoind() else {
        eprintln!("skipped: no bitcoind in BITCOIND_EXE or PATH");
        return Ok(());
    };
    feed(&daemon, &chain).await
}

async fn feed(daemon: &std::path::Path, chain: &DevnetChain) -> Result<()> {
    let daemon = Daemon::start(daemon, &[])?;
    daemon.ready().await?;
    accepted(&daemon.rpc, chain).await
}

async fn accepted(core: &Bitcoind, chain: &DevnetChain) -> Result<()> {
    for (block, height) in chain.blocks().iter().zip(1_u32..) {
        let answer = core.call_raw("submitblock", json!([serialize_hex(block)])).await?;
        assert_eq!(answer, Value::Null, "block {height} is refused");
    }
    assert_eq!(Some(core.tip().await?), chain.block_hash(chain.height()));
    // The backend that nodes use reads the same from the daemon.
    let (_, height) = core.header(core.tip().await?).await?;
    assert_eq!(height, chain.height());
    let reward =
        chain.blocks().last().context("blocks")?.txdata.first().context("a coinbase")?.compute_txid();
    let coin = core.coin(bitcoin::OutPoint { txid: reward, vout: 0 }).await?.context("unspent")?;
    assert_eq!((coin.height, coin.coinbase), (height, true));
    Ok(())
}
