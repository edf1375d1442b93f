//! The operator's commands for keys and epochs: a new node's files, plans, approvals, repair. Each says what it would
//! do with `--dry-run`.
//!
//! They work on the node's directory, because anybody who may write there is its operator; a running node looks for
//! an approved plan by itself.

#![expect(clippy::print_stdout, reason = "the commands' output")]

use crate::{
    config::NodeConfig,
    disk::read_json,
    epoch::driver::{Begun, Epochs},
    files::{NodeFiles, PlanFile},
    net::{
        membership::Membership,
        peers::{Call, Peers},
    },
    provision::MemberFile,
    store::{index_place, rebuild_index as rebuild_index_at},
};
use anyhow::{Context as _, Result, bail, ensure};
use quorate_protocol::{
    Federation, NodeId,
    federation::{Member, SuccessionPlan},
    frost::NodeShare,
    listed,
    wire::{SuccessionReply, SuccessionRequest},
};
use std::{
    collections::BTreeMap,
    net::{Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::sync::mpsc;

/// Longest time for a repair. Which helper sends a false part cannot be seen, so several sets may have to be tried.
const REPAIR_TIMEOUT: Duration = Duration::from_secs(60);

/// A node's files with what every command needs of them.
struct Operator {
    files: NodeFiles,
    config: NodeConfig,
    federation: Federation,
}

impl Operator {
    fn open(directory: &Path) -> Result<Self> {
        let files = NodeFiles::new(directory);
        let config = NodeConfig::read(&directory.join("node.toml"))?;
        let federation =
            files.federation()?.context("this node has no federation document yet; run it first")?;
        Ok(Self { files, config, federation })
    }

    /// Has this node's share computed anew by the others.
    async fn repair(&self, peers: Peers) -> Result<NodeShare> {
        let me = self.config.id;
        let membership = Arc::new(Membership::new(self.federation.members().to_vec()));
        // Nobody asks this program anything.
        let (_, questions) = mpsc::channel(1);
        let endpoint = peers.endpoint().clone();
        let mut epochs = Epochs::new(me, self.files.clone(), endpoint, membership, questions)?;
        epochs.open(Begun {
            federation: self.federation.clone(),
            share: None,
            past: Vec::new(),
            peers: Arc::new(peers),
            addresses: BTreeMap::new(),
            voter: None,
        });
        epochs.repair(REPAIR_TIMEOUT).await
    }

    /// The other members of the epoch in force, called with this node's certificate.
    fn peers(&self, members: &[Member], more: &BTreeMap<NodeId, SocketAddr>) -> Result<Peers> {
        let identity = self.files.tls()?;
        let local = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
        let mut endpoint = quinn::Endpoint::client(local)
            .or_else(|_| quinn::Endpoint::client(SocketAddr::from(([0, 0, 0, 0], 0))))?;
        endpoint.set_default_client_config(identity.client_config()?);
        let mut addresses = self.files.addresses(&self.config, self.federation.document())?;
        addresses.extend(more);
        Ok(Peers::new(endpoint, self.config.id, members, &addresses))
    }
}

/// `epoch plan`: prints a plan for the next epoch, with the given nodes in the place of those with the same number.
pub(crate) fn plan(directory: &Path, replace: &[PathBuf]) -> Result<()> {
    let node = Operator::open(directory)?;
    let mut members = node.federation.members().to_vec();
    let mut addresses = BTreeMap::new();
    for path in replace {
        let MemberFile { member, address } = read_json(path)?;
        let place = members.iter_mut().find(|place| place.id == member.id);
        let place = place.with_context(|| format!("{}: there is no node {}", path.display(), member.id))?;
        addresses.insert(member.id, address);
        *place = member;
    }
    let epoch = node.federation.epoch().next();
    let attempt = node.files.last_attempt(epoch)? + 1;
    let plan = SuccessionPlan { epoch, attempt, members };
    plan.check(&node.federation)?;
    println!("{}", serde_json::to_string_pretty(&PlanFile { plan, addresses })?);
    Ok(())
}

/// `epoch approve`: checks a plan and makes it this node's.
pub(crate) async fn approve(directory: &Path, path: &Path, dry_run: bool) -> Result<()> {
    let node = Operator::open(directory)?;
    let file: PlanFile = read_json(path)?;
    file.plan.check(&node.federation)?;
    let newcomers: Vec<NodeId> = file.plan.newcomers(&node.federation).collect();
    for newcomer in &newcomers {
        ensure!(file.addresses.contains_key(newcomer), "the plan does not say where node {newcomer} listens");
    }
    let key = node.files.identity()?.public();
    let me = file.plan.members.iter().find(|member| member.id == node.config.id);
    ensure!(
        me.is_some_and(|member| member.identity_key == key),
        "this node is not a member in the plan; it needs no approval of its own"
    );
    let approved = node.files.approved_plan(&node.federation)?;
    if let Some(known) = &approved {
        ensure!(
            *known == file || !node.files.is_bound(&known.plan),
            "this node has finished its part of plan {} for epoch {}; if that can never be completed, because a member of it is \
             destroyed, withdraw it first on all nodes: `quorate-node epoch withdraw`",
            known.plan.attempt,
            known.plan.epoch.0
        );
    }
    let last = node.files.last_attempt(file.plan.epoch)?;
    ensure!(
        approved.as_ref() == Some(&file) || last < file.plan.attempt,
        "plan {last} for epoch {} was approved here; another one needs a higher number",
        file.plan.epoch.0
    );
    describe(&node, &file, &newcomers);
    if dry_run {
        probe(&node, &file).await?;
        println!("nothing has been changed; without --dry-run this node approves the plan");
        return Ok(());
    }
    node.files.planned(&file.plan).write_json("plan.json", &file)?;
    println!("approved; the running node takes it up by itself, `quorate-node status` shows how far it is");
    Ok(())
}

/// `epoch withdraw`: takes back this node's part in a plan that can never be completed.
pub(crate) fn withdraw(directory: &Path, dry_run: bool) -> Result<()> {
    let node = Operator::open(directory)?;
    let known = node.files.approved_plan(&node.federation)?.context("no plan is approved here")?;
    ensure!(
        !node.files.is_complete(&known.plan),
        "the key of plan {} is complete; epoch {} begins with it",
        known.plan.attempt,
        known.plan.epoch.0
    );
    println!(
        "plan {} for epoch {}: withdraw it only if one of its members is destroyed and can never finish its part, and do so on all nodes",
        known.plan.attempt, known.plan.epoch.0
    );
    if dry_run {
        println!("nothing has been changed; without --dry-run this node gives up its share of that epoch");
        return Ok(());
    }
    let _held = node.files.lock()?;
    node.files.withdraw(&known.plan)?;
    println!("withdrawn; start the node again, then approve a plan with a higher number");
    Ok(())
}

fn describe(node: &Operator, file: &PlanFile, newcomers: &[NodeId]) {
    let quorum = node.federation.quorum();
    println!(
        "epoch {} (plan {}) follows on epoch {}: the same federation key, new shares for all {} nodes",
        file.plan.epoch.0,
        file.plan.attempt,
        node.federation.epoch().0,
        quorum.nodes()
    );
    if newcomers.is_empty() {
        println!("no node is replaced");
    }
    for id in newcomers {
        let key = file.plan.members.iter().find(|member| member.id == *id).map(|member| member.identity_key);
        let key = key.map(|key| key.to_string()).unwrap_or_default();
        println!(
            "node {id} is replaced by the one with key {key}; the other nodes will not talk to the old one any more"
        );
    }
    println!(
        "all members have to approve it and be running; the approvals of {} make it valid",
        quorum.votes()
    );
}

/// Who answers, and who has approved.
async fn probe(node: &Operator, file: &PlanFile) -> Result<()> {
    let peers = node.peers(&file.plan.members, &file.addresses)?;
    let digest = file.plan.digest(&node.federation);
    let mut ids: Vec<NodeId> = peers.ids().collect();
    ids.sort_unstable();
    let mut silent = Vec::new();
    for id in ids {
        let request = SuccessionRequest::SuccessionPull { epoch: node.federation.epoch() };
        match peers.ask(id, &Call::new(&request)).await {
            Ok(SuccessionReply::SuccessionNews { plan, .. }) if plan == digest => {
                println!("node {id}: running, has approved")
            }
            Ok(_) => println!("node {id}: running, has not approved this plan"),
            Err(error) => {
                println!("node {id}: does not answer ({error:#})");
                silent.push(id);
            }
        }
    }
    if !silent.is_empty() {
        let silent = listed(silent);
        println!(
            "the next epoch cannot begin without nodes {silent}: start them, or replace them in the plan"
        );
    }
    Ok(())
}

/// `share repair`: has this node's lost or damaged share computed anew by q of the others.
pub(crate) async fn repair(directory: &Path, dry_run: bool) -> Result<()> {
    let node = Operator::open(directory)?;
    let me = node.config.id;
    ensure!(
        node.federation.identity_key(me) == Some(&node.files.identity()?.public()),
        "this node is not a member of epoch {}: an approved plan gives it a share",
        node.federation.epoch().0
    );
    let epoch = node.files.epoch(node.federation.document());
    let Err(missing) = epoch.read_share(me, &node.federation) else {
        println!("nothing to repair: this node's share opens and is the one that the document shows");
        return Ok(());
    };
    println!("the share has to be repaired: {missing:#}");
    let peers = node.peers(node.federation.members(), &BTreeMap::new())?;
    if dry_run {
        let mut answering = Vec::new();
        for id in peers.ids() {
            let request = SuccessionRequest::SuccessionPull { epoch: node.federation.epoch() };
            if peers.ask(id, &Call::new(&request)).await.is_ok() {
                answering.push(id);
            }
        }
        answering.sort_unstable();
        let needed = node.federation.quorum().votes();
        println!(
            "{needed} nodes have to answer. These do: {}. Nothing has been changed",
            listed(answering.iter().copied())
        );
        ensure!(answering.len() >= usize::from(needed), "too few nodes answer");
        return Ok(());
    }
    let _held = node.files.lock()?;
    let share = node.repair(peers).await?;
    let path = epoch.path("share.sealed");
    if path.exists() {
        let aside = path.with_extension("damaged");
        std::fs::rename(&path, &aside)?;
        println!("what was in its place is kept as {}", aside.display());
    }
    epoch.write_share(&share)?;
    if epoch.read_share(me, &node.federation).is_err() {
        bail!("the repaired share cannot be read back from {}", path.display());
    }
    println!("repaired; start the node");
    Ok(())
}

/// `index rebuild`.
///
/// # Errors
/// The node runs, or its disk cannot be read or written.
pub(crate) fn rebuild_index(directory: &Path) -> Result<()> {
    let files = NodeFiles::new(directory);
    let birthday = files.roster()?.birthday;
    let _held = files.lock()?;
    rebuild_index_at(&index_place(directory), birthday)
        .context("the index cannot be made anew; stop the node if it runs, and try again")?;
    println!("The node reads the chain again from block {} at its next start.", birthday.height);
    Ok(())
}
