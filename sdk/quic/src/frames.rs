//! Frames on a QUIC stream: a `u32` big-endian length, then JSON.

use quorate_protocol::wire::{FrameBuffer, Message, WireError, encode_frame};
use std::{
    future::{Future as _, poll_fn},
    pin::pin,
    task::Poll,
};

/// Bytes read from a stream at once.
const READ_BYTES: usize = 64 * 1024;
/// Bytes read at once while it is not known how long a frame is: most frames are shorter.
const FIRST_READ_BYTES: usize = 16 * 1024;

/// Why no frame could be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FrameError {
    /// The peer sent something that is no frame, or ended inside of one.
    #[error(transparent)]
    Malformed(#[from] WireError),
    /// The connection or stream was lost.
    #[error(transparent)]
    Lost(#[from] quinn::ReadError),
    /// A message did not arrive in ten seconds after it had begun, or there was no room for it in that time.
    #[error("a message did not arrive in time, or there was no room for it")]
    Late,
}

/// Reads frames from the receiving side of a stream.
#[derive(Debug)]
pub struct FrameReader {
    stream: quinn::RecvStream,
    buffer: FrameBuffer,
}

impl FrameReader {
    /// Reads frames that are no larger than messages of the set `T`.
    pub fn of<T: Message>(stream: quinn::RecvStream) -> Self {
        Self { stream, buffer: FrameBuffer::of::<T>() }
    }

    /// The length of the next frame's JSON, before the frame has arrived; `None` at the end of the stream. Little more
    /// is read than that. Cancelling it loses nothing.
    ///
    /// # Errors
    /// The connection is lost, or what comes is no frame.
    pub async fn begin(&mut self) -> Result<Option<usize>, FrameError> {
        self.buffer.forget();
        loop {
            if let Some(length) = self.buffer.next_length()? {
                return Ok(Some(length));
            }
            match self.stream.read_chunk(FIRST_READ_BYTES, true).await? {
                Some(chunk) => self.buffer.extend(&chunk.bytes),
                None => return Ok(self.buffer.finish().map(|()| None)?),
            }
        }
    }

    /// The JSON of the next frame, if all of it has been read already.
    ///
    /// # Errors
    /// What came is no frame.
    pub fn at_hand(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        Ok(self.buffer.next_frame()?.map(<[u8]>::to_vec))
    }

    /// Takes the stream's end with the last message that is wanted of it, if it has come: who drops a stream before its
    /// end tells the sender to stop, in a packet of its own. Nobody waits for an end that has not come.
    pub async fn end(mut self) {
        let mut end = pin!(self.next());
        poll_fn(|context| {
            let _may_come_later = end.as_mut().poll(context);
            Poll::Ready(())
        })
        .await;
    }

    /// The JSON of the next frame; `None` at the end of the stream. Cancelling it loses nothing.
    ///
    /// # Errors
    /// The connection is lost, or what comes is no frame.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        loop {
            if let Some(json) = self.buffer.next_frame()? {
                return Ok(Some(json.to_vec()));
            }
            self.buffer.forget();
            match self.stream.read_chunk(READ_BYTES, true).await? {
                Some(chunk) => self.buffer.extend(&chunk.bytes),
                None => return Ok(self.buffer.finish().map(|()| None)?),
            }
        }
    }
}

/// The JSON of the message that a stream is for, as a question or its answer; `None` if the stream ends without one.
///
/// # Errors
/// The connection is lost, or what comes is no frame.
pub async fn read_message<T: Message>(stream: quinn::RecvStream) -> Result<Option<Vec<u8>>, FrameError> {
    let mut frames = FrameReader::of::<T>(stream);
    let message = frames.next().await?;
    frames.end().await;
    Ok(message)
}

/// Sends one message.
///
/// # Errors
/// The connection or stream was lost.
pub async fn write_message<T: Message>(
    stream: &mut quinn::SendStream,
    id: Option<u64>,
    message: &T,
) -> Result<(), quinn::WriteError> {
    stream.write_all(&encode_frame(id, message)).await
}
