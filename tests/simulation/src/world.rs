//! One run: all parties in one process, one queue of events, everything drawn from one seed.

use crate::{
    base::{Base, WALLETS, open_output},
    event::{Event, WalletEvent, copy_of, describe, run_of, target},
    faults::{Counters, Dice, Fault, Weather},
    node::{Change, SimNode},
    oracle::{Oracle, Weight},
    parties::{SimBridge, SimWallet, Submission, Subscriber, Theft},
};
use bitcoin::{
    BlockHash, OutPoint,
    hashes::{Hash as _, HashEngine as _, sha256},
};
use quorate::{
    NodeId, Round,
    vote::VoteTarget,
    wire::{Cancellation, PeerRequest, VotingRequest, encode_text},
};
use quorate_devnet::DevnetChain;
use quorate_rules::{Bug, SessionId};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// What was held back when faults stop arrives within this time.
const IN_FLIGHT: Duration = Duration::from_millis(2_500);
/// After that, every contested outpoint has to be final or free within this time.
const SETTLE: Duration = Duration::from_secs(10);
/// The longest pause of a node, with what its disk takes.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// And everybody has to know everything within this.
const CONVERGE: Duration = Duration::from_secs(40);
/// Longest time for votes in the simulation. The default of 30 s would only make runs longer.
const VOTING_TIMEOUT: Duration = Duration::from_secs(2);
/// Events in one run; more is a loop without end.
const EVENTS_MAX: u64 = 2_000_000;

/// What to run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// The seed.
    pub seed: u64,
    /// A rule to break.
    pub bug: Option<Bug>,
    /// Print every event.
    pub verbose: bool,
    /// Keep one message of each type, as the seed of a corpus.
    pub samples: bool,
    /// What to do, instead of what the seed draws.
    pub weather: Option<Weather>,
}

/// What came of it.
#[derive(Clone, Debug)]
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// The first invariant found broken.
    pub violation: Option<String>,
    /// Hash over all events, to compare runs.
    pub trace: String,
    /// Simulated time.
    pub simulated: Duration,
    /// Events.
    pub events: u64,
    /// Faults that fired.
    pub counters: Counters,
    /// Transactions that became final.
    pub finals: usize,
    /// Statements that the oracle looked at.
    pub checks: u64,
    /// Most signing sessions that one honest coordinator needed for one transaction in one round.
    pub sessions_max: usize,
    /// One message of each type, in JSON.
    pub samples: BTreeMap<String, String>,
}

/// The world of one run.
pub struct World {
    pub(crate) seed: u64,
    pub(crate) bug: Option<Bug>,
    pub(crate) base: &'static Base,
    pub(crate) weather: Weather,
    pub(crate) dice: Dice,
    pub(crate) now: Duration,
    pub(crate) voting_timeout: Duration,
    pub(crate) nodes: BTreeMap<NodeId, SimNode>,
    pub(crate) chain: DevnetChain,
    pub(crate) bridge: SimBridge,
    pub(crate) wallets: Vec<SimWallet>,
    pub(crate) submissions: Vec<Submission>,
    pub(crate) subscribers: Vec<Subscriber>,
    /// A payment that is kept secret.
    pub(crate) theft: Option<Theft>,
    /// The change of epoch, once it has begun.
    pub(crate) succession: Option<Change>,
    pub(crate) oracle: Oracle,
    /// Attempts that honest coordinators asked wallets to sign.
    pub(crate) sessions: BTreeMap<(NodeId, VoteTarget), BTreeSet<u32>>,
    pub(crate) counters: Counters,
    pub(crate) next_rpc: u64,
    pub(crate) next_coin: usize,
    pub(crate) next_greedy: usize,
    /// Pairs that cannot talk, in this direction.
    pub(crate) cuts: BTreeSet<(NodeId, NodeId)>,
    pub(crate) stormy: bool,
    /// How often contested outpoints were judged again.
    pub(crate) judged_again: u32,
    /// When a thief let time pass, and the height before.
    pub(crate) time_passed: Option<(Duration, u32)>,
    /// Nothing is judged before: work that begins late gets its time.
    ends_after: Duration,
    last_delivery: BTreeMap<(NodeId, SessionId), Duration>,
    queue: BTreeMap<(Duration, u64), Event>,
    next_event: u64,
    events: u64,
    ended: bool,
    verbose: bool,
    samples: Option<BTreeMap<String, String>>,
    trace: sha256::HashEngine,
}

/// Runs one seed.
pub fn run(options: Options) -> Report {
    run_with(options, Dice::new(options.seed, &[]))
}

/// Runs a script: each byte is one choice, in the order in which the run asks for them; the rest is drawn.
pub fn run_script(script: &[u8]) -> Report {
    let options = Options::default();
    run_with(options, Dice::new(options.seed, script))
}

fn run_with(options: Options, dice: Dice) -> Report {
    let mut world = World::new(options, dice);
    world.start();
    while !world.ended && world.oracle.violation.is_none() {
        let Some(((at, _), event)) = world.queue.pop_first() else { break };
        world.now = at;
        world.events += 1;
        if world.events > EVENTS_MAX {
            world.oracle.broken("every run ends", format!("{EVENTS_MAX} events"));
        }
        world.note(&event);
        world.handle(event);
    }
    Report {
        seed: options.seed,
        violation: world.oracle.violation.clone(),
        trace: sha256::Hash::from_engine(world.trace.clone()).to_string(),
        simulated: world.now,
        events: world.events,
        counters: world.counters.clone(),
        finals: world.oracle.finals(),
        checks: world.oracle.checks,
        sessions_max: world.sessions.values().map(BTreeSet::len).max().unwrap_or(0),
        samples: world.samples.unwrap_or_default(),
    }
}

impl World {
    fn new(options: Options, mut dice: Dice) -> Self {
        let drawn = Weather::draw(&mut dice);
        let weather = options.weather.unwrap_or(drawn);
        let base = Base::of(weather.nodes);
        let chain = DevnetChain::deterministic(options.seed, &base.blocks).expect("the base chain is valid");
        let mut nodes: BTreeMap<_, _> = (1..=u16::from(weather.nodes))
            .map(NodeId)
            .map(|id| (id, SimNode { index: base.index.clone(), ..SimNode::new(id) }))
            .collect();
        let mut order: Vec<NodeId> = nodes.keys().copied().collect();
        for index in (1..order.len()).rev() {
            order.swap(index, dice.below(index + 1));
        }
        for (place, id) in order.into_iter().enumerate() {
            let Some(node) = nodes.get_mut(&id) else { continue };
            node.files.share = base.share_of(id);
            if place < weather.byzantine {
                node.evil = Some(crate::byzantine::Evil::draw(&mut dice));
            } else if place < weather.byzantine + weather.forgetful {
                node.forgetful = true;
            }
        }
        let wallets = (0..WALLETS).map(|index| SimWallet::new(base, index, options.seed)).collect();
        Self {
            seed: options.seed,
            bug: options.bug,
            base,
            weather,
            dice,
            now: Duration::ZERO,
            voting_timeout: VOTING_TIMEOUT,
            nodes,
            chain,
            bridge: SimBridge::new(base.federation.id(), usize::from(weather.nodes)),
            wallets,
            submissions: Vec::new(),
            subscribers: Vec::new(),
            theft: None,
            succession: None,
            oracle: Oracle::new(base.funding()),
            sessions: BTreeMap::new(),
            counters: Counters::default(),
            next_rpc: 1,
            next_coin: 0,
            next_greedy: 0,
            cuts: BTreeSet::new(),
            stormy: true,
            judged_again: 0,
            time_passed: None,
            ends_after: Duration::ZERO,
            last_delivery: BTreeMap::new(),
            queue: BTreeMap::new(),
            next_event: 0,
            events: 0,
            ended: false,
            verbose: options.verbose,
            samples: options.samples.then(BTreeMap::new),
            trace: sha256::Hash::engine(),
        }
    }

    fn start(&mut self) {
        for id in self.nodes.keys().copied().collect::<Vec<_>>() {
            self.start_node(id);
            let wait = self.dice.between(0, 200_000);
            self.schedule(wait, Event::BridgeConnect { node: id });
        }
        for index in 0..self.wallets.len() {
            let wait = self.dice.between(400_000, 900_000);
            self.schedule(wait, Event::Wallet { index, event: WalletEvent::Wake });
        }
        self.add_subscribers();
        for _ in 0..self.weather.work {
            let storm = u64::try_from(self.weather.storm.as_micros()).unwrap_or(1);
            let at = self.dice.between(1_500_000, storm);
            self.schedule(at, Event::Work);
        }
        self.schedule(Duration::from_secs(1), Event::BridgeTick);
        self.schedule(Duration::from_millis(self.weather.blocks_ms), Event::Block);
        self.next_machine_fault();
        self.next_network_fault();
        self.schedule(self.weather.storm, Event::Calm);
        if let Some(at) = self.weather.succession {
            self.schedule(at, Event::Succession);
        }
        if let Some(at) = self.weather.theft {
            self.schedule(at, Event::Theft);
        }
    }

    /// How much it takes to make a transaction final behind the back of honest nodes, in the epoch that a node is in.
    pub(crate) fn weight(&self, id: NodeId) -> Weight {
        let federation = self.federation();
        let quorum = usize::from(federation.quorum().votes());
        let first = self.nodes.get(&id).is_none_or(|node| node.epoch == quorate::Epoch::FIRST);
        let faulty = if first {
            self.weather.byzantine + self.weather.forgetful
        } else {
            self.nodes.values().filter(|node| !node.is_trusted()).count()
        };
        let tip = self.nodes.get(&id).and_then(|node| Some(node.machine.as_ref()?.tip().height));
        // What a paused node said before a thief let time pass leaves it after that.
        let before = self.time_passed.filter(|(at, _)| self.now < *at + PAUSE_MAX).map(|(_, height)| height);
        let tip = tip.unwrap_or(0);
        Weight { federation, faulty, quorum, tip: before.map_or(tip, |before| tip.min(before)) }
    }

    pub(crate) fn schedule(&mut self, wait: Duration, event: Event) {
        self.schedule_at(self.now + wait, event);
    }

    pub(crate) fn schedule_at(&mut self, at: Duration, event: Event) {
        self.next_event += 1;
        self.queue.insert((at, self.next_event), event);
    }

    /// Frames of one stream arrive in the order in which they were sent.
    pub(crate) fn in_order(&mut self, node: NodeId, session: SessionId, wait: Duration) -> Duration {
        let last = self.last_delivery.entry((node, session)).or_default();
        *last = (self.now + wait).max(*last);
        *last
    }

    /// Sends something from node to node over the faulty network.
    pub(crate) fn transmit(&mut self, from: NodeId, to: NodeId, event: Event) {
        if from == to {
            return self.schedule(Duration::ZERO, event);
        }
        if self.cuts.contains(&(from, to)) {
            return;
        }
        let mut wait = self.dice.between(100, 3_000);
        if self.stormy {
            if self.dice.chance(self.weather.drop) {
                self.counters.add(Fault::Drop);
                return;
            }
            if self.dice.chance(self.weather.delay) {
                self.counters.add(Fault::Delay);
                self.counters.add(Fault::Reorder);
                wait = self.dice.between(5_000, 2_500_000);
            }
            if self.dice.chance(self.weather.duplicate) {
                self.counters.add(Fault::Duplicate);
                if let Some(copy) = copy_of(&event) {
                    let later = self.dice.between(100, 1_000_000);
                    self.schedule(later, copy);
                }
            }
        }
        self.schedule(wait, event);
    }

    /// Adds an event to the trace; its parts that decide anything are in it.
    fn note(&mut self, event: &Event) {
        let text = format!("{:?} {}", self.now, describe(event));
        if self.verbose {
            eprintln!("{text}");
        }
        self.trace.input(text.as_bytes());
        if let Some(samples) = &mut self.samples {
            let sample = match event {
                Event::Request { request, .. } => encode_text(None, &**request),
                Event::Reply { reply, .. } => encode_text(None, &**reply),
                Event::ClientSays { message, .. } => encode_text(Some(1), &**message),
                Event::ToClient { message, .. } => encode_text(Some(1), &**message),
                _other => return,
            };
            let name = event_name(&sample);
            // The longest says most.
            let kept = samples.entry(name).or_default();
            if sample.len() > kept.len() && sample.len() < 60_000 {
                *kept = sample;
            }
        }
    }

    fn handle(&mut self, event: Event) {
        if let Some(node) = target(&event)
            && let Some(until) = self.nodes.get(&node).map(|node| node.paused_until)
            && until > self.now
        {
            return self.schedule_at(until, event);
        }
        let run = |(id, run)| self.nodes.get(&id).is_some_and(|node| node.incarnation == run);
        if !run_of(&event).is_none_or(run) {
            return;
        }
        match event {
            Event::Request { from, to, rpc, incarnation, request } => {
                // What a replaced node sent came over a connection that is closed.
                if self.nodes.get(&from).is_some_and(|sender| sender.born <= incarnation) {
                    self.requested(from, to, rpc, *request);
                }
            }
            Event::Reply { to, rpc, reply, .. } => self.answered(to, rpc, Some(*reply)),
            Event::RpcTimeout { node, rpc, .. } => self.answered(node, rpc, None),
            Event::TransitionTimer { node, .. } => self.transition_due(node),
            Event::RepairAgain { node, .. } => {
                self.step_transition(node, quorate_rules::Transition::repair_share);
            }
            Event::Plan { node } => self.hear_plan(node),
            Event::Disk { node, .. } => self.disk_done(node),
            Event::Timer { node, .. } => self.machine_due(node),
            Event::Coins { node, ticket, height, coins, .. } => {
                self.coins_found(node, ticket, height, coins);
            }
            Event::Recalled { node, ticket, archived, .. } => {
                self.step(node, |machine| machine.handle_recalled(ticket, Some(*archived)));
            }
            Event::Checked { node, ticket, checked, .. } => self.checked(node, ticket, *checked),
            Event::Found { node, ticket, found, .. } => self.found(node, ticket, found),
            Event::Settled { node, .. } => {
                self.counters.add(Fault::Settled);
                self.step(node, |machine| machine.handle_settled());
            }
            Event::Sweep { node } => self.sweep(node),
            Event::Start { node } => {
                if self.nodes.get(&node).is_some_and(|node| node.machine.is_none()) && self.start_node(node) {
                    self.counters.add(Fault::Restart);
                }
            }
            Event::Chain { node } => self.follow_chain(node),
            Event::Block => self.mine(),
            Event::ClientSays { node, session, id, message } => self.client_says(node, session, id, *message),
            Event::ToClient { node, session, owner, id, message } => {
                self.client_hears(node, session, owner, id, *message);
            }
            Event::SessionLost { owner } => self.session_lost(owner),
            Event::BridgeConnect { node } => self.bridge_connect(node),
            Event::BridgeStart => self.bridge_start(),
            Event::BridgeTick => self.bridge_tick(),
            Event::Wallet { index, event } => self.wallet_event(index, event),
            Event::Subscriber { index, event } => self.subscriber_event(index, event),
            Event::Submit { index } => self.submit_again(index),
            Event::Work => self.work(),
            Event::Theft if self.theft.is_none() => self.begin_theft(),
            Event::Theft => self.theft_goes_on(),
            Event::Succession => self.begin_succession(),
            Event::MachineFault => self.machine_fault(),
            Event::NetworkFault => self.network_fault(),
            Event::Calm => self.calm(),
            Event::Judge => self.judge_contested(),
            Event::End if self.now < self.ends_after => self.schedule_at(self.ends_after, Event::End),
            Event::End => self.judge_end(),
        }
    }

    fn sweep(&mut self, id: NodeId) {
        self.schedule(Duration::from_secs(10), Event::Sweep { node: id });
        let Some(machine) = self.nodes.get(&id).and_then(|node| node.machine.as_ref()) else { return };
        for transaction in machine.unconfirmed() {
            // What the chain does not take now is tried at the next sweep.
            let _not_yet = self.chain.submit(transaction);
        }
    }

    /// Hands a node's machine what the chain has on top of a block that it knows.
    pub(crate) fn follow_chain(&mut self, id: NodeId) {
        let Some(node) = self.nodes.get(&id) else { return };
        let Some(machine) = &node.machine else { return };
        let tip = self.chain.height();
        let known = |height: &u32| machine.block_at(*height) == self.chain.block_hash(*height);
        let fork = (0..=tip).rev().find(known).unwrap_or(0);
        let hashes = (fork + 1..=tip).filter_map(|height| self.chain.block_hash(height));
        let blocks: Vec<_> = hashes.filter_map(|hash| Some(self.chain.find(hash)?.0)).collect();
        if !blocks.is_empty() {
            self.step(id, |machine| {
                machine.handle_blocks(&blocks);
            });
        }
        if let Some(node) = self.nodes.get_mut(&id) {
            node.height = tip;
        }
    }

    fn mine(&mut self) {
        let buried = u32::try_from(self.base.blocks.len()).unwrap_or(0);
        let above = self.chain.height().saturating_sub(buried) + 6;
        let mined = if self.stormy && self.dice.chance(self.weather.reorganisations) {
            let depth = u32::try_from(1 + self.dice.below(6)).unwrap_or(1).min(above);
            self.counters.add(Fault::reorganisation(depth));
            self.chain.reorganise(depth, &open_output()).expect("reorganises")
        } else {
            self.chain.mine(1, &open_output()).expect("mines")
        };
        self.take_blocks(mined);
        let blocks = self.weather.blocks_ms * 1_000;
        let wait = self.dice.between(blocks / 2, blocks * 3 / 2);
        self.schedule(wait, Event::Block);
    }

    /// Blocks that were mined reach the nodes.
    pub(crate) fn take_blocks(&mut self, mined: Vec<BlockHash>) {
        for (block, height) in mined.into_iter().filter_map(|hash| self.chain.find(hash)) {
            self.oracle.block(&block, height);
        }
        for node in self.nodes.keys().copied().collect::<Vec<_>>() {
            let wait = self.dice.between(1_000, 900_000);
            self.schedule(wait, Event::Chain { node });
        }
    }

    /// Faults stop; what is down comes up.
    fn calm(&mut self) {
        self.stormy = false;
        self.cuts.clear();
        for node in self.nodes.values_mut() {
            node.doomed = None;
            node.paused_until = self.now;
            node.slow_until = self.now;
            node.disk.plan(crate::disk::DiskFault::default());
        }
        let down: Vec<_> =
            self.nodes.iter().filter(|(_, node)| node.transition.is_none()).map(|(id, _)| *id).collect();
        for node in down {
            self.schedule(Duration::from_millis(1), Event::Start { node });
        }
        self.schedule(IN_FLIGHT + SETTLE, Event::Judge);
        self.schedule(CONVERGE, Event::End);
    }

    /// Somebody begins to work after a wait, and may take as long as everything else does once faults have stopped.
    pub(crate) fn work_after(&mut self, wait: Duration) {
        self.ends_after = self.ends_after.max(self.now + wait + CONVERGE);
        self.schedule(wait, Event::Work);
    }

    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    /// A release request without a reason, from an evil node.
    pub(crate) fn bother(
        &mut self,
        evil: NodeId,
        outpoint: OutPoint,
        round: Round,
        cancel: Option<Cancellation>,
    ) {
        self.counters.add(Fault::UnfoundedRelease);
        let incarnation = self.nodes.get(&evil).map_or(0, |node| node.incarnation);
        for to in self.nodes.keys().copied().filter(|to| *to != evil).collect::<Vec<_>>() {
            let request = PeerRequest::Voting(VotingRequest::ReleaseRequest {
                outpoint,
                round,
                rejects: vec![],
                cancel: cancel.clone().map(Box::new),
                promises: vec![],
                previous: None,
            });
            let rpc = self.next_rpc;
            self.next_rpc += 1;
            self.transmit(
                evil,
                to,
                Event::Request { from: evil, to, rpc, incarnation, request: Box::new(request) },
            );
        }
    }
}

fn event_name(json: &str) -> String {
    let value: serde_json::Value = serde_json::from_str(json).unwrap_or_default();
    let part = |name: &str| value.get(name).and_then(|part| part.as_str()).unwrap_or_default().to_owned();
    format!("{}{}{}", part("type"), part("status"), part("custody"))
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("World").field("seed", &self.seed).field("now", &self.now).finish_non_exhaustive()
    }
}
