//! The key of an epoch: its generation or refresh with all members, then the trial signature.
//!
//! Every node pulls from every other until its machine is done; the order of starts does not matter, and a node that was interrupted says
//! the same again, because its randomness is seeded from `dkg.seed` and what the run is bound to.

use crate::{
    files::{EpochFiles, NodeFiles},
    lock,
    net::{
        membership::{Peer, listed},
        not_ready,
        peers::Peers,
    },
};
use anyhow::{Context as _, Result};
use futures_util::future::join_all;
use quorate_protocol::{
    NodeId, NonceCommitment, SignatureShare,
    federation::{EpochKey, KeyCertificate},
    frost::{
        NodeNonces, NodeShare, aggregate_trial,
        dkg::{Ceremony, Dkg, RunId},
    },
    wire::{ErrorCode, KeygenReply, KeygenRequest, WireError},
};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng as _};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Mutex,
    time::Duration,
};

/// Time between two pulls from a peer that has nothing new.
const PULL_INTERVAL: Duration = Duration::from_millis(50);
/// Most trial nonces kept per peer.
const TRIAL_NONCES_MAX: usize = 16;

/// The key generation or refresh of this node, shared between the puller and the server.
#[derive(Debug)]
pub(crate) struct Setup {
    ceremony: Ceremony,
    files: EpochFiles,
    dkg: Mutex<Dkg>,
    trials: Mutex<HashMap<NodeId, Vec<(NonceCommitment, NodeNonces)>>>,
}

impl Setup {
    /// With this node's share of the epoch before, if that is refreshed.
    pub(crate) fn new(
        ceremony: Ceremony,
        node: &NodeFiles,
        files: EpochFiles,
        share: Option<NodeShare>,
    ) -> Result<Self> {
        let seed = ceremony.randomness_seed(&*files.dkg_seed()?);
        let rng = ChaCha20Rng::from_seed(*seed);
        let dkg = Dkg::new(ceremony.clone(), node.identity()?, share, rng)?;
        Ok(Self { ceremony, files, dkg: Mutex::new(dkg), trials: Mutex::default() })
    }

    /// Which run it is.
    pub(crate) fn run_id(&self) -> RunId {
        self.ceremony.run()
    }

    /// Answers a member of the epoch.
    pub(crate) fn answer(&self, peer: &Peer, request: &KeygenRequest) -> Result<KeygenReply, WireError> {
        if !peer.is_among(self.ceremony.members()) {
            return Err(WireError::sender(ErrorCode::WrongRole, "this node is not a member of that epoch"));
        }
        match request {
            KeygenRequest::DkgPull { .. } => {
                Ok(KeygenReply::DkgBundle { bundle: lock(&self.dkg).bundle_for(peer.id) })
            }
            KeygenRequest::TrialCommit { .. } => self.trial_commit(peer.id),
            KeygenRequest::TrialSign { commitments, .. } => self.trial_sign(peer.id, commitments),
        }
    }

    fn trial_commit(&self, from: NodeId) -> Result<KeygenReply, WireError> {
        let dkg = lock(&self.dkg);
        let (_, share) = dkg.result().ok_or_else(|| not_ready("the key generation is not finished here"))?;
        let made = share.commit(&mut rand_core::OsRng).ok_or_else(|| not_ready("no nonce could be made"))?;
        let (nonces, commitment) = made;
        let mut trials = lock(&self.trials);
        let kept = trials.entry(from).or_default();
        if kept.len() >= TRIAL_NONCES_MAX {
            kept.remove(0);
        }
        kept.push((commitment, nonces));
        Ok(KeygenReply::TrialCommitment { commitment })
    }

    fn trial_sign(
        &self,
        from: NodeId,
        commitments: &BTreeMap<NodeId, NonceCommitment>,
    ) -> Result<KeygenReply, WireError> {
        let dkg = lock(&self.dkg);
        let (key, share) =
            dkg.result().ok_or_else(|| not_ready("the key generation is not finished here"))?;
        let mut trials = lock(&self.trials);
        let kept = trials.entry(from).or_default();
        let mine = commitments.get(&dkg.me());
        let position = kept.iter().position(|(commitment, _)| Some(commitment) == mine);
        let position = position.ok_or_else(|| not_ready("this trial nonce is not known; start again"))?;
        let (_, nonces) = kept.remove(position);
        let share = self.sign_trial(key, share, commitments, nonces)?;
        Ok(KeygenReply::TrialShare { share })
    }

    fn sign_trial(
        &self,
        key: &EpochKey,
        share: &NodeShare,
        commitments: &BTreeMap<NodeId, NonceCommitment>,
        nonces: NodeNonces,
    ) -> Result<SignatureShare, WireError> {
        let message = key.trial_message(self.ceremony.context());
        share
            .sign_trial(&key.group_key, self.ceremony.quorum(), &message, commitments, nonces)
            .map_err(|error| WireError::sender(ErrorCode::InvalidSignature, error))
    }

    /// Runs until the key is certified by all members; this node's share is on disk then. What it waits for is reported.
    pub(crate) async fn run(
        &self,
        peers: &Peers,
        report: &(dyn Fn(String) + Send + Sync),
    ) -> Result<KeyCertificate> {
        let mut shown = 0;
        while lock(&self.dkg).outcome().is_none() {
            let mut silent = Vec::new();
            let pulls = peers.ids().map(|peer| async move { (peer, self.pull(peers, peer).await) });
            for (peer, pulled) in join_all(pulls).await {
                if !pulled? {
                    silent.push(peer);
                }
            }
            self.store()?;
            let steps = lock(&self.dkg).steps_done();
            if steps > shown {
                shown = steps;
                tracing::info!(epoch = self.run_id().epoch.0, step = steps, of = 4, "key generation");
            } else {
                if !silent.is_empty() {
                    silent.sort_unstable();
                    report(format!("nodes {} do not take part yet", listed(silent)));
                }
                tokio::time::sleep(PULL_INTERVAL).await;
            }
        }
        let (key, certificate) = lock(&self.dkg).outcome().context("the key generation has an outcome")?;
        let trial_signature = loop {
            match self.trial(peers, &key).await {
                Ok(signature) => break signature,
                Err(error) => {
                    report(format!("the trial signature is tried again: {error:#}"));
                    tokio::time::sleep(PULL_INTERVAL).await;
                }
            }
        };
        Ok(KeyCertificate { key, certificate, trial_signature })
    }

    /// Whether the peer takes part in this run.
    async fn pull(&self, peers: &Peers, peer: NodeId) -> Result<bool> {
        match peers.ask(peer, &KeygenRequest::DkgPull { run: self.run_id() }).await {
            Ok(KeygenReply::DkgBundle { bundle }) => {
                lock(&self.dkg).handle_bundle(peer, bundle)?;
                Ok(true)
            }
            Ok(KeygenReply::TrialCommitment { .. } | KeygenReply::TrialShare { .. }) | Err(_) => Ok(false),
        }
    }

    /// Success is signed only after the share is on disk.
    fn store(&self) -> Result<()> {
        let mut dkg = lock(&self.dkg);
        if let Some((_, share)) = dkg.result() {
            if dkg.steps_done() == 3 && !dkg.is_stored() {
                self.files.write_share(share)?;
            }
            dkg.confirm_stored();
        }
        Ok(())
    }

    async fn trial(&self, peers: &Peers, key: &EpochKey) -> Result<bitcoin::secp256k1::schnorr::Signature> {
        let (quorum, run) = (self.ceremony.quorum(), self.run_id());
        let message = key.trial_message(self.ceremony.context());
        let (me, own, nonces) = {
            let dkg = lock(&self.dkg);
            let (_, share) = dkg.result().context("the share is there")?;
            let (nonces, commitment) = share.commit(&mut rand_core::OsRng).context("a nonce")?;
            (dkg.me(), commitment, nonces)
        };
        let mut commitments = BTreeMap::from([(me, own)]);
        for peer in peers.ids() {
            if let KeygenReply::TrialCommitment { commitment } =
                peers.ask(peer, &KeygenRequest::TrialCommit { run }).await?
            {
                commitments.insert(peer, commitment);
            }
        }
        let mut shares = BTreeMap::new();
        for peer in peers.ids() {
            let request = KeygenRequest::TrialSign { run, commitments: commitments.clone() };
            if let KeygenReply::TrialShare { share } = peers.ask(peer, &request).await? {
                shares.insert(peer, share);
            }
        }
        let own = {
            let dkg = lock(&self.dkg);
            let (_, share) = dkg.result().context("the share is there")?;
            self.sign_trial(key, share, &commitments, nonces)?
        };
        shares.insert(me, own);
        Ok(aggregate_trial(key, quorum, &message, &commitments, &shares)?)
    }
}
