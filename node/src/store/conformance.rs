//! What every backend has to pass. Power that fails in the middle is the simulated disk's part (`tests/simulation/tests/disk.rs`).

use super::{Redb, Store};
use quorate_protocol::{
    Epoch, FederationId, NodeId,
    digest::{Context, IdentityKey},
    log_head::{LogHead, SignedHead},
};
use quorate_rules::records::{Change, ChangeSet, LogRecord, Row, Table};

/// A record that differs by node and length.
pub(super) fn peer_head(node: u16, sequence: u64) -> Change {
    let key = IdentityKey::from_bytes(&[1; 32]).expect("a key");
    let context = Context { magic: [0; 4], federation: FederationId([7; 32]), epoch: Epoch::FIRST };
    let head = LogHead { sequence, ..LogHead::default() };
    Change::PeerHead(SignedHead::sign(&context, NodeId(node), &key, head, (head, 1)))
}

fn lost(reason: &str) -> Change {
    Change::Log(LogRecord::lost(reason))
}

fn set(changes: &[Change]) -> ChangeSet {
    let mut set = ChangeSet::default();
    changes.iter().for_each(|change| set.put(change));
    set
}

fn check<S: Store>(open: impl Fn() -> S) {
    let mut store = open();
    assert_eq!(store.rows().expect("reads"), Vec::<Row>::new(), "a new store is empty");
    store.write(&[]).expect("nothing to write is no failure");

    let first = set(&[peer_head(2, 1), lost("a"), peer_head(1, 1)]);
    let second = set(&[peer_head(1, 2), lost("b"), lost("c")]);
    store.write(&[&first, &second]).expect("writes");
    let expected = [lost("c"), peer_head(1, 2), peer_head(2, 1)].map(|change| change.encode()).to_vec();
    assert_eq!(store.rows().expect("reads"), expected, "by table and key, the last of each key");
    drop(store);

    let mut store = open();
    assert_eq!(store.rows().expect("reads"), expected, "what was acknowledged is there after a start");
    store.write(&[&set(&[peer_head(1, 3)])]).expect("writes");
    let stored = store.load().expect("loads");
    assert_eq!(stored.peers.len(), 2);
    assert_eq!(stored.peers[0].head.sequence, 3);
    assert!(stored.log.lost.is_some());
    assert!(stored.transactions.is_empty());
    assert_eq!(Table::ALL.len(), 6, "a new table needs a look at this suite");
}

#[test]
fn redb_keeps_its_promises() {
    let directory = tempfile::tempdir().expect("a directory");
    check(|| Redb::open(&directory.path().join("store.redb")).expect("opens"));
}
