//! Whether something is in trouble, told when that changes: an operator's log has a line when it begins and one when
//! it is over, not one for each attempt.

use super::ChainError;
use std::sync::atomic::{AtomicBool, Ordering};

/// One thing that a backend does, or does not at the moment.
#[derive(Debug)]
pub(crate) struct Complaint {
    what: &'static str,
    open: AtomicBool,
}

impl Complaint {
    /// Names what is not done, as in "the chain backend does not …".
    pub(crate) fn new(what: &'static str) -> Self {
        Self { what, open: AtomicBool::new(false) }
    }

    /// It failed; gives whether that is news.
    pub(crate) fn raise(&self, error: &ChainError) -> bool {
        let new = !self.open.swap(true, Ordering::Relaxed);
        if new {
            tracing::warn!(%error, "the chain backend does not {} at the moment", self.what);
        } else {
            tracing::debug!(%error, "the chain backend still does not {}", self.what);
        }
        new
    }

    /// It worked; gives whether that is news.
    pub(crate) fn settle(&self) -> bool {
        // Nearly always nothing is open, and nothing is written that other threads would have to fetch.
        let over = self.open.load(Ordering::Relaxed) && self.open.swap(false, Ordering::Relaxed);
        if over {
            tracing::info!("the chain backend does {} again", self.what);
        }
        over
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_is_told_when_it_begins_and_when_it_is_over() {
        let complaint = Complaint::new("take transactions");
        assert!(!complaint.settle(), "all was well");
        let error = ChainError::Unsteady;
        assert!(complaint.raise(&error) && !complaint.raise(&error), "once");
        assert!(complaint.settle() && !complaint.settle());
        assert!(complaint.raise(&error), "it is news again");
    }
}
