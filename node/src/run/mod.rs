//! One node from start to end: the first key generation, and then epoch after epoch.

pub(crate) mod checking;
mod dispatcher;
pub(crate) mod driver;
pub(crate) mod input;
pub(crate) mod live;
pub(crate) mod queue;
pub(crate) mod turns;

use crate::{
    chain::Chain,
    config::NodeConfig,
    epoch::driver::{Begun, Epochs},
    files::NodeFiles,
    net::{
        membership::Membership,
        peers::{Peers, endpoint},
        rotation::{Rotation, read_list},
        server::{self, Service},
    },
    operator::api,
    store::{Index, index_place, open_or_set_aside},
};
use anyhow::{Context as _, Result};
use bitcoin::Network;
use input::Input;
use live::Live;
use queue::Inputs;
use quorate_protocol::{Federation, FederationDocument, federation::Roster, frost::NodeShare};
use quorate_rules::{Machine, WholeSeal};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng as _};
use std::{path::Path, sync::Arc, time::Duration};
use tokio::sync::{mpsc, watch};

/// Questions of peers about epochs that may wait.
const QUESTIONS_MAX: usize = 256;
/// Wait before the operator's API is served again.
const API_RETRY: Duration = Duration::from_secs(1);

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
        let files = NodeFiles::new(directory);
        let roster = files.roster()?;
        roster.check()?;
        let lock = files.lock()?;
        files.vault().finish_lock(&files.sealed(config.id)?)?;
        if roster.network != Network::Regtest && files.vault().source()?.is_none() {
            tracing::warn!(
                "this node's share lies beside the key that opens it: move the key away with `quorate-node share lock`"
            );
        }
        let rotation = Rotation::new(&files, config.id);
        let identity = files.tls()?;
        let federation = files.federation()?;
        let members = federation.as_ref().map_or(roster.members.as_slice(), Federation::members);
        let membership = Arc::new(Membership::new(members.to_vec()));
        read_list(&files, &membership)?;
        let (endpoint, verifier) = endpoint(&identity, config.listen, membership.clone())
            .with_context(|| format!("cannot listen on {}", config.listen))?;
        let (ask, questions) = mpsc::channel(QUESTIONS_MAX);
        let epochs = Epochs::new(config.id, files.clone(), endpoint.clone(), membership.clone(), questions)?;
        let service = Arc::new(Service::new(membership.clone(), verifier, ask));
        let (publish, document) = watch::channel(None);
        let (end, ended) = watch::channel(false);
        let rotating = tokio::spawn(rotation.run(identity, membership));
        tokio::spawn(server::accept(endpoint.clone(), service.clone()));
        let (live, live_state) = watch::channel(None);
        let api_address = config.api_address();
        let backends = chain.clone();
        let serving = tokio::spawn(async move {
            // Another program may hold the port for a moment.
            let mut said = false;
            while let Err(error) = api::serve(api_address, live_state.clone(), backends.clone()).await {
                if !said {
                    tracing::warn!(address = %api_address, error = format!("{error:#}"), "the operator's API is not served yet; set `api` in node.toml if this port is taken");
                }
                said = true;
                tokio::time::sleep(API_RETRY).await;
            }
        });
        let birthday = roster.birthday;
        let index = Index::open(&index_place(directory), birthday)?;
        let run = Run { files, config, chain, index, endpoint: endpoint.clone(), service, live, publish };
        tokio::spawn(async move {
            if let Err(error) = Box::pin(run.run(roster, federation, epochs)).await {
                tracing::error!(error = format!("{error:#}"), "the node has ended");
            }
            serving.abort();
            rotating.abort();
            drop(lock);
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

struct Run {
    files: NodeFiles,
    config: NodeConfig,
    chain: Arc<dyn Chain>,
    index: Index,
    endpoint: quinn::Endpoint,
    service: Arc<Service>,
    live: watch::Sender<Option<Live>>,
    publish: watch::Sender<Option<FederationDocument>>,
}

impl Run {
    async fn run(&self, roster: Roster, federation: Option<Federation>, mut epochs: Epochs) -> Result<()> {
        let mut federation = match federation {
            Some(federation) => federation,
            None => self.generate(roster, &mut epochs).await?,
        };
        loop {
            federation = self.epoch(federation, &mut epochs).await?;
        }
    }

    /// The first start of a federation.
    async fn generate(&self, roster: Roster, epochs: &mut Epochs) -> Result<Federation> {
        let addresses = self.config.peers.iter().map(|peer| (peer.id, peer.address)).collect();
        let peers = Peers::new(self.endpoint.clone(), self.config.id, &roster.members, &addresses);
        let key = epochs.found(&roster, Arc::new(peers)).await?;
        let id = roster.id();
        let document = FederationDocument { roster, key, successions: Vec::new() };
        let federation = document.verify(id).context("the federation document does not verify")?;
        self.files.write_federation(federation.document())?;
        Ok(federation)
    }

    /// Runs one epoch and gives the federation in the next.
    async fn epoch(&self, federation: Federation, epochs: &mut Epochs) -> Result<Federation> {
        self.files.erase_past(federation.document())?;
        let me = self.config.id;
        let files = self.files.epoch(federation.document());
        let addresses = self.files.addresses(&self.config, federation.document())?;
        let peers = Arc::new(Peers::new(self.endpoint.clone(), me, federation.members(), &addresses));
        let is_member = federation.identity_key(me) == Some(&self.files.identity()?.public());
        let (voter, share) = if is_member {
            let (voter, share) = self.start_machine(&federation, &peers).await?;
            (Some(voter), Some(share))
        } else {
            anyhow::ensure!(
                !files.store().exists(),
                "this node is not a member of epoch {} any more: another one has taken its place",
                federation.epoch().0
            );
            tracing::info!("this node is not a member yet; it waits for the plan that makes it one");
            (None, None)
        };
        // Absent in the first epoch, and at a newcomer.
        let past = files.read_json::<Vec<WholeSeal>>("seals.json").unwrap_or_default();
        let live = Live {
            federation: Arc::new(federation.clone()),
            inputs: voter.clone(),
            progress: epochs.progress(),
        };
        epochs.open(Begun {
            federation: federation.clone(),
            share,
            past,
            peers,
            addresses,
            voter: voter.clone(),
        });
        self.service.go_live(live.clone());
        self.live.send_replace(Some(live));
        if is_member {
            self.publish.send_replace(Some(federation.document().clone()));
        }
        let next = tokio::select! {
            next = epochs.next_epoch() => next?,
            // The machine's task takes from the queue; when it ends, the node has stopped.
            () = closed(voter.as_ref()) => {
                anyhow::bail!("the node has stopped because its store cannot be written")
            }
        };
        if let Some(voter) = voter {
            // It may have ended by itself.
            let _ended = voter.send(Input::Stop).await;
            voter.closed().await;
        }
        Ok(next)
    }

    async fn start_machine(
        &self,
        federation: &Federation,
        peers: &Arc<Peers>,
    ) -> Result<(Inputs, NodeShare)> {
        let (files, me) = (self.files.epoch(federation.document()), self.config.id);
        let repair = "have it repaired with `quorate-node share repair`";
        let share = files.read_share(me, federation).context(repair)?;
        let helping = files.read_share(me, federation)?;
        let (store, mut stored) = open_or_set_aside(&*files.store())?;
        stored.index = self.index.load().await?;
        let mut seed = [0; 32];
        getrandom::getrandom(&mut seed).context("no source of randomness")?;
        let machine = Machine::new(
            me,
            federation.clone(),
            self.files.identity()?,
            share,
            self.config.settings(federation.network())?,
            ChaCha20Rng::from_seed(seed),
            stored,
        );
        let (chain, index) = (self.chain.clone(), self.index.clone());
        Ok((driver::start(me, machine, store, peers.clone(), chain, index), helping))
    }
}

async fn closed(inputs: Option<&Inputs>) {
    match inputs {
        Some(inputs) => inputs.closed().await,
        None => std::future::pending().await,
    }
}
