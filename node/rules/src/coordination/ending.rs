//! How a transaction ends that cannot finish: its inputs are released first, and what the releases say decides.
//!
//! Free: it is rejected or failed, with the certificates as proof. Left to this transaction: it may be final, so it
//! goes on in the next round instead. Spent by another final transaction: it is over, whatever the rounds.

use super::run::{ASK_AGAIN_MAX, ASK_AGAIN_MIN, Attempt, Ending, RESTARTS_MAX, Run};
use crate::{context::Context, effects::Reason};
use bitcoin::{OutPoint, Txid};
use quorate_protocol::{
    Round,
    release::ReleaseCertificate,
    vote::VoteTarget,
    wire::{Cancellation, NodeReject, RejectReason, TransactionStatus, encoded_len, limits},
};
use std::time::Duration;

impl Run {
    /// Its owner wants it stopped.
    pub(super) fn cancel(&mut self, cx: &mut Context, cancellation: Cancellation) {
        if cx.is_forced(self.target.inputs(), self.txid()) {
            // It may be final, and another release would say so again: all that is left is to finish it.
            return self.ask_votes(cx);
        }
        self.cancel = Some(cancellation);
        self.end(cx, Ending::cancelled());
    }

    /// Goes on with a transaction for which something is due.
    pub(super) fn handle_due(&mut self, cx: &mut Context) {
        // Others have forgotten its coins by then, and promise nothing about them.
        if let Some(block) = cx.ledger.mined_for_good(&self.txid()) {
            return self.finish(cx, &TransactionStatus::Confirmed { block });
        }
        if cx.now < self.deadline {
            self.ask_at = cx.now + self.wait;
            self.wait = (self.wait * 2).min(ASK_AGAIN_MAX);
            self.ask_votes(cx);
        } else if self.ending.is_some() {
            // The releases are still being pushed. Earlier ones may already be proof enough for a wallet that knows
            // what it signed.
            let message =
                "it could not be ended yet because too few nodes are reachable; submit it again".to_owned();
            let inputs = self.target.inputs().keys();
            let releases = inputs.filter_map(|outpoint| cx.ledger.release(outpoint)).cloned().collect();
            self.finish(cx, &TransactionStatus::Failed { message, retry: true, releases });
        } else if self.certificate.is_none() {
            self.give_up(cx, "not enough nodes voted in time; submit it again", true);
        } else {
            self.attempt_due(cx);
        }
    }

    /// Has the inputs released, and ends the transaction when they are.
    pub(crate) fn end(&mut self, cx: &mut Context, ending: Ending) {
        let txid = self.txid();
        // Nobody who answered holds a lock for it, so there is nothing to release. A node that holds one unseen has
        // its own timer.
        let untouched = self.approvals.is_empty() && self.cancel.is_none() && self.restarts == 0;
        let deadline = cx.now + cx.settings.voting_timeout;
        self.ending = Some(ending);
        self.deadline = deadline;
        if untouched && cx.ledger.record(&txid).is_none_or(|record| record.vote.is_none()) {
            return self.conclude(cx);
        }
        self.release_inputs(cx);
        self.settle(cx);
    }

    fn release_inputs(&mut self, cx: &mut Context) {
        let txid = self.txid();
        let rejects = self.rejects.values().map(|(vote, _)| vote.clone()).collect();
        let reason = Reason { rejects, cancel: self.cancel.clone() };
        for (outpoint, round) in self.target.inputs().clone() {
            let over = self.is_settled(cx, &outpoint, round, txid);
            if !over {
                cx.start_release(outpoint, round, &reason);
            }
        }
    }

    /// Whether an input's round is over for good: released, or the input is spent by another final transaction.
    fn is_settled(&self, cx: &Context, outpoint: &OutPoint, round: Round, txid: Txid) -> bool {
        cx.ledger.release(outpoint).is_some_and(|release| release.round >= round)
            || cx.ledger.spent_by(outpoint).is_some_and(|other| other != txid)
    }

    /// Ends a transaction one of whose inputs another final transaction spends: nodes need not even agree on the
    /// rounds of the rest.
    pub(crate) fn is_hopeless(&mut self, cx: &mut Context) -> bool {
        let txid = self.txid();
        let spent = |outpoint: &OutPoint| Some((*outpoint, cx.ledger.spent_by(outpoint)?));
        let other = self.target.inputs().keys().filter_map(spent).find(|(_, spender)| *spender != txid);
        let Some((outpoint, spender)) = other.filter(|_| self.ending.is_none()) else { return false };
        let reason = RejectReason::Spent { outpoint, txid: spender };
        let rejects = vec![NodeReject { node: cx.me, reason }];
        self.end(cx, Ending::Rejected { rejects, retry: false });
        true
    }

    pub(crate) fn settle(&mut self, cx: &mut Context) {
        let txid = self.txid();
        if self.is_hopeless(cx) {
            return;
        }
        let inputs = self.target.inputs().clone();
        if self.ending.is_none() {
            let moved = inputs.iter().any(|(outpoint, round)| {
                cx.ledger.release(outpoint).is_some_and(|release| release.round >= *round)
            });
            let certified = self.certificate.is_some();
            // Taken over only to end it: once it is free nobody asks for it any more, and to vote again would lock it
            // again.
            let orphan = self.submitters.is_empty();
            if moved && orphan && !cx.is_forced(&inputs, txid) {
                self.over = true;
            } else if moved {
                self.restart(cx);
            } else if !certified {
                self.ask_votes(cx);
            }
            return;
        }
        if !inputs.iter().all(|(outpoint, round)| self.is_settled(cx, outpoint, *round, txid)) {
            return;
        }
        // A block that spends an input otherwise may be undone, but until then there is nothing to do; who
        // submits it again learns then.
        let blocked =
            inputs.keys().any(|outpoint| cx.ledger.spent_by(outpoint).is_some_and(|other| other != txid));
        if cx.is_forced(&inputs, txid) && !blocked {
            tracing::info!(%txid, "it may be final already, so it goes on");
            self.ending = None;
            self.cancel = None;
            self.restart(cx);
        } else {
            self.conclude(cx);
        }
    }

    /// Ends a transaction with the proof that its inputs are free.
    fn conclude(&mut self, cx: &mut Context) {
        let releases = self.proofs_of_release(cx, &self.target);
        let status = match self.ending.clone() {
            Some(Ending::Rejected { rejects, retry }) => {
                TransactionStatus::Rejected { rejects, retry, releases }
            }
            Some(Ending::Failed { message, retry }) => TransactionStatus::Failed { message, retry, releases },
            None => return,
        };
        self.finish(cx, &status);
    }

    fn proofs_of_release(&self, cx: &Context, target: &VoteTarget) -> Vec<ReleaseCertificate> {
        let inputs = target.inputs().iter();
        let releases = inputs.filter_map(|(outpoint, round)| {
            cx.ledger.release(outpoint).filter(|release| release.round >= *round).cloned()
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
    pub(crate) fn restart(&mut self, cx: &mut Context) {
        if self.ending.is_none() && cx.is_cancelled(&self.target) {
            // The round that it was voted for in is what has to be released, not the next one.
            return self.end(cx, Ending::cancelled());
        }
        let target = cx.present_target(&self.proposal);
        let restarts = self.restarts + 1;
        if restarts > RESTARTS_MAX {
            let message = "its inputs changed rounds too often; submit it again".to_owned();
            let releases = self.proofs_of_release(cx, &target);
            return self.finish(cx, &TransactionStatus::Failed { message, retry: true, releases });
        }
        self.target = target;
        self.approvals.clear();
        self.rejects.clear();
        self.certificate = None;
        self.commitments.clear();
        self.excluded = cx.watch.suspects().clone();
        self.attempt += 1;
        self.first_attempt = self.attempt;
        self.signing = Attempt::default();
        self.restarts = restarts;
        let pause = pause_before(restarts);
        (self.ask_at, self.wait) = (cx.now + pause.unwrap_or(ASK_AGAIN_MIN), ASK_AGAIN_MIN);
        self.deadline = cx.now + cx.settings.voting_timeout;
        self.push_pending(cx);
        if pause.is_none() {
            self.ask_votes(cx);
        }
    }

    /// Helps to finish the releases that inputs wait for.
    pub(crate) fn push_pending(&mut self, cx: &mut Context) {
        for (outpoint, round) in self.target.inputs() {
            if cx.ledger.is_pending(outpoint) {
                cx.start_release(*outpoint, Round(round.0.saturating_sub(1)), &Reason::default());
            }
        }
    }

    /// Gives a transaction up that could not be signed, once its inputs are released.
    pub(crate) fn give_up(&mut self, cx: &mut Context, message: &str, retry: bool) {
        self.end(cx, Ending::Failed { message: message.to_owned(), retry });
    }
}

/// A transaction that is left its inputs again and again, and rejected each time, is asked for votes ever more slowly:
/// it may have become invalid for good, and an epoch has no endless number of rounds.
fn pause_before(restarts: u32) -> Option<Duration> {
    let doublings = restarts.checked_sub(3)?.min(2);
    Some(ASK_AGAIN_MIN * 2_u32.pow(doublings))
}
