//! What is no bitcoin address: what it is instead, so far as that can be told.

/// What begins so is not an address.
const PREFIXES: [(&str, &str); 23] = [
    ("lightning:", "it is a Lightning link"),
    ("lnurl", "it is an LNURL"),
    ("lnbcrt", "it is a Lightning invoice"),
    ("lnbc", "it is a Lightning invoice"),
    ("lntbs", "it is a Lightning invoice"),
    ("lntb", "it is a Lightning invoice"),
    ("lno1", "it is a Lightning offer (BOLT12)"),
    ("lni1", "it is a Lightning invoice (BOLT12)"),
    ("sp1", "it is a silent payment address (BIP352), which this wallet cannot pay"),
    ("tsp1", "it is a silent payment address (BIP352), which this wallet cannot pay"),
    ("ark1", "it is an Ark address"),
    ("bitcoincash:", "it is an address of another currency"),
    ("ethereum:", "it is an address of another currency"),
    ("litecoin:", "it is an address of another currency"),
    ("ltc1", "it is an address of another currency"),
    ("xpub", "it is an extended public key"),
    ("ypub", "it is an extended public key"),
    ("zpub", "it is an extended public key"),
    ("tpub", "it is an extended public key"),
    ("upub", "it is an extended public key"),
    ("vpub", "it is an extended public key"),
    ("https:", "it is a link to a web page"),
    ("http:", "it is a link to a web page"),
];

/// What a text is, if that can be told.
pub(super) fn recognise(text: &str) -> Option<&'static str> {
    let lower = text.to_ascii_lowercase();
    if let Some((_, what)) = PREFIXES.iter().find(|(prefix, _)| lower.starts_with(prefix)) {
        return Some(what);
    }
    let is_hex = |text: &str| text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if lower.strip_prefix("0x").is_some_and(is_hex) {
        return Some("it is an address of another currency");
    }
    // BIP353, and Lightning's own names.
    let is_name = text.trim_start_matches('₿').split_once('@');
    if is_name.is_some_and(|(user, domain)| !user.is_empty() && domain.contains('.')) {
        return Some("it is a name, which this wallet does not look up");
    }
    None
}

/// What is said of a secret.
pub(super) const SECRET: &str =
    "it looks like a secret: never give it to anybody, and do not enter it where money is sent to";

/// Words of a backup, or a private key in one of its forms, with white space in it or other text around it.
pub(super) fn is_secret(text: &str) -> bool {
    let compact: String = text.chars().filter(|one| !one.is_whitespace()).collect();
    let words = text.split(|one: char| !one.is_alphabetic()).filter(|word| word.chars().count() > 2).count();
    // A key may be on two lines, or beside other text.
    let parts = [compact.as_str(), text];
    let mut parts = parts.iter().flat_map(|text| text.split(|one: char| !one.is_ascii_alphanumeric()));
    words >= 11 || parts.any(is_key)
}

fn is_key(part: &str) -> bool {
    let lower = part.to_ascii_lowercase();
    // SLIP-132 has a letter for each kind; BIP32 has x and t.
    let is_extended = lower.get(1..4) == Some("prv") && part.len() > 50;
    let is_bech32 = ["nsec1", "ms1", "ncryptsec1"].iter().any(|prefix| lower.starts_with(prefix));
    let is_wif = part.starts_with(['5', 'K', 'L', '9', 'c']) && (50..=53).contains(&part.len());
    let digits = lower.strip_prefix("0x").unwrap_or(&lower);
    let is_hex = digits.len() == 64 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_extended || is_bech32 && part.len() > 40 || is_wif || is_hex
}
