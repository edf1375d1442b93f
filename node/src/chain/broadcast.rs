//! The one queue through which transactions go to the Bitcoin network: parents first, some at a time, only what the
//! mempool lacks; with a child that pays for it where a parent's own fee is too low by now.

use super::{Chain, ChainError, complaint::Complaint};
use crate::run::{input::Input, queue::Inputs};
use bitcoin::{Transaction, Txid};
use quorate_protocol::wire::limits;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Notify;

/// Transactions that are handed in at a time.
const AT_A_TIME: usize = 25;
/// Most children that are tried as the one that pays for its parent.
const CHILDREN_MAX: usize = 24;

/// What is to be sent, each transaction once.
#[derive(Debug, Default)]
pub(crate) struct Queue {
    waiting: Mutex<BTreeMap<Txid, Transaction>>,
    news: Notify,
}

impl Queue {
    /// Adds transactions; one that waits already is not added again.
    pub(crate) fn push(&self, transactions: impl IntoIterator<Item = Transaction>) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.extend(transactions.into_iter().map(|one| (one.compute_txid(), one)));
        self.news.notify_one();
    }

    fn take(&self) -> BTreeMap<Txid, Transaction> {
        std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Sends until the node ends, and tells it how each transaction fared. What a backend that does not answer was not
    /// given is left to the next sweep.
    pub(crate) async fn run(self: Arc<Self>, chain: Arc<dyn Chain>, inputs: Inputs) {
        let complaint = Complaint::new("take transactions");
        loop {
            tokio::select! {
                () = self.news.notified() => {}
                () = inputs.closed() => return,
            }
            let batch = self.take();
            let txids = batch.keys().copied().collect();
            let mut missing = match chain.missing(txids).await {
                Ok(missing) => missing,
                Err(error) => {
                    complaint.raise(&error);
                    continue;
                }
            };
            for some in parents_first(&batch).chunks(AT_A_TIME) {
                let told = match hand_in(&*chain, some, &batch, &mut missing).await {
                    Ok(told) => told,
                    Err(error) => {
                        complaint.raise(&error);
                        break;
                    }
                };
                complaint.settle();
                for (txid, refusal) in told {
                    if inputs.send(Input::Broadcast { txid, refusal }).await.is_err() {
                        return;
                    }
                }
            }
        }
    }
}

/// Hands in those of some transactions that the mempool lacks, and gives what it says against each.
async fn hand_in(
    chain: &dyn Chain,
    some: &[&Transaction],
    batch: &BTreeMap<Txid, Transaction>,
    missing: &mut BTreeSet<Txid>,
) -> Result<Vec<(Txid, Option<String>)>, ChainError> {
    let with_txid = some.iter().map(|transaction| (transaction.compute_txid(), *transaction));
    let (lacking, known): (Vec<_>, Vec<_>) = with_txid.partition(|(txid, _)| missing.contains(txid));
    let mut told: Vec<_> = known.into_iter().map(|(txid, _)| (txid, None)).collect();
    if lacking.is_empty() {
        return Ok(told);
    }
    let all = lacking.iter().map(|(_, transaction)| (*transaction).clone()).collect();
    for ((txid, transaction), answer) in lacking.into_iter().zip(chain.broadcast_all(all).await?) {
        // One that was refused may be rescued by a child, and have kept others of these back until then.
        let answer = match answer {
            Err(error) if error.is_refusal() => send(chain, transaction, batch, missing).await,
            answer => answer,
        };
        let refusal = match answer {
            Ok(()) => {
                missing.remove(&txid);
                None
            }
            Err(error) if !error.is_refusal() => return Err(error),
            Err(error) => Some(error.to_string().chars().take(limits::REFUSAL_CHARS_MAX).collect()),
        };
        told.push((txid, refusal));
    }
    Ok(told)
}

/// Sends one; if its own fee is too low, together with one that spends it, and with what that one spends besides and
/// the mempool lacks. (A package whose parents depend on each other is refused: it has none that is there.)
async fn send(
    chain: &dyn Chain,
    transaction: &Transaction,
    batch: &BTreeMap<Txid, Transaction>,
    missing: &BTreeSet<Txid>,
) -> Result<(), ChainError> {
    let refused = match chain.broadcast(transaction.clone()).await {
        Err(error) if error.is_low_fee() => error,
        other => return other,
    };
    // Which child pays enough is not known here: some pay for themselves only.
    let txid = transaction.compute_txid();
    let spends = |one: &&Transaction| one.input.iter().any(|input| input.previous_output.txid == txid);
    for child in batch.values().filter(spends).take(CHILDREN_MAX) {
        let named: BTreeSet<Txid> = child.input.iter().map(|input| input.previous_output.txid).collect();
        let parents = named.intersection(missing).filter_map(|parent| batch.get(parent));
        let package = parents.chain([child]).cloned().collect();
        match chain.broadcast_package(package).await {
            Ok(()) => return Ok(()),
            Err(error) if !error.is_refusal() => return Err(error),
            Err(_poor) => {}
        }
    }
    Err(refused)
}

/// Each after all of the batch that it spends.
fn parents_first(batch: &BTreeMap<Txid, Transaction>) -> Vec<&Transaction> {
    let mut ordered = Vec::with_capacity(batch.len());
    let mut left: BTreeMap<Txid, &Transaction> = batch.iter().map(|(txid, one)| (*txid, one)).collect();
    while !left.is_empty() {
        let ready: Vec<Txid> = left
            .iter()
            .filter(|(_, one)| !one.input.iter().any(|input| left.contains_key(&input.previous_output.txid)))
            .map(|(txid, _)| *txid)
            .collect();
        if ready.is_empty() {
            // Transactions cannot spend each other in a circle.
            break;
        }
        ordered.extend(ready.iter().filter_map(|txid| left.remove(txid)));
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chain::{Answer, Fees};
    use bitcoin::{
        Amount, Block, BlockHash, OutPoint, ScriptBuf, TxIn, absolute::LockTime, block::Header,
        hashes::Hash as _, transaction::Version,
    };
    use quorate_rules::ChainCoin;

    fn spend(parent: Txid, salt: u32) -> Transaction {
        let lock_time = LockTime::from_consensus(salt);
        let input = vec![TxIn { previous_output: OutPoint { txid: parent, vout: 0 }, ..TxIn::default() }];
        Transaction { version: Version::TWO, lock_time, input, output: Vec::new() }
    }

    #[test]
    fn parents_come_before_children_whatever_their_ids() {
        for salt in 0..50 {
            let mut chain = vec![spend(Txid::all_zeros(), salt)];
            for _ in 0..5 {
                chain.push(spend(chain.last().expect("one").compute_txid(), salt));
            }
            let batch = chain.iter().rev().map(|one| (one.compute_txid(), one.clone())).collect();
            assert_eq!(parents_first(&batch), chain.iter().collect::<Vec<_>>());
        }
    }

    /// A network that takes nothing by itself, and packages that hold this transaction.
    #[derive(Default)]
    struct Dear {
        pays: Option<Txid>,
        packages: Mutex<Vec<Vec<Txid>>>,
    }

    impl Chain for Dear {
        fn broadcast(&self, _transaction: Transaction) -> Answer<'_, ()> {
            let low = ChainError::FeeTooLow { fee: Amount::ZERO, least: Amount::ONE_SAT };
            Box::pin(async { Err(low) })
        }

        fn broadcast_package(&self, package: Vec<Transaction>) -> Answer<'_, ()> {
            let txids: Vec<Txid> = package.iter().map(Transaction::compute_txid).collect();
            let taken = self.pays.is_some_and(|pays| txids.contains(&pays));
            self.packages.lock().expect("one thread").push(txids);
            Box::pin(async move { if taken { Ok(()) } else { Err(ChainError::Invalid("poor")) } })
        }

        fn tip(&self) -> Answer<'_, BlockHash> {
            unreachable!("sending asks for no tip")
        }

        fn wait_for_tip(&self, _known: BlockHash) -> Answer<'_, BlockHash> {
            unreachable!("nor waits for one")
        }

        fn header(&self, _hash: BlockHash) -> Answer<'_, (Header, u32)> {
            unreachable!("nor for headers")
        }

        fn block(&self, _hash: BlockHash) -> Answer<'_, Block> {
            unreachable!("nor for blocks")
        }

        fn doubt(&self) -> Answer<'_, Option<String>> {
            unreachable!("nor doubts anything")
        }

        fn hash_at(&self, _height: u32) -> Answer<'_, Option<BlockHash>> {
            unreachable!("nor for their hashes")
        }

        fn coin(&self, _outpoint: OutPoint) -> Answer<'_, Option<ChainCoin>> {
            unreachable!("nor for coins")
        }

        fn unspent(&self, _scripts: Vec<ScriptBuf>) -> Answer<'_, Vec<OutPoint>> {
            unreachable!("of no script")
        }

        fn fees(&self) -> Answer<'_, Fees> {
            unreachable!("nor for fees")
        }

        fn missing(&self, _txids: Vec<Txid>) -> Answer<'_, BTreeSet<Txid>> {
            unreachable!("it is told what is missing")
        }
    }

    #[tokio::test]
    async fn a_child_brings_its_parents_that_the_mempool_lacks_and_poor_ones_do_not_hold_it_up() {
        let parents = [1, 2, 3].map(|salt| spend(Txid::all_zeros(), salt));
        let [first, second, there] = parents.each_ref().map(Transaction::compute_txid);
        let mut rich = spend(first, 4);
        for txid in [second, there] {
            rich.input.push(TxIn { previous_output: OutPoint { txid, vout: 0 }, ..TxIn::default() });
        }
        let poor = (5..15).map(|salt| spend(first, salt));
        let pays = rich.compute_txid();
        let all = parents.iter().cloned().chain([rich]).chain(poor);
        let batch: BTreeMap<Txid, Transaction> = all.map(|one| (one.compute_txid(), one)).collect();
        let missing: BTreeSet<Txid> = batch.keys().copied().filter(|txid| *txid != there).collect();
        let network = Dear { pays: Some(pays), ..Dear::default() };
        send(&network, &parents[0], &batch, &missing).await.expect("one of them pays");
        let taken = network.packages.lock().expect("one thread").pop().expect("a package");
        assert_eq!(taken.last(), Some(&pays), "the child comes last");
        let brought: BTreeSet<Txid> = taken.iter().copied().filter(|txid| *txid != pays).collect();
        assert_eq!(brought, BTreeSet::from([first, second]), "without the one that is there");
        let refused = send(&Dear::default(), &parents[0], &batch, &missing).await.expect_err("none pays");
        assert!(refused.is_low_fee(), "its own fault is told: {refused}");
    }
}
