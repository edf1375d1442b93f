//! `quorate-bridge`: runs a bridge until SIGTERM or Ctrl-C.

use anyhow::{Context as _, Result};
use clap::Parser;
use quorate_bridge::{BridgeConfig, RunningBridge};
use std::path::PathBuf;
use tokio::signal::unix::{SignalKind, signal};

/// The allocator of the system's library keeps what a flood or a large snapshot took.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(version, about = "WebSocket-to-QUIC bridge of a Quorate federation")]
struct Arguments {
    /// Directory with bridge.toml and the TLS files, as `quorate-node federation new` makes it
    #[arg(env = "QUORATE_BRIDGE_DIR")]
    directory: PathBuf,
    /// Address to listen on, instead of the one in bridge.toml
    #[arg(long, env = "QUORATE_BRIDGE_LISTEN")]
    listen: Option<std::net::SocketAddr>,
}

#[tokio::main]
async fn main() -> Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .with_writer(std::io::stderr)
        .init();
    let arguments = Arguments::parse();
    let mut config = BridgeConfig::read(&arguments.directory.join("bridge.toml"))?;
    config.listen = arguments.listen.unwrap_or(config.listen);
    let bridge = RunningBridge::start(&arguments.directory, config).await?;
    tracing::info!(address = %bridge.address(), "listening");
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    tokio::select! {
        _ = terminate.recv() => {}
        stopped = tokio::signal::ctrl_c() => stopped?,
    }
    bridge.shut_down().await
}
