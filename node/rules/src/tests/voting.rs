//! Votes and commits: V1, V2, V4, V9.

use crate::{
    Output, ReplyTo, Source, Standing,
    records::Table,
    testkit::{Kit, OTHER, sole, spend, target},
};
use bitcoin::{
    Amount, OutPoint, ScriptBuf, Transaction, TxOut, Txid, Witness, absolute::LockTime, hashes::Hash as _,
};
use quorate_protocol::{
    NodeId,
    account::{Keychain, KeychainIndex},
    proposal::{Proposal, describe_output},
    testing,
    vote::{NOT_BEFORE_ITS_BLOCK, Verdict},
    wire::{
        ClientMessage, CommitReply, ErrorCode, PeerReply, RejectReason, ServerMessage, SubscriptionKey,
        TransactionStatus, VotingReply, VotingRequest,
    },
};
use std::time::Duration;

#[test]
fn a_good_payment_is_approved_and_the_vote_is_on_disk_before_it_leaves() {
    let mut kit = Kit::voting();
    kit.joint_coin(90_500, 5, false);
    let proposal = kit.joint();
    let request = kit.vote_request(proposal);
    let first = kit.ask(OTHER, request.clone()).expect("it votes");
    let written = kit.written_before_reply().expect("a write comes first");
    assert!(written.rows().iter().any(|row| row.table == Table::Transactions));
    let VotingReply::VoteResponse { vote, commitments, .. } = first else { panic!("a vote") };
    assert!(vote.verify(&kit.world.federation));
    let commitments = commitments.expect("nonces for the signing session");
    kit.out.clear();
    let VotingReply::VoteResponse { vote: again, commitments: fresh, .. } =
        kit.ask(NodeId(3), request).expect("it votes again")
    else {
        panic!("a vote")
    };
    assert_eq!(again, vote, "byte for byte");
    assert_ne!(fresh.expect("nonces").commitments, commitments.commitments, "no nonce is offered twice");
    assert!(kit.written_before_reply().is_none(), "a repeated vote writes nothing");
}

#[test]
fn every_reason_of_the_coin_has_its_own_refusal() {
    type Case = (&'static str, fn(&mut Kit) -> OutPoint, fn(&RejectReason) -> bool);
    let cases: [Case; 4] = [
        (
            "not known",
            |kit| kit.world.proposal().psbt.unsigned_tx.input[0].previous_output,
            |reason| matches!(reason, RejectReason::UnknownCoin { .. }),
        ),
        (
            "too young a reward",
            |kit| kit.joint_coin(90_500, 5, true),
            |reason| matches!(reason, RejectReason::Unconfirmed { confirmations: 6, needed: 100, .. }),
        ),
        (
            "another value than the wallet says",
            |kit| kit.joint_coin(90_499, 5, false),
            |reason| matches!(reason, RejectReason::WrongCoin { .. }),
        ),
        (
            "being released",
            |kit| {
                let outpoint = kit.joint_coin(90_500, 5, false);
                let promises = vec![
                    kit.promise(NodeId(2), outpoint, quorate_protocol::Round(0)),
                    kit.promise(NodeId(3), outpoint, quorate_protocol::Round(0)),
                ];
                let request = VotingRequest::ReleaseRequest {
                    outpoint,
                    round: quorate_protocol::Round(0),
                    rejects: vec![],
                    cancel: None,
                    promises,
                    previous: None,
                };
                let VotingReply::ReleaseResponse { promise: Some(_), .. } =
                    kit.ask(OTHER, request).expect("answers")
                else {
                    panic!("a promise")
                };
                outpoint
            },
            |reason| matches!(reason, RejectReason::Round { .. }),
        ),
    ];
    for (what, prepare, expected) in cases {
        let mut kit = Kit::voting();
        prepare(&mut kit);
        let proposal = kit.joint();
        let reason = kit.vote(proposal).expect_err(what);
        assert!(expected(&reason), "{what}: {reason:?}");
    }
}

#[test]
fn what_a_block_has_spent_is_spent_whatever_was_voted_for() {
    let mut kit = Kit::voting();
    let coin = kit.open_coin(0);
    assert_eq!(kit.vote(sole(&spend(&[coin], 99_000))), Ok(()));
    let mined = spend(&[coin], 98_000);
    kit.mine_with(vec![mined.clone()]);
    let spent = RejectReason::Spent { outpoint: coin, txid: mined.compute_txid() };
    assert_eq!(kit.vote(sole(&spend(&[coin], 97_000))), Err(spent));
    kit.reorganise();
    let held = kit.vote(sole(&spend(&[coin], 97_000)));
    assert!(
        matches!(held, Err(RejectReason::Conflict { .. })),
        "a reorganisation gives it back to the first: {held:?}"
    );
}

#[test]
fn a_coin_past_its_horizon_goes_home_and_nowhere_else() {
    let mut kit = Kit::voting();
    kit.joint_coin(90_500, 5, false);
    let delay = u32::from(kit.world.account.record().recovery_delay);
    kit.mine(delay);
    let mut psbt = kit.world.proposal().psbt;
    let position = KeychainIndex { keychain: Keychain::Receive, index: 0 };
    let address = kit.world.account.address(position).expect("derives");
    describe_output(&kit.world.account, &address, &mut psbt.outputs[0]);
    let late = kit.world.authorise(psbt.clone(), u32::MAX);
    let refused = kit.vote(Proposal::Joint(Box::new(late)));
    assert!(
        matches!(refused, Err(RejectReason::Horizon { .. })),
        "it is not final before its block: {refused:?}"
    );
    let home = kit.world.authorise(psbt, NOT_BEFORE_ITS_BLOCK);
    assert_eq!(kit.vote(Proposal::Joint(Box::new(home))), Ok(()));
    let mut kit = Kit::voting();
    let outpoint = kit.joint_coin(90_500, 5, false);
    kit.mine(delay);
    let elsewhere = kit
        .world
        .proposal_to(ScriptBuf::new_p2wsh(&ScriptBuf::new().wscript_hash()), Amount::from_sat(90_000));
    let refused = kit.vote(Proposal::Joint(Box::new(elsewhere)));
    assert_eq!(refused, Err(RejectReason::Horizon { outpoint, opens_at: 5 + delay }));
}

#[test]
fn one_vote_per_coin_and_round() {
    let mut kit = Kit::voting();
    let coin = kit.open_coin(0);
    let (first, second) = (spend(&[coin], 99_000), spend(&[coin], 98_000));
    assert_eq!(kit.vote(sole(&first)), Ok(()));
    let conflict = RejectReason::Conflict { outpoint: coin, txid: first.compute_txid() };
    assert_eq!(kit.vote(sole(&second)), Err(conflict));
    assert_eq!(kit.vote(sole(&first)), Ok(()));
}

#[test]
fn a_sole_transaction_is_checked_like_a_node_of_the_network_would() {
    let mut kit = Kit::voting();
    let coin = kit.open_coin(0);
    let mut unsigned = spend(&[coin], 99_000);
    unsigned.input[0].witness.clear();
    assert!(matches!(kit.vote(sole(&unsigned)), Err(RejectReason::Invalid { .. })), "no script to run");
    unsigned.input[0].witness = Witness::from_slice(&[[0x6a]]);
    assert_eq!(kit.vote(sole(&unsigned)), Err(RejectReason::Script { index: 0 }));
    let mut later = spend(&[coin], 99_000);
    later.lock_time = LockTime::from_consensus(11);
    assert_eq!(kit.vote(sole(&later)), Err(RejectReason::TimeLock));
    let more = spend(&[coin], 100_001);
    assert!(matches!(kit.vote(sole(&more)), Err(RejectReason::Invalid { .. })));
    let twice = spend(&[coin, coin], 99_000);
    assert!(matches!(kit.vote(sole(&twice)), Err(RejectReason::Invalid { .. })));
}

#[test]
fn an_account_without_its_certificate_has_nothing_to_say() {
    let mut kit = Kit::voting();
    kit.joint_coin(90_500, 5, false);
    let request = VotingRequest::VoteRequest {
        proposal: kit.joint(),
        account: None,
        certificate: None,
        releases: vec![],
    };
    let VotingReply::VoteResponse { vote, reason, commitments, .. } =
        kit.ask(OTHER, request).expect("it votes")
    else {
        panic!("a vote")
    };
    assert_eq!(vote.verdict, Verdict::Reject);
    assert!(matches!(reason, Some(RejectReason::Invalid { .. })));
    assert!(commitments.is_none());
}

#[test]
fn a_node_that_does_not_know_its_own_past_does_not_vote() {
    let mut kit = Kit::fresh();
    let coin = kit.open_coin(0);
    let request = kit.vote_request(sole(&spend(&[coin], 99_000)));
    let refused = kit.ask(OTHER, request.clone()).expect_err("it still reads the chain");
    assert_eq!(refused.code, ErrorCode::NotReady);
    assert!(refused.retry);
    kit.machine.handle_caught_up();
    let refused = kit.ask(OTHER, request).expect_err("its peers have not confirmed its log");
    assert_eq!(refused.code, ErrorCode::NotReady);
}

#[test]
fn a_commit_needs_a_quorum_of_this_round_and_is_on_disk_before_it_leaves() {
    let mut kit = Kit::voting();
    let coin = kit.open_coin(0);
    let transaction = spend(&[coin], 99_000);
    let about = target(&transaction);
    let early = kit.ask(OTHER, kit.commit_request(&about, &[2, 3, 4])).expect_err("it has seen no proposal");
    assert_eq!(early.code, ErrorCode::UnknownTransaction);
    assert_eq!(kit.vote(sole(&transaction)), Ok(()));
    let few = kit.ask(OTHER, kit.commit_request(&about, &[2, 3])).expect_err("two are no quorum");
    assert_eq!(few.code, ErrorCode::InvalidSignature);
    kit.out.clear();
    let request = kit.commit_request(&about, &[2, 3, 4]);
    let first = kit.ask(OTHER, request.clone()).expect("commits");
    assert!(kit.written_before_reply().is_some(), "the certificate is written first");
    assert_eq!(kit.ask(OTHER, request).expect("commits again"), first);
    let VotingReply::CommitResponse { commit: CommitReply::Sole { signature } } = first else {
        panic!("{first:?}")
    };
    assert_eq!(signature, kit.commit_signature(crate::testkit::ME, &about));
}

#[test]
fn what_the_chain_said_before_a_block_came_is_asked_again() {
    let mut kit = Kit::voting();
    let coin = kit.open_coin(0);
    let transaction = spend(&[coin], 99_000);
    let request = kit.vote_request(sole(&transaction));
    kit.machine.at(kit.now, 0).handle_request(OTHER, ReplyTo::Peer(77), request);
    let Some(Output::LookUp { ticket, outpoints, .. }) = kit.machine.poll_output() else {
        panic!("it asks the chain")
    };
    assert_eq!(outpoints, [coin]);
    let found: Vec<_> = kit.coins.clone().into_iter().collect();
    // The block spends the coin; what the chain said is of before.
    let spent = spend(&[coin], 50_000);
    kit.mine_with(vec![spent]);
    kit.coins.clear();
    kit.machine.at(kit.now, 0).handle_coins(ticket, Some(found));
    kit.wait(Duration::ZERO);
    let answer = kit.out.iter().find_map(|output| match output {
        Output::Reply { to: ReplyTo::Peer(77), reply } => Some(reply.clone()),
        _ => None,
    });
    match answer.expect("an answer") {
        PeerReply::Voting(VotingReply::VoteResponse { vote, .. }) => {
            assert_eq!(vote.verdict, Verdict::Reject)
        }
        PeerReply::Refused(_) => {}
        other => panic!("{other:?}"),
    }
    assert!(kit.machine.holds(&coin).is_none(), "it is not locked");
}

#[test]
fn while_the_backend_does_not_say_whether_a_coin_is_there_nobody_is_told_that_it_is_not() {
    let mut kit = Kit::voting();
    let coin = kit.open_coin(0);
    let request = kit.vote_request(sole(&spend(&[coin], 99_000)));
    kit.backend_fails = true;
    let refused = kit.ask(OTHER, request.clone()).expect_err("nobody knows");
    assert_eq!((refused.code, refused.retry), (ErrorCode::NotReady, true));
    kit.backend_fails = false;
    kit.ask(OTHER, request).expect("it votes");
}

#[test]
fn nothing_below_the_floor_is_voted_for() {
    let mut kit = Kit::voting();
    kit.joint_coin(90_500, 5, false);
    let proposal = kit.joint();
    let fees = quorate_protocol::wire::FeeEstimates::default();
    kit.machine.handle_fees(quorate_protocol::wire::FeeEstimates { floor: 2_000, ..fees });
    let refused = kit.vote(proposal.clone()).expect_err("too cheap");
    assert!(matches!(refused, RejectReason::FeeTooLow { rate: 900..1_500, floor: 2_000 }), "{refused:?}");
    kit.machine.handle_fees(quorate_protocol::wire::FeeEstimates { floor: 900, ..fees });
    assert_eq!(kit.vote(proposal), Ok(()), "the floor has come down");
}

#[test]
fn what_the_backend_says_against_a_transaction_is_told_once_and_kept_until_it_is_taken() {
    let mut kit = Kit::voting();
    kit.joint_coin(90_500, 5, false);
    assert_eq!(kit.vote(kit.joint()), Ok(()));
    let proof = kit.world.final_payment();
    let txid = proof.txid();
    kit.ask(OTHER, VotingRequest::FinalTransaction { proof, head: None }).expect("taken");
    let hello = ClientMessage::Hello {
        protocol: quorate_protocol::wire::limits::PROTOCOL_VERSION,
        federation: None,
        agent: String::new(),
    };
    kit.say(hello);
    kit.say(ClientMessage::subscribe(vec![SubscriptionKey::Txid(txid)]));
    kit.told();
    let told = |kit: &mut Kit, refusal: Option<&str>| {
        kit.machine.handle_broadcast(txid, refusal.map(str::to_owned));
        kit.drain();
        let told = kit.told().into_iter().filter_map(|message| match message {
            ServerMessage::TransactionStatus {
                status: TransactionStatus::Broadcasting { refusal }, ..
            } => Some(refusal),
            _ => None,
        });
        told.collect::<Vec<_>>()
    };
    let why = Some("min relay fee not met".to_owned());
    assert_eq!(told(&mut kit, why.as_deref()), std::slice::from_ref(&why));
    assert_eq!(told(&mut kit, why.as_deref()), [], "the same again is no news");
    assert_eq!(kit.machine.status().refusals.get(&txid), why.as_ref());
    assert_eq!(told(&mut kit, None), [None]);
    assert_eq!(told(&mut kit, None), [], "nor is this");
    assert!(kit.machine.status().refusals.is_empty());
    kit.machine.handle_broadcast(Txid::all_zeros(), why);
    assert!(kit.machine.status().refusals.is_empty(), "nothing is kept of what is not final here");
}

#[test]
fn outputs_of_a_registered_account_are_indexed_and_those_of_strangers_are_not() {
    let mut kit = Kit::fresh();
    let record = kit.world.account.record().clone();
    kit.ask(NodeId(2), VotingRequest::AccountRequest { record }).expect("accepted");
    let ours = kit.world.script();
    let theirs = ScriptBuf::from_bytes([[0x51, 0x20].as_slice(), &[7; 32]].concat());
    let mut funding = spend(&[OutPoint::null()], 1_000);
    funding.output = [&ours, &theirs]
        .map(|script| TxOut { value: Amount::from_sat(1_000), script_pubkey: script.clone() })
        .to_vec();
    let txid = funding.compute_txid();
    kit.mine_with(vec![funding]);
    let ledger = &kit.machine.cx.ledger;
    assert_eq!(ledger.by_script(&ours), [OutPoint { txid, vout: 0 }]);
    assert_eq!(ledger.by_script(&theirs), []);
    assert_eq!(ledger.block_of(&txid), Some(ledger.tip()));
    assert_eq!(kit.machine.sizes().accounts, 1);
}

#[test]
fn while_the_backend_may_be_behind_a_node_does_not_vote_and_says_why_and_since_when() {
    let mut kit = Kit::voting();
    kit.joint_coin(90_500, 5, false);
    let doubt = Some("it has 7 blocks of 10".to_owned());
    kit.machine.at(kit.now, 5_000).handle_doubt(doubt.clone());
    kit.machine.at(kit.now, 9_000).handle_doubt(doubt.clone());
    assert_eq!(kit.machine.standing(), Standing::Following { reason: doubt, since: Some(5) });
    let request = kit.vote_request(kit.joint());
    let refused = kit.ask(NodeId(2), request.clone()).expect_err("no vote");
    assert!(refused.retry && refused.message.contains("7 blocks of 10"), "{refused:?}");
    kit.machine.handle_doubt(None);
    assert_eq!(kit.machine.standing(), Standing::Voting);
    kit.ask(NodeId(2), request).expect("a vote");
}

/// Hands in a request for a vote on what spends three coins, and gives the check that is to be run aside.
fn large_request(kit: &mut Kit, transaction: &Transaction) -> (u64, Box<crate::Check>) {
    let request = kit.vote_request(sole(transaction));
    kit.machine.at(kit.now, 0).handle_request(OTHER, ReplyTo::Peer(77), request);
    let Some(Output::LookUp { ticket, .. }) = kit.machine.poll_output() else { panic!("it asks the chain") };
    let found = kit.coins.clone().into_iter().collect();
    kit.machine.at(kit.now, 0).handle_coins(ticket, Some(found));
    let Some(Output::Check { ticket, source, check }) = kit.machine.poll_output() else {
        panic!("it has the scripts run")
    };
    assert_eq!(source, Source::Peer(OTHER));
    (ticket, check)
}

fn large_answer(kit: &mut Kit) -> Option<(Verdict, Option<RejectReason>)> {
    kit.drain();
    kit.out.iter().find_map(|output| match output {
        Output::Reply {
            to: ReplyTo::Peer(77),
            reply: PeerReply::Voting(VotingReply::VoteResponse { vote, reason, .. }),
        } => Some((vote.verdict, reason.clone())),
        _ => None,
    })
}

#[test]
fn a_large_proposal_is_checked_aside_while_others_are_answered() {
    let mut kit = Kit::voting();
    let coins = [0, 1, 2].map(|vout| kit.open_coin(vout));
    let transaction = spend(&coins, 290_000);
    let (ticket, check) = large_request(&mut kit, &transaction);
    let head = kit.head(OTHER);
    kit.ask(OTHER, VotingRequest::Heartbeat { head, height: 0 }).expect("an answer meanwhile");
    assert!(large_answer(&mut kit).is_none());
    kit.machine.at(kit.now, 0).handle_checked(ticket, Some(check.run()));
    assert_eq!(large_answer(&mut kit), Some((Verdict::Approve, None)));
    kit.out.clear();
    // It comes again, and is known.
    let request = kit.vote_request(sole(&transaction));
    kit.machine.at(kit.now, 0).handle_request(OTHER, ReplyTo::Peer(77), request);
    assert!(!matches!(kit.machine.poll_output(), Some(Output::Check { .. })));
}

#[test]
fn what_is_wrong_with_a_large_proposal_is_found_and_what_a_block_did_meanwhile_counts() {
    let mut kit = Kit::voting();
    let coins = [0, 1, 2].map(|vout| kit.open_coin(vout));
    let mut broken = spend(&coins, 280_000);
    // Its script leaves two elements, where consensus wants one.
    let script = broken.input[1].witness.last().expect("a script").to_vec();
    broken.input[1].witness = Witness::from_slice(&[vec![1], script]);
    assert_eq!(kit.vote(sole(&broken)), Err(RejectReason::Script { index: 1 }));

    let mut kit = Kit::voting();
    let coins = [0, 1, 2].map(|vout| kit.open_coin(vout));
    let good = spend(&coins, 290_000);
    let (ticket, check) = large_request(&mut kit, &good);
    let found = check.run();
    kit.mine_with(vec![spend(&coins[..1], 50_000)]);
    kit.machine.at(kit.now, 0).handle_checked(ticket, Some(found));
    let (verdict, reason) = large_answer(&mut kit).expect("an answer");
    assert_eq!(verdict, Verdict::Reject);
    assert!(matches!(reason, Some(RejectReason::Spent { .. })), "{reason:?}");
}

/// A payment of the account's coin to itself, in as many parts, each described.
fn in_parts(kit: &Kit, parts: u32) -> Proposal {
    let mut psbt = kit.world.proposal().psbt;
    psbt.unsigned_tx.output.clear();
    psbt.outputs.clear();
    for index in 0..parts {
        let position = KeychainIndex { keychain: Keychain::Change, index };
        let address = kit.world.account.address(position).expect("derives");
        let mut output = bitcoin::psbt::Output::default();
        describe_output(&kit.world.account, &address, &mut output);
        psbt.outputs.push(output);
        let value = Amount::from_sat(80_000 / u64::from(parts));
        psbt.unsigned_tx.output.push(TxOut { value, script_pubkey: address.script_pubkey });
    }
    let deadline = kit.world.proposal().deadline;
    Proposal::Joint(Box::new(kit.world.authorise(psbt, deadline)))
}

#[test]
fn a_payment_with_many_addresses_is_checked_aside_once() {
    let mut kit = Kit::voting();
    kit.joint_coin(90_500, 5, false);
    let proposal = in_parts(&kit, 20);
    let request = kit.vote_request(proposal.clone());
    kit.machine.at(kit.now, 0).handle_request(OTHER, ReplyTo::Peer(77), request);
    let Some(Output::LookUp { ticket, .. }) = kit.machine.poll_output() else { panic!("it asks the chain") };
    let found = kit.coins.clone().into_iter().collect();
    kit.machine.at(kit.now, 0).handle_coins(ticket, Some(found));
    let Some(Output::Check { ticket, check, .. }) = kit.machine.poll_output() else { panic!("it is large") };
    assert_eq!(check.account(), Some(kit.world.account.id()));
    kit.machine.at(kit.now, 0).handle_checked(ticket, Some(check.run()));
    assert_eq!(large_answer(&mut kit), Some((Verdict::Approve, None)));
    let request = kit.vote_request(proposal);
    kit.machine.at(kit.now, 0).handle_request(OTHER, ReplyTo::Peer(78), request);
    assert!(!matches!(kit.machine.poll_output(), Some(Output::Check { .. })), "it is known");
    // One that could not be checked is refused, and may come again.
    let mut kit = Kit::voting();
    kit.joint_coin(90_500, 5, false);
    let request = kit.vote_request(in_parts(&kit, 20));
    kit.machine.at(kit.now, 0).handle_request(OTHER, ReplyTo::Peer(77), request.clone());
    let Some(Output::LookUp { ticket, .. }) = kit.machine.poll_output() else { panic!("it asks the chain") };
    let found = kit.coins.clone().into_iter().collect();
    kit.machine.at(kit.now, 0).handle_coins(ticket, Some(found));
    let Some(Output::Check { ticket, .. }) = kit.machine.poll_output() else { panic!("it is large") };
    kit.machine.at(kit.now, 0).handle_checked(ticket, None);
    kit.ask(OTHER, request).expect("it votes");
}

#[test]
fn what_is_refused_for_less_is_not_checked_aside() {
    let mut kit = Kit::voting();
    // Its coin does not exist.
    let unknown = kit.vote(in_parts(&kit, 20)).expect_err("there is no such coin");
    assert!(matches!(unknown, RejectReason::UnknownCoin { .. }), "{unknown:?}");
    kit.joint_coin(90_500, 5, false);
    // More outputs than any transaction may have.
    let large = in_parts(&kit, 600);
    refused_at_once(&mut kit, large);
    // Its owner signed for another deadline.
    let Proposal::Joint(mut joint) = in_parts(&kit, 20) else { panic!("joint") };
    joint.deadline -= 1;
    refused_at_once(&mut kit, Proposal::Joint(joint));
}

fn refused_at_once(kit: &mut Kit, proposal: Proposal) {
    kit.out.clear();
    let request = kit.vote_request(proposal);
    kit.machine.at(kit.now, 0).handle_request(OTHER, ReplyTo::Peer(77), request);
    let mut outputs = Vec::new();
    while let Some(output) = kit.machine.poll_output() {
        if let Output::LookUp { ticket, .. } = output {
            let found = kit.coins.clone().into_iter().collect();
            kit.machine.at(kit.now, 0).handle_coins(ticket, Some(found));
        } else {
            outputs.push(output);
        }
    }
    assert!(!outputs.iter().any(|output| matches!(output, Output::Check { .. })), "{outputs:?}");
    kit.out.extend(outputs);
    let (verdict, reason) = large_answer(kit).expect("an answer");
    assert_eq!(verdict, Verdict::Reject);
    assert!(matches!(reason, Some(RejectReason::Invalid { .. })), "{reason:?}");
}

#[test]
fn a_coordinator_has_it_checked_aside_too_and_who_names_anothers_coin_costs_voters_nothing() {
    let mut kit = Kit::voting();
    let session = crate::testkit::WALLET;
    let hello = ClientMessage::Hello {
        protocol: quorate_protocol::wire::limits::PROTOCOL_VERSION,
        federation: None,
        agent: String::new(),
    };
    kit.machine.at(kit.now, 0).handle_client(session, Some(1), hello);
    kit.drain();
    let (proposal, account) = (in_parts(&kit, 20), Some(kit.world.certificate()));
    let message = ClientMessage::TransactionBroadcast { proposal: proposal.clone(), account };
    kit.machine.at(kit.now, 0).handle_client(session, Some(2), message);
    let mut aside = false;
    while let Some(output) = kit.machine.poll_output() {
        match output {
            Output::LookUp { ticket, .. } => {
                kit.machine.at(kit.now, 0).handle_coins(ticket, Some(Vec::new()));
            }
            Output::Recall { ticket, .. } => {
                kit.machine.at(kit.now, 0).handle_recalled(ticket, Some(crate::archive::Archived::default()));
            }
            Output::Check { source, .. } => aside = source == Source::Session(session),
            _ => {}
        }
    }
    assert!(aside, "its coin does not exist, which a coordinator does not look at");
    // The coin is another one than the proposal says.
    let mut kit = Kit::voting();
    kit.joint_coin(90_501, 5, false);
    let request = kit.vote_request(proposal);
    kit.machine.at(kit.now, 0).handle_request(OTHER, ReplyTo::Peer(77), request);
    let Some(Output::LookUp { ticket, .. }) = kit.machine.poll_output() else { panic!("it asks the chain") };
    let found = kit.coins.clone().into_iter().collect();
    kit.machine.at(kit.now, 0).handle_coins(ticket, Some(found));
    let (verdict, reason) = large_answer(&mut kit).expect("an answer");
    assert_eq!(verdict, Verdict::Reject);
    assert!(matches!(reason, Some(RejectReason::WrongCoin { .. })), "{reason:?}");
}

#[test]
fn anothers_certificate_spoils_no_payment() {
    let delay = testing::federation(4).account.record().recovery_delay + 1;
    for parts in [1, 20] {
        let mut kit = Kit::voting();
        kit.joint_coin(90_500, 5, false);
        let other = kit.world.with_delay(delay).certificate();
        let proposal = in_parts(&kit, parts);
        let wrong = |kit: &Kit| VotingRequest::VoteRequest {
            proposal: in_parts(kit, parts),
            account: Some(other.clone()),
            certificate: None,
            releases: vec![],
        };
        let request = wrong(&kit);
        let VotingReply::VoteResponse { reason: Some(_), .. } = kit.ask(OTHER, request).expect("a vote")
        else {
            panic!("it is of another account")
        };
        assert_eq!(kit.vote(proposal.clone()), Ok(()), "{parts} parts");
        let request = wrong(&kit);
        kit.ask(OTHER, request).expect("an answer");
        assert_eq!(kit.vote(proposal), Ok(()), "nor what is known of it afterwards");
    }
}

#[test]
fn what_was_checked_long_ago_is_checked_aside_again() {
    let mut kit = Kit::voting();
    kit.joint_coin(90_500, 5, false);
    let proposal = in_parts(&kit, 20);
    assert_eq!(kit.vote(proposal.clone()), Ok(()));
    let Proposal::Joint(joint) = &proposal else { panic!("a joint one") };
    let about = kit.world.target_of(joint);
    let commit = kit.commit_request(&about, &[2, 3, 4]);
    for request in [commit, kit.vote_request(proposal)] {
        kit.machine.cx.checks = crate::checks::Checks::default();
        kit.machine.at(kit.now, 0).handle_request(OTHER, ReplyTo::Peer(77), request);
        let check = std::iter::from_fn(|| kit.machine.poll_output()).find_map(|output| match output {
            Output::Check { ticket, check, .. } => Some((ticket, check)),
            _ => None,
        });
        let (ticket, check) = check.expect("it is large");
        kit.machine.at(kit.now, 0).handle_checked(ticket, Some(check.run()));
        kit.drain();
        let answered = |output: &Output| matches!(output, Output::Reply { to: ReplyTo::Peer(77), .. });
        assert!(kit.out.iter().any(answered));
        kit.out.clear();
    }
}
