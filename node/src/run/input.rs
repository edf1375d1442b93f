//! What happens to a node's machine, as the tasks around it hand it in.

use bitcoin::{Block, BlockHash, OutPoint, Txid};
use quorate_protocol::seal::Handover;
use quorate_protocol::{
    NodeId,
    federation::{Succession, SuccessionPlan},
    wire::{ClientMessage, FeeEstimates, PeerReply, VotingReply, VotingRequest},
};
use quorate_rules::{ChainCoin, EvidenceFile, Kept, SessionId, Status, Tag};
use tokio::sync::{mpsc, oneshot};

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
    },
    Opened {
        session: SessionId,
        frames: mpsc::Sender<Vec<u8>>,
    },
    Closed {
        session: SessionId,
    },
    /// Blocks of the backend's chain, each on the one before.
    Blocks(Vec<Block>),
    BlockHash {
        height: u32,
        reply: oneshot::Sender<Option<BlockHash>>,
    },
    /// What the chain says of coins that the machine asked for.
    Coins {
        ticket: u64,
        coins: Vec<(OutPoint, ChainCoin)>,
    },
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
