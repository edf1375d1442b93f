//! Group commit: many change sets share one write and one sync.
//!
//! The machine hands over change sets in order, each with what depends on it. A thread takes all that are waiting,
//! writes them at once, and only then releases what depended on them, so nothing leaves before its record is durable.
//! A failed write ends the thread, and the node with it: it never votes on what is not on disk.

use super::Store;
use crate::crash;
use quorate_rules::records::ChangeSet;
use std::{sync::mpsc as blocking, thread};
use tokio::sync::mpsc;

/// Most change sets in one commit; bounds the time until the first of them is released.
pub const BATCH_MAX: usize = 512;

/// Starts the writer. Each item is released on the returned channel, in order, after its change set and all before it
/// are durable.
pub(crate) fn start_writer<T: Send + 'static>(
    mut store: Box<dyn Store>,
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
            let changes: Vec<_> =
                batch.iter().map(|(change, _)| change).filter(|change| !change.is_empty()).collect();
            if !changes.is_empty() {
                crash::point("store.before_write");
                if let Err(error) = store.write(&changes) {
                    // Ending the thread closes the channel; the node stops when it sees that.
                    tracing::error!(%error, "the store cannot be written; this node stops voting and ends");
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
    use crate::store::{Damage, Redb, StoreError, conformance::peer_head};
    use quorate_rules::records::{Row, Table};

    #[test]
    fn released_items_are_durable_and_in_order() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("store.redb");
        let (sender, mut released) = start_writer::<u16>(Box::new(Redb::open(&path).expect("opens")));
        for number in 0..1000_u16 {
            sender.send((peer_head(number, 1).into(), number)).expect("the writer runs");
        }
        for number in 0..1000 {
            assert_eq!(released.blocking_recv(), Some(number));
        }
        drop(sender);
        assert_eq!(released.blocking_recv(), None, "the writer has ended and closed the file");
        let rows = Redb::open(&path).expect("opens again").rows().expect("reads");
        assert_eq!(rows, (0..1000).map(|number| peer_head(number, 1).encode()).collect::<Vec<_>>());
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
        let (sender, mut released) = start_writer::<u8>(Box::new(Full));
        sender.send((ChangeSet::default(), 1)).expect("the writer runs");
        assert_eq!(released.blocking_recv(), Some(1), "nothing had to be written for it");
        sender.send((peer_head(1, 1).into(), 2)).expect("the writer runs");
        assert_eq!(released.blocking_recv(), None);
    }
}
