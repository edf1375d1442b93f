//! Addresses as people enter them.

use super::{WalletError, foreign, typing, unreadable};
use bitcoin::{Address, KnownHrp, Network, address::NetworkUnchecked};

/// What addresses with a witness program begin with, the longest first.
const HRPS: [&str; 3] = ["bcrt", "bc", "tb"];
/// Letters of the older addresses.
const BASE58: &str = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

/// Reads an address and checks it against the network.
pub(super) fn parse(text: &str, network: Network) -> Result<Address, WalletError> {
    let compact: String = text.chars().filter(|one| !one.is_whitespace()).collect();
    let address: Address<NetworkUnchecked> =
        compact.parse().map_err(|_| match foreign::recognise(&compact) {
            Some(what) => unreadable(text, format!("{what}; ask the payee for a bitcoin address")),
            None => unreadable(text, what_is_wrong(&compact, network)),
        })?;
    let known = address.clone().assume_checked();
    let payable = known.address_type().is_some();
    let address = address
        .require_network(network)
        .map_err(|_| WalletError::Network { address: known.to_string(), expected: network })?;
    if payable { Ok(address) } else { Err(WalletError::AddressType { address: known.to_string() }) }
}

/// What links call an address of this network in a parameter (BIP321).
pub(super) fn parameter(network: Network) -> &'static str {
    match KnownHrp::from(network) {
        KnownHrp::Mainnet => "bc",
        KnownHrp::Testnets => "tb",
        KnownHrp::Regtest => "bcrt",
        _ => "",
    }
}

/// Whether links call an address of some network so.
pub(super) fn is_parameter(name: &str) -> bool {
    HRPS.contains(&name)
}

fn what_is_wrong(text: &str, network: Network) -> String {
    if text.is_empty() {
        return "nothing was entered".to_owned();
    }
    let lower = text.to_ascii_lowercase();
    let begins = |hrp: &&&str| lower.strip_prefix(**hrp).is_some_and(|rest| rest.starts_with('1'));
    if let Some(hrp) = HRPS.iter().find(begins) {
        return typing::what_is_wrong(text, hrp);
    }
    let begins_like_base58 = text.starts_with(['1', '3', 'm', 'n', '2']);
    if !begins_like_base58 || text.len() < 20 {
        let hrp = parameter(network);
        return format!("an address of this network begins with \"{hrp}1\", for example");
    }
    match text.chars().position(|letter| !BASE58.contains(letter)) {
        Some(index) => format!("an address has no such letter as the one at position {}", index + 1),
        None => "a letter is wrong or missing: compare it with the original".to_owned(),
    }
}
