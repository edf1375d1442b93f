//! A node's party: its share of the federation key and its nonces.
//!
//! [`NodeNonces`] is consumed by value, is not `Clone` and cannot be serialised, so that using a nonce twice does not
//! compile. (The library's own type is borrowed by its `sign`, and accepts reuse.)

use super::{SigningError, SigningSession, identifier, session::parse_commitment, shares::Nonces, weight};
use crate::{NodeId, NonceCommitment, Quorum, SignatureShare, federation::EpochKey};
use bitcoin::secp256k1::{PublicKey, schnorr};
use frost_secp256k1_tr as tr;
use k256::{ProjectivePoint, Scalar};
use rand_core::{CryptoRng, RngCore};
use std::{collections::BTreeMap, fmt};
use zeroize::{ZeroizeOnDrop, Zeroizing};

/// A node's share of the federation key, and the same share scaled for joint accounts.
#[derive(ZeroizeOnDrop)]
pub struct NodeShare {
    #[zeroize(skip)]
    node: NodeId,
    share: Scalar,
    weighted: Scalar,
}

impl NodeShare {
    /// Takes a share as [`NodeShare::to_bytes`] gave it; `None` if the bytes are no scalar.
    pub fn from_bytes(node: NodeId, bytes: &[u8; 32]) -> Option<Self> {
        let share = super::parse_scalar(bytes)?;
        Some(Self { node, share, weighted: share * weight(node)? })
    }

    /// One more of it. Not `Clone`, so that no copy is made by accident.
    #[must_use]
    pub fn duplicate(&self) -> Self {
        Self { node: self.node, share: self.share, weighted: self.weighted }
    }

    /// Whose it is.
    pub fn node(&self) -> NodeId {
        self.node
    }

    /// Whether this is the share that a federation's document shows.
    pub fn fits(&self, key: &EpochKey) -> bool {
        let public = super::compressed(&(ProjectivePoint::GENERATOR * self.share));
        key.verifying_shares.get(&self.node).is_some_and(|known| known.serialize().as_slice() == public)
    }

    /// The share as 32 big-endian bytes, for encrypted storage.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.share.to_bytes().into())
    }

    /// Fresh nonces for one input of a joint account, with their public commitment.
    pub fn commit(&self, rng: &mut (impl RngCore + CryptoRng)) -> Option<(NodeNonces, NonceCommitment)> {
        let (nonces, commitment) = Nonces::generate(&self.weighted, rng)?;
        Some((NodeNonces { nonces, commitment }, commitment))
    }

    /// Computes the shares for all inputs of a session. The nonces are gone afterwards, whatever the outcome.
    ///
    /// # Errors
    /// The nonces are not those that the session names for this node.
    pub fn sign(
        &self,
        session: &SigningSession,
        nonces: Vec<NodeNonces>,
    ) -> Result<Vec<SignatureShare>, SigningError> {
        if nonces.len() != session.inputs().len() {
            return Err(SigningError::Nonce);
        }
        session
            .inputs()
            .iter()
            .zip(nonces)
            .map(|(input, nonces)| {
                if input.commitment(self.node.0) != Some(nonces.commitment) {
                    return Err(SigningError::Nonce);
                }
                input.sign(self.node.0, &self.weighted, &nonces.nonces).ok_or(SigningError::Nonce)
            })
            .collect()
    }

    /// This node's share of the trial signature over a new federation key.
    ///
    /// # Errors
    /// The commitments do not name these nonces for this node, or are not all points.
    pub fn sign_trial(
        &self,
        group_key: &PublicKey,
        quorum: Quorum,
        message: &[u8; 32],
        commitments: &BTreeMap<NodeId, NonceCommitment>,
        nonces: NodeNonces,
    ) -> Result<SignatureShare, SigningError> {
        if commitments.get(&self.node) != Some(&nonces.commitment) {
            return Err(SigningError::Nonce);
        }
        let package = trial_package(message, commitments).ok_or(SigningError::Nonce)?;
        let key = self.key_package(group_key, quorum).ok_or(SigningError::Key)?;
        let share = tr::round2::sign(&package, &nonces.nonces.for_library(), &key);
        let share = share.map_err(|_| SigningError::Nonce)?;
        share.serialize().try_into().map(SignatureShare).map_err(|_| SigningError::Nonce)
    }
}

impl NodeShare {
    fn key_package(&self, group_key: &PublicKey, quorum: Quorum) -> Option<tr::keys::KeyPackage> {
        let public = super::compressed(&(ProjectivePoint::GENERATOR * self.share));
        Some(tr::keys::KeyPackage::new(
            identifier(self.node.0)?,
            tr::keys::SigningShare::deserialize(&self.share.to_bytes()).ok()?,
            tr::keys::VerifyingShare::deserialize(&public).ok()?,
            tr::VerifyingKey::deserialize(&group_key.serialize()).ok()?,
            quorum.votes(),
        ))
    }
}

impl fmt::Debug for NodeShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeShare({})", self.node)
    }
}

/// One input's secret nonces; used once, by value.
pub struct NodeNonces {
    nonces: Nonces,
    commitment: NonceCommitment,
}

impl NodeNonces {
    /// The public commitment that names these nonces.
    pub fn commitment(&self) -> &NonceCommitment {
        &self.commitment
    }
}

impl fmt::Debug for NodeNonces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeNonces({})", self.commitment)
    }
}

fn trial_package(
    message: &[u8; 32],
    commitments: &BTreeMap<NodeId, NonceCommitment>,
) -> Option<tr::SigningPackage> {
    let parsed = commitments
        .iter()
        .map(|(node, commitment)| Some((identifier(node.0)?, parse_commitment(commitment)?)))
        .collect::<Option<_>>()?;
    Some(tr::SigningPackage::new(parsed, message))
}

/// Adds the nodes' trial shares up to a signature under the federation key.
///
/// # Errors
/// Names the nodes whose share is not valid.
pub fn aggregate_trial(
    key: &EpochKey,
    quorum: Quorum,
    message: &[u8; 32],
    commitments: &BTreeMap<NodeId, NonceCommitment>,
    shares: &BTreeMap<NodeId, SignatureShare>,
) -> Result<schnorr::Signature, TrialError> {
    let malformed = || TrialError { culprits: Vec::new() };
    let package = trial_package(message, commitments).ok_or_else(malformed)?;
    let shares = shares
        .iter()
        .map(|(node, share)| {
            let share = tr::round2::SignatureShare::deserialize(&share.0).ok()?;
            Some((identifier(node.0)?, share))
        })
        .collect::<Option<_>>()
        .ok_or_else(malformed)?;
    let public = super::public_package(key, quorum).ok_or_else(malformed)?;
    let all = frost_core::CheaterDetection::AllCheaters;
    let signature = frost_core::aggregate_custom(&package, &shares, &public, all).map_err(|error| {
        let named = |id| key.verifying_shares.keys().copied().find(|node| identifier(node.0) == Some(id));
        TrialError { culprits: error.culprits().into_iter().filter_map(named).collect() }
    })?;
    let bytes = signature.serialize().map_err(|_| malformed())?;
    schnorr::Signature::from_slice(&bytes).map_err(|_| malformed())
}

/// The trial signature failed: these nodes hold a share that does not fit the certified key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the trial signature failed; bad shares from nodes {}", crate::ids::listed(culprits))]
pub struct TrialError {
    /// The nodes.
    pub culprits: Vec<NodeId>,
}
