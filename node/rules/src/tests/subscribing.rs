//! What subscribers and owners hear, at the node that coordinates and at another one.

use crate::{
    Output,
    cluster::{Cluster, WALLET},
};
use bitcoin::{
    Address, Amount, Network, OutPoint, ScriptBuf, Transaction, TxIn, TxOut, Txid, absolute::LockTime,
    hashes::Hash as _, transaction::Version,
};
use quorate_protocol::{
    AccountId, NodeId,
    account::{Keychain, KeychainIndex},
    proposal::Proposal,
    wire::{
        ClientMessage, ErrorCode, Followed, KeyOutcome, KeyResult, ServerMessage, SubscriptionKey,
        TransactionStatus, UtxoState, limits,
    },
};
use std::{collections::BTreeMap, time::Duration};

const AT: NodeId = NodeId(2);

pub(super) fn submit(cluster: &mut Cluster) -> ServerMessage {
    let proposal = Proposal::Joint(Box::new(cluster.world.proposal()));
    let account = Some(cluster.world.certificate());
    cluster.say(NodeId(1), ClientMessage::TransactionBroadcast { proposal, account });
    let asked = |(_, message): &(NodeId, ServerMessage)| matches!(message, ServerMessage::SignRequest { .. });
    let at = cluster.told.iter().position(asked).expect("the wallet is asked to sign");
    cluster.told.remove(at).1
}

fn pay(cluster: &mut Cluster) {
    let asked = submit(cluster);
    let signed = cluster.sign(&asked);
    cluster.say(NodeId(1), signed);
}

/// What the session at `AT` has heard since the last look.
fn heard(cluster: &mut Cluster) -> Vec<ServerMessage> {
    let (here, rest) = cluster.told.drain(..).partition(|(node, _)| *node == AT);
    cluster.told = rest;
    let here: Vec<(NodeId, ServerMessage)> = here;
    here.into_iter().map(|(_, message)| message).collect()
}

fn ask(cluster: &mut Cluster, message: ClientMessage) -> Vec<KeyResult> {
    cluster.say(AT, message);
    let answer = heard(cluster).into_iter().find_map(|message| match message {
        ServerMessage::UTXOSubscribed { results, .. } | ServerMessage::UTXOStateResponse { results, .. } => {
            Some(results)
        }
        _ => None,
    });
    answer.expect("an answer")
}

pub(super) fn coin(cluster: &Cluster) -> OutPoint {
    cluster.world.proposal().psbt.unsigned_tx.input[0].previous_output
}

#[test]
fn a_subscriber_of_another_node_hears_of_lock_finality_and_block() {
    let mut cluster = Cluster::voting();
    cluster.coins();
    let (script, outpoint) = (cluster.world.script(), coin(&cluster));
    let txid = cluster.world.proposal().psbt.unsigned_tx.compute_txid();
    let keys = vec![
        SubscriptionKey::Script(script.clone()),
        SubscriptionKey::Outpoint(outpoint),
        SubscriptionKey::Txid(txid),
        SubscriptionKey::Tip,
    ];
    let results = ask(&mut cluster, ClientMessage::subscribe(keys.clone()));
    assert_eq!(results.iter().map(|one| one.key.clone()).collect::<Vec<_>>(), keys, "in the order asked");
    pay(&mut cluster);
    let news = heard(&mut cluster);
    let states: Vec<&UtxoState> = news
        .iter()
        .filter_map(|message| match message {
            ServerMessage::UTXOStateNotification { key: SubscriptionKey::Outpoint(_), state, .. } => {
                Some(state)
            }
            _ => None,
        })
        .collect();
    assert!(matches!(states.first(), Some(UtxoState::Locked { .. })), "{states:?}");
    assert!(matches!(states.last(), Some(UtxoState::SpentFinalized { .. })), "{states:?}");
    let proofs = news.iter().filter(|message| {
        matches!(message, ServerMessage::UTXOStateNotification { proof: Some(proof), .. } if proof.txid() == txid)
    });
    assert!(proofs.count() >= 1, "the proof comes with the news");
    let by_txid = news.iter().filter(|message| {
        matches!(message, ServerMessage::TransactionStatus { status: TransactionStatus::Signed { .. }, .. })
    });
    assert_eq!(by_txid.count(), 1);
    let transaction = cluster.get(2).machine.proof(&txid).expect("final").transaction().clone();
    cluster.mine(vec![transaction]);
    let news = heard(&mut cluster);
    assert!(
        news.iter().any(|message| matches!(message, ServerMessage::Tip { tip } if tip.block.height == 11))
    );
    assert!(news.iter().any(|message| {
        matches!(
            message,
            ServerMessage::TransactionStatus { status: TransactionStatus::Confirmed { .. }, .. }
        )
    }));
    // A reorganisation takes the block's facts back, and nothing else.
    cluster.reorganise();
    let results = ask(&mut cluster, ClientMessage::UTXOStateQuery { keys: vec![keys[1].clone()] });
    let KeyOutcome::Snapshot { utxos, proofs, .. } = &results[0].outcome else { panic!("{results:?}") };
    assert!(matches!(utxos[0].state(), UtxoState::SpentFinalized { .. }));
    assert_eq!(proofs.len(), 1);
}

/// A payment to a script from somewhere.
fn paying(script: &ScriptBuf, salt: u8) -> Transaction {
    let from = OutPoint { txid: Txid::from_byte_array([salt; 32]), vout: 7 };
    let output = TxOut { value: Amount::from_sat(1_000), script_pubkey: script.clone() };
    Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn { previous_output: from, ..TxIn::default() }],
        output: vec![output],
    }
}

/// Subscribes to the account; gives what is told of it.
fn follow(cluster: &mut Cluster, with_record: bool) -> KeyOutcome {
    let id = cluster.world.account.id();
    let record = (id, cluster.world.account.record().clone());
    let accounts = with_record.then_some(record).into_iter().collect();
    let keys = vec![SubscriptionKey::Account(id)];
    let mut results = ask(cluster, ClientMessage::UTXOSubscribe { keys, accounts, since: None });
    results.pop().expect("one answer").outcome
}

#[test]
fn one_key_is_enough_for_all_addresses_of_an_account() {
    let mut cluster = Cluster::voting();
    let refused = follow(&mut cluster, false);
    assert!(matches!(&refused, KeyOutcome::Error(error) if error.code == ErrorCode::UnknownAccount));
    let KeyOutcome::Snapshot { utxos, .. } = follow(&mut cluster, true) else { panic!("its record is good") };
    assert!(utxos.is_empty());
    // Addresses further and further ahead, each within the gap after the one before.
    for index in [0, 19, 38, 57] {
        let position = KeychainIndex { keychain: Keychain::Change, index };
        let script = cluster.world.account.address(position).expect("an address").script_pubkey;
        let coin = paying(&script, u8::try_from(index).expect("small"));
        cluster.mine(vec![coin]);
        let told = heard(&mut cluster).into_iter().find_map(|message| match message {
            ServerMessage::UTXOStateNotification { key, utxo, followed, .. } => {
                assert!(followed.is_some_and(|followed| followed.change > index));
                Some((key, utxo.script_pubkey))
            }
            _ => None,
        });
        let key = SubscriptionKey::Account(cluster.world.account.id());
        assert_eq!(told, Some((key, script)), "{index}");
    }
    let KeyOutcome::Snapshot { utxos, followed, .. } = follow(&mut cluster, false) else {
        panic!("it is known now")
    };
    assert_eq!(utxos.len(), 4);
    assert_eq!(followed, Some(Followed { receive: 20, change: 78 }));
}

#[test]
fn coins_of_a_script_become_the_accounts_when_it_reaches_so_far() {
    let mut cluster = Cluster::voting();
    follow(&mut cluster, true);
    let script = |cluster: &Cluster, index| {
        let position = KeychainIndex { keychain: Keychain::Receive, index };
        cluster.world.account.address(position).expect("an address").script_pubkey
    };
    let far = script(&cluster, 25);
    ask(&mut cluster, ClientMessage::subscribe(vec![SubscriptionKey::Script(far.clone())]));
    cluster.mine(vec![paying(&far, 1)]);
    let by_account = |cluster: &mut Cluster| -> Vec<ScriptBuf> {
        let told = heard(cluster).into_iter().filter_map(|message| match message {
            ServerMessage::UTXOStateNotification { key: SubscriptionKey::Account(_), utxo, .. } => {
                Some(utxo.script_pubkey)
            }
            _ => None,
        });
        told.collect()
    };
    assert!(by_account(&mut cluster).is_empty(), "the account does not reach so far yet");
    let near = script(&cluster, 10);
    cluster.mine(vec![paying(&near, 2)]);
    let mut told = by_account(&mut cluster);
    told.sort();
    let mut both = vec![near, far];
    both.sort();
    assert_eq!(told, both);
    let KeyOutcome::Snapshot { followed, .. } = follow(&mut cluster, false) else { panic!("it is known") };
    assert_eq!(followed.map(|followed| followed.receive), Some(46), "from there it reaches further");
    // A node that hears of an account when its coins are there already.
    let mut late = Cluster::voting();
    for index in [0, 15, 30] {
        let script = script(&late, index);
        ask(&mut late, ClientMessage::subscribe(vec![SubscriptionKey::Script(script.clone())]));
        late.mine(vec![paying(&script, u8::try_from(index).expect("small"))]);
    }
    let KeyOutcome::Snapshot { utxos, followed, .. } = follow(&mut late, true) else { panic!("it is good") };
    assert_eq!((utxos.len(), followed.map(|followed| followed.receive)), (3, Some(51)));
}

#[test]
fn what_an_account_was_paid_before_it_was_known_is_searched_for_and_leads_further() {
    let mut cluster = Cluster::voting();
    for (vout, index) in [(0, 15), (1, 30), (2, 80)] {
        let position = KeychainIndex { keychain: Keychain::Receive, index };
        let script = cluster.world.account.address(position).expect("an address").script_pubkey;
        let outpoint = OutPoint { txid: Txid::from_byte_array([7; 32]), vout };
        cluster.put_coin(outpoint, script, 1_000);
    }
    let KeyOutcome::Snapshot { utxos, .. } = follow(&mut cluster, true) else { panic!("its record is good") };
    assert!(utxos.is_empty());
    for (news, known) in [(1, 1), (1, 2), (0, 2), (0, 2)] {
        cluster.wait(Duration::from_secs(2));
        let told = heard(&mut cluster);
        let told = told.iter().filter(|message| {
            matches!(message, ServerMessage::UTXOStateNotification { key: SubscriptionKey::Account(_), .. })
        });
        assert_eq!(told.count(), news, "its wallet hears of it");
        let KeyOutcome::Snapshot { utxos, .. } = follow(&mut cluster, false) else { panic!("it is known") };
        assert_eq!(utxos.len(), known, "one leads to the next, and the last one is too far ahead");
        assert!(utxos.iter().all(|utxo| utxo.created.is_some()));
    }
}

#[test]
fn many_coins_that_blocks_bring_while_they_are_searched_for_are_not_looked_up() {
    let mut cluster = Cluster::voting();
    let KeyOutcome::Snapshot { .. } = follow(&mut cluster, true) else { panic!("its record is good") };
    let mut payment = paying(&cluster.world.script(), 1);
    payment.output = vec![payment.output[0].clone(); 5_000];
    let txid = payment.compute_txid();
    let now = Duration::from_secs(5);
    let machine = &mut cluster.get(2).machine;
    machine.at(now, 0).handle_timeout();
    let mut outputs = std::iter::from_fn(|| machine.poll_output());
    let ticket = outputs.find_map(|output| match output {
        Output::Search { ticket, .. } => Some(ticket),
        _ => None,
    });
    cluster.mine(vec![payment]);
    let found = (0..5_000).map(|vout| OutPoint { txid, vout }).collect();
    let machine = &mut cluster.get(2).machine;
    machine.at(now, 0).handle_found(ticket.expect("a search"), Some(found));
    let mut outputs = std::iter::from_fn(|| machine.poll_output());
    assert!(!outputs.any(|output| matches!(output, Output::LookUp { .. })));
}

#[test]
fn records_that_are_not_of_the_accounts_named_or_not_good_are_not_followed() {
    let mut cluster = Cluster::voting();
    let (id, record) = (cluster.world.account.id(), cluster.world.account.record().clone());
    let mut forged = record.clone();
    forged.recovery_delay += 1;
    let other = AccountId([9; 32]);
    for (named, record) in [(other, record.clone()), (id, forged.clone())] {
        let keys = vec![SubscriptionKey::Account(named)];
        let accounts = BTreeMap::from([(named, record)]);
        let results = ask(&mut cluster, ClientMessage::UTXOSubscribe { keys, accounts, since: None });
        assert!(
            matches!(&results[0].outcome, KeyOutcome::Error(error) if error.code == ErrorCode::UnknownAccount)
        );
    }
    // Its id is right, and its owner has not signed it.
    let id = forged.id(&cluster.world.federation);
    let keys = vec![SubscriptionKey::Account(id)];
    let accounts = BTreeMap::from([(id, forged)]);
    let results = ask(&mut cluster, ClientMessage::UTXOSubscribe { keys, accounts, since: None });
    assert!(matches!(&results[0].outcome, KeyOutcome::Error(_)));
    assert_eq!(cluster.get(2).machine.sizes().accounts, 0);
}

#[test]
fn keys_that_cannot_be_served_are_refused_one_by_one_and_messages_that_are_too_large_whole() {
    let mut cluster = Cluster::voting();
    let good = SubscriptionKey::Script(cluster.world.script());
    let address = Address::from_script(&cluster.world.script(), Network::Bitcoin).expect("an address");
    let foreign = SubscriptionKey::Address(address.into_unchecked());
    let keys = vec![foreign, good.clone()];
    let results = ask(&mut cluster, ClientMessage::subscribe(keys));
    assert!(matches!(&results[0].outcome, KeyOutcome::Error(error) if error.code == ErrorCode::InvalidKey));
    assert!(
        matches!(&results[1].outcome, KeyOutcome::Snapshot { utxos, .. } if utxos.is_empty()),
        "nothing found"
    );
    cluster.say(AT, ClientMessage::subscribe(vec![good.clone(); limits::KEYS_PER_MESSAGE_MAX + 1]));
    let [ServerMessage::Error { error }] = &heard(&mut cluster)[..] else { panic!("an error") };
    assert_eq!(error.code, ErrorCode::LimitExceeded);
    let keys = vec![good.clone(), SubscriptionKey::Tip];
    cluster.say(AT, ClientMessage::UTXOUnsubscribe { keys });
    assert!(matches!(&heard(&mut cluster)[..], [ServerMessage::UTXOUnsubscribed { count: 1 }]));
    pay_unheard(&mut cluster);
}

/// After the end of a subscription nothing is heard, and after the end of a session neither.
fn pay_unheard(cluster: &mut Cluster) {
    cluster.coins();
    let key = SubscriptionKey::Outpoint(coin(cluster));
    ask(cluster, ClientMessage::subscribe(vec![key]));
    cluster.get(2).machine.handle_session_closed(WALLET);
    pay(cluster);
    assert!(heard(cluster).is_empty());
    assert_eq!(cluster.get(2).machine.sizes().sessions, 0);
}

#[test]
fn a_node_that_was_away_is_told_again_of_what_became_final() {
    let mut cluster = Cluster::voting();
    cluster.coins();
    cluster.silent.insert(NodeId(4));
    pay(&mut cluster);
    let txid = cluster.world.proposal().psbt.unsigned_tx.compute_txid();
    assert!(cluster.get(1).machine.knows_final(&txid) && !cluster.get(4).machine.knows_final(&txid));
    assert_eq!(cluster.get(1).machine.sizes().announcements, 1);
    cluster.silent.clear();
    cluster.until(|cluster| cluster.nodes[&NodeId(4)].machine.knows_final(&txid));
    cluster.until(|cluster| cluster.nodes[&NodeId(1)].machine.sizes().announcements == 0);
}
