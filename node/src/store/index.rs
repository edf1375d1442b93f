//! The index on disk: what a node has read of the chain. One file serves all epochs; a thread owns it.

use super::{BATCH_MAX, Damage, Redb, Store as _, StoreError};
use crate::backlog::{Backlog, Held};
use anyhow::{Context as _, Result};
use quorate_protocol::headers::Checkpoint;
use quorate_rules::{
    Stored,
    archive::{Archived, Recall, recall},
    index::{Indexed, for_another_reading},
    records::{ChangeSet, Table},
};
use std::{
    path::{Path, PathBuf},
    sync::mpsc as blocking,
    thread,
    time::{Duration, Instant},
};
use tokio::sync::oneshot;

#[derive(Debug)]
enum Job {
    Load(oneshot::Sender<Result<Indexed, StoreError>>),
    Recall(Vec<Recall>, oneshot::Sender<Result<Archived, StoreError>>),
    Write(ChangeSet, Held),
}

/// A handle on the thread that owns the index.
#[derive(Clone, Debug)]
pub(crate) struct Index {
    jobs: blocking::Sender<Job>,
    backlog: Backlog,
}

impl Index {
    /// Opens the index of a chain on that block. One that is damaged, or is not of that chain, is made anew: the node
    /// reads the chain again.
    ///
    /// # Errors
    /// The disk cannot be read or written, or another process has it.
    pub(crate) fn open(path: &Path, base: Checkpoint) -> Result<Self, StoreError> {
        let (store, read) = match read(path, base) {
            Ok((store, read)) => (store, Some(read)),
            Err(StoreError::Damaged { what, .. }) => (anew(path, base, &what.to_string())?, None),
            Err(StoreError::Version { found, .. }) => {
                (anew(path, base, &format!("it is of version {found}"))?, None)
            }
            Err(error) => return Err(error),
        };
        let (sender, jobs) = blocking::channel();
        thread::spawn(move || run(store, read, &jobs));
        Ok(Self { jobs: sender, backlog: Backlog::new(BACKLOG_BYTES_MAX) })
    }

    /// All that is in it, after everything that was written.
    pub(crate) async fn load(&self) -> Result<Indexed> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Job::Load(reply)).context(ENDED)?;
        Ok(answer.await.context(ENDED)??)
    }

    /// What the archive beside it has, after everything that was written.
    pub(crate) async fn recall(&self, wanted: Vec<Recall>) -> Result<Archived> {
        let (reply, answer) = oneshot::channel();
        self.jobs.send(Job::Recall(wanted, reply)).context(ENDED)?;
        Ok(answer.await.context(ENDED)??)
    }

    /// Writes a set, some time later and in order. `false` if the index cannot be written any more.
    pub(crate) fn write(&self, change: ChangeSet) -> bool {
        let held = self.backlog.hold(change.bytes());
        self.jobs.send(Job::Write(change, held)).is_ok()
    }

    /// Waits until there is room for more of what waits to be written.
    pub(crate) async fn room(&self) {
        self.backlog.room().await;
    }
}

/// Bytes that may wait to be written.
const BACKLOG_BYTES_MAX: usize = 64 << 20;
/// Rows of the old index that are copied in one write.
const KEEP_BATCH: usize = 10_000;
/// For so long changes are gathered before they are written together: a sync takes more time than all that is written
/// in it. What is lost of them when the process ends is read from the chain again, and accounts and scripts come again
/// with their wallets.
const GATHERED: Duration = Duration::from_millis(50);
const ENDED: &str = "the index cannot be written; the log says why";

fn read(path: &Path, base: Checkpoint) -> Result<(Redb, Indexed), StoreError> {
    let store = Redb::open_index(path)?;
    let index = load(&store)?;
    if index.is_whole(base) {
        return Ok((store, index));
    }
    let what = Damage::Structure("it is not of the chain on the federation's birthday, or has a gap".into());
    Err(StoreError::Damaged { place: path.display().to_string(), what })
}

/// Has the chain read again from the federation's birthday. Accounts and scripts are kept.
///
/// # Errors
/// The disk cannot be read or written, or a node runs on it.
pub(crate) fn rebuild(path: &Path, base: Checkpoint) -> Result<(), StoreError> {
    // A running node holds the lock.
    match read(path, base) {
        Ok(_) | Err(StoreError::Damaged { .. } | StoreError::Version { .. }) => {}
        Err(error) => return Err(error),
    }
    anew(path, base, "its operator wants it").map(drop)
}

fn anew(path: &Path, base: Checkpoint, why: &str) -> Result<Redb, StoreError> {
    tracing::warn!(
        path = %path.display(),
        why,
        "the index is made anew: the chain is read again from the federation's birthday"
    );
    let failed = |error: std::io::Error| StoreError::Environment {
        place: path.display().to_string(),
        source: Box::new(error),
    };
    // Made beside it and moved there when it is whole: a crash leaves the old one, which is made anew again.
    let fresh = path.with_extension("new");
    if fresh.exists() {
        std::fs::remove_file(&fresh).map_err(failed)?;
    }
    let mut store = Redb::open_index(&fresh)?;
    // What is there may be no file of this kind at all.
    if let Ok(old) = Redb::open_index(path) {
        for table in [Table::Accounts, Table::Addresses, Table::Scripts].into_iter().chain(Table::ARCHIVE) {
            let kept = keep(&old, &mut store, table, base.height)?;
            tracing::info!(table = table.name(), kept, "rows are kept");
        }
    }
    drop(store);
    std::fs::rename(&fresh, path).map_err(failed)?;
    Redb::open_index(path)
}

/// Copies what is in no block: accounts and scripts, and the archive. Rows behind one that cannot be read are left
/// out; accounts and scripts of these are known again when their wallets register, pay or subscribe.
fn keep(old: &Redb, new: &mut Redb, table: Table, from: u32) -> Result<u64, StoreError> {
    let (mut rows, mut kept) = (Vec::new(), 0);
    let mut failed = None;
    let read = old.scan(table, &mut |row| {
        rows.extend(for_another_reading(row, from));
        kept += 1;
        if rows.len() >= KEEP_BATCH
            && let Err(error) = new.write(&[&ChangeSet::of_rows(std::mem::take(&mut rows))])
        {
            failed = Some(error);
            return Err(StoreError::Damaged {
                place: old.place().to_owned(),
                what: Damage::Structure("the new one cannot be written".into()),
            });
        }
        Ok(())
    });
    if let Some(error) = failed {
        return Err(error);
    }
    if let Err(error) = read {
        tracing::warn!(%error, "the rows behind it are left out");
    }
    new.write(&[&ChangeSet::of_rows(rows)])?;
    Ok(kept)
}

pub(super) fn load(store: &Redb) -> Result<Indexed, StoreError> {
    let mut stored = Stored::default();
    for table in Table::INDEX {
        store.read_into(table, &mut stored)?;
    }
    Ok(stored.index)
}

/// `read` is what is in the store, until something is written.
fn run(mut store: Redb, mut read: Option<Indexed>, jobs: &blocking::Receiver<Job>) {
    while let Ok(first) = jobs.recv() {
        let (mut batch, until) = (Vec::new(), Instant::now() + GATHERED);
        let mut next = Some(first);
        while let Some(job) = next.take() {
            match job {
                Job::Write(change, held) => {
                    read = None;
                    batch.push((change, held));
                    if batch.len() < BATCH_MAX {
                        next = jobs.recv_timeout(until.saturating_duration_since(Instant::now())).ok();
                    }
                }
                Job::Load(reply) => {
                    if !write(&mut store, &mut batch) {
                        return;
                    }
                    let index = read.take().map_or_else(|| load(&store), Ok);
                    let _asker_gone = reply.send(index);
                }
                Job::Recall(wanted, reply) => {
                    if !write(&mut store, &mut batch) {
                        return;
                    }
                    let _asker_gone =
                        reply.send(recall(&wanted, |table, key, most| store.find(table, key, most)));
                }
            }
        }
        if !write(&mut store, &mut batch) {
            return;
        }
    }
}

fn write(store: &mut Redb, batch: &mut Vec<(ChangeSet, Held)>) -> bool {
    if batch.is_empty() {
        return true;
    }
    let batch = std::mem::take(batch);
    let written = store.write(&batch.iter().map(|(change, _)| change).collect::<Vec<_>>());
    if let Err(error) = &written {
        tracing::error!(%error, "the index cannot be written; this node ends");
    }
    written.is_ok()
}

/// Where a node's index is.
pub(crate) fn place(directory: &Path) -> PathBuf {
    directory.join("index.redb")
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::Network;
    use quorate_rules::records::Row;

    fn genesis() -> Checkpoint {
        Checkpoint::genesis(Network::Regtest)
    }

    fn script(byte: u8) -> ChangeSet {
        ChangeSet::of_rows([Row { table: Table::Scripts, key: vec![byte], value: vec![byte, 0] }])
    }

    /// Waits until the thread that had the file has let it go.
    async fn reopened(path: &Path, base: Checkpoint) -> Index {
        loop {
            match Index::open(path, base) {
                Ok(index) => return index,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    /// Waits until nobody has the file.
    async fn closed(path: &Path) {
        while Redb::open_index(path).is_err() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn what_was_written_is_there_in_order_and_after_a_start() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = place(directory.path());
        let index = Index::open(&path, genesis()).expect("opens");
        for byte in 0..100 {
            assert!(index.write(script(byte)));
        }
        assert!(index.write(ChangeSet::of_rows([Row {
            table: Table::Scripts,
            key: vec![7],
            value: Vec::new()
        }])));
        assert_eq!(index.load().await.expect("reads").leases(), 99);
        assert!(Index::open(&path, genesis()).is_err(), "one process at a time");
        drop(index);
        assert_eq!(reopened(&path, genesis()).await.load().await.expect("reads").leases(), 99);
    }

    #[tokio::test]
    async fn a_damaged_one_and_one_of_another_chain_are_made_anew() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = place(directory.path());
        let write = async |change: ChangeSet| {
            let index = reopened(&path, genesis()).await;
            assert!(index.write(change));
            index.load().await.expect("reads")
        };
        write(script(1)).await;
        // A row that is no header.
        let wrong = Row { table: Table::Headers, key: vec![0, 0, 0, 1], value: vec![7] };
        let index = reopened(&path, genesis()).await;
        assert!(index.write(ChangeSet::of_rows([wrong])));
        index.load().await.expect_err("unreadable");
        drop(index);
        assert_eq!(write(script(2)).await.leases(), 2, "scripts are kept");
        closed(&path).await;
        rebuild(&path, genesis()).expect("nobody has it");
        for left in 0..9 {
            closed(&path).await;
            let mut bytes = std::fs::read(&path).expect("reads");
            bytes.truncate(bytes.len() * left / 10);
            std::fs::write(&path, bytes).expect("writes");
            let found = write(script(3)).await.leases();
            assert!(found <= 3, "cut off: what is left is whole, or nothing is");
        }
        closed(&path).await;
        let other = Checkpoint { height: 2_016, ..genesis() };
        // An index without blocks is of any chain: nothing in it depends on one.
        assert!(reopened(&path, other).await.load().await.is_ok());
    }
}
