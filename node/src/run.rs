//! The driver of one node: one task feeds the machine, one carries out what the store has released.
//!
//! There is no protocol decision here. Whatever the machine puts out goes through the store's writer, in order, and is carried out
//! only when everything persisted before it is durable.

use crate::{
    api::{self, EvidenceFile, Status},
    chain::{Chain, ChainCoin, prove},
    config::{NodeConfig, NodeFiles},
    crash, follower,
    machine::{Machine, Output, ReplyTo, SessionId, Tag},
    peers::{Peers, endpoint},
    server::{self, Service},
    setup::Setup,
    store::{ChangeSet, open_or_set_aside, start_writer},
};
use anyhow::{Context as _, Result};
use bitcoin::{Block, OutPoint};
use quorate::{
    Federation, FederationDocument, NodeId,
    client::TlsIdentity,
    wire::{ClientMessage, PeerReply, PeerRequest, ServerMessage, limits, outpoints_of},
};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng as _};
use std::{
    collections::HashMap,
    path::Path,
    sync::{Arc, mpsc as blocking},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tokio::sync::{mpsc, oneshot, watch};

/// Inputs that may wait for the machine; producers then have to wait.
const INPUTS_MAX: usize = 4_096;
/// Time between two sweeps that broadcast again what is final and not in a block.
const SWEEP_INTERVAL: Duration = Duration::from_secs(10);

/// What happens to a node.
#[derive(Debug)]
pub(crate) enum Input {
    Request { from: NodeId, request: PeerRequest, reply: oneshot::Sender<PeerReply> },
    Own { tag: Tag, request: PeerRequest },
    Reply { from: NodeId, tag: Tag, reply: Option<PeerReply> },
    Client { session: SessionId, id: Option<u64>, message: ClientMessage },
    Opened { session: SessionId, frames: mpsc::Sender<Vec<u8>> },
    Closed { session: SessionId },
    Blocks { disconnect: u32, connect: Vec<Block> },
    BlockHash { height: u32, reply: oneshot::Sender<Option<bitcoin::BlockHash>> },
    Coins { coins: Vec<(OutPoint, ChainCoin)>, then: Box<Input> },
    Status { reply: oneshot::Sender<Status> },
    Evidence { reply: oneshot::Sender<EvidenceFile> },
}

/// What the dispatcher carries out.
#[derive(Debug)]
enum Release {
    Nothing,
    Output(Box<Output>),
    Replies(u64, oneshot::Sender<PeerReply>),
    Opened(SessionId, mpsc::Sender<Vec<u8>>),
    Closed(SessionId),
}

/// A running node.
#[derive(Debug)]
pub struct Node {
    endpoint: quinn::Endpoint,
    document: watch::Receiver<Option<FederationDocument>>,
    ended: watch::Receiver<bool>,
}

impl Node {
    /// Starts the node whose files are in `directory`.
    ///
    /// # Errors
    /// Its files are missing or damaged, its port is taken, or its store cannot be opened.
    pub fn start(directory: &Path, config: NodeConfig, chain: Arc<dyn Chain>) -> Result<Self> {
        let files = NodeFiles(directory.to_owned());
        let roster = files.roster()?;
        let nodes = roster.check()?.nodes();
        let identity = TlsIdentity::read(directory)?;
        let endpoint = endpoint(&identity, config.listen, nodes)
            .with_context(|| format!("cannot listen on {}", config.listen))?;
        let peers = Arc::new(Peers::new(endpoint.clone(), &config.peers));
        let service = Arc::new(Service::new(nodes));
        let (publish, document) = watch::channel(None);
        let (end, ended) = watch::channel(false);
        tokio::spawn(server::accept(endpoint.clone(), service.clone()));
        let (live, live_inputs) = watch::channel(None);
        let api_address = config.api_address();
        let serving = tokio::spawn(async move {
            if let Err(error) = api::serve(api_address, live_inputs).await {
                tracing::warn!(address = %api_address, error = format!("{error:#}"), "the operator's API is not served; set `api` in node.toml");
            }
        });
        let run = async move {
            let document = obtain_document(&files, roster, &peers, &service).await?;
            let federation = document.clone().verify(document.roster.id())?;
            let inputs = start_machine(&files, &config, federation, peers, chain)?;
            service.go_live(inputs.clone());
            live.send_replace(Some(inputs.clone()));
            publish.send_replace(Some(document));
            // The machine's task holds the receiver; when it ends, the node has stopped.
            inputs.closed().await;
            anyhow::bail!("the node has stopped because its store cannot be written")
        };
        tokio::spawn(async move {
            let result: Result<()> = run.await;
            if let Err(error) = result {
                tracing::error!(error = format!("{error:#}"), "the node has ended");
            }
            serving.abort();
            end.send_replace(true);
        });
        Ok(Self { endpoint, document, ended })
    }

    /// Waits until the federation key is there and the node takes part.
    ///
    /// # Errors
    /// The node has ended.
    pub async fn ready(&mut self) -> Result<FederationDocument> {
        let mut ended = self.ended.clone();
        tokio::select! {
            ready = self.document.wait_for(Option::is_some) => {
                ready.context("the node has ended")?.clone().context("the node has ended")
            }
            _ = ended.wait_for(|ended| *ended) => anyhow::bail!("the node has ended; its log says why"),
        }
    }

    /// Waits until the node ends by itself, which is always a failure.
    pub async fn ended(&mut self) {
        let _closed = self.ended.wait_for(|ended| *ended).await;
    }

    /// Closes all connections, telling peers.
    pub async fn shut_down(&self) {
        self.endpoint.close(0_u8.into(), b"shutting down");
        self.endpoint.wait_idle().await;
    }
}

async fn obtain_document(
    files: &NodeFiles,
    roster: quorate::federation::Roster,
    peers: &Peers,
    service: &Service,
) -> Result<FederationDocument> {
    if files.0.join("federation.json").exists() {
        return files.read_json("federation.json");
    }
    let setup = Arc::new(Setup::new(roster, files.clone())?);
    service.set_up(setup.clone());
    setup.run(peers).await
}

fn start_machine(
    files: &NodeFiles,
    config: &NodeConfig,
    federation: Federation,
    peers: Arc<Peers>,
    chain: Arc<dyn Chain>,
) -> Result<mpsc::Sender<Input>> {
    let (store, stored) = open_or_set_aside(&files.0.join("store.redb"))?;
    let mut seed = [0; 32];
    getrandom::getrandom(&mut seed).context("no source of randomness")?;
    let machine = Machine::new(
        config.id,
        federation,
        files.identity()?,
        files.read_share(config.id)?,
        config.rules(),
        ChaCha20Rng::from_seed(seed),
        stored,
    );
    let (inputs, receiver) = mpsc::channel(INPUTS_MAX);
    let (writer, released) = start_writer::<Release>(store);
    let dispatcher = Dispatcher {
        me: config.id,
        inputs: inputs.clone(),
        peers,
        chain: chain.clone(),
        replies: HashMap::new(),
        sessions: HashMap::new(),
    };
    tokio::spawn(follower::follow(chain.clone(), inputs.clone()));
    let driver = Driver {
        machine,
        me: config.id,
        writer,
        chain,
        inputs: inputs.downgrade(),
        started: Instant::now(),
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
    Ok(inputs)
}

struct Driver {
    machine: Machine,
    me: NodeId,
    writer: blocking::Sender<(ChangeSet, Release)>,
    chain: Arc<dyn Chain>,
    inputs: mpsc::WeakSender<Input>,
    started: Instant,
    next_reply: u64,
}

impl Driver {
    async fn run(mut self, mut receiver: mpsc::Receiver<Input>) {
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
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
                    let Some(input) = input else { return };
                    self.set_time();
                    self.handle(input);
                }
                _ = sweep.tick() => {
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
            Input::Coins { coins, then } => {
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
                if outpoints.len() > quorate::standard::INPUTS_MAX {
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
            | Input::Coins { .. } => return Some(input),
        };
        let unknown = self.machine.unknown_coins(&outpoints);
        if unknown.is_empty() {
            return Some(input);
        }
        let (chain, inputs) = (self.chain.clone(), self.inputs.clone());
        tokio::spawn(async move {
            let mut coins = Vec::new();
            for outpoint in unknown {
                match chain.coin(outpoint).await {
                    Ok(Some(coin)) => coins.push((outpoint, coin)),
                    Ok(None) => {}
                    Err(error) => tracing::warn!(%error, %outpoint, "the chain backend did not give a coin"),
                }
            }
            if let Some(inputs) = inputs.upgrade() {
                let _node_ended = inputs.send(Input::Coins { coins, then: Box::new(input) }).await;
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

struct Dispatcher {
    me: NodeId,
    inputs: mpsc::Sender<Input>,
    peers: Arc<Peers>,
    chain: Arc<dyn Chain>,
    replies: HashMap<u64, oneshot::Sender<PeerReply>>,
    sessions: HashMap<SessionId, mpsc::Sender<Vec<u8>>>,
}

impl Dispatcher {
    async fn run(mut self, mut released: mpsc::UnboundedReceiver<Release>) {
        while let Some(release) = released.recv().await {
            match release {
                Release::Nothing => {}
                Release::Replies(number, reply) => {
                    self.replies.insert(number, reply);
                }
                Release::Opened(session, frames) => {
                    self.sessions.insert(session, frames);
                }
                Release::Closed(session) => {
                    self.sessions.remove(&session);
                }
                Release::Output(output) => self.carry_out(*output).await,
            }
        }
    }

    async fn carry_out(&mut self, output: Output) {
        match output {
            Output::Persist(_) => {}
            Output::Ask { to, tag, request } if to == self.me => {
                let _node_ended = self.inputs.send(Input::Own { tag, request }).await;
            }
            Output::Ask { to, tag, request } => {
                crash::point(match tag {
                    Tag::Vote { .. } => "coordinator.before_vote_request",
                    Tag::Commit { .. } => "coordinator.before_commit_request",
                    Tag::Release { .. } => "releaser.before_release_request",
                    Tag::Account { .. } | Tag::Announce | Tag::Final { .. } | Tag::Heartbeat => {
                        "coordinator.before_other_request"
                    }
                });
                let (peers, inputs) = (self.peers.clone(), self.inputs.clone());
                tokio::spawn(async move {
                    let reply = peers.ask(to, &request).await;
                    if let Err(error) = &reply {
                        tracing::debug!(%to, error = format!("{error:#}"), "a peer did not answer");
                    }
                    let _node_ended = inputs.send(Input::Reply { from: to, tag, reply: reply.ok() }).await;
                });
            }
            Output::Reply { to: ReplyTo::Myself(tag), reply } => {
                let _node_ended =
                    self.inputs.send(Input::Reply { from: self.me, tag, reply: Some(reply) }).await;
            }
            Output::Reply { to: ReplyTo::Peer(number), reply } => {
                crash::point(match &reply {
                    PeerReply::VoteResponse { .. } => "voter.before_vote_response",
                    PeerReply::CommitResponse { .. } => "voter.before_commit_response",
                    PeerReply::ReleaseResponse { .. } => "voter.before_promise",
                    PeerReply::AccountResponse { .. }
                    | PeerReply::HeartbeatResponse { .. }
                    | PeerReply::DkgBundle { .. }
                    | PeerReply::TrialCommitment { .. }
                    | PeerReply::TrialShare { .. }
                    | PeerReply::Done
                    | PeerReply::Error { .. } => "voter.before_other_response",
                });
                if let Some(waiting) = self.replies.remove(&number) {
                    let _peer_gone = waiting.send(reply);
                }
            }
            Output::Client { session, id, message } => self.send(session, id, &message),
            Output::Broadcast(transaction) => {
                crash::point("coordinator.before_broadcast");
                let chain = self.chain.clone();
                tokio::spawn(async move {
                    let txid = transaction.compute_txid();
                    if let Err(error) = chain.broadcast(transaction).await {
                        tracing::warn!(%error, %txid, "the chain backend did not take a final transaction; it is tried again");
                    }
                });
            }
            Output::Prove { session, id, txid, block } => {
                let (chain, frames) = (self.chain.clone(), self.sessions.get(&session).cloned());
                tokio::spawn(async move {
                    let proof =
                        chain.block(block.hash).await.ok().and_then(|whole| prove(&whole, txid, block));
                    let message = ServerMessage::Proof { txid, proof };
                    if let Some(frames) = frames {
                        let _session_gone = frames.send(quorate::wire::encode_frame(id, &message)).await;
                    }
                });
            }
            Output::FeeRate { session, id } => {
                let (chain, frames) = (self.chain.clone(), self.sessions.get(&session).cloned());
                tokio::spawn(async move {
                    let rate = chain.fee_rate().await.unwrap_or(quorate::standard::FEE_RATE_MIN);
                    let message = ServerMessage::FeeRate { sat_per_kwu: rate.to_sat_per_kwu() };
                    if let Some(frames) = frames {
                        let _session_gone = frames.send(quorate::wire::encode_frame(id, &message)).await;
                    }
                });
            }
        }
    }

    /// A session whose queue is full is closed: it reconnects and gets a fresh snapshot, so nothing is lost silently.
    fn send(&mut self, session: SessionId, id: Option<u64>, message: &ServerMessage) {
        let Some(frames) = self.sessions.get(&session) else { return };
        if frames.try_send(quorate::wire::encode_frame(id, message)).is_err() {
            tracing::warn!(session = session.0, "a session is too slow and is closed");
            self.sessions.remove(&session);
        }
    }
}
