//! First start of an epoch: key generation with all peers, then the trial signature, then the federation document.
//!
//! Every node pulls from every other until its machine is done; the order of starts does not matter, and a node that was interrupted says
//! the same again, because its randomness is seeded from `dkg.seed` and the federation's id.

use crate::{config::NodeFiles, peers::Peers};
use anyhow::{Context as _, Result};
use quorate::{
    Epoch, FederationDocument, NodeId, NonceCommitment, SignatureShare,
    federation::{EpochKey, Roster},
    frost::{NodeNonces, NodeShare, aggregate_trial, dkg::Dkg},
    wire::{ErrorCode, Fault, PeerReply, PeerRequest, WireError},
};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng as _};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Time between two pulls from a peer that has nothing new.
const PULL_INTERVAL: Duration = Duration::from_millis(50);
/// Most trial nonces kept per peer.
const TRIAL_NONCES_MAX: usize = 16;

/// The key generation of this node, shared between the puller and the server.
#[derive(Debug)]
pub(crate) struct Setup {
    roster: Roster,
    files: NodeFiles,
    dkg: Mutex<Dkg>,
    trials: Mutex<HashMap<NodeId, Vec<(NonceCommitment, NodeNonces)>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn not_ready(message: &str) -> WireError {
    WireError::passing(ErrorCode::NotReady, Fault::Receiver, message)
}

impl Setup {
    pub(crate) fn new(roster: Roster, files: NodeFiles) -> Result<Self> {
        let seed = quorate::frost::dkg::randomness_seed(&roster, Epoch(1), &*files.dkg_seed()?);
        let rng = ChaCha20Rng::from_seed(*seed);
        let dkg = Dkg::new(roster.clone(), Epoch(1), files.identity()?, rng)?;
        Ok(Self { roster, files, dkg: Mutex::new(dkg), trials: Mutex::default() })
    }

    /// Answers a peer.
    pub(crate) fn answer(&self, from: NodeId, request: PeerRequest) -> PeerReply {
        let answer = match request {
            PeerRequest::DkgPull => Ok(PeerReply::DkgBundle { bundle: lock(&self.dkg).bundle_for(from) }),
            PeerRequest::TrialCommit => self.trial_commit(from),
            PeerRequest::TrialSign { commitments } => self.trial_sign(from, &commitments),
            PeerRequest::VoteRequest { .. }
            | PeerRequest::CommitRequest { .. }
            | PeerRequest::ReleaseRequest { .. }
            | PeerRequest::Released { .. }
            | PeerRequest::Heartbeat { .. }
            | PeerRequest::FinalTransaction { .. }
            | PeerRequest::AccountRequest { .. } => Err(not_ready("the federation key is being generated")),
        };
        answer.unwrap_or_else(|error| PeerReply::Error { error })
    }

    fn trial_commit(&self, from: NodeId) -> Result<PeerReply, WireError> {
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
        Ok(PeerReply::TrialCommitment { commitment })
    }

    fn trial_sign(
        &self,
        from: NodeId,
        commitments: &BTreeMap<NodeId, NonceCommitment>,
    ) -> Result<PeerReply, WireError> {
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
        Ok(PeerReply::TrialShare { share })
    }

    fn sign_trial(
        &self,
        key: &EpochKey,
        share: &NodeShare,
        commitments: &BTreeMap<NodeId, NonceCommitment>,
        nonces: NodeNonces,
    ) -> Result<SignatureShare, WireError> {
        let quorum = self.roster.check().map_err(|_| not_ready("the roster is not well formed"))?.votes();
        let message = key.trial_message(&self.roster);
        share
            .sign_trial(&key.group_key, quorum, &message, commitments, nonces)
            .map_err(|error| WireError::sender(ErrorCode::InvalidSignature, error))
    }

    /// Runs until the document is complete and on disk.
    pub(crate) async fn run(&self, peers: &Peers) -> Result<FederationDocument> {
        let mut shown = 0;
        while lock(&self.dkg).outcome().is_none() {
            let pulls: Vec<_> = peers.ids().map(|peer| self.pull(peers, peer)).collect();
            for pull in pulls {
                pull.await?;
            }
            self.store()?;
            let steps = lock(&self.dkg).steps_done();
            if steps > shown {
                shown = steps;
                tracing::info!(step = steps, of = 4, "key generation");
            } else {
                tokio::time::sleep(PULL_INTERVAL).await;
            }
        }
        let (key, certificate) = lock(&self.dkg).outcome().context("the key generation has an outcome")?;
        let trial_signature = loop {
            match self.trial(peers, &key).await {
                Ok(signature) => break signature,
                Err(error) => {
                    tracing::debug!(%error, "the trial signature is tried again");
                    tokio::time::sleep(PULL_INTERVAL).await;
                }
            }
        };
        let document = FederationDocument { roster: self.roster.clone(), key, certificate, trial_signature };
        document.clone().verify(self.roster.id()).context("the federation document does not verify")?;
        self.files.write_durably("federation.json", &serde_json::to_vec_pretty(&document)?)?;
        Ok(document)
    }

    async fn pull(&self, peers: &Peers, peer: NodeId) -> Result<()> {
        match peers.ask(peer, &PeerRequest::DkgPull).await {
            Ok(PeerReply::DkgBundle { bundle }) => Ok(lock(&self.dkg).handle_bundle(peer, bundle)?),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Success is signed only after the share is on disk.
    fn store(&self) -> Result<()> {
        let mut dkg = lock(&self.dkg);
        if let Some((_, share)) = dkg.result() {
            if dkg.steps_done() == 3 && !self.files.0.join("share.sealed").exists() {
                self.files.write_share(dkg.me(), share)?;
            }
            dkg.confirm_stored();
        }
        Ok(())
    }

    async fn trial(&self, peers: &Peers, key: &EpochKey) -> Result<bitcoin::secp256k1::schnorr::Signature> {
        let quorum = self.roster.check()?.votes();
        let message = key.trial_message(&self.roster);
        let (me, own, nonces) = {
            let dkg = lock(&self.dkg);
            let (_, share) = dkg.result().context("the share is there")?;
            let (nonces, commitment) = share.commit(&mut rand_core::OsRng).context("a nonce")?;
            (dkg.me(), commitment, nonces)
        };
        let mut commitments = BTreeMap::from([(me, own)]);
        for peer in peers.ids() {
            if let PeerReply::TrialCommitment { commitment } =
                peers.ask(peer, &PeerRequest::TrialCommit).await?
            {
                commitments.insert(peer, commitment);
            }
        }
        let mut shares = BTreeMap::new();
        for peer in peers.ids() {
            let request = PeerRequest::TrialSign { commitments: commitments.clone() };
            if let PeerReply::TrialShare { share } = peers.ask(peer, &request).await? {
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
