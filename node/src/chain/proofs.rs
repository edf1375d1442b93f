//! Answers to wallets that ask for a transaction's place in the chain. After a block, all wallets with a payment in it
//! ask at once: it is read once for all of them.

use super::{Chain, ChainError};
use crate::run::turns::Fair;
use bitcoin::{Block, BlockHash, MerkleBlock, Transaction, Txid};
use futures_util::{
    FutureExt as _,
    future::{BoxFuture, Shared},
};
use quorate_protocol::wire::{
    Bare, BlockRef, ConfirmedSpend, ConflictProof, RawTransactionProof, ServerMessage,
};
use quorate_rules::Party;
use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Blocks that are kept; each takes some 10 MB at most.
const KEPT_BLOCKS: usize = 4;
/// Blocks that are read at a time.
const AT_A_TIME: usize = 2;

/// A block with its transactions' ids, which are its greatest cost to who proves several of them.
#[derive(Clone, Debug)]
pub struct ProvingBlock {
    hash: BlockHash,
    block: Block,
    txids: Vec<Txid>,
}

/// A block that is being read, or was; or why it was not.
type Reading = Shared<BoxFuture<'static, Result<Arc<ProvingBlock>, Arc<ChainError>>>>;

/// Blocks that are read, and those that were needed last.
pub(crate) struct Proofs {
    chain: Arc<dyn Chain>,
    readings: Arc<SharedReadings>,
    turns: Fair,
}

#[derive(Default)]
struct SharedReadings(Mutex<Readings>);

impl SharedReadings {
    fn lock(&self) -> MutexGuard<'_, Readings> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct Readings {
    /// Each party waits for its own, and not in the line of another.
    under_way: HashMap<(Party, BlockHash), Reading>,
    /// The one that was needed last comes first.
    kept: VecDeque<Arc<ProvingBlock>>,
}

impl Readings {
    /// One that is kept, which is then the one needed last.
    fn kept(&mut self, hash: BlockHash) -> Option<Arc<ProvingBlock>> {
        let block = self.kept.iter().find(|kept| kept.hash == hash).cloned()?;
        self.keep(block.clone());
        Some(block)
    }

    fn keep(&mut self, block: Arc<ProvingBlock>) {
        self.kept.retain(|kept| kept.hash != block.hash);
        self.kept.push_front(block);
        self.kept.truncate(KEPT_BLOCKS);
    }
}

impl Proofs {
    pub(crate) fn new(chain: Arc<dyn Chain>) -> Self {
        Self { chain, readings: Arc::default(), turns: Fair::new(AT_A_TIME) }
    }

    /// The answer to a wallet's question about a transaction, from the block that has it or what contradicts it.
    pub(crate) async fn answer(
        &self,
        party: Party,
        txid: Txid,
        of: ConfirmedSpend,
        path: Vec<Transaction>,
    ) -> ServerMessage {
        let block = self.block(party, of.block.hash).await;
        if let Err(error) = &block {
            tracing::debug!(%error, %txid, "the chain backend did not give the block of a proof");
        }
        answer_proof(block.ok().as_deref(), txid, of, path)
    }

    /// Who asks for a block that is being read for the same party gets the same answer.
    async fn block(&self, party: Party, hash: BlockHash) -> Result<Arc<ProvingBlock>, Arc<ChainError>> {
        let reading = {
            let mut readings = self.readings.lock();
            if let Some(block) = readings.kept(hash) {
                return Ok(block);
            }
            readings.under_way.entry((party, hash)).or_insert_with(|| self.read(party, hash)).clone()
        };
        let read = reading.clone().await;
        let mut readings = self.readings.lock();
        // The first to hear of it; who comes later may find another one.
        if readings.under_way.get(&(party, hash)).is_some_and(|other| other.ptr_eq(&reading)) {
            readings.under_way.remove(&(party, hash));
            if let Ok(block) = &read {
                readings.keep(block.clone());
            }
        }
        read
    }

    fn read(&self, party: Party, hash: BlockHash) -> Reading {
        let (chain, turns, readings) = (self.chain.clone(), self.turns.clone(), self.readings.clone());
        let read = async move {
            let _turn = turns.turn(party).await;
            // Another party may have needed it meanwhile.
            let kept = readings.lock().kept(hash);
            if let Some(block) = kept {
                return Ok(block);
            }
            let block = chain.block(hash).await.map_err(Arc::new)?;
            Ok(Arc::new(ProvingBlock::from(block)))
        };
        read.boxed().shared()
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
    use futures_util::future::{join, join_all};

    const PARTY: Party = Party::Certificate(1);

    /// A party wants a block's first transaction proved.
    async fn ask(proofs: &Proofs, backend: &Backend, party: Party, height: u32) {
        let hash = backend.hash(height).expect("mined");
        let txid = backend.with(|(blocks, _)| {
            let block = blocks.iter().find(|block| block.block_hash() == hash).expect("mined");
            block.txdata[0].compute_txid()
        });
        let of = ConfirmedSpend { txid, block: BlockRef { height, hash } };
        let answer = proofs.answer(party, txid, of, Vec::new()).await;
        assert!(matches!(answer, ServerMessage::Proof { proof: Some(_), .. }), "{answer:?}");
    }

    #[tokio::test]
    async fn a_block_is_read_once_for_all_who_ask_and_few_are_kept() {
        let backend = Arc::new(Backend::mined(10));
        let proofs = Proofs::new(backend.clone());
        let read = || backend.with(|(_, read)| *read);
        let ask = |height| ask(&proofs, &backend, PARTY, height);
        // All of them ask before the first block is read.
        let held = join(proofs.turns.turn(PARTY), proofs.turns.turn(PARTY)).await;
        join(join_all((0..100).map(|number| ask(number % 10 + 1))), async { drop(held) }).await;
        assert_eq!(read(), 10, "more blocks than are kept, each once");
        let kept = || proofs.readings.lock().kept.iter().map(|block| block.hash).collect::<Vec<_>>();
        assert_eq!((kept().len(), proofs.readings.lock().under_way.len()), (KEPT_BLOCKS, 0));
        let oldest = kept()[KEPT_BLOCKS - 1];
        let height = (1..=10).find(|height| backend.hash(*height) == Some(oldest)).expect("one of them");
        ask(height).await;
        assert_eq!((read(), kept()[0]), (10, oldest), "what is needed stays");
    }

    #[tokio::test]
    async fn who_asks_for_many_blocks_waits_for_itself() {
        let backend = Arc::new(Backend::mined(100));
        let proofs = Arc::new(Proofs::new(backend.clone()));
        let held = join(proofs.turns.turn(PARTY), proofs.turns.turn(PARTY)).await;
        let asks = |party, height| {
            let (proofs, backend) = (proofs.clone(), backend.clone());
            tokio::spawn(async move {
                ask(&proofs, &backend, party, height).await;
                backend.with(|(_, read)| *read)
            })
        };
        let greedy: Vec<_> = (1..=100).map(|height| asks(PARTY, height)).collect();
        // It comes last, and wants a block that the other waits for, too.
        let modest = asks(Party::Certificate(2), 100);
        tokio::task::yield_now().await;
        drop(held);
        let read = modest.await.expect("no panic");
        assert!(read <= 5, "it waited for {read} blocks");
        join_all(greedy).await;
    }

    #[tokio::test]
    async fn a_block_that_the_backend_does_not_give_is_asked_for_again_later() {
        let backend = Arc::new(Backend::mined(1));
        let proofs = Proofs::new(backend.clone());
        let hash = backend.hash(1).expect("mined");
        let block = backend.with(|(blocks, _)| blocks.pop()).expect("mined");
        let held = join(proofs.turns.turn(PARTY), proofs.turns.turn(PARTY)).await;
        let asked = [proofs.block(PARTY, hash), proofs.block(PARTY, hash)];
        let (read, ()) = join(join_all(asked), async { drop(held) }).await;
        assert!(read.iter().all(Result::is_err));
        assert_eq!(backend.with(|(_, read)| *read), 1, "one failure for both");
        backend.with(|(blocks, _)| blocks.push(block));
        assert!(proofs.block(PARTY, hash).await.is_ok());
    }
}
