//! Instant finality for Bitcoin wallets that keep their keys.

#[cfg(any(feature = "native", all(feature = "web", target_arch = "wasm32")))]
pub mod client;
pub mod recovery;
pub mod session;
pub mod wallet;

#[cfg(any(test, feature = "testing"))]
#[doc(hidden)]
pub use quorate_protocol::testing;
pub use quorate_protocol::{
    AccountId, Epoch, Federation, FederationDocument, FederationError, FederationId, NodeId, NonceCommitment,
    PackageDigest, ParseIdError, Quorum, Round, SignatureShare, account, conflict, digest, evidence,
    federation, finality, frost, headers, log_head, proposal, psbt, relay_policy, release, seal, vote, wire,
};
