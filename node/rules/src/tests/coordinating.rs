//! Coordination: from a submission to its end.

use crate::{
    Output, Tag,
    testkit::{Kit, WALLET, sole, spend, target},
};
use bitcoin::{Amount, Transaction};
use quorate_protocol::{
    FederationId, NodeId,
    proposal::Proposal,
    vote::{SignedVote, Verdict},
    wire::{
        ClientMessage, CommitReply, ErrorCode, ServerMessage, TransactionStatus, VotingReply, VotingRequest,
        limits,
    },
};
use std::time::Duration;

fn greeted() -> Kit {
    let mut kit = Kit::voting();
    kit.say(ClientMessage::Hello {
        protocol: limits::PROTOCOL_VERSION,
        federation: None,
        agent: "test".to_owned(),
    });
    assert!(matches!(&kit.told()[..], [ServerMessage::Welcome { .. }]));
    kit
}

/// A wallet has submitted a transaction of its own.
fn submitted() -> (Kit, Transaction) {
    let mut kit = greeted();
    let coin = kit.open_coin(0);
    let transaction = spend(&[coin], 99_000);
    kit.say(ClientMessage::TransactionBroadcast { proposal: sole(&transaction), account: None });
    (kit, transaction)
}

fn vote(kit: &mut Kit, node: u16, transaction: &Transaction, verdict: Verdict) {
    let node = NodeId(node);
    let context = kit.world.federation.context();
    let vote = SignedVote::sign(context, node, kit.key(node), target(transaction), verdict);
    let reply = VotingReply::VoteResponse {
        vote,
        reason: None,
        commitments: None,
        releases: vec![],
        proof: None,
        head: None,
    };
    kit.hear(node, Tag::Vote { txid: transaction.compute_txid(), attempt: 1 }, Some(reply));
}

fn commit(kit: &mut Kit, node: u16, transaction: &Transaction) {
    let about = target(transaction);
    let signature = kit.commit_signature(NodeId(node), &about);
    let reply = VotingReply::CommitResponse { commit: CommitReply::Sole { signature } };
    kit.hear(NodeId(node), Tag::Commit { txid: about.txid(), attempt: 1 }, Some(reply));
}

fn statuses(kit: &mut Kit) -> Vec<TransactionStatus> {
    let told = kit.told().into_iter();
    told.filter_map(|message| {
        if let ServerMessage::TransactionStatus { status, .. } = message { Some(status) } else { None }
    })
    .collect()
}

#[test]
fn a_submission_asks_everybody_then_commits_and_is_final_with_q_of_each() {
    let (mut kit, transaction) = submitted();
    assert!(matches!(&statuses(&mut kit)[..], [TransactionStatus::Pending]));
    let asked = kit.asked();
    assert_eq!(asked.iter().map(|(to, _)| to.0).collect::<Vec<_>>(), [1, 2, 3, 4]);
    for node in [1, 2] {
        vote(&mut kit, node, &transaction, Verdict::Approve);
    }
    vote(&mut kit, 2, &transaction, Verdict::Approve);
    assert!(kit.asked().iter().all(|(_, request)| !matches!(request, VotingRequest::CommitRequest { .. })));
    vote(&mut kit, 3, &transaction, Verdict::Approve);
    let commits = kit.asked();
    assert!(commits.iter().all(|(_, request)| matches!(request, VotingRequest::CommitRequest { .. })));
    assert_eq!(commits.len(), 4);
    statuses(&mut kit);
    for node in [1, 2, 3] {
        assert!(!kit.machine.knows_final(&transaction.compute_txid()));
        commit(&mut kit, node, &transaction);
    }
    assert!(kit.machine.knows_final(&transaction.compute_txid()));
    assert!(matches!(statuses(&mut kit).last(), Some(TransactionStatus::Signed { .. })));
    assert!(
        kit.out
            .iter()
            .any(|output| matches!(output, Output::Broadcast(all) if *all == [transaction.clone()]))
    );
    let told: Vec<_> = kit.asked().into_iter().map(|(to, request)| (to.0, request)).collect();
    assert!(told.iter().all(|(_, request)| matches!(request, VotingRequest::FinalTransaction { .. })));
    assert_eq!(told.len(), 3, "everybody else hears of it");
    assert_eq!(kit.machine.sizes().coordinations, 0);
}

#[test]
fn what_does_not_verify_counts_for_nothing() {
    let (mut kit, transaction) = submitted();
    for node in [1, 2] {
        vote(&mut kit, node, &transaction, Verdict::Approve);
    }
    // Somebody else's vote, and a vote on something else.
    let stolen = SignedVote::sign(
        kit.world.federation.context(),
        NodeId(4),
        kit.key(NodeId(4)),
        target(&transaction),
        Verdict::Approve,
    );
    let txid = transaction.compute_txid();
    let reply = |vote| VotingReply::VoteResponse {
        vote,
        reason: None,
        commitments: None,
        releases: vec![],
        proof: None,
        head: None,
    };
    kit.hear(NodeId(3), Tag::Vote { txid, attempt: 1 }, Some(reply(stolen.clone())));
    let forged = SignedVote { node: NodeId(3), ..stolen };
    kit.hear(NodeId(3), Tag::Vote { txid, attempt: 1 }, Some(reply(forged)));
    assert!(kit.asked().iter().all(|(_, request)| matches!(request, VotingRequest::VoteRequest { .. })));
    vote(&mut kit, 3, &transaction, Verdict::Approve);
    kit.asked();
    for node in [1, 2] {
        commit(&mut kit, node, &transaction);
    }
    let wrong = kit.commit_signature(NodeId(4), &target(&transaction));
    let reply = VotingReply::CommitResponse { commit: CommitReply::Sole { signature: wrong } };
    kit.hear(NodeId(3), Tag::Commit { txid, attempt: 1 }, Some(reply));
    assert!(!kit.machine.knows_final(&txid));
}

#[test]
fn enough_rejects_end_it_and_nobody_who_holds_nothing_is_asked_to_release() {
    let (mut kit, transaction) = submitted();
    kit.asked();
    statuses(&mut kit);
    vote(&mut kit, 2, &transaction, Verdict::Reject);
    assert!(statuses(&mut kit).is_empty(), "one may be a liar");
    vote(&mut kit, 3, &transaction, Verdict::Reject);
    let ended = statuses(&mut kit);
    assert!(
        matches!(&ended[..], [TransactionStatus::Rejected { rejects, .. }] if rejects.len() == 2),
        "{ended:?}"
    );
    assert!(kit.asked().is_empty());
    assert_eq!(kit.machine.sizes().coordinations, 0);
}

#[test]
fn silence_ends_it_after_the_time_for_votes() {
    let (mut kit, _) = submitted();
    statuses(&mut kit);
    kit.wait(Duration::from_millis(100));
    assert!(
        kit.asked().iter().any(|(_, request)| matches!(request, VotingRequest::VoteRequest { .. })),
        "asked again"
    );
    kit.wait(Duration::from_secs(30));
    let ended = statuses(&mut kit);
    assert!(matches!(&ended[..], [TransactionStatus::Failed { retry: true, .. }]), "{ended:?}");
}

#[test]
fn a_session_that_is_gone_is_told_nothing_more() {
    let (mut kit, transaction) = submitted();
    statuses(&mut kit);
    kit.machine.handle_session_closed(WALLET);
    vote(&mut kit, 2, &transaction, Verdict::Reject);
    vote(&mut kit, 3, &transaction, Verdict::Reject);
    assert!(kit.told().is_empty());
}

#[test]
fn a_wallet_that_greets_wrongly_is_told_how() {
    let refused = |kit: &mut Kit| match &kit.told()[..] {
        [ServerMessage::Error { error }] => error.code,
        other => panic!("{other:?}"),
    };
    let hello =
        |protocol, federation| ClientMessage::Hello { protocol, federation, agent: "test".to_owned() };
    let mut kit = Kit::voting();
    kit.say(ClientMessage::Ping);
    assert_eq!(refused(&mut kit), ErrorCode::HelloExpected);
    kit.say(hello(limits::PROTOCOL_VERSION + 1, None));
    assert_eq!(refused(&mut kit), ErrorCode::UnsupportedProtocol);
    kit.say(hello(limits::PROTOCOL_VERSION, Some(FederationId([1; 32]))));
    assert_eq!(refused(&mut kit), ErrorCode::WrongFederation);
    let mut kit = greeted();
    kit.say(hello(limits::PROTOCOL_VERSION, None));
    assert_eq!(refused(&mut kit), ErrorCode::AlreadyGreeted);
}

#[test]
fn what_no_rule_reads_is_refused_in_what_is_new_and_stays_in_what_is_known() {
    let mut kit = greeted();
    kit.joint_coin(90_500, 5, false);
    let mut fat = kit.world.proposal();
    fat.psbt.unknown.insert(bitcoin::psbt::raw::Key { type_value: 0xf0, key: vec![1] }, vec![2]);
    let fat = Proposal::Joint(Box::new(fat));
    let refused = |kit: &mut Kit| {
        let (proposal, account) = (fat.clone(), Some(kit.world.certificate()));
        kit.say(ClientMessage::TransactionBroadcast { proposal, account });
        kit.told().into_iter().find_map(|message| match message {
            ServerMessage::Error { error, .. } => Some(error),
            _ => None,
        })
    };
    let error = refused(&mut kit).expect("refused");
    assert_eq!(error.code, ErrorCode::InvalidProposal);
    assert!(error.message.contains("unknown fields"), "{error}");
    assert!(kit.vote(fat.clone()).is_err(), "nor voted for");
    let lean = kit.joint();
    assert_eq!(kit.vote(lean), Ok(()));
    assert_eq!(refused(&mut kit), None, "the same payment is known by now");
}

#[test]
fn one_account_has_so_many_payments_under_way_and_leaves_room_for_others() {
    const MOST: u64 = 256;
    let mut kit = greeted();
    kit.joint_coin(90_500, 5, false);
    let to = kit.world.script();
    let submit = |kit: &mut Kit, sat: u64| {
        let proposal = kit.world.proposal_to(to.clone(), Amount::from_sat(10_000 + sat));
        let (proposal, account) = (Proposal::Joint(Box::new(proposal)), Some(kit.world.certificate()));
        kit.say(ClientMessage::TransactionBroadcast { proposal, account });
        kit.told().into_iter().find_map(|message| match message {
            ServerMessage::Error { error, .. } => Some(error),
            _ => None,
        })
    };
    for sat in 0..MOST {
        assert_eq!(submit(&mut kit, sat), None);
    }
    let refused = submit(&mut kit, MOST).expect("one too many");
    assert_eq!((refused.code, refused.retry), (ErrorCode::LimitExceeded, true));
    assert_eq!((refused.limit, refused.value), (Some(MOST), Some(MOST + 1)), "{refused}");
    assert_eq!(submit(&mut kit, 0), None, "who comes back to one that is under way is told of it");
    let coin = kit.open_coin(0);
    kit.say(ClientMessage::TransactionBroadcast { proposal: sole(&spend(&[coin], 99_000)), account: None });
    assert!(!kit.told().iter().any(|message| matches!(message, ServerMessage::Error { .. })));
}
