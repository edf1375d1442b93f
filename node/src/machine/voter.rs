//! Phase 1 and 2 at one node: rules V1, V2 and V4.
//!
//! # Why it is safe
//!
//! * V2: [`Machine::vote`] approves only if no input is locked for another transaction, and writes record and lock to the ledger in
//!   the same step in which it emits the `Persist`. The driver lets nothing that follows leave before that is durable; after a
//!   restart the locks are restored from the records. So one approval per outpoint and round ever leaves.
//! * V4: [`Machine::commit`] takes only a certificate that verifies and is of the outpoints' present rounds, and emits its record before
//!   the share or signature.

use super::{Machine, Output, TxRecord, nonces::StoredResponse};
use crate::{
    chain::ChainError,
    store::{ChangeSet, Table},
};
use bitcoin::{OutPoint, Transaction, TxOut, constants::COINBASE_MATURITY};
use quorate::{
    NodeId,
    account::{AccountCertificate, AccountRecord, JointAccount},
    finality::{FinalityProof, VerifiedAccounts},
    frost::{NodeCommitments, Session, SigningError, WalletSignature},
    proposal::{CheckedProposal, Proposal, SpendPlan},
    standard,
    vote::{ApprovalCertificate, SignedVote, Verdict, VoteTarget, sign_commit},
    wire::{CommitReply, ErrorCode, Fault, PeerReply, RejectReason, WireError},
};
use std::collections::BTreeMap;

impl Machine {
    /// Votes on a proposal, or repeats the vote with fresh nonce commitments.
    pub(super) fn vote(
        &mut self,
        coordinator: NodeId,
        proposal: Proposal,
        account: Option<AccountCertificate>,
    ) -> Result<PeerReply, WireError> {
        let txid = proposal.txid();
        let inputs =
            proposal.outpoints().into_iter().map(|outpoint| (outpoint, self.ledger.round(&outpoint)));
        let target = VoteTarget::new(txid, inputs);
        if let Some(record) = self.ledger.record(&txid)
            && let Some(vote) = record.vote.clone()
        {
            let plan = self.plan_of(&record.clone())?;
            let commitments = plan.map(|plan| self.fresh_commitments(coordinator, &plan)).transpose()?;
            return Ok(PeerReply::VoteResponse { vote, reason: None, commitments });
        }
        let context = *self.federation.context();
        match self.evaluate(&proposal, account.as_ref()) {
            Err(reason) => {
                let vote = SignedVote::sign(&context, self.me, &self.key, target, Verdict::Reject);
                Ok(PeerReply::VoteResponse { vote, reason: Some(reason), commitments: None })
            }
            Ok((plan, spent)) => {
                let vote = SignedVote::sign(&context, self.me, &self.key, target.clone(), Verdict::Approve);
                let record = TxRecord {
                    target,
                    proposal: Some(proposal),
                    account,
                    spent,
                    vote: Some(vote.clone()),
                    locked_at: self.wall_ms,
                    certificate: None,
                    proof: None,
                };
                self.persist_record(record, None);
                let commitments = plan.map(|plan| self.fresh_commitments(coordinator, &plan)).transpose()?;
                Ok(PeerReply::VoteResponse { vote, reason: None, commitments })
            }
        }
    }

    /// Writes a record durably and tells subscribers what changed, in that order.
    pub(super) fn persist_record(&mut self, record: TxRecord, response: Option<StoredResponse>) {
        let mut change = ChangeSet::default();
        let txid = record.target.txid();
        change.put(Table::Transactions, txid.as_ref(), &record);
        if let Some(response) = response {
            change.put(Table::Responses, &response.digest.0, &response);
            self.nonces.remember(response.digest, response.reply);
        }
        let proof = record.proof.clone();
        let changed = self.ledger.put(record);
        self.outputs.push_back(Output::Persist(change));
        for outpoint in changed {
            self.notify_outpoint(outpoint, proof.as_ref());
        }
    }

    /// Rule V1. Gives what is to be signed (for a joint account) and the outputs that are spent.
    #[expect(clippy::wildcard_enum_match_arm, reason = "the interpreter has no other refusal")]
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
                standard::check_shape(transaction).map_err(|error| invalid(&error))?;
                let spent = self.spendable(transaction, None)?;
                standard::check_fee(transaction, &spent, transaction.weight())
                    .map_err(|error| invalid(&error))?;
                crate::chain::check_scripts(transaction, &spent).map_err(|error| match error {
                    ChainError::Script { index } => RejectReason::Script { index },
                    other => invalid(&other),
                })?;
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
            if let Some(other) = coin.spent.map(|spent| spent.txid).or(coin.spend.map(|spend| spend.txid))
                && other != txid
            {
                return Err(RejectReason::Spent { outpoint, txid: other });
            }
            if let Some(lock) = coin.lock.filter(|lock| lock.txid != txid) {
                return Err(RejectReason::Conflict { outpoint, txid: lock.txid });
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

    /// Rule V4: records the certificate durably, then releases share or signature.
    pub(super) fn commit(
        &mut self,
        certificate: ApprovalCertificate,
        attempt: u32,
        nodes: &BTreeMap<NodeId, NodeCommitments>,
        wallet: Option<WalletSignature>,
    ) -> Result<PeerReply, WireError> {
        let txid = certificate.target.txid();
        let record = self.ledger.record(&txid).cloned().ok_or_else(|| {
            WireError::passing(ErrorCode::UnknownTransaction, Fault::Receiver, "send the vote request first")
        })?;
        if record.target != certificate.target {
            return Err(WireError::sender(
                ErrorCode::InvalidSignature,
                "the certificate is of other inputs or rounds",
            ));
        }
        if record.certificate.as_ref() != Some(&certificate) {
            certificate
                .verify(&self.federation)
                .map_err(|error| WireError::sender(ErrorCode::InvalidSignature, error))?;
        }
        let plan = self.plan_of(&record)?;
        let (commit, response) = match (plan, wallet) {
            (None, _) => {
                let signature = sign_commit(self.federation.context(), &self.key, &certificate.target);
                (CommitReply::Sole { signature }, None)
            }
            (Some(plan), Some(wallet)) => self.sign_session(&plan, &record, attempt, nodes, &wallet)?,
            (Some(_), None) => {
                return Err(WireError::sender(ErrorCode::InvalidSignature, "the wallet's part is missing"));
            }
        };
        let record = TxRecord { certificate: record.certificate.or(Some(certificate)), ..record };
        self.persist_record(record, response);
        Ok(PeerReply::CommitResponse { commit })
    }

    fn sign_session(
        &mut self,
        plan: &SpendPlan,
        record: &TxRecord,
        attempt: u32,
        nodes: &BTreeMap<NodeId, NodeCommitments>,
        wallet: &WalletSignature,
    ) -> Result<(CommitReply, Option<StoredResponse>), WireError> {
        let invalid = |error: &dyn std::fmt::Display| WireError::sender(ErrorCode::InvalidSignature, error);
        let session = Session::new(&self.federation, plan, attempt, nodes, &wallet.commitments)
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
        let nonces = self.nonces.take(&mine.commitments).ok_or_else(|| gone(SigningError::Nonce))?;
        let shares = self.share.sign(&self.federation, &session, nonces).map_err(gone)?;
        let signature = session.sign_shares(&self.federation, &self.key, &shares);
        let reply = CommitReply::Joint { shares, signature };
        let stored = StoredResponse { digest: session.digest(), reply: reply.clone() };
        Ok((reply, Some(stored)))
    }

    /// What is signed for a recorded transaction; `None` for sole custody.
    pub(super) fn plan_of(&mut self, record: &TxRecord) -> Result<Option<SpendPlan>, WireError> {
        let invalid = |error: &dyn std::fmt::Display| WireError::sender(ErrorCode::InvalidProposal, error);
        match (&record.proposal, &record.account) {
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
    ) -> Result<NodeCommitments, WireError> {
        let mut commitments = Vec::with_capacity(plan.inputs.len());
        for _ in &plan.inputs {
            let made = self.share.commit(&mut self.rng);
            let (nonces, commitment) = made.ok_or_else(|| {
                WireError::passing(ErrorCode::Internal, Fault::Receiver, "no nonce could be made")
            })?;
            self.nonces.add(coordinator, nonces);
            commitments.push(commitment);
        }
        Ok(NodeCommitments::sign(&self.federation, self.me, &self.key, plan, commitments))
    }

    /// The account of a certificate, verified once.
    pub(super) fn verified_account(
        &mut self,
        certificate: &AccountCertificate,
    ) -> Result<JointAccount, quorate::account::AccountError> {
        let id = certificate.record.id(&self.federation);
        if let Some((account, _)) = self.accounts.get(&id) {
            return Ok(account.clone());
        }
        let account = certificate.verify(&self.federation)?;
        self.accounts.insert(id, (account.clone(), certificate.clone()));
        Ok(account)
    }

    pub(super) fn accept_account(&self, record: &AccountRecord) -> Result<PeerReply, WireError> {
        let invalid = |error| WireError::sender(ErrorCode::InvalidAccount, error);
        record.check(&self.federation).map_err(invalid)?;
        JointAccount::new(&self.federation, record.clone()).map_err(invalid)?;
        Ok(PeerReply::AccountResponse { signature: record.accept(&self.federation, &self.key) })
    }

    /// Takes in a proof of finality from a peer, after verifying it.
    pub(super) fn take_final(&mut self, proof: FinalityProof) -> Result<(), WireError> {
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
        self.record_final(proof);
        Ok(())
    }

    /// Records a verified proof, broadcasts the transaction and tells everybody here.
    pub(super) fn record_final(&mut self, proof: FinalityProof) {
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
        self.persist_record(record, None);
        self.outputs.push_back(Output::Broadcast(proof.transaction().clone()));
        let status = quorate::wire::TransactionStatus::Signed { proof: Box::new(proof) };
        self.notify_status(txid, &status);
        self.finish_coordination(txid, &status);
    }
}
