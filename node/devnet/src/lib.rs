//! A devnet: a whole federation with its bridge on an embedded regtest chain, in one process.
//!
//! The nodes, the bridge and the wallets are the ones that run anywhere else. Only the chain is made here:
//! [`DevnetChain`] has one miner and no peers, checks with Bitcoin Core's interpreter, and makes blocks that Bitcoin
//! Core accepts.

mod chain;
pub mod cli;
mod network;
mod rpc;
mod run;
mod timeline;
mod treasury;
mod validate;
mod web;

pub use chain::DevnetChain;
pub use network::Devnet;
pub use rpc::serve_rpc;
pub use treasury::Treasury;
