//! What the bridge refuses by itself, and why.

use quorate_protocol::wire::{ErrorCode, Fault, WireError};

pub(crate) fn no_node() -> WireError {
    let message = "no node is reachable at the moment; try again";
    WireError::passing(ErrorCode::NoNodeAvailable, Fault::Receiver, message)
}

pub(crate) fn too_many_requests(whose: &str, most: usize) -> WireError {
    let what = format!("requests of {whose} under way");
    let error = WireError::limit(ErrorCode::LimitExceeded, &what, most, most + 1);
    WireError { retry: true, ..error }
}

pub(crate) fn too_many_accounts() -> WireError {
    let message = "this address, or its network, has had as many new accounts registered here as it may for the moment; try again \
        in some minutes";
    WireError::passing(ErrorCode::LimitExceeded, Fault::Sender, message)
}

pub(crate) fn coordinator_lost() -> WireError {
    let message = "the connection to the coordinating node was lost; submit it again";
    WireError::passing(ErrorCode::CoordinatorLost, Fault::Network, message)
}
