//! The Quorate node: voting, finality, co-signing, chain following and storage.

mod backlog;
mod certificates;
pub mod chain;
pub mod cli;
pub mod config;
mod crash;
mod disk;
mod epoch;
mod files;
mod net;
mod operator;
pub mod provision;
pub mod run;
mod secrets;
#[doc(hidden)]
pub mod store;
