//! The protocol on the wire: messages, frames, limits and error codes.
//!
//! Messages are JSON objects with a `type` and, where an answer is expected, an `id` that the answer repeats. Between
//! machines they travel in QUIC streams as frames of a `u32` big-endian length and the JSON; to wallets as WebSocket
//! text frames without the length. Field names are `snake_case`, txids are in display order, amounts are integer
//! satoshis. Unknown fields are ignored; unknown types are refused with an error that names them.
//! `docs/asyncapi.json` describes the wallet's side and is checked against these types.

mod client;
mod error;
mod frame;
pub mod limits;
mod pages;
mod peer;
mod place;
mod state;

pub use client::{
    ChainTip, ClientMessage, FeeEstimates, Followed, Header, KeyOutcome, KeyResult, ServerMessage,
    SubscriptionKey, outpoints_of,
};
pub use error::{ErrorCode, Fault, WireError};
pub use frame::{Envelope, FrameBuffer, Message, decode, encode_frame, encode_text};
pub use pages::{Pages, encoded_len, pages};
pub use peer::{
    Cancellation, CommitReply, KeygenReply, KeygenRequest, PeerReply, PeerRequest, Refusal, RepairReply,
    RepairRequest, Request, SuccessionReply, SuccessionRequest, VotingReply, VotingRequest, decode_answer,
};
pub use place::{Bare, ConflictProof, RawTransactionProof};
pub use state::{
    BlockRef, ConfirmedSpend, FinalSpend, Lock, NodeReject, RejectReason, TransactionStatus, UtxoRecord,
    UtxoState,
};
