//! A FROST signing party on raw bytes (RFC 9591; suite secp256k1, Taproot), for applications that sign together
//! outside a joint account.
//!
//! Formats are those of the RFC: identifiers as numbers, scalars as 32 bytes big-endian, points as 33 bytes compressed.

use crate::error::Failure;
use frost_secp256k1_tr as tr;
use rand_core::{CryptoRng, OsRng, RngCore};
use std::{cell::RefCell, collections::BTreeMap, fmt::Display};
use wasm_bindgen::prelude::{JsValue, wasm_bindgen};
use zeroize::Zeroizing;

fn bad(name: &'static str) -> impl Fn(tr::Error) -> Failure {
    move |error| Failure::argument(name, error)
}

fn identifier(value: u16) -> Result<tr::Identifier, Failure> {
    tr::Identifier::try_from(value).map_err(bad("identifier"))
}

/// Nonces of one signature; used up by signing.
#[wasm_bindgen]
pub struct FrostNonces {
    nonces: RefCell<Option<tr::round1::SigningNonces>>,
    commitments: tr::round1::SigningCommitments,
}

#[wasm_bindgen]
impl FrostNonces {
    /// The hiding commitment.
    #[wasm_bindgen(getter)]
    pub fn hiding(&self) -> Result<Vec<u8>, JsValue> {
        Ok(self.commitments.hiding().serialize().map_err(bad("commitment"))?)
    }

    /// The binding commitment.
    #[wasm_bindgen(getter)]
    pub fn binding(&self) -> Result<Vec<u8>, JsValue> {
        Ok(self.commitments.binding().serialize().map_err(bad("commitment"))?)
    }
}

/// The commitments of all who sign, with the message.
#[wasm_bindgen]
pub struct FrostPackage {
    message: Vec<u8>,
    commitments: RefCell<BTreeMap<tr::Identifier, tr::round1::SigningCommitments>>,
    shares: RefCell<BTreeMap<tr::Identifier, tr::round2::SignatureShare>>,
}

#[wasm_bindgen]
impl FrostPackage {
    /// For a message.
    #[wasm_bindgen(constructor)]
    pub fn new(message: Vec<u8>) -> Self {
        Self { message, commitments: RefCell::default(), shares: RefCell::default() }
    }

    /// Adds a signer's commitments.
    #[wasm_bindgen(js_name = addCommitments)]
    pub fn add_commitments(&self, signer: u16, hiding: &[u8], binding: &[u8]) -> Result<(), JsValue> {
        let point = |bytes| tr::round1::NonceCommitment::deserialize(bytes).map_err(bad("commitment"));
        let one = tr::round1::SigningCommitments::new(point(hiding)?, point(binding)?);
        self.commitments.borrow_mut().insert(identifier(signer)?, one);
        Ok(())
    }

    /// Adds a signer's share.
    #[wasm_bindgen(js_name = addShare)]
    pub fn add_share(&self, signer: u16, share: &[u8]) -> Result<(), JsValue> {
        let share = tr::round2::SignatureShare::deserialize(share).map_err(bad("share"))?;
        self.shares.borrow_mut().insert(identifier(signer)?, share);
        Ok(())
    }

    fn package(&self) -> tr::SigningPackage {
        tr::SigningPackage::new(self.commitments.borrow().clone(), &self.message)
    }

    /// Adds up the shares to a BIP340 signature of 64 bytes under the key, tweaked as in BIP341 without scripts if
    /// `taproot` is set. An error names those whose share is wrong.
    pub fn aggregate(&self, group: &FrostGroup, taproot: bool) -> Result<Vec<u8>, JsValue> {
        let (package, shares) = (self.package(), self.shares.borrow());
        let signature = if taproot {
            tr::aggregate_with_tweak(&package, &shares, &group.inner, None)
        } else {
            tr::aggregate(&package, &shares, &group.inner)
        };
        let signature = signature.map_err(|error| Failure::new("invalid_share", describe(&error)))?;
        Ok(signature.serialize().map_err(bad("signature"))?)
    }
}

fn describe(error: &tr::Error) -> String {
    let culprits = error.culprits();
    if culprits.is_empty() {
        return error.to_string();
    }
    let names: Vec<_> = culprits.iter().map(|culprit| hex::encode(culprit.serialize())).collect();
    format!("{error}: shares of {}", names.join(", "))
}

/// The public keys of a group.
#[wasm_bindgen]
pub struct FrostGroup {
    inner: tr::keys::PublicKeyPackage,
}

#[wasm_bindgen]
impl FrostGroup {
    /// From the group's key, its threshold, and everybody's identifier and verifying share one after the other (33
    /// bytes each).
    #[wasm_bindgen(constructor)]
    pub fn new(
        key: &[u8],
        threshold: u16,
        identifiers: &[u16],
        shares: &[u8],
    ) -> Result<FrostGroup, JsValue> {
        if shares.len() != identifiers.len() * 33 {
            return Err(Failure::argument("shares", "33 bytes per identifier are needed").into());
        }
        let verifying = identifiers.iter().zip(shares.chunks(33)).map(|(one, share)| {
            Ok((identifier(*one)?, tr::keys::VerifyingShare::deserialize(share).map_err(bad("shares"))?))
        });
        let verifying = verifying.collect::<Result<BTreeMap<_, _>, Failure>>()?;
        let key = tr::VerifyingKey::deserialize(key).map_err(bad("key"))?;
        Ok(Self { inner: tr::keys::PublicKeyPackage::new(verifying, key, Some(threshold)) })
    }
}

/// One party with its share of the key.
#[wasm_bindgen]
pub struct FrostParty {
    inner: tr::keys::KeyPackage,
}

#[wasm_bindgen]
impl FrostParty {
    /// From its share of the secret key.
    #[wasm_bindgen(constructor)]
    pub fn new(me: u16, secret: Vec<u8>, group_key: &[u8], threshold: u16) -> Result<FrostParty, JsValue> {
        let secret = Zeroizing::new(secret);
        let share = tr::keys::SigningShare::deserialize(&secret).map_err(bad("secret share"))?;
        let key = tr::VerifyingKey::deserialize(group_key).map_err(bad("group key"))?;
        let inner = tr::keys::KeyPackage::new(identifier(me)?, share, share.into(), key, threshold);
        Ok(Self { inner })
    }

    /// Makes fresh nonces. `randomness` is for test vectors: 64 bytes instead of the platform's own.
    pub fn commit(&self, randomness: Option<Vec<u8>>) -> Result<FrostNonces, JsValue> {
        let (nonces, commitments) = match randomness {
            None => tr::round1::commit(self.inner.signing_share(), &mut OsRng),
            Some(bytes) if bytes.len() == 64 => {
                tr::round1::commit(self.inner.signing_share(), &mut Given(Zeroizing::new(bytes), 0))
            }
            Some(_) => return Err(Failure::argument("randomness", "64 bytes are needed").into()),
        };
        Ok(FrostNonces { nonces: RefCell::new(Some(nonces)), commitments })
    }

    /// This party's signature share, 32 bytes. The nonces are used up, whatever comes of it.
    pub fn sign(
        &self,
        package: &FrostPackage,
        nonces: &FrostNonces,
        taproot: bool,
    ) -> Result<Vec<u8>, JsValue> {
        let used = || {
            Failure::new(
                "nonces_used",
                "these nonces have signed already; make fresh ones for every signature",
            )
        };
        let nonces = nonces.nonces.borrow_mut().take().ok_or_else(used)?;
        let package = package.package();
        let share = if taproot {
            tr::round2::sign_with_tweak(&package, &nonces, &self.inner, None)
        } else {
            tr::round2::sign(&package, &nonces, &self.inner)
        };
        Ok(share.map_err(|error: tr::Error| Failure::argument("package", text(&error)))?.serialize())
    }
}

fn text(error: &impl Display) -> String {
    error.to_string()
}

/// Bytes that were given instead of random ones.
struct Given(Zeroizing<Vec<u8>>, usize);

impl RngCore for Given {
    fn next_u32(&mut self) -> u32 {
        rand_core::impls::next_u32_via_fill(self)
    }

    fn next_u64(&mut self) -> u64 {
        rand_core::impls::next_u64_via_fill(self)
    }

    fn fill_bytes(&mut self, target: &mut [u8]) {
        let rest = self.0.get(self.1..).unwrap_or_default();
        assert!(rest.len() >= target.len(), "64 bytes are what two nonces take");
        target.copy_from_slice(rest.get(..target.len()).unwrap_or_default());
        self.1 += target.len();
    }

    fn try_fill_bytes(&mut self, target: &mut [u8]) -> Result<(), rand_core::Error> {
        self.fill_bytes(target);
        Ok(())
    }
}

impl CryptoRng for Given {}
