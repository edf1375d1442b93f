//! Carries out what the machine wants: no protocol decision is made here.

use crate::{
    interest::WalletId,
    machine::{Machine, Output},
    relays::RelayId,
    upstream::Upstream,
};
use quorate_protocol::wire::ClientMessage;
use std::{
    collections::HashMap,
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::{Duration, Instant},
};
use tokio::sync::{Notify, broadcast, mpsc};

/// Changes of interest that an event stream may lag behind; then it is opened anew.
const INTEREST_CHANGES_MAX: usize = 4_096;
/// Messages that may wait for a relay's stream; one that is slower is given up.
const PARTS_MAX: usize = 16;
/// Time between two looks at deadlines.
const TICK: Duration = Duration::from_millis(250);

type Part = (Option<u64>, ClientMessage);

/// The machine with the sockets around it.
pub(crate) struct Driver {
    state: Mutex<State>,
    pub(crate) upstream: Arc<Upstream>,
    /// What goes to every node's event stream.
    pub(crate) interests: broadcast::Sender<ClientMessage>,
    started: Instant,
    me: Weak<Self>,
}

struct State {
    machine: Machine,
    /// Wakes the task that writes to a session.
    writers: HashMap<WalletId, Arc<Notify>>,
    /// What goes to a relay's stream; dropping it ends the relay's task.
    parts: HashMap<RelayId, mpsc::Sender<Part>>,
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").field("upstream", &self.upstream).finish_non_exhaustive()
    }
}

impl Driver {
    pub(crate) fn start(machine: Machine, upstream: Arc<Upstream>) -> Arc<Self> {
        let (interests, _) = broadcast::channel(INTEREST_CHANGES_MAX);
        let state = State { machine, writers: HashMap::new(), parts: HashMap::new() };
        let driver = Arc::new_cyclic(|me| Self {
            state: Mutex::new(state),
            upstream,
            interests,
            started: Instant::now(),
            me: me.clone(),
        });
        tokio::spawn(tick(Arc::downgrade(&driver)));
        driver
    }

    /// Hands something to the machine, and carries out what it wants. Nothing in here waits.
    pub(crate) fn with<T>(&self, input: impl FnOnce(&mut Machine, Duration) -> T) -> T {
        // A panic in a machine that is shared would leave it half changed; there is none, and the tests would see it.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let result = input(&mut state.machine, self.started.elapsed());
        while let Some(output) = state.machine.poll_output() {
            self.carry_out(&mut state, output);
        }
        result
    }

    /// A new session of an address (none if it is this machine's own), and what wakes anybody who writes to it.
    pub(crate) fn open(&self, address: Option<IpAddr>) -> (WalletId, Arc<Notify>) {
        let session = self.with(|machine, now| machine.handle_opened(now, address));
        let writer = Arc::new(Notify::new());
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.writers.insert(session, writer.clone());
        (session, writer)
    }

    /// A session's connection is gone.
    pub(crate) fn close(&self, session: WalletId) {
        self.with(|machine, _| machine.handle_closed(session));
        self.state.lock().unwrap_or_else(PoisonError::into_inner).writers.remove(&session);
    }

    fn carry_out(&self, state: &mut State, output: Output) {
        match output {
            Output::Ready(session) => {
                if let Some(writer) = state.writers.get(&session) {
                    writer.notify_one();
                }
            }
            Output::Interest(message) => {
                // No listener means no node; the keys are sent when one connects.
                let _no_node = self.interests.send(message);
            }
            Output::Open { relay, id, message } => {
                let Some(driver) = self.me.upgrade() else { return };
                let (sender, parts) = mpsc::channel(PARTS_MAX);
                state.parts.insert(relay, sender);
                tokio::spawn(run_relay(driver, relay, id, message, parts));
            }
            Output::Send { relay, id, message } => {
                let sent = state.parts.get(&relay).is_some_and(|parts| parts.try_send((id, message)).is_ok());
                if !sent {
                    // Its task ends and says that the relay is lost.
                    state.parts.remove(&relay);
                }
            }
            Output::Drop(relay) => {
                state.parts.remove(&relay);
            }
        }
    }
}

async fn tick(driver: Weak<Driver>) {
    let mut ticks = tokio::time::interval(TICK);
    loop {
        ticks.tick().await;
        let Some(driver) = driver.upgrade() else { return };
        driver.with(Machine::handle_timeout);
    }
}

/// A relayed request from start to end. It ends when the machine drops it, or when its stream is lost.
async fn run_relay(
    driver: Arc<Driver>,
    relay: RelayId,
    id: Option<u64>,
    message: ClientMessage,
    mut parts: mpsc::Receiver<Part>,
) {
    let mut early = Vec::new();
    let opened = {
        let opening = driver.upstream.open(id, &message);
        tokio::pin!(opening);
        loop {
            tokio::select! {
                opened = &mut opening => break opened,
                part = parts.recv() => match part {
                    Some(part) if early.len() < PARTS_MAX => early.push(part),
                    // Dropped by the machine, or told more than a node that is not there can take.
                    Some(_) | None => return driver.with(|machine, _| machine.handle_unreachable(relay)),
                },
            }
        }
    };
    let Ok(mut stream) = opened else {
        return driver.with(|machine, _| machine.handle_unreachable(relay));
    };
    for (id, part) in early {
        if stream.send(id, &part).await.is_err() {
            return driver.with(|machine, _| machine.handle_relay_lost(relay));
        }
    }
    loop {
        tokio::select! {
            part = parts.recv() => {
                let Some((id, part)) = part else { break };
                if stream.send(id, &part).await.is_err() {
                    break;
                }
            }
            answer = stream.receive() => {
                let Ok((id, answer)) = answer else { break };
                driver.with(|machine, now| machine.handle_answer(now, relay, id, answer));
            }
        }
    }
    // If the machine has dropped it, this says nothing new.
    driver.with(|machine, _| machine.handle_relay_lost(relay));
}
