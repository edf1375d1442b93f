//! What wallets and nodes of a Quorate federation must agree on, byte for byte.
//!
//! Everything here is a value or a pure computation: no runtime, socket, clock or file. `quorate` (the wallet's SDK)
//! re-exports what its users need, so a wallet developer depends on that crate alone; nodes and bridges depend on
//! this one.

pub mod account;
mod checkpoint;
pub mod conflict;
mod consensus_hex;
pub mod curve;
pub mod digest;
pub mod evidence;
pub mod federation;
pub mod finality;
pub mod frost;
pub mod headers;
mod ids;
pub mod log_head;
pub mod proposal;
pub mod psbt;
pub mod relay_policy;
pub mod release;
pub mod seal;
mod tagged;
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod testing;
pub mod vote;
pub mod wire;

pub use federation::{Federation, FederationDocument, FederationError, Quorum};
pub use ids::{
    AccountId, Epoch, FederationId, NodeId, NonceCommitment, PackageDigest, ParseIdError, Round,
    SignatureShare, SpentHash, TargetHash, listed,
};
