//! Votes, approval certificates and commits: the statements of the two voting phases (design, section 5).
//!
//! # Why two certificates of one round never conflict
//!
//! An honest node signs at most one approval per outpoint and round (V2). A certificate has approvals of q distinct
//! nodes for exactly the rounds it names (V3, checked by [`ApprovalCertificate::verify`]). Two certificates of one
//! round that share an outpoint would have q + q - n >= f + 1 nodes in common, one of them honest: a contradiction.
//!
//! A vote alone, and even a certificate, is not finality; see [`crate::finality`].

mod target;

pub use target::{Custody, InputRound, NOT_BEFORE_ITS_BLOCK, VoteTarget, spent_hash};

use crate::{
    Epoch, Federation, NodeId,
    digest::{Context, IdentityKey, Purpose},
    tagged,
};
use bitcoin::secp256k1::schnorr;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;

/// What a node says in phase 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It has locked all inputs for this transaction.
    Approve,
    /// It will not approve it in this round.
    Reject,
}

/// A node's signed vote.
///
/// Signed bytes: `tagged_hash("quorate/vote/2", magic(4) || federation(32) || epoch(u64) || target_hash(32) ||
/// verdict(1))`, integers big-endian, verdict 1 for approve and 0 for reject; for the hash see [`VoteTarget`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SignedVote {
    /// Who votes.
    pub node: NodeId,
    /// On what.
    #[serde(flatten)]
    pub target: VoteTarget,
    /// How.
    pub verdict: Verdict,
    /// BIP340 signature of the node's identity key.
    pub signature: schnorr::Signature,
}

impl<'de> Deserialize<'de> for SignedVote {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct Signed {
            node: NodeId,
            verdict: Verdict,
            signature: schnorr::Signature,
        }
        let (Signed { node, verdict, signature }, target) = tagged::both(deserializer)?;
        Ok(Self { node, target, verdict, signature })
    }
}

impl SignedVote {
    /// Signs a vote. The caller has recorded it durably, or does so before the vote leaves (V2).
    pub fn sign(
        context: &Context,
        node: NodeId,
        key: &IdentityKey,
        target: VoteTarget,
        verdict: Verdict,
    ) -> Self {
        let signature = key.sign(vote_digest(&target, context, verdict));
        Self { node, target, verdict, signature }
    }

    /// Whether the node it names signed it, in the epoch that the target's rounds belong to.
    pub fn verify(&self, federation: &Federation) -> bool {
        self.target.epoch().is_some_and(|epoch| {
            let digest = vote_digest(&self.target, &federation.context_of(epoch), self.verdict);
            federation.verify_in(epoch, self.node, digest, &self.signature)
        })
    }
}

fn vote_digest(target: &VoteTarget, context: &Context, verdict: Verdict) -> [u8; 32] {
    target.digest(Purpose::Vote, context).u8(u8::from(verdict == Verdict::Approve)).finish()
}

/// The approvals of at least q distinct nodes for one target.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ApprovalCertificate {
    /// The transaction and its inputs' rounds.
    #[serde(flatten)]
    pub target: VoteTarget,
    /// Signatures of approving nodes.
    pub approvals: BTreeMap<NodeId, schnorr::Signature>,
}

impl<'de> Deserialize<'de> for ApprovalCertificate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        struct By {
            approvals: BTreeMap<NodeId, schnorr::Signature>,
        }
        tagged::both(deserializer).map(|(By { approvals }, target)| Self { target, approvals })
    }
}

impl ApprovalCertificate {
    /// Checks that q distinct members of the target's epoch approved exactly this target.
    ///
    /// # Errors
    /// Too few approvals, or one that does not verify; its sender is at fault.
    pub fn verify(&self, federation: &Federation) -> Result<(), CertificateError> {
        let epoch = self.target.epoch().ok_or(CertificateError::Epochs)?;
        let digest = vote_digest(&self.target, &federation.context_of(epoch), Verdict::Approve);
        verify_all(federation, epoch, digest, &self.approvals)
    }
}

/// Signs the commit to a transaction of sole-custody coins. The caller records the commit durably first (V4).
pub fn sign_commit(context: &Context, key: &IdentityKey, target: &VoteTarget) -> schnorr::Signature {
    key.sign(target.digest(Purpose::Commit, context).finish())
}

/// Checks one node's commit signature.
pub fn verify_commit(
    federation: &Federation,
    node: NodeId,
    target: &VoteTarget,
    signature: &schnorr::Signature,
) -> bool {
    let digest = target.digest_in(Purpose::Commit, federation);
    digest.is_some_and(|(epoch, digest)| federation.verify_in(epoch, node, digest.finish(), signature))
}

/// Checks that q distinct members committed to exactly this target.
pub(crate) fn verify_commits(
    federation: &Federation,
    target: &VoteTarget,
    commits: &BTreeMap<NodeId, schnorr::Signature>,
) -> Result<(), CertificateError> {
    let (epoch, digest) = target.digest_in(Purpose::Commit, federation).ok_or(CertificateError::Epochs)?;
    verify_all(federation, epoch, digest.finish(), commits)
}

pub(crate) fn verify_all(
    federation: &Federation,
    epoch: Epoch,
    digest: [u8; 32],
    signatures: &BTreeMap<NodeId, schnorr::Signature>,
) -> Result<(), CertificateError> {
    let needed = federation.quorum().votes();
    if signatures.len() < usize::from(needed) {
        return Err(CertificateError::TooFew { needed, found: signatures.len() });
    }
    if epoch > federation.epoch() {
        return Err(CertificateError::Unknown { epoch });
    }
    let bad = |(node, signature): &(&NodeId, &schnorr::Signature)| {
        !federation.verify_in(epoch, **node, digest, signature)
    };
    match signatures.iter().find(bad) {
        Some((node, _)) => Err(CertificateError::Signature { node: *node }),
        None => Ok(()),
    }
}

/// Why a certificate does not hold. Its sender is at fault; another copy may be good.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// Its rounds are not all of one epoch.
    #[error("the certificate is not of one epoch")]
    Epochs,
    /// Not at fault, perhaps: get the latest federation document, and check again.
    #[error("the certificate is of epoch {}, which this federation document does not have", epoch.0)]
    Unknown {
        /// The epoch.
        epoch: Epoch,
    },
    /// Fewer signatures than the quorum.
    #[error("a certificate needs {needed} signatures and has {found}")]
    TooFew {
        /// q.
        needed: u16,
        /// Signatures given.
        found: usize,
    },
    /// A signature does not verify, or its node is no member.
    #[error("the signature of node {node} in the certificate is not valid")]
    Signature {
        /// Whose.
        node: NodeId,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Round, testing};
    use bitcoin::{OutPoint, Txid, hashes::Hash as _};

    fn target() -> VoteTarget {
        let outpoint = |vout| OutPoint { txid: Txid::all_zeros(), vout };
        VoteTarget::new(
            Txid::all_zeros(),
            testing::custody(),
            [(outpoint(1), Round(0)), (outpoint(0), Round(2))],
        )
    }

    fn certificate(world: &testing::World, nodes: std::ops::Range<u16>) -> ApprovalCertificate {
        let context = world.federation.context();
        let approvals = nodes.map(|node| {
            let key = &world.keys[usize::from(node) - 1];
            let vote = SignedVote::sign(context, NodeId(node), key, target(), Verdict::Approve);
            assert!(vote.verify(&world.federation));
            (NodeId(node), vote.signature)
        });
        ApprovalCertificate { target: target(), approvals: approvals.collect() }
    }

    #[test]
    fn the_layout_of_signed_bytes_is_pinned() {
        let context = Context {
            magic: [0xfa, 0xbf, 0xb5, 0xda],
            federation: crate::FederationId([1; 32]),
            epoch: Epoch(1),
        };
        assert_eq!(
            target().hash().to_string(),
            "f88ccc45c822ae8cfab05cf6595dd39f164d55cfe48f60b2cfa7ecc22852ea3f",
            "target"
        );
        assert_eq!(
            hex::encode(vote_digest(&target(), &context, Verdict::Approve)),
            "19ff2ee9e17ab4958a6b9458549b38ed0d0bb6ff2ea7eae9294b7d2f4bbf21d7",
            "vote"
        );
    }

    #[test]
    fn a_certificate_needs_q_valid_approvals_of_members() {
        let world = testing::federation(4);
        assert_eq!(certificate(&world, 1..4).verify(&world.federation), Ok(()));
        assert_eq!(
            certificate(&world, 1..3).verify(&world.federation),
            Err(CertificateError::TooFew { needed: 3, found: 2 })
        );
        let mut forged = certificate(&world, 1..4);
        let stolen = forged.approvals[&NodeId(1)];
        forged.approvals.insert(NodeId(4), stolen);
        assert_eq!(forged.verify(&world.federation), Err(CertificateError::Signature { node: NodeId(4) }));
        let mut stranger = certificate(&world, 1..3);
        stranger.approvals.insert(NodeId(9), stolen);
        assert!(stranger.verify(&world.federation).is_err());
    }

    #[test]
    fn a_vote_with_a_bad_signature_does_not_verify() {
        let world = testing::federation(4);
        let vote = SignedVote::sign(
            world.federation.context(),
            NodeId(1),
            &world.keys[0],
            target(),
            Verdict::Approve,
        );
        assert!(vote.verify(&world.federation));
        let turned = SignedVote { verdict: Verdict::Reject, ..vote.clone() };
        let blamed = SignedVote { node: NodeId(2), ..vote.clone() };
        let stranger = SignedVote { node: NodeId(5), ..vote };
        for forged in [turned, blamed, stranger] {
            assert!(!forged.verify(&world.federation));
        }
    }

    #[test]
    fn a_commit_is_of_one_node_and_one_target() {
        let world = testing::federation(4);
        let signature = sign_commit(world.federation.context(), &world.keys[0], &target());
        let verified =
            |node, target: &VoteTarget| verify_commit(&world.federation, NodeId(node), target, &signature);
        assert!(verified(1, &target()));
        assert!(!verified(2, &target()));
        let other =
            VoteTarget::new(Txid::from_byte_array([1; 32]), testing::custody(), target().inputs().clone());
        assert!(!verified(1, &other));
    }

    #[test]
    fn a_certificate_of_other_rounds_does_not_verify() {
        let world = testing::federation(4);
        let mut other = certificate(&world, 1..4);
        let rounds =
            target().inputs().clone().into_iter().map(|(outpoint, Round(r))| (outpoint, Round(r + 1)));
        other.target = VoteTarget::new(Txid::all_zeros(), testing::custody(), rounds);
        assert!(other.verify(&world.federation).is_err());
    }
}
