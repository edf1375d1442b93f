//! A small command-line wallet on the Quorate SDK: new, restore, address, balance, send, watch, descriptor.
//!
//! The wallet file holds the secret words in the clear, readable by its owner only: fine on a play chain, and nowhere
//! else.

use anyhow::{Context as _, Result};
use bitcoin::{Amount, Denomination, FeeRate};
use clap::{Parser, Subcommand};
use quorate::{
    Federation, FederationId,
    account::AccountPolicy,
    client::{Client, WebSocket, fetch_federation},
    session::Event,
    wallet::{Destination, PaymentRequest, SecretWords, Wallet},
};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::{BufRead as _, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

/// How long the wallet waits for the bridge before it shows what it has.
const SYNC_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Parser)]
#[command(version, about = "A small wallet with instant finality")]
struct Arguments {
    /// The bridge, as `npm start` prints it
    #[arg(long, env = "QUORATE_BRIDGE")]
    bridge: String,
    /// The wallet's file
    #[arg(long, default_value = "quorate.wallet")]
    wallet: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a new wallet and show its twelve words
    New,
    /// Make the wallet file from twelve words on standard input
    Restore,
    /// Show an address to be paid at
    Address,
    /// Show what the wallet has, by how sure it is
    Balance,
    /// Pay an address or a bitcoin: URI
    Send {
        /// Address or URI
        to: String,
        /// Amount in BTC, unless the URI names one
        amount: Option<String>,
        /// Fee rate in sat/vB; the bridge's estimate by default
        #[arg(long)]
        fee_rate: Option<u32>,
    },
    /// Print what happens until Ctrl-C
    Watch,
    /// Show the account as a descriptor, for any other wallet to watch or recover
    Descriptor,
}

#[derive(Serialize, Deserialize)]
struct WalletFile {
    words: String,
    federation: FederationId,
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let mut transport = WebSocket::new(&arguments.bridge);
    let document = fetch_federation(&mut transport).await.context("the bridge does not answer")?;
    match arguments.command {
        // A new wallet pins the federation that the bridge shows; compare its id with one from a source that you trust.
        Command::New => create(&arguments.wallet, &SecretWords::generate()?, document.roster.id()),
        Command::Restore => {
            let mut words = String::new();
            std::io::stdin().lock().read_line(&mut words)?;
            create(&arguments.wallet, &SecretWords::parse(&words)?, document.roster.id())
        }
        command @ (Command::Address
        | Command::Balance
        | Command::Send { .. }
        | Command::Watch
        | Command::Descriptor) => {
            let file = fs::read(&arguments.wallet)
                .with_context(|| format!("cannot read {}: make it with `new`", arguments.wallet.display()))?;
            let file: WalletFile = serde_json::from_slice(&file).context("the wallet file is damaged")?;
            let federation = document.verify(file.federation)?;
            run(command, federation, &SecretWords::parse(&file.words)?, transport).await
        }
    }
}

#[expect(clippy::print_stdout, reason = "the command's result")]
fn create(path: &Path, words: &SecretWords, federation: FederationId) -> Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot create {}", path.display()))?;
    let content = WalletFile { words: words.reveal().to_string(), federation };
    file.write_all(&serde_json::to_vec(&content)?)?;
    file.sync_all()?;
    println!("words       {}", words.reveal().as_str());
    println!("federation  {federation}");
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the command's result")]
async fn run(
    command: Command,
    federation: Federation,
    words: &SecretWords,
    transport: WebSocket,
) -> Result<()> {
    let network = federation.network();
    let wallet = Wallet::new(federation, words, 0, AccountPolicy::default(), None)?;
    if matches!(command, Command::Descriptor) {
        println!("{}", wallet.descriptor());
        return Ok(());
    }
    let client = Client::start(wallet, transport);
    tokio::time::timeout(SYNC_TIMEOUT, client.ready()).await.context("the federation does not answer")??;
    tokio::time::timeout(SYNC_TIMEOUT, client.wait(|session| session.is_synced().then_some(()))).await??;
    match command {
        Command::Address => println!("{}", client.next_address().await?),
        Command::Balance => {
            let balance = client.balance().await?;
            println!("spendable  {}", balance.spendable);
            println!("incoming   {}", balance.incoming);
            println!("locked     {}", balance.locked);
            println!("immature   {}", balance.immature);
            println!("expired    {}", balance.expired);
        }
        Command::Send { to, amount, fee_rate } => {
            let mut request = PaymentRequest::new(Destination::parse(&to, network)?);
            if let Some(text) = amount {
                request = request.exact(Amount::from_str_in(&text, Denomination::Bitcoin)?);
            }
            if let Some(rate) = fee_rate {
                request = request.fee_rate(FeeRate::from_sat_per_vb_u32(rate));
            }
            let started = std::time::Instant::now();
            let receipt = client.pay(request).await?;
            println!("{} is final ({:?}) after {:.0?}", receipt.txid, receipt.kind, started.elapsed());
        }
        Command::Watch => watch(&client).await?,
        Command::New | Command::Restore | Command::Descriptor => {}
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the command's result")]
async fn watch(client: &Client) -> Result<()> {
    let mut events = client.events();
    println!("watching; stop with Ctrl-C");
    loop {
        tokio::select! {
            event = futures_util::StreamExt::next(&mut events) => match event {
                Some(Event::Tip { tip }) => println!("block {}", tip.height),
                Some(event) => println!("{event:?}"),
                None => return Ok(()),
            },
            stopped = tokio::signal::ctrl_c() => return Ok(stopped?),
        }
    }
}
