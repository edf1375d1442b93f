//! The change of epoch in a run: a plan is approved and its key is there; nodes seal, collect seals over the faulty network, and open.
//!
//! Sealing and what it means is the real machine's; collecting and opening stands here in the place of the driver's, as for every other
//! request. Keys are refreshed once for all runs.

use crate::{
    base::Era,
    disk::Disk,
    faults::Fault,
    node::SimNode,
    node::mirror_of,
    world::{Event, World},
};
use quorate::{
    Epoch, Federation, NodeId,
    federation::Succession,
    seal::{Handover, Seal, SealedTransaction},
    wire::{PeerReply, PeerRequest, SuccessionReply, SuccessionRequest},
};
use quorate_node::store::{Redb, Store as _};
use quorate_rules::{opening, seal_page};
use std::time::Duration;

/// A seal with its transactions.
pub type WholeSeal = (Seal, Vec<SealedTransaction>);

/// The change of epoch of a run.
#[derive(Clone, Copy, Debug)]
pub struct Change {
    /// The second epoch.
    pub era: &'static Era,
    /// The node that is another one in it.
    pub replaced: Option<NodeId>,
}

impl Change {
    fn succession(&self) -> &'static Succession {
        self.era.federation.document().successions.first().expect("the second epoch")
    }
}

impl World {
    /// The federation with all its epochs so far, by which everything can be judged.
    pub fn federation(&self) -> &'static Federation {
        self.succession.map_or(&self.base.first.federation, |change| &change.era.federation)
    }

    /// The epoch that a node is in.
    pub fn era_of(&self, id: NodeId) -> &'static Era {
        let first = self.nodes.get(&id).is_none_or(|node| node.epoch == Epoch::FIRST);
        match self.succession {
            Some(change) if !first => change.era,
            Some(_) | None => &self.base.first,
        }
    }

    /// The new key is certified. A faulty node is replaced first, since no more than f may be missing.
    pub(crate) fn begin_succession(&mut self) {
        self.counters.add(Fault::Succession);
        let faulty: Vec<_> =
            self.nodes.values().filter(|node| !node.is_trusted()).map(|node| node.id).collect();
        let all: Vec<_> = self.nodes.keys().copied().collect();
        let candidates = if faulty.is_empty() { all } else { faulty };
        let replaced = self.dice.pick(&candidates).copied().filter(|_| self.plan.replace);
        self.succession = Some(Change { era: self.base.second(replaced), replaced });
        if let Some(id) = replaced {
            self.counters.add(Fault::Replacement);
            self.replace(id);
        }
        for node in self.nodes.keys().copied().collect::<Vec<_>>() {
            let wait = self.dice.between(1_000, 400_000);
            self.schedule(wait, Event::Seals { node });
        }
    }

    /// The old node is gone for good; a new one with an empty disk has its number.
    fn replace(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        for owner in node.power_off() {
            self.schedule(Duration::from_millis(5), Event::SessionLost { owner });
        }
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let incarnation = node.incarnation;
        *node = SimNode::new(id);
        (node.incarnation, node.newcomer) = (incarnation, true);
    }

    /// A node asks for the seals that it lacks.
    pub(crate) fn collect_seals(&mut self, id: NodeId) {
        let (Some(change), Some(node)) = (self.succession, self.nodes.get(&id)) else { return };
        if node.epoch > Epoch::FIRST {
            return;
        }
        let again = self.dice.between(200_000, 600_000);
        self.schedule(again, Event::Seals { node: id });
        let Some(node) = self.nodes.get(&id) else { return };
        if node.machine.is_none() && !node.newcomer {
            return;
        }
        let missing: Vec<NodeId> = self
            .nodes
            .keys()
            .copied()
            .filter(|of| !node.seals.contains_key(of) && change.replaced != Some(*of))
            .collect();
        let everybody: Vec<NodeId> = self.nodes.keys().copied().collect();
        for of in missing {
            let other = self.dice.pick(&everybody).copied().unwrap_or(of);
            for at in [of, other] {
                self.ask_seal(id, at, of, change);
            }
        }
    }

    fn ask_seal(&mut self, id: NodeId, at: NodeId, of: NodeId, change: Change) {
        let rpc = self.next_rpc;
        self.next_rpc += 1;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.seal_rpcs.insert(rpc, of);
        let incarnation = node.incarnation;
        let succession = Box::new(change.succession().clone());
        let request =
            Box::new(PeerRequest::Succession(SuccessionRequest::SealRequest { succession, of, skip: 0 }));
        self.transmit(id, at, Event::Request { from: id, to: at, rpc, incarnation, request });
    }

    /// What is not the machine's to answer: whoever is in the second epoch has the seals that it began with.
    pub(crate) fn seal_asked(&mut self, from: NodeId, to: NodeId, rpc: u64, of: NodeId) -> bool {
        let (Some(change), Some(node)) = (self.succession, self.nodes.get(&to)) else { return false };
        if node.is_newcomer() {
            return true;
        }
        let answer = if node.epoch > Epoch::FIRST {
            if node.machine.is_none() {
                return true;
            }
            self.counters.add(Fault::LateSeals);
            node.seals.get(&of).map(|(seal, transactions)| seal_page(seal, transactions, 0))
        } else if of == to && node.evil.is_some() && self.dice.chance(400) {
            self.counters.add(Fault::LyingSeal);
            let federation = &self.base.first.federation;
            let Some((_, key, _)) = self.base.first.of_node(to) else { return true };
            let digest = change.succession().digest(federation);
            Some(seal_page(&Seal::sign(federation, to, key, digest, &[]), &[], 0))
        } else {
            return false;
        };
        if let Some(reply) = answer {
            self.transmit(to, from, Event::Reply { from: to, to: from, rpc, reply: Box::new(reply.into()) });
        }
        true
    }

    /// An answer to a request for a seal.
    pub(crate) fn seal_heard(&mut self, to: NodeId, rpc: u64, reply: &PeerReply) -> bool {
        let (Some(change), Some(node)) = (self.succession, self.nodes.get_mut(&to)) else { return false };
        let Some(of) = node.seal_rpcs.remove(&rpc) else { return false };
        let PeerReply::Succession(SuccessionReply::Sealed { seal, transactions, more: false }) = reply else {
            return true;
        };
        let federation = &self.base.first.federation;
        let digest = change.succession().digest(federation);
        let holds = seal.node == of && seal.succession == digest && seal.verify(federation, transactions);
        if node.epoch > Epoch::FIRST || !holds {
            return true;
        }
        node.seals.insert(of, ((**seal).clone(), transactions.clone()));
        let together: Vec<_> = node.seals.values().cloned().collect();
        if let Ok(handover) = Handover::new(federation, digest, &together) {
            self.open_epoch(to, &handover, digest);
        }
        true
    }

    fn open_epoch(&mut self, id: NodeId, handover: &Handover, digest: [u8; 32]) {
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.epoch = node.epoch.next();
        let evidence = node.machine.as_ref().map(|machine| machine.evidence().cloned().collect::<Vec<_>>());
        for owner in node.power_off() {
            self.schedule(Duration::from_millis(5), Event::SessionLost { owner });
        }
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let change = opening(handover, digest, &evidence.unwrap_or_default(), node.wall_ms);
        node.disk = Disk::new(Vec::new());
        let mut store = Redb::open_backend(node.disk.clone(), "simulated").expect("an empty disk");
        store.write(&[&change]).expect("a disk without faults");
        node.mirror = mirror_of(&store).expect("what was just written");
        drop(store);
        (node.created, node.amnesiac, node.snapshot) = (true, false, None);
        self.start_node(id);
    }
}
