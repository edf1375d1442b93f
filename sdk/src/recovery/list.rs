//! Coins as a list that somebody wrote down, for who has neither Esplora nor Bitcoin Core at hand.

use super::{RecoverableCoin, Recovery, RecoveryError};
use crate::account::KeychainIndex;
use bitcoin::{Address, Amount, OutPoint, ScriptBuf, address::NetworkUnchecked};
use std::{collections::BTreeMap, fmt, str::FromStr};

impl Recovery {
    /// Reads coins from a list: `TXID:VOUT SATOSHIS HEIGHT ADDRESS` on each line; empty lines and lines that begin
    /// with `#` count for nothing. A block explorer shows all four.
    ///
    /// ```
    /// # fn example(recovery: &quorate::recovery::Recovery) -> Result<(), quorate::recovery::RecoveryError> {
    /// let coins = recovery.read_list("# my coins\n")?;
    /// assert!(coins.is_empty());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// A line cannot be read, or its address is not the account's; the error names the line.
    pub fn read_list(&self, text: &str) -> Result<Vec<RecoverableCoin>, RecoveryError> {
        let mut known = BTreeMap::new();
        let mut coins: Vec<RecoverableCoin> = Vec::new();
        for (line, text) in (1..).zip(text.lines()) {
            let text = text.trim();
            if text.is_empty() || text.starts_with('#') {
                continue;
            }
            let coin = self.read_line(text, &mut known);
            let coin = coin.map_err(|reason| RecoveryError::List { line, reason })?;
            if coins.iter().any(|other| other.outpoint == coin.outpoint) {
                return Err(RecoveryError::List { line, reason: "the coin is listed twice".to_owned() });
            }
            coins.push(coin);
        }
        Ok(coins)
    }

    fn read_line(
        &self,
        text: &str,
        known: &mut BTreeMap<ScriptBuf, Option<KeychainIndex>>,
    ) -> Result<RecoverableCoin, String> {
        let mut words = text.split_whitespace();
        let (outpoint, value, height, address) =
            match (words.next(), words.next(), words.next(), words.next(), words.next()) {
                (Some(outpoint), Some(value), Some(height), Some(address), None) => {
                    (outpoint, value, height, address)
                }
                _ => return Err("it has not four parts".to_owned()),
            };
        let address: Address<NetworkUnchecked> = read("address", address)?;
        let address = address.require_network(self.network()).map_err(|error| error.to_string())?;
        let script = address.script_pubkey();
        let position = *known.entry(script).or_insert_with_key(|script| self.position(script));
        let position = position.ok_or_else(|| format!("{address} is not an address of this account"))?;
        let value = Amount::from_sat(read("amount", value)?);
        if value > Amount::MAX_MONEY {
            return Err("the amount is above 21 million bitcoin".to_owned());
        }
        let outpoint: OutPoint = read("outpoint", outpoint)?;
        Ok(RecoverableCoin { outpoint, value, position, height: Some(read("height", height)?) })
    }
}

fn read<T: FromStr<Err: fmt::Display>>(what: &str, text: &str) -> Result<T, String> {
    text.parse().map_err(|error| format!("its {what} cannot be read: {error}"))
}
