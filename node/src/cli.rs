//! The command line of `quorate-node`.

use crate::{
    chain::Bitcoind,
    config::{ChainConfig, NodeConfig},
    operator::{client, commands, store},
    provision::{self, NewFederation, Replacement},
    run::Node,
};
use anyhow::{Context as _, Result};
use bitcoin::Network;
use clap::{Parser, Subcommand};
use quorate_rules::EvidenceFile;
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
};
use tokio::signal::unix::{SignalKind, signal};

#[derive(Parser)]
#[command(version, about = "A node of a Quorate federation")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the node whose files are in a directory
    Run {
        /// Directory with node.toml, keys and certificates
        #[arg(env = "QUORATE_NODE_DIR")]
        directory: PathBuf,
    },
    /// Ask a running node how it is: whether it votes and why not, its peers, what it holds
    Status {
        /// Directory of the node
        #[arg(env = "QUORATE_NODE_DIR")]
        directory: PathBuf,
    },
    /// Proofs that a node cheated
    #[command(subcommand)]
    Evidence(EvidenceCommand),
    /// Make federations, and nodes that take the place of others
    #[command(subcommand)]
    Federation(FederationCommand),
    /// Prepare the next epoch: new shares for all nodes, new nodes in the place of lost ones
    #[command(subcommand)]
    Epoch(EpochCommand),
    /// This node's share of the federation key
    #[command(subcommand)]
    Share(ShareCommand),
    /// What this node has read of the chain
    #[command(subcommand)]
    Index(IndexCommand),
    /// The files of a node that is not running: how large they are, whether they are good
    #[command(subcommand)]
    Store(StoreCommand),
}

#[derive(Subcommand)]
enum StoreCommand {
    /// Count what store, index and archive hold, by kind
    Stats {
        /// Directory of the node
        #[arg(env = "QUORATE_NODE_DIR")]
        directory: PathBuf,
    },
    /// Read every record: exit status 0 if all of them are as they were written
    Check {
        /// Directory of the node
        #[arg(env = "QUORATE_NODE_DIR")]
        directory: PathBuf,
    },
    /// Take what was settled below a block out of the archive. Nothing is voted on by it; wallets that were away for
    /// longer do not hear of it
    Prune {
        /// Directory of the node
        #[arg(env = "QUORATE_NODE_DIR")]
        directory: PathBuf,
        /// Height of the block
        #[arg(long)]
        below: u32,
    },
}

#[derive(Subcommand)]
enum IndexCommand {
    /// Have the chain read again from the federation's birthday at the next start; accounts and scripts are kept
    Rebuild {
        /// Directory of the node, which is not running
        #[arg(env = "QUORATE_NODE_DIR")]
        directory: PathBuf,
    },
}

#[derive(Subcommand)]
enum EvidenceCommand {
    /// Write a running node's evidence to standard output, to be handed on
    Export {
        /// Directory of the node
        #[arg(env = "QUORATE_NODE_DIR")]
        directory: PathBuf,
    },
    /// Check a file of evidence, offline: exit status 0 if all of it convicts
    Verify {
        /// The file, as `export` writes it
        file: PathBuf,
        /// The federation that the file has to be about
        #[arg(long)]
        federation: Option<quorate_protocol::FederationId>,
    },
}

#[derive(Subcommand)]
enum EpochCommand {
    /// Print a plan for the next epoch, for all operators to approve
    Plan {
        /// Directory of a node
        #[arg(env = "QUORATE_NODE_DIR")]
        directory: PathBuf,
        /// member.json of a node that takes the place of the one with its number; can be given several times
        #[arg(long)]
        replace: Vec<PathBuf>,
    },
    /// Approve a plan. A quorum of nodes has to; the running nodes then carry it out by themselves
    Approve {
        /// Directory of the node
        #[arg(env = "QUORATE_NODE_DIR")]
        directory: PathBuf,
        /// The plan
        plan: PathBuf,
        /// Only say what would happen, and who answers and has approved
        #[arg(long)]
        dry_run: bool,
    },
    /// Take back this node's part in a plan that can never be completed
    Withdraw {
        /// Directory of the node
        #[arg(env = "QUORATE_NODE_DIR")]
        directory: PathBuf,
        /// Only say what would happen
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Subcommand)]
enum ShareCommand {
    /// Have a lost or damaged share computed anew by a quorum of the other nodes, none of which learns it
    Repair {
        /// Directory of the node, which is not running
        #[arg(env = "QUORATE_NODE_DIR")]
        directory: PathBuf,
        /// Only say what would happen, and who answers
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Subcommand)]
enum FederationCommand {
    /// Make the files of a node that is to take the place of another one, with new keys
    Replacement {
        /// The new node's directory
        directory: PathBuf,
        /// Number of the node that is replaced
        #[arg(long)]
        id: u16,
        /// UDP address that the new node listens on
        #[arg(long)]
        listen: SocketAddr,
        /// Directory of any node that is up to date
        #[arg(long)]
        like: PathBuf,
        /// The authority's key, which `federation new` left in ca.key
        #[arg(long)]
        authority: PathBuf,
    },
    /// Make roster, authority, certificates, keys and configurations in a new directory
    New {
        /// The directory
        directory: PathBuf,
        /// Number of nodes
        #[arg(long, default_value_t = 7)]
        nodes: u16,
        /// Bitcoin network
        #[arg(long, default_value = "regtest")]
        network: Network,
        /// First UDP port of the nodes; free ports by default
        #[arg(long)]
        first_port: Option<u16>,
        /// JSON-RPC address of the chain backend
        #[arg(long, default_value = "http://127.0.0.1:18443")]
        chain_url: String,
        /// User of the chain backend
        #[arg(long, default_value = "")]
        chain_user: String,
        /// Password of the chain backend
        #[arg(long, default_value = "", env = "QUORATE_CHAIN_PASSWORD", hide_env_values = true)]
        chain_password: String,
        /// Cookie file of the chain backend, in place of user and password
        #[arg(long, conflicts_with_all = ["chain_user", "chain_password"])]
        chain_cookie: Option<PathBuf>,
    },
}

/// Runs the program; a failure is told in one line on standard error.
pub fn main() -> std::process::ExitCode {
    match start() {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

fn start() -> Result<()> {
    let arguments = Arguments::parse();
    let default = match arguments.command {
        Command::Status { .. }
        | Command::Evidence(_)
        | Command::Epoch(_)
        | Command::Share(_)
        | Command::Store(_)
        | Command::Index(_) => "warn",
        Command::Run { .. } | Command::Federation(_) => "info",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| default.into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(run(arguments.command))
}

async fn run(command: Command) -> Result<()> {
    match command {
        Command::Run { directory } => serve(&directory).await,
        Command::Status { directory } => {
            let status: serde_json::Value = client::get(&directory, "status").await?;
            client::print(&status)
        }
        Command::Evidence(EvidenceCommand::Export { directory }) => {
            let file: EvidenceFile = client::get(&directory, "evidence").await?;
            client::print(&file)
        }
        Command::Evidence(EvidenceCommand::Verify { file, federation }) => client::verify(&file, federation),
        Command::Federation(FederationCommand::New {
            directory,
            nodes,
            network,
            first_port,
            chain_url,
            chain_user,
            chain_password,
            chain_cookie,
        }) => {
            let (user, password, cookie) = (chain_user, chain_password, chain_cookie);
            let chain = ChainConfig { url: chain_url, user, password, cookie };
            let backend = Bitcoind::open(&chain);
            let birthday = provision::birthday(&backend, network).await?;
            let plan = NewFederation { nodes, network, birthday, first_port, chain };
            let made = provision::federation(&directory, &plan)?;
            tracing::info!(federation = %made.id, directory = %directory.display(), "made; move ca.key off this machine");
            Ok(())
        }
        Command::Federation(FederationCommand::Replacement { directory, id, listen, like, authority }) => {
            let made =
                Replacement { id: quorate_protocol::NodeId(id), listen, like: &like, authority: &authority };
            provision::replacement(&directory, &made)?;
            tracing::info!(directory = %directory.display(), "made; member.json is for the plan of the next epoch");
            Ok(())
        }
        Command::Epoch(EpochCommand::Plan { directory, replace }) => commands::plan(&directory, &replace),
        Command::Epoch(EpochCommand::Approve { directory, plan, dry_run }) => {
            commands::approve(&directory, &plan, dry_run).await
        }
        Command::Epoch(EpochCommand::Withdraw { directory, dry_run }) => {
            commands::withdraw(&directory, dry_run)
        }
        Command::Store(command) => match command {
            StoreCommand::Stats { directory } => store::stats(&directory),
            StoreCommand::Check { directory } => store::check(&directory),
            StoreCommand::Prune { directory, below } => store::prune(&directory, below),
        },
        Command::Index(IndexCommand::Rebuild { directory }) => commands::rebuild_index(&directory),
        Command::Share(ShareCommand::Repair { directory, dry_run }) => {
            commands::repair(&directory, dry_run).await
        }
    }
}

/// Runs a node until it is asked to stop.
async fn serve(directory: &Path) -> Result<()> {
    let config = NodeConfig::read(&directory.join("node.toml"))?;
    let chain = Bitcoind::open(&config.chain);
    let mut node = Node::start(directory, config, Arc::new(chain))?;
    tokio::select! {
        ready = node.ready() => {
            ready?;
            tracing::info!("this node takes part");
        }
        stopped = stop_signal() => return stopped,
    }
    tokio::select! {
        () = node.ended() => anyhow::bail!("the node has ended; its log says why"),
        stopped = stop_signal() => stopped?,
    }
    node.shut_down().await;
    Ok(())
}

/// Returns when the process is asked to stop: SIGTERM, or Ctrl-C.
///
/// # Errors
/// The system does not let it listen for signals.
pub async fn stop_signal() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for signals")?;
    tokio::select! {
        _ = terminate.recv() => Ok(()),
        stopped = tokio::signal::ctrl_c() => Ok(stopped?),
    }
}
