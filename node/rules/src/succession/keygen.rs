//! The key of an epoch at one node: its generation or refresh with all members, then the trial signature.
//!
//! Every node pulls from every other until [`Dkg`] is done; the order of starts does not matter, and a node that was
//! interrupted says the same again, because its randomness is seeded from a stored secret and what the run is bound
//! to. Before the key is used, all shares of it sign a message together: what the certificate shows can be signed with.

use super::desk::{Desk, DkgSeed, Peer, Purpose, Save, Side, not_ready};
use bitcoin::secp256k1::schnorr;
use quorate_protocol::{
    NodeId, NonceCommitment, SignatureShare,
    federation::{EpochKey, KeyCertificate},
    frost::{
        NodeNonces, NodeShare, aggregate_trial,
        dkg::{Ceremony, Dkg, DkgError, RunId},
    },
    wire::{ErrorCode, KeygenReply, KeygenRequest, WireError},
};
use rand_chacha::{ChaCha20Rng, rand_core::SeedableRng as _};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

/// Time between two pulls from peers that have nothing new, and between two trials.
const PULL_INTERVAL: Duration = Duration::from_millis(50);
/// Most trial nonces kept per peer.
const TRIAL_NONCES_MAX: usize = 16;

/// One run at one node.
#[derive(Debug)]
pub(super) struct KeyGeneration {
    ceremony: Ceremony,
    side: Side,
    dkg: Dkg,
    /// Nonces that this node gave others for their trials.
    kept: BTreeMap<NodeId, Vec<(NonceCommitment, NodeNonces)>>,
    stage: Stage,
    /// Peers whose answer is waited for.
    waiting: BTreeSet<NodeId>,
    /// Peers that did not answer in this turn.
    silent: BTreeSet<NodeId>,
    /// Steps that were done at the last turn.
    shown: u8,
    due: Option<Duration>,
}

#[derive(Debug)]
enum Stage {
    Pulling,
    /// The share has to be on disk before anybody is told of success.
    Saving,
    Trial(Box<Trial>),
    Made(Box<KeyCertificate>),
}

/// This node's own trial of the key.
#[derive(Debug, Default)]
struct Trial {
    /// Used up by the second half.
    nonces: Option<NodeNonces>,
    commitments: BTreeMap<NodeId, NonceCommitment>,
    shares: BTreeMap<NodeId, SignatureShare>,
}

impl KeyGeneration {
    /// With this node's share of the epoch before, if that is refreshed.
    pub(super) fn new(
        desk: &Desk,
        ceremony: Ceremony,
        side: Side,
        seed: &DkgSeed,
        share: Option<NodeShare>,
    ) -> Result<Self, DkgError> {
        let rng = ChaCha20Rng::from_seed(*ceremony.randomness_seed(&seed.0));
        let dkg = Dkg::new(ceremony.clone(), desk.key.clone(), share, rng)?;
        Ok(Self {
            ceremony,
            side,
            dkg,
            kept: BTreeMap::new(),
            stage: Stage::Pulling,
            waiting: BTreeSet::new(),
            silent: BTreeSet::new(),
            shown: 0,
            due: Some(Duration::ZERO),
        })
    }

    pub(super) fn run(&self) -> RunId {
        self.ceremony.run()
    }

    /// The key, once all members have certified it and signed with it.
    pub(super) fn made(&self) -> Option<&KeyCertificate> {
        match &self.stage {
            Stage::Made(key) => Some(key),
            Stage::Pulling | Stage::Saving | Stage::Trial(_) => None,
        }
    }

    pub(super) fn poll_timeout(&self) -> Option<Duration> {
        self.due
    }

    pub(super) fn handle_timeout(&mut self, desk: &mut Desk) {
        if self.due.is_none_or(|due| due > desk.now) {
            return;
        }
        self.due = None;
        match &mut self.stage {
            Stage::Pulling => {
                let run = self.run();
                self.ask_all(desk, Purpose::Pull, &KeygenRequest::DkgPull { run });
            }
            Stage::Trial(_) => self.begin_trial(desk),
            Stage::Saving | Stage::Made(_) => {}
        }
    }

    /// The share is on disk.
    pub(super) fn handle_saved(&mut self, desk: &Desk) {
        if matches!(self.stage, Stage::Saving) {
            self.dkg.confirm_stored();
            (self.stage, self.due) = (Stage::Pulling, Some(desk.now));
        }
    }

    /// A peer's answer, or that none came.
    ///
    /// # Errors
    /// The peer sent something invalid. The run cannot finish with it.
    pub(super) fn handle_answer(
        &mut self,
        desk: &mut Desk,
        purpose: Purpose,
        reply: Option<KeygenReply>,
    ) -> Result<(), DkgError> {
        match (purpose, reply) {
            (Purpose::Pull(peer), Some(KeygenReply::DkgBundle { bundle })) => {
                self.dkg.handle_bundle(peer, bundle)?;
                self.waiting.remove(&peer);
            }
            (Purpose::Pull(peer), _) => {
                self.silent.insert(peer);
                self.waiting.remove(&peer);
            }
            (Purpose::TrialCommit(peer), Some(KeygenReply::TrialCommitment { commitment })) => {
                if let Stage::Trial(trial) = &mut self.stage {
                    trial.commitments.insert(peer, commitment);
                    self.waiting.remove(&peer);
                }
            }
            (Purpose::TrialSign(peer), Some(KeygenReply::TrialShare { share })) => {
                if let Stage::Trial(trial) = &mut self.stage {
                    trial.shares.insert(peer, share);
                    self.waiting.remove(&peer);
                }
            }
            (Purpose::TrialCommit(peer) | Purpose::TrialSign(peer), _) => {
                let why = std::mem::take(&mut desk.last_refusal);
                self.try_again(desk, format!("node {peer} takes no part in the trial signature: {why}"));
            }
            (Purpose::News | Purpose::RepairOpen(_) | Purpose::RepairSum(_), _)
            | (Purpose::Piece(..) | Purpose::Seal(_), _) => {}
        }
        if self.waiting.is_empty() && self.due.is_none() {
            self.turn(desk);
        }
        Ok(())
    }

    /// Everybody that was asked has answered.
    fn turn(&mut self, desk: &mut Desk) {
        match &self.stage {
            Stage::Pulling => self.pulled(desk),
            Stage::Trial(trial) if trial.nonces.is_some() => self.sign_trial(desk),
            Stage::Trial(_) => self.finish_trial(desk),
            Stage::Saving | Stage::Made(_) => {}
        }
    }

    fn pulled(&mut self, desk: &mut Desk) {
        let silent = std::mem::take(&mut self.silent);
        if let Some((_, share)) = self.dkg.result().filter(|_| !self.dkg.is_stored()) {
            desk.save(Save::Share(share.duplicate()));
            self.stage = Stage::Saving;
            return;
        }
        let steps = self.dkg.steps_done();
        if steps > self.shown {
            self.shown = steps;
            tracing::info!(epoch = self.run().epoch.0, step = steps, of = 4, "key generation");
        } else if !silent.is_empty() {
            desk.wait_for(silent);
        }
        if self.dkg.outcome().is_some() {
            self.begin_trial(desk);
        } else {
            self.due = Some(desk.now + PULL_INTERVAL);
        }
    }

    fn ask_all(&mut self, desk: &mut Desk, purpose: fn(NodeId) -> Purpose, request: &KeygenRequest) {
        let others = self.ceremony.members().iter().map(|member| member.id).filter(|id| *id != desk.me);
        self.waiting = others.collect();
        for peer in &self.waiting {
            desk.ask(self.side, *peer, request.clone(), purpose(*peer));
        }
    }

    fn try_again(&mut self, desk: &mut Desk, problem: String) {
        desk.report(problem);
        desk.forget(|purpose| matches!(purpose, Purpose::TrialCommit(_) | Purpose::TrialSign(_)));
        self.waiting.clear();
        (self.stage, self.due) = (Stage::Trial(Box::default()), Some(desk.now + PULL_INTERVAL));
    }

    fn begin_trial(&mut self, desk: &mut Desk) {
        let made = self.dkg.result().and_then(|(_, share)| share.commit(&mut desk.rng));
        let Some((nonces, commitment)) = made else {
            return self.try_again(desk, "no nonce could be made".to_owned());
        };
        let commitments = BTreeMap::from([(desk.me, commitment)]);
        let trial = Trial { nonces: Some(nonces), commitments, shares: BTreeMap::new() };
        self.stage = Stage::Trial(Box::new(trial));
        let run = self.run();
        self.ask_all(desk, Purpose::TrialCommit, &KeygenRequest::TrialCommit { run });
    }

    /// All commitments are there.
    fn sign_trial(&mut self, desk: &mut Desk) {
        let run = self.run();
        let Stage::Trial(trial) = &mut self.stage else { return };
        let Some((nonces, (key, share))) = trial.nonces.take().zip(self.dkg.result()) else { return };
        match sign(&self.ceremony, key, share, &trial.commitments, nonces) {
            Ok(signed) => {
                trial.shares.insert(desk.me, signed);
                let commitments = trial.commitments.clone();
                self.ask_all(desk, Purpose::TrialSign, &KeygenRequest::TrialSign { run, commitments });
            }
            Err(error) => self.try_again(desk, format!("the trial signature is tried again: {error}")),
        }
    }

    /// All shares are there.
    fn finish_trial(&mut self, desk: &mut Desk) {
        let Some((key, certificate)) = self.dkg.outcome() else { return };
        match self.aggregate(&key) {
            Ok(trial_signature) => {
                self.stage = Stage::Made(Box::new(KeyCertificate { key, certificate, trial_signature }));
            }
            Err(problem) => self.try_again(desk, problem),
        }
    }

    fn aggregate(&self, key: &EpochKey) -> Result<schnorr::Signature, String> {
        let Stage::Trial(trial) = &self.stage else { return Err("there is no trial".to_owned()) };
        let message = key.trial_message(self.ceremony.context());
        aggregate_trial(key, self.ceremony.quorum(), &message, &trial.commitments, &trial.shares)
            .map_err(|error| format!("the trial signature is tried again: {error}"))
    }

    /// Answers a member of the epoch that the key is for.
    pub(super) fn answer(
        &mut self,
        desk: &mut Desk,
        peer: Peer,
        request: KeygenRequest,
    ) -> Result<KeygenReply, WireError> {
        if !peer.is_among(self.ceremony.members()) {
            return Err(WireError::sender(ErrorCode::WrongRole, "this node is not a member of that epoch"));
        }
        match request {
            KeygenRequest::DkgPull { .. } => {
                Ok(KeygenReply::DkgBundle { bundle: self.dkg.bundle_for(peer.id) })
            }
            KeygenRequest::TrialCommit { .. } => self.trial_commitment(desk, peer.id),
            KeygenRequest::TrialSign { commitments, .. } => self.trial_share(peer.id, &commitments),
        }
    }

    fn trial_commitment(&mut self, desk: &mut Desk, from: NodeId) -> Result<KeygenReply, WireError> {
        let (_, share) = self.dkg.result().ok_or_else(unfinished)?;
        let made = share.commit(&mut desk.rng).ok_or_else(|| not_ready("no nonce could be made"))?;
        let (nonces, commitment) = made;
        let kept = self.kept.entry(from).or_default();
        if kept.len() >= TRIAL_NONCES_MAX {
            kept.remove(0);
        }
        kept.push((commitment, nonces));
        Ok(KeygenReply::TrialCommitment { commitment })
    }

    fn trial_share(
        &mut self,
        from: NodeId,
        commitments: &BTreeMap<NodeId, NonceCommitment>,
    ) -> Result<KeygenReply, WireError> {
        let (key, share) = self.dkg.result().ok_or_else(unfinished)?;
        let kept = self.kept.entry(from).or_default();
        let mine = commitments.get(&self.dkg.me());
        let position = kept.iter().position(|(commitment, _)| Some(commitment) == mine);
        let position = position.ok_or_else(|| not_ready("this trial nonce is not known; start again"))?;
        let (_, nonces) = kept.remove(position);
        let share = sign(&self.ceremony, key, share, commitments, nonces)?;
        Ok(KeygenReply::TrialShare { share })
    }
}

fn unfinished() -> WireError {
    not_ready("the key generation is not finished here")
}

fn sign(
    ceremony: &Ceremony,
    key: &EpochKey,
    share: &NodeShare,
    commitments: &BTreeMap<NodeId, NonceCommitment>,
    nonces: NodeNonces,
) -> Result<SignatureShare, WireError> {
    let message = key.trial_message(ceremony.context());
    share
        .sign_trial(&key.group_key, ceremony.quorum(), &message, commitments, nonces)
        .map_err(|error| WireError::sender(ErrorCode::InvalidSignature, error))
}
