//! A model of votes, commits, releases and forced transactions, small enough to be explored whole.
//!
//! Four nodes, one of which may do anything. The three honest ones keep, per outpoint, what the design says they
//! keep; everything that they ever signed stays available to the adversary, who also chooses who hears of what and
//! when: every action of an honest node that its rules allow, at any time, is a step. The faulty node needs no state.
//! It approves, commits and promises whatever completes a certificate, so a certificate exists as soon as q - 1
//! honest nodes made it possible.
//!
//! Left out on purpose: signatures (they verify or the message is not there), the network (it loses, delays, reorders
//! and repeats by the choice of steps), and time (a timer may fire whenever it likes; nothing may depend on it).

pub mod deadlines;

use stateright::{Model, Property, Representative};
use std::collections::{BTreeMap, BTreeSet};

/// Honest nodes of the four.
const HONEST: usize = 3;
/// Of q = 3 statements, the faulty node may supply one.
const HONEST_QUORUM: usize = 2;

/// A transaction by number.
pub type Tx = u8;
/// An outpoint by number.
pub type Outpoint = u8;
/// A round.
pub type Round = u8;
/// Transaction with the rounds of its inputs.
pub type Target = (Tx, Vec<(Outpoint, Round)>);
/// What a promise names.
pub type Report = Option<Target>;
/// What may be voted for after a release: anything, or one transaction that may be final under any of these targets.
pub type Outcome = BTreeSet<Target>;

/// A rule to break, to see that the model notices.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Variant {
    /// The protocol as it is.
    Correct,
    /// A node's own timer frees its lock.
    ReleaseByTimer,
    /// A release goes by what most of its promises say.
    MajorityOfReports,
    /// Votes leave before they are durable, and a crash forgets them.
    NoSyncBeforeSend,
    /// A certificate of the first phase is taken for final.
    FinalAfterPhase1,
    /// A node that committed does not say so when it promises.
    PromiseHidesCommit,
    /// A forced transaction is taken for void whenever that is convenient.
    VoidAtWill,
    /// A later commit to the same transaction counts together with one of an earlier round.
    MixedRounds,
    /// A release carries one of several certificates of the highest round, at the choice of the node that assembles it.
    OneOfTied,
}

/// One configuration to explore.
#[derive(Clone, Debug)]
pub struct Protocol {
    /// Inputs of each transaction.
    pub transactions: Vec<Vec<Outpoint>>,
    /// Highest round.
    pub rounds: Round,
    /// Rule broken.
    pub variant: Variant,
}

/// What an honest node keeps durably about an outpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Lock {
    round: Round,
    approved: Option<Tx>,
    committed: Option<Target>,
    released: Option<(Round, Outcome)>,
}

impl Lock {
    fn is_pending(&self) -> bool {
        self.round > 0 && self.released.as_ref().is_none_or(|(round, _)| round + 1 != self.round)
    }
}

/// Everything at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct State {
    nodes: Vec<BTreeMap<Outpoint, Lock>>,
    approvals: BTreeMap<Target, BTreeSet<usize>>,
    commits: BTreeMap<Target, BTreeSet<usize>>,
    promises: BTreeMap<(Outpoint, Round), BTreeMap<usize, Report>>,
    crashed: bool,
}

/// Honest nodes are alike: of the six ways to number them, one stands for all.
impl Representative for State {
    fn representative(&self) -> Self {
        const WAYS: [[usize; HONEST]; 6] = [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]];
        WAYS.iter().map(|way| self.renumbered(way)).min().unwrap_or_default()
    }
}

impl State {
    fn renumbered(&self, way: &[usize; HONEST]) -> Self {
        let number = |node: &usize| way.iter().position(|old| old == node).unwrap_or_default();
        let all = |nodes: &BTreeSet<usize>| nodes.iter().map(number).collect();
        Self {
            nodes: way.iter().filter_map(|old| self.nodes.get(*old).cloned()).collect(),
            approvals: self.approvals.iter().map(|(target, nodes)| (target.clone(), all(nodes))).collect(),
            commits: self.commits.iter().map(|(target, nodes)| (target.clone(), all(nodes))).collect(),
            promises: self
                .promises
                .iter()
                .map(|(of, said)| (*of, said.iter().map(|(node, one)| (number(node), one.clone())).collect()))
                .collect(),
            crashed: self.crashed,
        }
    }
}

/// A step of an honest node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Approves a transaction in the present rounds.
    Vote(usize, Tx),
    /// Commits to a certificate.
    Commit(usize, Target),
    /// Promises to leave an outpoint's round.
    Promise(usize, Outpoint),
    /// Takes in a release.
    Release(usize, Outpoint, Round, Outcome),
    /// Forgets what was not durable; only the first crash is explored.
    Crash(usize),
}

impl Protocol {
    /// Two transactions that spend one outpoint.
    pub fn two_on_one(variant: Variant) -> Self {
        Self { transactions: vec![vec![0], vec![0]], rounds: 1, variant }
    }

    /// Three transactions over two outpoints, the middle one spending both.
    pub fn three_on_two(variant: Variant) -> Self {
        Self { transactions: vec![vec![0], vec![0, 1], vec![1]], rounds: 1, variant }
    }

    fn inputs(&self, tx: Tx) -> &[Outpoint] {
        self.transactions.get(usize::from(tx)).map_or(&[], Vec::as_slice)
    }

    fn lock<'a>(&self, state: &'a State, node: usize, outpoint: Outpoint) -> Option<&'a Lock> {
        state.nodes.get(node)?.get(&outpoint)
    }

    /// The transaction in the rounds that its inputs are in at a node; `None` if one of them is being left.
    fn target(&self, state: &State, node: usize, tx: Tx) -> Option<Target> {
        let rounds = self.inputs(tx).iter().map(|outpoint| {
            let lock = self.lock(state, node, *outpoint)?;
            (!lock.is_pending()).then_some((*outpoint, lock.round))
        });
        Some((tx, rounds.collect::<Option<Vec<_>>>()?))
    }

    /// Rule V6 at a node: another input's release shows that the forced transaction was not final under this target.
    fn is_void(&self, state: &State, node: usize, outpoint: Outpoint, forced: &Target) -> bool {
        self.variant == Variant::VoidAtWill
            || forced.1.iter().filter(|(other, _)| *other != outpoint).any(|(other, round)| {
                let released = self.lock(state, node, *other).and_then(|lock| lock.released.as_ref());
                released.is_some_and(|(left, outcome)| {
                    left >= round && !outcome.iter().any(|one| one.0 == forced.0)
                })
            })
    }

    /// Whether a node may vote for or commit to a transaction on an outpoint, as far as the last release goes.
    fn leaves_room(&self, state: &State, node: usize, outpoint: Outpoint, tx: Tx) -> bool {
        let Some(lock) = self.lock(state, node, outpoint) else { return false };
        let forced = lock.released.as_ref().map(|(_, outcome)| outcome);
        forced.is_none_or(|forced| {
            forced.iter().all(|target| target.0 == tx || self.is_void(state, node, outpoint, target))
        })
    }

    fn is_certified(state: &State, target: &Target) -> bool {
        state.approvals.get(target).is_some_and(|nodes| nodes.len() >= HONEST_QUORUM)
    }

    /// Every outcome that some release of this outpoint and round can have.
    pub fn outcomes(&self, state: &State, outpoint: Outpoint, round: Round) -> BTreeSet<Outcome> {
        let Some(promises) = state.promises.get(&(outpoint, round)) else { return BTreeSet::new() };
        let reports: Vec<&Report> = promises.values().collect();
        let round_of =
            |target: &Target| target.1.iter().find(|(one, _)| *one == outpoint).map(|(_, round)| *round);
        // What the faulty node may say: nothing, or any certificate there is of a round that is over.
        let mut lies: Vec<Report> = vec![None];
        lies.extend(
            state
                .approvals
                .keys()
                .filter(|target| {
                    Self::is_certified(state, target) && round_of(target).is_some_and(|made| made <= round)
                })
                .map(|target| Some(target.clone())),
        );
        let mut found = BTreeSet::new();
        for chosen in 1_u32..(1 << reports.len()) {
            let mut said: Vec<Report> = reports
                .iter()
                .enumerate()
                .filter(|(at, _)| chosen & (1 << at) != 0)
                .map(|(_, one)| (*one).clone())
                .collect();
            if said.len() < HONEST_QUORUM {
                continue;
            }
            if said.len() > HONEST_QUORUM {
                found.extend(self.decide(&said, round_of));
            }
            for lie in &lies {
                said.push(lie.clone());
                found.extend(self.decide(&said, round_of));
                said.pop();
            }
        }
        found
    }

    /// The outcome of a set of promises: every target named in the highest round.
    fn decide(&self, said: &[Report], round_of: impl Fn(&Target) -> Option<Round>) -> Vec<Outcome> {
        let named: Vec<&Target> = said.iter().flatten().collect();
        let free = self.variant == Variant::MajorityOfReports && 2 * named.len() <= said.len();
        let top = named.iter().filter_map(|target| round_of(target)).max();
        let highest = named.into_iter().filter(|target| !free && round_of(target) == top).cloned();
        if self.variant == Variant::OneOfTied {
            let each: Vec<Outcome> = highest.map(|target| BTreeSet::from([target])).collect();
            return if each.is_empty() { vec![BTreeSet::new()] } else { each };
        }
        vec![highest.collect()]
    }

    /// Transactions that are, or could behind the back of honest nodes be made, final.
    pub fn finals(&self, state: &State) -> BTreeSet<Tx> {
        let statements =
            if self.variant == Variant::FinalAfterPhase1 { &state.approvals } else { &state.commits };
        if self.variant == Variant::MixedRounds {
            let mut nodes: BTreeMap<Tx, BTreeSet<usize>> = BTreeMap::new();
            for (target, committed) in statements {
                nodes.entry(target.0).or_default().extend(committed);
            }
            return nodes
                .into_iter()
                .filter(|(_, nodes)| nodes.len() >= HONEST_QUORUM)
                .map(|(tx, _)| tx)
                .collect();
        }
        statements
            .iter()
            .filter(|(_, nodes)| nodes.len() >= HONEST_QUORUM)
            .map(|(target, _)| target.0)
            .collect()
    }

    /// Certificates that q nodes committed to, or could have with the faulty one.
    fn made<'a>(&self, state: &'a State) -> impl Iterator<Item = &'a Target> {
        state.commits.iter().filter(|(_, nodes)| nodes.len() >= HONEST_QUORUM).map(|(target, _)| target)
    }

    /// Whether a release leaves an outpoint to a transaction for certain: no releases of other inputs that could ever
    /// be shown make every target that it carries void.
    pub fn holds(&self, state: &State, outpoint: Outpoint, forced: &Outcome, tx: Tx) -> bool {
        let voidable = |target: &Target| {
            target.1.iter().filter(|(other, _)| *other != outpoint).any(|(other, round)| {
                (*round..=self.rounds).any(|left| {
                    self.outcomes(state, *other, left)
                        .iter()
                        .any(|one| !one.iter().any(|named| named.0 == tx))
                })
            })
        };
        forced.iter().any(|target| target.0 == tx && !voidable(target))
    }

    fn conflict(&self, one: Tx, other: Tx) -> bool {
        one != other && self.inputs(one).iter().any(|outpoint| self.inputs(other).contains(outpoint))
    }
}

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let outpoints: BTreeMap<Outpoint, Lock> =
            self.transactions.iter().flatten().map(|outpoint| (*outpoint, Lock::default())).collect();
        vec![State { nodes: vec![outpoints; HONEST], ..State::default() }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for node in 0..HONEST {
            for tx in (0..).take(self.transactions.len()) {
                if self.may_vote(state, node, tx) {
                    actions.push(Action::Vote(node, tx));
                }
            }
            for target in state.approvals.keys().filter(|target| Self::is_certified(state, target)) {
                if self.may_commit(state, node, target) {
                    actions.push(Action::Commit(node, target.clone()));
                }
            }
            let Some(locks) = state.nodes.get(node) else { continue };
            for (outpoint, lock) in locks {
                if lock.round <= self.rounds && !lock.is_pending() && lock.round < self.rounds + 1 {
                    actions.push(Action::Promise(node, *outpoint));
                }
                for round in 0..=self.rounds {
                    if lock.released.as_ref().is_some_and(|(known, _)| *known >= round) {
                        continue;
                    }
                    let outcomes = self.outcomes(state, *outpoint, round);
                    actions
                        .extend(outcomes.into_iter().map(|one| Action::Release(node, *outpoint, round, one)));
                }
            }
            if self.variant == Variant::NoSyncBeforeSend && !state.crashed {
                actions.push(Action::Crash(node));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Vote(node, tx) => {
                let target = self.target(last, node, tx)?;
                for outpoint in self.inputs(tx) {
                    state.nodes.get_mut(node)?.get_mut(outpoint)?.approved = Some(tx);
                }
                state.approvals.entry(target).or_default().insert(node);
            }
            Action::Commit(node, target) => {
                for (outpoint, _) in &target.1 {
                    state.nodes.get_mut(node)?.get_mut(outpoint)?.committed = Some(target.clone());
                }
                state.commits.entry(target).or_default().insert(node);
            }
            Action::Promise(node, outpoint) => {
                let lock = state.nodes.get_mut(node)?.get_mut(&outpoint)?;
                let named = lock.committed.clone().filter(|_| self.variant != Variant::PromiseHidesCommit);
                let round = lock.round;
                (lock.round, lock.approved) = (round + 1, None);
                if self.variant == Variant::ReleaseByTimer {
                    lock.released = Some((round, BTreeSet::new()));
                }
                state.promises.entry((outpoint, round)).or_default().insert(node, named);
            }
            Action::Release(node, outpoint, round, outcome) => {
                let lock = state.nodes.get_mut(node)?.get_mut(&outpoint)?;
                if lock.round <= round {
                    (lock.round, lock.approved) = (round + 1, None);
                }
                lock.released = Some((round, outcome));
            }
            Action::Crash(node) => {
                for lock in state.nodes.get_mut(node)?.values_mut() {
                    (lock.approved, lock.committed) = (None, None);
                }
                state.crashed = true;
            }
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always(
                "no two final transactions spend one outpoint",
                |model: &Self, state: &State| {
                    let finals = model.finals(state);
                    finals.iter().all(|one| finals.iter().all(|other| !model.conflict(*one, *other)))
                },
            ),
            Property::always("no final transaction is released", |model: &Self, state: &State| {
                model.made(state).all(|target| {
                    target.1.iter().all(|(outpoint, made)| {
                        (*made..=model.rounds).all(|round| {
                            let outcomes = model.outcomes(state, *outpoint, round);
                            outcomes.iter().all(|forced| model.holds(state, *outpoint, forced, target.0))
                        })
                    })
                })
            }),
            Property::sometimes("the first transaction becomes final", |model: &Self, state: &State| {
                model.finals(state).contains(&0)
            }),
            Property::sometimes("after a release, another becomes final", |model: &Self, state: &State| {
                let later = |target: &Target| target.0 != 0 && target.1.iter().any(|(_, round)| *round > 0);
                model.variant != Variant::Correct
                    || state
                        .commits
                        .iter()
                        .any(|(target, nodes)| later(target) && nodes.len() >= HONEST_QUORUM)
            }),
            Property::sometimes(
                "a forced transaction is finished in the next round",
                |model: &Self, state: &State| {
                    let forced =
                        |lock: &Lock| lock.released.as_ref().is_some_and(|(_, outcome)| !outcome.is_empty());
                    model.variant != Variant::Correct
                        || (state.nodes.iter().flat_map(BTreeMap::values).any(forced)
                            && state.commits.iter().any(|(target, nodes)| {
                                target.1.iter().any(|(_, round)| *round > 0) && nodes.len() >= HONEST_QUORUM
                            }))
                },
            ),
        ]
    }
}

impl Protocol {
    fn may_vote(&self, state: &State, node: usize, tx: Tx) -> bool {
        let Some(target) = self.target(state, node, tx) else { return false };
        let known = state.approvals.get(&target).is_some_and(|nodes| nodes.contains(&node));
        let locked = |outpoint: &Outpoint| self.lock(state, node, *outpoint).and_then(|lock| lock.approved);
        let free = |outpoint: &Outpoint| {
            locked(outpoint).is_none_or(|approved| approved == tx)
                && self.leaves_room(state, node, *outpoint, tx)
        };
        let reached = target.1.iter().all(|(_, round)| *round <= self.rounds);
        !known && reached && self.inputs(tx).iter().all(free)
    }

    fn may_commit(&self, state: &State, node: usize, target: &Target) -> bool {
        let known = state.commits.get(target).is_some_and(|nodes| nodes.contains(&node));
        let present = self.target(state, node, target.0).as_ref() == Some(target);
        let free = |outpoint: &Outpoint| self.leaves_room(state, node, *outpoint, target.0);
        !known && present && self.inputs(target.0).iter().all(free)
    }
}
