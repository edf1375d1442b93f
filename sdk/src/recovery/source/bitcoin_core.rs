use super::failed;
use crate::{
    account::{Keychain, KeychainIndex},
    recovery::{Found, RecoverableCoin, Recovery, RecoveryError},
};
use bitcoin::{Amount, FeeRate, OutPoint, ScriptBuf, Transaction, Txid, consensus::encode::serialize_hex};
use jsonrpc::{Client, bitreq_http::BitreqHttpTransport};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{json, value::RawValue};
use std::{collections::BTreeMap, fmt, path::PathBuf, sync::Arc, time::Duration};

/// Bitcoin Core over JSON-RPC. It needs no wallet, may be pruned, and nobody else learns the addresses.
///
/// ```no_run
/// # async fn example(recovery: &quorate::recovery::Recovery) -> Result<(), quorate::recovery::RecoveryError> {
/// use quorate::recovery::source::{BitcoinCore, RpcAuth};
/// let core = BitcoinCore::new("http://127.0.0.1:8332", RpcAuth::Cookie("/home/me/.bitcoin/.cookie".into()));
/// let found = core.find(recovery).await?;
/// println!("{} coins at height {}", found.coins.len(), found.tip);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct BitcoinCore {
    url: String,
    auth: Arc<RpcAuth>,
}

/// How Bitcoin Core knows its user.
pub enum RpcAuth {
    /// By the file that it writes at each start, `.cookie` in its data directory.
    Cookie(PathBuf),
    /// By name and password.
    Password {
        /// The name.
        user: String,
        /// The password.
        password: String,
    },
}

impl fmt::Debug for RpcAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cookie(path) => f.debug_tuple("Cookie").field(path).finish(),
            Self::Password { user, .. } => {
                f.debug_struct("Password").field("user", user).finish_non_exhaustive()
            }
        }
    }
}

/// A look at every unspent output takes minutes on mainnet.
const TIMEOUT: Duration = Duration::from_secs(1_800);
/// Blocks within which a sweep should be mined.
const TARGET_BLOCKS: u32 = 6;

#[derive(Deserialize)]
struct Unspents {
    height: u32,
    unspents: Vec<Unspent>,
}

#[derive(Deserialize)]
struct Unspent {
    txid: Txid,
    vout: u32,
    #[serde(rename = "scriptPubKey")]
    script_pubkey: ScriptBuf,
    #[serde(with = "bitcoin::amount::serde::as_btc")]
    amount: Amount,
    height: u32,
}

#[derive(Deserialize)]
struct ChainInfo {
    chain: String,
}

#[derive(Deserialize)]
struct Estimate {
    #[serde(default)]
    feerate: Option<f64>,
}

impl BitcoinCore {
    /// Names a daemon by the address of its RPC server. Nothing is sent yet.
    pub fn new(url: &str, auth: RpcAuth) -> Self {
        Self { url: url.to_owned(), auth: Arc::new(auth) }
    }

    async fn call<T: DeserializeOwned + Send + 'static>(
        &self,
        method: &'static str,
        parameters: serde_json::Value,
    ) -> Result<T, RecoveryError> {
        let (this, url) = (self.clone(), self.url.clone());
        let answer = tokio::task::spawn_blocking(move || this.call_now(method, &parameters)).await;
        answer.unwrap_or_else(|error| Err(failed(&url, error)))
    }

    fn call_now<T: DeserializeOwned>(
        &self,
        method: &str,
        parameters: &serde_json::Value,
    ) -> Result<T, RecoveryError> {
        let builder = BitreqHttpTransport::builder().timeout(TIMEOUT);
        let builder = builder.url(&self.url).map_err(|error| failed(&self.url, error))?;
        let builder = match &*self.auth {
            RpcAuth::Cookie(path) => {
                let cookie = std::fs::read_to_string(path);
                builder
                    .cookie_auth(cookie.map_err(|error| failed(&path.display().to_string(), error))?.trim())
            }
            RpcAuth::Password { user, password } => builder.basic_auth(user.clone(), Some(password.clone())),
        };
        let parameters: Box<RawValue> =
            serde_json::value::to_raw_value(parameters).map_err(|error| failed(&self.url, error))?;
        let client = Client::with_transport(builder.build());
        client.call(method, Some(&parameters)).map_err(|error| failed(&self.url, error))
    }

    /// Finds the account's coins, by a look at all unspent outputs (`scantxoutset`), for all addresses up to the
    /// highest that the recovery looks at ([`Recovery::with_addresses_max`]). Transactions that wait for a block
    /// are not seen.
    ///
    /// # Errors
    /// The daemon does not answer, is of another network, or is at another such look already.
    pub async fn find(&self, recovery: &Recovery) -> Result<Found, RecoveryError> {
        let info: ChainInfo = self.call("getblockchaininfo", json!([])).await?;
        let expected = recovery.network();
        if info.chain != expected.to_core_arg() {
            let (url, found) = (self.url.clone(), info.chain);
            return Err(RecoveryError::SourceNetwork { url, found, expected });
        }
        // What is spent is not seen, so a gap says nothing: all addresses are looked for at once, at the same cost.
        let scripts = scripts(recovery)?;
        let objects: Vec<_> =
            scripts.keys().map(|script| format!("raw({})", script.to_hex_string())).collect();
        let answer: Unspents = self.call("scantxoutset", json!(["start", objects])).await?;
        let mut coins = Vec::new();
        for unspent in answer.unspents {
            let Some(position) = scripts.get(&unspent.script_pubkey).copied() else { continue };
            if unspent.amount > Amount::MAX_MONEY {
                return Err(failed(&self.url, "an amount above 21 million bitcoin"));
            }
            let outpoint = OutPoint::new(unspent.txid, unspent.vout);
            let (value, height) = (unspent.amount, Some(unspent.height));
            coins.push(RecoverableCoin { outpoint, value, position, height });
        }
        coins.sort_by_key(|coin| (coin.height, coin.outpoint));
        Ok(Found { tip: answer.height, coins })
    }

    /// The daemon's estimate for six blocks; none if it has none.
    ///
    /// # Errors
    /// The daemon does not answer.
    pub async fn fee_rate(&self) -> Result<Option<FeeRate>, RecoveryError> {
        let estimate: Estimate = self.call("estimatesmartfee", json!([TARGET_BLOCKS])).await?;
        let per_kvb = estimate.feerate.and_then(|rate| Amount::from_btc(rate).ok());
        Ok(per_kvb.map(|per_kvb| FeeRate::from_sat_per_kwu(per_kvb.to_sat() / 4)))
    }

    /// Sends a transaction.
    ///
    /// # Errors
    /// The daemon does not answer, or refuses it: the reason is in the text.
    pub async fn send(&self, transaction: &Transaction) -> Result<Txid, RecoveryError> {
        self.call("sendrawtransaction", json!([serialize_hex(transaction)])).await
    }
}

fn scripts(recovery: &Recovery) -> Result<BTreeMap<ScriptBuf, KeychainIndex>, RecoveryError> {
    let mut scripts = BTreeMap::new();
    for keychain in [Keychain::Receive, Keychain::Change] {
        for index in 0..recovery.addresses_max {
            let position = KeychainIndex { keychain, index };
            scripts.insert(recovery.address(position)?.script_pubkey, position);
        }
    }
    Ok(scripts)
}
