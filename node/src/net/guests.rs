//! What each certificate may hold of this node at a time, through all of its connections: connections, sessions, and
//! bytes that wait in either direction. What one has too much of it waits for, or is refused; others do not notice.

use quorate_protocol::wire::Message;
use quorate_quic::{Meter, Room};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};
use tokio::sync::Semaphore;

/// Connections of one certificate.
const CONNECTIONS_MAX: usize = 16;
/// Sessions of one certificate, until the machine has seen their ends.
const SESSIONS_MAX: usize = 4_096;
/// Requests of one peer that are being read and answered.
const REQUESTS_MAX: usize = 1_024;
/// Questions of one certificate's sessions that wait for a block.
const PROOFS_MAX: usize = 4_096;
/// Questions of one peer about epochs that nobody has begun to answer.
const QUESTIONS_MAX: usize = 8;
/// Bytes of what one certificate said that no machine has read yet: four times what one message may have.
const HEARD_BYTES_MAX: usize = 64 << 20;
/// Bytes of what waits to be sent to one certificate: several answers about the largest accounts.
const TOLD_BYTES_MAX: usize = 256 << 20;

/// What one certificate holds of this node.
#[derive(Debug)]
pub(crate) struct Guest {
    /// The same whenever it comes: what it left with the machine counts for who comes back. (The first bytes of a hash.
    /// Two who have the same, which takes 2^64 keys for one of a given other, share what one has.)
    pub(crate) number: u64,
    connections: Arc<Semaphore>,
    sessions: Arc<Semaphore>,
    requests: Arc<Semaphore>,
    proofs: Arc<Semaphore>,
    questions: Arc<Semaphore>,
    heard: Meter,
    told: Arc<Semaphore>,
}

impl Guest {
    fn new(number: u64) -> Self {
        let limit = |most| Arc::new(Semaphore::new(most));
        Self {
            number,
            connections: limit(CONNECTIONS_MAX),
            sessions: limit(SESSIONS_MAX),
            requests: limit(REQUESTS_MAX),
            proofs: limit(PROOFS_MAX),
            questions: limit(QUESTIONS_MAX),
            heard: Meter::new(HEARD_BYTES_MAX),
            told: limit(TOLD_BYTES_MAX),
        }
    }

    /// Room for one connection more, if there is.
    pub(crate) fn connection(&self) -> Option<Room> {
        self.connections.clone().try_acquire_owned().ok()
    }

    /// Room for one session more, if there is.
    pub(crate) fn session(&self) -> Option<Room> {
        self.sessions.clone().try_acquire_owned().ok()
    }

    /// Room for one request more, as soon as there is.
    pub(crate) async fn request(&self) -> Option<Room> {
        self.requests.clone().acquire_owned().await.ok()
    }

    /// Room for one more question that waits for a block, if there is.
    pub(crate) fn proof(&self) -> Option<Room> {
        self.proofs.clone().try_acquire_owned().ok()
    }

    /// Room for one more question about epochs, as soon as there is.
    pub(crate) async fn question(&self) -> Option<Room> {
        self.questions.clone().acquire_owned().await.ok()
    }

    /// Room for a frame that is to be sent, if there is.
    pub(crate) fn tell(&self, bytes: usize) -> Option<Room> {
        let bytes = u32::try_from(bytes).ok()?;
        self.told.clone().try_acquire_many_owned(bytes).ok()
    }

    /// Room for what is being read.
    pub(crate) fn heard(&self) -> &Meter {
        &self.heard
    }
}

/// All who hold something.
#[derive(Debug, Default)]
pub(crate) struct Guests {
    known: Mutex<HashMap<[u8; 32], Weak<Guest>>>,
}

impl Guests {
    /// Who has a key of this hash.
    pub(crate) fn of(&self, tls_key: [u8; 32]) -> Arc<Guest> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(guest) = known.get(&tls_key).and_then(Weak::upgrade) {
            return guest;
        }
        known.retain(|_, guest| guest.strong_count() > 0);
        let [a, b, c, d, e, f, g, h, ..] = tls_key;
        let guest = Arc::new(Guest::new(u64::from_be_bytes([a, b, c, d, e, f, g, h])));
        known.insert(tls_key, Arc::downgrade(&guest));
        guest
    }
}

/// No message is larger than what one certificate may say at a time.
const fn fits<T: Message>() -> bool {
    T::BYTES_MAX * 4 <= HEARD_BYTES_MAX
}

const _: () = assert!(
    fits::<quorate_protocol::wire::ClientMessage>() && fits::<quorate_protocol::wire::PeerRequest>(),
    "a message has room"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_holds_the_others_do_not_notice() {
        let guests = Guests::default();
        let (first, second) = (guests.of([1; 32]), guests.of([2; 32]));
        assert_ne!(first.number, second.number);
        let held: Vec<Room> = (0..CONNECTIONS_MAX).filter_map(|_| first.connection()).collect();
        assert_eq!(held.len(), CONNECTIONS_MAX);
        assert!(guests.of([1; 32]).connection().is_none(), "through however many handles");
        assert!(second.connection().is_some());
        let waiting: Vec<Room> = (0..256).filter_map(|_| first.tell(1 << 20)).collect();
        assert!(first.tell(1).is_none() && second.tell(1).is_some());
        drop((held, waiting));
        assert!(first.connection().is_some() && first.tell(1).is_some(), "it is given back");
        let number = first.number;
        drop(first);
        assert_eq!(guests.of([1; 32]).number, number, "who comes back is known");
        assert_eq!(guests.known.lock().expect("not poisoned").len(), 2, "who holds nothing is forgotten");
    }
}
