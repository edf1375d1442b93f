//! The constants that scale the nodes' and the wallet's shares (see the module above), and conversions between curve
//! types.

use crate::NodeId;
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

pub(crate) fn identifier(value: u16) -> Option<tr::Identifier> {
    tr::Identifier::try_from(value).ok()
}

pub(crate) fn scalar_of(value: u16) -> Scalar {
    Scalar::from(u64::from(value))
}

/// `(W - i) / W`, the constant by which node i's share is scaled; `None` for W itself and for 0.
pub(crate) fn weight(node: NodeId) -> Option<Scalar> {
    if node.0 == 0 || node.0 == WALLET_IDENTIFIER {
        return None;
    }
    let wallet = scalar_of(WALLET_IDENTIFIER);
    Option::<Scalar>::from(wallet.invert()).map(|inverse| (wallet - scalar_of(node.0)) * inverse)
}

/// `1 / l'_W` for the signer set `nodes` and W: the product of `(i - W) / i`.
pub(crate) fn inverse_wallet_coefficient(mut nodes: impl Iterator<Item = NodeId>) -> Option<Scalar> {
    let wallet = scalar_of(WALLET_IDENTIFIER);
    nodes.try_fold(Scalar::ONE, |product, node| {
        let value = scalar_of(node.0);
        Option::<Scalar>::from(value.invert()).map(|inverse| product * (value - wallet) * inverse)
    })
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

pub(crate) fn compressed(point: &ProjectivePoint) -> Vec<u8> {
    point.to_affine().to_encoded_point(true).as_bytes().to_vec()
}

pub(crate) fn parse_scalar(bytes: &[u8; 32]) -> Option<Scalar> {
    Scalar::from_repr((*bytes).into()).into()
}
