//! The bridge without I/O: sessions of wallets, what they are interested in, and what nodes say.
//!
//! A driver hands in what comes from sockets, carries out the outputs in order, and writes what
//! [`Machine::poll_message`] gives. Nothing here waits: a wallet that does not read costs its own queue, and then its
//! session.

use crate::{
    fees::{Estimates, Question},
    hub::{Hub, WalletId},
    relays::{Relay, RelayId, Relays, ends_answer, ends_submission, submitted_by},
    session::{NEWS_MAX, Next, Session},
    tips::LinkId,
};
use quorate_protocol::{
    FederationId,
    wire::{ClientMessage, ErrorCode, Fault, Pages, ServerMessage, SubscriptionKey, WireError, limits},
};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::Duration,
};

/// The name by which it greets.
const AGENT: &str = concat!("quorate-bridge/", env!("CARGO_PKG_VERSION"));
/// Relayed requests of one session at a time.
const RELAYS_MAX: usize = 256;
/// Wait for f + 1 nodes' snapshots of a new key.
const SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(5);

/// What the driver has to do, in order.
#[derive(Debug)]
pub enum Output {
    /// Send on the event stream of every node; one that connects later gets [`Machine::handle_link_opened`]'s messages.
    Interest(ClientMessage),
    /// Open a stream to a node and send this on it.
    Open {
        /// The relay that its answers belong to.
        relay: RelayId,
        /// The wallet's number of the message.
        id: Option<u64>,
        /// The message.
        message: ClientMessage,
    },
    /// Send on a relay's stream.
    Send {
        /// The relay.
        relay: RelayId,
        /// The wallet's number of the message.
        id: Option<u64>,
        /// The message.
        message: ClientMessage,
    },
    /// Close a relay's stream.
    Drop(RelayId),
    /// There is something to write to a session, or it is over.
    Ready(WalletId),
}

/// For `/metrics`.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counters {
    /// Notifications sent to sessions.
    pub forwarded: u64,
    /// Copies from other nodes that were dropped.
    pub duplicates: u64,
    /// Subscriptions that lost notifications because a session was slow.
    pub gaps: u64,
}

/// A subscription whose keys no node has told of yet.
#[derive(Debug)]
struct Waiting {
    session: WalletId,
    id: Option<u64>,
    keys: Vec<SubscriptionKey>,
    refused: HashMap<SubscriptionKey, WireError>,
    until: Duration,
}

/// The machine.
#[derive(Debug)]
pub struct Machine {
    federation: FederationId,
    news_max: usize,
    hub: Hub,
    sessions: BTreeMap<WalletId, Session>,
    waiting: Vec<Waiting>,
    relays: Relays,
    fees: Estimates,
    /// Answers of event streams that are not whole yet.
    links: BTreeMap<LinkId, Pages>,
    last_session: u64,
    forwarded: u64,
    gaps: u64,
    outputs: VecDeque<Output>,
}

impl Machine {
    /// A bridge to one federation with so many nodes.
    pub fn new(federation: FederationId, nodes: usize) -> Self {
        Self {
            federation,
            news_max: NEWS_MAX,
            hub: Hub::new(nodes),
            sessions: BTreeMap::new(),
            waiting: Vec::new(),
            relays: Relays::default(),
            fees: Estimates::new(nodes),
            links: BTreeMap::new(),
            last_session: 0,
            forwarded: 0,
            gaps: 0,
            outputs: VecDeque::new(),
        }
    }

    /// With other room for news of one session than 1,024 messages.
    #[must_use]
    pub fn with_news_max(self, news_max: usize) -> Self {
        Self { news_max, ..self }
    }

    /// The next thing to do, in order. Drain to `None` after every `handle_*`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// What is there to write to a session.
    pub fn poll_message(&mut self, session: WalletId) -> Next {
        self.sessions.get_mut(&session).map_or(Next::Closed, Session::next)
    }

    /// A wallet has connected.
    pub fn handle_opened(&mut self, now: Duration) -> WalletId {
        self.last_session += 1;
        let session = WalletId(self.last_session);
        self.hub.open(session);
        self.sessions.insert(session, Session::new(now));
        session
    }

    /// A wallet's connection is gone.
    pub fn handle_closed(&mut self, session: WalletId) {
        let Some(closed) = self.sessions.remove(&session) else { return };
        let abandoned = self.hub.close(session);
        self.lose_interest(abandoned);
        self.waiting.retain(|waiting| waiting.session != session);
        self.fees.close(session);
        for relay in closed.relays {
            self.relays.remove(relay);
            self.outputs.push_back(Output::Drop(relay));
        }
    }

    /// A ping or pong of a wallet.
    pub fn handle_alive(&mut self, now: Duration, session: WalletId) {
        if let Some(open) = self.sessions.get_mut(&session) {
            open.heard(now);
        }
    }

    /// A text frame of a wallet that is no message, with the number in it, if it could be read.
    pub fn handle_malformed(&mut self, now: Duration, session: WalletId, id: Option<u64>, error: WireError) {
        self.handle_alive(now, session);
        self.refuse(session, id, error);
    }

    /// A frame of a wallet that is no text.
    pub fn handle_binary(&mut self, now: Duration, session: WalletId) {
        self.handle_alive(now, session);
        self.refuse(session, None, WireError::sender(ErrorCode::MalformedMessage, "send text frames"));
    }

    /// A wallet's message.
    pub fn handle_message(
        &mut self,
        now: Duration,
        session: WalletId,
        id: Option<u64>,
        message: ClientMessage,
    ) {
        self.handle_alive(now, session);
        let Some(open) = self.sessions.get(&session) else { return };
        let hello = matches!(message, ClientMessage::Hello { .. });
        let answer = match (open.greeted, hello) {
            (false, false) => {
                Err(WireError::sender(ErrorCode::HelloExpected, "the first message has to be Hello"))
            }
            (true, true) => Err(WireError::sender(ErrorCode::AlreadyGreeted, "Hello comes once")),
            (true, false) | (false, true) => self.dispatch(now, session, id, message),
        };
        if let Err(error) = answer {
            self.refuse(session, id, error);
        }
        self.deliver();
    }

    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "everything that the bridge does not answer itself is relayed"
    )]
    fn dispatch(
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
            ClientMessage::UTXOSubscribe { keys } => {
                limits::check_keys(keys.len())?;
                self.subscribe(now, session, id, SubscriptionKey::distinct(keys));
            }
            ClientMessage::UTXOUnsubscribe { keys } => {
                limits::check_keys(keys.len())?;
                let (count, abandoned) = self.hub.unsubscribe(session, &keys);
                self.lose_interest(abandoned);
                self.answer(session, id, ServerMessage::UTXOUnsubscribed { count });
            }
            ClientMessage::FeeRateQuery => self.ask_fees(now, session, id)?,
            ClientMessage::SignResponse { txid, .. } => {
                let relay = self.relays.coordinator(session, txid).ok_or_else(coordinator_lost)?;
                self.outputs.push_back(Output::Send { relay, id, message });
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

    fn subscribe(&mut self, now: Duration, session: WalletId, id: Option<u64>, keys: Vec<SubscriptionKey>) {
        let (refused, new) = self.hub.subscribe(session, &keys);
        if let Some(open) = self.sessions.get_mut(&session) {
            open.forgive(&keys);
        }
        if !new.is_empty() {
            self.outputs.push_back(Output::Interest(ClientMessage::UTXOSubscribe { keys: new }));
        }
        self.waiting.push(Waiting { session, id, keys, refused, until: now + SNAPSHOT_TIMEOUT });
        self.answer_waiting();
    }

    /// Answers the subscriptions whose keys some node has told of.
    fn answer_waiting(&mut self) {
        let (ready, waiting) =
            std::mem::take(&mut self.waiting).into_iter().partition(|one| self.hub.is_ready(&one.keys));
        self.waiting = waiting;
        let ready: Vec<Waiting> = ready;
        for Waiting { session, id, keys, refused, .. } in ready {
            self.hub.answer_subscription(session, id, &keys, &refused);
        }
    }

    fn lose_interest(&mut self, mut keys: Vec<SubscriptionKey>) {
        keys.sort_unstable();
        for keys in keys.chunks(limits::KEYS_PER_MESSAGE_MAX) {
            self.outputs.push_back(Output::Interest(ClientMessage::UTXOUnsubscribe { keys: keys.to_vec() }));
        }
    }

    /// Every node is asked: no single one says what a wallet pays.
    fn ask_fees(&mut self, now: Duration, session: WalletId, id: Option<u64>) -> Result<(), WireError> {
        if self.fees.waiting(session) >= RELAYS_MAX {
            return Err(too_many_requests());
        }
        if self.fees.ask(now, Question { session, id }) {
            self.outputs.push_back(Output::Interest(ClientMessage::FeeRateQuery));
        }
        self.answer_fees(Some(now));
        Ok(())
    }

    fn answer_fees(&mut self, now: Option<Duration>) {
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
        if open.relays.len() >= RELAYS_MAX {
            return Err(too_many_requests());
        }
        let txid = submitted_by(&message);
        let (relay, replaced) = self.relays.add(now, Relay { session, id, txid });
        open.relays.insert(relay);
        if let Some(old) = replaced {
            open.relays.remove(&old);
            self.outputs.push_back(Output::Drop(old));
        }
        self.outputs.push_back(Output::Open { relay, id, message });
        Ok(())
    }

    /// A node's message on a relay's stream.
    pub fn handle_answer(&mut self, now: Duration, relay: RelayId, id: Option<u64>, message: ServerMessage) {
        let Some(open) = self.relays.get(relay) else { return };
        if matches!(message, ServerMessage::Welcome { .. }) {
            return;
        }
        let ends = if open.txid.is_some() { ends_submission(&message) } else { ends_answer(&message) };
        let session = open.session;
        self.answer(session, id, message);
        if ends {
            self.end_relay(relay);
        } else {
            self.relays.heard(now, relay);
        }
    }

    /// No node could be reached for a relay.
    pub fn handle_unreachable(&mut self, relay: RelayId) {
        self.fail_relay(relay, no_node());
    }

    /// A relay's stream is gone.
    pub fn handle_relay_lost(&mut self, relay: RelayId) {
        let submission = self.relays.get(relay).is_some_and(|open| open.txid.is_some());
        self.fail_relay(relay, if submission { coordinator_lost() } else { no_node() });
    }

    fn fail_relay(&mut self, relay: RelayId, error: WireError) {
        let Some(Relay { session, id, .. }) = self.relays.get(relay) else { return };
        let (session, id) = (*session, *id);
        self.end_relay(relay);
        self.refuse(session, id, error);
    }

    fn end_relay(&mut self, relay: RelayId) {
        let Some(ended) = self.relays.remove(relay) else { return };
        if let Some(open) = self.sessions.get_mut(&ended.session) {
            open.relays.remove(&relay);
        }
        self.outputs.push_back(Output::Drop(relay));
    }

    /// A node's event stream is open; gives what to send on it first.
    pub fn handle_link_opened(&mut self, link: LinkId) -> Vec<ClientMessage> {
        self.links.insert(link, Pages::default());
        let mut keys = self.hub.keys();
        keys.sort_unstable();
        let tip = ClientMessage::UTXOSubscribe { keys: vec![SubscriptionKey::Tip] };
        let keys = keys.chunks(limits::KEYS_PER_MESSAGE_MAX);
        let keys = keys.map(|keys| ClientMessage::UTXOSubscribe { keys: keys.to_vec() });
        [hello(), tip].into_iter().chain(keys).collect()
    }

    /// A node's event stream is gone.
    pub fn handle_link_lost(&mut self, link: LinkId) {
        self.links.remove(&link);
        self.hub.forget_link(link);
        self.fees.forget(link);
        self.answer_fees(None);
    }

    /// A node's message on its event stream.
    ///
    /// # Errors
    /// The node refuses something; the stream is of no use any more.
    pub fn handle_event(&mut self, link: LinkId, message: ServerMessage) -> Result<(), WireError> {
        let Some(pages) = self.links.get_mut(&link) else { return Ok(()) };
        match message {
            ServerMessage::UTXOStateNotification { key, utxo, proof, .. } => {
                self.hub.notify(link, &key, &utxo, proof.map(|proof| *proof));
            }
            ServerMessage::UTXOSubscribed { results, tip, more } => {
                let whole = pages.take(results, more);
                self.hub.take_tip(link, tip);
                for result in whole.into_iter().flatten() {
                    self.hub.take_result(link, result);
                }
                self.answer_waiting();
            }
            ServerMessage::TransactionStatus { txid, status } => self.hub.take_status(link, txid, &status),
            ServerMessage::Tip { tip } => self.hub.take_tip(link, tip),
            ServerMessage::FeeRate { estimates } => {
                self.fees.take(link, estimates);
                self.answer_fees(None);
            }
            ServerMessage::Error { error } => return Err(error),
            ServerMessage::Welcome { .. }
            | ServerMessage::UTXOUnsubscribed { .. }
            | ServerMessage::UTXOStateResponse { .. }
            | ServerMessage::SignRequest { .. }
            | ServerMessage::AccountCertified { .. }
            | ServerMessage::Federation { .. }
            | ServerMessage::Headers { .. }
            | ServerMessage::Proof { .. }
            | ServerMessage::Gap { .. }
            | ServerMessage::GoingAway { .. }
            | ServerMessage::Pong => {}
        }
        self.deliver();
        Ok(())
    }

    /// Fires expired deadlines of subscriptions and queries; calling early or twice is harmless.
    pub fn handle_timeout(&mut self, now: Duration) {
        let (expired, waiting) =
            std::mem::take(&mut self.waiting).into_iter().partition(|one| now >= one.until);
        self.waiting = waiting;
        let expired: Vec<Waiting> = expired;
        for Waiting { session, id, .. } in expired {
            self.refuse(session, id, no_node());
        }
        for relay in self.relays.expired(now) {
            self.fail_relay(relay, no_node());
        }
        self.answer_fees(Some(now));
    }

    /// Ends a session that is silent or has not greeted in time; the driver asks when it pings.
    pub fn check_alive(&mut self, now: Duration, session: WalletId) {
        if let Some(open) = self.sessions.get_mut(&session).filter(|open| open.is_dead(now)) {
            open.close();
            self.outputs.push_back(Output::Ready(session));
        }
    }

    /// Whether enough nodes have told of a tip: nobody can be greeted before.
    pub fn is_useful(&self) -> bool {
        self.hub.tip().is_some()
    }

    /// Sessions and relays open.
    pub fn sizes(&self) -> (usize, usize) {
        (self.sessions.len(), self.relays.len())
    }

    /// Keys that somebody is subscribed to.
    pub fn keys(&self) -> usize {
        self.hub.key_count()
    }

    /// For `/metrics`.
    pub fn counters(&self) -> Counters {
        Counters { forwarded: self.forwarded, duplicates: self.hub.duplicates, gaps: self.gaps }
    }

    fn answer(&mut self, session: WalletId, id: Option<u64>, message: ServerMessage) {
        if let Some(open) = self.sessions.get_mut(&session) {
            open.answer(id, message);
            self.outputs.push_back(Output::Ready(session));
        }
    }

    fn refuse(&mut self, session: WalletId, id: Option<u64>, error: WireError) {
        self.answer(session, id, ServerMessage::Error { error });
    }

    /// Queues what the hub has for sessions.
    fn deliver(&mut self) {
        while let Some(delivery) = self.hub.poll_delivery() {
            let Some(open) = self.sessions.get_mut(&delivery.session) else { continue };
            match delivery.key {
                None => open.answer(delivery.id, delivery.message),
                Some(key) => {
                    if open.news(key.clone(), delivery.message, self.news_max) {
                        self.forwarded += 1;
                    } else {
                        self.gaps += 1;
                        self.hub.mute(delivery.session, &key);
                    }
                }
            }
            self.outputs.push_back(Output::Ready(delivery.session));
        }
    }
}

/// What the bridge says first to a node.
pub(crate) fn hello() -> ClientMessage {
    ClientMessage::Hello { protocol: limits::PROTOCOL_VERSION, federation: None, agent: AGENT.to_owned() }
}

fn no_node() -> WireError {
    let message = "no node is reachable at the moment; try again";
    WireError::passing(ErrorCode::NoNodeAvailable, Fault::Receiver, message)
}

fn too_many_requests() -> WireError {
    let error = WireError::limit(ErrorCode::LimitExceeded, "requests under way", RELAYS_MAX, RELAYS_MAX + 1);
    WireError { retry: true, ..error }
}

fn coordinator_lost() -> WireError {
    let message = "the connection to the coordinating node was lost; submit it again";
    WireError::passing(ErrorCode::CoordinatorLost, Fault::Network, message)
}

#[cfg(test)]
mod tests;
