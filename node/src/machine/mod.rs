//! The rules of one node as a sans-IO machine: voter, signer, coordinator and subscriptions over one state.
//!
//! A driver feeds it inputs and carries out its outputs *in order*. A [`Output::Persist`] must be durable before any later output
//! leaves; that one rule is what V2, V4 and the nonce rule need of the world outside.
//!
//! Safety, in the words of the design's section 5: `voter` keeps V1, V2 and V4, [`quorate_protocol::vote`] V3, `release` V5 and V6, `coordinator`
//! and `signing` count each node once and only what verifies, `watch` V7, the driver's mTLS gives V8, `standing` V9.

mod accounts;
mod announce;
mod bugs;
mod coordinator;
mod ending;
mod ledger;
mod nonces;
mod release;
mod sealing;
mod signing;
mod standing;
mod subscriptions;
mod takeover;
mod voter;
mod watch;

pub use bugs::Bug;
pub use ledger::{RoundRecord, TxRecord};
pub use nonces::StoredResponse;
pub use sealing::{opening, seal_page};
pub use standing::{LogRecord, Standing};

use crate::{
    api::{EvidenceFile, Status},
    chain::ChainCoin,
    store::ChangeSet,
};
use bitcoin::{OutPoint, Transaction, Txid, block::Header};
use coordinator::Coordination;
use ledger::Ledger;
use nonces::NoncePool;
use quorate_protocol::{
    Federation, NodeId, Round,
    account::JointAccount,
    digest::IdentityKey,
    evidence::Evidence,
    frost::NodeShare,
    log_head::SignedHead,
    seal::{Seal, SealedTransaction},
    wire::{ClientMessage, PeerReply, PeerRequest, ServerMessage, WireError},
};
use rand_chacha::rand_core::RngCore as _;
use release::{Reason, ReleaseCall};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Duration,
};
use subscriptions::Subscriptions;
use voter::CommitCall;

/// A session of a wallet or bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub u64);

/// Whom a reply goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyTo {
    /// A peer's request, by the driver's number.
    Peer(u64),
    /// This node's own request.
    Myself(Tag),
}

/// What a request to a peer was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tag {
    Vote { txid: Txid, attempt: u32 },
    Commit { txid: Txid, attempt: u32 },
    Account { registration: u64 },
    Release { outpoint: OutPoint, round: Round },
    Final { txid: Txid },
    Heartbeat,
    Announce,
}

/// What the driver has to do, in order.
#[derive(Debug)]
pub enum Output {
    /// Make durable before anything that follows leaves.
    Persist(ChangeSet),
    /// Ask a node; its answer comes back with the tag.
    Ask { to: NodeId, tag: Tag, request: PeerRequest },
    /// Answer a node.
    Reply { to: ReplyTo, reply: PeerReply },
    /// Send to a wallet or bridge.
    Client { session: SessionId, id: Option<u64>, message: ServerMessage },
    /// Hand to the Bitcoin network, now and until it confirms.
    Broadcast(Transaction),
    /// Find a transaction's place in a block for a wallet.
    Prove { session: SessionId, id: Option<u64>, txid: Txid, block: quorate_protocol::wire::BlockRef },
    /// Answer with the backend's fee rate.
    FeeRate { session: SessionId, id: Option<u64> },
}

/// How much a node holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Sizes {
    /// Transactions with a record.
    pub transactions: usize,
    /// Outpoints with a round, vote or commit.
    pub rounds: usize,
    /// Transactions voted for and not ended.
    pub open: usize,
    /// Transactions under coordination.
    pub coordinations: usize,
    /// Releases being pushed.
    pub releases: usize,
    /// Final transactions that some node has not confirmed to know.
    pub announcements: usize,
    /// Sessions.
    pub sessions: usize,
}

/// What holds an outpoint at a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// The node approved this transaction.
    Approved(Txid),
    /// The node promised and has no release yet.
    Releasing,
    /// Only this transaction may be voted for.
    Forced(Txid),
}

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

/// What a node finds in its store when it starts.
#[derive(Debug, Default)]
pub struct Stored {
    pub transactions: Vec<TxRecord>,
    pub rounds: Vec<RoundRecord>,
    pub responses: Vec<StoredResponse>,
    pub evidence: Vec<Evidence>,
    pub log: LogRecord,
    pub peers: Vec<SignedHead>,
}

/// The machine.
#[derive(Debug)]
pub struct Machine {
    me: NodeId,
    federation: Federation,
    key: IdentityKey,
    share: NodeShare,
    rules: Rules,
    /// Unix time in milliseconds of the input being handled; for display in locks only.
    wall_ms: u64,
    now: Duration,
    rng: rand_chacha::ChaCha20Rng,
    ledger: Ledger,
    nonces: NoncePool,
    accounts:
        BTreeMap<quorate_protocol::AccountId, (JointAccount, quorate_protocol::account::AccountCertificate)>,
    coordinations: BTreeMap<Txid, Coordination>,
    registrations: BTreeMap<u64, accounts::Registration>,
    next_registration: u64,
    subscriptions: Subscriptions,
    greeted: HashMap<SessionId, ()>,
    watch: watch::Watch,
    log: standing::Log,
    announcements: announce::Announcements,
    /// When to tell everybody of a final transaction that is still in no block.
    gossip_at: VecDeque<(Duration, Txid)>,
    gossip_next: Duration,
    /// Releases that this node pushes.
    releases: BTreeMap<OutPoint, release::ReleaseRun>,
    /// Promises given whose release this node takes up if whoever asked does not finish it.
    follow_up: BTreeMap<OutPoint, Duration>,
    /// When, and by whom, this node was first asked to release an outpoint that it has no lock for.
    asked: HashMap<OutPoint, (Round, Duration, NodeId)>,
    /// Payments that their owners cancelled; they are voted for only if a release forces them.
    cancelled: BTreeSet<Txid>,
    /// Outpoints that were released without a lock because of a cancellation, once each.
    cancels_used: BTreeSet<(Txid, OutPoint)>,
    /// When somebody last coordinated an open transaction.
    heard_of: HashMap<Txid, Duration>,
    /// When this node last took over what nobody brought to an end.
    taken_over: HashMap<Txid, Duration>,
    sweep_at: Duration,
    /// The chain has been read up to its tip once.
    caught_up: bool,
    /// The plan for the next epoch that this node's operator has approved.
    plan: Option<[u8; 32]>,
    /// What this node ended its epoch with.
    seal: Option<(Seal, Vec<SealedTransaction>)>,
    /// A planted bug's write that comes after what depends on it.
    late: Option<ChangeSet>,
    outputs: VecDeque<Output>,
}

impl Machine {
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
            nonces: NoncePool::restore(stored.responses),
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

    fn planted(&self, bug: Bug) -> bool {
        bug.is_on(self.rules.bug)
    }

    /// Takes up the releases that this node promised to before it stopped.
    fn resume_releases(&mut self) {
        let at = self.patience();
        self.follow_up.extend(self.ledger.pending().into_iter().map(|outpoint| (outpoint, at)));
    }

    /// Sets the clocks for the inputs that follow.
    pub fn set_time(&mut self, now: Duration, wall_ms: u64) {
        (self.now, self.wall_ms) = (now, wall_ms);
    }

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
    fn undo_finality(&mut self, outpoints: &[OutPoint]) {
        if self.planted(Bug::ReorganisationUndoesFinality) {
            self.ledger.undo_finality(outpoints);
        }
    }

    fn after_blocks(&mut self, changed: Vec<OutPoint>, confirmed: impl Iterator<Item = Txid>) {
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

    fn send_client(&mut self, session: SessionId, id: Option<u64>, message: ServerMessage) {
        self.outputs.push_back(Output::Client { session, id, message });
    }

    pub fn headers(&self, from: u32) -> Vec<Header> {
        self.ledger.headers(from, quorate_protocol::wire::limits::HEADERS_MAX)
    }
}
