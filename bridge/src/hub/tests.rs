use super::*;
use crate::alone::{ALONE_BYTES_MAX, OVERHEAD_BYTES};
use bitcoin::{Amount, BlockHash, OutPoint, ScriptBuf, hashes::Hash as _};
use quorate_protocol::{
    AccountId, Round,
    wire::{BlockRef, ConfirmedSpend, Envelope, FinalSpend, Lock, decode},
};
use std::collections::BTreeMap;

fn txid(byte: u8) -> Txid {
    Txid::from_byte_array([byte; 32])
}

fn utxo(lock: bool) -> UtxoRecord {
    UtxoRecord {
        outpoint: OutPoint { txid: txid(1), vout: 0 },
        value: Amount::from_sat(1),
        script_pubkey: ScriptBuf::new(),
        tip_height: 1,
        created: None,
        conflicted: None,
        final_parent: None,
        round: Round(0),
        lock: lock.then_some(Lock { txid: txid(2), round: Round(0), locked_at: 5 }),
        votes: 0,
        spend: None,
        spent: None,
    }
}

const NOW: Duration = Duration::ZERO;

fn hub() -> (Hub, SubscriptionKey) {
    let mut hub = Hub::new(1);
    hub.take_tip(LinkId(1), ChainTip { block: BlockRef { height: 1, hash: BlockHash::all_zeros() } });
    hub.open(WalletId(1), None);
    (hub, SubscriptionKey::Script(ScriptBuf::new()))
}

fn next(hub: &mut Hub) -> Option<(Option<u64>, ServerMessage)> {
    let delivery = hub.poll_delivery()?;
    let Envelope { id, body } = decode(delivery.frame.0.as_bytes()).expect("a message");
    Some((id, body))
}

/// A node's answer: the coin is there and free.
fn told_free(key: SubscriptionKey) -> KeyResult {
    let (utxos, proofs) = (vec![utxo(false)], vec![]);
    KeyResult {
        key,
        outcome: KeyOutcome::Snapshot { utxos, proofs, status: None, history_from: Some(0), followed: None },
    }
}

/// The next message: a snapshot of one key.
fn snapshot(hub: &mut Hub) -> (Vec<UtxoRecord>, Vec<FinalityProof>) {
    let Some((_, ServerMessage::UTXOSubscribed { results, .. })) = next(hub) else { panic!("no answer") };
    let [KeyResult { outcome: KeyOutcome::Snapshot { utxos, proofs, .. }, .. }] = &results[..] else {
        panic!("no snapshot")
    };
    (utxos.clone(), proofs.clone())
}

fn call(keys: &[SubscriptionKey]) -> Subscription {
    Subscription { keys: keys.to_vec(), accounts: BTreeMap::new(), since: 0 }
}

/// What nodes are asked for.
fn asked(questions: Vec<ClientMessage>) -> Vec<SubscriptionKey> {
    let keys = |question| {
        let ClientMessage::UTXOSubscribe { keys, .. } = question else { panic!("another question") };
        keys
    };
    questions.into_iter().flat_map(keys).collect()
}

/// Keys that a node whose stream is new is asked for.
fn followed(hub: &Hub) -> usize {
    asked(hub.questions()).len()
}

fn subscribe(hub: &mut Hub, key: &SubscriptionKey) {
    let call = call(std::slice::from_ref(key));
    let (refused, question) = hub.subscribe(NOW, WalletId(1), &call);
    for key in asked(question) {
        hub.take_result(LinkId(1), 0, told_free(key));
    }
    hub.answer_subscription(WalletId(1), Some(1), &call, &refused);
}

#[test]
fn the_first_copy_goes_out_and_the_others_do_not() {
    let (mut hub, key) = hub();
    subscribe(&mut hub, &key);
    assert!(matches!(next(&mut hub), Some((Some(1), ServerMessage::UTXOSubscribed { .. }))));
    for node in 1..=7 {
        hub.notify(LinkId(node), &key, &utxo(true), None);
    }
    assert!(matches!(next(&mut hub), Some((None, ServerMessage::UTXOStateNotification { .. }))));
    assert!(next(&mut hub).is_none());
    assert_eq!(hub.duplicates, 6);
}

#[test]
fn a_broken_proof_that_comes_first_does_not_keep_the_good_one_back() {
    let mut hub = Hub::new(4);
    hub.take_tip(LinkId(1), ChainTip { block: BlockRef { height: 1, hash: BlockHash::all_zeros() } });
    hub.take_tip(LinkId(2), ChainTip { block: BlockRef { height: 1, hash: BlockHash::all_zeros() } });
    hub.open(WalletId(1), None);
    let key = SubscriptionKey::Script(ScriptBuf::new());
    subscribe(&mut hub, &key);
    while next(&mut hub).is_some() {}
    let transaction = bitcoin::Transaction {
        version: bitcoin::transaction::Version::TWO,
        lock_time: bitcoin::absolute::LockTime::ZERO,
        input: Vec::new(),
        output: Vec::new(),
    };
    let made = OutPoint { txid: transaction.compute_txid(), vout: 0 };
    let coin = UtxoRecord { outpoint: made, ..utxo(false) };
    let proof = |round: u32| FinalityProof::Attested {
        transaction: transaction.clone(),
        rounds: vec![Round(round)],
        commits: BTreeMap::new(),
    };
    let told = |hub: &mut Hub, node: u64, copy: u32| {
        hub.notify(LinkId(node), &key, &coin, Some(proof(copy)));
        match next(hub) {
            Some((_, ServerMessage::UTXOStateNotification { proof, .. })) => proof.is_some(),
            _ => false,
        }
    };
    assert!(told(&mut hub, 1, 7), "the broken one");
    assert!(!told(&mut hub, 1, 8) && !told(&mut hub, 1, 9), "one of each node");
    assert!(told(&mut hub, 2, 0), "the good one");
    assert!(!told(&mut hub, 3, 0) && !told(&mut hub, 3, 7), "each once");
    assert!(!told(&mut hub, 4, 5), "copies of f + 1 nodes have an honest one among them: no more are told");
    // A proof that is not about a coin shows nothing of it.
    hub.notify(LinkId(1), &key, &utxo(false), Some(proof(6)));
    assert!(next(&mut hub).is_none());

    // Who comes later is given both.
    hub.open(WalletId(2), None);
    let keys = [key.clone()];
    let (refused, _) = hub.subscribe(NOW, WalletId(2), &call(&keys));
    hub.answer_subscription(WalletId(2), None, &call(&keys), &refused);
    assert_eq!(snapshot(&mut hub).1, [proof(7)]);
    let Some((_, ServerMessage::UTXOStateNotification { proof: other, .. })) = next(&mut hub) else {
        panic!("the other copy")
    };
    assert_eq!(other.as_deref(), Some(&proof(0)));
}

#[test]
fn a_change_before_the_snapshot_is_in_the_snapshot() {
    let (mut hub, key) = hub();
    let keys = [key.clone()];
    let (refused, question) = hub.subscribe(NOW, WalletId(1), &call(&keys));
    assert_eq!(asked(question), keys);
    assert!(!hub.is_ready(&keys));
    hub.notify(LinkId(2), &key, &utxo(true), None);
    hub.take_result(LinkId(1), 0, told_free(key.clone()));
    assert!(hub.is_ready(&keys));
    hub.answer_subscription(WalletId(1), None, &call(&keys), &refused);
    let (utxos, _) = snapshot(&mut hub);
    assert!(utxos[0].lock.is_some(), "the newer fact of another node is not lost");
}

#[test]
fn a_session_that_lost_news_of_a_key_hears_no_more_of_it_until_it_subscribes_anew() {
    let (mut hub, key) = hub();
    subscribe(&mut hub, &key);
    while next(&mut hub).is_some() {}
    hub.mute(WalletId(1), &key);
    hub.notify(LinkId(1), &key, &utxo(true), None);
    assert!(next(&mut hub).is_none());
    subscribe(&mut hub, &key);
    let (utxos, _) = snapshot(&mut hub);
    assert!(utxos[0].lock.is_some(), "the new snapshot has what was lost");
}

#[test]
fn a_conflict_and_its_end_go_out_once_each() {
    let (mut hub, _) = hub();
    let key = SubscriptionKey::Txid(txid(1));
    subscribe(&mut hub, &key);
    while next(&mut hub).is_some() {}
    let block = BlockRef { height: 2, hash: BlockHash::all_zeros() };
    let conflicted = TransactionStatus::Conflicted { by: ConfirmedSpend { txid: txid(2), block } };
    let confirmed = TransactionStatus::Confirmed { block };
    for status in [TransactionStatus::Broadcasting { refusal: None }, conflicted, confirmed] {
        for _node in 0..3 {
            hub.take_status(LinkId(1), txid(1), &status);
        }
        let Some((_, ServerMessage::TransactionStatus { status: told, .. })) = next(&mut hub) else {
            panic!("{status:?}")
        };
        assert_eq!(told, status);
        assert!(next(&mut hub).is_none());
    }
}

#[test]
fn the_last_one_to_leave_ends_the_interest() {
    let (mut hub, key) = hub();
    subscribe(&mut hub, &key);
    assert_eq!(hub.unsubscribe(WalletId(1), std::slice::from_ref(&key)), (1, vec![]));
    assert!(hub.close(WalletId(1)).is_empty());
    assert_eq!((hub.key_count(), followed(&hub)), (0, 1), "it is followed for some time");
    assert!(hub.sweep(NOW).is_empty());
    assert_eq!(hub.sweep(NOW), [key]);
    assert!(hub.questions().is_empty());
}

#[test]
fn who_waits_for_a_snapshot_loses_nothing_when_others_leave() {
    let (mut hub, key) = hub();
    hub.open(WalletId(2), None);
    let keys = [key.clone()];
    let (refused, question) = hub.subscribe(NOW, WalletId(1), &call(&keys));
    assert_eq!(asked(question), keys);
    hub.subscribe(NOW, WalletId(2), &call(&keys));
    assert_eq!(hub.close(WalletId(2)), [], "the other one still wants it");
    hub.take_result(LinkId(1), 0, told_free(key.clone()));
    hub.answer_subscription(WalletId(1), None, &call(&keys), &refused);
    assert_eq!(snapshot(&mut hub).0, [utxo(false)]);
}

#[test]
fn who_ends_a_subscription_before_its_snapshot_is_told_nothing_and_leaves_nothing() {
    let (mut hub, key) = hub();
    hub.open(WalletId(2), None);
    let keys = [key.clone()];
    hub.subscribe(NOW, WalletId(2), &call(&keys));
    let (refused, _) = hub.subscribe(NOW, WalletId(1), &call(&keys));
    assert_eq!(hub.unsubscribe(WalletId(1), &keys), (1, vec![]));
    hub.answer_subscription(WalletId(1), None, &call(&keys), &refused);
    let Some((_, ServerMessage::UTXOSubscribed { results, .. })) = next(&mut hub) else {
        panic!("no answer")
    };
    assert!(matches!(&results[0].outcome, KeyOutcome::Error(error) if error.retry));
    hub.notify(LinkId(1), &key, &utxo(true), None);
    assert!(next(&mut hub).is_none());
    assert_eq!(hub.close(WalletId(2)), keys, "no node had told of it yet");
    assert_eq!(hub.key_count(), 0);
}

#[test]
fn no_more_than_so_many_keys_are_followed_for_nobody() {
    let (mut hub, _) = hub();
    let keys = |from: u32| -> Vec<SubscriptionKey> {
        let key = |vout| SubscriptionKey::Outpoint(OutPoint { txid: txid(3), vout });
        (from..from + 8_192).map(key).collect()
    };
    for round in 0..5 {
        let keys = keys(round * 8_192);
        hub.open(WalletId(7), None);
        let (_, question) = hub.subscribe(NOW, WalletId(7), &call(&keys));
        for key in asked(question) {
            let outcome = KeyOutcome::Snapshot {
                utxos: vec![],
                proofs: vec![],
                status: None,
                history_from: None,
                followed: None,
            };
            hub.take_result(LinkId(1), 0, KeyResult { key, outcome });
        }
        let ended = hub.close(WalletId(7)).len();
        assert_eq!(ended, if round < 4 { 0 } else { 8_192 });
    }
    assert_eq!(followed(&hub), IDLE_MAX);
}

#[test]
fn what_enough_nodes_say_of_a_block_is_not_undone_by_one() {
    let mut hub = Hub::new(4);
    (1..=2).for_each(|link| {
        hub.take_tip(LinkId(link), ChainTip { block: BlockRef { height: 1, hash: BlockHash::all_zeros() } });
    });
    hub.open(WalletId(1), None);
    let key = SubscriptionKey::Txid(txid(1));
    subscribe(&mut hub, &key);
    while next(&mut hub).is_some() {}
    let by = ConfirmedSpend { txid: txid(9), block: BlockRef { height: 1, hash: BlockHash::all_zeros() } };
    let conflicted = TransactionStatus::Conflicted { by };
    let alive = TransactionStatus::Broadcasting { refusal: None };
    hub.take_status(LinkId(1), txid(1), &conflicted);
    assert!(next(&mut hub).is_none(), "one node's word");
    hub.take_status(LinkId(2), txid(1), &conflicted);
    hub.take_status(LinkId(3), txid(1), &conflicted);
    assert!(matches!(next(&mut hub), Some((_, ServerMessage::TransactionStatus { .. }))));
    hub.take_status(LinkId(1), txid(1), &alive);
    assert!(next(&mut hub).is_none(), "two others still say so");
    hub.take_status(LinkId(2), txid(1), &alive);
    assert!(
        matches!(next(&mut hub), Some((_, ServerMessage::TransactionStatus { status, .. })) if status == alive)
    );
    hub.take_status(LinkId(1), txid(1), &conflicted);
    assert!(matches!(next(&mut hub), Some((_, ServerMessage::TransactionStatus { .. }))), "two again");
}

/// A coin of four nodes' words: created at one height, spent at another.
fn spent(byte: u8, height: u32) -> UtxoRecord {
    let block = |height| BlockRef { height, hash: BlockHash::all_zeros() };
    let spent = Some(ConfirmedSpend { txid: txid(byte + 100), block: block(height) });
    let outpoint = OutPoint { txid: txid(byte), vout: 0 };
    UtxoRecord { outpoint, tip_height: height, created: Some(block(1)), spent, ..utxo(false) }
}

fn tell(hub: &mut Hub, key: &SubscriptionKey, utxos: &[UtxoRecord]) {
    for link in 1..=3 {
        let (utxos, proofs, status, history_from) = (utxos.to_vec(), vec![], None, Some(0));
        let outcome = KeyOutcome::Snapshot { utxos, proofs, status, history_from, followed: None };
        hub.take_result(LinkId(link), 0, KeyResult { key: key.clone(), outcome });
    }
}

#[test]
fn what_was_spent_long_ago_is_forgotten_and_asked_for_again_when_somebody_wants_it() {
    let mut hub = Hub::new(4);
    let tip = |height| ChainTip { block: BlockRef { height, hash: BlockHash::all_zeros() } };
    (1..=2).for_each(|link| hub.take_tip(LinkId(link), tip(1_000)));
    hub.open(WalletId(1), None);
    let key = SubscriptionKey::Account(AccountId([7; 32]));
    let keys = [key.clone()];
    let whole = call(&keys);
    assert_eq!(asked(hub.subscribe(NOW, WalletId(1), &whole).1), keys);
    let (old, new) = (spent(1, 700), spent(2, 900));
    tell(&mut hub, &key, &[old.clone(), new.clone()]);
    hub.answer_subscription(WalletId(1), None, &whole, &HashMap::new());
    assert_eq!(snapshot(&mut hub).0, [old.clone(), new.clone()]);

    // Who knows more is told less, and for that nobody is asked.
    hub.open(WalletId(2), None);
    let recent = Subscription { since: 800, ..call(&keys) };
    assert!(hub.subscribe(NOW, WalletId(2), &recent).1.is_empty());
    hub.answer_subscription(WalletId(2), None, &recent, &HashMap::new());
    assert_eq!(snapshot(&mut hub).0, std::slice::from_ref(&new));

    hub.sweep(NOW);
    assert!(
        hub.subscribe(NOW, WalletId(2), &recent).1.is_empty(),
        "what is left is enough for who knows the rest"
    );
    let Some(ClientMessage::UTXOSubscribe { since, .. }) = hub.questions().pop() else {
        panic!("a question")
    };
    assert_eq!(since, Some(1_000 - UNDO_BLOCKS), "nor is a node told to say it again");
    hub.notify(LinkId(1), &key, &old, None);
    assert!(next(&mut hub).is_none(), "who says it all the same is not heard");
    let (_, questions) = hub.subscribe(NOW, WalletId(2), &whole);
    assert!(matches!(&questions[..], [ClientMessage::UTXOSubscribe { since: None, .. }]), "{questions:?}");
    assert!(!hub.is_ready(&keys), "the nodes are asked");
    tell(&mut hub, &key, &[old.clone(), new.clone()]);
    hub.answer_subscription(WalletId(2), None, &whole, &HashMap::new());
    let told = std::iter::from_fn(|| next(&mut hub)).find_map(|(_, message)| {
        let ServerMessage::UTXOSubscribed { results, .. } = message else { return None };
        results[0].utxos().map(<[UtxoRecord]>::to_vec)
    });
    assert_eq!(told, Some(vec![old, new]));
}

#[test]
fn what_one_node_alone_says_is_bounded_and_goes_with_its_stream() {
    let mut hub = Hub::new(4);
    hub.open(WalletId(1), None);
    let key = SubscriptionKey::Account(AccountId([7; 32]));
    hub.subscribe(NOW, WalletId(1), &call(std::slice::from_ref(&key)));
    let script = ScriptBuf::from_bytes(vec![0; 1 << 20]);
    let fits = ALONE_BYTES_MAX / (2 * script.len() + OVERHEAD_BYTES);
    let coin = |vout: usize, script: &ScriptBuf| {
        let (vout, script_pubkey) = (u32::try_from(vout).expect("few"), script.clone());
        UtxoRecord { outpoint: OutPoint { txid: txid(9), vout }, script_pubkey, ..utxo(false) }
    };
    let held = |hub: &Hub| hub.interests[&key].facts.coins();
    for vout in 0..fits + 10 {
        assert_eq!(hub.notify(LinkId(1), &key, &coin(vout, &script), None), vout < fits);
    }
    assert_eq!(held(&hub), fits);
    // It has not told of a key of which it could not say all, and what others say is heard all the same.
    let small = coin(fits + 10, &ScriptBuf::new());
    let snapshot = |utxos: Vec<UtxoRecord>| KeyResult {
        key: key.clone(),
        outcome: KeyOutcome::Snapshot {
            utxos,
            proofs: vec![],
            status: None,
            history_from: Some(0),
            followed: None,
        },
    };
    hub.take_result(LinkId(1), 0, snapshot(vec![coin(fits + 11, &script)]));
    assert_eq!(hub.interests[&key].facts.heard(), 0);
    for link in [2, 3] {
        hub.take_result(LinkId(link), 0, snapshot(vec![small.clone()]));
    }
    assert_eq!(hub.interests[&key].facts.heard(), 2);
    // Room that is not needed any more is free again.
    assert!(hub.notify(LinkId(3), &key, &coin(0, &script), None));
    assert!(hub.notify(LinkId(1), &key, &coin(0, &script), None));
    assert!(hub.notify(LinkId(1), &key, &coin(fits + 12, &script), None));
    assert!(!hub.notify(LinkId(1), &key, &coin(fits + 13, &script), None));
    hub.forget_link(LinkId(1));
    assert_eq!(held(&hub), 2, "those that two spoke of");
    assert!(hub.notify(LinkId(1), &key, &coin(1, &script), None), "it begins anew");
}

#[test]
fn a_word_whose_proof_finds_no_room_changes_nothing() {
    let (mut hub, key) = hub();
    hub.needed = 2;
    subscribe(&mut hub, &key);
    while next(&mut hub).is_some() {}
    let word = UtxoRecord { outpoint: OutPoint { txid: txid(8), vout: 0 }, ..utxo(false) };
    let transaction = bitcoin::Transaction {
        version: bitcoin::transaction::Version::TWO,
        lock_time: bitcoin::absolute::LockTime::ZERO,
        input: vec![bitcoin::TxIn { previous_output: word.outpoint, ..Default::default() }],
        output: Vec::new(),
    };
    let proof = || FinalityProof::Attested {
        transaction: transaction.clone(),
        rounds: vec![],
        commits: BTreeMap::new(),
    };
    // Room for the word alone is left.
    let script_pubkey = ScriptBuf::from_bytes(vec![0; (ALONE_BYTES_MAX - 3 * OVERHEAD_BYTES) / 2]);
    let large = UtxoRecord { outpoint: OutPoint { txid: txid(9), vout: 0 }, script_pubkey, ..utxo(false) };
    assert!(hub.notify(LinkId(7), &key, &large, None));
    assert!(!hub.notify(LinkId(7), &key, &word, Some(proof())));
    assert!(!hub.interests[&key].facts.knows(&word.outpoint) && next(&mut hub).is_none());
    assert!(hub.notify(LinkId(7), &key, &word, None));
    // Another node's copy goes out.
    assert!(hub.notify(LinkId(6), &key, &word, Some(proof())));
    assert!(matches!(next(&mut hub), Some((_, ServerMessage::UTXOStateNotification { proof: Some(_), .. }))));
}

#[test]
fn who_speaks_first_and_leaves_takes_nobodys_word_along() {
    let mut hub = Hub::new(7);
    hub.open(WalletId(1), None);
    let key = SubscriptionKey::Script(ScriptBuf::new());
    hub.subscribe(NOW, WalletId(1), &call(std::slice::from_ref(&key)));
    let rich = UtxoRecord { value: Amount::MAX_MONEY, ..utxo(false) };
    for (faulty, honest) in [(1, 3), (2, 4), (8, 5)] {
        assert!(hub.notify(LinkId(faulty), &key, &rich, None));
        assert!(hub.notify(LinkId(honest), &key, &utxo(false), None));
        hub.forget_link(LinkId(faulty));
    }
    let facts = &hub.interests[&key].facts;
    let KeyOutcome::Snapshot { utxos, .. } = facts.snapshot(3, 0) else { panic!("a snapshot") };
    assert_eq!(utxos, [utxo(false)], "f + 1 have said so");
}

#[test]
fn a_node_shows_few_proofs_of_one_coin() {
    let mut hub = Hub::new(4);
    hub.open(WalletId(1), None);
    let key = SubscriptionKey::Script(ScriptBuf::new());
    hub.subscribe(NOW, WalletId(1), &call(std::slice::from_ref(&key)));
    let spend = |number: u32| FinalityProof::Attested {
        transaction: bitcoin::Transaction {
            version: bitcoin::transaction::Version::TWO,
            lock_time: bitcoin::absolute::LockTime::from_consensus(number),
            input: vec![bitcoin::TxIn { previous_output: utxo(false).outpoint, ..Default::default() }],
            output: Vec::new(),
        },
        rounds: vec![Round(0)],
        commits: BTreeMap::new(),
    };
    for link in [1, 2] {
        for number in 0..10 {
            hub.notify(
                LinkId(link),
                &key,
                &utxo(false),
                Some(spend(100 * u32::try_from(link).unwrap() + number)),
            );
        }
    }
    assert_eq!(hub.interests[&key].facts.proofs(), 2 * 4, "four of each");
    // One that comes back does not show more than that, and what was believed stays.
    let spent = |number| {
        let (txid, kind) = (spend(number).txid(), spend(number).kind());
        UtxoRecord { spend: Some(FinalSpend { txid, kind }), ..utxo(false) }
    };
    for link in [2, 3] {
        hub.notify(LinkId(link), &key, &spent(200), None);
    }
    hub.forget_link(LinkId(2));
    assert_eq!(hub.interests[&key].facts.proofs(), 4 + 1);
}

#[test]
fn nodes_are_given_the_records_of_accounts_when_they_come_back() {
    let (mut hub, script) = hub();
    let world = quorate_protocol::testing::federation(4);
    let (id, record) = (world.account.id(), world.account.record().clone());
    let key = SubscriptionKey::Account(id);
    let accounts = BTreeMap::from([(id, record)]);
    let with_record = Subscription { accounts: accounts.clone(), ..call(&[key.clone(), script.clone()]) };
    let (_, asked_now) = hub.subscribe(NOW, WalletId(1), &with_record);
    let sent = |message: &ClientMessage| {
        if let ClientMessage::UTXOSubscribe { accounts, .. } = message { accounts.clone() } else { panic!() }
    };
    for questions in [asked_now, hub.questions()] {
        let keys: Vec<_> = questions.iter().map(|question| asked(vec![question.clone()])).collect();
        assert_eq!(keys, [vec![script.clone()], vec![key.clone()]]);
        assert!(sent(&questions[0]).is_empty());
        assert_eq!(sent(&questions[1]), accounts);
    }
    // However many there are, no node is asked for more than it takes.
    let record = accounts[&id].clone();
    let many: BTreeMap<_, _> = (0..250).map(|byte| (AccountId([byte; 32]), record.clone())).collect();
    let keys: Vec<_> = many.keys().copied().map(SubscriptionKey::Account).collect();
    for (id, record) in &many {
        let accounts = BTreeMap::from([(*id, record.clone())]);
        hub.subscribe(NOW, WalletId(1), &Subscription { accounts, ..call(&[SubscriptionKey::Account(*id)]) });
    }
    let (_, questions) = hub.subscribe(NOW, WalletId(1), &call(&keys));
    assert_eq!(questions.iter().map(|question| sent(question).len()).collect::<Vec<_>>(), [100, 100, 50]);
}

#[test]
fn an_address_is_refused_what_its_sessions_have_no_room_for_and_another_is_not() {
    const MOST: usize = 65_536;
    let (mut hub, _) = hub();
    let [crowd, other] = [1, 2].map(|last| Some(IpAddr::from([10, 0, 0, last])));
    let coins = |from: usize| {
        let key = |number: usize| {
            let vout = u32::try_from(number).expect("fits");
            SubscriptionKey::Outpoint(OutPoint { vout, ..OutPoint::null() })
        };
        call(&(from..from + 1_000).map(key).collect::<Vec<_>>())
    };
    let mut refused = 0;
    for session in 10..17 {
        hub.open(WalletId(session), crowd);
        for part in 0..10 {
            refused += hub.subscribe(NOW, WalletId(session), &coins(part * 1_000)).0.len();
        }
    }
    assert_eq!(refused, 70_000 - MOST);
    hub.open(WalletId(20), other);
    assert!(hub.subscribe(NOW, WalletId(20), &coins(0)).0.is_empty());
    hub.close(WalletId(10));
    assert!(hub.subscribe(NOW, WalletId(16), &coins(9_000)).0.is_empty(), "there is room again");
}
