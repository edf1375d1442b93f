//! The embedded store: one file, group commit.
//!
//! The machine hands over [`ChangeSet`]s in order. A writer thread takes all that are waiting, applies them in one transaction,
//! syncs once, and only then releases what depended on them; so many votes share one fsync, and nothing leaves before its record
//! is durable. A failed write or sync ends the writer, and the node with it: it never votes on what is not on disk.

use crate::crash;
use redb::{Database, Durability, ReadableDatabase as _, ReadableTable as _, TableDefinition};
use serde::{Serialize, de::DeserializeOwned};
use std::{path::Path, sync::mpsc as blocking, thread};
use tokio::sync::mpsc;

/// Most change sets in one commit; bounds the time until the first of them is released.
const BATCH_MAX: usize = 512;
/// Page cache, in bytes.
const CACHE_BYTES: usize = 64 << 20;

/// The kinds of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    /// Transactions with this node's vote, certificate and proof, by txid.
    Transactions,
    /// Replies that used up nonces, by package digest.
    Responses,
    /// Evidence against peers.
    Evidence,
}

impl Table {
    const ALL: [Self; 3] = [Self::Transactions, Self::Responses, Self::Evidence];

    const fn definition(self) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
        TableDefinition::new(match self {
            Self::Transactions => "transactions",
            Self::Responses => "responses",
            Self::Evidence => "evidence",
        })
    }
}

/// Records to write, all or none.
#[derive(Clone, Debug, Default)]
pub(crate) struct ChangeSet(Vec<(Table, Vec<u8>, Vec<u8>)>);

impl ChangeSet {
    /// Adds a record; a later one under the same key replaces it.
    pub(crate) fn put(&mut self, table: Table, key: &[u8], value: &impl Serialize) {
        let value = serde_json::to_vec(value).expect("records have string keys only");
        self.0.push((table, key.to_vec(), value));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.0.extend(other.0);
    }
}

/// Why the store cannot be used. The node stops.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("store {path}: {source}")]
    Open { path: String, source: Box<redb::Error> },
    #[error("a record of the store cannot be read: {0}")]
    Record(#[from] serde_json::Error),
}

/// An open store.
#[derive(Debug)]
pub(crate) struct Store {
    database: Database,
    path: String,
}

impl Store {
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let shown = path.display().to_string();
        let open = || -> Result<Database, redb::Error> {
            let database = Database::builder().set_cache_size(CACHE_BYTES).create(path)?;
            let write = database.begin_write()?;
            for table in Table::ALL {
                write.open_table(table.definition())?;
            }
            write.commit()?;
            Ok(database)
        };
        let database =
            open().map_err(|source| StoreError::Open { path: shown.clone(), source: source.into() })?;
        Ok(Self { database, path: shown })
    }

    /// All records of a table, in key order.
    pub(crate) fn load<T: DeserializeOwned>(&self, table: Table) -> Result<Vec<T>, StoreError> {
        let failed =
            |source: redb::Error| StoreError::Open { path: self.path.clone(), source: source.into() };
        let read = || -> Result<Vec<Vec<u8>>, redb::Error> {
            let read = self.database.begin_read()?;
            let table = read.open_table(table.definition())?;
            table.iter()?.map(|row| Ok(row?.1.value().to_vec())).collect()
        };
        let rows = read().map_err(failed)?;
        rows.iter().map(|row| Ok(serde_json::from_slice(row)?)).collect()
    }

    fn write(&self, batch: &[&ChangeSet]) -> Result<(), redb::Error> {
        let mut write = self.database.begin_write()?;
        write.set_durability(Durability::Immediate)?;
        for table in Table::ALL {
            let mut open = write.open_table(table.definition())?;
            for (_, key, value) in batch.iter().flat_map(|set| &set.0).filter(|(kind, ..)| *kind == table) {
                open.insert(key.as_slice(), value.as_slice())?;
            }
        }
        write.commit()?;
        Ok(())
    }
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
