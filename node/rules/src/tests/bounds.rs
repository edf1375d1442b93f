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
    NodeId, Round,
    wire::{ClientMessage, ErrorCode, ServerMessage, SubscriptionKey, VotingReply, VotingRequest, limits},
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
    let (protocol, agent) = (limits::PROTOCOL_VERSION, "test".to_owned());
    kit.say(ClientMessage::Hello { protocol, federation: None, agent });
    kit.told();
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

#[test]
fn while_there_is_much_room_nobody_is_asked_how_many_accounts_it_brought() {
    let mut kit = Kit::voting();
    let party = Party::Node(OTHER);
    let now = kit.machine.cx.now;
    while kit.machine.cx.newcomers.admit(now, party) {}
    let record = kit.world.certificate().record;
    kit.ask(OTHER, VotingRequest::AccountRequest { record }).expect("accepted");
}
