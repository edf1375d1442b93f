//! Messages between nodes. Each request is a QUIC stream of its own; the answer comes back on it.
//!
//! A receiver takes a request only from a connection whose certificate is that of the roster member it concerns (rule V8).

use super::{Message, RejectReason, WireError};
use crate::{
    Epoch, NodeId, NonceCommitment, Round, SignatureShare,
    account::{AccountCertificate, AccountRecord},
    federation::Succession,
    finality::FinalityProof,
    frost::{
        NodeCommitments, RepairPart, RepairSession, WalletSignature,
        dkg::{Bundle, RunId},
    },
    log_head::SignedHead,
    proposal::Proposal,
    release::{ReleaseCertificate, SignedCancel, SignedPromise},
    seal::{Seal, SealedTransaction},
    tagged::tagged,
    vote::{ApprovalCertificate, SignedVote},
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

/// Requests from node to node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub enum PeerRequest {
    /// Phase 1: vote on a proposal. Asked again, the same vote comes again, with fresh nonce commitments.
    VoteRequest {
        /// The proposal.
        proposal: Proposal,
        /// The paying account, for a joint proposal.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        account: Option<AccountCertificate>,
        /// The approval certificate, if there is one: a node that locked an input for another transaction may then still sign.
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
tagged!("type": PeerRequest);

impl Message for PeerRequest {
    const BYTES_MAX: usize = super::limits::PEER_FRAME_BYTES_MAX;
    const TYPES: &'static [&'static str] = &[
        "VoteRequest",
        "CommitRequest",
        "ReleaseRequest",
        "Released",
        "Heartbeat",
        "FinalTransaction",
        "AccountRequest",
        "DkgPull",
        "TrialCommit",
        "TrialSign",
        "SuccessionPull",
        "SealRequest",
        "RepairOpen",
        "RepairPiece",
        "RepairSum",
    ];
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

/// Answers from node to node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
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
    /// To `RepairPiece` and `RepairSum`.
    RepairPart {
        /// The piece or sum, for the asker only.
        part: RepairPart,
    },
    /// To `FinalTransaction`, `Released` and `RepairOpen`.
    Done,
    /// A refusal.
    #[serde(deserialize_with = "Deserialize::deserialize")]
    Error {
        /// Why.
        #[serde(flatten)]
        error: WireError,
    },
}
tagged!("type": PeerReply);

impl Message for PeerReply {
    const BYTES_MAX: usize = super::limits::PEER_FRAME_BYTES_MAX;
    const TYPES: &'static [&'static str] = &[
        "VoteResponse",
        "CommitResponse",
        "ReleaseResponse",
        "HeartbeatResponse",
        "AccountResponse",
        "DkgBundle",
        "TrialCommitment",
        "TrialShare",
        "SuccessionNews",
        "Sealed",
        "RepairPart",
        "Done",
        "Error",
    ];
}
