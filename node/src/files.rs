//! The files of one node: keys, the federation's document, and a directory per epoch.
//!
//! | file | what |
//! | --- | --- |
//! | `roster.json`, `federation.json` | the first epoch's members; the document of the epoch in force |
//! | `identity.*`, `tls.*`, `ca.pem`, `seal.*` | this node's keys and certificates, and what seals them (`secrets`) |
//! | `node.lock` | held by the process that works here |
//! | `dkg.sealed` | randomness of the key generation; erased afterwards |
//! | `share.sealed`, `store.redb` | share and store of the first epoch |
//! | `epoch-N-A/` | the same of epoch N by its plan number A, with `plan.json`, `succession.json` and the `seals.json` that the epoch began with |

use crate::{
    config::{NodeAddress, NodeConfig},
    disk::{erase, key_of, read_json, write_durably},
    secrets::Vault,
    store::{RedbFile, StorePlace},
};
use anyhow::{Context as _, Result, bail, ensure};
use quorate_protocol::{
    Epoch, Federation, FederationDocument, NodeId,
    digest::IdentityKey,
    federation::{Roster, SuccessionPlan},
    frost::NodeShare,
};
use quorate_quic::TlsIdentity;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    fs,
    io::{Read as _, Write as _},
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};
use zeroize::Zeroizing;

/// A plan for the next epoch, with where its newcomers listen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PlanFile {
    /// What q nodes approve.
    pub plan: SuccessionPlan,
    /// UDP addresses of the nodes that are new.
    pub addresses: BTreeMap<NodeId, SocketAddr>,
}

/// The files of one node.
#[derive(Clone, Debug)]
pub(crate) struct NodeFiles {
    pub(crate) directory: PathBuf,
    vault: Arc<Vault>,
}

/// The files of one epoch of a node.
#[derive(Clone, Debug)]
pub(crate) struct EpochFiles {
    node: NodeFiles,
    directory: PathBuf,
    epoch: Epoch,
}

impl NodeFiles {
    pub(crate) fn new(directory: &Path) -> Self {
        Self { directory: directory.to_owned(), vault: Arc::new(Vault::new(directory)) }
    }

    pub(crate) fn roster(&self) -> Result<Roster> {
        read_json(&self.directory.join("roster.json"))
    }

    /// The federation in the epoch that this node has come to; `None` before the first key generation.
    pub(crate) fn federation(&self) -> Result<Option<Federation>> {
        let path = self.directory.join("federation.json");
        if !path.exists() {
            return Ok(None);
        }
        let document: FederationDocument = read_json(&path)?;
        let federation = document.verify(self.roster()?.id());
        Ok(Some(federation.with_context(|| format!("{} does not verify", path.display()))?))
    }

    /// Makes an epoch the one in force.
    pub(crate) fn write_federation(&self, document: &FederationDocument) -> Result<()> {
        write_durably(&self.directory.join("federation.json"), &serde_json::to_vec_pretty(document)?)
    }

    /// The files of the epoch that the document is of.
    pub(crate) fn epoch(&self, document: &FederationDocument) -> EpochFiles {
        match document.successions.last() {
            Some(succession) => self.planned(&succession.plan),
            None => self.first_epoch(),
        }
    }

    /// The files of the first epoch.
    pub(crate) fn first_epoch(&self) -> EpochFiles {
        EpochFiles { node: self.clone(), directory: self.directory.clone(), epoch: Epoch::FIRST }
    }

    /// The files of a planned epoch.
    pub(crate) fn planned(&self, plan: &SuccessionPlan) -> EpochFiles {
        let name = format!("epoch-{}-{}", plan.epoch.0, plan.attempt);
        EpochFiles { node: self.clone(), directory: self.directory.join(name), epoch: plan.epoch }
    }

    /// The plan that the operator has approved for the epoch after: the one that this node is bound to, or the one
    /// with the highest number.
    pub(crate) fn approved_plan(&self, federation: &Federation) -> Result<Option<PlanFile>> {
        let prefix = format!("epoch-{}-", federation.epoch().next().0);
        let mut found: Option<PlanFile> = None;
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let named = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix));
            let path = path.join("plan.json");
            if !named || !path.exists() {
                continue;
            }
            let file: PlanFile = read_json(&path)?;
            file.plan
                .check(federation)
                .with_context(|| format!("{} cannot be carried out", path.display()))?;
            if self.is_bound(&file.plan) {
                return Ok(Some(file));
            }
            if found.as_ref().is_none_or(|known| known.plan.attempt < file.plan.attempt) {
                found = Some(file);
            }
        }
        Ok(found)
    }

    /// Whether this node has stored its share of a planned epoch. It may have said so, and then the others can
    /// complete the key at any moment: taking part in another plan as well could leave two keys complete and neither
    /// with a quorum of seals.
    pub(crate) fn is_bound(&self, plan: &SuccessionPlan) -> bool {
        self.planned(plan).path("share.sealed").exists()
    }

    /// The highest number of a plan for this epoch that was ever approved here, withdrawn ones among them.
    pub(crate) fn last_attempt(&self, epoch: Epoch) -> Result<u32> {
        let mut last = 0;
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            let planned = name.strip_prefix("withdrawn-").unwrap_or(&name);
            let attempt =
                planned.strip_prefix(&format!("epoch-{}-", epoch.0)).and_then(|rest| rest.parse().ok());
            last = last.max(attempt.unwrap_or(0));
        }
        Ok(last)
    }

    /// Takes a plan away that this node is bound to. Only for an operator who knows that it can never be completed.
    pub(crate) fn withdraw(&self, plan: &SuccessionPlan) -> Result<()> {
        let planned = self.planned(plan);
        erase(&planned.path("share.sealed"))?;
        erase(&planned.path("dkg.sealed"))?;
        let aside = self.directory.join(format!("withdrawn-epoch-{}-{}", plan.epoch.0, plan.attempt));
        Ok(fs::rename(planned.directory, aside)?)
    }

    /// Whether the key of a planned epoch is certified, as far as this node knows.
    pub(crate) fn is_complete(&self, plan: &SuccessionPlan) -> bool {
        self.planned(plan).path("succession.json").exists()
    }

    /// Where the members of an epoch listen: as the configuration says, or the plan that brought them.
    pub(crate) fn addresses(
        &self,
        config: &NodeConfig,
        document: &FederationDocument,
    ) -> Result<BTreeMap<NodeId, SocketAddr>> {
        let mut addresses: BTreeMap<_, _> =
            config.peers.iter().map(|NodeAddress { id, address }| (*id, *address)).collect();
        for succession in &document.successions {
            let path = self.planned(&succession.plan).directory.join("plan.json");
            if path.exists() {
                addresses.extend(read_json::<PlanFile>(&path)?.addresses);
            }
        }
        Ok(addresses)
    }

    pub(crate) fn identity(&self) -> Result<IdentityKey> {
        let key =
            key_of(&self.vault.text("identity")?).context("identity.key is not a key of 64 hex digits")?;
        IdentityKey::from_bytes(&key).context("identity.key is not a valid key")
    }

    /// This node's certificate with its key.
    pub(crate) fn tls(&self) -> Result<TlsIdentity> {
        Ok(TlsIdentity::with_key(&self.directory, self.vault.text("tls")?.as_bytes())?)
    }

    /// Certificates of bridges and clients that do not count any more.
    pub(crate) fn revoked(&self) -> PathBuf {
        self.directory.join("revoked.txt")
    }

    /// What holds the secrets of this node.
    pub(crate) fn vault(&self) -> &Vault {
        &self.vault
    }

    /// Sealed files of all epochs, with their labels.
    pub(crate) fn sealed(&self, node: NodeId) -> Result<Vec<(PathBuf, String)>> {
        let mut sealed = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if let Some(epoch) = epoch_of(&name) {
                sealed.extend(EpochFiles { node: self.clone(), directory: path, epoch }.sealed(node));
            }
        }
        sealed.extend(self.first_epoch().sealed(node));
        Ok(sealed)
    }

    /// Keeps other processes out of this directory as long as what it gives is held.
    pub(crate) fn lock(&self) -> Result<fs::File> {
        let path = self.directory.join("node.lock");
        let mut options = fs::OpenOptions::new();
        let file = options.create(true).truncate(false).read(true).write(true).mode(0o600).open(&path);
        let mut file = file.with_context(|| format!("cannot write {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let mut holder = String::new();
                let _unknown = file.read_to_string(&mut holder);
                bail!("{} is in use by process {}: stop it first", self.directory.display(), holder.trim());
            }
            Err(fs::TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("cannot lock {}", path.display()));
            }
        }
        file.set_len(0)?;
        write!(file, "{}", std::process::id()).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(file)
    }

    /// Erases what is of no use to this node any more and would be to a thief: shares of epochs that are over and of
    /// plans that were superseded, and the seeds of their refreshes. Done at every start, so that a crash in between
    /// leaves nothing.
    pub(crate) fn erase_past(&self, document: &FederationDocument) -> Result<()> {
        let present = self.epoch(document).directory;
        let mut past = vec![self.directory.clone()];
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            if epoch_of(&name).is_some_and(|epoch| epoch <= document.epoch()) {
                past.push(path);
            }
        }
        for directory in past {
            erase(&directory.join("dkg.sealed"))?;
            if directory != present {
                erase(&directory.join("share.sealed"))?;
            }
        }
        Ok(())
    }
}

impl EpochFiles {
    /// A file of the epoch.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// Where the store of the epoch is.
    pub(crate) fn store(&self) -> Box<dyn StorePlace> {
        Box::new(RedbFile(self.path("store.redb")))
    }

    pub(crate) fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        read_json(&self.path(name))
    }

    pub(crate) fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        fs::create_dir_all(&self.directory)?;
        write_durably(&self.path(name), &serde_json::to_vec_pretty(value)?)
    }

    /// Stores the share, sealed, durably.
    pub(crate) fn write_share(&self, share: &NodeShare) -> Result<()> {
        fs::create_dir_all(&self.directory)?;
        let (path, label) = (self.path("share.sealed"), self.share_label(share.node()));
        self.node.vault.seal(&path, &label, share.to_bytes().as_ref())
    }

    /// This node's share, if it is the one that the federation's document shows.
    pub(crate) fn read_share(&self, node: NodeId, federation: &Federation) -> Result<NodeShare> {
        ensure!(federation.epoch() == self.epoch, "the share is of another epoch");
        let path = self.path("share.sealed");
        let open = self.node.vault.open(&path, &self.share_label(node))?;
        let bytes: &[u8; 32] = open.as_slice().try_into().context("share.sealed holds no share")?;
        let share = NodeShare::from_bytes(node, bytes).context("share.sealed holds no share")?;
        ensure!(
            share.fits(federation.key()),
            "{} is not this node's share of the federation key",
            path.display()
        );
        Ok(share)
    }

    /// Seed of the randomness of the key generation or refresh: a node that has started again says the same again. It
    /// is made when it is first wanted, and erased when the epoch has begun.
    pub(crate) fn dkg_seed(&self) -> Result<Zeroizing<[u8; 32]>> {
        let (path, label) = (self.path("dkg.sealed"), self.seed_label());
        let mut seed = Zeroizing::new([0; 32]);
        if path.exists() {
            let open = self.node.vault.open(&path, &label)?;
            let bytes: &[u8; 32] = open.as_slice().try_into().context("dkg.sealed holds no seed")?;
            seed.copy_from_slice(bytes);
        } else {
            getrandom::getrandom(seed.as_mut()).context("no source of randomness")?;
            fs::create_dir_all(&self.directory)?;
            self.node.vault.seal(&path, &label, seed.as_slice())?;
        }
        Ok(seed)
    }

    /// Sealed files that are there, with their labels.
    fn sealed(&self, node: NodeId) -> impl Iterator<Item = (PathBuf, String)> {
        let all = [
            (self.path("share.sealed"), self.share_label(node)),
            (self.path("dkg.sealed"), self.seed_label()),
        ];
        all.into_iter().filter(|(path, _)| path.exists())
    }

    fn share_label(&self, node: NodeId) -> String {
        format!("quorate share of node {node} in epoch {}", self.epoch.0)
    }

    fn seed_label(&self) -> String {
        format!("quorate seed for epoch {}", self.epoch.0)
    }
}

/// The epoch that a directory is of.
fn epoch_of(name: &str) -> Option<Epoch> {
    name.strip_prefix("epoch-").and_then(|rest| rest.split('-').next()?.parse().ok()).map(Epoch)
}
