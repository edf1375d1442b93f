//! Bitcoin's own encoding, as hex in JSON.
//!
//! `bitcoin::consensus::serde::With` panics on text that ends too early (found by `tests/fuzz`, 0.32), so this is our
//! own.

use bitcoin::consensus::{Decodable, Encodable, deserialize as decode, serialize as encode};
use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};
use std::borrow::Cow;

pub(crate) fn serialize<T: Encodable, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex::encode(encode(value)))
}

pub(crate) fn deserialize<'de, T: Decodable, D: Deserializer<'de>>(deserializer: D) -> Result<T, D::Error> {
    let text = Cow::<'de, str>::deserialize(deserializer)?;
    let bytes = hex::decode(text.as_ref()).map_err(D::Error::custom)?;
    decode(&bytes).map_err(D::Error::custom)
}

#[cfg(test)]
mod tests {
    use crate::wire::{PeerRequest, decode};

    #[test]
    fn a_transaction_that_ends_too_early_is_an_error() {
        for hex in ["", "0", "02000000", "02000000ff", "zz"] {
            let text =
                format!(r#"{{"type":"VoteRequest","proposal":{{"custody":"sole","transaction":"{hex}"}}}}"#);
            assert!(decode::<PeerRequest>(text.as_bytes()).is_err(), "{hex}");
        }
    }
}
