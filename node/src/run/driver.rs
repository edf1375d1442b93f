//! Feeds a node's machine: one task, one input at a time.
//!
//! There is no protocol decision here. Whatever the machine puts out goes through the store's writer, in order, and
//! is carried out only when everything persisted before it is durable.

use super::{
    dispatcher::{Dispatcher, Released, Work},
    input::{Input, Reached},
    queue::{Inputs, Waiting, queue},
};
use crate::{
    backlog::Backlog,
    chain::{Chain, follower::Follower},
    net::{outgoing::Turn, peers::Peers},
    store::{Index, Store, Writer, start_writer},
};
use quorate_protocol::{NodeId, wire::PeerReply};
use quorate_rules::{Machine, Output, ReplyTo, records::ChangeSet};
use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{sync::oneshot, time::MissedTickBehavior};

/// Bytes that may wait for the store and to be carried out; then the machine takes nothing in.
const BACKLOG_BYTES_MAX: usize = 64 << 20;
/// What a session or a reply that begins is counted as.
const WORK_BYTES: usize = 1 << 10;
/// Time between two sweeps that broadcast again what is final and not in a block.
const SWEEP_INTERVAL: Duration = Duration::from_secs(60);

/// Starts the tasks around a machine. They end when the store cannot be written, or on [`Input::Stop`].
pub(crate) fn start(
    me: NodeId,
    machine: Machine,
    store: Box<dyn Store>,
    peers: Arc<Peers>,
    chain: Arc<dyn Chain>,
    index: Index,
) -> Inputs {
    let (inputs, waiting) = queue();
    let (writer, released) = start_writer::<Released>(store);
    let dispatcher = Dispatcher::new(me, inputs.clone(), peers, chain.clone(), index.clone());
    let (network, birthday) = machine.chain();
    let follower = Follower { chain, network, birthday, inputs: inputs.clone() };
    tokio::spawn(follower.run());
    let works = Vec::new();
    let (backlog, started) = (Backlog::new(BACKLOG_BYTES_MAX), Instant::now());
    let driver = Driver { machine, me, writer, backlog, works, turn: None, index, started, next_reply: 1 };
    // The dispatcher ends when the writer does, and takes the machine's task with it.
    let dispatching = tokio::spawn(dispatcher.run(released));
    tokio::spawn(async move {
        tokio::select! {
            () = driver.run(waiting) => {}
            _ = dispatching => {}
        }
    });
    inputs
}

struct Driver {
    machine: Machine,
    me: NodeId,
    writer: Writer<Released>,
    /// What waits for the store and to be carried out.
    backlog: Backlog,
    /// What the input that is being handled leads to, in order.
    works: Vec<Work>,
    /// Of the session that said it. It has its next one when this one's answer is on its way, however slow the store.
    turn: Option<Turn>,
    index: Index,
    started: Instant,
    next_reply: u64,
}

impl Driver {
    async fn run(mut self, mut waiting: Waiting) {
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        // Those that were due while the chain was read are not made up for.
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.backlog.room().await;
            self.index.room().await;
            let timeout = self.machine.poll_timeout().map(|at| self.started + at);
            let sleep = async {
                match timeout {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep => {
                    self.machine.at(self.started.elapsed(), wall_ms()).handle_timeout();
                }
                input = waiting.next() => {
                    let Some(input) = input.filter(|input| !matches!(input, Input::Stop)) else { return };
                    let blocks = matches!(input, Input::Blocks(_));
                    self.handle(input);
                    if blocks {
                        sweep.reset_immediately();
                    }
                }
                // Before the chain has been read, everything seems to be in no block.
                _ = sweep.tick(), if self.machine.is_caught_up() => {
                    let unconfirmed = self.machine.unconfirmed();
                    self.works.push(Work::Sweep(unconfirmed));
                }
            }
            if !self.drain() {
                return;
            }
        }
    }

    fn handle(&mut self, input: Input) {
        let machine = self.machine.at(self.started.elapsed(), wall_ms());
        match input {
            Input::Request { from, request, reply } => {
                let number = self.next_reply;
                machine.handle_request(from, ReplyTo::Peer(number), request);
                self.expect_reply(number, reply);
            }
            Input::Seal { succession, of, skip, reply } => {
                let number = self.next_reply;
                machine.handle_seal_request(ReplyTo::Peer(number), &succession, of, skip);
                self.expect_reply(number, reply);
            }
            Input::Own { tag, request } => machine.handle_request(self.me, ReplyTo::Myself(tag), request),
            Input::Reply { from, tag, reply } => machine.handle_reply(from, tag, reply),
            Input::Client { session, id, message, turn } => {
                machine.handle_client(session, id, message);
                self.turn = Some(turn);
            }
            Input::Opened { session, frames } => {
                self.works.push(Work::Opened(session, frames));
            }
            Input::Closed { session, seat } => {
                machine.handle_session_closed(session);
                drop(seat);
                self.works.push(Work::Closed(session));
            }
            Input::Blocks(blocks) => {
                if !machine.handle_blocks(&blocks) {
                    tracing::debug!("blocks that do not follow; the follower looks for the fork again");
                }
            }
            Input::Reached { height, reply } => {
                let (tip, floor) = (machine.tip().height, machine.undo_floor());
                let _asker_gone = reply.send(Reached { tip, floor, hash: machine.block_at(height) });
            }
            Input::Headers { from, count, reply } => {
                let headers = machine.headers(from).into_iter().take(count).collect();
                let _asker_gone = reply.send(headers);
            }
            Input::Coins { ticket, coins } => machine.handle_coins(ticket, coins),
            Input::Recalled { ticket, archived } => machine.handle_recalled(ticket, archived),
            Input::Checked { ticket, checked } => machine.handle_checked(ticket, checked),
            Input::Found { ticket, found } => machine.handle_found(ticket, found),
            Input::Settled => machine.handle_settled(),
            Input::Doubt(reason) => machine.handle_doubt(reason),
            Input::Fees(fees) => machine.handle_fees(fees),
            Input::Broadcast { txid, refusal } => machine.handle_broadcast(txid, refusal),
            Input::Status { reply } => {
                let _asker_gone = reply.send(machine.status());
            }
            Input::Metrics { reply } => {
                let _asker_gone = reply.send((machine.status(), self.writer.commits().clone()));
            }
            Input::Evidence { reply } => {
                let _asker_gone = reply.send(machine.evidence_file());
            }
            Input::Keep { handover, reply } => {
                let _asker_gone = reply.send(machine.keeps(&handover));
            }
            Input::CaughtUp => machine.handle_caught_up(),
            Input::Plan(plan) => machine.handle_plan(&plan),
            // The loop has ended by then.
            Input::Stop => {}
        }
    }

    /// The one who waits for a reply is known to the dispatcher before the reply, which is among the outputs that are
    /// drained next.
    fn expect_reply(&mut self, number: u64, reply: oneshot::Sender<PeerReply>) {
        self.next_reply = number + 1;
        self.works.push(Work::Replies(number, reply));
    }

    /// Has everything persisted that one input leads to, in one piece, and then carried out.
    #[expect(clippy::wildcard_enum_match_arm, reason = "every other output waits for what was persisted")]
    fn drain(&mut self) -> bool {
        let mut change = ChangeSet::default();
        let (mut indexed, mut bytes) = (true, self.works.len() * WORK_BYTES);
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Persist(more) => change.merge(more),
                Output::Index(change) => indexed &= self.index.write(change),
                other => {
                    bytes += other.bytes();
                    self.works.push(Work::Output(Box::new(other)));
                }
            }
        }
        let (works, turn) = (std::mem::take(&mut self.works), self.turn.take());
        if !(change.is_empty() && works.is_empty()) {
            let held = self.backlog.hold(bytes + change.bytes());
            self.writer.release(change, Released { works, _held: held, _turn: turn });
        }
        indexed
    }
}

/// Unix time in milliseconds.
fn wall_ms() -> u64 {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(wall.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        net::outgoing::Turn,
        store::{StoreError, index_place},
    };
    use futures_util::FutureExt as _;
    use quorate_protocol::{
        testing,
        wire::{ClientMessage, limits},
    };
    use quorate_rules::{
        SessionId, Settings, Stored,
        records::{Row, Table},
    };
    use std::sync::mpsc as blocking;
    use tokio::sync::{Semaphore, mpsc};

    const WALLET: SessionId = SessionId { certificate: 1, number: 1 };

    /// A disk on which no write comes to its end before it is let go.
    #[derive(Debug)]
    struct Slow(std::sync::Mutex<blocking::Receiver<()>>);

    impl Store for Slow {
        fn place(&self) -> &str {
            "a slow disk"
        }

        fn scan(&self, _: Table, _: &mut dyn FnMut(Row) -> Result<(), StoreError>) -> Result<(), StoreError> {
            Ok(())
        }

        fn write(&mut self, _: &[&ChangeSet]) -> Result<(), StoreError> {
            // Until the other end is gone.
            let _gone = self.0.lock().expect("not poisoned").recv();
            Ok(())
        }
    }

    struct Kit {
        driver: Driver,
        released: mpsc::UnboundedReceiver<Released>,
        go: blocking::Sender<()>,
        _directory: tempfile::TempDir,
    }

    /// A node that has something to write, to which a session has said hello.
    fn writing() -> Kit {
        let directory = tempfile::tempdir().expect("a directory");
        let world = testing::federation(4);
        let index = Index::open(&index_place(directory.path()), world.federation.birthday()).expect("opens");
        let settings = Settings {
            min_confirmations: 1,
            voting_timeout: Duration::from_secs(30),
            signing_timeout: Duration::from_secs(2),
            small_proposal: 2,
            bug: None,
        };
        let (me, share) = (NodeId(1), testing::copy_shares(&world.shares).remove(0));
        let (key, stored) = (world.keys[0].clone(), Stored::default());
        let machine = Machine::new(me, world.federation, key, share, settings, testing::rng(1), stored);
        let (go, wait) = blocking::channel();
        let (writer, released) = start_writer(Box::new(Slow(std::sync::Mutex::new(wait))));
        let (works, backlog) = (Vec::new(), Backlog::new(BACKLOG_BYTES_MAX));
        let started = Instant::now();
        let mut driver =
            Driver { machine, me, writer, backlog, works, turn: None, index, started, next_reply: 1 };
        let row = Row { table: Table::Log, key: vec![1], value: vec![1] };
        let nothing = Released { works: Vec::new(), _held: driver.backlog.hold(1), _turn: None };
        driver.writer.release(ChangeSet::of_rows([row]), nothing);
        let (protocol, agent) = (limits::PROTOCOL_VERSION, "test".to_owned());
        let hello = ClientMessage::Hello { protocol, federation: None, agent };
        say(&mut driver, hello, &places());
        Kit { driver, released, go, _directory: directory }
    }

    fn places() -> Arc<Semaphore> {
        Arc::new(Semaphore::new(1))
    }

    fn say(driver: &mut Driver, message: ClientMessage, places: &Arc<Semaphore>) {
        let turn = Turn::test(places.clone().try_acquire_owned().expect("a place"));
        driver.handle(Input::Client { session: WALLET, id: Some(1), message, turn });
        assert!(driver.drain());
    }

    #[tokio::test]
    async fn a_session_whose_answer_waits_for_the_disk_has_no_place_for_more() {
        let Kit { mut driver, mut released, go, _directory } = writing();
        let places = places();
        say(&mut driver, ClientMessage::FederationQuery, &places);
        assert_eq!(places.available_permits(), 0, "it is not on its way");
        drop(go);
        let mut answers = Vec::new();
        while answers.len() < 3 {
            answers.push(released.recv().await.expect("released"));
        }
        assert_eq!(places.available_permits(), 0, "until it is carried out");
        drop(answers);
        assert_eq!(places.available_permits(), 1);
    }

    #[tokio::test]
    async fn what_waits_for_a_slow_disk_is_bounded_and_then_nothing_more_is_taken() {
        let Kit { mut driver, mut released, go, _directory } = writing();
        let mut taken = 0;
        while driver.backlog.room().now_or_never().is_some() {
            say(&mut driver, ClientMessage::FederationQuery, &places());
            taken += 1;
            assert!(taken < 100_000, "there is no end");
        }
        assert!(taken > 1_000, "{taken}");
        let room = driver.backlog.clone();
        let waiting = tokio::spawn(async move { room.room().await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        drop(go);
        // Enough has been carried out.
        for _ in 0..taken {
            drop(released.recv().await.expect("released"));
        }
        waiting.await.expect("there is room again");
    }
}
