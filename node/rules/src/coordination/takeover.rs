//! Taking over what a node voted for and nobody coordinates any more, so that nothing stays locked because somebody
//! crashed.

use super::{Coordination, run::Run};
use crate::context::Context;
use bitcoin::{OutPoint, Txid};
use quorate_protocol::proposal::Proposal;
use std::time::Duration;

/// Time between two looks at what is open.
const SWEEP: Duration = Duration::from_secs(1);
/// Transactions that somebody else still asks votes for and that are taken over at one look all the same.
const OVERDUE_PER_SWEEP: usize = 16;
impl Coordination {
    /// Coordinates what this node voted for or committed to and nobody seems to coordinate any more.
    pub(crate) fn take_over(&mut self, cx: &mut Context) {
        if cx.now < self.sweep_at {
            return;
        }
        self.sweep_at = cx.now + SWEEP;
        let mut overdue_left = OVERDUE_PER_SWEEP;
        for txid in cx.ledger.open().iter().copied().collect::<Vec<_>>() {
            if !self.may_still_happen(cx, txid) {
                cx.ledger.close(&txid);
                self.heard_of.remove(&txid);
                continue;
            }
            let heard = *self.heard_of.entry(txid).or_insert(cx.now);
            if self.running.contains_key(&txid) || self.is_settled_for_now(cx, txid) {
                continue;
            }
            // Somebody who goes on asking for votes and brings nothing to an end does not keep others from it.
            let tried = self.taken_over.get(&txid).copied().unwrap_or_default();
            let overdue = self.is_overdue(cx, txid) && cx.now >= tried + cx.settings.voting_timeout;
            if !overdue && cx.now < heard + cx.patience() {
                continue;
            }
            if cx.now < heard + cx.patience() {
                if overdue_left == 0 {
                    continue;
                }
                overdue_left -= 1;
            }
            self.heard_of.insert(txid, cx.now);
            self.taken_over.insert(txid, cx.now);
            let Some(record) = cx.ledger.record(&txid).cloned() else { continue };
            let Some(proposal) = record.proposal else { continue };
            let inputs = record.target.inputs();
            if matches!(proposal, Proposal::Joint(_)) && cx.is_forced(inputs, txid) {
                // Nothing else can happen to these coins, and only their owner can make it happen.
                continue;
            }
            if self.coordinate(cx, Vec::new(), proposal, record.account).is_ok() {
                tracing::info!(%txid, "taking over a transaction that nobody coordinates");
                self.with(cx, txid, Run::ask_votes);
            }
        }
        // Nothing can be heard of what is not open, except for a moment.
        let (now, patience) = (cx.now, cx.patience());
        let open = cx.ledger.open();
        self.heard_of.retain(|txid, heard| open.contains(txid) || now < *heard + patience);
        self.taken_over.retain(|txid, _| open.contains(txid));
    }

    /// Whether this node has held an input for the transaction for so long that somebody should have brought it to an
    /// end.
    fn is_overdue(&self, cx: &Context, txid: Txid) -> bool {
        let Some(record) = cx.ledger.record(&txid) else { return false };
        let held = record.target.inputs().keys().filter_map(|outpoint| cx.ledger.approved(outpoint));
        held.filter(|(approved, _)| *approved == txid)
            .any(|(_, since)| cx.now >= since + cx.settings.voting_timeout + cx.patience())
    }

    /// Whether a block has spent one of its inputs otherwise and it holds none that is unspent: nothing can be done
    /// now, but the block may be undone.
    fn is_settled_for_now(&self, cx: &Context, txid: Txid) -> bool {
        let Some(record) = cx.ledger.record(&txid) else { return false };
        let other = |outpoint| cx.ledger.spent_by(outpoint).is_some_and(|other| other != txid);
        let mut inputs = record.target.inputs().keys();
        inputs.any(other)
            && !record.target.inputs().keys().any(|outpoint| self.holds_unspent(cx, outpoint, txid))
    }

    fn holds_unspent(&self, cx: &Context, outpoint: &OutPoint, txid: Txid) -> bool {
        let holds = cx.ledger.approved(outpoint).is_some_and(|(approved, _)| approved == txid);
        holds && cx.ledger.spent_by(outpoint).is_none()
    }

    /// Whether an open transaction still holds or is owed one of its inputs.
    fn may_still_happen(&self, cx: &Context, txid: Txid) -> bool {
        let Some(record) = cx.ledger.record(&txid) else { return false };
        let Some(proposal) = &record.proposal else { return false };
        // Nobody has told this node that it is final, and nobody need tell it any more.
        if cx.ledger.mined_for_good(&txid).is_some() {
            return false;
        }
        let outpoints = proposal.outpoints();
        let gone = |outpoint| cx.ledger.spent_for_good(outpoint).is_some_and(|other| other != txid);
        if outpoints.iter().any(gone) {
            return outpoints.iter().any(|outpoint| self.holds_unspent(cx, outpoint, txid));
        }
        outpoints.iter().any(|outpoint| {
            cx.ledger.approved(outpoint).is_some_and(|(approved, _)| approved == txid)
                || cx.ledger.forced(outpoint) == Some(txid)
                || cx.ledger.is_pending(outpoint)
        })
    }
}
