//! What waits for a disk, or for a slow session. Whoever makes more of it waits until there is less: what is slow slows
//! others down that wait for it, and costs no memory.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};
use tokio::sync::Notify;

/// Bytes that wait, of at most so many.
#[derive(Clone, Debug)]
pub(crate) struct Backlog(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    most: usize,
    held: AtomicUsize,
    less: Notify,
}

/// Something that waits, as long as this is kept.
#[derive(Debug)]
pub(crate) struct Held {
    bytes: usize,
    backlog: Arc<Shared>,
}

impl Backlog {
    pub(crate) fn new(most: usize) -> Self {
        Self(Arc::new(Shared { most, held: AtomicUsize::new(0), less: Notify::new() }))
    }

    /// Something more waits.
    pub(crate) fn hold(&self, bytes: usize) -> Held {
        self.0.held.fetch_add(bytes, Ordering::Relaxed);
        Held { bytes, backlog: self.0.clone() }
    }

    /// Waits until there is room for more. One task does.
    pub(crate) async fn room(&self) {
        // Whoever lets go after this look leaves a permit.
        while self.0.held.load(Ordering::Acquire) >= self.0.most {
            self.0.less.notified().await;
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let before = self.backlog.held.fetch_sub(self.bytes, Ordering::Release);
        if before >= self.backlog.most {
            self.backlog.less.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn whoever_makes_more_waits_until_there_is_less() {
        let backlog = Backlog::new(100);
        backlog.room().await;
        let (first, second) = (backlog.hold(60), backlog.hold(60));
        let waiting = backlog.clone();
        let waits = tokio::spawn(async move { waiting.room().await });
        tokio::task::yield_now().await;
        assert!(!waits.is_finished());
        drop(first);
        waits.await.expect("no panic");
        drop(second);
        backlog.room().await;
        assert_eq!(backlog.0.held.load(Ordering::Relaxed), 0);
    }
}
