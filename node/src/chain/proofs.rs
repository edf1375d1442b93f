//! Answers to wallets that ask for a transaction's place in the chain. After a block, all wallets with a payment in it
//! ask at once: it is read once for all of them.

use super::{Chain, ChainError};
use bitcoin::{Block, BlockHash, MerkleBlock, Transaction, Txid};
use quorate_protocol::wire::{
    Bare, BlockRef, ConfirmedSpend, ConflictProof, RawTransactionProof, ServerMessage,
};
use std::{
    collections::VecDeque,
    sync::{Arc, PoisonError, RwLock},
};
use tokio::sync::Mutex;

/// Blocks that are kept; each takes some 10 MB at most.
const KEPT_BLOCKS: usize = 4;

/// A block with its transactions' ids, which are its greatest cost to who proves several of them.
#[derive(Clone, Debug)]
pub struct ProvingBlock {
    hash: BlockHash,
    block: Block,
    txids: Vec<Txid>,
}

/// Blocks that were read last.
pub(crate) struct Proofs {
    chain: Arc<dyn Chain>,
    known: RwLock<VecDeque<Arc<ProvingBlock>>>,
    /// One block is read at a time: who waits for it may find that it was read for another.
    turn: Mutex<()>,
}

impl Proofs {
    pub(crate) fn new(chain: Arc<dyn Chain>) -> Self {
        Self { chain, known: RwLock::default(), turn: Mutex::default() }
    }

    /// The answer to a wallet's question about a transaction, from the block that has it or what contradicts it.
    pub(crate) async fn answer(
        &self,
        txid: Txid,
        of: ConfirmedSpend,
        path: Vec<Transaction>,
    ) -> ServerMessage {
        let block = self.block(of.block.hash).await;
        if let Err(error) = &block {
            tracing::debug!(%error, %txid, "the chain backend did not give the block of a proof");
        }
        answer_proof(block.ok().as_deref(), txid, of, path)
    }

    async fn block(&self, hash: BlockHash) -> Result<Arc<ProvingBlock>, ChainError> {
        if let Some(known) = self.known(hash) {
            return Ok(known);
        }
        let _turn = self.turn.lock().await;
        if let Some(known) = self.known(hash) {
            return Ok(known);
        }
        let read = Arc::new(ProvingBlock::from(self.chain.block(hash).await?));
        let mut known = self.known.write().unwrap_or_else(PoisonError::into_inner);
        known.truncate(KEPT_BLOCKS - 1);
        known.push_front(read.clone());
        Ok(read)
    }

    fn known(&self, hash: BlockHash) -> Option<Arc<ProvingBlock>> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        known.iter().find(|known| known.hash == hash).cloned()
    }
}

impl From<Block> for ProvingBlock {
    fn from(block: Block) -> Self {
        let txids = block.txdata.iter().map(Transaction::compute_txid).collect();
        Self { hash: block.block_hash(), block, txids }
    }
}

impl ProvingBlock {
    /// A transaction's place in the block, for a wallet to verify; `None` if the block does not have it.
    fn prove(&self, txid: Txid, at: BlockRef) -> Option<RawTransactionProof> {
        let place = self.txids.iter().position(|one| *one == txid)?;
        let transaction = self.block.txdata.get(place)?.clone();
        let (header, is_it) = (&self.block.header, |one: &Txid| *one == txid);
        let merkle_block = MerkleBlock::from_header_txids_with_predicate(header, &self.txids, is_it);
        Some(RawTransactionProof { block: at, merkle_block, transaction })
    }
}

/// The answer to a wallet's question about a transaction, from the block that has it or what contradicts it.
pub fn answer_proof(
    block: Option<&ProvingBlock>,
    txid: Txid,
    of: ConfirmedSpend,
    path: Vec<Transaction>,
) -> ServerMessage {
    match block.and_then(|block| block.prove(of.txid, of.block)) {
        Some(spender) if of.txid != txid => {
            let path = path.into_iter().map(Bare::from).collect();
            let conflict = Some(Box::new(ConflictProof { path, spender }));
            ServerMessage::Proof { txid, proof: None, conflict }
        }
        proof => ServerMessage::Proof { txid, proof, conflict: None },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::fake::Backend;
    use futures_util::future::join_all;

    #[tokio::test]
    async fn a_block_is_read_once_for_all_who_ask_and_few_are_kept() {
        let backend = Arc::new(Backend::mined(6));
        let proofs = Proofs::new(backend.clone());
        let ask = async |height: u32| {
            let hash = backend.hash(height).expect("mined");
            let txid = backend.with(|(blocks, _)| {
                let block = blocks.iter().find(|block| block.block_hash() == hash).expect("mined");
                block.txdata[0].compute_txid()
            });
            let of = ConfirmedSpend { txid, block: BlockRef { height, hash } };
            let answer = proofs.answer(txid, of, Vec::new()).await;
            assert!(matches!(answer, ServerMessage::Proof { proof: Some(_), .. }), "{answer:?}");
        };
        join_all((0..100).map(|number| ask(number % 2 + 1))).await;
        assert_eq!(backend.with(|(_, read)| *read), 2);
        for height in 1..=6 {
            ask(height).await;
        }
        assert_eq!(backend.with(|(_, read)| *read), 6);
        assert_eq!(proofs.known.read().expect("one thread").len(), KEPT_BLOCKS);
    }
}
