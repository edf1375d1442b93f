//! Coin selection and PSBT construction for a payment.

use super::{
    PaymentAmount, PaymentRequest, WalletError,
    clusters::{self, Clusters},
    request::sum,
};
use crate::{
    account::{Address, JointAccount},
    proposal::{describe_input, describe_output},
    relay_policy::{
        CLUSTER_TRANSACTIONS_MAX, FEE_RATE_MAX, FEE_RATE_MIN, INPUTS_MAX, OUTPUTS_MAX, RelayError,
        bounded_sum, signed_vbytes,
    },
};
use bdk_coin_select::{
    Candidate, ChangePolicy, CoinSelector, Drain, DrainWeights, FeeRate as SelectRate,
    TR_DUST_RELAY_MIN_VALUE, TR_KEYSPEND_TXIN_WEIGHT, Target, TargetFee, TargetOutputs, metrics::LowestFee,
};
use bitcoin::{
    Amount, FeeRate, OutPoint, Psbt, ScriptBuf, Sequence, Transaction, TxIn, TxOut, Weight,
    absolute::LockTime, transaction::Version,
};

use std::collections::{BTreeMap, BTreeSet};

/// Rounds of branch and bound before the greedy choice is taken.
const BRANCH_AND_BOUND_ROUNDS: usize = 20_000;
/// Fee rate at which change is expected to be spent one day, in sat/vB.
const LONG_TERM_RATE_SAT_PER_VB: f32 = 10.0;

/// Fee that is always paid at a server's rate, without asking: the ordinary payment at some 30 sat/vB.
pub const FEE_UNASKED_MAX: Amount = Amount::from_sat(5_000);
/// Above that, at most this part of what is paid.
const FEE_UNASKED_SHARE: u64 = 10;

/// A coin that may be spent.
#[derive(Clone, Debug)]
pub(super) struct SpendableCoin {
    pub(super) outpoint: OutPoint,
    pub(super) value: Amount,
    /// Whether it is in a block.
    pub(super) confirmed: bool,
    /// Whether it will expire soon.
    pub(super) aging: bool,
    /// Whether nodes found what it hangs on too large.
    pub(super) crowded: bool,
    pub(super) address: Address,
}

/// What is needed to build besides the request.
pub(super) struct Funds<'a> {
    pub(super) account: &'a JointAccount,
    /// All addresses of the account, by script: every output of it is described.
    pub(super) addresses: &'a BTreeMap<ScriptBuf, Address>,
    pub(super) coins: Vec<SpendableCoin>,
    pub(super) incoming: Amount,
    pub(super) change: Address,
    pub(super) clusters: Clusters,
}

/// Refuses a fee that only a server asks for and that is out of proportion: above [`FEE_UNASKED_MAX`] and a tenth of
/// what is paid to others. What stays in the account counts as nothing paid.
pub(super) fn check_unasked_fee(
    psbt: &Psbt,
    rate: FeeRate,
    addresses: &BTreeMap<ScriptBuf, Address>,
) -> Result<(), WalletError> {
    let fee = psbt.fee().map_err(|_| WalletError::Derivation)?;
    let outputs = psbt.unsigned_tx.output.iter();
    let paid = outputs.filter(|output| !addresses.contains_key(&output.script_pubkey));
    let amount = bounded_sum(paid.map(|output| output.value));
    let limit = FEE_UNASKED_MAX.max(amount / FEE_UNASKED_SHARE);
    if fee > limit {
        return Err(WalletError::FeeUnreasonable {
            sat_per_vb: rate.to_sat_per_vb_ceil(),
            fee,
            amount,
            limit,
        });
    }
    Ok(())
}

pub(super) fn build(request: &PaymentRequest, rate: FeeRate, funds: &Funds<'_>) -> Result<Psbt, WalletError> {
    check_rate(rate)?;
    let wanted = request.amount.or(request.destination.amount.map(PaymentAmount::Exact));
    let further = request.further_outputs()?;
    sum(&further)?;
    if further.len() >= OUTPUTS_MAX {
        let found = further.len() + 1;
        return Err(RelayError::Count { what: "outputs", max: OUTPUTS_MAX, found }.into());
    }
    let named = request.coins.as_deref().map(|named| named_coins(named, funds)).transpose()?;
    let script_pubkey = request.destination.script_pubkey();
    let (chosen, outputs) = match wanted.ok_or(WalletError::AmountMissing)? {
        PaymentAmount::Exact(value) => {
            let mut outputs = vec![TxOut { value, script_pubkey }];
            outputs.extend(further);
            let wanted = Wanted { amount: sum(&outputs)?, outputs, rate };
            outputs_are_sound(&wanted.outputs)?;
            match named {
                Some(coins) => exact(&wanted, funds, &coins, Choice::All)?,
                None => select(&wanted, funds)?,
            }
        }
        PaymentAmount::Everything => everything(script_pubkey, &further, rate, funds, named)?,
    };
    assemble(funds, &chosen, outputs)
}

/// Exactly these coins, in the order of their outpoints.
fn named_coins<'a>(named: &[OutPoint], funds: &'a Funds<'_>) -> Result<Vec<&'a SpendableCoin>, WalletError> {
    let named: BTreeSet<OutPoint> = named.iter().copied().collect();
    let find = |outpoint: &OutPoint| funds.coins.iter().find(|coin| coin.outpoint == *outpoint);
    let found = named.iter().map(|outpoint| {
        // That it is an unspent one was seen before.
        find(outpoint).ok_or(WalletError::Coin { outpoint: *outpoint, retry: true })
    });
    let coins: Vec<_> = found.collect::<Result<_, _>>()?;
    match coins.len() {
        0 => Err(WalletError::InsufficientFunds {
            needed: Amount::ZERO,
            spendable: Amount::ZERO,
            incoming: funds.incoming,
        }),
        found if found > INPUTS_MAX => {
            Err(RelayError::Count { what: "inputs", max: INPUTS_MAX, found }.into())
        }
        _ => Ok(coins),
    }
}

/// A payment of so much.
struct Wanted {
    /// All that is paid.
    outputs: Vec<TxOut>,
    /// Their sum.
    amount: Amount,
    rate: FeeRate,
}

/// How coins are taken.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Choice {
    /// Those that make the payment cheapest.
    Cheapest,
    /// All of them.
    All,
}

/// Whether the network relays what is paid.
fn outputs_are_sound(outputs: &[TxOut]) -> Result<(), WalletError> {
    outputs.iter().filter(|output| !output.script_pubkey.is_op_return()).try_for_each(check_dust)
}

/// Old coins first, and apart: a payment lasts as long as its oldest coin. Confirmed ones make no chain of unconfirmed
/// transactions longer; then such with short chains, one chain at a time; what nodes found too long comes last.
fn select<'a>(wanted: &Wanted, funds: &'a Funds<'_>) -> Result<Plan<'a>, WalletError> {
    let pay_with = |with: &dyn Fn(&SpendableCoin) -> bool| {
        let coins: Vec<_> = funds.coins.iter().filter(|coin| with(coin)).collect();
        if total(&coins) < wanted.amount {
            return None;
        }
        let plan = exact(wanted, funds, &coins, Choice::Cheapest).ok()?;
        fits(funds, &plan).then_some(plan)
    };
    let quick = pay_with(&|coin| coin.aging && coin.confirmed)
        .or_else(|| pay_with(&|coin| coin.confirmed && !coin.aging))
        .or_else(|| pay_with(&|coin| coin.confirmed));
    let of = |coin: &SpendableCoin| funds.clusters.of(&coin.outpoint);
    let one = |crowded: bool| {
        let with =
            |name| pay_with(&|coin| coin.confirmed || (of(coin) == Some(name) && coin.crowded <= crowded));
        funds.clusters.with_room().into_iter().find_map(with)
    };
    // Several chains together: the shortest first, one more at a time; more than a cluster has places never fit.
    let together = || {
        let names = funds.clusters.with_room();
        let with = |count: usize| {
            pay_with(&|coin| of(coin).is_none_or(|name| names.iter().take(count).any(|other| *other == name)))
        };
        (2..=names.len().min(CLUSTER_TRANSACTIONS_MAX)).find_map(with)
    };
    if let Some(plan) = quick.or_else(|| one(false)).or_else(|| one(true)).or_else(together) {
        return Ok(plan);
    }
    let all: Vec<_> = funds.coins.iter().collect();
    let plan = exact(wanted, funds, &all, Choice::Cheapest)?;
    if fits(funds, &plan) { Ok(plan) } else { Err(clusters::too_large()) }
}

/// The first of these coins, in their order, that the network takes together with what they hang on.
fn fitting<'a>(funds: &Funds<'_>, coins: &[&'a SpendableCoin], vbytes: usize) -> Vec<&'a SpendableCoin> {
    let mut chosen: Vec<&SpendableCoin> = Vec::with_capacity(coins.len());
    for coin in coins {
        let together = chosen.iter().map(|one| &one.outpoint).chain([&coin.outpoint]);
        if funds.clusters.of(&coin.outpoint).is_none() || funds.clusters.fit(together, vbytes) {
            chosen.push(coin);
        }
    }
    chosen
}

/// Whether the network takes a payment together with what its coins hang on.
fn fits(funds: &Funds<'_>, (chosen, outputs): &Plan<'_>) -> bool {
    let vbytes = signed_vbytes(&transaction(chosen, outputs.clone()));
    funds.clusters.fit(chosen.iter().map(|coin| &coin.outpoint), vbytes)
}

pub(super) fn check_rate(rate: FeeRate) -> Result<(), WalletError> {
    let (min, max) = (FEE_RATE_MIN.to_sat_per_vb_ceil(), FEE_RATE_MAX.to_sat_per_vb_ceil());
    if (FEE_RATE_MIN..=FEE_RATE_MAX).contains(&rate) {
        return Ok(());
    }
    Err(WalletError::FeeRate { sat_per_vb: rate.to_sat_per_vb_ceil(), min, max })
}

type Plan<'a> = (Vec<&'a SpendableCoin>, Vec<TxOut>);

fn exact<'a>(
    wanted: &Wanted,
    funds: &'a Funds<'_>,
    coins: &[&'a SpendableCoin],
    choice: Choice,
) -> Result<Plan<'a>, WalletError> {
    let candidates: Vec<Candidate> =
        coins.iter().map(|coin| Candidate::new_tr_keyspend(coin.value.to_sat())).collect();
    let rate = SelectRate::from_sat_per_wu(sat_per_wu(wanted.rate));
    let long_term = SelectRate::from_sat_per_vb(LONG_TERM_RATE_SAT_PER_VB);
    let paid = wanted.outputs.iter().map(|output| (output.weight().to_wu(), output.value.to_sat()));
    let target = Target { fee: TargetFee::from_feerate(rate), outputs: TargetOutputs::fund_outputs(paid) };
    let policy = ChangePolicy::min_value_and_waste(
        DrainWeights::TR_KEYSPEND,
        TR_DUST_RELAY_MIN_VALUE,
        rate,
        long_term,
    );
    let insufficient = |missing: u64| WalletError::InsufficientFunds {
        needed: total(coins).checked_add(Amount::from_sat(missing)).unwrap_or(Amount::MAX_MONEY),
        spendable: total(coins),
        incoming: funds.incoming,
    };
    let mut selector = CoinSelector::new(&candidates);
    match choice {
        Choice::All => {
            selector.select_all();
            let excess = selector.excess(target, Drain::NONE);
            if excess < 0 {
                return Err(insufficient(excess.unsigned_abs()));
            }
        }
        Choice::Cheapest => {
            let metric = LowestFee { target, long_term_feerate: long_term, change_policy: policy };
            if selector.run_bnb(metric, BRANCH_AND_BOUND_ROUNDS).is_err()
                || selector.selected_indices().len() > INPUTS_MAX
            {
                selector = CoinSelector::new(&candidates);
                selector.sort_candidates_by_descending_value_pwu();
                let met = selector.select_until_target_met(target);
                met.map_err(|missing| insufficient(missing.missing))?;
            }
        }
    }
    let found = selector.selected_indices().len();
    if found > INPUTS_MAX {
        return Err(RelayError::Count { what: "inputs", max: INPUTS_MAX, found }.into());
    }
    let drain = selector.drain(target, policy);
    let chosen = selector.selected_indices().iter().filter_map(|index| coins.get(*index).copied()).collect();
    let mut outputs = wanted.outputs.clone();
    if drain.is_some() {
        let change =
            TxOut { value: Amount::from_sat(drain.value), script_pubkey: funds.change.script_pubkey.clone() };
        // The place of the change must not tell which output it is; the change key is as good as a die.
        let places = outputs.len() + 1;
        let die = funds.change.output_key.serialize().last().map_or(0, |byte| usize::from(*byte));
        outputs.insert(die % places, change);
    }
    Ok((chosen, outputs))
}

fn everything<'a>(
    script_pubkey: ScriptBuf,
    further: &[TxOut],
    rate: FeeRate,
    funds: &'a Funds<'_>,
    named: Option<Vec<&'a SpendableCoin>>,
) -> Result<Plan<'a>, WalletError> {
    let by_itself = named.is_none();
    let mut chosen = named.unwrap_or_else(|| {
        // One that costs more than it is worth would make less of it.
        funds.coins.iter().filter(|coin| is_economic(coin.value, rate)).collect()
    });
    chosen.sort_by_key(|coin| std::cmp::Reverse(coin.value));
    chosen.truncate(INPUTS_MAX);
    // What hangs on too much stays for a payment after the next block.
    let mut outputs = vec![TxOut { value: Amount::ZERO, script_pubkey: script_pubkey.clone() }];
    outputs.extend_from_slice(further);
    let vbytes = signed_vbytes(&transaction(&chosen, outputs.clone()));
    let (held, count) = (!chosen.is_empty(), chosen.len());
    let chosen = fitting(funds, &chosen, vbytes);
    if chosen.is_empty() && held || !by_itself && chosen.len() < count {
        return Err(clusters::too_large());
    }
    let payment = all_to(script_pubkey, further, rate, funds, &chosen)?;
    outputs.splice(..1, [payment]);
    outputs_are_sound(&outputs)?;
    Ok((chosen, outputs))
}

/// Whether a coin is worth more than its part of a fee.
pub(super) fn is_economic(value: Amount, rate: FeeRate) -> bool {
    let weight = Weight::from_wu(TR_KEYSPEND_TXIN_WEIGHT);
    rate.fee_wu(weight).is_some_and(|fee| value > fee)
}

/// Moves the coins given to the address for change at a fee that brings them and what they descend from, of `weight`
/// and with `paid`, to a fee rate.
pub(super) fn lift(
    rate: FeeRate,
    weight: Weight,
    paid: Amount,
    funds: &Funds<'_>,
) -> Result<Psbt, WalletError> {
    let chosen: Vec<_> = funds.coins.iter().collect();
    let mut output = all_to(funds.change.script_pubkey.clone(), &[], rate, funds, &chosen)?;
    let extra = rate.fee_wu(weight).unwrap_or(Amount::MAX_MONEY).checked_sub(paid).unwrap_or(Amount::ZERO);
    output.value = output.value.checked_sub(extra).ok_or(WalletError::InsufficientFunds {
        needed: extra,
        spendable: output.value,
        incoming: funds.incoming,
    })?;
    check_dust(&output)?;
    assemble(funds, &chosen, vec![output])
}

/// Moves the coins given to the address for change; `None` if nothing would be left of them.
pub(super) fn all_home(rate: FeeRate, funds: &Funds<'_>) -> Result<Option<Psbt>, WalletError> {
    check_rate(rate)?;
    let chosen: Vec<_> = funds.coins.iter().collect();
    let output = all_to(funds.change.script_pubkey.clone(), &[], rate, funds, &chosen);
    match output.ok().filter(|output| check_dust(output).is_ok()) {
        Some(output) => assemble(funds, &chosen, vec![output]).map(Some),
        None => Ok(None),
    }
}

/// One output with all that coins are worth, less the fee and what others are paid.
fn all_to(
    script: ScriptBuf,
    further: &[TxOut],
    rate: FeeRate,
    funds: &Funds<'_>,
    chosen: &[&SpendableCoin],
) -> Result<TxOut, WalletError> {
    let spendable = total(chosen);
    let mut payment = TxOut { value: Amount::ZERO, script_pubkey: script };
    let paid = further.iter().map(|output| (output.weight().to_wu(), output.value.to_sat()));
    let outputs = TargetOutputs::fund_outputs(paid.chain([(payment.weight().to_wu(), 0)]));
    let candidates: Vec<Candidate> =
        chosen.iter().map(|coin| Candidate::new_tr_keyspend(coin.value.to_sat())).collect();
    let mut selector = CoinSelector::new(&candidates);
    selector.select_all();
    let weight = selector.weight(outputs, Drain::NONE.weights);
    let fee = rate.fee_wu(Weight::from_wu(weight)).unwrap_or(Amount::MAX_MONEY);
    let needed = bounded_sum(further.iter().map(|output| output.value).chain([fee]));
    let insufficient = WalletError::InsufficientFunds { needed, spendable, incoming: funds.incoming };
    payment.value = spendable.checked_sub(needed).ok_or(insufficient)?;
    Ok(payment)
}

fn check_dust(output: &TxOut) -> Result<(), WalletError> {
    let limit = output.script_pubkey.minimal_non_dust();
    if output.value < limit { Err(WalletError::Dust { amount: output.value, limit }) } else { Ok(()) }
}

fn total(coins: &[&SpendableCoin]) -> Amount {
    bounded_sum(coins.iter().map(|coin| coin.value))
}

/// The selection library counts in `f32`. Rates are far below 2^24 sat/kwu, so nothing is lost.
fn sat_per_wu(rate: FeeRate) -> f32 {
    let kwu = rate.to_sat_per_kwu();
    let part = |bits: u64| f32::from(u16::try_from(bits & 0xffff).unwrap_or(u16::MAX));
    (part(kwu >> 16) * 65_536.0 + part(kwu)) / 1000.0
}

fn assemble(funds: &Funds<'_>, chosen: &[&SpendableCoin], outputs: Vec<TxOut>) -> Result<Psbt, WalletError> {
    let mut psbt =
        Psbt::from_unsigned_tx(transaction(chosen, outputs.clone())).map_err(|_| WalletError::Derivation)?;
    for (coin, input) in chosen.iter().zip(&mut psbt.inputs) {
        input.witness_utxo =
            Some(TxOut { value: coin.value, script_pubkey: coin.address.script_pubkey.clone() });
        describe_input(funds.account, &coin.address, input);
    }
    for (output, data) in outputs.iter().zip(&mut psbt.outputs) {
        if let Some(own) = funds.addresses.get(&output.script_pubkey) {
            describe_output(funds.account, own, data);
        }
    }
    Ok(psbt)
}

fn transaction(chosen: &[&SpendableCoin], output: Vec<TxOut>) -> Transaction {
    let input = chosen.iter().map(|coin| TxIn {
        previous_output: coin.outpoint,
        sequence: Sequence::ENABLE_RBF_NO_LOCKTIME,
        ..TxIn::default()
    });
    Transaction { version: Version::TWO, lock_time: LockTime::ZERO, input: input.collect(), output }
}
