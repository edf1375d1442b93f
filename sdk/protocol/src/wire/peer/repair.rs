//! Repair of a lost share by a quorum of other nodes, none of which learns it.

use super::Request;
use crate::{
    frost::{RepairPart, RepairSession},
    tagged::tagged,
    wire::{Message, limits::PEER_FRAME_BYTES_MAX},
};
use serde::{Deserialize, Serialize};

/// Requests to a helper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub enum RepairRequest {
    /// Help to repair a share. Only the one who lost it asks; a helper then answers the other helpers.
    RepairOpen {
        /// Who helps whom.
        session: RepairSession,
    },
    /// From helper to helper: your piece for me.
    RepairPiece {
        /// The session.
        session: RepairSession,
    },
    /// From the one who lost the share: the sum of the pieces that you were given.
    RepairSum {
        /// The session.
        session: RepairSession,
    },
}
tagged!("type": RepairRequest);

impl Message for RepairRequest {
    const BYTES_MAX: usize = PEER_FRAME_BYTES_MAX;
    const TYPES: &'static [&'static str] = &["RepairOpen", "RepairPiece", "RepairSum"];
}

impl Request for RepairRequest {
    type Reply = RepairReply;
}

/// Answers of a helper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub enum RepairReply {
    /// To `RepairPiece` and `RepairSum`.
    RepairPart {
        /// The piece or sum, for the asker only.
        part: RepairPart,
    },
    /// To `RepairOpen`.
    Done,
}
tagged!("type": RepairReply);

impl Message for RepairReply {
    const BYTES_MAX: usize = PEER_FRAME_BYTES_MAX;
    const TYPES: &'static [&'static str] = &["RepairPart", "Done"];
}
