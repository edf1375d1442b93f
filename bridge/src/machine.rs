//! The bridge without I/O: sessions of wallets, what they are interested in, and what nodes say.
//!
//! A driver hands in what comes from sockets, carries out the outputs in order, and writes what
//! [`Machine::poll_message`] gives. Nothing here waits: a wallet that does not read costs its own queue, and then its
//! session.

use crate::{
    fees::Estimates,
    frame::Frame,
    hub::{Delivery, Hub},
    interest::WalletId,
    newcomers::Newcomers,
    questions::Subscription,
    refusals::{coordinator_lost, no_node},
    relays::{Relay, RelayId, Relays, ends_answer, ends_submission},
    session::{NEWS_MAX, Next, Session},
    tips::LinkId,
};
use quorate_protocol::{
    FederationId,
    wire::{ClientMessage, ErrorCode, Pages, ServerMessage, SubscriptionKey, WireError, limits},
};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::IpAddr,
    time::Duration,
};

/// The name by which it greets.
const AGENT: &str = concat!("quorate-bridge/", env!("CARGO_PKG_VERSION"));
/// How long keys are followed at least that nobody is subscribed to any more, and at most twice as long: most wallets
/// that lose their connection come back at once, and nodes need not be asked for everything again.
const LINGER: Duration = Duration::from_secs(30);
/// What may wait for all sessions together, in bytes; beyond that, those that have most waiting are let go.
const QUEUED_MAX: usize = 1 << 30;

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
    /// Keys for which a session, an address or the bridge had no room.
    pub refused: u64,
    /// Accounts that an address wanted registered beyond its share.
    pub accounts_refused: u64,
}

/// A subscription whose keys no node has told of yet.
#[derive(Debug)]
struct Waiting {
    session: WalletId,
    id: Option<u64>,
    call: Subscription,
    refused: HashMap<SubscriptionKey, WireError>,
    /// From then on, f + 1 nodes are enough.
    less_from: Duration,
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
    newcomers: Newcomers,
    fees: Estimates,
    /// Answers of event streams that are not whole yet.
    links: BTreeMap<LinkId, Pages>,
    last_session: u64,
    /// What waits for all sessions, in bytes, and how much may.
    queued: usize,
    queued_max: usize,
    /// When keys that nobody wants any more are looked through.
    sweep_at: Duration,
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
            newcomers: Newcomers::default(),
            fees: Estimates::new(nodes),
            links: BTreeMap::new(),
            last_session: 0,
            queued: 0,
            queued_max: QUEUED_MAX,
            sweep_at: LINGER,
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

    /// With other room for what waits for all sessions together than 1 GiB.
    #[must_use]
    pub fn with_queued_max(self, queued_max: usize) -> Self {
        Self { queued_max, ..self }
    }

    /// The next thing to do, in order. Drain to `None` after every `handle_*`.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// What is there to write to a session.
    pub fn poll_message(&mut self, session: WalletId) -> Next {
        self.with_queue(session, |open, _room| open.next()).unwrap_or(Next::Closed)
    }

    /// A wallet has connected, from an address; none if it is this machine's own.
    pub fn handle_opened(&mut self, now: Duration, address: Option<IpAddr>) -> WalletId {
        self.last_session += 1;
        let session = WalletId(self.last_session);
        self.hub.open(session, address);
        self.sessions.insert(session, Session::new(now, address));
        session
    }

    /// A wallet's connection is gone.
    pub fn handle_closed(&mut self, session: WalletId) {
        let Some(closed) = self.sessions.remove(&session) else { return };
        self.queued = self.queued.saturating_sub(closed.queued());
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

    /// A relay's stream is gone, or silent for too long.
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
        let tip = ClientMessage::subscribe(vec![SubscriptionKey::Tip]);
        [hello(), tip].into_iter().chain(self.hub.questions()).collect()
    }

    /// A node's event stream is gone.
    pub fn handle_link_lost(&mut self, link: LinkId) {
        if self.links.remove(&link).is_none() {
            return;
        }
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
            ServerMessage::UTXOStateNotification { key, utxo, proof, followed, .. } => {
                if let Some(followed) = followed {
                    self.hub.follow(link, &key, followed);
                }
                self.hub.notify(link, &key, &utxo, proof.map(|proof| *proof));
            }
            ServerMessage::UTXOSubscribed { results, tip, more, since } => {
                let whole = pages.take(results, more);
                self.hub.take_tip(link, tip);
                for result in whole.into_iter().flatten() {
                    self.hub.take_result(link, since.unwrap_or(0), result);
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

    /// Fires expired deadlines of subscriptions and requests; calling early or twice is harmless.
    pub fn handle_timeout(&mut self, now: Duration) {
        for one in self.waiting.iter().filter(|one| now >= one.less_from) {
            self.hub.settle_for_less(&one.call.keys);
        }
        self.answer_waiting();
        let (expired, waiting) =
            std::mem::take(&mut self.waiting).into_iter().partition(|one| now >= one.until);
        self.waiting = waiting;
        let expired: Vec<Waiting> = expired;
        for Waiting { session, id, call, mut refused, .. } in expired {
            // One key that nobody tells of is no reason to leave the others unwatched.
            let untold = call.keys.iter().filter(|key| !self.hub.is_ready(std::slice::from_ref(key)));
            let untold: Vec<_> = untold.map(|key| (key.clone(), no_node())).collect();
            if untold.len() == call.keys.len() {
                self.refuse(session, id, no_node());
            } else {
                refused.extend(untold);
                self.hub.answer_subscription(session, id, &call, &refused);
            }
        }
        if now >= self.sweep_at {
            self.sweep_at = now + LINGER;
            self.newcomers.sweep(now);
            let abandoned = self.hub.sweep(now);
            self.lose_interest(abandoned);
        }
        for relay in self.relays.expired(now) {
            self.handle_relay_lost(relay);
        }
        self.answer_fees(Some(now));
        self.deliver();
    }

    /// Ends a session that is silent or has not greeted in time; the driver asks when it pings.
    pub fn check_alive(&mut self, now: Duration, session: WalletId) {
        if self.sessions.get(&session).is_some_and(|open| open.is_dead(now)) {
            self.with_queue(session, |open, _room| open.close());
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
        let (duplicates, refused) = (self.hub.duplicates, self.hub.refused);
        let accounts_refused = self.newcomers.refused();
        Counters { forwarded: self.forwarded, duplicates, gaps: self.gaps, refused, accounts_refused }
    }

    fn answer(&mut self, session: WalletId, id: Option<u64>, message: ServerMessage) {
        let frame = Frame::new(id, &message);
        self.make_room(frame.0.len());
        if self.with_queue(session, |open, room| open.answer(frame, room)).is_some() {
            self.outputs.push_back(Output::Ready(session));
        }
    }

    /// Who has most waiting pays for it, and not who asks next.
    fn make_room(&mut self, bytes: usize) {
        while self.queued.saturating_add(bytes) > self.queued_max {
            let most = self.sessions.iter().max_by_key(|(_, open)| open.queued());
            let Some((session, _)) = most.filter(|(_, open)| open.queued() > 0) else { return };
            let session = *session;
            self.with_queue(session, |open, _room| open.close());
            self.outputs.push_back(Output::Ready(session));
        }
    }

    /// Changes what waits for a session, which may grow by so many bytes.
    fn with_queue<T>(
        &mut self,
        session: WalletId,
        change: impl FnOnce(&mut Session, usize) -> T,
    ) -> Option<T> {
        let open = self.sessions.get_mut(&session)?;
        let others = self.queued.saturating_sub(open.queued());
        let result = change(open, self.queued_max.saturating_sub(self.queued));
        self.queued = others.saturating_add(open.queued());
        Some(result)
    }

    fn refuse(&mut self, session: WalletId, id: Option<u64>, error: WireError) {
        self.answer(session, id, ServerMessage::Error { error });
    }

    /// Queues what the hub has for sessions.
    fn deliver(&mut self) {
        while let Some(Delivery { session, key, frame }) = self.hub.poll_delivery() {
            let most = self.news_max;
            match key {
                None => {
                    self.make_room(frame.0.len());
                    self.with_queue(session, |open, room| open.answer(frame, room));
                }
                Some(key) => {
                    let news = |open: &mut Session, room| open.news(&key, frame, most, room);
                    match self.with_queue(session, news) {
                        Some(true) => self.forwarded += 1,
                        Some(false) => {
                            self.gaps += 1;
                            self.hub.mute(session, &key);
                        }
                        None => continue,
                    }
                }
            }
            self.outputs.push_back(Output::Ready(session));
        }
    }
}

/// What the bridge says first to a node.
pub(crate) fn hello() -> ClientMessage {
    ClientMessage::Hello { protocol: limits::PROTOCOL_VERSION, federation: None, agent: AGENT.to_owned() }
}

mod requests;
#[cfg(test)]
mod tests;
