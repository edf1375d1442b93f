//! What happens to a node's machine, as the tasks around it hand it in.

use crate::{
    net::outgoing::{Outgoing, Seat, Turn},
    store::Commits,
};
use bitcoin::{Block, BlockHash, OutPoint, Txid, block::Header};
use quorate_protocol::seal::Handover;
use quorate_protocol::{
    NodeId,
    federation::{Succession, SuccessionPlan},
    wire::{ClientMessage, FeeEstimates, PeerReply, VotingReply, VotingRequest},
};
use quorate_rules::{ChainCoin, Checked, EvidenceFile, Kept, SessionId, Status, Tag, archive::Archived};
use tokio::sync::oneshot;

/// How far a machine has read the chain.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reached {
    pub(crate) tip: u32,
    /// The lowest tip to which it can undo blocks.
    pub(crate) floor: u32,
    /// The block at the height that was asked for.
    pub(crate) hash: Option<BlockHash>,
}

/// What happens to a node.
#[derive(Debug)]
pub(crate) enum Input {
    Request {
        from: NodeId,
        request: VotingRequest,
        reply: oneshot::Sender<PeerReply>,
    },
    /// Somebody wants to know what this node ends its epoch with.
    Seal {
        succession: Box<Succession>,
        of: NodeId,
        skip: u32,
        reply: oneshot::Sender<PeerReply>,
    },
    Own {
        tag: Tag,
        request: VotingRequest,
    },
    Reply {
        from: NodeId,
        tag: Tag,
        reply: Option<VotingReply>,
    },
    Client {
        session: SessionId,
        id: Option<u64>,
        message: ClientMessage,
        /// Given back when the machine has taken the message: a session that sends many delays others by a few.
        turn: Turn,
    },
    Opened {
        session: SessionId,
        frames: Outgoing,
    },
    Closed {
        session: SessionId,
        /// Given back when the machine has taken it.
        seat: Option<Seat>,
    },
    /// Blocks of the backend's chain, each on the one before.
    Blocks(Vec<Block>),
    /// How far the machine has come, and what it has at a height.
    Reached {
        height: u32,
        reply: oneshot::Sender<Reached>,
    },
    /// Somebody wants headers from a height on.
    Headers {
        from: u32,
        count: usize,
        reply: oneshot::Sender<Vec<Header>>,
    },
    /// What the chain says of coins that the machine asked for.
    Coins {
        ticket: u64,
        /// Nothing if the backend does not say.
        coins: Option<Vec<(OutPoint, ChainCoin)>>,
    },
    /// What the archive says to what the machine asked of it; nothing if it cannot be read.
    Recalled {
        ticket: u64,
        archived: Option<Archived>,
    },
    /// What a check that the machine asked for has found out; nothing if it failed.
    Checked {
        ticket: u64,
        checked: Option<Checked>,
    },
    /// What a search of accounts found; nothing if the backend does not say.
    Found {
        ticket: u64,
        found: Option<Vec<OutPoint>>,
    },
    /// What was settled is durable.
    Settled,
    /// Why the backend may not be at the tip, or that it is.
    Doubt(Option<String>),
    /// What the backend says of fees.
    Fees(FeeEstimates),
    /// How the backend took a final transaction.
    Broadcast {
        txid: Txid,
        refusal: Option<String>,
    },
    Status {
        reply: oneshot::Sender<Status>,
    },
    /// The same, with what the store takes.
    Metrics {
        reply: oneshot::Sender<(Status, Commits)>,
    },
    Keep {
        handover: Box<Handover>,
        reply: oneshot::Sender<Kept>,
    },
    Evidence {
        reply: oneshot::Sender<EvidenceFile>,
    },
    /// The chain has been read up to its tip.
    CaughtUp,
    /// The operator has approved a plan for the next epoch.
    Plan(Box<SuccessionPlan>),
    /// The epoch is over.
    Stop,
}
