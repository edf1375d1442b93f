//! `bitcoin:` links (BIP21, BIP321).

use super::{Destination, WalletError, address, unreadable, untrusted};
use bitcoin::{Amount, Network};
use percent_encoding::percent_decode_str;
use std::borrow::Cow;

/// Longest link that is read; a code of the largest size holds 4,296 characters.
const LENGTH_MAX: usize = 8_192;
const SAT_PER_BTC: u64 = 100_000_000;
/// What an error shows of a link that names no address before its parameters.
const THE_LINK: &str = "the link";

/// Reads what follows `bitcoin:`.
pub(super) fn parse(rest: &str, network: Network) -> Result<Destination, WalletError> {
    if rest.len() > LENGTH_MAX {
        return Err(unreadable(THE_LINK, format!("it is longer than {LENGTH_MAX} bytes")));
    }
    let rest = rest.split('#').next().unwrap_or_default();
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path = decode(path.trim_start_matches('/'));
    // What else it says is somebody's text, and the reason names the part that is meant.
    let shown = if path.is_empty() { THE_LINK } else { path.as_ref() };
    let mut known = Known::default();
    for parameter in query.split('&').filter(|one| !one.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        known.take(&decode(name).to_ascii_lowercase(), value).map_err(|error| match error {
            Refusal::Reason(reason) => unreadable(shown, reason),
            Refusal::TooLarge(amount) => WalletError::AmountTooLarge { amount },
        })?;
    }
    let wanted = address::parameter(network);
    let named = known.addresses.iter().filter(|(name, _)| name == wanted).map(|(_, value)| value.as_str());
    let mut candidates = Some(path.as_ref()).filter(|path| !path.is_empty()).into_iter().chain(named);
    let Some(first) = candidates.next() else { return Err(nothing_to_pay(&known, network)) };
    let address = address::parse(first, network).or_else(|error| {
        // Another one may do.
        candidates.find_map(|next| address::parse(next, network).ok()).ok_or(error)
    })?;
    let Known { amount, label, message, .. } = known;
    let shown = |text: Option<String>| text.as_deref().and_then(untrusted::shown);
    Ok(Destination { address, amount, label: shown(label), message: shown(message) })
}

/// What of a link this wallet understands.
#[derive(Default)]
struct Known {
    amount: Option<Amount>,
    label: Option<String>,
    message: Option<String>,
    /// Addresses in parameters, by the name of the parameter.
    addresses: Vec<(String, String)>,
    /// It can be paid by Lightning.
    lightning: bool,
}

enum Refusal {
    Reason(String),
    TooLarge(Amount),
}

impl Known {
    fn take(&mut self, name: &str, value: &str) -> Result<(), Refusal> {
        let once = |there: bool| {
            // What a page shows and what is paid must be the same, whichever of two each of them reads.
            let refusal = Refusal::Reason(format!("{name:?} is given twice"));
            if there { Err(refusal) } else { Ok(()) }
        };
        match name {
            "amount" => {
                once(self.amount.is_some())?;
                self.amount = Some(amount(&decode(value))?);
            }
            "label" => {
                once(self.label.is_some())?;
                self.label = Some(decode(value).into_owned());
            }
            "message" => {
                once(self.message.is_some())?;
                self.message = Some(decode(value).into_owned());
            }
            "lightning" | "lno" => self.lightning = true,
            name if address::is_parameter(name) => {
                self.addresses.push((name.to_owned(), decode(value).into_owned()));
            }
            name => {
                if let Some(required) = name.strip_prefix("req-") {
                    let required = untrusted::shown(required).unwrap_or_default();
                    let reason = format!("it requires {required:?}, which this wallet does not know");
                    return Err(Refusal::Reason(reason));
                }
            }
        }
        Ok(())
    }
}

/// Bitcoins in decimal digits, with a point and no comma (BIP21).
fn amount(text: &str) -> Result<Amount, Refusal> {
    let refuse = |why: &str| Err(Refusal::Reason(format!("its amount {why}")));
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !whole.bytes().chain(fraction.bytes()).all(|byte| byte.is_ascii_digit()) {
        return refuse("has to be in bitcoin, with digits and at most one point");
    }
    if whole.is_empty() && fraction.is_empty() {
        return refuse("is empty");
    }
    let fraction = fraction.trim_end_matches('0');
    if fraction.len() > 8 {
        return refuse("has parts of a satoshi");
    }
    let number = |digits: &str| if digits.is_empty() { Ok(0) } else { digits.parse::<u64>() };
    let whole = number(whole.trim_start_matches('0')).ok().and_then(|whole| whole.checked_mul(SAT_PER_BTC));
    // At most eight digits.
    let fraction = number(&format!("{fraction:0<8}")).unwrap_or_default();
    let Some(sat) = whole.and_then(|whole| whole.checked_add(fraction)) else {
        return refuse("is more than the 21 million bitcoin that there can be");
    };
    let amount = Amount::from_sat(sat);
    if amount > Amount::MAX_MONEY { Err(Refusal::TooLarge(amount)) } else { Ok(amount) }
}

/// It names no address of this network.
fn nothing_to_pay(known: &Known, network: Network) -> WalletError {
    if let Some((_, address)) = known.addresses.first() {
        // Of another network: said of the address, if it is one.
        return match address::parse(address, network) {
            Err(error) => error,
            Ok(_) => unreadable(THE_LINK, "its address is not where one of this network has to be"),
        };
    }
    let reason = if known.lightning {
        "it can be paid by Lightning only; ask the payee for a bitcoin address"
    } else {
        "it names no address"
    };
    unreadable(THE_LINK, reason)
}

/// Percent-encoded UTF-8 (RFC 3986); what is not so encoded stays as it is.
fn decode(text: &str) -> Cow<'_, str> {
    percent_decode_str(text).decode_utf8_lossy()
}
