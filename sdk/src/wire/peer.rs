//! Messages between nodes. Each request is a QUIC stream of its own; the answer comes back on it.
//!
//! A receiver takes a request only from a connection whose certificate is that of the roster member it concerns (rule V8).

use super::{Message, RejectReason, WireError};
use crate::{
    NodeId, NonceCommitment, SignatureShare,
    account::{AccountCertificate, AccountRecord},
    finality::FinalityProof,
    frost::{NodeCommitments, WalletSignature, dkg::Bundle},
    proposal::Proposal,
    vote::{ApprovalCertificate, SignedVote},
};
use bitcoin::secp256k1::schnorr;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Requests from node to node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum PeerRequest {
    /// Phase 1: vote on a proposal. Asked again, the same vote comes again, with fresh nonce commitments.
    VoteRequest {
        /// The proposal.
        proposal: Proposal,
        /// The paying account, for a joint proposal.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        account: Option<AccountCertificate>,
    },
    /// Phase 2: commit to a certified transaction, and sign for a joint account.
    CommitRequest {
        /// The approval certificate.
        certificate: ApprovalCertificate,
        /// Attempt, from 1.
        attempt: u32,
        /// Commitments of the q signing nodes; empty for sole custody.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        nodes: BTreeMap<NodeId, NodeCommitments>,
        /// The wallet's part; absent for sole custody.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        wallet: Option<WalletSignature>,
    },
    /// A transaction became final.
    FinalTransaction {
        /// The proof.
        proof: FinalityProof,
    },
    /// Accept an account.
    AccountRequest {
        /// The record.
        record: AccountRecord,
    },
    /// Key generation: everything that you have to say to me so far.
    DkgPull,
    /// Trial signature: a fresh nonce commitment.
    TrialCommit,
    /// Trial signature: your share for these commitments.
    TrialSign {
        /// Of all nodes.
        commitments: BTreeMap<NodeId, NonceCommitment>,
    },
}

impl Message for PeerRequest {
    const TYPES: &'static [&'static str] = &[
        "VoteRequest",
        "CommitRequest",
        "FinalTransaction",
        "AccountRequest",
        "DkgPull",
        "TrialCommit",
        "TrialSign",
    ];
}

/// What a node releases in phase 2.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "custody", rename_all = "snake_case")]
pub enum CommitReply {
    /// Signature shares, one per input.
    Joint {
        /// The shares.
        shares: Vec<SignatureShare>,
        /// The node's signature over package and shares.
        signature: schnorr::Signature,
    },
    /// A commit signature.
    Sole {
        /// BIP340 over the commit.
        signature: schnorr::Signature,
    },
}

/// Answers from node to node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type")]
pub enum PeerReply {
    /// To `VoteRequest`.
    VoteResponse {
        /// The vote.
        vote: SignedVote,
        /// Why, for a reject.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<RejectReason>,
        /// Nonce commitments, for an approval of a joint account's payment.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        commitments: Option<NodeCommitments>,
    },
    /// To `CommitRequest`.
    CommitResponse {
        /// Shares or commit signature.
        #[serde(flatten)]
        commit: CommitReply,
    },
    /// To `AccountRequest`.
    AccountResponse {
        /// The acceptance.
        signature: schnorr::Signature,
    },
    /// To `DkgPull`.
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
    /// To `FinalTransaction`.
    Done,
    /// A refusal.
    Error {
        /// Why.
        #[serde(flatten)]
        error: WireError,
    },
}

impl Message for PeerReply {
    const TYPES: &'static [&'static str] = &[
        "VoteResponse",
        "CommitResponse",
        "AccountResponse",
        "DkgBundle",
        "TrialCommitment",
        "TrialShare",
        "Done",
        "Error",
    ];
}
