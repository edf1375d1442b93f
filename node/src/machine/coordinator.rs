//! Coordination: collects votes, has a certified transaction signed, and sees to it that every transaction ends.
//!
//! Any node may coordinate any transaction, any number of times; this is message collection only. What it counts has verified: a
//! vote of the node that sent it, for the target at hand, once per node.
//!
//! A transaction that cannot finish (n - q + 1 rejects, too little time, the owner's wish) does not simply stop: the coordinator has its
//! inputs released first. If a release shows that it may already be final, it goes on in the next round instead. A node that voted
//! and hears of no coordinator any more takes over after a while, so nothing stays locked because somebody crashed.

use super::{Bug, Machine, Output, SessionId, Tag, release::Reason, signing::Attempt};
use bitcoin::{OutPoint, Txid, secp256k1::schnorr};
use quorate::{
    NodeId, Round,
    account::AccountCertificate,
    finality::FinalityProof,
    frost::NodeCommitments,
    proposal::{CheckedProposal, Proposal},
    release::ReleaseCertificate,
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
const ASK_AGAIN_MIN: Duration = Duration::from_secs(1);
/// Longest wait.
const ASK_AGAIN_MAX: Duration = Duration::from_secs(2);
/// Wait for news of a transaction that this node voted for before it coordinates it itself.
const PATIENCE: Duration = Duration::from_secs(2);
/// Added per node number, so that not all take over at once.
const PATIENCE_STEP: Duration = Duration::from_millis(250);
/// Rounds that one submission is carried through before its owner has to submit it again.
const RESTARTS_MAX: u32 = 16;

/// One transaction under coordination.
#[derive(Debug)]
pub(super) struct Coordination {
    pub(super) submitters: Vec<(SessionId, Option<u64>)>,
    pub(super) proposal: Proposal,
    pub(super) account: Option<AccountCertificate>,
    pub(super) checked: Option<CheckedProposal>,
    pub(super) target: VoteTarget,
    approvals: BTreeMap<NodeId, schnorr::Signature>,
    rejects: BTreeMap<NodeId, (SignedVote, RejectReason)>,
    pub(super) certificate: Option<ApprovalCertificate>,
    /// Fresh commitments, usable in the next attempt.
    pub(super) commitments: BTreeMap<NodeId, NodeCommitments>,
    pub(super) excluded: BTreeSet<NodeId>,
    pub(super) attempt: u32,
    /// Attempt numbers up to this one belong to earlier rounds.
    pub(super) first_attempt: u32,
    pub(super) signing: Attempt,
    cancel: Option<Cancellation>,
    ending: Option<Ending>,
    restarts: u32,
    ask_at: Duration,
    wait: Duration,
    pub(super) deadline: Duration,
}

/// How a transaction ends once its inputs are released.
#[derive(Clone, Debug)]
enum Ending {
    Rejected { rejects: Vec<NodeReject>, retry: bool },
    Failed { message: String, retry: bool },
}

impl Coordination {
    pub(super) fn remove_session(&mut self, session: SessionId) {
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
    pub(super) fn everyone(&self) -> impl Iterator<Item = NodeId> + use<> {
        (1..=self.federation.quorum().nodes()).map(NodeId)
    }

    pub(super) fn ask_everyone(&mut self, tag: Tag, request: &PeerRequest) {
        for to in self.everyone() {
            self.outputs.push_back(Output::Ask { to, tag, request: request.clone() });
        }
    }

    /// Starts or joins the coordination of a proposal. Idempotent by txid.
    pub(super) fn submit(
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
    pub(super) fn cancel(
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
        if let Some(running) = self.coordinations.get_mut(&txid) {
            running.cancel = Some(cancellation);
        }
        self.end(txid, Ending::Failed { message: "its owner cancelled it".to_owned(), retry: false });
        Ok(())
    }

    fn coordinate(
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
    pub(super) fn ask_votes(&mut self, txid: Txid) {
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
    pub(super) fn tell(&mut self, txid: Txid, status: &TransactionStatus) {
        let submitters = self.coordinations.get(&txid).map(|one| one.submitters.clone()).unwrap_or_default();
        for (session, id) in submitters {
            let message = ServerMessage::TransactionStatus { txid, status: status.clone() };
            self.send_client(session, id, message);
        }
        self.notify_status(txid, status);
    }

    pub(super) fn finish_coordination(&mut self, txid: Txid, status: &TransactionStatus) {
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

    fn finish(&mut self, txid: Txid, status: &TransactionStatus) {
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
        let retry = rejects.iter().all(|reject| reject.reason.retry());
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

    /// Has the inputs released, and ends the transaction when they are.
    fn end(&mut self, txid: Txid, ending: Ending) {
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
    pub(super) fn inputs_settled(&mut self, outpoints: &[OutPoint]) {
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
    fn is_hopeless(&mut self, txid: Txid) -> bool {
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

    fn settle(&mut self, txid: Txid) {
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
        if self.is_forced(&inputs, txid) {
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
    pub(super) fn is_forced(&self, inputs: &BTreeMap<OutPoint, Round>, txid: Txid) -> bool {
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
        releases.collect()
    }

    /// Begins again in the present rounds of the inputs.
    fn restart(&mut self, txid: Txid) {
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
        (coordination.ask_at, coordination.wait) = (self.now + ASK_AGAIN_MIN, ASK_AGAIN_MIN);
        coordination.deadline = self.now + self.rules.voting_timeout;
        self.push_pending(txid);
        self.ask_votes(txid);
    }

    /// Helps to finish the releases that inputs wait for.
    fn push_pending(&mut self, txid: Txid) {
        let Some(coordination) = self.coordinations.get(&txid) else { return };
        let pending: Vec<_> = coordination.target.inputs().clone().into_iter().collect();
        for (outpoint, round) in pending {
            if self.ledger.is_pending(&outpoint) {
                self.start_release(outpoint, Round(round.0.saturating_sub(1)), &Reason::default());
            }
        }
    }

    /// Gives a transaction up that could not be signed, once its inputs are released.
    pub(super) fn give_up(&mut self, txid: Txid, message: &str, retry: bool) {
        self.end(txid, Ending::Failed { message: message.to_owned(), retry });
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
            // The releases are still being pushed; whoever submitted it learns that it is not settled.
            let message =
                "it could not be ended yet because too few nodes are reachable; submit it again".to_owned();
            self.finish(txid, &TransactionStatus::Failed { message, retry: true, releases: Vec::new() });
        } else if coordination.certificate.is_none() {
            self.give_up(txid, "not enough nodes voted in time; submit it again", true);
        } else {
            self.attempt_due(txid);
        }
    }

    /// The planted bug: a node that frees what it locked when its own timer runs out.
    fn free_by_timer(&mut self) {
        let stuck: Vec<Txid> = self.ledger.open().iter().copied().collect();
        for txid in stuck {
            let Some(target) = self.ledger.record(&txid).map(|record| record.target.clone()) else {
                continue;
            };
            for (outpoint, round) in target.inputs() {
                let since = self.ledger.approved(outpoint).filter(|(approved, _)| *approved == txid);
                if since.is_some_and(|(_, since)| self.now >= since + self.rules.voting_timeout) {
                    self.ledger.free_by_timer(outpoint, *round);
                }
            }
        }
    }

    pub(super) fn patience(&self) -> Duration {
        PATIENCE + PATIENCE_STEP * u32::from(self.me.0)
    }

    /// Coordinates what this node voted for or committed to and nobody seems to coordinate any more.
    fn take_over(&mut self) {
        if self.now < self.sweep_at {
            return;
        }
        self.sweep_at = self.now + ASK_AGAIN_MIN;
        for txid in self.ledger.open().iter().copied().collect::<Vec<_>>() {
            if !self.may_still_happen(txid) {
                self.ledger.close(&txid);
                self.heard_of.remove(&txid);
                continue;
            }
            let heard = *self.heard_of.entry(txid).or_insert(self.now);
            if self.coordinations.contains_key(&txid) || self.now < heard + self.patience() {
                continue;
            }
            self.heard_of.insert(txid, self.now);
            let Some(record) = self.ledger.record(&txid).cloned() else { continue };
            let Some(proposal) = record.proposal else { continue };
            let inputs = record.target.inputs();
            if matches!(proposal, Proposal::Joint(_)) && self.is_forced(inputs, txid) {
                // Nothing else can happen to these coins, and only their owner can make it happen.
                continue;
            }
            if self.coordinate(Vec::new(), proposal, record.account).is_ok() {
                tracing::info!(%txid, "taking over a transaction that nobody coordinates");
                self.ask_votes(txid);
            }
        }
        // Nothing can be heard of what is not open, except for a moment.
        let (now, patience) = (self.now, self.patience());
        let open = self.ledger.open();
        self.heard_of.retain(|txid, heard| open.contains(txid) || now < *heard + patience);
    }

    /// Whether an open transaction still holds or is owed one of its inputs.
    fn may_still_happen(&self, txid: Txid) -> bool {
        let Some(record) = self.ledger.record(&txid) else { return false };
        let Some(proposal) = &record.proposal else { return false };
        let outpoints = proposal.outpoints();
        if outpoints.iter().any(|outpoint| self.ledger.spent_by(outpoint).is_some_and(|other| other != txid))
        {
            return outpoints.iter().any(|outpoint| {
                let holds = self.ledger.approved(outpoint).is_some_and(|(approved, _)| approved == txid);
                holds && self.ledger.spent_by(outpoint).is_none()
            });
        }
        outpoints.iter().any(|outpoint| {
            self.ledger.approved(outpoint).is_some_and(|(approved, _)| approved == txid)
                || self.ledger.forced(outpoint) == Some(txid)
                || self.ledger.is_pending(outpoint)
        })
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
