//! From one epoch to the next over four nodes.

use crate::{archive::Archived, cluster::Cluster, records::ChangeSet};
use bitcoin::{Amount, OutPoint, TxOut, Txid, hashes::Hash as _};
use quorate_protocol::{
    NodeId, Round,
    digest::IdentityKey,
    federation::SuccessionPlan,
    frost::{RepairSession, dkg::RunId},
    proposal::Proposal,
    testing,
    wire::{
        ClientMessage, ErrorCode, KeygenReply, KeygenRequest, PeerReply, Refusal, RepairReply, RepairRequest,
        ServerMessage, SuccessionReply, SuccessionRequest, VotingRequest,
    },
};
use std::{collections::BTreeMap, time::Duration};

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
    let first = cluster.get(1).founded.as_ref().expect("made").key.clone();
    assert!(cluster.nodes.values().all(|node| node.founded.as_ref().is_some_and(|made| made.key == first)));
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
        let begins: ChangeSet =
            crate::opening(&opening.handover, opening.succession, &crate::Kept::default(), 1);
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
        cluster.wait(Duration::from_millis(200));
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
    let begins = crate::opening(&opening.handover, opening.succession, &crate::Kept::default(), 1);
    let mut stored = crate::Stored::default();
    begins.rows().iter().for_each(|row| stored.take(row).expect("reads"));
    assert_eq!(stored.transactions[0].target, certificate.target);
    assert_eq!(stored.log.head.sequence, 1);
}

#[test]
fn a_proof_that_comes_after_the_seal_is_kept() {
    let mut cluster = paid();
    cluster.approve(&BTreeMap::new());
    cluster.until(opened);
    let (world, coin) = (&cluster.world, OutPoint { txid: Txid::all_zeros(), vout: 2 });
    let payment = TxOut { value: Amount::from_sat(80_000), script_pubkey: world.script() };
    let psbt = world.psbt(coin, Amount::from_sat(90_500), payment);
    let proof = world.finish(&world.authorise(psbt, testing::DEADLINE));
    let node = cluster.get(1);
    let opening = node.opening.take().expect("open");
    let request = VotingRequest::FinalTransaction { proof: proof.clone(), head: None };
    node.machine.handle_request(NodeId(2), crate::ReplyTo::Peer(9), request.clone());
    // It may be of long ago, as far as this node knows.
    let recalled = std::iter::from_fn(|| node.machine.poll_output()).find_map(|output| match output {
        crate::Output::Recall { ticket, .. } => Some(ticket),
        _ => None,
    });
    node.machine.handle_recalled(recalled.expect("the archive is asked"), Some(Archived::default()));
    let kept = node.machine.keeps(&opening.handover);
    assert_eq!(kept.finals.len(), 1, "what is handed over is not kept twice");
    // What came after that would be in no store.
    while node.machine.poll_output().is_some() {}
    node.machine.handle_request(NodeId(2), crate::ReplyTo::Peer(10), request);
    let reply = node.machine.poll_output();
    assert!(
        matches!(&reply, Some(crate::Output::Reply { reply: PeerReply::Refused(Refusal::Error { error }), .. }) if error.retry),
        "{reply:?}"
    );
    let begins = crate::opening(&opening.handover, opening.succession, &kept, 1);
    let mut stored = crate::Stored::default();
    begins.rows().iter().for_each(|row| stored.take(row).expect("reads"));
    let find = |record: &&crate::records::TxRecord| record.target.txid() == proof.txid();
    let record = stored.transactions.iter().find(find).expect("kept");
    assert_eq!((record.proof.as_ref(), record.vote.as_ref()), (Some(&proof), None));
    assert_eq!(stored.transactions.len(), 2);
}

#[test]
fn a_key_that_is_of_no_member_makes_no_first_key() {
    let mut cluster = Cluster::voting();
    let roster = cluster.world.federation.document().roster.clone();
    let stranger = IdentityKey::from_bytes(&[0x79; 32]).expect("a key");
    cluster.newcomer(NodeId(1), &stranger);
    let seed = crate::DkgSeed(zeroize::Zeroizing::new([1; 32]));
    let found = cluster.get(1).transition.found(&roster, seed);
    assert!(matches!(found, Err(crate::FoundingError::Key(_))), "{found:?}");
}

#[test]
fn garbage_in_a_refresh_is_named_and_the_refresh_begins_again() {
    let mut cluster = Cluster::voting();
    let mut left = 3;
    cluster.alter = Some(Box::new(move |of, reply| match reply {
        PeerReply::Keygen(KeygenReply::DkgBundle { mut bundle }) if of == NodeId(3) && left > 0 => {
            if let (Some(commitment), Some(echo)) = (&bundle.commitment, &mut bundle.echo) {
                echo.signature = commitment.signature;
                left -= 1;
            }
            KeygenReply::DkgBundle { bundle }.into()
        }
        other => other,
    }));
    cluster.approve(&BTreeMap::new());
    cluster
        .until(|cluster| cluster.nodes[&NodeId(1)].transition.problem().is_some_and(|why| why.contains('3')));
    cluster.until(opened);
}

#[test]
fn what_cannot_be_written_is_reported_and_tried_again() {
    let mut cluster = Cluster::voting();
    cluster.failing_saves = true;
    cluster.approve(&BTreeMap::new());
    let full = |cluster: &Cluster| {
        cluster.nodes.values().any(|node| node.transition.problem() == Some("no space left"))
    };
    cluster.until(full);
    cluster.until(opened);
}

#[test]
fn a_newer_plan_takes_the_place_of_one_until_this_node_is_bound_to_it() {
    let mut cluster = Cluster::voting();
    let plan = |cluster: &Cluster, attempt| {
        let members = cluster.world.federation.members().to_vec();
        SuccessionPlan { epoch: cluster.world.federation.epoch().next(), attempt, members }
    };
    let (first, second, third) = (plan(&cluster, 1), plan(&cluster, 2), plan(&cluster, 3));
    cluster.hand_plan(NodeId(1), second.clone());
    cluster.hand_plan(NodeId(1), first);
    assert_eq!(cluster.get(1).transition.attempt(), 2, "an older one changes nothing");
    cluster.hand_plan(NodeId(1), third.clone());
    assert_eq!(cluster.get(1).transition.attempt(), 3);
    (2..=4).for_each(|id| cluster.hand_plan(NodeId(id), third.clone()));
    cluster.until(|cluster| cluster.nodes[&NodeId(1)].saved_share.is_some());
    // It has said that it has stored its share: two keys could be complete, and neither with a quorum of seals.
    let fourth = plan(&cluster, 4);
    cluster.hand_plan(NodeId(1), fourth);
    assert_eq!(cluster.get(1).transition.attempt(), 3);
    cluster.until(opened);
}

#[test]
fn a_false_part_is_noticed_and_other_helpers_or_another_try_mend_the_share() {
    let mut cluster = Cluster::voting();
    let federation = cluster.world.federation.clone();
    cluster.get(3).transition.open(federation.clone(), None, Vec::new());
    let mut lies = 2;
    cluster.alter = Some(Box::new(move |of, reply| match reply {
        PeerReply::Repair(RepairReply::RepairPart { .. }) if of == NodeId(4) && lies > 0 => {
            lies -= 1;
            let part = serde_json::from_value("01".repeat(32).into()).expect("a number");
            RepairReply::RepairPart { part }.into()
        }
        other => other,
    }));
    cluster.get(3).transition.repair_share();
    cluster.until(|cluster| cluster.nodes[&NodeId(3)].transition.problem().is_some());
    assert!(
        cluster.get(3).transition.problem().is_some_and(|why| why.contains("something else than its part"))
    );
    cluster.until(|cluster| cluster.nodes[&NodeId(3)].repaired.is_some());
    assert!(cluster.get(3).repaired.as_ref().is_some_and(|share| share.fits(federation.key())));
}

#[test]
fn pages_that_lead_nowhere_do_not_hold_up_an_epoch() {
    let mut cluster = paid();
    let mut asked = 0;
    // Node 2 promises more and more of its seal and never sends it; node 3 changes its mind between two pages.
    cluster.alter = Some(Box::new(move |of, reply| match reply {
        PeerReply::Succession(SuccessionReply::Sealed { seal, .. }) if of == NodeId(2) && seal.node == of => {
            SuccessionReply::Sealed { seal, transactions: Vec::new(), more: true }.into()
        }
        PeerReply::Succession(SuccessionReply::Sealed { mut seal, transactions, .. })
            if of == NodeId(3) && seal.node == of =>
        {
            asked += 1;
            seal.transactions[0] ^= u8::from(asked % 2 == 0);
            SuccessionReply::Sealed { seal, transactions, more: asked % 2 == 1 }.into()
        }
        other => other,
    }));
    cluster.approve(&BTreeMap::new());
    for _ in 0..100 {
        cluster.wait(Duration::from_millis(100));
    }
    // Nodes 2 and 3 have their own seals from themselves, but nobody else has three of four.
    assert!(!opened(&cluster));
    let why = cluster.get(4).transition.problem().unwrap_or_default().to_owned();
    assert!(why.contains("3 nodes have to seal the epoch; sealed by: 1, 4"), "{why}");
    cluster.alter = None;
    cluster.until(opened);
}

#[test]
fn nobody_keeps_others_from_being_helped_and_nobody_is_left_without_an_answer() {
    let mut cluster = Cluster::voting();
    let federation = cluster.world.federation.clone();
    let epoch = federation.epoch();
    let session = |participant: u16, number| RepairSession {
        epoch,
        number,
        participant: NodeId(participant),
        helpers: (1..=4).filter(|id| *id != participant).map(NodeId).collect(),
    };
    let (greedy, other) = (cluster.peer(NodeId(4)), cluster.peer(NodeId(3)));
    let transition = &mut cluster.get(1).transition;
    let answers = |transition: &mut crate::Transition| {
        let mut replies = BTreeMap::new();
        while let Some(output) = transition.poll_output() {
            if let crate::TransitionOutput::Reply { to, reply } = output {
                replies.insert(to, reply);
            }
        }
        replies
    };
    transition.handle_repair(greedy, 1, RepairRequest::RepairOpen { session: session(4, 1) });
    (2..=6).for_each(|to| {
        transition.handle_repair(greedy, to, RepairRequest::RepairSum { session: session(4, 1) })
    });
    let replies = answers(transition);
    assert!(matches!(replies.get(&6), Some(PeerReply::Refused(_))), "one at a time too many: {replies:?}");
    assert!(!replies.contains_key(&5), "the others wait for the pieces");
    transition.handle_repair(other, 7, RepairRequest::RepairOpen { session: session(3, 2) });
    transition.handle_repair(other, 8, RepairRequest::RepairSum { session: session(3, 2) });
    assert!(!answers(transition).contains_key(&8), "it is worked on");
    transition.open(federation, None, Vec::new());
    let replies = answers(transition);
    let refused = |to| matches!(replies.get(&to), Some(PeerReply::Refused(_)));
    assert!([2, 3, 4, 5, 8].into_iter().all(refused), "{replies:?}");
}
