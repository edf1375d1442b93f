//! Requests that a node answers in the bridge's place.

use crate::interest::WalletId;
use bitcoin::Txid;
use quorate_protocol::wire::{ClientMessage, ServerMessage, TransactionStatus};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    time::Duration,
};

/// Wait for a node's answer to a relayed query, and for each further page of it.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// Added for finding a node that has a stream to spare.
const OPEN_TIMEOUT: Duration = Duration::from_secs(3);

/// A relayed request, by the machine's number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RelayId(pub u64);

/// A relayed request.
#[derive(Debug)]
pub(crate) struct Relay {
    pub(crate) session: WalletId,
    /// The request's number, for an answer of the bridge's own.
    pub(crate) id: Option<u64>,
    /// The transaction that it submits, if it does.
    pub(crate) txid: Option<Txid>,
}

/// All that are under way.
#[derive(Debug, Default)]
pub(crate) struct Relays {
    open: BTreeMap<RelayId, Relay>,
    /// Where the wallet's part of a signing session goes.
    coordinators: HashMap<(WalletId, Txid), RelayId>,
    /// When a query has to have its next answer.
    deadlines: BTreeSet<(Duration, RelayId)>,
    due: HashMap<RelayId, Duration>,
    last: u64,
}

impl Relays {
    /// Adds one. A transaction that its session submits again goes to another node: the relay that it had is given
    /// back, ended.
    pub(crate) fn add(&mut self, now: Duration, relay: Relay) -> (RelayId, Option<RelayId>) {
        self.last += 1;
        let number = RelayId(self.last);
        let mut replaced = None;
        match relay.txid {
            Some(txid) => replaced = self.coordinators.insert((relay.session, txid), number),
            None => self.expect_by(number, now + OPEN_TIMEOUT + QUERY_TIMEOUT),
        }
        self.open.insert(number, relay);
        if let Some(old) = replaced {
            self.open.remove(&old);
        }
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

    /// A query has had a part of its answer, and the next is due.
    pub(crate) fn heard(&mut self, now: Duration, relay: RelayId) {
        if self.open.get(&relay).is_some_and(|open| open.txid.is_none()) {
            self.expect_by(relay, now + QUERY_TIMEOUT);
        }
    }

    fn expect_by(&mut self, relay: RelayId, at: Duration) {
        if let Some(before) = self.due.insert(relay, at) {
            self.deadlines.remove(&(before, relay));
        }
        self.deadlines.insert((at, relay));
    }

    /// Queries whose time is over.
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
