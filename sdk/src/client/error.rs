//! How calls end.

use super::StoreError;
use crate::{
    finality::{FinalityKind, FinalityProof},
    session::PaymentState,
    wallet::WalletError,
    wire::NodeReject,
};
use bitcoin::Txid;

/// A payment that is final, with its proof.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// The transaction.
    pub txid: Txid,
    /// Which promise stands behind it.
    pub kind: FinalityKind,
    /// The verified proof.
    pub proof: Box<FinalityProof>,
}

/// Why a call failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// The wallet refused; nothing was sent.
    #[error(transparent)]
    Wallet(#[from] WalletError),
    /// The federation rejected the payment.
    #[error("rejected by {} nodes: {rejects:?}", rejects.len())]
    Rejected {
        /// The nodes' reasons.
        rejects: Vec<NodeReject>,
        /// Whether a new attempt may pass later.
        retry: bool,
    },
    /// The payment was given up.
    #[error("{message}")]
    Failed {
        /// What happened.
        message: String,
        /// Whether a new attempt may pass later.
        retry: bool,
    },
    /// The client has ended.
    #[error("the client has ended")]
    Ended,
    /// The state could not be saved, so the client stopped before anything left it that it would not remember. What
    /// was saved before is whole.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl ClientError {
    /// A stable name for programs, in `snake_case`; names are only added.
    ///
    /// ```
    /// assert_eq!(quorate::client::ClientError::Ended.code(), "closed");
    /// ```
    pub fn code(&self) -> &'static str {
        match self {
            Self::Wallet(error) => error.code(),
            Self::Rejected { .. } => "payment_rejected",
            Self::Failed { .. } => "payment_failed",
            Self::Ended => "closed",
            Self::Store(_) => "storage_failed",
        }
    }

    /// The same error, of a call that gives the same answer from now on: not to be tried again.
    ///
    /// ```
    /// use quorate::client::ClientError;
    /// let failed = ClientError::Failed { message: "no quorum".to_owned(), retry: true };
    /// assert!(!failed.for_good().is_retryable());
    /// ```
    #[must_use]
    pub fn for_good(self) -> Self {
        match self {
            Self::Rejected { rejects, .. } => Self::Rejected { rejects, retry: false },
            Self::Failed { message, .. } => Self::Failed { message, retry: false },
            Self::Wallet(_) | Self::Ended | Self::Store(_) => self,
        }
    }

    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Wallet(error) => error.is_retryable(),
            Self::Rejected { retry, .. } | Self::Failed { retry, .. } => *retry,
            Self::Ended | Self::Store(_) => false,
        }
    }
}

/// The result of a payment that has come to its end.
pub(super) fn ended_as(txid: Txid, state: PaymentState) -> Option<Result<Receipt, ClientError>> {
    match state {
        PaymentState::Final { kind, proof } => Some(Ok(Receipt { txid, kind, proof })),
        PaymentState::Rejected { rejects, retry } => Some(Err(ClientError::Rejected { rejects, retry })),
        PaymentState::Failed { message, retry } => Some(Err(ClientError::Failed { message, retry })),
        PaymentState::Submitted
        | PaymentState::Voting { .. }
        | PaymentState::Approved
        | PaymentState::Signing { .. } => None,
    }
}
