//! What the parts of a [`super::Transition`] work with: who this node is, the questions it has open, and what it has
//! to say.

use quorate_protocol::{
    Federation, NodeId,
    digest::IdentityKey,
    federation::{KeyCertificate, Member, Succession, SuccessionPlan},
    frost::NodeShare,
    listed,
    seal::{Handover, Seal, SealedTransaction},
    wire::{ErrorCode, Fault, PeerReply, PeerRequest, Refusal, SuccessionReply, WireError},
};
use rand_chacha::ChaCha20Rng;
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, VecDeque},
    fmt,
    time::Duration,
};
use zeroize::Zeroizing;

/// A node as its certificate shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Its number.
    pub id: NodeId,
    /// Hash of its certificate's key.
    pub tls_key: [u8; 32],
}

impl Peer {
    /// Whether it is one of these members.
    pub fn is_among(&self, members: &[Member]) -> bool {
        members.iter().any(|member| member.id == self.id && member.tls_key == self.tls_key)
    }
}

/// A stored secret that the randomness of a key generation or refresh comes from: a node that has started again says
/// the same again.
#[derive(Clone)]
pub struct DkgSeed(pub Zeroizing<[u8; 32]>);

impl fmt::Debug for DkgSeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DkgSeed(..)")
    }
}

/// The epoch whose member is meant: while a node is replaced, two have the same number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Side {
    /// The epoch in force, or the first one while its key is made.
    Present,
    /// The epoch that is prepared.
    Next,
}

/// A seal with its transactions. A node keeps those that it began an epoch with, for members that are still behind.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WholeSeal {
    /// The node's word.
    pub seal: Seal,
    /// For what.
    pub transactions: Vec<SealedTransaction>,
}

impl WholeSeal {
    /// Whether it is that node's, for that succession, and verifies.
    pub fn holds(&self, node: NodeId, succession: [u8; 32], federation: &Federation) -> bool {
        self.seal.node == node
            && self.seal.succession == succession
            && self.seal.verify(federation, &self.transactions)
    }

    pub(super) fn page(&self, skip: u32) -> SuccessionReply {
        super::seal_page(&self.seal, &self.transactions, skip)
    }
}

/// What has to be on disk before a transition goes on.
#[derive(Debug)]
pub enum Save {
    /// This node's share of the key that is being made. The others rely on it as soon as they are told.
    Share(NodeShare),
    /// The next epoch's key is certified. Fails if this node's share of it is not on disk.
    Succession(Box<Succession>),
}

/// Which [`Save`] is on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Saved {
    /// The share.
    Share,
    /// The succession.
    Succession,
}

impl Save {
    /// What to hand in when it is on disk.
    pub fn kind(&self) -> Saved {
        match self {
            Self::Share(_) => Saved::Share,
            Self::Succession(_) => Saved::Succession,
        }
    }
}

/// What the next epoch begins with.
#[derive(Clone, Debug)]
pub struct Opening {
    /// The federation in it.
    pub federation: Federation,
    /// What a quorum handed over.
    pub handover: Handover,
    /// Hash of the succession, which the new log begins with.
    pub succession: [u8; 32],
    /// The seals that it follows from.
    pub seals: Vec<WholeSeal>,
}

/// What the driver of a transition has to do.
#[derive(Debug)]
pub enum TransitionOutput {
    /// Ask a node, and hand in its answer, or that none came, with the same number.
    Ask {
        /// Names the question.
        ask: u64,
        /// Which of two nodes with that number.
        side: Side,
        /// Whom.
        to: NodeId,
        /// What.
        request: PeerRequest,
    },
    /// Ask this node's own voter to end its epoch, and hand in what it says, like a peer's answer.
    AskVoter {
        /// Names the question.
        ask: u64,
        /// For what it ends.
        succession: Box<Succession>,
        /// Transactions that are here already.
        skip: u32,
    },
    /// Answer a peer.
    Reply {
        /// The number that its request came with.
        to: u64,
        /// The answer.
        reply: PeerReply,
    },
    /// Let the voter answer a peer: it alone can end its epoch.
    Forward {
        /// The number that the request came with.
        to: u64,
        /// For what the epoch is ended.
        succession: Box<Succession>,
        /// Whose seal is asked for.
        of: NodeId,
        /// Transactions that the asker has already.
        skip: u32,
    },
    /// A plan is carried out: its newcomers may connect, and the voter ends its epoch for no other.
    Plan(Box<SuccessionPlan>),
    /// Make it durable; then hand in that it is, or that it failed.
    Save(Save),
    /// The first key is there.
    Founded(Box<KeyCertificate>),
    /// This node's lost share of the present epoch is there again.
    Repaired(NodeShare),
    /// Too few nodes help with a repair that was asked for by itself: why.
    NotRepaired(String),
    /// Begin the next epoch.
    Open(Box<Opening>),
}

/// The step before the first epoch.
pub(super) const FOUNDING: &str = "making the first key";

/// What an open question is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    News,
    Pull(NodeId),
    TrialCommit(NodeId),
    TrialSign(NodeId),
    RepairOpen(NodeId),
    RepairSum(NodeId),
    /// Another helper's piece, for the sum with this number.
    Piece(u64, NodeId),
    Seal(NodeId),
}

/// What every part works with.
#[derive(Debug)]
pub(super) struct Desk {
    pub(super) me: NodeId,
    pub(super) key: IdentityKey,
    pub(super) rng: ChaCha20Rng,
    /// Monotonic time of the input being handled.
    pub(super) now: Duration,
    pub(super) outputs: VecDeque<TransitionOutput>,
    /// What is going on, for the operator.
    pub(super) step: &'static str,
    /// Why it does not go on.
    pub(super) problem: Option<String>,
    /// Why a peer gave no part of a key, for reports.
    pub(super) last_refusal: String,
    open: BTreeMap<u64, Purpose>,
    next_ask: u64,
}

impl Desk {
    pub(super) fn new(me: NodeId, key: IdentityKey, rng: ChaCha20Rng) -> Self {
        Self {
            me,
            key,
            rng,
            now: Duration::ZERO,
            outputs: VecDeque::new(),
            step: "",
            problem: None,
            last_refusal: String::new(),
            open: BTreeMap::new(),
            next_ask: 1,
        }
    }

    pub(super) fn ask(&mut self, side: Side, to: NodeId, request: impl Into<PeerRequest>, purpose: Purpose) {
        let ask = self.number(purpose);
        self.outputs.push_back(TransitionOutput::Ask { ask, side, to, request: request.into() });
    }

    pub(super) fn ask_voter(&mut self, succession: Box<Succession>, skip: u32, purpose: Purpose) {
        let ask = self.number(purpose);
        self.outputs.push_back(TransitionOutput::AskVoter { ask, succession, skip });
    }

    fn number(&mut self, purpose: Purpose) -> u64 {
        let ask = self.next_ask;
        self.next_ask += 1;
        self.open.insert(ask, purpose);
        ask
    }

    /// What a question was for, if it still matters.
    pub(super) fn answered(&mut self, ask: u64) -> Option<Purpose> {
        self.open.remove(&ask)
    }

    /// Answers to these do not matter any more.
    pub(super) fn forget(&mut self, which: impl Fn(&Purpose) -> bool) {
        self.open.retain(|_, purpose| !which(purpose));
    }

    pub(super) fn reply(&mut self, to: u64, reply: impl Into<PeerReply>) {
        self.outputs.push_back(TransitionOutput::Reply { to, reply: reply.into() });
    }

    pub(super) fn save(&mut self, save: Save) {
        self.outputs.push_back(TransitionOutput::Save(save));
    }

    /// Something new is going on.
    pub(super) fn step(&mut self, step: &'static str) {
        (self.step, self.problem) = (step, None);
        tracing::info!(node = %self.me, step, "the next epoch");
    }

    /// Something keeps it from going on; the log says so once, the status as long as it lasts.
    pub(super) fn report(&mut self, problem: String) {
        if self.problem.as_ref() != Some(&problem) {
            tracing::warn!(node = %self.me, problem, step = self.step, "it does not go on");
        }
        self.problem = Some(problem);
    }

    /// Others are not there yet. Nodes of a new federation are started one after the other, so nothing is wrong then.
    pub(super) fn wait_for(&mut self, nodes: impl IntoIterator<Item = NodeId>) {
        let problem = format!("nodes {} do not take part yet", listed(nodes));
        if self.step == FOUNDING {
            tracing::debug!(node = %self.me, problem, step = self.step, "it does not go on");
            self.problem = Some(problem);
        } else {
            self.report(problem);
        }
    }
}

/// Refuses what this node cannot do yet; who asks may try again.
pub(super) fn not_ready(message: &str) -> WireError {
    WireError::passing(ErrorCode::NotReady, Fault::Receiver, message)
}

/// Why an answer is not the one that was hoped for, in words for an operator.
pub(super) fn reason(reply: Option<PeerReply>) -> String {
    match reply {
        None => "does not answer".to_owned(),
        Some(PeerReply::Refused(Refusal::Error { error })) => error.to_string(),
        Some(
            PeerReply::Voting(_) | PeerReply::Keygen(_) | PeerReply::Succession(_) | PeerReply::Repair(_),
        ) => "answers something else".to_owned(),
    }
}
