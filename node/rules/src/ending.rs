//! How a transaction ends that cannot finish: its inputs are released first, and what the releases say decides.
//!
//! Free: it is rejected or failed, with the certificates as proof. Left to this transaction: it may be final, so it goes on in the next
//! round instead. Spent by another final transaction: it is over, whatever the rounds.

use crate::{
    Machine,
    coordinator::{ASK_AGAIN_MIN, Ending, RESTARTS_MAX},
    release::Reason,
    signing::Attempt,
};
use bitcoin::{OutPoint, Txid};
use quorate_protocol::{
    Round,
    release::ReleaseCertificate,
    vote::VoteTarget,
    wire::{NodeReject, RejectReason, TransactionStatus, encoded_len, limits},
};
use std::{collections::BTreeMap, time::Duration};

impl Machine {
    /// Has the inputs released, and ends the transaction when they are.
    pub(crate) fn end(&mut self, txid: Txid, ending: Ending) {
        let Some(coordination) = self.coordinations.get_mut(&txid) else { return };
        // Nobody who answered holds a lock for it, so there is nothing to release. Whoever holds one unseen has its own timer.
        let untouched =
            coordination.approvals.is_empty() && coordination.cancel.is_none() && coordination.restarts == 0;
        let deadline = self.now + self.rules.voting_timeout;
        coordination.ending = Some(ending);
        coordination.deadline = deadline;
        if untouched && self.ledger.record(&txid).is_none_or(|record| record.vote.is_none()) {
            return self.conclude(txid);
        }
        self.release_inputs(txid);
        self.settle(txid);
    }

    fn release_inputs(&mut self, txid: Txid) {
        let Some(coordination) = self.coordinations.get(&txid) else { return };
        let rejects = coordination.rejects.values().map(|(vote, _)| vote.clone()).collect();
        let reason = Reason { rejects, cancel: coordination.cancel.clone() };
        for (outpoint, round) in coordination.target.inputs().clone() {
            let over = self.is_settled(&outpoint, round, txid);
            if !over {
                self.start_release(outpoint, round, &reason);
            }
        }
    }

    /// Whether an input's round is over for good: released, or the input is spent by another final transaction.
    fn is_settled(&self, outpoint: &OutPoint, round: Round, txid: Txid) -> bool {
        self.ledger.release(outpoint).is_some_and(|release| release.round >= round)
            || self.ledger.spent_by(outpoint).is_some_and(|other| other != txid)
    }

    /// The rounds of some outpoints are over, or a final transaction spends them: goes on with what waited for that.
    pub(crate) fn inputs_settled(&mut self, outpoints: &[OutPoint]) {
        let waiting: Vec<Txid> = self
            .coordinations
            .iter()
            .filter(|(_, one)| outpoints.iter().any(|outpoint| one.target.inputs().contains_key(outpoint)))
            .map(|(txid, _)| *txid)
            .collect();
        for txid in waiting {
            self.settle(txid);
        }
    }

    /// Ends a transaction one of whose inputs another final transaction spends: nodes need not even agree on the rounds of the rest.
    pub(crate) fn is_hopeless(&mut self, txid: Txid) -> bool {
        let Some(coordination) = self.coordinations.get(&txid) else { return true };
        let spent = |outpoint: &OutPoint| Some((*outpoint, self.ledger.spent_by(outpoint)?));
        let other =
            coordination.target.inputs().keys().filter_map(spent).find(|(_, spender)| *spender != txid);
        let Some((outpoint, spender)) = other.filter(|_| coordination.ending.is_none()) else { return false };
        let reason = RejectReason::Spent { outpoint, txid: spender };
        let rejects = vec![NodeReject { node: self.me, reason }];
        self.end(txid, Ending::Rejected { rejects, retry: false });
        true
    }

    pub(crate) fn settle(&mut self, txid: Txid) {
        if self.is_hopeless(txid) {
            return;
        }
        let Some(coordination) = self.coordinations.get(&txid) else { return };
        let inputs = coordination.target.inputs().clone();
        if coordination.ending.is_none() {
            let moved = inputs.iter().any(|(outpoint, round)| {
                self.ledger.release(outpoint).is_some_and(|release| release.round >= *round)
            });
            let certified = coordination.certificate.is_some();
            // Taken over only to end it: once it is free nobody asks for it any more, and to vote again would lock it again.
            let orphan = coordination.submitters.is_empty();
            if moved && orphan && !self.is_forced(&inputs, txid) {
                self.coordinations.remove(&txid);
            } else if moved {
                self.restart(txid);
            } else if !certified {
                self.ask_votes(txid);
            }
            return;
        }
        if !inputs.iter().all(|(outpoint, round)| self.is_settled(outpoint, *round, txid)) {
            return;
        }
        // A block that spends an input otherwise may be undone, but until then there is nothing to do; whoever submits it again learns then.
        let blocked =
            inputs.keys().any(|outpoint| self.ledger.spent_by(outpoint).is_some_and(|other| other != txid));
        if self.is_forced(&inputs, txid) && !blocked {
            tracing::info!(%txid, "it may be final already, so it goes on");
            if let Some(coordination) = self.coordinations.get_mut(&txid) {
                coordination.ending = None;
                coordination.cancel = None;
            }
            self.restart(txid);
        } else {
            self.conclude(txid);
        }
    }

    /// Whether a release has left an input to this transaction alone.
    pub(crate) fn is_forced(&self, inputs: &BTreeMap<OutPoint, Round>, txid: Txid) -> bool {
        inputs.keys().any(|outpoint| self.ledger.forced(outpoint) == Some(txid))
    }

    /// Ends a transaction with the proof that its inputs are free.
    fn conclude(&mut self, txid: Txid) {
        let Some(coordination) = self.coordinations.get(&txid) else { return };
        let releases = self.proofs_of_release(&coordination.target);
        let status = match coordination.ending.clone() {
            Some(Ending::Rejected { rejects, retry }) => {
                TransactionStatus::Rejected { rejects, retry, releases }
            }
            Some(Ending::Failed { message, retry }) => TransactionStatus::Failed { message, retry, releases },
            None => return,
        };
        self.finish(txid, &status);
    }

    fn proofs_of_release(&self, target: &VoteTarget) -> Vec<ReleaseCertificate> {
        let inputs = target.inputs().iter();
        let releases = inputs.filter_map(|(outpoint, round)| {
            self.ledger.release(outpoint).filter(|release| release.round >= *round).cloned()
        });
        // One shows it as well as another, and together they may be larger than a frame.
        let mut bytes = 0;
        let fits = |release: &ReleaseCertificate| {
            bytes += encoded_len(release);
            bytes <= limits::FRAME_BYTES_MAX / 2
        };
        releases.take_while(fits).collect()
    }

    /// Begins again in the present rounds of the inputs.
    pub(crate) fn restart(&mut self, txid: Txid) {
        let Some(coordination) = self.coordinations.get(&txid) else { return };
        let target = self.present_target(&coordination.proposal.clone());
        let restarts = coordination.restarts + 1;
        if restarts > RESTARTS_MAX {
            let message = "its inputs changed rounds too often; submit it again".to_owned();
            let releases = self.proofs_of_release(&target);
            return self.finish(txid, &TransactionStatus::Failed { message, retry: true, releases });
        }
        let suspects = self.watch.suspects.clone();
        let Some(coordination) = self.coordinations.get_mut(&txid) else { return };
        coordination.target = target;
        coordination.approvals.clear();
        coordination.rejects.clear();
        coordination.certificate = None;
        coordination.commitments.clear();
        coordination.excluded = suspects;
        coordination.attempt += 1;
        coordination.first_attempt = coordination.attempt;
        coordination.signing = Attempt::default();
        coordination.restarts = restarts;
        let pause = pause_before(restarts);
        (coordination.ask_at, coordination.wait) = (self.now + pause.unwrap_or(ASK_AGAIN_MIN), ASK_AGAIN_MIN);
        coordination.deadline = self.now + self.rules.voting_timeout;
        self.push_pending(txid);
        if pause.is_none() {
            self.ask_votes(txid);
        }
    }

    /// Helps to finish the releases that inputs wait for.
    pub(crate) fn push_pending(&mut self, txid: Txid) {
        let Some(coordination) = self.coordinations.get(&txid) else { return };
        let pending: Vec<_> = coordination.target.inputs().clone().into_iter().collect();
        for (outpoint, round) in pending {
            if self.ledger.is_pending(&outpoint) {
                self.start_release(outpoint, Round(round.0.saturating_sub(1)), &Reason::default());
            }
        }
    }

    /// Gives a transaction up that could not be signed, once its inputs are released.
    pub(crate) fn give_up(&mut self, txid: Txid, message: &str, retry: bool) {
        self.end(txid, Ending::Failed { message: message.to_owned(), retry });
    }
}

/// A transaction that is left its inputs again and again, and rejected each time, is asked votes for ever more slowly: it may have become
/// invalid for good, and an epoch has no endless number of rounds.
fn pause_before(restarts: u32) -> Option<Duration> {
    let doublings = restarts.checked_sub(3)?.min(2);
    Some(ASK_AGAIN_MIN * 2_u32.pow(doublings))
}
