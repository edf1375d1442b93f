//! `npm run soak`: a federation on Bitcoin Core under payments for a while, with everything going wrong at once: nodes
//! and the daemon are killed, the chain is reorganised, the bridge is flooded. In the end the books have to agree with
//! the chain, and the nodes' memory has to be what it was.

#![expect(clippy::print_stdout, reason = "the report")]

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use quorate_tests::{bitcoind, daemon::Daemon, drill::Drill, operator::status};
use rand_chacha::{
    ChaCha20Rng,
    rand_core::{RngCore as _, SeedableRng as _},
};
use std::{
    collections::VecDeque,
    fs,
    time::{Duration, Instant},
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

/// Nodes.
const NODES: usize = 4;
/// Wallets that pay each other.
const WALLETS: usize = 6;
/// Connections of a flood.
const FLOOD: usize = 200;
/// Floods that are held open at a time.
const FLOODS_HELD: usize = 3;
/// Time between two things that go wrong.
const PERIOD: Duration = Duration::from_secs(10);
/// Blocks in that time: what is settled is 288 blocks deep, so that a minute and a half of payments are live.
const BLOCKS: u32 = 30;
/// What a node may hold more at the end than after a quarter of the time, in bytes.
const GROWTH_MAX: u64 = 64_000_000;

/// Payments, reorganisations, kills and floods at once.
#[derive(Parser)]
struct Arguments {
    /// How long
    #[arg(long, default_value_t = 3_600)]
    seconds: u64,
    /// What goes wrong when
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    Node(usize),
    Daemon,
    Reorganisation(u32),
    Flood,
    Blocks(u32),
}

impl Trouble {
    fn draw(rng: &mut ChaCha20Rng) -> Self {
        match rng.next_u32() % 8 {
            // The first one stays: what it holds at the end is what it is judged by.
            0 | 1 => Self::Node(usize::try_from(rng.next_u32()).unwrap_or(0) % (NODES - 1) + 2),
            2 => Self::Daemon,
            3 => Self::Reorganisation(rng.next_u32() % 3 + 1),
            4 | 5 => Self::Flood,
            _ => Self::Blocks(rng.next_u32() % 3 + 1),
        }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let Arguments { seconds, seed } = Arguments::parse();
    let Some(binary) = bitcoind() else { bail!("a soak needs Bitcoin Core: name it in BITCOIND_EXE") };
    let node = std::env::current_exe()?.with_file_name("test-node");
    let mut drill = Drill::start(Daemon::start(&binary, &[])?, node, 4, WALLETS).await?;
    let (mut rng, started) = (ChaCha20Rng::seed_from_u64(seed), Instant::now());
    let (mut early, mut load) = (None, drill.load());
    let mut floods = VecDeque::new();
    println!("seconds  payments  memory of nodes, and of bridge with wallets  trouble");
    while started.elapsed() < Duration::from_secs(seconds) {
        let trouble = Trouble::draw(&mut rng);
        let until = tokio::time::Instant::now() + PERIOD;
        make(&mut drill, trouble, &mut floods).await.with_context(|| format!("{trouble:?}"))?;
        if floods.len() > FLOODS_HELD {
            floods.pop_front();
        }
        drill.cluster.chain.mine(BLOCKS).await?;
        // As it does by itself once an hour: a kill costs no more than that.
        drill.cluster.chain.flush().await?;
        load.paid(1).await?;
        tokio::time::sleep_until(until).await;
        let nodes = memory(&drill)?;
        if early.is_none() && started.elapsed() >= Duration::from_secs(seconds) / 4 {
            early = Some(first(&nodes)?);
        }
        let all = nodes.into_iter().chain([resident(std::process::id())?]);
        let told: Vec<String> = all.map(|bytes| format!("{:.0}", mega(bytes))).collect();
        println!(
            "{:>7}  {:>8}  {:<43}  {trouble:?}",
            started.elapsed().as_secs(),
            load.done.payments(),
            format!("{} MB", told.join(" ")),
        );
    }
    let done = load.stop().await?;
    drill.settle().await?;
    drill.check_books(&done).await?;
    let (early, late) = (early.context("too short to compare memory")?, first(&memory(&drill)?)?);
    ensure!(
        late <= early.saturating_add(GROWTH_MAX),
        "memory of a node that was never killed grew from {:.0} to {:.0} MB",
        mega(early),
        mega(late)
    );
    println!(
        "{} payments, all of them in the chain; not paid at first: {:?}",
        done.payments(),
        done.refusals()
    );
    Ok(())
}

fn first(memory: &[u64]) -> Result<u64> {
    memory.first().copied().context("the first node runs")
}

fn mega(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes / 1_000).unwrap_or(u32::MAX)) / 1e3
}

/// Resident memory of the nodes. (This process is bridge and wallets; these keep their history.)
fn memory(drill: &Drill) -> Result<Vec<u64>> {
    (1..=NODES).filter_map(|node| drill.cluster.pid(node)).map(resident).collect()
}

fn resident(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").trim().parse::<u64>()? * 1_024)
}

async fn make(drill: &mut Drill, trouble: Trouble, floods: &mut VecDeque<Vec<TcpStream>>) -> Result<()> {
    let cluster = &mut drill.cluster;
    match trouble {
        Trouble::Node(number) => {
            cluster.kill(number)?;
            cluster.start_node(number, None)?;
            status(cluster.files.nodes.get(number - 1).context("a node")?, "voting").await?;
        }
        Trouble::Daemon => {
            cluster.chain.kill().await?;
            cluster.chain.start_again(&[]).await?;
        }
        Trouble::Reorganisation(depth) => {
            cluster.chain.mine(depth).await?;
            cluster.chain.reorganise(depth, vec![]).await?;
        }
        Trouble::Flood => floods.push_back(flood(&cluster.bridge.address().to_string()).await?),
        Trouble::Blocks(count) => cluster.chain.mine(count).await?,
    }
    Ok(())
}

/// Half-open requests, and garbage, as long as the other end keeps them.
async fn flood(address: &str) -> Result<Vec<TcpStream>> {
    let mut held = Vec::new();
    for number in 0..FLOOD {
        let mut socket = TcpStream::connect(address).await?;
        let garbage: &[u8] = if number % 2 == 0 { b"GET / HTTP/1.1\r\nhost: x\r\n" } else { &[0xff; 512] };
        // It may be closed already.
        let _closed = socket.write_all(garbage).await;
        held.push(socket);
    }
    Ok(held)
}
