//! A federation that is running in this process.

use crate::{DevnetChain, Treasury, serve_rpc};
use anyhow::{Context as _, Result};
use bitcoin::{Amount, Network};
use quorate::headers::Checkpoint;
use quorate::{
    Federation, FederationDocument,
    client::{Client, WebSocket},
    wallet::{AccountOptions, SecretWords, Wallet},
};
use quorate_bridge::{BridgeConfig, RunningBridge};
use quorate_node::{
    chain::Chain,
    config::{ChainConfig, NodeConfig},
    provision::{self, NewFederation},
    run::Node,
};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{net::TcpListener, time::timeout};

/// Longest wait for any one step.
pub(crate) const STEP_TIMEOUT: Duration = Duration::from_secs(60);

/// A federation that is running in this process.
#[derive(Debug)]
pub struct Devnet {
    /// The embedded chain.
    pub chain: Arc<DevnetChain>,
    /// The nodes.
    pub nodes: Vec<Node>,
    /// The bridge.
    pub bridge: RunningBridge,
    /// The verified federation.
    pub federation: Federation,
    /// Its files.
    pub directory: PathBuf,
    /// Where the chain's JSON-RPC listens.
    pub rpc: SocketAddr,
    /// Money to play with.
    pub treasury: Treasury,
}

impl Devnet {
    /// Starts everything, making the federation's files and keys if they are not there yet.
    ///
    /// # Errors
    /// A directory, port or file is not usable, or the key generation failed.
    pub async fn start(directory: &Path, nodes: u16, bridge: SocketAddr, rpc: SocketAddr) -> Result<Self> {
        std::fs::create_dir_all(directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let listener = TcpListener::bind(rpc).await.with_context(|| format!("cannot listen on {rpc}"))?;
        let rpc = listener.local_addr()?;
        let home = directory.join("federation");
        if !home.join("roster.json").exists() {
            let chain = ChainConfig::open(&format!("http://{rpc}"));
            let birthday = Checkpoint::genesis(Network::Regtest);
            let plan = NewFederation {
                nodes,
                network: Network::Regtest,
                birthday,
                first_port: None,
                chain: vec![chain],
            };
            provision::federation(&home, &plan)?;
        }
        let chain = Arc::new(DevnetChain::open(directory)?);
        tokio::spawn(serve_rpc(listener, chain.clone()));
        let mut running = Vec::new();
        for number in 1.. {
            let node = home.join(format!("node-{number}"));
            if !node.exists() {
                break;
            }
            let config = NodeConfig::read(&node.join("node.toml"))?;
            running.push(Node::start(&node, config, chain.clone() as Arc<dyn Chain>)?);
        }
        let mut document: Option<FederationDocument> = None;
        for node in &mut running {
            document = Some(
                timeout(STEP_TIMEOUT, node.ready()).await.context("the key generation takes too long")??,
            );
        }
        let document = document.context("a federation has nodes")?;
        let id = document.roster.id();
        let federation = document.verify(id)?;
        let mut config = BridgeConfig::read(&home.join("bridge").join("bridge.toml"))?;
        config.listen = bridge;
        let bridge = RunningBridge::start(&home.join("bridge"), config).await?;
        let treasury = Treasury::new(chain.clone());
        Ok(Self { chain, nodes: running, bridge, federation, directory: directory.to_owned(), rpc, treasury })
    }

    /// The bridge's WebSocket address.
    pub fn url(&self) -> String {
        format!("ws://{}", self.bridge.address())
    }

    /// A new wallet that is connected to the bridge and certified.
    ///
    /// # Errors
    /// The bridge or federation do not answer.
    pub async fn wallet(&self) -> Result<(Client, SecretWords)> {
        let words = SecretWords::generate()?;
        let wallet = Wallet::new(self.federation.clone(), &words, &AccountOptions::default(), None)?;
        let client = Client::start(wallet, WebSocket::new(self.url()));
        timeout(STEP_TIMEOUT, client.ready())
            .await
            .context("the federation does not certify the account")??;
        Ok((client, words))
    }

    /// Waits until a wallet has at least so much to spend.
    ///
    /// # Errors
    /// It does not get it in time.
    pub async fn wait_spendable(&self, client: &Client, amount: Amount) -> Result<()> {
        let enough = move |session: &quorate::session::Session| {
            (session.wallet().balance().spendable >= amount).then_some(())
        };
        Ok(timeout(STEP_TIMEOUT, client.wait(enough)).await.context("the money does not arrive")??)
    }

    /// Closes everything, telling peers and wallets.
    ///
    /// # Errors
    /// The bridge had failed.
    pub async fn shut_down(self) -> Result<()> {
        self.bridge.shut_down().await?;
        for node in &self.nodes {
            node.shut_down().await;
        }
        Ok(())
    }
}
