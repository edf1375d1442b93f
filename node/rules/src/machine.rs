//! The machine: one state, and which rule answers which input.

use crate::{
    Bug, ChainCoin, EvidenceFile, Hold, Output, ReplyTo, SessionId, Sizes, Status, accounts, announce,
    coordinator::Coordination,
    ledger::Ledger,
    nonces::NoncePool,
    records::{ChangeSet, Stored},
    release,
    release::{Reason, ReleaseCall},
    standing,
    subscriptions::Subscriptions,
    voter::CommitCall,
    watch,
};
use bitcoin::{OutPoint, Transaction, Txid, block::Header};
use quorate_protocol::{
    Federation, NodeId, Round,
    account::JointAccount,
    digest::IdentityKey,
    frost::NodeShare,
    seal::{Seal, SealedTransaction},
    wire::{ClientMessage, PeerReply, PeerRequest, ServerMessage, WireError},
};
use rand_chacha::rand_core::RngCore as _;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Duration,
};

/// Settings of the rules.
#[derive(Clone, Copy, Debug)]
pub struct Rules {
    /// Confirmations that a coin needs before it can be spent.
    pub min_confirmations: u32,
    /// Time for phase 1.
    pub voting_timeout: Duration,
    /// Time for the shares of one signing attempt.
    pub signing_timeout: Duration,
    /// A rule to break, in the simulation only.
    pub bug: Option<Bug>,
}

/// The machine.
#[derive(Debug)]
pub struct Machine {
    pub(crate) me: NodeId,
    pub(crate) federation: Federation,
    pub(crate) key: IdentityKey,
    pub(crate) share: NodeShare,
    pub(crate) rules: Rules,
    /// Unix time in milliseconds of the input being handled; for display in locks only.
    pub(crate) wall_ms: u64,
    pub(crate) now: Duration,
    pub(crate) rng: rand_chacha::ChaCha20Rng,
    pub(crate) ledger: Ledger,
    pub(crate) nonces: NoncePool,
    pub(crate) accounts:
        BTreeMap<quorate_protocol::AccountId, (JointAccount, quorate_protocol::account::AccountCertificate)>,
    pub(crate) coordinations: BTreeMap<Txid, Coordination>,
    pub(crate) registrations: BTreeMap<u64, accounts::Registration>,
    pub(crate) next_registration: u64,
    pub(crate) subscriptions: Subscriptions,
    pub(crate) greeted: HashMap<SessionId, ()>,
    pub(crate) watch: watch::Watch,
    pub(crate) log: standing::Log,
    pub(crate) announcements: announce::Announcements,
    /// When to tell everybody of a final transaction that is still in no block.
    pub(crate) gossip_at: VecDeque<(Duration, Txid)>,
    pub(crate) gossip_next: Duration,
    /// Releases that this node pushes.
    pub(crate) releases: BTreeMap<OutPoint, release::ReleaseRun>,
    /// Promises given whose release this node takes up if whoever asked does not finish it.
    pub(crate) follow_up: BTreeMap<OutPoint, Duration>,
    /// When, and by whom, this node was first asked to release an outpoint that it has no lock for.
    pub(crate) asked: HashMap<OutPoint, (Round, Duration, NodeId)>,
    /// Payments that their owners cancelled; they are voted for only if a release forces them.
    pub(crate) cancelled: BTreeSet<Txid>,
    /// Outpoints that were released without a lock because of a cancellation, once each.
    pub(crate) cancels_used: BTreeSet<(Txid, OutPoint)>,
    /// When somebody last coordinated an open transaction.
    pub(crate) heard_of: HashMap<Txid, Duration>,
    /// When this node last took over what nobody brought to an end.
    pub(crate) taken_over: HashMap<Txid, Duration>,
    pub(crate) sweep_at: Duration,
    /// The chain has been read up to its tip once.
    pub(crate) caught_up: bool,
    /// The plan for the next epoch that this node's operator has approved.
    pub(crate) plan: Option<[u8; 32]>,
    /// What this node ended its epoch with.
    pub(crate) seal: Option<(Seal, Vec<SealedTransaction>)>,
    /// A planted bug's write that comes after what depends on it.
    pub(crate) late: Option<ChangeSet>,
    pub(crate) outputs: VecDeque<Output>,
}

impl Machine {
    /// The rules of node `me` over what its store holds.
    pub fn new(
        me: NodeId,
        federation: Federation,
        key: IdentityKey,
        share: NodeShare,
        rules: Rules,
        mut rng: rand_chacha::ChaCha20Rng,
        stored: Stored,
    ) -> Self {
        let boot = rng.next_u64();
        let (network, epoch) = (federation.network(), federation.epoch());
        let proven = stored.transactions.iter().filter(|record| record.proof.is_some());
        let final_before = proven.map(|record| (announce::GOSSIP_AFTER, record.target.txid())).collect();
        let mut machine = Self {
            me,
            federation,
            key,
            share,
            rules,
            wall_ms: 0,
            now: Duration::ZERO,
            rng,
            ledger: Ledger::restore(network, epoch, stored.transactions, stored.rounds),
            nonces: NoncePool::restore(stored.answers),
            accounts: BTreeMap::new(),
            coordinations: BTreeMap::new(),
            registrations: BTreeMap::new(),
            next_registration: 1,
            subscriptions: Subscriptions::default(),
            greeted: HashMap::new(),
            watch: watch::Watch::restore(stored.evidence, epoch),
            log: standing::Log::restore(stored.log, stored.peers, boot),
            announcements: announce::Announcements::new(),
            gossip_at: final_before,
            gossip_next: Duration::ZERO,
            releases: BTreeMap::new(),
            follow_up: BTreeMap::new(),
            asked: HashMap::new(),
            cancelled: BTreeSet::new(),
            cancels_used: BTreeSet::new(),
            heard_of: HashMap::new(),
            taken_over: HashMap::new(),
            sweep_at: Duration::ZERO,
            caught_up: false,
            plan: None,
            seal: None,
            late: None,
            outputs: VecDeque::new(),
        };
        machine.record_run();
        machine.resume_releases();
        machine
    }

    /// How much this node holds, for metrics and the bound on memory.
    pub fn sizes(&self) -> Sizes {
        let (transactions, rounds, open) = self.ledger.sizes();
        Sizes {
            transactions,
            rounds,
            open,
            coordinations: self.coordinations.len(),
            releases: self.releases.len(),
            announcements: self.announcements.len(),
            sessions: self.greeted.len(),
        }
    }

    /// What an operator wants to know first.
    pub fn status(&self) -> Status {
        Status {
            node: self.me,
            federation: self.federation.id(),
            epoch: self.federation.epoch(),
            standing: self.standing(),
            tip: self.ledger.tip(),
            log_records: self.log_records(),
            seconds_since_heard: self
                .silence()
                .into_iter()
                .map(|(node, time)| (node, time.as_secs_f64()))
                .collect(),
            evidence: self.evidence_counts(),
            suspects: self.watch.suspects.iter().copied().collect(),
            held: self.sizes(),
        }
    }

    /// All evidence, with what is needed to verify it.
    pub fn evidence_file(&self) -> EvidenceFile {
        let federation = self.federation.document().clone();
        EvidenceFile { federation, evidence: self.evidence().cloned().collect() }
    }

    /// Time since each peer was last heard of.
    pub fn silence(&self) -> BTreeMap<NodeId, Duration> {
        let heard = self.log.heard().iter();
        heard.map(|(node, at)| (*node, self.now.saturating_sub(*at))).collect()
    }

    /// What this node knows of an outpoint.
    pub fn utxo(&self, outpoint: &OutPoint) -> Option<quorate_protocol::wire::UtxoRecord> {
        self.ledger.current(outpoint)
    }

    /// The proof of a transaction that this node holds for final.
    pub fn proof(&self, txid: &Txid) -> Option<&quorate_protocol::finality::FinalityProof> {
        self.ledger.record(txid)?.proof.as_ref()
    }

    /// Whether this node knows that a transaction can no longer be undone: it has its proof, or a block has it.
    pub fn knows_final(&self, txid: &Txid) -> bool {
        self.proof(txid).is_some() || self.ledger.block_of(txid).is_some()
    }

    /// What holds an outpoint in its present round here: an approval, a release that is not complete, or a forced transaction.
    pub fn holds(&self, outpoint: &OutPoint) -> Option<Hold> {
        if self.ledger.spent_by(outpoint).is_some() {
            return None;
        }
        if self.ledger.is_pending(outpoint) {
            return Some(Hold::Releasing);
        }
        let approved = self.ledger.approved(outpoint).map(|(txid, _)| Hold::Approved(txid));
        approved.or_else(|| self.ledger.forced(outpoint).map(Hold::Forced))
    }

    pub(crate) fn planted(&self, bug: Bug) -> bool {
        bug.is_on(self.rules.bug)
    }

    /// Takes up the releases that this node promised to before it stopped.
    pub(crate) fn resume_releases(&mut self) {
        let at = self.patience();
        self.follow_up.extend(self.ledger.pending().into_iter().map(|outpoint| (outpoint, at)));
    }

    /// Sets the clocks for the inputs that follow.
    pub fn set_time(&mut self, now: Duration, wall_ms: u64) {
        (self.now, self.wall_ms) = (now, wall_ms);
    }

    /// The next thing to do, in order. Drain to `None` after every `handle_*`.
    pub fn poll_output(&mut self) -> Option<Output> {
        if self.outputs.is_empty()
            && let Some(late) = self.late.take()
        {
            self.persist(late);
        }
        self.outputs.pop_front()
    }

    /// Outpoints of a proposal that have to be looked up in the chain before it is handed in.
    pub fn unknown_coins(&self, outpoints: &[OutPoint]) -> Vec<OutPoint> {
        outpoints.iter().filter(|outpoint| !self.ledger.knows(outpoint)).copied().collect()
    }

    /// Takes in what the chain backend says about outpoints, and tells who waits for news of them: what they heard last may be of an
    /// earlier epoch.
    pub fn handle_coins(&mut self, coins: Vec<(OutPoint, ChainCoin)>) {
        for (outpoint, coin) in coins {
            let new = !self.ledger.knows(&outpoint);
            self.ledger.add_coin(outpoint, coin);
            if new {
                self.notify_outpoint(outpoint, None);
            }
        }
    }

    /// A request of another node, or of this one.
    pub fn handle_request(&mut self, from: NodeId, to: ReplyTo, request: PeerRequest) {
        let answer = match request {
            PeerRequest::VoteRequest { proposal, account, certificate, releases } => {
                self.vote(from, proposal, account, certificate, releases)
            }
            PeerRequest::CommitRequest { certificate, attempt, nodes, wallet, releases, head } => {
                self.take_head(from, head);
                self.commit(CommitCall { certificate, attempt, nodes, wallet }, releases)
            }
            PeerRequest::ReleaseRequest { outpoint, round, rejects, cancel, promises, previous } => {
                let reason = Reason { rejects, cancel: cancel.map(|cancel| *cancel) };
                self.release_requested(from, ReleaseCall { outpoint, round, reason, promises, previous })
            }
            PeerRequest::Released { releases } => {
                self.take_releases(releases);
                Ok(PeerReply::Done)
            }
            PeerRequest::Heartbeat { head } => Ok(self.heartbeat(from, head)),
            PeerRequest::FinalTransaction { proof, head } => {
                self.take_head(from, head);
                self.take_final(proof).map(|()| PeerReply::Done)
            }
            PeerRequest::AccountRequest { record } => self.accept_account(&record),
            PeerRequest::SealRequest { succession, of, skip } => self.seal_requested(&succession, of, skip),
            PeerRequest::DkgPull { .. }
            | PeerRequest::TrialCommit { .. }
            | PeerRequest::TrialSign { .. }
            | PeerRequest::SuccessionPull { .. }
            | PeerRequest::RepairOpen { .. }
            | PeerRequest::RepairPiece { .. }
            | PeerRequest::RepairSum { .. } => {
                Err(WireError::sender(quorate_protocol::wire::ErrorCode::Internal, "handled by the driver"))
            }
        };
        tracing::trace!(%from, ok = answer.is_ok(), "peer request");
        let reply = answer.unwrap_or_else(|error| PeerReply::Error { error });
        self.outputs.push_back(Output::Reply { to, reply });
    }

    /// A session ended.
    pub fn handle_session_closed(&mut self, session: SessionId) {
        self.greeted.remove(&session);
        self.subscriptions.remove_session(session);
        for coordination in self.coordinations.values_mut() {
            coordination.remove_session(session);
        }
    }

    /// Proven final transactions that are not in a block, to broadcast again.
    pub fn unconfirmed(&self) -> Vec<Transaction> {
        self.ledger.unconfirmed()
    }

    /// The tip of the chain as far as it has been read.
    pub fn tip(&self) -> quorate_protocol::wire::BlockRef {
        self.ledger.tip()
    }

    /// Whether the chain has been read to its tip.
    pub fn is_caught_up(&self) -> bool {
        self.caught_up
    }

    /// Height and hash that the follower builds on.
    pub fn block_at(&self, height: u32) -> Option<bitcoin::BlockHash> {
        self.ledger.block_hash(height)
    }

    /// A block on top of the one before.
    pub fn handle_block(&mut self, block: &bitcoin::Block) {
        let changed = self.ledger.connect(block);
        self.after_blocks(changed, block.txdata.iter().map(Transaction::compute_txid));
    }

    /// The tip was taken out by a reorganisation.
    pub fn handle_disconnected(&mut self) {
        let changed = self.ledger.disconnect();
        self.undo_finality(&changed);
        self.after_blocks(changed, std::iter::empty());
    }

    /// A planted bug: a spend taken out of the chain is taken for undone.
    pub(crate) fn undo_finality(&mut self, outpoints: &[OutPoint]) {
        if self.planted(Bug::ReorganisationUndoesFinality) {
            self.ledger.undo_finality(outpoints);
        }
    }

    pub(crate) fn after_blocks(&mut self, changed: Vec<OutPoint>, confirmed: impl Iterator<Item = Txid>) {
        for outpoint in changed {
            self.notify_outpoint(outpoint, None);
        }
        for txid in confirmed {
            if self.ledger.record(&txid).is_some() {
                let block = self.ledger.tip();
                self.notify_status(txid, &quorate_protocol::wire::TransactionStatus::Confirmed { block });
            }
        }
    }

    /// Call when all blocks of one step have been handed in.
    pub fn announce_tip(&mut self) {
        self.notify_tip();
    }

    /// A message of a wallet or bridge.
    pub fn handle_client(&mut self, session: SessionId, id: Option<u64>, message: ClientMessage) {
        if let Err(error) = self.client(session, id, message) {
            self.send_client(session, id, ServerMessage::Error { error });
        }
    }

    pub(crate) fn send_client(&mut self, session: SessionId, id: Option<u64>, message: ServerMessage) {
        self.outputs.push_back(Output::Client { session, id, message });
    }

    /// Headers from a height on, as many as fit in one answer.
    pub fn headers(&self, from: u32) -> Vec<Header> {
        self.ledger.headers(from, quorate_protocol::wire::limits::HEADERS_MAX)
    }
}
