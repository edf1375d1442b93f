//! The Quorate node: voting, finality, co-signing, chain following and storage.

pub mod api;
pub mod chain;
pub mod cli;
pub mod config;
mod crash;
mod dispatcher;
mod driver;
mod epoch_commands;
mod files;
mod follower;
mod membership;
mod operator;
mod peers;
pub mod provision;
mod repair;
pub mod run;
mod server;
mod setup;
#[doc(hidden)]
pub mod store;
mod succession;
