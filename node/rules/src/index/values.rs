//! Values of rows, in binary.

use crate::records::Unreadable;
use serde::{Serialize, de::DeserializeOwned};

pub(crate) fn read<T: DeserializeOwned>(value: &[u8]) -> Result<T, Unreadable> {
    postcard::from_bytes(value).map_err(|_| Unreadable::Index)
}

/// Nothing if there is more than that.
pub(crate) fn read_whole<T: DeserializeOwned>(value: &[u8]) -> Option<T> {
    let (value, rest) = postcard::take_from_bytes(value).ok()?;
    rest.is_empty().then_some(value)
}

pub(crate) fn written(value: &impl Serialize) -> Vec<u8> {
    postcard::to_allocvec(value).expect("no record has a part without a length")
}
