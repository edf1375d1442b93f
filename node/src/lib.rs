//! The Quorate node: voting, finality, co-signing, chain following and storage.

pub mod chain;
mod crash;
mod machine;
mod store;
