//! Errors as JavaScript sees them.

use crate::plain::to_js;
use serde::Serialize;
use std::fmt::Display;
use wasm_bindgen::JsValue;

/// What is thrown: the TypeScript face makes a `QuorateError` of it.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Stable, in snake_case.
    pub(crate) code: &'static str,
    /// For people: what happened and what to do.
    pub(crate) message: String,
    /// Whether the same call may succeed later.
    pub(crate) retryable: bool,
    /// Facts by name.
    pub(crate) details: JsValue,
}

impl Failure {
    pub(crate) fn new(code: &'static str, message: impl Display) -> Self {
        Self { code, message: message.to_string(), retryable: false, details: JsValue::UNDEFINED }
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
    pub(crate) fn with(mut self, details: &impl Serialize) -> Self {
        self.details = to_js(details);
        self
    }
}

impl From<Failure> for JsValue {
    fn from(failure: Failure) -> Self {
        #[derive(Serialize)]
        struct View<'a> {
            code: &'a str,
            message: &'a str,
            retryable: bool,
            #[serde(with = "serde_wasm_bindgen::preserve")]
            details: JsValue,
        }
        let Failure { code, message, retryable, details } = failure;
        to_js(&View { code, message: &message, retryable, details })
    }
}

#[cfg(feature = "wallet")]
mod wallet {
    use super::Failure;
    use quorate::wire::NodeReject;
    use quorate::{
        client::ClientError,
        wallet::{WalletError, WordsError},
    };
    use serde::Serialize;

    #[derive(Serialize)]
    #[serde(untagged, rename_all_fields = "camelCase")]
    enum Details<'a> {
        Funds { needed_sat: u64, spendable_sat: u64, incoming_sat: u64 },
        Busy { needed_sat: u64, spendable_sat: u64, busy_sat: u64 },
        Words { positions: Vec<u32> },
        Paid { txid: String },
        Dust { amount_sat: u64, limit_sat: u64 },
        FeeRate { sat_per_vb: u64, min: u64, max: u64 },
        Unreasonable { sat_per_vb: u64, fee_sat: u64, amount_sat: u64, limit_sat: u64 },
        Network { address: &'a str, expected: String },
        Rejected { rejects: &'a [NodeReject] },
    }

    impl From<WalletError> for Failure {
        fn from(error: WalletError) -> Self {
            let details = match &error {
                WalletError::InsufficientFunds { needed, spendable, incoming } => Some(Details::Funds {
                    needed_sat: needed.to_sat(),
                    spendable_sat: spendable.to_sat(),
                    incoming_sat: incoming.to_sat(),
                }),
                WalletError::CoinsBusy { needed, spendable, busy } => Some(Details::Busy {
                    needed_sat: needed.to_sat(),
                    spendable_sat: spendable.to_sat(),
                    busy_sat: busy.to_sat(),
                }),
                WalletError::Words(WordsError::Unknown { positions }) => {
                    // There are at most 24.
                    let positions = positions.iter().filter_map(|one| u32::try_from(*one).ok());
                    Some(Details::Words { positions: positions.collect() })
                }
                WalletError::KeyReused { txid } => Some(Details::Paid { txid: txid.to_string() }),
                WalletError::Dust { amount, limit } => {
                    Some(Details::Dust { amount_sat: amount.to_sat(), limit_sat: limit.to_sat() })
                }
                WalletError::FeeRate { sat_per_vb, min, max } => {
                    Some(Details::FeeRate { sat_per_vb: *sat_per_vb, min: *min, max: *max })
                }
                WalletError::FeeUnreasonable { sat_per_vb, fee, amount, limit } => {
                    Some(Details::Unreasonable {
                        sat_per_vb: *sat_per_vb,
                        fee_sat: fee.to_sat(),
                        amount_sat: amount.to_sat(),
                        limit_sat: limit.to_sat(),
                    })
                }
                WalletError::Network { address, expected } => {
                    Some(Details::Network { address, expected: expected.to_string() })
                }
                _ => None,
            };
            let retry = error.is_retryable();
            Self::new(error.code(), &error).retryable(retry).with(&details)
        }
    }

    impl From<ClientError> for Failure {
        fn from(error: ClientError) -> Self {
            let (code, retry) = (error.code(), error.is_retryable());
            match error {
                ClientError::Wallet(error) => error.into(),
                ClientError::Rejected { ref rejects, .. } => {
                    Self::new(code, &error).retryable(retry).with(&Details::Rejected { rejects })
                }
                other => Self::new(code, other).retryable(retry),
            }
        }
    }
}
