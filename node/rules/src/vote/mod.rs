//! Phase 1 at one node: rules V1 and V2.
//!
//! # Why it is safe
//!
//! * V2: [`Voter::vote`] approves only if no input is approved for another transaction in its present round, and
//!   writes record and lock to the ledger in the same step in which it emits the `Persist`. The driver lets nothing
//!   that follows leave before that is durable; after a restart the locks are restored from the records. So one
//!   approval per outpoint and round ever leaves.
//! * V5: a round rises only in `release`; after a release that names a certificate only that transaction is approved,
//!   until V6 frees the outpoint.
//! * V9: a node that does not trust its memory does not vote (`standing`); the router asks first.

mod commit;
mod nonces;

pub(crate) use commit::CommitCall;

use crate::{
    context::Context,
    records::{Answer, ChangeSet, TxRecord},
};
use bitcoin::{OutPoint, Txid};
use nonces::NoncePool;
use quorate_protocol::{
    NodeId, Round,
    account::AccountCertificate,
    frost::{NodeCommitments, NodeShare},
    proposal::{Proposal, SpendPlan},
    release::ReleaseCertificate,
    vote::{ApprovalCertificate, SignedVote, Verdict, VoteTarget},
    wire::{ErrorCode, Fault, RejectReason, VotingReply, WireError},
};

/// What a vote request says.
pub(crate) struct VoteCall {
    pub(crate) proposal: Proposal,
    pub(crate) account: Option<AccountCertificate>,
    pub(crate) certificate: Option<ApprovalCertificate>,
    /// The releases that came with it; those need not be sent back.
    pub(crate) shown: Vec<(OutPoint, Round)>,
}

/// Votes and commits: this node's share of the key, and its nonces.
#[derive(Debug)]
pub(crate) struct Voter {
    share: NodeShare,
    nonces: NoncePool,
}

impl Voter {
    /// With the answers that used up nonces before this node started.
    pub(crate) fn restore(share: NodeShare, answers: Vec<Answer>) -> Self {
        Self { share, nonces: NoncePool::restore(answers) }
    }

    /// Forgets what was answered about transactions that have come to rest.
    pub(crate) fn forget(&mut self, transactions: &[Txid], change: &mut ChangeSet) {
        self.nonces.forget(transactions, change);
    }

    /// Votes on a proposal, or repeats the vote with fresh nonce commitments.
    pub(crate) fn vote(
        &mut self,
        cx: &mut Context,
        coordinator: NodeId,
        call: VoteCall,
    ) -> Result<VotingReply, WireError> {
        let VoteCall { proposal, account, certificate, shown } = call;
        let target = cx.present_target(&proposal);
        let txid = target.txid();
        let unwanted = cx.is_cancelled(&target);
        let known = cx.ledger.record(&txid).cloned();
        let repeated =
            known.as_ref().and_then(|known| known.vote.clone()).filter(|vote| vote.target == target);
        // In one round a node stands by one deadline, or one witness, of a transaction; a release makes room for
        // another.
        let other = |vote: &SignedVote| vote.target != target && vote.target.inputs() == target.inputs();
        let bound = known.as_ref().and_then(|known| known.vote.as_ref()).is_some_and(other);
        let (vote, reason, plan) = match repeated {
            Some(vote) => (vote, None, self.plan_of(cx, known.as_ref())?),
            None if bound => {
                let message = "it was voted for with another deadline or witness in this round".to_owned();
                let reason = RejectReason::Invalid { message };
                (cx.sign_vote(target.clone(), Verdict::Reject), Some(reason), None)
            }
            None if unwanted => {
                let reason = RejectReason::Invalid { message: "its owner cancelled it".to_owned() };
                (cx.sign_vote(target.clone(), Verdict::Reject), Some(reason), None)
            }
            None => match cx.evaluate(&proposal, account.as_ref()) {
                Ok((plan, spent)) => {
                    let record = cx.fresh_record(&target, proposal, account, spent);
                    let vote = cx.sign_vote(target.clone(), Verdict::Approve);
                    cx.persist_record(TxRecord { vote: Some(vote.clone()), ..record }, None);
                    (vote, None, plan)
                }
                Err(reason) => {
                    let plan = self.certified_plan(cx, &target, proposal, account, certificate, &reason);
                    (cx.sign_vote(target.clone(), Verdict::Reject), Some(reason), plan)
                }
            },
        };
        let commitments =
            plan.map(|plan| self.fresh_commitments(cx, coordinator, &plan, &target)).transpose()?;
        let missed = |one: &&ReleaseCertificate| !shown.contains(&(one.outpoint, one.round));
        let releases = cx.releases_of(&target).iter().filter(missed).cloned().collect();
        let proof = match &reason {
            Some(RejectReason::Spent { txid, .. }) => cx.ledger.proof(txid),
            Some(_) | None => cx.ledger.proof(&txid),
        };
        let (proof, head) = (proof.cloned().map(Box::new), Some(cx.signed_head()));
        Ok(VotingReply::VoteResponse { vote, reason, commitments, releases, proof, head })
    }

    /// A node that approved another transaction in this round cannot approve this one (V2), but with its certificate
    /// it can commit and sign (V4): so that any q responsive nodes are enough, whatever they voted.
    fn certified_plan(
        &mut self,
        cx: &mut Context,
        target: &VoteTarget,
        proposal: Proposal,
        account: Option<AccountCertificate>,
        certificate: Option<ApprovalCertificate>,
        reason: &RejectReason,
    ) -> Option<SpendPlan> {
        let certificate = certificate.filter(|one| one.target == *target)?;
        let verified = || certificate.verify(&cx.federation).is_ok();
        if !matches!(reason, RejectReason::Conflict { .. }) || !verified() {
            return None;
        }
        let Proposal::Joint(joint) = &proposal else { return None };
        // What the proposal says of its coins is not taken for known.
        let there = |input: &OutPoint| {
            let other = cx.ledger.spent_by(input).is_some_and(|other| other != target.txid());
            cx.ledger.knows_origin(input) && !other
        };
        if !target.inputs().keys().all(there) {
            return None;
        }
        let known = cx.verified_account(account.as_ref()?).ok()?;
        let checked = cx.check_joint(joint, &known).ok()?;
        if cx.ledger.record(&target.txid()).is_none_or(|known| known.proposal.is_none()) {
            let record = cx.fresh_record(target, proposal, account, checked.spent.clone());
            cx.persist_record(record, None);
        }
        Some(checked.plan.clone())
    }

    fn fresh_commitments(
        &mut self,
        cx: &mut Context,
        coordinator: NodeId,
        plan: &SpendPlan,
        target: &VoteTarget,
    ) -> Result<NodeCommitments, WireError> {
        let mut commitments = Vec::with_capacity(plan.inputs.len());
        for _ in &plan.inputs {
            cx.freeze_randomness();
            let made = self.share.commit(&mut cx.rng);
            let (nonces, commitment) = made.ok_or_else(|| {
                WireError::passing(ErrorCode::Internal, Fault::Receiver, "no nonce could be made")
            })?;
            self.nonces.add(coordinator, nonces);
            commitments.push(commitment);
        }
        Ok(NodeCommitments::sign(&cx.federation, cx.me, &cx.key, target, commitments))
    }

    /// What is signed for a recorded transaction; `None` for sole custody.
    fn plan_of(
        &mut self,
        cx: &mut Context,
        record: Option<&TxRecord>,
    ) -> Result<Option<SpendPlan>, WireError> {
        let invalid = |error: &dyn std::fmt::Display| WireError::sender(ErrorCode::InvalidProposal, error);
        let (proposal, account) = record.map_or((&None, &None), |record| (&record.proposal, &record.account));
        match (proposal, account) {
            (Some(Proposal::Joint(joint)), Some(certificate)) => {
                let account = cx.verified_account(certificate).map_err(|error| invalid(&error))?;
                let checked = cx.check_joint(joint, &account).map_err(|error| invalid(&error))?;
                Ok(Some(checked.plan.clone()))
            }
            (Some(Proposal::Sole { .. }), _) => Ok(None),
            (Some(Proposal::Joint(_)), None) | (None, _) => Err(WireError::passing(
                ErrorCode::UnknownTransaction,
                Fault::Receiver,
                "send the vote request first",
            )),
        }
    }
}
