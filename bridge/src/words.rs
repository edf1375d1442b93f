//! What each node says of one coin, and what of it is believed: facts that f + 1 of them say alike, so that one honest
//! node is among them (design, section 9). No f nodes make a coin look there, locked, spent or mined.
//!
//! What a proof shows goes out with the first copy, beside the proof. It is told and not believed: whoever verifies the
//! proof knows it, and for others f + 1 nodes have to say so.

use crate::tips::LinkId;
use bitcoin::Txid;
use quorate_protocol::{
    Round,
    wire::{Lock, UtxoRecord},
};
use std::{cmp::Reverse, collections::BTreeMap};

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
    said: BTreeMap<LinkId, Word>,
    believed: Option<UtxoRecord>,
    /// What readers were told, if that is something else.
    told: Option<Box<UtxoRecord>>,
}

impl Words {
    /// What readers know.
    pub(crate) fn told(&self) -> Option<&UtxoRecord> {
        self.told.as_deref().or(self.believed.as_ref())
    }

    /// A node's stream is gone: it may come back as another one, and must not count twice.
    pub(crate) fn forget(&mut self, link: LinkId) {
        self.said.remove(&link);
    }

    /// Takes a node's word, which comes with a proof that a transaction is final or without. Gives what is to be told
    /// now, if that is news or there is a proof to go with it.
    pub(crate) fn take(
        &mut self,
        link: LinkId,
        word: &UtxoRecord,
        needed: usize,
        proven: Option<Txid>,
    ) -> Option<UtxoRecord> {
        let before = self.told().cloned();
        let mut words: BTreeMap<LinkId, UtxoRecord> = self
            .said
            .iter()
            .filter_map(|(link, said)| Some((*link, said.whole(self.believed.as_ref())?)))
            .collect();
        words.insert(link, word.clone());
        let all: Vec<&UtxoRecord> = words.values().collect();
        self.believed = believed(&all, needed, self.believed.as_ref()).or(self.believed.take());
        let as_said = self.believed.as_ref();
        self.said = words.into_iter().map(|(link, said)| (link, Word::of(said, as_said))).collect();
        let news = overlaid(self.believed.as_ref(), word, proven)?;
        let same = before.is_some_and(|told| is_same(&told, &news));
        if same && proven.is_none() {
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

/// What is believed, with what a proof shows besides.
fn overlaid(believed: Option<&UtxoRecord>, word: &UtxoRecord, proven: Option<Txid>) -> Option<UtxoRecord> {
    let creates = proven == Some(word.outpoint.txid);
    let spends = word.spend.filter(|spend| proven == Some(spend.txid));
    let mut news = match believed {
        Some(believed) => believed.clone(),
        // What the proof shows is with it; for the rest, it is not believed yet that there is such a coin.
        None if proven.is_some() => UtxoRecord {
            created: None,
            conflicted: None,
            final_parent: None,
            lock: None,
            votes: 0,
            spend: None,
            spent: None,
            ..word.clone()
        },
        None => return None,
    };
    if creates {
        news.final_parent = news.final_parent.or(word.final_parent);
    }
    news.spend = news.spend.or(spends);
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
    found.tip_height = least_of_most(words.iter().map(|word| word.tip_height), needed).unwrap_or(0);
    let agreed = Agreed { words: &words, needed };
    found.created = agreed.on(|word| word.created).unwrap_or(found.created);
    found.conflicted = agreed.on(|word| word.conflicted).unwrap_or(found.conflicted);
    found.spent = agreed.on(|word| word.spent).unwrap_or(found.spent);
    // These do not end.
    found.final_parent = found.final_parent.or(agreed.on_some(|word| word.final_parent));
    found.spend = found.spend.or(agreed.on_some(|word| word.spend));
    if let Some((round, lock, votes)) = agreed.on_lock() {
        (found.round, found.lock, found.votes) = (round, lock, votes);
    }
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
}

impl Agreed<'_> {
    /// A fact of blocks: of two that enough nodes say, the one of the higher tip, as blocks can be undone.
    fn on<T: PartialEq + Ord + Copy>(&self, fact: impl Fn(&UtxoRecord) -> T) -> Option<T> {
        let of = |value: T| {
            let tips = self.words.iter().filter(|word| fact(word) == value).map(|word| word.tip_height);
            Some((least_of_most(tips, self.needed)?, value))
        };
        self.words.iter().filter_map(|word| of(fact(word))).max().map(|(_, value)| value)
    }

    /// A fact that does not end once it is one.
    fn on_some<T: PartialEq + Copy>(&self, fact: impl Fn(&UtxoRecord) -> Option<T>) -> Option<T> {
        let said = |value: &T| self.words.iter().filter(|word| fact(word) == Some(*value)).count();
        self.words.iter().filter_map(|word| fact(word)).find(|value| said(value) >= self.needed)
    }

    /// Round and lock: of the highest round that enough nodes are in alike. In one round nodes may have locked it for
    /// different transactions; any rule will do that all follow.
    fn on_lock(&self) -> Option<(Round, Option<Lock>, u16)> {
        let key = |word: &UtxoRecord| (word.round, word.lock.map(|lock| (lock.txid, lock.round)));
        let best = self
            .words
            .iter()
            .map(|word| key(word))
            .filter(|one| self.words.iter().filter(|word| key(word) == *one).count() >= self.needed)
            .max_by_key(|(round, lock)| (*round, lock.is_some(), lock.map(|(txid, _)| Reverse(txid))))?;
        let alike: Vec<&&UtxoRecord> = self.words.iter().filter(|word| key(word) == best).collect();
        let votes = least_of_most(alike.iter().map(|word| word.votes), self.needed)?;
        let times = alike.iter().filter_map(|word| word.lock).map(|lock| Reverse(lock.locked_at));
        let since = least_of_most(times, self.needed);
        let lock =
            best.1.zip(since).map(|((txid, round), Reverse(locked_at))| Lock { txid, round, locked_at });
        Some((best.0, lock, votes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bitcoin::{Amount, BlockHash, OutPoint, ScriptBuf, hashes::Hash as _};
    use quorate_protocol::{
        finality::FinalityKind,
        wire::{BlockRef, ConfirmedSpend, FinalSpend},
    };

    const NEEDED: usize = 2;

    fn txid(byte: u8) -> Txid {
        Txid::from_byte_array([byte; 32])
    }

    fn block(height: u32) -> BlockRef {
        BlockRef { height, hash: BlockHash::all_zeros() }
    }

    fn coin() -> UtxoRecord {
        UtxoRecord {
            outpoint: OutPoint { txid: txid(1), vout: 0 },
            value: Amount::from_sat(1),
            script_pubkey: ScriptBuf::new(),
            tip_height: 10,
            created: Some(block(5)),
            conflicted: None,
            final_parent: None,
            round: Round(0),
            lock: None,
            votes: 0,
            spend: None,
            spent: None,
        }
    }

    fn locked(round: u32, by: u8, locked_at: u64) -> UtxoRecord {
        let round = Round(round);
        UtxoRecord { round, lock: Some(Lock { txid: txid(by), round, locked_at }), votes: 1, ..coin() }
    }

    /// Words of four nodes, one of which may be faulty.
    fn told_after(words: &[(u64, UtxoRecord)]) -> (Words, Vec<UtxoRecord>) {
        let mut all = Words::default();
        let told = words.iter().filter_map(|(node, word)| all.take(LinkId(*node), word, NEEDED, None));
        let told = told.collect();
        (all, told)
    }

    #[test]
    fn one_node_makes_no_coin_and_two_do_and_the_others_are_no_news() {
        let (_, told) = told_after(&[(1, coin())]);
        assert!(told.is_empty());
        let (_, told) = told_after(&[(1, coin()), (1, coin()), (2, coin()), (3, coin()), (4, coin())]);
        assert_eq!(told, [coin()]);
        let rich = UtxoRecord { value: Amount::MAX_MONEY, ..coin() };
        let (_, told) = told_after(&[(1, rich), (2, coin()), (3, coin())]);
        assert_eq!(told, [coin()], "of two that say different things, the one that another one says, too");
    }

    #[test]
    fn a_lock_of_the_highest_round_that_one_node_tells_of_locks_nothing() {
        let honest = [(2, coin()), (3, coin()), (4, coin())];
        let (mut words, _) = told_after(&honest);
        assert!(words.take(LinkId(1), &locked(1_000, 9, 0), NEEDED, None).is_none());
        assert_eq!(words.told().expect("a coin").lock, None);
        // What honest nodes lock is told when the second of them says so, with a time that one of them may have.
        assert!(words.take(LinkId(2), &locked(0, 2, 70), NEEDED, None).is_none());
        let told = words.take(LinkId(3), &locked(0, 2, 80), NEEDED, None).expect("news");
        assert_eq!(told.lock.map(|lock| (lock.txid, lock.locked_at)), Some((txid(2), 80)));
        assert!(words.take(LinkId(4), &locked(0, 2, 90), NEEDED, None).is_none(), "only the clock differs");
        // A release ends it, at the second node, too.
        let free = UtxoRecord { round: Round(1), ..coin() };
        assert!(words.take(LinkId(2), &free, NEEDED, None).is_none());
        assert_eq!(words.take(LinkId(4), &free, NEEDED, None).expect("news").lock, None);
    }

    #[test]
    fn no_node_alone_mines_or_spends_and_an_undone_block_is_undone_when_two_say_so() {
        let (mut words, _) = told_after(&[(2, coin()), (3, coin())]);
        let by = ConfirmedSpend { txid: txid(7), block: block(11) };
        let liar = UtxoRecord {
            tip_height: u32::MAX,
            created: None,
            spent: Some(by),
            spend: Some(FinalSpend { txid: txid(7), kind: FinalityKind::Enforced }),
            ..coin()
        };
        assert!(words.take(LinkId(1), &liar, NEEDED, None).is_none());
        let spent = UtxoRecord { tip_height: 11, spent: Some(by), ..coin() };
        let told = words.take(LinkId(2), &spent, NEEDED, None).expect("the liar was right about that");
        assert_eq!((told.spent, told.created, told.spend), (Some(by), Some(block(5)), None));
        assert!(words.take(LinkId(3), &spent, NEEDED, None).is_none(), "no news");
        let undone = UtxoRecord { tip_height: 12, spent: None, ..coin() };
        assert!(words.take(LinkId(2), &undone, NEEDED, None).is_none());
        let told = words.take(LinkId(3), &undone, NEEDED, None).expect("news");
        assert_eq!(told.spent, None);
    }

    #[test]
    fn what_comes_with_a_proof_is_told_at_once_and_believed_when_two_say_so() {
        let (mut words, _) = told_after(&[(2, coin()), (3, coin())]);
        let spend = Some(FinalSpend { txid: txid(7), kind: FinalityKind::Enforced });
        let spent = UtxoRecord { spend, ..coin() };
        assert!(words.take(LinkId(1), &spent, NEEDED, None).is_none(), "a word is a word");
        let told = words.take(LinkId(1), &spent, NEEDED, Some(txid(7))).expect("with its proof");
        assert_eq!(told.spend, spend);
        // If nobody else says so, readers hear that, too.
        let told = words.take(LinkId(2), &coin(), NEEDED, None).expect("it does not stand");
        assert_eq!(told.spend, None);
        words.take(LinkId(1), &spent, NEEDED, Some(txid(7))).expect("told again");
        assert!(words.take(LinkId(2), &spent, NEEDED, None).is_none(), "believed now, and told before");
        assert_eq!(words.told().expect("a coin").spend, spend);

        // An output of a final transaction that nobody has heard of.
        let mut words = Words::default();
        let made =
            UtxoRecord { created: None, final_parent: Some(FinalityKind::Enforced), ..locked(3, 9, 0) };
        let told = words.take(LinkId(1), &made, NEEDED, Some(txid(1))).expect("with its proof");
        assert_eq!((told.final_parent, told.lock), (Some(FinalityKind::Enforced), None));
    }

    #[test]
    fn a_node_that_comes_back_does_not_count_twice() {
        let (mut words, _) = told_after(&[(1, coin())]);
        words.forget(LinkId(1));
        assert!(words.take(LinkId(5), &coin(), NEEDED, None).is_none());
    }
}
