//! What a node keeps on disk. [`Store`] states what a backend has to promise; [`Redb`] is the embedded one.
//!
//! A backend keeps [`Row`]s and knows nothing of what they mean. Rules and records are in `quorate-rules`.

#[cfg(test)]
mod conformance;
mod index;
pub(crate) mod inspect;
mod redb;
mod writer;

pub(crate) use index::{Index, place as index_place, rebuild as rebuild_index};
pub use redb::Redb;
pub(crate) use redb::RedbFile;
pub use writer::BATCH_MAX;
pub(crate) use writer::{Commits, Writer, start_writer};

use quorate_rules::{
    Stored,
    records::{Change, ChangeSet, LogRecord, Row, Table, Unreadable},
};
use std::fmt;

/// A durable place for rows.
///
/// What every backend promises, and `conformance` checks:
///
/// * [`write`](Self::write) takes all change sets or none. When it returns `Ok` they survive `kill -9` and a loss of
///   power; when it returns an error nothing may be assumed, and the node stops.
/// * Sets are applied in order; a later row replaces an earlier one with the same table and key, or takes it away if it
///   has no value. No row is ever merged.
/// * [`scan`](Self::scan) gives what was written, byte for byte, or [`StoreError::Damaged`]: never something else,
///   and never less.
pub trait Store: fmt::Debug + Send + 'static {
    /// Where it is, for people.
    fn place(&self) -> &str;

    /// Hands out a table's rows by key, one at a time, and ends with the first error.
    ///
    /// # Errors
    /// It cannot be read, or holds something that was not written to it; or what the reader says.
    fn scan(
        &self,
        table: Table,
        reader: &mut dyn FnMut(Row) -> Result<(), StoreError>,
    ) -> Result<(), StoreError>;

    /// Writes change sets, all or none, and returns when they are durable.
    ///
    /// # Errors
    /// Nothing may be assumed to be durable; the node has to stop.
    fn write(&mut self, batch: &[&ChangeSet]) -> Result<(), StoreError>;

    /// All rows, by table and then by key.
    ///
    /// # Errors
    /// As [`scan`](Self::scan).
    fn rows(&self) -> Result<Vec<Row>, StoreError> {
        let mut all = Vec::new();
        // In the order of `Table`, which `STORE` need not keep.
        let mut tables = Table::STORE;
        tables.sort_unstable();
        for table in tables {
            self.scan(table, &mut |row| {
                all.push(row);
                Ok(())
            })?;
        }
        Ok(all)
    }

    /// Reads everything that a node needs to start, a row at a time.
    ///
    /// # Errors
    /// As [`scan`](Self::scan).
    fn load(&self) -> Result<Stored, StoreError> {
        let mut stored = Stored::default();
        for table in Table::STORE {
            self.read_into(table, &mut stored)?;
        }
        Ok(stored)
    }

    /// Reads a table, a row at a time.
    ///
    /// # Errors
    /// As [`scan`](Self::scan).
    fn read_into(&self, table: Table, stored: &mut Stored) -> Result<(), StoreError> {
        self.scan(table, &mut |row| {
            stored.take(&row).map_err(|source| {
                let what = Damage::Value { table: row.table, key: row.key, source };
                StoreError::Damaged { place: self.place().to_owned(), what }
            })
        })
    }
}

/// Where the store of one epoch of a node is, whatever kind it is of. Nothing outside this module knows more of a
/// backend.
pub(crate) trait StorePlace: fmt::Debug + Send + Sync {
    /// Whether there is one.
    fn exists(&self) -> bool;

    /// Opens it, or makes an empty one.
    fn open(&self) -> Result<Box<dyn Store>, StoreError>;

    /// Takes away what is there, if anything.
    fn remove(&self) -> Result<(), StoreError>;

    /// Keeps a damaged one aside for the operator; says where.
    fn set_aside(&self) -> Result<String, StoreError>;
}

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// It cannot be opened, read or written: a full disk, missing rights, or another process.
    #[error("store {place}: {source}")]
    Environment {
        /// Where.
        place: String,
        /// What happened.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// It is of another version, from before or after this software. Nothing is done to it.
    #[error("store {place} has version {found}, this software knows {STORE_VERSION}: {}", advice(*found))]
    Version {
        /// Where.
        place: String,
        /// Its version; 1 did not name itself.
        found: u32,
    },
    /// What is in it is not what was written.
    #[error("store {place} is damaged: {what}")]
    Damaged {
        /// Where.
        place: String,
        /// What was found.
        what: Damage,
    },
}

/// Layout of what is stored. Version 1 was that of protocol version 1.
pub const STORE_VERSION: u32 = 2;

fn advice(found: u32) -> &'static str {
    if found < STORE_VERSION {
        "no version of before is read, as nobody had real coins then; make a new federation in another directory"
    } else {
        "use the release that wrote it, or a later one"
    }
}

impl From<Unreadable> for StoreError {
    /// A row of the archive that another version wrote.
    fn from(source: Unreadable) -> Self {
        let what = Damage::Structure(Box::new(source));
        Self::Damaged { place: "archive".to_owned(), what }
    }
}

/// How a store is damaged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// The backend's own structure.
    #[error("{0}")]
    Structure(Box<dyn std::error::Error + Send + Sync>),
    /// A row that does not match its checksum, or is too short to have one.
    #[error("{} {}: its checksum does not match", table.name(), short(key))]
    Checksum {
        /// The row's table.
        table: Table,
        /// The row's key.
        key: Vec<u8>,
    },
    /// A row whose checksum matches and whose value cannot be read: another version wrote it.
    #[error("{} {}: {source}", table.name(), short(key))]
    Value {
        /// The row's table.
        table: Table,
        /// The row's key.
        key: Vec<u8>,
        /// What is wrong.
        source: Unreadable,
    },
}

fn short(key: &[u8]) -> String {
    hex::encode(key.get(..key.len().min(36)).unwrap_or_default())
}

/// Opens a node's store and reads it. A damaged one is kept aside for the operator, and the node starts with an empty
/// one that says so: it serves, but does not vote in this epoch (V9).
///
/// # Errors
/// The disk cannot be read or written.
pub(crate) fn open_or_set_aside(place: &dyn StorePlace) -> Result<(Box<dyn Store>, Stored), StoreError> {
    let opened = place.open().and_then(|store| {
        let stored = store.load()?;
        Ok((store, stored))
    });
    let what = match opened {
        Err(StoreError::Damaged { what, .. }) => what,
        other => return other,
    };
    let aside = place.set_aside()?;
    tracing::error!(?place, aside, %what, "the store is damaged and is kept aside");
    let mut store = place.open()?;
    let log = set_lost(&mut *store, &format!("its store was damaged ({what})"))?;
    Ok((store, Stored { log, ..Stored::default() }))
}

/// Makes a store anew with what it begins with, whatever was there before.
///
/// # Errors
/// The disk cannot be written.
pub(crate) fn begin(place: &dyn StorePlace, with: &ChangeSet) -> Result<(), StoreError> {
    place.remove()?;
    place.open()?.write(&[with])
}

/// Records durably that the node does not vote in this epoch (V9).
///
/// # Errors
/// The disk cannot be written.
pub fn set_lost(store: &mut dyn Store, reason: &str) -> Result<LogRecord, StoreError> {
    let log = LogRecord::lost(reason);
    store.write(&[&Change::Log(log.clone()).into()])?;
    Ok(log)
}
