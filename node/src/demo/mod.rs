//! `quorate-node devnet`: a whole federation in one process, with its bridge and the embedded chain, and a real payment.
//!
//! The nodes, the bridge and the wallets are the ones that run anywhere else: each node has its own directory, keys, store and QUIC
//! endpoint, and the wallets speak to the bridge over a WebSocket.

mod timeline;
mod treasury;
mod web;

pub use treasury::Treasury;

use crate::{
    chain::{Chain, Devnet},
    config::{ChainConfig, NodeConfig},
    provision::{self, Plan},
    run::Node,
};
use anyhow::{Context as _, Result};
use bitcoin::{Amount, Network};
use quorate::{
    Federation, FederationDocument,
    account::AccountPolicy,
    client::{Client, WebSocket},
    wallet::{Destination, PaymentRequest, SecretWords, Wallet},
};
use quorate_bridge::{BridgeConfig, RunningBridge};
use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use timeline::Timeline;
use tokio::{net::TcpListener, time::timeout};

/// What wallet A is given.
const FUNDING: Amount = Amount::from_sat(100_000_000);
/// What wallet B is paid.
const PAYMENT: Amount = Amount::from_sat(2_500_000);
/// Longest wait for any one step of the demo.
const STEP_TIMEOUT: Duration = Duration::from_secs(60);

/// What `devnet` was asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Number of nodes.
    pub nodes: u16,
    /// Directory to keep state in; a temporary one if absent.
    pub data_dir: Option<PathBuf>,
    /// End after the payment.
    pub once: bool,
    /// Print the timeline as JSON.
    pub json: bool,
    /// Address of the bridge; a free port if absent.
    pub bridge: Option<SocketAddr>,
    /// Address of the chain's JSON-RPC; a free port if absent.
    pub rpc: Option<SocketAddr>,
    /// Directory of the pages to serve to browsers; none are served if absent.
    pub pages: Option<PathBuf>,
    /// Address of the pages; a free port if absent.
    pub web: Option<SocketAddr>,
}

/// A federation that is running in this process.
#[derive(Debug)]
pub struct Devnetwork {
    /// The embedded chain.
    pub chain: Arc<Devnet>,
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

impl Devnetwork {
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
            let chain =
                ChainConfig { url: format!("http://{rpc}"), user: String::new(), password: String::new() };
            let plan = Plan { nodes, network: Network::Regtest, first_port: None, chain };
            provision::federation(&home, &plan)?;
        }
        let chain = Arc::new(Devnet::open(directory)?);
        tokio::spawn(crate::chain::serve_rpc(listener, chain.clone()));
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
        let wallet = Wallet::new(self.federation.clone(), &words, 0, AccountPolicy::default(), None)?;
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

/// Runs the command.
///
/// # Errors
/// A step failed; the text says which.
pub async fn run(options: Options) -> Result<()> {
    let temporary = match &options.data_dir {
        Some(_) => None,
        None => Some(tempfile::tempdir().context("cannot make a temporary directory")?),
    };
    let directory = match (&options.data_dir, &temporary) {
        (Some(directory), _) => directory.clone(),
        (None, Some(temporary)) => temporary.path().to_owned(),
        (None, None) => anyhow::bail!("no directory"),
    };
    let progress = |text: &str| eprintln!("{text}");
    progress(&format!("starting {} nodes, a bridge and a chain in {} …", options.nodes, directory.display()));
    let free = SocketAddr::from(([127, 0, 0, 1], 0));
    let network = Devnetwork::start(
        &directory,
        options.nodes,
        options.bridge.unwrap_or(free),
        options.rpc.unwrap_or(free),
    )
    .await?;
    progress(&format!(
        "federation {} is ready: {} of {} nodes make a payment final",
        network.federation.id(),
        network.federation.quorum().votes(),
        network.federation.quorum().nodes()
    ));
    let timeline = pay_once(&network, &progress).await?;
    print_timeline(&timeline, options.json)?;
    if options.once {
        network.shut_down().await?;
        return if timeline.verified { Ok(()) } else { Err(anyhow::anyhow!("the payment was not verified")) };
    }
    let pages = match &options.pages {
        Some(pages) => {
            let description = web::Description {
                bridge: network.url(),
                federation: network.federation.id().to_string(),
                network: network.federation.network(),
            };
            Some(web::serve(options.web.unwrap_or(free), pages, description, network.treasury.clone()).await?)
        }
        None => None,
    };
    print_connection(&network, pages);
    stay(&network).await?;
    progress("stopping …");
    network.shut_down().await
}

async fn pay_once(network: &Devnetwork, progress: &impl Fn(&str)) -> Result<Timeline> {
    let (payer, _) = network.wallet().await?;
    let (payee, _) = network.wallet().await?;
    let address = payer.next_address().await?;
    progress(&format!("wallet A is given {FUNDING} at {address}"));
    network.treasury.fund(&address, FUNDING)?;
    network.wait_spendable(&payer, FUNDING).await?;
    let to = payee.next_address().await?;
    progress(&format!("wallet A pays {PAYMENT} to wallet B at {to}"));
    let destination = Destination::parse(&to.to_string(), network.federation.network())?;
    let request = PaymentRequest::new(destination).exact(PAYMENT);
    let timeline = Timeline::record(network, &payer, &payee, request);
    timeout(STEP_TIMEOUT, timeline).await.context("the payment takes too long")?
}

#[expect(clippy::print_stdout, reason = "the command's result")]
fn print_timeline(timeline: &Timeline, json: bool) -> Result<()> {
    if json {
        println!("{}", serde_json::to_string(timeline)?);
    } else {
        println!("{timeline}");
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the command's result")]
fn print_connection(network: &Devnetwork, pages: Option<SocketAddr>) {
    let bridge = network.bridge.address();
    if let Some(pages) = pages {
        println!("Open in a browser:");
        println!("  wallet       http://{pages}/            (another one: http://{pages}/?wallet=bob)");
        println!("  checkout     http://{pages}/checkout.html");
        println!();
    }
    println!("Connect a wallet or a plain WebSocket client:");
    println!("  bridge       ws://{bridge}   (subprotocol {})", quorate_protocol::wire::limits::PROTOCOL);
    println!("  federation   http://{bridge}/federation   id {}", network.federation.id());
    println!("  health       http://{bridge}/health   metrics http://{bridge}/metrics");
    println!("  chain RPC    http://{}   (generatetoaddress, getblock, …)", network.rpc);
    println!("  files        {}", network.directory.display());
    println!();
    println!("Try: cargo run -p native-wallet -- --bridge ws://{bridge} --wallet a.wallet new");
    println!("A block is mined every 10 s while a transaction waits. Stop with Ctrl-C.");
}

/// Mines waiting transactions until the user stops.
async fn stay(network: &Devnetwork) -> Result<()> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut blocks = tokio::time::interval(Duration::from_secs(10));
    loop {
        tokio::select! {
            _ = blocks.tick() => {
                if !network.chain.mempool().is_empty() {
                    network.treasury.mine(1)?;
                }
            }
            _ = terminate.recv() => return Ok(()),
            stopped = tokio::signal::ctrl_c() => return Ok(stopped?),
        }
    }
}
