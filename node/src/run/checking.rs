//! Runs checks that take long aside, as many at a time as there are processors but one. Of each source one is under
//! way, and sources take turns: who asks for many waits for its own.

use super::input::Input;
use quorate_rules::{Check, Source};
use std::{collections::HashMap, sync::Arc};
use tokio::{
    sync::{Mutex, Semaphore, mpsc},
    task::JoinError,
};

/// Checks that run and wait.
#[derive(Debug)]
pub(crate) struct Checking {
    inputs: mpsc::Sender<Input>,
    turns: Turns,
}

impl Checking {
    pub(crate) fn new(inputs: mpsc::Sender<Input>) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { inputs, turns: Turns::new(processors.saturating_sub(1).max(1)) }
    }

    /// Hands in what is found out.
    pub(crate) fn start(&mut self, ticket: u64, source: Source, check: Check) {
        let (done, inputs) = (self.turns.run(source, || check.run()), self.inputs.clone());
        tokio::spawn(async move {
            match done.await {
                Ok(checked) => {
                    let _node_ended = inputs.send(Input::Checked { ticket, checked }).await;
                }
                Err(error) => tracing::error!(%error, "a check ended without a result"),
            }
        });
    }

    /// A session is gone.
    pub(crate) fn forget(&mut self, source: Source) {
        self.turns.sources.remove(&source);
    }
}

#[derive(Debug)]
struct Turns {
    /// First come, first served; each source is there once.
    workers: Arc<Semaphore>,
    sources: HashMap<Source, Arc<Mutex<()>>>,
}

impl Turns {
    fn new(workers: usize) -> Self {
        Self { workers: Arc::new(Semaphore::new(workers)), sources: HashMap::new() }
    }

    /// Computes something on a thread of its own, when it is its turn.
    fn run<T: Send + 'static, W: FnOnce() -> T + Send + 'static>(
        &mut self,
        source: Source,
        work: W,
    ) -> impl Future<Output = Result<T, JoinError>> + use<T, W> {
        let (turn, workers) = (self.sources.entry(source).or_default().clone(), self.workers.clone());
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
        let mut turns = Turns::new(1);
        let (greedy, modest) = (Source::Session(SessionId(1)), Source::Session(SessionId(2)));
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
