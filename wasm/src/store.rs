//! The client's state in whatever JavaScript keeps it in.

use js_sys::{Array, Function, Map, Promise, Uint8Array};
use quorate::{
    client::{Saving, Store, StoreError},
    wallet::{SavedState, StateChange},
};
use wasm_bindgen::{JsCast as _, JsValue};
use wasm_bindgen_futures::JsFuture;

/// Calls `save(change)` with a `Map` from key to `Uint8Array` or `null`, and waits for its promise.
#[derive(Debug)]
pub(crate) struct JsStore(pub(crate) Function);

impl Store for JsStore {
    fn save(&mut self, change: StateChange) -> Saving {
        let map = Map::new();
        for (key, value) in change {
            let value = value.map_or(JsValue::NULL, |bytes| Uint8Array::from(bytes.as_slice()).into());
            map.set(&key.into(), &value);
        }
        let called = self.0.call1(&JsValue::NULL, &map);
        Box::pin(async move {
            let promise: Promise = called.map_err(|error| failed(&error))?.unchecked_into();
            JsFuture::from(Promise::resolve(&promise)).await.map_err(|error| failed(&error))?;
            Ok(())
        })
    }
}

fn failed(error: &JsValue) -> StoreError {
    let message = js_sys::Reflect::get(error, &"message".into()).ok().and_then(|message| message.as_string());
    StoreError(message.or_else(|| error.as_string()).unwrap_or_else(|| "unknown reason".to_owned()))
}

/// Reads a `Map` from key to `Uint8Array`.
pub(crate) fn read_state(map: &Map) -> SavedState {
    let mut state = SavedState::new();
    for entry in map.entries().into_iter().flatten() {
        let entry: Array = entry.unchecked_into();
        if let (Some(key), Ok(value)) = (entry.get(0).as_string(), entry.get(1).dyn_into::<Uint8Array>()) {
            state.insert(key, value.to_vec());
        }
    }
    state
}
