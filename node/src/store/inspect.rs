//! What the operator can do with the files of a node that is not running: count, check, prune.

use super::{Damage, Redb, Store as _, StoreError, index::load};
use quorate_protocol::headers::Checkpoint;
use quorate_rules::{
    Stored,
    archive::is_older,
    records::{ChangeSet, Row, Table},
};
use std::path::Path;

/// Rows that are taken away in one write.
const PRUNE_BATCH: usize = 10_000;

/// How many rows of a kind there are, and their bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Count {
    pub(crate) table: Table,
    pub(crate) rows: u64,
    pub(crate) bytes: u64,
}

/// What a file holds.
#[derive(Clone, Debug)]
pub(crate) struct Contents {
    /// Bytes of the file that hold something.
    pub(crate) in_use: u64,
    pub(crate) tables: Vec<Count>,
}

/// Counts the rows of the store of an epoch, each of which has to match its checksum.
pub(crate) fn count_store(path: &Path) -> Result<Contents, StoreError> {
    count(&Redb::open(path)?, &Table::STORE)
}

/// Counts the rows of an index and its archive.
pub(crate) fn count_index(path: &Path) -> Result<Contents, StoreError> {
    count(&Redb::open_index(path)?, &[&Table::INDEX[..], &Table::ARCHIVE].concat())
}

fn count(store: &Redb, tables: &[Table]) -> Result<Contents, StoreError> {
    let mut counts = Vec::new();
    for table in tables {
        let mut count = Count { table: *table, rows: 0, bytes: 0 };
        store.scan(*table, &mut |row| {
            count.rows += 1;
            count.bytes += u64::try_from(row.key.len() + row.value.len()).unwrap_or(u64::MAX);
            Ok(())
        })?;
        counts.push(count);
    }
    Ok(Contents { in_use: store.in_use()?, tables: counts })
}

/// Reads every record of a store as a start does.
pub(crate) fn check_store(path: &Path) -> Result<Stored, StoreError> {
    Redb::open(path)?.load()
}

/// Reads every row of an index as a start does, and every row of its archive. Gives how many there are of the archive.
pub(crate) fn check_index(path: &Path, birthday: Checkpoint) -> Result<u64, StoreError> {
    let store = Redb::open_index(path)?;
    let damaged = |what: &str| StoreError::Damaged {
        place: path.display().to_string(),
        what: Damage::Structure(what.into()),
    };
    if !load(&store)?.is_whole(birthday) {
        return Err(damaged("it is not of the chain on the federation's birthday, or has a gap"));
    }
    let mut archived = 0;
    for table in Table::ARCHIVE {
        store.scan(table, &mut |row| {
            archived += 1;
            is_older(&row, 0).map(drop).map_err(|_| damaged("a row of the archive cannot be read"))
        })?;
    }
    Ok(archived)
}

/// Takes rows out of the archive that are of what was settled below a height; gives how many.
pub(crate) fn prune_archive(path: &Path, below: u32) -> Result<u64, StoreError> {
    let mut store = Redb::open_index(path)?;
    let mut pruned = 0;
    for table in Table::ARCHIVE {
        let mut old = Vec::new();
        store.scan(table, &mut |row| {
            if is_older(&row, below)? {
                old.push(Row { value: Vec::new(), ..row });
            }
            Ok(())
        })?;
        pruned += u64::try_from(old.len()).unwrap_or(u64::MAX);
        for rows in old.chunks(PRUNE_BATCH) {
            store.write(&[&ChangeSet::of_rows(rows.iter().cloned())])?;
        }
    }
    store.compact()?;
    Ok(pruned)
}
