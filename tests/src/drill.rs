//! A federation on Bitcoin Core under load, for drills of what goes wrong in years: wallets that pay each other without
//! end, and books that have to agree with the chain afterwards.

use crate::{
    Cluster, PATIENCE,
    daemon::Daemon,
    wallets::{PAYMENT_PATIENCE, federation, open_wallet, request, wait_spendable},
};
use anyhow::{Context as _, Result, ensure};
use bitcoin::{Amount, TxOut, Txid};
use quorate::{
    client::{Client, ClientError, WebSocket},
    session::{PaymentState, Session},
    wallet::{HistoryEntry, SecretWords},
    wire::NodeReject,
};
use quorate_node::chain::ChainError;
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{
    task::JoinSet,
    time::{interval, timeout},
};

/// Coins of each wallet at first.
const COINS: usize = 8;
const COIN: Amount = Amount::from_sat(1_000_000);
/// What is paid each time.
const PRICE: Amount = Amount::from_sat(20_000);
/// Pause of a wallet that cannot pay at the moment.
const PAUSE: Duration = Duration::from_millis(200);

/// What a load has done so far.
#[derive(Debug, Default)]
pub struct Done {
    final_ones: Mutex<BTreeSet<Txid>>,
    refused: Mutex<BTreeMap<String, usize>>,
    stop: AtomicBool,
}

impl Done {
    /// Payments that became final.
    pub fn payments(&self) -> usize {
        self.final_ones.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Why others did not, as far as the wallet was told: codes of errors with their numbers, and of a rejection what
    /// nodes said.
    pub fn refusals(&self) -> BTreeMap<String, usize> {
        self.refused.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn refuse(&self, code: &str) {
        let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        *refused.entry(code.to_owned()).or_default() += 1;
    }
}

/// Wallets that pay each other until they are told to stop.
#[derive(Debug)]
pub struct Load {
    /// What they have done.
    pub done: Arc<Done>,
    tasks: JoinSet<Result<()>>,
}

impl Load {
    /// Waits until so many more payments are final.
    ///
    /// # Errors
    /// They are not in time, or a wallet has failed.
    pub async fn paid(&mut self, more: usize) -> Result<()> {
        let wanted = self.done.payments() + more;
        let done = self.done.clone();
        let paid = async {
            while done.payments() < wanted {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            paid = timeout(PATIENCE * 2, paid) => {
                paid.with_context(|| format!("payments stop: {:?}", self.done.refusals()))
            }
            Some(ended) = self.tasks.join_next() => {
                ended??;
                anyhow::bail!("a wallet stopped by itself")
            }
        }
    }

    /// Stops it: payments under way are finished.
    ///
    /// # Errors
    /// A wallet has failed.
    pub async fn stop(mut self) -> Result<Arc<Done>> {
        self.done.stop.store(true, Ordering::Relaxed);
        while let Some(ended) = self.tasks.join_next().await {
            ended??;
        }
        Ok(self.done)
    }
}

/// A federation with wallets that have money.
#[derive(Debug)]
pub struct Drill {
    /// The nodes, on a daemon.
    pub cluster: Cluster<Daemon>,
    wallets: Vec<Client>,
}

impl Drill {
    /// Starts nodes, and gives so many wallets eight coins each.
    ///
    /// # Errors
    /// Something does not start.
    pub async fn start(daemon: Daemon, node: impl AsRef<Path>, nodes: u16, wallets: usize) -> Result<Self> {
        daemon.ready().await?;
        daemon.mine(101).await?;
        let cluster = Cluster::on(daemon, node, nodes).await?;
        let federation = federation(&cluster).await?;
        let mut clients = Vec::new();
        for _ in 0..wallets {
            let transport = WebSocket::new(cluster.url());
            clients.push(open_wallet(&federation, &SecretWords::generate()?, transport).await?);
        }
        for client in &clients {
            let script_pubkey = client.next_address().await?.script_pubkey();
            cluster.chain.pay_out(vec![TxOut { value: COIN, script_pubkey }; COINS]).await?;
            cluster.chain.mine(1).await?;
        }
        for client in &clients {
            wait_spendable(client, COIN * u64::try_from(COINS)?).await?;
        }
        Ok(Self { cluster, wallets: clients })
    }

    /// Has every wallet pay the next one, again and again.
    pub fn load(&self) -> Load {
        let done = Arc::new(Done::default());
        let mut tasks = JoinSet::new();
        for (index, payer) in self.wallets.iter().enumerate() {
            let payee = self.wallets.get((index + 1) % self.wallets.len()).unwrap_or(payer);
            tasks.spawn(pay_on(payer.clone(), payee.clone(), done.clone()));
        }
        Load { done, tasks }
    }

    /// Mines until every payment that any wallet knows of is in a block.
    ///
    /// # Errors
    /// One never is.
    pub async fn settle(&self) -> Result<()> {
        let started = tokio::time::Instant::now();
        loop {
            self.cluster.chain.mine(1).await?;
            let height = self.cluster.chain.height().await?;
            let mut open = BTreeSet::new();
            for wallet in &self.wallets {
                let seen = wallet.wait(move |session| {
                    (session.wallet().chain().tip().height >= height).then(|| unmined(session))
                });
                open.extend(timeout(PATIENCE, seen).await.context("a wallet does not hear of a block")??);
            }
            if open.is_empty() {
                return Ok(());
            }
            ensure!(started.elapsed() < PATIENCE * 2, "never mined: {open:#?}");
        }
    }

    /// Checks that what became final is in the chain, and that each wallet has what the chain says.
    ///
    /// # Errors
    /// They do not agree.
    pub async fn check_books(&self, done: &Done) -> Result<()> {
        let mut known = BTreeSet::new();
        for wallet in &self.wallets {
            let (descriptor, addresses, balance, history) = wallet
                .inspect(|session| {
                    let wallet = session.wallet();
                    let mined: Vec<Txid> = wallet
                        .history()
                        .iter()
                        .filter(|entry| entry.block.is_some() && entry.conflicted.is_none())
                        .map(|entry| entry.txid)
                        .collect();
                    // More than either keychain has.
                    let addresses = wallet.scripts().len();
                    (wallet.descriptor().to_string(), addresses, wallet.balance().spendable, mined)
                })
                .await?;
            known.extend(history);
            let scan = json!(["start", [{"desc": descriptor, "range": addresses}]]);
            let found = self.scan(scan).await?;
            let total = found.get("total_amount").and_then(Value::as_f64).context("an amount")?;
            let total = Amount::from_btc(total)?;
            ensure!(total == balance, "the wallet says {balance}, the chain {total}");
        }
        let final_ones = done.final_ones.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let lost: Vec<&Txid> = final_ones.difference(&known).collect();
        ensure!(lost.is_empty(), "final, and in no block: {lost:?}");
        let internal = done.refusals().get("internal").copied().unwrap_or_default();
        ensure!(internal == 0, "{internal} payments ended with an internal error");
        Ok(())
    }

    /// Scans the coins. The daemon makes one scan at a time, and nodes have it make some, too.
    async fn scan(&self, scan: Value) -> Result<Value> {
        let scanned = async {
            let mut pause = interval(Duration::from_millis(200));
            loop {
                pause.tick().await;
                match self.cluster.chain.rpc.call_raw("scantxoutset", scan.clone()).await {
                    Err(ChainError::Daemon(error)) if error.code == BUSY => {}
                    answer => return answer,
                }
            }
        };
        Ok(timeout(PATIENCE, scanned).await.context("it scans for others without an end")??)
    }
}

/// RPC code with which Bitcoin Core says that it is scanning already.
const BUSY: i64 = -8;

/// What no block has though it is final or may become so, and what the wallet knows of it.
fn unmined(session: &Session) -> Vec<String> {
    let history = session.wallet().history();
    let came_to_nothing = |entry: &HistoryEntry| {
        let state = session.payment(entry.txid);
        entry.finality.is_none()
            && matches!(state, Some(PaymentState::Failed { .. } | PaymentState::Rejected { .. }))
    };
    let open = history.iter().filter(|entry| entry.block.is_none() && !came_to_nothing(entry));
    let told = |entry: &HistoryEntry| {
        let state = session.payment(entry.txid);
        format!("{} {:?}, {state:?}, refusal {:?}", entry.txid, entry.finality, session.refusal(entry.txid))
    };
    open.map(told).collect()
}

/// An error's code, and why nodes rejected it.
fn told(error: &ClientError) -> String {
    let ClientError::Rejected { rejects, .. } = error else { return error.code().to_owned() };
    let reason = |reject: &NodeReject| {
        let told = serde_json::to_value(&reject.reason).unwrap_or_default();
        told.get("reason").and_then(Value::as_str).unwrap_or("untold").to_owned()
    };
    let reasons: BTreeSet<String> = rejects.iter().map(reason).collect();
    format!("{}: {}", error.code(), reasons.into_iter().collect::<Vec<_>>().join(", "))
}

async fn pay_on(payer: Client, payee: Client, done: Arc<Done>) -> Result<()> {
    while !done.stop.load(Ordering::Relaxed) {
        let to = payee.unused_address().await?;
        match timeout(PAYMENT_PATIENCE, payer.pay(request(&to, PRICE)?)).await {
            Ok(Ok(receipt)) => {
                done.final_ones.lock().unwrap_or_else(PoisonError::into_inner).insert(receipt.txid);
            }
            Ok(Err(error)) => {
                done.refuse(&told(&error));
                tokio::time::sleep(PAUSE).await;
            }
            // It goes on without its caller.
            Err(_) => done.refuse("slow"),
        }
    }
    Ok(())
}
