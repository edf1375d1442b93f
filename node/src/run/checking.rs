//! Runs checks that take long aside, as many at a time as there are processors but one. Of each account one is under
//! way for each certificate or node that asks, and of each source one that is about no account; they take turns, by
//! certificate or node: who asks for many waits for its own, and nobody for what another asked about its account.

use super::{input::Input, queue::Inputs, turns::Fair};
use quorate_protocol::AccountId;
use quorate_rules::{Check, Party, Source};
use std::{collections::HashMap, sync::Arc};
use tokio::{sync::Mutex, task::JoinError};

/// Checks that run and wait.
#[derive(Debug)]
pub(crate) struct Checking {
    inputs: Inputs,
    turns: Lanes,
}

impl Checking {
    pub(crate) fn new(inputs: Inputs) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { inputs, turns: Lanes::new(processors.saturating_sub(1).max(1)) }
    }

    /// Hands in what is found out.
    pub(crate) fn start(&mut self, ticket: u64, source: Source, check: Check) {
        let account = |account| Lane::Account(account, source.party());
        let lane = check.account().map_or(Lane::Source(source), account);
        let (done, inputs) = (self.turns.run(lane, source.party(), || check.run()), self.inputs.clone());
        tokio::spawn(async move {
            let checked = done.await;
            if let Err(error) = &checked {
                tracing::error!(%error, "a check ended without a result");
            }
            let _node_ended = inputs.send(Input::Checked { ticket, checked: checked.ok() }).await;
        });
    }
}

#[derive(Debug)]
struct Lanes {
    /// Of each lane, one wants a worker.
    workers: Fair,
    lanes: HashMap<Lane, Arc<Mutex<()>>>,
}

/// Who waits for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Lane {
    /// Checks of proposals that this account's owner signed, and that came from there.
    Account(AccountId, Party),
    /// Others that came from there.
    Source(Source),
}

/// Lanes from which on those are forgotten in which nobody waits.
const LANES_MANY: usize = 1_024;

impl Lanes {
    fn new(workers: usize) -> Self {
        Self { workers: Fair::new(workers), lanes: HashMap::new() }
    }

    /// Computes something for a party on a thread of its own, when it is its turn.
    fn run<T: Send + 'static, W: FnOnce() -> T + Send + 'static>(
        &mut self,
        lane: Lane,
        party: Party,
        work: W,
    ) -> impl Future<Output = Result<T, JoinError>> + use<T, W> {
        if self.lanes.len() >= LANES_MANY {
            self.lanes.retain(|_, turn| Arc::strong_count(turn) > 1);
        }
        let (turn, workers) = (self.lanes.entry(lane).or_default().clone(), self.workers.clone());
        async move {
            let _turn = turn.lock_owned().await;
            let _worker = workers.turn(party).await;
            tokio::task::spawn_blocking(work).await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_rules::SessionId;
    use std::sync::mpsc as blocking;

    #[tokio::test]
    async fn who_asks_for_many_waits_for_its_own() {
        let party = source(1).party();
        let account = |number| Lane::Account(AccountId([number; 32]), party);
        for (greedy, modest) in [(Lane::Source(source(1)), Lane::Source(source(2))), (account(1), account(2))]
        {
            let order = turns_are_taken([(greedy, party), (greedy, party), (modest, party)]).await;
            assert_eq!(order, ["first", "modest", "second", "third"]);
        }
    }

    #[tokio::test]
    async fn one_certificate_waits_for_its_own_through_however_many_sessions() {
        let party = source(1).party();
        let lane = |session| Lane::Source(source(session));
        let modest = Source::Session(SessionId { certificate: 2, number: 9 });
        let lines = [(lane(1), party), (lane(2), party), (Lane::Source(modest), modest.party())];
        assert_eq!(turns_are_taken(lines).await, ["first", "second", "modest", "third"]);
        let node = Source::Peer(quorate_protocol::NodeId(1));
        let lines = [(lane(1), party), (lane(2), party), (Lane::Source(node), node.party())];
        assert_eq!(turns_are_taken(lines).await, ["first", "second", "modest", "third"]);
    }

    #[tokio::test]
    async fn who_is_shown_a_proposal_does_not_hold_up_its_owner() {
        let [holder, owner] = [1, 2].map(Party::Certificate);
        let account = AccountId([1; 32]);
        let own = Lane::Account(account, owner);
        // The holder has a check under way, and lets the owner's wait behind its others.
        let lines =
            [(Lane::Account(AccountId([2; 32]), holder), holder), (Lane::Account(account, holder), holder)];
        let order = turns_are_taken([lines[0], lines[1], (own, owner)]).await;
        assert_eq!(order, ["first", "second", "modest", "third"]);
    }

    /// A session of the first certificate.
    fn source(number: u64) -> Source {
        Source::Session(SessionId { certificate: 1, number })
    }

    /// One check of the first line runs while another of it, one of the second and, last, one of the third come to
    /// wait. Gives the order in which they run.
    async fn turns_are_taken(lines: [(Lane, Party); 3]) -> Vec<&'static str> {
        let [first, second, modest] = lines;
        let mut turns = Lanes::new(1);
        let (started, order) = blocking::channel();
        let (go, wait) = blocking::channel();
        let note = |name: &'static str| {
            let started = started.clone();
            move || started.send(name).expect("somebody listens")
        };
        let begun = note("first");
        let mut tasks = vec![tokio::spawn(turns.run(first.0, first.1, move || {
            begun();
            wait.recv().expect("let go");
        }))];
        tokio::task::yield_now().await;
        for (name, (lane, party)) in [("second", second), ("third", second), ("modest", modest)] {
            tasks.push(tokio::spawn(turns.run(lane, party, note(name))));
            // It stands in line before the next.
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
        }
        go.send(()).expect("it waits");
        for task in tasks {
            task.await.expect("ends").expect("has a result");
        }
        order.try_iter().collect()
    }
}
