//! The embedded store: one file, group commit.
//!
//! The machine hands over [`ChangeSet`]s in order. A writer thread takes all that are waiting, applies them in one transaction,
//! syncs once, and only then releases what depended on them; so many votes share one fsync, and nothing leaves before its record
//! is durable. A failed write or sync ends the writer, and the node with it: it never votes on what is not on disk.
//!
//! Every record carries a checksum over its table, key and value. A record that does not match is damage, which the node treats as
//! a lost memory (V9).

use crate::{
    crash,
    machine::{LogRecord, Stored},
};
use bitcoin::hashes::{Hash as _, HashEngine as _, sha256};
use redb::{
    Database, Durability, ReadableDatabase as _, ReadableTable as _, StorageBackend, TableDefinition,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{path::Path, sync::mpsc as blocking, thread};
use tokio::sync::mpsc;

/// Most change sets in one commit; bounds the time until the first of them is released.
pub const BATCH_MAX: usize = 512;
/// Page cache, in bytes.
const CACHE_BYTES: usize = 64 << 20;
/// Bytes of checksum in front of each value.
const CHECKSUM_BYTES: usize = 8;

/// The kinds of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Transactions with this node's vote, certificate and proof, by txid.
    Transactions,
    /// Rounds of outpoints with their latest release.
    Rounds,
    /// Replies that used up nonces, by package digest.
    Responses,
    /// Evidence against peers, by node and number.
    Evidence,
    /// This node's log head and standing.
    Log,
    /// The furthest log head seen of each peer.
    Peers,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::Transactions, Self::Rounds, Self::Responses, Self::Evidence, Self::Log, Self::Peers];

    const fn name(self) -> &'static str {
        match self {
            Self::Transactions => "transactions",
            Self::Rounds => "rounds",
            Self::Responses => "responses",
            Self::Evidence => "evidence",
            Self::Log => "log",
            Self::Peers => "peers",
        }
    }

    const fn definition(self) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
        TableDefinition::new(self.name())
    }
}

/// Records to write, all or none.
#[derive(Clone, Debug, Default)]
pub struct ChangeSet(Vec<(Table, Vec<u8>, Vec<u8>)>);

impl ChangeSet {
    /// Adds a record; a later one under the same key replaces it.
    pub fn put(&mut self, table: Table, key: &[u8], value: &impl Serialize) {
        let value = serde_json::to_vec(value).expect("records have string keys only");
        self.0.push((table, key.to_vec(), value));
    }

    /// Whether there is nothing to write.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds another set after this one.
    pub fn merge(&mut self, other: Self) {
        self.0.extend(other.0);
    }

    /// The records, in order.
    pub fn records(&self) -> impl Iterator<Item = (Table, &[u8], &[u8])> {
        self.0.iter().map(|(table, key, value)| (*table, key.as_slice(), value.as_slice()))
    }

    /// A hash of all records, for the log's chain.
    pub fn digest(&self) -> [u8; 32] {
        let mut engine = sha256::Hash::engine();
        for (table, key, value) in &self.0 {
            engine.input(&checksum(*table, key, value));
        }
        sha256::Hash::from_engine(engine).to_byte_array()
    }
}

/// Makes an empty store beside its place and moves it there when it is whole.
fn create(path: &Path) -> Result<(), redb::Error> {
    let fresh = path.with_extension("new");
    if fresh.exists() {
        std::fs::remove_file(&fresh)?;
    }
    let database = Database::builder().set_cache_size(CACHE_BYTES).create(&fresh)?;
    database.begin_write()?.commit()?;
    drop(database);
    std::fs::rename(&fresh, path)?;
    match path.parent() {
        Some(directory) => Ok(std::fs::File::open(directory)?.sync_all()?),
        None => Ok(()),
    }
}

fn checksum(table: Table, key: &[u8], value: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let mut engine = sha256::Hash::engine();
    for part in [table.name().as_bytes(), key, value] {
        engine.input(&part.len().to_be_bytes());
        engine.input(part);
    }
    let hash = sha256::Hash::from_engine(engine).to_byte_array();
    let mut short = [0; CHECKSUM_BYTES];
    short.copy_from_slice(hash.get(..CHECKSUM_BYTES).unwrap_or_default());
    short
}

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file cannot be opened or read: a full disk, missing rights, or another process.
    #[error("store {path}: {source}")]
    Open {
        /// The file.
        path: String,
        /// What happened.
        source: Box<redb::Error>,
    },
    /// What is in the file is not what was written.
    #[error("store {path} is damaged: {what}")]
    Damaged {
        /// The file.
        path: String,
        /// Where.
        what: String,
    },
}

/// Keys and values.
pub type Rows = Vec<(Vec<u8>, Vec<u8>)>;

/// An open store.
#[derive(Debug)]
pub struct Store {
    database: Database,
    path: String,
}

impl Store {
    /// Opens or creates the file.
    ///
    /// # Errors
    /// It cannot be opened, or is damaged.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let shown = path.display().to_string();
        if !path.exists() {
            // A crash in the middle of this leaves no file that looks like a damaged store.
            let made = create(path)
                .map_err(|source| StoreError::Open { path: shown.clone(), source: Box::new(source) });
            made?;
        }
        let opened = Database::builder().set_cache_size(CACHE_BYTES).create(path);
        Self::prepare(opened.map_err(redb::Error::from), shown)
    }

    /// Opens or creates a store on something else than a file.
    ///
    /// # Errors
    /// It cannot be opened, or is damaged.
    pub fn open_backend(backend: impl StorageBackend, name: &str) -> Result<Self, StoreError> {
        let opened = Database::builder().set_cache_size(CACHE_BYTES >> 6).create_with_backend(backend);
        Self::prepare(opened.map_err(redb::Error::from), name.to_owned())
    }

    fn prepare(opened: Result<Database, redb::Error>, path: String) -> Result<Self, StoreError> {
        let prepare = || -> Result<Database, redb::Error> {
            let database = opened?;
            let write = database.begin_write()?;
            for table in Table::ALL {
                write.open_table(table.definition())?;
            }
            write.commit()?;
            Ok(database)
        };
        match prepare() {
            Ok(database) => Ok(Self { database, path }),
            Err(error) => Err(classify(error, path)),
        }
    }

    /// Reads everything that a node needs to start.
    ///
    /// # Errors
    /// A record does not match its checksum, or cannot be read.
    pub fn load_all(&self) -> Result<Stored, StoreError> {
        let log: Vec<LogRecord> = self.load(Table::Log)?;
        Ok(Stored {
            transactions: self.load(Table::Transactions)?,
            rounds: self.load(Table::Rounds)?,
            responses: self.load(Table::Responses)?,
            evidence: self.load(Table::Evidence)?,
            log: log.into_iter().next().unwrap_or_default(),
            peers: self.load(Table::Peers)?,
        })
    }

    /// All records of a table, in key order.
    ///
    /// # Errors
    /// A record does not match its checksum, or cannot be read.
    pub fn load<T: DeserializeOwned>(&self, table: Table) -> Result<Vec<T>, StoreError> {
        let rows = self.rows(table)?;
        rows.iter()
            .map(|(key, value)| {
                serde_json::from_slice(value).map_err(|error| self.damaged(table, key, &error.to_string()))
            })
            .collect()
    }

    /// Keys and values of a table, in key order.
    ///
    /// # Errors
    /// A record does not match its checksum, or cannot be read.
    pub fn rows(&self, table: Table) -> Result<Rows, StoreError> {
        let read = || -> Result<Rows, redb::Error> {
            let read = self.database.begin_read()?;
            let open = read.open_table(table.definition())?;
            open.iter()?
                .map(|row| {
                    let (key, value) = row?;
                    Ok((key.value().to_vec(), value.value().to_vec()))
                })
                .collect()
        };
        let rows = read().map_err(|error| classify(error, self.path.clone()))?;
        rows.into_iter()
            .map(|(key, stored)| {
                let Some((sum, value)) = stored.split_at_checked(CHECKSUM_BYTES) else {
                    return Err(self.damaged(table, &key, "too short for its checksum"));
                };
                if sum != checksum(table, &key, value) {
                    return Err(self.damaged(table, &key, "its checksum does not match"));
                }
                let value = value.to_vec();
                Ok((key, value))
            })
            .collect()
    }

    fn damaged(&self, table: Table, key: &[u8], what: &str) -> StoreError {
        let what = format!("record {} of {}: {what}", hex::encode(key), table.name());
        StoreError::Damaged { path: self.path.clone(), what }
    }

    /// Writes change sets in order, in one transaction, and returns when they are durable.
    ///
    /// # Errors
    /// Nothing may be assumed to be durable; the node has to stop.
    pub fn write(&self, batch: &[&ChangeSet]) -> Result<(), redb::Error> {
        let mut write = self.database.begin_write()?;
        write.set_durability(Durability::Immediate)?;
        for table in Table::ALL {
            let mut rows = batch.iter().flat_map(|set| &set.0).filter(|(kind, ..)| *kind == table).peekable();
            if rows.peek().is_none() {
                continue;
            }
            let mut open = write.open_table(table.definition())?;
            for (_, key, value) in rows {
                let stored = [&checksum(table, key, value)[..], value].concat();
                open.insert(key.as_slice(), stored.as_slice())?;
            }
        }
        write.commit()?;
        Ok(())
    }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "every other error is of the environment, not of the content"
)]
fn classify(error: redb::Error, path: String) -> StoreError {
    match error {
        redb::Error::Corrupted(what) => StoreError::Damaged { path, what },
        redb::Error::RepairAborted => StoreError::Damaged { path, what: "it cannot be repaired".to_owned() },
        redb::Error::Io(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            StoreError::Damaged { path, what: error.to_string() }
        }
        other => StoreError::Open { path, source: Box::new(other) },
    }
}

/// Opens a node's store and reads it. A damaged file is kept aside for the operator, and the node starts with an empty one that says
/// so: it serves, but does not vote in this epoch (V9).
///
/// # Errors
/// The disk cannot be read or written.
pub(crate) fn open_or_set_aside(path: &Path) -> Result<(Store, Stored), StoreError> {
    let opened = Store::open(path).and_then(|store| {
        let stored = store.load_all()?;
        Ok((store, stored))
    });
    let what = match opened {
        Err(StoreError::Damaged { what, .. }) => what,
        other => return other,
    };
    let mut aside = path.to_owned();
    aside.set_extension("damaged.redb");
    tracing::error!(path = %path.display(), aside = %aside.display(), what, "the store is damaged and is kept aside");
    std::fs::rename(path, &aside).map_err(|error| StoreError::Open {
        path: path.display().to_string(),
        source: Box::new(redb::Error::Io(error)),
    })?;
    let store = Store::open(path)?;
    let log = set_lost(&store, &format!("its store was damaged ({what})"))?;
    Ok((store, Stored { log, ..Stored::default() }))
}

/// Records durably that the node does not vote in this epoch (V9).
///
/// # Errors
/// The disk cannot be written.
pub fn set_lost(store: &Store, reason: &str) -> Result<LogRecord, StoreError> {
    let lost = format!("{reason}; it votes again in the next epoch");
    let log = LogRecord { lost: Some(lost), ..LogRecord::default() };
    let mut change = ChangeSet::default();
    change.put(Table::Log, b"log", &log);
    store
        .write(&[&change])
        .map_err(|source| StoreError::Open { path: store.path.clone(), source: Box::new(source) })?;
    Ok(log)
}

/// Starts the writer. Each item is released on the returned channel, in order, after its change set and all before it are durable.
pub(crate) fn start_writer<T: Send + 'static>(
    store: Store,
) -> (blocking::Sender<(ChangeSet, T)>, mpsc::UnboundedReceiver<T>) {
    let (sender, receiver) = blocking::channel::<(ChangeSet, T)>();
    let (release, released) = mpsc::unbounded_channel();
    thread::spawn(move || {
        while let Ok(first) = receiver.recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH_MAX {
                let Ok(next) = receiver.try_recv() else { break };
                batch.push(next);
            }
            let changes: Vec<_> = batch.iter().map(|(change, _)| change).filter(|c| !c.is_empty()).collect();
            if !changes.is_empty() {
                crash::point("store.before_write");
                if let Err(error) = store.write(&changes) {
                    // Ending the thread closes the channel; the node stops when it sees that.
                    tracing::error!(%error, path = store.path, "the store cannot be written; this node stops voting and ends");
                    return;
                }
                crash::point("store.after_write");
            }
            for (_, item) in batch {
                if release.send(item).is_err() {
                    return;
                }
            }
        }
    });
    (sender, released)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn released_items_are_durable_and_in_order() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("store.redb");
        let store = Store::open(&path).expect("opens");
        let (sender, mut released) = start_writer::<u32>(store);
        for number in 0..1000_u32 {
            let mut change = ChangeSet::default();
            change.put(Table::Responses, &number.to_be_bytes(), &number);
            sender.send((change, number)).expect("the writer runs");
        }
        for number in 0..1000 {
            assert_eq!(released.blocking_recv(), Some(number));
        }
        drop(sender);
        assert_eq!(released.blocking_recv(), None, "the writer has ended and closed the file");
        let store = Store::open(&path).expect("opens again");
        let rows: Vec<u32> = store.load(Table::Responses).expect("reads");
        assert_eq!(rows, (0..1000).collect::<Vec<_>>());
    }
}
