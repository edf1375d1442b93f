//! What every backend has to pass. Power that fails in the middle is the simulated disk's part
//! (`tests/simulation/tests/disk.rs`).

use super::{Damage, RedbFile, StoreError, StorePlace, begin, open_or_set_aside};
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

/// A backend under test.
trait Backend {
    /// Where the stores of the suite are.
    fn place(&self) -> Box<dyn StorePlace>;

    /// Changes one stored byte of a value behind the backend's back: the first one after `mark`.
    fn damage(&self, mark: &[u8]);

    /// Cuts the end off what is stored, as in a copy that was broken off: leaves so many thousandths of it.
    fn truncate(&self, left: u64);
}

fn check(backend: &impl Backend) {
    let place = backend.place();
    assert!(!place.exists());
    let mut store = place.open().expect("opens");
    assert_eq!(store.rows().expect("reads"), Vec::<Row>::new(), "a new store is empty");
    store.write(&[]).expect("nothing to write is no failure");

    let first = set(&[peer_head(2, 1), lost("a"), peer_head(1, 1)]);
    let second = set(&[peer_head(1, 2), lost("b"), lost("c")]);
    store.write(&[&first, &second]).expect("writes");
    let expected = [lost("c"), peer_head(1, 2), peer_head(2, 1)].map(|change| change.encode()).to_vec();
    assert_eq!(store.rows().expect("reads"), expected, "by table and key, the last of each key");
    let stop = || StoreError::Damaged { place: String::new(), what: Damage::Structure("enough".into()) };
    let mut seen = 0;
    let ended = store.scan(Table::Peers, &mut |_| {
        seen += 1;
        Err(stop())
    });
    assert!(ended.is_err() && seen == 1, "a reader that has enough is not handed more");
    assert!(place.open().is_err(), "one process at a time");
    drop(store);

    let mut store = place.open().expect("opens again");
    assert_eq!(store.rows().expect("reads"), expected, "what was acknowledged is there after a start");
    store.write(&[&set(&[peer_head(1, 3)])]).expect("writes");
    let stored = store.load().expect("loads");
    assert_eq!(stored.peers.len(), 2);
    assert_eq!(stored.peers[0].head.sequence, 3);
    assert!(stored.log.lost.is_some());
    assert!(stored.transactions.is_empty());
    assert_eq!(Table::STORE.len(), 6, "a new table needs a look at this suite");
    drop(store);

    begin(&*place, &set(&[lost("a mark in the value")])).expect("begins anew");
    assert_eq!(place.open().expect("opens").rows().expect("reads").len(), 1, "nothing is left of before");
}

/// What is not what was written is never taken for it: the node starts with an empty store that says why it does not
/// vote.
fn check_damage(backend: &impl Backend, spoil: impl Fn()) {
    let place = backend.place();
    begin(&*place, &set(&[lost("a mark in the value")])).expect("begins");
    spoil();
    let (store, stored) = open_or_set_aside(&*place).expect("starts anew");
    assert!(stored.log.lost.as_ref().is_some_and(|why| why.contains("damaged")), "{:?}", stored.log.lost);
    let rows = store.rows().expect("reads");
    assert_eq!(rows, [Change::Log(stored.log).encode()], "and keeps that");
}

struct Embedded(tempfile::TempDir);

impl Embedded {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self) -> std::path::PathBuf {
        self.0.path().join("store.redb")
    }
}

impl Backend for Embedded {
    fn place(&self) -> Box<dyn StorePlace> {
        Box::new(RedbFile(self.path()))
    }

    fn damage(&self, mark: &[u8]) {
        let mut bytes = std::fs::read(self.path()).expect("reads");
        let at = bytes.windows(mark.len()).position(|window| window == mark).expect("the mark is stored");
        bytes[at + mark.len()] ^= 1;
        std::fs::write(self.path(), bytes).expect("writes");
    }

    fn truncate(&self, left: u64) {
        let file = std::fs::OpenOptions::new().write(true).open(self.path()).expect("opens");
        let length = file.metadata().expect("a length").len();
        file.set_len(length * left / 1_000).expect("cuts");
    }
}

#[test]
fn redb_keeps_its_promises() {
    check(&Embedded::new());
}

#[test]
fn a_flipped_byte_in_redb_is_noticed() {
    let backend = Embedded::new();
    check_damage(&backend, || backend.damage(b"a mark in the value"));
}

#[test]
fn a_truncated_redb_is_noticed() {
    for left in (0..1_000).step_by(7) {
        let backend = Embedded::new();
        check_damage(&backend, || backend.truncate(left));
    }
}

#[test]
fn a_store_of_another_version_is_left_alone_and_named() {
    use redb::{ReadableDatabase as _, TableDefinition};

    for (meta, found, advice) in
        [(None, 1, "make a new federation"), (Some(3), 3, "use the release that wrote it")]
    {
        let backend = Embedded::new();
        let place = RedbFile(backend.path());
        {
            let database = redb::Database::create(backend.path()).expect("a file");
            let write = database.begin_write().expect("writes");
            write.open_table(TableDefinition::<&[u8], &[u8]>::new("log")).expect("a table");
            if let Some(version) = meta {
                let mut table = write.open_table(TableDefinition::<&str, u32>::new("meta")).expect("a table");
                table.insert("version", version).expect("writes");
            }
            write.commit().expect("commits");
        }
        let error = open_or_set_aside(&place).expect_err("not read");
        assert!(matches!(error, StoreError::Version { found: told, .. } if told == found), "{error}");
        assert!(error.to_string().contains(advice), "{error}");
        // It is as it was, at its place.
        let database = redb::Database::open(backend.path()).expect("opens");
        let tables = database.begin_read().expect("reads").list_tables().expect("lists").count();
        assert_eq!(tables, 1 + usize::from(meta.is_some()));
    }
}
