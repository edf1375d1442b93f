//! The driver of a node's [`Transition`]: questions to peers and from peers, files, time. It decides nothing.

use super::disk;
use crate::{
    files::{EpochFiles, NodeFiles, PlanFile},
    net::{
        membership::Membership,
        not_ready,
        peers::{Call, Peers},
    },
    run::{
        input::Input,
        live::ask_voter,
        queue::{FORWARDED, Inputs},
    },
};
use anyhow::{Context as _, Result, bail};
use quorate_protocol::{
    Federation, NodeId,
    federation::{KeyCertificate, Roster, SuccessionPlan},
    frost::NodeShare,
    seal::Handover,
    wire::{KeygenRequest, PeerReply, PeerRequest, RepairRequest, Request, SuccessionRequest, WireError},
};
use quorate_quic::Room;
use quorate_rules::{
    DkgSeed, Kept, Opening, Peer, Planned, Progress, Side, Transition, TransitionOutput, WholeSeal,
};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng as _};
use std::{
    collections::{BTreeMap, HashMap},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinSet,
    time::MissedTickBehavior,
};

/// Time between two looks at the directory of plans.
const POLL: Duration = Duration::from_millis(200);

/// What a peer asks, and where its answer goes.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) peer: Peer,
    pub(crate) request: EpochRequest,
    pub(crate) reply: oneshot::Sender<PeerReply>,
    /// The peer's place among those who ask.
    pub(crate) _place: Option<Room>,
}

/// What a transition answers.
#[derive(Debug)]
pub(crate) enum EpochRequest {
    Keygen(KeygenRequest),
    Succession(SuccessionRequest),
    Repair(RepairRequest),
}

/// An epoch that has begun, as the driver needs it.
pub(crate) struct Begun {
    pub(crate) federation: Federation,
    pub(crate) share: Option<NodeShare>,
    pub(crate) past: Vec<WholeSeal>,
    pub(crate) peers: Arc<Peers>,
    pub(crate) addresses: BTreeMap<NodeId, SocketAddr>,
    /// The voter's; absent at a newcomer.
    pub(crate) voter: Option<Inputs>,
}

/// A node's way through its epochs.
pub(crate) struct Epochs {
    me: NodeId,
    files: NodeFiles,
    endpoint: quinn::Endpoint,
    membership: Arc<Membership>,
    transition: Transition,
    started: Instant,
    questions: mpsc::Receiver<Question>,
    replies: HashMap<u64, oneshot::Sender<PeerReply>>,
    next_reply: u64,
    answers: JoinSet<(u64, Option<PeerReply>)>,
    progress: watch::Sender<Option<Progress>>,
    federation: Option<Federation>,
    voter: Option<Inputs>,
    peers: BTreeMap<Side, Arc<Peers>>,
    addresses: BTreeMap<NodeId, SocketAddr>,
    /// Files of the epoch that is prepared.
    prepared: EpochFiles,
    /// The plan that cannot be read, as it was last reported.
    unreadable: String,
}

/// What a stretch of the way ended with.
enum Outcome {
    Founded(KeyCertificate),
    Repaired(NodeShare),
    NotRepaired(String),
    Opened(Box<Federation>),
}

impl Epochs {
    pub(crate) fn new(
        me: NodeId,
        files: NodeFiles,
        endpoint: quinn::Endpoint,
        membership: Arc<Membership>,
        questions: mpsc::Receiver<Question>,
    ) -> Result<Self> {
        let mut seed = [0; 32];
        getrandom::getrandom(&mut seed).context("no source of randomness")?;
        let transition = Transition::new(me, files.identity()?, ChaCha20Rng::from_seed(seed));
        let prepared = files.first_epoch();
        Ok(Self {
            me,
            files,
            endpoint,
            membership,
            transition,
            started: Instant::now(),
            questions,
            replies: HashMap::new(),
            next_reply: 1,
            answers: JoinSet::new(),
            progress: watch::Sender::new(None),
            federation: None,
            voter: None,
            peers: BTreeMap::new(),
            addresses: BTreeMap::new(),
            prepared,
            unreadable: String::new(),
        })
    }

    /// How far the next epoch is.
    pub(crate) fn progress(&self) -> watch::Receiver<Option<Progress>> {
        self.progress.subscribe()
    }

    /// Makes the first key with all members of the roster.
    pub(crate) async fn found(&mut self, roster: &Roster, peers: Arc<Peers>) -> Result<KeyCertificate> {
        self.peers = BTreeMap::from([(Side::Present, peers)]);
        let seed = DkgSeed(self.prepared.dkg_seed()?);
        self.transition.at(self.started.elapsed()).found(roster, seed)?;
        match self.run(false).await? {
            Outcome::Founded(key) => Ok(key),
            Outcome::Repaired(_) | Outcome::NotRepaired(_) | Outcome::Opened(_) => {
                bail!("the federation key was not made")
            }
        }
    }

    /// An epoch begins.
    pub(crate) fn open(&mut self, begun: Begun) {
        let Begun { federation, share, past, peers, addresses, voter } = begun;
        self.answers = JoinSet::new();
        self.peers = BTreeMap::from([(Side::Present, peers)]);
        self.transition.open(federation.clone(), share, past);
        (self.federation, self.voter, self.addresses) = (Some(federation), voter, addresses);
    }

    /// Waits for a plan, carries it out, and gives the federation in the next epoch. What fails is tried again, or
    /// another plan takes its place.
    pub(crate) async fn next_epoch(&mut self) -> Result<Federation> {
        match self.run(true).await? {
            Outcome::Opened(federation) => Ok(*federation),
            Outcome::Founded(_) | Outcome::Repaired(_) | Outcome::NotRepaired(_) => {
                bail!("the next epoch has not begun")
            }
        }
    }

    /// Has this node's lost share of the present epoch computed anew by others.
    pub(crate) async fn repair(&mut self, patience: Duration) -> Result<NodeShare> {
        self.transition.at(self.started.elapsed()).repair_share();
        match tokio::time::timeout(patience, self.run(false)).await {
            Ok(Ok(Outcome::Repaired(share))) => Ok(share),
            Ok(Ok(Outcome::NotRepaired(problem))) => bail!("{problem}"),
            Ok(Ok(Outcome::Founded(_) | Outcome::Opened(_))) => bail!("the share was not repaired"),
            Ok(Err(error)) => Err(error),
            Err(_) => {
                bail!("{}", self.transition.problem().unwrap_or("the other nodes do not answer"))
            }
        }
    }

    async fn run(&mut self, takes_plans: bool) -> Result<Outcome> {
        let mut plans = tokio::time::interval(POLL);
        plans.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            while let Some(output) = self.transition.at(self.started.elapsed()).poll_output() {
                if let Some(outcome) = self.carry_out(output).await? {
                    return Ok(outcome);
                }
            }
            self.progress.send_replace(self.transition.progress());
            let due = self.transition.poll_timeout().map(|due| self.started + due);
            tokio::select! {
                Some(question) = self.questions.recv() => self.asked(question),
                Some(Ok((ask, reply))) = self.answers.join_next() => {
                    self.transition.at(self.started.elapsed()).handle_answer(ask, reply);
                }
                () = until(due) => self.transition.at(self.started.elapsed()).handle_timeout(),
                _ = plans.tick(), if takes_plans => self.look_for_plan(),
            }
        }
    }

    fn asked(&mut self, question: Question) {
        let Question { peer, request, reply, _place } = question;
        let to = self.next_reply;
        self.next_reply += 1;
        self.replies.retain(|_, reply| !reply.is_closed());
        self.replies.insert(to, reply);
        let transition = self.transition.at(self.started.elapsed());
        match request {
            EpochRequest::Keygen(request) => transition.handle_keygen(peer, to, request),
            EpochRequest::Succession(request) => transition.handle_succession(to, request),
            EpochRequest::Repair(request) => transition.handle_repair(peer, to, request),
        }
    }

    /// Takes up the plan that the operator has approved, if it is a newer one.
    fn look_for_plan(&mut self) {
        match self.newer_plan() {
            Ok(Some((file, planned))) => {
                self.transition.at(self.started.elapsed()).handle_plan(planned);
                // A node that is bound to an earlier plan stays with it, and with its files.
                if self.transition.attempt() == file.plan.attempt {
                    self.prepared = self.files.planned(&file.plan);
                    self.addresses.extend(&file.addresses);
                }
            }
            Ok(None) => {}
            // The present epoch goes on; what is wrong with the plan is looked at again.
            Err(error) => {
                let problem = format!("{error:#}");
                if problem != self.unreadable {
                    tracing::error!(problem, "a plan for the next epoch cannot be read");
                    self.unreadable = problem;
                }
            }
        }
    }

    fn newer_plan(&self) -> Result<Option<(PlanFile, Planned)>> {
        let Some(federation) = &self.federation else { return Ok(None) };
        let newer = |file: &PlanFile| file.plan.attempt > self.transition.attempt();
        let Some(file) = self.files.approved_plan(federation)?.filter(newer) else { return Ok(None) };
        let prepared = self.files.planned(&file.plan);
        let saved = prepared.path("succession.json").exists();
        let succession = saved.then(|| prepared.read_json("succession.json")).transpose()?;
        let (seed, bound) = (DkgSeed(prepared.dkg_seed()?), self.files.is_bound(&file.plan));
        let planned = Planned { plan: file.plan.clone(), seed, succession, bound };
        Ok(Some((file, planned)))
    }

    async fn carry_out(&mut self, output: TransitionOutput) -> Result<Option<Outcome>> {
        match output {
            TransitionOutput::Ask { ask, side, to, request } => self.ask(ask, side, to, request),
            TransitionOutput::AskVoter { ask, succession, skip } => {
                let (voter, of) = (self.voter.clone(), self.me);
                self.answers.spawn(async move {
                    let reply =
                        ask_voter(voter.as_ref(), None, |reply| Input::Seal { succession, of, skip, reply });
                    (ask, Some(reply.await))
                });
            }
            TransitionOutput::Reply { to, reply } => {
                if let Some(asker) = self.replies.remove(&to) {
                    // Who asked may be gone.
                    let _gone = asker.send(reply);
                }
            }
            TransitionOutput::Forward { to, succession, of, skip } => {
                if let Some(asker) = self.replies.remove(&to) {
                    let voter = self.voter.clone();
                    tokio::spawn(async move {
                        let input = |reply| Input::Seal { succession, of, skip, reply };
                        let _gone = asker.send(ask_voter(voter.as_ref(), Some(FORWARDED), input).await);
                    });
                }
            }
            TransitionOutput::Plan(plan) => self.prepare(*plan).await,
            TransitionOutput::Save(save) => {
                let saved = disk::save(&save, &self.prepared, self.me, self.federation.as_ref());
                let transition = self.transition.at(self.started.elapsed());
                match saved {
                    Ok(()) => transition.handle_saved(save.kind()),
                    Err(error) => transition.handle_failure(format!("{error:#}")),
                }
            }
            TransitionOutput::Founded(key) => return Ok(Some(Outcome::Founded(*key))),
            TransitionOutput::Repaired(share) => return Ok(Some(Outcome::Repaired(share))),
            TransitionOutput::NotRepaired(problem) => return Ok(Some(Outcome::NotRepaired(problem))),
            TransitionOutput::Open(opening) => return Ok(self.begin(*opening).await),
        }
        Ok(None)
    }

    fn ask(&mut self, ask: u64, side: Side, to: NodeId, request: PeerRequest) {
        let Some(peers) = self.peers.get(&side).cloned() else {
            self.transition.at(self.started.elapsed()).handle_answer(ask, None);
            return;
        };
        self.answers.spawn(async move {
            let reply = match &request {
                PeerRequest::Voting(request) => answer_of(&peers, to, request).await,
                PeerRequest::Keygen(request) => answer_of(&peers, to, request).await,
                PeerRequest::Succession(request) => answer_of(&peers, to, request).await,
                PeerRequest::Repair(request) => answer_of(&peers, to, request).await,
            };
            (ask, reply)
        });
    }

    async fn prepare(&mut self, plan: SuccessionPlan) {
        self.membership.prepare(plan.members.clone());
        let next = Peers::new(self.endpoint.clone(), self.me, &plan.members, &self.addresses);
        self.peers.insert(Side::Next, Arc::new(next));
        if let Some(voter) = &self.voter {
            // A voter that has ended stops the node.
            let _ended = voter.send(Input::Plan(Box::new(plan))).await;
        }
    }

    async fn begin(&mut self, opening: Opening) -> Option<Outcome> {
        let opened = match self.kept(&opening.handover).await {
            Ok(kept) => disk::open(&opening, &kept, &self.prepared, &self.files),
            Err(error) => Err(error),
        };
        match opened {
            Ok(()) => {
                tracing::info!(epoch = opening.federation.epoch().0, "the epoch is open");
                Some(Outcome::Opened(Box::new(opening.federation)))
            }
            Err(error) => {
                self.transition.at(self.started.elapsed()).handle_failure(format!("{error:#}"));
                None
            }
        }
    }

    /// What this node has beside what is handed over: what it holds against others, and proofs that came after its
    /// seal.
    /// A voter that has ended may have taken in more than is known here: its store is read again at the next start.
    async fn kept(&self, handover: &Handover) -> Result<Kept> {
        let Some(voter) = &self.voter else { return Ok(Kept::default()) };
        let (reply, answer) = oneshot::channel();
        let keep = Input::Keep { handover: Box::new(handover.clone()), reply };
        voter.send(keep).await.ok().context("this node's voter has ended")?;
        answer.await.context("this node's voter has ended")
    }
}

/// What a peer says; a refusal is an answer, too.
async fn answer_of<R: Request>(peers: &Peers, to: NodeId, request: &R) -> Option<PeerReply>
where
    R::Reply: Into<PeerReply>,
{
    match peers.ask(to, &Call::new(request)).await {
        Ok(reply) => Some(reply.into()),
        Err(error) => error.downcast::<WireError>().ok().map(PeerReply::from),
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due.into()).await,
        None => std::future::pending().await,
    }
}

/// Hands a peer's question to the transition.
pub(crate) async fn ask_epochs(
    epochs: &mpsc::Sender<Question>,
    peer: Peer,
    request: EpochRequest,
    place: Option<Room>,
) -> PeerReply {
    let (reply, answer) = oneshot::channel();
    let stopping = || not_ready("this node is stopping").into();
    if epochs.send(Question { peer, request, reply, _place: place }).await.is_err() {
        return stopping();
    }
    answer.await.unwrap_or_else(|_| stopping())
}
