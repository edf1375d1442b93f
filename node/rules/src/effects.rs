//! What one part of the machine wants of another. Parts do not call each other; the machine carries effects out, in
//! order.

use bitcoin::{OutPoint, Txid};
use quorate_protocol::{
    Round,
    finality::FinalityProof,
    vote::SignedVote,
    wire::{Cancellation, TransactionStatus},
};

/// What one part of the machine has to tell another.
#[derive(Debug)]
pub(crate) enum Effect {
    /// An outpoint's round has to be left.
    Release { outpoint: OutPoint, round: Round, reason: Box<Reason> },
    /// The rounds of some outpoints are over.
    Settled(Vec<OutPoint>),
    /// What holds an outpoint may be void by what this node has forgotten.
    Bound(OutPoint),
    /// A transaction has become final here.
    Final { txid: Txid, inputs: Vec<OutPoint>, status: TransactionStatus },
    /// This node completed a transaction; everybody has to hear of it.
    Announce(Box<FinalityProof>),
}

/// Why a release is asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reason {
    pub(crate) rejects: Vec<SignedVote>,
    pub(crate) cancel: Option<Cancellation>,
}
