//! Partially signed transactions as text (BIP174), read to the last byte.

use bitcoin::{
    Psbt,
    base64::{Engine as _, engine::general_purpose::STANDARD},
};

/// Longest text that is read: more than a transaction of the largest relayed size takes with all that describes it.
const TEXT_MAX: usize = 8 << 20;
/// How version 2 says what it is, in its first map: key 0xfb, a number of 32 bits (BIP370).
const VERSION_2: [u8; 7] = [0x01, 0xfb, 0x04, 0x02, 0x00, 0x00, 0x00];
const MAGIC: &[u8] = b"psbt\xff";

/// Reads a PSBT of version 0 in base64, or in hex as some programs write it. White space does not matter.
///
/// ```
/// use quorate::psbt::{PsbtTextError, parse};
/// assert!(matches!(parse("hello"), Err(PsbtTextError::Encoding)));
/// ```
///
/// # Errors
/// It is none, one of version 2, damaged, or something follows it. Whoever made it is at fault.
pub fn parse(text: &str) -> Result<Psbt, PsbtTextError> {
    if text.len() > TEXT_MAX {
        return Err(PsbtTextError::TooLong { limit: TEXT_MAX });
    }
    let compact: String = text.chars().filter(|one| !one.is_whitespace()).collect();
    let hexadecimal = || hex::decode(&compact).ok().filter(|bytes| bytes.starts_with(MAGIC));
    let bytes = hexadecimal().or_else(|| STANDARD.decode(&compact).ok()).ok_or(PsbtTextError::Encoding)?;
    if !bytes.starts_with(MAGIC) {
        return Err(PsbtTextError::Encoding);
    }
    let mut rest = bytes.as_slice();
    match Psbt::deserialize_from_reader(&mut rest) {
        Ok(psbt) if rest.is_empty() => Ok(psbt),
        Ok(_) => Err(PsbtTextError::Trailing { bytes: rest.len() }),
        Err(_) if bytes.windows(VERSION_2.len()).any(|part| part == VERSION_2) => {
            Err(PsbtTextError::Version2)
        }
        Err(error) => Err(PsbtTextError::Damaged { reason: error.to_string() }),
    }
}

/// Why a text is no PSBT that can be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PsbtTextError {
    /// Neither base64 nor hex.
    #[error("it is no PSBT: a PSBT is text in base64 that begins with cHNidP")]
    Encoding,
    /// More than any has.
    #[error("it is longer than {limit} bytes, more than any PSBT that could be sent")]
    TooLong {
        /// The limit, in bytes.
        limit: usize,
    },
    /// A version that has no unsigned transaction.
    #[error("it is a PSBT of version 2 (BIP370); export it as version 0 (BIP174)")]
    Version2,
    /// Something is behind it.
    #[error("{bytes} bytes follow the PSBT: it was damaged or put together from several; export it again")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// It does not follow the format.
    #[error("the PSBT is damaged: {reason}; export it again")]
    Damaged {
        /// What is wrong.
        reason: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use bitcoin::{Amount, OutPoint, TxOut, Txid, hashes::Hash as _};

    fn psbt() -> Psbt {
        let world = testing::federation(4);
        let payment = TxOut { value: Amount::from_sat(60_000), script_pubkey: world.script() };
        let coin = OutPoint { txid: Txid::all_zeros(), vout: 0 };
        world.psbt(coin, Amount::from_sat(100_000), payment)
    }

    #[test]
    fn it_is_read_in_each_way_it_is_written() {
        let psbt = psbt();
        let text = psbt.to_string();
        let (first, second) = text.split_at(text.len() / 2);
        for text in [
            text.clone(),
            format!("  {text}\r\n"),
            format!("{first}\n{second}"),
            psbt.serialize_hex(),
            psbt.serialize_hex().to_uppercase(),
        ] {
            assert_eq!(parse(&text), Ok(psbt.clone()));
        }
    }

    #[test]
    fn what_else_there_is_is_named() {
        let bytes = psbt().serialize();
        let encode = |bytes: &[u8]| STANDARD.encode(bytes);
        let trailing = [bytes.as_slice(), b"more"].concat();
        assert_eq!(parse(&encode(&trailing)), Err(PsbtTextError::Trailing { bytes: 4 }));
        let twice = [bytes.as_slice(), bytes.as_slice()].concat();
        assert_eq!(parse(&encode(&twice)), Err(PsbtTextError::Trailing { bytes: bytes.len() }));
        // Transaction version, input count, output count, version (BIP370).
        let second =
            b"psbt\xff\x01\x02\x04\x02\0\0\0\x01\x04\x01\x01\x01\x05\x01\x01\x01\xfb\x04\x02\0\0\0\0";
        assert_eq!(parse(&encode(second)), Err(PsbtTextError::Version2));
        for length in MAGIC.len()..bytes.len() {
            let cut = parse(&encode(&bytes[..length]));
            assert!(matches!(cut, Err(PsbtTextError::Damaged { .. })), "{length}: {cut:?}");
        }
        for text in ["", "hello", "aGVsbG8=", "cHNi", "cHNidP8!", "70736274ff0"] {
            assert_eq!(parse(text), Err(PsbtTextError::Encoding), "{text}");
        }
        assert_eq!(parse(&" ".repeat(TEXT_MAX + 1)), Err(PsbtTextError::TooLong { limit: TEXT_MAX }));
    }
}
