//! Taking over what a node voted for and nobody coordinates any more, so that nothing stays locked because somebody crashed.

use crate::Machine;
use bitcoin::{OutPoint, Txid};
use quorate_protocol::proposal::Proposal;
use std::time::Duration;

/// Time between two looks at what is open.
const SWEEP: Duration = Duration::from_secs(1);
/// Wait for news of a transaction that this node voted for before it coordinates it itself.
const PATIENCE: Duration = Duration::from_secs(2);
/// Transactions that somebody else still asks votes for and that are taken over at one look all the same.
const OVERDUE_PER_SWEEP: usize = 16;
/// Added per node number, so that not all take over at once.
const PATIENCE_STEP: Duration = Duration::from_millis(250);

impl Machine {
    /// The planted bug: a node that frees what it locked when its own timer runs out.
    pub(crate) fn free_by_timer(&mut self) {
        let stuck: Vec<Txid> = self.ledger.open().iter().copied().collect();
        for txid in stuck {
            let Some(target) = self.ledger.record(&txid).map(|record| record.target.clone()) else {
                continue;
            };
            for (outpoint, round) in target.inputs() {
                let since = self.ledger.approved(outpoint).filter(|(approved, _)| *approved == txid);
                if since.is_some_and(|(_, since)| self.now >= since + self.rules.voting_timeout) {
                    self.ledger.free_by_timer(outpoint, *round);
                }
            }
        }
    }

    pub(crate) fn patience(&self) -> Duration {
        PATIENCE + PATIENCE_STEP * u32::from(self.me.0)
    }

    /// Coordinates what this node voted for or committed to and nobody seems to coordinate any more.
    pub(crate) fn take_over(&mut self) {
        if self.now < self.sweep_at {
            return;
        }
        self.sweep_at = self.now + SWEEP;
        let mut overdue_left = OVERDUE_PER_SWEEP;
        for txid in self.ledger.open().iter().copied().collect::<Vec<_>>() {
            if !self.may_still_happen(txid) {
                self.ledger.close(&txid);
                self.heard_of.remove(&txid);
                continue;
            }
            let heard = *self.heard_of.entry(txid).or_insert(self.now);
            if self.coordinations.contains_key(&txid) || self.is_settled_for_now(txid) {
                continue;
            }
            // Somebody who goes on asking for votes and brings nothing to an end does not keep others from it.
            let tried = self.taken_over.get(&txid).copied().unwrap_or_default();
            let overdue = self.is_overdue(txid) && self.now >= tried + self.rules.voting_timeout;
            if !overdue && self.now < heard + self.patience() {
                continue;
            }
            if self.now < heard + self.patience() {
                if overdue_left == 0 {
                    continue;
                }
                overdue_left -= 1;
            }
            self.heard_of.insert(txid, self.now);
            self.taken_over.insert(txid, self.now);
            let Some(record) = self.ledger.record(&txid).cloned() else { continue };
            let Some(proposal) = record.proposal else { continue };
            let inputs = record.target.inputs();
            if matches!(proposal, Proposal::Joint(_)) && self.is_forced(inputs, txid) {
                // Nothing else can happen to these coins, and only their owner can make it happen.
                continue;
            }
            if self.coordinate(Vec::new(), proposal, record.account).is_ok() {
                tracing::info!(%txid, "taking over a transaction that nobody coordinates");
                self.ask_votes(txid);
            }
        }
        // Nothing can be heard of what is not open, except for a moment.
        let (now, patience) = (self.now, self.patience());
        let open = self.ledger.open();
        self.heard_of.retain(|txid, heard| open.contains(txid) || now < *heard + patience);
        self.taken_over.retain(|txid, _| open.contains(txid));
    }

    /// Whether this node has held an input for the transaction for so long that somebody should have brought it to an end.
    fn is_overdue(&self, txid: Txid) -> bool {
        let Some(record) = self.ledger.record(&txid) else { return false };
        let held = record.target.inputs().keys().filter_map(|outpoint| self.ledger.approved(outpoint));
        held.filter(|(approved, _)| *approved == txid)
            .any(|(_, since)| self.now >= since + self.rules.voting_timeout + self.patience())
    }

    /// Whether a block has spent one of its inputs otherwise and it holds none that is unspent: nothing can be done now, but the block may
    /// be undone.
    fn is_settled_for_now(&self, txid: Txid) -> bool {
        let Some(record) = self.ledger.record(&txid) else { return false };
        let other = |outpoint| self.ledger.spent_by(outpoint).is_some_and(|other| other != txid);
        let mut inputs = record.target.inputs().keys();
        inputs.any(other) && !record.target.inputs().keys().any(|outpoint| self.holds_unspent(outpoint, txid))
    }

    fn holds_unspent(&self, outpoint: &OutPoint, txid: Txid) -> bool {
        let holds = self.ledger.approved(outpoint).is_some_and(|(approved, _)| approved == txid);
        holds && self.ledger.spent_by(outpoint).is_none()
    }

    /// Whether an open transaction still holds or is owed one of its inputs.
    fn may_still_happen(&self, txid: Txid) -> bool {
        let Some(record) = self.ledger.record(&txid) else { return false };
        let Some(proposal) = &record.proposal else { return false };
        let outpoints = proposal.outpoints();
        let gone = |outpoint| self.ledger.spent_for_good(outpoint).is_some_and(|other| other != txid);
        if outpoints.iter().any(gone) {
            return outpoints.iter().any(|outpoint| self.holds_unspent(outpoint, txid));
        }
        outpoints.iter().any(|outpoint| {
            self.ledger.approved(outpoint).is_some_and(|(approved, _)| approved == txid)
                || self.ledger.forced(outpoint) == Some(txid)
                || self.ledger.is_pending(outpoint)
        })
    }
}
