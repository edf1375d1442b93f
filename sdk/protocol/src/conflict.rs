//! Proof that a transaction can be in no block of a chain any more (design, section 4): the chain has the last word.
//!
//! A block has a transaction that spends an input of it, or of an ancestor of it that is in no block. That is told with
//! everything that it takes to check it: the transactions on the way to that ancestor, and the other transaction's
//! place in the chain. A reorganisation can undo it, so it holds as long as the block is in the verifier's own chain.

use crate::{
    headers::{HeaderChain, ProofError},
    wire::{ConfirmedSpend, ConflictProof},
};
use bitcoin::Txid;

/// Most transactions between one and the ancestor that a block contradicts. A cluster has 25; a reorganisation can make
/// longer chains.
pub const CONFLICT_PATH_MAX: usize = 200;

/// Why such a proof is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConflictError {
    /// The path does not begin with the transaction, does not hang together, or is too long.
    #[error("the transactions of the proof are not a chain of ancestors")]
    Path,
    /// The transaction in the block takes nothing that the last of the path spends, or is that one itself.
    #[error("the transaction in the block does not conflict")]
    NoConflict,
    /// Its place in the chain does not verify.
    #[error(transparent)]
    Place(#[from] ProofError),
}

impl ConflictProof {
    /// Checks it against one's own headers; gives what is in the block.
    ///
    /// # Errors
    /// The block is not known yet (get headers first), or the proof does not hold (its sender is at fault).
    pub fn verify(&self, txid: Txid, chain: &HeaderChain) -> Result<ConfirmedSpend, ConflictError> {
        if self.path.len() > CONFLICT_PATH_MAX {
            return Err(ConflictError::Path);
        }
        let mut path = self.path.iter().map(|bare| &bare.0);
        let mut last = path.next().filter(|first| first.compute_txid() == txid).ok_or(ConflictError::Path)?;
        for parent in path {
            let id = parent.compute_txid();
            if !last.input.iter().any(|input| input.previous_output.txid == id) {
                return Err(ConflictError::Path);
            }
            last = parent;
        }
        let other = self.spender.transaction.compute_txid();
        let spender = chain.verify(other, &self.spender)?;
        let takes = |outpoint| spender.input.iter().any(|input| input.previous_output == outpoint);
        if other == last.compute_txid() || !last.input.iter().any(|input| takes(input.previous_output)) {
            return Err(ConflictError::NoConflict);
        }
        Ok(ConfirmedSpend { txid: other, block: self.spender.block })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        headers::Checkpoint,
        wire::{Bare, BlockRef, RawTransactionProof},
    };
    use bitcoin::{
        Amount, Block, MerkleBlock, Network, OutPoint, ScriptBuf, Transaction, TxIn, TxOut,
        absolute::LockTime, block::Version as BlockVersion, constants::genesis_block, hashes::Hash as _,
        transaction::Version,
    };

    fn spend(outpoint: OutPoint, outputs: u64) -> Transaction {
        Transaction {
            version: Version::TWO,
            lock_time: LockTime::ZERO,
            input: vec![TxIn { previous_output: outpoint, ..TxIn::default() }],
            output: (1..=outputs)
                .map(|value| TxOut {
                    value: Amount::from_sat(value),
                    script_pubkey: ScriptBuf::from(vec![0x51; 30]),
                })
                .collect(),
        }
    }

    /// A chain whose first block has one transaction beside its coinbase.
    fn chain_with(transaction: &Transaction) -> (HeaderChain, RawTransactionProof) {
        let genesis = genesis_block(Network::Regtest);
        let mut header = genesis.header;
        (header.version, header.prev_blockhash) = (BlockVersion::TWO, genesis.block_hash());
        header.time += 600;
        let txdata = vec![spend(OutPoint::null(), 1), transaction.clone()];
        let mut block = Block { header, txdata };
        block.header.merkle_root = block.compute_merkle_root().expect("it has transactions");
        while block.header.validate_pow(block.header.target()).is_err() {
            block.header.nonce += 1;
        }
        let mut chain = HeaderChain::new(Network::Regtest, Checkpoint::genesis(Network::Regtest));
        chain.extend(&[block.header]).expect("valid");
        let txid = transaction.compute_txid();
        let proof = RawTransactionProof {
            block: BlockRef { height: 1, hash: block.block_hash() },
            merkle_block: MerkleBlock::from_block_with_predicate(&block, |one| *one == txid),
            transaction: transaction.clone(),
        };
        (chain, proof)
    }

    #[test]
    fn a_descendant_of_what_lost_on_the_chain_is_dead() {
        let coin = OutPoint { txid: Txid::hash(b"coin"), vout: 3 };
        let parent = spend(coin, 2);
        let child = spend(OutPoint { txid: parent.compute_txid(), vout: 1 }, 1);
        let winner = spend(coin, 5);
        let (chain, spender) = chain_with(&winner);
        let proof = |path: &[&Transaction]| ConflictProof {
            path: path.iter().map(|one| Bare::from((*one).clone())).collect(),
            spender: spender.clone(),
        };
        let (txid, parent_txid) = (child.compute_txid(), parent.compute_txid());
        let spend = proof(&[&child, &parent]).verify(txid, &chain).expect("holds");
        assert_eq!((spend.txid, spend.block.height), (winner.compute_txid(), 1));
        proof(&[&parent]).verify(parent_txid, &chain).expect("holds of the parent");
        let json = serde_json::to_string(&proof(&[&child, &parent])).expect("serialises");
        let read: ConflictProof = serde_json::from_str(&json).expect("parses");
        read.verify(txid, &chain).expect("holds after the wire");

        // Nothing of it can be left out or put in another order, and nothing else passes for it.
        for path in [&[][..], &[&child], &[&parent, &child], &[&parent]] {
            proof(path).verify(txid, &chain).expect_err("no chain of ancestors to a conflict");
        }
        assert_eq!(proof(&[&winner]).verify(winner.compute_txid(), &chain), Err(ConflictError::NoConflict));
        let long = vec![&child; CONFLICT_PATH_MAX + 1];
        assert_eq!(proof(&long).verify(txid, &chain), Err(ConflictError::Path));
        let other = HeaderChain::new(Network::Regtest, Checkpoint::genesis(Network::Regtest));
        assert!(matches!(proof(&[&parent]).verify(parent_txid, &other), Err(ConflictError::Place(_))));
        let mut moved = proof(&[&parent]);
        moved.spender.transaction = child.clone();
        moved.verify(parent_txid, &chain).expect_err("another transaction than the block's");
    }
}
