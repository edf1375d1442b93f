//! `npm run bench -- growth --blocks N`: how fast a node that was away reads so many full blocks, and how long it takes
//! to start on a chain with them.

use anyhow::{Context as _, Result};
use bitcoin::{Amount, OutPoint, ScriptBuf, Transaction, TxOut};
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

/// Blocks with a transaction each, and the next one from its first output, or from another reward. The others hold
/// data, as long as a Taproot output: the embedded chain, which keeps coins in memory, has none of them.
fn mine(cluster: &Cluster, count: u32) -> Result<()> {
    let data = TxOut { value: Amount::ZERO, script_pubkey: ScriptBuf::new_op_return([7; 32]) };
    // A reward is enough for some fifty thousand.
    let rewards = count / 20_000 + 1;
    cluster.chain.mine(100 + rewards, &nobody())?;
    let blocks = cluster.chain.blocks().into_iter().rev().skip(100);
    let mut rewards = blocks.filter_map(|block| {
        let reward = block.txdata.first()?;
        Some((OutPoint { txid: reward.compute_txid(), vout: 0 }, reward.output.first()?.value))
    });
    let (mut coin, mut left) = (OutPoint::null(), Amount::ZERO);
    for _ in 0..count {
        if left <= FEE * 2 {
            (coin, left) = rewards.next().context("a reward that is mature")?;
        }
        left -= FEE;
        let mut outputs = vec![data.clone(); usize::try_from(OUTPUTS)?];
        if let Some(first) = outputs.first_mut() {
            *first = TxOut { value: left, script_pubkey: nobody() };
        }
        let transaction: Transaction = nobodys_spend(coin, outputs);
        coin = OutPoint { txid: transaction.compute_txid(), vout: 0 };
        cluster.chain.submit(transaction)?;
        cluster.chain.mine(1, &nobody())?;
    }
    Ok(())
}
