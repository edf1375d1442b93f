//! The rules of one node as a sans-IO machine: voter, signer, coordinator and subscriptions over one state.
//!
//! A driver feeds it inputs and carries out its outputs *in order*. A [`Output::Persist`] must be durable before any later output
//! leaves; that one rule is what V2, V4 and the nonce rule need of the world outside.
//!
//! Safety, in the words of the design's section 5: `voter` keeps V1, V2 and V4, [`quorate::vote`] V3, `coordinator` counts each
//! node once and only what verifies (V3, V7), and the driver's mTLS gives V8.

mod coordinator;
mod ledger;
mod nonces;
mod subscriptions;
mod voter;

pub(crate) use ledger::TxRecord;

use crate::{chain::ChainCoin, store::ChangeSet};
use bitcoin::{OutPoint, Transaction, Txid, block::Header};
use coordinator::Coordination;
use ledger::Ledger;
use nonces::NoncePool;
use quorate::{
    Federation, NodeId,
    account::JointAccount,
    digest::IdentityKey,
    frost::NodeShare,
    wire::{ClientMessage, PeerReply, PeerRequest, ServerMessage, WireError},
};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};
use subscriptions::Subscriptions;

/// A session of a wallet or bridge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SessionId(pub(crate) u64);

/// Whom a reply goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReplyTo {
    /// A peer's request, by the driver's number.
    Peer(u64),
    /// This node's own request.
    Myself(Tag),
}

/// What a request to a peer was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    Vote { txid: Txid, attempt: u32 },
    Commit { txid: Txid, attempt: u32 },
    Account { registration: u64 },
    Announce,
}

/// What the driver has to do, in order.
#[derive(Debug)]
pub(crate) enum Output {
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
    Prove { session: SessionId, id: Option<u64>, txid: Txid, block: quorate::wire::BlockRef },
    /// Answer with the backend's fee rate.
    FeeRate { session: SessionId, id: Option<u64> },
}

/// Settings of the rules.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    /// Confirmations that a coin needs before it can be spent.
    pub(crate) min_confirmations: u32,
    /// Time for phase 1.
    pub(crate) voting_timeout: Duration,
    /// Time for the shares of one signing attempt.
    pub(crate) signing_timeout: Duration,
}

/// The machine.
#[derive(Debug)]
pub(crate) struct Machine {
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
    accounts: HashMap<quorate::AccountId, (JointAccount, quorate::account::AccountCertificate)>,
    coordinations: BTreeMap<Txid, Coordination>,
    registrations: BTreeMap<u64, coordinator::Registration>,
    next_registration: u64,
    subscriptions: Subscriptions,
    greeted: HashMap<SessionId, ()>,
    suspects: std::collections::BTreeSet<NodeId>,
    /// The approval that each node gave for each outpoint, to notice a second one (V7).
    approvals_seen: HashMap<(NodeId, OutPoint), quorate::vote::SignedVote>,
    outputs: VecDeque<Output>,
}

impl Machine {
    pub(crate) fn new(
        me: NodeId,
        federation: Federation,
        key: IdentityKey,
        share: NodeShare,
        rules: Rules,
        rng: rand_chacha::ChaCha20Rng,
        stored: (Vec<TxRecord>, Vec<nonces::StoredResponse>),
    ) -> Self {
        let network = federation.network();
        Self {
            me,
            federation,
            key,
            share,
            rules,
            wall_ms: 0,
            now: Duration::ZERO,
            rng,
            ledger: Ledger::restore(network, stored.0),
            nonces: NoncePool::restore(stored.1),
            accounts: HashMap::new(),
            coordinations: BTreeMap::new(),
            registrations: BTreeMap::new(),
            next_registration: 1,
            subscriptions: Subscriptions::default(),
            greeted: HashMap::new(),
            suspects: std::collections::BTreeSet::new(),
            approvals_seen: HashMap::new(),
            outputs: VecDeque::new(),
        }
    }

    /// Sets the clocks for the inputs that follow.
    pub(crate) fn set_time(&mut self, now: Duration, wall_ms: u64) {
        (self.now, self.wall_ms) = (now, wall_ms);
    }

    pub(crate) fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// Outpoints of a proposal that have to be looked up in the chain before it is handed in.
    pub(crate) fn unknown_coins(&self, outpoints: &[OutPoint]) -> Vec<OutPoint> {
        outpoints.iter().filter(|outpoint| !self.ledger.knows(outpoint)).copied().collect()
    }

    /// Takes in what the chain backend says about outpoints.
    pub(crate) fn handle_coins(&mut self, coins: Vec<(OutPoint, ChainCoin)>) {
        for (outpoint, coin) in coins {
            self.ledger.add_coin(outpoint, coin);
        }
    }

    /// A request of another node, or of this one.
    pub(crate) fn handle_request(&mut self, from: NodeId, to: ReplyTo, request: PeerRequest) {
        let answer = match request {
            PeerRequest::VoteRequest { proposal, account } => self.vote(from, proposal, account),
            PeerRequest::CommitRequest { certificate, attempt, nodes, wallet } => {
                self.commit(certificate, attempt, &nodes, wallet)
            }
            PeerRequest::FinalTransaction { proof } => self.take_final(proof).map(|()| PeerReply::Done),
            PeerRequest::AccountRequest { record } => self.accept_account(&record),
            PeerRequest::DkgPull | PeerRequest::TrialCommit | PeerRequest::TrialSign { .. } => {
                Err(WireError::sender(quorate::wire::ErrorCode::Internal, "handled by the driver"))
            }
        };
        tracing::trace!(%from, ok = answer.is_ok(), "peer request");
        let reply = answer.unwrap_or_else(|error| PeerReply::Error { error });
        self.outputs.push_back(Output::Reply { to, reply });
    }

    /// A session ended.
    pub(crate) fn handle_session_closed(&mut self, session: SessionId) {
        self.greeted.remove(&session);
        self.subscriptions.remove_session(session);
        for coordination in self.coordinations.values_mut() {
            coordination.remove_session(session);
        }
    }

    /// Proven final transactions that are not in a block, to broadcast again.
    pub(crate) fn unconfirmed(&self) -> Vec<Transaction> {
        self.ledger.unconfirmed()
    }

    /// Height and hash that the follower builds on.
    pub(crate) fn block_at(&self, height: u32) -> Option<bitcoin::BlockHash> {
        self.ledger.block_hash(height)
    }

    /// A block on top of the one before.
    pub(crate) fn handle_block(&mut self, block: &bitcoin::Block) {
        let changed = self.ledger.connect(block);
        self.after_blocks(changed, block.txdata.iter().map(Transaction::compute_txid));
    }

    /// The tip was taken out by a reorganisation.
    pub(crate) fn handle_disconnected(&mut self) {
        let changed = self.ledger.disconnect();
        self.after_blocks(changed, std::iter::empty());
    }

    fn after_blocks(&mut self, changed: Vec<OutPoint>, confirmed: impl Iterator<Item = Txid>) {
        for outpoint in changed {
            self.notify_outpoint(outpoint, None);
        }
        for txid in confirmed {
            if self.ledger.record(&txid).is_some() {
                let block = self.ledger.tip();
                self.notify_status(txid, &quorate::wire::TransactionStatus::Confirmed { block });
            }
        }
    }

    /// Call when all blocks of one step have been handed in.
    pub(crate) fn announce_tip(&mut self) {
        self.notify_tip();
    }

    /// A message of a wallet or bridge.
    pub(crate) fn handle_client(&mut self, session: SessionId, id: Option<u64>, message: ClientMessage) {
        if let Err(error) = self.client(session, id, message) {
            self.send_client(session, id, ServerMessage::Error { error });
        }
    }

    fn send_client(&mut self, session: SessionId, id: Option<u64>, message: ServerMessage) {
        self.outputs.push_back(Output::Client { session, id, message });
    }

    pub(crate) fn headers(&self, from: u32) -> Vec<Header> {
        self.ledger.headers(from, quorate::wire::limits::HEADERS_MAX)
    }
}
