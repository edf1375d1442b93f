//! What planted bugs do that no rule does. Elsewhere a rule asks at most whether one is planted.

use super::Bug;
use crate::{Machine, context::Context, coordination::run::Run};
use bitcoin::OutPoint;
use quorate_protocol::{finality::FinalityProof, proposal::Proposal};

impl Machine {
    /// [`Bug::ReorganisationUndoesFinality`]: a spend taken out of the chain is taken for undone.
    pub(crate) fn undo_finality(&mut self, outpoints: &[OutPoint]) {
        if self.cx.planted(Bug::ReorganisationUndoesFinality) {
            self.cx.ledger.undo_finality(outpoints);
        }
    }

    /// [`Bug::ReleaseByTimer`]: what is locked is free when this node's own timer runs out.
    pub(crate) fn free_by_timer(&mut self) {
        let cx = &mut self.cx;
        if !cx.planted(Bug::ReleaseByTimer) {
            return;
        }
        for txid in cx.ledger.open().iter().copied().collect::<Vec<_>>() {
            let target = cx.ledger.record(&txid).map(|record| record.target.clone());
            for (outpoint, round) in target.iter().flat_map(|target| target.inputs()) {
                let since = cx.ledger.approved(outpoint).filter(|(approved, _)| *approved == txid);
                if since.is_some_and(|(_, since)| cx.now >= since + cx.settings.voting_timeout) {
                    cx.ledger.free_by_timer(outpoint, *round);
                }
            }
        }
    }
}

impl Run {
    /// [`Bug::FinalAfterPhase1`]: what a node with a single phase would do.
    pub(crate) fn claim_final(&self, cx: &mut Context) {
        let Proposal::Sole { transaction } = &self.proposal else { return };
        if !cx.planted(Bug::FinalAfterPhase1) {
            return;
        }
        let rounds = self.target.inputs();
        let rounds = transaction.input.iter().filter_map(|input| rounds.get(&input.previous_output)).copied();
        let (transaction, rounds) = (transaction.clone(), rounds.collect());
        let commits = self.approvals.clone();
        cx.complete(FinalityProof::Attested { transaction, rounds, commits });
    }
}

impl Context {
    /// [`Bug::IgnoreForced`], [`Bug::IgnoreInherited`]: what a release, or the epoch before, left the outpoint to binds nobody.
    pub(crate) fn ignores_forced(&self, outpoint: &OutPoint) -> bool {
        self.planted(Bug::IgnoreForced)
            || (self.planted(Bug::IgnoreInherited) && self.ledger.release(outpoint).is_none())
    }
}
