//! Runs checks that take long aside, as many at a time as there are processors but one. Of each account one is under
//! way, through however many sessions and nodes its owner asks, and of each source one that is about no account; they
//! take turns: who asks for many waits for its own.

use super::{input::Input, queue::Inputs};
use quorate_protocol::AccountId;
use quorate_rules::{Check, Source};
use std::{collections::HashMap, sync::Arc};
use tokio::{
    sync::{Mutex, Semaphore},
    task::JoinError,
};

/// Checks that run and wait.
#[derive(Debug)]
pub(crate) struct Checking {
    inputs: Inputs,
    turns: Turns,
}

impl Checking {
    pub(crate) fn new(inputs: Inputs) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { inputs, turns: Turns::new(processors.saturating_sub(1).max(1)) }
    }

    /// Hands in what is found out.
    pub(crate) fn start(&mut self, ticket: u64, source: Source, check: Check) {
        let lane = check.account().map_or(Lane::Source(source), Lane::Account);
        let (done, inputs) = (self.turns.run(lane, || check.run()), self.inputs.clone());
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
struct Turns {
    /// First come, first served; each lane is there once.
    workers: Arc<Semaphore>,
    lanes: HashMap<Lane, Arc<Mutex<()>>>,
}

/// Who waits for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Lane {
    /// Checks of proposals that this account's owner signed.
    Account(AccountId),
    /// Others that came from there.
    Source(Source),
}

/// Lanes from which on those are forgotten in which nobody waits.
const LANES_MANY: usize = 1_024;

impl Turns {
    fn new(workers: usize) -> Self {
        Self { workers: Arc::new(Semaphore::new(workers)), lanes: HashMap::new() }
    }

    /// Computes something on a thread of its own, when it is its turn.
    fn run<T: Send + 'static, W: FnOnce() -> T + Send + 'static>(
        &mut self,
        lane: Lane,
        work: W,
    ) -> impl Future<Output = Result<T, JoinError>> + use<T, W> {
        if self.lanes.len() >= LANES_MANY {
            self.lanes.retain(|_, turn| Arc::strong_count(turn) > 1);
        }
        let (turn, workers) = (self.lanes.entry(lane).or_default().clone(), self.workers.clone());
        async move {
            let _turn = turn.lock_owned().await;
            // Never closed.
            let _worker = workers.acquire_owned().await;
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
        for (greedy, modest) in [
            (Lane::Source(source(1)), Lane::Source(source(2))),
            (Lane::Account(AccountId([1; 32])), Lane::Account(AccountId([2; 32]))),
        ] {
            turns_are_taken(greedy, modest).await;
        }
    }

    fn source(session: u64) -> Source {
        Source::Session(SessionId(session))
    }

    async fn turns_are_taken(greedy: Lane, modest: Lane) {
        let mut turns = Turns::new(1);
        let (started, order) = blocking::channel();
        let (go, wait) = blocking::channel();
        let note = |name: &'static str| {
            let started = started.clone();
            move || started.send(name).expect("somebody listens")
        };
        let first = note("greedy 1");
        let mut tasks = vec![tokio::spawn(turns.run(greedy, move || {
            first();
            wait.recv().expect("let go");
        }))];
        tokio::task::yield_now().await;
        for name in ["greedy 2", "greedy 3"] {
            tasks.push(tokio::spawn(turns.run(greedy, note(name))));
        }
        tasks.push(tokio::spawn(turns.run(modest, note("modest"))));
        // All of them stand in line before the first one ends.
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        go.send(()).expect("it waits");
        for task in tasks {
            task.await.expect("ends").expect("has a result");
        }
        let order: Vec<&str> = order.try_iter().collect();
        assert_eq!(order, ["greedy 1", "modest", "greedy 2", "greedy 3"]);
    }
}
