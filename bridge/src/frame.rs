//! A message as it is written.

use axum::extract::ws::Utf8Bytes;
use quorate_protocol::wire::{ServerMessage, encode_text};

/// A message as a text frame. What goes to many sessions is encoded once, and shared.
#[derive(Clone, Debug)]
pub(crate) struct Frame(pub(crate) Utf8Bytes);

impl Frame {
    /// With the number of the message that it answers.
    pub(crate) fn new(id: Option<u64>, message: &ServerMessage) -> Self {
        Self(encode_text(id, message).into())
    }
}
