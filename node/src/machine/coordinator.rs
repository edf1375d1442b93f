//! Coordination: collects votes, the wallet's part and shares, and completes the transaction.
//!
//! Any node may coordinate any transaction, any number of times; this is message collection only. What it counts has verified: a
//! vote of the node that sent it, for the target at hand, once per node. A share that spoils the signature names its node, which is
//! left out of the next attempt (the idea of ROAST); so is one that is silent or unreachable.

use super::{Machine, Output, SessionId, Tag};
use crate::store::{ChangeSet, Table};
use bitcoin::{Txid, secp256k1::schnorr};
use quorate::{
    NodeId, SignatureShare,
    account::{AccountCertificate, AccountRecord},
    finality::{FinalityProof, SpentOutput},
    frost::{AggregateError, Culprit, NodeCommitments, Session, WalletSignature},
    proposal::{CheckedProposal, Proposal},
    vote::{ApprovalCertificate, SignedVote, Verdict, VoteTarget, verify_commit},
    wire::{
        CommitReply, ErrorCode, Fault, NodeReject, PeerReply, PeerRequest, RejectReason, ServerMessage,
        TransactionStatus, WireError,
    },
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Most coordinations at one time; more are told to come back.
const COORDINATIONS_MAX: usize = 10_000;

/// Approvals remembered to notice a second one for the same outpoint and round.
const APPROVALS_SEEN_MAX: usize = 200_000;

/// One transaction under coordination.
#[derive(Debug)]
pub(super) struct Coordination {
    submitters: Vec<(SessionId, Option<u64>)>,
    proposal: Proposal,
    account: Option<AccountCertificate>,
    checked: Option<CheckedProposal>,
    target: VoteTarget,
    approvals: BTreeMap<NodeId, schnorr::Signature>,
    rejects: BTreeMap<NodeId, RejectReason>,
    certificate: Option<ApprovalCertificate>,
    /// Fresh commitments, usable in the next attempt.
    commitments: BTreeMap<NodeId, NodeCommitments>,
    excluded: BTreeSet<NodeId>,
    attempt: u32,
    chosen: BTreeMap<NodeId, NodeCommitments>,
    wallet: Option<WalletSignature>,
    session: Option<Session>,
    shares: BTreeMap<NodeId, Vec<SignatureShare>>,
    commits: BTreeMap<NodeId, schnorr::Signature>,
    deadline: Duration,
}

impl Coordination {
    pub(super) fn remove_session(&mut self, session: SessionId) {
        self.submitters.retain(|(submitter, _)| *submitter != session);
    }
}

/// An account being certified.
#[derive(Debug)]
pub(super) struct Registration {
    session: SessionId,
    id: Option<u64>,
    record: AccountRecord,
    acceptances: BTreeMap<NodeId, schnorr::Signature>,
    failures: usize,
}

impl Machine {
    fn everyone(&self) -> impl Iterator<Item = NodeId> + use<> {
        (1..=self.federation.quorum().nodes()).map(NodeId)
    }

    fn ask_everyone(&mut self, tag: Tag, request: &PeerRequest) {
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
            if running.certificate.is_some() && running.wallet.is_none() {
                running.deadline = self.now;
            }
            return Ok(());
        }
        if self.coordinations.len() >= COORDINATIONS_MAX {
            let found = self.coordinations.len() + 1;
            let error = WireError::limit(
                ErrorCode::LimitExceeded,
                "transactions under way",
                COORDINATIONS_MAX,
                found,
            );
            return Err(WireError { retry: true, fault: Fault::Receiver, ..error });
        }
        let checked = self.check_proposal(&proposal, account.as_ref())?;
        let inputs =
            proposal.outpoints().into_iter().map(|outpoint| (outpoint, self.ledger.round(&outpoint)));
        let coordination = Coordination {
            submitters: vec![(session, id)],
            target: VoteTarget::new(txid, inputs),
            proposal: proposal.clone(),
            account: account.clone(),
            checked,
            approvals: BTreeMap::new(),
            rejects: BTreeMap::new(),
            certificate: None,
            commitments: BTreeMap::new(),
            excluded: self.suspects.clone(),
            attempt: 1,
            chosen: BTreeMap::new(),
            wallet: None,
            session: None,
            shares: BTreeMap::new(),
            commits: BTreeMap::new(),
            deadline: self.now + self.rules.voting_timeout,
        };
        self.coordinations.insert(txid, coordination);
        self.tell(txid, &TransactionStatus::Pending);
        self.ask_everyone(Tag::Vote { txid, attempt: 1 }, &PeerRequest::VoteRequest { proposal, account });
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

    /// Tells submitters and subscribers.
    fn tell(&mut self, txid: Txid, status: &TransactionStatus) {
        let submitters = self.coordinations.get(&txid).map(|one| one.submitters.clone()).unwrap_or_default();
        for (session, id) in submitters {
            let message = ServerMessage::TransactionStatus { txid, status: status.clone() };
            self.send_client(session, id, message);
        }
        self.notify_status(txid, status);
    }

    pub(super) fn finish_coordination(&mut self, txid: Txid, status: &TransactionStatus) {
        if let Some(coordination) = self.coordinations.remove(&txid) {
            for (session, id) in coordination.submitters {
                let message = ServerMessage::TransactionStatus { txid, status: status.clone() };
                self.send_client(session, id, message);
            }
        }
    }

    fn fail(&mut self, txid: Txid, message: &str, retry: bool) {
        let status = TransactionStatus::Failed { message: message.to_owned(), retry };
        self.notify_status(txid, &status);
        self.finish_coordination(txid, &status);
    }

    /// An answer of a node, or that there is none.
    pub(crate) fn handle_reply(&mut self, from: NodeId, tag: Tag, reply: Option<PeerReply>) {
        match (tag, reply) {
            (Tag::Vote { txid, .. }, Some(PeerReply::VoteResponse { vote, reason, commitments })) => {
                self.take_vote(from, txid, vote, reason, commitments);
            }
            (Tag::Commit { txid, attempt }, Some(PeerReply::CommitResponse { commit })) => {
                self.take_commit(from, txid, attempt, commit);
            }
            (Tag::Commit { txid, attempt }, _) => self.exclude(txid, attempt, &[from]),
            (Tag::Account { registration }, reply) => self.take_acceptance(from, registration, reply),
            (Tag::Vote { .. } | Tag::Announce, _) => {}
        }
    }

    /// Rule V7: two approvals of one node for one outpoint and round prove by themselves that it cheats.
    fn check_equivocation(&mut self, vote: &SignedVote) {
        if vote.verdict != Verdict::Approve {
            return;
        }
        if self.approvals_seen.len() >= APPROVALS_SEEN_MAX {
            self.approvals_seen.clear();
        }
        for (outpoint, round) in vote.target.inputs() {
            let first = self.approvals_seen.entry((vote.node, *outpoint)).or_insert_with(|| vote.clone());
            let same_round = first.target.inputs().get(outpoint) == Some(round);
            if same_round && first.target.txid() != vote.target.txid() {
                tracing::warn!(node = %vote.node, %outpoint, "two approvals for one outpoint and round: evidence kept");
                let evidence = serde_json::json!({ "kind": "two_approvals", "votes": [&*first, vote] });
                let mut change = ChangeSet::default();
                let key = [&vote.node.0.to_be_bytes(), AsRef::<[u8]>::as_ref(&outpoint.txid)].concat();
                change.put(Table::Evidence, &key, &evidence);
                self.outputs.push_back(Output::Persist(change));
                self.suspects.insert(vote.node);
            }
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
        let Some(coordination) = self.coordinations.get_mut(&txid) else { return };
        if vote.node != from || vote.target != coordination.target || !vote.verify(&self.federation) {
            tracing::warn!(%from, %txid, "dropped a vote that does not verify");
            return;
        }
        self.check_equivocation(&vote);
        if self.suspects.contains(&from) {
            return;
        }
        let Some(coordination) = self.coordinations.get_mut(&txid) else { return };
        if let (Some(checked), Some(commitments)) = (&coordination.checked, commitments)
            && commitments.verify(&self.federation, from, &checked.plan)
        {
            coordination.commitments.insert(from, commitments);
        }
        let news = match vote.verdict {
            Verdict::Approve => coordination.approvals.insert(from, vote.signature).is_none(),
            Verdict::Reject => {
                let unknown = RejectReason::Invalid { message: "no reason given".to_owned() };
                coordination.rejects.insert(from, reason.unwrap_or(unknown));
                false
            }
        };
        let quorum = self.federation.quorum();
        let votes = u16::try_from(coordination.approvals.len()).unwrap_or(u16::MAX);
        let certified = coordination.certificate.is_some();
        let rejects =
            coordination.rejects.keys().filter(|node| !coordination.approvals.contains_key(*node)).count();
        if news && !certified {
            let (needed, nodes) = (quorum.votes(), quorum.nodes());
            self.tell(txid, &TransactionStatus::Voting { votes, quorum: needed, nodes });
        }
        if certified {
            self.start_attempt(txid);
        } else if votes >= quorum.votes() {
            self.certify(txid);
        } else if rejects >= usize::from(quorum.blocking()) {
            self.reject(txid);
        }
    }

    fn reject(&mut self, txid: Txid) {
        let Some(coordination) = self.coordinations.get(&txid) else { return };
        let rejects: Vec<NodeReject> = coordination
            .rejects
            .iter()
            .map(|(node, reason)| NodeReject { node: *node, reason: reason.clone() })
            .collect();
        let retry = rejects.iter().all(|reject| reject.reason.retry());
        let status = TransactionStatus::Rejected { rejects, retry };
        self.notify_status(txid, &status);
        self.finish_coordination(txid, &status);
    }

    fn certify(&mut self, txid: Txid) {
        let Some(coordination) = self.coordinations.get_mut(&txid) else { return };
        let certificate = ApprovalCertificate {
            target: coordination.target.clone(),
            approvals: coordination.approvals.clone(),
        };
        coordination.certificate = Some(certificate);
        self.tell(txid, &TransactionStatus::Approved);
        self.start_attempt(txid);
    }

    /// Chooses q nodes with fresh commitments and asks the wallet; for sole custody, asks all nodes to commit.
    fn start_attempt(&mut self, txid: Txid) {
        let quorum = usize::from(self.federation.quorum().votes());
        let deadline = self.now + self.rules.signing_timeout;
        let Some(coordination) = self.coordinations.get_mut(&txid) else { return };
        let Some(certificate) = coordination.certificate.clone() else { return };
        let attempt = coordination.attempt;
        if coordination.checked.is_none() {
            if coordination.chosen.is_empty() && coordination.commits.is_empty() {
                coordination.deadline = deadline;
                let request =
                    PeerRequest::CommitRequest { certificate, attempt, nodes: BTreeMap::new(), wallet: None };
                let approvers: Vec<_> = coordination.approvals.keys().copied().collect();
                coordination.commits.clear();
                for to in approvers {
                    self.outputs.push_back(Output::Ask {
                        to,
                        tag: Tag::Commit { txid, attempt },
                        request: request.clone(),
                    });
                }
                self.tell(txid, &TransactionStatus::Signing { attempt });
            }
            return;
        }
        if !coordination.chosen.is_empty() {
            return;
        }
        let fresh =
            coordination.commitments.iter().filter(|(node, _)| !coordination.excluded.contains(*node));
        let chosen: BTreeMap<_, _> = fresh.take(quorum).map(|(node, one)| (*node, one.clone())).collect();
        if chosen.len() < quorum {
            return;
        }
        coordination.commitments.retain(|node, _| !chosen.contains_key(node));
        coordination.deadline = deadline;
        coordination.chosen = chosen.clone();
        let submitters = coordination.submitters.clone();
        for (session, id) in submitters {
            let message = ServerMessage::SignRequest {
                txid,
                attempt,
                certificate: certificate.clone(),
                nodes: chosen.clone(),
            };
            self.send_client(session, id, message);
        }
    }

    /// The wallet's part of a signing session.
    pub(super) fn take_wallet(
        &mut self,
        txid: Txid,
        attempt: u32,
        wallet: WalletSignature,
    ) -> Result<(), WireError> {
        let Some(coordination) = self.coordinations.get_mut(&txid) else {
            let known = self.ledger.record(&txid).is_some_and(|record| record.proof.is_some());
            let error = WireError::passing(ErrorCode::UnknownTransaction, Fault::Receiver, "submit it again");
            return if known { Ok(()) } else { Err(error) };
        };
        if attempt != coordination.attempt || coordination.wallet.is_some() {
            return Ok(());
        }
        let (Some(checked), Some(certificate), Some(account)) =
            (&coordination.checked, &coordination.certificate, &coordination.account)
        else {
            return Ok(());
        };
        let invalid = |error: &dyn std::fmt::Display| WireError::sender(ErrorCode::InvalidSignature, error);
        let session =
            Session::new(&self.federation, &checked.plan, attempt, &coordination.chosen, &wallet.commitments)
                .map_err(|error| invalid(&error))?;
        if !session.verify_wallet(&self.federation, &account.record, &wallet) {
            return Err(invalid(&"the wallet's shares are not signed by the account's authorisation key"));
        }
        let request = PeerRequest::CommitRequest {
            certificate: certificate.clone(),
            attempt,
            nodes: coordination.chosen.clone(),
            wallet: Some(wallet.clone()),
        };
        coordination.wallet = Some(wallet);
        coordination.session = Some(session);
        coordination.deadline = self.now + self.rules.signing_timeout;
        let chosen: Vec<_> = coordination.chosen.keys().copied().collect();
        for to in chosen {
            self.outputs.push_back(Output::Ask {
                to,
                tag: Tag::Commit { txid, attempt },
                request: request.clone(),
            });
        }
        self.tell(txid, &TransactionStatus::Signing { attempt });
        Ok(())
    }

    fn take_commit(&mut self, from: NodeId, txid: Txid, attempt: u32, commit: CommitReply) {
        let Some(coordination) = self.coordinations.get_mut(&txid) else { return };
        if attempt != coordination.attempt {
            return;
        }
        let quorum = usize::from(self.federation.quorum().votes());
        match commit {
            CommitReply::Sole { signature } => {
                if verify_commit(&self.federation, from, &coordination.target, &signature) {
                    coordination.commits.insert(from, signature);
                }
                if coordination.commits.len() >= quorum {
                    self.complete_sole(txid);
                }
            }
            CommitReply::Joint { shares, signature } => {
                let Some(session) = &coordination.session else { return };
                if !session.nodes().contains(&from)
                    || !session.verify_shares(&self.federation, from, &shares, &signature)
                {
                    return self.exclude(txid, attempt, &[from]);
                }
                coordination.shares.insert(from, shares);
                if coordination.shares.len() == quorum {
                    self.complete_joint(txid);
                }
            }
        }
    }

    fn complete_sole(&mut self, txid: Txid) {
        let Some(coordination) = self.coordinations.get(&txid) else { return };
        let Proposal::Sole { transaction } = &coordination.proposal else { return };
        let rounds =
            transaction.input.iter().map(|input| self.ledger.round(&input.previous_output)).collect();
        let proof = FinalityProof::Attested {
            transaction: transaction.clone(),
            rounds,
            commits: coordination.commits.clone(),
        };
        self.complete(proof);
    }

    fn complete_joint(&mut self, txid: Txid) {
        let Some(coordination) = self.coordinations.get(&txid) else { return };
        let (Some(session), Some(checked), Some(account), Some(wallet)) =
            (&coordination.session, &coordination.checked, &coordination.account, &coordination.wallet)
        else {
            return;
        };
        let attempt = coordination.attempt;
        match session.aggregate(&self.federation, &account.record, &coordination.shares, &wallet.shares) {
            Ok(signatures) => match checked.complete(&signatures) {
                Ok(transaction) => {
                    let spent = checked.spent.iter().zip(&checked.addresses);
                    let spent = spent.map(|(output, address)| SpentOutput {
                        output: output.clone(),
                        position: address.position,
                    });
                    let spent = spent.collect();
                    let account = Box::new(account.clone());
                    self.complete(FinalityProof::Enforced { transaction, spent, account });
                }
                Err(error) => self.fail(txid, &error.to_string(), true),
            },
            Err(AggregateError::Shares { culprits }) => {
                if culprits.contains(&Culprit::Wallet) {
                    return self.fail(txid, "the wallet's signature share is not valid", false);
                }
                let nodes: Vec<NodeId> = culprits
                    .into_iter()
                    .filter_map(|culprit| match culprit {
                        Culprit::Node(node) => Some(node),
                        Culprit::Wallet => None,
                    })
                    .collect();
                self.accuse(txid, &nodes);
                self.exclude(txid, attempt, &nodes);
            }
            Err(error) => self.fail(txid, &error.to_string(), false),
        }
    }

    /// Keeps what proves a bad share, and leaves the node out from now on.
    fn accuse(&mut self, txid: Txid, nodes: &[NodeId]) {
        let Some(coordination) = self.coordinations.get(&txid) else { return };
        let mut change = ChangeSet::default();
        for node in nodes {
            tracing::warn!(%node, %txid, "a signed signature share that is not valid: evidence kept");
            let evidence = serde_json::json!({
                "kind": "bad_share",
                "node": node,
                "txid": txid,
                "attempt": coordination.attempt,
                "proposal": coordination.proposal,
                "nodes": coordination.chosen,
                "wallet": coordination.wallet,
                "shares": coordination.shares.get(node),
            });
            let key = [&node.0.to_be_bytes(), AsRef::<[u8]>::as_ref(&txid)].concat();
            change.put(Table::Evidence, &key, &evidence);
            self.suspects.insert(*node);
        }
        self.outputs.push_back(Output::Persist(change));
    }

    fn complete(&mut self, proof: FinalityProof) {
        let request = PeerRequest::FinalTransaction { proof: proof.clone() };
        self.record_final(proof);
        for to in self.everyone().filter(|node| *node != self.me).collect::<Vec<_>>() {
            self.outputs.push_back(Output::Ask { to, tag: Tag::Announce, request: request.clone() });
        }
    }

    /// Leaves nodes out and starts the next attempt with fresh commitments of the others.
    fn exclude(&mut self, txid: Txid, attempt: u32, nodes: &[NodeId]) {
        let most = u32::from(self.federation.quorum().blocking());
        let Some(coordination) = self.coordinations.get_mut(&txid) else { return };
        if attempt != coordination.attempt || coordination.checked.is_none() {
            return;
        }
        coordination.excluded.extend(nodes);
        coordination.attempt += 1;
        coordination.chosen.clear();
        coordination.shares.clear();
        coordination.commitments.clear();
        coordination.session = None;
        coordination.wallet = None;
        coordination.deadline = self.now + self.rules.signing_timeout;
        let attempt = coordination.attempt;
        if attempt > most + 1 {
            return self.fail(txid, "no q nodes could be found that sign together; try again", true);
        }
        let request = PeerRequest::VoteRequest {
            proposal: coordination.proposal.clone(),
            account: coordination.account.clone(),
        };
        self.ask_everyone(Tag::Vote { txid, attempt }, &request);
    }

    /// Fires expired deadlines; calling early or twice is harmless.
    pub(crate) fn handle_timeout(&mut self) {
        let due: Vec<Txid> = self
            .coordinations
            .iter()
            .filter(|(_, one)| self.now >= one.deadline)
            .map(|(txid, _)| *txid)
            .collect();
        for txid in due {
            let Some(coordination) = self.coordinations.get(&txid) else { continue };
            let attempt = coordination.attempt;
            let silent: Vec<NodeId> = match &coordination.session {
                Some(_) => {
                    let shares = &coordination.shares;
                    coordination.chosen.keys().filter(|node| !shares.contains_key(*node)).copied().collect()
                }
                None => Vec::new(),
            };
            let abandoned = coordination.submitters.is_empty() && coordination.session.is_none();
            if coordination.certificate.is_none() || coordination.checked.is_none() || abandoned {
                self.fail(txid, "not enough nodes answered in time; submit it again", true);
            } else {
                self.exclude(txid, attempt, &silent);
            }
        }
    }

    pub(crate) fn poll_timeout(&self) -> Option<Duration> {
        self.coordinations.values().map(|one| one.deadline).min()
    }

    pub(super) fn register(
        &mut self,
        session: SessionId,
        id: Option<u64>,
        record: AccountRecord,
    ) -> Result<(), WireError> {
        self.accept_account(&record)?;
        let known =
            self.accounts.get(&record.id(&self.federation)).map(|(_, certificate)| certificate.clone());
        if let Some(certificate) = known {
            self.send_client(session, id, ServerMessage::AccountCertified { certificate });
            return Ok(());
        }
        let registration = self.next_registration;
        self.next_registration += 1;
        let request = PeerRequest::AccountRequest { record: record.clone() };
        let started = Registration { session, id, record, acceptances: BTreeMap::new(), failures: 0 };
        self.registrations.insert(registration, started);
        self.ask_everyone(Tag::Account { registration }, &request);
        Ok(())
    }

    fn take_acceptance(&mut self, from: NodeId, registration: u64, reply: Option<PeerReply>) {
        let quorum = self.federation.quorum();
        let Some(open) = self.registrations.get_mut(&registration) else { return };
        match reply {
            Some(PeerReply::AccountResponse { signature })
                if open.record.verify_acceptance(&self.federation, from, &signature) =>
            {
                open.acceptances.insert(from, signature);
            }
            _bad_or_none => open.failures += 1,
        }
        if open.acceptances.len() >= usize::from(quorum.votes()) {
            let Some(open) = self.registrations.remove(&registration) else { return };
            let certificate = AccountCertificate { record: open.record, acceptances: open.acceptances };
            if self.verified_account(&certificate).is_ok() {
                self.send_client(open.session, open.id, ServerMessage::AccountCertified { certificate });
            }
        } else if open.failures >= usize::from(quorum.blocking()) {
            let Some(open) = self.registrations.remove(&registration) else { return };
            let message = "too few nodes are reachable to certify an account; try again";
            let error = WireError::passing(ErrorCode::NoNodeAvailable, Fault::Network, message);
            self.send_client(open.session, open.id, ServerMessage::Error { error });
        }
    }
}
