//! What a node needs of a Bitcoin network: one small, stateless trait. Reorganisations and scripts are the follower's
//! business.

mod backends;
mod birthday;
mod bitcoind;
pub(crate) mod broadcast;
pub(crate) mod complaint;
mod doubt;
mod esplora;
#[cfg(test)]
mod fake;
pub(crate) mod follower;
pub(crate) mod proofs;
mod rpc;

pub use backends::Backends;
pub use birthday::birthday;
pub use bitcoind::Bitcoind;
pub(crate) use doubt::doubt_of;
pub use esplora::Esplora;
pub use proofs::{ProvingBlock, answer_proof};

use bitcoin::{
    Amount, Block, BlockHash, FeeRate, Network, OutPoint, ScriptBuf, Transaction, Txid, block::Header,
};
use quorate_protocol::{
    headers::{Checkpoint, HeaderError},
    relay_policy::{FEE_RATE_MAX, FEE_RATE_MIN},
    wire::FeeEstimates,
};
use quorate_rules::{ChainCoin, index::UNDO_BLOCKS, scripts::ScriptError};
use std::{collections::BTreeSet, future::Future, pin::Pin};

/// A boxed answer of a backend.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, ChainError>> + Send + 'a>>;

/// A Bitcoin network.
pub trait Chain: Send + Sync + 'static {
    /// Called before a node goes on with the chain: what stands for several backends decides which one to ask from now
    /// on. `troubled` if the last attempt failed, or the tip was not believed. One that cannot choose does nothing.
    fn choose(&self, _network: Network, _birthday: Checkpoint, _troubled: bool) -> Answer<'_, ()> {
        Box::pin(async { Ok(()) })
    }
    /// Which of several backends is asked: 0 is the preferred one.
    fn preference(&self) -> usize {
        0
    }
    /// The block with the most work.
    fn tip(&self) -> Answer<'_, BlockHash>;
    /// Returns when the tip is another than `known`; may return early with the same.
    fn wait_for_tip(&self, known: BlockHash) -> Answer<'_, BlockHash>;
    /// A header with its height.
    fn header(&self, hash: BlockHash) -> Answer<'_, (Header, u32)>;
    /// The hash of the block at a height of the chain with the most work; `None` above its tip.
    fn hash_at(&self, height: u32) -> Answer<'_, Option<BlockHash>>;
    /// A block.
    fn block(&self, hash: BlockHash) -> Answer<'_, Block>;
    /// The confirmed, unspent output at an outpoint.
    fn coin(&self, outpoint: OutPoint) -> Answer<'_, Option<ChainCoin>>;
    /// The confirmed, unspent outputs with one of these scripts, as far as the backend says; may take minutes.
    fn unspent(&self, scripts: Vec<ScriptBuf>) -> Answer<'_, Vec<OutPoint>>;
    /// Hands a transaction to the network; already known is success.
    fn broadcast(&self, transaction: Transaction) -> Answer<'_, ()>;
    /// Hands transactions to the network in this order, each as [`Chain::broadcast`]. An error of the whole says that
    /// the backend is in trouble, and how far it came is not known.
    fn broadcast_all(&self, transactions: Vec<Transaction>) -> Answer<'_, Vec<Result<(), ChainError>>> {
        Box::pin(async move {
            let mut taken = Vec::with_capacity(transactions.len());
            for transaction in transactions {
                match self.broadcast(transaction).await {
                    Err(error) if !error.is_refusal() => return Err(error),
                    answer => taken.push(answer),
                }
            }
            Ok(taken)
        })
    }
    /// Why the backend may not be at the tip of its chain, as far as it knows that itself.
    fn doubt(&self) -> Answer<'_, Option<String>>;
    /// Fee rate for the next blocks.
    fn fees(&self) -> Answer<'_, Fees>;
    /// Hands a parent and a child that pays for it to the network together.
    fn broadcast_package(&self, package: Vec<Transaction>) -> Answer<'_, ()>;
    /// Which of these are neither in the mempool nor known in another way.
    fn missing(&self, txids: Vec<Txid>) -> Answer<'_, BTreeSet<Txid>>;
}

/// An error of Bitcoin Core's RPC.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message} (code {code})")]
pub struct DaemonError {
    /// Its code, as in Bitcoin Core's `rpc/protocol.h`.
    pub code: i64,
    /// Its words, for people.
    pub message: String,
}

/// Why a backend did not answer, or refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// The backend cannot be reached or answered nonsense; try again.
    #[error("the chain backend did not answer: {0}")]
    Backend(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Bitcoin Core speaks no TLS, and is asked over HTTP alone.
    #[error(
        "{0} cannot be asked: Bitcoin Core has no TLS; end that on this machine, by a tunnel (ssh -L, stunnel, WireGuard), and name its http:// address"
    )]
    Tls(String),
    /// The backend answered over HTTP, and not as one that serves us.
    #[error("the chain backend answers {status}: {body}")]
    Http {
        /// The status with its name.
        status: String,
        /// The start of what it says.
        body: String,
    },
    /// It does not let this node in.
    #[error("the chain backend refuses {0}")]
    Unauthorized(String),
    /// The daemon answered with an error of its own; try again.
    #[error("the chain backend refuses: {0}")]
    Daemon(#[from] DaemonError),
    /// The block is not known.
    #[error("block {0} is not known")]
    UnknownBlock(BlockHash),
    /// The transaction spends what does not exist, or is spent already.
    #[error("input {0} is missing or spent")]
    MissingInput(OutPoint),
    /// An output is not mature, or a lock time has not passed.
    #[error("input {0} is time-locked or an immature coinbase output")]
    Locked(OutPoint),
    /// A script does not verify.
    #[error(transparent)]
    Script(#[from] ScriptError),
    /// The daemon does not take the transaction.
    #[error("the transaction is refused: {0}")]
    Refused(#[source] DaemonError),
    /// Outputs above inputs, a lock time, or a malformed transaction.
    #[error("the transaction is refused: {0}")]
    Invalid(&'static str),
    /// A block that does not follow the rules.
    #[error("the block at height {height} is refused: {reason}")]
    InvalidBlock {
        /// Its height.
        height: u32,
        /// Why.
        reason: &'static str,
    },
    /// A block that is not the one that was asked for.
    #[error("the chain backend gave another block than {0}, or a damaged one")]
    WrongBlock(BlockHash),
    /// The backend has deleted a block's data, which Bitcoin Core does with `-prune`.
    #[error(
        "the chain backend has pruned block {0}, which this node has to read: name another backend that still has it (one that is not pruned, or keeps more: -prune=10000 is about two weeks); it can stand behind the pruned one"
    )]
    Pruned(BlockHash),
    /// A header that no miner of the network made.
    #[error("the chain backend gave a header that does not follow the rules: {0}")]
    Header(#[from] HeaderError),
    /// The backend's tip is not in the chain that it shows, or changes faster than it can be read.
    #[error("the chain backend says different things of its tip")]
    Unsteady,
    /// The backend's chain leaves the one that the node has read, and took less work.
    #[error(
        "the chain backend left the chain that this node has read after block {fork}, for one that took no more work"
    )]
    LessWork {
        /// Height of the last block that both have.
        fork: u32,
    },
    /// The backend is of another network, or follows a chain without the federation's birthday.
    #[error("the chain backend is not on {network} with block {expected} at height {height}: it has {}", found.map_or("none there".to_owned(), |hash| hash.to_string()))]
    OtherChain {
        /// The federation's network.
        network: Network,
        /// Height of the block.
        height: u32,
        /// The block that the federation knows.
        expected: BlockHash,
        /// What the backend has.
        found: Option<BlockHash>,
    },
    /// The backend has fewer blocks than the node has read, and they are the same.
    #[error(
        "the chain backend is at block {backend} and this node has read up to {node}; it waits until the backend has come that far"
    )]
    Behind {
        /// The backend's height.
        backend: u32,
        /// The node's.
        node: u32,
    },
    /// More blocks were taken out than a node can undo.
    #[error(
        "the backend's chain left the one that this node has read more than {UNDO_BLOCKS} blocks ago; if the backend is right, stop the node and let it read the chain again from the federation's birthday with `quorate-node index rebuild`"
    )]
    TooDeep,
    /// A fee below the relay minimum.
    #[error("a fee of {fee} is below the relay minimum of {least}")]
    FeeTooLow {
        /// Given.
        fee: Amount,
        /// Least.
        least: Amount,
    },
}

impl ChainError {
    /// Whether it is a transaction that is refused, and not the backend that is in trouble.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Refused(_)
                | Self::MissingInput(_)
                | Self::Locked(_)
                | Self::Script(_)
                | Self::Invalid(_)
                | Self::FeeTooLow { .. }
        )
    }

    /// Whether a transaction was refused because its fee is below what the mempool takes at present.
    pub fn is_low_fee(&self) -> bool {
        let by_daemon = matches!(self, Self::Refused(error) if error.message.contains("fee not met"));
        by_daemon || matches!(self, Self::FeeTooLow { .. })
    }
}

/// What a backend says of fees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fees {
    /// To be in one of the next blocks, in six, in a day; absent without an estimate, as on regtest.
    pub next_block: Option<FeeRate>,
    /// Within six blocks.
    pub six_blocks: Option<FeeRate>,
    /// Within 144 blocks.
    pub day: Option<FeeRate>,
    /// Below this the mempool takes nothing at present.
    pub mempool_min: FeeRate,
}

impl Fees {
    /// What wallets are told, with the floor of votes (V1): the highest of the relay minimum, the mempool's minimum and
    /// a quarter more, and the estimate for a day. No estimate is told below the floor.
    pub fn estimates(&self) -> FeeEstimates {
        let raised = FeeRate::from_sat_per_kwu(self.mempool_min.to_sat_per_kwu().saturating_mul(5) / 4);
        // A mempool that is not full has the relay minimum, which needs no margin.
        let pressure = if self.mempool_min > FEE_RATE_MIN { raised } else { FEE_RATE_MIN };
        let floor = pressure.max(self.day.unwrap_or(FEE_RATE_MIN)).clamp(FEE_RATE_MIN, FEE_RATE_MAX);
        let told = |estimate: Option<FeeRate>| {
            estimate.unwrap_or(FEE_RATE_FALLBACK).clamp(floor, FEE_RATE_MAX).to_sat_per_kwu()
        };
        FeeEstimates {
            next_block: told(self.next_block),
            six_blocks: told(self.six_blocks),
            day: told(self.day.or(Some(floor))),
            floor: floor.to_sat_per_kwu(),
        }
    }
}

/// Fee rate told while there is no estimate.
const FEE_RATE_FALLBACK: FeeRate = FeeRate::from_sat_per_vb_u32(2);
