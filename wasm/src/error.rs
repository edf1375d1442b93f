//! Errors as JavaScript sees them.

use serde::Serialize;
use serde_json::Value;
use std::fmt::Display;
use wasm_bindgen::JsValue;

/// What is thrown: the TypeScript face makes a `QuorateError` of it.
#[derive(Debug, Serialize)]
pub(crate) struct Failure {
    /// Stable, in snake_case.
    pub(crate) code: String,
    /// For people: what happened and what to do.
    pub(crate) message: String,
    /// Whether the same call may succeed later.
    pub(crate) retryable: bool,
    /// Facts by name.
    pub(crate) details: Value,
}

impl Failure {
    pub(crate) fn new(code: &str, message: impl Display) -> Self {
        Self { code: code.to_owned(), message: message.to_string(), retryable: false, details: Value::Null }
    }

    /// The caller gave something that cannot be used.
    pub(crate) fn argument(name: &str, problem: impl Display) -> Self {
        Self::new("invalid_argument", format!("{name}: {problem}"))
    }

    #[cfg(feature = "wallet")]
    pub(crate) fn retryable(mut self, retryable: bool) -> Self {
        self.retryable = retryable;
        self
    }

    #[cfg(feature = "wallet")]
    pub(crate) fn with(mut self, details: Value) -> Self {
        self.details = details;
        self
    }
}

impl From<Failure> for JsValue {
    fn from(failure: Failure) -> Self {
        crate::js::to_js(&failure)
    }
}

#[cfg(feature = "wallet")]
mod wallet {
    use super::Failure;
    use quorate::{client::ClientError, wallet::WalletError};
    use serde_json::json;

    impl From<WalletError> for Failure {
        fn from(error: WalletError) -> Self {
            let details = match &error {
                WalletError::InsufficientFunds { needed, spendable, incoming } => json!({
                    "neededSat": needed.to_sat(), "spendableSat": spendable.to_sat(), "incomingSat": incoming.to_sat(),
                }),
                WalletError::Dust { amount, limit } => {
                    json!({ "amountSat": amount.to_sat(), "limitSat": limit.to_sat() })
                }
                WalletError::FeeRate { sat_per_vb, min, max } => {
                    json!({ "satPerVb": sat_per_vb, "min": min, "max": max })
                }
                WalletError::Network { address, expected } => {
                    json!({ "address": address, "expected": expected.to_string() })
                }
                _ => serde_json::Value::Null,
            };
            let retry = matches!(error, WalletError::NotCertified | WalletError::Coin { .. });
            Self::new(error.code(), error).retryable(retry).with(details)
        }
    }

    impl From<ClientError> for Failure {
        fn from(error: ClientError) -> Self {
            let (code, retry) = (error.code(), error.is_retryable());
            match error {
                ClientError::Wallet(error) => error.into(),
                ClientError::Rejected { ref rejects, .. } => {
                    let rejects = serde_json::to_value(rejects).unwrap_or_default();
                    Self::new(code, &error).retryable(retry).with(json!({ "rejects": rejects }))
                }
                other => Self::new(code, other).retryable(retry),
            }
        }
    }
}
