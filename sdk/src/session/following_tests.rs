use super::*;
use crate::{
    account::{ACCOUNT_GAP, Keychain, KeychainIndex},
    session::{
        Event, Output,
        tests::{START, drain, live, tell},
    },
    testing,
    wallet::tests::{branch, confirmed_at, extend, mine, paid},
    wire::{BlockRef, ChainTip, ErrorCode, Header, ServerMessage},
};
use bitcoin::{Amount, Txid, hashes::Hash as _};
use std::time::Duration;

type Asked = (Option<u64>, Vec<SubscriptionKey>, Option<u32>);

/// Subscriptions among what was sent since the last look.
fn subscriptions(session: &mut Session) -> Vec<Asked> {
    let (sent, _) = drain(session);
    let subscription = |(id, message)| {
        let ClientMessage::UTXOSubscribe { keys, since, .. } = message else { return None };
        Some((id, keys, since))
    };
    sent.into_iter().filter_map(subscription).collect()
}

fn account(session: &Session) -> SubscriptionKey {
    SubscriptionKey::Account(session.wallet().account().id())
}

fn script(session: &Session, keychain: Keychain, index: u32) -> ScriptBuf {
    session.wallet().account().address(KeychainIndex { keychain, index }).expect("an address").script_pubkey
}

fn answer(session: &mut Session, id: Option<u64>, key: SubscriptionKey, outcome: KeyOutcome) {
    let tip = ChainTip { block: session.wallet().chain().tip() };
    let results = vec![KeyResult { key, outcome }];
    tell(session, id, &ServerMessage::UTXOSubscribed { results, tip, more: false, since: None });
}

/// A snapshot of a server that follows so many addresses to be paid at.
fn following(utxos: Vec<UtxoRecord>, receive: u32) -> KeyOutcome {
    let followed = Some(Followed { receive, change: ACCOUNT_GAP });
    KeyOutcome::Snapshot { utxos, proofs: Vec::new(), status: None, history_from: None, followed }
}

fn snapshot(utxos: Vec<UtxoRecord>) -> KeyOutcome {
    following(utxos, ACCOUNT_GAP)
}

/// A session that has asked for its account, and under which number.
fn asking() -> (Session, Option<u64>) {
    let mut session = live();
    let key = account(&session);
    let asked = subscriptions(&mut session).into_iter().find(|(_, keys, _)| *keys == [key.clone()]);
    let (id, _, since) = asked.expect("the account");
    assert_eq!(since, None, "a wallet that knows nothing asks for everything");
    (session, id)
}

fn coin(script: ScriptBuf, vout: u32) -> UtxoRecord {
    let outpoint = OutPoint { txid: Txid::all_zeros(), vout };
    testing::utxo_record(outpoint, Amount::from_sat(1_000), script)
}

#[test]
fn a_server_without_room_for_the_account_is_asked_for_every_script() {
    let (mut session, id) = asking();
    let error = WireError::sender(ErrorCode::UnknownAccount, "no room");
    let key = account(&session);
    answer(&mut session, id, key.clone(), KeyOutcome::Error(error.clone()));
    let asked = subscriptions(&mut session);
    assert_eq!(asked.iter().map(|(_, keys, _)| keys.len()).sum::<usize>(), session.wallet().scripts().len());
    assert!(asked.iter().all(|(_, _, since)| since.is_none()));
    answer(&mut session, None, key.clone(), KeyOutcome::Error(error));
    assert!(subscriptions(&mut session).is_empty(), "once");
    session.next_address().expect("an address");
    let further = script(&session, Keychain::Receive, ACCOUNT_GAP);
    assert!(
        matches!(&subscriptions(&mut session)[..], [(_, keys, _)] if *keys == [SubscriptionKey::Script(further)])
    );
    tell(&mut session, None, &ServerMessage::Gap { keys: vec![key] });
    assert!(subscriptions(&mut session).is_empty(), "it is not subscribed to the account");
}

#[test]
fn addresses_given_out_beyond_those_that_a_server_follows_are_watched_one_by_one() {
    let (mut session, id) = asking();
    for _ in 0..=ACCOUNT_GAP {
        session.next_address().expect("an address");
    }
    assert!(subscriptions(&mut session).is_empty(), "it has not said yet how far it looks");
    let key = account(&session);
    answer(&mut session, id, key.clone(), snapshot(Vec::new()));
    let single =
        |session: &Session, index| SubscriptionKey::Script(script(session, Keychain::Receive, index));
    let first = single(&session, ACCOUNT_GAP);
    assert!(matches!(&subscriptions(&mut session)[..], [(_, keys, None)] if *keys == [first.clone()]));
    session.next_address().expect("an address");
    let second = single(&session, ACCOUNT_GAP + 1);
    assert!(matches!(&subscriptions(&mut session)[..], [(_, keys, None)] if *keys == [second.clone()]));
    // That one is paid first, with a proof: the server looks no further for it, and says so.
    let proof = paid(&mut session.wallet);
    session.take_proof(&proof);
    session.follow_new();
    drain(&mut session);
    assert!(session.wants(&first) && session.wants(&second));
    // One within the gap is paid.
    let utxo = coin(script(&session, Keychain::Receive, 1), 1);
    let (state, followed) = (utxo.state(), Some(Followed { receive: ACCOUNT_GAP + 2, change: ACCOUNT_GAP }));
    tell(
        &mut session,
        None,
        &ServerMessage::UTXOStateNotification { key, utxo, state, proof: None, followed },
    );
    let (sent, _) = drain(&mut session);
    let over = |message: &ClientMessage| {
        let ClientMessage::UTXOUnsubscribe { keys } = message else { return false };
        BTreeSet::from_iter(keys) == BTreeSet::from([&first, &second])
    };
    assert!(sent.iter().any(|(_, message)| over(message)), "{sent:?}");
    assert!(!session.wants(&first) && !session.wants(&second));
}

#[test]
fn coins_of_an_account_are_found_in_whatever_order_they_are_told() {
    let (mut session, id) = asking();
    // Each address is known by the one before.
    let indexes = [0, 19, 38, 57, 76, 95];
    let coins: Vec<_> =
        indexes.iter().map(|index| coin(script(&session, Keychain::Receive, *index), *index)).rev().collect();
    let key = account(&session);
    answer(&mut session, id, key.clone(), snapshot(coins));
    let known = |session: &Session, index| {
        let script = script(session, Keychain::Receive, index);
        session.wallet().coins_at(&script).count()
    };
    assert!(indexes.iter().all(|index| known(&session, *index) == 1));
    // News of one can overtake news of the one that leads to it.
    for index in [133, 114] {
        let utxo = coin(script(&session, Keychain::Receive, index), index);
        let (key, state) = (key.clone(), utxo.state());
        tell(
            &mut session,
            None,
            &ServerMessage::UTXOStateNotification { key, utxo, state, proof: None, followed: None },
        );
        assert_eq!(known(&session, index), 1, "{index}");
    }
    // A server that looked further than this wallet has derived tells of a coin far ahead.
    let far = coin(script(&session, Keychain::Change, 900), 900);
    answer(&mut session, None, key.clone(), snapshot(vec![far.clone()]));
    assert_eq!(session.wallet().coins_at(&far.script_pubkey).count(), 1);
    let next = session.next_address().expect("an address").script_pubkey();
    assert_eq!(next, script(&session, Keychain::Receive, 0), "its words give out nothing differently");
    let stranger = coin(ScriptBuf::from_bytes(vec![0x51]), 9);
    let many: Vec<_> = (0..2_000)
        .map(|vout| UtxoRecord { outpoint: OutPoint { txid: Txid::all_zeros(), vout }, ..stranger.clone() })
        .collect();
    answer(&mut session, None, key, snapshot(many));
    assert_eq!(session.following.early.len(), EARLY_MAX, "what is nobody's is not kept without bound");
    session.note_synced();
    assert_eq!(session.wallet.settled_until().height(), None);
}

/// A session that was told everything, at a height.
fn synced(session: &mut Session, id: Option<u64>, blocks: u32, utxos: Vec<UtxoRecord>) {
    for _ in 0..blocks {
        extend(&mut session.wallet, |_| {});
    }
    let key = account(session);
    answer(session, id, key, snapshot(utxos));
    let open: Vec<u64> = session.pending.keys().copied().collect();
    for id in open {
        tell(session, Some(id), &ServerMessage::Pong);
    }
    let (_, others) = drain(session);
    assert!(others.contains(&Output::Event(Event::Synced)), "{others:?}");
}

fn connected_again(session: &mut Session) -> Asked {
    session.handle_disconnected(session.now, "test");
    session.handle_connected(session.now);
    let (sent, _) = drain(session);
    let tip = ChainTip { block: session.wallet().chain().tip() };
    let welcome = ServerMessage::Welcome {
        protocol: limits::PROTOCOL_VERSION,
        federation: session.wallet().federation().id(),
        agent: String::new(),
        tip,
    };
    tell(session, sent.last().expect("a greeting").0, &welcome);
    let key = account(session);
    let asked = subscriptions(session).into_iter().find(|(_, keys, _)| *keys == [key.clone()]);
    asked.expect("the account")
}

#[test]
fn a_wallet_that_comes_back_asks_for_what_is_new_and_now_and_then_for_everything() {
    let (mut session, id) = asking();
    synced(&mut session, id, 400, Vec::new());
    let tip = session.wallet().chain().tip().height;
    let (id, _, since) = connected_again(&mut session);
    assert_eq!(since, Some(tip - 288), "blocks above can still be undone");
    // Without an answer it knows no more than before.
    extend(&mut session.wallet, |_| {});
    let (again, _, since) = connected_again(&mut session);
    assert_ne!(again, id);
    assert_eq!(since, Some(tip - 288));
    synced(&mut session, again, 9, Vec::new());
    let (id, _, since) = connected_again(&mut session);
    assert_eq!(since, Some(tip + 10 - 288));
    synced(&mut session, id, 4_320, Vec::new());
    assert_eq!(connected_again(&mut session).2, None, "a month later");
}

/// A session that was told everything and has been paid since, and its question when it comes back.
fn back_with_a_coin() -> (Session, FinalityProof, Asked) {
    let (mut session, id) = asking();
    synced(&mut session, id, 400, Vec::new());
    let proof = paid(&mut session.wallet);
    session.take_proof(&proof);
    session.wallet.put_in_block(proof.transaction(), session.wallet.chain().tip());
    let asked = connected_again(&mut session);
    assert!(asked.2.is_some());
    (session, proof, asked)
}

#[test]
fn who_misses_a_coin_among_what_is_told_asks_for_everything() {
    let (mut session, proof, (id, _, _)) = back_with_a_coin();
    // Another device spent it, and no server told: it is among what this wallet says that it knows.
    let key = account(&session);
    answer(&mut session, id, key.clone(), snapshot(Vec::new()));
    let asked = subscriptions(&mut session);
    assert!(matches!(&asked[..], [(_, keys, None)] if *keys == [key.clone()]), "{asked:?}");
    answer(&mut session, asked[0].0, key.clone(), snapshot(Vec::new()));
    // It is not even among everything, of which there may be too much: it is asked for by itself.
    let coin = SubscriptionKey::Outpoint(OutPoint { txid: proof.txid(), vout: 0 });
    let (sent, _) = drain(&mut session);
    let query = |message: &ClientMessage| matches!(message, ClientMessage::UTXOStateQuery { keys } if *keys == [coin.clone()]);
    assert!(matches!(&sent[..], [(_, message)] if query(message)), "{sent:?}");
    assert!(!session.is_synced());
    // After a gap it asks for the same again, and compares with the same.
    tell(&mut session, None, &ServerMessage::Gap { keys: vec![key.clone()] });
    let asked = subscriptions(&mut session);
    assert!(matches!(&asked[..], [(_, keys, None)] if *keys == [key]), "{asked:?}");
}

#[test]
fn pages_of_an_answer_are_compared_as_one() {
    let (mut session, proof, (id, _, since)) = back_with_a_coin();
    let own = script(&session, Keychain::Receive, 0);
    let outpoint = OutPoint { txid: proof.txid(), vout: 0 };
    let named = testing::utxo_record(outpoint, Amount::from_sat(90_000), own);
    let (tip, key) = (ChainTip { block: session.wallet().chain().tip() }, account(&session));
    for (utxos, more) in [(vec![], true), (vec![named], false)] {
        let results = vec![KeyResult { key: key.clone(), outcome: snapshot(utxos) }];
        tell(&mut session, id, &ServerMessage::UTXOSubscribed { results, tip, more, since });
    }
    assert!(subscriptions(&mut session).is_empty(), "nothing is missing");
}

#[test]
fn what_nobody_tells_of_any_more_is_not_incoming() {
    let (mut session, id) = asking();
    let key = account(&session);
    let far = BlockRef { height: 7, hash: bitcoin::BlockHash::all_zeros() };
    let mine = script(&session, Keychain::Receive, 0);
    let claimed = UtxoRecord { value: Amount::from_int_btc(1_000), created: Some(far), ..coin(mine, 0) };
    answer(&mut session, id, key.clone(), snapshot(vec![claimed.clone()]));
    drain(&mut session);
    assert_eq!(session.wallet().balance().incoming, claimed.value);
    // That server is gone; the next one does not tell of it, and may tell of another.
    session.handle_disconnected(session.now, "gone");
    assert_eq!(session.wallet().balance().incoming, claimed.value, "nobody said otherwise yet");
    session.handle_connected(session.now);
    let (sent, _) = drain(&mut session);
    let federation = session.wallet().federation().id();
    let tip = ChainTip { block: session.wallet().chain().tip() };
    let (protocol, agent) = (limits::PROTOCOL_VERSION, String::new());
    tell(&mut session, sent[0].0, &ServerMessage::Welcome { protocol, federation, agent, tip });
    let other = UtxoRecord { created: Some(far), ..coin(script(&session, Keychain::Receive, 1), 1) };
    let (sent, _) = drain(&mut session);
    for (id, message) in sent {
        if let ClientMessage::UTXOSubscribe { keys, .. } = message {
            for key in keys.into_iter().filter(|asked| *asked == key) {
                answer(&mut session, id, key, snapshot(vec![other.clone()]));
            }
        }
    }
    // What was asked for besides is answered, too.
    session.pending.clear();
    session.waiting_proofs.clear();
    session.queued_proofs.clear();
    session.redo.clear();
    session.drop_old_claims();
    assert_eq!(session.wallet().balance().incoming, other.value);
}

#[test]
fn a_coin_that_a_reorganisation_took_is_not_incoming_for_ever() {
    let (mut session, id) = asking();
    let key = account(&session);
    mine(&mut session.wallet, 12);
    let coin = confirmed_at(&mut session.wallet, 12, false);
    answer(&mut session, id, key, snapshot(Vec::new()));
    // What else was asked for is of no interest here.
    session.pending.clear();
    drain(&mut session);
    let before = session.wallet().balance();
    assert_ne!(before.spendable + before.incoming, Amount::ZERO);
    let headers = branch(session.wallet(), 1);
    let block = BlockRef { height: 13, hash: headers[1].block_hash() };
    let tip = ChainTip { block };
    tell(&mut session, None, &ServerMessage::Tip { tip });
    let mut asked = BTreeSet::new();
    for second in 0..30 {
        for (id, message) in drain(&mut session).0 {
            let answer = if let ClientMessage::HeadersQuery { .. } = message {
                let headers = headers.iter().copied().map(Header).collect();
                ServerMessage::Headers { from: 12, headers }
            } else if let ClientMessage::ProofQuery { txid } = message {
                ServerMessage::Proof { txid, proof: None, conflict: None }
            } else if let ClientMessage::UTXOStateQuery { keys } = message {
                asked.extend(keys.iter().cloned());
                let nothing = |key| KeyResult { key, outcome: snapshot(Vec::new()) };
                let results = keys.into_iter().map(nothing).collect();
                ServerMessage::UTXOStateResponse { results, tip, more: false }
            } else {
                continue;
            };
            tell(&mut session, id, &answer);
        }
        session.handle_timeout(START + Duration::from_secs(second));
    }
    assert!(asked.contains(&SubscriptionKey::Outpoint(coin)), "{asked:?}");
    let after = session.wallet().balance();
    assert_eq!(after.spendable + after.incoming, Amount::ZERO);
    assert!(session.is_synced(), "it waits for nothing");
}
