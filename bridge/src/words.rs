//! What each node says of one coin, and what of it is believed: facts that f + 1 of them say alike, so that one honest
//! node is among them (design, section 9). No f nodes make a coin look there, locked, spent or mined.
//!
//! What a proof shows goes out with the first copy, beside the proof. It is told and not believed: whoever verifies the
//! proof knows it, and for others f + 1 nodes have to say so.

use crate::{alone::Claim, tips::LinkId};
use bitcoin::{OutPoint, Txid};
use quorate_protocol::{
    Round,
    finality::{FinalityKind, FinalityProof},
    wire::{FinalSpend, Lock, UtxoRecord},
};
use std::{cmp::Reverse, collections::BTreeMap};

/// Proofs of one node about one coin: of what created it, and of what spends it. There are more if a block contradicts
/// one and another one takes its place.
const PROOFS_MAX: usize = 4;

/// A node's word.
#[derive(Clone, Debug)]
enum Word {
    /// What is believed, as of this tip.
    AsBelieved(u32),
    Other(Box<UtxoRecord>),
}

/// All words on one coin.
#[derive(Debug, Default)]
pub(crate) struct Words {
    said: BTreeMap<LinkId, (Word, Option<Claim>)>,
    believed: Option<UtxoRecord>,
    /// What readers were told, if that is something else.
    told: Option<Box<UtxoRecord>>,
    /// It was looked through once while it was not believed.
    looked_through: bool,
    /// Nodes whose proofs were told, each as often as there were.
    shown: Vec<LinkId>,
}

impl Words {
    pub(crate) fn is_believed(&self) -> bool {
        self.believed.is_some()
    }

    /// Whether it is believed that a transaction is final which created the coin or spends it.
    pub(crate) fn is_final(&self, txid: &Txid) -> bool {
        self.believed.as_ref().is_some_and(|coin| {
            coin.spend.is_some_and(|spend| spend.txid == *txid)
                || coin.final_parent.is_some() && coin.outpoint.txid == *txid
        })
    }

    /// Whether one more proof of a node may be told.
    pub(crate) fn shows(&mut self, link: LinkId) -> bool {
        let room = self.shown.iter().filter(|shown| **shown == link).count() < PROOFS_MAX;
        self.shown.extend(room.then_some(link));
        room
    }

    /// What readers know.
    pub(crate) fn told(&self) -> Option<&UtxoRecord> {
        self.told.as_deref().or(self.believed.as_ref())
    }

    /// Whether this has been asked before, of a coin that too few nodes speak of.
    pub(crate) fn is_old_news(&mut self) -> bool {
        std::mem::replace(&mut self.looked_through, true)
    }

    /// A node's stream is gone: it may come back as another one, and must not count twice. `false` if nobody else
    /// speaks of the coin, and it is not believed.
    pub(crate) fn forget(&mut self, link: LinkId) -> bool {
        self.said.remove(&link);
        self.shown.retain(|shown| *shown != link);
        self.is_believed() || !self.said.is_empty()
    }

    /// Takes a node's word, which comes with a proof that a transaction is final or without, and with room for what of
    /// it is not believed. Gives what is to be told now, if that is news or there is a proof to go with it.
    pub(crate) fn take(
        &mut self,
        link: LinkId,
        word: &UtxoRecord,
        claim: Claim,
        needed: usize,
        shown: Option<Shown>,
    ) -> Option<UtxoRecord> {
        let before = self.told().cloned();
        let before_this = std::mem::take(&mut self.said).into_iter();
        let mut words: BTreeMap<LinkId, (UtxoRecord, Option<Claim>)> = before_this
            .filter_map(|(link, (said, claim))| Some((link, (said.whole(self.believed.as_ref())?, claim))))
            .collect();
        words.insert(link, (word.clone(), Some(claim)));
        let all: Vec<&UtxoRecord> = words.values().map(|(word, _)| word).collect();
        self.believed = believed(&all, needed, self.believed.as_ref()).or(self.believed.take());
        let as_said = self.believed.as_ref();
        let kept = words.into_iter().map(|(link, (said, claim))| {
            let word = Word::of(said, as_said);
            let claim = claim.filter(|_| matches!(word, Word::Other(_)));
            (link, (word, claim))
        });
        self.said = kept.collect();
        let news = overlaid(self.believed.as_ref(), word, shown)?;
        let same = before.is_some_and(|told| is_same(&told, &news));
        if same && shown.is_none() {
            return None;
        }
        let differs = self.believed.as_ref().is_none_or(|believed| !is_same(believed, &news));
        self.told = differs.then(|| Box::new(news.clone()));
        Some(news)
    }
}

impl Word {
    fn of(said: UtxoRecord, believed: Option<&UtxoRecord>) -> Self {
        let same = believed.is_some_and(|believed| is_same(believed, &said));
        if same { Self::AsBelieved(said.tip_height) } else { Self::Other(Box::new(said)) }
    }

    fn whole(&self, believed: Option<&UtxoRecord>) -> Option<UtxoRecord> {
        match self {
            Self::AsBelieved(tip_height) => Some(UtxoRecord { tip_height: *tip_height, ..believed?.clone() }),
            Self::Other(said) => Some((**said).clone()),
        }
    }
}

/// Whether two records say the same, whatever the tip and the clock that they are of.
fn is_same(one: &UtxoRecord, other: &UtxoRecord) -> bool {
    let lock = |record: &UtxoRecord| record.lock.map(|lock| Lock { locked_at: 0, ..lock });
    lock(one) == lock(other)
        && UtxoRecord { tip_height: other.tip_height, lock: other.lock, ..one.clone() } == *other
}

/// What a proof shows of a coin, whatever the node says that sent it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shown {
    final_parent: Option<FinalityKind>,
    spend: Option<FinalSpend>,
}

impl Shown {
    /// `None` if the proof is not about this coin.
    pub(crate) fn of(proof: &FinalityProof, outpoint: &OutPoint) -> Option<Self> {
        let (txid, kind) = (proof.txid(), proof.kind());
        let final_parent = (txid == outpoint.txid).then_some(kind);
        let spend = proof.outpoints().any(|spent| spent == *outpoint).then_some(FinalSpend { txid, kind });
        (final_parent.is_some() || spend.is_some()).then_some(Self { final_parent, spend })
    }
}

/// What is believed, with what a proof shows besides.
fn overlaid(believed: Option<&UtxoRecord>, word: &UtxoRecord, shown: Option<Shown>) -> Option<UtxoRecord> {
    let mut news = match believed {
        Some(believed) => believed.clone(),
        // What the proof shows is with it; for the rest, it is not believed yet that there is such a coin.
        None if shown.is_some() => nothing_of(word),
        None => return None,
    };
    if let Some(Shown { final_parent, spend }) = shown {
        news.final_parent = news.final_parent.or(final_parent);
        news.spend = news.spend.or(spend);
    }
    Some(news)
}

/// What so many of these say alike. Facts that too few agree on stay as they are known.
fn believed(words: &[&UtxoRecord], needed: usize, known: Option<&UtxoRecord>) -> Option<UtxoRecord> {
    let output = |word: &UtxoRecord| (word.value, word.script_pubkey.clone());
    let alike =
        |one: &&&UtxoRecord| words.iter().filter(|word| output(word) == output(one)).count() >= needed;
    let first = words.iter().find(alike)?;
    let words: Vec<&UtxoRecord> =
        words.iter().copied().filter(|word| output(word) == output(first)).collect();
    let mut found = known.map_or_else(|| nothing_of(first), UtxoRecord::clone);
    let agreed = Agreed { words: &words, needed, as_of: found.tip_height };
    let created = agreed.on(|word| word.created);
    let conflicted = agreed.on(|word| word.conflicted);
    let spent = agreed.on(|word| word.spent);
    // As of the lowest tip of what they agree on: a higher one would keep back what others say next.
    let tips = [created.map(|(tip, _)| tip), conflicted.map(|(tip, _)| tip), spent.map(|(tip, _)| tip)];
    let tip_height = tips.into_iter().min().flatten().unwrap_or(0);
    found.tip_height = found.tip_height.max(tip_height);
    found.created = created.map_or(found.created, |(_, created)| created);
    found.conflicted = conflicted.map_or(found.conflicted, |(_, conflicted)| conflicted);
    found.spent = spent.map_or(found.spent, |(_, spent)| spent);
    // These do not end.
    found.final_parent = found.final_parent.or(agreed.on_some(|word| word.final_parent));
    found.spend = found.spend.or(agreed.on_some(|word| word.spend));
    agreed.lock(&mut found);
    Some(found)
}

/// An output of which nothing is known but that it is there.
fn nothing_of(word: &UtxoRecord) -> UtxoRecord {
    UtxoRecord {
        tip_height: 0,
        created: None,
        conflicted: None,
        final_parent: None,
        round: Round(0),
        lock: None,
        votes: 0,
        spend: None,
        spent: None,
        ..word.clone()
    }
}

/// The highest value that so many reach.
fn least_of_most<T: Ord + Copy>(values: impl Iterator<Item = T>, needed: usize) -> Option<T> {
    let mut values: Vec<T> = values.collect();
    values.sort_unstable_by_key(|value| Reverse(*value));
    values.get(needed.checked_sub(1)?).copied()
}

struct Agreed<'a> {
    words: &'a [&'a UtxoRecord],
    needed: usize,
    /// What is known is of this tip: nodes that are behind it undo nothing.
    as_of: u32,
}

impl Agreed<'_> {
    /// A fact of blocks: of two that enough nodes say, the one of the higher tip, as blocks can be undone.
    fn on<T: PartialEq + Ord + Copy>(&self, fact: impl Fn(&UtxoRecord) -> T) -> Option<(u32, T)> {
        let of = |value: T| {
            let tips = self.words.iter().filter(|word| fact(word) == value).map(|word| word.tip_height);
            Some((least_of_most(tips, self.needed)?, value))
        };
        let best = self.words.iter().filter_map(|word| of(fact(word))).max()?;
        (best.0 >= self.as_of).then_some(best)
    }

    /// A fact that does not end once it is one.
    fn on_some<T: PartialEq + Copy>(&self, fact: impl Fn(&UtxoRecord) -> Option<T>) -> Option<T> {
        let said = |value: &T| self.words.iter().filter(|word| fact(word) == Some(*value)).count();
        self.words.iter().filter_map(|word| fact(word)).find(|value| said(value) >= self.needed)
    }

    /// The highest round that enough nodes have reached, and what it is locked for there if as many say the same. As in
    /// [`UtxoRecord::join`], a lock stays until its round is over, and of two in one round any rule will do that all
    /// follow.
    fn lock(&self, found: &mut UtxoRecord) {
        let reached = least_of_most(self.words.iter().map(|word| word.round), self.needed);
        let Some(round) = reached.filter(|reached| *reached >= found.round) else { return };
        if round > found.round {
            (found.round, found.lock, found.votes) = (round, None, 0);
        }
        let here = || self.words.iter().filter(|word| word.round == round);
        let of = |txid: Txid| here().filter(move |word| word.lock.is_some_and(|lock| lock.txid == txid));
        let locks = here().filter_map(|word| word.lock).filter(|lock| of(lock.txid).count() >= self.needed);
        let Some(lock) = locks.chain(found.lock).min_by_key(|lock| lock.txid) else { return };
        let votes = least_of_most(of(lock.txid).map(|word| word.votes), self.needed);
        let times = of(lock.txid).filter_map(|word| word.lock).map(|lock| Reverse(lock.locked_at));
        let since = least_of_most(times, self.needed).map(|Reverse(since)| since);
        let known = found.lock.filter(|known| known.txid == lock.txid);
        found.votes = votes.unwrap_or(0).max(if known.is_some() { found.votes } else { 0 });
        let locked_at = known.map(|known| known.locked_at).or(since).unwrap_or(lock.locked_at);
        found.lock = Some(Lock { locked_at, ..lock });
    }
}

#[cfg(test)]
mod tests;
