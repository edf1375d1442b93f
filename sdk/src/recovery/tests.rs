//! A sweep that Bitcoin's own script interpreter accepts, and what is refused on the way there.

use super::*;
use crate::{
    testing,
    wallet::{AccountOptions, SecretWords, Wallet},
};
use bitcoin::{FeeRate, ScriptBuf, Sequence, TapSighashType, Txid, hashes::Hash as _};

const WORDS: &str =
    "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about";
const OTHER: &str = "zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo zoo wrong";

fn words(text: &str) -> SecretWords {
    SecretWords::parse(text).expect("valid words")
}

fn wallet() -> Wallet {
    let federation = testing::federation(4).federation;
    Wallet::new(federation, &words(WORDS), &AccountOptions::default(), None).expect("opens")
}

fn recovery() -> Recovery {
    Recovery::new(&wallet().descriptor().to_string(), Network::Regtest).expect("a descriptor")
}

fn coin(index: u32, value: u64, height: u32) -> RecoverableCoin {
    RecoverableCoin {
        outpoint: OutPoint { txid: Txid::hash(&index.to_le_bytes()), vout: 0 },
        value: Amount::from_sat(value),
        position: KeychainIndex { keychain: Keychain::Change, index },
        height: Some(height),
    }
}

fn request(tip: u32) -> SweepRequest {
    let destination = ScriptBuf::new_p2wpkh(&bitcoin::WPubkeyHash::from_byte_array([7; 20]));
    SweepRequest { destination, fee_rate: FeeRate::from_sat_per_vb_u32(2), tip }
}

#[test]
fn what_is_open_is_swept_and_what_is_not_stays() {
    let recovery = recovery();
    let delay = u32::from(recovery.descriptor().recovery_delay());
    let coins = [coin(0, 50_000, 10), coin(1, 60_000, 11), coin(2, 140, 10)];
    let error = recovery.sweep(&coins, &request(delay)).expect_err("nothing is open");
    assert!(matches!(error, RecoveryError::NothingOpen { next: Some(next) } if next == delay + 10));
    // The next block is the first that can have it.
    let sweep = recovery.sweep(&coins, &request(delay + 9)).expect("one is open");
    assert_eq!(sweep.amount + sweep.fee, Amount::from_sat(50_000));
    assert_eq!(sweep.left, [coins[1], coins[2]], "not open yet, and not worth its fee");
    let signed = recovery.sign(&words(WORDS), &sweep.psbt).expect("signs");
    assert_eq!(signed.fee, sweep.fee);
    let weight = signed.transaction.weight();
    assert_eq!(sweep.fee, FeeRate::from_sat_per_vb_u32(2).fee_wu(weight).expect("small"));
}

#[test]
fn words_of_another_wallet_are_refused_before_anything_is_signed() {
    recovery().check_words(&words(WORDS).with_passphrase("horse")).expect_err("another passphrase");
    let error = recovery().check_words(&words(OTHER)).expect_err("other words");
    assert_eq!(error.code(), "other_words");
    recovery().check_words(&words(WORDS)).expect("the right ones");
}

#[test]
fn a_psbt_from_outside_is_checked_input_by_input() {
    let recovery = recovery();
    let tip = 100_000;
    let good = recovery.sweep(&[coin(0, 50_000, 10), coin(1, 60_000, 11)], &request(tip)).expect("open").psbt;
    let refused = |change: &dyn Fn(&mut bitcoin::Psbt)| {
        let mut psbt = good.clone();
        change(&mut psbt);
        recovery.sign(&words(WORDS), &psbt).expect_err("refused").to_string()
    };
    let foreign = refused(&|psbt| {
        psbt.inputs[1].witness_utxo.as_mut().expect("set").script_pubkey = ScriptBuf::new();
    });
    assert!(foreign.contains("input 1") && foreign.contains("not an address"), "{foreign}");
    let none = refused(&|psbt| psbt.inputs[0].sighash_type = Some(TapSighashType::None.into()));
    assert!(none.contains("does not cover everything"), "{none}");
    let early = refused(&|psbt| psbt.unsigned_tx.input[0].sequence = Sequence::MAX);
    assert!(early.contains("sequence"), "{early}");
    let bare = refused(&|psbt| psbt.inputs[0].witness_utxo = None);
    assert!(bare.contains("missing"), "{bare}");
    let minted = refused(&|psbt| psbt.unsigned_tx.output[0].value = Amount::from_sat(110_001));
    assert!(minted.contains("more than it spends"), "{minted}");
    let absurd = refused(&|psbt| {
        for input in &mut psbt.inputs {
            input.witness_utxo.as_mut().expect("set").value = Amount::from_sat(u64::MAX);
        }
    });
    assert!(absurd.contains("do not exist"), "{absurd}");
    let short = refused(&|psbt| {
        psbt.inputs.pop();
    });
    assert!(short.contains("not described"), "{short}");
}

#[test]
fn fees_are_bounded_and_named() {
    let recovery = recovery();
    let coins = [coin(0, 1_000, 10)];
    let rate = |rate| SweepRequest { fee_rate: FeeRate::from_sat_per_vb_u32(rate), ..request(100_000) };
    for (asked, code) in
        [(0, "fee_rate_out_of_range"), (3_000, "fee_rate_out_of_range"), (50, "insufficient_funds")]
    {
        let error = recovery.sweep(&coins, &rate(asked)).expect_err("refused");
        assert_eq!(error.code(), code, "{error}");
    }
}

#[test]
fn a_search_goes_on_past_what_was_used_and_no_further() {
    let recovery = recovery();
    let mut scan = Scan::new(&recovery);
    let mut asked = [0, 0];
    while let Some(query) = scan.next_query().expect("derives") {
        let chain = usize::from(query.position.keychain == Keychain::Change);
        asked[chain] += 1;
        assert_eq!(query.script_pubkey, recovery.address(query.position).expect("derives").script_pubkey);
        let used = chain == 0 && [70, 160].contains(&query.position.index);
        let coin =
            (OutPoint { txid: Txid::all_zeros(), vout: query.position.index }, Amount::ONE_BTC, Some(5));
        // One address was used and is empty, another has a coin.
        scan.answer(query.position, used, (query.position.index == 160 && chain == 0).then_some(coin));
    }
    assert_eq!(asked, [261, 100]);
    let found = scan.finish(9);
    assert_eq!((found.tip, found.coins.len()), (9, 1));
    assert_eq!(
        recovery.position(&recovery.address(found.coins[0].position).expect("derives").script_pubkey),
        Some(found.coins[0].position)
    );
}

#[test]
fn the_backup_is_read_as_it_was_printed() {
    let wallet = wallet();
    let kit = BackupKit::new(&wallet, Some(words(WORDS)));
    let text = kit.to_text();
    assert!(
        text.contains("[73c5da0a/87'/1'/0']"),
        "the origin by BIP32 of the published test words: {}",
        text.as_str()
    );
    let read = BackupKit::parse(&format!("\u{feff}\r\n{}", text.replace('\n', "\r\n"))).expect("reads");
    assert_eq!(read.to_text(), text);
    let bare = BackupKit::parse(&BackupKit::new(&wallet, None).to_text()).expect("reads");
    assert!(bare.words.is_none());
    let cut: String = text.lines().filter(|line| !line.starts_with("network")).collect::<Vec<_>>().join("\n");
    assert!(!text.contains("passphrase") && !bare.passphrase);
    let kit = BackupKit::new(&wallet, Some(words(WORDS).with_passphrase("horse")));
    let text = kit.to_text();
    assert!(kit.passphrase && !text.contains("horse"), "it is on no sheet");
    assert!(BackupKit::parse(&text).expect("reads").passphrase);
    assert!(BackupKit::parse(&cut).expect_err("cut").to_string().contains("network"));
    let typo = text.replace("older(", "older(1");
    assert!(BackupKit::parse(&typo).expect_err("typo").to_string().contains("checksum"));
}

#[test]
fn a_list_of_coins_is_read_line_by_line() {
    let recovery = recovery().with_addresses_max(20);
    let position = KeychainIndex { keychain: Keychain::Change, index: 3 };
    let address = recovery.address(position).expect("derives").to_address(Network::Regtest);
    let txid = "11".repeat(32);
    let coins = recovery.read_list(&format!("# mine\n\n{txid}:1 5000 77 {address}\n")).expect("reads");
    assert_eq!(coins.len(), 1);
    assert_eq!((coins[0].position, coins[0].height, coins[0].value.to_sat()), (position, Some(77), 5_000));
    for (bad, what) in [
        (format!("{txid}:1 5000 77"), "four parts"),
        (format!("{txid} 5000 77 {address}"), "outpoint"),
        (format!("{txid}:1 -1 77 {address}"), "amount"),
        (format!("{txid}:1 2100000000000001 77 {address}"), "21 million"),
        (
            format!("{txid}:1 1 77 bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080"),
            "not an address of this account",
        ),
        (format!("{txid}:1 1 77 {address}\n{txid}:1 1 77 {address}"), "twice"),
    ] {
        let error = recovery.read_list(&bad).expect_err(&bad).to_string();
        assert!(error.contains(what), "{bad}: {error}");
    }
}
