//! Bitcoin Core over JSON-RPC. Also speaks to an embedded chain that another process serves (`quorate-devnet chain`).

use super::{
    Answer, Chain, ChainError, DaemonError, Fees,
    doubt::BEHIND_MAX,
    rpc::{CallError, Rpc},
};
use crate::config::ChainConfig;
use bitcoin::{
    Amount, Block, BlockHash, FeeRate, OutPoint, ScriptBuf, Transaction, TxOut, Txid,
    block::Header,
    consensus::encode::{deserialize_hex, serialize_hex},
};
use quorate_protocol::relay_policy::FEE_RATE_MIN;
use quorate_rules::ChainCoin;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// How long one wait for a new tip lasts, in milliseconds.
const WAIT_MS: u32 = 20_000;
/// RPC code with which Bitcoin Core says that a transaction is not in its mempool.
const NOT_FOUND: i64 = -5;
/// RPC code with which Bitcoin Core says that there is no block at a height.
const OUT_OF_RANGE: i64 = -8;
/// RPC codes with which Bitcoin Core says that it has the transaction already.
const ALREADY_KNOWN: [i64; 2] = [-27, -26];

/// RPC code with which Bitcoin Core says that it has just been started.
const WARMING_UP: i64 = -28;

/// How long one lasts with a daemon that cannot be told which tip is known.
const SHORT_WAIT_MS: u32 = 1_000;
/// RPC code with which Bitcoin Core answers a call with parameters that it does not know.
const MISUSED: i64 = -1;
/// RPC code of Bitcoin Core for errors that have none of their own, which is that of misuse, too.
const MISC: i64 = -1;
/// What it says of a block of which only the header is left.
const PRUNED: &str = "pruned data";

/// Bitcoin Core, or what speaks like it.
#[derive(Clone, Debug)]
pub struct Bitcoind(Rpc);

impl Bitcoind {
    /// An endpoint such as `http://127.0.0.1:8332` with its user and password.
    pub fn new(url: &str, user: &str, password: &str) -> Self {
        Self(Rpc::new(url, user, password))
    }

    /// An endpoint as it is configured. A cookie file is read when it is needed: the daemon writes another one at each
    /// of its starts.
    pub fn open(config: &ChainConfig) -> Self {
        let rpc = Rpc::new(&config.url, &config.user, &config.password);
        Self(rpc.with_cookie(config.cookie.clone()))
    }

    /// Calls any method; for tests and operators' tools.
    ///
    /// # Errors
    /// The daemon cannot be reached or refuses.
    pub async fn call_raw(&self, method: &str, params: Value) -> Result<Value, ChainError> {
        Ok(self.call(method, params).await?)
    }

    async fn call<T: DeserializeOwned>(&self, method: &str, params: Value) -> Result<T, CallError> {
        self.0.call(method, params).await
    }
}

#[derive(Deserialize)]
struct ChainReply {
    chain: String,
    blocks: u32,
    headers: u32,
    #[serde(default, rename = "initialblockdownload")]
    initial: bool,
}

#[derive(Deserialize)]
struct TipReply {
    hash: BlockHash,
}

#[derive(Deserialize)]
struct HeaderReply {
    height: u32,
}

#[derive(Deserialize)]
struct CoinReply {
    confirmations: u32,
    value: f64,
    #[serde(rename = "scriptPubKey")]
    script: ScriptReply,
    coinbase: bool,
    bestblock: BlockHash,
}

#[derive(Deserialize)]
struct ScriptReply {
    hex: ScriptBuf,
}

#[derive(Deserialize)]
struct ScanReply {
    unspents: Vec<UnspentReply>,
}

#[derive(Deserialize)]
struct UnspentReply {
    txid: Txid,
    vout: u32,
}

#[derive(Deserialize)]
struct FeeReply {
    feerate: Option<f64>,
}

#[derive(Deserialize)]
struct MempoolReply {
    mempoolminfee: f64,
    minrelaytxfee: f64,
}

#[derive(Deserialize)]
struct PackageReply {
    package_msg: String,
}

fn malformed(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ChainError {
    ChainError::Backend(error.into())
}

impl Chain for Bitcoind {
    fn tip(&self) -> Answer<'_, BlockHash> {
        Box::pin(async { Ok(self.call("getbestblockhash", json!([])).await?) })
    }

    fn wait_for_tip(&self, known: BlockHash) -> Answer<'_, BlockHash> {
        Box::pin(async move {
            let tip: TipReply = match self.call("waitfornewblock", json!([WAIT_MS, known])).await {
                // Bitcoin Core before version 30 knows no second parameter: a block that came before the call is seen
                // when the wait is over.
                Err(CallError::Refused(error)) if error.code == MISUSED => {
                    self.call("waitfornewblock", json!([SHORT_WAIT_MS])).await?
                }
                answer => answer?,
            };
            Ok(tip.hash)
        })
    }

    fn header(&self, hash: BlockHash) -> Answer<'_, (Header, u32)> {
        Box::pin(async move {
            let raw: String = self.call("getblockheader", json!([hash, false])).await?;
            let verbose: HeaderReply = self.call("getblockheader", json!([hash, true])).await?;
            Ok((deserialize_hex(&raw).map_err(malformed)?, verbose.height))
        })
    }

    fn doubt(&self) -> Answer<'_, Option<String>> {
        Box::pin(async {
            let ChainReply { chain, blocks, headers, initial } =
                self.call("getblockchaininfo", json!([])).await?;
            // A chain on which nobody mines by the clock is always in its initial download.
            let downloads = initial && chain != "regtest";
            let behind = headers.saturating_sub(blocks) > BEHIND_MAX;
            Ok(if downloads {
                Some(format!("it is in its initial block download, at block {blocks} of {headers}"))
            } else {
                behind.then(|| format!("it has headers up to {headers} and blocks up to {blocks}"))
            })
        })
    }

    fn hash_at(&self, height: u32) -> Answer<'_, Option<BlockHash>> {
        Box::pin(async move {
            match self.call("getblockhash", json!([height])).await {
                Ok(hash) => Ok(Some(hash)),
                Err(CallError::Refused(error)) if error.code == OUT_OF_RANGE => Ok(None),
                Err(error) => Err(error.into()),
            }
        })
    }

    fn block(&self, hash: BlockHash) -> Answer<'_, Block> {
        Box::pin(async move {
            let raw: String = match self.call("getblock", json!([hash, 0])).await {
                Err(CallError::Refused(error)) if error.code == MISC && error.message.contains(PRUNED) => {
                    return Err(ChainError::Pruned(hash));
                }
                answer => answer?,
            };
            deserialize_hex(&raw).map_err(malformed)
        })
    }

    fn coin(&self, outpoint: OutPoint) -> Answer<'_, Option<ChainCoin>> {
        Box::pin(async move {
            // For all that it takes to know one.
            let _turn = self.0.turn().await?;
            let reply: Option<CoinReply> =
                self.call("gettxout", json!([outpoint.txid, outpoint.vout, false])).await?;
            let Some(coin) = reply else { return Ok(None) };
            let (_, tip) = self.header(coin.bestblock).await?;
            let height = (tip + 1).saturating_sub(coin.confirmations);
            let hash = self.hash_at(height).await?.ok_or_else(|| malformed("a coin above the tip"))?;
            let output = TxOut {
                value: Amount::from_btc(coin.value).map_err(malformed)?,
                script_pubkey: coin.script.hex,
            };
            Ok(Some(ChainCoin { output, height, hash, coinbase: coin.coinbase }))
        })
    }

    fn unspent(&self, scripts: Vec<ScriptBuf>) -> Answer<'_, Vec<OutPoint>> {
        Box::pin(async move {
            let wanted: Vec<String> =
                scripts.iter().map(|script| format!("raw({})", script.to_hex_string())).collect();
            let found: ScanReply = self.0.call_long("scantxoutset", json!(["start", wanted])).await?;
            let outpoint = |found: UnspentReply| OutPoint { txid: found.txid, vout: found.vout };
            Ok(found.unspents.into_iter().map(outpoint).collect())
        })
    }

    fn broadcast(&self, transaction: Transaction) -> Answer<'_, ()> {
        Box::pin(async move {
            let sent = self
                .0
                .call_in_turn::<Value>("sendrawtransaction", json!([serialize_hex(&transaction)]))
                .await;
            match sent {
                Ok(_) => Ok(()),
                Err(CallError::Refused(error)) => taken(error),
                Err(error) => Err(error.into()),
            }
        })
    }

    fn broadcast_all(&self, transactions: Vec<Transaction>) -> Answer<'_, Vec<Result<(), ChainError>>> {
        Box::pin(async move {
            let raw = transactions.iter().map(|one| json!([serialize_hex(one)])).collect();
            let answers = self.0.call_each("sendrawtransaction", raw).await?;
            Ok(answers.into_iter().map(|answer| answer.map_or_else(taken, |_| Ok(()))).collect())
        })
    }

    fn broadcast_package(&self, package: Vec<Transaction>) -> Answer<'_, ()> {
        Box::pin(async move {
            let package: Vec<String> = package.iter().map(serialize_hex).collect();
            match self.0.call_in_turn::<PackageReply>("submitpackage", json!([package])).await {
                Ok(reply) if reply.package_msg == "success" => Ok(()),
                Ok(PackageReply { package_msg: message }) => {
                    Err(ChainError::Refused(DaemonError { code: 0, message }))
                }
                Err(CallError::Refused(error)) => Err(ChainError::Refused(error)),
                Err(error) => Err(error.into()),
            }
        })
    }

    fn missing(&self, txids: Vec<Txid>) -> Answer<'_, BTreeSet<Txid>> {
        Box::pin(async move {
            let asked = txids.iter().map(|txid| json!([txid])).collect();
            let answers = self.0.call_each("getmempoolentry", asked).await?;
            let mut missing = BTreeSet::new();
            for (txid, answer) in txids.into_iter().zip(answers) {
                match answer {
                    Ok(_) => {}
                    Err(error) if error.code == NOT_FOUND => {
                        missing.insert(txid);
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Ok(missing)
        })
    }

    fn fees(&self) -> Answer<'_, Fees> {
        Box::pin(async {
            let estimate = async |blocks: u32| {
                let reply: FeeReply = self.call("estimatesmartfee", json!([blocks])).await?;
                Ok::<_, ChainError>(reply.feerate.and_then(per_kvb))
            };
            let mempool: MempoolReply = self.call("getmempoolinfo", json!([])).await?;
            let least = mempool.mempoolminfee.max(mempool.minrelaytxfee);
            Ok(Fees {
                next_block: estimate(1).await?,
                six_blocks: estimate(6).await?,
                day: estimate(144).await?,
                mempool_min: per_kvb(least).unwrap_or(FEE_RATE_MIN),
            })
        })
    }
}

/// What the daemon says against a transaction; that it has it already is nothing against it.
fn taken(error: DaemonError) -> Result<(), ChainError> {
    if error.code == WARMING_UP {
        return Err(error.into());
    }
    let known = ALREADY_KNOWN.contains(&error.code) && error.message.contains("already");
    if known { Ok(()) } else { Err(ChainError::Refused(error)) }
}

/// A rate in BTC per 1,000 virtual bytes, rounded up.
fn per_kvb(btc: f64) -> Option<FeeRate> {
    let per_kvb = Amount::from_btc(btc).ok()?;
    Some(FeeRate::from_sat_per_kwu(per_kvb.to_sat().div_ceil(4)))
}
