//! Requests that a node answers in the bridge's place.

use crate::hub::WalletId;
use bitcoin::Txid;
use quorate_protocol::wire::{ClientMessage, ServerMessage, TransactionStatus};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

/// Wait for a node's answer to a relayed query.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);

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
    /// When a query has to have its answer, oldest first.
    deadlines: VecDeque<(Duration, RelayId)>,
    last: u64,
}

impl Relays {
    /// Adds one. A transaction that its session submits again goes to another node: the relay that it had is given back, ended.
    pub(crate) fn add(&mut self, now: Duration, relay: Relay) -> (RelayId, Option<RelayId>) {
        self.last += 1;
        let number = RelayId(self.last);
        let mut replaced = None;
        match relay.txid {
            Some(txid) => replaced = self.coordinators.insert((relay.session, txid), number),
            None => self.deadlines.push_back((now + QUERY_TIMEOUT, number)),
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
        if let Some(txid) = ended.txid
            && self.coordinator(ended.session, txid) == Some(relay)
        {
            self.coordinators.remove(&(ended.session, txid));
        }
        Some(ended)
    }

    /// Queries whose time is over.
    pub(crate) fn expired(&mut self, now: Duration) -> Vec<RelayId> {
        let mut expired = Vec::new();
        while let Some((_, relay)) = self.deadlines.pop_front_if(|(at, _)| now >= *at) {
            expired.extend(self.open.contains_key(&relay).then_some(relay));
        }
        expired
    }

    /// How many are under way.
    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }
}

/// The transaction that a request has the federation finish or stop. Such a request is followed until it ends: the wallet may have to sign.
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
                | TransactionStatus::Rejected { .. }
                | TransactionStatus::Failed { .. }
                | TransactionStatus::AbortedByzantine { .. }
        ),
        ServerMessage::Error { .. } => true,
        _progress => false,
    }
}
