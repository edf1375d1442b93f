//! Many small coins are made one while fees are low: a payment takes 64 inputs at most, and each costs its fee.

use super::{Coin, CoinState, Quote, Wallet, WalletError, build};
use crate::{account::Keychain, relay_policy::INPUTS_MAX};
use bitcoin::{FeeRate, Psbt};

impl Wallet {
    /// Builds the transaction that makes one coin of up to 64 of this wallet's smallest: those that are in a block and
    /// can be spent, are worth more than moving them costs, and are not frozen. It goes to an address for change, which
    /// no payer is given. `None` if there are not two, or nothing would be left of them.
    ///
    /// # Errors
    /// A fee rate out of bounds.
    pub fn create_consolidation(&mut self, rate: FeeRate) -> Result<Option<Psbt>, WalletError> {
        build::check_rate(rate)?;
        let home = self.peek_next(Keychain::Change)?;
        let mut small: Vec<&Coin> = self
            .book
            .unspent(self.demands())
            .filter(|(coin, state)| {
                matches!(state, CoinState::Spendable { .. })
                    && coin.block.is_some_and(|block| self.chain.contains(&block))
                    && build::is_economic(coin.value, rate)
                    && !self.is_frozen(&coin.outpoint)
            })
            .map(|(coin, _)| coin)
            .collect();
        if small.len() < 2 {
            return Ok(None);
        }
        small.sort_by_key(|coin| (coin.value, coin.outpoint));
        let coins = small.into_iter().take(INPUTS_MAX).filter_map(|coin| self.describe_coin(coin)).collect();
        build::all_home(rate, &self.funds(coins, home))
    }

    /// What a consolidation would be: its amount is what the one coin is worth then.
    pub(crate) fn consolidation_quote(&mut self, rate: FeeRate) -> Result<Option<Quote>, WalletError> {
        let Some(psbt) = self.create_consolidation(rate)? else { return Ok(None) };
        let home: Vec<_> =
            psbt.unsigned_tx.output.iter().map(|output| output.script_pubkey.clone()).collect();
        self.quote_of(psbt, &home).map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{confirmed, confirmed_at, mine, wallet};
    use super::*;
    use bitcoin::{Amount, OutPoint};

    const RATE: FeeRate = FeeRate::BROADCAST_MIN;

    fn inputs(psbt: &Psbt) -> Vec<OutPoint> {
        let mut inputs: Vec<_> = psbt.unsigned_tx.input.iter().map(|input| input.previous_output).collect();
        inputs.sort_unstable();
        inputs
    }

    #[test]
    fn small_coins_become_one_at_an_address_that_nobody_is_given_and_asking_uses_none_up() {
        let mut wallet = wallet();
        mine(&mut wallet, 200);
        let first = confirmed_at(&mut wallet, 150, false);
        assert_eq!(wallet.create_consolidation(RATE), Ok(None), "there is one");
        let second = confirmed_at(&mut wallet, 151, false);
        let mut both = vec![first, second];
        both.sort_unstable();
        let shown = wallet.unused_address().expect("an address");
        let quote = wallet.consolidation_quote(RATE).expect("in bounds").expect("two");
        assert_eq!(inputs(&quote.psbt), both);
        assert_eq!((quote.change, quote.most), (Amount::ZERO, None));
        assert_eq!(quote.amount + quote.fee, Amount::from_sat(100_000));
        let to = quote.psbt.unsigned_tx.output[0].script_pubkey.clone();
        for _ in 0..100 {
            let again = wallet.consolidation_quote(RATE).expect("in bounds").expect("two");
            assert_eq!(again, quote, "nothing is used up");
        }
        let given =
            [shown, wallet.next_address().expect("an address"), wallet.unused_address().expect("one")];
        assert!(given.iter().all(|address| address.script_pubkey != to));
        wallet.propose(quote.psbt).expect("it can be paid");
        assert_eq!(wallet.create_consolidation(RATE), Ok(None), "they are reserved");
    }

    #[test]
    fn what_is_frozen_costs_more_than_it_is_worth_or_cannot_be_spent_is_left_alone() {
        let mut wallet = wallet();
        mine(&mut wallet, 200);
        let coins = [150, 151, 152].map(|height| confirmed_at(&mut wallet, height, false));
        wallet.freeze(coins[0]).expect("a coin");
        let mut rest = vec![coins[1], coins[2]];
        rest.sort_unstable();
        let found = |wallet: &mut Wallet, rate| {
            wallet.create_consolidation(rate).expect("in bounds").map(|psbt| inputs(&psbt))
        };
        // A block reward that is not mature, which would have the whole refused.
        confirmed_at(&mut wallet, 153, true);
        assert_eq!(found(&mut wallet, RATE), Some(rest));
        let dear = FeeRate::from_sat_per_vb_u32(900);
        assert_eq!(found(&mut wallet, dear), None, "each costs more than it is worth");
        let barely = FeeRate::from_sat_per_vb_u32(850);
        assert_eq!(found(&mut wallet, barely), None, "together they do not pay for what is left");
        // The one of block 1 expires; nothing young is moved with it.
        let _old = confirmed(&mut wallet, false);
        mine(&mut wallet, 4_320);
        assert!(found(&mut wallet, RATE).is_none_or(|coins| {
            coins.iter().all(|coin| matches!(wallet.coin_state(coin), Some(CoinState::Spendable { .. })))
        }));
    }
}
