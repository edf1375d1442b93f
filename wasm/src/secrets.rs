//! Words, destinations and keys from passwords.

use crate::{error::Failure, plain::to_js};
use argon2::{Algorithm, Argon2, Params, Version};
use quorate::wallet::{Destination, SecretWords};
use serde::Serialize;
use wasm_bindgen::prelude::{JsValue, wasm_bindgen};
use zeroize::Zeroizing;

/// Twelve new words (BIP39).
#[wasm_bindgen(js_name = generateWords)]
pub fn generate_words() -> Result<String, JsValue> {
    let words = SecretWords::generate().map_err(Failure::from)?;
    Ok(words.reveal().to_string())
}

/// Checks words and gives them in their normal form.
#[wasm_bindgen(js_name = checkWords)]
pub fn check_words(words: String) -> Result<String, JsValue> {
    let words = Zeroizing::new(words);
    Ok(SecretWords::parse(&words).map_err(Failure::from)?.reveal().to_string())
}

/// Argon2id (RFC 9106), one lane, 32 bytes.
#[wasm_bindgen]
pub fn argon2id(password: Vec<u8>, salt: &[u8], memory_kib: u32, passes: u32) -> Result<Vec<u8>, JsValue> {
    let password = Zeroizing::new(password);
    let params =
        Params::new(memory_kib, passes, 1, None).map_err(|error| Failure::argument("argon2id", error))?;
    let mut key = vec![0; 32];
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
        .hash_password_into(&password, salt, &mut key)
        .map_err(|error| Failure::argument("argon2id", error))?;
    Ok(key)
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DestinationView {
    address: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    amount: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    label: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<String>,
}

/// Reads an address or `bitcoin:` URI of a network.
#[wasm_bindgen(js_name = parseDestination)]
pub fn parse_destination(text: &str, network: &str) -> Result<JsValue, JsValue> {
    let network = network.parse().map_err(|error| Failure::argument("network", error))?;
    let Destination { address, amount, label, message } =
        Destination::parse(text, network).map_err(Failure::from)?;
    let amount = amount.map(bitcoin::Amount::to_sat);
    Ok(to_js(&DestinationView { address: address.to_string(), amount, label, message }))
}
