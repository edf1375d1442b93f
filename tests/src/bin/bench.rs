//! `npm run bench`: measures payments on a federation in this process and writes `bench/results.json`.
//!
//! Stores are fsynced; wallets verify everything; CPU time is that of the whole process, so of all nodes, the bridge
//! and the wallets.

use anyhow::{Context as _, Result};
use bitcoin::{Amount, OutPoint, TxOut};
use futures_util::{SinkExt as _, StreamExt as _};
use quorate::{
    client::Client,
    session::{Event, PaymentState},
};
use quorate_devnet::Devnet;
use quorate_tests::wallets::{fund, nobody, pay_out, request, sole_spend, wait_spendable};
use serde::Serialize;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::Message;

/// Where all suites write.
const RESULTS: &str = "bench/results.json";
const SEQUENTIAL: usize = 100;
const WALLETS: usize = 8;
const IN_FLIGHT: usize = 64;
const BURST: usize = 512;
const QUERIES: usize = 500;
const COIN: Amount = Amount::from_sat(100_000);
const PAID: Amount = Amount::from_sat(60_000);

#[derive(Serialize)]
struct Row {
    suite: &'static str,
    metric: &'static str,
    unit: &'static str,
    value: f64,
    params: Value,
}

#[tokio::main]
async fn main() -> Result<()> {
    let wanted = std::env::args().nth(1);
    let mut rows = Vec::new();
    if wanted.as_deref().is_none_or(|suite| suite == "payment") {
        for nodes in [4, 7] {
            payments(nodes, &mut rows).await?;
        }
    }
    anyhow::ensure!(!rows.is_empty(), "there is no such suite; there is: payment");
    report(&rows)
}

#[expect(clippy::print_stdout, reason = "the command's result")]
fn report(rows: &[Row]) -> Result<()> {
    for row in rows {
        println!("{:<10} {:<18} {:>10.2} {:<4} {}", row.suite, row.metric, row.value, row.unit, row.params);
    }
    let commit = std::process::Command::new("git").args(["rev-parse", "--short", "HEAD"]).output();
    let commit =
        commit.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default();
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let machine = format!("{}, {cores} cores", model.trim_start_matches([' ', '\t', ':']));
    let suites: Vec<&str> = rows.iter().map(|row| row.suite).collect();
    let mut all = rows_of_others(&suites);
    for row in rows {
        all.push(at_commit(serde_json::to_value(row)?, &json!(commit)));
    }
    std::fs::create_dir_all("bench")?;
    let file = json!({"machine": machine, "rows": all});
    Ok(std::fs::write(RESULTS, serde_json::to_string_pretty(&file)? + "\n")?)
}

/// Rows that other suites have left, each with the commit that it was measured at.
fn rows_of_others(suites: &[&str]) -> Vec<Value> {
    let file = std::fs::read(RESULTS).unwrap_or_default();
    let file: Value = serde_json::from_slice(&file).unwrap_or_default();
    let commit = file.get("commit").cloned().unwrap_or_default();
    let rows = file.get("rows").and_then(Value::as_array).cloned().unwrap_or_default().into_iter();
    let other = |row: &Value| !suites.iter().any(|suite| row.get("suite").is_some_and(|of| of == suite));
    rows.filter(other).map(|row| at_commit(row, &commit)).collect()
}

/// A row with the commit that it was measured at, if it does not name one.
fn at_commit(mut row: Value, commit: &Value) -> Value {
    if let Some(fields) = row.as_object_mut() {
        fields.entry("commit").or_insert_with(|| commit.clone());
    }
    row
}

/// CPU time of this process, all threads, from /proc (in clock ticks of 10 ms).
fn cpu() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().context("stat")?.split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).context("stat")?.parse::<u64>().context("stat");
    Ok(Duration::from_millis((ticks(11)? + ticks(12)?) * 10))
}

fn percentile(samples: &mut [f64], percent: usize) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get((samples.len() * percent / 100).min(samples.len().saturating_sub(1))).copied().unwrap_or(0.0)
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}

struct Bench<'a> {
    nodes: u16,
    rows: &'a mut Vec<Row>,
}

impl Bench<'_> {
    fn row(&mut self, metric: &'static str, unit: &'static str, value: f64, custody: &str) {
        let params = json!({"n": self.nodes, "custody": custody});
        self.rows.push(Row { suite: "payment", metric, unit, value, params });
    }

    fn both(&mut self, names: [&'static str; 2], mut samples: Vec<f64>, custody: &str) {
        let [p50, p99] = names;
        self.row(p50, "ms", percentile(&mut samples, 50), custody);
        self.row(p99, "ms", percentile(&mut samples, 99), custody);
    }
}

async fn payments(nodes: u16, rows: &mut Vec<Row>) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let free = std::net::SocketAddr::from(([127, 0, 0, 1], 0));
    let network = Devnet::start(directory.path(), nodes, free, free).await?;
    let mut bench = Bench { nodes, rows };
    let (payee, _) = network.wallet().await?;
    let mut payers = Vec::new();
    let mut addresses = Vec::new();
    for _ in 0..WALLETS {
        let (payer, _) = network.wallet().await?;
        addresses.push(payer.next_address().await?);
        payers.push(payer);
    }
    let coins = (SEQUENTIAL + BURST).div_ceil(WALLETS) + 13;
    fund(&network.chain, &addresses, coins, COIN)?;
    for payer in &payers {
        wait_spendable(payer, COIN * u64::try_from(coins)?).await?;
    }
    joint(&mut bench, &payers, &payee).await?;
    sole(&mut bench, &network, &payee).await?;
    plain(&mut bench, &network).await?;
    network.shut_down().await
}

async fn joint(bench: &mut Bench<'_>, payers: &[Client], payee: &Client) -> Result<()> {
    let payer = payers.first().context("a payer")?;
    let to = payee.next_address().await?;
    let (mut finality, mut lock) = (Vec::new(), Vec::new());
    let mut received = payee.events();
    let mut progress = payer.events();
    for _ in 0..13 {
        let started = Instant::now();
        let txid = payer.send(request(&to, PAID)?).await?;
        locked(&mut progress, txid).await?;
        lock.push(ms(started));
        until(&mut received, |event| matches!(event, Event::Received { txid: of, .. } if *of == txid))
            .await?;
        finality.push(ms(started));
    }
    for payer in payers.iter().cycle().skip(1).take(SEQUENTIAL - 13) {
        let mut progress = payer.events();
        let started = Instant::now();
        let txid = payer.send(request(&to, PAID)?).await?;
        locked(&mut progress, txid).await?;
        lock.push(ms(started));
        until(&mut received, |event| matches!(event, Event::Received { txid: of, .. } if *of == txid))
            .await?;
        finality.push(ms(started));
    }
    bench.both(["finality_p50_ms", "finality_p99_ms"], finality, "joint");
    bench.both(["lock_p50_ms", "lock_p99_ms"], lock, "joint");

    let (started, before) = (Instant::now(), cpu()?);
    let mut tasks = tokio::task::JoinSet::new();
    for index in 0..IN_FLIGHT {
        let payer = payers.get(index % payers.len()).context("a payer")?.clone();
        let to = to.clone();
        tasks.spawn(async move {
            for _ in 0..BURST / IN_FLIGHT {
                payer.pay(request(&to, PAID)?).await?;
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    throughput(bench, started, before, "joint")
}

fn throughput(bench: &mut Bench<'_>, started: Instant, before: Duration, custody: &str) -> Result<()> {
    let seconds = started.elapsed().as_secs_f64();
    let spent = (cpu()? - before).as_secs_f64() * 1e6;
    let burst = f64::from(u32::try_from(BURST)?);
    bench.row("finality_tps", "1/s", burst / seconds, custody);
    bench.row("finality_cpu_us", "us", spent / burst, custody);
    Ok(())
}

async fn locked(
    events: &mut (impl futures_util::Stream<Item = Event> + Unpin),
    txid: bitcoin::Txid,
) -> Result<()> {
    let voting = |event: &Event| matches!(event, Event::Payment { txid: of, state: PaymentState::Voting { .. } | PaymentState::Final { .. } } if *of == txid);
    until(events, voting).await
}

async fn until(
    events: &mut (impl futures_util::Stream<Item = Event> + Unpin),
    wanted: impl Fn(&Event) -> bool,
) -> Result<()> {
    loop {
        let event = events.next().await.context("the client has ended")?;
        if let Event::Payment { state: PaymentState::Rejected { .. } | PaymentState::Failed { .. }, .. } =
            &event
        {
            anyhow::bail!("a payment did not finish: {event:?}");
        }
        if wanted(&event) {
            return Ok(());
        }
    }
}

async fn sole(bench: &mut Bench<'_>, network: &Devnet, payee: &Client) -> Result<()> {
    let to = payee.next_address().await?;
    let first = network.chain.height() + 1;
    network.chain.mine(101, &nobody())?;
    let output = TxOut { value: Amount::from_sat(10_000), script_pubkey: nobody() };
    let parent = pay_out(&network.chain, first, vec![output.clone(); SEQUENTIAL + BURST])?;
    network.chain.mine(1, &nobody())?;
    let txid = parent.compute_txid();
    let spends: Vec<_> = (0..)
        .take(SEQUENTIAL + BURST)
        .map(|vout| sole_spend(OutPoint { txid, vout }, output.value, &to))
        .collect();
    let (sequential, burst) = spends.split_at(SEQUENTIAL);
    let (mut finality, mut lock) = (Vec::new(), Vec::new());
    let mut events = payee.events();
    for transaction in sequential {
        let started = Instant::now();
        let paying = tokio::spawn({
            let (payee, transaction) = (payee.clone(), transaction.clone());
            async move { payee.attest(transaction).await }
        });
        locked(&mut events, transaction.compute_txid()).await?;
        lock.push(ms(started));
        paying.await??;
        finality.push(ms(started));
    }
    bench.both(["finality_p50_ms", "finality_p99_ms"], finality, "sole");
    bench.both(["lock_p50_ms", "lock_p99_ms"], lock, "sole");
    let (started, before) = (Instant::now(), cpu()?);
    let mut tasks = tokio::task::JoinSet::new();
    for part in burst.chunks(BURST / IN_FLIGHT) {
        let (payee, part) = (payee.clone(), part.to_vec());
        tasks.spawn(async move {
            for transaction in part {
                payee.attest(transaction).await?;
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(done) = tasks.join_next().await {
        done??;
    }
    throughput(bench, started, before, "sole")
}

/// Queries and notifications as a plain WebSocket client sees them.
async fn plain(bench: &mut Bench<'_>, network: &Devnet) -> Result<()> {
    let (mut socket, _) = tokio_tungstenite::connect_async_with_config(network.url(), None, true).await?;
    let ask = async |socket: &mut tokio_tungstenite::WebSocketStream<_>,
                     message: Value,
                     kind: &str|
           -> Result<()> {
        if !message.is_null() {
            socket.send(Message::text(message.to_string())).await?;
        }
        while let Some(Ok(Message::Text(text))) = socket.next().await {
            if serde_json::from_str::<Value>(&text)?.get("type").is_some_and(|found| found == kind) {
                return Ok(());
            }
        }
        anyhow::bail!("the bridge closed the connection")
    };
    ask(&mut socket, json!({"id": 1, "type": "Hello", "protocol": 2}), "Welcome").await?;
    ask(&mut socket, json!({"id": 2, "type": "UTXOSubscribe", "keys": ["tip"]}), "UTXOSubscribed").await?;
    let mut query = Vec::new();
    for _ in 0..QUERIES {
        let started = Instant::now();
        let unknown = format!("{}:0", "11".repeat(32));
        let keys = json!([{"outpoint": unknown}]);
        ask(&mut socket, json!({"id": 3, "type": "UTXOStateQuery", "keys": keys}), "UTXOStateResponse")
            .await?;
        query.push(ms(started));
    }
    let mut notify = Vec::new();
    for _ in 0..SEQUENTIAL {
        let started = Instant::now();
        network.treasury.mine(1)?;
        ask(&mut socket, Value::Null, "Tip").await?;
        notify.push(ms(started));
    }
    bench.both(["query_p50_ms", "query_p99_ms"], query, "none");
    bench.both(["notify_p50_ms", "notify_p99_ms"], notify, "none");
    Ok(())
}
