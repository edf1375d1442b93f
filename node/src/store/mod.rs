//! What a node keeps on disk. [`Store`] states what a backend has to promise; [`Redb`] is the embedded one.
//!
//! A backend keeps [`Row`]s and knows nothing of what they mean. Rules and records are in `quorate-rules`.

#[cfg(test)]
mod conformance;
mod redb;
mod writer;

pub use redb::Redb;
pub use writer::BATCH_MAX;
pub(crate) use writer::start_writer;

use quorate_rules::records::{Change, ChangeSet, LogRecord, Row, Stored, Table};
use std::{fmt, path::Path};

/// A durable place for rows.
///
/// What every backend promises, and `conformance` checks:
///
/// * [`write`](Self::write) takes all change sets or none. When it returns `Ok` they survive `kill -9` and a loss of power; when it
///   returns an error nothing may be assumed, and the node stops.
/// * Sets are applied in order; a later row replaces an earlier one with the same table and key. No row is ever merged.
/// * [`rows`](Self::rows) gives what was written, byte for byte, or [`StoreError::Damaged`]: never something else, and never less.
pub trait Store: fmt::Debug + Send + 'static {
    /// Where it is, for people.
    fn place(&self) -> &str;

    /// All rows, by table and then by key.
    ///
    /// # Errors
    /// It cannot be read, or holds something that was not written to it.
    fn rows(&self) -> Result<Vec<Row>, StoreError>;

    /// Writes change sets, all or none, and returns when they are durable.
    ///
    /// # Errors
    /// Nothing may be assumed to be durable; the node has to stop.
    fn write(&mut self, batch: &[&ChangeSet]) -> Result<(), StoreError>;

    /// Reads everything that a node needs to start.
    ///
    /// # Errors
    /// It cannot be read, or holds something that was not written to it.
    fn load(&self) -> Result<Stored, StoreError> {
        let mut stored = Stored::default();
        for row in self.rows()? {
            stored.take(&row).map_err(|source| {
                let what = Damage::Value { table: row.table, key: row.key, source };
                StoreError::Damaged { place: self.place().to_owned(), what }
            })?;
        }
        Ok(stored)
    }
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
    /// What is in it is not what was written.
    #[error("store {place} is damaged: {what}")]
    Damaged {
        /// Where.
        place: String,
        /// What was found.
        what: Damage,
    },
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
        source: serde_json::Error,
    },
}

fn short(key: &[u8]) -> String {
    hex::encode(key.get(..key.len().min(36)).unwrap_or_default())
}

/// Opens a node's store and reads it. A damaged file is kept aside for the operator, and the node starts with an empty one that says
/// so: it serves, but does not vote in this epoch (V9).
///
/// # Errors
/// The disk cannot be read or written.
pub(crate) fn open_or_set_aside(path: &Path) -> Result<(Redb, Stored), StoreError> {
    let opened = Redb::open(path).and_then(|store| {
        let stored = store.load()?;
        Ok((store, stored))
    });
    let what = match opened {
        Err(StoreError::Damaged { what, .. }) => what,
        other => return other,
    };
    let mut aside = path.to_owned();
    aside.set_extension("damaged.redb");
    tracing::error!(path = %path.display(), aside = %aside.display(), %what, "the store is damaged and is kept aside");
    std::fs::rename(path, &aside).map_err(|error| StoreError::Environment {
        place: path.display().to_string(),
        source: Box::new(error),
    })?;
    let mut store = Redb::open(path)?;
    let log = set_lost(&mut store, &format!("its store was damaged ({what})"))?;
    Ok((store, Stored { log, ..Stored::default() }))
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
