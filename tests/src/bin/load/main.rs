//! `npm run bench -- load`: what a payment takes, in CPU time of each process and in latency. Every node is a process,
//! the bridge is one, the chain is this one, and the wallets are another: a driver that sends at the times that it was
//! given, whether or not the payments before are done, and counts from these times.

#![expect(clippy::print_stdout, reason = "the figures")]

mod compare;
mod driver;

use anyhow::{Context as _, Result};
use bitcoin::{Amount, Txid};
use clap::{Parser, ValueEnum};
use driver::{Driver, Order, Pace, Told};
use quorate_tests::{
    Cluster,
    distance::connections,
    operator::{metric, status_where},
    process::{cpu, written},
    wallets::{fund, nobody, owners_script, pay_out},
};
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    time::Duration,
};

/// Payments that are not counted: connections are made, caches are filled, and what is checked once is checked.
const WARM_UP: usize = 64;
/// How long nodes are watched while nobody pays.
const IDLE: Duration = Duration::from_secs(5);
/// What a wallet's coins have, and what is paid of one.
const COIN: Amount = Amount::from_sat(100_000);
const PAID: Amount = Amount::from_sat(60_000);
/// Coins that one block's transaction makes. Each such block is worth less than the one before.
const FUNDED_AT_ONCE: usize = 2_000;
/// A coin in sole custody.
const SOLE: Amount = Amount::from_sat(10_000);

/// What a payment takes.
#[derive(Parser)]
struct Arguments {
    /// Sizes of the federation
    #[arg(long, value_delimiter = ',', default_values_t = [4, 7])]
    nodes: Vec<u16>,
    /// Kinds of payments
    #[arg(long, value_delimiter = ',', default_values_t = [Kind::Joint, Kind::Attested])]
    kinds: Vec<Kind>,
    /// Payments of each measurement
    #[arg(long, default_value_t = 500)]
    payments: usize,
    /// Payments a second; 0 is none
    #[arg(long, value_delimiter = ',', default_values_t = [10.0])]
    rates: Vec<f64>,
    /// Payments that are under way at a time, the next one as one is done; 0 is none
    #[arg(long, value_delimiter = ',', default_values_t = [1, 16])]
    in_flight: Vec<usize>,
    /// Coins that a joint payment is of
    #[arg(long, value_delimiter = ',', default_values_t = [1])]
    inputs: Vec<usize>,
    /// Milliseconds that a round trip between two nodes takes, beside what this machine takes
    #[arg(long, value_delimiter = ',', default_values_t = [0])]
    apart: Vec<u64>,
    /// Milliseconds of a round trip between a wallet and the bridge
    #[arg(long, default_value_t = 0)]
    away: u64,
    /// The program of the nodes, in place of the one beside this
    #[arg(long)]
    node: Option<PathBuf>,
    /// Another program of the nodes, such as of an older version, to compare it with: both are measured in turn
    #[arg(long)]
    against: Option<PathBuf>,
    /// How often each of the two is measured
    #[arg(long, default_value_t = 3)]
    turns: usize,
    /// Print JSON, one object per line
    #[arg(long)]
    json: bool,
    /// Be the wallets at this bridge
    #[arg(long, hide = true, requires = "federation")]
    drive: Option<String>,
    /// The federation of that bridge
    #[arg(long, hide = true)]
    federation: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "snake_case")]
enum Kind {
    /// From a joint account
    Joint,
    /// Of a coin in its owner's sole custody
    Attested,
}

impl std::fmt::Display for Kind {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(if *self == Self::Joint { "joint" } else { "attested" })
    }
}

/// CPU time in microseconds per payment, latency in milliseconds.
#[derive(Serialize)]
struct Row {
    nodes: u16,
    kind: Kind,
    pace: Pace,
    /// Coins that each is of.
    inputs: usize,
    /// Round trips in milliseconds: between nodes, and from the wallets to the bridge.
    apart: u64,
    away: u64,
    payments: usize,
    /// Payments a second that were done.
    done: f64,
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
    cpu_nodes: f64,
    cpu_bridge: f64,
    cpu_wallets: f64,
    /// Syncs of its store, and bytes that it wrote into files, of each node.
    syncs: f64,
    written: f64,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    if let (Some(url), Some(federation)) = (&arguments.drive, &arguments.federation) {
        return driver::run(url, federation).await;
    }
    let beside = std::env::current_exe()?.with_file_name("test-node");
    let node = arguments.node.clone().unwrap_or(beside);
    if !arguments.json {
        println!("{:>82}{:>34}", "latency in ms", "CPU per payment in us");
        println!(
            "nodes  kind      pace          inputs  apart  away  payments     done     p50    p90    p99    max    all  nodes  bridge  wallets  syncs   written"
        );
    }
    for nodes in &arguments.nodes {
        let Some(against) = &arguments.against else {
            for apart in &arguments.apart {
                run(&node, *nodes, *apart, &arguments).await?;
            }
            continue;
        };
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for _ in 0..arguments.turns {
            before.push(run(against, *nodes, 0, &arguments).await?);
            after.push(run(&node, *nodes, 0, &arguments).await?);
        }
        compare::print(*nodes, &before, &after, arguments.json);
    }
    Ok(())
}

/// All measurements of a federation of nodes of this program.
async fn run(program: &Path, nodes: u16, apart: u64, arguments: &Arguments) -> Result<Vec<Row>> {
    // A round trip is two ways.
    let cluster = Cluster::start_apart(program, nodes, Duration::from_micros(apart * 500)).await?;
    let idle = idle(&cluster).await?;
    if arguments.json {
        println!("{}", serde_json::json!({"nodes": nodes, "idle_cpu_of_each_node": idle}));
    } else {
        println!("{nodes:>5}  idle: each node takes {:.2} % of a core", idle * 100.0);
    }
    let mut rows = Vec::new();
    for kind in &arguments.kinds {
        let rates = arguments.rates.iter().filter(|rate| **rate > 0.0).map(|rate| Pace::Rate(*rate));
        let in_flight = arguments.in_flight.iter().filter(|count| **count > 0);
        for pace in in_flight.map(|count| Pace::InFlight(*count)).chain(rates) {
            for inputs in arguments
                .inputs
                .iter()
                .filter(|inputs| **inputs == 1 || (**inputs > 1 && *kind == Kind::Joint))
            {
                let each = Each { kind: *kind, pace, inputs: *inputs, away: arguments.away };
                let row = Row { apart, ..measure(&cluster, each, arguments.payments).await? };
                print(&row, arguments.json)?;
                rows.push(row);
            }
        }
    }
    Ok(rows)
}

fn print(row: &Row, json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string(row)?);
        return Ok(());
    }
    let Row { nodes, kind, pace, inputs, apart, away, payments, .. } = row;
    let Row { done, p50, p90, p99, max, cpu_nodes, cpu_bridge, cpu_wallets, syncs, written, .. } = row;
    let all = cpu_nodes + cpu_bridge + cpu_wallets;
    println!(
        "{nodes:>5}  {:<8}  {:<12}  {inputs:>6}  {apart:>5} {away:>5}  {payments:>8}  {done:>5.1}/s  {p50:>6.1} {p90:>6.1} {p99:>6.1} {max:>6.1}  {all:>5.0}  {cpu_nodes:>5.0}  {cpu_bridge:>5.0}  {cpu_wallets:>5.0}  {syncs:>5.1}  {:>5.0} KB",
        kind.to_string(),
        pace.to_string(),
        written / 1e3,
    );
    Ok(())
}

/// The part of a core that a node takes while nobody pays.
async fn idle(cluster: &Cluster) -> Result<f64> {
    let before = nodes_cpu(cluster)?;
    tokio::time::sleep(IDLE).await;
    let spent = nodes_cpu(cluster)? - before;
    Ok(spent.as_secs_f64() / IDLE.as_secs_f64() / f64::from(u32::try_from(cluster.files.nodes.len())?))
}

/// What is measured.
#[derive(Clone, Copy)]
struct Each {
    kind: Kind,
    pace: Pace,
    inputs: usize,
    /// Milliseconds of a round trip to the bridge.
    away: u64,
}

/// With new wallets, so that each payment is of confirmed coins.
async fn measure(cluster: &Cluster, each: Each, payments: usize) -> Result<Row> {
    let Each { kind, pace, inputs, away } = each;
    let count = WARM_UP + payments;
    let bridge = cluster.bridge.address();
    // Straight to the bridge, if there is no distance.
    let one_way = Duration::from_micros(away * 500);
    let bridge = if away == 0 { bridge } else { connections(bridge, one_way).await? };
    let mut driver = Driver::start(cluster, bridge).await?;
    let coins = match kind {
        Kind::Joint => {
            let addresses = driver.addresses();
            let mut left = count.div_ceil(addresses.len()) * inputs;
            while left > 0 {
                let now = left.min(FUNDED_AT_ONCE / addresses.len());
                fund(&cluster.chain, addresses, now, COIN)?;
                left -= now;
            }
            None
        }
        Kind::Attested => Some(sole_coins(cluster, count)?),
    };
    let height = cluster.chain.height();
    for home in &cluster.files.nodes {
        status_where(home, "at the tip", |status| status.pointer("/tip/height") == Some(&height.into()))
            .await?;
    }
    let order = |payments, from| Order { payments, pace, inputs, coins, from };
    driver.drive(&order(WARM_UP, 0)).await?;
    let before = Spent::now(cluster, &driver).await?;
    let Told { seconds, p50, p90, p99, max } = driver.drive(&order(payments, WARM_UP)).await?;
    let spent = Spent::now(cluster, &driver).await?;
    let count = f64::from(u32::try_from(payments)?);
    let each = |after: Duration, before: Duration| (after - before).as_secs_f64() * 1e6 / count;
    let many = count * f64::from(u32::try_from(cluster.files.nodes.len())?);
    Ok(Row {
        nodes: u16::try_from(cluster.files.nodes.len())?,
        kind,
        pace,
        inputs,
        apart: 0,
        away,
        payments,
        done: count / seconds,
        p50,
        p90,
        p99,
        max,
        cpu_nodes: each(spent.nodes, before.nodes),
        cpu_bridge: each(spent.bridge, before.bridge),
        cpu_wallets: each(spent.wallets, before.wallets),
        syncs: (spent.syncs - before.syncs) / many,
        written: (spent.written - before.written) / many,
    })
}

/// So many coins in sole custody, outputs of one transaction, confirmed.
fn sole_coins(cluster: &Cluster, count: usize) -> Result<Txid> {
    let first = cluster.chain.height() + 1;
    cluster.chain.mine(101, &nobody())?;
    let output = bitcoin::TxOut { value: SOLE, script_pubkey: owners_script() };
    let parent = pay_out(&cluster.chain, first, vec![output; count])?;
    cluster.chain.mine(1, &nobody())?;
    Ok(parent.compute_txid())
}

/// What was spent so far.
struct Spent {
    nodes: Duration,
    bridge: Duration,
    wallets: Duration,
    /// Of all nodes.
    syncs: f64,
    written: f64,
}

impl Spent {
    async fn now(cluster: &Cluster, driver: &Driver) -> Result<Self> {
        let (mut syncs, mut bytes) = (0.0, 0.0);
        for (home, number) in cluster.files.nodes.iter().zip(1..) {
            // An older program, to compare with, does not tell.
            syncs += metric(home, "quorate_node_store_commit_seconds_count").await.unwrap_or(f64::NAN);
            bytes += written(cluster.pid(number).context("it runs")?)?;
        }
        let (bridge, wallets) = (cpu(cluster.bridge.pid())?, cpu(driver.pid()?)?);
        Ok(Self { nodes: nodes_cpu(cluster)?, bridge, wallets, syncs, written: bytes })
    }
}

/// CPU time of all nodes so far.
fn nodes_cpu(cluster: &Cluster) -> Result<Duration> {
    let pids = (1..=cluster.files.nodes.len()).map(|number| cluster.pid(number).context("it runs"));
    pids.map(|pid| cpu(pid?)).sum()
}
