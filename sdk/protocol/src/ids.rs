//! Small types that name things: nodes, epochs, rounds and 32-byte identifiers.
//!
//! They are parsed once at the edge and cannot be wrong afterwards. All of them are `Copy`; 32-byte identifiers
//! are lower-case hex in JSON and in `Display`.

use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// A node's number in the roster, from 1 to n; also its FROST identifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct NodeId(pub u16);

/// Takes `3` and, because JSON object keys are strings, `"3"`.
impl<'de> Deserialize<'de> for NodeId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;

        impl serde::de::Visitor<'_> for Visitor {
            type Value = NodeId;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a node number from 1 to 65534")
            }

            fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<NodeId, E> {
                u16::try_from(value).map(NodeId).map_err(E::custom)
            }

            // TOML's integers are signed.
            fn visit_i64<E: serde::de::Error>(self, value: i64) -> Result<NodeId, E> {
                u16::try_from(value).map(NodeId).map_err(E::custom)
            }

            fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<NodeId, E> {
                value.parse().map(NodeId).map_err(E::custom)
            }
        }

        deserializer.deserialize_any(Visitor)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// A period during which members and their shares of the federation key do not change; the first is 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

impl Epoch {
    /// The first one: that of the key generation.
    pub const FIRST: Self = Self(1);

    /// The epoch after this one.
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The round in which every outpoint begins this epoch. Rounds go on from epoch to epoch, so that a later
    /// statement always has the higher round.
    pub fn first_round(self) -> Round {
        let before = u32::try_from(self.0.saturating_sub(1)).unwrap_or(u32::MAX);
        Round(before.saturating_mul(ROUNDS_PER_EPOCH))
    }
}

/// Rounds of one outpoint in one epoch.
const ROUNDS_PER_EPOCH: u32 = 1 << 16;

/// A voting round of an outpoint. An epoch begins at [`Epoch::first_round`], which is 0 in the first, and only a
/// release certificate raises it (design, section 5).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Round(pub u32);

impl Round {
    /// The round after this one.
    ///
    /// ```
    /// assert_eq!(quorate::Round(0).next(), quorate::Round(1));
    /// ```
    #[must_use]
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The epoch that the round belongs to.
    ///
    /// ```
    /// use quorate::{Epoch, Round};
    /// assert_eq!(Round(3).epoch(), Epoch(1));
    /// assert_eq!(Epoch(2).first_round().epoch(), Epoch(2));
    /// ```
    pub fn epoch(self) -> Epoch {
        Epoch(1 + u64::from(self.0 / ROUNDS_PER_EPOCH))
    }

    /// Whether there is no round after this one in its epoch. It can only be left into the next epoch.
    ///
    /// ```
    /// use quorate::{Epoch, Round};
    /// assert!(Round(Epoch(2).first_round().0 - 1).is_last());
    /// assert!(!Epoch(2).first_round().is_last());
    /// ```
    pub fn is_last(self) -> bool {
        self.next().epoch() != self.epoch() || self.next() == self
    }
}

/// A text that should have been a fixed number of hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected {digits} hex digits")]
pub struct ParseIdError {
    /// Digits expected.
    pub digits: usize,
}

macro_rules! hex_bytes {
    ($(#[$doc:meta])* $name:ident, $length:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; $length]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&hex::encode(self.0))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!(stringify!($name), "({})"), self)
            }
        }

        impl FromStr for $name {
            type Err = ParseIdError;

            fn from_str(text: &str) -> Result<Self, ParseIdError> {
                let mut bytes = [0; $length];
                hex::decode_to_slice(text, &mut bytes).map_err(|_| ParseIdError { digits: 2 * $length })?;
                Ok(Self(bytes))
            }
        }

        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

hex_bytes! {
    /// The hash of a federation's roster; a wallet pins it.
    ///
    /// ```
    /// let text = "11".repeat(32);
    /// let id: quorate::FederationId = text.parse()?;
    /// assert_eq!(id.to_string(), text);
    /// # Ok::<(), quorate::ParseIdError>(())
    /// ```
    FederationId, 32
}

hex_bytes! {
    /// The hash of an account record.
    AccountId, 32
}

hex_bytes! {
    /// The hash of everything that a vote, certificate or commit is about.
    TargetHash, 32
}

hex_bytes! {
    /// The hash of the outputs that a transaction spends, in input order.
    SpentHash, 32
}

hex_bytes! {
    /// The hash of a whole signing package; a nonce is bound to exactly one of these.
    PackageDigest, 32
}

hex_bytes! {
    /// A party's nonce commitments for one input: hiding then binding, each a compressed point (RFC 9591, section 5.1).
    NonceCommitment, 66
}

hex_bytes! {
    /// A party's signature share for one input: a scalar, big-endian (RFC 9591, section 5.2).
    SignatureShare, 32
}

/// Several things as a message to people lists them.
///
/// ```
/// use quorate_protocol::{NodeId, listed};
///
/// assert_eq!(listed([NodeId(2), NodeId(4)]), "2, 4");
/// ```
pub fn listed<T: fmt::Display>(items: impl IntoIterator<Item = T>) -> String {
    items.into_iter().map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_round_trip_through_json() {
        let id = AccountId([0xab; 32]);
        let json = serde_json::to_string(&id).expect("strings serialise");
        assert_eq!(json, format!("\"{}\"", "ab".repeat(32)));
        assert_eq!(serde_json::from_str::<AccountId>(&json).expect("parses"), id);
    }

    #[test]
    fn short_and_non_hex_ids_are_refused() {
        assert_eq!("ab".parse::<AccountId>(), Err(ParseIdError { digits: 64 }));
        assert_eq!("zz".repeat(32).parse::<AccountId>(), Err(ParseIdError { digits: 64 }));
    }
}
