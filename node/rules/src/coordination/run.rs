//! One transaction under coordination: what is known of it, and whom to tell.

use crate::{SessionId, context::Context};
use bitcoin::{Txid, secp256k1::schnorr};
use quorate_protocol::{
    NodeId, SignatureShare,
    account::AccountCertificate,
    frost::{NodeCommitments, SigningSession, WalletSignature},
    proposal::{CheckedProposal, Proposal},
    vote::{ApprovalCertificate, SignedVote, VoteTarget},
    wire::{Cancellation, NodeReject, RejectReason, ServerMessage, TransactionStatus},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

/// Wait before nodes that did not answer a vote request are asked again; doubles up to the longest.
pub(crate) const ASK_AGAIN_MIN: Duration = Duration::from_millis(100);
/// Longest wait.
pub(crate) const ASK_AGAIN_MAX: Duration = Duration::from_secs(2);
/// Rounds that one submission is carried through before its owner has to submit it again.
pub(crate) const RESTARTS_MAX: u32 = 16;

/// One transaction under coordination.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) submitters: Vec<(SessionId, Option<u64>)>,
    pub(crate) proposal: Proposal,
    pub(crate) account: Option<AccountCertificate>,
    pub(crate) checked: Option<Arc<CheckedProposal>>,
    pub(crate) target: VoteTarget,
    pub(crate) approvals: BTreeMap<NodeId, schnorr::Signature>,
    pub(crate) rejects: BTreeMap<NodeId, (SignedVote, RejectReason)>,
    pub(crate) certificate: Option<ApprovalCertificate>,
    /// Fresh commitments, usable in the next attempt.
    pub(crate) commitments: BTreeMap<NodeId, NodeCommitments>,
    pub(crate) excluded: BTreeSet<NodeId>,
    pub(crate) attempt: u32,
    /// Attempt numbers up to this one belong to earlier rounds.
    pub(crate) first_attempt: u32,
    pub(crate) signing: Attempt,
    pub(crate) cancel: Option<Cancellation>,
    pub(crate) ending: Option<Ending>,
    pub(crate) restarts: u32,
    pub(crate) ask_at: Duration,
    pub(crate) wait: Duration,
    pub(crate) deadline: Duration,
    /// Nothing is left to do: it leaves the coordination after this input.
    pub(crate) over: bool,
}

/// How a transaction ends once its inputs are released.
#[derive(Clone, Debug)]
pub(crate) enum Ending {
    Rejected { rejects: Vec<NodeReject>, retry: bool },
    Failed { message: String, retry: bool },
}

impl Ending {
    /// Its owner wants it stopped.
    pub(crate) fn cancelled() -> Self {
        Self::Failed { message: "its owner cancelled it".to_owned(), retry: false }
    }
}

impl Run {
    pub(crate) fn remove_session(&mut self, session: SessionId) {
        self.submitters.retain(|(submitter, _)| *submitter != session);
    }

    pub(crate) fn next_event(&self) -> Duration {
        if self.certificate.is_none() && self.ending.is_none() {
            self.deadline.min(self.ask_at)
        } else {
            self.deadline
        }
    }
}

/// What has been collected in the present attempt.
#[derive(Debug, Default)]
pub(crate) struct Attempt {
    pub(crate) chosen: BTreeMap<NodeId, NodeCommitments>,
    pub(crate) wallet: Option<WalletSignature>,
    pub(crate) session: Option<SigningSession>,
    pub(crate) shares: BTreeMap<NodeId, (Vec<SignatureShare>, schnorr::Signature)>,
    pub(crate) commits: BTreeMap<NodeId, schnorr::Signature>,
    pub(crate) asked: BTreeSet<NodeId>,
}

impl Run {
    pub(crate) fn txid(&self) -> Txid {
        self.target.txid()
    }

    /// Tells submitters and subscribers.
    pub(crate) fn tell(&self, cx: &mut Context, status: &TransactionStatus) {
        self.tell_submitters(cx, status);
        cx.notify_status(self.txid(), status);
    }

    pub(crate) fn tell_submitters(&self, cx: &mut Context, status: &TransactionStatus) {
        for (session, id) in &self.submitters {
            let message = ServerMessage::TransactionStatus { txid: self.txid(), status: status.clone() };
            cx.send_client(*session, *id, message);
        }
    }

    /// Ends without becoming final.
    pub(crate) fn finish(&mut self, cx: &mut Context, status: &TransactionStatus) {
        self.tell(cx, status);
        self.over = true;
    }
}
