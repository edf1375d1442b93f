//! What planted bugs do that no rule does. Elsewhere a rule asks at most whether one is planted.

use super::Bug;
use crate::{Machine, context::Context, coordination::run::Run, records::ChangeSet};
use bitcoin::OutPoint;
use quorate_protocol::{
    finality::FinalityProof, proposal::Proposal, release::ReleaseCertificate, seal::SealedTransaction,
};

impl Machine {
    /// [`Bug::ReorganisationUndoesFinality`]: a spend taken out of the chain is taken for undone.
    pub(crate) fn undo_finality(&mut self, outpoints: &[OutPoint]) {
        if self.cx.planted(Bug::ReorganisationUndoesFinality) {
            self.cx.ledger.forget_spends(outpoints);
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
                    cx.ledger.forget_approval(outpoint, *round);
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
    /// [`Bug::NotifyBeforeWrite`], [`Bug::VoteBeforeWrite`], [`Bug::ForgetProof`]: tells before it writes, or never
    /// writes. `false` if none of them is planted.
    pub(crate) fn tells_first(
        &mut self,
        change: &ChangeSet,
        changed: &[OutPoint],
        proof: Option<&FinalityProof>,
    ) -> bool {
        let early = self.planted(Bug::NotifyBeforeWrite) || self.planted(Bug::VoteBeforeWrite);
        let forgotten = self.planted(Bug::ForgetProof) && proof.is_some();
        if early || forgotten {
            self.notify_outpoints(changed, proof);
            self.sabotage.late = (!forgotten).then(|| change.clone());
        }
        early || forgotten
    }

    /// Writes what [`Self::tells_first`] held back.
    pub(crate) fn write_late(&mut self) {
        if let Some(late) = self.sabotage.late.take() {
            self.persist(late);
        }
    }

    /// [`Bug::ReuseNonce`]: the same randomness again and again.
    pub(crate) fn freeze_randomness(&mut self) {
        if self.planted(Bug::ReuseNonce) {
            self.rng = self.sabotage.frozen.get_or_insert_with(|| self.rng.clone()).clone();
        }
    }

    /// [`Bug::SealForgetsCommits`]: what was committed to and is not final is left out.
    pub(crate) fn spoil_seal(&self, transactions: &mut Vec<SealedTransaction>) {
        if self.planted(Bug::SealForgetsCommits) {
            transactions.retain(|transaction| transaction.proof.is_some());
        }
    }

    /// [`Bug::ReleaseOnMajority`]: half of the nodes' promises are called a release.
    pub(crate) fn spoil_quorum(&self, votes: u16) -> u16 {
        if self.planted(Bug::ReleaseOnMajority) { self.federation.quorum().nodes() / 2 } else { votes }
    }

    /// [`Bug::ReleaseOnMajority`]: takes such a release, too.
    pub(crate) fn takes_small(&self, release: &ReleaseCertificate) -> bool {
        self.planted(Bug::ReleaseOnMajority)
            && release.promises.len() >= usize::from(self.spoil_quorum(u16::MAX))
    }

    /// [`Bug::IgnoreForced`], [`Bug::IgnoreInherited`]: what a release, or the epoch before, left the outpoint to
    /// binds nobody.
    pub(crate) fn ignores_forced(&self, outpoint: &OutPoint) -> bool {
        self.planted(Bug::IgnoreForced)
            || (self.planted(Bug::IgnoreInherited) && self.ledger.release(outpoint).is_none())
    }
}
