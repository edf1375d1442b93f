use super::*;
use crate::alone::{Alone, Claim};
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

fn take(words: &mut Words, node: u64, word: &UtxoRecord) -> Option<UtxoRecord> {
    words.take(LinkId(node), word, room(), NEEDED, None)
}

fn room() -> Claim {
    Alone::default().claim(LinkId(1), 0).expect("room")
}

/// Words of four nodes, one of which may be faulty.
fn told_after(words: &[(u64, UtxoRecord)]) -> (Words, Vec<UtxoRecord>) {
    let mut all = Words::default();
    let told = words.iter().filter_map(|(node, word)| take(&mut all, *node, word));
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
    assert!(take(&mut words, 1, &locked(1_000, 9, 0)).is_none());
    assert_eq!(words.told().expect("a coin").lock, None);
    // What honest nodes lock is told when the second of them says so, with a time that one of them may have.
    assert!(take(&mut words, 2, &locked(0, 2, 70)).is_none());
    let told = take(&mut words, 3, &locked(0, 2, 80)).expect("news");
    assert_eq!(told.lock.map(|lock| (lock.txid, lock.locked_at)), Some((txid(2), 80)));
    assert!(take(&mut words, 4, &locked(0, 2, 90)).is_none(), "only the clock differs");
    // A release ends it: of two nodes that are in a later round one is honest.
    let free = UtxoRecord { round: Round(1), ..coin() };
    let told = take(&mut words, 2, &free).expect("news");
    assert_eq!((told.round, told.lock), (Round(1), None));
    assert!(take(&mut words, 4, &free).is_none());
    // Nodes that are behind lock nothing again, nor does one that says so of the round that it is in now.
    assert!(take(&mut words, 3, &locked(0, 2, 80)).is_none());
    assert!(take(&mut words, 1, &locked(1, 9, 0)).is_none());
    assert!(take(&mut words, 2, &locked(1, 3, 0)).is_none());
    assert!(take(&mut words, 3, &locked(1, 3, 0)).is_some());
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
    assert!(take(&mut words, 1, &liar).is_none());
    let spent = UtxoRecord { tip_height: 11, spent: Some(by), ..coin() };
    let told = take(&mut words, 2, &spent).expect("the liar was right about that");
    assert_eq!((told.spent, told.created, told.spend), (Some(by), Some(block(5)), None));
    assert!(take(&mut words, 3, &spent).is_none(), "no news");
    let undone = UtxoRecord { tip_height: 12, spent: None, ..coin() };
    assert!(take(&mut words, 2, &undone).is_none());
    let told = take(&mut words, 3, &undone).expect("news");
    assert_eq!(told.spent, None);
}

#[test]
fn what_comes_with_a_proof_is_told_at_once_and_believed_when_two_say_so() {
    let (mut words, _) = told_after(&[(2, coin()), (3, coin())]);
    let spend = Some(FinalSpend { txid: txid(7), kind: FinalityKind::Enforced });
    let spent = UtxoRecord { spend, ..coin() };
    let shown = Some(Shown { final_parent: None, spend });
    assert!(take(&mut words, 1, &spent).is_none(), "a word is a word");
    let told = words.take(LinkId(1), &spent, room(), NEEDED, shown).expect("with its proof");
    assert_eq!(told.spend, spend);
    // If nobody else says so, readers hear that, too.
    let told = take(&mut words, 2, &coin()).expect("it does not stand");
    assert_eq!(told.spend, None);
    words.take(LinkId(1), &spent, room(), NEEDED, shown).expect("told again");
    assert!(take(&mut words, 2, &spent).is_none(), "believed now, and told before");
    assert_eq!(words.told().expect("a coin").spend, spend);

    // An output of a final transaction that nobody has heard of.
    let mut words = Words::default();
    let made = UtxoRecord { created: None, final_parent: Some(FinalityKind::Enforced), ..locked(3, 9, 0) };
    let made = UtxoRecord { tip_height: u32::MAX, ..made };
    let shown = Some(Shown { final_parent: Some(FinalityKind::Enforced), spend: None });
    let told = words.take(LinkId(1), &made, room(), NEEDED, shown).expect("with its proof");
    assert_eq!((told.final_parent, told.lock), (Some(FinalityKind::Enforced), None));
    assert_eq!((told.round, told.tip_height), (Round(0), 0), "the rest of the word is a word");
}

#[test]
fn a_node_that_comes_back_does_not_count_twice() {
    let (mut words, _) = told_after(&[(1, coin())]);
    words.forget(LinkId(1));
    assert!(take(&mut words, 5, &coin()).is_none());
}

#[test]
fn a_tip_that_some_reach_keeps_back_no_fact_that_others_agree_on() {
    let block = |height| Some(block(height));
    let liar = UtxoRecord { tip_height: u32::MAX, created: None, ..coin() };
    let ahead = UtxoRecord { tip_height: 105, created: block(104), ..coin() };
    let behind = UtxoRecord { tip_height: 104, created: block(104), ..coin() };
    let (_, told) = told_after(&[(1, liar), (2, ahead), (3, behind.clone()), (4, behind)]);
    assert_eq!(told.last().and_then(|coin| coin.created), block(104), "{told:?}");
}
