//! What a session holds of its certificate's share: frames that wait to go out, and messages that wait for the machine.
//! No more is read of a session while much waits to go out to it: a bridge that comes back asks for more than may wait.

use super::guests::Guest;
use crate::backlog::{Backlog, Held};
use quorate_quic::Room;
use std::sync::Arc;
use tokio::sync::{Notify, OwnedSemaphorePermit, mpsc};

/// Frames that may wait for a slow session before it is closed.
const SESSION_FRAMES_MAX: usize = 8_192;

/// Bytes that may wait while more is read of the session.
const READ_ON_BYTES_MAX: usize = 8 << 20;

/// A frame that waits.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) bytes: Vec<u8>,
    /// Of the certificate's share, and of the session's.
    pub(super) held: (Room, Held),
}

/// What goes out to a session. It ends when all of these are dropped.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    frames: mpsc::Sender<Frame>,
    guest: Arc<Guest>,
    waiting: Backlog,
    slow: Arc<Notify>,
}

/// Where the frames of a session come out.
#[derive(Debug)]
pub(super) struct Out {
    pub(super) frames: mpsc::Receiver<Frame>,
    /// Told when a frame found no room.
    pub(super) slow: Arc<Notify>,
}

/// The session has ended, or does not read what it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooSlow;

impl Outgoing {
    /// That of a session with this certificate, and where its frames come out.
    pub(super) fn new(guest: Arc<Guest>) -> (Self, Out) {
        let (frames, out) = mpsc::channel(SESSION_FRAMES_MAX);
        let slow = Arc::new(Notify::new());
        let outgoing = Self { frames, guest, waiting: Backlog::new(READ_ON_BYTES_MAX), slow: slow.clone() };
        (outgoing, Out { frames: out, slow })
    }

    /// Sends a frame, if it has room among those that wait: of this session, and in bytes of all with its certificate.
    /// A session that has no room for one ends.
    pub(crate) fn send(&self, bytes: Vec<u8>) -> Result<(), TooSlow> {
        let sent = self.guest.tell(bytes.len()).ok_or(TooSlow).and_then(|room| {
            let held = (room, self.waiting.hold(bytes.len()));
            self.frames.try_send(Frame { bytes, held }).map_err(|_| TooSlow)
        });
        sent.inspect_err(|TooSlow| self.slow.notify_one())
    }

    /// Room for one more question that waits for a block, if there is.
    pub(crate) fn proof(&self) -> Option<Room> {
        self.guest.proof()
    }

    /// The same that does not keep the session open.
    pub(crate) fn weak(&self) -> WeakOutgoing {
        let (guest, waiting, slow) = (self.guest.clone(), self.waiting.clone(), self.slow.clone());
        WeakOutgoing { frames: self.frames.downgrade(), guest, waiting, slow }
    }
}

/// An [`Outgoing`] that does not keep the session open.
#[derive(Debug)]
pub(crate) struct WeakOutgoing {
    frames: mpsc::WeakSender<Frame>,
    guest: Arc<Guest>,
    waiting: Backlog,
    slow: Arc<Notify>,
}

impl WeakOutgoing {
    /// Sends a frame, if the session is still open.
    pub(crate) fn send(&self, bytes: Vec<u8>) -> Result<(), TooSlow> {
        let frames = self.frames.upgrade().ok_or(TooSlow)?;
        let (guest, waiting, slow) = (self.guest.clone(), self.waiting.clone(), self.slow.clone());
        Outgoing { frames, guest, waiting, slow }.send(bytes)
    }

    /// Waits until so little waits to go out that more may be read.
    pub(super) async fn has_read(&self) {
        self.waiting.room().await;
    }
}

/// A session's place among those of its certificate, until the machine has seen its end.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(super) _room: Room,
    /// Who comes back is the same guest as long as something of it waits.
    pub(super) _guest: Arc<Guest>,
}

/// A message's place in line, and the room that it takes, until the machine has answered it or put it aside, and the
/// answer is among what goes out to the session.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(super) _place: OwnedSemaphorePermit,
    pub(super) _room: Room,
    pub(super) _guest: Arc<Guest>,
}

#[cfg(test)]
impl Turn {
    /// One that takes a place, of nobody else.
    pub(crate) fn test(place: OwnedSemaphorePermit) -> Self {
        let guest = super::guests::Guests::default().of([1; 32]);
        let room = guest.tell(1).expect("room");
        Self { _place: place, _room: room, _guest: guest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::guests::Guests;
    use futures_util::FutureExt as _;

    #[test]
    fn a_session_without_room_for_a_frame_ends_and_the_room_is_another_s() {
        let guest = Guests::default().of([1; 32]);
        let (slow, out) = Outgoing::new(guest.clone());
        for _ in 0..SESSION_FRAMES_MAX {
            slow.send(vec![0]).expect("room");
        }
        assert!(out.slow.notified().now_or_never().is_none());
        assert_eq!(slow.send(vec![0]), Err(TooSlow));
        assert!(out.slow.notified().now_or_never().is_some(), "it is told that it ends");
        let (large, large_out) = Outgoing::new(guest);
        while large.send(vec![0; 16 << 20]).is_ok() {}
        assert!(
            large_out.slow.notified().now_or_never().is_some(),
            "one that waits for many bytes does, too"
        );
        drop(large_out);
        let (next, _out) = Outgoing::new(large.guest.clone());
        assert_eq!(next.send(vec![0; 200 << 20]), Ok(()));
    }
}
