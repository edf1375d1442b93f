//! The command line of `quorate-node`.

mod arguments;

use crate::{
    certificates::Subject,
    chain::Backends,
    config::{ChainConfig, NodeConfig},
    files::NodeFiles,
    operator::{client, commands, keys, store},
    provision::{self, NewFederation, Replacement},
    run::Node,
};
use anyhow::{Context as _, Result};
use arguments::{
    Arguments, Command, EpochCommand, EvidenceCommand, FederationCommand, IndexCommand, IssuedRole, Risk,
    ShareCommand, StoreCommand,
};
use clap::Parser as _;
use quorate_rules::EvidenceFile;
use std::{path::Path, sync::Arc};
use tokio::signal::unix::{SignalKind, signal};

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
    let (threads, default) = match arguments.command {
        Command::Run { threads, .. } => (threads.get(), "info"),
        Command::Federation(_) => (1, "info"),
        Command::Status { .. }
        | Command::Evidence(_)
        | Command::Epoch(_)
        | Command::Share(_)
        | Command::Store(_)
        | Command::Index(_) => (1, "warn"),
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| default.into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(threads).enable_all().build()?;
    runtime.block_on(run(arguments.command))
}

async fn run(command: Command) -> Result<()> {
    match command {
        Command::Run { directory, risk, threads: _ } => serve(&directory, &risk).await,
        Command::Status { directory } => {
            let status: serde_json::Value = client::get(&directory, "status").await?;
            client::print(&status)
        }
        Command::Evidence(EvidenceCommand::Export { directory }) => {
            let file: EvidenceFile = client::get(&directory, "evidence").await?;
            client::print(&file)
        }
        Command::Evidence(EvidenceCommand::Verify { file, federation }) => client::verify(&file, federation),
        Command::Federation(command) => federation(command).await,
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
        Command::Share(ShareCommand::Lock { directory, key }) => keys::lock(&directory, &key.source()?),
        Command::Share(ShareCommand::Backup { directory, to, key }) => {
            keys::backup(&directory, &to, key.source()?)
        }
        Command::Share(ShareCommand::Restore { directory, from, key }) => {
            keys::restore(&directory, &from, key.source()?)
        }
        Command::Share(ShareCommand::Repair { directory, dry_run }) => {
            commands::repair(&directory, dry_run).await
        }
    }
}

async fn federation(command: FederationCommand) -> Result<()> {
    match command {
        FederationCommand::New {
            directory,
            nodes,
            network,
            first_port,
            chain_kind: kind,
            chain_url: url,
            chain_user: user,
            chain_password: password,
            chain_cookie: cookie,
            risk,
        } => {
            risk.allow(network)?;
            let chain = vec![ChainConfig { kind, url, user, password, cookie }];
            let backend = Backends::open(&chain)?;
            let birthday = provision::birthday(&backend, network).await?;
            let plan = NewFederation { nodes, network, birthday, first_port, chain };
            let made = provision::federation(&directory, &plan)?;
            tracing::info!(federation = %made.id, directory = %directory.display(), "made; move ca.key off this machine");
            Ok(())
        }
        FederationCommand::Renew { certificate, authority } => keys::renew(&certificate, &authority),
        FederationCommand::Issue { directory, role, authority } => {
            let subject = match role {
                IssuedRole::Bridge => Subject::Bridge,
                IssuedRole::Client => Subject::Client,
            };
            keys::issue(&directory, subject, &authority)
        }
        FederationCommand::Revoke { directory, certificate } => keys::revoke_at(&directory, &certificate),
        FederationCommand::Replacement { directory, id, listen, like, authority } => {
            let made =
                Replacement { id: quorate_protocol::NodeId(id), listen, like: &like, authority: &authority };
            provision::replacement(&directory, &made)?;
            tracing::info!(directory = %directory.display(), "made; member.json is for the plan of the next epoch");
            Ok(())
        }
    }
}

/// Runs a node until it is asked to stop.
async fn serve(directory: &Path, risk: &Risk) -> Result<()> {
    let config = NodeConfig::read(&directory.join("node.toml"))?;
    risk.allow(NodeFiles::new(directory).roster()?.network)?;
    let chain = Backends::open(&config.chain)?;
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
