//! State that ends: what no block can undo any more goes to the archive, and what nothing depends on any more goes.
//!
//! # Why it is safe
//!
//! A coin is at rest when the block that spends it is too deep to be undone ([`UNDO_BLOCKS`]). Nobody votes, commits or
//! promises about a coin that the node does not know and the chain does not have, so no statement about one at rest
//! can contradict what was forgotten of it: it is unknown from the moment on in which anything about it is forgotten.
//! A record and its inputs go together: a record once each of its inputs goes, an outpoint once no record names it that
//! stays, and no certificate by which a release holds another outpoint ([`Ledger::named`]). A record that never became
//! final may leave an outpoint that stays, if that was released to a later round in which nothing names the record: V2
//! and V4 speak of the present round, and a promise names the highest certificate, which is kept. What is final and
//! dead stays as long as what descends from it does.
//!
//! Store and index are two files, and neither waits for the other. What the archive keeps of transactions comes first
//! ([`Ledger::prepare`]); when that is durable, records and rounds leave the store ([`Ledger::settle`]); only when that
//! is ([`Ledger::drop_settled`]) do coins leave the index, with the rows that the archive has instead of them. A crash
//! in between leaves coins in the index that nobody names, and they go at the start.

use super::{Coin, Conflict, Ledger, coins::Leaving};
use crate::{archive::SettledTransaction, index::UNDO_BLOCKS, records::TxRecord};
use bitcoin::{OutPoint, Txid};
use quorate_protocol::{Round, wire::BlockRef};
use std::collections::BTreeSet;

/// What is forgotten at once.
#[derive(Debug, Default)]
pub(crate) struct Settlement {
    /// Transactions whose records go.
    pub(crate) transactions: Vec<Txid>,
    /// Outpoints about which nothing is known any more.
    pub(crate) outpoints: BTreeSet<OutPoint>,
    /// Those of them that had a round.
    pub(crate) rounds: Vec<OutPoint>,
}

impl Ledger {
    /// Whether no block can be undone any more that is as deep as this one.
    pub(super) fn is_out_of_reach(&self, block: BlockRef) -> bool {
        self.tip().height >= block.height.saturating_add(UNDO_BLOCKS)
    }

    /// After a start: coins that were spent long ago. Those that nothing names go at once; the store had forgotten
    /// them when the node stopped.
    pub(super) fn restore_resting(&mut self) {
        let spent = self.coins.iter().filter_map(|(outpoint, coin)| Some((*outpoint, coin.spent()?)));
        let unknown = self.unknown_spent.iter().map(|(outpoint, spent)| (*outpoint, *spent));
        let resting = spent.chain(unknown).filter(|(_, spent)| self.is_out_of_reach(spent.block));
        self.resting = resting.map(|(outpoint, _)| outpoint).collect();
        let named = self.named(&BTreeSet::new(), &self.resting);
        let said = |outpoint: &OutPoint| named.contains(outpoint) || self.rounds.contains(outpoint);
        let idle: BTreeSet<OutPoint> =
            self.resting.iter().filter(|outpoint| !said(outpoint)).copied().collect();
        self.take_out(&idle);
        // The archive has had their spenders since before the store forgot them.
        self.archived = self.leaving.iter().filter_map(Leaving::spender).collect();
        self.drop_settled();
    }

    /// Whether a coin is spent for good and this node knows of nothing that it said about it, which it may have
    /// forgotten.
    pub(crate) fn is_forgotten(&self, outpoint: &OutPoint) -> bool {
        let spent = self.coin(outpoint).and_then(Coin::spent);
        spent.is_some_and(|spent| self.blocks.is_buried(spent.block)) && !self.rounds.contains(outpoint)
    }

    /// Puts what will be forgotten next into the archive, unless `is_live` says that somebody works on a transaction.
    /// `true` if there is anything: it has to be durable there before [`Self::settle`].
    pub(crate) fn prepare(&mut self, is_live: impl Fn(&Txid) -> bool) -> bool {
        if !self.leaving.is_empty() || self.prepared.is_some() {
            return false;
        }
        let (ended, outpoints) = self.ending(is_live);
        if ended.is_empty() && outpoints.is_empty() {
            return false;
        }
        for txid in &ended {
            if let Some(settled) = self.settled_as(txid) {
                self.archive.archive_transaction(txid, &settled);
            }
            if self.has_unspent(txid) && self.block_of(txid).is_some() {
                let proof = self.transactions.get(txid).and_then(|record| record.proof.as_ref());
                self.archive.archive_proof(txid, proof);
            }
        }
        self.prepared = Some(ended);
        true
    }

    /// What was prepared is not in the archive.
    pub(crate) fn forget_prepared(&mut self) {
        self.prepared = None;
    }

    /// Forgets records and rounds that have come to rest and were prepared; nothing if others have joined them since.
    /// What it gives has to be durable before [`Self::drop_settled`]; until then there is no further one.
    pub(crate) fn settle(&mut self, is_live: impl Fn(&Txid) -> bool) -> Option<Settlement> {
        let prepared = self.prepared.take()?;
        let (ended, outpoints) = self.ending(is_live);
        if !ended.is_subset(&prepared) || (ended.is_empty() && outpoints.is_empty()) {
            return None;
        }
        for txid in &ended {
            self.transactions.remove(txid);
        }
        let rounds = outpoints.iter().filter(|outpoint| self.rounds.contains(outpoint)).copied().collect();
        self.take_out(&outpoints);
        self.archived.clone_from(&ended);
        self.forget_unnamed();
        let (reach, transactions) = (self.tip().height.saturating_sub(UNDO_BLOCKS), &self.transactions);
        self.blocks.forget_places(|txid, height| height > reach || transactions.get(txid).is_some());
        Some(Settlement { transactions: ended.into_iter().collect(), outpoints, rounds })
    }

    /// The records that end now, and the outpoints that go with them.
    fn ending(&self, is_live: impl Fn(&Txid) -> bool) -> (BTreeSet<Txid>, BTreeSet<OutPoint>) {
        let mut gone = self.resting.clone();
        let mut ended = BTreeSet::new();
        // All that could end if everything that is at rest could go, with what descends from what never is mined.
        loop {
            let over = |(txid, record): &(&Txid, &TxRecord)| {
                !ended.contains(*txid) && !is_live(txid) && self.is_over(txid, record, &gone)
            };
            let more: Vec<Txid> = self.transactions.all().filter(over).map(|(txid, _)| *txid).collect();
            if more.is_empty() {
                break;
            }
            gone.extend(more.iter().flat_map(|txid| self.never_mined(txid)));
            ended.extend(more);
        }
        if ended.is_empty() && gone.is_empty() {
            return (ended, gone);
        }
        // Of these, what nothing names that stays.
        let mut free = gone;
        loop {
            let named = self.named(&ended, &free);
            let dead = ended.iter().flat_map(|txid| self.never_mined(txid));
            let going = self.resting.iter().copied().chain(dead);
            let before = free.len();
            free = going.filter(|outpoint| free.contains(outpoint) && !named.contains(outpoint)).collect();
            let stays = |txid: &&Txid| {
                let over = self.record(txid).is_some_and(|record| self.is_over(txid, record, &free));
                !over || self.never_mined(txid).iter().any(|output| named.contains(output))
            };
            let staying: Vec<Txid> = ended.iter().filter(stays).copied().collect();
            if staying.is_empty() && free.len() == before {
                return (ended, free);
            }
            for txid in staying {
                ended.remove(&txid);
            }
        }
    }

    /// Outpoints that something names which stays when these records end and these outpoints go: other records, and
    /// certificates that hold an outpoint after its release, or are void by what is known of their other inputs.
    pub(super) fn named(&self, ended: &BTreeSet<Txid>, going: &BTreeSet<OutPoint>) -> BTreeSet<OutPoint> {
        let staying = self.transactions.all().filter(|(txid, _)| !ended.contains(*txid));
        let by_records = staying.flat_map(|(_, record)| record.target.inputs().keys().copied());
        let holding = self.rounds.released().filter(|(outpoint, _)| !going.contains(*outpoint));
        let by_releases = holding
            .flat_map(|(_, release)| &release.highest)
            .flat_map(|certificate| certificate.target.inputs().keys().copied());
        by_records.chain(by_releases).collect()
    }

    /// The outputs of a final transaction that no block has.
    fn never_mined(&self, txid: &Txid) -> Vec<OutPoint> {
        if self.block_of(txid).is_some() { Vec::new() } else { self.outputs_of(*txid) }
    }

    /// Whether nothing depends on a record any more, if these outpoints go.
    fn is_over(&self, txid: &Txid, record: &TxRecord, gone: &BTreeSet<OutPoint>) -> bool {
        let targets = [
            Some(&record.target),
            record.vote.as_ref().map(|vote| &vote.target),
            record.certificate.as_ref().map(|certificate| &certificate.target),
        ];
        let round_of = |input: &OutPoint| {
            targets.iter().flatten().filter_map(|target| target.inputs().get(input)).max().copied()
        };
        let mut inputs = record.target.inputs().keys();
        inputs.all(|input| {
            let released = || record.proof.is_none() && self.is_left(input, round_of(input), txid);
            gone.contains(input) || released()
        })
    }

    /// Whether an outpoint has been released from a round to a later one in which nothing names the transaction.
    fn is_left(&self, outpoint: &OutPoint, round: Option<Round>, txid: &Txid) -> bool {
        let later = self.release(outpoint).is_some_and(|release| round <= Some(release.round));
        let named = [
            self.rounds.approved(outpoint).map(|(txid, _)| txid),
            self.rounds.committed(outpoint),
            self.rounds.inherited(outpoint),
            self.forced(outpoint),
        ];
        later && !self.is_pending(outpoint) && !named.contains(&Some(*txid))
    }

    /// What the archive keeps of a transaction that ends: nothing if it was never final.
    fn settled_as(&self, txid: &Txid) -> Option<SettledTransaction> {
        if let Some(block) = self.block_of(txid) {
            // What sole custody signed can be shown as news at any time.
            let custody = self.record(txid).map(|record| record.target.custody());
            let until = custody.map_or(0, |custody| custody.deadline().unwrap_or(u32::MAX));
            return Some(SettledTransaction::Mined { block, until });
        }
        let Conflict { by, path } = self.conflict(*txid)?;
        Some(SettledTransaction::Conflicted { by, path: self.transactions_of(&path) })
    }

    /// Whether somebody may want to know where an unspent coin of a transaction comes from.
    fn has_unspent(&self, txid: &Txid) -> bool {
        let mut coins = self.coins.of_transaction(txid);
        coins.any(|(_, coin)| coin.spent().is_none() && self.scripts.has(&coin.script))
    }

    /// Forgets outpoints, and holds what the index and the archive have to hear of them.
    fn take_out(&mut self, outpoints: &BTreeSet<OutPoint>) {
        for outpoint in outpoints {
            self.rounds.forget(outpoint);
            self.transactions.forget_final_spend(outpoint);
            self.resting.remove(outpoint);
            let (coin, spent) = (self.indexed_coin(outpoint), self.unknown_spent.remove(outpoint));
            let account = self.coins.account(outpoint);
            self.coins.remove(outpoint);
            self.leaving.push(Leaving { outpoint: *outpoint, coin, account, spent });
        }
    }

    /// The coins of the last settlement leave the index for the archive: it is durable.
    pub(crate) fn drop_settled(&mut self) {
        let leaving = std::mem::take(&mut self.leaving);
        self.forget_proofs(leaving.iter().map(|one| one.outpoint.txid).collect());
        for Leaving { outpoint, coin, account, spent } in leaving {
            self.stale.insert(outpoint);
            if let Some(coin) = &coin {
                self.archive.archive_coin(&outpoint, coin, account.as_ref());
            }
            let spent = coin.and_then(|coin| coin.spent).or(spent);
            if let Some(spent) = spent.filter(|spent| self.archived.insert(spent.txid)) {
                let settled = SettledTransaction::Mined { block: spent.block, until: 0 };
                self.archive.archive_transaction(&spent.txid, &settled);
            }
        }
        self.archived.clear();
    }

    /// The last coin of a transaction takes its proof along.
    fn forget_proofs(&mut self, txids: BTreeSet<Txid>) {
        for txid in txids {
            if !self.has_unspent(&txid) {
                self.archive.archive_proof(&txid, None);
            }
        }
    }

    /// Forgets coins that nobody has anything to do with: their scripts are not indexed, nothing was said about them,
    /// and nobody listens. They are looked up when somebody names them.
    pub(crate) fn sweep_coins(&mut self, is_heard: impl Fn(&OutPoint) -> bool) {
        let named = self.named(&BTreeSet::new(), &BTreeSet::new());
        let idle: Vec<OutPoint> = self
            .coins
            .iter()
            .filter(|(_, coin)| coin.created.is_none_or(|block| self.is_out_of_reach(block)))
            .map(|(outpoint, _)| *outpoint)
            .filter(|outpoint| self.is_idle(outpoint, &named) && !is_heard(outpoint))
            .collect();
        self.forget_coins(&idle);
    }

    /// Final transactions that this node did not vote for in this epoch, and that spend no coin of which it knows a
    /// block: they may have been settled long ago.
    pub(crate) fn unplaced(&self) -> Vec<Txid> {
        let said = |record: &TxRecord| record.vote.is_some();
        let in_chain = |input| self.coin(input).is_some_and(Coin::is_in_chain);
        let left = self.transactions.all().filter(|(txid, record)| {
            let inputs = &mut record.target.inputs().keys();
            let young = self.block_of(txid).is_some_and(|block| !self.is_out_of_reach(block));
            record.proof.is_some() && !said(record) && !inputs.any(in_chain) && !young
        });
        left.map(|(txid, _)| *txid).collect()
    }

    /// Takes back that a transaction is final which was settled long ago, with what its inputs were left to.
    pub(crate) fn forget_proof_of(&mut self, txid: &Txid) {
        let outputs = self.outputs_of(*txid);
        let Some(record) = self.transactions.remove(txid) else { return };
        for outpoint in record.target.inputs().keys() {
            self.transactions.forget_final_spend(outpoint);
            self.rounds.forget(outpoint);
        }
        for outpoint in outputs.iter().chain(record.target.inputs().keys()) {
            if self.coin(outpoint).is_some_and(|coin| !coin.is_in_chain()) {
                self.coins.remove(outpoint);
            } else if let Some(said) = self.coins.said_mut(outpoint) {
                (said.spend, said.final_parent) = (None, None);
            }
        }
    }

    /// Keeps the number of coins within bounds that were looked up and then not used.
    pub(crate) fn trim_looked_up(&mut self, most: usize, is_heard: impl Fn(&OutPoint) -> bool) {
        if self.looked_up.len() <= most {
            return;
        }
        let named = self.named(&BTreeSet::new(), &BTreeSet::new());
        // Some at a time: what is named is gone through for each.
        let over = self.looked_up.len() - (most - most / 16);
        let oldest: Vec<OutPoint> = self.looked_up.drain(..over).collect();
        let idle = |outpoint: &&OutPoint| self.is_idle(outpoint, &named) && !is_heard(outpoint);
        let idle: Vec<OutPoint> = oldest.iter().filter(idle).copied().collect();
        self.forget_coins(&idle);
    }

    fn is_idle(&self, outpoint: &OutPoint, named: &BTreeSet<OutPoint>) -> bool {
        let Some(coin) = self.coin(outpoint) else { return false };
        let said = self.rounds.contains(outpoint)
            || self.transactions.final_spend(outpoint).is_some()
            || named.contains(outpoint);
        let indexed = self.scripts.has(&coin.script);
        !said && !indexed && coin.spent().is_none() && self.record(&outpoint.txid).is_none()
    }

    fn forget_coins(&mut self, outpoints: &[OutPoint]) {
        for outpoint in outpoints {
            self.coins.remove(outpoint);
            self.stale.insert(*outpoint);
        }
        self.forget_proofs(outpoints.iter().map(|outpoint| outpoint.txid).collect());
    }
}
