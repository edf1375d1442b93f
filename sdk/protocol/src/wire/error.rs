//! Refusals: a stable code, who is at fault, and whether to retry.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Stable codes of refusals. Meaning never changes; codes are only added.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum ErrorCode {
    /// The frame is not a JSON message of the expected form.
    MalformedMessage,
    /// The message's `type` is not known to the receiver.
    UnknownMessageType,
    /// The frame is over [`super::limits::FRAME_BYTES_MAX`].
    FrameTooLarge,
    /// The stream ended in the middle of a frame.
    TruncatedFrame,
    /// A message came before `Hello`.
    HelloExpected,
    /// `Hello` came twice.
    AlreadyGreeted,
    /// The two sides speak different protocol versions.
    UnsupportedProtocol,
    /// The client pins another federation.
    WrongFederation,
    /// The sender's certificate does not allow this message.
    WrongRole,
    /// A per-message or per-session limit is exceeded.
    LimitExceeded,
    /// A subscription key cannot be used: for instance an address of another network.
    InvalidKey,
    /// The account record or certificate is refused.
    InvalidAccount,
    /// The proposal is refused before voting.
    InvalidProposal,
    /// A signature or certificate in the message does not verify.
    InvalidSignature,
    /// The transaction is not known here.
    UnknownTransaction,
    /// The account is not known here, or there is no room to watch it: send its record along, or subscribe to its
    /// scripts.
    UnknownAccount,
    /// An input has left the round that the message is about; vote again in the present one.
    RoundOver,
    /// The transaction's deadline has passed and no block has it (rule V10): propose it with a later one if the horizon
    /// allows, or wait for its block.
    DeadlinePassed,
    /// The nonces named are used up; a new attempt is needed.
    NonceUnavailable,
    /// The connection to the coordinating node was lost; submit again, it is idempotent.
    CoordinatorLost,
    /// No node is reachable at the moment.
    NoNodeAvailable,
    /// The federation's key is not generated yet.
    NotReady,
    /// The receiver is shutting down.
    GoingAway,
    /// Something failed inside the receiver.
    Internal,
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.serialize(f)
    }
}

/// Who has to change something.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    /// The one who sent the message.
    Sender,
    /// The one who answers.
    Receiver,
    /// The connection between them.
    Network,
}

/// A refusal on the wire.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{code}: {message}")]
pub struct WireError {
    /// Stable code.
    pub code: ErrorCode,
    /// What happened and what to do, for people.
    pub message: String,
    /// Who is at fault.
    pub fault: Fault,
    /// Whether the same message may succeed later.
    pub retry: bool,
    /// The limit that was exceeded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    /// The value that exceeded it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<u64>,
}

impl WireError {
    /// The sender's fault; the same message will not succeed.
    pub fn sender(code: ErrorCode, message: impl fmt::Display) -> Self {
        Self {
            code,
            message: message.to_string(),
            fault: Fault::Sender,
            retry: false,
            limit: None,
            value: None,
        }
    }

    /// The receiver's or network's state; the same message may succeed later.
    pub fn passing(code: ErrorCode, fault: Fault, message: impl fmt::Display) -> Self {
        Self { code, message: message.to_string(), fault, retry: true, limit: None, value: None }
    }

    /// A limit that the sender exceeded.
    pub fn limit(code: ErrorCode, what: &str, limit: usize, value: usize) -> Self {
        Self {
            limit: u64::try_from(limit).ok(),
            value: u64::try_from(value).ok(),
            ..Self::sender(code, format!("{what}: {value} is over the limit of {limit}"))
        }
    }
}
