//! State that ends: what is forgotten when, what the archive still tells, and that nothing can be made of it.

use super::deadlines::{announce, child, paid};
use crate::{
    Output,
    index::UNDO_BLOCKS,
    records::{Change, ChangeSet, Table, TxRecord},
    testkit::{Kit, OTHER, sole, spend, target},
};
use bitcoin::{Amount, OutPoint, Transaction, TxOut};
use quorate_protocol::{
    NodeId, Round,
    finality::FinalityProof,
    proposal::Proposal,
    release::{ReleaseCertificate, SignedPromise},
    testing::DEADLINE,
    vote::VoteTarget,
    wire::{
        ClientMessage, ErrorCode, KeyOutcome, RejectReason, ServerMessage, SubscriptionKey,
        TransactionStatus, UtxoRecord, VotingReply, VotingRequest, limits,
    },
};
use std::{collections::BTreeMap, time::Duration};

fn hello(kit: &mut Kit) {
    kit.say(ClientMessage::Hello {
        protocol: limits::PROTOCOL_VERSION,
        federation: None,
        agent: String::new(),
    });
    kit.told();
}

/// A block with transactions: their inputs are no coins of the chain any more.
fn mine_with(kit: &mut Kit, transactions: &[Transaction]) {
    for input in transactions.iter().flat_map(|transaction| &transaction.input) {
        kit.coins.remove(&input.previous_output);
    }
    kit.mine_with(transactions.to_vec());
}

fn count(kit: &Kit, table: Table) -> usize {
    kit.rows.keys().filter(|(of, _)| *of == table).count()
}

/// A payment that was mined and lies so deep that no block can undo it.
fn settled() -> (Kit, OutPoint, FinalityProof) {
    let mut kit = Kit::voting();
    let coin = kit.joint_coin(90_500, 5, false);
    let proof = paid(&mut kit);
    mine_with(&mut kit, &[proof.transaction().clone()]);
    kit.mine(UNDO_BLOCKS - 1);
    assert!(kit.machine.proof(&proof.txid()).is_some(), "its block can still be undone");
    kit.mine(1);
    (kit, coin, proof)
}

fn snapshot(kit: &mut Kit, key: SubscriptionKey) -> (Vec<UtxoRecord>, Option<TransactionStatus>) {
    kit.say(ClientMessage::UTXOStateQuery { keys: vec![key] });
    let told = kit.told();
    let Some(ServerMessage::UTXOStateResponse { results, .. }) = told.last() else { panic!("{told:?}") };
    let KeyOutcome::Snapshot { utxos, status, .. } = results[0].outcome.clone() else { panic!("{told:?}") };
    (utxos, status)
}

#[test]
fn a_payment_below_the_reach_of_reorganisations_leaves_memory_store_and_index() {
    let (kit, coin, proof) = settled();
    let sizes = kit.machine.sizes();
    // The output of the payment is a coin of the account.
    assert_eq!((sizes.transactions, sizes.rounds, sizes.coins), (0, 0, 1));
    assert!(kit.machine.utxo(&coin).is_none());
    assert!(kit.machine.utxo(&OutPoint { txid: proof.txid(), vout: 0 }).is_some());
    let left = [Table::Transactions, Table::Rounds, Table::Answers, Table::Coins].map(|one| count(&kit, one));
    assert_eq!(left, [0, 0, 0, 1]);
    // The coin, its place among those of its script and its account, what became of the payment, and its proof.
    assert_eq!(Table::ARCHIVE.map(|table| count(&kit, table)), [1, 2, 1, 1]);
    assert!(kit.machine.unconfirmed().is_empty());
}

#[test]
fn who_comes_back_after_weeks_hears_of_coins_that_were_spent_and_where_they_went() {
    let (mut kit, coin, proof) = settled();
    let txid = proof.txid();
    hello(&mut kit);
    let script = SubscriptionKey::Script(kit.world.script());
    let (utxos, _) = snapshot(&mut kit, script.clone());
    let spent = utxos.iter().find(|utxo| utxo.outpoint == coin).expect("it is told");
    assert_eq!(spent.spent.map(|spent| spent.txid), Some(txid));
    assert_eq!(spent.tip_height, kit.machine.tip().height);
    let (_, status) = snapshot(&mut kit, SubscriptionKey::Txid(txid));
    assert!(
        matches!(status, Some(TransactionStatus::Confirmed { block }) if block.height == 11),
        "{status:?}"
    );

    // A subscriber hears it, by script or account, and who asks for the coin itself.
    let account = SubscriptionKey::Account(kit.world.account.id());
    let keys = vec![script, account.clone(), SubscriptionKey::Outpoint(coin)];
    kit.say(ClientMessage::subscribe(keys.clone()));
    let told = kit.told();
    let [ServerMessage::UTXOSubscribed { results, .. }] = &told[..] else { panic!("{told:?}") };
    for result in results {
        let KeyOutcome::Snapshot { utxos, .. } = &result.outcome else { panic!("{result:?}") };
        let news = utxos.iter().find(|utxo| utxo.outpoint == coin).and_then(|utxo| utxo.spent);
        assert_eq!(news.map(|spent| spent.txid), Some(txid), "{result:?}");
    }
    assert_eq!(results.len(), 3);
    kit.say(ClientMessage::UTXOUnsubscribe { keys });
    kit.told();

    // Who knows it already is not told again.
    let height = spent.spent.expect("spent").block.height;
    for (since, told) in [(height, true), (height + 1, false), (spent.tip_height, false)] {
        let keys = vec![account.clone()];
        let since = Some(since);
        kit.say(ClientMessage::UTXOSubscribe { keys: keys.clone(), accounts: BTreeMap::new(), since });
        let answer = kit.told();
        let [ServerMessage::UTXOSubscribed { results, since: answered, .. }] = &answer[..] else {
            panic!("{answer:?}")
        };
        assert_eq!(*answered, since);
        let utxos = results[0].utxos().expect("a snapshot");
        assert_eq!(utxos.iter().any(|utxo| utxo.outpoint == coin), told);
        kit.say(ClientMessage::UTXOUnsubscribe { keys });
        kit.told();
    }

    // Its place in the chain, also of what created a coin that is gone.
    for asked in [txid, coin.txid] {
        kit.say(ClientMessage::ProofQuery { txid: asked });
        let place =
            kit.out.iter().any(|output| matches!(output, Output::Prove { of, .. } if of.txid == asked));
        assert!(place, "{asked}");
    }
}

#[test]
fn a_proof_stays_as_long_as_one_of_its_coins_is_unspent() {
    let (mut kit, _, proof) = settled();
    hello(&mut kit);
    let submit = |kit: &mut Kit| {
        let Proposal::Joint(joint) = kit.joint() else { panic!("a joint payment") };
        let (proposal, account) = (Proposal::Joint(joint), Some(kit.world.certificate()));
        kit.say(ClientMessage::TransactionBroadcast { proposal, account });
        match kit.told().pop() {
            Some(ServerMessage::TransactionStatus { status, .. }) => status,
            other => panic!("{other:?}"),
        }
    };
    let status = submit(&mut kit);
    assert!(matches!(status, TransactionStatus::Signed { proof: told } if *told == proof));
    let next = child(&kit, &proof, DEADLINE);
    let next = kit.world.finish(&next);
    assert_eq!(announce(&mut kit, &next), Ok(()));
    mine_with(&mut kit, &[next.transaction().clone()]);
    // What it paid is nobody's coin here, and goes with the daily sweep.
    kit.mine(UNDO_BLOCKS + 144);
    assert_eq!(kit.machine.sizes().coins, 0);
    assert!(matches!(submit(&mut kit), TransactionStatus::Confirmed { block } if block.height == 11));
}

#[test]
fn nothing_is_said_about_a_coin_that_is_settled() {
    let (kit, coin, proof) = settled();
    says_nothing(kit, coin, &proof);
}

/// The store has not confirmed yet that it has forgotten the payment.
#[test]
fn nothing_is_said_about_a_coin_while_it_is_being_settled() {
    let mut kit = Kit::voting();
    kit.settles = false;
    let coin = kit.joint_coin(90_500, 5, false);
    let proof = paid(&mut kit);
    mine_with(&mut kit, &[proof.transaction().clone()]);
    kit.mine(UNDO_BLOCKS);
    assert!(kit.machine.proof(&proof.txid()).is_none());
    assert_eq!(count(&kit, Table::Coins), 2, "the index waits");
    says_nothing(kit, coin, &proof);
}

fn says_nothing(mut kit: Kit, coin: OutPoint, proof: &FinalityProof) {
    // The same payment again, and its proof from a peer and from a wallet.
    let proposal = kit.joint();
    assert_eq!(kit.vote(proposal), Err(RejectReason::UnknownCoin { outpoint: coin }));
    assert_eq!(announce(&mut kit, proof), Ok(()));
    hello(&mut kit);
    kit.out.clear();
    kit.say(ClientMessage::FinalTransaction { proof: Box::new(proof.clone()) });
    assert!(kit.machine.proof(&proof.txid()).is_none() && kit.machine.unconfirmed().is_empty());
    assert!(!kit.out.iter().any(|output| matches!(output, Output::Broadcast(_) | Output::Persist(_))));
    // A promise now would deny what this node committed to then.
    let promises: Vec<SignedPromise> =
        [2, 3, 4].map(|node| kit.promise(NodeId(node), coin, Round(0))).to_vec();
    let request = release_request(coin, promises);
    let answer = kit.ask(OTHER, request).expect("it answers");
    assert!(matches!(answer, VotingReply::ReleaseResponse { promise: None, .. }), "{answer:?}");
}

#[test]
fn a_crash_between_store_and_index_leaves_nothing_behind() {
    let mut kit = Kit::voting();
    let coin = kit.joint_coin(90_500, 5, false);
    let proof = paid(&mut kit);
    mine_with(&mut kit, &[proof.transaction().clone()]);
    kit.mine(UNDO_BLOCKS - 1);
    // It dies before it hears that the store has forgotten the payment.
    kit.settles = false;
    kit.mine(1);
    let rows = kit.rows.clone();
    assert_eq!([Table::Transactions, Table::Coins].map(|table| count(&kit, table)), [0, 2]);
    kit.settles = true;
    kit.rows = rows;
    kit.restart();
    assert!(kit.machine.utxo(&coin).is_none(), "it goes at the start");
    kit.mine(1);
    assert_eq!(count(&kit, Table::Coins), 1);
    hello(&mut kit);
    let script = SubscriptionKey::Script(kit.world.script());
    let (utxos, _) = snapshot(&mut kit, script);
    assert!(utxos.iter().any(|utxo| utxo.outpoint == coin && utxo.spent.is_some()));
}

#[test]
fn what_lost_its_coin_to_another_goes_with_it_and_a_coin_that_is_unspent_keeps_its_lock() {
    let mut kit = Kit::voting();
    let coins = [0, 1].map(|vout| kit.open_coin(vout));
    let (both, one) = (spend(&coins, 190_000), spend(&coins[..1], 99_000));
    assert_eq!(kit.vote(sole(&both)), Ok(()));
    mine_with(&mut kit, &[one]);
    kit.mine(2 * UNDO_BLOCKS);
    assert_eq!(kit.machine.sizes().transactions, 1, "it holds the other coin");
    assert!(kit.machine.holds(&coins[1]).is_some());
    mine_with(&mut kit, &[spend(&coins[1..], 98_000)]);
    kit.mine(UNDO_BLOCKS);
    let sizes = kit.machine.sizes();
    assert_eq!((sizes.transactions, sizes.rounds, sizes.coins, sizes.open), (0, 0, 0, 0));
}

#[test]
fn coins_that_were_only_named_are_kept_within_bounds() {
    let mut kit = Kit::voting();
    hello(&mut kit);
    let coin = |number: u32| OutPoint { vout: number, ..kit_coin() };
    let held = kit.open_coin(0);
    assert_eq!(kit.vote(sole(&spend(&[held], 99_000))), Ok(()));
    let most = crate::notices::LOOKED_UP_MAX;
    let named: Vec<u32> = (1..=u32::try_from(most).expect("small") + 500).collect();
    let output =
        TxOut { value: Amount::from_sat(1), script_pubkey: kit.coins[&held].output.script_pubkey.clone() };
    for chunk in named.chunks(limits::KEYS_PER_MESSAGE_MAX) {
        for number in chunk {
            let found = crate::ChainCoin { output: output.clone(), ..kit.coins[&held].clone() };
            kit.coins.insert(coin(*number), found);
        }
        let keys = chunk.iter().map(|number| SubscriptionKey::Outpoint(coin(*number))).collect();
        kit.say(ClientMessage::UTXOStateQuery { keys });
        kit.out.clear();
    }
    let kept = kit.machine.sizes().coins;
    assert!(kept <= most + 1, "{kept}");
    assert!(kit.machine.utxo(&held).is_some(), "what was voted on stays");
    assert!(kit.machine.utxo(&coin(1)).is_none(), "the oldest goes first");
    // And all of them with the daily sweep.
    kit.mine(UNDO_BLOCKS + 144);
    assert_eq!(kit.machine.sizes().coins, 1);
}

fn kit_coin() -> OutPoint {
    OutPoint { txid: bitcoin::hashes::Hash::from_byte_array([9; 32]), vout: 0 }
}

#[test]
fn what_a_node_committed_to_is_not_forgotten_before_all_coins_of_it() {
    let mut kit = Kit::voting();
    let coins = [0, 1].map(|vout| kit.open_coin(vout));
    let (both, one) = (spend(&coins, 190_000), spend(&coins[..1], 99_000));
    assert_eq!(kit.vote(sole(&both)), Ok(()));
    kit.ask(OTHER, kit.commit_request(&target(&both), &[2, 3, 4])).expect("commits");
    // The chain decides for another spend of the first coin, which is final, too.
    mine_with(&mut kit, &[one]);
    kit.mine(2 * UNDO_BLOCKS);
    assert_eq!(kit.machine.sizes().transactions, 1);
    kit.now += Duration::from_secs(60);
    for coin in coins {
        let request = release_request(coin, vec![]);
        let Ok(VotingReply::ReleaseResponse { promise, .. }) = kit.ask(OTHER, request) else {
            panic!("an answer")
        };
        let committed = promise.and_then(|promise| promise.committed);
        assert_eq!(committed, Some(target(&both)), "{coin}");
    }
}

fn release_request(outpoint: OutPoint, promises: Vec<SignedPromise>) -> VotingRequest {
    VotingRequest::ReleaseRequest {
        outpoint,
        round: Round(0),
        rejects: vec![],
        cancel: None,
        promises,
        previous: None,
    }
}

#[test]
fn what_a_block_contradicted_long_ago_stays_dead() {
    let mut kit = Kit::voting();
    kit.joint_coin(90_500, 5, false);
    let proof = paid(&mut kit);
    let mut recovery = proof.transaction().clone();
    recovery.output[0].value -= Amount::from_sat(1_000);
    mine_with(&mut kit, &[recovery.clone()]);
    kit.mine(UNDO_BLOCKS);
    let (txid, by) = (proof.txid(), recovery.compute_txid());
    assert_eq!((kit.machine.sizes().transactions, kit.machine.unconfirmed().len()), (0, 0));
    hello(&mut kit);
    let (_, status) = snapshot(&mut kit, SubscriptionKey::Txid(txid));
    assert!(
        matches!(status, Some(TransactionStatus::Conflicted { by: spend }) if spend.txid == by),
        "{status:?}"
    );
    kit.say(ClientMessage::FinalTransaction { proof: Box::new(proof.clone()) });
    let told = kit.told();
    let conflicted = |message: &ServerMessage| {
        matches!(
            message,
            ServerMessage::TransactionStatus { status: TransactionStatus::Conflicted { .. }, .. }
        )
    };
    assert!(told.iter().all(conflicted), "{told:?}");
    assert_eq!((kit.machine.sizes().transactions, kit.machine.unconfirmed().len()), (0, 0));
    kit.say(ClientMessage::ProofQuery { txid });
    let shown = kit
        .out
        .iter()
        .any(|output| matches!(output, Output::Prove { of, path, .. } if of.txid == by && path.len() == 1));
    assert!(shown, "and a wallet is shown why");
    assert_eq!(kit.machine.status().breaches.len(), 1, "the operator still sees it");
}

#[test]
fn no_proof_is_taken_in_while_nobody_can_tell_whether_it_is_old() {
    let (mut kit, _, proof) = settled();
    kit.archive_fails = true;
    assert_eq!(announce(&mut kit, &proof), Err(ErrorCode::NotReady));
    assert!(kit.machine.unconfirmed().is_empty());
}

#[test]
fn nothing_is_spent_of_what_rests_on_a_coin_that_is_not_there() {
    let (mut kit, _, proof) = settled();
    // The archive is lost, and with it that the payment is of long ago.
    kit.rows.retain(|(table, _), _| !Table::ARCHIVE.contains(table));
    let next = child(&kit, &proof, DEADLINE);
    let finished = kit.world.finish(&next);
    mine_with(&mut kit, &[finished.transaction().clone()]);
    kit.mine(UNDO_BLOCKS + 144);
    kit.rows.retain(|(table, _), _| !Table::ARCHIVE.contains(table));
    assert_eq!(announce(&mut kit, &proof), Ok(()), "it is taken for news");
    let again = kit.vote(Proposal::Joint(Box::new(next)));
    assert!(matches!(again, Err(RejectReason::Unconfirmed { .. })), "{again:?}");
}

#[test]
fn a_proof_of_long_ago_that_a_seal_had_as_news_is_forgotten_again() {
    let (mut kit, _, proof) = settled();
    let sealed = TxRecord {
        target: VoteTarget::new(proof.txid(), proof.custody(), proof.outpoints().map(|one| (one, Round(0)))),
        proposal: None,
        account: None,
        spent: Vec::new(),
        vote: None,
        locked_at: 0,
        certificate: None,
        proof: Some(proof.clone()),
    };
    let mut change = ChangeSet::default();
    change.put(&Change::Transaction(Box::new(sealed)));
    for row in change.rows() {
        kit.rows.insert((row.table, row.key.clone()), row.value.clone());
    }
    kit.restart();
    assert!(kit.machine.proof(&proof.txid()).is_some(), "until the archive has answered");
    kit.drain();
    assert!(kit.machine.proof(&proof.txid()).is_none());
    assert!(kit.machine.unconfirmed().is_empty());
    assert_eq!(count(&kit, Table::Transactions), 0);
}

#[test]
fn nothing_is_forgotten_that_the_archive_does_not_have() {
    let mut kit = Kit::voting();
    kit.joint_coin(90_500, 5, false);
    let proof = paid(&mut kit);
    mine_with(&mut kit, &[proof.transaction().clone()]);
    kit.archive_fails = true;
    kit.mine(UNDO_BLOCKS + 1);
    assert_eq!(kit.machine.proof(&proof.txid()), Some(&proof));
    assert_eq!([Table::Transactions, Table::Coins].map(|table| count(&kit, table)), [1, 2]);
    kit.archive_fails = false;
    kit.mine(1);
    assert_eq!([Table::Transactions, Table::Coins].map(|table| count(&kit, table)), [0, 1]);
}

fn released(kit: &mut Kit, outpoint: OutPoint, committed: Option<&VoteTarget>) -> ReleaseCertificate {
    let (federation, round) = (kit.world.federation.clone(), Round(0));
    let promise = |node: u16| {
        let node = NodeId(node);
        let committed = committed.filter(|_| node == NodeId(2)).cloned();
        let signed =
            SignedPromise::sign(federation.context(), node, kit.key(node), outpoint, round, committed);
        (node, signed)
    };
    let promises = [2, 3, 4].into_iter().map(promise).collect();
    let highest: Vec<_> = committed.map(|target| kit.certificate(target, &[2, 3, 4])).into_iter().collect();
    let release = ReleaseCertificate::assemble(outpoint, round, &promises, &highest);
    release.verify(&federation).expect("q promises");
    release
}

/// A coin that was spent long ago, another one that a release leaves to a spend of both, and that release.
fn void_by_what_is_forgotten() -> (Kit, [OutPoint; 2], Transaction, ReleaseCertificate) {
    let mut kit = Kit::voting();
    let [old, held] = [0, 1].map(|vout| kit.open_coin(vout));
    let paid = spend(&[old], 99_000);
    kit.ask(OTHER, kit.vote_request(sole(&paid))).expect("approves");
    mine_with(&mut kit, &[paid]);
    kit.mine(UNDO_BLOCKS);
    assert!(kit.machine.utxo(&old).is_none(), "it is forgotten");
    let both = spend(&[old, held], 198_000);
    let release = released(&mut kit, held, Some(&target(&both)));
    (kit, [old, held], both, release)
}

#[test]
fn what_was_forgotten_still_shows_that_a_certificate_is_void() {
    for starts_anew in [false, true] {
        let (mut kit, [_, held], _, release) = void_by_what_is_forgotten();
        let other = spend(&[held], 98_000);
        kit.archive_fails = true;
        kit.ask(OTHER, VotingRequest::Released { releases: vec![release] }).expect("takes note");
        assert!(kit.vote(sole(&other)).is_err(), "as far as it knows, the spend of both may be final");
        kit.archive_fails = false;
        if starts_anew {
            kit.restart();
            kit.wake();
        } else {
            kit.mine(1);
        }
        assert_eq!(kit.vote(sole(&other)), Ok(()), "it has asked again: {starts_anew}");
    }

    let (mut kit, [_, held], both, release) = void_by_what_is_forgotten();
    kit.ask(OTHER, VotingRequest::Released { releases: vec![release] }).expect("takes note");
    assert!(kit.vote(sole(&both)).is_err(), "its other input is spent");
    assert_eq!(kit.vote(sole(&spend(&[held], 98_000))), Ok(()), "at once");
}

#[test]
fn a_release_of_a_forgotten_coin_that_is_shown_again_is_forgotten_again() {
    let (mut kit, [old, _], _, _) = void_by_what_is_forgotten();
    let release = released(&mut kit, old, None);
    assert_eq!(count(&kit, Table::Rounds), 0);
    kit.ask(OTHER, VotingRequest::Released { releases: vec![release] }).expect("takes note");
    assert_eq!(count(&kit, Table::Rounds), 1);
    kit.mine(1);
    assert_eq!((count(&kit, Table::Rounds), kit.machine.sizes().rounds), (0, 0));
}
