//! What waits for a node's machine. What this node's own tasks hand in comes first: it ends work that was begun. Those
//! outside take turns by their certificates, and behind one certificate its sessions do, so that whoever has much to
//! say waits for itself.

use super::{
    input::Input,
    turns::{Queue as _, Turns},
};
use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

/// Inputs of this node's own tasks that may wait; the tasks then have to.
const INSIDE_MAX: usize = 4_096;
/// Inputs of this node's own tasks after which it is another's turn, if one waits.
const INSIDE_TOGETHER_MAX: u32 = 64;

/// The requests about the next epoch, which peers had answered by another part of the node first. They take turns
/// together.
pub(crate) const FORWARDED: Speaker = Speaker { guest: u64::MAX, session: 0 };

/// Who says something to this node, and in which session; a peer's requests are one session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Speaker {
    /// Of this certificate.
    pub(crate) guest: u64,
    pub(crate) session: u64,
}

/// The machine does not run any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node has ended")]
pub(crate) struct Ended;

/// Hands inputs to the machine.
#[derive(Clone, Debug)]
pub(crate) struct Inputs(Arc<Hands>);

/// Those who hand in; when the last of them is gone, the machine is told.
#[derive(Debug)]
struct Hands(Arc<Shared>);

impl Drop for Hands {
    fn drop(&mut self) {
        self.0.lines().nobody = true;
        self.0.pushed.notify_one();
    }
}

/// The machine's side.
#[derive(Debug)]
pub(crate) struct Waiting {
    shared: Arc<Shared>,
    /// How many of the node's own were taken one after the other.
    inside_together: u32,
}

#[derive(Debug)]
struct Shared {
    lines: Mutex<Lines>,
    /// Room for what the node's own tasks hand in. Closed when the machine is gone.
    inside: Arc<Semaphore>,
    pushed: Notify,
    ended: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct Lines {
    inside: VecDeque<(Input, Option<OwnedSemaphorePermit>)>,
    guests: Turns<u64, Turns<u64, VecDeque<Input>>>,
    /// Nobody hands in anything any more.
    nobody: bool,
}

/// An empty queue.
pub(crate) fn queue() -> (Inputs, Waiting) {
    let shared = Arc::new(Shared {
        lines: Mutex::default(),
        inside: Arc::new(Semaphore::new(INSIDE_MAX)),
        pushed: Notify::new(),
        ended: watch::Sender::new(false),
    });
    (Inputs(Arc::new(Hands(shared.clone()))), Waiting { shared, inside_together: 0 })
}

impl Inputs {
    /// Hands in what a task of this node has. It waits while too much does.
    pub(crate) async fn send(&self, input: Input) -> Result<(), Ended> {
        let room = self.0.0.inside.clone().acquire_owned().await.map_err(|_| Ended)?;
        self.push(|lines| lines.inside.push_back((input, Some(room))))
    }

    /// Hands in what the machine has put out for itself, which is some for each input that it took.
    /// Whoever calls this must not wait: the machine may be waiting for it.
    pub(crate) fn own(&self, input: Input) -> Result<(), Ended> {
        self.push(|lines| lines.inside.push_back((input, None)))
    }

    /// Hands in what somebody outside said. Who calls this bounds what of one speaker may wait.
    pub(crate) fn said(&self, by: Speaker, input: Input) -> Result<(), Ended> {
        self.push(|lines| lines.guests.of(by.guest).of(by.session).push_back(input))
    }

    fn push(&self, change: impl FnOnce(&mut Lines)) -> Result<(), Ended> {
        let shared = &self.0.0;
        let mut lines = shared.lines();
        if self.is_closed() {
            return Err(Ended);
        }
        change(&mut lines);
        drop(lines);
        shared.pushed.notify_one();
        Ok(())
    }

    /// Whether the machine is gone.
    pub(crate) fn is_closed(&self) -> bool {
        *self.0.0.ended.borrow()
    }

    /// Waits until the machine is gone.
    pub(crate) async fn closed(&self) {
        let mut ended = self.0.0.ended.subscribe();
        let _gone = ended.wait_for(|ended| *ended).await;
    }
}

impl Shared {
    fn lines(&self) -> MutexGuard<'_, Lines> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Waiting {
    /// The next input; none when nobody hands in anything any more. Cancelling it loses nothing.
    pub(crate) async fn next(&mut self) -> Option<Input> {
        loop {
            if let Some(input) = self.take() {
                return Some(input);
            }
            if self.is_over() {
                return None;
            }
            self.shared.pushed.notified().await;
        }
    }

    /// Nothing waits, and nothing will.
    fn is_over(&self) -> bool {
        let lines = self.shared.lines();
        lines.nobody && lines.inside.is_empty() && lines.guests.is_empty()
    }

    fn take(&mut self) -> Option<Input> {
        let mut lines = self.shared.lines();
        if self.inside_together < INSIDE_TOGETHER_MAX
            && let Some((input, _room)) = lines.inside.pop_front()
        {
            self.inside_together += 1;
            return Some(input);
        }
        self.inside_together = 0;
        let said = lines.guests.next(|sessions| sessions.next(VecDeque::pop_front));
        said.or_else(|| lines.inside.pop_front().map(|(input, _room)| input))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.shared.inside.close();
        let mut lines = self.shared.lines();
        self.shared.ended.send_replace(true);
        (lines.inside, lines.guests) = Default::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quorate_rules::SessionId;

    fn closed(number: u64) -> Input {
        Input::Closed { session: SessionId { certificate: 1, number }, seat: None }
    }

    fn number(input: Option<Input>) -> Option<u64> {
        if let Some(Input::Closed { session, .. }) = input { Some(session.number) } else { None }
    }

    #[tokio::test]
    async fn who_says_much_waits_for_itself() {
        let (inputs, mut waiting) = queue();
        // A bridge with two sessions, one of which says much, and a peer that says little.
        for said in 0..1_000 {
            inputs.said(Speaker { guest: 1, session: 1 }, closed(said)).expect("it runs");
        }
        inputs.said(Speaker { guest: 1, session: 2 }, closed(2_000)).expect("it runs");
        inputs.said(Speaker { guest: 2, session: 0 }, closed(3_000)).expect("it runs");
        inputs.send(closed(4_000)).await.expect("it runs");
        let mut order = Vec::new();
        for _ in 0..6 {
            order.extend(number(waiting.next().await));
        }
        assert_eq!(order, [4_000, 0, 3_000, 2_000, 1, 2]);
        for said in 3..1_000 {
            assert_eq!(number(waiting.next().await), Some(said), "in the order of the session");
        }
        assert!(waiting.shared.lines().guests.is_empty(), "nothing is kept of who has nothing to say");
    }

    #[tokio::test]
    async fn what_the_node_itself_has_keeps_nobody_out() {
        let (inputs, mut waiting) = queue();
        for own in 0..u64::from(INSIDE_TOGETHER_MAX) + 10 {
            inputs.send(closed(own)).await.expect("it runs");
        }
        inputs.said(Speaker { guest: 1, session: 1 }, closed(1_000)).expect("it runs");
        for own in 0..u64::from(INSIDE_TOGETHER_MAX) {
            assert_eq!(number(waiting.next().await), Some(own));
        }
        assert_eq!(number(waiting.next().await), Some(1_000));
        assert_eq!(number(waiting.next().await), Some(u64::from(INSIDE_TOGETHER_MAX)));
    }

    #[tokio::test]
    async fn own_tasks_wait_for_room_and_nobody_waits_for_a_machine_that_is_gone() {
        let (inputs, mut waiting) = queue();
        for own in 0..4_096 {
            inputs.send(closed(own)).await.expect("it runs");
        }
        let (more, last) = (inputs.clone(), inputs.clone());
        let sent = tokio::spawn(async move { more.send(closed(4_096)).await });
        tokio::task::yield_now().await;
        assert!(!sent.is_finished(), "there is no room");
        assert_eq!(number(waiting.next().await), Some(0));
        assert_eq!(sent.await.expect("no panic"), Ok(()));
        let stuck = tokio::spawn(async move { last.send(closed(4_097)).await });
        tokio::task::yield_now().await;
        drop(waiting);
        assert_eq!(stuck.await.expect("no panic"), Err(Ended));
        assert_eq!(inputs.said(Speaker { guest: 1, session: 1 }, closed(1)), Err(Ended));
        inputs.closed().await;
    }
}
