//! Distributed generation of a federation key: the machine of one node.
//!
//! PedPop (the FROST paper's DKG, as `frost-secp256k1-tr` implements it) in four steps, each signed by its sender and bound to
//! network, federation and epoch:
//!
//! 1. **Commitment**: the polynomial commitment with its proof of knowledge. Its degree is checked here, per sender, before
//!    the library sees it, so that a culprit has a name.
//! 2. **Echo**: the hash of all n commitments. No secret share leaves before *all* echoes agree; without it, a sender that
//!    gives different commitments to different nodes splits the group unnoticed.
//! 3. **Share**: the secret share for one recipient, only over a link that is encrypted and authenticated as that recipient.
//! 4. **Success**: a signature over the public result, released by [`Dkg::confirm_stored`] after the share is on disk.
//!
//! The randomness comes from the caller; a node that seeds it from a stored secret and the federation id sends, after a
//! restart, the same messages again, so an interrupted run simply goes on. Messages are pulled: a node asks each peer for
//! its [`Bundle`] until [`Dkg::outcome`] is there; asking twice changes nothing.

use super::{NodeShare, identifier};
use crate::{
    Epoch, NodeId, Quorum,
    digest::{Context, IdentityKey, Purpose, Writer, verify},
    federation::{EpochKey, Roster},
};
use bitcoin::secp256k1::{PublicKey, schnorr};
use frost_secp256k1_tr::keys::dkg as tr_dkg;
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

/// The machine of one node.
#[derive(Debug)]
pub struct Dkg {
    me: NodeId,
    key: IdentityKey,
    roster: Roster,
    context: Context,
    quorum: Quorum,
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
    /// Starts the run of `epoch` for the node whose identity key is given.
    ///
    /// # Errors
    /// The roster is not well formed, or the key is of no member.
    pub fn new(
        roster: Roster,
        epoch: Epoch,
        key: IdentityKey,
        rng: impl RngCore + CryptoRng,
    ) -> Result<Self, DkgError> {
        let quorum = roster.check().map_err(|_| DkgError::Parameters)?;
        let public = key.public();
        let me = roster.members.iter().find(|member| member.identity_key == public);
        let me = me.ok_or(DkgError::Parameters)?.id;
        let own = identifier(me.0).ok_or(DkgError::Parameters)?;
        let (round1_secret, package) =
            tr_dkg::part1(own, quorum.nodes(), quorum.votes(), rng).map_err(|_| DkgError::Parameters)?;
        let bytes = package.serialize().map_err(|_| DkgError::Parameters)?;
        let context = roster.context(epoch);
        let signature = key.sign(statement(Purpose::DkgCommitment, &context, me, &bytes));
        let commitments = BTreeMap::from([(me, Signed { bytes, signature })]);
        let mut dkg = Self {
            me,
            key,
            roster,
            context,
            quorum,
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
    /// The peer sent something invalid or took back what it had said; the error names it. The run cannot finish with it.
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
            let member = self.identity(peer)?;
            if !verify(&member, key.digest(&self.context), &success) {
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
            self.successes.insert(self.me, key.sign(&self.roster, &self.key));
        }
    }

    /// The certified key, once every member has signed success.
    pub fn outcome(&self) -> Option<(EpochKey, BTreeMap<NodeId, schnorr::Signature>)> {
        let (key, _) = self.result.as_ref()?;
        (self.successes.len() == self.roster.members.len()).then(|| (key.clone(), self.successes.clone()))
    }

    /// How many of the 4 steps are done here, for progress reports.
    pub fn steps_done(&self) -> u8 {
        u8::from(self.commitments.len() == self.roster.members.len())
            + u8::from(self.echoes_agree())
            + u8::from(self.result.is_some())
            + u8::from(self.outcome().is_some())
    }

    fn identity(&self, node: NodeId) -> Result<bitcoin::XOnlyPublicKey, DkgError> {
        let member = self.roster.members.iter().find(|member| member.id == node);
        member.map(|member| member.identity_key).ok_or(DkgError::Parameters)
    }

    fn check(&self, peer: NodeId, purpose: Purpose, signed: &Signed) -> Result<(), DkgError> {
        let digest = statement(purpose, &self.context, peer, &signed.bytes);
        if verify(&self.identity(peer)?, digest, &signed.signature) {
            Ok(())
        } else {
            Err(DkgError::Signature { culprit: peer })
        }
    }

    fn take_commitment(&mut self, peer: NodeId, signed: Signed) -> Result<(), DkgError> {
        self.check(peer, Purpose::DkgCommitment, &signed)?;
        let package = parse_round1(peer, &signed)?;
        let degree = package.commitment().serialize().map_or(0, |coefficients| coefficients.len());
        if degree != usize::from(self.quorum.votes()) {
            return Err(DkgError::Degree { culprit: peer });
        }
        keep(&mut self.commitments, peer, signed)
    }

    fn echoes_agree(&self) -> bool {
        let mine = self.echoes.get(&self.me).map(|echo| &echo.bytes);
        self.echoes.len() == self.roster.members.len()
            && self.echoes.values().all(|echo| Some(&echo.bytes) == mine)
    }

    fn others(&self) -> impl Iterator<Item = NodeId> + '_ {
        self.roster.members.iter().map(|member| member.id).filter(|id| *id != self.me)
    }

    fn advance(&mut self) -> Result<(), DkgError> {
        let everyone = self.roster.members.len();
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
        let mut writer = Writer::signed(Purpose::DkgEcho, &self.context);
        for (node, commitment) in &self.commitments {
            writer = writer.u16(node.0).bytes(&commitment.bytes);
        }
        let bytes = writer.finish().to_vec();
        let signature = self.key.sign(statement(Purpose::DkgEcho, &self.context, self.me, &bytes));
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
        let (secret, packages) = tr_dkg::part2(self.round1_secret.clone(), &self.round1_packages()?)
            .map_err(|error| self.blame(&error))?;
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
                let share = frost_secp256k1_tr::keys::SigningShare::deserialize(&share.0)
                    .map_err(|_| DkgError::Share { culprit: *node })?;
                let id = identifier(node.0).ok_or(DkgError::Parameters)?;
                Ok((id, tr_dkg::round2::Package::new(share)))
            })
            .collect::<Result<_, DkgError>>()?;
        let (mine, public) =
            tr_dkg::part3(secret, &self.round1_packages()?, &incoming).map_err(|error| self.blame(&error))?;
        let share = mine.signing_share().serialize().try_into().ok();
        let share = share.and_then(|bytes: [u8; 32]| NodeShare::from_bytes(self.me, &bytes));
        let verifying_shares = self
            .roster
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
        let key = EpochKey { epoch: self.context.epoch, group_key, verifying_shares };
        self.result = Some((key, share));
        Ok(())
    }

    fn blame(&self, error: &frost_secp256k1_tr::Error) -> DkgError {
        let culprits = error.culprits();
        let named = self.others().find(|node| identifier(node.0).is_some_and(|id| culprits.contains(&id)));
        named.map_or(DkgError::Parameters, |culprit| DkgError::Share { culprit })
    }
}

/// The seed of a node's randomness for one run: a hash of its stored secret and what the run is bound to.
pub fn randomness_seed(roster: &Roster, epoch: Epoch, secret: &[u8; 32]) -> zeroize::Zeroizing<[u8; 32]> {
    let writer = Writer::signed(Purpose::DkgSeed, &roster.context(epoch));
    zeroize::Zeroizing::new(writer.fixed(secret).finish())
}

type Round1Packages = BTreeMap<frost_secp256k1_tr::Identifier, tr_dkg::round1::Package>;

fn parse_round1(node: NodeId, signed: &Signed) -> Result<tr_dkg::round1::Package, DkgError> {
    tr_dkg::round1::Package::deserialize(&signed.bytes).map_err(|_| DkgError::Malformed { culprit: node })
}

fn statement(purpose: Purpose, context: &Context, node: NodeId, bytes: &[u8]) -> [u8; 32] {
    Writer::signed(purpose, context).u16(node.0).bytes(bytes).finish()
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
