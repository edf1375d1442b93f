//! How a node gets from one epoch to the next, as its operator's plan says: approvals, repair, refresh, seals, opening.
//!
//! The epoch that ends goes on voting until the new key is certified by all its members; only then is it sealed. Everything is pulled and
//! may be repeated, so a node that stops at any point goes on when it starts again.

use super::{
    ceremony::Setup,
    news::{Known, News, WholeSeal},
    repair::{self, RepairDesk},
};
use crate::{
    files::{NodeFiles, PlanFile},
    net::{membership::listed, peers::Peers, server::Service},
    run::input::Input,
    store::{Redb, Store as _},
};
use anyhow::{Context as _, Result, bail, ensure};
use bitcoin::secp256k1::schnorr;
use futures_util::{StreamExt as _, future::join_all, stream::FuturesUnordered};
use quorate_protocol::{
    Federation, NodeId,
    evidence::Evidence,
    federation::{Succession, SuccessionPlan},
    frost::dkg::Ceremony,
    seal::Handover,
    wire::{PeerReply, Refusal, SuccessionReply, SuccessionRequest},
};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::sync::{mpsc, oneshot};

/// Time until a plan is tried again after something failed.
const RETRY: Duration = Duration::from_secs(5);
/// Longest time for one page of a seal.
const SEAL_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time for a whole seal from another node than the one that it is of, which may not have it.
const SEAL_ELSEWHERE_TIMEOUT: Duration = Duration::from_secs(300);
/// Most transactions in one seal, for memory's sake: 11 final transactions a second over the 144 blocks that a seal covers. A node that says it
/// has more is not believed.
const SEALED_MAX: usize = 1_000_000;
/// Time between two looks at the directory of plans, and between two rounds of questions to all peers.
const POLL: Duration = Duration::from_millis(200);

/// One epoch of a running node.
pub(crate) struct Present<'a> {
    pub(crate) me: NodeId,
    pub(crate) files: &'a NodeFiles,
    pub(crate) endpoint: &'a quinn::Endpoint,
    pub(crate) service: &'a Service,
    pub(crate) federation: &'a Federation,
    pub(crate) peers: &'a Arc<Peers>,
    pub(crate) addresses: &'a BTreeMap<NodeId, SocketAddr>,
    /// The machine's; absent at a newcomer.
    pub(crate) inputs: Option<&'a mpsc::Sender<Input>>,
    pub(crate) news: &'a News,
    pub(crate) desk: Option<&'a RepairDesk>,
}

impl Present<'_> {
    /// Waits for a plan, carries it out, and gives the federation in the next epoch. What fails is tried again, or another plan takes
    /// its place.
    pub(crate) async fn next_epoch(&self) -> Result<Federation> {
        let mut file = self.plan_after(0).await?;
        loop {
            let attempt = file.plan.attempt;
            tracing::info!(epoch = file.plan.epoch.0, attempt, "a plan for the next epoch");
            let carried_out = tokio::select! {
                carried_out = self.carry_out(&file) => carried_out,
                newer = self.plan_after(attempt) => {
                    file = newer?;
                    continue;
                }
            };
            match carried_out {
                Ok(federation) => return Ok(federation),
                Err(error) => self.problem(&format!("{error:#}")),
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                newer = self.plan_after(attempt) => file = newer?,
            }
        }
    }

    /// Something keeps the next epoch from going on; the log says so once, the status as long as it lasts.
    fn problem(&self, problem: &str) {
        let before = self.news.known().problem.replace(problem.to_owned());
        if before.as_deref() != Some(problem) {
            tracing::warn!(problem, "the next epoch has to wait");
        }
    }

    async fn plan_after(&self, attempt: u32) -> Result<PlanFile> {
        let mut reported = String::new();
        loop {
            match self.files.approved_plan(self.federation) {
                Ok(Some(file)) if file.plan.attempt > attempt => return Ok(file),
                Ok(_) => {}
                Err(error) => {
                    let problem = format!("{error:#}");
                    if problem != reported {
                        tracing::error!(problem, "a plan for the next epoch cannot be read");
                        reported = problem;
                    }
                }
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn carry_out(&self, file: &PlanFile) -> Result<Federation> {
        let PlanFile { plan, addresses } = file;
        let planned = self.files.planned(plan);
        let key = self.files.identity()?;
        ensure!(
            plan.members.iter().any(|member| member.id == self.me && member.identity_key == key.public()),
            "this node is not a member in the plan that its operator approved"
        );
        let mut known =
            Known { plan: Some((plan.clone(), plan.digest(self.federation))), ..Known::default() };
        if self.federation.identity_key(self.me) == Some(&key.public()) {
            known.approvals.insert(self.me, plan.approve(self.federation, &key));
        }
        *self.news.known() = known;
        if let Some(inputs) = self.inputs {
            inputs.send(Input::Plan(Box::new(plan.clone()))).await?;
        }
        self.service.membership.prepare(plan.members.clone());
        let mut everywhere = self.addresses.clone();
        everywhere.extend(addresses);
        let next_peers = Peers::new(self.endpoint.clone(), self.me, &plan.members, &everywhere);

        self.news.step("collecting approvals");
        let votes = usize::from(self.federation.quorum().votes());
        while self.news.known().approvals.len() < votes && self.news.known().succession.is_none() {
            self.pull_news(plan, &next_peers).await;
        }
        if let Some(desk) = self.desk {
            desk.authorise(&plan.members);
        }
        let saved = planned.path("succession.json").exists();
        let succession = if saved {
            planned.read_json("succession.json")?
        } else {
            let made = self.make_key(plan, &next_peers).await?;
            planned.write_json("succession.json", &made)?;
            made
        };
        let next = self.federation.clone().succeed(succession.clone())?;
        planned
            .read_share(self.me, &next)
            .context("the new key is complete, but this node has lost its share of it: it has to be replaced in a later epoch")?;
        self.news.known().succession = Some(succession.clone());

        self.news.step("collecting the seals of the epoch that ends");
        let digest = succession.digest(self.federation);
        let (handover, seals) = self.collect_seals(&succession, digest).await;
        planned.write_json("seals.json", &seals)?;
        self.news.step("opening");
        let evidence = self.evidence().await;
        write_store(&planned.path("store.redb"), &handover, digest, &evidence)?;
        self.files.write_federation(next.document())?;
        tracing::info!(epoch = plan.epoch.0, "the epoch is open");
        Ok(next)
    }

    /// Refreshes the share with all members of the plan, unless the others have finished that already.
    async fn make_key(&self, plan: &SuccessionPlan, next_peers: &Peers) -> Result<Succession> {
        let present = self.files.epoch(self.federation.document());
        let share = match present.read_share(self.me, self.federation) {
            Ok(share) => share,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "this node has no share of the present epoch");
                self.news.step("having this node's share repaired");
                loop {
                    match repair::repair(self.me, self.federation, self.peers).await {
                        Ok(share) => break share,
                        Err(error) => {
                            self.problem(&format!("{error:#}"));
                            tokio::time::sleep(POLL).await;
                        }
                    }
                }
            }
        };
        self.news.step("refreshing all shares");
        let ceremony = Ceremony::refresh(self.federation, plan)?;
        let setup = Arc::new(Setup::new(ceremony, self.files, self.files.planned(plan), Some(share))?);
        self.service.add_setup(setup.clone());
        let report = |problem: String| self.problem(&problem);
        let found = async {
            loop {
                if let Some(succession) = self.news.known().succession.clone() {
                    return succession;
                }
                self.pull_news(plan, next_peers).await;
            }
        };
        tokio::select! {
            key = setup.run(next_peers, &report) => {
                let approvals = self.news.known().approvals.clone();
                Ok(Succession { plan: plan.clone(), approvals, key: key? })
            }
            succession = found => Ok(succession),
        }
    }

    /// Asks everybody what they know of the next epoch, and keeps what verifies and is of this plan.
    async fn pull_news(&self, plan: &SuccessionPlan, next_peers: &Peers) {
        let digest = plan.digest(self.federation);
        let request = SuccessionRequest::SuccessionPull { epoch: self.federation.epoch() };
        let everybody =
            [&**self.peers, next_peers].into_iter().flat_map(|peers| peers.ids().map(move |id| (peers, id)));
        let answers = join_all(everybody.map(|(peers, id)| peers.ask(id, &request))).await;
        for answer in answers {
            let Ok(SuccessionReply::SuccessionNews { plan: theirs, approvals, succession }) = answer else {
                continue;
            };
            let mut known = self.news.known();
            if theirs == digest {
                let valid = |(node, one): &(NodeId, schnorr::Signature)| {
                    plan.verify_approval(self.federation, *node, one)
                };
                known.approvals.extend(approvals.into_iter().filter(valid));
            }
            let finished = succession
                .filter(|one| one.plan == *plan && self.federation.clone().succeed((**one).clone()).is_ok());
            if let Some(finished) = finished {
                known.succession = Some(*finished);
                return;
            }
        }
        tokio::time::sleep(POLL).await;
    }

    /// Asks all members of the epoch that ends at once until q have sealed it. What one of them does not answer itself, another may have.
    async fn collect_seals(&self, succession: &Succession, digest: [u8; 32]) -> (Handover, Vec<WholeSeal>) {
        let mut seals: BTreeMap<NodeId, WholeSeal> = BTreeMap::new();
        let votes = usize::from(self.federation.quorum().votes());
        loop {
            let missing = self.federation.members().iter().map(|member| member.id);
            let missing: Vec<_> = missing.filter(|node| !seals.contains_key(node)).collect();
            // Each by itself, so that one that takes for ever keeps nobody from the others.
            let asked = missing.into_iter().map(|of| async move {
                loop {
                    if let Some(seal) = self.seal_anywhere(of, succession, digest).await {
                        return (of, seal);
                    }
                    tokio::time::sleep(POLL).await;
                }
            });
            let mut asked: FuturesUnordered<_> = asked.collect();
            loop {
                let found = tokio::time::timeout(RETRY, asked.next()).await;
                let Ok(Some((of, seal))) = found else {
                    if matches!(found, Ok(None)) {
                        break;
                    }
                    self.sealed_so_far(votes, &seals);
                    continue;
                };
                seals.insert(of, seal);
                if seals.len() < votes {
                    continue;
                }
                let together: Vec<_> =
                    seals.values().map(|one| (one.seal.clone(), one.transactions.clone())).collect();
                if let Ok(handover) = Handover::new(self.federation, digest, &together) {
                    return (handover, seals.into_values().collect());
                }
            }
            self.sealed_so_far(votes, &seals);
            tokio::time::sleep(POLL).await;
        }
    }

    fn sealed_so_far(&self, votes: usize, seals: &BTreeMap<NodeId, WholeSeal>) {
        let sealed = listed(seals.keys().copied());
        self.problem(&format!("{votes} nodes have to seal the epoch; sealed by: {sealed}"));
    }

    async fn seal_anywhere(
        &self,
        of: NodeId,
        succession: &Succession,
        digest: [u8; 32],
    ) -> Option<WholeSeal> {
        let others = self.peers.ids().filter(|other| *other != of);
        for at in std::iter::once(of).chain(others) {
            let asking = self.seal_of(of, at, succession);
            let answer = if at == of {
                asking.await
            } else {
                let answer = tokio::time::timeout(SEAL_ELSEWHERE_TIMEOUT, asking).await;
                answer.unwrap_or_else(|_| Err(anyhow::anyhow!("no whole seal in time")))
            };
            match answer {
                Ok(seal) if seal.holds(of, digest, self.federation) => return Some(seal),
                Ok(_) => tracing::warn!(%of, %at, "a seal that does not hold"),
                Err(error) => tracing::debug!(%of, %at, error = format!("{error:#}"), "no seal"),
            }
        }
        None
    }

    /// What this node has against others, to be kept over the change.
    async fn evidence(&self) -> Vec<Evidence> {
        let Some(inputs) = self.inputs else { return Vec::new() };
        let (reply, answer) = oneshot::channel();
        // A machine that has just ended has its evidence on the disk of its epoch.
        if inputs.send(Input::Evidence { reply }).await.is_err() {
            return Vec::new();
        }
        answer.await.map(|file| file.evidence).unwrap_or_default()
    }

    async fn own_seal(&self, succession: &Succession, skip: u32) -> Result<SuccessionReply> {
        let (reply, answer) = oneshot::channel();
        let inputs = self.inputs.context("this node is new")?;
        let succession = Box::new(succession.clone());
        inputs.send(Input::Seal { succession, of: self.me, skip, reply }).await?;
        match answer.await? {
            PeerReply::Succession(reply) => Ok(reply),
            PeerReply::Refused(Refusal::Error { error }) => Err(error.into()),
            PeerReply::Voting(_) | PeerReply::Keygen(_) | PeerReply::Repair(_) => bail!("not a seal"),
        }
    }

    async fn seal_of(&self, of: NodeId, at: NodeId, succession: &Succession) -> Result<WholeSeal> {
        let mut whole: Option<WholeSeal> = None;
        loop {
            let have = whole.as_ref().map_or(0, |whole| whole.transactions.len());
            let skip = u32::try_from(have).context("too many transactions")?;
            let request =
                SuccessionRequest::SealRequest { succession: Box::new(succession.clone()), of, skip };
            let page = async {
                if at == self.me {
                    return self.own_seal(succession, skip).await;
                }
                self.peers.ask(at, &request).await
            };
            let reply = tokio::time::timeout(SEAL_TIMEOUT, page).await.context("no answer in time")??;
            let SuccessionReply::Sealed { seal, transactions, more } = reply else {
                bail!("node {at} has no seal")
            };
            let whole =
                whole.get_or_insert_with(|| WholeSeal { seal: (*seal).clone(), transactions: Vec::new() });
            ensure!(*seal == whole.seal, "the seal has changed");
            ensure!(!more || !transactions.is_empty(), "an empty page");
            whole.transactions.extend(transactions);
            ensure!(whole.transactions.len() <= SEALED_MAX, "more than {SEALED_MAX} transactions");
            if !more {
                return Ok(whole.clone());
            }
        }
    }
}

/// Makes the store of an epoch with what it begins with. Whatever a crash in the middle left of one is made again: nothing has been done
/// in the epoch before its document is in force.
fn write_store(
    path: &std::path::Path,
    handover: &Handover,
    succession: [u8; 32],
    evidence: &[Evidence],
) -> Result<()> {
    if path.exists() {
        std::fs::remove_file(path)?;
    }
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let wall_ms = u64::try_from(wall.as_millis()).unwrap_or(u64::MAX);
    let mut store = Redb::open(path)?;
    Ok(store.write(&[&quorate_rules::opening(handover, succession, evidence, wall_ms)])?)
}
