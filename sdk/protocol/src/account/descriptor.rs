//! The account as an output descriptor (BIP380, BIP386, BIP389): all its addresses, and how its owner leaves.
//!
//! The text is fixed but for two keys, an origin and a number, so the descriptor library (about 150 KB of wasm) is used
//! in the tests only, where it must agree.

use super::{
    AccountError,
    address::{Address, Keychain, KeychainIndex},
    checksum::checksum,
};
use crate::curve;
use bitcoin::{
    NetworkKind, ScriptBuf, TapNodeHash, XOnlyPublicKey,
    bip32::{ChildNumber, DerivationPath, Fingerprint, KeySource, Xpub},
    opcodes::all::{OP_CHECKSIGVERIFY, OP_CSV},
    taproot::LeafVersion,
};
use std::{fmt, str::FromStr};

/// `tr(<joint xpub>/<0;1>/*,and_v(v:pk([origin]<recovery xpub>/<0;1>/*),older(<delay>)))`.
///
/// ```
/// use quorate::account::AccountDescriptor;
/// # let key = "tpubD6NzVbkrYhZ4XgiXtGrdW5XDAPFCL9h7we1vwNCpn8tGbBcgfVYjXyhWo4E1xkh56hjod1RhGjxbaTLV3X4FyWuejifB9j\
/// # usQ46QzG87VKp";
/// # let body = format!("tr({key}/<0;1>/*,and_v(v:pk({key}/<0;1>/*),older(12960)))");
/// let descriptor: AccountDescriptor = body.parse()?;
/// assert_eq!(descriptor.recovery_delay(), 12_960);
/// assert!(descriptor.to_string().starts_with(&body), "written with its checksum");
/// # Ok::<(), quorate::account::DescriptorError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountDescriptor {
    joint: Xpub,
    recovery: Xpub,
    origin: Option<KeySource>,
    delay: u16,
    chains: [Chain; 2],
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Chain {
    joint: Xpub,
    tweak: [u8; 32],
    recovery: Xpub,
}

/// Why a text is not the descriptor of an account.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DescriptorError {
    /// A character was changed or lost.
    #[error(
        "the descriptor's checksum is {found}, it should be {expected}: compare it with your backup letter by letter"
    )]
    Checksum {
        /// As given.
        found: String,
        /// Of the text before it.
        expected: String,
    },
    /// It is a descriptor of another kind, or none.
    #[error(
        "this is not the descriptor of a joint account at {at:?}; it reads tr(KEY/<0;1>/*,and_v(v:pk(KEY/<0;1>/*),older(N)))"
    )]
    Form {
        /// Where it departs from the form, shortened.
        at: String,
    },
    /// A key or its origin cannot be read.
    #[error("a key of the descriptor cannot be read: {reason}")]
    Key {
        /// What is wrong.
        reason: String,
    },
    /// Two keys of different networks.
    #[error("the descriptor's keys are of different networks")]
    Networks,
}

impl AccountDescriptor {
    pub(super) fn new(joint: Xpub, recovery: Xpub, delay: u16) -> Result<Self, AccountError> {
        let chain = |keychain: Keychain| {
            let child = ChildNumber::Normal { index: keychain.number() };
            let (joint, tweak) = curve::child(&joint, child).ok_or(AccountError::Key)?;
            let (recovery, _) = curve::child(&recovery, child).ok_or(AccountError::Key)?;
            Ok::<_, AccountError>(Chain { joint, tweak: tweak.secret_bytes(), recovery })
        };
        let chains = [chain(Keychain::Receive)?, chain(Keychain::Change)?];
        Ok(Self { joint, recovery, origin: None, delay, chains })
    }

    /// The same with the origin of the recovery key: the fingerprint of the words' master key and the path from there
    /// (BIP380), by which any wallet with the words finds the key.
    #[must_use]
    pub fn with_origin(mut self, fingerprint: Fingerprint, path: DerivationPath) -> Self {
        self.origin = Some((fingerprint, path));
        self
    }

    /// The joint key.
    pub fn joint(&self) -> &Xpub {
        &self.joint
    }

    /// The key of the recovery path.
    pub fn recovery(&self) -> &Xpub {
        &self.recovery
    }

    /// Where the recovery key comes from, if that is known.
    pub fn origin(&self) -> Option<&KeySource> {
        self.origin.as_ref()
    }

    /// Blocks after which the recovery key alone can move a coin (BIP68).
    pub fn recovery_delay(&self) -> u16 {
        self.delay
    }

    /// Of which kind of network its keys are.
    pub fn network_kind(&self) -> NetworkKind {
        self.joint.network
    }

    /// Derives one address.
    ///
    /// # Errors
    /// The index is 2^31 or more, or the child key is not usable.
    pub fn address(&self, position: KeychainIndex) -> Result<Address, AccountError> {
        let [receive, change] = &self.chains;
        let chain = match position.keychain {
            Keychain::Receive => receive,
            Keychain::Change => change,
        };
        let child = ChildNumber::from_normal_idx(position.index).map_err(|_| AccountError::Key)?;
        let (joint, tweak) = curve::child(&chain.joint, child).ok_or(AccountError::Key)?;
        let key = joint.public_key;
        let tweak = tweak
            .add_tweak(
                &bitcoin::secp256k1::Scalar::from_be_bytes(chain.tweak).map_err(|_| AccountError::Key)?,
            )
            .map_err(|_| AccountError::Key)?;
        let (recovery, _) = curve::child(&chain.recovery, child).ok_or(AccountError::Key)?;
        let recovery_key = recovery.public_key.x_only_public_key().0;
        let leaf = recovery_leaf(&recovery_key, self.delay);
        let merkle_root = TapNodeHash::from_script(&leaf, LeafVersion::TapScript);
        let (output, output_parity) =
            curve::taproot_output(key.x_only_public_key().0, merkle_root).ok_or(AccountError::Key)?;
        Ok(Address {
            position,
            key,
            tweak: tweak.secret_bytes(),
            leaf,
            merkle_root,
            output_key: output.to_x_only_public_key(),
            output_parity,
            script_pubkey: ScriptBuf::new_p2tr_tweaked(output),
            recovery_key,
        })
    }
}

/// `and_v(v:pk(key), older(delay))` as miniscript compiles it.
fn recovery_leaf(key: &XOnlyPublicKey, delay: u16) -> ScriptBuf {
    ScriptBuf::builder()
        .push_x_only_key(key)
        .push_opcode(OP_CHECKSIGVERIFY)
        .push_int(i64::from(delay))
        .push_opcode(OP_CSV)
        .into_script()
}

impl fmt::Display for AccountDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let origin = self.origin.as_ref().map_or(String::new(), |(fingerprint, path)| {
            let steps: String = path.into_iter().map(|step| format!("/{step}")).collect();
            format!("[{fingerprint}{steps}]")
        });
        let Self { joint, recovery, delay, .. } = self;
        let body = format!("tr({joint}/<0;1>/*,and_v(v:pk({origin}{recovery}/<0;1>/*),older({delay})))");
        let checksum = checksum(&body).expect("descriptor characters only");
        write!(f, "{body}#{checksum}")
    }
}

impl FromStr for AccountDescriptor {
    type Err = DescriptorError;

    /// Reads a descriptor; the checksum may be left out (BIP380), hardened steps are written with `'` or `h`.
    fn from_str(text: &str) -> Result<Self, DescriptorError> {
        let text = text.trim();
        let (body, found) = text.split_once('#').map_or((text, None), |(body, sum)| (body, Some(sum)));
        if let Some(found) = found {
            let expected = checksum(body).ok_or_else(|| form(body))?;
            if found != expected {
                let found = found.chars().take(8).collect();
                return Err(DescriptorError::Checksum { found, expected });
            }
        }
        let rest = body.strip_prefix("tr(").ok_or_else(|| form(body))?;
        let (joint, rest) = split(rest, "/<0;1>/*,and_v(v:pk(")?;
        let (recovery, rest) = split(rest, "/<0;1>/*),older(")?;
        let (delay, rest) = split(rest, ")))")?;
        if !rest.is_empty() {
            return Err(form(rest));
        }
        let plain =
            !delay.is_empty() && !delay.starts_with('0') && delay.bytes().all(|digit| digit.is_ascii_digit());
        let delay = delay.parse::<u16>().ok().filter(|_| plain).ok_or_else(|| form(delay))?;
        let (origin, recovery) = match recovery.strip_prefix('[') {
            Some(rest) => {
                let (origin, key) = split(rest, "]")?;
                (Some(read_origin(origin)?), key)
            }
            None => (None, recovery),
        };
        let (joint, recovery) = (read_key(joint)?, read_key(recovery)?);
        if joint.network != recovery.network {
            return Err(DescriptorError::Networks);
        }
        let descriptor = Self::new(joint, recovery, delay).map_err(|error| key(&error))?;
        Ok(Self { origin, ..descriptor })
    }
}

fn form(at: &str) -> DescriptorError {
    DescriptorError::Form { at: at.chars().take(24).collect() }
}

fn key(reason: &impl fmt::Display) -> DescriptorError {
    DescriptorError::Key { reason: reason.to_string() }
}

fn split<'a>(text: &'a str, at: &str) -> Result<(&'a str, &'a str), DescriptorError> {
    text.split_once(at).ok_or_else(|| form(text))
}

fn read_key(text: &str) -> Result<Xpub, DescriptorError> {
    text.parse().map_err(|error| key(&error))
}

fn read_origin(text: &str) -> Result<KeySource, DescriptorError> {
    let (fingerprint, path) = text.split_once('/').unwrap_or((text, ""));
    let fingerprint = fingerprint.parse().map_err(|error| key(&error))?;
    let path = if path.is_empty() {
        DerivationPath::default()
    } else {
        path.parse().map_err(|error| key(&error))?
    };
    Ok((fingerprint, path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use miniscript::{Descriptor, DescriptorPublicKey};

    fn with_origin() -> AccountDescriptor {
        let account = testing::federation(4).account;
        let path = "87'/1'/0'".parse().expect("a path");
        account.descriptor().clone().with_origin(Fingerprint::from([0xab; 4]), path)
    }

    #[test]
    fn what_is_written_is_read_and_miniscript_agrees() {
        for descriptor in [testing::federation(4).account.descriptor().clone(), with_origin()] {
            let text = descriptor.to_string();
            assert_eq!(text.parse::<AccountDescriptor>().expect("reads its own"), descriptor);
            let without = text.split('#').next().expect("a body");
            assert_eq!(without.parse::<AccountDescriptor>().expect("checksum left out"), descriptor);
            let theirs: Descriptor<DescriptorPublicKey> = text.parse().expect("miniscript reads it");
            assert_eq!(theirs.to_string(), text);
        }
        assert!(with_origin().to_string().contains("v:pk([abababab/87'/1'/0']tpub"));
    }

    #[test]
    fn hardened_steps_are_read_in_both_ways() {
        let text = with_origin().to_string();
        let body = text.split('#').next().expect("a body").replace('\'', "h");
        assert_eq!(body.parse::<AccountDescriptor>().expect("h"), with_origin());
    }

    #[test]
    fn every_changed_letter_is_noticed() {
        let text = with_origin().to_string();
        for index in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[index] = if bytes[index] == b'x' { b'y' } else { b'x' };
            let changed = String::from_utf8(bytes).expect("ascii");
            changed.parse::<AccountDescriptor>().expect_err(&changed);
        }
    }

    #[test]
    fn other_descriptors_are_refused_with_the_place() {
        let good = with_origin().to_string();
        let body = good.split('#').next().expect("a body").to_owned();
        for (bad, place) in [
            (String::new(), ""),
            ("wpkh(x)".to_owned(), "wpkh(x)"),
            (body.replace("older(", "after("), "["),
            (body.replace("<0;1>", "<0;2>"), "tpub"),
            (format!("{body}x"), "x"),
            (body.replace("older(", "older(0"), "0"),
            (body.replace("older(", "older(99"), "99"),
        ] {
            let error = bad.parse::<AccountDescriptor>().expect_err(&bad);
            let DescriptorError::Form { at } = &error else { panic!("{bad}: {error}") };
            assert!(at.starts_with(place), "{bad}: {at}");
        }
        let private = body.replacen("tpub", "tprv", 1);
        assert!(matches!(private.parse::<AccountDescriptor>(), Err(DescriptorError::Key { .. })));
    }
}
