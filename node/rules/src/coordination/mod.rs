//! Coordination: collects votes, has a certified transaction signed, and sees to it that every transaction ends.
//!
//! Any node may coordinate any transaction, any number of times; this is message collection only. What it counts has
//! verified: a vote of the node that sent it, for the target at hand, once per node.
//!
//! A transaction that cannot finish (n - q + 1 rejects, too little time, the owner's wish) does not simply stop; see
//! `ending`.

mod ending;
pub(crate) mod run;
mod signing;
mod takeover;
mod votes;

use crate::{Bug, SessionId, context::Context};
use bitcoin::{OutPoint, Txid};
use quorate_protocol::{
    NodeId,
    account::AccountCertificate,
    frost::{NodeCommitments, WalletSignature},
    proposal::{CheckedProposal, Proposal},
    vote::SignedVote,
    wire::{
        Cancellation, CommitReply, ErrorCode, Fault, RejectReason, ServerMessage, TransactionStatus,
        WireError,
    },
};
use run::{ASK_AGAIN_MIN, Attempt, Run};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
    time::Duration,
};

/// Most coordinations at one time; more are told to come back.
const COORDINATIONS_MAX: usize = 10_000;
/// Of these, payments that one account may have submitted; it can always cancel.
const COORDINATIONS_PER_ACCOUNT_MAX: usize = 256;
/// All transactions that this node coordinates, and what it knows of those that others do.
#[derive(Debug, Default)]
pub(crate) struct Coordination {
    running: BTreeMap<Txid, Run>,
    /// When somebody last coordinated an open transaction.
    heard_of: HashMap<Txid, Duration>,
    /// When this node last took over what nobody brought to an end.
    taken_over: HashMap<Txid, Duration>,
    sweep_at: Duration,
}

impl Coordination {
    /// How many transactions are under way.
    pub(crate) fn len(&self) -> usize {
        self.running.len()
    }

    /// Whether a transaction is under way.
    pub(crate) fn has(&self, txid: &Txid) -> bool {
        self.running.contains_key(txid)
    }

    /// Somebody coordinates a transaction.
    pub(crate) fn heard_of(&mut self, cx: &Context, txid: Txid) {
        self.heard_of.insert(txid, cx.now);
    }

    /// Nobody waits for the answers of a session that is gone.
    pub(crate) fn remove_session(&mut self, session: SessionId) {
        for run in self.running.values_mut() {
            run.remove_session(session);
        }
    }

    /// Transactions for which something is due.
    pub(crate) fn due(&self, cx: &Context) -> Vec<Txid> {
        let due = self.running.iter().filter(|(_, run)| cx.now >= run.next_event());
        due.map(|(txid, _)| *txid).collect()
    }

    /// When something is next due.
    pub(crate) fn next_event(&self, cx: &Context) -> Option<Duration> {
        let sweep = (!cx.ledger.open().is_empty()).then_some(self.sweep_at);
        self.running.values().map(Run::next_event).chain(sweep).min()
    }

    /// Starts or joins the coordination of a proposal. Idempotent by txid.
    pub(crate) fn submit(
        &mut self,
        cx: &mut Context,
        session: SessionId,
        id: Option<u64>,
        proposal: Proposal,
        account: Option<AccountCertificate>,
    ) -> Result<(), WireError> {
        let txid = proposal.txid();
        if let Some(proof) = cx.ledger.proof(&txid).cloned() {
            let status = TransactionStatus::Signed { proof: Box::new(proof) };
            cx.send_client(session, id, ServerMessage::TransactionStatus { txid, status });
            return Ok(());
        }
        if let Some(running) = self.running.get_mut(&txid) {
            running.remove_session(session);
            running.submitters.push((session, id));
            // A wallet that came back has lost the request to sign; the next attempt asks it again.
            if running.certificate.is_some() && running.signing.wallet.is_none() {
                running.deadline = cx.now;
            }
            return Ok(());
        }
        self.check_room_of_account(&proposal)?;
        cx.check_news(&proposal).map_err(|error| WireError::sender(ErrorCode::InvalidProposal, error))?;
        self.coordinate(cx, vec![(session, id)], proposal, account)?;
        self.with(cx, txid, |run, cx| {
            run.tell(cx, &TransactionStatus::Pending);
            if !run.is_hopeless(cx) {
                run.ask_votes(cx);
            }
        });
        Ok(())
    }

    /// The owner wants a payment stopped.
    pub(crate) fn cancel(
        &mut self,
        cx: &mut Context,
        session: SessionId,
        id: Option<u64>,
        cancellation: Cancellation,
    ) -> Result<(), WireError> {
        if !cx.hear_cancel(&cancellation) {
            let message =
                "only the owner of a joint account can cancel its payment; sign with the authorisation key";
            return Err(WireError::sender(ErrorCode::InvalidSignature, message));
        }
        let Cancellation { cancel, proposal, account } = cancellation.clone();
        let txid = cancel.txid;
        if let Some(proof) = cx.ledger.proof(&txid).cloned() {
            let status = TransactionStatus::Signed { proof: Box::new(proof) };
            cx.send_client(session, id, ServerMessage::TransactionStatus { txid, status });
            return Ok(());
        }
        match self.running.get_mut(&txid) {
            Some(running) => {
                running.remove_session(session);
                running.submitters.push((session, id));
            }
            None => self.coordinate(cx, vec![(session, id)], proposal, account)?,
        }
        self.with(cx, txid, |run, cx| run.cancel(cx, cancellation));
        Ok(())
    }

    /// Starts the coordination of a proposal, if it is well formed and there is room.
    pub(crate) fn coordinate(
        &mut self,
        cx: &mut Context,
        submitters: Vec<(SessionId, Option<u64>)>,
        proposal: Proposal,
        account: Option<AccountCertificate>,
    ) -> Result<(), WireError> {
        if self.running.len() >= COORDINATIONS_MAX {
            let found = self.running.len() + 1;
            let what = "transactions under way";
            let error = WireError::limit(ErrorCode::LimitExceeded, what, COORDINATIONS_MAX, found);
            return Err(WireError { retry: true, fault: Fault::Receiver, ..error });
        }
        let checked = self.check_proposal(cx, &proposal, account.as_ref())?;
        let target = cx.present_target(&proposal);
        let mut run = Run {
            submitters,
            proposal,
            account,
            checked,
            approvals: BTreeMap::new(),
            rejects: BTreeMap::new(),
            certificate: None,
            commitments: BTreeMap::new(),
            excluded: cx.watch.suspects().clone(),
            attempt: 1,
            first_attempt: 1,
            signing: Attempt::default(),
            cancel: None,
            ending: None,
            restarts: 0,
            ask_at: cx.now + ASK_AGAIN_MIN,
            wait: ASK_AGAIN_MIN,
            deadline: cx.now + cx.settings.voting_timeout,
            over: false,
            target,
        };
        let txid = run.txid();
        run.push_pending(cx);
        self.running.insert(txid, run);
        Ok(())
    }

    fn check_room_of_account(&self, proposal: &Proposal) -> Result<(), WireError> {
        let account = |proposal: &Proposal| match proposal {
            Proposal::Joint(joint) => Some(joint.account),
            Proposal::Sole { .. } => None,
        };
        let Some(own) = account(proposal) else { return Ok(()) };
        let open = self.running.values().filter(|run| account(&run.proposal) == Some(own)).count();
        if open < COORDINATIONS_PER_ACCOUNT_MAX {
            return Ok(());
        }
        let what = "payments of this account under way; wait until some have ended";
        let limit = COORDINATIONS_PER_ACCOUNT_MAX;
        let error = WireError::limit(ErrorCode::LimitExceeded, what, limit, open + 1);
        Err(WireError { retry: true, ..error })
    }

    fn check_proposal(
        &mut self,
        cx: &mut Context,
        proposal: &Proposal,
        account: Option<&AccountCertificate>,
    ) -> Result<Option<Arc<CheckedProposal>>, WireError> {
        let Proposal::Joint(joint) = proposal else { return Ok(None) };
        let certificate = account.ok_or_else(|| {
            WireError::sender(ErrorCode::InvalidAccount, "a joint proposal needs its account certificate")
        })?;
        let account = cx
            .verified_account(certificate)
            .map_err(|error| WireError::sender(ErrorCode::InvalidAccount, error))?;
        cx.check_joint(joint, &account)
            .map(Some)
            .map_err(|error| WireError::sender(ErrorCode::InvalidProposal, error))
    }

    /// Goes on with a transaction for which something is due.
    pub(crate) fn handle_due(&mut self, cx: &mut Context, txid: Txid) {
        self.with(cx, txid, Run::handle_due);
    }

    /// A node's vote, with its nonce commitments.
    pub(crate) fn handle_vote(
        &mut self,
        cx: &mut Context,
        from: NodeId,
        vote: SignedVote,
        reason: Option<RejectReason>,
        commitments: Option<NodeCommitments>,
    ) {
        self.with(cx, vote.target.txid(), |run, cx| run.handle_vote(cx, from, vote, reason, commitments));
    }

    /// A node's commit signature or signature shares.
    pub(crate) fn handle_commit(
        &mut self,
        cx: &mut Context,
        from: NodeId,
        (txid, attempt): (Txid, u32),
        commit: CommitReply,
    ) {
        self.with(cx, txid, |run, cx| run.handle_commit(cx, from, attempt, commit));
    }

    /// A node does not take part in a signing attempt.
    pub(crate) fn handle_no_commit(&mut self, cx: &mut Context, from: NodeId, (txid, attempt): (Txid, u32)) {
        self.with(cx, txid, |run, cx| run.exclude(cx, attempt, &[from]));
    }

    /// The wallet's part of a signing session.
    pub(crate) fn handle_wallet(
        &mut self,
        cx: &mut Context,
        (txid, attempt): (Txid, u32),
        wallet: WalletSignature,
    ) -> Result<(), WireError> {
        if !self.running.contains_key(&txid) {
            let known = cx.ledger.proof(&txid).is_some();
            let error = WireError::passing(ErrorCode::UnknownTransaction, Fault::Receiver, "submit it again");
            return if known { Ok(()) } else { Err(error) };
        }
        self.with(cx, txid, |run, cx| run.handle_wallet(cx, attempt, wallet)).unwrap_or(Ok(()))
    }

    /// A transaction has become final: tells those who submitted it.
    pub(crate) fn close(&mut self, cx: &mut Context, txid: Txid, status: &TransactionStatus) {
        self.with(cx, txid, |run, cx| {
            run.tell_submitters(cx, status);
            run.over = true;
        });
    }

    /// Lets a transaction do something, and lets it go if it is over.
    fn with<T>(
        &mut self,
        cx: &mut Context,
        txid: Txid,
        what: impl FnOnce(&mut Run, &mut Context) -> T,
    ) -> Option<T> {
        let run = self.running.get_mut(&txid)?;
        let result = what(run, cx);
        if run.over && !cx.planted(Bug::LeakCoordinations) {
            self.running.remove(&txid);
        }
        Some(result)
    }

    /// The rounds of some outpoints are over, or a final transaction spends them: goes on with what waited for that.
    pub(crate) fn inputs_settled(&mut self, cx: &mut Context, outpoints: &[OutPoint]) {
        let waiting: Vec<Txid> = self
            .running
            .iter()
            .filter(|(_, one)| outpoints.iter().any(|outpoint| one.target.inputs().contains_key(outpoint)))
            .map(|(txid, _)| *txid)
            .collect();
        for txid in waiting {
            self.with(cx, txid, Run::settle);
        }
    }
}
