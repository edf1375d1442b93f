//! `npm run bench -- growth`: what a node holds after so many payments: memory, disk, start-up time, CPU time of a
//! payment; or after so many accounts. Nodes are processes of their own; the chain is the embedded one.

#![expect(clippy::print_stdout, reason = "the figures")]

mod accounts;
mod blocks;
mod records;
mod sessions;

use anyhow::{Context as _, Result, ensure};
use bitcoin::Amount;
use clap::Parser;
use quorate::{
    client::{Client, WebSocket},
    wallet::SecretWords,
};
use quorate_tests::{
    Cluster, eventually,
    operator::{status, status_where},
    process::{cpu, memory, on_disk},
    wallets::{federation, fund, nobody, open_wallet, request, wait_spendable},
};
use serde_json::{Value, json};
use std::{
    path::Path,
    time::{Duration, Instant},
};
use tokio::task::JoinSet;

/// Nodes.
const NODES: u16 = 4;
/// Wallets that pay at a time.
const WALLETS: usize = 8;
/// Coins of each, so that a payment need not wait for the block of the one before.
const COINS: usize = 10;
const COIN: Amount = Amount::from_sat(10_000_000);
/// More than half a coin: what is received is paid on, and the number of coins stays as it is.
const PAID: Amount = Amount::from_sat(6_000_000);
/// Blocks after each round of payments: what is settled is 288 blocks deep, so ten rounds are live at a time.
const BLOCKS_PER_ROUND: u32 = 30;
/// Payments of each wallet in a round.
const PER_BLOCK: usize = 8;
/// Blocks after which everything is settled.
const SETTLE: u32 = 300;

/// What a node holds as it serves.
#[derive(Parser)]
struct Arguments {
    /// Where to stop and measure: payments since the start, in whole rounds of 64
    #[arg(long, value_delimiter = ',', default_values_t = [128, 1_024, 10_048])]
    payments: Vec<usize>,
    /// Measure a node after it got to know so many accounts, each with a coin, in place of payments
    #[arg(long)]
    accounts: Option<u32>,
    /// Measure a node that has so many full blocks to read, in place of payments
    #[arg(long)]
    blocks: Option<u32>,
    /// Measure a node whose archive has so many settled payments, in place of paying them
    #[arg(long)]
    records: Option<usize>,
    /// Measure a bridge with so many idle sessions, in place of payments
    #[arg(long)]
    sessions: Option<usize>,
    /// Open these sessions at a bridge and keep them, which the measuring process does
    #[arg(long, hide = true, requires = "federation")]
    dial: Option<String>,
    /// The federation of that bridge
    #[arg(long, hide = true)]
    federation: Option<String>,
    /// Print JSON, one object per line
    #[arg(long)]
    json: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let (Some(url), Some(federation)) = (&arguments.dial, &arguments.federation) {
        return sessions::keep(url, federation, arguments.sessions.unwrap_or_default()).await;
    }
    let node = std::env::current_exe()?.with_file_name("test-node");
    let mut cluster = Cluster::start(node, NODES).await?;
    if let Some(count) = arguments.accounts {
        return accounts::measure(cluster, count, arguments.json).await;
    }
    if let Some(count) = arguments.blocks {
        return blocks::measure(cluster, count, arguments.json).await;
    }
    if let Some(count) = arguments.records {
        return records::measure_with(cluster, count, arguments.json).await;
    }
    if let Some(count) = arguments.sessions {
        return sessions::measure(&cluster, count, arguments.json).await;
    }
    let payers = payers(&cluster).await?;
    if !arguments.json {
        println!("payments  memory    store    index  archive per payment  start  CPU per payment and node");
    }
    let mut paid = 0;
    print(&measure(&mut cluster, 0, None).await?, arguments.json);
    for wanted in arguments.payments {
        let wanted = wanted.next_multiple_of(WALLETS * PER_BLOCK);
        ensure!(wanted > paid, "in ascending order");
        let (before, count) = (mean_cpu(&cluster)?, wanted - paid);
        pay(&cluster, &payers, count).await?;
        let spent = (mean_cpu(&cluster)? - before).as_secs_f64() * 1e6 / f64::from(u32::try_from(count)?);
        paid = wanted;
        print(&measure(&mut cluster, paid, Some(spent)).await?, arguments.json);
    }
    Ok(())
}

/// Each row when it is measured: the next one may be an hour away.
fn print(row: &Value, json: bool) {
    if json {
        return println!("{row}");
    }
    let figure = |name: &str| row.get(name).and_then(Value::as_f64).unwrap_or(0.0);
    println!(
        "{:>8}  {:>3.0} MB  {:>4.0} KB  {:>4.0} KB  {:>8.0} bytes      {:>3.0} ms  {:>6.0} us",
        figure("payments"),
        figure("memory_bytes") / 1e6,
        figure("store_bytes") / 1e3,
        figure("index_bytes") / 1e3,
        figure("archive_bytes_per_payment"),
        figure("start_ms"),
        figure("cpu_us_per_payment"),
    );
}

async fn payers(cluster: &Cluster) -> Result<Vec<Client>> {
    let federation = federation(cluster).await?;
    let mut payers = Vec::new();
    let mut addresses = Vec::new();
    for _ in 0..WALLETS {
        let transport = WebSocket::new(cluster.url());
        let payer = open_wallet(&federation, &SecretWords::generate()?, transport).await?;
        addresses.push(payer.next_address().await?);
        payers.push(payer);
    }
    fund(&cluster.chain, &addresses, COINS, COIN)?;
    for payer in &payers {
        wait_spendable(payer, COIN * u64::try_from(COINS)?).await?;
    }
    Ok(payers)
}

/// Each wallet pays the next one, some payments at a time and then a block.
async fn pay(cluster: &Cluster, payers: &[Client], count: usize) -> Result<()> {
    for _round in 0..count / (WALLETS * PER_BLOCK) {
        let mut paying = JoinSet::new();
        for (index, payer) in payers.iter().enumerate() {
            let payee = payers.get((index + 1) % payers.len()).context("a payee")?;
            let (payer, to) = (payer.clone(), payee.unused_address().await?);
            paying.spawn(async move {
                for _ in 0..PER_BLOCK {
                    payer.pay(request(&to, PAID)?).await?;
                }
                Ok::<_, anyhow::Error>(())
            });
        }
        while let Some(paid) = paying.join_next().await {
            paid??;
        }
        mine(cluster).await?;
    }
    Ok(())
}

/// Blocks with everything that nodes have broadcast.
async fn mine(cluster: &Cluster) -> Result<()> {
    eventually("the round is broadcast and mined", || {
        let mined = cluster.chain.mine(1, &nobody()).is_ok();
        mined && cluster.chain.mempool().is_empty()
    })
    .await?;
    cluster.chain.mine(BLOCKS_PER_ROUND, &nobody())?;
    let height = cluster.chain.height();
    // A node that is a round behind refuses the deadlines of those who are not.
    for home in &cluster.files.nodes {
        status_where(home, "at the tip", |status| status.pointer("/tip/height") == Some(&height.into()))
            .await?;
    }
    Ok(())
}

/// Settles everything, and looks at the first node.
async fn measure(cluster: &mut Cluster, payments: usize, spent: Option<f64>) -> Result<Value> {
    let home = cluster.files.nodes.first().context("a node")?.clone();
    eventually("everything is mined", || {
        let mined = cluster.chain.mine(1, &nobody()).is_ok();
        mined && cluster.chain.mempool().is_empty()
    })
    .await?;
    cluster.chain.mine(SETTLE, &nobody())?;
    status_where(&home, "settled", |status| status.pointer("/held/transactions") == Some(&0.into())).await?;
    let memory = memory(cluster.pid(1).context("it runs")?)?;
    cluster.kill(1)?;
    let (store, index) = (on_disk(&home.join("store.redb"))?, on_disk(&home.join("index.redb"))?);
    let archived = archived(&home)?;
    let started = Instant::now();
    cluster.start_node(1, None)?;
    status(&home, "voting").await?;
    let start = started.elapsed();
    cluster.connected(usize::from(NODES)).await?;
    let per_payment = (payments > 0).then(|| archived / u64::try_from(payments).unwrap_or(u64::MAX));
    Ok(json!({
        "payments": payments,
        "memory_bytes": memory,
        "store_bytes": store,
        "index_bytes": index,
        "archive_bytes_per_payment": per_payment,
        "start_ms": u64::try_from(start.as_millis())?,
        "cpu_us_per_payment": spent,
    }))
}

/// Bytes of the archive's rows, as `store stats` counts them.
fn archived(home: &Path) -> Result<u64> {
    let node = std::env::current_exe()?.with_file_name("test-node");
    let home = home.to_str().context("a path")?;
    let told = quorate_tests::operator::command(node, &["store", "stats", home])?;
    let rows = told.lines().filter(|line| {
        ["archive", "history", "settled", "proofs"].iter().any(|table| line.trim_start().starts_with(table))
    });
    let bytes = rows.filter_map(|line| line.split_whitespace().nth(3)?.parse::<u64>().ok());
    Ok(bytes.sum())
}

/// CPU time of a node, the mean of all.
fn mean_cpu(cluster: &Cluster) -> Result<Duration> {
    let mut sum = Duration::ZERO;
    for number in 1..=usize::from(NODES) {
        sum += cpu(cluster.pid(number).context("it runs")?)?;
    }
    Ok(sum / u32::from(NODES))
}
