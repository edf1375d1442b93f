//! QUIC between nodes, and from bridges and wallets to a node.

pub(crate) mod guests;
pub(crate) mod handshakes;
pub(crate) mod membership;
pub(crate) mod outgoing;
pub(crate) mod peers;
pub(crate) mod rotation;
pub(crate) mod server;
pub(crate) mod session;

use quorate_protocol::wire::{ErrorCode, Fault, WireError};

/// Refuses what this node cannot do yet; who asks may try again.
pub(crate) fn not_ready(message: &str) -> WireError {
    WireError::passing(ErrorCode::NotReady, Fault::Receiver, message)
}
