//! The change of epoch in a run: operators approve a plan, and every node goes its way into the next epoch over the
//! faulty network.
//!
//! The way itself is the real machine's ([`quorate_rules::Transition`]): approvals, repair of shares, their refresh,
//! seals, opening. Here stands what a driver does: questions and answers, a node's files, time.

use crate::{
    disk::Disk,
    event::Event,
    faults::Fault,
    node::{Change, Files, REQUEST_TIMEOUT, SimNode, Waiting, mirror_of},
    world::World,
};
use quorate::{
    Epoch, Federation, NodeId,
    digest::IdentityKey,
    federation::{Member, Succession, SuccessionPlan},
    frost::NodeShare,
    seal::Seal,
    testing,
    wire::{PeerReply, PeerRequest},
};
use quorate_node::store::{Redb, Store as _};
use quorate_rules::{
    DkgSeed, Opening, Peer, Planned, ReplyTo, Save, Side, Transition, TransitionOutput, opening, seal_page,
};
use std::{sync::Arc, time::Duration};

impl World {
    /// The federation with all its epochs so far, by which everything can be judged.
    pub fn federation(&self) -> Arc<Federation> {
        let second = self.succession.as_ref().and_then(|change| change.federation.clone());
        second.unwrap_or_else(|| self.base.federation.clone())
    }

    /// The federation in the epoch that a node is in.
    pub fn federation_of(&self, id: NodeId) -> Arc<Federation> {
        match self.nodes.get(&id) {
            Some(node) if node.epoch > Epoch::FIRST => self.federation(),
            Some(_) | None => self.base.federation.clone(),
        }
    }

    /// A node's identity key.
    pub fn key_of(&self, id: NodeId) -> Option<IdentityKey> {
        if self.nodes.get(&id)?.newcomer { Some(fresh_key(id)) } else { self.base.key_of(id) }
    }

    /// What a node's certificate shows.
    fn peer(&self, id: NodeId) -> Option<Peer> {
        let key = self.key_of(id)?;
        Some(Peer { id, tls_key: testing::member(id.0, &key).tls_key })
    }

    /// Operators have approved a plan. A faulty node is replaced first, since no more than f may be missing.
    pub(crate) fn begin_succession(&mut self) {
        self.counters.add(Fault::Succession);
        let short = |node: &&SimNode| !node.is_trusted() || node.files.share.is_none();
        let faulty: Vec<_> = self.nodes.values().filter(short).map(|node| node.id).collect();
        let all: Vec<_> = self.nodes.keys().copied().collect();
        let candidates = if faulty.is_empty() { all.clone() } else { faulty };
        let replaced = self.dice.pick(&candidates).copied().filter(|_| self.weather.replace);
        if let Some(id) = replaced {
            self.counters.add(Fault::Replacement);
            self.replace(id);
        }
        let members: Vec<Member> =
            all.iter().filter_map(|id| Some(testing::member(id.0, &self.key_of(*id)?))).collect();
        let plan = SuccessionPlan { epoch: Epoch::FIRST.next(), attempt: 1, members };
        self.succession = Some(Change { plan, replaced, federation: None });
        for node in all {
            let wait = self.dice.between(1_000, 400_000);
            self.schedule(wait, Event::Plan { node });
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
        (node.incarnation, node.born, node.newcomer) = (incarnation, incarnation, true);
        self.start_transition(id);
    }

    /// Starts a node's transition from its files.
    pub(crate) fn start_transition(&mut self, id: NodeId) {
        let federation = self.federation_of(id);
        let Some(key) = self.key_of(id) else { return };
        let rng = self.node_rng(id, 1);
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let share = node.files.share.and_then(|share| NodeShare::from_bytes(id, &share));
        let lost = share.is_none() && !node.newcomer;
        let mut transition = Transition::new(id, key, rng);
        transition.open((*federation).clone(), share, node.files.seals.clone());
        node.transition = Some(transition);
        if lost {
            self.step_transition(id, Transition::repair_share);
        } else {
            self.hear_plan(id);
        }
    }

    /// A node's operator has approved the plan, or it finds it on its disk.
    pub(crate) fn hear_plan(&mut self, id: NodeId) {
        let (Some(change), Some(node)) = (&self.succession, self.nodes.get(&id)) else { return };
        if node.epoch > Epoch::FIRST || (node.files.share.is_none() && !node.newcomer) {
            return;
        }
        let seed = DkgSeed(zeroize::Zeroizing::new([u8::try_from(id.0).unwrap_or(0); 32]));
        let (plan, succession) = (change.plan.clone(), node.files.succession.clone());
        let planned = Planned { plan, seed, succession, bound: node.files.next_share.is_some() };
        self.step_transition(id, |transition| transition.handle_plan(planned));
    }

    /// Its timer fires.
    pub(crate) fn transition_due(&mut self, id: NodeId) {
        if let Some(node) = self.nodes.get_mut(&id) {
            node.transition_at = None;
        }
        self.step_transition(id, Transition::handle_timeout);
    }

    /// Lets a node's transition handle something, and carries out what it puts out.
    pub(crate) fn step_transition(&mut self, id: NodeId, input: impl FnOnce(&mut Transition)) {
        let now = self.now;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let Some(transition) = &mut node.transition else { return };
        input(transition.at(now + node.clock));
        loop {
            let Some(node) = self.nodes.get_mut(&id) else { return };
            let Some(transition) = &mut node.transition else { return };
            let Some(output) = transition.poll_output() else { break };
            self.carry_out(id, output);
        }
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let due = node.transition.as_ref().and_then(Transition::poll_timeout);
        let due = due.map(|at| at.saturating_sub(node.clock).max(now + Duration::from_millis(1)));
        if let Some(at) = due.filter(|at| node.transition_at.is_none_or(|set| *at < set)) {
            node.transition_at = Some(at);
            let incarnation = node.incarnation;
            self.schedule_at(at, Event::TransitionTimer { node: id, incarnation });
        }
    }

    fn carry_out(&mut self, id: NodeId, output: TransitionOutput) {
        match output {
            TransitionOutput::Ask { ask, side, to, request } => self.ask_epoch(id, ask, (side, to), request),
            TransitionOutput::AskVoter { ask, succession, skip } => {
                let Some(node) = self.nodes.get_mut(&id) else { return };
                let number = node.next_number();
                node.own_seals.insert(number, ask);
                self.step(id, |machine| {
                    machine.handle_seal_request(ReplyTo::Peer(number), &succession, id, skip);
                });
            }
            TransitionOutput::Reply { to, reply } => self.answer(id, to, reply),
            TransitionOutput::Forward { to, succession, of, skip } => {
                if of == id && self.lies_about_its_seal(id, to, &succession) {
                    return;
                }
                let to = ReplyTo::Peer(to);
                self.step(id, |machine| machine.handle_seal_request(to, &succession, of, skip));
            }
            TransitionOutput::Plan(plan) => self.step(id, |machine| machine.handle_plan(&plan)),
            TransitionOutput::Save(save) => self.save(id, save),
            TransitionOutput::Repaired(share) => {
                self.counters.add(Fault::RepairedShare);
                if let Some(node) = self.nodes.get_mut(&id) {
                    node.files.share = Some(*share.to_bytes());
                }
                self.schedule(Duration::from_millis(1), Event::Start { node: id });
            }
            TransitionOutput::NotRepaired(_) => {
                // Its operator tries again.
                let incarnation = self.nodes.get(&id).map_or(0, |node| node.incarnation);
                self.schedule(Duration::from_secs(1), Event::RepairAgain { node: id, incarnation });
            }
            TransitionOutput::Open(opening) => self.open_epoch(id, *opening),
            TransitionOutput::Founded(_) => {
                self.oracle.broken("a federation is founded once", format!("node {id}"))
            }
        }
    }

    fn ask_epoch(&mut self, id: NodeId, ask: u64, (side, to): (Side, NodeId), request: PeerRequest) {
        let leaves = self.reaches(side, to) && {
            let Some(node) = self.nodes.get_mut(&id) else { return };
            !self.stormy
                || node.evil.as_mut().is_none_or(|evil| evil.asks(&mut self.dice, &mut self.counters))
        };
        let rpc = self.next_rpc;
        self.next_rpc += 1;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.rpcs.insert(rpc, Waiting::Transition(ask));
        let incarnation = node.incarnation;
        if leaves {
            let request = Box::new(request);
            self.transmit(id, to, Event::Request { from: id, to, rpc, incarnation, request });
        }
        self.schedule(REQUEST_TIMEOUT, Event::RpcTimeout { node: id, incarnation, rpc });
    }

    /// Whether the node with that number is the one that is meant: another one's certificate is not the member's that
    /// was called.
    fn reaches(&self, side: Side, to: NodeId) -> bool {
        let members = match (side, &self.succession) {
            (Side::Next, Some(change)) => change.plan.members.as_slice(),
            (Side::Present | Side::Next, _) => self.base.federation.members(),
        };
        self.peer(to).is_some_and(|peer| peer.is_among(members))
    }

    /// A peer asks about an epoch.
    pub(crate) fn epoch_asked(&mut self, from: NodeId, to: NodeId, number: u64, request: PeerRequest) {
        let Some(peer) = self.peer(from) else { return };
        if self.nodes.get(&to).is_some_and(|node| node.epoch > Epoch::FIRST)
            && matches!(
                request,
                PeerRequest::Succession(quorate::wire::SuccessionRequest::SealRequest { .. })
            )
        {
            self.counters.add(Fault::LateSeals);
        }
        self.step_transition(to, |transition| match request {
            PeerRequest::Keygen(request) => transition.handle_keygen(peer, number, request),
            PeerRequest::Succession(request) => transition.handle_succession(number, request),
            PeerRequest::Repair(request) => transition.handle_repair(peer, number, request),
            PeerRequest::Voting(_) => {}
        });
    }

    /// An evil node seals its epoch without what it committed to, and goes on in it.
    fn lies_about_its_seal(&mut self, id: NodeId, number: u64, succession: &Succession) -> bool {
        let evil = self.nodes.get(&id).is_some_and(|node| node.evil.is_some());
        let Some(key) = self.key_of(id).filter(|_| evil && self.dice.chance(400)) else { return false };
        self.counters.add(Fault::LyingSeal);
        let federation = self.base.federation.clone();
        let digest = succession.digest(&federation);
        let seal = Seal::sign(&federation, id, &key, digest, &[]);
        self.answer(id, number, PeerReply::Succession(seal_page(&seal, &[], 0)));
        true
    }

    /// Something reaches a node's files; power may fail just before or after.
    fn save(&mut self, id: NodeId, save: Save) {
        if self.stormy && self.dice.chance(60) {
            self.counters.add(Fault::FailedSave);
            return self
                .step_transition(id, |transition| transition.handle_failure("no space left".to_owned()));
        }
        let saved = save.kind();
        let fails = self.stormy && self.dice.chance(60);
        let before = fails && self.dice.below(2) == 0;
        if !before {
            self.write_file(id, save);
        }
        if fails {
            self.counters.add(Fault::CrashWhileSaving);
            self.crash(id);
        } else {
            self.step_transition(id, |transition| transition.handle_saved(saved));
        }
    }

    fn write_file(&mut self, id: NodeId, save: Save) {
        match save {
            Save::Share(share) => {
                self.work_within(200_000);
                let Some(node) = self.nodes.get_mut(&id) else { return };
                let bytes = *share.to_bytes();
                let changed = node.files.next_share.replace(bytes).is_some_and(|before| before != bytes);
                if changed {
                    self.oracle.broken("a node says the same again", format!("node {id}: another share"));
                }
            }
            Save::Succession(succession) => {
                let Some(node) = self.nodes.get_mut(&id) else { return };
                let next = (*self.base.federation).clone().succeed((*succession).clone());
                let held = node.files.next_share.and_then(|bytes| NodeShare::from_bytes(id, &bytes));
                node.files.succession = Some(*succession);
                let Ok(next) = next else {
                    return self.oracle.broken("a certified key verifies", format!("node {id}"));
                };
                if !held.is_some_and(|share| share.fits(next.key())) {
                    return self
                        .oracle
                        .broken("a certified key has its shares on disk", format!("node {id}"));
                }
                self.agree_on(id, next);
            }
        }
    }

    /// Something has to be under way when nodes seal, some moments from now.
    fn work_within(&mut self, most: u64) {
        for _ in 0..2 {
            let wait = self.dice.between(0, most);
            self.work_after(wait);
        }
    }

    /// All nodes come to the same second epoch.
    fn agree_on(&mut self, id: NodeId, next: Federation) {
        let Some(change) = &mut self.succession else { return };
        match &change.federation {
            None => {
                change.federation = Some(Arc::new(next));
                self.work_within(100_000);
            }
            Some(known) if known.key() == next.key() => {}
            Some(_) => self.oracle.broken("one key per epoch", format!("node {id} has another one")),
        }
    }

    fn open_epoch(&mut self, id: NodeId, begins: Opening) {
        if self.stormy && self.dice.chance(60) {
            self.counters.add(Fault::FailedSave);
            return self
                .step_transition(id, |transition| transition.handle_failure("no space left".to_owned()));
        }
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.epoch = node.epoch.next();
        let kept = node.machine.as_mut().map(|machine| machine.keeps(&begins.handover)).unwrap_or_default();
        for owner in node.power_off() {
            self.schedule(Duration::from_millis(5), Event::SessionLost { owner });
        }
        let Some(node) = self.nodes.get_mut(&id) else { return };
        let wall_ms = node.wall_ms;
        let change = opening(&begins.handover, begins.succession, &kept, wall_ms);
        node.files = Files { share: node.files.next_share.take(), seals: begins.seals, ..Files::default() };
        node.disk = Disk::new(Vec::new());
        let mut store = Redb::open_backend(node.disk.clone(), "simulated").expect("an empty disk");
        store.write(&[&change]).expect("a disk without faults");
        node.mirror = mirror_of(&store).expect("what was just written");
        drop(store);
        (node.created, node.amnesiac, node.snapshot) = (true, false, None);
        self.start_node(id);
    }

    /// A node loses its share; others have to repair it. Only if q other nodes have theirs.
    pub(crate) fn lose_share(&mut self, id: NodeId) {
        let short = self.nodes.values().filter(|node| !node.is_trusted() || node.files.share.is_none());
        let quorum = self.base.federation.quorum();
        if short.count() >= usize::from(quorum.nodes() - quorum.votes()) {
            return;
        }
        self.counters.add(Fault::LostShare);
        self.crash(id);
        if let Some(node) = self.nodes.get_mut(&id) {
            node.files.share = None;
        }
    }
}

/// The key of the node that takes another one's place.
fn fresh_key(id: NodeId) -> IdentityKey {
    let mut bytes = [0x82; 32];
    if let Some(first) = bytes.first_mut() {
        *first = u8::try_from(id.0).unwrap_or(1);
    }
    IdentityKey::from_bytes(&bytes).expect("a key")
}
