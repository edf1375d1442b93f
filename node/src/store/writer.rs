//! Group commit: many change sets share one write and one sync.
//!
//! The machine hands over change sets in order, each with what depends on it. A thread takes all that are waiting,
//! writes them at once, and only then releases what depended on them, so nothing leaves before its record is durable.
//! A failed write ends the thread, and the node with it: it never votes on what is not on disk.

use super::Store;
use crate::crash;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use quorate_rules::records::ChangeSet;
use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc as blocking,
    },
    thread,
    time::Instant,
};
use tokio::sync::mpsc;

/// Most change sets in one commit; bounds the time until the first of them is released.
pub const BATCH_MAX: usize = 512;

/// What the operator sees of the commits, each of which is one sync.
#[derive(Clone, Debug)]
pub(crate) struct Commits {
    /// Change sets in each.
    pub(crate) sets: Histogram,
    /// How long each took, in seconds.
    pub(crate) seconds: Histogram,
}

impl Commits {
    fn new() -> Self {
        // 1 to 512 sets, and 50 µs to 1.6 s.
        let sets = Histogram::new(exponential_buckets(1.0, 2.0, 10));
        Self { sets, seconds: Histogram::new(exponential_buckets(0.000_05, 2.0, 16)) }
    }
}

/// Hands change sets to the thread that writes them.
#[derive(Debug)]
pub(crate) struct Writer<T> {
    changes: blocking::Sender<(ChangeSet, T)>,
    /// Gone when the thread has ended.
    release: mpsc::WeakUnboundedSender<T>,
    /// Change sets that were handed over.
    handed: u64,
    /// Those of them that the thread has written and released.
    written: Arc<AtomicU64>,
    commits: Commits,
}

impl<T> Writer<T> {
    pub(crate) fn commits(&self) -> &Commits {
        &self.commits
    }

    /// Releases an item once its change set, and all before it, are durable: at once if there is nothing to wait for.
    pub(crate) fn release(&mut self, change: ChangeSet, item: T) {
        if change.is_empty() && self.handed == self.written.load(Ordering::Acquire) {
            // If the writer has ended, so does the node: its dispatcher has seen it too.
            let _writer_ended = self.release.upgrade().map(|release| release.send(item));
            return;
        }
        self.handed += 1;
        let _writer_ended = self.changes.send((change, item));
    }
}

/// Starts the writer. Each item is released on the returned channel, in order, after its change set and all before it
/// are durable.
pub(crate) fn start_writer<T: Send + 'static>(
    mut store: Box<dyn Store>,
) -> (Writer<T>, mpsc::UnboundedReceiver<T>) {
    let (changes, receiver) = blocking::channel::<(ChangeSet, T)>();
    let (release, released) = mpsc::unbounded_channel();
    let written = Arc::new(AtomicU64::new(0));
    let commits = Commits::new();
    let writer = Writer {
        changes,
        release: release.downgrade(),
        handed: 0,
        written: written.clone(),
        commits: commits.clone(),
    };
    thread::spawn(move || {
        while let Ok(first) = receiver.recv() {
            let mut batch = vec![first];
            while batch.len() < BATCH_MAX {
                let Ok(next) = receiver.try_recv() else { break };
                batch.push(next);
            }
            let changes: Vec<_> =
                batch.iter().map(|(change, _)| change).filter(|change| !change.is_empty()).collect();
            if !changes.is_empty() {
                crash::point("store.before_write");
                let started = Instant::now();
                if let Err(error) = store.write(&changes) {
                    // Ending the thread closes the channel; the node stops when it sees that.
                    tracing::error!(%error, "the store cannot be written; this node stops voting and ends");
                    return;
                }
                crash::point("store.after_write");
                commits.seconds.observe(started.elapsed().as_secs_f64());
                commits.sets.observe(f64::from(u32::try_from(changes.len()).unwrap_or(u32::MAX)));
            }
            let items = u64::try_from(batch.len()).unwrap_or(u64::MAX);
            for (_, item) in batch {
                if release.send(item).is_err() {
                    return;
                }
            }
            // Only now may others pass.
            written.fetch_add(items, Ordering::Release);
        }
    });
    (writer, released)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Damage, Redb, StoreError, conformance::peer_head};
    use quorate_rules::records::{Row, Table};

    #[test]
    fn released_items_are_durable_and_in_order() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("store.redb");
        let (mut writer, mut released) = start_writer::<u16>(Box::new(Redb::open(&path).expect("opens")));
        for number in 0..1000_u16 {
            let change = if number % 3 == 1 { ChangeSet::default() } else { peer_head(number, 1).into() };
            writer.release(change, number);
        }
        for number in 0..1000 {
            assert_eq!(released.blocking_recv(), Some(number));
        }
        // With nothing outstanding, what changes nothing does not go by the thread.
        while writer.written.load(Ordering::Acquire) < writer.handed {
            thread::yield_now();
        }
        writer.release(ChangeSet::default(), 1_000);
        assert_eq!(released.try_recv(), Ok(1_000));
        drop(writer);
        assert_eq!(released.blocking_recv(), None, "the writer has ended and closed the file");
        let rows = Redb::open(&path).expect("opens again").rows().expect("reads");
        let written = (0..1000).filter(|number| number % 3 != 1);
        assert_eq!(rows, written.map(|number| peer_head(number, 1).encode()).collect::<Vec<_>>());
    }

    #[derive(Debug)]
    struct Full;

    impl Store for Full {
        fn place(&self) -> &str {
            "a full disk"
        }

        fn scan(&self, _: Table, _: &mut dyn FnMut(Row) -> Result<(), StoreError>) -> Result<(), StoreError> {
            Ok(())
        }

        fn write(&mut self, _: &[&ChangeSet]) -> Result<(), StoreError> {
            let what = Damage::Structure("no space".into());
            Err(StoreError::Damaged { place: self.place().to_owned(), what })
        }
    }

    #[test]
    fn nothing_is_released_after_a_write_that_failed() {
        let (mut writer, mut released) = start_writer::<u8>(Box::new(Full));
        writer.release(ChangeSet::default(), 1);
        assert_eq!(released.blocking_recv(), Some(1), "nothing had to be written for it");
        writer.release(peer_head(1, 1).into(), 2);
        writer.release(ChangeSet::default(), 3);
        assert_eq!(
            released.blocking_recv(),
            None,
            "what waits for a write that failed is not released either"
        );
        writer.release(ChangeSet::default(), 4);
        assert_eq!(released.blocking_recv(), None, "nor what comes later");
    }
}
