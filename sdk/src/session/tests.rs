use super::*;
use crate::{
    Round,
    finality::FinalityProof,
    testing::{self, rng},
    vote::{ApprovalCertificate, VoteTarget},
    wallet::{AccountOptions, SavedState, SecretWords, StateError, apply_change},
    wire::{ChainTip, ErrorCode, Fault, Lock, SubscriptionKey, UtxoRecord, WireError, encode_text},
};
use bitcoin::{
    OutPoint, Psbt, ScriptBuf, Transaction, TxIn, TxOut, absolute::LockTime, hashes::Hash as _,
    transaction::Version,
};

pub(super) const START: Now = Now::from_secs(100);

fn wallet() -> Wallet {
    let federation = testing::federation(4).federation;
    let words =
        "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about";
    let words = SecretWords::parse(words).expect("valid words");
    Wallet::new(federation, &words, &AccountOptions::default(), None).expect("opens")
}

fn session() -> Session {
    Session::new(wallet(), Box::new(rng(1)))
}

pub(super) fn drain(session: &mut Session) -> (Vec<(Option<u64>, ClientMessage)>, Vec<Output>) {
    let (mut sent, mut others) = (Vec::new(), Vec::new());
    while let Some(output) = session.poll_output() {
        match output {
            Output::Send(text) => {
                let envelope = decode::<ClientMessage>(text.as_bytes()).expect("own messages parse");
                sent.push((envelope.id, envelope.body));
            }
            other @ (Output::Connect | Output::Close | Output::Event(_) | Output::Save(_)) => {
                others.push(other)
            }
        }
    }
    (sent, others)
}

fn welcome(session: &Session) -> ServerMessage {
    let tip = ChainTip { block: session.wallet().chain().tip() };
    let federation = session.wallet().federation().id();
    ServerMessage::Welcome { protocol: limits::PROTOCOL_VERSION, federation, agent: String::new(), tip }
}

pub(super) fn tell(session: &mut Session, id: Option<u64>, message: &ServerMessage) {
    session.handle_text(START, &encode_text(id, message));
}

pub(super) fn live() -> Session {
    let mut session = session();
    session.handle_connected(START);
    let (sent, _) = drain(&mut session);
    let message = welcome(&session);
    tell(&mut session, sent[0].0, &message);
    session
}

fn transaction() -> Transaction {
    let input = TxIn { previous_output: OutPoint { txid: Txid::all_zeros(), vout: 3 }, ..TxIn::default() };
    let output = TxOut { value: bitcoin::Amount::from_sat(1_000), script_pubkey: ScriptBuf::new() };
    Transaction { version: Version::TWO, lock_time: LockTime::ZERO, input: vec![input], output: vec![output] }
}

fn subscribed(sent: &[(Option<u64>, ClientMessage)]) -> usize {
    let keys = |message: &ClientMessage| {
        if let ClientMessage::UTXOSubscribe { keys, .. } = message { keys.len() } else { 0 }
    };
    sent.iter().map(|(_, message)| keys(message)).sum()
}

#[test]
fn greeting_registers_and_subscribes_the_account() {
    let mut session = live();
    let (sent, _) = drain(&mut session);
    assert!(sent.iter().any(|(_, message)| matches!(message, ClientMessage::AccountRegister { .. })));
    assert_eq!(subscribed(&sent), 2, "tip and account");
}

#[test]
fn an_address_is_shown_again_until_somebody_pays_to_it() {
    let mut session = live();
    drain(&mut session);
    let first = session.unused_address().expect("an address");
    assert_eq!(session.unused_address().expect("an address"), first);
    let outpoint = OutPoint { txid: Txid::all_zeros(), vout: 3 };
    let utxo = testing::utxo_record(outpoint, bitcoin::Amount::from_sat(1_000), first.script_pubkey());
    let key = SubscriptionKey::Script(utxo.script_pubkey.clone());
    let state = utxo.state();
    tell(
        &mut session,
        None,
        &ServerMessage::UTXOStateNotification { key, utxo, state, proof: None, followed: None },
    );
    let script = first.script_pubkey();
    assert_eq!(session.wallet().coins_at(&script).count(), 1);
    assert_eq!(
        session.unused_address().expect("an address"),
        first,
        "what a server only claims moves nothing"
    );
    let own = session.next_address().expect("an address");
    assert_ne!(own, first);
    assert_eq!(
        session.unused_address().expect("an address"),
        first,
        "a payer's own address is shown to nobody else"
    );

    let mut saved = SavedState::new();
    apply_change(&mut saved, session.wallet.take_change());
    let mut again = wallet();
    again.restore(&saved).expect("its own state");
    assert_eq!(again.unused_address().expect("an address").script_pubkey, script, "nor is it forgotten");
}

/// The server answers that it follows the account as far as one that was never paid.
fn follow(session: &mut Session) {
    let (sent, _) = drain(session);
    let key = SubscriptionKey::Account(session.wallet().account().id());
    let asked = |(id, message): (Option<u64>, ClientMessage)| {
        matches!(message, ClientMessage::UTXOSubscribe { keys, .. } if keys.contains(&key)).then_some(id)
    };
    let id = sent.into_iter().find_map(asked).unwrap_or_else(|| {
        session.subscribe_keys(vec![key.clone()]);
        drain(session).0.pop().expect("a question").0
    });
    let gap = crate::account::ACCOUNT_GAP;
    let followed = Some(crate::wire::Followed { receive: gap, change: gap });
    let (utxos, proofs) = (Vec::new(), Vec::new());
    let outcome =
        crate::wire::KeyOutcome::Snapshot { utxos, proofs, status: None, history_from: None, followed };
    let results = vec![crate::wire::KeyResult { key, outcome }];
    let tip = ChainTip { block: session.wallet().chain().tip() };
    tell(session, id, &ServerMessage::UTXOSubscribed { results, tip, more: false, since: None });
}

#[test]
fn a_wider_gap_is_subscribed() {
    let mut session = session();
    session.wallet.set_gap_limit(50).expect("derives");
    session.handle_connected(START);
    let (sent, _) = drain(&mut session);
    let message = welcome(&session);
    tell(&mut session, sent[0].0, &message);
    follow(&mut session);
    let (sent, _) = drain(&mut session);
    assert_eq!(subscribed(&sent), 2 * 30, "what is beyond the account's own gap");
}

#[test]
fn a_server_of_another_federation_is_left_and_connected_again_later() {
    let mut session = session();
    session.handle_connected(START);
    drain(&mut session);
    let ServerMessage::Welcome { protocol, agent, tip, .. } = welcome(&session) else { panic!("a welcome") };
    let federation = crate::FederationId([0; 32]);
    tell(&mut session, Some(1), &ServerMessage::Welcome { protocol, federation, agent, tip });
    let (sent, others) = drain(&mut session);
    assert!(sent.is_empty() && others.contains(&Output::Close));
    let again = session.poll_timeout().expect("it tries again");
    assert!(again > START);
    session.handle_timeout(again);
    assert_eq!(session.poll_output(), Some(Output::Connect));
}

#[test]
fn a_lost_coordinator_or_connection_costs_a_resubmission() {
    let mut session = live();
    drain(&mut session);
    let txid = session.submit_signed(START, transaction());
    let submissions = |sent: &[(Option<u64>, ClientMessage)]| {
        let ours = |message: &ClientMessage| matches!(message, ClientMessage::TransactionBroadcast { .. });
        sent.iter().filter(|(_, message)| ours(message)).map(|(id, _)| *id).collect::<Vec<_>>()
    };
    let first = submissions(&drain(&mut session).0);
    assert_eq!(first.len(), 1);
    let error = WireError::passing(ErrorCode::CoordinatorLost, Fault::Network, "lost");
    tell(&mut session, first[0], &ServerMessage::Error { error });
    let again = session.poll_timeout().expect("a retry is planned");
    session.handle_timeout(again);
    assert_eq!(submissions(&drain(&mut session).0).len(), 1);

    session.handle_disconnected(again, "gone");
    session.handle_connected(again);
    let (sent, _) = drain(&mut session);
    let message = welcome(&session);
    tell(&mut session, sent[0].0, &message);
    assert_eq!(submissions(&drain(&mut session).0).len(), 1);

    let error = WireError::sender(ErrorCode::InvalidProposal, "bad");
    let id =
        session.pending.iter().find(|(_, pending)| **pending == Pending::Submit { txid }).map(|(id, _)| *id);
    tell(&mut session, id, &ServerMessage::Error { error });
    let (_, others) = drain(&mut session);
    let failed = |output: &Output| {
        matches!(
            output,
            Output::Event(Event::Payment { state: PaymentState::Failed { retry: false, .. }, .. })
        )
    };
    assert!(others.iter().any(failed), "an error that is the sender's fault ends the payment");
}

#[test]
fn a_payment_that_this_wallet_signed_does_not_end_by_a_servers_refusal() {
    let mut session = live();
    let txid = session.submit_signed(START, transaction());
    let payment = session.payments.get_mut(&txid).expect("under way");
    payment.signed.push(VoteTarget::new(
        txid,
        testing::custody(),
        [(OutPoint { txid: Txid::all_zeros(), vout: 3 }, Round(0))],
    ));
    let (sent, _) = drain(&mut session);
    let ours = |message: &ClientMessage| matches!(message, ClientMessage::TransactionBroadcast { .. });
    let id = sent.iter().find(|(_, message)| ours(message)).and_then(|(id, _)| *id);
    let error = WireError::sender(ErrorCode::InvalidProposal, "bad");
    tell(&mut session, id, &ServerMessage::Error { error: error.clone() });
    let (_, others) = drain(&mut session);
    assert!(others.contains(&Output::Event(Event::Refused { error })));
    assert_eq!(session.payment(txid), Some(PaymentState::Submitted));
    let again = session.poll_timeout().expect("a retry is planned");
    session.handle_timeout(again);
    assert!(drain(&mut session).0.iter().any(|(_, message)| ours(message)));
}

#[test]
fn who_is_woken_connects_at_once_and_sees_whether_the_server_is_there() {
    let mut session = live();
    drain(&mut session);
    session.wake(START);
    session.wake(START);
    let (sent, _) = drain(&mut session);
    assert_eq!(sent.iter().filter(|(_, message)| *message == ClientMessage::Ping).count(), 1);
    session.handle_disconnected(START, "gone");
    drain(&mut session);
    session.wake(START);
    assert!(drain(&mut session).1.contains(&Output::Connect));
}

#[test]
fn a_server_that_takes_back_a_lock_or_is_left_holds_no_coin() {
    let mut session = live();
    let address = session.next_address().expect("there are some");
    let outpoint = OutPoint { txid: Txid::all_zeros(), vout: 0 };
    let coin = testing::utxo_record(outpoint, bitcoin::Amount::from_sat(1_000), address.script_pubkey());
    let record = |round, lock: Option<u8>| UtxoRecord {
        round: Round(round),
        lock: lock.map(|byte| Lock { txid: Txid::hash(&[byte]), round: Round(round), locked_at: 1 }),
        ..coin.clone()
    };
    let locked = |session: &Session| session.wallet().balance().locked.to_sat();
    let take = |session: &mut Session, record: &UtxoRecord| {
        session.wallet.apply_record(record).expect("an address of the wallet");
    };
    take(&mut session, &record(0, Some(1)));
    assert_eq!(locked(&session), 1_000);
    take(&mut session, &record(1, None));
    assert_eq!(locked(&session), 0, "its round is over");
    take(&mut session, &record(0, Some(1)));
    assert_eq!(locked(&session), 0, "what comes late says nothing");
    take(&mut session, &record(2, Some(2)));
    assert_eq!(locked(&session), 1_000);
    session.handle_disconnected(START, "gone");
    assert_eq!(locked(&session), 0, "another server may not say so");
}

#[test]
fn a_snapshot_in_pages_is_taken_as_one() {
    let mut session = live();
    let (sent, _) = drain(&mut session);
    let subscribed = |message: &ClientMessage| matches!(message, ClientMessage::UTXOSubscribe { .. });
    let asked: Vec<_> = sent.iter().filter(|(_, message)| subscribed(message)).map(|(id, _)| *id).collect();
    for (id, message) in &sent {
        if !subscribed(message) {
            tell(&mut session, *id, &ServerMessage::Pong);
        }
    }
    let page = |more| {
        let tip = ChainTip { block: wallet().chain().tip() };
        ServerMessage::UTXOSubscribed { results: Vec::new(), tip, more, since: None }
    };
    for (number, id) in asked.iter().enumerate() {
        tell(&mut session, *id, &page(true));
        assert!(!session.is_synced(), "another page follows");
        tell(&mut session, *id, &page(false));
        assert_eq!(session.is_synced(), number + 1 == asked.len());
    }
}

#[test]
fn what_does_not_verify_changes_nothing() {
    let mut session = live();
    drain(&mut session);
    let txid = session.submit_signed(START, transaction());
    drain(&mut session);
    let forged = FinalityProof::Attested {
        transaction: transaction(),
        rounds: vec![Round(0)],
        commits: BTreeMap::new(),
    };
    let status = crate::wire::TransactionStatus::Signed { proof: Box::new(forged) };
    tell(&mut session, Some(99), &ServerMessage::TransactionStatus { txid, status });
    let certificate = ApprovalCertificate {
        target: VoteTarget::new(
            txid,
            testing::custody(),
            [(OutPoint { txid: Txid::all_zeros(), vout: 3 }, Round(0))],
        ),
        approvals: BTreeMap::new(),
    };
    let request = ServerMessage::SignRequest {
        txid,
        attempt: 1,
        certificate,
        nodes: BTreeMap::new(),
        releases: Vec::new(),
    };
    tell(&mut session, Some(99), &request);
    session.handle_text(START, "{\"type\":\"Teleport\"}");
    let (sent, others) = drain(&mut session);
    assert!(sent.is_empty(), "nothing is signed");
    let misbehaved = |output: &&Output| matches!(output, Output::Event(Event::ServerMisbehaved { .. }));
    assert_eq!(others.iter().filter(misbehaved).count(), 3);
    assert!(session.payments.contains_key(&txid), "the payment is still open");
}

#[test]
fn a_registration_that_failed_for_a_passing_reason_is_made_again() {
    let mut session = live();
    let registrations = |sent: &[(Option<u64>, ClientMessage)]| {
        let ours = |message: &ClientMessage| matches!(message, ClientMessage::AccountRegister { .. });
        sent.iter().filter(|(_, message)| ours(message)).map(|(id, _)| *id).collect::<Vec<_>>()
    };
    let first = registrations(&drain(&mut session).0);
    let error = WireError::passing(ErrorCode::NoNodeAvailable, Fault::Network, "no node");
    tell(&mut session, first[0], &ServerMessage::Error { error });
    let again = session.poll_timeout().expect("a retry is planned");
    assert!(again < START + RECONNECT_MAX);
    session.handle_timeout(again);
    assert_eq!(registrations(&drain(&mut session).0).len(), 1);
}

#[test]
fn keys_that_a_server_cannot_watch_at_present_are_asked_for_again_and_nothing_else() {
    let mut session = live();
    let (sent, _) = drain(&mut session);
    let account = SubscriptionKey::Account(session.wallet().account().id());
    let subscription = |message: &ClientMessage| {
        let ClientMessage::UTXOSubscribe { keys, .. } = message else { return None };
        keys.contains(&account).then(|| keys.clone())
    };
    let (id, keys) =
        sent.iter().find_map(|(id, message)| Some((*id, subscription(message)?))).expect("asked");
    for (other, message) in &sent {
        if subscription(message).is_none() {
            tell(&mut session, *other, &ServerMessage::Pong);
        }
    }
    // As a whole, and one by one; what was never asked for is nothing to this wallet.
    let error = WireError::passing(ErrorCode::NoNodeAvailable, Fault::Receiver, "no node");
    tell(&mut session, id, &ServerMessage::Error { error: error.clone() });
    let foreign = SubscriptionKey::Script(ScriptBuf::from_bytes(vec![0x51]));
    let refused = [keys[0].clone(), foreign]
        .map(|key| crate::wire::KeyResult { key, outcome: crate::wire::KeyOutcome::Error(error.clone()) });
    let tip = ChainTip { block: session.wallet().chain().tip() };
    let told = ServerMessage::UTXOSubscribed { results: refused.to_vec(), tip, more: false, since: None };
    tell(&mut session, None, &told);
    let (sent, others) = drain(&mut session);
    assert!(sent.is_empty() && !others.iter().any(|output| matches!(output, Output::Close)), "{others:?}");
    assert!(!session.is_synced(), "nobody watches them");
    session.handle_timeout(session.poll_timeout().expect("a retry is planned"));
    let (sent, _) = drain(&mut session);
    let again: Vec<_> = sent.iter().filter_map(|(_, message)| subscription(message)).collect();
    assert_eq!(again.len(), 1);
    let sorted = |mut keys: Vec<SubscriptionKey>| {
        keys.sort();
        keys
    };
    assert_eq!(sorted(again[0].clone()), sorted(keys));
}

#[test]
fn after_a_gap_own_keys_are_asked_for_again_and_no_others() {
    let mut session = live();
    drain(&mut session);
    let own = SubscriptionKey::Account(session.wallet().account().id());
    let foreign = SubscriptionKey::Script(ScriptBuf::from_bytes(vec![0x51]));
    tell(&mut session, None, &ServerMessage::Gap { keys: vec![foreign.clone(), own.clone()] });
    let (sent, _) = drain(&mut session);
    assert!(
        matches!(&sent[..], [(_, ClientMessage::UTXOSubscribe { keys, .. })] if *keys == [own]),
        "{sent:?}"
    );
    tell(&mut session, None, &ServerMessage::Gap { keys: vec![foreign] });
    assert!(drain(&mut session).0.is_empty());
}

#[test]
fn a_silent_server_is_asked_and_then_left() {
    let mut session = live();
    let (sent, _) = drain(&mut session);
    for (id, _) in sent {
        tell(&mut session, id, &ServerMessage::Pong);
    }
    drain(&mut session);
    let ping_at = session.poll_timeout().expect("a question is planned");
    assert_eq!(ping_at, START + limits::PING_INTERVAL);
    session.handle_timeout(ping_at);
    let (sent, others) = drain(&mut session);
    assert!(matches!(sent[..], [(_, ClientMessage::Ping)]) && others.is_empty());
    session.handle_text(ping_at, &encode_text(sent[0].0, &ServerMessage::Pong));
    let next = session.poll_timeout().expect("the next one");
    assert_eq!(next, ping_at + limits::PING_INTERVAL, "an idle connection is kept");
    session.handle_timeout(next);
    drain(&mut session);
    session.handle_timeout(session.poll_timeout().expect("patience ends"));
    assert!(drain(&mut session).1.contains(&Output::Close));
}

#[test]
fn statements_of_a_later_epoch_wait_for_its_document() {
    let world = testing::federation(4);
    let next = testing::succession(&world, &[crate::NodeId(2)]);
    let mut session = live();
    drain(&mut session);
    let record = session.wallet().account().record().clone();
    let acceptances = (1..).map(crate::NodeId).zip(&next.keys);
    let acceptances = acceptances.map(|(node, key)| (node, record.accept(&next.federation, key))).collect();
    let epoch = next.federation.epoch();
    let certificate = crate::account::AccountCertificate { record, epoch, acceptances };
    let descriptor = session.wallet().descriptor();

    tell(&mut session, Some(2), &ServerMessage::AccountCertified { certificate });
    let (sent, others) = drain(&mut session);
    assert!(matches!(sent[..], [(_, ClientMessage::FederationQuery)]), "{sent:?}");
    assert!(others.is_empty(), "nothing is believed yet: {others:?}");

    // A node that is behind answers first.
    let old = Box::new(world.federation.document().clone());
    tell(&mut session, sent[0].0, &ServerMessage::Federation { document: old });
    assert!(drain(&mut session).1.is_empty());
    session.handle_timeout(session.poll_timeout().expect("it asks again"));
    let (sent, _) = drain(&mut session);
    assert!(matches!(sent[..], [(_, ClientMessage::FederationQuery)]), "{sent:?}");

    let document = Box::new(next.federation.document().clone());
    tell(&mut session, sent[0].0, &ServerMessage::Federation { document });
    let (_, others) = drain(&mut session);
    assert_eq!(others, [Output::Event(Event::Epoch { epoch }), Output::Event(Event::Ready)]);
    assert_eq!(session.wallet().descriptor(), descriptor);
}

#[test]
fn a_document_that_does_not_follow_is_refused() {
    let world = testing::federation(7);
    let next = testing::succession(&world, &[]);
    let federation = world.federation;
    let words = SecretWords::generate().expect("randomness");
    let wallet = Wallet::new(federation, &words, &AccountOptions::default(), None).expect("opens");
    let mut session = Session::new(wallet, Box::new(rng(1)));
    session.handle_connected(START);
    let (sent, _) = drain(&mut session);
    let message = welcome(&session);
    tell(&mut session, sent[0].0, &message);
    drain(&mut session);
    let mut forged = next.federation.document().clone();
    forged.successions[0].approvals.retain(|node, _| node.0 < 5);
    tell(&mut session, None, &ServerMessage::Federation { document: Box::new(forged) });
    let (_, others) = drain(&mut session);
    assert!(matches!(others[..], [Output::Event(Event::ServerMisbehaved { .. })]), "{others:?}");
    assert_eq!(session.wallet().federation().epoch(), crate::Epoch::FIRST);
}

pub(super) fn opened(state: &SavedState) -> Session {
    let session = session();
    Session::restore(session.wallet, Box::new(rng(2)), state).expect("the state is its own")
}

/// Carries out saves as a driver does.
pub(super) fn drain_saving(session: &mut Session, disk: &mut SavedState) -> Vec<Output> {
    let mut others = Vec::new();
    while let Some(output) = session.poll_output() {
        match output {
            Output::Save(change) => apply_change(disk, change),
            other @ (Output::Connect | Output::Close | Output::Event(_) | Output::Send(_)) => {
                others.push(other);
            }
        }
    }
    others
}

#[test]
fn what_leaves_a_session_was_saved_before_and_is_submitted_again_by_the_next() {
    let mut disk = SavedState::new();
    let mut session = opened(&disk);
    session.handle_connected(START);
    drain_saving(&mut session, &mut disk);
    let message = welcome(&session);
    tell(&mut session, Some(1), &message);
    drain_saving(&mut session, &mut disk);
    session.next_address().expect("the first");
    let txid = session.submit_signed(START, transaction());
    let first = session.poll_output();
    let Some(Output::Save(change)) = first else { panic!("saved first, not {first:?}") };
    assert!(change.contains_key(&format!("payment/{txid}")));
    apply_change(&mut disk, change);
    drain_saving(&mut session, &mut disk);

    let mut again = opened(&disk);
    assert_eq!(again.payments().map(|(txid, _)| txid).collect::<Vec<_>>(), [txid]);
    assert_eq!(again.next_address().expect("the second"), session.next_address().expect("the second"));
    again.handle_connected(START);
    drain_saving(&mut again, &mut disk);
    let message = welcome(&again);
    tell(&mut again, Some(1), &message);
    let sent = drain_saving(&mut again, &mut disk);
    let submitted =
        |output: &Output| matches!(output, Output::Send(text) if text.contains("TransactionBroadcast"));
    assert!(sent.iter().any(submitted), "{sent:?}");

    let error = WireError::sender(ErrorCode::InvalidProposal, "bad");
    let id =
        again.pending.iter().find(|(_, pending)| **pending == Pending::Submit { txid }).map(|(id, _)| *id);
    tell(&mut again, id, &ServerMessage::Error { error });
    drain_saving(&mut again, &mut disk);
    assert_eq!(opened(&disk).payments().count(), 0, "what has ended is not taken up again");
}

#[test]
fn a_state_that_is_damaged_or_anothers_is_refused() {
    let mut disk = SavedState::new();
    drain_saving(&mut opened(&disk), &mut disk);
    let restore = |disk: &SavedState, wallet: Wallet| Session::restore(wallet, Box::new(rng(3)), disk).err();
    assert_eq!(restore(&disk, session().wallet), None);

    let federation = testing::federation(4).federation;
    let words = SecretWords::generate().expect("randomness");
    let other = Wallet::new(federation, &words, &AccountOptions::default(), None).expect("opens");
    assert_eq!(restore(&disk, other), Some(StateError::OtherWallet));

    for (key, value) in [
        ("keychains", "{}"),
        ("certificate", "[]"),
        ("headers/00000000", "[\"00\"]"),
        ("payment/x", "{\"signed\":[]}"),
        ("wallet", ""),
    ] {
        let mut damaged = disk.clone();
        damaged.insert(key.to_owned(), value.as_bytes().to_vec());
        let error = restore(&damaged, session().wallet);
        assert!(
            matches!(&error, Some(StateError::Damaged { key: found, .. }) if found == key),
            "{key}: {error:?}"
        );
    }
    let written = String::from_utf8(disk["wallet"].clone()).expect("JSON");
    for (found, code, advice) in
        [(1, "state_too_old", "from its words"), (3, "state_too_new", "later release")]
    {
        let other = written.replace("\"version\":2", &format!("\"version\":{found}"));
        disk.insert("wallet".to_owned(), other.into_bytes());
        let error = restore(&disk, session().wallet).expect("refused");
        assert_eq!(error, StateError::Version { found });
        assert!(error.to_string().ends_with(advice), "{error}");
        assert_eq!(WalletError::State(error).code(), code);
    }
}

#[test]
fn a_wallet_that_only_watches_registers_and_cannot_pay() {
    let full = session().wallet;
    let record = full.account().record().clone();
    let mut watching = Wallet::watch(full.federation().clone(), record, None).expect("valid");
    assert_eq!(watching.scripts(), full.scripts());
    assert_eq!(watching.sign_cancel(Txid::all_zeros()).err(), Some(WalletError::WatchOnly));
    let psbt = Psbt::from_unsigned_tx(Transaction { input: Vec::new(), ..transaction() }).expect("unsigned");
    assert_eq!(watching.propose(psbt).err(), Some(WalletError::WatchOnly));
}

#[test]
fn who_waits_for_an_answer_hears_of_it_even_if_it_brings_no_news() {
    let mut session = live();
    let answer = |session: &mut Session| {
        let (sent, mut told) = drain(session);
        for (id, _) in sent {
            tell(session, id, &ServerMessage::Pong);
        }
        told.extend(drain(session).1);
        told.iter().filter(|output| matches!(output, Output::Event(Event::Synced))).count()
    };
    assert_eq!(answer(&mut session), 1);
    assert!(session.is_synced());
    follow(&mut session);
    drain(&mut session);
    for _ in 0..crate::account::ACCOUNT_GAP {
        session.next_address().expect("an address");
        assert!(session.is_synced(), "it is among those that nodes follow with the account");
    }
    session.next_address().expect("an address");
    assert!(!session.is_synced(), "a script beyond them is being subscribed");
    assert_eq!(answer(&mut session), 1);
}

/// Lets the server answer all that the session has asked for, by one message.
fn settle(session: &mut Session) {
    session.pending.clear();
    tell(session, None, &ServerMessage::Pong);
}

/// All nodes have accepted the session's account.
pub(super) fn certify(session: &mut Session) {
    let world = testing::federation(4);
    let record = session.wallet.account().record().clone();
    let nodes = (1..).map(crate::NodeId).zip(&world.keys);
    let acceptances = nodes.map(|(node, key)| (node, record.accept(&world.federation, key))).collect();
    let epoch = world.federation.epoch();
    let certificate = crate::account::AccountCertificate { record, epoch, acceptances };
    session.wallet.set_certificate(certificate).expect("valid");
}

#[test]
fn old_coins_are_told_of_once_and_move_home_by_themselves_if_they_may() {
    let mut session = live();
    certify(&mut session);
    // Two weeks, or a quarter of a short delay, before the horizon.
    let height = 1 + (4_320 - 288) / 4 * 3;
    crate::wallet::tests::mine(&mut session.wallet, height);
    let coin = crate::wallet::tests::confirmed(&mut session.wallet, false);
    let news = |session: &mut Session| {
        let (sent, others) = drain(session);
        let expiring = others.iter().filter(
            |output| matches!(output, Output::Event(Event::CoinExpiring { outpoint, .. }) if *outpoint == coin),
        );
        let moves = sent.iter().filter_map(|(_, message)| {
            let ClientMessage::TransactionBroadcast { proposal, .. } = message else { return None };
            Some(proposal.outpoints())
        });
        (expiring.count(), moves.collect::<Vec<_>>())
    };
    drain(&mut session);
    settle(&mut session);
    assert_eq!(news(&mut session), (1, vec![]), "told, and not moved unasked");
    let quote = session.refresh_quote(None).expect("in proportion").expect("one is old");
    assert_eq!((quote.coins, quote.amount.to_sat(), quote.expired), (1, 50_000, false));
    crate::wallet::tests::mine(&mut session.wallet, height + 1);
    settle(&mut session);
    assert_eq!(news(&mut session), (0, vec![]), "told once");

    session.set_auto_refresh(Some(crate::relay_policy::FEE_RATE_MIN)).expect("in bounds");
    settle(&mut session);
    assert_eq!(news(&mut session), (0, vec![vec![coin]]));
    crate::wallet::tests::mine(&mut session.wallet, height + 2);
    settle(&mut session);
    assert_eq!(news(&mut session), (0, vec![]), "one at a time");
    // What failed is not made again at the next block: each attempt uses up an address.
    let (txid, _) = session.payments().next().expect("the refresh");
    session.finish(txid, PaymentState::Failed { message: String::new(), retry: false });
    for (blocks, moves) in [(3, 0), (4, 0), (200, 1)] {
        crate::wallet::tests::mine(&mut session.wallet, height + blocks);
        settle(&mut session);
        assert_eq!(news(&mut session).1.len(), moves, "{blocks}");
    }
}
