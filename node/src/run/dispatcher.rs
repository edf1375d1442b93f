//! Carries out what a node's machine has put out, in order, once the store has released it.

use super::{checking::Checking, input::Input, queue::Inputs, turns::Fair};
use crate::{
    backlog::Held,
    chain::{Chain, broadcast::Queue, complaint::Complaint, proofs::Proofs},
    crash,
    net::{
        outgoing::{Outgoing, Turn},
        peers::{Call, Peers},
    },
    store::Index,
};
use bitcoin::{OutPoint, Transaction, Txid};
use quorate_protocol::{
    NodeId,
    wire::{
        ConfirmedSpend, ErrorCode, Fault, PeerReply, ServerMessage, VotingReply, VotingRequest, WireError,
        encode_frame,
    },
};
use quorate_rules::{ChainCoin, Output, Party, ReplyTo, Search, SessionId, Source, Tag};
use std::{collections::HashMap, sync::Arc};
use tokio::sync::{mpsc, oneshot};

/// Coins that the chain is asked for at a time; others wait for their turn.
const LOOKUPS_MAX: usize = 32;

/// Questions that the archive has at a time, which it answers one after the other.
const RECALLS_MAX: usize = 2;

/// What one input led to, which waits until it is carried out.
#[derive(Debug)]
pub(super) struct Released {
    pub(super) works: Vec<Work>,
    pub(super) _held: Held,
    /// Of the session that said it.
    pub(super) _turn: Option<Turn>,
}

/// What the dispatcher carries out.
#[derive(Debug)]
pub(crate) enum Work {
    Output(Box<Output>),
    Replies(u64, oneshot::Sender<PeerReply>),
    /// What is final and in no block.
    Sweep(Vec<Transaction>),
    Opened(SessionId, Outgoing),
    Closed(SessionId),
}

pub(crate) struct Dispatcher {
    me: NodeId,
    inputs: Inputs,
    peers: Arc<Peers>,
    chain: Arc<dyn Chain>,
    /// What goes to the network.
    queue: Arc<Queue>,
    replies: HashMap<u64, oneshot::Sender<PeerReply>>,
    sessions: HashMap<SessionId, Outgoing>,
    /// Questions to the chain about coins.
    lookups: Fair,
    recalls: Fair,
    /// What the chain backend does not answer at the moment: about coins, and about what accounts had.
    complaints: [Arc<Complaint>; 2],
    proofs: Arc<Proofs>,
    checking: Checking,
    index: Index,
}

impl Dispatcher {
    pub(crate) fn new(
        me: NodeId,
        inputs: Inputs,
        peers: Arc<Peers>,
        chain: Arc<dyn Chain>,
        index: Index,
    ) -> Self {
        let (lookups, recalls) = (Fair::new(LOOKUPS_MAX), Fair::new(RECALLS_MAX));
        let queue = Arc::new(Queue::default());
        tokio::spawn(queue.clone().run(chain.clone(), inputs.clone()));
        let proofs = Arc::new(Proofs::new(chain.clone()));
        let checking = Checking::new(inputs.clone());
        let (replies, sessions) = (HashMap::new(), HashMap::new());
        let complaints = ["say whether there is a coin", "say what accounts had before they were known here"];
        let complaints = complaints.map(|what| Arc::new(Complaint::new(what)));
        Self {
            me,
            inputs,
            peers,
            chain,
            queue,
            replies,
            sessions,
            lookups,
            recalls,
            complaints,
            proofs,
            checking,
            index,
        }
    }

    pub(crate) async fn run(mut self, mut released: mpsc::UnboundedReceiver<Released>) {
        while let Some(Released { works, _held, _turn }) = released.recv().await {
            for work in works {
                self.do_work(work);
            }
        }
    }

    fn do_work(&mut self, work: Work) {
        match work {
            Work::Replies(number, reply) => {
                self.replies.insert(number, reply);
            }
            Work::Sweep(unconfirmed) => self.queue.push(unconfirmed),
            Work::Opened(session, frames) => {
                self.sessions.insert(session, frames);
            }
            Work::Closed(session) => {
                self.sessions.remove(&session);
            }
            Work::Output(output) => self.carry_out(*output),
        }
    }

    fn carry_out(&mut self, output: Output) {
        match output {
            Output::Persist(_) | Output::Index(_) => {}
            Output::Ask { to, tag, request } => {
                let peers: Vec<NodeId> = to.iter().copied().filter(|to| *to != self.me).collect();
                if !peers.is_empty() {
                    self.ask(peers, tag, &request);
                }
                if to.contains(&self.me) {
                    let _node_ended = self.inputs.own(Input::Own { tag, request: *request });
                }
            }
            Output::Reply { to: ReplyTo::Myself(tag), reply } => {
                let reply = match reply {
                    PeerReply::Voting(reply) => Some(reply),
                    PeerReply::Refused(_)
                    | PeerReply::Keygen(_)
                    | PeerReply::Succession(_)
                    | PeerReply::Repair(_) => None,
                };
                let _node_ended = self.inputs.own(Input::Reply { from: self.me, tag, reply });
            }
            Output::Reply { to: ReplyTo::Peer(number), reply } => {
                crash::point(crash_point(&reply));
                if let Some(waiting) = self.replies.remove(&number) {
                    let _peer_gone = waiting.send(reply);
                }
            }
            Output::LookUp { ticket, source, outpoints } => self.look_up(ticket, source, outpoints),
            Output::Search { ticket, search } => {
                let [_, complaint] = self.complaints.clone();
                tokio::spawn(look_for(self.chain.clone(), complaint, self.inputs.clone(), ticket, search));
            }
            Output::Check { ticket, source, check } => self.checking.start(ticket, source, *check),
            Output::Recall { ticket, source, wanted } => {
                let (turns, index, inputs) = (self.recalls.clone(), self.index.clone(), self.inputs.clone());
                tokio::spawn(async move {
                    let _turn = turns.turn(source.party()).await;
                    let archived = index.recall(wanted).await;
                    if let Err(error) = &archived {
                        let error = format!("{error:#}");
                        tracing::error!(
                            error,
                            "the archive cannot be read: no history is told, and no old proof taken in"
                        );
                    }
                    let archived = archived.ok();
                    let _node_ended = inputs.send(Input::Recalled { ticket, archived }).await;
                });
            }
            Output::Settled => {
                let _node_ended = self.inputs.own(Input::Settled);
            }
            Output::Client { session, id, message } => self.send(session, id, &message),
            Output::Broadcast(transactions) => {
                crash::point("coordinator.before_broadcast");
                self.queue.push(transactions);
            }
            Output::Prove { session, id, txid, of, path } => self.prove(session, id, txid, of, path),
        }
    }

    /// Asks the chain for coins, each when it is its turn.
    fn look_up(&self, ticket: u64, source: Source, outpoints: Vec<OutPoint>) {
        let [complaint, _] = self.complaints.clone();
        let (turns, chain, inputs) = (self.lookups.clone(), self.chain.clone(), self.inputs.clone());
        tokio::spawn(async move {
            let coins = look_up(&*chain, &turns, source.party(), &complaint, outpoints).await;
            let _node_ended = inputs.send(Input::Coins { ticket, coins }).await;
        });
    }

    /// Answers a session from the block that has a transaction, once that is read.
    fn prove(
        &mut self,
        session: SessionId,
        id: Option<u64>,
        txid: Txid,
        of: ConfirmedSpend,
        path: Vec<Transaction>,
    ) {
        let Some(frames) = self.sessions.get(&session) else { return };
        let Some(room) = frames.proof() else {
            let message =
                "this node has many transactions to find in blocks for sessions with this certificate";
            let error = WireError::passing(ErrorCode::LimitExceeded, Fault::Receiver, message);
            return self.send(session, id, &ServerMessage::Error { error });
        };
        let (frames, party) = (frames.weak(), Party::Certificate(session.certificate));
        let proofs = self.proofs.clone();
        tokio::spawn(async move {
            let frame = encode_frame(id, &proofs.answer(party, txid, of, path).await);
            drop(room);
            // One that does not read is closed with the next message to it.
            let _gone_or_full = frames.send(frame);
        });
    }

    /// Asks peers. What they are asked is written once for all.
    fn ask(&self, peers: Vec<NodeId>, tag: Tag, request: &VotingRequest) {
        crash::point(match tag {
            Tag::Vote { .. } => "coordinator.before_vote_request",
            Tag::Commit { .. } => "coordinator.before_commit_request",
            Tag::Release { .. } => "releaser.before_release_request",
            Tag::Account { .. } | Tag::Announce | Tag::Final { .. } | Tag::Heartbeat => {
                "coordinator.before_other_request"
            }
        });
        let call = Call::new(request);
        for to in peers {
            let (call, links, inputs) = (call.clone(), self.peers.clone(), self.inputs.clone());
            tokio::spawn(async move {
                let reply = links.ask(to, &call).await;
                if let Err(error) = &reply {
                    tracing::debug!(%to, error = format!("{error:#}"), "a peer did not answer");
                }
                let _node_ended = inputs.send(Input::Reply { from: to, tag, reply: reply.ok() }).await;
            });
        }
    }

    /// A session whose queue is full is closed: it reconnects and gets a fresh snapshot, so nothing is lost silently.
    fn send(&mut self, session: SessionId, id: Option<u64>, message: &ServerMessage) {
        let Some(frames) = self.sessions.get(&session) else { return };
        if frames.send(encode_frame(id, message)).is_err() {
            tracing::warn!(session = session.number, "a session is too slow and is closed");
            self.sessions.remove(&session);
        }
    }
}

/// Asks the chain for coins. One that there is not is left out; if the backend does not say, nobody can know.
async fn look_up(
    chain: &dyn Chain,
    turns: &Fair,
    party: Party,
    complaint: &Complaint,
    outpoints: Vec<OutPoint>,
) -> Option<Vec<(OutPoint, ChainCoin)>> {
    let mut coins = Vec::new();
    for outpoint in outpoints {
        // Of one question there may be a thousand: others have their turns between them.
        let _turn = turns.turn(party).await;
        match chain.coin(outpoint).await {
            Ok(coin) => coins.extend(coin.map(|coin| (outpoint, coin))),
            Err(error) => {
                complaint.raise(&error);
                return None;
            }
        }
    }
    complaint.settle();
    Some(coins)
}

/// Asks the chain for the coins of accounts.
async fn look_for(
    chain: Arc<dyn Chain>,
    complaint: Arc<Complaint>,
    inputs: Inputs,
    ticket: u64,
    search: Search,
) {
    let scripts = tokio::task::spawn_blocking(move || search.scripts()).await;
    let found = match scripts {
        Ok(scripts) => match chain.unspent(scripts).await {
            Ok(found) => {
                complaint.settle();
                Some(found)
            }
            Err(error) => {
                complaint.raise(&error);
                None
            }
        },
        Err(error) => {
            tracing::error!(%error, "what accounts had before was not searched for");
            None
        }
    };
    let _node_ended = inputs.send(Input::Found { ticket, found }).await;
}

/// The place just before an answer leaves, for tests that stop the node there.
fn crash_point(reply: &PeerReply) -> &'static str {
    match reply {
        PeerReply::Voting(VotingReply::VoteResponse { .. }) => "voter.before_vote_response",
        PeerReply::Voting(VotingReply::CommitResponse { .. }) => "voter.before_commit_response",
        PeerReply::Voting(VotingReply::ReleaseResponse { .. }) => "voter.before_promise",
        PeerReply::Succession(_) => "voter.before_seal",
        PeerReply::Voting(
            VotingReply::AccountResponse { .. } | VotingReply::HeartbeatResponse { .. } | VotingReply::Done,
        )
        | PeerReply::Keygen(_)
        | PeerReply::Repair(_)
        | PeerReply::Refused(_) => "voter.before_other_response",
    }
}
