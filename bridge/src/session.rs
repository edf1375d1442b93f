//! One wallet's session: what waits for it, and when it is over.
//!
//! Answers and news share one queue, in order. News that does not fit is lost and named in a `Gap`, once the wallet
//! has read what was before; a wallet that does not read its own answers is let go.

use crate::{frame::Frame, relays::RelayId};
use axum::extract::ws::Utf8Bytes;
use quorate_protocol::wire::{ServerMessage, SubscriptionKey, limits};
use std::{
    collections::{BTreeSet, VecDeque},
    net::IpAddr,
    time::Duration,
};

/// News that may wait for one slow wallet before it is told of a gap.
pub(crate) const NEWS_MAX: usize = 1_024;
/// The same, in bytes.
const NEWS_BYTES_MAX: usize = 4 << 20;
/// Answers that may wait besides.
const ANSWERS_MAX: usize = 1_024;
/// The same, in bytes: an account of 50,000 coins is told whole.
const ANSWER_BYTES_MAX: usize = 60 << 20;

/// What is there to write to a session.
#[derive(Debug)]
pub enum Next {
    /// A message, as a text frame.
    Frame(Utf8Bytes),
    /// Nothing now.
    Nothing,
    /// Nothing any more: the session is over.
    Closed,
}

/// A frame in the queue.
#[derive(Debug)]
struct Waiting {
    frame: Frame,
    is_news: bool,
}

/// A session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) greeted: bool,
    /// Where the wallet is; none if it is on this machine.
    pub(crate) address: Option<IpAddr>,
    /// Relayed requests under way.
    pub(crate) relays: BTreeSet<RelayId>,
    opened: Duration,
    heard: Duration,
    queue: VecDeque<Waiting>,
    /// Bytes of the queue.
    queued: usize,
    /// News in it, and their bytes.
    news: (usize, usize),
    gap: BTreeSet<SubscriptionKey>,
    closed: bool,
}

impl Session {
    pub(crate) fn new(now: Duration, address: Option<IpAddr>) -> Self {
        Self {
            greeted: false,
            address,
            relays: BTreeSet::new(),
            opened: now,
            heard: now,
            queue: VecDeque::new(),
            queued: 0,
            news: (0, 0),
            gap: BTreeSet::new(),
            closed: false,
        }
    }

    /// Something came from the wallet.
    pub(crate) fn heard(&mut self, now: Duration) {
        self.heard = now;
    }

    /// Bytes that wait.
    pub(crate) fn queued(&self) -> usize {
        self.queued
    }

    /// Queues an answer; if there is no room for it, here or at all, the session is over.
    pub(crate) fn answer(&mut self, frame: Frame, room: usize) {
        let most = room.min((NEWS_BYTES_MAX + ANSWER_BYTES_MAX).saturating_sub(self.queued));
        if self.queue.len() >= NEWS_MAX + ANSWERS_MAX || frame.0.len() > most {
            self.close();
        }
        if !self.closed {
            self.push(frame, false);
        }
    }

    /// Queues news of a key; `false` if there is no room, and the key is in the gap. A session that is over takes none.
    /// A large answer before them takes no room of theirs: a key with many coins would be told of one gap after the
    /// other.
    pub(crate) fn news(&mut self, key: &SubscriptionKey, frame: Frame, most: usize, room: usize) -> bool {
        if self.closed {
            return true;
        }
        let (count, bytes) = self.news;
        let room = room.min(NEWS_BYTES_MAX.saturating_sub(bytes));
        let fits = count < most && frame.0.len() <= room && !self.gap.contains(key);
        if fits {
            self.push(frame, true);
        } else {
            self.gap.insert(key.clone());
        }
        fits
    }

    fn push(&mut self, frame: Frame, is_news: bool) {
        let bytes = frame.0.len();
        self.queued += bytes;
        if is_news {
            self.news = (self.news.0 + 1, self.news.1 + bytes);
        }
        self.queue.push_back(Waiting { frame, is_news });
    }

    /// The session subscribes to keys anew: its next snapshot has what was lost.
    pub(crate) fn forgive(&mut self, keys: &[SubscriptionKey]) {
        keys.iter().for_each(|key| {
            self.gap.remove(key);
        });
    }

    /// What is there to write.
    pub(crate) fn next(&mut self) -> Next {
        if let Some(Waiting { frame: Frame(text), is_news }) = self.queue.pop_front() {
            self.queued -= text.len();
            if is_news {
                self.news = (self.news.0 - 1, self.news.1 - text.len());
            }
            return Next::Frame(text);
        }
        if !self.gap.is_empty() {
            let keys = std::mem::take(&mut self.gap).into_iter().collect();
            return Next::Frame(Frame::new(None, &ServerMessage::Gap { keys }).0);
        }
        if self.closed { Next::Closed } else { Next::Nothing }
    }

    /// It is over; what waits is not written any more.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        (self.queue, self.queued, self.news) = (VecDeque::new(), 0, (0, 0));
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
    use quorate_protocol::wire::{Envelope, decode};

    fn pong(session: &mut Session, id: usize) {
        session.answer(Frame::new(u64::try_from(id).ok(), &ServerMessage::Pong), usize::MAX);
    }

    fn news(session: &mut Session, most: usize) -> bool {
        session.news(&key(), Frame::new(None, &ServerMessage::Pong), most, usize::MAX)
    }

    fn read(session: &mut Session) -> (Option<u64>, ServerMessage) {
        let Next::Frame(text) = session.next() else { panic!("nothing to write") };
        let Envelope { id, body } = decode(text.as_bytes()).expect("a message");
        (id, body)
    }

    fn key() -> SubscriptionKey {
        SubscriptionKey::Tip
    }

    #[test]
    fn news_that_does_not_fit_becomes_a_gap_after_what_was_before() {
        let mut session = Session::new(Duration::ZERO, None);
        assert!(news(&mut session, 1));
        assert!(!news(&mut session, 1));
        assert_eq!(read(&mut session), (None, ServerMessage::Pong));
        assert!(!news(&mut session, 1), "there is room, but something before it is lost");
        assert_eq!(read(&mut session), (None, ServerMessage::Gap { keys: vec![key()] }));
        assert!(matches!(session.next(), Next::Nothing));
        assert!(news(&mut session, 1));
    }

    #[test]
    fn who_subscribes_anew_is_told_of_no_gap() {
        let mut session = Session::new(Duration::ZERO, None);
        assert!(!news(&mut session, 0));
        session.forgive(&[key()]);
        assert!(matches!(session.next(), Next::Nothing));
    }

    #[test]
    fn who_does_not_read_its_answers_is_let_go_with_nothing_left() {
        let mut session = Session::new(Duration::ZERO, None);
        (0..NEWS_MAX + ANSWERS_MAX).for_each(|id| pong(&mut session, id));
        assert_eq!(read(&mut session).0, Some(0));
        pong(&mut session, 1);
        assert_eq!(read(&mut session).0, Some(1), "there was room for one");
        (0..2).for_each(|id| pong(&mut session, id));
        assert!(matches!(session.next(), Next::Closed));
        pong(&mut session, 1);
        assert!(news(&mut session, 1));
        assert!(matches!(session.next(), Next::Closed), "nothing comes after answers that were lost");
    }

    #[test]
    fn what_waits_is_bounded_in_bytes_here_and_of_all_sessions() {
        let large = || Frame("x".repeat(1 << 20).into());
        let mut session = Session::new(Duration::ZERO, None);
        for _ in 0..4 {
            assert!(session.news(&key(), large(), NEWS_MAX, usize::MAX));
        }
        assert!(!session.news(&key(), large(), NEWS_MAX, usize::MAX), "the next one is in the gap");
        (0..60).for_each(|_| session.answer(large(), usize::MAX));
        assert_eq!(session.queued(), 64 << 20);
        let mut busy = Session::new(Duration::ZERO, None);
        (0..10).for_each(|_| busy.answer(large(), usize::MAX));
        assert!(news(&mut busy, NEWS_MAX), "an answer takes no room of news");
        session.answer(large(), usize::MAX);
        assert_eq!(session.queued(), 0);
        assert!(matches!(session.next(), Next::Closed));

        let mut session = Session::new(Duration::ZERO, None);
        assert!(!session.news(&key(), large(), NEWS_MAX, 1_000));
        session.answer(Frame::new(None, &ServerMessage::Pong), 1_000);
        assert_eq!(read(&mut session), (None, ServerMessage::Pong));
        session.answer(large(), 1_000);
        assert!(session.closed, "there is no room at all");
    }

    #[test]
    fn silence_and_a_missing_hello_end_a_session() {
        let mut session = Session::new(Duration::ZERO, None);
        assert!(!session.is_dead(limits::HELLO_TIMEOUT));
        assert!(session.is_dead(limits::HELLO_TIMEOUT + Duration::from_millis(1)));
        session.greeted = true;
        assert!(!session.is_dead(limits::PING_INTERVAL * 2));
        assert!(session.is_dead(limits::PING_INTERVAL * 2 + Duration::from_millis(1)));
        session.heard(limits::PING_INTERVAL);
        assert!(!session.is_dead(limits::PING_INTERVAL * 3));
    }
}
