//! The wallet's party: nonce, commitment and share in one call.
//!
//! The wallet makes its nonces *after* it has seen the nodes' commitments and uses them at once, so it has no nonce to
//! lose, to keep or to use twice: a reload or a second tab is harmless.

use super::{
    NodeCommitments, SigningError, SigningSession, WALLET_IDENTIFIER, WalletSignature,
    inverse_wallet_coefficient, shares::Nonces,
};
use crate::{Federation, NodeId, digest::IdentityKey, proposal::SpendPlan, vote::VoteTarget};
use bitcoin::secp256k1::SecretKey;
use k256::Scalar;
use rand_core::{CryptoRng, RngCore};
use std::{collections::BTreeMap, fmt};
use zeroize::{Zeroize as _, ZeroizeOnDrop};

/// The wallet's half of the account key.
#[derive(ZeroizeOnDrop)]
pub struct WalletSecret(Scalar);

impl WalletSecret {
    /// Takes the secret key that belongs to the account record's `wallet_key`.
    pub fn new(key: &SecretKey) -> Self {
        let mut bytes = key.secret_bytes();
        let scalar = super::parse_scalar(&bytes).expect("a secret key is below the group order");
        bytes.zeroize();
        Self(scalar)
    }
}

impl fmt::Debug for WalletSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WalletSecret(..)")
    }
}

/// Signs every input of `plan` with the wallet's half, for the given nodes' commitments.
///
/// # Errors
/// The commitments do not belong to this transaction and these rounds, or to exactly q nodes of the federation.
pub fn wallet_sign(
    federation: &Federation,
    plan: &SpendPlan,
    target: &VoteTarget,
    attempt: u32,
    nodes: &BTreeMap<NodeId, NodeCommitments>,
    secret: &WalletSecret,
    authorisation: &IdentityKey,
    rng: &mut (impl RngCore + CryptoRng),
) -> Result<WalletSignature, SigningError> {
    let coefficient = inverse_wallet_coefficient(nodes.keys().copied()).ok_or(SigningError::Key)?;
    let mut share = secret.0 * coefficient;
    let mut nonces = Vec::with_capacity(plan.inputs.len());
    let mut commitments = Vec::with_capacity(plan.inputs.len());
    for _ in &plan.inputs {
        let (secret, public) = Nonces::generate(&share, rng).ok_or(SigningError::Key)?;
        nonces.push(secret);
        commitments.push(public);
    }
    let session = SigningSession::new(federation, plan, target, attempt, nodes, &commitments)?;
    let signed = session.inputs().iter().zip(&nonces);
    let signed = signed.map(|(input, nonces)| input.sign(WALLET_IDENTIFIER, &share, nonces));
    let shares = signed.collect::<Option<Vec<_>>>();
    share.zeroize();
    let shares = shares.ok_or(SigningError::Key)?;
    let signature = session.sign_shares(federation, authorisation, &shares);
    Ok(WalletSignature { commitments, shares, signature })
}
