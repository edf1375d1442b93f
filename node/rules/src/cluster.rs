//! Four nodes with their machines, connected without delay: for tests of what takes several of them.

use crate::{
    ChainCoin, DkgSeed, Machine, Opening, Output, Peer, Planned, ReplyTo, Save, SessionId, Settings, Side,
    Tag, Transition, TransitionOutput, WholeSeal,
    archive::Archived,
    stored::Stored,
    testkit::{block_on, open_script},
};
use bitcoin::{Amount, OutPoint, ScriptBuf, TxOut, Txid, hashes::Hash as _};
use quorate_protocol::{
    Federation, NodeId,
    digest::IdentityKey,
    federation::{KeyCertificate, Member, Roster, SuccessionPlan},
    frost::{NodeShare, WalletSecret, wallet_sign},
    testing::{self, World},
    wire::{ClientMessage, PeerReply, PeerRequest, ServerMessage, limits},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

/// The wallet's session at every node.
pub(crate) const WALLET: SessionId = SessionId { certificate: 9, number: 9 };

/// What alters answers on their way.
type Alter = Box<dyn FnMut(NodeId, PeerReply) -> PeerReply>;

/// One node.
pub(crate) struct Node {
    pub(crate) machine: Machine,
    pub(crate) transition: Transition,
    pub(crate) key: IdentityKey,
    /// Its share of the key that is being made, as it is on its disk.
    pub(crate) saved_share: Option<NodeShare>,
    pub(crate) opening: Option<Opening>,
    pub(crate) founded: Option<KeyCertificate>,
    pub(crate) repaired: Option<NodeShare>,
    pub(crate) not_repaired: Option<String>,
}

/// Who waits for an answer.
#[derive(Clone, Copy)]
enum Asker {
    /// Who, whom, and for what.
    Voter(NodeId, NodeId, Tag),
    Transition(NodeId, u64),
}

/// The nodes, and what is between them.
pub(crate) struct Cluster {
    pub(crate) world: World,
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) now: Duration,
    /// Nodes that nobody reaches.
    pub(crate) silent: BTreeSet<NodeId>,
    pub(crate) alter: Option<Alter>,
    /// The next save fails.
    pub(crate) failing_saves: bool,
    /// What the wallet was told, and by whom.
    pub(crate) told: Vec<(NodeId, ServerMessage)>,
    pub(crate) broadcast: BTreeSet<Txid>,
    coins: BTreeMap<OutPoint, ChainCoin>,
    plan: Option<SuccessionPlan>,
    questions: VecDeque<(Asker, Side, NodeId, PeerRequest)>,
    asked: BTreeMap<u64, (Asker, NodeId)>,
    next: u64,
}

impl Cluster {
    /// Four nodes that have read ten blocks and vote.
    pub(crate) fn voting() -> Self {
        let world = testing::federation(4);
        let mut cluster = Self {
            nodes: BTreeMap::new(),
            now: Duration::ZERO,
            silent: BTreeSet::new(),
            alter: None,
            failing_saves: false,
            told: Vec::new(),
            broadcast: BTreeSet::new(),
            coins: BTreeMap::new(),
            plan: None,
            questions: VecDeque::new(),
            asked: BTreeMap::new(),
            next: 1,
            world,
        };
        for id in (1..=4).map(NodeId) {
            let node = cluster.node(id);
            cluster.nodes.insert(id, node);
        }
        cluster.wait(Duration::from_millis(1));
        cluster.wait(Duration::from_secs(1));
        for id in (1..=4).map(NodeId) {
            let agent = "test".to_owned();
            cluster.say(
                id,
                ClientMessage::Hello { protocol: limits::PROTOCOL_VERSION, federation: None, agent },
            );
        }
        cluster.told.clear();
        cluster
    }

    fn node(&self, id: NodeId) -> Node {
        let index = usize::from(id.0) - 1;
        let settings = Settings {
            min_confirmations: 1,
            voting_timeout: Duration::from_secs(30),
            signing_timeout: Duration::from_secs(2),
            small_proposal: 2,
            bug: None,
        };
        let (federation, key) = (self.world.federation.clone(), self.world.keys[index].clone());
        let share = || testing::copy_shares(&self.world.shares).remove(index);
        let seed = u64::from(id.0);
        let mut machine = Machine::new(
            id,
            federation.clone(),
            key.clone(),
            share(),
            settings,
            testing::rng(seed),
            Stored::default(),
        );
        for _ in 0..10 {
            machine.handle_blocks(&[block_on(machine.tip().hash, Vec::new())]);
        }
        machine.handle_caught_up();
        let mut transition = Transition::new(id, key.clone(), testing::rng(100 + seed));
        transition.open(federation, Some(share()), Vec::new());
        let (saved_share, opening, founded, repaired, not_repaired) = (None, None, None, None, None);
        Node { machine, transition, key, saved_share, opening, founded, repaired, not_repaired }
    }

    /// A node that has nothing but its key: it takes the place of another one, or its federation has no key yet.
    pub(crate) fn newcomer(&mut self, id: NodeId, key: &IdentityKey) {
        let mut node = self.node(id);
        node.transition = Transition::new(id, key.clone(), testing::rng(200));
        node.key = key.clone();
        self.nodes.insert(id, node);
    }

    pub(crate) fn get(&mut self, id: u16) -> &mut Node {
        self.nodes.get_mut(&NodeId(id)).expect("a node")
    }

    /// The coin of the account that [`World::proposal`] spends, and one that anybody can spend.
    pub(crate) fn coins(&mut self) -> OutPoint {
        let joint = self.world.proposal().psbt.unsigned_tx.input[0].previous_output;
        let open = OutPoint { txid: Txid::from_byte_array([3; 32]), vout: 0 };
        let scripts = [(joint, self.world.script(), 90_500), (open, open_script().to_p2wsh(), 100_000)];
        for (outpoint, script_pubkey, sat) in scripts {
            self.put_coin(outpoint, script_pubkey, sat);
        }
        open
    }

    /// A coin that block 5 has, which nobody heard of when it came.
    pub(crate) fn put_coin(&mut self, outpoint: OutPoint, script_pubkey: ScriptBuf, sat: u64) {
        let output = TxOut { value: Amount::from_sat(sat), script_pubkey };
        let hash = self.get(1).machine.block_at(5).expect("read");
        self.coins.insert(outpoint, ChainCoin { output, height: 5, hash, coinbase: false });
    }

    /// The wallet says something to a node.
    pub(crate) fn say(&mut self, to: NodeId, message: ClientMessage) {
        let now = self.now;
        let node = self.nodes.get_mut(&to).expect("a node");
        node.machine.at(now, 0).handle_client(WALLET, Some(1), message);
        self.settle();
    }

    /// Everybody reads one more block.
    pub(crate) fn mine(&mut self, txdata: Vec<bitcoin::Transaction>) {
        for node in self.nodes.values_mut() {
            node.machine.handle_blocks(&[block_on(node.machine.tip().hash, txdata.clone())]);
        }
        self.settle();
    }

    /// Another block takes the place of the last one.
    pub(crate) fn reorganise(&mut self) {
        for node in self.nodes.values_mut() {
            let parent = node.machine.block_at(node.machine.tip().height - 1).expect("a parent");
            assert!(node.machine.handle_blocks(&[block_on(parent, Vec::new())]));
        }
        self.settle();
    }

    pub(crate) fn wait(&mut self, time: Duration) {
        self.now += time;
        for node in self.nodes.values_mut() {
            node.machine.at(self.now, 0).handle_timeout();
            node.transition.at(self.now).handle_timeout();
        }
        self.settle();
    }

    /// Waits in steps until something holds, for a minute at most.
    pub(crate) fn until(&mut self, holds: impl Fn(&Self) -> bool) {
        for _ in 0..1_200 {
            if holds(self) {
                return;
            }
            self.wait(Duration::from_millis(50));
        }
        panic!("it did not come to that");
    }

    /// Everybody's operator approves a plan in which these nodes have these keys.
    pub(crate) fn approve(&mut self, replaced: &BTreeMap<NodeId, IdentityKey>) {
        let members: Vec<Member> = (1..=4)
            .map(|id| {
                let key = replaced.get(&NodeId(id)).unwrap_or(&self.world.keys[usize::from(id) - 1]);
                testing::member(id, key)
            })
            .collect();
        let plan = SuccessionPlan { epoch: self.world.federation.epoch().next(), attempt: 1, members };
        self.plan = Some(plan.clone());
        for id in (1..=4).map(NodeId) {
            self.hand_plan(id, plan.clone());
        }
    }

    pub(crate) fn hand_plan(&mut self, id: NodeId, plan: SuccessionPlan) {
        let seed = DkgSeed(zeroize::Zeroizing::new([u8::try_from(id.0).expect("small"); 32]));
        let node = self.nodes.get_mut(&id).expect("a node");
        node.transition.at(self.now).handle_plan(Planned { plan, seed, succession: None, bound: false });
        self.settle();
    }

    /// All nodes make a first key.
    pub(crate) fn found(&mut self, roster: &Roster) {
        for (id, node) in &mut self.nodes {
            let seed = DkgSeed(zeroize::Zeroizing::new([u8::try_from(id.0).expect("small"); 32]));
            node.transition.at(self.now).found(roster, seed).expect("well formed");
        }
    }

    /// The node starts again in the middle of a transition, with what is on its disk.
    pub(crate) fn restart_transition(&mut self, id: u16) {
        let federation = self.world.federation.clone();
        let share = testing::copy_shares(&self.world.shares).remove(usize::from(id) - 1);
        let plan = self.plan.clone().expect("a plan");
        let node = self.get(id);
        node.transition = Transition::new(NodeId(id), node.key.clone(), testing::rng(300));
        node.transition.open(federation, Some(share), Vec::new());
        self.hand_plan(NodeId(id), plan);
    }

    /// What the wallet signs with in answer to a node's request.
    pub(crate) fn sign(&mut self, asked: &ServerMessage) -> ClientMessage {
        let ServerMessage::SignRequest { txid, attempt, certificate, nodes, .. } = asked else {
            panic!("{asked:?}")
        };
        let world = &self.world;
        let plan = world.proposal().check(&world.federation, &world.account).expect("valid").plan;
        let secret = WalletSecret::new(&world.wallet);
        let (target, key) = (&certificate.target, &world.authorisation);
        let mut rng = testing::rng(u64::from(*attempt));
        let wallet = wallet_sign(&world.federation, &plan, target, *attempt, nodes, &secret, key, &mut rng);
        ClientMessage::SignResponse { txid: *txid, attempt: *attempt, wallet: wallet.expect("signs") }
    }

    fn settle(&mut self) {
        loop {
            // What one node puts out may give another one something to say.
            while self.nodes.keys().copied().collect::<Vec<_>>().into_iter().any(|id| self.drain(id)) {}
            let Some((asker, side, to, request)) = self.questions.pop_front() else { return };
            self.put(asker, side, to, request);
        }
    }

    /// Carries out what a node has put out; whether there was anything.
    fn drain(&mut self, id: NodeId) -> bool {
        let mut any = false;
        while let Some(output) = self.nodes.get_mut(&id).and_then(|node| node.machine.poll_output()) {
            self.carry_out(id, output);
            any = true;
        }
        while let Some(output) = self.nodes.get_mut(&id).and_then(|node| node.transition.poll_output()) {
            self.carry_out_way(id, output);
            any = true;
        }
        any
    }

    fn carry_out(&mut self, id: NodeId, output: Output) {
        match output {
            Output::Ask { to, tag, request } => {
                for to in to {
                    let request = (*request).clone().into();
                    self.questions.push_back((Asker::Voter(id, to, tag), Side::Present, to, request));
                }
            }
            Output::Reply { to: ReplyTo::Peer(number), reply } => self.answer(number, reply),
            Output::LookUp { ticket, outpoints, .. } => {
                let found = outpoints.into_iter();
                let found = found.filter_map(|one| Some((one, self.coins.get(&one)?.clone()))).collect();
                let node = self.nodes.get_mut(&id).expect("a node");
                node.machine.at(self.now, 0).handle_coins(ticket, Some(found));
            }
            Output::Search { ticket, search } => {
                let scripts = search.scripts();
                let is_its =
                    |(_, coin): &(&OutPoint, &ChainCoin)| scripts.contains(&coin.output.script_pubkey);
                let found = self.coins.iter().filter(is_its).map(|(outpoint, _)| *outpoint).collect();
                let node = self.nodes.get_mut(&id).expect("a node");
                node.machine.at(self.now, 0).handle_found(ticket, Some(found));
            }
            Output::Check { ticket, check, .. } => {
                let node = self.nodes.get_mut(&id).expect("a node");
                node.machine.at(self.now, 0).handle_checked(ticket, Some(check.run()));
            }
            Output::Recall { ticket, .. } => {
                let node = self.nodes.get_mut(&id).expect("a node");
                node.machine.at(self.now, 0).handle_recalled(ticket, Some(Archived::default()));
            }
            Output::Settled => {
                let node = self.nodes.get_mut(&id).expect("a node");
                node.machine.at(self.now, 0).handle_settled();
            }
            Output::Client { message, .. } => self.told.push((id, message)),
            Output::Broadcast(transactions) => {
                self.broadcast.extend(transactions.iter().map(bitcoin::Transaction::compute_txid));
            }
            _ => {}
        }
    }

    fn carry_out_way(&mut self, id: NodeId, output: TransitionOutput) {
        let now = self.now;
        match output {
            TransitionOutput::Ask { ask, side, to, request } => {
                self.questions.push_back((Asker::Transition(id, ask), side, to, request));
            }
            TransitionOutput::AskVoter { ask, succession, skip } => {
                let number = self.number(Asker::Transition(id, ask), id);
                let machine = &mut self.nodes.get_mut(&id).expect("a node").machine;
                machine.at(now, 0).handle_seal_request(ReplyTo::Peer(number), &succession, id, skip);
            }
            TransitionOutput::Reply { to, reply } => self.answer(to, reply),
            TransitionOutput::Forward { to, succession, of, skip } => {
                let machine = &mut self.nodes.get_mut(&id).expect("a node").machine;
                machine.at(now, 0).handle_seal_request(ReplyTo::Peer(to), &succession, of, skip);
            }
            TransitionOutput::Plan(plan) => self.get(id.0).machine.handle_plan(&plan),
            TransitionOutput::Save(save) => {
                let fails = std::mem::take(&mut self.failing_saves);
                let node = self.get(id.0);
                if fails {
                    return node.transition.at(now).handle_failure("no space left".to_owned());
                }
                let saved = save.kind();
                if let Save::Share(share) = save {
                    if let Some(before) = &node.saved_share {
                        assert_eq!(before.to_bytes(), share.to_bytes(), "a node says the same again");
                    }
                    node.saved_share = Some(share);
                }
                node.transition.at(now).handle_saved(saved);
            }
            TransitionOutput::Founded(key) => self.get(id.0).founded = Some(*key),
            TransitionOutput::Repaired(share) => self.get(id.0).repaired = Some(share),
            TransitionOutput::NotRepaired(why) => self.get(id.0).not_repaired = Some(why),
            TransitionOutput::Open(opening) => self.get(id.0).opening = Some(*opening),
        }
    }

    fn number(&mut self, asker: Asker, of: NodeId) -> u64 {
        self.next += 1;
        self.asked.insert(self.next, (asker, of));
        self.next
    }

    fn put(&mut self, asker: Asker, side: Side, to: NodeId, request: PeerRequest) {
        let from = match asker {
            Asker::Voter(id, ..) | Asker::Transition(id, _) => id,
        };
        let peer = self.peer(from);
        if self.silent.contains(&to) || self.silent.contains(&from) || !self.is_meant(side, to) {
            return self.deliver(asker, None);
        }
        let number = self.number(asker, to);
        let now = self.now;
        let node = self.nodes.get_mut(&to).expect("a node");
        let transition = node.transition.at(now);
        match request {
            PeerRequest::Voting(request) => {
                node.machine.at(now, 0).handle_request(from, ReplyTo::Peer(number), request);
            }
            PeerRequest::Keygen(request) => transition.handle_keygen(peer, number, request),
            PeerRequest::Succession(request) => transition.handle_succession(number, request),
            PeerRequest::Repair(request) => transition.handle_repair(peer, number, request),
        }
    }

    /// Whether the node with that number is the member that is called.
    fn is_meant(&self, side: Side, to: NodeId) -> bool {
        let members = match (side, &self.plan) {
            (Side::Next, Some(plan)) => &plan.members,
            (Side::Next | Side::Present, _) => self.world.federation.members(),
        };
        self.peer(to).is_among(members)
    }

    pub(crate) fn peer(&self, id: NodeId) -> Peer {
        let key = &self.nodes.get(&id).expect("a node").key;
        Peer { id, tls_key: testing::member(id.0, key).tls_key }
    }

    fn answer(&mut self, number: u64, reply: PeerReply) {
        let Some((asker, of)) = self.asked.remove(&number) else { return };
        let reply = match &mut self.alter {
            Some(alter) => alter(of, reply),
            None => reply,
        };
        self.deliver(asker, Some(reply));
    }

    fn deliver(&mut self, asker: Asker, reply: Option<PeerReply>) {
        let now = self.now;
        match asker {
            Asker::Voter(id, to, tag) => {
                let reply = if let Some(PeerReply::Voting(reply)) = reply { Some(reply) } else { None };
                let node = self.nodes.get_mut(&id).expect("a node");
                node.machine.at(now, 0).handle_reply(to, tag, reply);
            }
            Asker::Transition(id, ask) => {
                let node = self.nodes.get_mut(&id).expect("a node");
                node.transition.at(now).handle_answer(ask, reply);
            }
        }
    }

    pub(crate) fn past(&self, id: u16) -> (Federation, Vec<WholeSeal>) {
        let opening = self.nodes[&NodeId(id)].opening.as_ref().expect("it has opened");
        (opening.federation.clone(), opening.seals.clone())
    }
}
