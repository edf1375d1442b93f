//! Inputs that wait for what the chain says of a coin.
//!
//! A rule that needs a coin which the ledger does not have emits [`Output::LookUp`](crate::Output::LookUp), one that
//! has to know what the archive has emits [`Output::Recall`](crate::Output::Recall), one that needs what takes long to
//! find out emits [`Output::Check`](crate::Output::Check), and its input waits here.

use crate::{
    Party, ReplyTo, SessionId, Source,
    archive::Archived,
    shares::{Counts, Tickets},
};
use bitcoin::{OutPoint, Txid};
use quorate_protocol::{
    NodeId,
    finality::FinalityProof,
    wire::{BlockRef, ClientMessage, ErrorCode, Fault, SubscriptionKey, VotingRequest, WireError, limits},
};
use serde::Serialize;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    io,
};

/// Inputs of one peer or session that may wait at a time. What nobody waits for any more counts until the chain has
/// answered: a backend that hangs must not fill the memory, and nobody's questions push out another's.
pub(crate) const PARKED_PER_SOURCE_MAX: usize = 512;
/// Inputs of all sessions with one certificate.
const PARKED_PER_CERTIFICATE_MAX: usize = 4_096;
/// Bytes of all inputs of one certificate or peer, as they were said.
const PARKED_BYTES_MAX: usize = 64 << 20;
/// Subscriptions of one session whose history the archive has not told of yet.
const HISTORIES_PER_SESSION_MAX: usize = 4_096;
/// Keys in all such subscriptions with one certificate, and one for each subscription: a bridge comes back with its
/// wallets' while its last session is not yet seen to have ended.
const HISTORY_KEYS_PER_CERTIFICATE_MAX: usize = 2 * limits::KEYS_PER_BRIDGE_MAX;

/// An input that waits.
#[derive(Debug)]
pub(crate) enum Parked {
    Request {
        from: NodeId,
        to: ReplyTo,
        request: VotingRequest,
    },
    Client {
        session: SessionId,
        id: Option<u64>,
        message: ClientMessage,
    },
    /// A proof that came with the answer of a peer.
    Shown {
        from: NodeId,
        proof: Box<FinalityProof>,
    },
    /// Coins that a search of accounts found.
    Found {
        me: NodeId,
        outpoints: Vec<OutPoint>,
    },
    /// What is to be forgotten, until the archive has it.
    Settling {
        me: NodeId,
    },
    /// Outpoints that certificates hold whose other inputs this node may have forgotten.
    Bound {
        me: NodeId,
        outpoints: Vec<OutPoint>,
    },
    /// Proofs that this node, or the epoch before, left it, and whose place in the chain it does not know.
    Left {
        me: NodeId,
        txids: Vec<Txid>,
    },
}

impl Parked {
    /// Whether it only wants to hear of coins: it can do so without knowing now what the chain has.
    pub(crate) fn is_subscription(&self) -> bool {
        matches!(self, Self::Client { message: ClientMessage::UTXOSubscribe { .. }, .. })
    }

    /// About how many bytes it takes: as many as it was said in. What this node asks itself is bounded where it begins.
    fn bytes(&self) -> usize {
        match self {
            Self::Request { request, .. } => said_in(request),
            Self::Client { message, .. } => said_in(message),
            Self::Shown { proof, .. } => said_in(proof),
            Self::Found { .. } | Self::Settling { .. } | Self::Bound { .. } | Self::Left { .. } => 0,
        }
    }

    pub(crate) fn source(&self) -> Source {
        match self {
            Self::Request { from, .. } | Self::Shown { from, .. } => Source::Peer(*from),
            Self::Left { me, .. }
            | Self::Settling { me }
            | Self::Bound { me, .. }
            | Self::Found { me, .. } => Source::Peer(*me),
            Self::Client { session, .. } => Source::Session(*session),
        }
    }
}

/// Bytes that a message takes on the wire.
fn said_in(message: &impl Serialize) -> usize {
    let mut length = Length(0);
    // What came in goes out; what does not counts as too long.
    serde_json::to_writer(&mut length, message).map_or(PARKED_BYTES_MAX, |()| length.0)
}

/// Counts what is written to it.
struct Length(usize);

impl io::Write for Length {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The archive cannot be read: nobody can tell an old proof from a new one.
pub(crate) fn no_archive() -> WireError {
    let message = "this node cannot read its archive; its log says why";
    WireError::passing(ErrorCode::NotReady, Fault::Receiver, message)
}

/// A check ended without a result.
pub(crate) fn not_checked() -> WireError {
    WireError::passing(ErrorCode::Internal, Fault::Receiver, "a check failed on this node; its log says why")
}

/// The backend does not say whether there is a coin: nothing is known of what spends it.
pub(crate) fn no_backend() -> WireError {
    let message = "this node's chain backend does not answer; its log says why";
    WireError::passing(ErrorCode::NotReady, Fault::Receiver, message)
}

#[derive(Debug)]
struct Waiting {
    /// The tip at which the chain was asked.
    tip: BlockRef,
    source: Source,
    bytes: usize,
    /// Nothing if its session is gone.
    input: Option<Parked>,
    /// What the archive has said to it.
    archived: Archived,
}

/// A subscription that is answered once the archive has told what it has.
#[derive(Debug)]
pub(crate) struct History {
    pub(crate) session: SessionId,
    pub(crate) id: Option<u64>,
    pub(crate) keys: Vec<SubscriptionKey>,
    pub(crate) refused: HashMap<SubscriptionKey, WireError>,
    /// It knows what blocks below this height spend.
    pub(crate) since: u32,
}

impl History {
    /// What it counts for.
    fn weight(&self) -> usize {
        self.keys.len() + 1
    }
}

/// All that wait.
#[derive(Debug, Default)]
pub(crate) struct Lookups {
    next: u64,
    parked: BTreeMap<u64, Waiting>,
    by_source: Tickets<Source>,
    by_party: Counts<Party>,
    bytes_of: Counts<Party>,
    histories: BTreeMap<u64, History>,
    histories_of: Tickets<SessionId>,
    /// By certificate.
    history_keys: Counts<u64>,
}

impl Lookups {
    /// A session waits for the history of what it has subscribed to; given back if it waits for too many.
    pub(crate) fn add_history(&mut self, history: History) -> Result<u64, Box<History>> {
        let SessionId { certificate, .. } = history.session;
        let keys = self.history_keys.of(&certificate) + history.weight();
        if self.histories_of.count(&history.session) >= HISTORIES_PER_SESSION_MAX
            || keys > HISTORY_KEYS_PER_CERTIFICATE_MAX
        {
            return Err(Box::new(history));
        }
        self.next += 1;
        self.histories_of.add(history.session, self.next);
        self.history_keys.add(certificate, history.weight());
        self.histories.insert(self.next, history);
        Ok(self.next)
    }

    /// What a ticket is for.
    pub(crate) fn take_history(&mut self, ticket: u64) -> Option<History> {
        let history = self.histories.remove(&ticket)?;
        self.histories_of.remove(history.session, ticket);
        self.history_keys.take(history.session.certificate, history.weight());
        Some(history)
    }

    /// Has an input wait; gives the ticket that its answer will carry, or the input back if too many wait.
    pub(crate) fn park(
        &mut self,
        tip: BlockRef,
        input: Parked,
        archived: Archived,
    ) -> Result<u64, Box<Parked>> {
        let (source, bytes) = (input.source(), input.bytes());
        let party = source.party();
        if self.by_source.count(&source) >= PARKED_PER_SOURCE_MAX
            || self.by_party.of(&party) >= PARKED_PER_CERTIFICATE_MAX
            || self.bytes_of.of(&party) + bytes > PARKED_BYTES_MAX
        {
            return Err(Box::new(input));
        }
        self.next += 1;
        self.by_source.add(source, self.next);
        self.by_party.add(party, 1);
        self.bytes_of.add(party, bytes);
        self.parked.insert(self.next, Waiting { tip, source, bytes, input: Some(input), archived });
        Ok(self.next)
    }

    /// The input that waits for an answer. An answer that comes twice, or that nobody waits for any more, gives
    /// nothing.
    pub(crate) fn take(&mut self, ticket: u64) -> Option<(BlockRef, Parked, Archived)> {
        let Waiting { tip, source, bytes, input, archived } = self.parked.remove(&ticket)?;
        self.by_source.remove(source, ticket);
        self.by_party.take(source.party(), 1);
        self.bytes_of.take(source.party(), bytes);
        Some((tip, input?, archived))
    }

    /// A session ends subscriptions: those among what waits are not begun any more.
    pub(crate) fn remove_keys(&mut self, session: SessionId, ended: &[SubscriptionKey]) {
        let ended: HashSet<&SubscriptionKey> = ended.iter().collect();
        for ticket in self.by_source.of(&Source::Session(session)) {
            if let Some(Waiting { input: Some(input), .. }) = self.parked.get_mut(&ticket)
                && let Parked::Client { message: ClientMessage::UTXOSubscribe { keys, .. }, .. } = input
            {
                keys.retain(|key| !ended.contains(key));
            }
        }
    }

    /// Nobody waits for the answers of a session that is gone.
    pub(crate) fn remove_session(&mut self, session: SessionId) {
        for ticket in self.by_source.of(&Source::Session(session)) {
            if let Some(waiting) = self.parked.get_mut(&ticket) {
                waiting.input = None;
            }
        }
        for ticket in self.histories_of.take(&session) {
            if let Some(history) = self.histories.remove(&ticket) {
                self.history_keys.take(session.certificate, history.weight());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::{BlockHash, hashes::Hash as _};

    fn tip() -> BlockRef {
        BlockRef { height: 3, hash: BlockHash::all_zeros() }
    }

    /// Of the first certificate.
    fn session(number: u64) -> SessionId {
        SessionId { certificate: 1, number }
    }

    fn client_of(session: SessionId) -> Parked {
        Parked::Client { session, id: None, message: ClientMessage::Ping }
    }

    fn client(number: u64) -> Parked {
        client_of(session(number))
    }

    #[test]
    fn an_input_is_resumed_once() {
        let mut lookups = Lookups::default();
        let ticket = lookups.park(tip(), client(1), Archived::default()).expect("room");
        assert!(matches!(lookups.take(ticket), Some((tip, Parked::Client { .. }, _)) if tip == self::tip()));
        assert!(lookups.take(ticket).is_none());
        assert!(lookups.take(99).is_none());
    }

    #[test]
    fn a_session_that_is_gone_is_not_resumed_and_others_are() {
        let mut lookups = Lookups::default();
        let gone = lookups.park(tip(), client(1), Archived::default()).expect("room");
        let stays = lookups.park(tip(), client(2), Archived::default()).expect("room");
        lookups.remove_session(session(1));
        assert!(lookups.take(gone).is_none());
        assert!(lookups.take(stays).is_some());
    }

    #[test]
    fn a_subscription_that_was_ended_before_it_began_does_not_begin() {
        let mut lookups = Lookups::default();
        let key = |vout| SubscriptionKey::Outpoint(OutPoint { vout, ..OutPoint::null() });
        let subscribe = |number: u64| {
            let message = ClientMessage::subscribe((0..3).map(key).collect());
            Parked::Client { session: session(number), id: None, message }
        };
        let tickets =
            [1, 2].map(|number| lookups.park(tip(), subscribe(number), Archived::default()).expect("room"));
        lookups.remove_keys(session(1), &[key(0), key(2)]);
        let left = tickets.map(|ticket| match lookups.take(ticket) {
            Some((_, Parked::Client { message: ClientMessage::UTXOSubscribe { keys, .. }, .. }, _)) => keys,
            other => panic!("{other:?}"),
        });
        assert_eq!(left, [vec![key(1)], vec![key(0), key(1), key(2)]]);
    }

    #[test]
    fn one_over_the_limit_is_given_back_and_others_have_their_own_room() {
        let mut lookups = Lookups::default();
        for _ in 0..PARKED_PER_SOURCE_MAX {
            lookups.park(tip(), client(1), Archived::default()).expect("room");
        }
        assert!(lookups.park(tip(), client(1), Archived::default()).is_err());
        assert!(lookups.park(tip(), client(2), Archived::default()).is_ok());
        let request = VotingRequest::Released { releases: vec![] };
        let peer = Parked::Request { from: NodeId(1), to: ReplyTo::Peer(1), request };
        assert!(lookups.park(tip(), peer, Archived::default()).is_ok());
        assert!(lookups.take(1).is_some());
        assert!(lookups.park(tip(), client(1), Archived::default()).is_ok());
    }

    #[test]
    fn a_certificate_has_its_share_through_however_many_sessions() {
        let mut lookups = Lookups::default();
        for number in 0..u64::try_from(PARKED_PER_CERTIFICATE_MAX).expect("small") {
            lookups.park(tip(), client(number / 100), Archived::default()).expect("room");
            // What nobody waits for counts until the chain has answered.
            lookups.remove_session(session(number / 100));
        }
        assert!(lookups.park(tip(), client(99_999), Archived::default()).is_err());
        let other = client_of(SessionId { certificate: 2, number: 100_000 });
        assert!(lookups.park(tip(), other, Archived::default()).is_ok(), "another certificate's");
        assert!(lookups.take(1).is_none(), "nobody waits for it");
        assert!(lookups.park(tip(), client(99_999), Archived::default()).is_ok());
    }

    #[test]
    fn what_waits_is_bounded_in_bytes() {
        let mut lookups = Lookups::default();
        let keys = vec![SubscriptionKey::Script(vec![0x51; 10_000].into()); 50];
        let large = |certificate| Parked::Client {
            session: SessionId { certificate, number: 1 },
            id: None,
            message: ClientMessage::subscribe(keys.clone()),
        };
        let bytes = large(1).bytes();
        assert!(bytes > 1_000_000, "{bytes}");
        let tickets: Vec<u64> =
            std::iter::from_fn(|| lookups.park(tip(), large(1), Archived::default()).ok()).collect();
        assert_eq!(tickets.len(), PARKED_BYTES_MAX / bytes);
        assert!(lookups.park(tip(), client(2), Archived::default()).is_ok(), "a small one has room");
        assert!(lookups.park(tip(), large(2), Archived::default()).is_ok(), "another's has");
        assert!(lookups.take(tickets[0]).is_some());
        assert!(lookups.park(tip(), large(1), Archived::default()).is_ok(), "one was answered");
    }

    #[test]
    fn a_certificate_waits_for_the_history_of_so_many_keys() {
        let mut lookups = Lookups::default();
        let history = |number, certificate| History {
            session: SessionId { certificate, number },
            id: None,
            keys: vec![SubscriptionKey::Tip; 9_999],
            refused: HashMap::new(),
            since: 0,
        };
        for number in 0..200 {
            lookups.add_history(history(number, 1)).expect("room");
        }
        assert!(lookups.add_history(history(1_000, 1)).is_err(), "one too many");
        lookups.add_history(history(1_001, 2)).expect("another certificate's");
        lookups.remove_session(session(7));
        lookups.add_history(history(1_000, 1)).expect("one has gone");
        assert!(lookups.add_history(history(1_000, 1)).is_err());
        assert!(lookups.take_history(1).is_some());
        lookups.add_history(history(1_000, 1)).expect("one was told");
    }
}
