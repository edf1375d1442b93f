//! Coordination: collects votes, has a certified transaction signed, and sees to it that every transaction ends.
//!
//! Any node may coordinate any transaction, any number of times; this is message collection only. What it counts has verified: a
//! vote of the node that sent it, for the target at hand, once per node.
//!
//! A transaction that cannot finish (n - q + 1 rejects, too little time, the owner's wish) does not simply stop; see `ending`.

use crate::{Bug, Machine, Output, SessionId, Tag, release::Reason, signing::Attempt};
use bitcoin::{Txid, secp256k1::schnorr};
use quorate_protocol::{
    NodeId,
    account::AccountCertificate,
    finality::FinalityProof,
    frost::NodeCommitments,
    proposal::{CheckedProposal, Proposal},
    vote::{ApprovalCertificate, SignedVote, Verdict, VoteTarget},
    wire::{
        Cancellation, ErrorCode, Fault, NodeReject, PeerReply, PeerRequest, RejectReason, ServerMessage,
        TransactionStatus, WireError,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Most coordinations at one time; more are told to come back.
const COORDINATIONS_MAX: usize = 10_000;
/// Wait before nodes that did not answer a vote request are asked again; doubles up to the longest.
pub(crate) const ASK_AGAIN_MIN: Duration = Duration::from_millis(100);
/// Longest wait.
const ASK_AGAIN_MAX: Duration = Duration::from_secs(2);
/// Rounds that one submission is carried through before its owner has to submit it again.
pub(crate) const RESTARTS_MAX: u32 = 16;

/// One transaction under coordination.
#[derive(Debug)]
pub(crate) struct Coordination {
    pub(crate) submitters: Vec<(SessionId, Option<u64>)>,
    pub(crate) proposal: Proposal,
    pub(crate) account: Option<AccountCertificate>,
    pub(crate) checked: Option<CheckedProposal>,
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
}

/// How a transaction ends once its inputs are released.
#[derive(Clone, Debug)]
pub(crate) enum Ending {
    Rejected { rejects: Vec<NodeReject>, retry: bool },
    Failed { message: String, retry: bool },
}

impl Coordination {
    pub(crate) fn remove_session(&mut self, session: SessionId) {
        self.submitters.retain(|(submitter, _)| *submitter != session);
    }

    fn next_event(&self) -> Duration {
        if self.certificate.is_none() && self.ending.is_none() {
            self.deadline.min(self.ask_at)
        } else {
            self.deadline
        }
    }
}

impl Machine {
    pub(crate) fn everyone(&self) -> impl Iterator<Item = NodeId> + use<> {
        (1..=self.federation.quorum().nodes()).map(NodeId)
    }

    pub(crate) fn ask_everyone(&mut self, tag: Tag, request: &PeerRequest) {
        for to in self.everyone() {
            self.outputs.push_back(Output::Ask { to, tag, request: request.clone() });
        }
    }

    /// Starts or joins the coordination of a proposal. Idempotent by txid.
    pub(crate) fn submit(
        &mut self,
        session: SessionId,
        id: Option<u64>,
        proposal: Proposal,
        account: Option<AccountCertificate>,
    ) -> Result<(), WireError> {
        let txid = proposal.txid();
        if let Some(proof) = self.ledger.record(&txid).and_then(|record| record.proof.clone()) {
            let status = TransactionStatus::Signed { proof: Box::new(proof) };
            self.send_client(session, id, ServerMessage::TransactionStatus { txid, status });
            return Ok(());
        }
        if let Some(running) = self.coordinations.get_mut(&txid) {
            running.remove_session(session);
            running.submitters.push((session, id));
            // A wallet that came back has lost the request to sign; the next attempt asks it again.
            if running.certificate.is_some() && running.signing.wallet.is_none() {
                running.deadline = self.now;
            }
            return Ok(());
        }
        self.coordinate(vec![(session, id)], proposal, account)?;
        self.tell(txid, &TransactionStatus::Pending);
        if !self.is_hopeless(txid) {
            self.ask_votes(txid);
        }
        Ok(())
    }

    /// The owner wants a payment stopped.
    pub(crate) fn cancel(
        &mut self,
        session: SessionId,
        id: Option<u64>,
        cancellation: Cancellation,
    ) -> Result<(), WireError> {
        let Cancellation { cancel, proposal, account } = cancellation.clone();
        let txid = proposal.txid();
        if cancel.txid != txid || !self.is_own_cancel(&cancel, &proposal, account.as_ref()) {
            let message =
                "only the owner of a joint account can cancel its payment; sign with the authorisation key";
            return Err(WireError::sender(ErrorCode::InvalidSignature, message));
        }
        if let Some(proof) = self.ledger.record(&txid).and_then(|record| record.proof.clone()) {
            let status = TransactionStatus::Signed { proof: Box::new(proof) };
            self.send_client(session, id, ServerMessage::TransactionStatus { txid, status });
            return Ok(());
        }
        match self.coordinations.get_mut(&txid) {
            Some(running) => {
                running.remove_session(session);
                running.submitters.push((session, id));
            }
            None => self.coordinate(vec![(session, id)], proposal, account)?,
        }
        let inputs = self.coordinations.get(&txid).map(|one| one.target.inputs().clone()).unwrap_or_default();
        if self.is_forced(&inputs, txid) {
            // It may be final, and another release would say so again: all that is left is to finish it.
            self.ask_votes(txid);
            return Ok(());
        }
        if let Some(running) = self.coordinations.get_mut(&txid) {
            running.cancel = Some(cancellation);
        }
        self.end(txid, Ending::Failed { message: "its owner cancelled it".to_owned(), retry: false });
        Ok(())
    }

    pub(crate) fn coordinate(
        &mut self,
        submitters: Vec<(SessionId, Option<u64>)>,
        proposal: Proposal,
        account: Option<AccountCertificate>,
    ) -> Result<(), WireError> {
        if self.coordinations.len() >= COORDINATIONS_MAX {
            let found = self.coordinations.len() + 1;
            let what = "transactions under way";
            let error = WireError::limit(ErrorCode::LimitExceeded, what, COORDINATIONS_MAX, found);
            return Err(WireError { retry: true, fault: Fault::Receiver, ..error });
        }
        let checked = self.check_proposal(&proposal, account.as_ref())?;
        let target = self.present_target(&proposal);
        let coordination = Coordination {
            submitters,
            proposal,
            account,
            checked,
            approvals: BTreeMap::new(),
            rejects: BTreeMap::new(),
            certificate: None,
            commitments: BTreeMap::new(),
            excluded: self.watch.suspects.clone(),
            attempt: 1,
            first_attempt: 1,
            signing: Attempt::default(),
            cancel: None,
            ending: None,
            restarts: 0,
            ask_at: self.now + ASK_AGAIN_MIN,
            wait: ASK_AGAIN_MIN,
            deadline: self.now + self.rules.voting_timeout,
            target,
        };
        let txid = coordination.target.txid();
        self.coordinations.insert(txid, coordination);
        self.push_pending(txid);
        Ok(())
    }

    fn check_proposal(
        &mut self,
        proposal: &Proposal,
        account: Option<&AccountCertificate>,
    ) -> Result<Option<CheckedProposal>, WireError> {
        let Proposal::Joint(joint) = proposal else { return Ok(None) };
        let certificate = account.ok_or_else(|| {
            WireError::sender(ErrorCode::InvalidAccount, "a joint proposal needs its account certificate")
        })?;
        let account = self
            .verified_account(certificate)
            .map_err(|error| WireError::sender(ErrorCode::InvalidAccount, error))?;
        let checked = joint.check(&self.federation, &account);
        checked.map(Some).map_err(|error| WireError::sender(ErrorCode::InvalidProposal, error))
    }

    /// Asks all nodes that have not voted.
    pub(crate) fn ask_votes(&mut self, txid: Txid) {
        let Some(coordination) = self.coordinations.get(&txid) else { return };
        // While this node waits for a release, votes of the round before would only start other nodes' timers anew.
        if coordination.target.inputs().keys().any(|outpoint| self.ledger.is_pending(outpoint)) {
            return;
        }
        let request = PeerRequest::VoteRequest {
            proposal: coordination.proposal.clone(),
            account: coordination.account.clone(),
            certificate: coordination.certificate.clone(),
            releases: self.releases_of(&coordination.target),
        };
        let certified = coordination.certificate.is_some();
        let answered = |node: &NodeId| {
            !certified
                && (coordination.approvals.contains_key(node) || coordination.rejects.contains_key(node))
        };
        let missing: Vec<_> = self.everyone().filter(|node| !answered(node)).collect();
        let tag = Tag::Vote { txid, attempt: coordination.attempt };
        for to in missing {
            self.outputs.push_back(Output::Ask { to, tag, request: request.clone() });
        }
    }

    /// Tells submitters and subscribers.
    pub(crate) fn tell(&mut self, txid: Txid, status: &TransactionStatus) {
        let submitters = self.coordinations.get(&txid).map(|one| one.submitters.clone()).unwrap_or_default();
        for (session, id) in submitters {
            let message = ServerMessage::TransactionStatus { txid, status: status.clone() };
            self.send_client(session, id, message);
        }
        self.notify_status(txid, status);
    }

    pub(crate) fn finish_coordination(&mut self, txid: Txid, status: &TransactionStatus) {
        let ended = if self.planted(Bug::LeakCoordinations) {
            self.coordinations.get(&txid).map(|one| one.submitters.clone())
        } else {
            self.coordinations.remove(&txid).map(|one| one.submitters)
        };
        for (session, id) in ended.unwrap_or_default() {
            let message = ServerMessage::TransactionStatus { txid, status: status.clone() };
            self.send_client(session, id, message);
        }
    }

    pub(crate) fn finish(&mut self, txid: Txid, status: &TransactionStatus) {
        self.notify_status(txid, status);
        self.finish_coordination(txid, status);
    }

    /// An answer of a node, or that there is none.
    pub fn handle_reply(&mut self, from: NodeId, tag: Tag, reply: Option<PeerReply>) {
        match (tag, reply) {
            (
                Tag::Vote { txid, .. },
                Some(PeerReply::VoteResponse { vote, reason, commitments, releases, proof, head }),
            ) => {
                self.take_head(from, head);
                self.take_releases(releases);
                if let Some(proof) = proof {
                    // A peer's proof that does not hold changes nothing.
                    let _not_final = self.take_final(*proof);
                }
                self.take_vote(from, txid, vote, reason, commitments);
            }
            (Tag::Commit { txid, attempt }, Some(PeerReply::CommitResponse { commit })) => {
                self.take_commit(from, txid, attempt, commit);
            }
            (Tag::Commit { txid, attempt }, _) => self.exclude(txid, attempt, &[from]),
            (Tag::Account { registration }, reply) => self.take_acceptance(from, registration, reply),
            (Tag::Release { outpoint, round }, Some(reply)) => {
                self.take_release_answer(from, outpoint, round, reply);
            }
            (Tag::Heartbeat, Some(PeerReply::HeartbeatResponse { head, known })) => {
                self.take_heartbeat(from, head, known);
            }
            (Tag::Final { txid }, Some(PeerReply::Done)) => self.heard_final(from, txid),
            (
                Tag::Vote { .. } | Tag::Announce | Tag::Release { .. } | Tag::Heartbeat | Tag::Final { .. },
                _,
            ) => {}
        }
    }

    fn take_vote(
        &mut self,
        from: NodeId,
        txid: Txid,
        vote: SignedVote,
        reason: Option<RejectReason>,
        commitments: Option<NodeCommitments>,
    ) {
        if vote.node != from || !vote.verify(&self.federation) {
            tracing::warn!(%from, %txid, "dropped a vote that does not verify");
            return;
        }
        // Only votes on this transaction's own inputs are kept for comparison; a voter cannot fill the memory with others.
        let Some(coordination) = self.coordinations.get(&txid) else { return };
        let inputs = coordination.target.inputs().keys();
        if vote.target.txid() != txid || !vote.target.inputs().keys().eq(inputs) {
            tracing::warn!(%from, %txid, "dropped a vote on something else");
            return;
        }
        self.watch_vote(&vote);
        if self.watch.suspects.contains(&from) || !self.same_rounds(txid, &vote) {
            return;
        }
        let Some(coordination) = self.coordinations.get_mut(&txid) else { return };
        if coordination.checked.is_some()
            && let Some(commitments) = commitments
        {
            if commitments.verify(&self.federation, from, &coordination.target)
                && commitments.is_well_formed()
            {
                coordination.commitments.insert(from, commitments);
            } else {
                tracing::warn!(%from, %txid, "nonce commitments that do not verify or are no points; the node is left out");
                coordination.excluded.insert(from);
            }
        }
        let news = match vote.verdict {
            Verdict::Approve => coordination.approvals.insert(from, vote.signature).is_none(),
            Verdict::Reject => {
                let unknown = RejectReason::Invalid { message: "no reason given".to_owned() };
                coordination.rejects.insert(from, (vote, reason.unwrap_or(unknown)));
                false
            }
        };
        let quorum = self.federation.quorum();
        let votes = u16::try_from(coordination.approvals.len()).unwrap_or(u16::MAX);
        let certified = coordination.certificate.is_some();
        let ending = coordination.ending.is_some();
        let rejects =
            coordination.rejects.keys().filter(|node| !coordination.approvals.contains_key(*node)).count();
        if news && !certified && !ending {
            let (needed, nodes) = (quorum.votes(), quorum.nodes());
            self.tell(txid, &TransactionStatus::Voting { votes, quorum: needed, nodes });
        }
        let needed = if self.planted(Bug::SmallCertificate) { quorum.votes() - 1 } else { quorum.votes() };
        if ending {
        } else if certified {
            self.start_attempt(txid);
        } else if votes >= needed {
            self.certify(txid);
        } else if rejects >= usize::from(quorum.blocking()) {
            self.reject(txid);
        }
    }

    /// Whether a vote is of the rounds that this coordination is about. If the voter is ahead, this node catches up.
    fn same_rounds(&mut self, txid: Txid, vote: &SignedVote) -> bool {
        let Some(coordination) = self.coordinations.get(&txid) else { return false };
        if vote.target == coordination.target {
            return true;
        }
        let proposal = coordination.proposal.clone();
        if coordination.ending.is_some() {
            return false;
        }
        let present = self.present_target(&proposal);
        let ours = self.coordinations.get(&txid).map(|one| one.target.clone());
        if ours.as_ref() != Some(&present) && !present.inputs().keys().any(|one| self.ledger.is_pending(one))
        {
            self.restart(txid);
            return false;
        }
        // The voter has promised to leave a round that is not released yet: help to finish that.
        for (outpoint, theirs) in vote.target.inputs() {
            if let Some(mine) = present.inputs().get(outpoint).filter(|mine| mine.next() == *theirs) {
                self.start_release(*outpoint, *mine, &Reason::default());
            }
        }
        false
    }

    fn reject(&mut self, txid: Txid) {
        let Some(coordination) = self.coordinations.get(&txid) else { return };
        let rejects: Vec<NodeReject> = coordination
            .rejects
            .iter()
            .map(|(node, (_, reason))| NodeReject { node: *node, reason: reason.clone() })
            .collect();
        // It is over for good only if so many say so that no quorum can come together without them; fewer may be liars, and the others late.
        let blocking = usize::from(self.federation.quorum().blocking());
        let for_good = rejects.iter().filter(|reject| !reject.reason.retry()).count();
        let retry = for_good < blocking;
        self.end(txid, Ending::Rejected { rejects, retry });
    }

    fn certify(&mut self, txid: Txid) {
        let Some(coordination) = self.coordinations.get_mut(&txid) else { return };
        let certificate = ApprovalCertificate {
            target: coordination.target.clone(),
            approvals: coordination.approvals.clone(),
        };
        self.watch_certificate(&certificate);
        if let Some(coordination) = self.coordinations.get_mut(&txid) {
            coordination.certificate = Some(certificate);
            coordination.deadline = self.now + self.rules.signing_timeout;
        }
        self.tell(txid, &TransactionStatus::Approved);
        if self.planted(Bug::FinalAfterPhase1) {
            self.claim_final(txid);
        }
        self.start_attempt(txid);
    }

    /// The planted bug: what a node with a single phase would do.
    fn claim_final(&mut self, txid: Txid) {
        let Some(coordination) = self.coordinations.get(&txid) else { return };
        let Proposal::Sole { transaction } = &coordination.proposal else { return };
        let rounds = coordination.target.inputs();
        let rounds = transaction.input.iter().filter_map(|input| rounds.get(&input.previous_output)).copied();
        let (transaction, rounds) = (transaction.clone(), rounds.collect());
        let commits = coordination.approvals.clone();
        self.complete(FinalityProof::Attested { transaction, rounds, commits });
    }

    /// Fires expired deadlines; calling early or twice is harmless.
    pub fn handle_timeout(&mut self) {
        self.beat();
        self.push_releases();
        self.announce_again();
        self.gossip();
        let due: Vec<Txid> = self
            .coordinations
            .iter()
            .filter(|(_, one)| self.now >= one.next_event())
            .map(|(txid, _)| *txid)
            .collect();
        for txid in due {
            self.coordination_due(txid);
        }
        self.take_over();
        if self.planted(Bug::ReleaseByTimer) {
            self.free_by_timer();
        }
    }

    fn coordination_due(&mut self, txid: Txid) {
        let Some(coordination) = self.coordinations.get_mut(&txid) else { return };
        if self.now < coordination.deadline {
            coordination.ask_at = self.now + coordination.wait;
            coordination.wait = (coordination.wait * 2).min(ASK_AGAIN_MAX);
            self.ask_votes(txid);
        } else if coordination.ending.is_some() {
            // The releases are still being pushed. Earlier ones may already be proof enough for a wallet that knows what it signed.
            let message =
                "it could not be ended yet because too few nodes are reachable; submit it again".to_owned();
            let inputs = coordination.target.inputs().keys();
            let releases = inputs.filter_map(|outpoint| self.ledger.release(outpoint)).cloned().collect();
            self.finish(txid, &TransactionStatus::Failed { message, retry: true, releases });
        } else if coordination.certificate.is_none() {
            self.give_up(txid, "not enough nodes voted in time; submit it again", true);
        } else {
            self.attempt_due(txid);
        }
    }

    /// When [`Machine::handle_timeout`] is next due.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let coordinations = self.coordinations.values().map(Coordination::next_event);
        let sweep = (!self.ledger.open().is_empty()).then_some(self.sweep_at);
        coordinations
            .chain(self.next_release_push())
            .chain(self.next_announcement())
            .chain(sweep)
            .chain([self.log.next_beat()])
            .min()
    }
}
