//! The driver of the simulated bridge around its real hub: sessions of wallets and subscribers, event streams, relays.

use crate::{
    faults::Fault,
    world::{Event, Owner, World},
};
use bitcoin::Txid;
use quorate::{
    NodeId,
    wire::{ClientMessage, ErrorCode, Fault as At, Pages, ServerMessage, SubscriptionKey, WireError, limits},
};
use quorate_bridge::hub::{Hub, SessionId as HubSession, ends_answer, ends_submission, submitted_by};
use quorate_rules::SessionId;
use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};
use tokio::sync::mpsc;

/// Messages that may wait for one session; small, so that slow subscribers see gaps.
const QUEUE_MAX: usize = 64;
/// Wait before a node is connected again.
const RECONNECT: Duration = Duration::from_millis(250);

type Queued = (Option<u64>, ServerMessage);

/// Who is at the other end of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Party {
    /// A wallet, on its n-th connection.
    Wallet(usize, u64),
    /// A plain subscriber, on its n-th connection.
    Subscriber(usize, u64),
}

#[derive(Debug)]
struct Open {
    party: Party,
    queue: mpsc::Receiver<Queued>,
    slow: bool,
}

#[derive(Debug)]
struct Waiting {
    session: HubSession,
    id: Option<u64>,
    keys: Vec<SubscriptionKey>,
    refused: HashMap<SubscriptionKey, WireError>,
}

#[derive(Debug)]
struct Relay {
    session: HubSession,
    id: Option<u64>,
    node: NodeId,
    upstream: SessionId,
    txid: Option<Txid>,
}

/// The bridge.
#[derive(Debug, Default)]
pub struct SimBridge {
    hub: Hub,
    /// Event streams: number of the connection and session at the node.
    links: BTreeMap<NodeId, (u64, SessionId)>,
    /// Answers of event streams that are not whole yet, by connection.
    pages: BTreeMap<u64, Pages>,
    sessions: BTreeMap<u64, Open>,
    waiting: Vec<Waiting>,
    relays: BTreeMap<u64, Relay>,
    next: u64,
    turn: usize,
    down: bool,
}

impl SimBridge {
    /// Whether it takes connections.
    pub fn is_up(&self) -> bool {
        !self.down && self.hub.tip().is_some()
    }

    fn number(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    /// Whether it reads a session slowly on purpose.
    pub fn set_slow(&mut self, session: u64, slow: bool) {
        if let Some(open) = self.sessions.get_mut(&session) {
            open.slow = slow;
        }
    }

    /// Sessions and relays open.
    pub fn sizes(&self) -> (usize, usize) {
        (self.sessions.len(), self.relays.len())
    }

    fn wanted(&self) -> Vec<SubscriptionKey> {
        let mut keys = self.hub.keys();
        keys.sort();
        keys
    }
}

impl World {
    /// Connects the bridge's event stream to a node, or tries again later.
    pub(crate) fn bridge_connect(&mut self, id: NodeId) {
        if self.bridge.down || self.bridge.links.contains_key(&id) {
            return;
        }
        let connection = self.bridge.number();
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.machine.is_none() {
            return self.schedule(RECONNECT, Event::BridgeConnect { node: id });
        }
        let session = node.open_session(Owner::Events { connection });
        self.bridge.links.insert(id, (connection, session));
        self.say(id, session, None, hello());
        let mut keys = vec![SubscriptionKey::Tip];
        keys.extend(self.bridge.wanted());
        self.say(id, session, None, ClientMessage::UTXOSubscribe { keys });
    }

    /// Sends a client's message to a node.
    pub(crate) fn say(&mut self, node: NodeId, session: SessionId, id: Option<u64>, message: ClientMessage) {
        let wait = Duration::from_micros(300);
        self.schedule(wait, Event::ClientSays { node, session, id, message: Box::new(message) });
    }

    /// A party connects; gives the number of its session.
    pub(crate) fn bridge_open(&mut self, party: Party) -> Option<u64> {
        if !self.bridge.is_up() {
            return None;
        }
        let number = self.bridge.number();
        let (sender, queue) = mpsc::channel(QUEUE_MAX);
        self.bridge.hub.open(HubSession(number), sender);
        self.bridge.sessions.insert(number, Open { party, queue, slow: false });
        Some(number)
    }

    /// A party's session ends.
    pub(crate) fn bridge_close(&mut self, number: u64) {
        if self.bridge.sessions.remove(&number).is_some() {
            let abandoned = self.bridge.hub.close(HubSession(number));
            self.tell_interest(abandoned, false);
            self.bridge.waiting.retain(|waiting| waiting.session != HubSession(number));
            let ended: Vec<_> = self
                .bridge
                .relays
                .iter()
                .filter(|(_, relay)| relay.session == HubSession(number))
                .map(|(relay, _)| *relay)
                .collect();
            ended.into_iter().for_each(|relay| self.end_relay(relay));
        }
    }

    fn tell_interest(&mut self, mut keys: Vec<SubscriptionKey>, begin: bool) {
        keys.sort();
        if keys.is_empty() {
            return;
        }
        for (node, (_, session)) in self.bridge.links.clone() {
            let keys = keys.clone();
            let message = if begin {
                ClientMessage::UTXOSubscribe { keys }
            } else {
                ClientMessage::UTXOUnsubscribe { keys }
            };
            self.say(node, session, None, message);
        }
    }

    /// A party's message arrives at the bridge.
    pub(crate) fn bridge_hears(&mut self, number: u64, id: Option<u64>, message: ClientMessage) {
        if !self.bridge.sessions.contains_key(&number) {
            return;
        }
        let session = HubSession(number);
        match message {
            ClientMessage::Hello { .. } => {
                let Some(tip) = self.bridge.hub.tip() else { return };
                let welcome = ServerMessage::Welcome {
                    protocol: limits::PROTOCOL_VERSION,
                    federation: self.base.first.federation.id(),
                    agent: "simulation".to_owned(),
                    tip,
                };
                self.deliver(number, id, welcome);
            }
            ClientMessage::Ping => self.deliver(number, id, ServerMessage::Pong),
            ClientMessage::UTXOSubscribe { keys } => {
                let (refused, new) = self.bridge.hub.subscribe(session, &keys);
                self.tell_interest(new, true);
                self.bridge.waiting.push(Waiting { session, id, keys, refused });
                self.answer_waiting();
            }
            ClientMessage::UTXOUnsubscribe { keys } => {
                let (count, abandoned) = self.bridge.hub.unsubscribe(session, &keys);
                self.tell_interest(abandoned, false);
                self.deliver(number, id, ServerMessage::UTXOUnsubscribed { count });
            }
            ClientMessage::SignResponse { txid, .. } => {
                let relay = self
                    .bridge
                    .relays
                    .values()
                    .rev()
                    .find(|relay| relay.session == session && relay.txid == Some(txid));
                match relay.map(|relay| (relay.node, relay.upstream)) {
                    Some((node, upstream)) => self.say(node, upstream, id, message),
                    None => self.deliver(number, id, ServerMessage::Error { error: coordinator_lost() }),
                }
            }
            other => self.relay(number, id, other),
        }
        self.drain_queues();
    }

    fn relay(&mut self, number: u64, id: Option<u64>, message: ClientMessage) {
        let live: Vec<NodeId> = self.bridge.links.keys().copied().collect();
        self.bridge.turn += 1;
        let turn = self.bridge.turn;
        let chosen = live.get(turn % live.len().max(1)).copied();
        let Some(node) = chosen else {
            let error = WireError::passing(ErrorCode::NoNodeAvailable, At::Receiver, "no node is reachable");
            return self.deliver(number, id, ServerMessage::Error { error });
        };
        let txid = submitted_by(&message);
        let replaced = |old: &Relay| old.session == HubSession(number) && txid.is_some() && old.txid == txid;
        let old: Vec<_> =
            self.bridge.relays.iter().filter(|(_, old)| replaced(old)).map(|(relay, _)| *relay).collect();
        old.into_iter().for_each(|relay| self.end_relay(relay));
        let relay = self.bridge.number();
        let Some(upstream) = self.nodes.get_mut(&node).map(|node| node.open_session(Owner::Relay(relay)))
        else {
            return;
        };
        let session = HubSession(number);
        self.bridge.relays.insert(relay, Relay { session, id, node, upstream, txid });
        self.say(node, upstream, None, hello());
        self.say(node, upstream, id, message);
    }

    fn end_relay(&mut self, relay: u64) {
        let Some(ended) = self.bridge.relays.remove(&relay) else { return };
        self.close_session(ended.node, ended.upstream);
    }

    /// Ends a session at a node.
    pub(crate) fn close_session(&mut self, id: NodeId, session: SessionId) {
        let open = self.nodes.get_mut(&id).and_then(|node| node.sessions.remove(&session)).is_some();
        if open {
            self.step(id, |machine| machine.handle_session_closed(session));
        }
    }

    /// A node's message arrives at the bridge, on its event stream.
    pub(crate) fn bridge_event(&mut self, node: NodeId, connection: u64, message: ServerMessage) {
        if self.bridge.links.get(&node).is_none_or(|(current, _)| *current != connection) {
            return;
        }
        match message {
            ServerMessage::UTXOStateNotification { key, utxo, proof, .. } => {
                self.bridge.hub.notify(&key, &utxo, proof.map(|proof| *proof));
            }
            ServerMessage::UTXOSubscribed { results, tip, more } => {
                self.bridge.hub.take_tip(tip);
                let pages = self.bridge.pages.entry(connection).or_default();
                if let Some(results) = pages.take(results, more) {
                    results.into_iter().for_each(|result| self.bridge.hub.take_result(result));
                    self.answer_waiting();
                }
            }
            ServerMessage::TransactionStatus { txid, status } => self.bridge.hub.take_status(txid, &status),
            ServerMessage::Tip { tip } => self.bridge.hub.take_tip(tip),
            _other => {}
        }
        self.drain_queues();
    }

    /// A node's message arrives at the bridge, for a relayed request.
    pub(crate) fn relay_hears(&mut self, relay: u64, id: Option<u64>, message: ServerMessage) {
        let Some(open) = self.bridge.relays.get(&relay) else { return };
        if matches!(message, ServerMessage::Welcome { .. }) {
            return;
        }
        let (HubSession(number), submission) = (open.session, open.txid.is_some());
        let ends = if submission { ends_submission(&message) } else { ends_answer(&message) };
        self.deliver(number, id, message);
        if ends {
            self.end_relay(relay);
        }
    }

    /// A stream to a node is gone.
    pub(crate) fn session_lost(&mut self, owner: Owner) {
        match owner {
            Owner::Events { connection } => {
                let lost = self.bridge.links.iter().find(|(_, (current, _))| *current == connection);
                if let Some(node) = lost.map(|(node, _)| *node) {
                    self.bridge.links.remove(&node);
                    self.bridge.pages.remove(&connection);
                    self.schedule(RECONNECT, Event::BridgeConnect { node });
                }
            }
            Owner::Relay(relay) => {
                if let Some(ended) = self.bridge.relays.remove(&relay) {
                    self.deliver(
                        ended.session.0,
                        ended.id,
                        ServerMessage::Error { error: coordinator_lost() },
                    );
                }
            }
            Owner::Submission(index) => self.submission_lost(index),
        }
    }

    fn answer_waiting(&mut self) {
        for waiting in std::mem::take(&mut self.bridge.waiting) {
            if self.bridge.hub.is_ready(&waiting.keys) {
                self.bridge.hub.answer_subscription(
                    waiting.session,
                    waiting.id,
                    &waiting.keys,
                    &waiting.refused,
                );
            } else {
                self.bridge.waiting.push(waiting);
            }
        }
    }

    /// Sends out what waits for parties that read.
    pub(crate) fn drain_queues(&mut self) {
        for number in self.bridge.sessions.keys().copied().collect::<Vec<_>>() {
            let mut sent = Vec::new();
            let Some(open) = self.bridge.sessions.get_mut(&number) else { continue };
            if open.slow {
                continue;
            }
            while let Ok(item) = open.queue.try_recv() {
                sent.push(item);
            }
            for (id, message) in sent {
                self.deliver(number, id, message);
            }
            let keys = self.bridge.hub.take_gap(HubSession(number));
            if !keys.is_empty() {
                self.deliver(number, None, ServerMessage::Gap { keys });
            }
        }
    }

    fn deliver(&mut self, number: u64, id: Option<u64>, message: ServerMessage) {
        let Some(open) = self.bridge.sessions.get(&number) else { return };
        self.party_hears(open.party, id, message);
    }

    pub(crate) fn bridge_restart(&mut self) {
        if self.bridge.down {
            return;
        }
        self.counters.add(Fault::BridgeRestart);
        for (node, (_, session)) in std::mem::take(&mut self.bridge.links) {
            self.close_session(node, session);
        }
        for relay in std::mem::take(&mut self.bridge.relays).into_values() {
            self.close_session(relay.node, relay.upstream);
        }
        let parties: Vec<_> = self.bridge.sessions.values().map(|open| open.party).collect();
        let next = self.bridge.next;
        self.bridge = SimBridge { next, down: true, ..SimBridge::default() };
        parties.into_iter().for_each(|party| self.party_lost(party));
        let wait = self.dice.between(50_000, 2_000_000);
        self.schedule(wait, Event::BridgeStart);
    }

    pub(crate) fn bridge_start(&mut self) {
        self.bridge.down = false;
        for node in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.bridge_connect(node);
        }
    }

    /// Every wallet and subscriber loses its connection at once and comes back.
    pub(crate) fn reconnect_storm(&mut self) {
        self.counters.add(Fault::ReconnectStorm);
        for (number, party) in
            self.bridge.sessions.iter().map(|(number, open)| (*number, open.party)).collect::<Vec<_>>()
        {
            self.bridge_close(number);
            self.party_lost(party);
        }
    }
}

/// The first message of a session.
pub fn hello() -> ClientMessage {
    ClientMessage::Hello {
        protocol: limits::PROTOCOL_VERSION,
        federation: None,
        agent: "simulation".to_owned(),
    }
}

fn coordinator_lost() -> WireError {
    WireError::passing(ErrorCode::CoordinatorLost, At::Network, "the coordinator was lost; submit it again")
}
