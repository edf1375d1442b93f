//! What becomes of a transaction's record: a vote, a certificate, a proof. Durable first, then told.

use crate::{
    Output,
    context::Context,
    effects::Effect,
    ledger::Conflict,
    records::{Answer, Change, ChangeSet, TxRecord},
};
use bitcoin::{OutPoint, TxOut, Txid};
use quorate_protocol::{
    Round,
    account::AccountCertificate,
    finality::FinalityProof,
    proposal::Proposal,
    vote::{SignedVote, Verdict, VoteTarget},
    wire::{ErrorCode, Fault, TransactionStatus, WireError},
};
use std::collections::{BTreeMap, BTreeSet};

impl Context {
    /// The transaction in the rounds that its inputs are in here.
    pub(crate) fn present_target(&self, proposal: &Proposal) -> VoteTarget {
        let inputs = proposal.outpoints().into_iter();
        let rounds = inputs.map(|outpoint| (outpoint, self.ledger.round(&outpoint)));
        VoteTarget::new(proposal.txid(), proposal.custody(), rounds)
    }

    pub(crate) fn sign_vote(&self, target: VoteTarget, verdict: Verdict) -> SignedVote {
        SignedVote::sign(self.federation.context(), self.me, &self.key, target, verdict)
    }

    /// The record to write for a transaction, with the facts that are known of it.
    pub(crate) fn fresh_record(
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

    /// Writes a record durably and tells subscribers what changed, in that order.
    pub(crate) fn persist_record(&mut self, record: TxRecord, answer: Option<Answer>) {
        let mut change = ChangeSet::default();
        change.put(&Change::Transaction(Box::new(record.clone())));
        if let Some(answer) = answer {
            change.put(&Change::Answer(Box::new(answer)));
        }
        let proof = record.proof.clone();
        let changed = self.ledger.put(record, self.now);
        if !self.tells_first(&change, &changed, proof.as_ref()) {
            self.persist(change);
            self.notify_outpoints(&changed, proof.as_ref());
        }
    }

    pub(crate) fn notify_outpoints(&mut self, changed: &[OutPoint], proof: Option<&FinalityProof>) {
        for outpoint in changed {
            self.notify_outpoint(*outpoint, proof);
        }
    }

    /// Takes in a proof of finality from a peer, after verifying it.
    pub(crate) fn take_final(&mut self, proof: FinalityProof) -> Result<(), WireError> {
        let txid = proof.txid();
        if self.ledger.proof(&txid).is_some() || self.recalled.transactions.contains_key(&txid) {
            return Ok(());
        }
        proof
            .verify(&self.federation)
            .map_err(|error| WireError::sender(ErrorCode::InvalidSignature, error))?;
        // Who does not know how high the chain is does not know whether the deadline has passed.
        if !self.caught_up && proof.custody().deadline().is_some() && self.ledger.block_of(&txid).is_none() {
            let message = "this node has not read the chain up to its tip yet";
            return Err(WireError::passing(ErrorCode::NotReady, Fault::Receiver, message));
        }
        self.check_deadline(txid, proof.custody())?;
        self.watch_commits_of(&proof);
        self.record_final(proof);
        Ok(())
    }

    /// Takes in a proof from a wallet, and has the other nodes told if it is news.
    pub(crate) fn take_handed_in(&mut self, proof: FinalityProof) -> Result<(), WireError> {
        let txid = proof.txid();
        if self.ledger.proof(&txid).is_some() || self.recalled.transactions.contains_key(&txid) {
            return Ok(());
        }
        self.take_final(proof.clone())?;
        self.effects.push_back(Effect::Announce(Box::new(proof)));
        Ok(())
    }

    /// Records a verified proof, broadcasts the transaction and tells everybody here.
    pub(crate) fn record_final(&mut self, proof: FinalityProof) {
        let txid = proof.txid();
        let known = self.ledger.record(&txid).cloned();
        let spent = match &proof {
            FinalityProof::Enforced { spent, .. } => spent.clone(),
            FinalityProof::Attested { .. } => Vec::new(),
        };
        let fresh = || TxRecord {
            target: VoteTarget::new(
                txid,
                proof.custody(),
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
        // The block may have come before the proof.
        let status = match self.ledger.conflict(txid) {
            Some(Conflict { by, .. }) => {
                self.alarm(&BTreeSet::from([txid]));
                TransactionStatus::Conflicted { by }
            }
            None => {
                let transactions = self.with_refused_ancestors(proof.transaction());
                self.outputs.push_back(Output::Broadcast(transactions));
                TransactionStatus::Signed { proof: Box::new(proof) }
            }
        };
        self.notify_status(txid, &status);
        self.effects.push_back(Effect::Final { txid, inputs, status });
    }

    /// Records what this node has completed, and has everybody told.
    pub(crate) fn complete(&mut self, proof: FinalityProof) {
        self.record_final(proof.clone());
        self.effects.push_back(Effect::Announce(Box::new(proof)));
    }

    /// Whether a release has left an input to this transaction alone.
    pub(crate) fn is_forced(&self, inputs: &BTreeMap<OutPoint, Round>, txid: Txid) -> bool {
        inputs.keys().any(|outpoint| self.ledger.forced(outpoint) == Some(txid))
    }
}
