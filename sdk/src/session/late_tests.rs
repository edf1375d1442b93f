//! What is final and comes into no block: why, and when to look again.

use super::tests::{drain, live, tell};
use super::*;
use crate::{
    finality::FinalityProof,
    testing,
    wallet::tests::{extend, paid},
    wire::{KeyOutcome, KeyResult, SubscriptionKey, TransactionStatus},
};
use bitcoin::{Amount, OutPoint};

/// A block comes; what the session asks and tells then.
fn block(session: &mut Session) -> (Vec<ClientMessage>, Vec<Event>) {
    extend(&mut session.wallet, |_| {});
    session.take_extension(Extension::Extended);
    heard(session)
}

fn heard(session: &mut Session) -> (Vec<ClientMessage>, Vec<Event>) {
    let (sent, others) = drain(session);
    let events = others.into_iter().filter_map(|output| match output {
        Output::Event(event) => Some(event),
        Output::Connect | Output::Close | Output::Save(_) | Output::Send(_) => None,
    });
    (sent.into_iter().map(|(_, message)| message).collect(), events.collect())
}

/// A session that was paid, with a proof.
fn paid_session() -> (Session, FinalityProof) {
    let mut session = live();
    let proof = paid(&mut session.wallet);
    let txid = proof.txid();
    let output = &proof.transaction().output[0];
    let utxo = testing::utxo_record(
        OutPoint { txid, vout: 0 },
        Amount::from_sat(90_000),
        output.script_pubkey.clone(),
    );
    let key = SubscriptionKey::Script(output.script_pubkey.clone());
    let (state, proof_sent) = (utxo.state(), Some(Box::new(proof.clone())));
    let message =
        ServerMessage::UTXOStateNotification { key, utxo, state, proof: proof_sent, followed: None };
    tell(&mut session, None, &message);
    let (_, events) = heard(&mut session);
    assert!(events.iter().any(|event| matches!(event, Event::Received { .. })), "{events:?}");
    (session, proof)
}

fn watched(sent: &[ClientMessage]) -> Vec<(bool, SubscriptionKey)> {
    let keys = sent.iter().flat_map(|message| {
        let (starts, keys) = if let ClientMessage::UTXOSubscribe { keys, .. } = message {
            (true, keys.as_slice())
        } else if let ClientMessage::UTXOUnsubscribe { keys } = message {
            (false, keys.as_slice())
        } else {
            (false, &[][..])
        };
        keys.iter().map(move |key| (starts, key.clone()))
    });
    keys.filter(|(_, key)| matches!(key, SubscriptionKey::Txid(_))).collect()
}

#[test]
fn what_waits_for_more_than_a_block_is_watched_for_what_the_network_has_against_it() {
    let (mut session, proof) = paid_session();
    let txid = proof.txid();
    assert_eq!(watched(&block(&mut session).0), [], "it may be in this block");
    assert_eq!(watched(&block(&mut session).0), [(true, SubscriptionKey::Txid(txid))]);
    assert_eq!(watched(&block(&mut session).0), [], "once");
    let why = Some("min relay fee not met".to_owned());
    let status = Some(TransactionStatus::Broadcasting { refusal: why.clone() });
    let proofs = vec![proof.clone()];
    let outcome =
        KeyOutcome::Snapshot { utxos: Vec::new(), proofs, status, history_from: None, followed: None };
    let results = vec![KeyResult { key: SubscriptionKey::Txid(txid), outcome }];
    let tip = crate::wire::ChainTip { block: session.wallet.chain().tip() };
    tell(&mut session, None, &ServerMessage::UTXOSubscribed { results, tip, more: false, since: None });
    let told = |refusal| Event::Broadcasting { txid, refusal };
    assert!(heard(&mut session).1.contains(&told(why.clone())));
    assert_eq!(session.refusal(txid), why.as_deref());
    // The same again is no news; another word is, and so is that it was taken.
    let say = |session: &mut Session, refusal: Option<&str>| {
        let status = TransactionStatus::Broadcasting { refusal: refusal.map(str::to_owned) };
        tell(session, None, &ServerMessage::TransactionStatus { txid, status });
        heard(session).1
    };
    assert_eq!(say(&mut session, why.as_deref()), []);
    let long = "x".repeat(5_000);
    say(&mut session, Some(&long));
    assert_eq!(session.refusal(txid).map(str::len), Some(limits::REFUSAL_CHARS_MAX));
    assert_eq!(say(&mut session, None), [told(None)]);
    assert_eq!(session.refusal(txid), None);
    // A block has it.
    let place = session.wallet.chain().tip();
    session.wallet.put_in_block(proof.transaction(), place);
    assert_eq!(watched(&block(&mut session).0), [(false, SubscriptionKey::Txid(txid))]);
    assert_eq!(say(&mut session, Some("late")), [], "nothing more is said of it");
}

#[test]
fn a_node_that_is_behind_is_asked_again_for_a_place() {
    let (mut session, proof) = paid_session();
    let txid = proof.txid();
    session.ask_proofs([txid]);
    let asked = |session: &mut Session| {
        let (sent, _) = drain(session);
        sent.into_iter().find_map(|(id, message)| {
            matches!(message, ClientMessage::ProofQuery { txid: one } if one == txid).then_some(id)
        })
    };
    let mut times = 0;
    while let Some(id) = asked(&mut session) {
        times += 1;
        assert!(times < 20, "not for ever");
        tell(&mut session, id, &ServerMessage::Proof { txid, proof: None, conflict: None });
        let Some(at) = session.chase_at else { break };
        session.handle_timeout(at);
    }
    assert!(times > 1, "asked again");
    assert!(session.waiting_proofs.is_empty(), "it waits for a block");
    extend(&mut session.wallet, |_| {});
    session.take_extension(Extension::Extended);
    assert!(asked(&mut session).is_some(), "and then it is asked for");
}

#[test]
fn a_payee_hands_in_what_its_server_does_not_know_to_be_final() {
    let (mut session, proof) = paid_session();
    let txid = proof.txid();
    block(&mut session);
    block(&mut session);
    let told = |session: &mut Session, status| {
        let outcome = KeyOutcome::Snapshot {
            utxos: Vec::new(),
            proofs: Vec::new(),
            status,
            history_from: None,
            followed: None,
        };
        let results = vec![KeyResult { key: SubscriptionKey::Txid(txid), outcome }];
        let tip = crate::wire::ChainTip { block: session.wallet.chain().tip() };
        tell(session, None, &ServerMessage::UTXOSubscribed { results, tip, more: false, since: None });
    };
    let handed_in = |session: &mut Session| {
        let (sent, _) = drain(session);
        let ours = sent.into_iter().find_map(|(id, message)| {
            if let ClientMessage::FinalTransaction { proof } = message { Some((id, proof)) } else { None }
        });
        ours.inspect(|(_, handed)| assert_eq!(**handed, proof)).map(|(id, _)| id)
    };
    told(&mut session, Some(TransactionStatus::Signed { proof: Box::new(proof.clone()) }));
    assert_eq!(handed_in(&mut session), None, "it is known");
    told(&mut session, None);
    assert!(handed_in(&mut session).is_some());
    told(&mut session, Some(TransactionStatus::Approved));
    assert_eq!(handed_in(&mut session), None, "once per block, however often it is said");
    // The server refuses for now: again with the next block, until it says that it has it.
    extend(&mut session.wallet, |_| {});
    session.take_extension(Extension::Extended);
    let id = handed_in(&mut session).expect("again");
    let status = TransactionStatus::Broadcasting { refusal: None };
    tell(&mut session, id, &ServerMessage::TransactionStatus { txid, status });
    assert!(id.is_none_or(|id| !session.pending.contains_key(&id)), "answered");
    extend(&mut session.wallet, |_| {});
    session.take_extension(Extension::Extended);
    assert_eq!(handed_in(&mut session), None);
}
