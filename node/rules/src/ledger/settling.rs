//! State that ends: what no block can undo any more goes to the archive, and what nothing depends on any more goes.
//!
//! # Why it is safe
//!
//! A coin is at rest when the block that spends it is too deep to be undone ([`UNDO_BLOCKS`]). Nobody votes, commits or
//! promises about a coin that the node does not know and the chain does not have, so no statement about one at rest
//! can contradict what was forgotten of it. A record goes once each of its inputs is at rest, or, if it never became
//! final, has been released to a later round in which nothing names it: V2 and V4 speak of the present round, and a
//! promise names the highest certificate, which is kept. An outpoint goes after the last record that names it.
//!
//! Store and index are two files, and neither waits for the other. Records and rounds go first; only when that is
//! durable ([`Ledger::drop_settled`]) do coins leave the index, with the rows that the archive has instead of them. A
//! crash in between leaves coins that nobody names, and they go after the next start.

use super::Ledger;
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
    fn is_out_of_reach(&self, block: BlockRef) -> bool {
        self.tip().height >= block.height.saturating_add(UNDO_BLOCKS)
    }

    /// After a start: coins that were spent long ago and had not gone yet.
    pub(super) fn restore_resting(&mut self) {
        let spent = self.coins.iter().filter_map(|(outpoint, coin)| Some((*outpoint, coin.record.spent?)));
        let unknown = self.unknown_spent.iter().map(|(outpoint, spent)| (*outpoint, *spent));
        let resting = spent.chain(unknown).filter(|(_, spent)| self.is_out_of_reach(spent.block));
        self.resting = resting.map(|(outpoint, _)| outpoint).collect();
    }

    /// Forgets records and rounds that have come to rest, unless `is_live` says that somebody works on a transaction.
    /// What it gives has to be durable before [`Self::drop_settled`]; until then there is no further one.
    pub(crate) fn settle(&mut self, is_live: impl Fn(&Txid) -> bool) -> Option<Settlement> {
        if !self.leaving.is_empty() {
            return None;
        }
        let mut gone = self.resting.clone();
        let mut ended = BTreeSet::new();
        loop {
            let over = |(txid, record): &(&Txid, &TxRecord)| {
                !ended.contains(*txid) && !is_live(txid) && self.is_over(txid, record, &gone)
            };
            let more: Vec<Txid> = self.transactions.all().filter(over).map(|(txid, _)| *txid).collect();
            if more.is_empty() {
                break;
            }
            for txid in more {
                // What descends from a transaction that no block will ever have goes with it.
                if self.block_of(&txid).is_none() {
                    gone.extend(self.outputs_of(txid));
                }
                ended.insert(txid);
            }
        }
        let remaining = self.transactions.all().filter(|(txid, _)| !ended.contains(*txid));
        let named: BTreeSet<OutPoint> =
            remaining.flat_map(|(_, record)| record.target.inputs().keys().copied()).collect();
        let outpoints: BTreeSet<OutPoint> = gone.difference(&named).copied().collect();
        if ended.is_empty() && outpoints.is_empty() {
            return None;
        }
        for txid in &ended {
            self.archive_record(txid);
        }
        let rounds = outpoints.iter().filter(|outpoint| self.rounds.contains(outpoint)).copied().collect();
        for outpoint in &outpoints {
            self.rounds.forget(outpoint);
            self.transactions.forget_final_spend(outpoint);
            self.resting.remove(outpoint);
        }
        self.leaving.clone_from(&outpoints);
        self.archived.clone_from(&ended);
        let (reach, transactions) = (self.tip().height.saturating_sub(UNDO_BLOCKS), &self.transactions);
        self.blocks.forget_places(|txid, height| height > reach || transactions.get(txid).is_some());
        Some(Settlement { transactions: ended.into_iter().collect(), outpoints, rounds })
    }

    /// Whether nothing depends on a record any more, if these outpoints are at rest.
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

    fn archive_record(&mut self, txid: &Txid) {
        let block = self.block_of(txid);
        let unspent = self.has_unspent(txid);
        let Some(record) = self.transactions.remove(txid) else { return };
        if let Some(block) = block {
            let proof = record.proof.filter(|_| unspent).map(Box::new);
            self.archive.archive_transaction(txid, &SettledTransaction { block, proof });
        }
    }

    /// Whether somebody may want to know where an unspent coin of a transaction comes from.
    fn has_unspent(&self, txid: &Txid) -> bool {
        self.coins.of_transaction(txid).any(|(_, coin)| {
            let record = &coin.record;
            record.spent.is_none() && self.scripts.get(&record.script_pubkey).is_some()
        })
    }

    /// The coins of the last settlement leave memory and index for the archive: it is durable.
    pub(crate) fn drop_settled(&mut self) {
        for outpoint in std::mem::take(&mut self.leaving) {
            let spent = self.unknown_spent.remove(&outpoint);
            let indexed = self.indexed_coin(&outpoint);
            self.stale.insert(outpoint);
            self.coins.remove(&outpoint);
            if let Some(coin) = &indexed {
                self.archive.archive_coin(&outpoint, coin);
            }
            // The last coin of a transaction takes its proof along.
            let created = indexed.as_ref().and_then(|coin| coin.created);
            if let Some(block) = created.filter(|_| !self.has_unspent(&outpoint.txid))
                && self.record(&outpoint.txid).is_none()
            {
                let settled = SettledTransaction { block, proof: None };
                self.archive.archive_transaction(&outpoint.txid, &settled);
            }
            let spent = indexed.and_then(|coin| coin.spent).or(spent);
            if let Some(spent) = spent.filter(|spent| self.archived.insert(spent.txid)) {
                let settled = SettledTransaction { block: spent.block, proof: None };
                self.archive.archive_transaction(&spent.txid, &settled);
            }
        }
        self.archived.clear();
    }

    /// Forgets coins that nobody has anything to do with: their scripts are not indexed, nothing was said about them,
    /// and nobody listens. They are looked up when somebody names them.
    pub(crate) fn sweep_coins(&mut self, is_heard: impl Fn(&OutPoint) -> bool) {
        let idle: Vec<OutPoint> = self
            .coins
            .iter()
            .filter(|(_, coin)| coin.record.created.is_none_or(|block| self.is_out_of_reach(block)))
            .map(|(outpoint, _)| *outpoint)
            .filter(|outpoint| self.is_idle(outpoint) && !is_heard(outpoint))
            .collect();
        for outpoint in idle {
            self.forget_coin(&outpoint);
        }
    }

    /// Keeps the number of coins within bounds that were looked up and then not used.
    pub(crate) fn trim_looked_up(&mut self, most: usize, is_heard: impl Fn(&OutPoint) -> bool) {
        while self.looked_up.len() > most {
            let Some(outpoint) = self.looked_up.pop_front() else { return };
            if self.is_idle(&outpoint) && !is_heard(&outpoint) {
                self.forget_coin(&outpoint);
            }
        }
    }

    fn is_idle(&self, outpoint: &OutPoint) -> bool {
        let Some(coin) = self.coin(outpoint) else { return false };
        let said = self.rounds.contains(outpoint) || self.transactions.final_spend(outpoint).is_some();
        let indexed = self.scripts.get(&coin.script_pubkey).is_some();
        !said && !indexed && coin.spent.is_none() && self.record(&outpoint.txid).is_none()
    }

    fn forget_coin(&mut self, outpoint: &OutPoint) {
        let coin = self.coin(outpoint).cloned();
        self.coins.remove(outpoint);
        self.stale.insert(*outpoint);
        // Its script was indexed when its transaction was settled: the proof is no use any more.
        let created = coin.filter(|coin| coin.final_parent.is_some()).and_then(|coin| coin.created);
        if let Some(block) = created.filter(|_| !self.has_unspent(&outpoint.txid)) {
            let settled = SettledTransaction { block, proof: None };
            self.archive.archive_transaction(&outpoint.txid, &settled);
        }
    }
}
