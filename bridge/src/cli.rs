//! The command line of `quorate-bridge`.

use crate::{BridgeConfig, RunningBridge};
use anyhow::{Context as _, Result};
use clap::Parser;
use std::{net::SocketAddr, path::PathBuf};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(version, about = "WebSocket-to-QUIC bridge of a Quorate federation")]
struct Arguments {
    /// Directory with bridge.toml and the TLS files, as `quorate-node federation new` makes it
    #[arg(env = "QUORATE_BRIDGE_DIR")]
    directory: PathBuf,
    /// Address to listen on, instead of the one in bridge.toml
    #[arg(long, env = "QUORATE_BRIDGE_LISTEN")]
    listen: Option<SocketAddr>,
}

/// Runs a bridge until SIGTERM or Ctrl-C; a failure is told in one line on standard error.
pub fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    match runtime.map_err(Into::into).and_then(|runtime| runtime.block_on(run(arguments))) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<()> {
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
