//! Sockets of the simulated bridge: the real machine of the bridge, with the simulated nodes, wallets and subscribers
//! around it.

use crate::{
    event::{Event, Owner, Party},
    faults::Fault,
    parties::{SimBridge, hello},
    world::World,
};
use quorate::{
    NodeId,
    wire::{ClientMessage, ServerMessage, decode},
};
use quorate_bridge::sans_io::{LinkId, Machine, Next, Output, RelayId, WalletId};
use quorate_rules::SessionId;
use std::time::Duration;

/// Wait before a node is connected again.
const RECONNECT: Duration = Duration::from_millis(250);
/// Time between two looks at the machine's deadlines.
const TICK: Duration = Duration::from_secs(1);

/// As at a real bridge, one link per node.
fn link(node: NodeId) -> LinkId {
    LinkId(node.0.into())
}

impl World {
    /// Hands something to the bridge's machine, and carries out what it wants.
    fn bridge_step<T>(&mut self, input: impl FnOnce(&mut Machine, Duration) -> T) -> T {
        let result = input(&mut self.bridge.machine, self.now);
        while let Some(output) = self.bridge.machine.poll_output() {
            match output {
                // Sessions are written to below.
                Output::Ready(_) => {}
                Output::Interest(message) => {
                    for (node, (_, session)) in self.bridge.links.clone() {
                        self.say(node, session, None, message.clone());
                    }
                }
                Output::Open { relay, id, message } => self.relay(relay, id, message),
                Output::Send { relay, id, message } => {
                    if let Some((node, session)) = self.bridge.relays.get(&relay).copied() {
                        self.say(node, session, id, message);
                    }
                }
                Output::Drop(relay) => {
                    if let Some((node, session)) = self.bridge.relays.remove(&relay) {
                        self.close_session(node, session);
                    }
                }
            }
        }
        self.drain_queues();
        result
    }

    /// Connects the bridge's event stream to a node, or tries again later.
    pub(crate) fn bridge_connect(&mut self, id: NodeId) {
        if self.bridge.down || self.bridge.links.contains_key(&id) {
            return;
        }
        self.bridge.connections += 1;
        let connection = self.bridge.connections;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        if node.machine.is_none() {
            return self.schedule(RECONNECT, Event::BridgeConnect { node: id });
        }
        let session = node.open_session(Owner::Events { connection });
        self.bridge.links.insert(id, (connection, session));
        for message in self.bridge_step(|machine, _| machine.handle_link_opened(link(id))) {
            self.say(id, session, None, message);
        }
    }

    /// Sends a client's message to a node.
    pub(crate) fn say(&mut self, node: NodeId, session: SessionId, id: Option<u64>, message: ClientMessage) {
        let wait = Duration::from_micros(300);
        self.schedule(wait, Event::ClientSays { node, session, id, message: Box::new(message) });
    }

    /// A party connects; gives its session.
    pub(crate) fn bridge_open(&mut self, party: Party) -> Option<WalletId> {
        if !self.bridge.is_up() {
            return None;
        }
        let session = self.bridge_step(|machine, now| machine.handle_opened(now, None));
        self.bridge.parties.insert(session, party);
        Some(session)
    }

    /// A party's session ends.
    pub(crate) fn bridge_close(&mut self, session: WalletId) {
        if self.bridge.parties.remove(&session).is_some() {
            self.bridge.set_slow(session, false);
            self.bridge_step(|machine, _| machine.handle_closed(session));
        }
    }

    /// A party's message arrives at the bridge.
    pub(crate) fn bridge_hears(&mut self, session: WalletId, id: Option<u64>, message: ClientMessage) {
        if self.bridge.parties.contains_key(&session) {
            self.bridge_step(|machine, now| machine.handle_message(now, session, id, message));
        }
    }

    fn relay(&mut self, relay: RelayId, id: Option<u64>, message: ClientMessage) {
        let live: Vec<NodeId> = self.bridge.links.keys().copied().collect();
        self.bridge.turn += 1;
        let life = self.bridge.life;
        let chosen = live.get(self.bridge.turn % live.len().max(1)).copied();
        let open = chosen.and_then(|id| {
            let node = self.nodes.get_mut(&id)?;
            Some((id, node.open_session(Owner::Relay { life, relay })))
        });
        let Some((node, session)) = open else {
            return self.bridge.machine.handle_unreachable(relay);
        };
        self.bridge.relays.insert(relay, (node, session));
        self.say(node, session, None, hello());
        self.say(node, session, id, message);
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
        let refused = self.bridge_step(|machine, _| machine.handle_event(link(node), message));
        if refused.is_err() {
            // As the real driver: the stream is of no use any more.
            if let Some((_, session)) = self.bridge.links.get(&node).copied() {
                self.close_session(node, session);
            }
            self.session_lost(Owner::Events { connection });
        }
    }

    /// A node's message arrives at the bridge, for a relayed request.
    pub(crate) fn relay_hears(&mut self, life: u64, relay: RelayId, id: Option<u64>, message: ServerMessage) {
        if life == self.bridge.life {
            self.bridge_step(|machine, now| machine.handle_answer(now, relay, id, message));
        }
    }

    /// A stream to a node is gone.
    pub(crate) fn session_lost(&mut self, owner: Owner) {
        match owner {
            Owner::Events { connection } => {
                let lost = self.bridge.links.iter().find(|(_, (current, _))| *current == connection);
                if let Some(node) = lost.map(|(node, _)| *node) {
                    self.bridge.links.remove(&node);
                    self.bridge_step(|machine, _| machine.handle_link_lost(link(node)));
                    self.schedule(RECONNECT, Event::BridgeConnect { node });
                }
            }
            Owner::Relay { life, relay } => {
                if life == self.bridge.life && self.bridge.relays.remove(&relay).is_some() {
                    self.bridge_step(|machine, _| machine.handle_relay_lost(relay));
                }
            }
            Owner::Submission(index) => self.submission_lost(index),
        }
    }

    /// Sends out what waits for parties that read.
    pub(crate) fn drain_queues(&mut self) {
        for (session, party) in self.bridge.parties.clone() {
            if self.bridge.slow.contains(&session) {
                continue;
            }
            loop {
                match self.bridge.machine.poll_message(session) {
                    Next::Frame(text) => {
                        let heard = decode::<ServerMessage>(text.as_bytes()).expect("what a bridge says");
                        self.party_hears(party, heard.id, heard.body);
                    }
                    Next::Nothing => break,
                    Next::Closed => {
                        self.bridge_close(session);
                        self.party_lost(party);
                        break;
                    }
                }
            }
        }
    }

    /// The driver looks at deadlines, and pings.
    pub(crate) fn bridge_tick(&mut self) {
        self.schedule(TICK, Event::BridgeTick);
        for session in self.bridge.parties.keys().copied().collect::<Vec<_>>() {
            // A connected client answers pings.
            self.bridge_step(|machine, now| machine.handle_alive(now, session));
        }
        for session in self.bridge.parties.keys().copied().collect::<Vec<_>>() {
            self.bridge_step(|machine, now| machine.check_alive(now, session));
        }
        self.bridge_step(Machine::handle_timeout);
    }

    pub(crate) fn bridge_restart(&mut self) {
        if self.bridge.down {
            return;
        }
        self.counters.add(Fault::BridgeRestart);
        for (node, (_, session)) in std::mem::take(&mut self.bridge.links) {
            self.close_session(node, session);
        }
        for (node, session) in std::mem::take(&mut self.bridge.relays).into_values() {
            self.close_session(node, session);
        }
        let parties: Vec<_> = self.bridge.parties.values().copied().collect();
        let (life, connections) = (self.bridge.life + 1, self.bridge.connections);
        let fresh = SimBridge::new(self.base.federation.id(), self.nodes.len());
        self.bridge = SimBridge { life, connections, down: true, ..fresh };
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
        for (session, party) in self.bridge.parties.clone() {
            self.bridge_close(session);
            self.party_lost(party);
        }
    }
}
