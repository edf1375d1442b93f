//! What nodes say of one key, and what of it readers are told.
//!
//! Of a coin that is what f + 1 nodes say alike ([`Words`]), of a transaction's place in blocks, too. A proof verifies
//! itself, but which copy does is the wallet's to see, so the first of each of f + 1 nodes goes out, when it comes.

use crate::{
    alone::{Alone, Claim},
    tips::LinkId,
    words::{Shown, Words},
};
use bitcoin::{OutPoint, Txid};
use quorate_protocol::{
    finality::FinalityProof,
    wire::{Followed, KeyOutcome, TransactionStatus, UtxoRecord},
};
use std::collections::{BTreeMap, BTreeSet};

/// What is known of one key.
#[derive(Debug, Default)]
pub(crate) struct Facts {
    /// Nodes that have told of it.
    heard: BTreeMap<LinkId, Heard>,
    /// Addresses that enough of them followed when there were enough.
    followed: Option<Followed>,
    utxos: BTreeMap<OutPoint, Words>,
    /// Copies that differ: one that does not verify must not keep the good one back.
    proofs: BTreeMap<Txid, Vec<ProofCopy>>,
    status: Option<TransactionStatus>,
    /// Where nodes say that a block has it, or contradicts it.
    placed: BTreeMap<LinkId, TransactionStatus>,
}

/// How much a node knows of a key.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Heard {
    /// The height from which it knows its history.
    pub(crate) history_from: Option<u32>,
    /// The addresses that it follows, of an account.
    pub(crate) followed: Option<Followed>,
}

/// A node's copy of a proof, with the coin that it came with. The first one of each node counts, so that among f + 1
/// there is an honest node's.
#[derive(Debug)]
struct ProofCopy {
    link: LinkId,
    outpoint: OutPoint,
    proof: FinalityProof,
    /// The room that it takes until it is believed.
    claim: Option<Claim>,
}

/// What a node's word comes to.
#[derive(Debug)]
pub(crate) enum Taken {
    /// It is to be told.
    News(Box<UtxoRecord>, Option<FinalityProof>),
    /// Readers know it, or too few nodes say so.
    Nothing,
    /// There is no room: the node says too much that no other one does.
    Refused,
}

impl Facts {
    /// A node's stream is gone.
    pub(crate) fn forget(&mut self, link: LinkId) {
        self.heard.remove(&link);
        self.placed.remove(&link);
        self.forget_coins(|words| words.forget(link));
        let utxos = &self.utxos;
        self.proofs.retain(|txid, copies| {
            let believed =
                |copy: &ProofCopy| utxos.get(&copy.outpoint).is_some_and(|words| words.is_final(txid));
            copies.retain(|copy| copy.link != link || believed(copy));
            !copies.is_empty()
        });
    }

    /// Forgets all coins but these, and proofs that came with none of them. Gives whether there were any.
    fn forget_coins(&mut self, mut stays: impl FnMut(&mut Words) -> bool) -> bool {
        let before = self.utxos.len();
        self.utxos.retain(|_, words| stays(words));
        let some = self.utxos.len() < before;
        if some {
            let (named, utxos) = (self.named(0), &self.utxos);
            self.proofs.retain(|txid, copies| {
                named.contains(txid) || copies.iter().any(|copy| utxos.contains_key(&copy.outpoint))
            });
        }
        some
    }

    /// A node has told all that it knows at present.
    pub(crate) fn hear(&mut self, link: LinkId, heard: Heard, needed: usize) {
        self.heard.insert(link, heard);
        self.count_followed(needed);
    }

    /// A node follows more addresses than before.
    pub(crate) fn follow(&mut self, link: LinkId, followed: Followed, needed: usize) {
        if let Some(heard) = self.heard.get_mut(&link) {
            heard.followed = Some(followed);
            self.count_followed(needed);
        }
    }

    /// The addresses that 2f + 1 nodes follow, or all that have told: f + 1 honest ones among them tell of each coin.
    pub(crate) fn followed(&self) -> Option<Followed> {
        self.followed
    }

    /// While fewer than f + 1 have told, what is known stays: one of them alone has no say.
    fn count_followed(&mut self, needed: usize) {
        let known: Vec<Followed> = self.heard.values().filter_map(|heard| heard.followed).collect();
        let reach = |of: fn(&Followed) -> u32| {
            let mut reach: Vec<u32> = known.iter().map(of).collect();
            reach.sort_unstable_by(|one, other| other.cmp(one));
            reach.get((2 * (needed - 1)).min(known.len().saturating_sub(1))).copied()
        };
        if known.len() >= needed
            && let (Some(receive), Some(change)) = (reach(|one| one.receive), reach(|one| one.change))
        {
            self.followed = Some(Followed { receive, change });
        }
    }

    /// Whether something was said of a coin.
    pub(crate) fn knows(&self, outpoint: &OutPoint) -> bool {
        self.utxos.contains_key(outpoint)
    }

    /// How many coins something is said of.
    #[cfg(test)]
    pub(crate) fn coins(&self) -> usize {
        self.utxos.len()
    }

    /// And how many copies of proofs there are.
    #[cfg(test)]
    pub(crate) fn proofs(&self) -> usize {
        self.proofs.values().map(Vec::len).sum()
    }

    /// All nodes are asked again.
    pub(crate) fn hear_anew(&mut self) {
        self.heard.clear();
    }

    /// How many nodes have.
    pub(crate) fn heard(&self) -> usize {
        self.heard.len()
    }

    /// What readers know, without coins that blocks below a height spend.
    pub(crate) fn snapshot(&self, needed: usize, since: u32) -> KeyOutcome {
        let named = self.named(since);
        let copies = self.proofs.iter().filter(|(txid, _)| named.contains(*txid));
        let first = copies.filter_map(|(_, copies)| copies.first());
        KeyOutcome::Snapshot {
            utxos: self.told(since).cloned().collect(),
            proofs: first.map(|copy| copy.proof.clone()).collect(),
            status: self.status.clone(),
            history_from: self.history_from(needed),
            followed: self.followed,
        }
    }

    /// What has to follow a snapshot, each with its coin: copies of its proofs that differ, and proofs that no coin of
    /// it names.
    pub(crate) fn other_copies(&self, since: u32) -> Vec<(UtxoRecord, FinalityProof)> {
        let named = self.named(since);
        let in_snapshot = |txid: &Txid| usize::from(named.contains(txid));
        let others = self.proofs.iter().flat_map(|(txid, copies)| copies.iter().skip(in_snapshot(txid)));
        let with_coin = |copy: &ProofCopy| {
            let utxo = self.utxos.get(&copy.outpoint)?.told().filter(|utxo| !is_spent_below(utxo, since))?;
            Some((utxo.clone(), copy.proof.clone()))
        };
        others.filter_map(with_coin).collect()
    }

    fn told(&self, since: u32) -> impl Iterator<Item = &UtxoRecord> {
        self.utxos.values().filter_map(Words::told).filter(move |utxo| !is_spent_below(utxo, since))
    }

    /// Forgets coins that blocks below a height spend, those that too few nodes speak of since this was last called,
    /// and proofs that are of nothing else. `true` if there were any.
    pub(crate) fn forget_below(&mut self, height: u32) -> bool {
        self.forget_coins(|words| match words.told() {
            Some(utxo) if is_spent_below(utxo, height) => false,
            _ => words.is_believed() || !words.is_old_news(),
        })
    }

    /// Transactions that coins of a snapshot name.
    fn named(&self, since: u32) -> BTreeSet<Txid> {
        let of = |utxo: &UtxoRecord| [Some(utxo.outpoint.txid), utxo.spend.map(|spend| spend.txid)];
        self.told(since).flat_map(of).flatten().collect()
    }

    /// The height from which so many nodes know the history: no few of them make it look longer.
    fn history_from(&self, needed: usize) -> Option<u32> {
        let mut known: Vec<u32> = self.heard.values().filter_map(|heard| heard.history_from).collect();
        known.sort_unstable();
        known.get(needed.checked_sub(1)?).copied()
    }

    /// A node's word on a coin.
    pub(crate) fn take_utxo(
        &mut self,
        link: LinkId,
        utxo: &UtxoRecord,
        proof: Option<FinalityProof>,
        needed: usize,
        alone: &mut Alone,
    ) -> Taken {
        let outpoint = utxo.outpoint;
        // Room for both before anything changes: what is told twice is the script.
        let room = proof.as_ref().map(|proof| alone.claim(link, proof.transaction().total_size()));
        let claim = alone.claim(link, 2 * utxo.script_pubkey.len());
        let (Some(claim), None | Some(Some(_))) = (claim, &room) else { return Taken::Refused };
        let shown = proof.as_ref().and_then(|proof| Shown::of(proof, &outpoint));
        let words = self.utxos.entry(outpoint).or_default();
        let new_proof = proof.filter(|_| shown.is_some()).filter(|proof| {
            let copies = self.proofs.entry(proof.txid()).or_default();
            let known = copies.iter().any(|copy| copy.link == link || copy.proof == *proof);
            let new = copies.len() < needed && !known && words.shows(link);
            let copy = || ProofCopy { link, outpoint, proof: proof.clone(), claim: room.flatten() };
            copies.extend(new.then(copy));
            new
        });
        let news = words.take(link, utxo, claim, needed, shown.filter(|_| new_proof.is_some()));
        let named = [Some(outpoint.txid), utxo.spend.map(|spend| spend.txid)];
        for txid in named.into_iter().flatten().filter(|txid| words.is_final(txid)) {
            let copies = self.proofs.get_mut(&txid).into_iter().flatten();
            copies.for_each(|copy| copy.claim = None);
        }
        news.map_or(Taken::Nothing, |news| Taken::News(Box::new(news), new_proof))
    }

    /// A node's word on a transaction. That a block has it, or contradicts it, has to be said by f + 1 nodes; what
    /// comes before that is told as it comes. Gives whether it is news.
    pub(crate) fn take_status(&mut self, link: LinkId, status: &TransactionStatus, needed: usize) -> bool {
        if rank(status) == PLACED {
            self.placed.insert(link, status.clone());
        } else {
            self.placed.remove(&link);
        }
        let said = |what: &TransactionStatus| self.placed.values().filter(|said| *said == what).count();
        // No few nodes place it, nor undo what enough others say.
        let placed = |known: &TransactionStatus| rank(known) == PLACED && said(known) >= needed;
        let too_few = rank(status) == PLACED && !placed(status);
        if too_few || rank(status) < PLACED && self.status.as_ref().is_some_and(placed) {
            return false;
        }
        // The chain has the last word, and a reorganisation can take it back.
        let turns = |known: &TransactionStatus| {
            let is_final = rank(known).min(rank(status)) >= FINAL;
            is_final && std::mem::discriminant(known) == std::mem::discriminant(status) && known != status
                || is_final && is_conflict(known) != is_conflict(status)
        };
        if self.status.as_ref().is_some_and(|known| rank(known) >= rank(status) && !turns(known)) {
            return false;
        }
        self.status = Some(status.clone());
        true
    }
}

fn is_spent_below(utxo: &UtxoRecord, height: u32) -> bool {
    utxo.spent.is_some_and(|spent| spent.block.height < height)
}

fn is_conflict(status: &TransactionStatus) -> bool {
    matches!(status, TransactionStatus::Conflicted { .. })
}

/// Rank of what is final.
const FINAL: u8 = 120;
/// Rank of what stands in a block.
const PLACED: u8 = 122;

fn rank(status: &TransactionStatus) -> u8 {
    match status {
        TransactionStatus::Pending => 0,
        TransactionStatus::Voting { votes, .. } => 1 + u8::try_from(*votes).unwrap_or(100).min(100),
        TransactionStatus::Approved => 110,
        TransactionStatus::Signing { .. } => 111,
        TransactionStatus::Failed { .. }
        | TransactionStatus::Rejected { .. }
        | TransactionStatus::AbortedByzantine { .. } => 112,
        TransactionStatus::Signed { .. } => FINAL,
        TransactionStatus::Broadcasting { .. } => 121,
        TransactionStatus::Confirmed { .. } | TransactionStatus::Conflicted { .. } => PLACED,
    }
}
