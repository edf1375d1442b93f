//! Phase 1 and 2 at one node: rules V1, V2 and V4.
//!
//! # Why it is safe
//!
//! * V2: [`Machine::vote`] approves only if no input is approved for another transaction in its present round, and writes record and
//!   lock to the ledger in the same step in which it emits the `Persist`. The driver lets nothing that follows leave before that is
//!   durable; after a restart the locks are restored from the records. So one approval per outpoint and round ever leaves.
//! * V4: [`Machine::commit`] takes only a certificate that verifies, of exactly the rounds that its inputs are in here and none of
//!   which this node has promised to leave, and emits its record before the share or signature.
//! * V5: a round rises only in `release`; after a release that names a certificate only that transaction is approved, until V6 frees
//!   the outpoint.
//! * V9: a node that does not trust its memory does neither (`standing`).

use crate::{
    Bug, Machine, Output,
    announce::GOSSIP_AFTER,
    records::{Answer, Change, ChangeSet, TxRecord},
    scripts::{ScriptError, check_scripts},
};
use bitcoin::{OutPoint, Transaction, TxOut, Txid, constants::COINBASE_MATURITY};
use quorate_protocol::{
    NodeId,
    account::{AccountCertificate, JointAccount},
    finality::{FinalityProof, VerifiedAccounts},
    frost::{NodeCommitments, Session, SigningError, WalletSignature},
    proposal::{CheckedProposal, Proposal, SpendPlan},
    relay_policy,
    release::ReleaseCertificate,
    vote::{ApprovalCertificate, SignedVote, Verdict, VoteTarget, sign_commit},
    wire::{CommitReply, ErrorCode, Fault, PeerReply, RejectReason, WireError},
};
use std::collections::BTreeMap;

/// What a commit request says.
pub(crate) struct CommitCall {
    pub(crate) certificate: ApprovalCertificate,
    pub(crate) attempt: u32,
    pub(crate) nodes: BTreeMap<NodeId, NodeCommitments>,
    pub(crate) wallet: Option<WalletSignature>,
}

impl Machine {
    /// The transaction in the rounds that its inputs are in here.
    pub(crate) fn present_target(&self, proposal: &Proposal) -> VoteTarget {
        let inputs = proposal.outpoints().into_iter();
        VoteTarget::new(proposal.txid(), inputs.map(|outpoint| (outpoint, self.ledger.round(&outpoint))))
    }

    /// Votes on a proposal, or repeats the vote with fresh nonce commitments.
    pub(crate) fn vote(
        &mut self,
        coordinator: NodeId,
        proposal: Proposal,
        account: Option<AccountCertificate>,
        certificate: Option<ApprovalCertificate>,
        releases: Vec<ReleaseCertificate>,
    ) -> Result<PeerReply, WireError> {
        self.may_vote()?;
        let shown: Vec<_> = releases.iter().map(|one| (one.outpoint, one.round)).collect();
        self.take_releases(releases);
        let target = self.present_target(&proposal);
        let txid = target.txid();
        self.heard_of.insert(txid, self.now);
        let unwanted = self.cancelled.contains(&txid) && !self.is_forced(target.inputs(), txid);
        let known = self.ledger.record(&txid).cloned();
        let repeated =
            known.as_ref().and_then(|known| known.vote.clone()).filter(|vote| vote.target == target);
        let (vote, reason, plan) = match repeated {
            Some(vote) => (vote, None, self.plan_of(known.as_ref())?),
            None if unwanted => {
                let reason = RejectReason::Invalid { message: "its owner cancelled it".to_owned() };
                (self.sign_vote(target.clone(), Verdict::Reject), Some(reason), None)
            }
            None => match self.evaluate(&proposal, account.as_ref()) {
                Ok((plan, spent)) => {
                    let record = self.fresh_record(&target, proposal, account, spent);
                    let vote = self.sign_vote(target.clone(), Verdict::Approve);
                    self.persist_record(TxRecord { vote: Some(vote.clone()), ..record }, None);
                    (vote, None, plan)
                }
                Err(reason) => {
                    let plan = self.certified_plan(&target, proposal, account, certificate, &reason);
                    (self.sign_vote(target.clone(), Verdict::Reject), Some(reason), plan)
                }
            },
        };
        let commitments = plan.map(|plan| self.fresh_commitments(coordinator, &plan, &target)).transpose()?;
        let missed = |one: &&ReleaseCertificate| !shown.contains(&(one.outpoint, one.round));
        let releases = self.releases_of(&target).iter().filter(missed).cloned().collect();
        let proof = match &reason {
            Some(RejectReason::Spent { txid, .. }) => {
                self.ledger.record(txid).and_then(|one| one.proof.clone())
            }
            Some(_) | None => self.ledger.record(&txid).and_then(|one| one.proof.clone()),
        };
        let (proof, head) = (proof.map(Box::new), Some(self.signed_head()));
        Ok(PeerReply::VoteResponse { vote, reason, commitments, releases, proof, head })
    }

    fn sign_vote(&self, target: VoteTarget, verdict: Verdict) -> SignedVote {
        SignedVote::sign(self.federation.context(), self.me, &self.key, target, verdict)
    }

    /// The record to write for a transaction, with the facts that are known of it.
    fn fresh_record(
        &self,
        target: &VoteTarget,
        proposal: Proposal,
        account: Option<AccountCertificate>,
        spent: Vec<TxOut>,
    ) -> TxRecord {
        let known = self.ledger.record(&target.txid());
        TxRecord {
            target: target.clone(),
            proposal: Some(proposal),
            account,
            spent,
            vote: known.and_then(|known| known.vote.clone()),
            locked_at: self.wall_ms,
            certificate: known.and_then(|known| known.certificate.clone()),
            proof: known.and_then(|known| known.proof.clone()),
        }
    }

    /// A node that approved another transaction in this round cannot approve this one (V2), but with its certificate it can commit
    /// and sign (V4): so that any q responsive nodes are enough, whatever they voted.
    fn certified_plan(
        &mut self,
        target: &VoteTarget,
        proposal: Proposal,
        account: Option<AccountCertificate>,
        certificate: Option<ApprovalCertificate>,
        reason: &RejectReason,
    ) -> Option<SpendPlan> {
        let certificate = certificate.filter(|one| one.target == *target)?;
        if !matches!(reason, RejectReason::Conflict { .. }) || certificate.verify(&self.federation).is_err() {
            return None;
        }
        let Proposal::Joint(joint) = &proposal else { return None };
        let known = self.verified_account(account.as_ref()?).ok()?;
        let checked = joint.check(&self.federation, &known).ok()?;
        if self.ledger.record(&target.txid()).is_none_or(|known| known.proposal.is_none()) {
            let record = self.fresh_record(target, proposal, account, checked.spent);
            self.persist_record(record, None);
        }
        Some(checked.plan)
    }

    /// Writes a record durably and tells subscribers what changed, in that order.
    pub(crate) fn persist_record(&mut self, record: TxRecord, answer: Option<Answer>) {
        let mut change = ChangeSet::default();
        change.put(&Change::Transaction(Box::new(record.clone())));
        if let Some(answer) = answer {
            self.nonces.remember(answer.digest, answer.reply.clone());
            change.put(&Change::Answer(Box::new(answer)));
        }
        let proof = record.proof.clone();
        let changed = self.ledger.put(record, self.now);
        let early = self.planted(Bug::NotifyBeforeWrite) || self.planted(Bug::VoteBeforeWrite);
        let forgotten = self.planted(Bug::ForgetProof) && proof.is_some();
        if !early && !forgotten {
            self.persist(change);
            self.notify_outpoints(changed, proof.as_ref());
        } else {
            self.notify_outpoints(changed, proof.as_ref());
            self.late = Some(change).filter(|_| !forgotten);
        }
    }

    fn notify_outpoints(&mut self, changed: Vec<OutPoint>, proof: Option<&FinalityProof>) {
        for outpoint in changed {
            self.notify_outpoint(outpoint, proof);
        }
    }

    /// Rule V1. Gives what is to be signed (for a joint account) and the outputs that are spent.
    fn evaluate(
        &mut self,
        proposal: &Proposal,
        account: Option<&AccountCertificate>,
    ) -> Result<(Option<SpendPlan>, Vec<TxOut>), RejectReason> {
        let invalid = |error: &dyn std::fmt::Display| RejectReason::Invalid { message: error.to_string() };
        match proposal {
            Proposal::Joint(joint) => {
                let certificate = account.ok_or_else(|| invalid(&"the account certificate is missing"))?;
                let account = self.verified_account(certificate).map_err(|error| invalid(&error))?;
                let checked = joint.check(&self.federation, &account).map_err(|error| invalid(&error))?;
                let spent = self.spendable(&checked.transaction, Some((&account, &checked)))?;
                for ((input, claimed), actual) in
                    checked.transaction.input.iter().zip(&checked.spent).zip(&spent)
                {
                    if claimed != actual {
                        return Err(RejectReason::WrongCoin { outpoint: input.previous_output });
                    }
                }
                Ok((Some(checked.plan), spent))
            }
            Proposal::Sole { transaction } => {
                relay_policy::check_shape(transaction).map_err(|error| invalid(&error))?;
                let spent = self.spendable(transaction, None)?;
                relay_policy::check_fee(transaction, &spent, transaction.weight())
                    .map_err(|error| invalid(&error))?;
                check_scripts(transaction, &spent)
                    .map_err(|ScriptError { index }| RejectReason::Script { index })?;
                Ok((None, spent))
            }
        }
    }

    fn spendable(
        &self,
        transaction: &Transaction,
        joint: Option<(&JointAccount, &CheckedProposal)>,
    ) -> Result<Vec<TxOut>, RejectReason> {
        let tip = self.ledger.tip().height;
        let final_lock = match transaction.lock_time {
            bitcoin::absolute::LockTime::Blocks(height) => height.to_consensus_u32() <= tip,
            bitcoin::absolute::LockTime::Seconds(time) => time.to_consensus_u32() < self.ledger.median_time(),
        };
        // Relative locks are refused outright: the wallet's own transactions never have any.
        let relative = transaction.version.0 >= 2
            && transaction.input.iter().any(|input| input.sequence.is_relative_lock_time());
        if relative || (!final_lock && transaction.is_lock_time_enabled()) {
            return Err(RejectReason::TimeLock);
        }
        let txid = transaction.compute_txid();
        let check = |outpoint: OutPoint| {
            let coin = self.ledger.coin(&outpoint).ok_or(RejectReason::UnknownCoin { outpoint })?;
            match self.ledger.spent_by(&outpoint).filter(|other| *other != txid) {
                Some(_) if self.planted(Bug::VoteForSpentCoin) => {}
                Some(other) => return Err(RejectReason::Spent { outpoint, txid: other }),
                None => self.votable(outpoint, txid)?,
            }
            let depth = coin.created.map_or(0, |block| tip + 1 - block.height.min(tip + 1));
            let immature = self.ledger.is_coinbase(&outpoint);
            let needed = if immature { COINBASE_MATURITY } else { self.rules.min_confirmations };
            if (coin.final_parent.is_none() || immature) && depth < needed {
                return Err(RejectReason::Unconfirmed { outpoint, confirmations: depth, needed });
            }
            if let (Some((account, checked)), Some(block)) = (joint, coin.created) {
                let opens_at = block.height + u32::from(account.record().recovery_delay);
                let margin = u32::from(self.federation.roster().recovery_margin);
                if tip + margin >= opens_at && !checked.returns_home {
                    return Err(RejectReason::Horizon { outpoint, opens_at });
                }
            }
            Ok(TxOut { value: coin.value, script_pubkey: coin.script_pubkey.clone() })
        };
        transaction.input.iter().map(|input| check(input.previous_output)).collect()
    }

    /// Rules V2 and V5: whether the outpoint's round leaves room for this transaction.
    fn votable(&self, outpoint: OutPoint, txid: Txid) -> Result<(), RejectReason> {
        if self.ledger.is_pending(&outpoint) && !self.planted(Bug::VoteWhilePending) {
            return Err(RejectReason::Round { outpoint, round: self.ledger.round(&outpoint) });
        }
        if let Some((other, _)) = self.ledger.approved(&outpoint)
            && other != txid
            && !self.planted(Bug::VoteTwice)
        {
            return Err(RejectReason::Conflict { outpoint, txid: other });
        }
        match self.ledger.forced(&outpoint) {
            Some(forced) if forced != txid && !self.ignores_forced(&outpoint) => {
                Err(RejectReason::Conflict { outpoint, txid: forced })
            }
            Some(_) | None => Ok(()),
        }
    }

    /// Planted bugs: what a release, or the epoch before, left the outpoint to binds nobody.
    fn ignores_forced(&self, outpoint: &OutPoint) -> bool {
        self.planted(Bug::IgnoreForced)
            || (self.planted(Bug::IgnoreInherited) && self.ledger.release(outpoint).is_none())
    }

    /// Rule V4: records the certificate durably, then releases share or signature.
    pub(crate) fn commit(
        &mut self,
        call: CommitCall,
        releases: Vec<ReleaseCertificate>,
    ) -> Result<PeerReply, WireError> {
        self.may_vote()?;
        self.take_releases(releases);
        let CommitCall { certificate, attempt, nodes, wallet } = call;
        let txid = certificate.target.txid();
        self.heard_of.insert(txid, self.now);
        let record = self.ledger.record(&txid).cloned();
        let (record, proposal) = record
            .and_then(|record| record.proposal.clone().map(|proposal| (record, proposal)))
            .ok_or_else(|| {
                WireError::passing(
                    ErrorCode::UnknownTransaction,
                    Fault::Receiver,
                    "send the vote request first",
                )
            })?;
        self.check_rounds(&certificate.target, &proposal)?;
        if record.certificate.as_ref() != Some(&certificate) && !self.planted(Bug::SmallCertificate) {
            certificate
                .verify(&self.federation)
                .map_err(|error| WireError::sender(ErrorCode::InvalidSignature, error))?;
        }
        self.watch_certificate(&certificate);
        let (commit, response) = match (self.plan_of(Some(&record))?, wallet) {
            (None, _) => {
                let signature = sign_commit(self.federation.context(), &self.key, &certificate.target);
                (CommitReply::Sole { signature }, None)
            }
            (Some(plan), Some(wallet)) => {
                self.sign_session(&plan, &record, &certificate.target, attempt, &nodes, &wallet)?
            }
            (Some(_), None) => {
                return Err(WireError::sender(ErrorCode::InvalidSignature, "the wallet's part is missing"));
            }
        };
        let record = TxRecord { certificate: Some(certificate), ..record };
        if !self.planted(Bug::CommitWithoutRecord) {
            self.persist_record(record, response);
        }
        Ok(PeerReply::CommitResponse { commit })
    }

    /// The certificate has to be of the present round of every input, none of which is being left, and for nothing that another
    /// release or a final transaction rules out.
    fn check_rounds(&self, target: &VoteTarget, proposal: &Proposal) -> Result<(), WireError> {
        if self.planted(Bug::CommitAfterPromise) {
            return Ok(());
        }
        let outpoints = proposal.outpoints();
        if *target != self.present_target(proposal) || outpoints.iter().any(|one| self.ledger.is_pending(one))
        {
            let message = "the certificate is not of the rounds that its inputs are in here; vote again";
            return Err(WireError::passing(ErrorCode::RoundOver, Fault::Network, message));
        }
        for outpoint in &outpoints {
            let forced = self.ledger.forced(outpoint).filter(|_| !self.planted(Bug::IgnoreInherited));
            let other = self.ledger.spent_by(outpoint).or(forced).filter(|other| *other != target.txid());
            if let Some(other) = other {
                let message = format!("{outpoint} is held by {other}");
                return Err(WireError::sender(ErrorCode::RoundOver, message));
            }
        }
        Ok(())
    }

    fn sign_session(
        &mut self,
        plan: &SpendPlan,
        record: &TxRecord,
        target: &VoteTarget,
        attempt: u32,
        nodes: &BTreeMap<NodeId, NodeCommitments>,
        wallet: &WalletSignature,
    ) -> Result<(CommitReply, Option<Answer>), WireError> {
        let invalid = |error: &dyn std::fmt::Display| WireError::sender(ErrorCode::InvalidSignature, error);
        let session = Session::new(&self.federation, plan, target, attempt, nodes, &wallet.commitments)
            .map_err(|error| invalid(&error))?;
        if let Some(reply) = self.nonces.answered(session.digest()) {
            return Ok((reply.clone(), None));
        }
        let account = record.account.as_ref().ok_or_else(|| invalid(&"the account is missing"))?;
        if !session.verify_wallet(&self.federation, &account.record, wallet) {
            return Err(invalid(&"the wallet did not sign this package"));
        }
        let mine = nodes.get(&self.me).ok_or_else(|| invalid(&"this node is not among the signers"))?;
        let gone =
            |error: SigningError| WireError::passing(ErrorCode::NonceUnavailable, Fault::Receiver, error);
        let nonces = self.nonces.take(&mine.commitments);
        let nonces = nonces.ok_or_else(|| gone(SigningError::Nonce))?;
        let shares = self.share.sign(&self.federation, &session, nonces).map_err(gone)?;
        let signature = session.sign_shares(&self.federation, &self.key, &shares);
        let reply = CommitReply::Joint { shares, signature };
        let stored = Answer { digest: session.digest(), reply: reply.clone() };
        Ok((reply, Some(stored)))
    }

    /// What is signed for a recorded transaction; `None` for sole custody.
    fn plan_of(&mut self, record: Option<&TxRecord>) -> Result<Option<SpendPlan>, WireError> {
        let invalid = |error: &dyn std::fmt::Display| WireError::sender(ErrorCode::InvalidProposal, error);
        let (proposal, account) = record.map_or((&None, &None), |record| (&record.proposal, &record.account));
        match (proposal, account) {
            (Some(Proposal::Joint(joint)), Some(certificate)) => {
                let account = self.verified_account(certificate).map_err(|error| invalid(&error))?;
                let checked = joint.check(&self.federation, &account).map_err(|error| invalid(&error))?;
                Ok(Some(checked.plan))
            }
            (Some(Proposal::Sole { .. }), _) => Ok(None),
            (Some(Proposal::Joint(_)), None) | (None, _) => Err(WireError::passing(
                ErrorCode::UnknownTransaction,
                Fault::Receiver,
                "send the vote request first",
            )),
        }
    }

    fn fresh_commitments(
        &mut self,
        coordinator: NodeId,
        plan: &SpendPlan,
        target: &VoteTarget,
    ) -> Result<NodeCommitments, WireError> {
        let mut commitments = Vec::with_capacity(plan.inputs.len());
        for _ in &plan.inputs {
            let made = if self.planted(Bug::ReuseNonce) {
                self.share.commit(&mut self.rng.clone())
            } else {
                self.share.commit(&mut self.rng)
            };
            let (nonces, commitment) = made.ok_or_else(|| {
                WireError::passing(ErrorCode::Internal, Fault::Receiver, "no nonce could be made")
            })?;
            self.nonces.add(coordinator, nonces);
            commitments.push(commitment);
        }
        Ok(NodeCommitments::sign(&self.federation, self.me, &self.key, target, commitments))
    }

    /// Takes in a proof of finality from a peer, after verifying it.
    pub(crate) fn take_final(&mut self, proof: FinalityProof) -> Result<(), WireError> {
        let txid = proof.txid();
        if self.ledger.record(&txid).is_some_and(|record| record.proof.is_some()) {
            return Ok(());
        }
        let mut accounts = VerifiedAccounts::new();
        if let FinalityProof::Enforced { account, .. } = &proof {
            let known = self.verified_account(account);
            let known = known.map_err(|error| WireError::sender(ErrorCode::InvalidSignature, error))?;
            accounts.insert(known.id(), known);
        }
        proof
            .verify(&self.federation, &mut accounts)
            .map_err(|error| WireError::sender(ErrorCode::InvalidSignature, error))?;
        self.watch_commits_of(&proof);
        self.record_final(proof);
        Ok(())
    }

    /// Records a verified proof, broadcasts the transaction and tells everybody here.
    pub(crate) fn record_final(&mut self, proof: FinalityProof) {
        let txid = proof.txid();
        let known = self.ledger.record(&txid).cloned();
        let spent = match &proof {
            FinalityProof::Enforced { spent, .. } => spent.iter().map(|spent| spent.output.clone()).collect(),
            FinalityProof::Attested { .. } => Vec::new(),
        };
        let fresh = || TxRecord {
            target: VoteTarget::new(
                txid,
                proof.outpoints().map(|outpoint| (outpoint, self.ledger.round(&outpoint))),
            ),
            proposal: None,
            account: None,
            spent,
            vote: None,
            locked_at: self.wall_ms,
            certificate: None,
            proof: None,
        };
        let mut record = known.unwrap_or_else(fresh);
        record.proof = Some(proof.clone());
        let inputs: Vec<OutPoint> = proof.outpoints().collect();
        self.persist_record(record, None);
        self.end_releases(&inputs);
        self.gossip_at.push_back((self.now + GOSSIP_AFTER, txid));
        self.outputs.push_back(Output::Broadcast(proof.transaction().clone()));
        let status = quorate_protocol::wire::TransactionStatus::Signed { proof: Box::new(proof) };
        self.notify_status(txid, &status);
        self.finish_coordination(txid, &status);
        self.inputs_settled(&inputs);
    }
}
