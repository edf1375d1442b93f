//! Instant finality for Bitcoin wallets that keep their keys.

pub mod account;
pub mod chain;
#[cfg(any(feature = "native", all(feature = "web", target_arch = "wasm32")))]
pub mod client;
mod consensus_hex;
mod curve;
pub mod digest;
pub mod evidence;
pub mod federation;
pub mod finality;
pub mod frost;
mod ids;
pub mod log;
pub mod proposal;
pub mod release;
pub mod seal;
pub mod session;
pub mod standard;
mod tagged;
#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub mod testing;
pub mod vote;
pub mod wallet;
pub mod wire;

pub use federation::{Federation, FederationDocument, FederationError, Quorum};
pub use ids::{
    AccountId, Epoch, FederationId, InputsHash, NodeId, NonceCommitment, PackageDigest, ParseIdError, Round,
    SignatureShare,
};
