//! Repair of a lost share: q nodes compute it together for the one that lost it, and none of them learns anything.
//!
//! The "repairable threshold scheme" of Laing and Stinson (<https://eprint.iacr.org/2017/1155>) as `frost-core` has it, in three steps:
//! every helper splits its part of the lost share into one random piece per helper; every helper adds the pieces that
//! it was given up; the sum of these sums is the share. The library does not check the result: [`finish_repair`]
//! compares it with the public share.

use super::{NodeShare, identifier, public_package};
use crate::{Epoch, NodeId, Quorum, federation::EpochKey};
use frost_secp256k1_tr::keys::{self, repairable};
use rand_core::{CryptoRng, RngCore};
use serde::{Deserialize, Serialize};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// One repair: which nodes help whom. Another try has another number, so that the pieces of two of them never mix.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RepairSession {
    /// The epoch of the share.
    pub epoch: Epoch,
    /// A random number.
    pub number: u64,
    /// Whose share is repaired.
    pub participant: NodeId,
    /// Exactly q other nodes.
    pub helpers: BTreeSet<NodeId>,
}

impl RepairSession {
    /// Whether it can be carried out among the nodes of a federation.
    pub fn is_sound(&self, quorum: Quorum) -> bool {
        let member = |node: &NodeId| (1..=quorum.nodes()).contains(&node.0);
        self.helpers.len() == usize::from(quorum.votes())
            && !self.helpers.contains(&self.participant)
            && member(&self.participant)
            && self.helpers.iter().all(member)
    }
}

/// A secret number on its way from one node to another; redacted in `Debug`, erased on drop.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(transparent)]
pub struct RepairPart(#[serde(with = "hex::serde")] [u8; 32]);

impl fmt::Debug for RepairPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RepairPart(..)")
    }
}

/// One helper's side of a repair.
#[derive(Debug)]
pub struct RepairHelper {
    session: RepairSession,
    mine: BTreeMap<NodeId, RepairPart>,
}

impl RepairHelper {
    /// Splits this node's part of the lost share. `None` if the session is not sound or this node is not among its
    /// helpers.
    pub fn new(
        share: &NodeShare,
        key: &EpochKey,
        quorum: Quorum,
        session: RepairSession,
        rng: &mut (impl RngCore + CryptoRng),
    ) -> Option<Self> {
        let fits = session.epoch == key.epoch && session.is_sound(quorum);
        if !fits || !session.helpers.contains(&share.node()) {
            return None;
        }
        let public = public_package(key, quorum)?;
        let own = identifier(share.node().0)?;
        let secret = keys::SigningShare::deserialize(share.to_bytes().as_ref()).ok()?;
        let verifying = *public.verifying_shares().get(&own)?;
        let package = keys::KeyPackage::new(own, secret, verifying, *public.verifying_key(), quorum.votes());
        let helpers: Vec<_> = session.helpers.iter().map(|node| identifier(node.0)).collect::<Option<_>>()?;
        let participant = identifier(session.participant.0)?;
        let parts = repairable::repair_share_part1::<frost_secp256k1_tr::Secp256K1Sha256TR, _>(
            &helpers,
            &package,
            rng,
            participant,
        )
        .ok()?;
        let part = |node: &NodeId| {
            let bytes = parts.get(&identifier(node.0)?)?.serialize();
            Some((*node, RepairPart(bytes.try_into().ok()?)))
        };
        let mine = session.helpers.iter().map(part).collect::<Option<_>>()?;
        Some(Self { session, mine })
    }

    /// What it is about.
    pub fn session(&self) -> &RepairSession {
        &self.session
    }

    /// The piece for another helper, only over a link that is encrypted and authenticated as that helper.
    pub fn part_for(&self, helper: NodeId) -> Option<&RepairPart> {
        self.mine.get(&helper)
    }

    /// Adds the pieces of all helpers up, this one's own among them: what the participant is sent. `None` if one is
    /// missing or no number.
    pub fn sum(&self, pieces: &BTreeMap<NodeId, RepairPart>) -> Option<RepairPart> {
        let parsed = self
            .session
            .helpers
            .iter()
            .map(|node| repairable::Delta::deserialize(&pieces.get(node)?.0).ok())
            .collect::<Option<Vec<_>>>()?;
        repairable::repair_share_part2(&parsed).serialize().try_into().ok().map(RepairPart)
    }
}

/// Adds the helpers' sums up. `None` if the result is not the share that the federation's document shows: one of the
/// helpers sent something else, and the repair has to be tried with others.
pub fn finish_repair(
    session: &RepairSession,
    sums: &BTreeMap<NodeId, RepairPart>,
    key: &EpochKey,
    quorum: Quorum,
) -> Option<NodeShare> {
    let parsed = session
        .helpers
        .iter()
        .map(|node| repairable::Sigma::deserialize(&sums.get(node)?.0).ok())
        .collect::<Option<Vec<_>>>()?;
    let public = public_package(key, quorum)?;
    let id = identifier(session.participant.0)?;
    let package = repairable::repair_share_part3(&parsed, id, &public).ok()?;
    let bytes: [u8; 32] = package.signing_share().serialize().try_into().ok()?;
    let share = NodeShare::from_bytes(session.participant, &bytes)?;
    share.fits(key).then_some(share)
}
