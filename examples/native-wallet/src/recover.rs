//! `quorate recover`: leaving without any node or bridge, from words and descriptor.

use anyhow::{Context as _, Result, bail};
use bitcoin::{
    Address, Amount, FeeRate, Network, Psbt, Transaction,
    consensus::encode::{deserialize_hex, serialize_hex},
};
use clap::{Args, Subcommand};
use quorate::{
    recovery::{
        BackupKit, Found, RECOVERY_ADDRESSES, Recovery, SweepRequest,
        source::{BitcoinCore, Esplora, RpcAuth},
    },
    relay_policy::{FEE_RATE_MAX, FEE_RATE_MIN, bounded_sum},
    wallet::{Destination, FEE_UNASKED_MAX, SecretWords},
};
use std::{fs, io::BufRead as _, path::PathBuf};

/// Blocks of a day.
const BLOCKS_PER_DAY: u32 = 144;

#[derive(Subcommand)]
pub(super) enum Step {
    /// Show the coins, and when each of them can be moved; the words are not needed
    Find {
        #[command(flatten)]
        account: Account,
        #[command(flatten)]
        source: Source,
    },
    /// Move everything that is open to one address
    Sweep {
        #[command(flatten)]
        account: Account,
        #[command(flatten)]
        source: Source,
        /// Where everything goes
        #[arg(long)]
        to: String,
        /// Fee rate in sat/vB; the source's estimate for six blocks by default
        #[arg(long)]
        fee_rate: Option<u32>,
        /// Height of the chain's tip; has to be named with --coins
        #[arg(long)]
        tip: Option<u32>,
        /// Write the unsigned transaction to this file, for `sign` on a machine without a connection; else it is signed
        #[arg(long)]
        psbt: Option<PathBuf>,
        /// Highest fee in satoshis; 5,000 or a tenth of what is moved unless named
        #[arg(long)]
        max_fee: Option<u64>,
        /// Send what was signed; else it is only printed
        #[arg(long)]
        send: bool,
    },
    /// Sign what `sweep --psbt` wrote, with the words; asks nobody
    Sign {
        #[command(flatten)]
        account: Account,
        /// The unsigned transaction's file
        psbt: PathBuf,
        /// Highest fee in satoshis; 5,000 or a tenth of what is moved unless named
        #[arg(long)]
        max_fee: Option<u64>,
    },
    /// Send a signed transaction, given in hex
    Send {
        #[command(flatten)]
        source: Source,
        /// The transaction
        transaction: String,
    },
}

#[derive(Args)]
pub(super) struct Account {
    /// The backup, as `quorate backup` wrote it
    #[arg(long)]
    kit: Option<PathBuf>,
    /// The descriptor, if there is no backup file
    #[arg(long, required_unless_present = "kit", requires = "network")]
    descriptor: Option<String>,
    /// Its network: bitcoin, testnet4, signet or regtest
    #[arg(long)]
    network: Option<Network>,
    /// Addresses per keychain that are looked at in the end
    #[arg(long, default_value_t = RECOVERY_ADDRESSES)]
    addresses: u32,
}

#[derive(Args)]
#[group(multiple = false)]
pub(super) struct Source {
    /// An Esplora server's API, such as https://blockstream.info/api; it sees the addresses
    #[arg(long)]
    esplora: Option<String>,
    /// One's own Bitcoin Core, such as http://127.0.0.1:8332
    #[arg(long)]
    bitcoind: Option<String>,
    /// A file with coins, a line each: TXID:VOUT SATOSHIS HEIGHT ADDRESS
    #[arg(long)]
    coins: Option<PathBuf>,
    #[command(flatten)]
    auth: Auth,
}

#[derive(Args)]
#[group(multiple = true)]
struct Auth {
    /// Bitcoin Core's cookie file
    #[arg(long)]
    cookie: Option<PathBuf>,
    /// Bitcoin Core's user and password, as USER:PASSWORD
    #[arg(long, env = "BITCOIND_RPC_AUTH", hide_env_values = true, conflicts_with = "cookie")]
    rpc_auth: Option<String>,
}

enum Opened {
    Esplora(Esplora),
    Core(BitcoinCore),
    List(String),
}

/// What a backup has of the secrets.
struct Known {
    words: Option<SecretWords>,
    /// Whether there may be a passphrase.
    passphrase: bool,
}

impl Account {
    fn open(&self) -> Result<(Recovery, Known)> {
        let kit = match &self.kit {
            Some(path) => Some(BackupKit::parse(&zeroize::Zeroizing::new(read(path)?))?),
            None => None,
        };
        let (descriptor, network) = match (&self.descriptor, &kit) {
            (Some(descriptor), _) => (descriptor.clone(), self.network),
            (None, Some(kit)) => (kit.descriptor.to_string(), Some(kit.network)),
            (None, None) => bail!("name the backup with --kit, or --descriptor and --network"),
        };
        let recovery = Recovery::new(&descriptor, network.context("name the network with --network")?)?;
        let passphrase = kit.as_ref().is_none_or(|kit| kit.passphrase || kit.words.is_none());
        let words = kit.and_then(|kit| kit.words);
        Ok((recovery.with_addresses_max(self.addresses), Known { words, passphrase }))
    }
}

impl Source {
    fn open(&self) -> Result<Opened> {
        if let Some(url) = &self.esplora {
            return Ok(Opened::Esplora(Esplora::new(url)?));
        }
        if let Some(path) = &self.coins {
            return Ok(Opened::List(read(path)?));
        }
        let url = self.bitcoind.as_ref().context("name a source: --esplora, --bitcoind or --coins")?;
        let auth = match (&self.auth.cookie, &self.auth.rpc_auth) {
            (Some(path), _) => RpcAuth::Cookie(path.clone()),
            (None, Some(text)) => {
                let (user, password) = text.split_once(':').context("--rpc-auth reads USER:PASSWORD")?;
                RpcAuth::Password { user: user.to_owned(), password: password.to_owned() }
            }
            (None, None) => bail!("name Bitcoin Core's --cookie file, or --rpc-auth USER:PASSWORD"),
        };
        Ok(Opened::Core(BitcoinCore::new(url, auth)))
    }
}

impl Opened {
    async fn find(&self, recovery: &Recovery) -> Result<Found> {
        Ok(match self {
            Self::Esplora(esplora) => esplora.find(recovery).await?,
            Self::Core(core) => core.find(recovery).await?,
            Self::List(text) => Found { tip: 0, coins: recovery.read_list(text)? },
        })
    }

    async fn fee_rate(&self) -> Result<Option<FeeRate>> {
        Ok(match self {
            Self::Esplora(esplora) => esplora.fee_rate().await?,
            Self::Core(core) => core.fee_rate().await?,
            Self::List(_) => None,
        })
    }

    #[expect(clippy::print_stdout, reason = "the command's result")]
    async fn send(&self, transaction: &Transaction) -> Result<()> {
        let txid = match self {
            Self::Esplora(esplora) => esplora.send(transaction).await?,
            Self::Core(core) => core.send(transaction).await?,
            Self::List(_) => bail!("a list of coins cannot send; use --esplora or --bitcoind"),
        };
        println!("sent        {txid}");
        Ok(())
    }
}

fn read(path: &PathBuf) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))
}

pub(super) async fn run(step: Step) -> Result<()> {
    match step {
        Step::Find { account, source } => {
            let (recovery, _) = account.open()?;
            let found = source.open()?.find(&recovery).await?;
            show(&recovery, &found);
        }
        Step::Sweep { account, source, to, fee_rate, tip, psbt, max_fee, send } => {
            let (recovery, words) = account.open()?;
            let source = source.open()?;
            let mut found = source.find(&recovery).await?;
            if matches!(source, Opened::List(_)) {
                found.tip = tip.context("name the height of the chain's tip with --tip")?;
            }
            let rate = match fee_rate {
                Some(rate) => FeeRate::from_sat_per_vb_u32(rate),
                None => {
                    let estimate = source.fee_rate().await?;
                    let estimate = estimate.context("the source has no estimate: name a --fee-rate")?;
                    estimate.clamp(FEE_RATE_MIN, FEE_RATE_MAX)
                }
            };
            show(&recovery, &found);
            let destination = Destination::parse(&to, recovery.network())?.script_pubkey();
            let request = SweepRequest { destination, fee_rate: rate, tip: found.tip };
            let sweep = recovery.sweep(&found.coins, &request)?;
            match psbt {
                Some(path) => {
                    show_payment(&recovery, &sweep.psbt, max_fee)?;
                    fs::write(&path, format!("{}\n", sweep.psbt))
                        .with_context(|| format!("cannot write {}", path.display()))?;
                }
                None => {
                    let signed = sign(&recovery, words, &sweep.psbt, max_fee)?;
                    if send {
                        source.send(&signed).await?;
                    }
                }
            }
        }
        Step::Sign { account, psbt, max_fee } => {
            let (recovery, words) = account.open()?;
            let psbt = quorate::psbt::parse(&read(&psbt)?)?;
            sign(&recovery, words, &psbt, max_fee)?;
        }
        Step::Send { source, transaction } => {
            source
                .open()?
                .send(&deserialize_hex(transaction.trim()).context("this is no transaction in hex")?)
                .await?;
        }
    }
    Ok(())
}

#[expect(clippy::print_stdout, reason = "the command's result")]
fn sign(recovery: &Recovery, known: Known, psbt: &Psbt, max_fee: Option<u64>) -> Result<Transaction> {
    show_payment(recovery, psbt, max_fee)?;
    let mut words = match known.words {
        Some(words) => words,
        None => SecretWords::parse(&ask("the twelve words, on one line:")?)?,
    };
    if known.passphrase {
        words = words.with_passphrase(&ask("the passphrase; an empty line if there is none:")?);
    }
    let signed = recovery.sign(&words, psbt)?;
    println!("{}", serialize_hex(&signed.transaction));
    Ok(signed.transaction)
}

/// Reads a line from standard input. At its end it is empty.
#[expect(clippy::print_stderr, reason = "asks a person")]
pub(crate) fn ask(what: &str) -> Result<zeroize::Zeroizing<String>> {
    eprintln!("{what}");
    let mut line = zeroize::Zeroizing::new(String::new());
    std::io::stdin().lock().read_line(&mut line)?;
    let end = line.trim_end_matches(['\r', '\n']).len();
    line.truncate(end);
    Ok(line)
}

#[expect(clippy::print_stdout, reason = "the command's result")]
fn show(recovery: &Recovery, found: &Found) {
    let total = bounded_sum(found.coins.iter().map(|coin| coin.value));
    println!("coins       {} with {total}", found.coins.len());
    for coin in &found.coins {
        let when = match recovery.opens_at(coin) {
            None => "waits for its block".to_owned(),
            Some(_) if found.tip > 0 && recovery.is_open(coin, found.tip) => "open".to_owned(),
            Some(height) if found.tip == 0 => format!("opens at height {height}"),
            Some(height) => {
                let left = height - found.tip;
                let days = match left.div_ceil(BLOCKS_PER_DAY) {
                    1 => "a day".to_owned(),
                    days => format!("{days} days"),
                };
                format!("opens at height {height}, in {left} blocks (about {days})")
            }
        };
        println!("  {}  {}  {when}", coin.outpoint, coin.value);
    }
}

/// Shows what is about to be signed, whoever built it, and refuses a fee out of proportion.
#[expect(clippy::print_stdout, reason = "the command's result")]
fn show_payment(recovery: &Recovery, psbt: &Psbt, max_fee: Option<u64>) -> Result<()> {
    let spent = psbt.inputs.iter().filter_map(|input| input.witness_utxo.as_ref());
    let total = bounded_sum(spent.map(|output| output.value));
    let paid = bounded_sum(psbt.unsigned_tx.output.iter().map(|output| output.value));
    let fee = total.checked_sub(paid).context("the transaction creates more than it spends")?;
    for output in &psbt.unsigned_tx.output {
        let address = Address::from_script(&output.script_pubkey, recovery.network());
        let address =
            address.map_or_else(|_| output.script_pubkey.to_hex_string(), |address| address.to_string());
        println!("pays        {} to {address}", output.value);
    }
    println!("fee         {fee}");
    let limit = max_fee.map_or(FEE_UNASKED_MAX.max(total / 10), Amount::from_sat);
    anyhow::ensure!(
        fee <= limit,
        "the fee is above {limit}; if you want to pay so much, say so with --max-fee"
    );
    Ok(())
}
