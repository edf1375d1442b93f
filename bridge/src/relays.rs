//! Requests that a node answers in the bridge's place.

use crate::{allowance::network, interest::WalletId};
use bitcoin::Txid;
use quorate_protocol::wire::{ClientMessage, ServerMessage, TransactionStatus};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    time::Duration,
};

/// Wait for a node's answer to a relayed query, and for each further page of it.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// Wait for the next word of the node that coordinates a submission. A payment that others have to leave coins for may
/// take minutes, and its wallet hears of each step.
const SUBMISSION_TIMEOUT: Duration = Duration::from_secs(600);
/// Added for finding a node that has a stream to spare.
const OPEN_TIMEOUT: Duration = Duration::from_secs(3);

/// A relayed request, by the machine's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelayId(pub u64);

/// A relayed request.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) session: WalletId,
    /// Where the session is; none if it is on this machine.
    pub(crate) address: Option<IpAddr>,
    /// The request's number, for an answer of the bridge's own.
    pub(crate) id: Option<u64>,
    /// The transaction that it submits, if it does.
    pub(crate) txid: Option<Txid>,
}

/// Requests of all sessions of one address at a time, and of one network. A node answers 1,024 at a time of a bridge.
const ADDRESS_MAX: usize = 256;
const NETWORK_MAX: usize = 512;
/// Requests of all sessions at a time.
const ALL_MAX: usize = 16_384;

/// Whose requests are counted together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Place {
    Address(IpAddr),
    Network(IpAddr),
}

impl Place {
    fn name(self) -> &'static str {
        match self {
            Self::Address(_) => "an address",
            Self::Network(_) => "a network",
        }
    }

    /// Where an address is, with how many requests each place may have under way.
    fn of(address: IpAddr) -> [(Self, usize); 2] {
        [(Self::Address(address), ADDRESS_MAX), (Self::Network(network(address)), NETWORK_MAX)]
    }
}

/// All that are under way.
#[derive(Debug, Default)]
pub(crate) struct Relays {
    open: BTreeMap<RelayId, Relay>,
    /// Where the wallet's part of a signing session goes.
    coordinators: HashMap<(WalletId, Txid), RelayId>,
    /// When each has to have its next answer.
    deadlines: BTreeSet<(Duration, RelayId)>,
    due: HashMap<RelayId, Duration>,
    /// How many are under way for each address and network.
    by_place: HashMap<Place, usize>,
    last: u64,
}

impl Relays {
    /// Whether a session of that address may have one more under way.
    ///
    /// # Errors
    /// Whose requests these are, and how many there may be.
    pub(crate) fn check(&self, address: Option<IpAddr>) -> Result<(), (&'static str, usize)> {
        let full = |(place, most): &(Place, usize)| self.by_place.get(place).is_some_and(|open| open >= most);
        if self.open.len() >= ALL_MAX {
            return Err(("this bridge", ALL_MAX));
        }
        match address.into_iter().flat_map(Place::of).find(full) {
            Some((place, most)) => Err((place.name(), most)),
            None => Ok(()),
        }
    }

    fn count(&mut self, address: Option<IpAddr>, change: impl Fn(usize) -> usize) {
        for (place, _) in address.into_iter().flat_map(Place::of) {
            let open = self.by_place.entry(place).or_default();
            *open = change(*open);
            if *open == 0 {
                self.by_place.remove(&place);
            }
        }
    }

    /// Adds one. A transaction that its session submits again goes to another node: the relay that it had is given
    /// back, ended.
    pub(crate) fn add(&mut self, now: Duration, relay: Relay) -> (RelayId, Option<RelayId>) {
        self.last += 1;
        let number = RelayId(self.last);
        let mut replaced = None;
        match relay.txid {
            Some(txid) => {
                replaced = self.coordinators.insert((relay.session, txid), number);
                self.expect_by(number, now + OPEN_TIMEOUT + SUBMISSION_TIMEOUT);
            }
            None => self.expect_by(number, now + OPEN_TIMEOUT + QUERY_TIMEOUT),
        }
        self.count(relay.address, |open| open + 1);
        self.open.insert(number, relay);
        let replaced = replaced.filter(|old| self.remove(*old).is_some());
        (number, replaced)
    }

    pub(crate) fn get(&self, relay: RelayId) -> Option<&Relay> {
        self.open.get(&relay)
    }

    /// The relay to the node that coordinates a transaction of a session.
    pub(crate) fn coordinator(&self, session: WalletId, txid: Txid) -> Option<RelayId> {
        self.coordinators.get(&(session, txid)).copied()
    }

    /// Ends one.
    pub(crate) fn remove(&mut self, relay: RelayId) -> Option<Relay> {
        let ended = self.open.remove(&relay)?;
        self.count(ended.address, |open| open.saturating_sub(1));
        if let Some(at) = self.due.remove(&relay) {
            self.deadlines.remove(&(at, relay));
        }
        if let Some(txid) = ended.txid
            && self.coordinator(ended.session, txid) == Some(relay)
        {
            self.coordinators.remove(&(ended.session, txid));
        }
        Some(ended)
    }

    /// One has had a part of its answer, and the next is due.
    pub(crate) fn heard(&mut self, now: Duration, relay: RelayId) {
        if let Some(open) = self.open.get(&relay) {
            let patience = if open.txid.is_some() { SUBMISSION_TIMEOUT } else { QUERY_TIMEOUT };
            self.expect_by(relay, now + patience);
        }
    }

    fn expect_by(&mut self, relay: RelayId, at: Duration) {
        if let Some(before) = self.due.insert(relay, at) {
            self.deadlines.remove(&(before, relay));
        }
        self.deadlines.insert((at, relay));
    }

    /// Those whose time is over.
    pub(crate) fn expired(&mut self, now: Duration) -> Vec<RelayId> {
        let mut expired = Vec::new();
        while let Some((at, relay)) = self.deadlines.first().copied().filter(|(at, _)| now >= *at) {
            self.deadlines.remove(&(at, relay));
            self.due.remove(&relay);
            expired.push(relay);
        }
        expired
    }

    /// How many are under way.
    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }
}

/// The transaction that a request has the federation finish or stop. Such a request is followed until it ends: the
/// wallet may have to sign.
#[expect(clippy::wildcard_enum_match_arm, reason = "only these have a coordinator")]
pub(crate) fn submitted_by(message: &ClientMessage) -> Option<Txid> {
    match message {
        ClientMessage::TransactionBroadcast { proposal, .. }
        | ClientMessage::TransactionCancel { proposal, .. } => Some(proposal.txid()),
        _other => None,
    }
}

/// Whether a message is the last answer to a question.
pub(crate) fn ends_answer(message: &ServerMessage) -> bool {
    !matches!(message, ServerMessage::UTXOStateResponse { more: true, .. })
}

/// Whether a message is the last one about a submission.
#[expect(clippy::wildcard_enum_match_arm, reason = "only these end a submission")]
pub fn ends_submission(message: &ServerMessage) -> bool {
    match message {
        ServerMessage::TransactionStatus { status, .. } => matches!(
            status,
            TransactionStatus::Signed { .. }
                | TransactionStatus::Confirmed { .. }
                | TransactionStatus::Rejected { .. }
                | TransactionStatus::Conflicted { .. }
                | TransactionStatus::Failed { .. }
                | TransactionStatus::AbortedByzantine { .. }
        ),
        ServerMessage::Error { .. } => true,
        _progress => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Opens requests of sessions of an address until there may be no more; gives them.
    fn fill(relays: &mut Relays, address: [u8; 4]) -> Vec<RelayId> {
        let (mut opened, address) = (Vec::new(), Some(address.into()));
        while relays.check(address).is_ok() {
            let relay = Relay { session: WalletId(1), address, id: None, txid: None };
            opened.push(relays.add(Duration::ZERO, relay).0);
        }
        opened
    }

    #[test]
    fn sessions_of_an_address_and_of_its_network_leave_room_for_others() {
        let mut relays = Relays::default();
        let first = fill(&mut relays, [10, 0, 0, 1]);
        assert_eq!((first.len(), fill(&mut relays, [10, 0, 0, 2]).len()), (ADDRESS_MAX, ADDRESS_MAX));
        assert_eq!(relays.check(Some([10, 0, 0, 3].into())), Err(("a network", NETWORK_MAX)));
        assert_eq!((relays.check(Some([10, 0, 1, 1].into())), relays.check(None)), (Ok(()), Ok(())));
        for relay in first {
            relays.remove(relay);
            relays.remove(relay);
        }
        assert_eq!(fill(&mut relays, [10, 0, 0, 1]).len(), ADDRESS_MAX, "what has ended counts no more");
    }

    #[test]
    fn a_transaction_that_is_submitted_again_counts_once() {
        let (mut relays, address) = (Relays::default(), Some([10, 0, 0, 1].into()));
        let txid = Some(bitcoin::hashes::Hash::all_zeros());
        for _ in 0..2 * ADDRESS_MAX {
            assert_eq!(relays.check(address), Ok(()));
            relays.add(Duration::ZERO, Relay { session: WalletId(1), address, id: None, txid });
        }
        assert_eq!(relays.len(), 1);
    }

    #[test]
    fn all_sessions_have_so_many_in_all() {
        let mut relays = Relays::default();
        let mut addresses = (0..).map(|number: u16| {
            let [high, low] = number.to_be_bytes();
            [10, high, low, 1]
        });
        let opened: usize = addresses.by_ref().take(64).map(|address| fill(&mut relays, address).len()).sum();
        assert_eq!(opened, ALL_MAX);
        let next = addresses.next().map(Into::into);
        assert_eq!(relays.check(next), Err(("this bridge", ALL_MAX)));
    }

    #[test]
    fn a_submission_ends_when_its_node_is_silent_for_long() {
        let (mut relays, at) = (Relays::default(), Duration::from_secs);
        let relay = |txid| Relay { session: WalletId(1), address: None, id: None, txid };
        let (query, _) = relays.add(at(0), relay(None));
        let (submission, _) = relays.add(at(0), relay(Some(bitcoin::hashes::Hash::all_zeros())));
        assert_eq!(relays.expired(at(13)), [query]);
        relays.heard(at(300), submission);
        assert!(relays.expired(at(899)).is_empty());
        assert_eq!(relays.expired(at(900)), [submission]);
        relays.remove(query);
        relays.remove(submission);
        assert_eq!((relays.len(), relays.due.len(), relays.coordinators.len()), (0, 0, 0));
    }
}
