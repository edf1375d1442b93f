//! What a node needs of a Bitcoin network: one small, stateless trait. Reorganisations and scripts are the follower's
//! business.

mod bitcoind;
pub(crate) mod follower;

pub use bitcoind::Bitcoind;

use bitcoin::{Amount, Block, BlockHash, FeeRate, MerkleBlock, OutPoint, Transaction, Txid, block::Header};
use quorate_protocol::wire::{
    Bare, BlockRef, ConfirmedSpend, ConflictProof, RawTransactionProof, ServerMessage,
};
use quorate_rules::{ChainCoin, scripts::ScriptError};
use std::{future::Future, pin::Pin};

/// A boxed answer of a backend.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, ChainError>> + Send + 'a>>;

/// A Bitcoin network.
pub trait Chain: Send + Sync + 'static {
    /// The block with the most work.
    fn tip(&self) -> Answer<'_, BlockHash>;
    /// Returns when the tip is another than `known`; may return early with the same.
    fn wait_for_tip(&self, known: BlockHash) -> Answer<'_, BlockHash>;
    /// A header with its height.
    fn header(&self, hash: BlockHash) -> Answer<'_, (Header, u32)>;
    /// A block.
    fn block(&self, hash: BlockHash) -> Answer<'_, Block>;
    /// The confirmed, unspent output at an outpoint.
    fn coin(&self, outpoint: OutPoint) -> Answer<'_, Option<ChainCoin>>;
    /// Hands a transaction to the network; already known is success.
    fn broadcast(&self, transaction: Transaction) -> Answer<'_, ()>;
    /// Fee rate for the next blocks.
    fn fee_rate(&self) -> Answer<'_, FeeRate>;
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
    /// A fee below the relay minimum.
    #[error("a fee of {fee} is below the relay minimum of {least}")]
    FeeTooLow {
        /// Given.
        fee: Amount,
        /// Least.
        least: Amount,
    },
}

/// The answer to a wallet's question about a transaction, from the block that has it or what contradicts it.
pub fn answer_proof(
    block: Option<&Block>,
    txid: Txid,
    of: ConfirmedSpend,
    path: Vec<Transaction>,
) -> ServerMessage {
    let place = block.and_then(|block| prove(block, of.txid, of.block));
    match place {
        Some(spender) if of.txid != txid => {
            let path = path.into_iter().map(Bare::from).collect();
            let conflict = Some(Box::new(ConflictProof { path, spender }));
            ServerMessage::Proof { txid, proof: None, conflict }
        }
        proof => ServerMessage::Proof { txid, proof, conflict: None },
    }
}

/// A transaction's place in a block, for a wallet to verify; `None` if the block does not have it.
pub fn prove(block: &Block, txid: Txid, at: BlockRef) -> Option<RawTransactionProof> {
    let transaction = block.txdata.iter().find(|one| one.compute_txid() == txid)?.clone();
    let merkle_block = MerkleBlock::from_block_with_predicate(block, |other| *other == txid);
    Some(RawTransactionProof { block: at, merkle_block, transaction })
}
