//! The operator's side: HTTP API, metrics, and the commands that ask or change a node.

pub(crate) mod api;
pub(crate) mod client;
pub(crate) mod commands;
pub(crate) mod keys;
mod metrics;
pub(crate) mod store;
