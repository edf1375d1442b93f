//! What the rules of a node answer: votes, commits, releases, and what goes with them.

use super::Request;
use crate::{
    NodeId, Round, SignatureShare,
    account::{AccountCertificate, AccountRecord},
    finality::FinalityProof,
    frost::{NodeCommitments, WalletSignature},
    log_head::SignedHead,
    proposal::Proposal,
    release::{ReleaseCertificate, SignedCancel, SignedPromise},
    tagged::tagged,
    vote::{ApprovalCertificate, SignedVote},
    wire::{Message, RejectReason, limits::PEER_FRAME_BYTES_MAX},
};
use bitcoin::{OutPoint, secp256k1::schnorr};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// An owner's cancellation with what is needed to check it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cancellation {
    /// The signed wish.
    pub cancel: SignedCancel,
    /// The payment.
    pub proposal: Proposal,
    /// The paying account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub account: Option<AccountCertificate>,
}

/// Requests to the rules of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub enum VotingRequest {
    /// Phase 1: vote on a proposal. Asked again, the same vote comes again, with fresh nonce commitments.
    VoteRequest {
        /// The proposal.
        proposal: Proposal,
        /// The paying account, for a joint proposal.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        account: Option<AccountCertificate>,
        /// The approval certificate, if there is one: a node that locked an input for another transaction may then
        /// still sign.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        certificate: Option<ApprovalCertificate>,
        /// Why the inputs are in the rounds they are in, for a receiver that is behind.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        releases: Vec<ReleaseCertificate>,
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
        /// Why the inputs are in the rounds they are in.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        releases: Vec<ReleaseCertificate>,
        /// How far the coordinator's log has come, its own vote included (V9).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        head: Option<SignedHead>,
    },
    /// Promise to leave a round of an outpoint (V5). One of the reasons has to hold at the receiver, or its own timer.
    ReleaseRequest {
        /// The outpoint.
        outpoint: OutPoint,
        /// The round to leave.
        round: Round,
        /// Reason: n - q + 1 rejects of the transaction that the receiver locked the outpoint for.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        rejects: Vec<SignedVote>,
        /// Reason: the owner cancelled that transaction.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        cancel: Option<Box<Cancellation>>,
        /// Reason: n - q + 1 nodes have promised already, at least one of them honest.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        promises: Vec<SignedPromise>,
        /// Why the outpoint is in this round, for a receiver that is behind.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        previous: Option<ReleaseCertificate>,
    },
    /// Rounds that are over.
    Released {
        /// One certificate per outpoint.
        releases: Vec<ReleaseCertificate>,
    },
    /// I am here; this is how far my log has come. How far was it when you last heard of it (V9)?
    Heartbeat {
        /// The sender's.
        head: SignedHead,
        /// Height of the sender's tip. What f + 1 say shows a node that its backend is behind.
        #[serde(default)]
        height: u32,
    },
    /// A transaction became final.
    FinalTransaction {
        /// The proof.
        proof: FinalityProof,
        /// How far the sender's log has come, its own commit included, if it coordinated the payment (V9).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        head: Option<SignedHead>,
    },
    /// Accept an account.
    AccountRequest {
        /// The record.
        record: AccountRecord,
    },
}
tagged!("type": VotingRequest);

impl Message for VotingRequest {
    const BYTES_MAX: usize = PEER_FRAME_BYTES_MAX;
    const TYPES: &'static [&'static str] = &[
        "VoteRequest",
        "CommitRequest",
        "ReleaseRequest",
        "Released",
        "Heartbeat",
        "FinalTransaction",
        "AccountRequest",
    ];
}

impl Request for VotingRequest {
    type Reply = VotingReply;
}

/// What a node releases in phase 2.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", rename_all = "snake_case")]
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
tagged!("custody": CommitReply);

/// Answers of the rules of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub enum VotingReply {
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
        /// Releases that the asker may have missed.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        releases: Vec<ReleaseCertificate>,
        /// Proof of this or of a conflicting transaction, if the voter has one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        proof: Option<Box<FinalityProof>>,
        /// How far the voter's log has come, this vote included (V9).
        #[serde(default, skip_serializing_if = "Option::is_none")]
        head: Option<SignedHead>,
    },
    /// To `ReleaseRequest`.
    ReleaseResponse {
        /// The promise, if one of the reasons holds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        promise: Option<SignedPromise>,
        /// The certificate that the promise names.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        committed: Option<ApprovalCertificate>,
        /// The latest release, if the node has left the round already.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        release: Option<ReleaseCertificate>,
        /// Proof of a final transaction that spends the outpoint.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        proof: Option<Box<FinalityProof>>,
    },
    /// To `Heartbeat`.
    HeartbeatResponse {
        /// The answering node's log.
        head: SignedHead,
        /// The furthest that it knows of the asking node's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        known: Option<SignedHead>,
        /// Height of the answering node's tip.
        #[serde(default)]
        height: u32,
    },
    /// To `CommitRequest`.
    #[serde(deserialize_with = "Deserialize::deserialize")]
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
    /// To `FinalTransaction` and `Released`.
    Done,
}
tagged!("type": VotingReply);

impl Message for VotingReply {
    const BYTES_MAX: usize = PEER_FRAME_BYTES_MAX;
    const TYPES: &'static [&'static str] = &[
        "VoteResponse",
        "ReleaseResponse",
        "HeartbeatResponse",
        "CommitResponse",
        "AccountResponse",
        "Done",
    ];
}
