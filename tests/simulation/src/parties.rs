//! The parties beside the nodes: bridge, wallets, submitters and subscribers, each with its real machine where it has
//! one.

use crate::{
    base::{Base, open_wallet},
    event::Party,
};
use bitcoin::{OutPoint, Txid};
use quorate::{
    NodeId, SignatureShare,
    account::AccountCertificate,
    finality::FinalityProof,
    frost::{NodeCommitments, SigningSession, WalletSignature},
    proposal::{CheckedProposal, JointProposal, Proposal},
    session::Session,
    vote::{ApprovalCertificate, SignedVote},
    wire::{ClientMessage, SubscriptionKey, TransactionStatus, UtxoRecord, limits},
};
use quorate_bridge::sans_io::{Machine, RelayId, WalletId};
use quorate_rules::SessionId;
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng as _};
use std::{collections::BTreeMap, time::Duration};

/// News that may wait for one session; little, so that slow subscribers see gaps.
const NEWS_MAX: usize = 64;

/// The bridge.
#[derive(Debug)]
pub struct SimBridge {
    pub(crate) machine: Machine,
    /// Event streams: number of the connection and session at the node.
    pub(crate) links: BTreeMap<NodeId, (u64, SessionId)>,
    pub(crate) parties: BTreeMap<WalletId, Party>,
    /// Sessions that are not read on purpose.
    pub(crate) slow: Vec<WalletId>,
    /// Where relayed requests are: node and session there.
    pub(crate) relays: BTreeMap<RelayId, (NodeId, SessionId)>,
    /// Number of the present run; relays of earlier ones are nobody's.
    pub(crate) life: u64,
    pub(crate) connections: u64,
    pub(crate) turn: usize,
    pub(crate) down: bool,
}

impl SimBridge {
    /// A bridge to a federation of so many nodes.
    pub fn new(federation: quorate::FederationId, nodes: usize) -> Self {
        Self {
            machine: Machine::new(federation, nodes).with_news_max(NEWS_MAX),
            links: BTreeMap::new(),
            parties: BTreeMap::new(),
            slow: Vec::new(),
            relays: BTreeMap::new(),
            life: 0,
            connections: 0,
            turn: 0,
            down: false,
        }
    }

    /// Whether it takes connections.
    pub fn is_up(&self) -> bool {
        !self.down && self.machine.is_useful()
    }

    /// Whether a session is read slowly on purpose.
    pub fn set_slow(&mut self, session: WalletId, slow: bool) {
        self.slow.retain(|other| *other != session);
        self.slow.extend(slow.then_some(session));
    }

    /// Sessions and relays open.
    pub fn sizes(&self) -> (usize, usize) {
        self.machine.sizes()
    }
}

/// A wallet and its connection.
#[derive(Debug)]
pub struct SimWallet {
    /// The real session machine.
    pub session: Session,
    pub(crate) connection: u64,
    pub(crate) bridge: Option<WalletId>,
    pub(crate) timer_at: Option<Duration>,
    pub(crate) offline_until: Duration,
    /// Payments that it holds for final, by a proof that it verified.
    pub finals: Vec<Txid>,
    /// Payments under way.
    pub open: Vec<Txid>,
}

impl SimWallet {
    /// A wallet that is not connected.
    pub fn new(base: &Base, index: usize, seed: u64) -> Self {
        let wallet = open_wallet(&base.federation, index);
        let stream = seed.wrapping_mul(31).wrapping_add(u64::try_from(index).unwrap_or(0));
        let session = Session::new(wallet, Box::new(ChaCha20Rng::seed_from_u64(stream)));
        Self {
            session,
            connection: 0,
            bridge: None,
            timer_at: None,
            offline_until: Duration::ZERO,
            finals: Vec::new(),
            open: Vec::new(),
        }
    }
}

/// A client that wants one transaction of coins in sole custody final.
#[derive(Debug)]
pub struct Submission {
    pub(crate) proposal: Proposal,
    /// The paying account, if it is a joint one.
    pub(crate) account: Option<AccountCertificate>,
    pub(crate) at: Option<(NodeId, SessionId)>,
    pub(crate) heard: Duration,
    /// When it was last handed to a node.
    pub(crate) submitted: Duration,
    /// What became of it.
    pub outcome: Option<TransactionStatus>,
}

/// A client that follows coins.
#[derive(Debug)]
pub struct Subscriber {
    pub(crate) keys: Vec<SubscriptionKey>,
    pub(crate) connection: u64,
    pub(crate) bridge: Option<WalletId>,
    /// What it knows.
    pub known: BTreeMap<OutPoint, UtxoRecord>,
}

/// When the payment is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shown {
    /// Before its deadline: an honest payment that came late.
    InTime,
    /// When its recovery path is open, before the coin is taken.
    BeforeTaking,
    /// When the coin is gone.
    AfterTaking,
}

/// What they do next.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Step {
    Vote,
    Sign,
    Finish,
    Wait,
    Take,
    Show,
    Over,
}

/// A payment that an owner and an evil node keep to themselves.
#[derive(Debug)]
pub struct Theft {
    pub(crate) evil: NodeId,
    pub(crate) proposal: JointProposal,
    pub(crate) account: AccountCertificate,
    pub(crate) checked: CheckedProposal,
    pub(crate) shown: Shown,
    pub(crate) step: Step,
    pub(crate) attempt: u32,
    pub(crate) votes: BTreeMap<NodeId, (SignedVote, NodeCommitments)>,
    pub(crate) package: Option<Package>,
    pub(crate) shares: BTreeMap<NodeId, Vec<SignatureShare>>,
    pub(crate) proof: Option<FinalityProof>,
}

/// What the chosen nodes sign.
#[derive(Debug)]
pub(crate) struct Package {
    pub(crate) certificate: ApprovalCertificate,
    pub(crate) wallet: WalletSignature,
    pub(crate) session: SigningSession,
}

/// The first message of a session.
pub fn hello() -> ClientMessage {
    ClientMessage::Hello {
        protocol: limits::PROTOCOL_VERSION,
        federation: None,
        agent: "simulation".to_owned(),
    }
}
