//! The embedded store: one file of `redb`, a row per record with its checksum in front of the value.

use super::{Damage, STORE_VERSION, Store, StoreError, StorePlace};
use quorate_rules::records::{CHECKSUM_BYTES, ChangeSet, Row, Table};
use redb::{
    Database, Durability, ReadableDatabase as _, ReadableTable as _, StorageBackend, TableDefinition,
    WriteTransaction,
};
use std::{
    io::ErrorKind,
    panic::{AssertUnwindSafe, catch_unwind},
    path::{Path, PathBuf},
};

/// Page cache of a file, in bytes: what is live is in the machine, and the rest is looked up rarely.
const CACHE_BYTES: usize = 16 << 20;

const fn definition(table: Table) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
    TableDefinition::new(table.name())
}

/// What the store says of itself.
const META: TableDefinition<'static, &'static str, u32> = TableDefinition::new("meta");
/// Its layout.
const VERSION: &str = "version";

/// An open store.
#[derive(Debug)]
pub struct Redb {
    database: Database,
    place: String,
}

impl Redb {
    /// Opens or creates the file.
    ///
    /// # Errors
    /// It cannot be opened, or is damaged.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let shown = path.display().to_string();
        if !path.exists() {
            // A crash in the middle of this leaves no file that looks like a damaged store.
            create(path).map_err(|error| environment(error, shown.clone()))?;
        }
        // The library would take an empty file for a new store, and the node would vote without its memory.
        if std::fs::metadata(path).is_ok_and(|file| file.len() == 0) {
            let what = Damage::Structure("the file is empty".into());
            return Err(StoreError::Damaged { place: shown, what });
        }
        Self::open_tables(path, &Table::STORE)
    }

    /// Opens or creates the index.
    ///
    /// # Errors
    /// It cannot be opened, or is damaged.
    pub(super) fn open_index(path: &Path) -> Result<Self, StoreError> {
        Self::open_tables(path, &[&Table::INDEX[..], &Table::ARCHIVE].concat())
    }

    fn open_tables(path: &Path, tables: &[Table]) -> Result<Self, StoreError> {
        let place = path.display().to_string();
        whole(&place, || {
            let opened = Database::builder().set_cache_size(CACHE_BYTES).create(path);
            Self::prepare(opened.map_err(redb::Error::from), place.clone(), tables)
        })
    }

    /// Opens or creates a store on something else than a file.
    ///
    /// # Errors
    /// It cannot be opened, or is damaged.
    pub fn open_backend(backend: impl StorageBackend, name: &str) -> Result<Self, StoreError> {
        let opened = Database::builder().set_cache_size(CACHE_BYTES >> 4).create_with_backend(backend);
        Self::prepare(opened.map_err(redb::Error::from), name.to_owned(), &Table::STORE)
    }

    fn prepare(
        opened: Result<Database, redb::Error>,
        place: String,
        tables: &[Table],
    ) -> Result<Self, StoreError> {
        let prepare = || -> Result<(Database, u32), redb::Error> {
            let database = opened?;
            let write = database.begin_write()?;
            let version = version(&write)?;
            for table in tables {
                write.open_table(definition(*table))?;
            }
            // One of another version is left as it is.
            if version == STORE_VERSION {
                write.commit()?
            } else {
                write.abort()?
            }
            Ok((database, version))
        };
        match prepare() {
            Ok((database, STORE_VERSION)) => Ok(Self { database, place }),
            Ok((_, found)) => Err(StoreError::Version { place, found }),
            Err(error) => Err(classify(error, place)),
        }
    }

    /// Takes the checksum off a row's value, if it matches.
    fn checked(&self, mut row: Row) -> Result<Row, StoreError> {
        if row.value.len() >= CHECKSUM_BYTES {
            let value = row.value.split_off(CHECKSUM_BYTES);
            let sum = std::mem::replace(&mut row.value, value);
            if sum == row.checksum() {
                return Ok(row);
            }
        }
        let what = Damage::Checksum { table: row.table, key: row.key };
        Err(StoreError::Damaged { place: self.place.clone(), what })
    }

    /// Gives the room of what was taken away back to the file system.
    pub(super) fn compact(&mut self) -> Result<(), StoreError> {
        let place = self.place.clone();
        self.database.compact().map(drop).map_err(|error| classify(error.into(), place))
    }

    /// Bytes of the file that hold something. It grows in large steps, and what is behind them takes no room on disk
    /// where the file system knows of holes.
    pub(super) fn in_use(&self) -> Result<u64, StoreError> {
        let failed = |error: redb::Error| classify(error, self.place.clone());
        let write = self.database.begin_write().map_err(|error| failed(error.into()))?;
        let stats = write.stats().map_err(|error| failed(error.into()))?;
        write.abort().map_err(|error| failed(error.into()))?;
        let page = u64::try_from(stats.page_size()).unwrap_or(u64::MAX);
        Ok(stats.allocated_pages().saturating_mul(page))
    }

    /// The first rows of a table whose keys begin with some bytes.
    pub(super) fn find(&self, table: Table, prefix: &[u8], most: usize) -> Result<Vec<Row>, StoreError> {
        let failed = |error: redb::Error| classify(error, self.place.clone());
        let read = self.database.begin_read().map_err(|error| failed(error.into()))?;
        let open = read.open_table(definition(table)).map_err(|error| failed(error.into()))?;
        let mut found = Vec::new();
        for row in open.range(prefix..).map_err(|error| failed(error.into()))?.take(most) {
            let (key, value) = row.map_err(|error| failed(error.into()))?;
            if !key.value().starts_with(prefix) {
                break;
            }
            found.push(self.checked(Row {
                table,
                key: key.value().to_vec(),
                value: value.value().to_vec(),
            })?);
        }
        Ok(found)
    }

    fn write_all(&self, batch: &[&ChangeSet]) -> Result<(), redb::Error> {
        let mut write = self.database.begin_write()?;
        write.set_durability(Durability::Immediate)?;
        for table in Table::STORE.into_iter().chain(Table::INDEX).chain(Table::ARCHIVE) {
            let mut rows =
                batch.iter().flat_map(|set| set.rows()).filter(|row| row.table == table).peekable();
            if rows.peek().is_none() {
                continue;
            }
            let mut open = write.open_table(definition(table))?;
            for row in rows {
                if row.value.is_empty() {
                    open.remove(row.key.as_slice())?;
                    continue;
                }
                let stored = [&row.checksum()[..], &row.value].concat();
                open.insert(row.key.as_slice(), stored.as_slice())?;
            }
        }
        write.commit()?;
        Ok(())
    }
}

impl Store for Redb {
    fn place(&self) -> &str {
        &self.place
    }

    fn scan(
        &self,
        table: Table,
        reader: &mut dyn FnMut(Row) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let failed = |error: redb::Error| classify(error, self.place.clone());
        whole(&self.place, || {
            let read = self.database.begin_read().map_err(|error| failed(error.into()))?;
            let open = read.open_table(definition(table)).map_err(|error| failed(error.into()))?;
            for row in open.iter().map_err(|error| failed(error.into()))? {
                let (key, value) = row.map_err(|error| failed(error.into()))?;
                let row = Row { table, key: key.value().to_vec(), value: value.value().to_vec() };
                reader(self.checked(row)?)?;
            }
            Ok(())
        })
    }

    fn write(&mut self, batch: &[&ChangeSet]) -> Result<(), StoreError> {
        self.write_all(batch).map_err(|error| environment(error, self.place.clone()))
    }
}

/// The embedded store of one epoch.
#[derive(Debug)]
pub(crate) struct RedbFile(pub(crate) PathBuf);

impl RedbFile {
    fn failed(&self, error: std::io::Error) -> StoreError {
        environment(redb::Error::Io(error), self.0.display().to_string())
    }
}

impl StorePlace for RedbFile {
    fn exists(&self) -> bool {
        self.0.exists()
    }

    fn open(&self) -> Result<Box<dyn Store>, StoreError> {
        Ok(Box::new(Redb::open(&self.0)?))
    }

    fn remove(&self) -> Result<(), StoreError> {
        match std::fs::remove_file(&self.0) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(self.failed(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    fn set_aside(&self) -> Result<String, StoreError> {
        let aside = self.0.with_extension("damaged.redb");
        std::fs::rename(&self.0, &aside).map_err(|error| self.failed(error))?;
        Ok(aside.display().to_string())
    }
}

/// The version of a store, which a new one gets here.
fn version(write: &WriteTransaction) -> Result<u32, redb::Error> {
    let fresh = write.list_tables()?.next().is_none();
    let mut meta = write.open_table(META)?;
    if fresh {
        meta.insert(VERSION, STORE_VERSION)?;
    }
    // The first version did not say so.
    Ok(meta.get(VERSION)?.map_or(1, |found| found.value()))
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

/// The library panics at some files that were cut off. That is damage like any other, and no reason to end: the node
/// keeps the file aside.
fn whole<T>(place: &str, read: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(read)).unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
        let what = Damage::Structure(format!("it cannot be read ({said})").into());
        Err(StoreError::Damaged { place: place.to_owned(), what })
    })
}

fn environment(error: redb::Error, place: String) -> StoreError {
    StoreError::Environment { place, source: Box::new(error) }
}

#[expect(
    clippy::wildcard_enum_match_arm,
    reason = "every other error is of the environment, not of the content"
)]
fn classify(error: redb::Error, place: String) -> StoreError {
    let damaged = match &error {
        redb::Error::Corrupted(_) | redb::Error::RepairAborted => true,
        redb::Error::Io(error) => matches!(error.kind(), ErrorKind::InvalidData | ErrorKind::UnexpectedEof),
        _ => false,
    };
    if damaged {
        StoreError::Damaged { place, what: Damage::Structure(Box::new(error)) }
    } else {
        environment(error, place)
    }
}
