//! From one epoch to the next over four nodes.

use crate::{
    cluster::Cluster,
    records::{Change, ChangeSet},
};
use quorate_protocol::{
    NodeId, Round,
    digest::IdentityKey,
    federation::SuccessionPlan,
    frost::{RepairSession, dkg::RunId},
    proposal::Proposal,
    testing,
    wire::{
        ClientMessage, ErrorCode, KeygenRequest, PeerReply, Refusal, RepairReply, RepairRequest,
        ServerMessage, SuccessionReply, SuccessionRequest,
    },
};
use std::collections::{BTreeMap, BTreeSet};

fn opened(cluster: &Cluster) -> bool {
    cluster.nodes.values().all(|node| node.opening.is_some())
}

/// A payment is final before the epoch ends.
fn paid() -> Cluster {
    let mut cluster = Cluster::voting();
    cluster.coins();
    let proposal = Proposal::Joint(Box::new(cluster.world.proposal()));
    let account = Some(cluster.world.certificate());
    cluster.say(NodeId(1), ClientMessage::TransactionBroadcast { proposal, account });
    let at =
        cluster.told.iter().position(|(_, message)| matches!(message, ServerMessage::SignRequest { .. }));
    let asked = cluster.told.remove(at.expect("the wallet is asked to sign")).1;
    let signed = cluster.sign(&asked);
    cluster.say(NodeId(1), signed);
    cluster
}

#[test]
fn a_federation_makes_its_first_key_and_everybody_has_the_same() {
    let mut cluster = Cluster::voting();
    let roster = cluster.world.federation.document().roster.clone();
    for id in (1..=4).map(NodeId) {
        let key = cluster.world.keys[usize::from(id.0) - 1].clone();
        cluster.newcomer(id, &key);
    }
    cluster.found(&roster);
    cluster.until(|cluster| cluster.nodes.values().all(|node| node.founded.is_some()));
    let keys: BTreeSet<String> = cluster
        .nodes
        .values()
        .map(|node| format!("{:?}", node.founded.as_ref().expect("made").key))
        .collect();
    assert_eq!(keys.len(), 1);
    for node in cluster.nodes.values() {
        let share = node.saved_share.as_ref().expect("on disk before success was signed");
        assert!(share.fits(&node.founded.as_ref().expect("made").key));
    }
}

#[test]
fn all_shares_are_refreshed_and_what_is_final_is_handed_over() {
    let mut cluster = paid();
    let txid = cluster.world.proposal().psbt.unsigned_tx.compute_txid();
    cluster.approve(&BTreeMap::new());
    cluster.until(opened);
    let before = cluster.world.federation.clone();
    for id in 1..=4 {
        let (federation, seals) = cluster.past(id);
        assert_eq!(federation.epoch(), before.epoch().next());
        assert_eq!(federation.key().group_key, before.key().group_key, "addresses do not change");
        assert!(seals.len() >= 3, "a quorum has sealed");
        let node = cluster.get(id);
        let share = node.saved_share.as_ref().expect("on disk");
        assert!(share.fits(federation.key()) && !share.fits(before.key()));
        let opening = node.opening.as_ref().expect("open");
        assert!(opening.handover.transactions().any(|one| one.txid == txid && one.proof.is_some()));
        assert!(matches!(node.machine.standing(), crate::Standing::Sealed));
        let begins: ChangeSet = crate::opening(&opening.handover, opening.succession, &[], 1);
        let has = |wanted: &dyn Fn(&crate::records::Row) -> bool| begins.rows().iter().any(wanted);
        let key: &[u8] = txid.as_ref();
        assert!(has(&|row| row.key == key), "the next store begins with the payment");
        assert!(has(&|row| row.table == crate::records::Table::Log), "and with a log");
    }
}

#[test]
fn a_newcomer_has_its_predecessors_share_repaired_and_takes_part() {
    let mut cluster = paid();
    let fresh = IdentityKey::from_bytes(&[0x77; 32]).expect("a key");
    let federation = cluster.world.federation.clone();
    cluster.newcomer(NodeId(4), &fresh);
    cluster.get(4).transition.open(federation, None, Vec::new());
    cluster.approve(&BTreeMap::from([(NodeId(4), fresh)]));
    cluster.until(opened);
    let (next, _) = cluster.past(4);
    assert!(cluster.get(4).saved_share.as_ref().is_some_and(|share| share.fits(next.key())));
}

#[test]
fn a_node_that_starts_again_in_the_middle_says_the_same_again() {
    let mut cluster = Cluster::voting();
    cluster.approve(&BTreeMap::new());
    cluster.until(|cluster| cluster.nodes[&NodeId(2)].saved_share.is_some());
    // The cluster compares what it saves the second time.
    cluster.restart_transition(2);
    cluster.until(opened);
}

#[test]
fn no_epoch_follows_without_a_quorum_of_approvals() {
    let mut cluster = Cluster::voting();
    let members = cluster.world.federation.members().to_vec();
    let plan = SuccessionPlan { epoch: cluster.world.federation.epoch().next(), attempt: 1, members };
    for id in [1, 2] {
        cluster.hand_plan(NodeId(id), plan.clone());
    }
    for _ in 0..50 {
        cluster.wait(std::time::Duration::from_millis(200));
    }
    let progress = cluster.get(1).transition.progress().expect("a plan is there");
    assert_eq!(progress.approved_by, [NodeId(1), NodeId(2)]);
    assert_eq!(progress.step, "collecting approvals");
    assert!(cluster.nodes.values().all(|node| node.saved_share.is_none()));
    cluster.hand_plan(NodeId(3), plan.clone());
    cluster.hand_plan(NodeId(4), plan);
    cluster.until(opened);
}

#[test]
fn a_plan_without_this_node_is_reported_and_not_carried_out() {
    let mut cluster = Cluster::voting();
    let mut members = cluster.world.federation.members().to_vec();
    members[0] = testing::member(1, &IdentityKey::from_bytes(&[0x78; 32]).expect("a key"));
    let plan = SuccessionPlan { epoch: cluster.world.federation.epoch().next(), attempt: 1, members };
    cluster.hand_plan(NodeId(1), plan);
    assert!(cluster.get(1).transition.problem().is_some_and(|problem| problem.contains("not a member")));
}

#[test]
fn a_lost_share_comes_back_and_too_few_helpers_are_named() {
    let mut cluster = Cluster::voting();
    let federation = cluster.world.federation.clone();
    cluster.get(3).transition.open(federation.clone(), None, Vec::new());
    cluster.silent.insert(NodeId(4));
    cluster.get(3).transition.repair_share();
    cluster.until(|cluster| cluster.nodes[&NodeId(3)].not_repaired.is_some());
    let why = cluster.get(3).not_repaired.take().expect("why");
    assert!(why.contains("node 4 does not answer"), "{why}");
    cluster.silent.clear();
    cluster.get(3).transition.repair_share();
    cluster.until(|cluster| cluster.nodes[&NodeId(3)].repaired.is_some());
    assert!(cluster.get(3).repaired.as_ref().is_some_and(|share| share.fits(federation.key())));
}

fn refusal(cluster: &mut Cluster, id: u16) -> ErrorCode {
    let output = cluster.get(id).transition.poll_output().expect("an answer");
    let crate::TransitionOutput::Reply { reply: PeerReply::Refused(refused), .. } = output else {
        panic!("{output:?}")
    };
    let Refusal::Error { error } = refused;
    error.code
}

#[test]
fn keys_and_pieces_go_to_their_members_only() {
    let mut cluster = Cluster::voting();
    cluster.approve(&BTreeMap::new());
    cluster.until(|cluster| cluster.nodes[&NodeId(1)].saved_share.is_some());
    let plan = SuccessionPlan {
        epoch: cluster.world.federation.epoch().next(),
        attempt: 1,
        members: cluster.world.federation.members().to_vec(),
    };
    let run = RunId { epoch: plan.epoch, plan: plan.digest(&cluster.world.federation) };
    let stranger = crate::Peer { id: NodeId(2), tls_key: [9; 32] };
    cluster.get(1).transition.handle_keygen(stranger, 1, KeygenRequest::DkgPull { run });
    assert_eq!(refusal(&mut cluster, 1), ErrorCode::WrongRole);
    let other = RunId { epoch: plan.epoch, plan: [1; 32] };
    let member = cluster.peer(NodeId(2));
    cluster.get(1).transition.handle_keygen(member, 2, KeygenRequest::DkgPull { run: other });
    assert_eq!(refusal(&mut cluster, 1), ErrorCode::NotReady);
    let session = RepairSession {
        epoch: cluster.world.federation.epoch(),
        number: 1,
        participant: NodeId(3),
        helpers: [1, 2, 4].map(NodeId).into(),
    };
    // Nobody has the share of another one repaired.
    cluster.get(1).transition.handle_repair(
        member,
        3,
        RepairRequest::RepairOpen { session: session.clone() },
    );
    assert_eq!(refusal(&mut cluster, 1), ErrorCode::WrongRole);
    let participant = cluster.peer(NodeId(3));
    let piece = RepairRequest::RepairPiece { session: session.clone() };
    cluster.get(1).transition.handle_repair(participant, 4, piece.clone());
    assert_eq!(refusal(&mut cluster, 1), ErrorCode::WrongRole, "the participant is sent sums, never pieces");
    cluster.get(1).transition.handle_repair(member, 5, piece.clone());
    assert_eq!(refusal(&mut cluster, 1), ErrorCode::NotReady, "it is not open");
    let few = RepairSession { helpers: [1, 2].map(NodeId).into(), ..session.clone() };
    cluster.get(1).transition.handle_repair(participant, 6, RepairRequest::RepairOpen { session: few });
    assert_eq!(refusal(&mut cluster, 1), ErrorCode::WrongRole, "exactly q helpers");
    cluster.get(1).transition.handle_repair(participant, 7, RepairRequest::RepairOpen { session });
    let done = cluster.get(1).transition.poll_output();
    assert!(matches!(
        done,
        Some(crate::TransitionOutput::Reply { reply: PeerReply::Repair(RepairReply::Done), .. })
    ));
    cluster.get(1).transition.handle_repair(member, 8, piece);
    let given = cluster.get(1).transition.poll_output();
    assert!(matches!(
        given,
        Some(crate::TransitionOutput::Reply { reply: PeerReply::Repair(RepairReply::RepairPart { .. }), .. })
    ));
}

#[test]
fn who_is_in_the_next_epoch_tells_those_behind_how_it_came_there() {
    let mut cluster = Cluster::voting();
    cluster.approve(&BTreeMap::new());
    cluster.until(opened);
    let (federation, seals) = cluster.past(1);
    let before = cluster.world.federation.epoch();
    let transition = &mut cluster.get(1).transition;
    transition.open(federation.clone(), None, seals.clone());
    transition.handle_succession(1, SuccessionRequest::SuccessionPull { epoch: before });
    let Some(crate::TransitionOutput::Reply { reply: PeerReply::Succession(news), .. }) =
        transition.poll_output()
    else {
        panic!("no answer")
    };
    let SuccessionReply::SuccessionNews { succession: Some(succession), .. } = news else {
        panic!("{news:?}")
    };
    let of = seals[0].seal.node;
    transition.handle_succession(2, SuccessionRequest::SealRequest { succession, of, skip: 0 });
    let Some(crate::TransitionOutput::Reply { reply: PeerReply::Succession(sealed), .. }) =
        transition.poll_output()
    else {
        panic!("no answer")
    };
    let SuccessionReply::Sealed { seal, .. } = sealed else { panic!("{sealed:?}") };
    assert_eq!(*seal, seals[0].seal);
}

#[test]
fn an_inherited_certificate_is_written_with_its_rounds() {
    let mut cluster = paid();
    cluster.approve(&BTreeMap::new());
    cluster.until(opened);
    let opening = cluster.get(1).opening.take().expect("open");
    let one = opening.handover.transactions().next().expect("the payment");
    let certificate = one.certificate.clone().expect("its certificate");
    assert!(certificate.target.inputs().values().all(|round| *round == Round(0)));
    let begins = crate::opening(&opening.handover, opening.succession, &[], 1);
    let mut stored = crate::records::Stored::default();
    begins.rows().iter().for_each(|row| stored.take(row).expect("reads"));
    assert_eq!(stored.transactions[0].target, certificate.target);
    assert!(matches!(Change::Log(stored.log.clone()), Change::Log(log) if log.head.sequence == 1));
}
