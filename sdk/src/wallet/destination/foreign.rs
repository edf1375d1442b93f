//! What is no bitcoin address: what it is instead, so far as that can be told.

/// Something that was given in place of an address.
pub(super) struct Foreign {
    pub(super) what: &'static str,
    /// Not to be repeated: whoever sees it can take money.
    pub(super) is_secret: bool,
}

/// What begins so is not an address.
const PREFIXES: [(&str, &str); 22] = [
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
    ("vpub", "it is an extended public key"),
    ("https:", "it is a link to a web page"),
    ("http:", "it is a link to a web page"),
];

/// What a text is, if that can be told.
pub(super) fn recognise(text: &str) -> Option<Foreign> {
    if is_secret(text) {
        let what =
            "it looks like a secret: never give it to anybody, and do not enter it where money is sent to";
        return Some(Foreign { what, is_secret: true });
    }
    let lower = text.to_ascii_lowercase();
    let foreign = |what| Some(Foreign { what, is_secret: false });
    if let Some((_, what)) = PREFIXES.iter().find(|(prefix, _)| lower.starts_with(prefix)) {
        return foreign(what);
    }
    let is_hex = |text: &str| text.len() == 40 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if lower.strip_prefix("0x").is_some_and(is_hex) {
        return foreign("it is an address of another currency");
    }
    // BIP353, and Lightning's own names.
    let is_name = text.trim_start_matches('₿').split_once('@');
    if is_name.is_some_and(|(user, domain)| !user.is_empty() && domain.contains('.')) {
        return foreign("it is a name, which this wallet does not look up");
    }
    None
}

/// Words of a backup, or a private key.
fn is_secret(text: &str) -> bool {
    let words = text.split(|one: char| !one.is_alphabetic()).filter(|word| word.chars().count() > 2).count();
    let lower = text.to_ascii_lowercase();
    let is_extended = ["xprv", "yprv", "zprv", "tprv", "vprv"].iter().any(|prefix| lower.starts_with(prefix));
    let begins_like_a_key = text.starts_with(['5', 'K', 'L', '9', 'c']);
    let is_base58 = text.bytes().all(|byte| byte.is_ascii_alphanumeric());
    let is_hex = text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    words >= 11 || is_extended || is_hex || begins_like_a_key && is_base58 && (50..=53).contains(&text.len())
}
