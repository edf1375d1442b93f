//! Generation and refresh of an epoch's key, and the trial signature with every share of it.

use super::Request;
use crate::{
    NodeId, NonceCommitment, SignatureShare,
    frost::dkg::{Bundle, RunId},
    tagged::tagged,
    wire::{Message, limits::PEER_FRAME_BYTES_MAX},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Requests to a node that takes part in a key generation or refresh.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub enum KeygenRequest {
    /// Key generation or refresh: everything that you have to say to me so far.
    DkgPull {
        /// Of which run.
        run: RunId,
    },
    /// Trial signature: a fresh nonce commitment.
    TrialCommit {
        /// Of which run.
        run: RunId,
    },
    /// Trial signature: your share for these commitments.
    TrialSign {
        /// Of which run.
        run: RunId,
        /// Of all nodes.
        commitments: BTreeMap<NodeId, NonceCommitment>,
    },
}
tagged!("type": KeygenRequest);

impl Message for KeygenRequest {
    const BYTES_MAX: usize = PEER_FRAME_BYTES_MAX;
    const TYPES: &'static [&'static str] = &["DkgPull", "TrialCommit", "TrialSign"];
}

impl KeygenRequest {
    /// Which run it is about.
    pub fn run(&self) -> RunId {
        match self {
            Self::DkgPull { run } | Self::TrialCommit { run } | Self::TrialSign { run, .. } => *run,
        }
    }
}

impl Request for KeygenRequest {
    type Reply = KeygenReply;
}

/// Answers of a node that takes part in a key generation or refresh.
#[cfg_attr(
    target_pointer_width = "64",
    expect(clippy::large_enum_variant, reason = "one is made per frame, and taken apart at once")
)]
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub enum KeygenReply {
    /// To `DkgPull`.
    #[serde(deserialize_with = "Deserialize::deserialize")]
    DkgBundle {
        /// Everything so far.
        #[serde(flatten)]
        bundle: Bundle,
    },
    /// To `TrialCommit`.
    TrialCommitment {
        /// The commitment.
        commitment: NonceCommitment,
    },
    /// To `TrialSign`.
    TrialShare {
        /// The share.
        share: SignatureShare,
    },
}
tagged!("type": KeygenReply);

impl Message for KeygenReply {
    const BYTES_MAX: usize = PEER_FRAME_BYTES_MAX;
    const TYPES: &'static [&'static str] = &["DkgBundle", "TrialCommitment", "TrialShare"];
}
