//! What a session holds of its certificate's share: frames that wait to go out, and messages that wait for the machine.

use super::guests::Guest;
use quorate_quic::Room;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

/// Frames that may wait for a slow session before it is closed.
const SESSION_FRAMES_MAX: usize = 8_192;

/// A frame that waits.
pub(super) type Frame = (Vec<u8>, Room);

/// What goes out to a session. It ends when all of these are dropped.
#[derive(Clone, Debug)]
pub(crate) struct Outgoing {
    frames: mpsc::Sender<Frame>,
    guest: Arc<Guest>,
}

/// The session has ended, or does not read what it is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooSlow;

impl Outgoing {
    /// That of a session with this certificate, and where its frames come out.
    pub(super) fn new(guest: Arc<Guest>) -> (Self, mpsc::Receiver<Frame>) {
        let (frames, waiting) = mpsc::channel(SESSION_FRAMES_MAX);
        (Self { frames, guest }, waiting)
    }

    /// Sends a frame, if it has room among those that wait: of this session, and in bytes of all with its certificate.
    pub(crate) fn send(&self, frame: Vec<u8>) -> Result<(), TooSlow> {
        let room = self.guest.tell(frame.len()).ok_or(TooSlow)?;
        self.frames.try_send((frame, room)).map_err(|_| TooSlow)
    }

    /// The same that does not keep the session open.
    pub(crate) fn weak(&self) -> WeakOutgoing {
        WeakOutgoing { frames: self.frames.downgrade(), guest: self.guest.clone() }
    }
}

/// An [`Outgoing`] that does not keep the session open.
#[derive(Debug)]
pub(crate) struct WeakOutgoing {
    frames: mpsc::WeakSender<Frame>,
    guest: Arc<Guest>,
}

impl WeakOutgoing {
    /// Sends a frame, if the session is still open.
    pub(crate) fn send(&self, frame: Vec<u8>) -> Result<(), TooSlow> {
        let frames = self.frames.upgrade().ok_or(TooSlow)?;
        Outgoing { frames, guest: self.guest.clone() }.send(frame)
    }
}

/// A message's place in line, and the room that it takes, until the machine has taken it.
#[derive(Debug)]
pub(crate) struct Turn {
    pub(super) _place: OwnedSemaphorePermit,
    pub(super) _room: Room,
}
