//! Promises and releases: V5.

use crate::testkit::{Kit, OTHER, sole, spend, target};
use bitcoin::OutPoint;
use quorate_protocol::{
    NodeId, Round,
    release::SignedPromise,
    vote::{SignedVote, Verdict},
    wire::{ErrorCode, VotingReply, VotingRequest},
};
use std::time::Duration;

const FIRST: Round = Round(0);

fn request(outpoint: OutPoint, round: Round) -> VotingRequest {
    VotingRequest::ReleaseRequest {
        outpoint,
        round,
        rejects: vec![],
        cancel: None,
        promises: vec![],
        previous: None,
    }
}

fn ask(kit: &mut Kit, request: VotingRequest) -> Option<SignedPromise> {
    match kit.ask(OTHER, request).expect("it answers") {
        VotingReply::ReleaseResponse { promise, .. } => promise,
        other => panic!("{other:?}"),
    }
}

/// A node that has approved a spend of a coin.
fn locked() -> (Kit, OutPoint, bitcoin::Transaction) {
    let mut kit = Kit::voting();
    let coin = kit.open_coin(0);
    let transaction = spend(&[coin], 99_000);
    kit.ask(OTHER, kit.vote_request(sole(&transaction))).expect("approves");
    kit.out.clear();
    (kit, coin, transaction)
}

#[test]
fn without_a_reason_nobody_leaves_a_round() {
    let (mut kit, coin, _) = locked();
    assert_eq!(ask(&mut kit, request(coin, FIRST)), None);
    assert_eq!(ask(&mut kit, request(coin, FIRST.next())), None, "no round is skipped");
    let strangers = vec![kit.promise(NodeId(2), coin, FIRST)];
    let few = VotingRequest::ReleaseRequest {
        outpoint: coin,
        round: FIRST,
        rejects: vec![],
        cancel: None,
        promises: strangers,
        previous: None,
    };
    assert_eq!(ask(&mut kit, few), None, "one promise may be a liar's");
}

#[test]
fn its_own_timer_is_reason_enough_and_the_promise_is_on_disk_before_it_leaves() {
    let (mut kit, coin, transaction) = locked();
    kit.now += Duration::from_secs(30);
    let promise = ask(&mut kit, request(coin, FIRST)).expect("its time is over");
    assert!(kit.written_before_reply().is_some());
    assert!(promise.verify(&kit.world.federation));
    assert_eq!((promise.round, promise.committed.clone()), (FIRST, None));
    assert_eq!(ask(&mut kit, request(coin, FIRST)), Some(promise), "asked again, it says the same");
    let late = kit.ask(OTHER, kit.commit_request(&target(&transaction), &[2, 3, 4]));
    assert_eq!(late.expect_err("the round is left").code, ErrorCode::RoundOver);
}

#[test]
fn two_promises_or_two_rejects_are_reason_enough() {
    let (mut kit, coin, transaction) = locked();
    let reject = |kit: &Kit, node: u16| {
        let (node, context) = (NodeId(node), kit.world.federation.context());
        SignedVote::sign(context, node, kit.key(node), target(&transaction), Verdict::Reject)
    };
    let rejects = vec![reject(&kit, 2), reject(&kit, 2)];
    let with = |rejects: Vec<SignedVote>, promises: Vec<SignedPromise>| VotingRequest::ReleaseRequest {
        outpoint: coin,
        round: FIRST,
        rejects,
        cancel: None,
        promises,
        previous: None,
    };
    assert_eq!(ask(&mut kit, with(rejects, vec![])), None, "one node twice is one node");
    let rejects = vec![reject(&kit, 2), reject(&kit, 3)];
    assert!(ask(&mut kit, with(rejects, vec![])).is_some());
    let (mut kit, _, _) = locked();
    let promises = vec![kit.promise(NodeId(3), coin, FIRST), kit.promise(NodeId(4), coin, FIRST)];
    assert!(ask(&mut kit, with(vec![], promises)).is_some());
}

#[test]
fn a_promise_names_what_the_node_has_committed_to() {
    let (mut kit, coin, transaction) = locked();
    let about = target(&transaction);
    kit.ask(OTHER, kit.commit_request(&about, &[2, 3, 4])).expect("commits");
    kit.now += Duration::from_secs(30);
    let promise = ask(&mut kit, request(coin, FIRST)).expect("its time is over");
    assert_eq!(promise.committed, Some(about));
}

#[test]
fn q_promises_free_the_coin_and_another_spend_can_be_voted_for() {
    let (mut kit, coin, _) = locked();
    kit.now += Duration::from_secs(30);
    let own = ask(&mut kit, request(coin, FIRST)).expect("its time is over");
    let promises = [own, kit.promise(NodeId(2), coin, FIRST), kit.promise(NodeId(3), coin, FIRST)];
    let promises = promises.into_iter().map(|promise| (promise.node, promise)).collect();
    let release = quorate_protocol::release::ReleaseCertificate::assemble(coin, FIRST, &promises, &[]);
    release.verify(&kit.world.federation).expect("q promises");
    let mut forged = release.clone();
    forged.promises.pop_first();
    kit.ask(OTHER, VotingRequest::Released { releases: vec![forged] }).expect("takes note");
    assert!(kit.machine.holds(&coin).is_some(), "q - 1 promises free nothing");
    kit.ask(OTHER, VotingRequest::Released { releases: vec![release] }).expect("takes note");
    assert_eq!(kit.machine.holds(&coin), None);
    let other = kit.vote_request(sole(&spend(&[coin], 98_000)));
    let VotingReply::VoteResponse { vote, .. } = kit.ask(OTHER, other).expect("votes") else {
        panic!("a vote")
    };
    assert_eq!(vote.verdict, Verdict::Approve);
    assert_eq!(vote.target.inputs().get(&coin), Some(&FIRST.next()));
}
