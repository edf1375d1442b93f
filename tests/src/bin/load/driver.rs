//! The wallets, in a process of their own, which is told what to pay by a line on its input and answers by one.

use crate::{COIN, PAID, SOLE};
use anyhow::{Context as _, Result};
use bitcoin::{Address, Amount, OutPoint, Txid, address::NetworkUnchecked};
use hdrhistogram::Histogram;
use quorate::{
    client::{Client, WebSocket},
    wallet::SecretWords,
};
use quorate_tests::{
    Cluster,
    wallets::{federation_at, open_wallet, owners_spend, request},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{fmt, net::SocketAddr, process::Stdio, time::Duration};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines, Stdin},
    process::{Child, ChildStdin, ChildStdout, Command},
    task::JoinSet,
    time::Instant,
};

/// Wallets that pay in turn: a bridge takes ten payments a second of each.
const PAYERS: usize = 8;

/// When the next payment is sent.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Pace {
    /// When fewer than these are under way.
    InFlight(usize),
    /// So many times a second, whatever became of those before.
    Rate(f64),
}

impl fmt::Display for Pace {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InFlight(count) => write!(formatter, "{count} at a time"),
            Self::Rate(rate) => write!(formatter, "{rate}/s"),
        }
    }
}

/// What to pay.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Order {
    pub(crate) payments: usize,
    pub(crate) pace: Pace,
    /// Coins that a joint payment is of.
    pub(crate) inputs: usize,
    /// Coins in sole custody, outputs of this transaction, if it is not to be from the joint accounts.
    pub(crate) coins: Option<Txid>,
    /// The first of them.
    pub(crate) from: usize,
}

/// From when a payment was to be sent until its payer has verified that it is final, in milliseconds.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Told {
    /// What all took together.
    pub(crate) seconds: f64,
    pub(crate) p50: f64,
    pub(crate) p90: f64,
    pub(crate) p99: f64,
    pub(crate) max: f64,
}

/// The process, as its master sees it.
pub(crate) struct Driver {
    process: Child,
    orders: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
    addresses: Vec<Address>,
}

impl Driver {
    pub(crate) async fn start(cluster: &Cluster, bridge: SocketAddr) -> Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .args(["--drive", &format!("ws://{bridge}"), "--federation", &cluster.id().to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let orders = process.stdin.take().context("its input")?;
        let mut answers = BufReader::new(process.stdout.take().context("its output")?).lines();
        let addresses: Vec<Address<NetworkUnchecked>> = read(&answers.next_line().await?)?;
        let addresses = addresses.into_iter().map(Address::assume_checked).collect();
        Ok(Self { process, orders, answers, addresses })
    }

    /// An address of each wallet that pays.
    pub(crate) fn addresses(&self) -> &[Address] {
        &self.addresses
    }

    pub(crate) fn pid(&self) -> Result<u32> {
        self.process.id().context("it runs")
    }

    pub(crate) async fn drive(&mut self, order: &Order) -> Result<Told> {
        self.orders.write_all((serde_json::to_string(order)? + "\n").as_bytes()).await?;
        read(&self.answers.next_line().await?)
    }
}

fn read<T: DeserializeOwned>(line: &Option<String>) -> Result<T> {
    Ok(serde_json::from_str(line.as_deref().context("the driver has ended")?)?)
}

/// The other process.
pub(crate) async fn run(url: &str, federation: &str) -> Result<()> {
    let federation = federation_at(url, federation.parse()?).await?;
    let (mut payers, mut addresses) = (Vec::new(), Vec::new());
    for _ in 0..PAYERS {
        let transport = WebSocket::new(url.to_owned());
        let payer = open_wallet(&federation, &SecretWords::generate()?, transport).await?;
        addresses.push(payer.next_address().await?);
        payers.push(payer);
    }
    println!("{}", serde_json::to_string(&addresses)?);
    let mut orders: Lines<BufReader<Stdin>> = BufReader::new(tokio::io::stdin()).lines();
    while let Some(order) = orders.next_line().await? {
        let order: Order = serde_json::from_str(&order)?;
        if order.coins.is_none() {
            let each = order.payments.div_ceil(payers.len()) * order.inputs;
            for payer in &payers {
                let rich = move |session: &quorate::session::Session| {
                    let wallet = session.wallet();
                    let whole = wallet.coins().filter(|coin| coin.value > PAID && is_free(wallet, coin));
                    (whole.count() >= each).then_some(())
                };
                payer.wait(rich).await?;
            }
        }
        let told = drive(&payers, &order).await?;
        println!("{}", serde_json::to_string(&told)?);
    }
    Ok(())
}

fn is_free(wallet: &quorate::wallet::Wallet, coin: &quorate::wallet::Coin) -> bool {
    let state = wallet.coin_state(&coin.outpoint);
    matches!(state, Some(quorate::wallet::CoinState::Spendable { .. }))
}

/// Each wallet pays the next one, to an address of its own for each payment.
async fn drive(payers: &[Client], order: &Order) -> Result<Told> {
    let mut latencies = Histogram::<u64>::new(3)?;
    let (mut under_way, started) = (JoinSet::new(), Instant::now());
    for number in 0..order.payments {
        let intended = match order.pace {
            Pace::InFlight(count) => {
                while under_way.len() >= count {
                    note(&mut latencies, under_way.join_next().await.context("one")??)?;
                }
                Instant::now()
            }
            Pace::Rate(rate) => started + Duration::from_secs_f64(f64::from(u32::try_from(number)?) / rate),
        };
        tokio::time::sleep_until(intended).await;
        let of = |index: usize| payers.get(index % payers.len()).cloned().context("a payer");
        let coin = order.coins.map(|txid| (txid, order.from + number));
        // All of the coins but a part of the last.
        let amount = COIN * u64::try_from(order.inputs - 1)? + PAID;
        under_way.spawn(pay(of(number)?, of(number + 1)?, amount, coin, intended));
        while let Some(done) = under_way.try_join_next() {
            note(&mut latencies, done?)?;
        }
    }
    while let Some(done) = under_way.join_next().await {
        note(&mut latencies, done?)?;
    }
    let at = |quantile| Duration::from_micros(latencies.value_at_quantile(quantile)).as_secs_f64() * 1e3;
    let seconds = started.elapsed().as_secs_f64();
    Ok(Told { seconds, p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1.0) })
}

fn note(latencies: &mut Histogram<u64>, done: Result<Duration>) -> Result<()> {
    Ok(latencies.record(u64::try_from(done?.as_micros())?)?)
}

async fn pay(
    payer: Client,
    payee: Client,
    amount: Amount,
    coin: Option<(Txid, usize)>,
    intended: Instant,
) -> Result<Duration> {
    let to = payee.unused_address().await?;
    match coin {
        None => payer.pay(request(&to, amount)?).await?,
        Some((txid, vout)) => {
            let coin = OutPoint { txid, vout: u32::try_from(vout)? };
            payee.attest(owners_spend(coin, SOLE, &to)).await?
        }
    };
    Ok(intended.elapsed())
}
