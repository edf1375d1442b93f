//! Where coins are looked up and sweeps are sent: Esplora over HTTP, or one's own Bitcoin Core.

mod bitcoin_core;
mod esplora;

pub use bitcoin_core::{BitcoinCore, RpcAuth};
pub use esplora::Esplora;

use super::RecoveryError;
use std::fmt;

fn failed(url: &str, reason: impl fmt::Display) -> RecoveryError {
    // What a server says is shown to a user: one line of bounded length.
    let reason: String =
        reason.to_string().chars().filter(|character| !character.is_control()).take(300).collect();
    RecoveryError::Source { url: url.to_owned(), reason }
}
