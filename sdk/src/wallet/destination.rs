//! Where a payment goes: an address or a BIP21 URI, parsed once.

use super::WalletError;
use bitcoin::{Address, Amount, Network, ScriptBuf, address::NetworkUnchecked};
use std::collections::BTreeSet;

/// A checked destination.
///
/// ```
/// use quorate::wallet::Destination;
/// let text = "bitcoin:bcrt1qs758ursh4q9z627kt3pp5yysm78ddny6txaqgw?amount=0.5&label=Coffee";
/// let destination = Destination::parse(text, bitcoin::Network::Regtest)?;
/// assert_eq!(destination.amount, Some(bitcoin::Amount::from_sat(50_000_000)));
/// assert_eq!(destination.label.as_deref(), Some("Coffee"));
/// # Ok::<(), quorate::wallet::WalletError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// The address.
    pub address: Address,
    /// Amount that the URI asks for.
    pub amount: Option<Amount>,
    /// Who is paid, as the URI says.
    pub label: Option<String>,
    /// What for, as the URI says.
    pub message: Option<String>,
}

impl Destination {
    /// Reads an address or a `bitcoin:` URI (BIP21) and checks it against the network.
    ///
    /// # Errors
    /// Not an address, of another network, a URI with a required parameter that is not understood or with more than 21
    /// million bitcoin, or a type that cannot be paid.
    pub fn parse(text: &str, network: Network) -> Result<Self, WalletError> {
        let text = text.trim();
        let is_uri = text.get(..8).is_some_and(|scheme| scheme.eq_ignore_ascii_case("bitcoin:"));
        if is_uri { Self::parse_uri(text, network) } else { Self::parse_address(text, network) }
    }

    /// The output script.
    pub fn script_pubkey(&self) -> ScriptBuf {
        self.address.script_pubkey()
    }

    fn parse_address(text: &str, network: Network) -> Result<Self, WalletError> {
        let invalid = |reason: &dyn std::fmt::Display| WalletError::Address {
            text: shorten(text),
            reason: reason.to_string(),
        };
        let address: Address<NetworkUnchecked> = text.parse().map_err(|error| invalid(&error))?;
        let address = check_network(address, network)?;
        Ok(Self { address, amount: None, label: None, message: None })
    }

    fn parse_uri(text: &str, network: Network) -> Result<Self, WalletError> {
        // What a page shows and what is paid must be the same, whichever of two amounts each of them reads.
        let query = text.split_once('?').map(|(_, query)| query).unwrap_or_default();
        let mut names = BTreeSet::new();
        for name in
            query.split('&').filter_map(|param| param.split('=').next()).filter(|name| !name.is_empty())
        {
            if !names.insert(name.to_ascii_lowercase()) {
                let reason = format!("the parameter {} is given twice", shorten(name));
                return Err(WalletError::Address { text: shorten(text), reason });
            }
        }
        let uri: bip21::Uri<'_, NetworkUnchecked> = text.parse().map_err(|error: bip21::de::Error<_>| {
            WalletError::Address { text: shorten(text), reason: error.to_string() }
        })?;
        let param = |param: Option<bip21::Param<'_>>| {
            param
                .map(String::try_from)
                .transpose()
                .map_err(|error| WalletError::Address { text: shorten(text), reason: error.to_string() })
        };
        if let Some(amount) = uri.amount.filter(|amount| *amount > Amount::MAX_MONEY) {
            return Err(WalletError::AmountTooLarge { amount });
        }
        Ok(Self {
            address: check_network(uri.address, network)?,
            amount: uri.amount,
            label: param(uri.label)?,
            message: param(uri.message)?,
        })
    }
}

fn check_network(address: Address<NetworkUnchecked>, network: Network) -> Result<Address, WalletError> {
    let known = address.clone().assume_checked();
    let payable = known.address_type().is_some();
    let address = address
        .require_network(network)
        .map_err(|_| WalletError::Network { address: known.to_string(), expected: network })?;
    if payable { Ok(address) } else { Err(WalletError::AddressType { address: known.to_string() }) }
}

fn shorten(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Destination, WalletError> {
        Destination::parse(text, Network::Regtest)
    }

    #[test]
    fn wrong_network_unknown_type_and_nonsense_are_told_apart() {
        let mainnet = "bc1p5cyxnuxmeuwuvkwfem96lqzszd02n6xdcjrs20cac6yqjjwudpxqkedrcr";
        assert!(matches!(parse(mainnet), Err(WalletError::Network { .. })));
        assert!(matches!(parse("hello"), Err(WalletError::Address { .. })));
        // Witness version 3, 32 bytes (BIP350 encoding, no meaning yet).
        let program = bitcoin::WitnessProgram::new(bitcoin::WitnessVersion::V3, &[7; 32]).expect("valid");
        let future = Address::from_witness_program(program, bitcoin::KnownHrp::Regtest).to_string();
        assert!(matches!(parse(&future), Err(WalletError::AddressType { .. })));
    }

    #[test]
    fn a_uri_that_says_something_twice_is_refused() {
        let uri = "bitcoin:bcrt1qs758ursh4q9z627kt3pp5yysm78ddny6txaqgw?amount=0.0001&label=x&AMOUNT=0.5";
        assert!(matches!(parse(uri), Err(WalletError::Address { reason, .. }) if reason.contains("twice")));
    }

    #[test]
    fn a_uri_asks_for_no_more_than_there_can_be() {
        let uri =
            |amount: &str| format!("bitcoin:bcrt1qs758ursh4q9z627kt3pp5yysm78ddny6txaqgw?amount={amount}");
        assert_eq!(parse(&uri("21000000")).expect("all of it").amount, Some(Amount::MAX_MONEY));
        // Above it by a satoshi, at the ends of 63 and 64 bits, and beyond.
        for amount in
            ["21000000.00000001", "92233720368.54775807", "92233720368.54775808", "184467440737.09551615"]
        {
            let error = parse(&uri(amount)).expect_err("too much");
            assert!(matches!(error, WalletError::AmountTooLarge { .. }), "{error:?}");
        }
        assert!(matches!(parse(&uri("184467440737.09551616")), Err(WalletError::Address { .. })));
    }

    #[test]
    fn a_uri_with_an_unknown_required_parameter_is_refused() {
        let uri = "bitcoin:bcrt1qs758ursh4q9z627kt3pp5yysm78ddny6txaqgw?req-teleport=1";
        assert!(matches!(parse(uri), Err(WalletError::Address { .. })));
        assert!(parse("BITCOIN:bcrt1qs758ursh4q9z627kt3pp5yysm78ddny6txaqgw").is_ok());
    }
}
