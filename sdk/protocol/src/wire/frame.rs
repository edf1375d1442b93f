//! Encoding of messages, and frames on a byte stream.

use super::{ErrorCode, WireError, limits::FRAME_BYTES_MAX};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// A message with the number that pairs it with its answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Envelope<T> {
    /// Chosen by who asks; repeated by who answers; absent in notifications.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// The message.
    #[serde(flatten)]
    pub body: T,
}

/// A closed set of messages that one side may send.
pub trait Message: Serialize + DeserializeOwned {
    /// Every `type` in the set.
    const TYPES: &'static [&'static str];
    /// Largest message of the set, in bytes of JSON.
    const BYTES_MAX: usize = FRAME_BYTES_MAX;
}

#[derive(Deserialize)]
struct Id {
    #[serde(default)]
    id: Option<u64>,
}

#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    id: Option<u64>,
    #[serde(rename = "type")]
    kind: String,
}

/// Reads one message.
///
/// # Errors
/// The sender is at fault: too large, not a message, or of an unknown type. The answer's id is given where one could
/// be read.
pub fn decode<T: Message>(json: &[u8]) -> Result<Envelope<T>, (Option<u64>, WireError)> {
    if json.len() > T::BYTES_MAX {
        return Err((None, too_large(T::BYTES_MAX, json.len())));
    }
    let read = serde_json::from_slice(json)
        .and_then(|Id { id }| Ok(Envelope { id, body: serde_json::from_slice(json)? }));
    read.map_err(|error| match serde_json::from_slice::<Head>(json) {
        Ok(head) if !T::TYPES.contains(&head.kind.as_str()) => {
            let shown: String = head.kind.chars().take(64).collect();
            let message =
                format!("message type {shown:?} is not known here; known are {}", T::TYPES.join(", "));
            (head.id, WireError::sender(ErrorCode::UnknownMessageType, message))
        }
        Ok(head) => {
            let message = format!("{} cannot be read: {error}", head.kind);
            (head.id, WireError::sender(ErrorCode::MalformedMessage, message))
        }
        Err(_) => {
            let message = format!("not a JSON message with a type: {error}");
            (None, WireError::sender(ErrorCode::MalformedMessage, message))
        }
    })
}

fn too_large(limit: usize, length: usize) -> WireError {
    WireError::limit(ErrorCode::FrameTooLarge, "bytes in a frame", limit, length)
}

/// A message as WebSocket text.
pub fn encode_text<T: Message>(id: Option<u64>, body: &T) -> String {
    #[derive(Serialize)]
    struct Borrowed<'a, T> {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        #[serde(flatten)]
        body: &'a T,
    }
    serde_json::to_string(&Borrowed { id, body }).expect("message types have string keys only")
}

/// A message as a QUIC frame: `u32` big-endian length, then JSON.
pub fn encode_frame<T: Message>(id: Option<u64>, body: &T) -> Vec<u8> {
    let text = encode_text(id, body);
    let length = u32::try_from(text.len()).expect("messages are far below 4 GiB");
    [&length.to_be_bytes(), text.as_bytes()].concat()
}

/// Room that a stream keeps while nothing waits in it.
const KEPT_BYTES_MAX: usize = 64 << 10;

/// Cuts a byte stream into frames, without copying more than it must or holding more than one frame.
#[derive(Debug)]
pub struct FrameBuffer {
    bytes: Vec<u8>,
    start: usize,
    limit: usize,
}

impl FrameBuffer {
    /// For a stream of such messages.
    pub fn of<T: Message>() -> Self {
        Self { bytes: Vec::new(), start: 0, limit: T::BYTES_MAX }
    }

    /// Takes in what arrived.
    pub fn extend(&mut self, bytes: &[u8]) {
        self.forget();
        self.bytes.extend_from_slice(bytes);
    }

    /// Gives back the room of frames that were taken, if that is much.
    pub fn forget(&mut self) {
        self.bytes.drain(..self.start);
        self.start = 0;
        if self.bytes.is_empty() && self.bytes.capacity() > KEPT_BYTES_MAX {
            self.bytes = Vec::new();
        }
    }

    /// The length of the next frame's JSON, as soon as the frame says it.
    ///
    /// # Errors
    /// The frame says that it is over [`Message::BYTES_MAX`]; the stream cannot be used further.
    pub fn next_length(&self) -> Result<Option<usize>, WireError> {
        let Some(prefix) = self.rest().first_chunk::<4>() else { return Ok(None) };
        let length = usize::try_from(u32::from_be_bytes(*prefix)).unwrap_or(usize::MAX);
        if length > self.limit { Err(too_large(self.limit, length)) } else { Ok(Some(length)) }
    }

    /// The next complete frame's JSON, if it has arrived.
    ///
    /// # Errors
    /// As those of [`FrameBuffer::next_length`].
    pub fn next_frame(&mut self) -> Result<Option<&[u8]>, WireError> {
        let length = self.next_length()?;
        let Some(length) = length.filter(|length| self.rest().len() >= length + 4) else { return Ok(None) };
        let from = self.start + 4;
        self.start = from + length;
        Ok(self.bytes.get(from..self.start))
    }

    fn rest(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    /// Call at the end of the stream.
    ///
    /// # Errors
    /// The stream ended in the middle of a frame.
    pub fn finish(&self) -> Result<(), WireError> {
        if self.start == self.bytes.len() {
            return Ok(());
        }
        Err(WireError::passing(
            ErrorCode::TruncatedFrame,
            super::Fault::Network,
            "the stream ended in the middle of a frame; connect again",
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::{ClientMessage, ServerMessage};
    use proptest::prelude::*;

    #[test]
    fn frames_survive_any_cut() {
        let frames =
            [encode_frame(Some(1), &ClientMessage::Ping), encode_frame(None, &ClientMessage::FeeRateQuery)];
        let stream = frames.concat();
        for cut in 0..stream.len() {
            let mut buffer = FrameBuffer::of::<ClientMessage>();
            let mut seen = Vec::new();
            for part in [&stream[..cut], &stream[cut..]] {
                buffer.extend(part);
                while let Some(json) = buffer.next_frame().expect("small frames") {
                    seen.push(decode::<ClientMessage>(json).expect("messages"));
                }
            }
            assert_eq!(seen.len(), 2);
            assert_eq!((seen[0].id, &seen[0].body), (Some(1), &ClientMessage::Ping));
            assert_eq!(buffer.finish(), Ok(()));
        }
    }

    #[test]
    fn a_frame_at_the_limit_passes_and_one_byte_more_is_refused() {
        let mut at_limit = FrameBuffer::of::<ClientMessage>();
        at_limit.extend(&u32::try_from(FRAME_BYTES_MAX).expect("small").to_be_bytes());
        assert_eq!(at_limit.next_frame(), Ok(None));
        assert_eq!(at_limit.finish().map_err(|error| error.code), Err(ErrorCode::TruncatedFrame));
        let mut over = FrameBuffer::of::<ClientMessage>();
        over.extend(&u32::try_from(FRAME_BYTES_MAX + 1).expect("small").to_be_bytes());
        let error = over.next_frame().expect_err("too large");
        assert_eq!(error.code, ErrorCode::FrameTooLarge);
        assert_eq!((error.limit, error.value), (Some(1 << 20), Some((1 << 20) + 1)));
    }

    #[test]
    fn a_length_is_known_before_the_frame_and_a_large_frame_leaves_nothing() {
        let mut buffer = FrameBuffer::of::<ClientMessage>();
        assert_eq!(buffer.next_length(), Ok(None));
        let length = 1_000_000_u32;
        buffer.extend(&length.to_be_bytes());
        assert_eq!((buffer.next_length(), buffer.next_frame()), (Ok(Some(1_000_000)), Ok(None)));
        buffer.extend(&vec![b' '; 1_000_000]);
        assert_eq!(buffer.next_frame().expect("fits").map(<[u8]>::len), Some(1_000_000));
        buffer.forget();
        assert_eq!((buffer.bytes.capacity(), buffer.next_length()), (0, Ok(None)));
    }

    #[test]
    fn unknown_types_are_named_and_unknown_fields_ignored() {
        let (id, error) = decode::<ClientMessage>(br#"{"id":4,"type":"Teleport"}"#).expect_err("unknown");
        assert_eq!((id, error.code), (Some(4), ErrorCode::UnknownMessageType));
        assert!(error.message.contains("\"Teleport\"") && error.message.contains("UTXOSubscribe"));
        let ping = decode::<ClientMessage>(br#"{"type":"Ping","colour":"blue"}"#).expect("extra field");
        assert_eq!(ping.body, ClientMessage::Ping);
        let (_, error) = decode::<ClientMessage>(br#"{"type":"UTXOSubscribe"}"#).expect_err("no keys");
        assert_eq!(error.code, ErrorCode::MalformedMessage);
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut buffer = FrameBuffer::of::<ClientMessage>();
            buffer.extend(&bytes);
            while let Ok(Some(json)) = buffer.next_frame() {
                let _ignored = decode::<ServerMessage>(json);
            }
            let _ignored = decode::<ClientMessage>(&bytes);
        }

        #[test]
        fn mutated_messages_never_panic(position in 0_usize..200, byte in any::<u8>()) {
            let text = r#"{"id":7,"type":"UTXOSubscribe","keys":[{"script":"5120aa"},{"address":"bc1q"},{"outpoint":"00:1"},"tip"]}"#;
            let mut bytes = text.as_bytes().to_vec();
            let index = position % bytes.len();
            bytes[index] = byte;
            let _ignored = decode::<ClientMessage>(&bytes);
        }
    }
}
