//! What a node needs of a Bitcoin network: one small, stateless trait. Reorganisations and scripts are the follower's business.

mod bitcoind;
pub(crate) mod follower;

pub use bitcoind::Bitcoind;

use bitcoin::{Amount, Block, BlockHash, FeeRate, MerkleBlock, OutPoint, Transaction, Txid, block::Header};
use quorate_protocol::wire::{BlockRef, RawTransactionProof};
use quorate_rules::ChainCoin;
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

/// Why a backend did not answer, or refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// The backend cannot be reached or answered nonsense; try again.
    #[error("the chain backend did not answer: {0}")]
    Backend(String),
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
    #[error("the script of input {index} does not verify")]
    Script {
        /// Which input.
        index: usize,
    },
    /// Outputs above inputs, fee under the minimum, or a malformed transaction.
    #[error("the transaction is refused: {0}")]
    Refused(String),
    /// A fee below the relay minimum.
    #[error("a fee of {fee} is below the relay minimum of {least}")]
    FeeTooLow {
        /// Given.
        fee: Amount,
        /// Least.
        least: Amount,
    },
}

/// A transaction's place in a block, for a wallet to verify; `None` if the block does not have it.
pub fn prove(block: &Block, txid: Txid, at: BlockRef) -> Option<RawTransactionProof> {
    let transaction = block.txdata.iter().find(|one| one.compute_txid() == txid)?.clone();
    let merkle_block = MerkleBlock::from_block_with_predicate(block, |other| *other == txid);
    Some(RawTransactionProof { block: at, merkle_block, transaction })
}
