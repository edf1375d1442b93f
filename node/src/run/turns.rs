//! Turns: of what waits, each party has one after the other's.

use quorate_rules::Party;
use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::oneshot;

/// Queues that are taken from in turn. One that is empty is forgotten.
#[derive(Debug)]
pub(super) struct Turns<K, Q> {
    queues: HashMap<K, Q>,
    /// Each of them once.
    order: VecDeque<K>,
}

impl<K, Q> Default for Turns<K, Q> {
    fn default() -> Self {
        Self { queues: HashMap::new(), order: VecDeque::new() }
    }
}

/// What can be found empty.
pub(super) trait Queue {
    fn is_empty(&self) -> bool;
}

impl<T> Queue for VecDeque<T> {
    fn is_empty(&self) -> bool {
        Self::is_empty(self)
    }
}

impl<K, Q> Queue for Turns<K, Q> {
    fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}

impl<K: Copy + Eq + Hash, Q: Queue + Default> Turns<K, Q> {
    pub(super) fn of(&mut self, whose: K) -> &mut Q {
        let order = &mut self.order;
        self.queues.entry(whose).or_insert_with(|| {
            order.push_back(whose);
            Q::default()
        })
    }

    /// Takes something from the queue whose turn it is.
    pub(super) fn next<T>(&mut self, take: impl FnOnce(&mut Q) -> Option<T>) -> Option<T> {
        let whose = self.order.pop_front()?;
        let queue = self.queues.get_mut(&whose)?;
        let taken = take(queue);
        if queue.is_empty() {
            self.queues.remove(&whose);
        } else {
            self.order.push_back(whose);
        }
        taken
    }
}

/// Something that so many may do at a time. Parties take turns for it: who wants it often waits for itself.
#[derive(Clone, Debug)]
pub(crate) struct Fair(Arc<Mutex<Line>>);

#[derive(Debug)]
struct Line {
    free: usize,
    waiting: Turns<Party, VecDeque<oneshot::Sender<Turn>>>,
}

/// Somebody's turn, until this is dropped.
#[derive(Debug)]
pub(crate) struct Turn(Fair);

impl Fair {
    pub(crate) fn new(at_a_time: usize) -> Self {
        Self(Arc::new(Mutex::new(Line { free: at_a_time, waiting: Turns::default() })))
    }

    /// Waits until it is a party's turn.
    pub(crate) async fn turn(&self, party: Party) -> Turn {
        let turn = {
            let mut line = self.line();
            if let Some(free) = line.free.checked_sub(1) {
                line.free = free;
                return Turn(self.clone());
            }
            let (give, turn) = oneshot::channel();
            line.waiting.of(party).push_back(give);
            turn
        };
        // Whoever waits is handed a turn, or is gone.
        turn.await.unwrap_or_else(|_| Turn(self.clone()))
    }

    fn line(&self) -> MutexGuard<'_, Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let next = {
            let mut line = self.0.line();
            loop {
                match line.waiting.next(VecDeque::pop_front) {
                    Some(gone) if gone.is_closed() => {}
                    Some(next) => break Some(next),
                    None => {
                        line.free += 1;
                        break None;
                    }
                }
            }
        };
        if let Some(next) = next {
            // One that has gone in this moment drops it, and it is another's.
            let _gone = next.send(Self(self.0.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::JoinHandle;

    const MANY: Party = Party::Certificate(1);
    const FEW: Party = Party::Certificate(2);

    fn wait(fair: &Fair, party: Party) -> JoinHandle<Turn> {
        let fair = fair.clone();
        tokio::spawn(async move { fair.turn(party).await })
    }

    #[tokio::test]
    async fn who_wants_many_turns_waits_for_itself() {
        let fair = Fair::new(2);
        let (first, second) = (fair.turn(MANY).await, fair.turn(MANY).await);
        let many = [MANY; 3].map(|party| wait(&fair, party));
        tokio::task::yield_now().await;
        let few = wait(&fair, FEW);
        tokio::task::yield_now().await;
        assert!(!few.is_finished() && many.iter().all(|waits| !waits.is_finished()));
        let [next, gone, last] = many;
        drop(first);
        let next = next.await.expect("no panic");
        assert!(!few.is_finished());
        drop(next);
        let few = few.await.expect("no panic");
        assert!(!gone.is_finished() && !last.is_finished(), "the other one's comes between");
        gone.abort();
        gone.await.expect_err("aborted");
        drop((second, few));
        drop(last.await.expect("no panic"));
        let line = fair.line();
        assert_eq!(line.free, 2, "all are given back");
        assert!(line.waiting.is_empty() && line.waiting.queues.is_empty());
    }
}
