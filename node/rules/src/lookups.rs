//! Inputs that wait for what the chain says of a coin.
//!
//! A rule that needs a coin which the ledger does not have emits [`Output::LookUp`](crate::Output::LookUp), and its input waits here.

use crate::{ReplyTo, SessionId};
use quorate_protocol::{
    NodeId,
    wire::{BlockRef, ClientMessage, VotingRequest},
};
use std::collections::BTreeMap;

/// Inputs that may wait at a time; more are told to come back. A backend that hangs must not fill the memory.
pub(crate) const PARKED_MAX: usize = 4_096;

/// An input that waits.
#[derive(Debug)]
pub(crate) enum Parked {
    Request { from: NodeId, to: ReplyTo, request: VotingRequest },
    Client { session: SessionId, id: Option<u64>, message: ClientMessage },
}

/// All that wait, with the tip at which the chain was asked.
#[derive(Debug, Default)]
pub(crate) struct Lookups {
    next: u64,
    parked: BTreeMap<u64, (BlockRef, Parked)>,
}

impl Lookups {
    /// Has an input wait; gives the ticket that its answer will carry, or the input back if too many wait.
    pub(crate) fn park(&mut self, tip: BlockRef, input: Parked) -> Result<u64, Box<Parked>> {
        if self.parked.len() >= PARKED_MAX {
            return Err(Box::new(input));
        }
        self.next += 1;
        self.parked.insert(self.next, (tip, input));
        Ok(self.next)
    }

    /// The input that waits for an answer. An answer that comes twice, or that nobody waits for any more, gives nothing.
    pub(crate) fn take(&mut self, ticket: u64) -> Option<(BlockRef, Parked)> {
        self.parked.remove(&ticket)
    }

    /// Nobody waits for the answers of a session that is gone.
    pub(crate) fn remove_session(&mut self, session: SessionId) {
        let stays = |parked: &Parked| !matches!(parked, Parked::Client { session: of, .. } if *of == session);
        self.parked.retain(|_, (_, parked)| stays(parked));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::{BlockHash, hashes::Hash as _};

    fn tip() -> BlockRef {
        BlockRef { height: 3, hash: BlockHash::all_zeros() }
    }

    fn client(session: u64) -> Parked {
        Parked::Client { session: SessionId(session), id: None, message: ClientMessage::Ping }
    }

    #[test]
    fn an_input_is_resumed_once() {
        let mut lookups = Lookups::default();
        let ticket = lookups.park(tip(), client(1)).expect("room");
        assert!(matches!(lookups.take(ticket), Some((tip, Parked::Client { .. })) if tip == self::tip()));
        assert!(lookups.take(ticket).is_none());
        assert!(lookups.take(99).is_none());
    }

    #[test]
    fn a_session_that_is_gone_is_not_resumed_and_others_are() {
        let mut lookups = Lookups::default();
        let gone = lookups.park(tip(), client(1)).expect("room");
        let stays = lookups.park(tip(), client(2)).expect("room");
        lookups.remove_session(SessionId(1));
        assert!(lookups.take(gone).is_none());
        assert!(lookups.take(stays).is_some());
    }

    #[test]
    fn one_over_the_limit_is_given_back() {
        let mut lookups = Lookups::default();
        for number in 0..PARKED_MAX {
            lookups.park(tip(), client(u64::try_from(number).expect("small"))).expect("room");
        }
        assert!(lookups.park(tip(), client(0)).is_err());
        assert!(lookups.take(1).is_some());
        assert!(lookups.park(tip(), client(0)).is_ok());
    }
}
