//! Facts of outpoints and transactions, and the headers of the chain.
//!
//! Facts of the protocol (votes, certificates, proofs) are durable and restored; facts of blocks are rebuilt by the follower at every
//! start. Indexed are Taproot outputs and outputs of scripts that somebody asked for; other coins are looked up when a proposal
//! names them.

use crate::records::{RoundRecord, TxRecord};
use bitcoin::{
    Block, BlockHash, Network, OutPoint, ScriptBuf, Transaction, TxOut, Txid, block::Header,
    constants::genesis_block,
};
use quorate_protocol::{
    Epoch, Round,
    finality::FinalityProof,
    release::ReleaseCertificate,
    seal::SealedTransaction,
    vote::{ApprovalCertificate, VoteTarget},
    wire::{BlockRef, ConfirmedSpend, FinalSpend, Lock, UtxoRecord},
};
use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

/// Blocks above a final transaction after which the next epoch need not be told of it: the chain says it.
const BURIED: u32 = 144;
/// Scripts other than Taproot's that are indexed because somebody subscribed to them.
const WANTED_MAX: usize = 1_000_000;

/// An unspent output as the chain has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainCoin {
    /// Value and script.
    pub output: TxOut,
    /// Height of the block that created it.
    pub height: u32,
    /// Whether a coinbase transaction did.
    pub coinbase: bool,
}

/// An outpoint's round at this node, with what it did there.
#[derive(Clone, Debug)]
struct RoundState {
    round: Round,
    release: Option<ReleaseCertificate>,
    /// Approved in `round`, and since when by the monotonic clock.
    approved: Option<(Txid, Duration)>,
    /// The transaction of the highest certificate committed to.
    committed: Option<(Round, Txid)>,
    /// What the epoch before left the outpoint to: seals named its certificate.
    inherited: Option<Txid>,
}

impl RoundState {
    fn new(round: Round) -> Self {
        Self { round, release: None, approved: None, committed: None, inherited: None }
    }

    fn is_pending(&self) -> bool {
        self.round > self.round.epoch().first_round()
            && self.release.as_ref().is_none_or(|release| release.round.next() != self.round)
    }
}

#[derive(Debug)]
struct Coin {
    record: UtxoRecord,
    coinbase: bool,
}

#[derive(Debug, Default)]
struct BlockEffect {
    created: Vec<OutPoint>,
    spent: Vec<OutPoint>,
    txids: Vec<Txid>,
}

#[derive(Debug)]
pub(crate) struct Ledger {
    /// The round in which every outpoint began this epoch.
    first_round: Round,
    coins: HashMap<OutPoint, Coin>,
    scripts: HashMap<ScriptBuf, BTreeSet<OutPoint>>,
    wanted: HashMap<ScriptBuf, u32>,
    records: HashMap<Txid, TxRecord>,
    rounds: HashMap<OutPoint, RoundState>,
    /// What final transactions spend, also of coins that this node does not know.
    final_spends: HashMap<OutPoint, FinalSpend>,
    /// Transactions with a vote or certificate and no proof.
    open: BTreeSet<Txid>,
    blocks: HashMap<Txid, BlockRef>,
    headers: Vec<Header>,
    effects: Vec<BlockEffect>,
}

impl Ledger {
    pub(crate) fn restore(
        network: Network,
        epoch: Epoch,
        records: Vec<TxRecord>,
        rounds: Vec<RoundRecord>,
    ) -> Self {
        let mut ledger = Self {
            first_round: epoch.first_round(),
            coins: HashMap::new(),
            scripts: HashMap::new(),
            wanted: HashMap::new(),
            records: HashMap::new(),
            rounds: HashMap::new(),
            final_spends: HashMap::new(),
            open: BTreeSet::new(),
            blocks: HashMap::new(),
            headers: vec![genesis_block(network).header],
            effects: vec![BlockEffect::default()],
        };
        for RoundRecord { outpoint, round, release } in rounds {
            let state = RoundState { release, ..RoundState::new(round) };
            ledger.rounds.insert(outpoint, state);
        }
        for record in records {
            ledger.put(record, Duration::ZERO);
        }
        ledger
    }

    pub(crate) fn knows(&self, outpoint: &OutPoint) -> bool {
        self.coins.contains_key(outpoint)
    }

    pub(crate) fn record(&self, txid: &Txid) -> Option<&TxRecord> {
        self.records.get(txid)
    }

    /// The proof of a transaction that is final.
    pub(crate) fn proof(&self, txid: &Txid) -> Option<&FinalityProof> {
        self.records.get(txid)?.proof.as_ref()
    }

    pub(crate) fn coin(&self, outpoint: &OutPoint) -> Option<&UtxoRecord> {
        self.coins.get(outpoint).map(|coin| &coin.record)
    }

    pub(crate) fn is_coinbase(&self, outpoint: &OutPoint) -> bool {
        self.coins.get(outpoint).is_some_and(|coin| coin.coinbase)
    }

    /// The round that an outpoint is in at this node.
    pub(crate) fn round(&self, outpoint: &OutPoint) -> Round {
        self.rounds.get(outpoint).map_or(self.first_round, |state| state.round)
    }

    /// Whether this node promised to leave the round before and has no release for it yet: it may neither vote nor commit.
    pub(crate) fn is_pending(&self, outpoint: &OutPoint) -> bool {
        self.rounds.get(outpoint).is_some_and(RoundState::is_pending)
    }

    /// The latest release known.
    pub(crate) fn release(&self, outpoint: &OutPoint) -> Option<&ReleaseCertificate> {
        self.rounds.get(outpoint)?.release.as_ref()
    }

    /// What this node approved in the present round, and when.
    pub(crate) fn approved(&self, outpoint: &OutPoint) -> Option<(Txid, Duration)> {
        self.rounds.get(outpoint)?.approved
    }

    /// The highest certificate that this node committed to.
    pub(crate) fn committed(&self, outpoint: &OutPoint) -> Option<&ApprovalCertificate> {
        let (_, txid) = self.rounds.get(outpoint)?.committed?;
        self.records.get(&txid)?.certificate.as_ref()
    }

    /// What alone may be voted for in the present round, unless other inputs show for every certificate that it is void (V6).
    pub(crate) fn forced(&self, outpoint: &OutPoint) -> Option<Txid> {
        let state = self.rounds.get(outpoint)?;
        let candidates = match &state.release {
            Some(release) => release.highest.as_slice(),
            None => std::slice::from_ref(self.inherited(outpoint)?),
        };
        let is_void = |target: &VoteTarget| {
            target.inputs().keys().filter(|input| *input != outpoint).any(|input| self.voids(input, target))
        };
        candidates.iter().find(|one| !is_void(&one.target)).map(|one| one.target.txid())
    }

    /// The certificate that seals of the epoch before named for an outpoint, or a later one of the same transaction.
    fn inherited(&self, outpoint: &OutPoint) -> Option<&ApprovalCertificate> {
        self.records.get(&self.rounds.get(outpoint)?.inherited?)?.certificate.as_ref()
    }

    /// Whether what is known of an input shows that the target's transaction did not become final under it: a release or a final spend
    /// (V6), or a certificate for another transaction that the epoch before reached in a later round. A spend that is only in a block does not
    /// show it before it is deep: one block can be undone, and the target may be final all the while.
    fn voids(&self, input: &OutPoint, target: &VoteTarget) -> bool {
        let other = |txid: Txid| txid != target.txid();
        self.release(input).is_some_and(|release| release.voids(target))
            || self.spent_for_good(input).is_some_and(other)
            || self.inherited(input).is_some_and(|certificate| {
                other(certificate.target.txid())
                    && certificate.target.inputs().get(input) >= target.inputs().get(input)
            })
    }

    /// What this node ends its epoch with: what it has committed to and what may be final by it, and what is final, unless it is dead or
    /// deep in the chain.
    pub(crate) fn sealed(&self) -> Vec<SealedTransaction> {
        let settled = |record: &&TxRecord| {
            let in_chain = self.block_of(&record.target.txid()).is_some_and(|block| self.is_buried(block));
            let certified = record.certificate.as_ref().map(|certificate| &certificate.target);
            let open = match (&record.proof, certified) {
                (Some(_), _) => true,
                (None, Some(target)) => !target.inputs().keys().any(|input| self.voids(input, target)),
                (None, None) => false,
            };
            in_chain || !open
        };
        let mut records: Vec<&TxRecord> = self.records.values().filter(|record| !settled(record)).collect();
        records.sort_unstable_by_key(|record| record.target.txid());
        records
            .into_iter()
            .map(|record| SealedTransaction {
                txid: record.target.txid(),
                proposal: record.proposal.clone().filter(|_| record.certificate.is_some()),
                account: record.account.clone().filter(|_| record.certificate.is_some()),
                spent: if record.certificate.is_some() { record.spent.clone() } else { Vec::new() },
                certificate: record.certificate.clone(),
                proof: record.proof.clone(),
            })
            .collect()
    }

    /// The final or confirmed transaction that spends an outpoint.
    pub(crate) fn spent_by(&self, outpoint: &OutPoint) -> Option<Txid> {
        let confirmed = self.coin(outpoint).and_then(|coin| coin.spent).map(|spent| spent.txid);
        confirmed.or_else(|| self.final_spend(outpoint))
    }

    /// The transaction that spends an outpoint and stays, whatever happens to the last blocks: final, or deep in the chain.
    pub(crate) fn spent_for_good(&self, outpoint: &OutPoint) -> Option<Txid> {
        let deep = || self.coin(outpoint)?.spent.filter(|spent| self.is_buried(spent.block));
        self.final_spend(outpoint).or_else(|| deep().map(|spent| spent.txid))
    }

    fn is_buried(&self, block: BlockRef) -> bool {
        self.tip().height >= block.height.saturating_add(BURIED)
    }

    /// The final transaction that spends an outpoint.
    pub(crate) fn final_spend(&self, outpoint: &OutPoint) -> Option<Txid> {
        self.final_spends.get(outpoint).map(|spend| spend.txid)
    }

    /// Takes over a round; gives whether anything changed.
    pub(crate) fn put_round(&mut self, record: RoundRecord) {
        let RoundRecord { outpoint, round, release } = record;
        let first = self.first_round;
        let state = self.rounds.entry(outpoint).or_insert_with(|| RoundState::new(first));
        if round > state.round {
            (state.round, state.approved) = (round, None);
        }
        state.release = release;
        self.show_round(&outpoint);
    }

    /// Brings the record that subscribers see in line with the latest release: its round, and what holds the outpoint there.
    fn show_round(&mut self, outpoint: &OutPoint) {
        let inherited = self.rounds.get(outpoint).and_then(|state| state.inherited);
        let (round, forced) = match (self.release(outpoint), inherited) {
            (Some(release), _) => (release.round.next(), release.forced_txid()),
            (None, Some(txid)) => (self.first_round, Some(txid)),
            (None, None) => return,
        };
        if let Some(coin) = self.coins.get_mut(outpoint)
            && (coin.record.round < round || (coin.record.round == round && coin.record.lock.is_none()))
        {
            coin.record.round = round;
            coin.record.lock = forced.map(|txid| Lock { txid, round, locked_at: 0 });
            coin.record.votes = 0;
        }
    }

    /// Transactions that were voted for and may still become final.
    pub(crate) fn open(&self) -> &BTreeSet<Txid> {
        &self.open
    }

    pub(crate) fn close(&mut self, txid: &Txid) {
        self.open.remove(txid);
    }

    /// A planted bug: forgets final spends and what they locked.
    pub(crate) fn undo_finality(&mut self, outpoints: &[OutPoint]) {
        for outpoint in outpoints {
            if let Some(coin) = self.coins.get_mut(outpoint) {
                coin.record.spend = None;
            }
            self.rounds.remove(outpoint);
            self.final_spends.remove(outpoint);
        }
    }

    /// A planted bug: forgets a lock without anybody's promise.
    pub(crate) fn free_by_timer(&mut self, outpoint: &OutPoint, round: Round) {
        if let Some(state) = self.rounds.get_mut(outpoint).filter(|state| state.round == round) {
            state.approved = None;
        }
    }

    /// Outpoints whose release this node takes part in and does not have.
    pub(crate) fn pending(&self) -> Vec<OutPoint> {
        let mut pending: Vec<_> = self
            .rounds
            .iter()
            .filter(|(_, state)| state.is_pending())
            .map(|(outpoint, _)| *outpoint)
            .collect();
        pending.sort_unstable();
        pending
    }

    /// How many records are kept, for metrics and the memory bound.
    pub(crate) fn sizes(&self) -> (usize, usize, usize) {
        (self.records.len(), self.rounds.len(), self.open.len())
    }

    pub(crate) fn by_script(&self, script: &ScriptBuf) -> Vec<OutPoint> {
        self.scripts.get(script).map(|set| set.iter().copied().collect()).unwrap_or_default()
    }

    pub(crate) fn block_of(&self, txid: &Txid) -> Option<BlockRef> {
        self.blocks.get(txid).copied()
    }

    /// Has outputs of this script indexed from now on, if there is room. Gives the height from which its history in blocks is known.
    pub(crate) fn want(&mut self, script: &ScriptBuf) -> u32 {
        let from = self.history_of(script);
        if !script.is_p2tr() && self.wanted.len() < WANTED_MAX {
            self.wanted.entry(script.clone()).or_insert(from);
        }
        from
    }

    /// The height from which a script's history in blocks is known: what no index was asked for is known from the next block on at best.
    pub(crate) fn history_of(&self, script: &ScriptBuf) -> u32 {
        if script.is_p2tr() {
            return 0;
        }
        self.wanted.get(script).copied().unwrap_or_else(|| self.tip().height + 1)
    }

    /// Takes over a transaction's record; gives the outpoints whose facts changed.
    pub(crate) fn put(&mut self, record: TxRecord, now: Duration) -> Vec<OutPoint> {
        let txid = record.target.txid();
        let mut changed = Vec::new();
        let transaction = record.proof.as_ref().map(FinalityProof::transaction).cloned();
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
                self.final_spends.insert(*outpoint, FinalSpend { txid, kind: proof.kind() });
            }
            let Some(coin) = self.coins.get_mut(outpoint) else { continue };
            let round_of = |target: &VoteTarget| target.inputs().get(outpoint).copied();
            if let Some(round) = record.vote.as_ref().and_then(|vote| round_of(&vote.target))
                && round >= coin.record.round
            {
                coin.record.round = round;
                coin.record.lock = Some(Lock { txid, round, locked_at: record.locked_at });
            }
            if let Some(certificate) = &record.certificate
                && round_of(&certificate.target) == Some(coin.record.round)
            {
                coin.record.votes = u16::try_from(certificate.approvals.len()).unwrap_or(u16::MAX);
            }
            if let Some(proof) = &record.proof {
                coin.record.spend = Some(FinalSpend { txid, kind: proof.kind() });
            }
            changed.push(*outpoint);
        }
        if let (Some(transaction), Some(proof)) = (transaction, &record.proof) {
            let kind = proof.kind();
            for (output, vout) in transaction.output.iter().zip(0..) {
                let outpoint = OutPoint { txid, vout };
                self.add(outpoint, output, false);
                if let Some(coin) = self.coins.get_mut(&outpoint) {
                    coin.record.final_parent = Some(kind);
                    changed.push(outpoint);
                }
            }
        }
        if record.proof.is_some() {
            self.open.remove(&txid);
        } else if record.vote.is_some() || record.certificate.is_some() {
            self.open.insert(txid);
        }
        self.records.insert(txid, record);
        changed
    }

    /// What a record says of its inputs' rounds: approved in which, committed in which.
    fn put_round_facts(&mut self, outpoint: &OutPoint, record: &TxRecord, now: Duration) {
        let txid = record.target.txid();
        let voted = record.vote.as_ref().and_then(|vote| vote.target.inputs().get(outpoint));
        let committed = record.certificate.as_ref().and_then(|one| one.target.inputs().get(outpoint));
        if voted.is_none() && committed.is_none() {
            return;
        }
        let first = self.first_round;
        let state = self.rounds.entry(*outpoint).or_insert_with(|| RoundState::new(first));
        if voted == Some(&state.round) && state.approved.is_none() {
            state.approved = Some((txid, now));
        }
        if let Some(round) = committed
            && state.committed.is_none_or(|(known, _)| known <= *round)
        {
            state.committed = Some((*round, txid));
            if *round < first {
                state.inherited = Some(txid);
                self.show_round(outpoint);
            }
        }
    }

    fn add(&mut self, outpoint: OutPoint, output: &TxOut, coinbase: bool) -> &mut Coin {
        self.scripts.entry(output.script_pubkey.clone()).or_default().insert(outpoint);
        if !self.coins.contains_key(&outpoint) && self.rounds.contains_key(&outpoint) {
            self.insert_coin(outpoint, output, coinbase);
            self.show_round(&outpoint);
        }
        self.insert_coin(outpoint, output, coinbase)
    }

    fn insert_coin(&mut self, outpoint: OutPoint, output: &TxOut, coinbase: bool) -> &mut Coin {
        let spend = self.final_spends.get(&outpoint).copied();
        self.coins.entry(outpoint).or_insert_with(|| Coin {
            record: UtxoRecord {
                outpoint,
                value: output.value,
                script_pubkey: output.script_pubkey.clone(),
                tip_height: 0,
                created: None,
                final_parent: None,
                round: self.first_round,
                lock: None,
                votes: 0,
                spend,
                spent: None,
            },
            coinbase,
        })
    }

    /// A coin that the backend looked up.
    pub(crate) fn add_coin(&mut self, outpoint: OutPoint, found: ChainCoin) {
        let hash = self.block_hash(found.height);
        let tip = self.tip().height;
        let coin = self.add(outpoint, &found.output, found.coinbase);
        coin.coinbase = found.coinbase;
        coin.record.tip_height = tip;
        coin.record.created = hash.map(|hash| BlockRef { height: found.height, hash });
        // Its block may be undone.
        let effect = usize::try_from(found.height).ok().and_then(|height| self.effects.get_mut(height));
        if let Some(effect) = effect.filter(|effect| !effect.created.contains(&outpoint)) {
            effect.created.push(outpoint);
        }
    }

    /// A record as of the present tip.
    pub(crate) fn current(&self, outpoint: &OutPoint) -> Option<UtxoRecord> {
        let mut record = self.coin(outpoint)?.clone();
        record.tip_height = self.tip().height;
        Some(record)
    }

    pub(crate) fn tip(&self) -> BlockRef {
        let height = u32::try_from(self.headers.len() - 1).unwrap_or(u32::MAX);
        let hash = self.headers.last().map(Header::block_hash).expect("genesis is never removed");
        BlockRef { height, hash }
    }

    pub(crate) fn block_hash(&self, height: u32) -> Option<BlockHash> {
        self.headers.get(usize::try_from(height).ok()?).map(Header::block_hash)
    }

    pub(crate) fn headers(&self, from: u32, count: usize) -> Vec<Header> {
        let from = usize::try_from(from).unwrap_or(usize::MAX);
        self.headers.iter().skip(from).take(count).copied().collect()
    }

    /// Median time of the last eleven headers (BIP113).
    pub(crate) fn median_time(&self) -> u32 {
        let mut times: Vec<u32> = self.headers.iter().rev().take(11).map(|header| header.time).collect();
        times.sort_unstable();
        times.get(times.len() / 2).copied().unwrap_or(0)
    }

    pub(crate) fn connect(&mut self, block: &Block) -> Vec<OutPoint> {
        self.headers.push(block.header);
        let at = self.tip();
        let mut effect = BlockEffect::default();
        for transaction in &block.txdata {
            let txid = transaction.compute_txid();
            self.blocks.insert(txid, at);
            effect.txids.push(txid);
            for input in &transaction.input {
                if let Some(coin) = self.coins.get_mut(&input.previous_output) {
                    coin.record.spent = Some(ConfirmedSpend { txid, block: at });
                    effect.spent.push(input.previous_output);
                }
            }
            for (output, vout) in transaction.output.iter().zip(0..) {
                let outpoint = OutPoint { txid, vout };
                let script = &output.script_pubkey;
                if script.is_p2tr() || self.wanted.contains_key(script) || self.knows(&outpoint) {
                    let coin = self.add(outpoint, output, transaction.is_coinbase());
                    coin.coinbase = transaction.is_coinbase();
                    coin.record.created = Some(at);
                    effect.created.push(outpoint);
                }
            }
        }
        let changed = effect.created.iter().chain(&effect.spent).copied().collect();
        self.effects.push(effect);
        changed
    }

    pub(crate) fn disconnect(&mut self) -> Vec<OutPoint> {
        if self.headers.len() <= 1 {
            return Vec::new();
        }
        self.headers.pop();
        let Some(effect) = self.effects.pop() else { return Vec::new() };
        for txid in &effect.txids {
            self.blocks.remove(txid);
        }
        for outpoint in &effect.spent {
            if let Some(coin) = self.coins.get_mut(outpoint) {
                coin.record.spent = None;
            }
        }
        for outpoint in &effect.created {
            if let Some(coin) = self.coins.get_mut(outpoint) {
                coin.record.created = None;
            }
        }
        effect.created.into_iter().chain(effect.spent).collect()
    }

    pub(crate) fn unconfirmed(&self) -> Vec<Transaction> {
        let open = self.records.iter().filter(|(txid, _)| !self.blocks.contains_key(*txid));
        let open: std::collections::BTreeMap<_, _> =
            open.filter_map(|(txid, record)| Some((txid, record.proof.as_ref()?))).collect();
        open.into_values().map(|proof| proof.transaction().clone()).collect()
    }
}

#[cfg(test)]
mod tests;
