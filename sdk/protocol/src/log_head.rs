//! How far a node's durable log has come: what its peers remember for it, so that it notices a lost memory (design,
//! V9).
//!
//! Every durable write of a node extends a hash chain. The node tells its peers the head with every vote and
//! heartbeat, signed, and asks for the furthest one they know before it votes after a start. A store that is missing
//! or restored from an older copy is behind that head, and only the node itself can have signed it, so no peer can
//! make it doubt itself.

use crate::{
    Federation, NodeId,
    digest::{Context, IdentityKey, Purpose, Writer},
};
use bitcoin::secp256k1::schnorr;
use serde::{Deserialize, Serialize};

/// Length and hash of a node's durable log.
///
/// ```
/// use quorate::log_head::LogHead;
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
    /// How far it was when the node last started.
    pub start: LogHead,
    /// A random number of that start, so that peers can tell one from the next.
    pub boot: u64,
    /// BIP340 over network, federation, epoch, sequence, hash, and the same of the start with its number.
    pub signature: schnorr::Signature,
}

impl SignedHead {
    /// Signs a head. It is durable, or becomes so before the signature leaves.
    pub fn sign(
        context: &Context,
        node: NodeId,
        key: &IdentityKey,
        head: LogHead,
        (start, boot): (LogHead, u64),
    ) -> Self {
        let signature = key.sign(digest(context, &head, &start, boot));
        Self { node, head, start, boot, signature }
    }

    /// Whether the node it names signed it.
    pub fn verify(&self, federation: &Federation) -> bool {
        let digest = digest(federation.context(), &self.head, &self.start, self.boot);
        federation.verify(self.node, digest, &self.signature)
    }

    /// Whether this head can come after `known`, as far as a peer can tell: it is further in the same run of the
    /// node, or of a run that began where `known` was or later. Otherwise the node has lost what `known` shows, and
    /// `known` is what it has to be told.
    pub fn follows(&self, known: &Self) -> bool {
        if self.boot == known.boot {
            return self.head.sequence > known.head.sequence;
        }
        self.start.sequence > known.head.sequence || self.start == known.head
    }
}

fn digest(context: &Context, head: &LogHead, start: &LogHead, boot: u64) -> [u8; 32] {
    let writer = Writer::signed(Purpose::LogHead, context).u64(head.sequence).fixed(&head.hash);
    writer.u64(start.sequence).fixed(&start.hash).u64(boot).finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[test]
    fn a_head_counts_its_records_and_depends_on_each_and_on_their_order() {
        let head = |records: &[&[u8]]| records.iter().fold(LogHead::default(), |head, one| head.extend(one));
        assert_eq!(head(&[b"a", b"b"]).sequence, 2);
        assert_eq!(head(&[b"a", b"b"]), head(&[b"a", b"b"]));
        assert_ne!(head(&[b"a", b"b"]).hash, head(&[b"b", b"a"]).hash);
        assert_ne!(head(&[b"ab"]).hash, head(&[b"a", b"b"]).hash);
    }

    #[test]
    fn a_head_of_a_run_that_began_before_a_known_one_does_not_follow_it() {
        let world = testing::federation(4);
        let head = |sequence| LogHead { sequence, hash: [1; 32] };
        let signed = |sequence, start, boot| {
            let context = world.federation.context();
            SignedHead::sign(context, NodeId(2), &world.keys[1], head(sequence), (head(start), boot))
        };
        let known = signed(10, 5, 1);
        assert!(known.verify(&world.federation));
        assert!(!SignedHead { boot: 2, ..known }.verify(&world.federation));
        assert!(signed(11, 5, 1).follows(&known));
        assert!(!signed(9, 5, 1).follows(&known));
        assert!(signed(10, 10, 2).follows(&known), "it started where it was");
        assert!(signed(30, 12, 2).follows(&known), "it went on unheard");
        assert!(!signed(30, 9, 2).follows(&known), "it was set back and has overtaken its own past");
        let other = LogHead { sequence: 10, hash: [2; 32] };
        assert!(!SignedHead { start: other, boot: 2, ..known }.follows(&known), "it began from another past");
    }
}
