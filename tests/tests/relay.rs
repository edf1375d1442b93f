//! What nodes vote for, Bitcoin Core relays: random shapes of transactions, judged by both.

#![expect(clippy::indexing_slicing, reason = "a test panics on what cannot happen")]

use anyhow::{Context as _, Result};
use bitcoin::{
    Amount, FeeRate, OutPoint, ScriptBuf, Sequence, TapLeafHash, Transaction, TxIn, TxOut, WPubkeyHash,
    Weight, Witness, WitnessProgram, WitnessVersion,
    absolute::LockTime,
    consensus::encode::serialize_hex,
    hashes::Hash as _,
    key::{Secp256k1, XOnlyPublicKey},
    opcodes::all::{
        OP_CHECKMULTISIG, OP_CHECKSIG, OP_DROP, OP_ENDIF, OP_IF, OP_PUSHNUM_1, OP_PUSHNUM_2, OP_RETURN,
    },
    script::{Builder, PushBytesBuf},
    taproot::{LeafVersion, TaprootBuilder},
    transaction::Version,
};
use quorate::relay_policy;
use quorate_node::chain::Bitcoind;
use quorate_rules::scripts::check_scripts;
use quorate_tests::{bitcoind, daemon::Daemon};
use rand_chacha::{
    ChaCha20Rng,
    rand_core::{RngCore as _, SeedableRng as _},
};
use serde_json::{Value, json};

/// Shapes that are tried.
const SHAPES: usize = 2_000;
/// Coins that are spent by nothing unusual, the first ones.
const PLAIN: usize = 20;
/// Value of each coin.
const COIN: Amount = Amount::from_sat(200_000);

/// A coin that is spent with a script and witness of its own.
struct Coin {
    outpoint: OutPoint,
    output: TxOut,
    script_sig: ScriptBuf,
    witness: Witness,
}

struct Dice(ChaCha20Rng);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.0.next_u64() % u64::try_from(bound).expect("small")).expect("small")
    }

    fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

fn bytes(length: usize) -> PushBytesBuf {
    PushBytesBuf::try_from(vec![7; length]).expect("short")
}

/// Drops so many elements that come with the input, skips so many signature checks, and leaves true.
fn script(drops: usize, checks: usize, filler: usize) -> ScriptBuf {
    let mut builder = Builder::new();
    for _ in 0..drops {
        builder = builder.push_opcode(OP_DROP);
    }
    for _ in 0..filler {
        builder = builder.push_slice(bytes(74)).push_opcode(OP_DROP);
    }
    if checks > 0 {
        builder = builder.push_int(0).push_opcode(OP_IF);
        for _ in 0..checks {
            builder = builder.push_opcode(OP_CHECKSIG);
        }
        builder = builder.push_opcode(OP_ENDIF);
    }
    builder.push_int(1).into_script()
}

/// The same with an opcode in it that does nothing, or is kept for soft forks.
fn odd_script(dice: &mut Dice, drops: usize, checks: usize, filler: usize) -> ScriptBuf {
    let plain = script(drops, checks, filler);
    let first = dice.pick(&[0x61, 0x61, 0xb0, 0xb3, 0xb9, 0xab]);
    if dice.below(3) > 0 { plain } else { ScriptBuf::from_bytes([&[first], plain.as_bytes()].concat()) }
}

/// An output with what spends it.
fn lock(dice: &mut Dice) -> (ScriptBuf, ScriptBuf, Witness) {
    let drops = dice.pick(&[0, 0, 1, 2, 99, 100, 101]);
    let size = dice.pick(&[1, 20, 79, 80, 81, 200]);
    let stack = vec![vec![7_u8; size]; drops];
    let with = |last: Vec<Vec<u8>>| Witness::from_slice(&[stack.clone(), last].concat());
    match dice.below(7) {
        0 | 1 => {
            let (checks, filler) = (dice.pick(&[0, 0, 1, 40, 400]), dice.pick(&[0, 1, 46, 47, 48]));
            let inner = odd_script(dice, drops, checks, filler);
            (inner.to_p2wsh(), ScriptBuf::new(), with(vec![inner.into_bytes()]))
        }
        2 => {
            let (checks, filler) = (dice.pick(&[0, 14, 15, 16]), dice.pick(&[0, 1, 5]));
            let inner = odd_script(dice, drops.min(2), checks, filler);
            let redeem = PushBytesBuf::try_from(inner.to_bytes()).expect("short");
            let mut sig = Builder::new();
            for _ in 0..drops.min(2) {
                sig = sig.push_slice(bytes(size));
            }
            (inner.to_p2sh(), sig.push_slice(redeem).into_script(), Witness::new())
        }
        3 | 4 => {
            let filler = dice.pick(&[0, 1, 60]);
            let inner = odd_script(dice, drops.min(3), 0, filler);
            let internal = XOnlyPublicKey::from_slice(&[2; 32]).expect("a key");
            let tree = TaprootBuilder::new().add_leaf(0, inner.clone()).expect("one leaf");
            let info = tree.finalize(&Secp256k1::new(), internal).expect("complete");
            let control = info.control_block(&(inner.clone(), LeafVersion::TapScript)).expect("a leaf");
            let _leaf = TapLeafHash::from_script(&inner, LeafVersion::TapScript);
            let stack = vec![vec![7_u8; size]; drops.min(3)];
            let mut items = [stack, vec![inner.into_bytes(), control.serialize()]].concat();
            if dice.below(4) == 0 {
                items.push(vec![0x50, 1]);
            }
            (ScriptBuf::new_p2tr_tweaked(info.output_key()), ScriptBuf::new(), Witness::from_slice(&items))
        }
        5 => {
            // Wrapped: the witness program behind a script hash.
            let inner = script(drops, 0, 0);
            let program = inner.to_p2wsh();
            let redeem = PushBytesBuf::try_from(program.to_bytes()).expect("short");
            let sig = Builder::new().push_slice(redeem).into_script();
            (program.to_p2sh(), sig, with(vec![inner.into_bytes()]))
        }
        _ => (script(0, 0, 0), ScriptBuf::new(), Witness::new()),
    }
}

fn output(dice: &mut Dice) -> TxOut {
    let key = WPubkeyHash::from_byte_array([5; 20]);
    let public = [[2].as_slice(), &[2; 32]].concat();
    let public = PushBytesBuf::try_from(public).expect("short");
    let data = dice.pick(&[0, 1, 40, 80, 81, 100]);
    let script_pubkey = match dice.below(12) {
        0 | 1 => ScriptBuf::new_p2wpkh(&key),
        2 => ScriptBuf::new_p2tr_tweaked(bitcoin::key::TweakedPublicKey::dangerous_assume_tweaked(
            XOnlyPublicKey::from_slice(&[2; 32]).expect("a key"),
        )),
        3 => script(0, 0, 0).to_p2wsh(),
        4 => script(0, 0, 0).to_p2sh(),
        5 => ScriptBuf::new_p2pkh(&bitcoin::PubkeyHash::from_byte_array([5; 20])),
        6..=8 => Builder::new().push_opcode(OP_RETURN).push_slice(bytes(data)).into_script(),
        9 => Builder::new().push_slice(public).push_opcode(OP_CHECKSIG).into_script(),
        10 => Builder::new()
            .push_opcode(OP_PUSHNUM_1)
            .push_slice(public.clone())
            .push_slice(public)
            .push_opcode(OP_PUSHNUM_2)
            .push_opcode(OP_CHECKMULTISIG)
            .into_script(),
        _ => {
            let version = dice.pick(&[WitnessVersion::V1, WitnessVersion::V2]);
            let program = WitnessProgram::new(version, &vec![7; dice.pick(&[2, 20, 32])]).expect("a program");
            ScriptBuf::new_witness_program(&program)
        }
    };
    let sat = if script_pubkey.is_op_return() {
        dice.pick(&[0, 0, 0, 1, 1_000])
    } else {
        dice.pick(&[0, 100, 239, 240, 293, 294, 329, 330, 539, 540, 545, 546, 1_000, 5_000])
    };
    TxOut { value: Amount::from_sat(sat), script_pubkey }
}

/// A transaction that is odd in one respect, or in all of them.
fn shape(dice: &mut Dice, coins: &[Coin]) -> (Transaction, Vec<TxOut>) {
    let odd = dice.below(6);
    let is_odd = |respect: usize| odd == respect || odd == 5;
    let from = if is_odd(0) { coins.len() } else { PLAIN };
    let mut picked: Vec<usize> = (0..1 + dice.below(3)).map(|_| dice.below(from)).collect();
    if !is_odd(1) || dice.below(4) > 0 {
        picked.sort_unstable();
        picked.dedup();
    }
    let spent: Vec<&Coin> = picked.into_iter().map(|index| &coins[index]).collect();
    let input = spent.iter().map(|coin| TxIn {
        previous_output: coin.outpoint,
        script_sig: coin.script_sig.clone(),
        sequence: Sequence::MAX,
        witness: coin.witness.clone(),
    });
    let version = if is_odd(1) { dice.pick(&[0, 1, 2, 3, 4]) } else { 2 };
    let count = if is_odd(2) { dice.pick(&[0, 1, 1, 2, 3, 5]) } else { 0 };
    let output: Vec<TxOut> = (0..count).map(|_| output(dice)).collect();
    let (version, lock_time) = (Version(version), LockTime::ZERO);
    let mut transaction = Transaction { version, lock_time, input: input.collect(), output };
    let outputs: Vec<TxOut> = spent.iter().map(|coin| coin.output.clone()).collect();
    if !is_odd(4) || dice.below(3) > 0 {
        let script_pubkey = ScriptBuf::new_p2wpkh(&WPubkeyHash::from_byte_array([6; 20]));
        transaction.output.push(TxOut { value: Amount::ZERO, script_pubkey });
        let rates: &[u64] = if is_odd(3) { &[20, 240, 249, 250, 251, 300, 5_000] } else { &[400] };
        let rate = FeeRate::from_sat_per_kwu(dice.pick(rates));
        let operations = Weight::from_wu(dice.pick(&[0, 1]) * 20 * 400);
        let given: Amount = outputs.iter().map(|output| output.value).sum();
        let taken: Amount = transaction.output.iter().map(|output| output.value).sum();
        let fee = rate.fee_wu(transaction.weight().max(operations)).expect("small");
        let rest = given.checked_sub(taken).and_then(|rest| rest.checked_sub(fee)).unwrap_or(Amount::ZERO);
        transaction.output.last_mut().expect("just added").value = rest;
    }
    (transaction, outputs)
}

/// As a node judges a transaction in sole custody whose coins it knows.
fn votes(transaction: &Transaction, spent: &[TxOut]) -> bool {
    let fee = || {
        relay_policy::check_shape(transaction)?;
        let weight = relay_policy::check_inputs(transaction, spent)?;
        relay_policy::check_fee(transaction, spent, weight)
    };
    fee().is_ok() && check_scripts(transaction, spent).is_ok()
}

async fn coins(core: &Bitcoind, dice: &mut Dice) -> Result<Vec<Coin>> {
    let open = script(0, 0, 0).to_p2wsh();
    let descriptor = format!("raw({})", open.to_hex_string());
    let info = core.call_raw("getdescriptorinfo", json!([descriptor])).await?;
    let descriptor = info["descriptor"].as_str().context("a descriptor")?.to_owned();
    let blocks = core.call_raw("generatetodescriptor", json!([101, descriptor])).await?;
    let first = core.call_raw("getblock", json!([blocks[0], 2])).await?;
    let reward: bitcoin::Txid = first["tx"][0]["txid"].as_str().context("a reward")?.parse()?;
    let plain = || (open.clone(), ScriptBuf::new(), Witness::from_slice(&[script(0, 0, 0).as_bytes()]));
    let mut locks: Vec<_> = (0..PLAIN).map(|_| plain()).collect();
    locks.extend((0..100).map(|_| lock(dice)));
    let output = locks.iter().map(|(script, ..)| TxOut { value: COIN, script_pubkey: script.clone() });
    let funding = Transaction {
        version: Version::TWO,
        lock_time: LockTime::ZERO,
        input: vec![TxIn {
            previous_output: OutPoint { txid: reward, vout: 0 },
            witness: Witness::from_slice(&[script(0, 0, 0).as_bytes()]),
            ..TxIn::default()
        }],
        output: output.collect(),
    };
    let txid = funding.compute_txid();
    // Some of these outputs do not relay; a miner may put them into a block all the same.
    let mined = core.call_raw("generateblock", json!([descriptor, [serialize_hex(&funding)]])).await?;
    anyhow::ensure!(mined["hash"].is_string(), "the coins are not mined: {mined}");
    let coins = locks.into_iter().zip(funding.output).zip(0_u32..);
    Ok(coins
        .map(|(((_, script_sig, witness), output), vout)| Coin {
            outpoint: OutPoint { txid, vout },
            output,
            script_sig,
            witness,
        })
        .collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_shape_that_nodes_vote_for_relays() -> Result<()> {
    let Some(binary) = bitcoind() else {
        eprintln!("skipped: no bitcoind in BITCOIND_EXE or PATH");
        return Ok(());
    };
    let daemon = Daemon::start(&binary, &[])?;
    daemon.ready().await?;
    let mut dice = Dice(ChaCha20Rng::seed_from_u64(11));
    let coins = coins(&daemon.rpc, &mut dice).await?;
    let (mut both, mut neither, mut stricter) = (0, 0, 0);
    for _ in 0..SHAPES {
        let (transaction, spent) = shape(&mut dice, &coins);
        let hex = serialize_hex(&transaction);
        let ours = !transaction.output.is_empty() && votes(&transaction, &spent);
        let answer = daemon.rpc.call_raw("testmempoolaccept", json!([[hex], 0])).await;
        let theirs = answer.unwrap_or(Value::Null)[0].clone();
        match (ours, theirs["allowed"] == json!(true)) {
            (true, true) => both += 1,
            (false, true) => stricter += 1,
            (false, false) => neither += 1,
            (true, false) => panic!("nodes vote for it and the daemon says {theirs}: {hex}"),
        }
    }
    println!("{both} by both, {neither} by neither, {stricter} by the daemon alone");
    assert!(both > SHAPES / 5, "too few of the shapes are good to say anything: {both}");
    Ok(())
}
