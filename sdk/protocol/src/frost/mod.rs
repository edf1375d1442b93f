//! FROST co-signing with an additive account key, on the unmodified `frost-secp256k1-tr`.
//!
//! The federation shares `s_fed = f(0)` by a polynomial of degree q - 1; node i holds `s_i = f(i)`. An account's key is
//! `P = P_wallet + P_fed`. The wallet takes part as one more FROST party with the fixed identifier
//! [`WALLET_IDENTIFIER`], W. For a signer set S of exactly q nodes:
//!
//! * node i signs with `s_i * (W - i) / W`, a constant of the node. The Lagrange coefficient over S and W is
//!   `l'_i = l_i * W / (W - i)`, so the nodes' parts still add up to `s_fed`;
//! * the wallet signs with `s_wallet / l'_W`, so its part adds up to `s_wallet`;
//! * a public tweak t (BIP32 child, Taproot) is added to every one of these shares, and since all `l'` sum to 1, t is added
//!   once to the whole.
//!
//! Verifying shares scale in the same way, so the library's share verification and its culprits keep working, and
//! `min_signers` is q + 1. `docs/additive-key.md` has the security argument; RFC 9591 is the signing protocol.

pub mod dkg;
mod node;
mod repair;
mod session;
mod wallet;

pub use node::{NodeNonces, NodeShare, TrialError, aggregate_trial};
pub use repair::{RepairHelper, RepairPart, RepairSession, finish_repair};
pub use session::{AggregateError, Culprit, NodeCommitments, Session, SigningError, WalletSignature};
pub use wallet::{WalletSecret, wallet_sign};

use crate::{NodeId, Quorum, federation::EpochKey};
use bitcoin::secp256k1::PublicKey;
use frost_secp256k1_tr as tr;
use k256::{
    ProjectivePoint, Scalar,
    elliptic_curve::{
        PrimeField as _,
        sec1::{FromEncodedPoint as _, ToEncodedPoint as _},
    },
};
use std::collections::BTreeMap;

/// The wallet's FROST identifier: above every node's, and the same in every federation.
pub const WALLET_IDENTIFIER: u16 = u16::MAX;

fn identifier(value: u16) -> Option<tr::Identifier> {
    tr::Identifier::try_from(value).ok()
}

fn scalar_of(value: u16) -> Scalar {
    Scalar::from(u64::from(value))
}

/// `(W - i) / W`, the constant by which node i's share is scaled; `None` for W itself and for 0.
fn weight(node: NodeId) -> Option<Scalar> {
    if node.0 == 0 || node.0 == WALLET_IDENTIFIER {
        return None;
    }
    let wallet = scalar_of(WALLET_IDENTIFIER);
    Option::<Scalar>::from(wallet.invert()).map(|inverse| (wallet - scalar_of(node.0)) * inverse)
}

/// `1 / l'_W` for the signer set `nodes` and W: the product of `(i - W) / i`.
fn inverse_wallet_coefficient(mut nodes: impl Iterator<Item = NodeId>) -> Option<Scalar> {
    let wallet = scalar_of(WALLET_IDENTIFIER);
    nodes.try_fold(Scalar::ONE, |product, node| {
        let value = scalar_of(node.0);
        Option::<Scalar>::from(value.invert()).map(|inverse| product * (value - wallet) * inverse)
    })
}

/// A key as the library wants it.
fn public_package(key: &EpochKey, quorum: Quorum) -> Option<tr::keys::PublicKeyPackage> {
    let verifying = key
        .verifying_shares
        .iter()
        .map(|(node, share)| {
            let share = tr::keys::VerifyingShare::deserialize(&share.serialize()).ok()?;
            Some((identifier(node.0)?, share))
        })
        .collect::<Option<_>>()?;
    let group = tr::VerifyingKey::deserialize(&key.group_key.serialize()).ok()?;
    Some(tr::keys::PublicKeyPackage::new(verifying, group, Some(quorum.votes())))
}

pub(crate) fn weighted_shares(
    shares: &BTreeMap<NodeId, PublicKey>,
) -> Option<BTreeMap<NodeId, ProjectivePoint>> {
    shares.iter().map(|(node, share)| Some((*node, point(share)? * weight(*node)?))).collect()
}

pub(crate) fn point(key: &PublicKey) -> Option<ProjectivePoint> {
    let encoded = k256::EncodedPoint::from_bytes(key.serialize()).ok()?;
    Option::from(ProjectivePoint::from_encoded_point(&encoded))
}

fn compressed(point: &ProjectivePoint) -> Vec<u8> {
    point.to_affine().to_encoded_point(true).as_bytes().to_vec()
}

fn parse_scalar(bytes: &[u8; 32]) -> Option<Scalar> {
    Scalar::from_repr((*bytes).into()).into()
}

#[cfg(test)]
mod tests;
