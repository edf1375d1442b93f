//! The federation: roster, quorum, and the certified key of an epoch.
//!
//! The [`Roster`] is what a wallet pins: its tagged hash is the [`FederationId`]. The group key of an epoch is made later, by
//! distributed key generation, and stands in the [`FederationDocument`] with the signatures of *all* roster members and
//! a trial signature (design, section 6). [`Federation`] is such a document after every check has passed.

use crate::{
    Epoch, FederationId, NodeId,
    digest::{self, Context, Purpose, Writer},
    frost,
};
use bitcoin::{
    Network, XOnlyPublicKey,
    secp256k1::{self, PublicKey, schnorr},
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Largest number of nodes in a federation. A certificate has up to two thirds as many signatures.
pub const NODES_MAX: usize = 100;

/// Size of a federation and its thresholds.
///
/// With n = 3f + 1 nodes of which f may do anything, q = floor(2n / 3) + 1 = 2f + 1 is the smallest number such that any two
/// sets of q nodes share at least q + q - n = f + 1 nodes, one of them honest, while the n - f honest nodes
/// are enough to form one.
///
/// ```
/// let quorum = quorate::Quorum::new(7)?;
/// assert_eq!((quorum.votes(), quorum.blocking()), (5, 3));
/// # Ok::<(), quorate::FederationError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quorum {
    nodes: u16,
}

impl Quorum {
    /// The quorum of `nodes` nodes.
    ///
    /// # Errors
    /// Fewer than 4 nodes (no fault could be tolerated) or more than [`NODES_MAX`].
    pub fn new(nodes: usize) -> Result<Self, FederationError> {
        match u16::try_from(nodes) {
            Ok(count) if (4..=NODES_MAX).contains(&nodes) => Ok(Self { nodes: count }),
            _ => Err(FederationError::Size { nodes }),
        }
    }

    /// n, the number of nodes.
    pub fn nodes(self) -> u16 {
        self.nodes
    }

    /// q, the votes that make a certificate.
    pub fn votes(self) -> u16 {
        2 * self.nodes / 3 + 1
    }

    /// n - q + 1, the rejects after which no certificate is possible any more.
    pub fn blocking(self) -> u16 {
        self.nodes - self.votes() + 1
    }
}

/// One node as the roster names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its number, also its FROST identifier.
    pub id: NodeId,
    /// BIP340 key with which it signs votes.
    pub identity_key: XOnlyPublicKey,
}

/// Who the federation is: the part of its document that the [`FederationId`] is the hash of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roster {
    /// The Bitcoin network that it serves.
    pub network: Network,
    /// 32 random bytes, so that two federations of the same members differ.
    #[serde(with = "hex::serde")]
    pub salt: [u8; 32],
    /// Members in the order of their ids, 1 to n.
    pub members: Vec<Member>,
    /// Default delay of the recovery path, in blocks (BIP68 height units).
    pub recovery_delay: u16,
    /// Nodes refuse to vote when an input's recovery path opens within this many blocks.
    pub recovery_margin: u16,
}

impl Roster {
    /// Checks sizes, numbering and that no key occurs twice.
    ///
    /// # Errors
    /// The roster is not well formed; it cannot be used and retrying does not help.
    pub fn check(&self) -> Result<Quorum, FederationError> {
        let quorum = Quorum::new(self.members.len())?;
        let mut keys = std::collections::BTreeSet::new();
        for (expected, member) in (1..).zip(&self.members) {
            if member.id.0 != expected || !keys.insert(member.identity_key) {
                return Err(FederationError::Member { node: member.id });
            }
        }
        if self.recovery_delay <= self.recovery_margin {
            return Err(FederationError::Delay { delay: self.recovery_delay, margin: self.recovery_margin });
        }
        Ok(quorum)
    }

    /// The federation's id: tagged hash of network, salt, members and delays.
    pub fn id(&self) -> FederationId {
        let mut writer = Writer::new(Purpose::Roster)
            .fixed(&self.network.magic().to_bytes())
            .fixed(&self.salt)
            .u16(self.recovery_delay)
            .u16(self.recovery_margin);
        for member in &self.members {
            writer = writer.u16(member.id.0).fixed(&member.identity_key.serialize());
        }
        FederationId(writer.finish())
    }

    /// What signatures of `epoch` are bound to.
    pub fn context(&self, epoch: Epoch) -> Context {
        Context { magic: self.network.magic().to_bytes(), federation: self.id(), epoch }
    }
}

/// The public result of a distributed key generation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochKey {
    /// The epoch it serves.
    pub epoch: Epoch,
    /// The federation key `P_fed`.
    pub group_key: PublicKey,
    /// Each node's public share of it.
    pub verifying_shares: BTreeMap<NodeId, PublicKey>,
}

impl EpochKey {
    pub(crate) fn digest(&self, context: &Context) -> [u8; 32] {
        let mut writer = Writer::signed(Purpose::DkgSuccess, context).fixed(&self.group_key.serialize());
        for (node, share) in &self.verifying_shares {
            writer = writer.u16(node.0).fixed(&share.serialize());
        }
        writer.finish()
    }

    /// A member's signature that it finished the key generation with this result.
    pub fn sign(&self, roster: &Roster, key: &digest::IdentityKey) -> schnorr::Signature {
        key.sign(self.digest(&roster.context(self.epoch)))
    }

    /// The message that every node signs with its share before the key is used.
    pub fn trial_message(&self, roster: &Roster) -> [u8; 32] {
        Writer::signed(Purpose::Trial, &roster.context(self.epoch))
            .fixed(&self.group_key.serialize())
            .finish()
    }
}

/// The federation as it publishes itself (`GET /federation` at a bridge). Not trusted before [`FederationDocument::verify`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FederationDocument {
    /// Members and parameters.
    pub roster: Roster,
    /// The epoch's key.
    pub key: EpochKey,
    /// The signature of every member over the key.
    pub certificate: BTreeMap<NodeId, schnorr::Signature>,
    /// BIP340 signature under the group key itself, made with every share.
    pub trial_signature: schnorr::Signature,
}

impl FederationDocument {
    /// Checks everything against the pinned id and gives the federation to work with.
    ///
    /// # Errors
    /// The document is not that of the pinned federation, or not complete. Whoever served it is at fault; ask another bridge.
    pub fn verify(self, pinned: FederationId) -> Result<Federation, FederationError> {
        let quorum = self.roster.check()?;
        let id = self.roster.id();
        if id != pinned {
            return Err(FederationError::Pinned { expected: pinned, found: id });
        }
        let context = self.roster.context(self.key.epoch);
        let digest = self.key.digest(&context);
        for member in &self.roster.members {
            let signed = self.certificate.get(&member.id);
            if !signed.is_some_and(|signature| digest::verify(&member.identity_key, digest, signature)) {
                return Err(FederationError::Certificate { node: member.id });
            }
            if !self.key.verifying_shares.contains_key(&member.id) {
                return Err(FederationError::Share { node: member.id });
            }
        }
        let message = secp256k1::Message::from_digest(self.key.trial_message(&self.roster));
        let group = self.key.group_key.x_only_public_key().0;
        digest::secp()
            .verify_schnorr(&self.trial_signature, &message, &group)
            .map_err(|_| FederationError::Trial)?;
        let weighted_shares =
            frost::weighted_shares(&self.key.verifying_shares).ok_or(FederationError::Trial)?;
        Ok(Federation { context, quorum, weighted_shares, document: self })
    }
}

/// A federation whose document has been verified.
#[derive(Clone, Debug)]
pub struct Federation {
    context: Context,
    quorum: Quorum,
    weighted_shares: BTreeMap<NodeId, k256::ProjectivePoint>,
    document: FederationDocument,
}

impl Federation {
    /// Its id.
    pub fn id(&self) -> FederationId {
        self.context.federation
    }

    /// What signatures of this epoch are bound to.
    pub fn context(&self) -> &Context {
        &self.context
    }

    /// Its thresholds.
    pub fn quorum(&self) -> Quorum {
        self.quorum
    }

    /// The Bitcoin network.
    pub fn network(&self) -> Network {
        self.document.roster.network
    }

    /// The epoch of the key in force.
    pub fn epoch(&self) -> Epoch {
        self.context.epoch
    }

    /// The federation key `P_fed`.
    pub fn group_key(&self) -> &PublicKey {
        &self.document.key.group_key
    }

    /// Members and parameters.
    pub fn roster(&self) -> &Roster {
        &self.document.roster
    }

    /// The document it was made from.
    pub fn document(&self) -> &FederationDocument {
        &self.document
    }

    /// The node's key for votes, or `None` if it is not a member.
    pub fn identity_key(&self, node: NodeId) -> Option<&XOnlyPublicKey> {
        let index = usize::from(node.0).checked_sub(1)?;
        self.document.roster.members.get(index).map(|member| &member.identity_key)
    }

    pub(crate) fn weighted_share(&self, node: NodeId) -> Option<&k256::ProjectivePoint> {
        self.weighted_shares.get(&node)
    }

    pub(crate) fn verify(&self, node: NodeId, digest: [u8; 32], signature: &schnorr::Signature) -> bool {
        self.identity_key(node).is_some_and(|key| digest::verify(key, digest, signature))
    }
}

/// Why a roster or federation document is refused. Retrying with the same document never helps.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FederationError {
    /// Too few or too many nodes.
    #[error("a federation has 4 to {NODES_MAX} nodes, not {nodes}")]
    Size {
        /// Nodes given.
        nodes: usize,
    },
    /// A member is out of order or shares a key with another.
    #[error("roster entry {node} is out of order or repeats a key")]
    Member {
        /// The entry.
        node: NodeId,
    },
    /// The recovery path would open before the horizon rule allows any payment.
    #[error("recovery delay of {delay} blocks must be above the margin of {margin} blocks")]
    Delay {
        /// Delay, in blocks.
        delay: u16,
        /// Margin, in blocks.
        margin: u16,
    },
    /// Not the federation that the wallet pins.
    #[error("the document is of federation {found}, but {expected} is pinned; ask another bridge")]
    Pinned {
        /// The pinned id.
        expected: FederationId,
        /// The document's id.
        found: FederationId,
    },
    /// A member did not sign the epoch's key.
    #[error("node {node} did not certify the federation key")]
    Certificate {
        /// The member.
        node: NodeId,
    },
    /// A member's public share is missing.
    #[error("the public share of node {node} is missing")]
    Share {
        /// The member.
        node: NodeId,
    },
    /// The trial signature or a share is not valid.
    #[error("the trial signature over the federation key is not valid")]
    Trial,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_quorums_always_share_an_honest_node_and_honest_nodes_suffice() {
        for nodes in 4..=NODES_MAX {
            let quorum = Quorum::new(nodes).expect("in range");
            let (n, q) = (u32::from(quorum.nodes()), u32::from(quorum.votes()));
            let f = (n - 1) / 3;
            assert!(2 * q - n > f, "overlap for n = {n}");
            assert!(n - f >= q, "liveness for n = {n}");
            assert_eq!(u32::from(quorum.blocking()), n - q + 1);
        }
    }

    #[test]
    fn sizes_out_of_range_are_refused() {
        assert_eq!(Quorum::new(3), Err(FederationError::Size { nodes: 3 }));
        assert_eq!(Quorum::new(101), Err(FederationError::Size { nodes: 101 }));
    }
}
