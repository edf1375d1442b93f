//! A model of deadlines (rule V10) and parents (V1): a payer with all its keys, the recovery key included, over time.
//!
//! One coin, confirmed at height 0, whose recovery path opens at `DELAY`. A first transaction spends it, a second one
//! spends what the first pays. Approval and signature are one step, because the payer is free to finish what q nodes
//! approved, and to show it to nobody for as long as it likes. Nodes and payee have the same tip: one that lags is one
//! block of the margin. The network mines what somebody has broadcast within `MARGIN` blocks at the latest, and
//! otherwise what the payer wants; the recovery spend when the payer wants, as soon as the path is open.

use stateright::{Model, Property};

/// Blocks after a coin's own until its recovery path opens.
const DELAY: u8 = 7;
/// The same for what the first transaction pays: accounts choose their own delay, and this one has chosen a shorter
/// one.
const CHILD_DELAY: u8 = 3;
/// Blocks before that in which no payment counts as final without a confirmation.
const MARGIN: u8 = 2;
/// Where exploring ends: after the recovery path of what the last transaction pays has opened.
const HEIGHT_MAX: u8 = DELAY + CHILD_DELAY + MARGIN;

/// What the first transaction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum First {
    /// A payment from a joint account to another one.
    Payment,
    /// A move within the joint account, past the horizon or before it.
    Home,
    /// A transaction of sole custody that pays a joint account.
    Sole,
}

/// A rule to break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Broken {
    /// None.
    Nothing,
    /// A payee and nodes take in what they see first after its deadline.
    LateTaken,
    /// A deadline may lie within the margin.
    NoMargin,
    /// A child's deadline goes by its parent's alone, whatever delay its own account has.
    ChildIgnoresItsDelay,
    /// What was moved home past the horizon can be spent before its block.
    HomePaysAtOnce,
    /// What an attested transaction pays can be spent before its block.
    AttestedParent,
}

/// One configuration to explore.
#[derive(Clone, Copy, Debug)]
pub struct Deadlines {
    /// The first transaction.
    pub first: First,
    /// The rule broken.
    pub broken: Broken,
}

/// One of the two transactions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Transaction {
    /// Certified and signed, with this deadline.
    deadline: Option<u8>,
    /// Height at which its payer showed it.
    shown: Option<u8>,
    /// Whether it was taken for final without a confirmation.
    accepted: bool,
    /// Height of its block.
    block: Option<u8>,
}

/// Everything at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct State {
    height: u8,
    first: Transaction,
    second: Transaction,
    /// The coin was spent around the first transaction.
    taken_back: bool,
    /// What the first transaction pays was spent around the second, by its own recovery path.
    child_taken_back: bool,
}

/// A step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// q nodes approve the first (or second) transaction until a height, and its payer has it signed.
    Sign(bool, u8),
    /// The payer shows it to nodes and payee.
    Show(bool),
    /// A block comes: with the first, with the second, with the payer's own spend of the coin, of the child's.
    Mine(bool, bool, bool, bool),
}

impl Deadlines {
    /// The latest deadline that honest nodes approve; `None` if they do not vote at all.
    fn bound(&self, state: &State, second: bool) -> Option<u8> {
        let margin = if self.broken == Broken::NoMargin { 0 } else { MARGIN };
        let from_block = |block: u8, delay: u8| block + delay - margin;
        if !second {
            return Some(if self.first == First::Sole { HEIGHT_MAX } else { from_block(0, DELAY) });
        }
        let parent = state.first;
        if state.taken_back {
            return None;
        }
        match (parent.block, parent.deadline.filter(|_| parent.accepted)) {
            (Some(block), _) => Some(from_block(block, CHILD_DELAY)),
            (None, Some(_)) if self.first == First::Sole => {
                (self.broken == Broken::AttestedParent).then_some(from_block(state.height, CHILD_DELAY))
            }
            (None, Some(0)) => {
                (self.broken == Broken::HomePaysAtOnce).then_some(from_block(state.height, CHILD_DELAY))
            }
            (None, Some(deadline)) if self.broken == Broken::ChildIgnoresItsDelay => Some(deadline),
            // Its parent's block comes later than now, and its own recovery path opens after that.
            (None, Some(deadline)) => Some(deadline.min(from_block(state.height, CHILD_DELAY))),
            (None, None) => None,
        }
    }

    fn may_sign(&self, state: &State, second: bool, deadline: u8) -> bool {
        let home = self.first == First::Home && !second;
        let bound = self.bound(state, second);
        (home && deadline == 0) || bound.is_some_and(|bound| state.height < deadline && deadline <= bound)
    }

    /// Nodes take in, and a payee accepts, what is shown to them below its deadline. What only moves coins home is
    /// taken in at any time; nobody is paid by it.
    fn is_taken(&self, state: &State, transaction: Transaction) -> bool {
        let Some(deadline) = transaction.deadline else { return false };
        deadline == 0 || state.height < deadline || self.broken == Broken::LateTaken
    }
}

impl Model for Deadlines {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::default()]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        for (second, transaction) in [(false, state.first), (true, state.second)] {
            if transaction.deadline.is_none() {
                let deadlines = (0..=HEIGHT_MAX).filter(|deadline| self.may_sign(state, second, *deadline));
                actions.extend(deadlines.map(|deadline| Action::Sign(second, deadline)));
            } else if transaction.shown.is_none() {
                actions.push(Action::Show(second));
            }
        }
        if state.height == HEIGHT_MAX {
            return;
        }
        let next = state.height + 1;
        // The payer can hand anything signed to a miner.
        let open = |one: Transaction| one.deadline.is_some() && one.block.is_none();
        let due = |one: Transaction| {
            open(one) && one.accepted && one.shown.is_some_and(|shown| next - shown >= MARGIN)
        };
        for choice in 0..16_u8 {
            let [first, second, back, child_back] = [1, 2, 4, 8].map(|bit| choice & bit != 0);
            let first_lives = open(state.first) && !state.taken_back;
            let first_mined = state.first.block.is_some() || first;
            let second_lives = open(state.second) && first_mined && !state.child_taken_back;
            let coin_free = state.first.block.is_none() && !state.taken_back;
            let back_open = self.first == First::Sole || next >= DELAY;
            let child_open = state.first.block.is_some_and(|block| next >= block + CHILD_DELAY);
            let child_free = state.second.block.is_none() && !state.child_taken_back;
            let possible = (!first || first_lives)
                && (!second || second_lives)
                && (!back || (coin_free && back_open && !first))
                && (!child_back || (child_open && child_free && !second));
            let mined_in_time = (first || !due(state.first) || !first_lives || back)
                && (second || !due(state.second) || !second_lives || child_back);
            // What is due is mined before a conflicting spend that becomes possible only now.
            let fair = !(back && first_lives && due(state.first) && self.first != First::Sole)
                && !(child_back && second_lives && due(state.second));
            if possible && mined_in_time && fair {
                actions.push(Action::Mine(first, second, back, child_back));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        match action {
            Action::Sign(second, deadline) => {
                let transaction = if second { &mut state.second } else { &mut state.first };
                transaction.deadline = Some(deadline);
            }
            Action::Show(second) => {
                let shown = if second { last.second } else { last.first };
                let accepted = self.is_taken(last, shown) && !last.taken_back && !last.child_taken_back;
                let transaction = if second { &mut state.second } else { &mut state.first };
                (transaction.shown, transaction.accepted) = (Some(last.height), accepted);
            }
            Action::Mine(first, second, back, child_back) => {
                state.height += 1;
                state.first.block = last.first.block.or(first.then_some(state.height));
                state.second.block = last.second.block.or(second.then_some(state.height));
                state.taken_back |= back;
                state.child_taken_back |= child_back;
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("no final payment is taken back", |model: &Self, state: &State| {
                // A move home and an attested transaction promise nobody anything.
                let first = state.first.accepted && model.first == First::Payment && state.taken_back;
                let second = state.second.accepted && (state.taken_back || state.child_taken_back);
                !(first || second)
            }),
            Property::sometimes("the second payment is final before its block", |_, state: &State| {
                state.second.accepted && state.second.block.is_none()
            }),
        ]
    }
}
