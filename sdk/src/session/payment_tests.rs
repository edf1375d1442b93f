//! Payments that are asked for more than once.

use super::{
    tests::{START, certify, drain_saving, live, opened},
    *,
};
use crate::{
    Round, testing,
    vote::VoteTarget,
    wallet::{
        PaymentRequest, SavedState,
        tests::{confirmed, mine, request},
    },
    wire::{Lock, UtxoRecord},
};
use bitcoin::{Amount, OutPoint};

/// A quote is paid again after it failed. Coins that are locked for it in a later round are then no sign that it is
/// left over from before.
#[test]
fn a_payment_that_is_made_once_more_goes_on_when_its_coins_are_locked_for_it() {
    let mut session = live();
    certify(&mut session);
    mine(&mut session.wallet, 5);
    let coin = confirmed(&mut session.wallet, false);
    let payment = request(&mut session.wallet, false).exact(Amount::from_sat(10_000));
    let psbt = session.quote(&payment).expect("enough").psbt;
    let txid = session.send_psbt(START, psbt.clone()).expect("sent");
    session.finish(txid, PaymentState::Failed { message: String::new(), retry: true });
    assert!(session.dormant.contains_key(&txid));
    assert_eq!(session.send_psbt(START, psbt), Ok(txid));
    assert!(session.dormant.is_empty());
    let script = session.wallet().coins().next().expect("one").script_pubkey.clone();
    let lock = Some(Lock { txid, round: Round(1), locked_at: 0 });
    let record = testing::utxo_record(coin, Amount::from_sat(50_000), script);
    let signed = VoteTarget::new(txid, testing::custody(), [(coin, Round(1))]);
    session.payments.get_mut(&txid).expect("under way").signed.push(signed);
    session.dormant.insert(txid, session.payments[&txid].proposal.clone());
    session.take_record(&UtxoRecord { round: Round(1), lock, ..record });
    let payment = &session.payments[&txid];
    assert!(!payment.cancelled);
    assert_eq!(payment.signed.len(), 1, "what it signed is not forgotten");
}

#[test]
fn a_payment_is_made_once_for_each_key_and_also_after_a_restart() {
    let mut disk = SavedState::new();
    let mut session = opened(&disk);
    certify(&mut session);
    mine(&mut session.wallet, 5);
    confirmed(&mut session.wallet, false);
    let payment = request(&mut session.wallet, false).exact(Amount::from_sat(10_000));
    let too_much = payment.clone().exact(Amount::from_sat(90_000));
    session.send_once(START, "invoice 17", &too_much).expect_err("the key stays free");
    let txid = session.send_once(START, "invoice 17", &payment).expect("pays");
    assert_eq!(session.send_once(START, "invoice 17", &payment), Ok(txid));
    assert_eq!(session.payments().count(), 1);
    let other = payment.clone().exact(Amount::from_sat(11_000));
    assert_eq!(session.send_once(START, "invoice 17", &other), Err(WalletError::KeyReused { txid }));
    drain_saving(&mut session, &mut disk);

    let mut again = opened(&disk);
    assert_eq!(again.send_once(START, "invoice 17", &payment), Ok(txid));
    assert_eq!(again.payments().map(|(txid, _)| txid).collect::<Vec<_>>(), [txid]);
    // Also when it has ended.
    again.finish(txid, PaymentState::Failed { message: "refused".to_owned(), retry: true });
    assert_eq!(again.send_once(START, "invoice 17", &payment), Ok(txid));
    assert!(matches!(again.payment(txid), Some(PaymentState::Failed { .. })));
    certify(&mut again);
    mine(&mut again.wallet, 5);
    let other = again.send_once(START, "invoice 18", &payment).expect("its coin is free again");
    assert_ne!(other, txid);
    let Some(Proposal::Joint(joint)) = again.payments.get(&other).map(|one| one.proposal.clone()) else {
        panic!("a joint payment")
    };
    assert_eq!(
        again.send_psbt_once(START, "invoice 19", joint.psbt.clone()),
        Ok(other),
        "as it is under way"
    );
    assert_eq!(again.send_psbt_once(START, "invoice 19", joint.psbt), Ok(other));
    let taken = again.send_once(START, "invoice 19", &payment);
    assert_eq!(taken, Err(WalletError::KeyReused { txid: other }));
}

#[test]
fn what_differs_has_another_fingerprint() {
    let mut session = live();
    let base = request(&mut session.wallet, false);
    let to = base.destination.clone();
    let (one, two) = (Amount::from_sat(1), Amount::from_sat(2));
    let coin = OutPoint::null();
    let all = [
        base.clone(),
        base.clone().exact(one),
        base.clone().exact(two),
        base.clone().everything(),
        base.clone().exact(one).and(to.clone(), one),
        base.clone().exact(one).and(to, two),
        base.clone().exact(one).data(b""),
        base.clone().exact(one).data(b"x"),
        base.clone().exact(one).with_coins([coin]),
        base.exact(one).fee_rate(FeeRate::BROADCAST_MIN),
    ];
    let prints: BTreeSet<_> = all.iter().map(PaymentRequest::fingerprint).collect();
    assert_eq!(prints.len(), all.len());
}

/// An earlier release saved payments with whatever a PSBT from outside had; nodes refuse such by now.
#[test]
fn a_payment_that_was_saved_with_more_than_nodes_take_goes_on_without_that() {
    let mut disk = SavedState::new();
    let mut session = opened(&disk);
    certify(&mut session);
    mine(&mut session.wallet, 5);
    confirmed(&mut session.wallet, false);
    let payment = request(&mut session.wallet, false).exact(Amount::from_sat(10_000));
    let txid = session.send(START, &payment).expect("pays");
    drain_saving(&mut session, &mut disk);
    let Some(Proposal::Joint(lean)) = session.payments.get(&txid).map(|one| one.proposal.clone()) else {
        panic!("a joint payment")
    };
    let mut fat = lean.clone();
    fat.psbt.unknown.insert(bitcoin::psbt::raw::Key { type_value: 0xf0, key: vec![1] }, vec![2]);
    fat.check_lean().expect_err("more than nodes take");
    let [lean_text, fat_text] = [&lean, &fat].map(|one| one.psbt.to_string());
    let ended = serde_json::to_vec(&Proposal::Joint(fat)).expect("written");
    for key in [format!("payment/{txid}"), format!("ended/{txid}")] {
        let mut disk = disk.clone();
        let saved = disk.remove(&format!("payment/{txid}")).expect("saved");
        let saved = String::from_utf8(saved).expect("JSON");
        assert!(saved.contains(&lean_text));
        let is_ended = key.starts_with("ended/");
        let value = if is_ended { ended.clone() } else { saved.replace(&lean_text, &fat_text).into_bytes() };
        disk.insert(key, value);
        let again = opened(&disk);
        let restored = if is_ended {
            again.dormant.get(&txid)
        } else {
            again.payments.get(&txid).map(|payment| &payment.proposal)
        };
        assert_eq!(restored, Some(&Proposal::Joint(lean.clone())));
    }
}
