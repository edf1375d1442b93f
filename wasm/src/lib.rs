//! The SDK for JavaScript runtimes. `wasm/js` shapes it for people; nothing else should use this directly.
//!
//! Every method takes `&self` and hands its work to the client's task, so calls that overlap never meet a borrowed
//! object. What crosses the boundary is plain data: satoshis as `bigint`, unions with a `type`. Errors are objects
//! with `code`, `message`, `retryable` and `details`.
//!
//! Without the feature `wallet` only verification is left, for pages that check proofs and hold no keys.

#![cfg(target_arch = "wasm32")]

#[cfg(feature = "wallet")]
mod client_view;
#[cfg(feature = "wallet")]
mod engine;
mod error;
#[cfg(feature = "wallet")]
mod frost;
mod js;
#[cfg(feature = "wallet")]
mod options;
mod plain;
#[cfg(feature = "wallet")]
mod recover;
#[cfg(feature = "wallet")]
mod secrets;
#[cfg(feature = "wallet")]
mod store;
mod verify;

#[cfg(feature = "wallet")]
pub use engine::{Engine, fetch_federation};
#[cfg(feature = "wallet")]
pub use frost::{FrostGroup, FrostNonces, FrostPackage, FrostParty};
#[cfg(feature = "wallet")]
pub use recover::Recovery;
#[cfg(feature = "wallet")]
pub use secrets::{argon2id, check_words, generate_words, parse_destination};
pub use verify::{Federation, Headers};

use wasm_bindgen::prelude::wasm_bindgen;

/// Version of the SDK.
#[wasm_bindgen]
pub fn version() -> String {
    env!("CARGO_PKG_VERSION").to_owned()
}
