//! The wallet: keys, coins, history and payments, without any I/O.
//!
//! A [`Wallet`] knows what it has *verified*. A coin is spendable when the transaction that created it is final by a
//! proof that the wallet checked, or is in a block of the wallet's own header chain by a Merkle path that it checked.
//! What a server merely says counts as incoming. [`crate::session::Session`] feeds it and asks for the proofs.

mod aging;
mod build;
mod coins;
mod destination;
mod error;
mod keys;
mod lifting;
mod saving;
mod state;

pub use aging::EXPIRY_NOTICE;
pub use build::{FEE_UNASKED_MAX, PaymentAmount, PaymentRequest};
pub use coins::{Balance, Coin, CoinState, HistoryEntry};
pub use destination::Destination;
pub use error::WalletError;
pub(crate) use keys::recovery_key;
pub use keys::{AccountOptions, SecretWords};
pub use state::{SavedState, StateChange, StateError, apply_change};
pub(crate) use state::{read as read_state, under as under_state, value as state_value};

use crate::{
    Federation, NodeId,
    account::{
        AccountCertificate, AccountDescriptor, AccountRecord, Address, JointAccount, Keychain, KeychainIndex,
    },
    conflict::ConflictError,
    finality::{FinalityError, FinalityProof},
    frost::{NodeCommitments, WalletSignature, wallet_sign},
    headers::{Checkpoint, Extension, HeaderChain, HeaderError, ProofError},
    proposal::{CheckedProposal, JointProposal, Proposal},
    relay_policy,
    release::SignedCancel,
    vote::{ApprovalCertificate, NOT_BEFORE_ITS_BLOCK},
    wire::{ConfirmedSpend, ConflictProof, RawTransactionProof, UtxoRecord},
};
use bitcoin::{FeeRate, OutPoint, Psbt, ScriptBuf, Txid, block::Header};
use build::{Funds, SpendableCoin};
use coins::{CoinBook, Demands};
use keys::WalletKeys;
use rand_core::CryptoRngCore;
use state::Touched;
use std::collections::{BTreeMap, BTreeSet};

/// Unused addresses that are watched beyond the last used one, per keychain (BIP44's gap limit).
pub const GAP_LIMIT: u32 = 20;
/// Most that it can be set to.
pub const GAP_LIMIT_MAX: u32 = 1000;

/// A wallet of one joint account.
///
/// ```
/// # fn example(federation: quorate::Federation) -> Result<(), quorate::wallet::WalletError> {
/// use quorate::wallet::{AccountOptions, SecretWords, Wallet};
/// let words = SecretWords::generate()?;
/// let mut wallet = Wallet::new(federation, &words, &AccountOptions::default(), None)?;
/// println!("pay me at {}", wallet.next_address()?.to_address(wallet.federation().network()));
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Wallet {
    federation: Federation,
    /// Absent in a wallet that only watches.
    keys: Option<WalletKeys>,
    account: JointAccount,
    certificate: Option<AccountCertificate>,
    addresses: BTreeMap<ScriptBuf, Address>,
    keychains: BTreeMap<Keychain, KeychainState>,
    unwatched: Vec<ScriptBuf>,
    book: CoinBook,
    chain: HeaderChain,
    proposals: BTreeMap<Txid, CheckedProposal>,
    proofs: BTreeMap<Txid, FinalityProof>,
    gap_limit: u32,
    /// Index of the receive address that is shown until somebody pays to it.
    shown: Option<u32>,
    touched: Touched,
    saved_before: bool,
}

#[derive(Debug, Default)]
struct KeychainState {
    derived: Vec<Address>,
    /// Index after the last one that was given out or used.
    next: u32,
}

impl Wallet {
    /// Opens an account of the words. `checkpoint` is where header verification starts; the
    /// genesis block if absent.
    ///
    /// # Errors
    /// A key cannot be derived, the delay is out of bounds, or the checkpoint is not the first block of a difficulty
    /// period.
    pub fn new(
        federation: Federation,
        words: &SecretWords,
        options: &AccountOptions,
        checkpoint: Option<Checkpoint>,
    ) -> Result<Self, WalletError> {
        let network = federation.network();
        let keys = WalletKeys::derive(words, network.into(), options.account)?;
        let account = keys.account(&federation, options)?;
        Self::open(federation, Some(keys), account, checkpoint)
    }

    /// Opens an account to look at: it sees addresses, coins and payments, and cannot pay.
    ///
    /// ```
    /// # fn example(wallet: quorate::wallet::Wallet) -> Result<(), quorate::wallet::WalletError> {
    /// use quorate::wallet::Wallet;
    /// let record = wallet.account().record().clone();
    /// let watching = Wallet::watch(wallet.federation().clone(), record, None)?;
    /// assert_eq!(watching.account(), wallet.account());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// The record is not valid for this federation.
    pub fn watch(
        federation: Federation,
        record: AccountRecord,
        checkpoint: Option<Checkpoint>,
    ) -> Result<Self, WalletError> {
        record.check(&federation)?;
        let account = JointAccount::new(&federation, record)?;
        Self::open(federation, None, account, checkpoint)
    }

    fn open(
        federation: Federation,
        keys: Option<WalletKeys>,
        account: JointAccount,
        checkpoint: Option<Checkpoint>,
    ) -> Result<Self, WalletError> {
        let network = federation.network();
        let checkpoint = checkpoint.unwrap_or_else(|| Checkpoint::genesis(network));
        // The first retarget after it needs the time of its period's first block.
        let params = bitcoin::params::Params::new(network);
        let aligned = u64::from(checkpoint.height).is_multiple_of(params.difficulty_adjustment_interval());
        if !aligned && !params.no_pow_retargeting {
            return Err(WalletError::Checkpoint { height: checkpoint.height });
        }
        let mut wallet = Self {
            federation,
            keys,
            account,
            certificate: None,
            addresses: BTreeMap::new(),
            keychains: BTreeMap::new(),
            unwatched: Vec::new(),
            book: CoinBook::default(),
            chain: HeaderChain::new(network, checkpoint),
            proposals: BTreeMap::new(),
            proofs: BTreeMap::new(),
            gap_limit: GAP_LIMIT,
            shown: None,
            touched: Touched::default(),
            saved_before: false,
        };
        wallet.derive_ahead()?;
        Ok(wallet)
    }

    /// The federation.
    pub fn federation(&self) -> &Federation {
        &self.federation
    }

    /// Takes over the federation in a later epoch. Keys, addresses and account stay the same.
    pub(crate) fn adopt(&mut self, federation: Federation) {
        self.federation = federation;
        self.touched.federation = true;
    }

    /// The account.
    pub fn account(&self) -> &JointAccount {
        &self.account
    }

    /// The wallet's header chain.
    pub fn chain(&self) -> &HeaderChain {
        &self.chain
    }

    /// The account certificate, once the federation has given it.
    pub fn certificate(&self) -> Option<&AccountCertificate> {
        self.certificate.as_ref()
    }

    /// Takes in the account certificate.
    ///
    /// # Errors
    /// It does not verify or is of another account; the server is at fault.
    pub fn set_certificate(&mut self, certificate: AccountCertificate) -> Result<(), WalletError> {
        let account = certificate.verify(&self.federation)?;
        if account.id() != self.account.id() {
            return Err(crate::account::AccountError::Key.into());
        }
        self.certificate = Some(certificate);
        self.touched.certificate = true;
        Ok(())
    }

    /// The account as an output descriptor: public, to watch or recover with any descriptor wallet. With the words, it
    /// says where the recovery key comes from.
    pub fn descriptor(&self) -> AccountDescriptor {
        let descriptor = self.account.descriptor().clone();
        match self.keys.as_ref().map(|keys| keys.origin().clone()) {
            Some((fingerprint, path)) => descriptor.with_origin(fingerprint, path),
            None => descriptor,
        }
    }

    /// Gives out the next receive address.
    ///
    /// # Errors
    /// 2^31 addresses have been given out.
    pub fn next_address(&mut self) -> Result<Address, WalletError> {
        self.take_next(Keychain::Receive)
    }

    /// An address to show to anyone: the same until somebody has paid to it, by a verified proof.
    /// [`Wallet::next_address`] never gives this one to a payer of its own. Showing it again keeps the addresses that
    /// nobody used within the gap that a restored wallet looks across.
    ///
    /// # Errors
    /// 2^31 addresses have been given out.
    pub fn unused_address(&mut self) -> Result<Address, WalletError> {
        let shown = self.shown.and_then(|index| {
            let state = self.keychains.get(&Keychain::Receive)?;
            state.derived.get(usize::try_from(index).ok()?)
        });
        if let Some(shown) = shown
            && !self.coins_at(&shown.script_pubkey).any(|coin| coin.is_verified(&self.chain))
        {
            return Ok(shown.clone());
        }
        let address = self.next_address()?;
        self.shown = Some(address.position.index);
        self.touched.keychains = true;
        Ok(address)
    }

    /// Everything that ever arrived at a script of this wallet, spent or not; also what a server only claims, as
    /// [`Coin::finality`] and [`Coin::block`] tell.
    pub fn coins_at<'a>(&'a self, script: &'a ScriptBuf) -> impl Iterator<Item = &'a Coin> + 'a {
        self.book.coins().filter(move |coin| coin.script_pubkey == *script)
    }

    /// How many addresses after the last one that was given out or used are watched; [`GAP_LIMIT`] unless set. A
    /// wallet that is restored from its words finds what was paid to addresses with smaller gaps between them. At
    /// most [`GAP_LIMIT_MAX`].
    ///
    /// # Errors
    /// A key cannot be derived.
    pub fn set_gap_limit(&mut self, addresses: u32) -> Result<(), WalletError> {
        self.gap_limit = addresses.clamp(1, GAP_LIMIT_MAX);
        self.derive_ahead()
    }

    /// What the wallet has.
    pub fn balance(&self) -> Balance {
        self.book.balance(self.demands())
    }

    /// What can be done with a coin of this wallet; `None` if it is not one, or spent.
    ///
    /// ```
    /// # fn example(wallet: &quorate::wallet::Wallet) {
    /// use quorate::wallet::CoinState;
    /// for coin in wallet.coins() {
    ///     match wallet.coin_state(&coin.outpoint) {
    ///         Some(CoinState::Expired { opens_at }) => {
    ///             println!("{}: move it home, the recovery path opens at {opens_at}", coin.outpoint);
    ///         }
    ///         state => println!("{}: {state:?}", coin.outpoint),
    ///     }
    /// }
    /// # }
    /// ```
    pub fn coin_state(&self, outpoint: &OutPoint) -> Option<CoinState> {
        let coin = self.book.coin(outpoint).filter(|coin| self.book.is_unspent(coin))?;
        Some(coin.state(&self.demands()))
    }

    fn demands(&self) -> Demands<'_> {
        Demands {
            chain: &self.chain,
            confirmations: relay_policy::min_confirmations(self.federation.network()),
            recovery_delay: self.account.record().recovery_delay.into(),
            recovery_margin: self.federation.roster().recovery_margin.into(),
        }
    }

    /// All coins that are not spent, those that a payment holds included.
    pub fn coins(&self) -> impl Iterator<Item = &Coin> + '_ {
        self.book.coins().filter(|coin| coin.conflicted.is_none() && self.book.is_unspent(coin))
    }

    /// The transaction that spends a coin of this wallet, by a proof that the wallet verified.
    pub fn spender(&self, outpoint: &OutPoint) -> Option<Txid> {
        self.book.coins().find(|coin| coin.outpoint == *outpoint)?.spent_by
    }

    /// Whether a proof is about a payment of this account, by the spent outputs that its certificate is bound to.
    pub(crate) fn is_own_payment(&self, proof: &FinalityProof) -> bool {
        match proof {
            FinalityProof::Enforced { spent, .. } => {
                spent.iter().all(|output| self.owns(&output.script_pubkey))
            }
            FinalityProof::Attested { .. } => false,
        }
    }

    /// Payments in and out, in the order in which the wallet learned of them.
    pub fn history(&self) -> &[HistoryEntry] {
        self.book.history()
    }

    /// The verified proof that a transaction of the history is final: to show, to keep or to hand on.
    pub fn proof(&self, txid: Txid) -> Option<&FinalityProof> {
        self.proofs.get(&txid)
    }

    /// Whether a transaction is in the history.
    pub(crate) fn knows(&self, txid: Txid) -> bool {
        self.book.history().iter().any(|entry| entry.txid == txid)
    }

    /// Whether this wallet has no keys and cannot pay.
    pub fn is_watch_only(&self) -> bool {
        self.keys.is_none()
    }

    fn keys(&self) -> Result<&WalletKeys, WalletError> {
        self.keys.as_ref().ok_or(WalletError::WatchOnly)
    }

    /// Builds a payment as a PSBT, without reserving or sending anything.
    ///
    /// # Errors
    /// Dust, too little money, a fee rate out of bounds, no amount; a fee out of proportion, if the request names no
    /// rate and `default_rate`, which is a server's word, makes it so.
    pub fn create_psbt(
        &mut self,
        request: &PaymentRequest,
        default_rate: FeeRate,
    ) -> Result<Psbt, WalletError> {
        let change = self.peek_next(Keychain::Change)?;
        let home = self.addresses.contains_key(&request.destination.script_pubkey());
        let everything = request.amount == Some(PaymentAmount::Everything);
        let aging: BTreeSet<OutPoint> = self.aging().iter().map(|coin| coin.outpoint).collect();
        let coins = self.book.unspent(self.demands()).filter_map(|(coin, state)| {
            let usable = match state {
                CoinState::Spendable { .. } => true,
                CoinState::Expired { .. } => home && everything,
                CoinState::Incoming
                | CoinState::Immature
                | CoinState::Locked
                | CoinState::Conflicted { .. } => false,
            };
            let described = self.describe_coin(coin).filter(|_| usable)?;
            Some(SpendableCoin { aging: aging.contains(&coin.outpoint), ..described })
        });
        let funds = self.funds(coins.collect(), change);
        let psbt = build::build(request, request.fee_rate.unwrap_or(default_rate), &funds)?;
        if request.fee_rate.is_none() {
            self.check_unasked_fee(&psbt, default_rate)?;
        }
        Ok(psbt)
    }

    /// Refuses a fee that only a server asks for and that is out of proportion.
    pub(crate) fn check_unasked_fee(&self, psbt: &Psbt, rate: FeeRate) -> Result<(), WalletError> {
        build::check_unasked_fee(psbt, rate, &self.addresses)
    }

    fn describe_coin(&self, coin: &Coin) -> Option<SpendableCoin> {
        let address = self.addresses.get(&coin.script_pubkey)?.clone();
        let confirmed = coin.block.is_some_and(|block| self.chain.contains(&block));
        Some(SpendableCoin { outpoint: coin.outpoint, value: coin.value, confirmed, aging: false, address })
    }

    fn funds(&self, coins: Vec<SpendableCoin>, change: Address) -> Funds<'_> {
        let incoming = self.balance().incoming;
        Funds { account: &self.account, addresses: &self.addresses, coins, incoming, change }
    }

    /// Authorises a PSBT of this account, its own or one that came from outside, and reserves its coins.
    ///
    /// # Errors
    /// It spends anything that is not a spendable coin of this wallet, lies about a coin, or breaks a rule that the
    /// nodes enforce.
    pub fn propose(&mut self, psbt: Psbt) -> Result<Proposal, WalletError> {
        let deadline = self.deadline(&psbt)?;
        let key = &self.keys()?.authorisation;
        let proposal = JointProposal::authorise(&self.federation, self.account.id(), key, psbt, deadline);
        self.take_proposal(&proposal)?;
        Ok(Proposal::Joint(Box::new(proposal)))
    }

    /// The latest deadline that the coins of a PSBT allow (rule V10), after a check that they are this wallet's.
    fn deadline(&self, psbt: &Psbt) -> Result<u32, WalletError> {
        let home = psbt.unsigned_tx.output.iter().all(|output| self.owns(&output.script_pubkey));
        let mut latest = u32::MAX;
        let mut moves_home = false;
        for (input, data) in psbt.unsigned_tx.input.iter().zip(&psbt.inputs) {
            let outpoint = input.previous_output;
            let coin = self.book.coin(&outpoint).filter(|coin| coin.spent_by.is_none());
            let same = coin.zip(data.witness_utxo.as_ref()).filter(|(coin, output)| {
                coin.value == output.value && coin.script_pubkey == output.script_pubkey
            });
            let (coin, _) = same.ok_or(WalletError::Coin { outpoint })?;
            match coin.state(&self.demands()) {
                CoinState::Spendable { until } => latest = latest.min(until),
                CoinState::Expired { .. } if home => moves_home = true,
                CoinState::Expired { opens_at } => return Err(WalletError::Horizon { outpoint, opens_at }),
                CoinState::Incoming
                | CoinState::Immature
                | CoinState::Locked
                | CoinState::Conflicted { .. } => {
                    return Err(WalletError::Coin { outpoint });
                }
            }
        }
        Ok(if moves_home { NOT_BEFORE_ITS_BLOCK } else { latest })
    }

    /// Takes in a proposal of this account, as it was saved or has just been made.
    pub(crate) fn take_proposal(&mut self, proposal: &JointProposal) -> Result<(), WalletError> {
        let checked = proposal.check(&self.federation, &self.account)?;
        let txid = checked.plan.txid;
        for output in &checked.transaction.output {
            self.mark_used(&output.script_pubkey)?;
        }
        self.book.propose(&checked, &self.addresses);
        self.proposals.insert(txid, checked);
        Ok(())
    }

    /// Frees the coins of a proposal that the federation refused for good.
    pub fn abandon(&mut self, txid: Txid) {
        self.proposals.remove(&txid);
        self.book.abandon(txid);
    }

    /// Forgets which coins are held by the word of a server that is gone; the next one says it anew.
    pub fn forget_claims(&mut self) {
        self.book.forget_claims();
    }

    /// The owner's signed wish that a payment should not happen.
    ///
    /// # Errors
    /// The wallet only watches.
    pub fn sign_cancel(&self, txid: Txid) -> Result<SignedCancel, WalletError> {
        Ok(SignedCancel::sign(&self.federation, &self.keys()?.authorisation, txid))
    }

    /// Makes the wallet's part of a signing session, for a transaction that it proposed.
    ///
    /// # Errors
    /// The certificate or commitments do not verify, or the wallet never proposed this transaction: the asker
    /// is at fault.
    pub fn sign(
        &self,
        attempt: u32,
        certificate: &ApprovalCertificate,
        nodes: &BTreeMap<NodeId, NodeCommitments>,
        rng: &mut dyn CryptoRngCore,
    ) -> Result<WalletSignature, WalletError> {
        let proposal = self.proposals.get(&certificate.target.txid()).ok_or(WalletError::NotProposed)?;
        let ours: Vec<OutPoint> =
            proposal.transaction.input.iter().map(|input| input.previous_output).collect();
        let inputs = certificate.target.inputs();
        let same = inputs.len() == ours.len() && ours.iter().all(|outpoint| inputs.contains_key(outpoint));
        if !same || certificate.target.custody() != proposal.custody {
            return Err(WalletError::NotProposed);
        }
        certificate.verify(&self.federation).map_err(crate::account::AccountError::from)?;
        let secret = self.keys()?.secret();
        let mut rng = rng;
        Ok(wallet_sign(
            &self.federation,
            &proposal.plan,
            &certificate.target,
            attempt,
            nodes,
            &secret,
            &self.keys()?.authorisation,
            &mut rng,
        )?)
    }

    /// Takes in what a server says about an output. Gives transactions whose place in the chain has to be proven.
    ///
    /// # Errors
    /// Addresses beyond the index limit.
    pub fn apply_record(&mut self, record: &UtxoRecord) -> Result<Vec<Txid>, WalletError> {
        let Some(address) = self.addresses.get(&record.script_pubkey) else { return Ok(Vec::new()) };
        let position = address.position;
        self.mark_used(&record.script_pubkey)?;
        Ok(self.book.apply_record(record, position, &self.chain))
    }

    /// Checks a proof of finality and takes in what it means for this wallet. Tells whether it was news.
    ///
    /// A payment from somebody else that is seen for the first time when its deadline has passed by the wallet's own
    /// chain (rule V10) is no news, and it counts by its block alone: its payer may have kept it back until a recovery
    /// path had opened.
    ///
    /// # Errors
    /// The proof does not hold; its sender is at fault.
    pub fn apply_proof(&mut self, proof: &FinalityProof) -> Result<bool, FinalityError> {
        if self.book.knows_final(proof.txid()) {
            return Ok(false);
        }
        proof.verify(&self.federation)?;
        let (txid, transaction) = (proof.txid(), proof.transaction());
        if !proof.holds_at(self.chain.tip().height) && !self.is_own_payment(proof) {
            return Ok(false);
        }
        for output in &proof.transaction().output {
            // An index beyond the limit cannot have been given out.
            let _beyond_limit = self.mark_used(&output.script_pubkey);
        }
        self.proposals.remove(&txid);
        let deadline = proof.custody().deadline();
        let news = self.book.apply_final(transaction, proof.kind(), deadline, &self.addresses);
        if news {
            self.proofs.insert(txid, proof.clone());
            self.touched.proofs.insert(txid);
        }
        Ok(news)
    }

    /// Checks a transaction's place in the chain and takes it in. Tells whether it was news.
    ///
    /// # Errors
    /// The block is not known yet, or the proof does not hold.
    pub fn apply_inclusion(&mut self, txid: Txid, proof: &RawTransactionProof) -> Result<bool, ProofError> {
        let transaction = self.chain.verify(txid, proof)?;
        for output in &transaction.output {
            let _beyond_limit = self.mark_used(&output.script_pubkey);
        }
        Ok(self.book.apply_block(&transaction, proof.block, &self.addresses))
    }

    /// Checks a proof that a transaction can be in no block any more, and takes it in with all that descends from it in
    /// this wallet. A block that undoes the conflict undoes it here.
    ///
    /// # Errors
    /// The block is not known yet, or the proof does not hold.
    pub fn apply_conflict(&mut self, txid: Txid, proof: &ConflictProof) -> Result<(), ConflictError> {
        let by = proof.verify(txid, &self.chain)?;
        self.book.apply_conflict(txid, by);
        Ok(())
    }

    /// Transactions of the history that were found dead since this was last called, with what a block has instead.
    pub(crate) fn take_conflicts(&mut self) -> Vec<(Txid, ConfirmedSpend)> {
        self.book.take_conflicts()
    }

    /// Takes in headers. After a reorganisation, gives the transactions whose place has to be proven again.
    ///
    /// # Errors
    /// The headers do not connect, or break a rule.
    pub fn apply_headers(&mut self, headers: &[Header]) -> Result<(Extension, Vec<Txid>), HeaderError> {
        let parent = headers.first().and_then(|first| self.chain.height_of(&first.prev_blockhash));
        let extension = self.chain.extend(headers)?;
        if let Some(from) = parent.filter(|_| extension != Extension::Unchanged).map(|height| height + 1) {
            self.touched.headers_from = Some(self.touched.headers_from.map_or(from, |other| other.min(from)));
        }
        let lost = match extension {
            Extension::Reorganised { .. } => {
                let lost = self.book.drop_blocks_outside(&self.chain);
                for (txid, proof) in &self.proofs {
                    self.book.restore_spends(*txid, proof.outpoints());
                }
                lost
            }
            Extension::Extended | Extension::Unchanged => Vec::new(),
        };
        Ok((extension, lost))
    }

    /// Scripts to subscribe to that were not given before.
    pub fn take_unwatched(&mut self) -> Vec<ScriptBuf> {
        std::mem::take(&mut self.unwatched)
    }

    /// All scripts of the wallet.
    pub fn scripts(&self) -> Vec<ScriptBuf> {
        self.addresses.keys().cloned().collect()
    }

    /// Whether a script is the wallet's.
    pub fn owns(&self, script: &ScriptBuf) -> bool {
        self.addresses.contains_key(script)
    }

    fn peek_next(&mut self, keychain: Keychain) -> Result<Address, WalletError> {
        let state = self.keychains.entry(keychain).or_default();
        let index = usize::try_from(state.next).map_err(|_| WalletError::Derivation)?;
        state.derived.get(index).cloned().ok_or(WalletError::Derivation)
    }

    fn take_next(&mut self, keychain: Keychain) -> Result<Address, WalletError> {
        let address = self.peek_next(keychain)?;
        self.mark_used(&address.script_pubkey)?;
        Ok(address)
    }

    fn mark_used(&mut self, script: &ScriptBuf) -> Result<(), WalletError> {
        if let Some(address) = self.addresses.get(script) {
            let KeychainIndex { keychain, index } = address.position;
            let state = self.keychains.entry(keychain).or_default();
            if index >= state.next {
                state.next = index + 1;
                self.touched.keychains = true;
                self.derive_ahead()?;
            }
        }
        Ok(())
    }

    fn derive_ahead(&mut self) -> Result<(), WalletError> {
        for keychain in [Keychain::Receive, Keychain::Change] {
            let state = self.keychains.entry(keychain).or_default();
            let until = state.next.saturating_add(self.gap_limit);
            let from = u32::try_from(state.derived.len()).map_err(|_| WalletError::Derivation)?;
            for index in from..until {
                let address = self.account.address(KeychainIndex { keychain, index })?;
                self.unwatched.push(address.script_pubkey.clone());
                self.addresses.insert(address.script_pubkey.clone(), address.clone());
                state.derived.push(address);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod aging_tests;
#[cfg(test)]
mod conflict_tests;
#[cfg(test)]
pub(crate) mod tests;
