//! How far a node's durable log has come: what its peers remember for it, so that it notices a lost memory (design, V9).
//!
//! Every durable write of a node extends a hash chain. The node tells its peers the head with every vote and heartbeat, signed, and
//! asks for the furthest one they know before it votes after a start. A store that is missing or restored from an older copy is
//! behind that head, and only the node itself can have signed it, so no peer can make it doubt itself.

use crate::{
    Federation, NodeId,
    digest::{Context, IdentityKey, Purpose, Writer},
};
use bitcoin::secp256k1::schnorr;
use serde::{Deserialize, Serialize};

/// Length and hash of a node's durable log.
///
/// ```
/// use quorate::log::LogHead;
/// let empty = LogHead::default();
/// assert_ne!(empty.extend(b"a record"), empty.extend(b"another"));
/// assert_eq!(empty.extend(b"a record").sequence, 1);
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogHead {
    /// Writes so far.
    pub sequence: u64,
    /// Hash over all of them.
    #[serde(with = "hex::serde")]
    pub hash: [u8; 32],
}

impl LogHead {
    /// The head after one more write.
    pub fn extend(&self, record: &[u8]) -> Self {
        let hash = Writer::new(Purpose::Log).fixed(&self.hash).u64(self.sequence).bytes(record).finish();
        Self { sequence: self.sequence + 1, hash }
    }
}

/// A head with its node's signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedHead {
    /// Whose log.
    pub node: NodeId,
    /// How far.
    #[serde(flatten)]
    pub head: LogHead,
    /// BIP340 over network, federation, epoch, sequence and hash.
    pub signature: schnorr::Signature,
}

impl SignedHead {
    /// Signs a head. It is durable, or becomes so before the signature leaves.
    pub fn sign(context: &Context, node: NodeId, key: &IdentityKey, head: LogHead) -> Self {
        Self { node, head, signature: key.sign(digest(context, &head)) }
    }

    /// Whether the node it names signed it.
    pub fn verify(&self, federation: &Federation) -> bool {
        federation.verify(self.node, digest(federation.context(), &self.head), &self.signature)
    }
}

fn digest(context: &Context, head: &LogHead) -> [u8; 32] {
    Writer::signed(Purpose::LogHead, context).u64(head.sequence).fixed(&head.hash).finish()
}
