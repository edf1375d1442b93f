//! FROST co-signing with an additive account key, on the unmodified `frost-secp256k1-tr` (`shares.rs` says which part
//! of it is computed here).
//!
//! The federation shares `s_fed = f(0)` by a polynomial of degree q - 1; node i holds `s_i = f(i)`. An account's key is
//! `P = P_wallet + P_fed`. The wallet takes part as one more FROST party with the fixed identifier
//! [`WALLET_IDENTIFIER`], W. For a signer set S of exactly q nodes:
//!
//! * node i signs with `s_i * (W - i) / W`, a constant of the node. The Lagrange coefficient over S and W is
//!   `l'_i = l_i * W / (W - i)`, so the nodes' parts still add up to `s_fed`;
//! * the wallet signs with `s_wallet / l'_W`, so its part adds up to `s_wallet`;
//! * a public tweak t (BIP32 child, Taproot) is added to every one of these shares, and since all `l'` sum to 1, t is
//!   added once to the whole.
//!
//! Verifying shares scale in the same way, so the library's share verification and its culprits keep working, and
//! `min_signers` is q + 1. `docs/additive-key.md` has the security argument; RFC 9591 is the signing protocol.

pub mod dkg;
mod node;
mod repair;
mod session;
mod shares;
mod wallet;
pub(crate) mod weights;

pub use node::{NodeNonces, NodeShare, TrialError, aggregate_trial};
pub use repair::{RepairHelper, RepairPart, RepairSession, finish_repair};
pub use session::{AggregateError, Culprit, NodeCommitments, SigningError, SigningSession, WalletSignature};
pub use wallet::{WalletSecret, wallet_sign};
pub use weights::WALLET_IDENTIFIER;

use crate::{Quorum, federation::EpochKey};
use frost_secp256k1_tr as tr;
use weights::{compressed, identifier, inverse_wallet_coefficient, parse_scalar, point, weight};

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

#[cfg(test)]
mod tests;
