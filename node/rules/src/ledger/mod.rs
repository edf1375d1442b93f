//! Facts of outpoints and transactions, and the headers of the chain.
//!
//! Facts of the protocol (votes, certificates, proofs) are in the store, facts of blocks in the index. Indexed are
//! outputs of registered accounts and of scripts that somebody asked for; other coins are looked up when a proposal
//! names them. Each kind of fact has its own part; here stands what concerns several of them.

mod ancestry;
mod binding;
mod blocks;
mod cluster;
mod coins;
mod indexing;
mod leases;
mod rounds;
mod scripts;
mod settling;
mod transactions;

use crate::{
    index::{AccountEntry, BlockEffect, Indexed, short},
    records::{ChangeSet, RoundRecord, TxRecord},
};
pub(crate) use ancestry::{Ancestry, Conflict};
use bitcoin::{Block, BlockHash, OutPoint, ScriptBuf, Transaction, TxOut, Txid, block::Header};
use blocks::Blocks;
pub(crate) use coins::Coin;
use coins::{Coins, Leaving};
pub(crate) use leases::LEASES_MAX;
use quorate_protocol::{
    AccountId, Epoch, Federation, Round,
    account::{AccountRecord, JointAccount, Keychain, KeychainIndex},
    finality::FinalityProof,
    headers::Checkpoint,
    release::ReleaseCertificate,
    vote::{ApprovalCertificate, VoteTarget},
    wire::{BlockRef, ConfirmedSpend, FinalSpend, Followed, Lock, UtxoRecord},
};
use rounds::Rounds;
use scripts::Scripts;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};
use transactions::Transactions;

/// An unspent output as the chain has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainCoin {
    /// Value and script.
    pub output: TxOut,
    /// Height of the block that created it.
    pub height: u32,
    /// That block's hash.
    pub hash: BlockHash,
    /// Whether a coinbase transaction did.
    pub coinbase: bool,
}

#[derive(Debug)]
pub(crate) struct Ledger {
    coins: Coins,
    rounds: Rounds,
    transactions: Transactions,
    blocks: Blocks,
    /// Coins that this node knows nothing of but that something final spends them, and what blocks spend them with.
    unknown_spent: BTreeMap<OutPoint, ConfirmedSpend>,
    scripts: Scripts,
    /// Positions in accounts that have a coin now; more of their scripts have to be derived.
    used: BTreeSet<(AccountId, KeychainIndex)>,
    /// Coins, and spends of coins that are not known, which the index has otherwise.
    stale: BTreeSet<OutPoint>,
    /// Outpoints that a block spends which cannot be undone any more.
    resting: BTreeSet<OutPoint>,
    /// Transactions that the archive has been given, and that are forgotten once it is durable there.
    prepared: Option<BTreeSet<Txid>>,
    /// Coins that leave the index once the store has forgotten what named them.
    leaving: Vec<Leaving>,
    /// Transactions of that settlement, which the archive has.
    archived: BTreeSet<Txid>,
    /// Rows for the archive.
    archive: ChangeSet,
    /// Coins that were looked up, the oldest first.
    looked_up: VecDeque<OutPoint>,
    /// What spends coins that this node has forgotten and a certificate names that holds another one.
    forgotten: BTreeMap<OutPoint, Txid>,
}

impl Ledger {
    pub(crate) fn restore(
        birthday: Checkpoint,
        epoch: Epoch,
        records: Vec<TxRecord>,
        rounds: Vec<RoundRecord>,
        index: Indexed,
    ) -> Self {
        let Indexed { headers, effects, coins, spends, leases, accounts, addresses, rows, useless } = index;
        let mut ledger = Self {
            coins: Coins::new(epoch.first_round()),
            rounds: Rounds::restore(epoch.first_round(), rounds),
            transactions: Transactions::default(),
            blocks: Blocks::restore(birthday, headers, effects),
            unknown_spent: BTreeMap::new(),
            scripts: Scripts::restore(leases, accounts, addresses, &rows, useless),
            used: BTreeSet::new(),
            stale: BTreeSet::new(),
            resting: BTreeSet::new(),
            prepared: None,
            leaving: Vec::new(),
            archived: BTreeSet::new(),
            archive: ChangeSet::default(),
            looked_up: VecDeque::new(),
            forgotten: BTreeMap::new(),
        };
        ledger.restore_chain(coins, spends);
        for record in records {
            ledger.put(record, Duration::ZERO);
        }
        ledger.restore_resting();
        if ledger.is_doubtful() {
            tracing::info!(
                "a transaction came without what the chain did to its coins; the last blocks are read again"
            );
            while ledger.tip().height > ledger.undo_floor() {
                ledger.disconnect();
            }
        }
        ledger
    }

    pub(crate) fn knows(&self, outpoint: &OutPoint) -> bool {
        self.coins.get(outpoint).is_some()
    }

    /// Whether it is known where a coin comes from or went: a block has created or spent it, or what creates it is
    /// final and in no block.
    pub(crate) fn knows_origin(&self, outpoint: &OutPoint) -> bool {
        let unmined = || self.proof(&outpoint.txid).is_some() && self.block_of(&outpoint.txid).is_none();
        self.coin(outpoint).is_some_and(|coin| coin.is_in_chain() || unmined())
    }

    pub(crate) fn record(&self, txid: &Txid) -> Option<&TxRecord> {
        self.transactions.get(txid)
    }

    /// The proof of a transaction that is final.
    pub(crate) fn proof(&self, txid: &Txid) -> Option<&FinalityProof> {
        self.transactions.get(txid)?.proof.as_ref()
    }

    pub(crate) fn coin(&self, outpoint: &OutPoint) -> Option<&Coin> {
        self.coins.get(outpoint)
    }

    pub(crate) fn is_coinbase(&self, outpoint: &OutPoint) -> bool {
        self.coins.get(outpoint).is_some_and(|coin| coin.coinbase)
    }

    /// The round that an outpoint is in at this node.
    pub(crate) fn round(&self, outpoint: &OutPoint) -> Round {
        self.rounds.round(outpoint)
    }

    /// Whether this node promised to leave the round before and has no release for it yet: it may neither vote nor
    /// commit.
    pub(crate) fn is_pending(&self, outpoint: &OutPoint) -> bool {
        self.rounds.is_pending(outpoint)
    }

    /// Outpoints whose release this node takes part in and does not have.
    pub(crate) fn pending(&self) -> Vec<OutPoint> {
        self.rounds.pending()
    }

    /// The latest release known.
    pub(crate) fn release(&self, outpoint: &OutPoint) -> Option<&ReleaseCertificate> {
        self.rounds.release(outpoint)
    }

    /// What this node approved in the present round, and when.
    pub(crate) fn approved(&self, outpoint: &OutPoint) -> Option<(Txid, Duration)> {
        self.rounds.approved(outpoint)
    }

    /// The highest certificate that this node committed to.
    pub(crate) fn committed(&self, outpoint: &OutPoint) -> Option<&ApprovalCertificate> {
        self.transactions.get(&self.rounds.committed(outpoint)?)?.certificate.as_ref()
    }

    /// Transactions that were voted for and may still become final.
    pub(crate) fn open(&self) -> &BTreeSet<Txid> {
        self.transactions.open()
    }

    pub(crate) fn close(&mut self, txid: &Txid) {
        self.transactions.close(txid);
    }

    /// How many records are kept, for metrics and the memory bound: transactions, rounds, open ones, coins.
    pub(crate) fn sizes(&self) -> [usize; 4] {
        [self.transactions.len(), self.rounds.len(), self.transactions.open().len(), self.coins.len()]
    }

    /// How many scripts are indexed, and of how many accounts.
    pub(crate) fn index_sizes(&self) -> (usize, usize) {
        self.scripts.len()
    }

    pub(crate) fn by_script(&self, script: &ScriptBuf) -> Vec<OutPoint> {
        self.coins.by_script(script)
    }

    /// The block that has a transaction, as far as this node can tell: it is one of the last, or a coin of the
    /// transaction is known.
    pub(crate) fn block_of(&self, txid: &Txid) -> Option<BlockRef> {
        let of_coin = || self.coins.of_transaction(txid).find_map(|(_, coin)| coin.created);
        self.blocks.of(txid).or_else(of_coin)
    }

    pub(crate) fn tip(&self) -> BlockRef {
        self.blocks.tip()
    }

    pub(crate) fn block_hash(&self, height: u32) -> Option<BlockHash> {
        self.blocks.hash(height)
    }

    /// The lowest tip to which blocks can be undone.
    pub(crate) fn undo_floor(&self) -> u32 {
        self.blocks.undo_floor()
    }

    pub(crate) fn headers(&self, from: u32, count: usize) -> Vec<Header> {
        self.blocks.headers(from, count)
    }

    /// Median time of the last eleven headers (BIP113).
    pub(crate) fn median_time(&self) -> u32 {
        self.blocks.median_time()
    }

    /// Has outputs of this script indexed from now on. `false` if there is no room.
    pub(crate) fn want(&mut self, script: &ScriptBuf) -> bool {
        self.scripts.want(script, self.blocks.tip().height)
    }

    /// Derives addresses that the index should have had and had not.
    pub(crate) fn derive_again(&mut self, federation: &Federation) {
        let broken = self.scripts.take_broken();
        if !broken.is_empty() {
            tracing::warn!(
                accounts = broken.len(),
                "addresses are missing in the index, and are derived again"
            );
        }
        for id in broken {
            let record = self.account_record(&id);
            let account = record.and_then(|record| JointAccount::new(federation, record).ok());
            let scripts =
                self.scripts.derive_again(id, account.as_ref().filter(|account| account.id() == id));
            self.assign(&scripts, id);
        }
    }

    /// What there is no room for among accounts, and how many of them there are at most.
    pub(crate) fn accounts_full(&self) -> Option<(&'static str, usize)> {
        self.scripts.full()
    }

    /// How many accounts more that no coin came to have room, if half of it is taken.
    pub(crate) fn scarce_room(&self) -> Option<usize> {
        self.scripts.scarce_room()
    }

    /// Whether an account is followed that no coin came to.
    pub(crate) fn is_without_coin(&self, account: &AccountId) -> bool {
        self.scripts.account(account).is_some_and(|entry| !entry.is_used())
    }

    /// As if so many accounts were followed that no coin came to.
    #[cfg(test)]
    pub(crate) fn crowd(&mut self, accounts: u32) {
        self.scripts.crowd(accounts);
    }

    pub(crate) fn has_unsearched(&self) -> bool {
        self.scripts.has_unsearched()
    }

    /// Takes accounts whose coins of before they were known have not been searched for, with the addresses that they
    /// reach: those that have waited longest.
    pub(crate) fn take_unsearched(&mut self, most: usize) -> Vec<(AccountId, AccountRecord, [u32; 2])> {
        self.scripts.take_unsearched(most)
    }

    /// Puts those of them back that are still to be searched for.
    pub(crate) fn put_unsearched(&mut self, accounts: &[(AccountId, [u32; 2])]) {
        self.scripts.put_unsearched(accounts);
    }

    pub(crate) fn mark_searched(&mut self, accounts: &[(AccountId, [u32; 2])]) {
        self.scripts.mark_searched(accounts);
    }

    /// Has the scripts of an account indexed from now on. Gives the coins that are known and were not known to be its.
    pub(crate) fn register(&mut self, id: AccountId, account: &JointAccount) -> Vec<OutPoint> {
        let scripts = self.scripts.register(id, account, self.blocks.tip().height);
        self.assign(&scripts, id)
    }

    /// Coins of scripts are an account's. It reaches further than they do.
    fn assign(&mut self, scripts: &[ScriptBuf], id: AccountId) -> Vec<OutPoint> {
        let mut news = Vec::new();
        for script in scripts {
            let coins = self.coins.assign(script, id);
            if !coins.is_empty() {
                self.used.extend(self.scripts.used(script));
            }
            news.extend(coins);
        }
        news
    }

    /// How many addresses of an account are indexed.
    pub(crate) fn followed(&self, id: &AccountId) -> Option<Followed> {
        let entry = self.scripts.account(id)?;
        Some(Followed { receive: entry.reach(Keychain::Receive), change: entry.reach(Keychain::Change) })
    }

    /// The coins of an account.
    pub(crate) fn by_account(&self, id: &AccountId) -> Vec<OutPoint> {
        self.coins.by_account(id)
    }

    /// The account that a coin is of, if that is indexed.
    pub(crate) fn account_of(&self, outpoint: &OutPoint) -> Option<AccountId> {
        self.coins.account(outpoint)
    }

    /// Whether a script is of an account.
    pub(crate) fn is_of(&self, script: &ScriptBuf, id: &AccountId) -> bool {
        self.scripts.account_of(script) == Some(*id)
    }

    /// Whether an account's scripts are indexed, and from which height its history is known then.
    pub(crate) fn account_since(&self, id: &AccountId) -> Option<u32> {
        self.scripts.account(id).map(AccountEntry::history_from)
    }

    /// The record of an account whose scripts are indexed, if it can be read.
    pub(crate) fn account_record(&self, id: &AccountId) -> Option<AccountRecord> {
        self.scripts.account(id).and_then(AccountEntry::record)
    }

    /// Positions in accounts that have a coin now, beyond those that had one before.
    pub(crate) fn take_used(&mut self) -> Vec<(AccountId, KeychainIndex)> {
        std::mem::take(&mut self.used).into_iter().collect()
    }

    /// Has more scripts of an account indexed, up to a gap after the position that has a coin. Gives the coins that are
    /// known and were not known to be its.
    pub(crate) fn extend(
        &mut self,
        id: AccountId,
        account: &JointAccount,
        used: KeychainIndex,
    ) -> Vec<OutPoint> {
        let scripts = self.scripts.extend(id, account, used, self.blocks.tip().height);
        self.assign(&scripts, id)
    }

    /// Forgets accounts and scripts that nobody uses.
    pub(crate) fn sweep_scripts<'a>(
        &mut self,
        listened: impl Iterator<Item = &'a ScriptBuf>,
        followed: impl Fn(&AccountId) -> bool,
    ) {
        self.scripts.sweep(self.blocks.tip().height, listened, followed);
    }

    /// Whether there is room for another script, if need be because others that nobody listens to have gone.
    pub(crate) fn make_room_for_scripts<'a, I: Iterator<Item = &'a ScriptBuf>>(
        &mut self,
        listened: impl FnOnce() -> I,
    ) -> bool {
        self.scripts.make_room(self.blocks.tip().height, listened)
    }

    /// The height from which a script's history in blocks is known: what no index was asked for is known from the
    /// next block on at best.
    pub(crate) fn history_of(&self, script: &ScriptBuf) -> u32 {
        self.scripts.history_of(script).unwrap_or_else(|| self.tip().height + 1)
    }

    /// A record as of the present tip.
    pub(crate) fn current(&self, outpoint: &OutPoint) -> Option<UtxoRecord> {
        let mut record = self.coins.record(outpoint, self.tip().height)?;
        if record.final_parent.is_some() && record.created.is_none() {
            record.conflicted = self.conflict(outpoint.txid).map(|conflict| conflict.by);
        }
        Some(record)
    }

    /// Proven final transactions that are not in a block and may still be, by txid.
    pub(crate) fn unconfirmed(&self) -> Vec<Transaction> {
        let open = self.transactions.all().filter(|(txid, record)| {
            record.proof.is_some() && self.block_of(txid).is_none() && self.conflict(**txid).is_none()
        });
        let open: BTreeMap<_, _> =
            open.filter_map(|(txid, record)| Some((txid, record.proof.as_ref()?))).collect();
        open.into_values().map(|proof| proof.transaction().clone()).collect()
    }

    /// Records of all final transactions.
    pub(crate) fn finals(&self) -> impl Iterator<Item = &TxRecord> {
        self.transactions.all().map(|(_, record)| record).filter(|record| record.proof.is_some())
    }

    /// Takes over a round.
    pub(crate) fn put_round(&mut self, record: RoundRecord) {
        let outpoint = record.outpoint;
        self.rounds.put(record);
        self.show_round(&outpoint);
        self.note_in_block(&outpoint);
    }

    /// Brings the record that subscribers see in line with the latest release: its round, and what holds the outpoint
    /// there.
    fn show_round(&mut self, outpoint: &OutPoint) {
        let (round, forced) = match (self.release(outpoint), self.rounds.inherited(outpoint)) {
            (Some(release), _) => (release.round.next(), release.forced_txid()),
            (None, Some(txid)) => (self.rounds.first(), Some(txid)),
            (None, None) => return,
        };
        if let Some(said) = self.coins.said_mut(outpoint)
            && (said.round < round || (said.round == round && said.lock.is_none()))
        {
            said.round = round;
            said.lock = forced.map(|txid| Lock { txid, round, locked_at: 0 });
            said.votes = 0;
        }
    }

    /// Takes over a transaction's record; gives the outpoints whose facts changed.
    pub(crate) fn put(&mut self, record: TxRecord, now: Duration) -> Vec<OutPoint> {
        let txid = record.target.txid();
        let mut changed = Vec::new();
        let transaction = record.proof.as_ref().map(FinalityProof::transaction).cloned();
        let block = transaction.as_ref().and_then(|_| self.block_of(&txid));
        let inputs: Vec<OutPoint> = match (&record.proof, &record.proposal) {
            (Some(proof), _) => proof.outpoints().collect(),
            (None, Some(proposal)) => proposal.outpoints(),
            (None, None) => Vec::new(),
        };
        for (index, outpoint) in inputs.iter().enumerate() {
            if let Some(output) = record.spent.get(index) {
                self.add(*outpoint, output, false);
            }
            self.put_round_facts(outpoint, &record, now);
            if let Some(proof) = &record.proof {
                let spend = FinalSpend { txid, kind: proof.kind() };
                self.transactions.put_final_spend(*outpoint, spend);
            }
            if let Some(block) = block {
                self.note_spent(outpoint, ConfirmedSpend { txid, block });
            }
            self.note_in_block(outpoint);
            let Some(said) = self.coins.said_mut(outpoint) else { continue };
            let round_of = |target: &VoteTarget| target.inputs().get(outpoint).copied();
            if let Some(round) = record.vote.as_ref().and_then(|vote| round_of(&vote.target))
                && round >= said.round
            {
                said.round = round;
                said.lock = Some(Lock { txid, round, locked_at: record.locked_at });
            }
            if let Some(certificate) = &record.certificate
                && round_of(&certificate.target) == Some(said.round)
            {
                said.votes = u16::try_from(certificate.approvals.len()).unwrap_or(u16::MAX);
            }
            if let Some(proof) = &record.proof {
                said.spend = Some(FinalSpend { txid, kind: proof.kind() });
            }
            changed.push(*outpoint);
        }
        if let (Some(transaction), Some(proof)) = (transaction, &record.proof) {
            let kind = proof.kind();
            for (output, vout) in transaction.output.iter().zip(0..) {
                let outpoint = OutPoint { txid, vout };
                self.used.extend(self.scripts.used(&output.script_pubkey));
                // What a block has already is a coin by the index or is looked up: a later block may have spent it.
                if block.is_none() {
                    self.add(outpoint, output, false);
                }
                if let Some(said) = self.coins.said_mut(&outpoint) {
                    said.final_parent = Some(kind);
                    changed.push(outpoint);
                }
            }
        }
        self.transactions.put(record);
        changed
    }

    /// What a record says of its inputs' rounds: approved in which, committed in which.
    fn put_round_facts(&mut self, outpoint: &OutPoint, record: &TxRecord, now: Duration) {
        let round_of = |target: &VoteTarget| target.inputs().get(outpoint).copied();
        let voted = record.vote.as_ref().and_then(|vote| round_of(&vote.target));
        let committed = record.certificate.as_ref().and_then(|certificate| round_of(&certificate.target));
        if self.rounds.note(outpoint, record.target.txid(), voted, committed, now) {
            self.show_round(outpoint);
        }
    }

    /// Adds a coin unless it is there.
    fn add(&mut self, outpoint: OutPoint, output: &TxOut, coinbase: bool) {
        if self.knows(&outpoint) {
            return;
        }
        let spend = self.transactions.final_spend(&outpoint);
        let account = self.scripts.account_of(&output.script_pubkey);
        self.coins.insert(outpoint, output, coinbase, spend, account);
        if self.rounds.contains(&outpoint) {
            self.show_round(&outpoint);
        }
    }

    /// A coin that a block created.
    fn add_created(&mut self, outpoint: OutPoint, output: &TxOut, coinbase: bool, at: Option<BlockRef>) {
        self.add(outpoint, output, coinbase);
        if let Some(coin) = self.coins.get_mut(&outpoint) {
            (coin.coinbase, coin.created) = (coinbase, at);
        }
    }

    /// A coin that the backend looked up.
    pub(crate) fn add_coin(&mut self, outpoint: OutPoint, found: ChainCoin) {
        // A block before the birthday is never read.
        let before = (found.height < self.blocks.base()).then_some(found.hash);
        let hash = self.block_hash(found.height).or(before);
        if !self.knows(&outpoint) {
            self.looked_up.push_back(outpoint);
        }
        let at = hash.map(|hash| BlockRef { height: found.height, hash });
        self.add_created(outpoint, &found.output, found.coinbase, at);
        // Its block may be undone.
        self.blocks.note_created(found.height, outpoint);
        self.blocks.note_transaction(outpoint.txid, found.height);
        self.used.extend(self.scripts.used(&found.output.script_pubkey));
        self.note_in_block(&outpoint);
    }

    pub(crate) fn connect(&mut self, block: &Block) -> Vec<OutPoint> {
        let at = self.blocks.push(block.header);
        let mut effect = BlockEffect::default();
        for transaction in &block.txdata {
            let txid = transaction.compute_txid();
            effect.txids.push(short(&txid));
            let known = effect.created.len() + effect.spent.len();
            for input in &transaction.input {
                if let Some(said) = self.coins.said_mut(&input.previous_output) {
                    said.spent = Some(ConfirmedSpend { txid, block: at });
                    effect.spent.push(input.previous_output);
                } else if self.transactions.final_spend(&input.previous_output).is_some() {
                    self.unknown_spent.insert(input.previous_output, ConfirmedSpend { txid, block: at });
                    effect.spent.push(input.previous_output);
                }
            }
            for (output, vout) in transaction.output.iter().zip(0..) {
                let outpoint = OutPoint { txid, vout };
                let script = &output.script_pubkey;
                if self.scripts.has(script) || self.knows(&outpoint) {
                    self.add_created(outpoint, output, transaction.is_coinbase(), Some(at));
                    effect.created.push(outpoint);
                    self.used.extend(self.scripts.used(script));
                }
            }
            if effect.created.len() + effect.spent.len() > known {
                self.blocks.note_transaction(txid, at.height);
            }
        }
        let changed: Vec<OutPoint> = effect.created.iter().chain(&effect.spent).copied().collect();
        for settled in self.blocks.put_effect(effect) {
            self.resting.extend(settled.spent);
        }
        self.stale.extend(&changed);
        changed
    }

    /// What the block at the tip spends, of what is indexed.
    pub(crate) fn block_spends(&self) -> Vec<OutPoint> {
        let effect = self.blocks.effect(self.tip().height);
        effect.map(|effect| effect.spent.clone()).unwrap_or_default()
    }

    pub(crate) fn disconnect(&mut self) -> Vec<OutPoint> {
        let Some(effect) = self.blocks.pop() else { return Vec::new() };
        for outpoint in &effect.spent {
            self.unknown_spent.remove(outpoint);
            if let Some(said) = self.coins.said_mut(outpoint) {
                said.spent = None;
            }
        }
        for outpoint in &effect.created {
            if let Some(coin) = self.coins.get_mut(outpoint) {
                coin.created = None;
            }
        }
        let changed: Vec<OutPoint> = effect.created.into_iter().chain(effect.spent).collect();
        self.stale.extend(&changed);
        changed
    }
}

#[cfg(test)]
mod tests;
