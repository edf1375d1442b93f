//! Bitcoin Core beside a test.

use crate::{
    PATIENCE, eventually, free_port,
    wallets::{nobody, nobodys_spend},
};
use anyhow::{Context as _, Result, ensure};
use bitcoin::{
    Address, Amount, Block, Network, OutPoint, Transaction, TxOut, Txid,
    block::Header,
    consensus::encode::{deserialize_hex, serialize_hex},
};
use quorate_node::{
    chain::{Bitcoind, Chain as _},
    config::ChainConfig,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

/// Arguments of a daemon that writes a cookie file.
pub const COOKIE: [&str; 2] = ["-rpcuser=", "-rpcpassword="];
/// Arguments of a daemon that deletes blocks when it is told to, in files that are small.
pub const PRUNED: [&str; 2] = ["-prune=1", "-fastprune"];
/// Arguments of a daemon that answers by IPv6, too.
pub const IPV6: [&str; 2] = ["-rpcbind=[::1]", "-rpcallowip=::1"];
/// User and password of the RPC.
const ACCESS: &str = "test";

/// A daemon on regtest, without peers and wallet; it ends with this. Whom its rewards belong to is [`nobody`].
#[derive(Debug)]
pub struct Daemon {
    /// Its RPC.
    pub rpc: Bitcoind,
    binary: PathBuf,
    port: SocketAddr,
    child: Child,
    home: tempfile::TempDir,
    /// Height of the last block whose reward was paid out.
    paid_out: AtomicU32,
    /// What its peers have: hashes and blocks, as hexadecimal digits.
    blocks: Vec<(String, String)>,
}

impl Daemon {
    /// Starts one from its binary, with further arguments.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(binary: &Path, arguments: &[&str]) -> Result<Self> {
        let home = tempfile::tempdir()?;
        let port = free_port()?;
        let child = spawn(binary, home.path(), port, arguments)?;
        let rpc = Bitcoind::new(&format!("http://{port}"), ACCESS, ACCESS);
        let (binary, paid_out) = (binary.to_owned(), AtomicU32::new(0));
        Ok(Self { rpc, binary, port, child, home, paid_out, blocks: Vec::new() })
    }

    /// Starts one that lets in who can read its cookie file, to be restarted with [`COOKIE`] as arguments.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn with_cookie(binary: &Path) -> Result<Self> {
        let mut started = Self::start(binary, &COOKIE)?;
        let cookie = Some(started.home.path().join("regtest/.cookie"));
        started.rpc = Bitcoind::open(&ChainConfig { cookie, ..ChainConfig::open(&started.url()) });
        Ok(started)
    }

    /// Ends it in order and starts it again with other arguments, on the same chain.
    ///
    /// # Errors
    /// It does not end, or does not come back.
    pub async fn restart(&mut self, arguments: &[&str]) -> Result<()> {
        self.rpc.call_raw("stop", json!([])).await?;
        let child = &mut self.child;
        eventually("bitcoind ends", || matches!(child.try_wait(), Ok(Some(_)))).await?;
        self.child = spawn(&self.binary, self.home.path(), self.port, arguments)?;
        self.ready().await
    }

    /// Kills it as by `kill -9`: its mempool is lost, and the last blocks that it has not written. Its peers keep them.
    ///
    /// # Errors
    /// It is not running.
    pub async fn kill(&mut self) -> Result<()> {
        self.keep_blocks().await?;
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Takes a copy of the blocks that are new, as its peers have it.
    async fn keep_blocks(&mut self) -> Result<()> {
        let height = self.height().await?;
        self.blocks.truncate(usize::try_from(height)?);
        while let Some((known, _)) = self.blocks.last() {
            if *known == self.call::<String>("getblockhash", json!([self.blocks.len()])).await? {
                break;
            }
            self.blocks.pop();
        }
        for number in u32::try_from(self.blocks.len())? + 1..=height {
            let hash: String = self.call("getblockhash", json!([number])).await?;
            let block = self.call("getblock", json!([hash, 0])).await?;
            self.blocks.push((hash, block));
        }
        Ok(())
    }

    /// Has it write what it knows to its disk.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn flush(&mut self) -> Result<()> {
        self.keep_blocks().await?;
        self.call::<Value>("gettxoutsetinfo", json!(["none"])).await?;
        Ok(())
    }

    /// Starts it again after it was killed, and gives it what its peers have.
    ///
    /// # Errors
    /// It does not come back.
    pub async fn start_again(&mut self, arguments: &[&str]) -> Result<()> {
        self.child = spawn(&self.binary, self.home.path(), self.port, arguments)?;
        self.ready().await?;
        let known = usize::try_from(self.height().await?)?;
        for (_, block) in self.blocks.iter().skip(known) {
            self.call::<Value>("submitblock", json!([block])).await?;
        }
        let height = self.height().await?;
        ensure!(height == u32::try_from(self.blocks.len())?, "the chain ends at block {height}");
        Ok(())
    }

    /// Gives it the blocks of another daemon, as that would as its peer.
    ///
    /// # Errors
    /// One of them does not answer, or a block is not taken.
    pub async fn copy_blocks(&self, of: &Self) -> Result<()> {
        let height = of.height().await?;
        for number in self.height().await? + 1..=height {
            let hash: String = of.call("getblockhash", json!([number])).await?;
            let block: String = of.call("getblock", json!([hash, 0])).await?;
            self.call::<Value>("submitblock", json!([block])).await?;
        }
        ensure!(self.height().await? == height, "not all blocks were taken");
        Ok(())
    }

    /// Deletes blocks up to a height, of which the last 288 and those in the same files stay; gives the last that is
    /// gone. It has to be started with [`PRUNED`].
    ///
    /// # Errors
    /// It does not answer.
    pub async fn prune(&self, height: u32) -> Result<u32> {
        self.call("pruneblockchain", json!([height])).await
    }

    /// Its RPC by IPv6; it has to be started with [`IPV6`].
    pub fn rpc_by_ipv6(&self) -> Bitcoind {
        Bitcoind::new(&format!("http://[::1]:{}", self.port.port()), ACCESS, ACCESS)
    }

    /// The address of its RPC; user and password are `test`.
    pub fn url(&self) -> String {
        format!("http://{}", self.port)
    }

    /// What a node needs to use it.
    pub fn config(&self) -> ChainConfig {
        let (user, password) = (ACCESS.to_owned(), ACCESS.to_owned());
        ChainConfig { user, password, ..ChainConfig::open(&self.url()) }
    }

    /// Waits until it answers, with its mempool read.
    ///
    /// # Errors
    /// It does not within [`PATIENCE`].
    pub async fn ready(&self) -> Result<()> {
        let started = tokio::time::Instant::now();
        loop {
            let info = self.rpc.call_raw("getmempoolinfo", json!([])).await.unwrap_or_default();
            if info.get("loaded") == Some(&Value::Bool(true)) {
                return Ok(());
            }
            ensure!(started.elapsed() < PATIENCE, "bitcoind does not start");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn call<T: DeserializeOwned>(&self, method: &str, parameters: Value) -> Result<T> {
        Ok(serde_json::from_value(self.rpc.call_raw(method, parameters).await?)?)
    }

    /// Mines blocks with what the mempool has.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub async fn mine(&self, count: u32) -> Result<()> {
        self.call::<Value>("generatetoaddress", json!([count, miner()])).await?;
        Ok(())
    }

    /// Height of the tip.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub async fn height(&self) -> Result<u32> {
        self.call("getblockcount", json!([])).await
    }

    /// What waits for a block.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub async fn mempool(&self) -> Result<BTreeSet<Txid>> {
        self.call("getrawmempool", json!([])).await
    }

    /// All headers but the first.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub async fn headers(&self) -> Result<Vec<Header>> {
        let mut headers = Vec::new();
        for height in 1..=self.height().await? {
            let hash: String = self.call("getblockhash", json!([height])).await?;
            let header: String = self.call("getblockheader", json!([hash, false])).await?;
            headers.push(deserialize_hex(&header)?);
        }
        Ok(headers)
    }

    /// Spends the next mature reward to these outputs and a change.
    ///
    /// # Errors
    /// The daemon refuses it, or no reward is mature.
    pub async fn pay_out(&self, mut outputs: Vec<TxOut>) -> Result<Transaction> {
        let height = self.paid_out.fetch_add(1, Ordering::Relaxed) + 1;
        let hash: String = self.call("getblockhash", json!([height])).await?;
        let block: Block = deserialize_hex(&self.call::<String>("getblock", json!([hash, 0])).await?)?;
        let reward = block.txdata.first().context("a coinbase")?;
        let value = reward.output.first().context("an output")?.value;
        let paid: Amount = outputs.iter().map(|output| output.value).sum();
        let change = value.checked_sub(paid + Amount::from_sat(20_000)).context("more than a reward")?;
        outputs.push(TxOut { value: change, script_pubkey: nobody() });
        let transaction = nobodys_spend(OutPoint { txid: reward.compute_txid(), vout: 0 }, outputs);
        self.rpc.broadcast(transaction.clone()).await?;
        Ok(transaction)
    }

    /// Undoes the last `depth` blocks and mines one more, the first with these transactions and none of the others.
    ///
    /// # Errors
    /// The daemon refuses it.
    pub async fn reorganise(&self, depth: u32, transactions: Vec<Transaction>) -> Result<()> {
        let first = self.height().await? + 1 - depth;
        let hash: String = self.call("getblockhash", json!([first])).await?;
        self.call::<Value>("invalidateblock", json!([hash])).await?;
        let raw: Vec<String> = transactions.iter().map(serialize_hex).collect();
        self.call::<Value>("generateblock", json!([miner(), raw])).await?;
        for _ in 0..depth {
            self.call::<Value>("generateblock", json!([miner(), []])).await?;
        }
        Ok(())
    }
}

fn miner() -> Address {
    Address::from_script(&nobody(), Network::Regtest).expect("P2WSH has an address")
}

fn spawn(binary: &Path, home: &Path, port: SocketAddr, arguments: &[&str]) -> Result<Child> {
    let child = Command::new(binary)
        .arg("-regtest")
        .arg(format!("-datadir={}", home.display()))
        .args([
            "-listen=0",
            "-connect=0",
            "-dnsseed=0",
            "-natpmp=0",
            "-rpcbind=127.0.0.1",
            "-rpcallowip=127.0.0.1",
            // It does not end before idle connections of its clients have.
            "-rpcservertimeout=3",
        ])
        .args([
            format!("-rpcuser={ACCESS}"),
            format!("-rpcpassword={ACCESS}"),
            format!("-rpcport={}", port.port()),
        ])
        .args(arguments)
        .stdout(Stdio::null())
        .spawn()?;
    Ok(child)
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ended = self.child.kill();
        let _reaped = self.child.wait();
    }
}
