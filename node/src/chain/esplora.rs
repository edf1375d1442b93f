//! An Esplora server over HTTP (Blockstream's `electrs`, mempool.space): for who runs no Bitcoin Core of their own, or
//! as the second choice beside one.
//!
//! Blocks and headers are checked by the follower, and a coin has to come with its Merkle proof from a block of the
//! node's chain, or one before the birthday with its work. That a coin whose script is not indexed is still unspent,
//! what the mempool has and what fees are is only what the server says, as is a signet's signature (BIP325).

use super::{Answer, Chain, ChainError, DaemonError, Fees};
use bitcoin::{
    Block, BlockHash, FeeRate, MerkleBlock, Network, OutPoint, ScriptBuf, Transaction, Txid, block::Header,
};
use esplora_client::{AsyncClient, Builder, Error, OutputStatus};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use quorate_protocol::{headers::Checkpoint, relay_policy::FEE_RATE_MIN};
use quorate_rules::ChainCoin;
use serde::Deserialize;
use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    sync::{Arc, OnceLock},
    time::{Duration, Instant},
};

/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Requests that are made again, after 0.3 and 0.5 s, if the server is busy.
const RETRIES: usize = 2;
/// How often the tip is asked for while a node waits for the next block.
const POLL: Duration = Duration::from_secs(2);
/// How long one wait for a new tip lasts.
const WAIT: Duration = Duration::from_secs(20);
/// Transactions that are asked for at a time.
const AT_A_TIME: usize = 4;
/// By how much less work than the birthday's block has one proves nothing.
const CHEAP: f64 = 16.0;
/// Size of an inner node of a Merkle tree, in bytes (CVE-2017-12842).
const MERKLE_NODE_SIZE: usize = 64;
/// Bytes of an answer that are told.
const BODY_MAX: usize = 200;

/// A server of Esplora's API.
#[derive(Clone)]
pub struct Esplora {
    url: String,
    client: AsyncClient,
    /// The federation's birthday, once that is known: what a block costs on this network.
    birthday: Arc<OnceLock<Checkpoint>>,
}

impl fmt::Debug for Esplora {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Esplora").field("url", &self.url).finish_non_exhaustive()
    }
}

impl From<Error> for ChainError {
    fn from(error: Error) -> Self {
        let Error::HttpResponse { status, message } = error else { return Self::Backend(error.into()) };
        Self::Http { status: status.to_string(), body: told(&message) }
    }
}

/// The start of an answer.
fn told(text: &str) -> String {
    text.trim().chars().filter(|one| !one.is_control()).take(BODY_MAX).collect()
}

fn wrong(what: &'static str) -> ChainError {
    ChainError::Backend(what.into())
}

impl Esplora {
    /// A server by the address of its API, such as `https://blockstream.info/api`. Nothing is sent yet.
    ///
    /// # Errors
    /// The client cannot be made.
    pub fn new(url: &str) -> Result<Self, ChainError> {
        let url = url.trim_end_matches('/').to_owned();
        let client = Builder::new(&url).timeout(TIMEOUT).max_retries(RETRIES).build_async()?;
        Ok(Self { url, client, birthday: Arc::default() })
    }

    /// The block that the server proves a transaction to be in.
    async fn place(&self, txid: Txid) -> Result<Option<(BlockHash, u32)>, ChainError> {
        let status = self.client.get_tx_status(&txid).await?;
        let (Some(hash), Some(height), true) = (status.block_hash, status.block_height, status.confirmed)
        else {
            return Ok(None);
        };
        if self.client.get_block_hash(height).await? != hash {
            // A reorganisation came in between.
            return Ok(None);
        }
        let proof = self.client.get_merkle_block(&txid).await?;
        let proof = proof.ok_or_else(|| wrong("a confirmed transaction comes without its Merkle proof"))?;
        if !proves(&proof, txid, hash) {
            return Err(wrong("the Merkle proof of a transaction does not hold"));
        }
        // Below the birthday no header is known to compare with, and anybody can make an easy one.
        let cheap = self.birthday.get().is_some_and(|birthday| is_cheap(&proof.header, &birthday.header));
        if cheap {
            return Err(wrong("a coin is so old that its block proves little: ask a Bitcoin Core for such"));
        }
        Ok(Some((hash, height)))
    }
}

fn proves(proof: &MerkleBlock, txid: Txid, block: BlockHash) -> bool {
    let (mut matches, mut indices) = (Vec::new(), Vec::new());
    let whole = proof.extract_matches(&mut matches, &mut indices).is_ok();
    let works = proof.header.validate_pow(proof.header.target()).is_ok();
    whole && works && proof.header.block_hash() == block && matches.contains(&txid)
}

/// Whether a block took much less work than another one.
fn is_cheap(header: &Header, than: &Header) -> bool {
    let share = than.target().difficulty_float() / CHEAP;
    header.target().difficulty_float() < share
}

/// Whether a block spends an output.
fn is_spent(output: &OutputStatus) -> bool {
    output.spent && output.status.as_ref().is_some_and(|status| status.confirmed)
}

/// What the daemon behind the server says against a transaction, as servers pass it on: its JSON is somewhere in the
/// text.
fn refusal(status: u16, text: &str) -> Option<DaemonError> {
    #[derive(Deserialize)]
    struct Reason {
        code: i64,
        message: String,
    }
    if status != 400 {
        return None;
    }
    let json = text.find('{').zip(text.rfind('}')).and_then(|(from, to)| text.get(from..=to));
    let found = json.and_then(|json| serde_json::from_str::<Reason>(json).ok());
    Some(found.map_or_else(
        || DaemonError { code: 0, message: told(text) },
        |Reason { code, message }| DaemonError { code, message },
    ))
}

/// The outcome of handing something in.
fn taken(answer: Result<(), Error>) -> Result<(), ChainError> {
    let Err(error) = answer else { return Ok(()) };
    if let Error::HttpResponse { status, message } = &error
        && let Some(reason) = refusal(*status, message)
    {
        let known = reason.message.contains("already in") || reason.message.contains("already-");
        return if known { Ok(()) } else { Err(ChainError::Refused(reason)) };
    }
    Err(error.into())
}

impl Chain for Esplora {
    fn choose(&self, _network: Network, birthday: Checkpoint, _troubled: bool) -> Answer<'_, ()> {
        let _known = self.birthday.set(birthday);
        Box::pin(async { Ok(()) })
    }

    fn tip(&self) -> Answer<'_, BlockHash> {
        Box::pin(async { Ok(self.client.get_tip_hash().await?) })
    }

    fn wait_for_tip(&self, known: BlockHash) -> Answer<'_, BlockHash> {
        Box::pin(async move {
            let started = Instant::now();
            loop {
                let tip = self.client.get_tip_hash().await?;
                if tip != known || started.elapsed() >= WAIT {
                    return Ok(tip);
                }
                tokio::time::sleep(POLL).await;
            }
        })
    }

    fn header(&self, hash: BlockHash) -> Answer<'_, (Header, u32)> {
        Box::pin(async move {
            let header = self.client.get_header_by_hash(&hash).await?;
            if header.block_hash() != hash {
                return Err(ChainError::WrongBlock(hash));
            }
            let status = self.client.get_block_status(&hash).await?;
            Ok((header, status.height.ok_or(ChainError::UnknownBlock(hash))?))
        })
    }

    fn hash_at(&self, height: u32) -> Answer<'_, Option<BlockHash>> {
        Box::pin(async move {
            match self.client.get_block_hash(height).await {
                Ok(hash) => Ok(Some(hash)),
                Err(Error::HttpResponse { status: 404, .. }) => Ok(None),
                Err(error) => Err(error.into()),
            }
        })
    }

    fn block(&self, hash: BlockHash) -> Answer<'_, Block> {
        Box::pin(async move {
            let found = self.client.get_block_by_hash(&hash).await?;
            found.ok_or(ChainError::UnknownBlock(hash))
        })
    }

    fn coin(&self, outpoint: OutPoint) -> Answer<'_, Option<ChainCoin>> {
        Box::pin(async move {
            let Some((hash, height)) = self.place(outpoint.txid).await? else { return Ok(None) };
            let status = self.client.get_output_status(&outpoint.txid, u64::from(outpoint.vout)).await?;
            if status.as_ref().is_none_or(is_spent) {
                return Ok(None);
            }
            let Some(whole) = self.client.get_tx(&outpoint.txid).await? else { return Ok(None) };
            if whole.compute_txid() != outpoint.txid || whole.base_size() == MERKLE_NODE_SIZE {
                return Err(wrong("it gives another transaction than the one that it was asked for"));
            }
            let output = usize::try_from(outpoint.vout).ok().and_then(|at| whole.output.get(at)).cloned();
            let coinbase = whole.is_coinbase();
            Ok(output.map(|output| ChainCoin { output, height, hash, coinbase }))
        })
    }

    fn unspent(&self, scripts: Vec<ScriptBuf>) -> Answer<'_, Vec<OutPoint>> {
        Box::pin(async move {
            let mut found = Vec::new();
            for script in scripts {
                let confirmed = self.client.get_scripthash_utxos(&script).await?;
                let confirmed = confirmed.into_iter().filter(|utxo| utxo.status.confirmed);
                found.extend(confirmed.map(|utxo| OutPoint { txid: utxo.txid, vout: utxo.vout }));
            }
            Ok(found)
        })
    }

    fn broadcast(&self, transaction: Transaction) -> Answer<'_, ()> {
        Box::pin(async move { taken(self.client.broadcast(&transaction).await.map(|_| ())) })
    }

    fn doubt(&self) -> Answer<'_, Option<String>> {
        // It knows no more than its tip, whose age the follower sees.
        Box::pin(async { Ok(None) })
    }

    fn fees(&self) -> Answer<'_, Fees> {
        Box::pin(async {
            let estimates: HashMap<u16, FeeRate> = self.client.get_fee_estimates().await?;
            let within = |blocks: usize| esplora_client::convert_fee_rate(blocks, estimates.clone());
            // The mempool's minimum is not told. What is below it is refused, and goes with a child that pays for it.
            Ok(Fees {
                next_block: within(1),
                six_blocks: within(6),
                day: within(144),
                mempool_min: FEE_RATE_MIN,
            })
        })
    }

    fn broadcast_package(&self, package: Vec<Transaction>) -> Answer<'_, ()> {
        Box::pin(async move {
            match self.client.submit_package(&package, None, None).await {
                Ok(reply) if reply.package_msg == "success" => Ok(()),
                Ok(reply) => Err(ChainError::Refused(DaemonError { code: 0, message: reply.package_msg })),
                Err(error) => taken(Err(error)),
            }
        })
    }

    fn missing(&self, txids: Vec<Txid>) -> Answer<'_, BTreeSet<Txid>> {
        Box::pin(async move {
            let asked = stream::iter(txids).map(|txid| async move {
                let known = self.client.get_tx(&txid).await?.is_some();
                Ok::<_, ChainError>((!known).then_some(txid))
            });
            let missing: Vec<Option<Txid>> = asked.buffered(AT_A_TIME).try_collect().await?;
            Ok(missing.into_iter().flatten().collect())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_that_anybody_can_make_proves_no_old_coin() {
        let dear = Checkpoint::genesis(Network::Bitcoin).header;
        let easy = Checkpoint::genesis(Network::Regtest).header;
        assert!(is_cheap(&easy, &dear) && !is_cheap(&dear, &dear) && !is_cheap(&easy, &easy));
    }

    #[test]
    fn a_refusal_of_the_daemon_is_read_out_of_what_the_server_says() {
        let text =
            "sendrawtransaction RPC error: {\"code\":-26,\"message\":\"min relay fee not met, 1 < 2\"}";
        let refused = refusal(400, text).expect("a refusal");
        assert_eq!((refused.code, refused.message.as_str()), (-26, "min relay fee not met, 1 < 2"));
        assert!(ChainError::Refused(refused).is_low_fee());
        assert_eq!(refusal(400, "no\ntransaction").expect("a refusal").message, "notransaction");
        assert!(refusal(503, text).is_none(), "the server's own trouble");
        let known = Error::HttpResponse {
            status: 400,
            message: "sendrawtransaction RPC error: {\"code\":-27,\"message\":\"Transaction already in block chain\"}".to_owned(),
        };
        assert!(taken(Err(known)).is_ok());
    }
}
