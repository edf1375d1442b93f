//! One attempt at signing all inputs of a transaction: commitments in, shares out, signatures at the end.
//!
//! Every party builds its own [`SigningSession`] from the proposal it checked itself; nobody signs a digest that
//! somebody else computed. [`SigningSession::digest`] covers the whole package (account, keys, roots, sighashes,
//! ordered signers, all commitments, attempt), and a node binds its nonces to it.

use super::{
    WALLET_IDENTIFIER, compressed, identifier, inverse_wallet_coefficient, point,
    shares::{Common, Nonces},
};
use crate::{
    AccountId, Federation, NodeId, NonceCommitment, PackageDigest, SignatureShare,
    account::AccountRecord,
    digest::{IdentityKey, Purpose, Writer, verify},
    ids::listed,
    proposal::SpendPlan,
    vote::VoteTarget,
};
use bitcoin::secp256k1::{self, PublicKey, schnorr};
use frost_secp256k1_tr::{self as tr, keys::Tweak as _};
use k256::{ProjectivePoint, Scalar, elliptic_curve::ops::MulByGenerator as _};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt, sync::OnceLock};
use zeroize::Zeroizing;

/// A node's nonce commitments for one transaction, one per input, signed end to end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeCommitments {
    /// One commitment per input, in input order.
    pub commitments: Vec<NonceCommitment>,
    /// The node's identity signature over them, so that no relay can swap them.
    pub signature: schnorr::Signature,
}

impl NodeCommitments {
    /// Signs `commitments` for a transaction in the rounds of its inputs.
    pub fn sign(
        federation: &Federation,
        node: NodeId,
        key: &IdentityKey,
        target: &VoteTarget,
        commitments: Vec<NonceCommitment>,
    ) -> Self {
        let signature = key.sign(commitments_digest(federation, node, target, &commitments));
        Self { commitments, signature }
    }

    /// Whether `node` signed exactly these commitments for this transaction in these rounds, one per input.
    pub fn verify(&self, federation: &Federation, node: NodeId, target: &VoteTarget) -> bool {
        self.commitments.len() == target.inputs().len()
            && federation.verify(
                node,
                commitments_digest(federation, node, target, &self.commitments),
                &self.signature,
            )
    }

    /// Whether every commitment is a pair of curve points, so that a session can be built with it.
    pub fn is_well_formed(&self) -> bool {
        self.commitments.iter().all(|one| parse_commitment(one).is_some())
    }
}

/// The rounds are part of it: a share released in one round must not add up with shares of a later one, or a
/// transaction could become final without q nodes having committed to one certificate (see [`crate::release`]).
fn commitments_digest(
    federation: &Federation,
    node: NodeId,
    target: &VoteTarget,
    commitments: &[NonceCommitment],
) -> [u8; 32] {
    let writer = Writer::signed(Purpose::NonceCommitments, federation.context())
        .u16(node.0)
        .fixed(&target.hash().0)
        .u32(u32::try_from(commitments.len()).unwrap_or(u32::MAX));
    commitments.iter().fold(writer, |writer, commitment| writer.fixed(&commitment.0)).finish()
}

/// The wallet's side of a session: commitments and shares made in one call, so that it keeps no nonce.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct WalletSignature {
    /// One commitment per input.
    pub commitments: Vec<NonceCommitment>,
    /// One signature share per input.
    pub shares: Vec<SignatureShare>,
    /// Signature of the account's authorisation key over package and shares.
    pub signature: schnorr::Signature,
}

/// A signing package for all inputs of one transaction, with everything checked that can be checked before shares
/// exist.
#[derive(Debug)]
pub struct SigningSession {
    digest: PackageDigest,
    nodes: Vec<NodeId>,
    inputs: Vec<SessionInput>,
}

#[derive(Debug)]
pub(super) struct SessionInput {
    package: tr::SigningPackage,
    /// Made when it is needed: a package that its wallet did not sign is not worth it.
    common: OnceLock<Option<Common>>,
    key: PublicKey,
    tweak: Scalar,
    merkle_root: [u8; 32],
}

impl SigningSession {
    /// Builds the package for `plan` in the rounds of `target` from the commitments of exactly q nodes and the
    /// wallet's.
    ///
    /// # Errors
    /// Another transaction's target, wrong number of signers or commitments, a commitment that its owner did not sign
    /// for these rounds, or one that is no point; the error names the culprit.
    pub fn new(
        federation: &Federation,
        plan: &SpendPlan,
        target: &VoteTarget,
        attempt: u32,
        nodes: &BTreeMap<NodeId, NodeCommitments>,
        wallet: &[NonceCommitment],
    ) -> Result<Self, SigningError> {
        if target.txid() != plan.txid || target.epoch() != Some(federation.epoch()) {
            return Err(SigningError::Target);
        }
        let expected = usize::from(federation.quorum().votes());
        if nodes.len() != expected {
            return Err(SigningError::Signers { expected, found: nodes.len() });
        }
        if wallet.len() != plan.inputs.len() {
            return Err(SigningError::Commitments { culprit: Culprit::Wallet });
        }
        for (node, commitments) in nodes {
            if !commitments.verify(federation, *node, target) {
                return Err(SigningError::Commitments { culprit: Culprit::Node(*node) });
            }
        }
        let inputs = plan
            .inputs
            .iter()
            .enumerate()
            .map(|(index, input)| {
                let parsed = parse_commitments(index, nodes, wallet)?;
                let package = tr::SigningPackage::new(parsed, &input.sighash);
                let (key, merkle_root) = (input.key, input.merkle_root);
                let tweak = super::parse_scalar(&input.tweak).ok_or(SigningError::Key)?;
                Ok(SessionInput { package, common: OnceLock::new(), key, tweak, merkle_root })
            })
            .collect::<Result<_, SigningError>>()?;
        let digest = package_digest(federation, plan, target, attempt, nodes, wallet);
        Ok(Self { digest, nodes: nodes.keys().copied().collect(), inputs })
    }

    /// The digest of the whole package.
    pub fn digest(&self) -> PackageDigest {
        self.digest
    }

    /// The nodes that sign, in order.
    pub fn nodes(&self) -> &[NodeId] {
        &self.nodes
    }

    pub(super) fn inputs(&self) -> &[SessionInput] {
        &self.inputs
    }

    /// What a node's identity key signs when it releases shares for this session.
    pub(crate) fn shares_digest(&self, federation: &Federation, shares: &[SignatureShare]) -> [u8; 32] {
        let writer = Writer::signed(Purpose::Shares, federation.context()).fixed(&self.digest.0);
        shares.iter().fold(writer, |writer, share| writer.fixed(&share.0)).finish()
    }

    /// Signs a party's shares end to end.
    pub fn sign_shares(
        &self,
        federation: &Federation,
        key: &IdentityKey,
        shares: &[SignatureShare],
    ) -> schnorr::Signature {
        key.sign(self.shares_digest(federation, shares))
    }

    /// Whether `node` sent exactly these shares for this session.
    pub fn verify_shares(
        &self,
        federation: &Federation,
        node: NodeId,
        shares: &[SignatureShare],
        signature: &schnorr::Signature,
    ) -> bool {
        shares.len() == self.inputs.len()
            && federation.verify(node, self.shares_digest(federation, shares), signature)
    }

    /// Whether the account's wallet sent exactly these shares for this session.
    pub fn verify_wallet(
        &self,
        federation: &Federation,
        account: &AccountRecord,
        wallet: &WalletSignature,
    ) -> bool {
        wallet.shares.len() == self.inputs.len()
            && verify(
                &account.authorisation_key,
                self.shares_digest(federation, &wallet.shares),
                &wallet.signature,
            )
    }

    /// Adds all shares up to one BIP340 signature per input, each verified against its output key.
    ///
    /// # Errors
    /// Some share is missing or not valid; the error names whose.
    pub fn aggregate(
        &self,
        federation: &Federation,
        account: &AccountRecord,
        nodes: &BTreeMap<NodeId, Vec<SignatureShare>>,
        wallet: &[SignatureShare],
    ) -> Result<Vec<schnorr::Signature>, AggregateError> {
        let min_signers = federation.quorum().votes() + 1;
        let mut signatures = Vec::with_capacity(self.inputs.len());
        let mut culprits = Vec::new();
        for (index, input) in self.inputs.iter().enumerate() {
            let of_nodes = self.nodes.iter().filter_map(|node| nodes.get(node)?.get(index));
            let all: Vec<&SignatureShare> = of_nodes.chain(wallet.get(index)).collect();
            let whole = all.len() == self.nodes.len() + 1;
            let sum = |common: &Common| common.sum(&input.package, all.into_iter());
            let signature = input.common().filter(|_| whole).and_then(sum);
            if let Some(signature) = signature {
                signatures.push(signature);
                continue;
            }
            // Whose share is wrong is asked only if the sum is: that takes every signer's key.
            let shares = self.parse_shares(index, nodes, wallet)?;
            let keys = self.unscaled_keys(federation, account)?;
            match input.sum_up(&shares, &keys, min_signers)? {
                Ok(signature) => signatures.push(to_schnorr(&signature)?),
                Err(error) => culprits.extend(error.culprits().into_iter().filter_map(|id| self.culprit(id))),
            }
        }
        if signatures.len() == self.inputs.len() {
            return Ok(signatures);
        }
        culprits.sort();
        culprits.dedup();
        Err(AggregateError::Shares { culprits })
    }

    /// Whether a signer's shares fit its public share in every input.
    pub fn share_is_valid(
        &self,
        federation: &Federation,
        account: &AccountRecord,
        node: NodeId,
        shares: &[SignatureShare],
    ) -> bool {
        let Ok(keys) = self.unscaled_keys(federation, account) else { return false };
        let Some(id) = identifier(node.0) else { return false };
        shares.len() == self.inputs.len()
            && self.inputs.iter().zip(shares).all(|(input, share)| {
                let public = input.public_key_package(&keys, federation.quorum().votes() + 1);
                let Ok(public) = public.map(|public| public.tweak(Some(input.merkle_root.as_slice()))) else {
                    return false;
                };
                let share = tr::round2::SignatureShare::deserialize(&share.0);
                public.verifying_shares().get(&id).zip(share.ok()).is_some_and(|(verifying, share)| {
                    let key = public.verifying_key();
                    frost_core::verify_signature_share(id, verifying, &share, &input.package, key).is_ok()
                })
            })
    }

    /// Every signer's verifying share before the input's tweak.
    fn unscaled_keys(
        &self,
        federation: &Federation,
        account: &AccountRecord,
    ) -> Result<Vec<(tr::Identifier, ProjectivePoint)>, AggregateError> {
        let coefficient =
            inverse_wallet_coefficient(self.nodes.iter().copied()).ok_or(AggregateError::Keys)?;
        let wallet = point(&account.wallet_key).ok_or(AggregateError::Keys)? * coefficient;
        let mut keys = vec![(identifier(WALLET_IDENTIFIER).ok_or(AggregateError::Keys)?, wallet)];
        for node in &self.nodes {
            let share = federation.weighted_share(*node).ok_or(AggregateError::Keys)?;
            keys.push((identifier(node.0).ok_or(AggregateError::Keys)?, *share));
        }
        Ok(keys)
    }

    fn parse_shares(
        &self,
        index: usize,
        nodes: &BTreeMap<NodeId, Vec<SignatureShare>>,
        wallet: &[SignatureShare],
    ) -> Result<BTreeMap<tr::Identifier, tr::round2::SignatureShare>, AggregateError> {
        let mut parsed = BTreeMap::new();
        let mut add = |id: u16, culprit: Culprit, share: Option<&SignatureShare>| {
            let malformed = || AggregateError::Shares { culprits: vec![culprit] };
            let share = share.ok_or_else(malformed)?;
            let share = tr::round2::SignatureShare::deserialize(&share.0).map_err(|_| malformed())?;
            parsed.insert(identifier(id).ok_or(AggregateError::Keys)?, share);
            Ok::<(), AggregateError>(())
        };
        for node in &self.nodes {
            let share = nodes.get(node).and_then(|shares| shares.get(index));
            add(node.0, Culprit::Node(*node), share)?;
        }
        add(WALLET_IDENTIFIER, Culprit::Wallet, wallet.get(index))?;
        Ok(parsed)
    }

    fn culprit(&self, id: tr::Identifier) -> Option<Culprit> {
        if identifier(WALLET_IDENTIFIER) == Some(id) {
            return Some(Culprit::Wallet);
        }
        self.nodes.iter().find(|node| identifier(node.0) == Some(id)).map(|node| Culprit::Node(*node))
    }
}

impl SessionInput {
    /// The sum of the shares, verified by the library, whose error names whose is wrong.
    fn sum_up(
        &self,
        shares: &BTreeMap<tr::Identifier, tr::round2::SignatureShare>,
        keys: &[(tr::Identifier, ProjectivePoint)],
        min_signers: u16,
    ) -> Result<Result<tr::Signature, tr::Error>, AggregateError> {
        let public = self.public_key_package(keys, min_signers)?.tweak(Some(self.merkle_root.as_slice()));
        let all = frost_core::CheaterDetection::AllCheaters;
        Ok(frost_core::aggregate_custom(&self.package, shares, &public, all))
    }

    fn public_key_package(
        &self,
        keys: &[(tr::Identifier, ProjectivePoint)],
        min_signers: u16,
    ) -> Result<tr::keys::PublicKeyPackage, AggregateError> {
        let tweak = ProjectivePoint::mul_by_generator(&self.tweak);
        let shares = keys
            .iter()
            .map(|(id, share)| {
                let share = tr::keys::VerifyingShare::deserialize(&compressed(&(*share + tweak)));
                Ok((*id, share.map_err(|_| AggregateError::Keys)?))
            })
            .collect::<Result<_, AggregateError>>()?;
        let key = tr::VerifyingKey::deserialize(&self.key.serialize()).map_err(|_| AggregateError::Keys)?;
        Ok(tr::keys::PublicKeyPackage::new(shares, key, Some(min_signers)))
    }

    /// The commitment that a party has in the package.
    pub(super) fn commitment(&self, id: u16) -> Option<NonceCommitment> {
        commitment_bytes(&self.package.signing_commitment(&identifier(id)?)?)
    }

    /// Computes the share of this input's signature of a party that has this secret share, before the tweak.
    pub(super) fn sign(&self, id: u16, secret: &Scalar, nonces: &Nonces) -> Option<SignatureShare> {
        let secret = Zeroizing::new(*secret + self.tweak);
        self.common()?.share(&self.package, id, &secret, nonces)
    }

    fn common(&self) -> Option<&Common> {
        let made = self.common.get_or_init(|| Common::new(&self.package, &self.key, &self.merkle_root));
        made.as_ref()
    }
}

fn to_schnorr(signature: &tr::Signature) -> Result<schnorr::Signature, AggregateError> {
    let bytes = signature.serialize().map_err(|_| AggregateError::Keys)?;
    schnorr::Signature::from_slice(&bytes).map_err(|_| AggregateError::Keys)
}

fn parse_commitments(
    index: usize,
    nodes: &BTreeMap<NodeId, NodeCommitments>,
    wallet: &[NonceCommitment],
) -> Result<BTreeMap<tr::Identifier, tr::round1::SigningCommitments>, SigningError> {
    let of_nodes = nodes.iter().map(|(node, all)| (node.0, Culprit::Node(*node), all.commitments.get(index)));
    let of_wallet = (WALLET_IDENTIFIER, Culprit::Wallet, wallet.get(index));
    of_nodes
        .chain([of_wallet])
        .map(|(id, culprit, commitment)| {
            let parsed = commitment.and_then(parse_commitment).zip(identifier(id));
            let (commitments, id) = parsed.ok_or(SigningError::Commitments { culprit })?;
            Ok((id, commitments))
        })
        .collect()
}

pub(super) fn parse_commitment(commitment: &NonceCommitment) -> Option<tr::round1::SigningCommitments> {
    let (hiding, binding) = commitment.0.split_at(33);
    Some(tr::round1::SigningCommitments::new(
        tr::round1::NonceCommitment::deserialize(hiding).ok()?,
        tr::round1::NonceCommitment::deserialize(binding).ok()?,
    ))
}

pub(super) fn commitment_bytes(commitments: &tr::round1::SigningCommitments) -> Option<NonceCommitment> {
    let mut bytes = commitments.hiding().serialize().ok()?;
    bytes.extend(commitments.binding().serialize().ok()?);
    bytes.try_into().ok().map(NonceCommitment)
}

fn package_digest(
    federation: &Federation,
    plan: &SpendPlan,
    target: &VoteTarget,
    attempt: u32,
    nodes: &BTreeMap<NodeId, NodeCommitments>,
    wallet: &[NonceCommitment],
) -> PackageDigest {
    let AccountId(account) = plan.account;
    let mut writer = Writer::signed(Purpose::Package, federation.context())
        .fixed(&account)
        .fixed(plan.txid.as_ref())
        .fixed(&target.hash().0)
        .u32(attempt)
        .u32(u32::try_from(plan.inputs.len()).unwrap_or(u32::MAX));
    for input in &plan.inputs {
        writer = writer.fixed(&input.key.serialize()).fixed(&input.merkle_root).fixed(&input.sighash);
    }
    for (node, all) in nodes {
        writer = writer.u16(node.0);
        writer = all.commitments.iter().fold(writer, |writer, one| writer.fixed(&one.0));
    }
    writer = writer.u16(WALLET_IDENTIFIER);
    PackageDigest(wallet.iter().fold(writer, |writer, one| writer.fixed(&one.0)).finish())
}

/// Who spoiled a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Culprit {
    /// The paying wallet.
    Wallet,
    /// A node.
    Node(NodeId),
}

impl fmt::Display for Culprit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wallet => f.write_str("the wallet"),
            Self::Node(node) => write!(f, "node {node}"),
        }
    }
}

/// Why a signing package cannot be built, or no share be made for it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SigningError {
    /// Not exactly q nodes.
    #[error("a session has exactly {expected} nodes, not {found}")]
    Signers {
        /// q.
        expected: usize,
        /// Nodes given.
        found: usize,
    },
    /// Commitments that are missing, malformed or not signed by their owner.
    #[error("the nonce commitments of {culprit:?} are not valid")]
    Commitments {
        /// Whose.
        culprit: Culprit,
    },
    /// A nonce that is not (or no longer) in the pool, or of another transaction.
    #[error("a nonce of this package is used up or unknown; start a new attempt")]
    Nonce,
    /// A key of the plan is not usable.
    #[error("a key of this transaction is not usable")]
    Key,
    /// The certificate is of another transaction or epoch.
    #[error("the certificate is of another transaction or epoch than the one to sign")]
    Target,
}

impl From<secp256k1::Error> for SigningError {
    fn from(_: secp256k1::Error) -> Self {
        Self::Key
    }
}

/// Why shares do not add up to signatures.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AggregateError {
    /// Shares that are missing or not valid; start the next session without these parties.
    #[error("signature shares of {} are not valid", listed(culprits))]
    Shares {
        /// Whose.
        culprits: Vec<Culprit>,
    },
    /// A key of federation or account is not usable.
    #[error("a key of the federation or account is not usable")]
    Keys,
}
