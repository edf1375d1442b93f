//! What the bridge answers by itself, and what becomes of its streams.

use super::{
    requests::{RELAYS_MAX, SNAPSHOT_TIMEOUT},
    *,
};
use bitcoin::{BlockHash, ScriptBuf, Txid, hashes::Hash as _};
use quorate_protocol::{
    proposal::Proposal,
    wire::{BlockRef, ChainTip, FeeEstimates, KeyOutcome, KeyResult, TransactionStatus, decode},
};

const OURS: FederationId = FederationId([7; 32]);
const LINK: LinkId = LinkId(1);
const START: Duration = Duration::ZERO;

fn tip() -> ChainTip {
    ChainTip { block: BlockRef { height: 5, hash: BlockHash::all_zeros() } }
}

fn hello(protocol: u32, federation: Option<FederationId>) -> ClientMessage {
    ClientMessage::Hello { protocol, federation, agent: "test".to_owned() }
}

fn key() -> SubscriptionKey {
    SubscriptionKey::Script(ScriptBuf::new())
}

fn sole() -> (ClientMessage, Txid) {
    let transaction = bitcoin::Transaction {
        version: bitcoin::transaction::Version::TWO,
        lock_time: bitcoin::absolute::LockTime::ZERO,
        input: vec![bitcoin::TxIn::default()],
        output: vec![],
    };
    let txid = transaction.compute_txid();
    (ClientMessage::TransactionBroadcast { proposal: Proposal::Sole { transaction }, account: None }, txid)
}

/// A bridge of a federation of so many nodes that has been told of the tip, with a session that has not greeted.
fn bridge(nodes: usize) -> (Machine, WalletId) {
    let (mut machine, session) = connected(Machine::new(OURS, nodes));
    if nodes == 1 {
        machine.handle_link_lost(LinkId(2));
    }
    (machine, session)
}

fn connected(mut machine: Machine) -> (Machine, WalletId) {
    for link in [LINK, LinkId(2)] {
        machine.handle_link_opened(link);
        machine.handle_event(link, ServerMessage::Tip { tip: tip() }).expect("no refusal");
    }
    let session = machine.handle_opened(START, None);
    (machine, session)
}

fn greeted() -> (Machine, WalletId) {
    greeted_by(1)
}

fn greeted_by(nodes: usize) -> (Machine, WalletId) {
    let (mut machine, session) = bridge(nodes);
    machine.handle_message(START, session, Some(1), hello(limits::PROTOCOL_VERSION, Some(OURS)));
    assert!(matches!(next(&mut machine, session), Some(ServerMessage::Welcome { .. })));
    outputs(&mut machine);
    (machine, session)
}

fn next(machine: &mut Machine, session: WalletId) -> Option<ServerMessage> {
    match machine.poll_message(session) {
        Next::Frame(text) => Some(decode::<ServerMessage>(text.as_bytes()).expect("a message").body),
        Next::Nothing | Next::Closed => None,
    }
}

fn outputs(machine: &mut Machine) -> Vec<Output> {
    let all = std::iter::from_fn(|| machine.poll_output());
    all.filter(|output| !matches!(output, Output::Ready(_))).collect()
}

fn refusal(machine: &mut Machine, session: WalletId) -> ErrorCode {
    match next(machine, session) {
        Some(ServerMessage::Error { error }) => error.code,
        other => panic!("{other:?}"),
    }
}

/// Submits a transaction; gives the relay that it has.
fn submit(machine: &mut Machine, session: WalletId) -> RelayId {
    machine.handle_message(START, session, Some(2), sole().0);
    let open = outputs(machine).into_iter().find_map(|output| match output {
        Output::Open { relay, .. } => Some(relay),
        Output::Interest(_) | Output::Send { .. } | Output::Drop(_) | Output::Ready(_) => None,
    });
    open.expect("a relay")
}

/// The node answers that there is nothing of the key.
fn tell_nothing(machine: &mut Machine) {
    let (utxos, proofs, history_from) = (vec![], vec![], Some(1));
    let outcome = KeyOutcome::Snapshot { utxos, proofs, status: None, history_from, followed: None };
    let results = vec![KeyResult { key: key(), outcome }];
    let told = ServerMessage::UTXOSubscribed { results, tip: tip(), more: false, since: None };
    machine.handle_event(LINK, told).expect("no refusal");
}

#[test]
fn every_wrong_greeting_has_its_own_refusal() {
    let version = limits::PROTOCOL_VERSION;
    let cases = [
        (ClientMessage::Ping, ErrorCode::HelloExpected),
        (hello(version + 1, None), ErrorCode::UnsupportedProtocol),
        (hello(version, Some(FederationId([8; 32]))), ErrorCode::WrongFederation),
    ];
    let (mut machine, session) = bridge(1);
    for (message, code) in cases {
        machine.handle_message(START, session, Some(1), message);
        assert_eq!(refusal(&mut machine, session), code);
    }
    let (mut machine, session) = greeted();
    machine.handle_message(START, session, Some(1), hello(version, None));
    assert_eq!(refusal(&mut machine, session), ErrorCode::AlreadyGreeted);
    let mut machine = Machine::new(OURS, 1);
    let session = machine.handle_opened(START, None);
    machine.handle_message(START, session, Some(1), hello(version, None));
    assert_eq!(refusal(&mut machine, session), ErrorCode::NoNodeAvailable, "no node has told of a tip");
    assert!(!machine.is_useful());
}

#[test]
fn what_is_no_message_is_refused_and_keeps_the_session() {
    let (mut machine, session) = greeted();
    machine.handle_malformed(
        START,
        session,
        None,
        WireError::sender(ErrorCode::MalformedMessage, "no message"),
    );
    assert_eq!(refusal(&mut machine, session), ErrorCode::MalformedMessage);
    machine.handle_binary(START, session);
    assert_eq!(refusal(&mut machine, session), ErrorCode::MalformedMessage);
    machine.handle_message(START, session, None, ClientMessage::Ping);
    assert!(matches!(next(&mut machine, session), Some(ServerMessage::Pong)));
}

#[test]
fn a_flood_that_nobody_reads_ends_its_own_session_and_no_other() {
    let (mut machine, session) = greeted();
    let other = machine.handle_opened(START, None);
    for _frame in 0..10_000 {
        machine.handle_binary(START, session);
    }
    assert!(matches!(machine.poll_message(session), Next::Closed));
    machine.handle_closed(session);
    assert_eq!(machine.sizes(), (1, 0));
    assert!(matches!(machine.poll_message(other), Next::Nothing));
}

#[test]
fn a_subscription_waits_for_a_node_and_not_for_ever() {
    let (mut machine, session) = greeted();
    machine.handle_message(START, session, Some(3), ClientMessage::subscribe(vec![key()]));
    let asked = outputs(&mut machine);
    assert!(
        matches!(&asked[..], [Output::Interest(ClientMessage::UTXOSubscribe { keys, .. })] if *keys == [key()])
    );
    assert!(next(&mut machine, session).is_none());
    machine.handle_timeout(SNAPSHOT_TIMEOUT);
    assert_eq!(refusal(&mut machine, session), ErrorCode::NoNodeAvailable);
    machine.handle_timeout(SNAPSHOT_TIMEOUT * 2);
    assert!(next(&mut machine, session).is_none(), "once");

    machine.handle_message(START, session, Some(4), ClientMessage::subscribe(vec![key()]));
    tell_nothing(&mut machine);
    assert!(matches!(next(&mut machine, session), Some(ServerMessage::UTXOSubscribed { .. })));
}

#[test]
fn the_last_one_to_leave_ends_the_interest_at_the_nodes() {
    let (mut machine, session) = greeted();
    machine.handle_message(START, session, Some(3), ClientMessage::subscribe(vec![key()]));
    outputs(&mut machine);
    assert_eq!(machine.keys(), 1);
    machine.handle_closed(session);
    let left = outputs(&mut machine);
    assert!(
        matches!(&left[..], [Output::Interest(ClientMessage::UTXOUnsubscribe { keys })] if *keys == [key()])
    );
    assert_eq!(machine.keys(), 0);
}

#[test]
fn who_comes_back_soon_is_answered_without_asking_the_nodes() {
    let (mut machine, session) = greeted();
    let subscribe = || ClientMessage::subscribe(vec![key()]);
    machine.handle_message(START, session, Some(3), subscribe());
    tell_nothing(&mut machine);
    machine.handle_closed(session);
    machine.handle_timeout(LINGER);
    assert_eq!(machine.keys(), 0);
    outputs(&mut machine);

    let again = machine.handle_opened(START, None);
    machine.handle_message(START, again, Some(1), hello(limits::PROTOCOL_VERSION, Some(OURS)));
    machine.handle_message(START, again, Some(2), subscribe());
    let asked = outputs(&mut machine);
    assert!(asked.is_empty(), "{asked:?}");
    assert!(matches!(next(&mut machine, again), Some(ServerMessage::Welcome { .. })));
    assert!(matches!(next(&mut machine, again), Some(ServerMessage::UTXOSubscribed { .. })));
    // Wanted again, it stays; when nobody has come back for a while, nodes are told.
    machine.handle_timeout(LINGER * 2);
    assert_eq!(machine.keys(), 1);
    machine.handle_closed(again);
    machine.handle_timeout(LINGER * 3);
    assert!(outputs(&mut machine).is_empty());
    machine.handle_timeout(LINGER * 4);
    let left = outputs(&mut machine);
    assert!(
        matches!(&left[..], [Output::Interest(ClientMessage::UTXOUnsubscribe { keys })] if *keys == [key()])
    );
}

#[test]
fn a_lost_relay_says_whose_it_was_and_a_query_ends_in_time() {
    let (mut machine, session) = greeted();
    let relay = submit(&mut machine, session);
    machine.handle_relay_lost(relay);
    assert_eq!(refusal(&mut machine, session), ErrorCode::CoordinatorLost);
    let relay = submit(&mut machine, session);
    machine.handle_unreachable(relay);
    assert_eq!(refusal(&mut machine, session), ErrorCode::NoNodeAvailable);
    machine.handle_message(START, session, Some(5), ClientMessage::UTXOStateQuery { keys: vec![key()] });
    let day = Duration::from_secs(86_400);
    machine.handle_timeout(day);
    assert_eq!(refusal(&mut machine, session), ErrorCode::NoNodeAvailable);
    outputs(&mut machine);
    let relay = submit(&mut machine, session);
    machine.handle_timeout(Duration::from_secs(600));
    assert_eq!(
        machine.sizes(),
        (1, 1),
        "a submission is followed as long as its node may still say something"
    );
    machine.handle_relay_lost(relay);
    machine.handle_relay_lost(relay);
    assert_eq!(refusal(&mut machine, session), ErrorCode::CoordinatorLost);
    submit(&mut machine, session);
    machine.handle_timeout(day);
    assert_eq!(refusal(&mut machine, session), ErrorCode::CoordinatorLost, "silent for too long");
    assert!(next(&mut machine, session).is_none(), "once");
}

#[test]
fn each_page_of_an_answer_has_its_own_time() {
    let (mut machine, session) = greeted();
    machine.handle_message(START, session, Some(5), ClientMessage::UTXOStateQuery { keys: vec![key()] });
    let page = |more| ServerMessage::UTXOStateResponse { results: vec![], tip: tip(), more };
    let seconds = Duration::from_secs;
    let relay = RelayId(1);
    machine.handle_timeout(seconds(12));
    machine.handle_answer(seconds(12), relay, Some(5), page(true));
    machine.handle_timeout(seconds(21));
    machine.handle_answer(seconds(21), relay, Some(5), page(false));
    machine.handle_timeout(seconds(100));
    for _page in 0..2 {
        assert!(matches!(next(&mut machine, session), Some(ServerMessage::UTXOStateResponse { .. })));
    }
    assert!(next(&mut machine, session).is_none(), "no refusal in the middle");
    machine.handle_message(
        seconds(100),
        session,
        Some(6),
        ClientMessage::UTXOStateQuery { keys: vec![key()] },
    );
    machine.handle_answer(seconds(101), RelayId(2), Some(6), page(true));
    machine.handle_timeout(seconds(112));
    assert!(next(&mut machine, session).is_some());
    assert_eq!(refusal(&mut machine, session), ErrorCode::NoNodeAvailable);
}

#[test]
fn submitted_again_a_transaction_has_one_coordinator() {
    let (mut machine, session) = greeted();
    let first = submit(&mut machine, session);
    machine.handle_message(START, session, Some(6), sole().0);
    let changed = outputs(&mut machine);
    assert!(
        matches!(&changed[..], [Output::Drop(old), Output::Open { relay, .. }] if *old == first && *relay != first)
    );
    assert_eq!(machine.sizes(), (1, 1));
    machine.handle_answer(START, first, Some(2), ServerMessage::Pong);
    assert!(next(&mut machine, session).is_none(), "nobody listens to the old one");
}

#[test]
fn the_end_of_a_submission_ends_its_relay() {
    let (mut machine, session) = greeted();
    let relay = submit(&mut machine, session);
    let (_, txid) = sole();
    let news = |status| ServerMessage::TransactionStatus { txid, status };
    machine.handle_answer(START, relay, Some(2), news(TransactionStatus::Pending));
    assert!(outputs(&mut machine).is_empty());
    let failed = TransactionStatus::Failed { message: "too late".to_owned(), retry: true, releases: vec![] };
    machine.handle_answer(START, relay, Some(2), news(failed));
    assert!(matches!(&outputs(&mut machine)[..], [Output::Drop(ended)] if *ended == relay));
    assert_eq!(machine.sizes(), (1, 0));
}

#[test]
fn requests_under_way_are_limited() {
    let (mut machine, session) = greeted();
    for id in 0..RELAYS_MAX {
        for message in [ClientMessage::FeeRateQuery, ClientMessage::UTXOStateQuery { keys: vec![key()] }] {
            machine.handle_message(START, session, u64::try_from(id).ok(), message);
        }
    }
    assert!(next(&mut machine, session).is_none());
    for message in [ClientMessage::FeeRateQuery, ClientMessage::UTXOStateQuery { keys: vec![key()] }] {
        machine.handle_message(START, session, Some(0), message);
        assert_eq!(refusal(&mut machine, session), ErrorCode::LimitExceeded);
    }
    machine.handle_closed(session);
    assert_eq!(machine.sizes(), (0, 0));
}

#[test]
fn what_is_submitted_again_needs_no_room() {
    let (mut machine, session) = greeted();
    let (message, _) = sole();
    machine.handle_message(START, session, Some(1), message.clone());
    for _ in 1..RELAYS_MAX {
        machine.handle_message(START, session, None, ClientMessage::UTXOStateQuery { keys: vec![key()] });
    }
    outputs(&mut machine);
    machine.handle_message(START, session, Some(2), message);
    assert!(
        matches!(&outputs(&mut machine)[..], [Output::Drop(_), Output::Open { .. }]),
        "it goes to another node though the session has no more requests"
    );
    assert!(next(&mut machine, session).is_none());
}

#[test]
fn silence_ends_a_session() {
    let (mut machine, session) = greeted();
    machine.check_alive(limits::PING_INTERVAL * 2, session);
    assert!(matches!(machine.poll_message(session), Next::Nothing));
    machine.check_alive(limits::PING_INTERVAL * 3, session);
    assert!(matches!(machine.poll_message(session), Next::Closed));
}

fn estimates(rate: u64) -> ServerMessage {
    let estimates = FeeEstimates { next_block: rate, six_blocks: rate, day: rate, floor: 250 };
    ServerMessage::FeeRate { estimates }
}

fn six_blocks(machine: &mut Machine, session: WalletId) -> u64 {
    let Some(ServerMessage::FeeRate { estimates }) = next(machine, session) else { panic!("an estimate") };
    estimates.six_blocks
}

#[test]
fn a_fee_is_what_lies_in_the_middle_of_what_all_nodes_say() {
    let (mut machine, session) = greeted_by(4);
    let links: Vec<LinkId> = (1..=4).map(LinkId).collect();
    links.iter().skip(2).for_each(|link| drop(machine.handle_link_opened(*link)));
    let ask = |machine: &mut Machine, now| {
        machine.handle_message(now, session, Some(5), ClientMessage::FeeRateQuery);
        let asked = outputs(machine);
        asked.iter().any(|one| matches!(one, Output::Interest(ClientMessage::FeeRateQuery)))
    };
    assert!(ask(&mut machine, START));
    for (link, rate) in links.iter().zip([1_000_000, 260, 255, 300]) {
        assert!(next(&mut machine, session).is_none(), "not before all have answered");
        machine.handle_event(*link, estimates(rate)).expect("no refusal");
    }
    assert_eq!(six_blocks(&mut machine, session), 260);
    // For some seconds nobody is asked again.
    assert!(!ask(&mut machine, Duration::from_secs(5)));
    assert_eq!(six_blocks(&mut machine, session), 260);
    // Later they are; who is silent or gone is not waited for.
    let later = Duration::from_secs(20);
    assert!(ask(&mut machine, later));
    for (link, rate) in links.iter().zip([1_000_000, 270, 265, 260]).skip(1) {
        assert!(next(&mut machine, session).is_none());
        machine.handle_event(*link, estimates(rate)).expect("no refusal");
    }
    machine.handle_timeout(later + Duration::from_secs(1));
    assert_eq!(six_blocks(&mut machine, session), 265);
    // Fewer than a quorum answer: that is said, and the next question is asked anew.
    let last = Duration::from_secs(40);
    assert!(ask(&mut machine, last));
    for link in links.iter().take(3) {
        machine.handle_event(*link, estimates(270)).expect("no refusal");
    }
    machine.handle_link_lost(links[0]);
    machine.handle_timeout(last + Duration::from_secs(1));
    assert_eq!(refusal(&mut machine, session), ErrorCode::NoNodeAvailable);
    assert!(ask(&mut machine, last + Duration::from_secs(1)));
}

#[test]
fn who_has_most_waiting_pays_for_it_and_nothing_is_counted_that_is_gone() {
    let machine = Machine::new(OURS, 1).with_queued_max(4_000);
    let (mut machine, hog) = connected(machine);
    let other = machine.handle_opened(START, None);
    let ping = |machine: &mut Machine, session, id| {
        machine.handle_message(START, session, Some(id), ClientMessage::Ping);
    };
    for session in [hog, other] {
        machine.handle_message(START, session, Some(1), hello(limits::PROTOCOL_VERSION, Some(OURS)));
        while next(&mut machine, session).is_some() {}
    }
    for id in 0..500 {
        ping(&mut machine, hog, id);
        if matches!(machine.poll_message(other), Next::Closed) {
            panic!("the other one is let go");
        }
    }
    assert!(machine.queued <= 4_000);
    assert!(matches!(machine.poll_message(hog), Next::Closed));
    ping(&mut machine, other, 7);
    assert!(matches!(next(&mut machine, other), Some(ServerMessage::Pong)));
    // One that falls silent with something in its queue leaves nothing behind.
    ping(&mut machine, other, 8);
    machine.check_alive(Duration::from_secs(86_400), other);
    machine.handle_closed(other);
    machine.handle_closed(hog);
    assert_eq!(machine.queued, 0);
}

#[test]
fn a_key_that_no_node_tells_of_leaves_no_other_unwatched() {
    let (mut machine, session) = greeted();
    let unknown = SubscriptionKey::Script(ScriptBuf::from_bytes(vec![1]));
    let keys = vec![key(), unknown.clone()];
    machine.handle_message(START, session, Some(3), ClientMessage::subscribe(keys));
    tell_nothing(&mut machine);
    assert!(next(&mut machine, session).is_none());
    machine.handle_timeout(SNAPSHOT_TIMEOUT);
    let Some(ServerMessage::UTXOSubscribed { results, .. }) = next(&mut machine, session) else {
        panic!("no answer")
    };
    assert!(matches!(results[0].outcome, KeyOutcome::Snapshot { .. }));
    assert!(matches!(&results[1].outcome, KeyOutcome::Error(error) if error.retry));
}
