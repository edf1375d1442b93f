//! Bitcoin Core over JSON-RPC. Also speaks to an embedded chain that another process serves (`quorate-devnet chain`).

use super::{Answer, Chain, ChainError, DaemonError, Fees, doubt::BEHIND_MAX};
use crate::config::ChainConfig;
use bitcoin::{
    Amount, Block, BlockHash, FeeRate, OutPoint, ScriptBuf, Transaction, TxOut, Txid,
    block::Header,
    consensus::encode::{deserialize_hex, serialize_hex},
};
use quorate_protocol::relay_policy::FEE_RATE_MIN;
use quorate_rules::ChainCoin;
use reqwest::StatusCode;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use std::{
    collections::BTreeSet,
    fmt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

/// How long one wait for a new tip lasts, in milliseconds.
const WAIT_MS: u32 = 20_000;
/// RPC code with which Bitcoin Core says that a transaction is not in its mempool.
const NOT_FOUND: i64 = -5;
/// RPC code with which Bitcoin Core says that there is no block at a height.
const OUT_OF_RANGE: i64 = -8;
/// RPC codes with which Bitcoin Core says that it has the transaction already.
const ALREADY_KNOWN: [i64; 2] = [-27, -26];

/// How long a connection waits for the next call: less than until the daemon closes it (`-rpcservertimeout`, 30 s), so
/// that no call is sent on one that is being closed.
const IDLE_MAX: Duration = Duration::from_secs(10);

/// How long one lasts with a daemon that cannot be told which tip is known.
const SHORT_WAIT_MS: u32 = 1_000;
/// RPC code with which Bitcoin Core answers a call with parameters that it does not know.
const MISUSED: i64 = -1;
/// Bytes of an answer that is no JSON which are told.
const BODY_MAX: usize = 200;

/// A daemon's RPC endpoint.
#[derive(Clone)]
pub struct Bitcoind {
    client: reqwest::Client,
    url: String,
    /// User and password as they are set, or as the cookie file had them last.
    access: Arc<Mutex<(String, String)>>,
    cookie: Option<PathBuf>,
}

impl fmt::Debug for Bitcoind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bitcoind").field("url", &self.url).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct RpcReply {
    result: Value,
    error: Option<RpcError>,
}

#[derive(Deserialize)]
struct RpcError {
    code: i64,
    message: String,
}

enum CallError {
    Transport(reqwest::Error),
    Malformed(serde_json::Error),
    Http { status: String, body: String },
    Unauthorized(String),
    Refused(DaemonError),
}

impl From<CallError> for ChainError {
    fn from(error: CallError) -> Self {
        match error {
            CallError::Transport(error) => Self::Backend(error.into()),
            CallError::Malformed(error) => Self::Backend(error.into()),
            CallError::Http { status, body } => Self::Http { status, body },
            CallError::Unauthorized(what) => Self::Unauthorized(what),
            CallError::Refused(error) => Self::Daemon(error),
        }
    }
}

impl Bitcoind {
    /// An endpoint such as `http://127.0.0.1:8332` with its user and password.
    pub fn new(url: &str, user: &str, password: &str) -> Self {
        let client = reqwest::Client::builder().pool_idle_timeout(IDLE_MAX).build();
        Self {
            // None of these settings can fail.
            client: client.unwrap_or_default(),
            url: url.to_owned(),
            access: Arc::new(Mutex::new((user.to_owned(), password.to_owned()))),
            cookie: None,
        }
    }

    /// An endpoint as it is configured. A cookie file is read when it is needed: the daemon writes another one at each
    /// of its starts.
    pub fn open(config: &ChainConfig) -> Self {
        Self { cookie: config.cookie.clone(), ..Self::new(&config.url, &config.user, &config.password) }
    }

    fn access(&self) -> (String, String) {
        self.access.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the cookie file. `false` if there is none, or it says what is known already.
    fn read_cookie(&self) -> Result<bool, CallError> {
        let Some(path) = &self.cookie else { return Ok(false) };
        let unreadable = |why: &str| CallError::Unauthorized(format!("{}: {why}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| unreadable(&error.to_string()))?;
        let (user, password) = text.trim().split_once(':').ok_or_else(|| unreadable("is no cookie file"))?;
        let read = (user.to_owned(), password.to_owned());
        let mut access = self.access.lock().unwrap_or_else(PoisonError::into_inner);
        let news = *access != read;
        *access = read;
        Ok(news)
    }

    /// Calls any method; for tests and operators' tools.
    ///
    /// # Errors
    /// The daemon cannot be reached or refuses.
    pub async fn call_raw(&self, method: &str, params: Value) -> Result<Value, ChainError> {
        Ok(self.call(method, params).await?)
    }

    async fn call<T: DeserializeOwned>(&self, method: &str, params: Value) -> Result<T, CallError> {
        let body = json!({"jsonrpc": "1.0", "id": "quorate", "method": method, "params": params});
        let mut answer = self.post(&body).await?;
        if answer.0 == StatusCode::UNAUTHORIZED {
            if !self.read_cookie()? {
                let user = self.access().0;
                return Err(CallError::Unauthorized(match &self.cookie {
                    Some(path) => format!("what {} says", path.display()),
                    None => format!("the password of user \"{user}\""),
                }));
            }
            answer = self.post(&body).await?;
        }
        let (status, text) = answer;
        let reply: RpcReply = match serde_json::from_str(&text) {
            Ok(reply) => reply,
            Err(error) if status.is_success() => return Err(CallError::Malformed(error)),
            // A work queue that is full, a proxy, another service.
            Err(_) => {
                let body = text.trim().chars().filter(|one| !one.is_control()).take(BODY_MAX).collect();
                return Err(CallError::Http { status: status.to_string(), body });
            }
        };
        match reply.error {
            Some(RpcError { code, message }) => Err(CallError::Refused(DaemonError { code, message })),
            None => serde_json::from_value(reply.result).map_err(CallError::Malformed),
        }
    }
}

impl Bitcoind {
    async fn post(&self, body: &Value) -> Result<(StatusCode, String), CallError> {
        let (user, password) = self.access();
        let request = self.client.post(&self.url).basic_auth(user, Some(password)).json(body);
        let request = request.timeout(Duration::from_millis(u64::from(WAIT_MS)) * 3);
        let answer = request.send().await.map_err(CallError::Transport)?;
        let status = answer.status();
        Ok((status, answer.text().await.map_err(CallError::Transport)?))
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
            let raw: String = self.call("getblock", json!([hash, 0])).await?;
            deserialize_hex(&raw).map_err(malformed)
        })
    }

    fn coin(&self, outpoint: OutPoint) -> Answer<'_, Option<ChainCoin>> {
        Box::pin(async move {
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

    fn broadcast(&self, transaction: Transaction) -> Answer<'_, ()> {
        Box::pin(async move {
            match self.call::<Value>("sendrawtransaction", json!([serialize_hex(&transaction)])).await {
                Ok(_) => Ok(()),
                Err(CallError::Refused(error))
                    if ALREADY_KNOWN.contains(&error.code) && error.message.contains("already") =>
                {
                    Ok(())
                }
                Err(CallError::Refused(error)) => Err(ChainError::Refused(error)),
                Err(error) => Err(error.into()),
            }
        })
    }

    fn broadcast_package(&self, package: Vec<Transaction>) -> Answer<'_, ()> {
        Box::pin(async move {
            let package: Vec<String> = package.iter().map(serialize_hex).collect();
            match self.call::<PackageReply>("submitpackage", json!([package])).await {
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
            let mut missing = BTreeSet::new();
            for txid in txids {
                match self.call::<Value>("getmempoolentry", json!([txid])).await {
                    Ok(_) => {}
                    Err(CallError::Refused(error)) if error.code == NOT_FOUND => {
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

/// A rate in BTC per 1,000 virtual bytes, rounded up.
fn per_kvb(btc: f64) -> Option<FeeRate> {
    let per_kvb = Amount::from_btc(btc).ok()?;
    Some(FeeRate::from_sat_per_kwu(per_kvb.to_sat().div_ceil(4)))
}
