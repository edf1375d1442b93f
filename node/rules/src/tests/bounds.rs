//! Bounds that are filled: what is held of peers, wallets and coins has an end, and what comes after it is told so or
//! waits.

use crate::{
    Party, SessionId,
    effects::Reason,
    lookups::History,
    testkit::{Kit, OTHER, WALLET},
};
use bitcoin::OutPoint;
use quorate_protocol::{
    AccountId, NodeId, Round,
    account::AccountRecord,
    proposal::Proposal,
    wire::{
        ClientMessage, ErrorCode, Fault, KeyOutcome, ServerMessage, SubscriptionKey, VotingReply,
        VotingRequest, limits,
    },
};
use std::{collections::HashMap, time::Duration};

/// As `release::RUNS_MAX`.
const RUNS: u32 = 4_096;
/// As `release::ASKED_PER_PEER_MAX`.
const ASKED: u32 = 512;
/// As `lookups::HISTORIES_PER_SESSION_MAX`.
const HISTORIES: usize = 4_096;

#[test]
fn a_node_pushes_so_many_releases_at_a_time_and_the_next_when_one_is_over() {
    let mut kit = Kit::voting();
    let coin = |vout| OutPoint { vout, ..OutPoint::null() };
    let start = |kit: &mut Kit, vout| {
        kit.machine.releases.start(&mut kit.machine.cx, coin(vout), Round(0), &Reason::default());
        kit.drain();
        kit.asked().len()
    };
    for vout in 0..RUNS {
        assert_eq!(start(&mut kit, vout), 4, "everybody is asked, itself too");
    }
    assert_eq!(start(&mut kit, RUNS), 0, "no room");
    assert_eq!(start(&mut kit, 0), 0, "one that is under way is not begun again");
    assert_eq!(kit.machine.sizes().releases, usize::try_from(RUNS).expect("fits"));
}

#[test]
fn a_peer_starts_so_many_timers_and_takes_none_from_another() {
    let mut kit = Kit::voting();
    let coins: Vec<OutPoint> = (0..=ASKED).map(|vout| kit.open_coin(vout)).collect();
    let ask = |kit: &mut Kit, from: NodeId, outpoint: OutPoint| {
        let request = VotingRequest::ReleaseRequest {
            outpoint,
            round: Round(0),
            rejects: vec![],
            cancel: None,
            promises: vec![],
            previous: None,
        };
        match kit.ask(from, request).expect("it answers") {
            VotingReply::ReleaseResponse { promise, .. } => promise.is_some(),
            other => panic!("{other:?}"),
        }
    };
    for coin in &coins {
        assert!(!ask(&mut kit, OTHER, *coin), "no reason yet");
    }
    let last = *coins.last().expect("one too many");
    kit.wait(Duration::from_secs(31));
    assert!(ask(&mut kit, OTHER, coins[0]) && ask(&mut kit, OTHER, coins[1]), "their time is over");
    assert!(!ask(&mut kit, OTHER, last), "its timer was never started");
    assert!(!ask(&mut kit, NodeId(3), last), "another peer starts it");
    kit.wait(Duration::from_secs(31));
    assert!(ask(&mut kit, OTHER, last));
}

#[test]
fn a_session_waits_for_so_many_histories_and_others_have_their_own_room() {
    let mut kit = Kit::voting();
    let history = |session| History { session, id: None, keys: vec![], refused: HashMap::new(), since: 0 };
    let lookups = &mut kit.machine.lookups;
    let first = lookups.add_history(history(WALLET)).expect("room");
    for _ in 1..HISTORIES {
        lookups.add_history(history(WALLET)).expect("room");
    }
    assert!(lookups.add_history(history(WALLET)).is_err(), "one too many");
    lookups.add_history(history(SessionId { certificate: 9, number: 77 })).expect("another's room");
    assert!(lookups.take_history(first).is_some());
    lookups.add_history(history(WALLET)).expect("one was told");
    lookups.remove_session(WALLET);
    lookups.add_history(history(WALLET)).expect("who comes back begins anew");
}

#[test]
fn a_script_is_no_key_if_no_output_needs_one_so_long() {
    let mut kit = Kit::voting();
    kit.greet(WALLET);
    for (bytes, refused) in [(limits::KEY_SCRIPT_BYTES_MAX, false), (limits::KEY_SCRIPT_BYTES_MAX + 1, true)]
    {
        kit.say(ClientMessage::subscribe(vec![SubscriptionKey::Script(vec![0x51; bytes].into())]));
        let told = kit.told();
        let error = told.iter().find_map(|message| match message {
            ServerMessage::Error { error } => Some(error.code),
            _ => None,
        });
        assert_eq!(error, refused.then_some(ErrorCode::LimitExceeded), "{told:?}");
    }
}

/// Fills the room for accounts without a coin up to so many, and gives a record.
fn crowded(room: u32) -> (Kit, AccountRecord) {
    let mut kit = Kit::voting();
    kit.machine.cx.ledger.crowd(65_536 - room);
    let record = kit.world.certificate().record;
    kit.greet(WALLET);
    (kit, record)
}

/// Parties to whom so much room is left that is scarce have as many accounts followed.
fn hold(kit: &mut Kit, party: Party, accounts: u8) {
    for number in 0..accounts {
        kit.machine.cx.newcomers.add(AccountId([100 + number; 32]), party);
    }
}

#[test]
fn an_account_that_there_is_no_room_for_is_accepted_and_not_followed() {
    for (room, held, followed) in [(2, 1, true), (2, 2, false), (0, 0, false), (40_000, 100, true)] {
        let (mut kit, record) = crowded(room);
        hold(&mut kit, Party::Node(OTHER), held);
        kit.ask(OTHER, VotingRequest::AccountRequest { record: record.clone() }).expect("accepted");
        let id = record.id(&kit.world.federation);
        let is_followed = kit.machine.cx.ledger.account_since(&id).is_some();
        assert_eq!(is_followed, followed, "{held} of {room} are its own");
    }
}

#[test]
fn who_brought_many_accounts_is_told_that_there_is_no_room_for_more_and_others_have_it() {
    let (mut kit, record) = crowded(2);
    hold(&mut kit, Party::Certificate(WALLET.certificate), 2);
    let id = record.id(&kit.world.federation);
    let subscribe = |kit: &mut Kit, session: SessionId| {
        let accounts = [(id, record.clone())].into();
        let keys = vec![SubscriptionKey::Account(id)];
        let message = ClientMessage::UTXOSubscribe { keys, accounts, since: None };
        kit.say_in(session, message);
        kit.told().into_iter().find_map(|message| match message {
            ServerMessage::UTXOSubscribed { results, .. } => results.into_iter().next(),
            _ => None,
        })
    };
    let refused = subscribe(&mut kit, WALLET).expect("answered");
    let KeyOutcome::Error(error) = refused.outcome else { panic!("{refused:?}") };
    assert_eq!((error.code, error.fault, error.retry), (ErrorCode::UnknownAccount, Fault::Receiver, true));
    let other = SessionId { certificate: WALLET.certificate + 1, number: 1 };
    kit.greet(other);
    let known = subscribe(&mut kit, other).expect("answered");
    assert!(matches!(known.outcome, KeyOutcome::Snapshot { .. }), "{known:?}");
}

#[test]
fn an_account_that_comes_with_a_payment_is_followed_in_the_same_share() {
    let (mut kit, record) = crowded(2);
    hold(&mut kit, Party::Certificate(WALLET.certificate), 2);
    let proposal = Proposal::Joint(Box::new(kit.world.proposal()));
    let account = Some(kit.world.certificate());
    kit.say(ClientMessage::TransactionBroadcast { proposal, account });
    let id = record.id(&kit.world.federation);
    assert_eq!(kit.machine.cx.ledger.account_since(&id), None);
}
