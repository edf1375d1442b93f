//! `npm run bench -- growth --blocks N`: how fast a node that was away reads so many full blocks, and how long it takes
//! to start on a chain with them.

use anyhow::{Context as _, Result, ensure};
use bitcoin::{Amount, OutPoint, Transaction, TxOut};
use quorate_tests::{
    Cluster,
    operator::status_where,
    process::cpu,
    wallets::{nobody, nobodys_spend},
};
use serde_json::json;
use std::time::Instant;

/// Outputs of a block, besides its reward.
const OUTPUTS: u32 = 2_000;
const COIN: Amount = Amount::from_sat(1_000);
const FEE: Amount = Amount::from_sat(100_000);

pub(crate) async fn measure(mut cluster: Cluster, count: u32, as_json: bool) -> Result<()> {
    let home = cluster.files.nodes.first().context("a node")?.clone();
    // The others would read along.
    for number in 1..=cluster.files.nodes.len() {
        cluster.kill(number)?;
    }
    mine(&cluster, count)?;
    let height = cluster.chain.height();
    let started = Instant::now();
    cluster.start_node(1, None)?;
    status_where(&home, "at the tip", |status| status.pointer("/tip/height") == Some(&height.into())).await?;
    let read = started.elapsed().as_secs_f64();
    let spent = cpu(cluster.pid(1).context("it runs")?)?.as_secs_f64();
    cluster.kill(1)?;
    let started = Instant::now();
    cluster.start_node(1, None)?;
    status_where(&home, "up", |status| status.pointer("/tip/height").is_some()).await?;
    let start = started.elapsed();
    let (rate, each) = (f64::from(count) / read, spent * 1e3 / f64::from(count));
    if as_json {
        let start = u64::try_from(start.as_millis())?;
        println!(
            "{}",
            json!({"blocks": count, "blocks_per_s": rate, "cpu_ms_per_block": each, "start_ms": start})
        );
        return Ok(());
    }
    println!("blocks  outputs of each  blocks per second  CPU per block  start");
    println!("{count:>6}  {OUTPUTS:>15}  {rate:>17.0}  {each:>10.2} ms  {:>3} ms", start.as_millis());
    Ok(())
}

/// Blocks with a transaction each that pays to nobody, and the next one from its last output.
fn mine(cluster: &Cluster, count: u32) -> Result<()> {
    cluster.chain.mine(101, &nobody())?;
    let block = cluster.chain.blocks().into_iter().rev().nth(100).context("a block that is mature")?;
    let reward = block.txdata.first().context("a reward")?;
    let mut coin = OutPoint { txid: reward.compute_txid(), vout: 0 };
    let mut left = reward.output.first().context("its output")?.value;
    for _ in 0..count {
        let paid = COIN * u64::from(OUTPUTS - 1) + FEE;
        ensure!(left > paid, "one reward is enough for fewer blocks");
        left -= paid;
        let mut outputs = vec![TxOut { value: left, script_pubkey: nobody() }];
        for _ in 1..OUTPUTS {
            outputs.push(TxOut { value: COIN, script_pubkey: nobody() });
        }
        let transaction: Transaction = nobodys_spend(coin, outputs);
        coin = OutPoint { txid: transaction.compute_txid(), vout: 0 };
        cluster.chain.submit(transaction)?;
        cluster.chain.mine(1, &nobody())?;
    }
    Ok(())
}
