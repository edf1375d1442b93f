//! `npm run soak`: a federation on Bitcoin Core under payments for a while, with everything going wrong at once: nodes
//! and the daemon are killed, the chain is reorganised, the bridge is flooded. In the end the books have to agree with
//! the chain, and the memory of nodes and bridge has to be what it was.

#![expect(clippy::print_stdout, reason = "the report")]

use anyhow::{Context as _, Result, bail, ensure};
use clap::Parser;
use quorate::wire::limits;
use quorate_tests::{
    bitcoind,
    daemon::Daemon,
    drill::{Drill, Load},
    operator::status,
    process::memory,
};
use rand_chacha::{
    ChaCha20Rng,
    rand_core::{RngCore as _, SeedableRng as _},
};
use serde_json::json;
use std::{
    collections::VecDeque,
    iter,
    time::{Duration, Instant},
};
use tokio::{io::AsyncWriteExt as _, net::TcpStream, time::timeout};

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
/// A request that never ends.
const HALF_OPEN: &str = "GET / HTTP/1.1\r\nhost: x\r\n";
/// What a session begins with that never reads an answer (RFC 6455, section 1.3), and questions that it has.
const UPGRADE: &str = "connection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n\
    sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
const QUESTIONS: usize = 1_000;
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
    /// Nodes
    #[arg(long, default_value_t = 4)]
    nodes: u16,
    /// Seconds for which a node that is killed stays away, with as many others as may be missing
    #[arg(long, default_value_t = 0)]
    away: u64,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    Nodes(usize),
    Daemon,
    Reorganisation(u32),
    Flood,
    Blocks(u32),
}

impl Trouble {
    fn draw(rng: &mut ChaCha20Rng) -> Self {
        match rng.next_u32() % 8 {
            0 | 1 => Self::Nodes(usize::try_from(rng.next_u32() % 64).unwrap_or(0)),
            2 => Self::Daemon,
            3 => Self::Reorganisation(rng.next_u32() % 3 + 1),
            4 | 5 => Self::Flood,
            _ => Self::Blocks(rng.next_u32() % 3 + 1),
        }
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let Arguments { seconds, seed, nodes, away } = Arguments::parse();
    let Some(binary) = bitcoind() else { bail!("a soak needs Bitcoin Core: name it in BITCOIND_EXE") };
    let node = std::env::current_exe()?.with_file_name("test-node");
    let mut drill = Drill::start(Daemon::start(&binary, &[])?, node, nodes, WALLETS).await?;
    let (mut rng, started) = (ChaCha20Rng::seed_from_u64(seed), Instant::now());
    let (mut early, mut load) = (None, drill.load());
    let (mut floods, away) = (VecDeque::new(), Duration::from_secs(away));
    println!("seconds  payments  memory of nodes, bridge, and wallets         trouble");
    while started.elapsed() < Duration::from_secs(seconds) {
        let trouble = Trouble::draw(&mut rng);
        let until = tokio::time::Instant::now() + PERIOD;
        make(&mut drill, trouble, &mut floods).await.with_context(|| format!("{trouble:?}"))?;
        if floods.len() > FLOODS_HELD {
            floods.pop_front();
        }
        go_on(&mut drill, &mut load, until).await?;
        if let Trouble::Nodes(number) = trouble {
            let until = tokio::time::Instant::now() + away;
            while tokio::time::Instant::now() < until {
                go_on(&mut drill, &mut load, tokio::time::Instant::now() + PERIOD).await?;
            }
            come_back(&mut drill, number).await?;
        }
        let held = Held::now(&drill)?;
        if early.is_none() && started.elapsed() >= Duration::from_secs(seconds) / 4 {
            early = Some(held.clone());
        }
        let all = held.nodes.iter().chain([&held.bridge, &held.wallets]);
        let told: Vec<String> = all.map(|bytes| format!("{:.0}", mega(*bytes))).collect();
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
    let (early, late) = (early.context("too short to compare memory")?, Held::now(&drill)?);
    flat("a node that was never killed", early.first()?, late.first()?)?;
    flat("the bridge", early.bridge, late.bridge)?;
    println!(
        "{} payments, all of them in the chain; not paid at first: {:?}",
        done.payments(),
        done.refusals()
    );
    Ok(())
}

/// Resident memory, in bytes. Wallets keep their history; all others hold what is live.
#[derive(Clone)]
struct Held {
    nodes: Vec<u64>,
    bridge: u64,
    /// This process.
    wallets: u64,
}

impl Held {
    fn now(drill: &Drill) -> Result<Self> {
        let cluster = &drill.cluster;
        Ok(Self {
            nodes: (1..=cluster.files.nodes.len())
                .filter_map(|node| cluster.pid(node))
                .map(memory)
                .collect::<Result<_>>()?,
            bridge: memory(cluster.bridge.pid())?,
            wallets: memory(std::process::id())?,
        })
    }

    fn first(&self) -> Result<u64> {
        self.nodes.first().copied().context("the first node runs")
    }
}

/// A process holds in the end what it held after a quarter of the time, and little more.
fn flat(whose: &str, early: u64, late: u64) -> Result<()> {
    ensure!(
        late <= early.saturating_add(GROWTH_MAX),
        "memory of {whose} grew from {:.0} to {:.0} MB",
        mega(early),
        mega(late)
    );
    Ok(())
}

fn mega(bytes: u64) -> f64 {
    f64::from(u32::try_from(bytes / 1_000).unwrap_or(u32::MAX)) / 1e3
}

/// A while of payments and blocks.
async fn go_on(drill: &mut Drill, load: &mut Load, until: tokio::time::Instant) -> Result<()> {
    drill.cluster.chain.mine(BLOCKS).await?;
    // As it does by itself once an hour: a kill costs no more than that.
    drill.cluster.chain.flush().await?;
    load.paid(1).await?;
    tokio::time::sleep_until(until).await;
    Ok(())
}

/// As many nodes as may be missing, from a number on that was drawn. The first one stays: what it holds at the end is
/// what it is judged by.
fn those_away(nodes: usize, drawn: usize) -> impl Iterator<Item = usize> {
    let missing = (nodes - 1) / 3;
    (0..missing).map(move |more| drawn.wrapping_add(more) % (nodes - 1) + 2)
}

async fn come_back(drill: &mut Drill, drawn: usize) -> Result<()> {
    let homes = drill.cluster.files.nodes.clone();
    for number in those_away(homes.len(), drawn) {
        drill.cluster.start_node(number, None)?;
    }
    for number in those_away(homes.len(), drawn) {
        status(homes.get(number - 1).context("a node")?, "voting").await?;
    }
    Ok(())
}

async fn make(drill: &mut Drill, trouble: Trouble, floods: &mut VecDeque<Vec<TcpStream>>) -> Result<()> {
    let cluster = &mut drill.cluster;
    match trouble {
        Trouble::Nodes(number) => {
            for number in those_away(cluster.files.nodes.len(), number) {
                cluster.kill(number)?;
            }
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

/// Half-open requests, garbage, and sessions that ask and do not read, as long as the other end keeps them.
async fn flood(address: &str) -> Result<Vec<TcpStream>> {
    let mut held = Vec::new();
    for number in 0..FLOOD {
        let mut socket = TcpStream::connect(address).await?;
        let said = match number % 4 {
            0 => HALF_OPEN.as_bytes().to_vec(),
            1 => vec![0xff; 512],
            _ => deaf(),
        };
        // It may be closed already, or take no more.
        let _closed = timeout(Duration::from_millis(100), socket.write_all(&said)).await;
        held.push(socket);
    }
    Ok(held)
}

/// The bytes of a session that says hello and asks without reading.
fn deaf() -> Vec<u8> {
    let mut said = format!("{HALF_OPEN}{UPGRADE}").into_bytes();
    let hello = json!({ "id": 1, "type": "Hello", "protocol": limits::PROTOCOL_VERSION });
    let question = json!({ "id": 2, "type": "FederationQuery" });
    for message in iter::once(hello).chain(iter::repeat_n(question, QUESTIONS)) {
        let text = message.to_string();
        // A text frame that is masked with zeros, and no longer than one byte can say.
        let length = u8::try_from(text.len()).unwrap_or(0x7d);
        said.extend([0x81, 0x80 | length, 0, 0, 0, 0]);
        said.extend(text.bytes());
    }
    said
}
