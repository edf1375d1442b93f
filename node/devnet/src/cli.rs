//! The command line of `quorate-devnet`.

use crate::{DevnetChain, run, serve_rpc};
use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use std::{net::SocketAddr, path::PathBuf, process::ExitCode, sync::Arc};
use tokio::net::TcpListener;

#[derive(Parser)]
#[command(version, about = "A Quorate federation with its bridge on an embedded chain, in one process")]
#[command(args_conflicts_with_subcommands = true)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    options: run::Options,
}

#[derive(Subcommand)]
enum Command {
    /// Only serve the embedded chain over JSON-RPC, for nodes in other processes
    Chain {
        /// Address to listen on
        #[arg(long, default_value = "127.0.0.1:18443")]
        listen: SocketAddr,
        /// Keep blocks here
        #[arg(long)]
        data_dir: Option<PathBuf>,
    },
}

/// Runs the program; a failure is told in one line on standard error.
pub fn main() -> ExitCode {
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> Result<()> {
    let arguments = Arguments::parse();
    let default = if arguments.command.is_some() { "info" } else { "warn" };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| default.into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        match arguments.command {
            None => run::run(arguments.options).await,
            Some(Command::Chain { listen, data_dir }) => chain(listen, data_dir).await,
        }
    })
}

async fn chain(listen: SocketAddr, data_dir: Option<PathBuf>) -> Result<()> {
    let chain = match data_dir {
        Some(directory) => {
            std::fs::create_dir_all(&directory)?;
            DevnetChain::open(&directory)?
        }
        None => DevnetChain::new(),
    };
    let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen on {listen}"))?;
    tracing::info!(address = %listener.local_addr()?, "serving the embedded chain");
    tokio::select! {
        served = serve_rpc(listener, Arc::new(chain)) => Ok(served?),
        stopped = quorate_node::cli::stop_signal() => stopped,
    }
}
