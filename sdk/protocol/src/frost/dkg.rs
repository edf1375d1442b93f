//! Distributed generation of a federation key, and refresh of its shares: the machine of one node.
//!
//! PedPop (the FROST paper's DKG, as `frost-secp256k1-tr` implements it) in four steps, each signed by its sender and
//! bound to network, federation and epoch:
//!
//! 1. **Commitment**: the polynomial commitment with its proof of knowledge. Its degree is checked here, per sender,
//!    before the library sees it, so that a culprit has a name.
//! 2. **Echo**: the hash of all n commitments. No secret share leaves before *all* echoes agree; without it, a sender
//!    that gives different commitments to different nodes splits the group unnoticed.
//! 3. **Share**: the secret share for one recipient, only over a link that is encrypted and authenticated as that
//!    recipient.
//! 4. **Success**: a signature over the public result, released by [`Dkg::confirm_stored`] after the share is on disk.
//!
//! A refresh runs the same four steps with polynomials whose constant term is zero (`frost-core`'s `keys::refresh`):
//! every share changes, the federation key does not, and shares of the epoch before are of no use with those of the
//! new one.
//!
//! The randomness comes from the caller; a node that seeds it from a stored secret and the federation id sends, after a
//! restart, the same messages again, so an interrupted run simply goes on. Messages are pulled: a node asks each peer
//! for its [`Bundle`] until [`Dkg::outcome`] is there; asking twice changes nothing.

use super::{NodeShare, identifier};
use crate::{
    Epoch, Federation, NodeId, Quorum,
    digest::{Context, IdentityKey, Purpose, Writer, verify},
    federation::{EpochKey, FederationError, Member, Roster, SuccessionPlan},
};
use bitcoin::secp256k1::{PublicKey, schnorr};
use frost_secp256k1_tr::keys::{KeyPackage, PublicKeyPackage, SigningShare, dkg as tr_dkg, refresh};
use rand_core::{CryptoRng, RngCore};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// A statement with its sender's signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// The statement, in hex.
    #[serde(with = "hex::serde")]
    pub bytes: Vec<u8>,
    /// The sender's identity signature.
    pub signature: schnorr::Signature,
}

/// A secret share on its way to one recipient; redacted in `Debug`, erased on drop.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(transparent)]
pub struct SecretShare(#[serde(with = "hex::serde")] Vec<u8>);

impl fmt::Debug for SecretShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretShare(..)")
    }
}

/// Everything that one node has to say to another so far. Grows from step to step; never changes what it said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// Step 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commitment: Option<Signed>,
    /// Step 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub echo: Option<Signed>,
    /// Step 3, for the recipient only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<SecretShare>,
    /// Step 4.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub success: Option<schnorr::Signature>,
}

/// Names one key generation or refresh, so that messages of two plans for one epoch never mix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RunId {
    /// The epoch whose key is made.
    pub epoch: Epoch,
    /// Hash of its plan; zeros for the first key.
    #[serde(with = "hex::serde")]
    pub plan: [u8; 32],
}

/// Who makes what: a new federation key, or new shares of one.
#[derive(Clone, Debug)]
pub struct Ceremony {
    context: Context,
    quorum: Quorum,
    members: Vec<Member>,
    /// The plan of a succession; zeros for the first key.
    plan: [u8; 32],
    /// The key whose shares are refreshed.
    before: Option<EpochKey>,
}

impl Ceremony {
    /// The generation of a federation's key.
    ///
    /// # Errors
    /// The roster is not well formed.
    pub fn generation(roster: &Roster) -> Result<Self, FederationError> {
        let quorum = roster.check()?;
        let context = roster.context(Epoch::FIRST);
        Ok(Self { context, quorum, members: roster.members.clone(), plan: [0; 32], before: None })
    }

    /// A refresh of all shares among the members of a plan. Newcomers have their predecessor's share by repair.
    ///
    /// # Errors
    /// The plan does not follow on the federation's epoch.
    pub fn refresh(federation: &Federation, plan: &SuccessionPlan) -> Result<Self, FederationError> {
        plan.check(federation)?;
        Ok(Self {
            context: Context { epoch: plan.epoch, ..*federation.context() },
            quorum: federation.quorum(),
            members: plan.members.clone(),
            plan: plan.digest(federation),
            before: Some(federation.key().clone()),
        })
    }

    /// Its name.
    pub fn run(&self) -> RunId {
        RunId { epoch: self.context.epoch, plan: self.plan }
    }

    /// Who takes part.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// What its statements are bound to.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Its thresholds.
    pub fn quorum(&self) -> Quorum {
        self.quorum
    }

    /// The seed of a node's randomness for this run: a hash of its stored secret and what the run is bound to.
    pub fn randomness_seed(&self, secret: &[u8; 32]) -> zeroize::Zeroizing<[u8; 32]> {
        let writer = Writer::signed(Purpose::DkgSeed, &self.context).fixed(&self.plan);
        zeroize::Zeroizing::new(writer.fixed(secret).finish())
    }

    fn member(&self, node: NodeId) -> Result<bitcoin::XOnlyPublicKey, DkgError> {
        let member = self.members.iter().find(|member| member.id == node);
        member.map(|member| member.identity_key).ok_or(DkgError::Parameters)
    }

    fn statement(&self, purpose: Purpose, node: NodeId, bytes: &[u8]) -> [u8; 32] {
        Writer::signed(purpose, &self.context).fixed(&self.plan).u16(node.0).bytes(bytes).finish()
    }

    /// Coefficients that are committed to: a refresh leaves out the constant term, which is zero.
    fn coefficients(&self) -> usize {
        usize::from(self.quorum.votes()) - usize::from(self.before.is_some())
    }
}

/// The machine of one node.
#[derive(Debug)]
pub struct Dkg {
    me: NodeId,
    key: IdentityKey,
    ceremony: Ceremony,
    /// The share that is refreshed.
    share: Option<NodeShare>,
    round1_secret: tr_dkg::round1::SecretPackage,
    round2_secret: Option<tr_dkg::round2::SecretPackage>,
    commitments: BTreeMap<NodeId, Signed>,
    echoes: BTreeMap<NodeId, Signed>,
    outgoing: BTreeMap<NodeId, SecretShare>,
    incoming: BTreeMap<NodeId, SecretShare>,
    successes: BTreeMap<NodeId, schnorr::Signature>,
    result: Option<(EpochKey, NodeShare)>,
    stored: bool,
}

impl Dkg {
    /// Starts the run for the node whose identity key is given; with its share of the epoch before, if that is
    /// refreshed.
    ///
    /// # Errors
    /// The key is of no member, or the share is not the one that the federation's document shows.
    pub fn new(
        ceremony: Ceremony,
        key: IdentityKey,
        share: Option<NodeShare>,
        rng: impl RngCore + CryptoRng,
    ) -> Result<Self, DkgError> {
        let public = key.public();
        let me = ceremony.members.iter().find(|member| member.identity_key == public);
        let me = me.ok_or(DkgError::Parameters)?.id;
        let fits = match (&ceremony.before, &share) {
            (None, None) => true,
            (Some(before), Some(share)) => share.fits(before),
            (None, Some(_)) | (Some(_), None) => false,
        };
        if !fits {
            return Err(DkgError::Parameters);
        }
        let own = identifier(me.0).ok_or(DkgError::Parameters)?;
        let (nodes, votes) = (ceremony.quorum.nodes(), ceremony.quorum.votes());
        let made = match &ceremony.before {
            None => tr_dkg::part1(own, nodes, votes, rng),
            Some(_) => refresh::refresh_dkg_part1(own, nodes, votes, rng),
        };
        let (round1_secret, package) = made.map_err(|_| DkgError::Parameters)?;
        let bytes = package.serialize().map_err(|_| DkgError::Parameters)?;
        let signature = key.sign(ceremony.statement(Purpose::DkgCommitment, me, &bytes));
        let commitments = BTreeMap::from([(me, Signed { bytes, signature })]);
        let mut dkg = Self {
            me,
            key,
            ceremony,
            share,
            round1_secret,
            round2_secret: None,
            commitments,
            echoes: BTreeMap::new(),
            outgoing: BTreeMap::new(),
            incoming: BTreeMap::new(),
            successes: BTreeMap::new(),
            result: None,
            stored: false,
        };
        dkg.advance()?;
        Ok(dkg)
    }

    /// This node's number.
    pub fn me(&self) -> NodeId {
        self.me
    }

    /// What this node has to say to `peer` by now.
    pub fn bundle_for(&self, peer: NodeId) -> Bundle {
        Bundle {
            commitment: self.commitments.get(&self.me).cloned(),
            echo: self.echoes.get(&self.me).cloned(),
            share: self.echoes_agree().then(|| self.outgoing.get(&peer).cloned()).flatten(),
            success: self.successes.get(&self.me).copied(),
        }
    }

    /// Takes in what `peer` said; the caller vouches that the link is authenticated as `peer`.
    ///
    /// # Errors
    /// The peer sent something invalid or took back what it had said; the error names it. The run cannot finish with
    /// it.
    pub fn handle_bundle(&mut self, peer: NodeId, bundle: Bundle) -> Result<(), DkgError> {
        if let Some(commitment) = bundle.commitment {
            self.take_commitment(peer, commitment)?;
        }
        if let Some(echo) = bundle.echo {
            self.check(peer, Purpose::DkgEcho, &echo)?;
            keep(&mut self.echoes, peer, echo)?;
        }
        if let Some(share) = bundle.share {
            keep(&mut self.incoming, peer, share)?;
        }
        self.advance()?;
        if let (Some(success), Some((key, _))) = (bundle.success, &self.result) {
            let member = self.ceremony.member(peer)?;
            if !verify(&member, key.digest(&self.ceremony.context), &success) {
                return Err(DkgError::Result { culprit: peer });
            }
            keep(&mut self.successes, peer, success)?;
        }
        Ok(())
    }

    /// The share to encrypt and store; call [`Dkg::confirm_stored`] when it is durable.
    pub fn result(&self) -> Option<(&EpochKey, &NodeShare)> {
        self.result.as_ref().map(|(key, share)| (key, share))
    }

    /// Signs success. Only after the share is on disk: the signature tells the others to rely on it.
    pub fn confirm_stored(&mut self) {
        if let Some((key, _)) = &self.result
            && !self.stored
        {
            self.stored = true;
            self.successes.insert(self.me, key.sign(&self.ceremony.context, &self.key));
        }
    }

    /// The certified key, once every member has signed success.
    pub fn outcome(&self) -> Option<(EpochKey, BTreeMap<NodeId, schnorr::Signature>)> {
        let (key, _) = self.result.as_ref()?;
        (self.successes.len() == self.ceremony.members.len()).then(|| (key.clone(), self.successes.clone()))
    }

    /// Whether [`Dkg::confirm_stored`] was called after the result was there.
    pub fn is_stored(&self) -> bool {
        self.stored
    }

    /// How many of the 4 steps are done here, for progress reports.
    pub fn steps_done(&self) -> u8 {
        u8::from(self.commitments.len() == self.ceremony.members.len())
            + u8::from(self.echoes_agree())
            + u8::from(self.result.is_some())
            + u8::from(self.outcome().is_some())
    }

    fn check(&self, peer: NodeId, purpose: Purpose, signed: &Signed) -> Result<(), DkgError> {
        let digest = self.ceremony.statement(purpose, peer, &signed.bytes);
        if verify(&self.ceremony.member(peer)?, digest, &signed.signature) {
            Ok(())
        } else {
            Err(DkgError::Signature { culprit: peer })
        }
    }

    fn take_commitment(&mut self, peer: NodeId, signed: Signed) -> Result<(), DkgError> {
        self.check(peer, Purpose::DkgCommitment, &signed)?;
        let package = parse_round1(peer, &signed)?;
        let degree = package.commitment().serialize().map_or(0, |coefficients| coefficients.len());
        if degree != self.ceremony.coefficients() {
            return Err(DkgError::Degree { culprit: peer });
        }
        keep(&mut self.commitments, peer, signed)
    }

    fn echoes_agree(&self) -> bool {
        let mine = self.echoes.get(&self.me).map(|echo| &echo.bytes);
        self.echoes.len() == self.ceremony.members.len()
            && self.echoes.values().all(|echo| Some(&echo.bytes) == mine)
    }

    fn others(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.ceremony.members.iter().map(|member| member.id).filter(|id| *id != self.me)
    }

    fn advance(&mut self) -> Result<(), DkgError> {
        let everyone = self.ceremony.members.len();
        if self.commitments.len() == everyone && !self.echoes.contains_key(&self.me) {
            self.echo();
        }
        if let Some(mine) = self.echoes.get(&self.me) {
            let split = self.echoes.iter().find(|(_, echo)| echo.bytes != mine.bytes);
            if let Some((peer, _)) = split {
                return Err(DkgError::Split { peer: *peer });
            }
        }
        if self.echoes_agree() && self.round2_secret.is_none() {
            self.make_shares()?;
        }
        if self.incoming.len() + 1 == everyone && self.round2_secret.is_some() && self.result.is_none() {
            self.finish()?;
        }
        Ok(())
    }

    fn echo(&mut self) {
        let mut writer = Writer::signed(Purpose::DkgEcho, &self.ceremony.context);
        for (node, commitment) in &self.commitments {
            writer = writer.u16(node.0).bytes(&commitment.bytes);
        }
        let bytes = writer.finish().to_vec();
        let signature = self.key.sign(self.ceremony.statement(Purpose::DkgEcho, self.me, &bytes));
        self.echoes.insert(self.me, Signed { bytes, signature });
    }

    fn round1_packages(&self) -> Result<Round1Packages, DkgError> {
        self.others()
            .map(|node| {
                let signed = self.commitments.get(&node).ok_or(DkgError::Parameters)?;
                Ok((identifier(node.0).ok_or(DkgError::Parameters)?, parse_round1(node, signed)?))
            })
            .collect()
    }

    fn make_shares(&mut self) -> Result<(), DkgError> {
        let (secret, packages) = self.round1_packages().and_then(|packages| {
            let secret = self.round1_secret.clone();
            let made = match &self.ceremony.before {
                None => tr_dkg::part2(secret, &packages),
                Some(_) => refresh::refresh_dkg_part2(secret, &packages),
            };
            made.map_err(|error| self.blame(&error))
        })?;
        for node in self.others().collect::<Vec<_>>() {
            let package = identifier(node.0).and_then(|id| packages.get(&id));
            let bytes = package.and_then(|package| package.signing_share().serialize().into());
            self.outgoing.insert(node, SecretShare(bytes.ok_or(DkgError::Parameters)?));
        }
        self.round2_secret = Some(secret);
        Ok(())
    }

    fn finish(&mut self) -> Result<(), DkgError> {
        let secret = self.round2_secret.as_ref().ok_or(DkgError::Parameters)?;
        let incoming = self
            .incoming
            .iter()
            .map(|(node, share)| {
                let share =
                    SigningShare::deserialize(&share.0).map_err(|_| DkgError::Share { culprit: *node })?;
                let id = identifier(node.0).ok_or(DkgError::Parameters)?;
                Ok((id, tr_dkg::round2::Package::new(share)))
            })
            .collect::<Result<_, DkgError>>()?;
        let packages = self.round1_packages()?;
        let (mine, public) = match &self.ceremony.before {
            None => tr_dkg::part3(secret, &packages, &incoming).map_err(|error| self.blame(&error))?,
            Some(before) => {
                self.check_refreshing(&packages, &incoming)?;
                let share = self.share.as_ref().ok_or(DkgError::Parameters)?;
                let old = packages_of(share, before, self.ceremony.quorum).ok_or(DkgError::Parameters)?;
                refresh::refresh_dkg_shares(secret, &packages, &incoming, old.1, old.0)
                    .map_err(|error| self.blame(&error))?
            }
        };
        let share = mine.signing_share().serialize().try_into().ok();
        let share = share.and_then(|bytes: [u8; 32]| NodeShare::from_bytes(self.me, &bytes));
        let verifying_shares = self
            .ceremony
            .members
            .iter()
            .map(|member| {
                let share = public.verifying_shares().get(&identifier(member.id.0)?)?;
                Some((member.id, PublicKey::from_slice(&share.serialize().ok()?).ok()?))
            })
            .collect::<Option<_>>();
        let group = public.verifying_key().serialize().ok();
        let group_key = group.and_then(|bytes| PublicKey::from_slice(&bytes).ok());
        let (Some(share), Some(verifying_shares), Some(group_key)) = (share, verifying_shares, group_key)
        else {
            return Err(DkgError::Parameters);
        };
        let key = EpochKey { epoch: self.ceremony.context.epoch, group_key, verifying_shares };
        self.result = Some((key, share));
        Ok(())
    }

    /// The library finds a bad share of a refresh but does not say whose it is.
    fn check_refreshing(&self, packages: &Round1Packages, shares: &Round2Packages) -> Result<(), DkgError> {
        use frost_core::{Group as _, keys::CoefficientCommitment};
        let own = identifier(self.me.0).ok_or(DkgError::Parameters)?;
        for node in self.others() {
            let id = identifier(node.0).ok_or(DkgError::Parameters)?;
            let (Some(package), Some(share)) = (packages.get(&id), shares.get(&id)) else {
                return Err(DkgError::Share { culprit: node });
            };
            let zero = CoefficientCommitment::new(frost_secp256k1_tr::Secp256K1Group::identity());
            let coefficients = package.commitment().coefficients().iter().copied();
            let commitment = frost_core::keys::VerifiableSecretSharingCommitment::new(
                std::iter::once(zero).chain(coefficients).collect(),
            );
            let share = frost_secp256k1_tr::keys::SecretShare::new(own, *share.signing_share(), commitment);
            share.verify().map_err(|_| DkgError::Share { culprit: node })?;
        }
        Ok(())
    }

    fn blame(&self, error: &frost_secp256k1_tr::Error) -> DkgError {
        let culprits = error.culprits();
        let named = self.others().find(|node| identifier(node.0).is_some_and(|id| culprits.contains(&id)));
        named.map_or(DkgError::Parameters, |culprit| DkgError::Share { culprit })
    }
}

/// What the library wants to know of a share and its key.
fn packages_of(share: &NodeShare, key: &EpochKey, quorum: Quorum) -> Option<(KeyPackage, PublicKeyPackage)> {
    let public = super::public_package(key, quorum)?;
    let id = identifier(share.node().0)?;
    let secret = SigningShare::deserialize(share.to_bytes().as_ref()).ok()?;
    let verifying = *public.verifying_shares().get(&id)?;
    let package = KeyPackage::new(id, secret, verifying, *public.verifying_key(), quorum.votes());
    Some((package, public))
}

type Round2Packages = BTreeMap<frost_secp256k1_tr::Identifier, tr_dkg::round2::Package>;
type Round1Packages = BTreeMap<frost_secp256k1_tr::Identifier, tr_dkg::round1::Package>;

fn parse_round1(node: NodeId, signed: &Signed) -> Result<tr_dkg::round1::Package, DkgError> {
    tr_dkg::round1::Package::deserialize(&signed.bytes).map_err(|_| DkgError::Malformed { culprit: node })
}

/// Keeps the first statement of a node; another one in its place is equivocation.
fn keep<T: PartialEq>(map: &mut BTreeMap<NodeId, T>, node: NodeId, value: T) -> Result<(), DkgError> {
    match map.get(&node) {
        Some(first) if *first != value => Err(DkgError::Equivocation { culprit: node }),
        Some(_) => Ok(()),
        None => {
            map.insert(node, value);
            Ok(())
        }
    }
}

/// Why a key generation cannot finish. The operators have to deal with the node that is named, and start again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DkgError {
    /// Roster or own key do not fit.
    #[error("roster or identity key do not fit this key generation")]
    Parameters,
    /// Not parseable.
    #[error("node {culprit} sent a malformed commitment")]
    Malformed {
        /// The sender.
        culprit: NodeId,
    },
    /// A signature does not verify.
    #[error("node {culprit} sent a statement that it did not sign")]
    Signature {
        /// The sender.
        culprit: NodeId,
    },
    /// A polynomial of the wrong degree.
    #[error("node {culprit} committed to a polynomial of the wrong degree")]
    Degree {
        /// The sender.
        culprit: NodeId,
    },
    /// Two different statements in one step.
    #[error("node {culprit} took back what it had said in an earlier step")]
    Equivocation {
        /// The sender.
        culprit: NodeId,
    },
    /// Two nodes saw different commitments: somebody sent different ones to different nodes.
    #[error("node {peer} and this node were sent different commitments")]
    Split {
        /// The other witness, not necessarily the culprit.
        peer: NodeId,
    },
    /// A secret share or proof of knowledge is not valid.
    #[error("node {culprit} sent an invalid share or proof")]
    Share {
        /// The sender.
        culprit: NodeId,
    },
    /// A success signature over another result.
    #[error("node {culprit} signed another result")]
    Result {
        /// The sender.
        culprit: NodeId,
    },
}
