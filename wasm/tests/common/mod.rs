//! What holds in every JavaScript runtime.

use js_sys::{Promise, Reflect};
use quorate_wasm::{
    Federation, FrostParty, Headers, argon2id, check_words, fetch_federation, generate_words,
    parse_destination,
};
use wasm_bindgen::JsValue;
use wasm_bindgen_futures::JsFuture;
use wasm_bindgen_test::wasm_bindgen_test;

const WORDS: &str =
    "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about";

fn field(value: &JsValue, name: &str) -> JsValue {
    Reflect::get(value, &name.into()).expect("an object")
}

fn code(error: &JsValue) -> String {
    field(error, "code").as_string().expect("every error has a code")
}

#[wasm_bindgen_test]
fn words_are_made_and_checked() {
    assert_eq!(generate_words().expect("randomness").split(' ').count(), 12);
    assert_ne!(generate_words().expect("randomness"), generate_words().expect("randomness"));
    assert_eq!(check_words(format!("  {WORDS}\n")).expect("valid"), WORDS);
    assert_eq!(code(&check_words("abandon".to_owned()).expect_err("too few")), "invalid_words");
}

/// From the reference implementation's own tests.
#[wasm_bindgen_test]
fn argon2id_is_the_reference_one() {
    let key = argon2id(b"password".to_vec(), b"somesalt", 65_536, 2).expect("hashes");
    assert_eq!(hex::encode(key), "09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7");
    assert_eq!(code(&argon2id(Vec::new(), b"short", 8, 1).expect_err("salt")), "invalid_argument");
}

#[wasm_bindgen_test]
fn amounts_cross_as_bigint_and_absent_fields_are_absent() {
    let uri = "bitcoin:bcrt1qs758ursh4q9z627kt3pp5yysm78ddny6txaqgw?amount=0.00000001&label=Tea";
    let destination = parse_destination(uri, "regtest").expect("valid");
    assert_eq!(field(&destination, "amount"), JsValue::from(1_u64));
    assert!(field(&destination, "amount").is_bigint() && field(&destination, "message").is_undefined());
    assert_eq!(code(&parse_destination(uri, "mainnet").expect_err("unknown name")), "invalid_argument");
    assert_eq!(code(&parse_destination(uri, "bitcoin").expect_err("other network")), "wrong_network");
}

#[wasm_bindgen_test]
fn what_is_not_a_document_key_or_header_is_an_error_and_no_panic() {
    assert_eq!(code(&Federation::new("{}", "zz").expect_err("no id")), "invalid_argument");
    assert_eq!(code(&Federation::new("{}", &"00".repeat(32)).expect_err("no document")), "invalid_argument");
    let headers = Headers::new("regtest", None, None).expect("known network");
    assert_eq!(code(&headers.extend(vec!["00".to_owned()]).expect_err("short")), "invalid_argument");
    assert_eq!(headers.extend(Vec::new()).expect("nothing"), 0);
    assert!(FrostParty::new(0, vec![1; 32], &[2; 33], 2).is_err());
    assert!(FrostParty::new(1, vec![0xff; 32], &[2; 33], 2).is_err());
}

#[wasm_bindgen_test]
async fn a_bridge_that_is_not_there_is_an_error_that_may_pass() {
    let promise = fetch_federation(vec!["ws://127.0.0.1:9".to_owned()], None);
    let error = JsFuture::from(promise).await.expect_err("nobody listens");
    // Node before version 22 has no WebSocket at all; the package brings one.
    assert_eq!(code(&error), "bridge_unreachable");
    assert_eq!(field(&error, "retryable"), JsValue::TRUE);
    let none: Promise = fetch_federation(Vec::new(), None);
    assert_eq!(code(&JsFuture::from(none).await.expect_err("no address")), "invalid_argument");
}
