//! Phase 2 at one node: rule V4.
//!
//! # Why it is safe
//!
//! [`Voter::commit`] takes only a certificate that verifies, of exactly the rounds that its inputs are in here and
//! none of which this node has promised to leave, and emits its record before the share or signature. A node that
//! does not trust its memory does not commit (V9, `standing`); the router asks first.

use super::Voter;
use crate::{
    Bug,
    context::Context,
    records::{Answer, TxRecord},
};
use quorate_protocol::{
    NodeId,
    frost::{NodeCommitments, SigningError, SigningSession, WalletSignature},
    proposal::SpendPlan,
    vote::{ApprovalCertificate, VoteTarget, sign_commit},
    wire::{CommitReply, ErrorCode, Fault, VotingReply, WireError},
};
use std::collections::BTreeMap;

/// What a commit request says.
pub(crate) struct CommitCall {
    pub(crate) certificate: ApprovalCertificate,
    pub(crate) attempt: u32,
    pub(crate) nodes: BTreeMap<NodeId, NodeCommitments>,
    pub(crate) wallet: Option<WalletSignature>,
}

impl Voter {
    /// Rule V4: records the certificate durably, then releases share or signature.
    pub(crate) fn commit(&mut self, cx: &mut Context, call: CommitCall) -> Result<VotingReply, WireError> {
        let CommitCall { certificate, attempt, nodes, wallet } = call;
        let txid = certificate.target.txid();
        let record = cx.ledger.record(&txid).cloned();
        let (record, proposal) = record
            .and_then(|record| record.proposal.clone().map(|proposal| (record, proposal)))
            .ok_or_else(|| {
                WireError::passing(
                    ErrorCode::UnknownTransaction,
                    Fault::Receiver,
                    "send the vote request first",
                )
            })?;
        cx.check_rounds(&certificate.target, &proposal)?;
        if record.certificate.as_ref() != Some(&certificate) && !cx.planted(Bug::SmallCertificate) {
            certificate
                .verify(&cx.federation)
                .map_err(|error| WireError::sender(ErrorCode::InvalidSignature, error))?;
        }
        cx.watch_certificate(&certificate);
        let (commit, answer) = match (self.plan_of(cx, Some(&record))?, wallet) {
            (None, _) => {
                let signature = sign_commit(cx.federation.context(), &cx.key, &certificate.target);
                (CommitReply::Sole { signature }, None)
            }
            (Some(plan), Some(wallet)) => {
                self.sign_session(cx, &plan, &record, &certificate.target, attempt, &nodes, &wallet)?
            }
            (Some(_), None) => {
                return Err(WireError::sender(ErrorCode::InvalidSignature, "the wallet's part is missing"));
            }
        };
        let record = TxRecord { certificate: Some(certificate), ..record };
        if !cx.planted(Bug::CommitWithoutRecord) {
            if let Some(answer) = &answer {
                self.nonces.remember(answer.clone());
            }
            cx.persist_record(record, answer);
        }
        Ok(VotingReply::CommitResponse { commit })
    }

    fn sign_session(
        &mut self,
        cx: &mut Context,
        plan: &SpendPlan,
        record: &TxRecord,
        target: &VoteTarget,
        attempt: u32,
        nodes: &BTreeMap<NodeId, NodeCommitments>,
        wallet: &WalletSignature,
    ) -> Result<(CommitReply, Option<Answer>), WireError> {
        let invalid = |error: &dyn std::fmt::Display| WireError::sender(ErrorCode::InvalidSignature, error);
        let session = SigningSession::new(&cx.federation, plan, target, attempt, nodes, &wallet.commitments)
            .map_err(|error| invalid(&error))?;
        if let Some(reply) = self.nonces.answered(session.digest()) {
            return Ok((reply.clone(), None));
        }
        let account = record.account.as_ref().ok_or_else(|| invalid(&"the account is missing"))?;
        if !session.verify_wallet(&cx.federation, &account.record, wallet) {
            return Err(invalid(&"the wallet did not sign this package"));
        }
        let mine = nodes.get(&cx.me).ok_or_else(|| invalid(&"this node is not among the signers"))?;
        let gone =
            |error: SigningError| WireError::passing(ErrorCode::NonceUnavailable, Fault::Receiver, error);
        let nonces = self.nonces.take(&mine.commitments);
        let nonces = nonces.ok_or_else(|| gone(SigningError::Nonce))?;
        let shares = self.share.sign(&session, nonces).map_err(gone)?;
        let signature = session.sign_shares(&cx.federation, &cx.key, &shares);
        let reply = CommitReply::Joint { shares, signature };
        let stored = Answer { digest: session.digest(), txid: Some(target.txid()), reply: reply.clone() };
        Ok((reply, Some(stored)))
    }
}
