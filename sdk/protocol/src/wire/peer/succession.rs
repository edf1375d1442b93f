//! From one epoch to the next: approvals of a plan, and seals of the epoch that ends.

use super::Request;
use crate::{
    Epoch, NodeId,
    federation::Succession,
    seal::{Seal, SealedTransaction},
    tagged::tagged,
    wire::{Message, limits::PEER_FRAME_BYTES_MAX},
};
use bitcoin::secp256k1::schnorr;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Requests about the epoch that follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub enum SuccessionRequest {
    /// What do you know of the epoch after this one?
    SuccessionPull {
        /// The epoch that ends.
        epoch: Epoch,
    },
    /// End the epoch, and say with what.
    SealRequest {
        /// Shows that the next epoch is approved and its key is there.
        succession: Box<Succession>,
        /// Whose seal is asked for. A node that has opened the next epoch has those of a quorum.
        of: NodeId,
        /// Transactions that the asker has already.
        skip: u32,
    },
}
tagged!("type": SuccessionRequest);

impl Message for SuccessionRequest {
    const BYTES_MAX: usize = PEER_FRAME_BYTES_MAX;
    const TYPES: &'static [&'static str] = &["SuccessionPull", "SealRequest"];
}

impl Request for SuccessionRequest {
    type Reply = SuccessionReply;
}

/// Answers about the epoch that follows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub enum SuccessionReply {
    /// To `SuccessionPull`.
    SuccessionNews {
        /// The plan that the node's operator approved, by its hash; zeros if there is none.
        #[serde(with = "hex::serde")]
        plan: [u8; 32],
        /// Approvals of that plan that the node has seen.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        approvals: BTreeMap<NodeId, schnorr::Signature>,
        /// The finished succession.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        succession: Option<Box<Succession>>,
    },
    /// To `SealRequest`.
    Sealed {
        /// The node's word, for all of its transactions.
        seal: Box<Seal>,
        /// As many transactions as fit in a frame, after those that were skipped.
        transactions: Vec<SealedTransaction>,
        /// Whether there are more.
        more: bool,
    },
}
tagged!("type": SuccessionReply);

impl Message for SuccessionReply {
    const BYTES_MAX: usize = PEER_FRAME_BYTES_MAX;
    const TYPES: &'static [&'static str] = &["SuccessionNews", "Sealed"];
}
