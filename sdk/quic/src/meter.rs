//! Room for messages that are being read: a frame says how long it is before it comes.

use crate::{FrameError, FrameReader};
use std::{sync::Arc, time::Duration};
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

/// For a message to arrive that has begun, and for room for it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Bounds the bytes of messages that are read from several streams at a time. A message is read when there is room for
/// all of it; who begins messages and does not end them has less room for others, for ten seconds.
#[derive(Clone, Debug)]
pub struct Meter(Arc<Semaphore>);

/// The room that a message takes, until this is dropped.
pub type Room = OwnedSemaphorePermit;

impl Meter {
    /// For so many bytes at a time, which have to be enough for the longest message.
    pub fn new(bytes: usize) -> Self {
        Self(Arc::new(Semaphore::new(bytes)))
    }

    /// The next message of one of the streams, and the room that it takes; `None` at the end of the stream. Cancelling
    /// it loses no message, and begins the ten seconds anew.
    ///
    /// # Errors
    /// Those of [`FrameReader::next`]; [`FrameError::Late`] if the message, or room for it, did not come in time.
    pub async fn next(&self, frames: &mut FrameReader) -> Result<Option<(Vec<u8>, Room)>, FrameError> {
        let Some(length) = frames.begin().await? else { return Ok(None) };
        let bytes = u32::try_from(length).map_err(|_| FrameError::Late)?;
        // Mostly it is there, and there is room.
        if let Ok(room) = self.0.clone().try_acquire_many_owned(bytes)
            && let Some(message) = frames.at_hand()?
        {
            return Ok(Some((message, room)));
        }
        let read = timeout(PATIENCE, async {
            // Never closed.
            let room = self.0.clone().acquire_many_owned(bytes).await.map_err(|_| FrameError::Late)?;
            let message = frames.next().await?;
            Ok::<_, FrameError>(message.map(|message| (message, room)))
        });
        read.await.map_err(|_| FrameError::Late)?
    }
}
