//! Limits of the protocol. Each refusal names the limit and the value that was over it.

use super::{ErrorCode, WireError};

use std::time::Duration;

/// Protocol name: ALPN identifier and WebSocket subprotocol.
pub const PROTOCOL: &str = "quorate.2";
/// Protocol version in `Hello`.
pub const PROTOCOL_VERSION: u32 = 2;
/// Largest frame, in bytes of JSON. A proposal of 64 inputs with its PSBT stays under 64 KiB; a snapshot page is cut
/// to fit.
pub const FRAME_BYTES_MAX: usize = 1 << 20;
/// Largest frame between two nodes, in bytes of JSON. They show each other why a transaction is what is left to its
/// inputs, which for one of 64 inputs in a federation of 100 nodes is several MiB.
pub const PEER_FRAME_BYTES_MAX: usize = 16 << 20;
/// Largest PSBT of a proposal and largest signed transaction that is voted for, in bytes; 64 inputs with all their
/// data stay well below.
pub const PROPOSAL_BYTES_MAX: usize = 96 * 1024;
/// Most keys in one subscribe, unsubscribe or query message.
pub const KEYS_PER_MESSAGE_MAX: usize = 1_000;
/// Most records of accounts in one subscription.
pub const ACCOUNTS_PER_MESSAGE_MAX: usize = 100;
/// Longest script that can be subscribed to, in bytes. Those of addresses have at most 42, a bare multisignature script
/// of three keys that is relayed at most 201; nodes keep what is subscribed to for a week.
pub const KEY_SCRIPT_BYTES_MAX: usize = 256;
/// Most keys that one session may be subscribed to.
pub const KEYS_PER_SESSION_MAX: usize = 10_000;
/// Most keys that a node lets one session have that is a bridge's: those of all its wallets.
pub const KEYS_PER_BRIDGE_MAX: usize = 1_000_000;
/// Most headers in one answer, as in the Bitcoin peer-to-peer protocol.
pub const HEADERS_MAX: usize = 2_000;
/// Longest reason of a chain backend that is told, in characters.
pub const REFUSAL_CHARS_MAX: usize = 200;
/// Time after connecting within which `Hello` must come.
pub const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Time between two pings of a server; a session without any frame for two of them is closed.
pub const PING_INTERVAL: Duration = Duration::from_secs(20);

/// Refuses a message with more keys than one may have.
///
/// # Errors
/// The limit, and what was found.
///
/// ```
/// use quorate_protocol::wire::limits;
///
/// assert!(limits::check_keys(limits::KEYS_PER_MESSAGE_MAX).is_ok());
/// assert!(limits::check_keys(limits::KEYS_PER_MESSAGE_MAX + 1).is_err());
/// ```
pub fn check_keys(found: usize) -> Result<(), WireError> {
    check("keys in a message", KEYS_PER_MESSAGE_MAX, found)
}

/// Refuses a script of so many bytes as a key.
///
/// # Errors
/// The limit, and what was found.
///
/// ```
/// use quorate_protocol::wire::limits;
///
/// assert!(limits::check_script(limits::KEY_SCRIPT_BYTES_MAX).is_ok());
/// assert!(limits::check_script(limits::KEY_SCRIPT_BYTES_MAX + 1).is_err());
/// ```
pub fn check_script(bytes: usize) -> Result<(), WireError> {
    check("bytes in a script that is a key", KEY_SCRIPT_BYTES_MAX, bytes)
}

/// Refuses a subscription with more records of accounts than one may have.
///
/// # Errors
/// The limit, and what was found.
///
/// ```
/// use quorate_protocol::wire::limits;
///
/// assert!(limits::check_accounts(limits::ACCOUNTS_PER_MESSAGE_MAX).is_ok());
/// assert!(limits::check_accounts(limits::ACCOUNTS_PER_MESSAGE_MAX + 1).is_err());
/// ```
pub fn check_accounts(found: usize) -> Result<(), WireError> {
    check("records of accounts in a message", ACCOUNTS_PER_MESSAGE_MAX, found)
}

fn check(what: &str, limit: usize, found: usize) -> Result<(), WireError> {
    if found <= limit {
        return Ok(());
    }
    Err(WireError::limit(ErrorCode::LimitExceeded, what, limit, found))
}
