//! Frames on a QUIC stream: a `u32` big-endian length, then JSON.

use quorate_protocol::wire::{FrameBuffer, Message, WireError, encode_frame};

/// Bytes read from a stream at once.
const READ_BYTES: usize = 64 * 1024;

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

    /// The JSON of the next frame; `None` at the end of the stream. Cancelling it loses nothing.
    ///
    /// # Errors
    /// The connection is lost, or what comes is no frame.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        loop {
            if let Some(json) = self.buffer.next_frame()? {
                return Ok(Some(json.to_vec()));
            }
            match self.stream.read_chunk(READ_BYTES, true).await? {
                Some(chunk) => self.buffer.extend(&chunk.bytes),
                None => return Ok(self.buffer.finish().map(|()| None)?),
            }
        }
    }
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
