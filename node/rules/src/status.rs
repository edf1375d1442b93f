//! What a node tells its operator about itself.

use crate::Standing;
use bitcoin::Txid;
use quorate_protocol::{
    Epoch, FederationDocument, FederationId, NodeId,
    evidence::{Evidence, EvidenceKind},
    wire::{BlockRef, ConfirmedSpend},
};
use serde::Serialize;
use std::collections::BTreeMap;

/// What an operator wants to know first.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// This node.
    pub node: NodeId,
    /// The federation.
    pub federation: FederationId,
    /// The epoch of its key.
    pub epoch: Epoch,
    /// Whether this node votes, and why not (V9).
    #[serde(flatten)]
    pub standing: Standing,
    /// The tip of its chain.
    pub tip: BlockRef,
    /// Records in its durable log.
    pub log_records: u64,
    /// Seconds since each peer was last heard of; peers never heard of are missing.
    pub seconds_since_heard: BTreeMap<NodeId, f64>,
    /// Proven cheats by kind (V7); `/api/v1/evidence` has them.
    pub evidence: BTreeMap<EvidenceKind, usize>,
    /// Nodes whose messages are ignored because of that.
    pub suspects: Vec<NodeId>,
    /// Final transactions that the backend does not take, by txid, with its reason; they are tried again every minute.
    pub refusals: BTreeMap<Txid, String>,
    /// Enforced transactions that a block contradicts, by txid, with what the block has: that must never happen. Stop
    /// the node, keep its store, and compare with the other operators.
    pub breaches: BTreeMap<Txid, ConfirmedSpend>,
    /// What it holds.
    pub held: Sizes,
}

/// Evidence with what is needed to verify it.
#[derive(Clone, Debug, serde::Deserialize, Serialize)]
pub struct EvidenceFile {
    /// The federation whose nodes are accused.
    pub federation: FederationDocument,
    /// What convicts them.
    pub evidence: Vec<Evidence>,
}

/// How much a node holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Sizes {
    /// Transactions with a record.
    pub transactions: usize,
    /// Outpoints with a round, vote or commit.
    pub rounds: usize,
    /// Coins: of accounts, of scripts that somebody listens to, and such that somebody named.
    pub coins: usize,
    /// Transactions voted for and not ended.
    pub open: usize,
    /// Scripts whose outputs are indexed.
    pub scripts: usize,
    /// Registered accounts.
    pub accounts: usize,
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
