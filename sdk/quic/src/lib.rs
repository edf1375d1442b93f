//! QUIC in a federation: what wallet, bridge and node need alike to speak on it (design, section 8).
//!
//! TLS 1.3 with client certificates of the federation's own authority on every connection. A node's server name is
//! `node-N.quorate`, so the stock verifier checks that the peer is the roster entry that was called. 0-RTT stays off.

mod frames;
mod identity;
mod meter;
mod renewal;

pub use frames::{FrameError, FrameReader, read_message, write_message};
pub use identity::{NodeAddress, TlsError, TlsIdentity, server_name, transport_config};
pub use meter::{Meter, Room};
pub use renewal::{LOOK_AGAIN, Renewal, WatchedFiles};
