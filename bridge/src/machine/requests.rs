//! What wallets ask for: answered here, or relayed to a node.

use super::{AGENT, Machine, Output, Waiting};
use crate::{
    fees::Question,
    interest::WalletId,
    questions::Subscription,
    refusals::{coordinator_lost, no_node, too_many_accounts, too_many_requests},
    relays::{Relay, submitted_by},
};
use quorate_protocol::{
    FederationId,
    wire::{ClientMessage, ErrorCode, ServerMessage, SubscriptionKey, WireError, limits},
};
use std::{collections::BTreeSet, time::Duration};

/// Relayed requests of one session at a time.
pub(super) const RELAYS_MAX: usize = 64;
/// Wait for 2f + 1 nodes' snapshots of a new key.
const WHOLE_TIMEOUT: Duration = Duration::from_secs(1);
/// Wait for f + 1 nodes' snapshots of a new key: less than a wallet waits for its answer.
pub(super) const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(12);

impl Machine {
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "everything that the bridge does not answer itself is relayed"
    )]
    pub(super) fn dispatch(
        &mut self,
        now: Duration,
        session: WalletId,
        id: Option<u64>,
        message: ClientMessage,
    ) -> Result<(), WireError> {
        match message {
            ClientMessage::Hello { protocol, federation, .. } => {
                let welcome = self.greet(protocol, federation)?;
                if let Some(open) = self.sessions.get_mut(&session) {
                    open.greeted = true;
                }
                self.answer(session, id, welcome);
            }
            ClientMessage::Ping => self.answer(session, id, ServerMessage::Pong),
            ClientMessage::UTXOSubscribe { keys, accounts, since } => {
                SubscriptionKey::check(&keys)?;
                limits::check_accounts(accounts.len())?;
                let (keys, since) = (SubscriptionKey::distinct(keys), since.unwrap_or(0));
                self.subscribe(now, session, id, Subscription { keys, accounts, since });
            }
            ClientMessage::UTXOUnsubscribe { keys } => {
                SubscriptionKey::check(&keys)?;
                let (count, abandoned) = self.hub.unsubscribe(session, &keys);
                self.lose_interest(abandoned);
                self.answer(session, id, ServerMessage::UTXOUnsubscribed { count });
            }
            ClientMessage::FeeRateQuery => self.ask_fees(now, session, id)?,
            ClientMessage::SignResponse { txid, .. } => {
                let relay = self.relays.coordinator(session, txid).ok_or_else(coordinator_lost)?;
                self.outputs.push_back(Output::Send { relay, id, message });
            }
            ClientMessage::AccountRegister { record } => {
                let address = self.sessions.get(&session).and_then(|open| open.address);
                if !self.newcomers.admit(now, address, &record) {
                    return Err(too_many_accounts());
                }
                self.relay(now, session, id, ClientMessage::AccountRegister { record })?;
            }
            other => self.relay(now, session, id, other)?,
        }
        Ok(())
    }

    fn greet(&self, protocol: u32, pinned: Option<FederationId>) -> Result<ServerMessage, WireError> {
        let ours = self.federation;
        if protocol != limits::PROTOCOL_VERSION {
            let message = format!("this bridge speaks protocol {}, not {protocol}", limits::PROTOCOL_VERSION);
            return Err(WireError::sender(ErrorCode::UnsupportedProtocol, message));
        }
        if let Some(other) = pinned.filter(|pinned| *pinned != ours) {
            let message = format!("this bridge serves federation {ours}, not {other}");
            return Err(WireError::sender(ErrorCode::WrongFederation, message));
        }
        let tip = self.hub.tip().ok_or_else(no_node)?;
        let agent = AGENT.to_owned();
        Ok(ServerMessage::Welcome { protocol, federation: ours, agent, tip })
    }

    fn subscribe(&mut self, now: Duration, session: WalletId, id: Option<u64>, mut call: Subscription) {
        let address = self.sessions.get(&session).and_then(|open| open.address);
        let mut turned_away = BTreeSet::new();
        call.accounts.retain(|account, record| {
            let (key, admitted) =
                (SubscriptionKey::Account(*account), self.newcomers.admit(now, address, record));
            // Nodes that know the account already need no record of it.
            if !admitted && !self.hub.follows(&key) {
                turned_away.insert(key);
            }
            admitted
        });
        let asked = call.keys.clone();
        call.keys.retain(|key| !turned_away.contains(key));
        let (mut refused, questions) = self.hub.subscribe(now, session, &call);
        refused.extend(turned_away.into_iter().map(|key| (key, too_many_accounts())));
        call.keys = asked;
        if let Some(open) = self.sessions.get_mut(&session) {
            open.forgive(&call.keys);
        }
        self.outputs.extend(questions.into_iter().map(Output::Interest));
        let (less_from, until) = (now + WHOLE_TIMEOUT, now + SNAPSHOT_TIMEOUT);
        self.waiting.push(Waiting { session, id, call, refused, less_from, until });
        self.answer_waiting();
    }

    /// Answers the subscriptions whose keys some node has told of.
    pub(super) fn answer_waiting(&mut self) {
        let (ready, waiting) =
            std::mem::take(&mut self.waiting).into_iter().partition(|one| self.hub.is_ready(&one.call.keys));
        self.waiting = waiting;
        let ready: Vec<Waiting> = ready;
        for Waiting { session, id, call, refused, .. } in ready {
            self.hub.answer_subscription(session, id, &call, &refused);
        }
    }

    pub(super) fn lose_interest(&mut self, mut keys: Vec<SubscriptionKey>) {
        keys.sort_unstable();
        for keys in keys.chunks(limits::KEYS_PER_MESSAGE_MAX) {
            self.outputs.push_back(Output::Interest(ClientMessage::UTXOUnsubscribe { keys: keys.to_vec() }));
        }
    }

    /// Every node is asked: no single one says what a wallet pays.
    fn ask_fees(&mut self, now: Duration, session: WalletId, id: Option<u64>) -> Result<(), WireError> {
        if self.fees.waiting(session) >= RELAYS_MAX {
            return Err(too_many_requests("a session", RELAYS_MAX));
        }
        if self.fees.ask(now, Question { session, id }) {
            self.outputs.push_back(Output::Interest(ClientMessage::FeeRateQuery));
        }
        self.answer_fees(Some(now));
        Ok(())
    }

    pub(super) fn answer_fees(&mut self, now: Option<Duration>) {
        let (questions, estimates) = self.fees.ready(now, self.links.len());
        for Question { session, id } in questions {
            match estimates {
                Some(estimates) => self.answer(session, id, ServerMessage::FeeRate { estimates }),
                None => self.refuse(session, id, no_node()),
            }
        }
    }

    fn relay(
        &mut self,
        now: Duration,
        session: WalletId,
        id: Option<u64>,
        message: ClientMessage,
    ) -> Result<(), WireError> {
        let Some(open) = self.sessions.get_mut(&session) else { return Ok(()) };
        let (address, txid) = (open.address, submitted_by(&message));
        // What takes the place of another one needs none of its own.
        if txid.and_then(|txid| self.relays.coordinator(session, txid)).is_none() {
            if open.relays.len() >= RELAYS_MAX {
                return Err(too_many_requests("a session", RELAYS_MAX));
            }
            self.relays.check(address).map_err(|(whose, most)| too_many_requests(whose, most))?;
        }
        let (relay, replaced) = self.relays.add(now, Relay { session, address, id, txid });
        open.relays.insert(relay);
        if let Some(old) = replaced {
            open.relays.remove(&old);
            self.outputs.push_back(Output::Drop(old));
        }
        self.outputs.push_back(Output::Open { relay, id, message });
        Ok(())
    }
}
