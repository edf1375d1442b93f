//! Wallets and money for tests and benchmarks.

use crate::{Cluster, PATIENCE};
use anyhow::{Context as _, Result};
use bitcoin::{
    Address, Amount, OutPoint, ScriptBuf, Sequence, TapSighashType, Transaction, TxIn, TxOut, Witness,
    absolute::LockTime,
    key::{Keypair, TapTweak as _},
    secp256k1::{All, Message, Secp256k1, SecretKey},
    sighash::{Prevouts, SighashCache},
    transaction::Version,
};
use quorate::{
    Federation, FederationId,
    client::{Client, Saving, Store, Transport, WebSocket, fetch_federation},
    wallet::{
        AccountOptions, Destination, PaymentRequest, SavedState, SecretWords, StateChange, Wallet,
        apply_change,
    },
};
use quorate_devnet::DevnetChain;
use std::{
    sync::{Arc, LazyLock, Mutex, PoisonError},
    time::Duration,
};
use tokio::time::timeout;

/// Script of a coin that anybody can spend, wrapped in P2WSH.
pub fn nobody() -> ScriptBuf {
    ScriptBuf::new_p2wsh(&open_script().wscript_hash())
}

fn open_script() -> ScriptBuf {
    ScriptBuf::from_bytes(vec![bitcoin::opcodes::OP_TRUE.to_u8()])
}

/// Spends the first output of the block at `height`, which has to be mature, to equal parts for the addresses.
///
/// # Errors
/// The chain refuses it.
pub fn pay_out(chain: &DevnetChain, height: u32, outputs: Vec<TxOut>) -> Result<Transaction> {
    let block = chain.blocks().into_iter().nth(usize::try_from(height)? - 1).context("no such block")?;
    let reward = block.txdata.first().context("a coinbase")?.compute_txid();
    let transaction = nobodys_spend(OutPoint { txid: reward, vout: 0 }, outputs);
    chain.submit(transaction.clone())?;
    Ok(transaction)
}

/// Spends a coin of [`nobody`].
pub fn nobodys_spend(previous_output: OutPoint, output: Vec<TxOut>) -> Transaction {
    let witness = Witness::from_slice(&[open_script().as_bytes()]);
    let sequence = Sequence::ENABLE_RBF_NO_LOCKTIME;
    let input = vec![TxIn { previous_output, sequence, witness, ..TxIn::default() }];
    Transaction { version: Version::TWO, lock_time: LockTime::ZERO, input, output }
}

/// Spends a coin of [`nobody`], which is in its owner's sole custody, to an address.
pub fn sole_spend(coin: OutPoint, value: Amount, to: &Address) -> Transaction {
    let value = value - Amount::from_sat(1_000);
    nobodys_spend(coin, vec![TxOut { value, script_pubkey: to.script_pubkey() }])
}

fn secp() -> &'static Secp256k1<All> {
    static CONTEXT: LazyLock<Secp256k1<All>> = LazyLock::new(Secp256k1::new);
    &CONTEXT
}

/// The key of coins whose owner signs alone, in benchmarks.
fn owner() -> Keypair {
    let secret = SecretKey::from_slice(&[7; 32]).expect("a number below the order");
    Keypair::from_secret_key(secp(), &secret)
}

/// The script of its coins: Taproot, without a script tree (BIP86).
pub fn owners_script() -> ScriptBuf {
    ScriptBuf::new_p2tr(secp(), owner().x_only_public_key().0, None)
}

/// Spends one of them to an address, signed.
pub fn owners_spend(coin: OutPoint, value: Amount, to: &Address) -> Transaction {
    let spent = TxOut { value, script_pubkey: owners_script() };
    let output = TxOut { value: value - Amount::from_sat(1_000), script_pubkey: to.script_pubkey() };
    let input = TxIn { previous_output: coin, sequence: Sequence::ENABLE_RBF_NO_LOCKTIME, ..TxIn::default() };
    let mut spend = Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![input],
        output: vec![output],
    };
    let sighash = SighashCache::new(&spend)
        .taproot_key_spend_signature_hash(0, &Prevouts::All(&[spent]), TapSighashType::Default)
        .expect("one input");
    let key = owner().tap_tweak(secp(), None).to_keypair();
    let signature = secp().sign_schnorr_no_aux_rand(&Message::from(sighash), &key);
    if let Some(input) = spend.input.first_mut() {
        input.witness = Witness::from_slice(&[signature.serialize()]);
    }
    spend
}

/// The verified federation behind a bridge.
///
/// # Errors
/// The bridge does not answer, or with another federation.
pub async fn federation<C>(cluster: &Cluster<C>) -> Result<Federation> {
    federation_at(&cluster.url(), cluster.id()).await
}

/// The same, of a bridge in another process.
///
/// # Errors
/// The bridge does not answer, or with another federation.
pub async fn federation_at(url: &str, id: FederationId) -> Result<Federation> {
    let mut transport = WebSocket::new(url.to_owned());
    let document = timeout(PATIENCE, fetch_federation(&mut transport)).await??;
    Ok(document.verify(id)?)
}

/// A wallet of these words over any transport, certified.
///
/// # Errors
/// The federation does not certify it in time.
pub async fn open_wallet(
    federation: &Federation,
    words: &SecretWords,
    transport: impl Transport,
) -> Result<Client> {
    let wallet = Wallet::new(federation.clone(), words, &AccountOptions::default(), None)?;
    let client = Client::start(wallet, transport);
    timeout(PATIENCE, client.ready()).await.context("the account is not certified in time")??;
    Ok(client)
}

/// A disk of a wallet that survives the client, as one survives a closed page.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<SavedState>>);

impl Disk {
    /// What is on it.
    pub fn read(&self) -> SavedState {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Store for Disk {
    fn save(&mut self, change: StateChange) -> Saving {
        apply_change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner), change);
        Box::pin(async { Ok(()) })
    }
}

/// A wallet that goes on from what is on its disk.
///
/// # Errors
/// The state on the disk is not usable.
pub fn reopen_wallet(
    federation: &Federation,
    words: &SecretWords,
    transport: impl Transport,
    disk: &Disk,
) -> Result<Client> {
    let wallet = Wallet::new(federation.clone(), words, &AccountOptions::default(), None)?;
    Ok(Client::open(wallet, transport, &disk.read(), disk.clone())?)
}

/// Waits until a wallet has so much to spend.
///
/// # Errors
/// It does not have it in time.
pub async fn wait_spendable(client: &Client, amount: Amount) -> Result<()> {
    let enough = move |session: &quorate::session::Session| {
        (session.wallet().balance().spendable >= amount).then_some(())
    };
    timeout(PATIENCE, client.wait(enough)).await.context("the money does not arrive")??;
    Ok(())
}

/// Mines past maturity and gives each address `count` coins of `value`, confirmed.
///
/// # Errors
/// The chain refuses it.
pub fn fund(chain: &DevnetChain, addresses: &[Address], count: usize, value: Amount) -> Result<()> {
    let first = chain.height() + 1;
    chain.mine(101, &nobody())?;
    let outputs = addresses.iter().flat_map(|address| {
        let output = TxOut { value, script_pubkey: address.script_pubkey() };
        std::iter::repeat_n(output, count)
    });
    pay_out(chain, first, outputs.collect())?;
    chain.mine(1, &nobody())?;
    Ok(())
}

/// A request to pay an exact amount.
///
/// # Errors
/// The address is not of regtest.
pub fn request(to: &Address, amount: Amount) -> Result<PaymentRequest> {
    let destination = Destination::parse(&to.to_string(), bitcoin::Network::Regtest)?;
    Ok(PaymentRequest::new(destination).exact(amount))
}

/// How long a test gives one payment.
pub const PAYMENT_PATIENCE: Duration = Duration::from_secs(45);
