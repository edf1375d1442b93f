//! Partially signed transactions (BIP174): as text, read to the last byte, and what nodes need of one.

use bitcoin::{
    Psbt, ScriptBuf, TapLeafHash, XOnlyPublicKey,
    base64::{Engine as _, engine::general_purpose::STANDARD},
    bip32::KeySource,
    psbt::{Input, Output},
    taproot::{ControlBlock, LeafVersion},
};
use std::collections::BTreeMap;

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

/// Leaves what nodes need to check a payment: the spent outputs and what BIP371 says of the account's own. The rest of
/// what programs write into a PSBT would be room in every node for nothing.
pub(crate) fn without_unneeded(psbt: Psbt) -> Psbt {
    let Psbt { unsigned_tx, inputs, outputs, .. } = psbt;
    let input = |input: Input| Input {
        witness_utxo: input.witness_utxo,
        sighash_type: input.sighash_type,
        tap_key_origins: own_origin(input.tap_internal_key, input.tap_key_origins),
        tap_internal_key: input.tap_internal_key,
        tap_merkle_root: input.tap_merkle_root,
        tap_scripts: if is_one_leaf(&input.tap_scripts) { input.tap_scripts } else { Default::default() },
        ..Input::default()
    };
    let output = |output: Output| Output {
        tap_key_origins: own_origin(output.tap_internal_key, output.tap_key_origins),
        tap_internal_key: output.tap_internal_key,
        ..Output::default()
    };
    Psbt {
        unsigned_tx,
        version: 0,
        xpub: Default::default(),
        proprietary: Default::default(),
        unknown: Default::default(),
        inputs: inputs.into_iter().map(input).collect(),
        outputs: outputs.into_iter().map(output).collect(),
    }
}

type Origins = BTreeMap<XOnlyPublicKey, (Vec<TapLeafHash>, KeySource)>;
type Scripts = BTreeMap<ControlBlock, (ScriptBuf, LeafVersion)>;

/// Longest recovery leaf, in bytes, with room to spare.
const LEAF_BYTES_MAX: usize = 100;
/// Steps of the longest path that a wallet's key has, with room to spare.
const PATH_MAX: usize = 10;
/// A control block of a tree with one leaf.
const CONTROL_BYTES: usize = 33;

/// Where the internal key comes from, which is in no leaf.
fn own_origin(internal: Option<XOnlyPublicKey>, mut origins: Origins) -> Origins {
    let own = internal.and_then(|key| Some((key, origins.remove(&key)?)));
    let own = own.filter(|(_, (_, (_, path)))| path.len() <= PATH_MAX);
    own.map(|(key, (_, source))| (key, (Vec::new(), source))).into_iter().collect()
}

fn is_own_origin(internal: Option<XOnlyPublicKey>, origins: &Origins) -> bool {
    origins.iter().all(|(key, (leaves, (_, path)))| {
        internal == Some(*key) && leaves.is_empty() && path.len() <= PATH_MAX
    })
}

/// The account's recovery leaf, or nothing.
fn is_one_leaf(scripts: &Scripts) -> bool {
    let short = |(control, (script, _)): (&ControlBlock, &(ScriptBuf, LeafVersion))| {
        control.size() == CONTROL_BYTES && script.len() <= LEAF_BYTES_MAX
    };
    scripts.len() <= 1 && scripts.iter().all(short)
}

/// The first field that nodes do not need, by name; none if [`without_unneeded`] changes nothing.
pub(crate) fn unneeded(psbt: &Psbt) -> Option<String> {
    let Psbt { unsigned_tx: _, version, xpub, proprietary, unknown, inputs, outputs } = psbt;
    let whole = [
        ("a version", *version != 0),
        ("extended keys", !xpub.is_empty()),
        ("proprietary fields", !proprietary.is_empty()),
        ("unknown fields", !unknown.is_empty()),
    ];
    let of_psbt = named(&whole).map(|what| format!("the PSBT has {what}"));
    let inputs = inputs.iter().enumerate();
    let of_input = || {
        inputs.filter_map(|(index, input)| Some(format!("input {index} has {}", unneeded_in(input)?))).next()
    };
    let outputs = outputs.iter().enumerate();
    let of_output = || {
        outputs
            .filter_map(|(index, output)| Some(format!("output {index} has {}", unneeded_out(output)?)))
            .next()
    };
    of_psbt.or_else(of_input).or_else(of_output)
}

fn named(fields: &[(&'static str, bool)]) -> Option<&'static str> {
    fields.iter().find(|(_, there)| *there).map(|(name, _)| *name)
}

fn unneeded_in(input: &Input) -> Option<&'static str> {
    let Input {
        witness_utxo: _,
        sighash_type: _,
        tap_internal_key,
        tap_key_origins,
        tap_merkle_root: _,
        tap_scripts,
        non_witness_utxo,
        partial_sigs,
        redeem_script,
        witness_script,
        bip32_derivation,
        final_script_sig,
        final_script_witness,
        ripemd160_preimages,
        sha256_preimages,
        hash160_preimages,
        hash256_preimages,
        tap_key_sig,
        tap_script_sigs,
        proprietary,
        unknown,
    } = input;
    let preimages = !ripemd160_preimages.is_empty()
        || !sha256_preimages.is_empty()
        || !hash160_preimages.is_empty()
        || !hash256_preimages.is_empty();
    named(&[
        ("the transaction of its coin", non_witness_utxo.is_some()),
        ("signatures", !partial_sigs.is_empty() || tap_key_sig.is_some() || !tap_script_sigs.is_empty()),
        ("scripts", redeem_script.is_some() || witness_script.is_some()),
        (
            "origins of other keys than the account's",
            !bip32_derivation.is_empty() || !is_own_origin(*tap_internal_key, tap_key_origins),
        ),
        ("other leaves than the account's", !is_one_leaf(tap_scripts)),
        ("a final witness", final_script_sig.is_some() || final_script_witness.is_some()),
        ("preimages", preimages),
        ("proprietary fields", !proprietary.is_empty()),
        ("unknown fields", !unknown.is_empty()),
    ])
}

fn unneeded_out(output: &Output) -> Option<&'static str> {
    let Output {
        tap_internal_key,
        tap_key_origins,
        redeem_script,
        witness_script,
        bip32_derivation,
        tap_tree,
        proprietary,
        unknown,
    } = output;
    named(&[
        ("scripts", redeem_script.is_some() || witness_script.is_some() || tap_tree.is_some()),
        (
            "origins of other keys than its internal one",
            !bip32_derivation.is_empty() || !is_own_origin(*tap_internal_key, tap_key_origins),
        ),
        ("proprietary fields", !proprietary.is_empty()),
        ("unknown fields", !unknown.is_empty()),
    ])
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

    #[test]
    fn what_nodes_do_not_need_is_named_and_left_out() {
        type Change = fn(&mut Psbt);
        let changes: [(&str, Change); 11] = [
            ("input 0 has origins of other keys than the account's", |psbt| {
                let (key, origin) = psbt.inputs[0].tap_key_origins.first_key_value().expect("described");
                let (mut other, origin) = (key.serialize(), origin.clone());
                while other == key.serialize() || XOnlyPublicKey::from_slice(&other).is_err() {
                    other[31] = other[31].wrapping_add(1);
                }
                let other = XOnlyPublicKey::from_slice(&other).expect("a key");
                drop(psbt.inputs[0].tap_key_origins.insert(other, origin));
            }),
            ("output 0 has origins of other keys than its internal one", |psbt| {
                let (key, origin) = psbt.inputs[0].tap_key_origins.first_key_value().expect("described");
                psbt.outputs[0].tap_key_origins = [(*key, origin.clone())].into();
            }),
            ("the PSBT has unknown fields", |psbt| drop(psbt.unknown.insert(unknown_key(), vec![2]))),
            ("the PSBT has proprietary fields", |psbt| {
                drop(psbt.proprietary.insert(proprietary_key(), vec![2]));
            }),
            ("the PSBT has a version", |psbt| psbt.version = 1),
            ("input 0 has unknown fields", |psbt| {
                drop(psbt.inputs[0].unknown.insert(unknown_key(), vec![2]));
            }),
            ("input 0 has the transaction of its coin", |psbt| {
                psbt.inputs[0].non_witness_utxo = Some(psbt.unsigned_tx.clone());
            }),
            ("input 0 has a final witness", |psbt| {
                psbt.inputs[0].final_script_witness = Some(bitcoin::Witness::from_slice(&[[1]]));
            }),
            ("input 0 has preimages", |psbt| {
                let hash = bitcoin::hashes::sha256::Hash::all_zeros();
                drop(psbt.inputs[0].sha256_preimages.insert(hash, vec![1]));
            }),
            ("output 0 has scripts", |psbt| psbt.outputs[0].redeem_script = Some(Default::default())),
            ("output 0 has proprietary fields", |psbt| {
                drop(psbt.outputs[0].proprietary.insert(proprietary_key(), vec![2]));
            }),
        ];
        let lean = psbt();
        assert_eq!(unneeded(&lean), None);
        assert_eq!(without_unneeded(lean.clone()), lean);
        for (named, change) in changes {
            let mut fat = lean.clone();
            change(&mut fat);
            assert_eq!(unneeded(&fat).as_deref(), Some(named));
            assert_eq!(without_unneeded(fat), lean);
        }
    }

    fn unknown_key() -> bitcoin::psbt::raw::Key {
        bitcoin::psbt::raw::Key { type_value: 0xf0, key: vec![1] }
    }

    fn proprietary_key() -> bitcoin::psbt::raw::ProprietaryKey {
        bitcoin::psbt::raw::ProprietaryKey { prefix: vec![1], subtype: 0, key: vec![] }
    }

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
