//! Plain data for JavaScript.

use serde::Serialize;
use serde_wasm_bindgen::Serializer;
use wasm_bindgen::JsValue;

/// Plain objects; 64-bit integers as `bigint`, absent values as `undefined`.
pub(crate) fn to_js(value: &impl Serialize) -> JsValue {
    let serializer =
        Serializer::new().serialize_large_number_types_as_bigints(true).serialize_maps_as_objects(true);
    value.serialize(&serializer).expect("own types are written without fail")
}
