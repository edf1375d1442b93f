//! Where a payment goes: what people type, scan and paste, read once.
//!
//! An address, or a link (BIP21, BIP321). Whatever else it is, the error names it, and where an address was mistyped it
//! says at which letter. Nothing that looks like a secret is repeated in an error: those are logged and shown.

mod address;
mod foreign;
mod link;
mod typing;
mod untrusted;

use super::WalletError;
use bitcoin::{Address, Amount, Network, ScriptBuf};

/// Characters of a text that an error repeats.
const REPEATED_MAX: usize = 100;

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
    /// Amount that the link asks for.
    pub amount: Option<Amount>,
    /// Who is paid, as the link says: 256 characters at most, without those that are not seen or change the direction
    /// of others. Nobody has checked it.
    pub label: Option<String>,
    /// What for, as the link says, in the same way.
    pub message: Option<String>,
}

impl Destination {
    /// Reads an address or a `bitcoin:` link (BIP21, BIP321) and checks it against the network. White space around it,
    /// and between groups of an address, does not matter.
    ///
    /// A link may name its address in a parameter (`bitcoin:?bc=…`, `tb` on testnets and signet, `bcrt` on regtest).
    /// Other ways to pay that it offers are left aside, as are parameters that are not known, unless they are required.
    ///
    /// # Errors
    /// Not an address, of another network, a link with a required parameter that is not understood or with more than 21
    /// million bitcoin, or a type that cannot be paid.
    pub fn parse(text: &str, network: Network) -> Result<Self, WalletError> {
        let text = text.trim();
        match text.get(..8) {
            Some(scheme) if scheme.eq_ignore_ascii_case("bitcoin:") => {
                link::parse(text.get(8..).unwrap_or_default(), network)
            }
            Some(_) | None => {
                let address = address::parse(text, network)?;
                Ok(Self { address, amount: None, label: None, message: None })
            }
        }
    }

    /// The output script.
    pub fn script_pubkey(&self) -> ScriptBuf {
        self.address.script_pubkey()
    }
}

/// It cannot be read, for this reason. What looks like a secret is not repeated, wherever it stands.
fn unreadable(text: &str, reason: impl Into<String>) -> WalletError {
    if foreign::is_secret(text) {
        return WalletError::Address {
            text: "what was entered".to_owned(),
            reason: foreign::SECRET.to_owned(),
        };
    }
    let mut shown: String = text.chars().take(REPEATED_MAX).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    WalletError::Address { text: shown, reason: reason.into() }
}

#[cfg(test)]
mod tests;
