//! Feeds a node's machine: one task, one input at a time.
//!
//! There is no protocol decision here. Whatever the machine puts out goes through the store's writer, in order, and is carried out
//! only when everything persisted before it is durable.

use crate::{
    chain::Chain,
    dispatcher::{Dispatcher, Release},
    follower,
    peers::Peers,
    store::{Store, start_writer},
};
use bitcoin::{Block, OutPoint};
use quorate_protocol::{
    NodeId,
    federation::SuccessionPlan,
    wire::{BlockRef, ClientMessage, PeerReply, PeerRequest, limits, outpoints_of},
};
use quorate_rules::{
    ChainCoin, EvidenceFile, Machine, Output, ReplyTo, SessionId, Status, Tag, records::ChangeSet,
};
use std::{
    sync::{Arc, mpsc as blocking},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::{
    sync::{Semaphore, mpsc, oneshot},
    time::MissedTickBehavior,
};

/// Inputs that may wait for the machine; producers then have to wait.
const INPUTS_MAX: usize = 4_096;
/// Messages whose coins the chain is asked for at a time; others wait for their turn.
const LOOKUPS_MAX: usize = 32;
/// Time between two sweeps that broadcast again what is final and not in a block.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// What happens to a node.
#[derive(Debug)]
pub(crate) enum Input {
    Request {
        from: NodeId,
        request: PeerRequest,
        reply: oneshot::Sender<PeerReply>,
    },
    Own {
        tag: Tag,
        request: PeerRequest,
    },
    Reply {
        from: NodeId,
        tag: Tag,
        reply: Option<PeerReply>,
    },
    Client {
        session: SessionId,
        id: Option<u64>,
        message: ClientMessage,
    },
    Opened {
        session: SessionId,
        frames: mpsc::Sender<Vec<u8>>,
    },
    Closed {
        session: SessionId,
    },
    Blocks {
        disconnect: u32,
        connect: Vec<Block>,
    },
    BlockHash {
        height: u32,
        reply: oneshot::Sender<Option<bitcoin::BlockHash>>,
    },
    /// What the chain says of coins that the machine did not know when its tip was this.
    Coins {
        tip: BlockRef,
        coins: Vec<(OutPoint, ChainCoin)>,
        then: Box<Input>,
    },
    Status {
        reply: oneshot::Sender<Status>,
    },
    Evidence {
        reply: oneshot::Sender<EvidenceFile>,
    },
    /// The chain has been read up to its tip.
    CaughtUp,
    /// The operator has approved a plan for the next epoch.
    Plan(Box<SuccessionPlan>),
    /// The epoch is over.
    Stop,
}

/// Starts the tasks around a machine. They end when the store cannot be written, or on [`Input::Stop`].
pub(crate) fn start(
    me: NodeId,
    machine: Machine,
    store: impl Store,
    peers: Arc<Peers>,
    chain: Arc<dyn Chain>,
) -> mpsc::Sender<Input> {
    let (inputs, receiver) = mpsc::channel(INPUTS_MAX);
    let (writer, released) = start_writer::<Release>(store);
    let dispatcher = Dispatcher::new(me, inputs.clone(), peers, chain.clone());
    tokio::spawn(follower::follow(chain.clone(), inputs.clone()));
    let started = Instant::now();
    let driver = Driver {
        machine,
        me,
        writer,
        chain,
        inputs: inputs.downgrade(),
        lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)),
        started,
        next_reply: 1,
    };
    // The dispatcher ends when the writer does, and takes the machine's task with it.
    let dispatching = tokio::spawn(dispatcher.run(released));
    tokio::spawn(async move {
        tokio::select! {
            () = driver.run(receiver) => {}
            _ = dispatching => {}
        }
    });
    inputs
}

struct Driver {
    machine: Machine,
    me: NodeId,
    writer: blocking::Sender<(ChangeSet, Release)>,
    chain: Arc<dyn Chain>,
    inputs: mpsc::WeakSender<Input>,
    /// Questions to the chain about coins, of which there are some at a time.
    lookups: Arc<Semaphore>,
    started: Instant,
    next_reply: u64,
}

impl Driver {
    async fn run(mut self, mut receiver: mpsc::Receiver<Input>) {
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        // Those that were due while the chain was read are not made up for.
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let timeout = self.machine.poll_timeout().map(|at| self.started + at);
            let sleep = async {
                match timeout {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep => {
                    self.set_time();
                    self.machine.handle_timeout();
                }
                input = receiver.recv() => {
                    let Some(input) = input.filter(|input| !matches!(input, Input::Stop)) else { return };
                    self.set_time();
                    self.handle(input);
                }
                // Before the chain has been read, everything seems to be in no block.
                _ = sweep.tick(), if self.machine.is_caught_up() => {
                    for transaction in self.machine.unconfirmed() {
                        self.release(ChangeSet::default(), Release::Output(Box::new(Output::Broadcast(transaction))));
                    }
                }
            }
            self.drain();
        }
    }

    fn set_time(&mut self) {
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let wall_ms = u64::try_from(wall.as_millis()).unwrap_or(u64::MAX);
        self.machine.set_time(self.started.elapsed(), wall_ms);
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "every other input is applied as it is")]
    fn handle(&mut self, input: Input) {
        match input {
            Input::Coins { tip, coins, then } => {
                // A block in between may have spent what was unspent. Before the chain has been read there is one all the time, and no vote.
                if tip != self.machine.tip() && self.machine.is_caught_up() {
                    return self.handle(*then);
                }
                self.machine.handle_coins(coins);
                self.apply(*then);
            }
            other => {
                if let Some(input) = self.look_up_coins(other) {
                    self.apply(input);
                }
            }
        }
    }

    fn apply(&mut self, input: Input) {
        match input {
            Input::Request { from, request, reply } => {
                let number = self.next_reply;
                self.next_reply += 1;
                self.release(ChangeSet::default(), Release::Replies(number, reply));
                self.machine.handle_request(from, ReplyTo::Peer(number), request);
            }
            Input::Own { tag, request } => {
                self.machine.handle_request(self.me, ReplyTo::Myself(tag), request)
            }
            Input::Reply { from, tag, reply } => self.machine.handle_reply(from, tag, reply),
            Input::Client { session, id, message } => self.machine.handle_client(session, id, message),
            Input::Opened { session, frames } => {
                self.release(ChangeSet::default(), Release::Opened(session, frames))
            }
            Input::Closed { session } => {
                self.machine.handle_session_closed(session);
                self.release(ChangeSet::default(), Release::Closed(session));
            }
            Input::Blocks { disconnect, connect } => {
                for _ in 0..disconnect {
                    self.machine.handle_disconnected();
                }
                for block in &connect {
                    self.machine.handle_block(block);
                }
                self.machine.announce_tip();
            }
            Input::BlockHash { height, reply } => {
                let _asker_gone = reply.send(self.machine.block_at(height));
            }
            Input::Coins { coins, .. } => self.machine.handle_coins(coins),
            Input::Status { reply } => {
                let _asker_gone = reply.send(self.machine.status());
            }
            Input::Evidence { reply } => {
                let _asker_gone = reply.send(self.machine.evidence_file());
            }
            Input::CaughtUp => self.machine.handle_caught_up(),
            Input::Plan(plan) => self.machine.handle_plan(&plan),
            // The loop has ended by then.
            Input::Stop => {}
        }
    }

    /// Coins that the machine does not know are asked of the chain first; the input comes back with them.
    fn look_up_coins(&self, input: Input) -> Option<Input> {
        let outpoints = match &input {
            Input::Request { request: PeerRequest::VoteRequest { proposal, .. }, .. }
            | Input::Own { request: PeerRequest::VoteRequest { proposal, .. }, .. }
            | Input::Client {
                message:
                    ClientMessage::TransactionBroadcast { proposal, .. }
                    | ClientMessage::TransactionCancel { proposal, .. },
                ..
            } => {
                let outpoints = proposal.outpoints();
                if outpoints.len() > quorate_protocol::relay_policy::INPUTS_MAX {
                    return Some(input);
                }
                outpoints
            }
            Input::Request { request: PeerRequest::ReleaseRequest { outpoint, .. }, .. }
            | Input::Own { request: PeerRequest::ReleaseRequest { outpoint, .. }, .. } => vec![*outpoint],
            Input::Client {
                message: ClientMessage::UTXOSubscribe { keys } | ClientMessage::UTXOStateQuery { keys },
                ..
            } if keys.len() <= limits::KEYS_PER_MESSAGE_MAX => outpoints_of(keys),
            Input::Request { .. }
            | Input::Own { .. }
            | Input::Reply { .. }
            | Input::Client { .. }
            | Input::Opened { .. }
            | Input::Closed { .. }
            | Input::Blocks { .. }
            | Input::BlockHash { .. }
            | Input::Status { .. }
            | Input::Evidence { .. }
            | Input::CaughtUp
            | Input::Plan(_)
            | Input::Stop
            | Input::Coins { .. } => return Some(input),
        };
        let unknown = self.machine.unknown_coins(&outpoints);
        if unknown.is_empty() {
            return Some(input);
        }
        let (chain, inputs, tip) = (self.chain.clone(), self.inputs.clone(), self.machine.tip());
        let lookups = self.lookups.clone();
        tokio::spawn(async move {
            // Never closed.
            let _turn = lookups.acquire_owned().await;
            let mut coins = Vec::new();
            for outpoint in unknown {
                match chain.coin(outpoint).await {
                    Ok(Some(coin)) => coins.push((outpoint, coin)),
                    Ok(None) => {}
                    Err(error) => tracing::warn!(%error, %outpoint, "the chain backend did not give a coin"),
                }
            }
            if let Some(inputs) = inputs.upgrade() {
                let _node_ended = inputs.send(Input::Coins { tip, coins, then: Box::new(input) }).await;
            }
        });
        None
    }

    #[expect(clippy::wildcard_enum_match_arm, reason = "every other output waits for what was persisted")]
    fn drain(&mut self) {
        let mut change = ChangeSet::default();
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Persist(more) => change.merge(more),
                other => self.release(std::mem::take(&mut change), Release::Output(Box::new(other))),
            }
        }
        if !change.is_empty() {
            self.release(change, Release::Nothing);
        }
    }

    fn release(&self, change: ChangeSet, release: Release) {
        // If the writer has ended, so does this node: its dispatcher has seen it too.
        let _writer_ended = self.writer.send((change, release));
    }
}
