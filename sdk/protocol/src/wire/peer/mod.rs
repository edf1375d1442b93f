//! Messages between nodes. Each request is a QUIC stream of its own; the answer comes back on it.
//!
//! A receiver takes a request only from a connection whose certificate is that of the roster member it concerns (rule
//! V8). Requests are sorted by who answers them, so that a request reaches only a part of the node that can:
//! [`PeerRequest`] is their union, and its JSON is that of the request inside. The answer to a request of one sort is
//! of the same sort, or a refusal.

mod keygen;
mod repair;
mod succession;
mod voting;

pub use keygen::{KeygenReply, KeygenRequest};
pub use repair::{RepairReply, RepairRequest};
pub use succession::{SuccessionReply, SuccessionRequest};
pub use voting::{Cancellation, CommitReply, VotingReply, VotingRequest};

use super::{Message, WireError, decode, limits::PEER_FRAME_BYTES_MAX};
use crate::tagged::{Reader, tagged, text};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Requests of one sort.
pub trait Request: Message + Into<PeerRequest> {
    /// The answers to them.
    type Reply: Message;
}

/// `union! { Name: Sort(Inner) = [types] }`: an enum whose JSON is that of what it holds. `type` says which that is.
macro_rules! union {
    ($(#[$doc:meta])* $name:ident: $($sort:ident($inner:ident) = [$($kind:literal),+]),+) => {
        $(#[$doc])*
        #[expect(clippy::large_enum_variant, reason = "one is made per frame, and taken apart at once")]
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum $name {
            $(
                #[doc = concat!("See [`", stringify!($inner), "`].")]
                $sort($inner),
            )+
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                match self {
                    $(Self::$sort(inner) => Serialize::serialize(inner, serializer),)+
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = text(deserializer)?;
                let reader = Reader::new("type", &text).map_err(D::Error::custom)?;
                match reader.variant() {
                    $($($kind)|+ => $inner::deserialize(reader).map(Self::$sort).map_err(D::Error::custom),)+
                    unknown => Err(D::Error::unknown_variant(unknown, Self::TYPES)),
                }
            }
        }

        impl Message for $name {
            const BYTES_MAX: usize = PEER_FRAME_BYTES_MAX;
            const TYPES: &'static [&'static str] = &[$($($kind),+),+];
        }

        $(
            impl From<$inner> for $name {
                fn from(inner: $inner) -> Self {
                    Self::$sort(inner)
                }
            }
        )+
    };
}

union! {
    /// All requests from node to node, by who answers them.
    PeerRequest:
    Voting(VotingRequest) = [
        "VoteRequest", "CommitRequest", "ReleaseRequest", "Released", "Heartbeat", "FinalTransaction", "AccountRequest"
    ],
    Keygen(KeygenRequest) = ["DkgPull", "TrialCommit", "TrialSign"],
    Succession(SuccessionRequest) = ["SuccessionPull", "SealRequest"],
    Repair(RepairRequest) = ["RepairOpen", "RepairPiece", "RepairSum"]
}

union! {
    /// All answers from node to node. Who asked knows the sort; read without it, `Done` counts as one of
    /// [`VotingReply`].
    PeerReply:
    Voting(VotingReply) = [
        "VoteResponse", "CommitResponse", "ReleaseResponse", "HeartbeatResponse", "AccountResponse", "Done"
    ],
    Keygen(KeygenReply) = ["DkgBundle", "TrialCommitment", "TrialShare"],
    Succession(SuccessionReply) = ["SuccessionNews", "Sealed"],
    Repair(RepairReply) = ["RepairPart"],
    Refused(Refusal) = ["Error"]
}

/// A refusal, in place of any answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self")]
pub enum Refusal {
    /// Why.
    #[serde(deserialize_with = "Deserialize::deserialize")]
    Error {
        /// Why.
        #[serde(flatten)]
        error: WireError,
    },
}
tagged!("type": Refusal);

impl Message for Refusal {
    const BYTES_MAX: usize = PEER_FRAME_BYTES_MAX;
    const TYPES: &'static [&'static str] = &["Error"];
}

impl From<WireError> for PeerReply {
    fn from(error: WireError) -> Self {
        Self::Refused(Refusal::Error { error })
    }
}

impl<T: Into<Self>> From<Result<T, WireError>> for PeerReply {
    fn from(answer: Result<T, WireError>) -> Self {
        answer.map_or_else(Self::from, Into::into)
    }
}

/// Reads the answer to a request whose answers are `T`.
///
/// # Errors
/// The refusal that came in its place, or why it cannot be read: the answering node is at fault then.
pub fn decode_answer<T: Message>(json: &[u8]) -> Result<T, WireError> {
    decode::<T>(json).map(|envelope| envelope.body).map_err(|(_, error)| match decode::<Refusal>(json) {
        Ok(envelope) => {
            let Refusal::Error { error } = envelope.body;
            error
        }
        Err(_) => error,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Epoch, wire::ErrorCode};

    #[test]
    fn a_union_has_the_types_and_the_json_of_what_it_holds() {
        let types =
            [VotingRequest::TYPES, KeygenRequest::TYPES, SuccessionRequest::TYPES, RepairRequest::TYPES];
        let mut types = types.concat();
        let mut union = PeerRequest::TYPES.to_vec();
        types.sort_unstable();
        union.sort_unstable();
        assert_eq!(union, types);
        let pull = SuccessionRequest::SuccessionPull { epoch: Epoch(3) };
        let json = serde_json::to_string(&PeerRequest::from(pull.clone())).expect("writes");
        assert_eq!(json, r#"{"type":"SuccessionPull","epoch":3}"#);
        assert_eq!(json, serde_json::to_string(&pull).expect("writes"));
        assert_eq!(decode::<PeerRequest>(json.as_bytes()).expect("reads").body, pull.into());
    }

    #[test]
    fn an_unknown_request_is_named() {
        let (_, error) = decode::<PeerRequest>(br#"{"type":"Hello"}"#).expect_err("is for wallets");
        assert_eq!(error.code, ErrorCode::UnknownMessageType);
        assert!(error.message.contains("Hello") && error.message.contains("VoteRequest"), "{error}");
    }

    #[test]
    fn an_answer_is_of_its_sort_or_the_refusal_that_came() {
        let refusal = WireError::sender(ErrorCode::WrongRole, "no");
        let json = serde_json::to_vec(&PeerReply::from(refusal.clone())).expect("writes");
        assert_eq!(decode_answer::<RepairReply>(&json), Err(refusal));
        let done = serde_json::to_vec(&PeerReply::from(RepairReply::Done)).expect("writes");
        assert_eq!(done, br#"{"type":"Done"}"#);
        assert_eq!(decode_answer::<RepairReply>(&done), Ok(RepairReply::Done));
        assert_eq!(decode_answer::<VotingReply>(&done), Ok(VotingReply::Done));
        let other = decode_answer::<KeygenReply>(&done).expect_err("of another sort");
        assert_eq!(other.code, ErrorCode::UnknownMessageType);
    }
}
