//! How a node gets from one epoch to the next, as its operator's plan says: approvals, repair, refresh, seals,
//! opening. And what it does for others that are on the same way.
//!
//! The epoch that ends goes on voting until the new key is certified by all its members; only then is it sealed, by
//! the voter ([`crate::Machine`]), which this machine asks like any peer does. Everything is pulled and may be
//! repeated, so a node that stops at any point goes on when it starts again: what must not be said twice in two ways
//! is on disk before it is said ([`Save`]).

use super::{
    desk::{
        Desk, DkgSeed, FOUNDING, Opening, Peer, Purpose, Save, Saved, Side, TransitionOutput, WholeSeal,
        not_ready, reason,
    },
    keygen::KeyGeneration,
    news::{News, Progress},
    repair::{Helping, Repair},
    seals::Seals,
};
use quorate_protocol::{
    Epoch, Federation, NodeId,
    digest::IdentityKey,
    federation::{FederationError, Roster, Succession, SuccessionPlan},
    frost::{
        NodeShare,
        dkg::{Ceremony, DkgError, RunId},
    },
    wire::{KeygenRequest, PeerReply, RepairRequest, SuccessionReply, SuccessionRequest},
};
use rand_chacha::ChaCha20Rng;
use std::{collections::BTreeMap, time::Duration};

/// Time until a plan is tried again after something failed.
const RETRY: Duration = Duration::from_secs(5);

/// A plan with what this node has on disk for it.
#[derive(Clone, Debug)]
pub struct Planned {
    /// What q nodes approve.
    pub plan: SuccessionPlan,
    /// The secret that the randomness of the refresh comes from.
    pub seed: DkgSeed,
    /// The succession, if its key was certified before this node stopped.
    pub succession: Option<Succession>,
    /// Whether this node has stored its share of it: it takes part in no other plan then.
    pub bound: bool,
}

/// The machine of one node's way through the epochs.
#[derive(Debug)]
pub struct Transition {
    desk: Desk,
    /// The first key: kept while its epoch lasts, for members that are still behind.
    founding: Option<(KeyGeneration, Founding)>,
    present: Option<Present>,
    way: Option<Way>,
}

/// How the first key is made, to begin anew after a failure.
#[derive(Debug)]
struct Founding {
    ceremony: Ceremony,
    /// Gone once the key is made: it is of no use any more, but to a thief.
    seed: Option<DkgSeed>,
    retry_at: Option<Duration>,
}

/// Why a first key cannot be made here.
#[derive(Debug, thiserror::Error)]
pub enum FoundingError {
    /// The roster is not well formed; its maker is at fault.
    #[error(transparent)]
    Roster(#[from] FederationError),
    /// This node's key is of no member; the node's operator has files of another node or federation.
    #[error("this node's identity key is of no member of the roster: {0}")]
    Key(#[from] DkgError),
}

/// The epoch in force.
#[derive(Debug)]
struct Present {
    federation: Federation,
    /// Absent at a newcomer, and while it is lost.
    share: Option<NodeShare>,
    helping: Helping,
    /// The seals that this node began the epoch with.
    past: Vec<WholeSeal>,
    /// A repair of this node's share that was asked for by itself.
    repair: Option<Repair>,
}

/// The way into the next epoch.
#[derive(Debug)]
struct Way {
    planned: Planned,
    news: News,
    /// The refresh: kept when it is over, for members that are still behind.
    refresh: Option<KeyGeneration>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    Approving,
    Repairing(Repair),
    Refreshing,
    /// The succession is being saved.
    Saving(Box<Succession>),
    Sealing(Seals),
    /// The next epoch may begin; the driver has the word.
    Opening,
    /// Something failed; it is tried again from the start.
    Failed {
        retry_at: Duration,
    },
}

impl Transition {
    /// A node that has not been told anything yet.
    pub fn new(me: NodeId, key: IdentityKey, rng: ChaCha20Rng) -> Self {
        Self { desk: Desk::new(me, key, rng), founding: None, present: None, way: None }
    }

    /// Sets the time of the input that follows.
    pub fn at(&mut self, now: Duration) -> &mut Self {
        self.desk.now = now;
        self
    }

    /// Makes the federation's first key with all members of the roster.
    ///
    /// # Errors
    /// The roster is not well formed, or this node's key is of none of its members.
    pub fn found(&mut self, roster: &Roster, seed: DkgSeed) -> Result<(), FoundingError> {
        let ceremony = Ceremony::generation(roster)?;
        self.desk.step = FOUNDING;
        self.begin_founding(ceremony, seed)?;
        Ok(())
    }

    fn begin_founding(&mut self, ceremony: Ceremony, seed: DkgSeed) -> Result<(), DkgError> {
        let generation = KeyGeneration::new(&self.desk, ceremony.clone(), Side::Present, &seed, None)?;
        self.founding = Some((generation, Founding { ceremony, seed: Some(seed), retry_at: None }));
        Ok(())
    }

    /// An epoch is in force, with this node's share and the seals that it began the epoch with; both absent where
    /// there is none.
    pub fn open(&mut self, federation: Federation, share: Option<NodeShare>, past: Vec<WholeSeal>) {
        if federation.epoch() > Epoch::FIRST {
            self.founding = None;
        }
        self.desk.forget(|_| true);
        if let Some(before) = self.present.take() {
            before.helping.end(&mut self.desk);
        }
        let helping = Helping::default();
        self.present = Some(Present { federation, share, helping, past, repair: None });
        // What a refresh was made of would give a later thief the share of the epoch before.
        self.way = None;
    }

    /// Has this node's lost share of the present epoch repaired, apart from any plan.
    pub fn repair_share(&mut self) {
        let Some(present) = &mut self.present else { return };
        let mut repair = Repair::default();
        repair.begin(&mut self.desk, &present.federation);
        present.repair = Some(repair);
    }

    /// The operator has approved a plan; it takes the place of one with a lower number, unless this node is bound to
    /// that: it may have said that it has stored its share, and then the others can complete the key at any moment.
    /// Taking part in another plan as well could leave two keys complete and neither with a quorum of seals.
    pub fn handle_plan(&mut self, planned: Planned) {
        let Some(present) = &mut self.present else { return };
        let stays = |way: &Way| way.planned.bound || way.planned.plan.attempt >= planned.plan.attempt;
        if self.way.as_ref().is_some_and(stays) {
            return;
        }
        self.desk.forget(|purpose| !matches!(purpose, Purpose::Piece(..)));
        let way = Way::begin(&mut self.desk, &present.federation, planned);
        self.way = Some(way);
        self.advance();
    }

    /// The number of the plan that is carried out; 0 if there is none.
    pub fn attempt(&self) -> u32 {
        self.way.as_ref().map_or(0, |way| way.planned.plan.attempt)
    }

    /// What keeps this node from going on, in words for its operator.
    pub fn problem(&self) -> Option<&str> {
        self.desk.problem.as_deref()
    }

    /// How far the next epoch is.
    pub fn progress(&self) -> Option<Progress> {
        let way = self.way.as_ref()?;
        Some(Progress {
            epoch: way.planned.plan.epoch,
            attempt: way.planned.plan.attempt,
            approved_by: way.news.approvals().keys().copied().collect(),
            step: self.desk.step,
            problem: self.desk.problem.clone(),
        })
    }

    /// A peer asks about a key that is being made.
    pub fn handle_keygen(&mut self, peer: Peer, reply_to: u64, request: KeygenRequest) {
        let answer = match self.generation(request.run()) {
            Some((desk, generation)) => generation.answer(desk, peer, request),
            None => Err(not_ready("this node does not take part in that yet; try again")),
        };
        self.desk.reply(reply_to, answer);
    }

    fn generation(&mut self, run: RunId) -> Option<(&mut Desk, &mut KeyGeneration)> {
        let founding = self.founding.as_mut().map(|(generation, _)| generation);
        let refresh = self.way.as_mut().and_then(|way| way.refresh.as_mut());
        let found = founding.into_iter().chain(refresh).find(|generation| generation.run() == run);
        found.map(|generation| (&mut self.desk, generation))
    }

    /// A peer asks about the epoch that follows.
    pub fn handle_succession(&mut self, reply_to: u64, request: SuccessionRequest) {
        let Some(present) = &self.present else {
            return self.desk.reply(reply_to, not_ready("the federation key is being generated"));
        };
        let news = self.way.as_ref().map(|way| &way.news);
        match request {
            SuccessionRequest::SuccessionPull { epoch } => {
                self.desk.reply(reply_to, present.news_after(epoch, news));
            }
            SuccessionRequest::SealRequest { succession, of, skip }
                if succession.plan.epoch > present.federation.epoch() =>
            {
                if present.is_member(&self.desk) {
                    let forward = TransitionOutput::Forward { to: reply_to, succession, of, skip };
                    self.desk.outputs.push_back(forward);
                } else {
                    self.desk.reply(reply_to, not_ready("this node is not a member yet"));
                }
            }
            SuccessionRequest::SealRequest { succession, of, skip } => {
                let same = succession.plan.epoch == present.federation.epoch();
                let past = present.past.iter().find(|past| same && past.seal.node == of);
                let page = past.map(|past| past.page(skip));
                self.desk.reply(reply_to, page.ok_or_else(|| not_ready("this node does not have that seal")));
            }
        }
    }

    /// A peer asks for help with a lost share.
    pub fn handle_repair(&mut self, peer: Peer, reply_to: u64, request: RepairRequest) {
        match &mut self.present {
            Some(Present { federation, share: Some(share), helping, .. }) => {
                helping.handle_request(&mut self.desk, (federation, share), peer, reply_to, request);
            }
            Some(_) => self.desk.reply(reply_to, not_ready("this node has no share yet")),
            None => self.desk.reply(reply_to, not_ready("the federation key is being generated")),
        }
    }

    /// The answer to a question, or that none came.
    pub fn handle_answer(&mut self, ask: u64, reply: Option<PeerReply>) {
        let Some(purpose) = self.desk.answered(ask) else { return };
        match purpose {
            Purpose::Pull(_) | Purpose::TrialCommit(_) | Purpose::TrialSign(_) => {
                self.key_answer(purpose, reply);
            }
            Purpose::News => {
                if let (Some(present), Some(way)) = (&self.present, &mut self.way) {
                    way.news.handle_answer(&self.desk, &present.federation, &way.planned.plan, reply);
                }
            }
            Purpose::Piece(sum, from) => {
                if let Some(present) = &mut self.present {
                    present.helping.handle_piece(&mut self.desk, sum, from, reply);
                }
            }
            Purpose::RepairOpen(_) | Purpose::RepairSum(_) => self.repair_answer(purpose, reply),
            Purpose::Seal(of) => {
                if let (Some(present), Some(Way { stage: Stage::Sealing(seals), .. })) =
                    (&self.present, &mut self.way)
                {
                    seals.handle_answer(&mut self.desk, &present.federation, of, reply);
                }
            }
        }
        self.advance();
    }

    fn key_answer(&mut self, purpose: Purpose, reply: Option<PeerReply>) {
        let reply = match reply {
            Some(PeerReply::Keygen(reply)) => Some(reply),
            other => {
                self.desk.last_refusal = reason(other);
                None
            }
        };
        if let Some(way) = &mut self.way {
            let Some(refresh) = &mut way.refresh else { return };
            if let Err(error) = refresh.handle_answer(&mut self.desk, purpose, reply) {
                way.fail(&mut self.desk, error.to_string());
            }
        } else if let Some((generation, founding)) = &mut self.founding
            && let Err(error) = generation.handle_answer(&mut self.desk, purpose, reply)
        {
            self.desk.forget(|_| true);
            self.desk.report(format!("the federation key cannot be made: {error}"));
            founding.retry_at = Some(self.desk.now + RETRY);
        }
    }

    fn repair_answer(&mut self, purpose: Purpose, reply: Option<PeerReply>) {
        let Some(present) = &mut self.present else { return };
        let repair = match &mut self.way {
            Some(Way { stage: Stage::Repairing(repair), .. }) => Some(repair),
            Some(_) | None => present.repair.as_mut(),
        };
        if let Some(repair) = repair {
            repair.handle_answer(&mut self.desk, &present.federation, purpose, reply);
        }
    }

    /// What had to be saved is on disk.
    pub fn handle_saved(&mut self, saved: Saved) {
        match (&mut self.present, &mut self.way) {
            (Some(present), Some(way)) => way.handle_saved(&mut self.desk, &present.federation, saved),
            (_, _) => {
                if let Some((generation, _)) = &mut self.founding {
                    generation.handle_saved(&self.desk);
                }
            }
        }
        self.advance();
    }

    /// What had to be saved or opened could not be.
    pub fn handle_failure(&mut self, problem: String) {
        if let Some(way) = &mut self.way {
            way.fail(&mut self.desk, problem);
        } else if let Some((_, founding)) = &mut self.founding {
            self.desk.report(problem);
            founding.retry_at = Some(self.desk.now + RETRY);
        }
    }

    /// Does what is due; calling early or twice is harmless.
    pub fn handle_timeout(&mut self) {
        let now = self.desk.now;
        let retried = self.founding.take_if(|(_, founding)| founding.retry_at.is_some_and(|at| at <= now));
        if let Some((_, Founding { ceremony, seed: Some(seed), .. })) = retried
            && let Err(error) = self.begin_founding(ceremony, seed)
        {
            self.desk.report(error.to_string());
        }
        if self.present.is_none()
            && let Some((generation, founding)) = &mut self.founding
            && founding.retry_at.is_none()
        {
            generation.handle_timeout(&mut self.desk);
        }
        if let Some(present) = &mut self.present {
            if let Some(repair) = &mut present.repair {
                repair.handle_timeout(&mut self.desk, &present.federation);
            }
            if let Some(way) = &mut self.way {
                way.handle_timeout(&mut self.desk, &present.federation);
            }
        }
        self.advance();
    }

    /// When something is due next.
    pub fn poll_timeout(&self) -> Option<Duration> {
        let founding = self.founding.as_ref().filter(|_| self.present.is_none());
        let founding =
            founding.and_then(|(generation, founding)| founding.retry_at.or(generation.poll_timeout()));
        let repair = self.present.as_ref().and_then(|present| present.repair.as_ref()?.poll_timeout());
        let way = self.way.as_ref().and_then(Way::poll_timeout);
        founding.into_iter().chain(repair).chain(way).min()
    }

    /// What the driver has to do next, in order.
    pub fn poll_output(&mut self) -> Option<TransitionOutput> {
        self.desk.outputs.pop_front()
    }

    /// Goes on as far as what is known allows.
    fn advance(&mut self) {
        if let Some((generation, founding)) = &mut self.founding
            && let Some(key) = generation.made()
            && founding.seed.take().is_some()
        {
            self.desk.outputs.push_back(TransitionOutput::Founded(Box::new(key.clone())));
        }
        let Some(present) = &mut self.present else { return };
        if let Some(share) = present.repair.as_mut().and_then(Repair::take_share) {
            present.repair = None;
            self.desk.outputs.push_back(TransitionOutput::Repaired(share));
        }
        if present.repair.take_if(|repair| repair.is_stuck()).is_some() {
            let problem = self.desk.problem.take().unwrap_or_default();
            self.desk.outputs.push_back(TransitionOutput::NotRepaired(problem));
        }
        if let Some(way) = &mut self.way {
            way.advance(&mut self.desk, present);
        }
    }
}

impl Present {
    fn is_member(&self, desk: &Desk) -> bool {
        self.federation.identity_key(desk.me) == Some(&desk.key.public())
    }

    /// What is known of the epoch that follows on `epoch`.
    fn news_after(&self, epoch: Epoch, news: Option<&News>) -> SuccessionReply {
        if epoch == self.federation.epoch()
            && let Some(news) = news
        {
            return news.answer();
        }
        let mut past = self.federation.document().successions.iter();
        let succession = past.find(|succession| succession.plan.epoch == epoch.next()).cloned().map(Box::new);
        SuccessionReply::SuccessionNews { plan: [0; 32], approvals: BTreeMap::new(), succession }
    }
}

impl Way {
    fn begin(desk: &mut Desk, federation: &Federation, planned: Planned) -> Self {
        let plan = &planned.plan;
        tracing::info!(epoch = plan.epoch.0, attempt = plan.attempt, "a plan for the next epoch");
        let own = desk.key.public();
        let named = plan.members.iter().any(|member| member.id == desk.me && member.identity_key == own);
        let news = News::begin(desk, federation, plan, named);
        let stage = if named {
            desk.step("collecting approvals");
            desk.outputs.push_back(TransitionOutput::Plan(Box::new(plan.clone())));
            Stage::Approving
        } else {
            let problem = "this node is not a member in the plan that its operator approved";
            desk.report(problem.to_owned());
            Stage::Failed { retry_at: desk.now + RETRY }
        };
        Self { planned, news, refresh: None, stage }
    }

    fn fail(&mut self, desk: &mut Desk, problem: String) {
        desk.forget(|purpose| !matches!(purpose, Purpose::Piece(..)));
        desk.report(problem);
        self.stage = Stage::Failed { retry_at: desk.now + RETRY };
    }

    fn poll_timeout(&self) -> Option<Duration> {
        match &self.stage {
            Stage::Failed { retry_at } => return Some(*retry_at),
            Stage::Sealing(seals) => return Some(seals.poll_timeout()),
            Stage::Saving(_) | Stage::Opening => return None,
            Stage::Approving | Stage::Repairing(_) | Stage::Refreshing => {}
        }
        let stage = match &self.stage {
            Stage::Repairing(repair) => repair.poll_timeout(),
            Stage::Refreshing => self.refresh.as_ref().and_then(KeyGeneration::poll_timeout),
            Stage::Approving
            | Stage::Saving(_)
            | Stage::Sealing(_)
            | Stage::Opening
            | Stage::Failed { .. } => None,
        };
        self.news.poll_timeout().into_iter().chain(stage).min()
    }

    fn handle_timeout(&mut self, desk: &mut Desk, federation: &Federation) {
        match &mut self.stage {
            Stage::Failed { retry_at } if *retry_at <= desk.now => {
                *self = Self::begin(desk, federation, self.planned.clone());
            }
            Stage::Repairing(repair) => repair.handle_timeout(desk, federation),
            Stage::Refreshing => {
                if let Some(refresh) = &mut self.refresh {
                    refresh.handle_timeout(desk);
                }
            }
            Stage::Sealing(seals) => seals.handle_timeout(desk, federation),
            Stage::Approving | Stage::Saving(_) | Stage::Opening | Stage::Failed { .. } => {}
        }
        if matches!(self.stage, Stage::Approving | Stage::Repairing(_) | Stage::Refreshing) {
            self.news.handle_timeout(desk, federation, &self.planned.plan);
        }
    }

    fn handle_saved(&mut self, desk: &mut Desk, federation: &Federation, saved: Saved) {
        match (&self.stage, saved) {
            (_, Saved::Share) => {
                self.planned.bound = true;
                if let Some(refresh) = &mut self.refresh {
                    refresh.handle_saved(desk);
                }
            }
            (Stage::Saving(succession), Saved::Succession) => {
                let succession = (**succession).clone();
                self.planned.succession = Some(succession.clone());
                self.news.finish(desk, succession.clone());
                desk.step("collecting the seals of the epoch that ends");
                self.stage = Stage::Sealing(Seals::begin(desk, federation, succession));
            }
            (
                Stage::Approving
                | Stage::Repairing(_)
                | Stage::Refreshing
                | Stage::Sealing(_)
                | Stage::Opening
                | Stage::Failed { .. },
                Saved::Succession,
            ) => {}
        }
    }

    fn advance(&mut self, desk: &mut Desk, present: &mut Present) {
        let known = self.planned.succession.clone().or_else(|| self.news.succession().cloned());
        match &mut self.stage {
            Stage::Approving | Stage::Repairing(_) | Stage::Refreshing if known.is_some() => {
                if let Some(succession) = known {
                    self.save(desk, succession);
                }
            }
            Stage::Approving => {
                if self.news.approvals().len() >= usize::from(present.federation.quorum().votes()) {
                    present.helping.authorise(&self.planned.plan.members);
                    self.approved(desk, present);
                }
            }
            Stage::Repairing(repair) => {
                if let Some(share) = repair.take_share() {
                    self.refresh(desk, &present.federation, share);
                }
            }
            Stage::Refreshing => {
                if let Some(key) = self.refresh.as_ref().and_then(KeyGeneration::made) {
                    let (plan, approvals) = (self.planned.plan.clone(), self.news.approvals().clone());
                    let succession = Succession { plan, approvals, key: key.clone() };
                    self.save(desk, succession);
                }
            }
            Stage::Sealing(seals) => {
                let digest = seals.digest();
                if let Some((handover, seals)) = seals.take() {
                    self.open(desk, &present.federation, digest, (handover, seals));
                }
            }
            Stage::Saving(_) | Stage::Opening | Stage::Failed { .. } => {}
        }
    }

    /// A quorum has approved the plan. A node without a share, and a newcomer, have it repaired first.
    fn approved(&mut self, desk: &mut Desk, present: &Present) {
        match present.share.as_ref().map(NodeShare::duplicate) {
            Some(share) => self.refresh(desk, &present.federation, share),
            None => {
                desk.step("having this node's share repaired");
                let mut repair = Repair::default();
                repair.begin(desk, &present.federation);
                self.stage = Stage::Repairing(repair);
            }
        }
    }

    fn refresh(&mut self, desk: &mut Desk, federation: &Federation, share: NodeShare) {
        desk.step("refreshing all shares");
        let seed = &self.planned.seed;
        let ceremony = Ceremony::refresh(federation, &self.planned.plan).map_err(|error| error.to_string());
        let made = ceremony.and_then(|ceremony| {
            KeyGeneration::new(desk, ceremony, Side::Next, seed, Some(share))
                .map_err(|error| error.to_string())
        });
        match made {
            Ok(generation) => {
                self.refresh = Some(generation);
                self.stage = Stage::Refreshing;
            }
            Err(problem) => self.fail(desk, problem),
        }
    }

    fn save(&mut self, desk: &mut Desk, succession: Succession) {
        desk.forget(|purpose| !matches!(purpose, Purpose::Piece(..)));
        desk.save(Save::Succession(Box::new(succession.clone())));
        self.stage = Stage::Saving(Box::new(succession));
    }

    fn open(
        &mut self,
        desk: &mut Desk,
        federation: &Federation,
        succession: [u8; 32],
        (handover, seals): (quorate_protocol::seal::Handover, Vec<WholeSeal>),
    ) {
        desk.step("opening");
        let Some(finished) = self.planned.succession.clone() else { return };
        match federation.clone().succeed(finished) {
            Ok(federation) => {
                let opening = Opening { federation, handover, succession, seals };
                desk.outputs.push_back(TransitionOutput::Open(Box::new(opening)));
                self.stage = Stage::Opening;
            }
            Err(error) => self.fail(desk, error.to_string()),
        }
    }
}
