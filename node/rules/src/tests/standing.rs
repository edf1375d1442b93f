//! Whether a node votes: what its peers say of the chain, and of its log (V9).

use crate::{
    Standing,
    testkit::{Kit, OTHER, sole, spend, target},
};
use bitcoin::OutPoint;
use quorate_protocol::{
    NodeId,
    log_head::{LogHead, SignedHead},
    wire::{ErrorCode, VotingReply, VotingRequest},
};
use std::time::Duration;

#[test]
fn a_node_whose_peers_are_further_on_the_chain_does_not_vote_and_one_peer_is_not_enough() {
    let mut kit = Kit::voting();
    kit.open_coin(0);
    let own = kit.machine.tip().height;
    let tell = |kit: &mut Kit, node: u16, height: u32| {
        let head = kit.head(NodeId(node));
        kit.ask(NodeId(node), VotingRequest::Heartbeat { head, height }).expect("an answer");
    };
    let standing = |kit: &Kit| kit.machine.status().standing;
    tell(&mut kit, 2, u32::MAX);
    tell(&mut kit, 3, own + 2);
    assert_eq!(standing(&kit), Standing::Voting, "blocks take a while to spread, and one node may lie");
    tell(&mut kit, 4, own + 3);
    let Standing::Following { reason: Some(reason), since: Some(_) } = standing(&kit) else {
        panic!("{:?}", standing(&kit))
    };
    assert!(reason.contains(&format!("at block {own}")) && reason.contains(&format!("at block {}", own + 3)));
    let vote = kit.vote_request(sole(&spend(&[kit.coins.keys().next().copied().expect("a coin")], 99_000)));
    assert_eq!(kit.ask(OTHER, vote.clone()).expect_err("it may be spent by now").code, ErrorCode::NotReady);
    kit.mine(1);
    assert_eq!(standing(&kit), Standing::Voting);
    kit.ask(OTHER, vote).expect("it votes");
}

#[test]
fn a_node_is_told_of_its_earlier_runs_in_turn_with_the_last() {
    // The kit has not heard of this one yet.
    const FOURTH: NodeId = NodeId(4);
    let mut kit = Kit::voting();
    let context = *kit.world.federation.context();
    let head_of = |kit: &Kit, node, sequence, start: u64, boot| {
        let at = |sequence| LogHead { sequence, ..LogHead::default() };
        SignedHead::sign(&context, node, kit.key(node), at(sequence), (at(start), boot))
    };
    let beat_of = |kit: &mut Kit, node, head| {
        let Ok(VotingReply::HeartbeatResponse { known, .. }) =
            kit.ask(node, VotingRequest::Heartbeat { head, height: 0 })
        else {
            panic!("a heartbeat")
        };
        known.map(|known| (known.boot, known.head.sequence))
    };
    let head = |kit: &Kit, sequence, start, boot| head_of(kit, FOURTH, sequence, start, boot);
    let beat = |kit: &mut Kit, head| beat_of(kit, FOURTH, head);
    let first = head(&kit, 3, 0, 1);
    let second = head(&kit, 5, 5, 2);
    let third = head(&kit, 4, 2, 3);
    assert_eq!(beat(&mut kit, first), None);
    assert_eq!(beat(&mut kit, second), Some((1, 3)), "at once");
    // That answer may have been lost. Others ask in between, and each is told of its own.
    let (old, new) = (head_of(&kit, OTHER, 7, 0, 8), head_of(&kit, OTHER, 8, 8, 9));
    beat_of(&mut kit, OTHER, old);
    beat_of(&mut kit, OTHER, new);
    for _ in 0..2 {
        assert_eq!(beat(&mut kit, second), Some((1, 3)), "the earlier one first");
        assert!(matches!(beat_of(&mut kit, OTHER, new), Some((1 | 8, _))));
        assert_eq!(beat(&mut kit, second), Some((2, 5)));
        beat_of(&mut kit, OTHER, new);
    }
    // A run that began before what is known of an earlier one does not take its place.
    for _ in 0..3 {
        assert_eq!(beat(&mut kit, third), Some((2, 5)));
    }
}

#[test]
fn a_head_that_came_with_a_message_is_told_and_kept_and_a_forged_one_is_not() {
    let mut kit = Kit::voting();
    let context = *kit.world.federation.context();
    let at = |sequence| LogHead { sequence, ..LogHead::default() };
    let run = (LogHead::default(), 1);
    let signed = |kit: &Kit, sequence| SignedHead::sign(&context, OTHER, kit.key(OTHER), at(sequence), run);
    // What is asked is refused; that a node asks shows how far it is.
    let shown = |kit: &mut Kit, head| {
        let transaction = spend(&[OutPoint::null()], 1_000);
        let request = kit.commit_request(&target(&transaction), &[1, 2, 3]);
        let VotingRequest::CommitRequest { certificate, attempt, nodes, wallet, releases, .. } = request
        else {
            panic!("a commit")
        };
        let head = Some(head);
        let request = VotingRequest::CommitRequest { certificate, attempt, nodes, wallet, releases, head };
        kit.ask(OTHER, request).expect_err("nothing is known of it");
    };
    let known = |kit: &mut Kit, head| {
        let Ok(VotingReply::HeartbeatResponse { known, .. }) =
            kit.ask(OTHER, VotingRequest::Heartbeat { head, height: 0 })
        else {
            panic!("a heartbeat")
        };
        known.map(|known| known.head.sequence)
    };
    let (third, fifth) = (signed(&kit, 3), signed(&kit, 5));
    shown(&mut kit, third);
    shown(&mut kit, fifth);
    assert_eq!(known(&mut kit, fifth), Some(5), "it was told in no heartbeat");
    shown(&mut kit, SignedHead { head: at(9), ..fifth });
    assert_eq!(known(&mut kit, fifth), Some(5), "nobody signed a ninth");
    let sixth = signed(&kit, 6);
    shown(&mut kit, sixth);
    // Another run, with the last head of the one before not verified yet.
    let next = SignedHead::sign(&context, OTHER, kit.key(OTHER), at(8), (at(8), 2));
    shown(&mut kit, next);
    assert_eq!(known(&mut kit, next), Some(6), "of the run before, at once");
    kit.wait(Duration::from_secs(2));
    kit.restart();
    assert_eq!(known(&mut kit, next), Some(8), "it is on the disk");
}
