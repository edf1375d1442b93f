//! `quorate-devnet`: starts a devnet, has one wallet pay another, shows what happened when, and stays up.

use crate::{Devnet, network::STEP_TIMEOUT, timeline::Timeline, web};
use anyhow::{Context as _, Result};
use bitcoin::Amount;
use clap::Args;
use quorate::wallet::{Destination, PaymentRequest};
use quorate_node::cli::stop_signal;
use std::{net::SocketAddr, path::PathBuf, time::Duration};
use tokio::time::timeout;

/// What wallet A is given.
const FUNDING: Amount = Amount::from_sat(100_000_000);
/// What wallet B is paid.
const PAYMENT: Amount = Amount::from_sat(2_500_000);
/// Time between two blocks while a transaction waits for one.
const BLOCK_INTERVAL: Duration = Duration::from_secs(10);

/// What to start, and where it listens.
#[derive(Args, Clone, Debug)]
pub(crate) struct Options {
    /// Number of nodes
    #[arg(long, default_value_t = 7)]
    pub(crate) nodes: u16,
    /// Keep state here; without it a temporary directory is used and removed
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
    /// End after the payment
    #[arg(long)]
    pub(crate) once: bool,
    /// Print the timeline as one JSON object
    #[arg(long)]
    pub(crate) json: bool,
    /// Address of the bridge; a free port by default
    #[arg(long)]
    pub(crate) bridge: Option<SocketAddr>,
    /// Address of the chain's JSON-RPC; a free port by default
    #[arg(long)]
    pub(crate) rpc: Option<SocketAddr>,
    /// Serve the pages in this directory to browsers, with a faucet
    #[arg(long)]
    pub(crate) pages: Option<PathBuf>,
    /// Address of the pages; a free port by default
    #[arg(long)]
    pub(crate) web: Option<SocketAddr>,
}

/// Starts a devnet, makes a payment, and stays up until it is stopped. A failure says which step failed.
pub(crate) async fn run(options: Options) -> Result<()> {
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
    let network =
        Devnet::start(&directory, options.nodes, options.bridge.unwrap_or(free), options.rpc.unwrap_or(free))
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

async fn pay_once(network: &Devnet, progress: &impl Fn(&str)) -> Result<Timeline> {
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
fn print_connection(network: &Devnet, pages: Option<SocketAddr>) {
    let bridge = network.bridge.address();
    if let Some(pages) = pages {
        println!("Open in a browser:");
        println!("  wallet       http://{pages}/            (another one: http://{pages}/?wallet=bob)");
        println!("  checkout     http://{pages}/checkout.html");
        println!("  leaving      http://{pages}/recover.html       (a backup sheet, and no federation)");
        println!();
    }
    println!("Connect a wallet or a plain WebSocket client:");
    println!("  bridge       ws://{bridge}   (subprotocol {})", quorate::wire::limits::PROTOCOL);
    println!("  federation   http://{bridge}/federation   id {}", network.federation.id());
    println!("  health       http://{bridge}/health   metrics http://{bridge}/metrics");
    println!("  chain RPC    http://{}   (generatetoaddress, getblock, …)", network.rpc);
    println!("  files        {}", network.directory.display());
    println!();
    println!("Try: cargo run -q -p native-wallet -- --bridge ws://{bridge} --wallet a.wallet new");
    println!(
        "A block is mined every {} s while a transaction waits. Stop with Ctrl-C.",
        BLOCK_INTERVAL.as_secs()
    );
}

/// Mines waiting transactions until the user stops.
async fn stay(network: &Devnet) -> Result<()> {
    let mut blocks = tokio::time::interval(BLOCK_INTERVAL);
    let stopped = stop_signal();
    tokio::pin!(stopped);
    loop {
        tokio::select! {
            _ = blocks.tick() => {
                if !network.chain.mempool().is_empty() {
                    network.treasury.mine(1)?;
                }
            }
            stopped = &mut stopped => return stopped,
        }
    }
}
