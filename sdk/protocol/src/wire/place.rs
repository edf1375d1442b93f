//! A transaction's place in the chain, or why it has none, for a wallet to verify.

use super::BlockRef;
use bitcoin::Transaction;
use serde::{Deserialize, Serialize};

/// A transaction's place in a block, to be verified by the wallet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawTransactionProof {
    /// The block.
    pub block: BlockRef,
    /// Header and partial Merkle tree as in BIP37's `merkleblock`, in hex.
    #[serde(with = "crate::consensus_hex")]
    pub merkle_block: bitcoin::MerkleBlock,
    /// The transaction, in hex.
    #[serde(with = "crate::consensus_hex")]
    pub transaction: Transaction,
}

/// A transaction without its witnesses, in hex: its txid is all that counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bare(#[serde(with = "crate::consensus_hex")] pub Transaction);

impl From<Transaction> for Bare {
    fn from(mut transaction: Transaction) -> Self {
        for input in &mut transaction.input {
            input.witness = bitcoin::Witness::new();
        }
        Self(transaction)
    }
}

/// Why a transaction is dead.
///
/// ```
/// # fn example(proof: &quorate::wire::ConflictProof, txid: bitcoin::Txid, chain: &quorate::headers::HeaderChain) {
/// match proof.verify(txid, chain) {
///     Ok(spend) => println!("{} took its coin at height {}", spend.txid, spend.block.height),
///     Err(error) => println!("nothing of it is taken: {error}"),
/// }
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConflictProof {
    /// From the transaction to the ancestor that a block contradicts, which may be itself; each spends an output of the
    /// next one.
    pub path: Vec<Bare>,
    /// The transaction in a block that spends an input of the last of them.
    pub spender: RawTransactionProof,
}
