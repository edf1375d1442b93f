//! The federation: roster, quorum, the certified key, and how one epoch follows another.
//!
//! The [`Roster`] of the first epoch is what a wallet pins: its tagged hash is the [`FederationId`]. The group key is
//! made later, by distributed key generation, and stands in the [`FederationDocument`] with the signatures of *all*
//! members and a trial signature (design, section 6). A later epoch has other shares of the same key, and perhaps
//! other members; it stands in the document as a [`Succession`], which q members of the epoch before have approved.
//! [`Federation`] is such a document after every check has passed.

mod document;
mod verified;

pub use document::{EpochKey, Federation, FederationDocument, KeyCertificate, Succession, SuccessionPlan};

use crate::{
    Epoch, FederationId, NodeId,
    checkpoint::Checkpoint,
    digest::{Context, Purpose, Writer},
};
use bitcoin::{Network, XOnlyPublicKey, hashes::Hash as _};
use serde::{Deserialize, Serialize};

/// Largest number of nodes in a federation. A certificate has up to two thirds as many signatures.
pub const NODES_MAX: usize = 100;

/// Size of a federation and its thresholds.
///
/// With n = 3f + 1 nodes of which f may do anything, q = floor(2n / 3) + 1 = 2f + 1 is the smallest number such that
/// any two sets of q nodes share at least q + q - n = f + 1 nodes, one of them honest, while the n - f honest nodes
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
    /// SHA-256 of the public key (`SubjectPublicKeyInfo`) of its TLS certificate: the certificate of a replaced node
    /// is worth nothing.
    #[serde(with = "hex::serde")]
    pub tls_key: [u8; 32],
}

/// Checks number, order and that no key occurs twice.
fn check_members(members: &[Member]) -> Result<Quorum, FederationError> {
    let quorum = Quorum::new(members.len())?;
    let mut keys = std::collections::BTreeSet::new();
    for (expected, member) in (1..).zip(members) {
        if member.id.0 != expected || !keys.insert(member.identity_key) {
            return Err(FederationError::Member { node: member.id });
        }
    }
    Ok(quorum)
}

fn write_members(writer: Writer, members: &[Member]) -> Writer {
    members.iter().fold(writer, |writer, member| {
        writer.u16(member.id.0).fixed(&member.identity_key.serialize()).fixed(&member.tls_key)
    })
}

/// Shortest and longest delay of an account's recovery path, in blocks: 30 days to a year. A coin has to stay
/// payable for some time, so it is at least twice the federation's margin too; on regtest everything above it will do.
///
/// ```
/// use quorate::federation::recovery_delays;
/// assert_eq!(recovery_delays(bitcoin::Network::Bitcoin, 288), (4_320, 52_560));
/// assert_eq!(recovery_delays(bitcoin::Network::Regtest, 10), (11, 52_560));
/// ```
pub fn recovery_delays(network: Network, margin: u16) -> (u16, u16) {
    let least = margin.saturating_add(1);
    match network {
        Network::Regtest => (least, 52_560),
        Network::Bitcoin | Network::Testnet | Network::Testnet4 | Network::Signet => {
            (margin.saturating_mul(2).max(4_320), 52_560)
        }
    }
}

/// Who the federation was in its first epoch: the part of its document that the [`FederationId`] is the hash of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Roster {
    /// The Bitcoin network that it serves.
    pub network: Network,
    /// 32 random bytes, so that two federations of the same members differ.
    #[serde(with = "hex::serde")]
    pub salt: [u8; 32],
    /// Nothing before this block concerns the federation: nodes and wallets read headers from it on, and no node ever
    /// reads a block before it. `quorate-node federation new` takes one that is some days old.
    pub birthday: Checkpoint,
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
        let quorum = check_members(&self.members)?;
        let (min, max) = recovery_delays(self.network, self.recovery_margin);
        if !(min..=max).contains(&self.recovery_delay) {
            return Err(FederationError::Delay { delay: self.recovery_delay, min, max });
        }
        if !self.birthday.is_sound(self.network) {
            return Err(FederationError::Birthday { height: self.birthday.height });
        }
        Ok(quorum)
    }

    /// The federation's id: tagged hash of network, salt, birthday, members and delays.
    pub fn id(&self) -> FederationId {
        let writer = Writer::new(Purpose::Roster)
            .fixed(&self.network.magic().to_bytes())
            .fixed(&self.salt)
            .u32(self.birthday.height)
            .fixed(self.birthday.header.block_hash().as_byte_array())
            .u16(self.recovery_delay)
            .u16(self.recovery_margin);
        FederationId(write_members(writer, &self.members).finish())
    }

    /// What signatures of `epoch` are bound to.
    pub fn context(&self, epoch: Epoch) -> Context {
        Context { magic: self.network.magic().to_bytes(), federation: self.id(), epoch }
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
    /// Accounts with it would have no time to pay, or their owners could not leave in any useful time.
    #[error("a recovery delay of {delay} blocks is outside {min} to {max} blocks")]
    Delay {
        /// Delay, in blocks.
        delay: u16,
        /// Least.
        min: u16,
        /// Most.
        max: u16,
    },
    /// No chain of headers can begin at its birthday.
    #[error(
        "the birthday at height {height} is not the first block of a difficulty period (a multiple of 2016), or not a block of the network"
    )]
    Birthday {
        /// Its height.
        height: u32,
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
    /// An epoch that does not follow from the one before.
    #[error("epoch {} does not follow from the epoch before: {what}", epoch.0)]
    Succession {
        /// The epoch.
        epoch: Epoch,
        /// What is wrong.
        what: &'static str,
    },
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

    #[test]
    fn a_document_of_the_first_protocol_is_refused_by_name() {
        let document = crate::testing::federation(4).federation.document().clone();
        let mut value = serde_json::to_value(&document).expect("own types are written without fail");
        assert_eq!(serde_json::from_value::<FederationDocument>(value.clone()).expect("its own"), document);
        let told = |value: &serde_json::Value| {
            let error =
                serde_json::from_value::<FederationDocument>(value.clone()).expect_err("another protocol");
            error.to_string()
        };
        value["protocol"] = 3.into();
        assert!(told(&value).contains("protocol 3") && told(&value).contains("later release"));
        // Of the first one, nothing else has to be understood.
        value = serde_json::json!({ "roster": { "members": "of before" } });
        assert!(told(&value).contains("protocol 1") && told(&value).contains("made anew"));
    }
}
