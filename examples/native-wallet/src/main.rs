//! `quorate`, a small command-line wallet on the Quorate SDK: new, restore, address, balance, send, watch, backup,
//! recover.
//!
//! The wallet file holds the secret words in the clear, readable by its owner only: fine on a play chain, and nowhere
//! else.

mod recover;

use anyhow::{Context as _, Result};
use bitcoin::{Amount, Denomination, FeeRate};
use clap::{Args, Parser, Subcommand};
use quorate::{
    Federation, FederationDocument, FederationId,
    client::{Client, WebSocket, fetch_federation},
    recovery::BackupKit,
    session::Event,
    wallet::{AccountOptions, Destination, PaymentRequest, SecretWords, Wallet},
};
use serde::{Deserialize, Serialize};
use std::{
    fs,
    io::Write as _,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

/// How long the wallet waits for the bridge before it shows what it has.
const SYNC_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Parser)]
#[command(name = "quorate", version, about = "A small wallet with instant finality")]
struct Arguments {
    /// The bridge, as `npm start` prints it
    #[arg(long, env = "QUORATE_BRIDGE")]
    bridge: Option<String>,
    /// The wallet's file
    #[arg(long, default_value = "quorate.wallet")]
    wallet: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make a new wallet and show its twelve words
    New(Terms),
    /// Make the wallet file from twelve words on standard input, and a passphrase on its second line if there is one
    Restore(Terms),
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
    /// Move coins that grow old to an address of this wallet, so that they stay payable
    Refresh {
        /// Fee rate in sat/vB; the bridge's estimate by default
        #[arg(long)]
        fee_rate: Option<u32>,
        /// Only say what it would cost
        #[arg(long)]
        dry_run: bool,
    },
    /// Print what happens until Ctrl-C
    Watch,
    /// Write the backup: words, descriptor, network and birthday, all that leaving needs
    Backup {
        /// The file to make
        file: PathBuf,
    },
    /// Move the coins with words and descriptor alone, when nodes and bridges are gone
    #[command(subcommand)]
    Recover(Box<recover::Step>),
}

#[derive(Args)]
struct Terms {
    /// Blocks after which the coins can be moved with the words alone; the federation's default unless named. Restoring
    /// from words needs the same number: the backup has it
    #[arg(long)]
    recovery_delay: Option<u16>,
}

#[derive(Serialize, Deserialize)]
struct WalletFile {
    words: String,
    #[serde(default)]
    passphrase: String,
    federation: FederationId,
    #[serde(default)]
    recovery_delay: Option<u16>,
}

#[tokio::main]
#[expect(clippy::print_stderr, reason = "the command's complaint")]
async fn main() -> ExitCode {
    match start().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn start() -> Result<()> {
    let arguments = Arguments::parse();
    if let Command::Recover(step) = arguments.command {
        return recover::run(*step).await;
    }
    let bridge = arguments.bridge.context("name the bridge with --bridge, as `npm start` prints it")?;
    let mut transport = WebSocket::new(&bridge);
    let document = fetch_federation(&mut transport).await.context("the bridge does not answer")?;
    match arguments.command {
        // A new wallet pins the federation that the bridge shows; compare its id with one from a source that you trust.
        Command::New(terms) => create(&arguments.wallet, &SecretWords::generate()?, "", &document, &terms),
        Command::Restore(terms) => {
            let words = SecretWords::parse(&recover::ask("the words, on one line:")?)?;
            let passphrase = recover::ask("the passphrase; an empty line if there is none:")?;
            let words = words.with_passphrase(&passphrase);
            create(&arguments.wallet, &words, &passphrase, &document, &terms)
        }
        command @ (Command::Address
        | Command::Balance
        | Command::Send { .. }
        | Command::Refresh { .. }
        | Command::Watch
        | Command::Backup { .. }
        | Command::Recover(_)) => {
            let file = fs::read(&arguments.wallet)
                .with_context(|| format!("cannot read {}: make it with `new`", arguments.wallet.display()))?;
            let file: WalletFile = serde_json::from_slice(&file).context("the wallet file is damaged")?;
            let federation = document.verify(file.federation)?;
            let options = AccountOptions { recovery_delay: file.recovery_delay, ..AccountOptions::default() };
            let words = SecretWords::parse(&file.words)?.with_passphrase(&file.passphrase);
            run(command, federation, &words, &options, transport).await
        }
    }
}

#[expect(clippy::print_stdout, reason = "the command's result")]
fn create(
    path: &Path,
    words: &SecretWords,
    passphrase: &str,
    document: &FederationDocument,
    terms: &Terms,
) -> Result<()> {
    let federation = document.roster.id();
    let recovery_delay = terms.recovery_delay;
    // What cannot be opened is not kept.
    let options = AccountOptions { recovery_delay, ..AccountOptions::default() };
    Wallet::new(document.clone().verify(federation)?, words, &options, None)?;
    let passphrase = passphrase.to_owned();
    let content = WalletFile { words: words.reveal().to_string(), passphrase, federation, recovery_delay };
    write_private(path, &serde_json::to_vec(&content)?)?;
    println!("words       {}", words.reveal().as_str());
    println!("federation  {federation}");
    Ok(())
}

/// Makes a file that only its owner reads; one that is there already is not touched.
fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .with_context(|| format!("cannot create {}", path.display()))?;
    file.write_all(content)?;
    Ok(file.sync_all()?)
}

#[expect(clippy::print_stdout, reason = "the command's result")]
async fn run(
    command: Command,
    federation: Federation,
    words: &SecretWords,
    options: &AccountOptions,
    transport: WebSocket,
) -> Result<()> {
    let network = federation.network();
    let wallet = Wallet::new(federation, words, options, None)?;
    if let Command::Backup { file } = command {
        write_private(&file, BackupKit::new(&wallet, Some(words.clone())).to_text().as_bytes())?;
        println!("descriptor  {}", wallet.descriptor());
        println!(
            "backup      {}: print it or copy it to where you keep cash, then erase it here",
            file.display()
        );
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
        Command::Refresh { fee_rate, dry_run } => {
            refresh(&client, fee_rate.map(FeeRate::from_sat_per_vb_u32), dry_run).await?;
        }
        Command::Watch => watch(&client).await?,
        Command::New(_) | Command::Restore(_) | Command::Backup { .. } | Command::Recover(_) => {}
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the command's result")]
async fn refresh(client: &Client, rate: Option<FeeRate>, dry_run: bool) -> Result<()> {
    while let Some(quote) = client.refresh_quote(rate).await? {
        println!("{} coins with {} are moved home for {}", quote.coins, quote.amount, quote.fee);
        if dry_run {
            return Ok(());
        }
        let Some(receipt) = client.refresh(rate).await? else { break };
        let when = if quote.expired { "spendable again after its block" } else { "spendable all the while" };
        println!("  {}: {when}", receipt.txid);
    }
    println!("no coin is old");
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
