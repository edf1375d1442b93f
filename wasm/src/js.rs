//! Arguments and promises.

#[cfg(feature = "wallet")]
use futures_util::future::LocalBoxFuture;
use serde::de::DeserializeOwned;
#[cfg(feature = "wallet")]
use wasm_bindgen::JsValue;

use crate::error::Failure;

/// Reads an argument.
#[cfg(feature = "wallet")]
pub(crate) fn from_js<T: DeserializeOwned>(name: &str, value: JsValue) -> Result<T, Failure> {
    serde_wasm_bindgen::from_value(value).map_err(|error| Failure::argument(name, error))
}

/// Reads an argument that is JSON.
pub(crate) fn from_json<T: DeserializeOwned>(name: &str, text: &str) -> Result<T, Failure> {
    serde_json::from_slice(text.as_bytes()).map_err(|error| Failure::argument(name, error))
}

/// Runs a task of its own, so that nothing stays borrowed while it waits.
#[cfg(feature = "wallet")]
pub(crate) fn promise<T: Into<JsValue>>(
    task: impl Future<Output = Result<T, Failure>> + 'static,
) -> js_sys::Promise {
    // Boxed, so that the machinery behind a promise is in the binary once and not once per method.
    let task: LocalBoxFuture<'static, Result<JsValue, JsValue>> =
        Box::pin(async move { Ok(task.await?.into()) });
    wasm_bindgen_futures::future_to_promise(task)
}
