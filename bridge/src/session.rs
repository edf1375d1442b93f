//! One wallet's session: what waits for it, and when it is over.
//!
//! Answers and news share one queue, in order. News that does not fit is lost and named in a `Gap`, once the wallet
//! has read what was before; a wallet that does not read its own answers is let go.

use crate::relays::RelayId;
use quorate_protocol::wire::{ServerMessage, SubscriptionKey, limits};
use std::{
    collections::{BTreeSet, VecDeque},
    time::Duration,
};

/// News that may wait for one slow wallet before it is told of a gap.
pub(crate) const NEWS_MAX: usize = 1_024;
/// Answers that may wait besides.
const ANSWERS_MAX: usize = 1_024;

/// A message with the number of the one that it answers.
pub(crate) type Queued = (Option<u64>, ServerMessage);

/// What is there to write to a session.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "it is made to be written out at once")]
pub enum Next {
    /// A message.
    Message(Option<u64>, ServerMessage),
    /// Nothing now.
    Nothing,
    /// Nothing any more: the session is over.
    Closed,
}

/// A session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) greeted: bool,
    /// Relayed requests under way.
    pub(crate) relays: BTreeSet<RelayId>,
    opened: Duration,
    heard: Duration,
    queue: VecDeque<Queued>,
    gap: BTreeSet<SubscriptionKey>,
    closed: bool,
}

impl Session {
    pub(crate) fn new(now: Duration) -> Self {
        Self {
            greeted: false,
            relays: BTreeSet::new(),
            opened: now,
            heard: now,
            queue: VecDeque::new(),
            gap: BTreeSet::new(),
            closed: false,
        }
    }

    /// Something came from the wallet.
    pub(crate) fn heard(&mut self, now: Duration) {
        self.heard = now;
    }

    /// Queues an answer; if there is no room, the session is over.
    pub(crate) fn answer(&mut self, id: Option<u64>, message: ServerMessage) {
        if self.queue.len() >= NEWS_MAX + ANSWERS_MAX {
            self.close();
        }
        if !self.closed {
            self.queue.push_back((id, message));
        }
    }

    /// Queues news of a key; `false` if there is no room, and the key is in the gap. A session that is over takes none.
    pub(crate) fn news(&mut self, key: SubscriptionKey, message: ServerMessage, most: usize) -> bool {
        if self.closed {
            return true;
        }
        let fits = self.queue.len() < most && !self.gap.contains(&key);
        if fits {
            self.queue.push_back((None, message));
        } else {
            self.gap.insert(key);
        }
        fits
    }

    /// The session subscribes to keys anew: its next snapshot has what was lost.
    pub(crate) fn forgive(&mut self, keys: &[SubscriptionKey]) {
        keys.iter().for_each(|key| {
            self.gap.remove(key);
        });
    }

    /// What is there to write.
    pub(crate) fn next(&mut self) -> Next {
        if let Some((id, message)) = self.queue.pop_front() {
            return Next::Message(id, message);
        }
        if !self.gap.is_empty() {
            let keys = std::mem::take(&mut self.gap).into_iter().collect();
            return Next::Message(None, ServerMessage::Gap { keys });
        }
        if self.closed { Next::Closed } else { Next::Nothing }
    }

    /// It is over; what waits is not written any more.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.queue.clear();
        self.gap.clear();
    }

    /// Whether the wallet has been silent for two pings, or has not said Hello in time.
    pub(crate) fn is_dead(&self, now: Duration) -> bool {
        let silent = now.saturating_sub(self.heard) > limits::PING_INTERVAL * 2;
        silent || (!self.greeted && now.saturating_sub(self.opened) > limits::HELLO_TIMEOUT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pong(session: &mut Session, id: usize) {
        session.answer(u64::try_from(id).ok(), ServerMessage::Pong);
    }

    fn key() -> SubscriptionKey {
        SubscriptionKey::Tip
    }

    #[test]
    fn news_that_does_not_fit_becomes_a_gap_after_what_was_before() {
        let mut session = Session::new(Duration::ZERO);
        assert!(session.news(key(), ServerMessage::Pong, 1));
        assert!(!session.news(key(), ServerMessage::Pong, 1));
        assert!(matches!(session.next(), Next::Message(None, ServerMessage::Pong)));
        assert!(
            !session.news(key(), ServerMessage::Pong, 1),
            "there is room, but something before it is lost"
        );
        let Next::Message(None, ServerMessage::Gap { keys }) = session.next() else { panic!("a gap") };
        assert_eq!(keys, [key()]);
        assert!(matches!(session.next(), Next::Nothing));
        assert!(session.news(key(), ServerMessage::Pong, 1));
    }

    #[test]
    fn who_subscribes_anew_is_told_of_no_gap() {
        let mut session = Session::new(Duration::ZERO);
        assert!(!session.news(key(), ServerMessage::Pong, 0));
        session.forgive(&[key()]);
        assert!(matches!(session.next(), Next::Nothing));
    }

    #[test]
    fn who_does_not_read_its_answers_is_let_go_with_nothing_left() {
        let mut session = Session::new(Duration::ZERO);
        (0..NEWS_MAX + ANSWERS_MAX).for_each(|id| pong(&mut session, id));
        assert!(matches!(session.next(), Next::Message(Some(0), _)));
        pong(&mut session, 1);
        assert!(matches!(session.next(), Next::Message(..)), "there was room for one");
        (0..2).for_each(|id| pong(&mut session, id));
        assert!(matches!(session.next(), Next::Closed));
        pong(&mut session, 1);
        assert!(session.news(key(), ServerMessage::Pong, 1));
        assert!(matches!(session.next(), Next::Closed), "nothing comes after answers that were lost");
    }

    #[test]
    fn silence_and_a_missing_hello_end_a_session() {
        let mut session = Session::new(Duration::ZERO);
        assert!(!session.is_dead(limits::HELLO_TIMEOUT));
        assert!(session.is_dead(limits::HELLO_TIMEOUT + Duration::from_millis(1)));
        session.greeted = true;
        assert!(!session.is_dead(limits::PING_INTERVAL * 2));
        assert!(session.is_dead(limits::PING_INTERVAL * 2 + Duration::from_millis(1)));
        session.heard(limits::PING_INTERVAL);
        assert!(!session.is_dead(limits::PING_INTERVAL * 3));
    }
}
