use super::*;

const REGTEST: &str = "bcrt1qs758ursh4q9z627kt3pp5yysm78ddny6txaqgw";
const MAINNET: &str = "bc1p5cyxnuxmeuwuvkwfem96lqzszd02n6xdcjrs20cac6yqjjwudpxqkedrcr";

fn parse(text: &str) -> Result<Destination, WalletError> {
    Destination::parse(text, Network::Regtest)
}

/// Why a text is refused.
fn reason(text: &str) -> String {
    match parse(text) {
        Err(WalletError::Address { reason, .. }) => reason,
        other => panic!("{text}: {other:?}"),
    }
}

fn amount(query: &str) -> Option<u64> {
    parse(&format!("bitcoin:{REGTEST}?{query}")).expect(query).amount.map(Amount::to_sat)
}

#[test]
fn wrong_network_unknown_type_and_nonsense_are_told_apart() {
    assert!(matches!(parse(MAINNET), Err(WalletError::Network { .. })));
    assert!(matches!(parse("hello"), Err(WalletError::Address { .. })));
    // Witness version 3, 32 bytes (BIP350 encoding, no meaning yet).
    let program = bitcoin::WitnessProgram::new(bitcoin::WitnessVersion::V3, &[7; 32]).expect("valid");
    let future = Address::from_witness_program(program, bitcoin::KnownHrp::Regtest).to_string();
    assert!(matches!(parse(&future), Err(WalletError::AddressType { .. })));
}

#[test]
fn white_space_and_groups_do_not_matter() {
    let expected = parse(REGTEST).expect("an address");
    let grouped: Vec<String> =
        REGTEST.as_bytes().chunks(4).map(|group| String::from_utf8_lossy(group).into_owned()).collect();
    for text in [
        format!("  {REGTEST}\n"),
        grouped.join(" "),
        grouped.join("\n"),
        REGTEST.to_uppercase(),
        format!("BITCOIN:{}", REGTEST.to_uppercase()),
        format!("bitcoin://{REGTEST}"),
        format!("bitcoin:{REGTEST}?"),
        format!("bitcoin:{REGTEST}?&&#fragment"),
    ] {
        assert_eq!(parse(&text), Ok(expected.clone()), "{text}");
    }
}

#[test]
fn names_of_parameters_are_read_without_regard_to_case() {
    let link = format!("BITCOIN:{}?AMOUNT=0.00001&LABEL=CAFE&Message=x", REGTEST.to_uppercase());
    let read = parse(&link).expect("a link");
    assert_eq!(read.amount, Some(Amount::from_sat(1_000)));
    assert_eq!((read.label.as_deref(), read.message.as_deref()), (Some("CAFE"), Some("x")));
    for required in ["req-teleport=1", "REQ-teleport=1", "Req-Pop", "req-amount=1", "%72eq-x"] {
        assert!(reason(&format!("bitcoin:{REGTEST}?{required}")).contains("requires"), "{required}");
    }
}

#[test]
fn parameters_without_a_value_and_unknown_ones_are_left_aside() {
    for query in
        ["label", "label=", "message=&label", "=", "=x", "x&x=1&x=2", "pop=mailto%3a", "lightning=lnbcrt1"]
    {
        let read = parse(&format!("bitcoin:{REGTEST}?{query}")).expect(query);
        assert_eq!((read.amount, read.label, read.message), (None, None, None), "{query}");
    }
    for twice in ["amount=1&amount=1", "amount=0.0001&AMOUNT=0.5", "label=a&Label=b", "message=&message="] {
        assert!(reason(&format!("bitcoin:{REGTEST}?{twice}")).contains("twice"), "{twice}");
    }
}

#[test]
fn amounts_follow_the_grammar() {
    for (text, sat) in [
        ("20.3", 2_030_000_000),
        ("50", 5_000_000_000),
        (".5", 50_000_000),
        ("5.", 500_000_000),
        ("0", 0),
        ("000000000000000000000001", 100_000_000),
        ("0.000000010000000000000000000000", 1),
        ("21000000", 2_100_000_000_000_000),
    ] {
        assert_eq!(amount(&format!("amount={text}")), Some(sat), "{text}");
    }
    for text in
        ["", ".", "1,000.00", "1e8", "+1", "-1", "0x1", "1.2.3", "0.000000001", "\u{661}", "NaN", "1%20BTC"]
    {
        assert!(reason(&format!("bitcoin:{REGTEST}?amount={text}")).contains("amount"), "{text}");
    }
    // Above all that there can be by a satoshi, and at the ends of 63 and 64 bits.
    for text in ["21000000.00000001", "92233720368.54775807", "92233720368.54775808", "184467440737.09551615"]
    {
        let error = parse(&format!("bitcoin:{REGTEST}?amount={text}")).expect_err("too much");
        assert!(matches!(error, WalletError::AmountTooLarge { .. }), "{error:?}");
    }
    for text in ["184467440737.09551616", &"9".repeat(1_000)] {
        assert!(reason(&format!("bitcoin:{REGTEST}?amount={text}")).contains("21 million"), "{text}");
    }
}

#[test]
fn an_address_may_be_in_a_parameter() {
    let expected = parse(REGTEST).expect("an address");
    for link in [
        format!("bitcoin:?bcrt={REGTEST}"),
        format!("bitcoin:?BCRT={}", REGTEST.to_uppercase()),
        format!("bitcoin:?bcrt=nonsense&bcrt={REGTEST}"),
        format!("bitcoin:{MAINNET}?bcrt={REGTEST}"),
        format!("bitcoin:?bc={MAINNET}&bcrt={REGTEST}&lightning=lnbc1"),
    ] {
        assert_eq!(parse(&link), Ok(expected.clone()), "{link}");
    }
    assert!(matches!(parse(&format!("bitcoin:?bc={MAINNET}")), Err(WalletError::Network { .. })));
    assert!(reason("bitcoin:?lightning=lnbcrt1abc").contains("Lightning only"));
    assert!(reason("bitcoin:?amount=1").contains("names no address"));
    assert!(reason("bitcoin:").contains("names no address"));
    assert!(reason(&format!("bitcoin:?bc={REGTEST}")).contains("not where"));
}

#[test]
fn labels_are_text_of_somebody_else() {
    let read = |label: &str| parse(&format!("bitcoin:{REGTEST}?label={label}")).expect("a link").label;
    assert_eq!(read("Luke-Jr+and%20%C3%A9").as_deref(), Some("Luke-Jr+and \u{e9}"));
    assert_eq!(read("%E2%80%AEevil%00%0Aline").as_deref(), Some("evil line"));
    assert_eq!(read("%FF%zz").as_deref(), Some("\u{fffd}%zz"));
    assert_eq!(read(&"x".repeat(5_000)).expect("some").chars().count(), 256);
    assert!(reason(&format!("bitcoin:{REGTEST}?label={}", "x".repeat(10_000))).contains("longer"));
}

#[test]
fn what_is_no_bitcoin_address_is_named() {
    for (text, says) in [
        ("lnbcrt500u1p3qqqqq", "Lightning invoice"),
        ("LNBC2500U1PVJLUEZ", "Lightning invoice"),
        ("lightning:lnbc1", "Lightning link"),
        ("LNURL1DP68GURN8GHJ7", "LNURL"),
        ("lno1qgsqvgnwgcg35z6ee2h3yczraddm72xrfua9uve2rlrm9deu7xyfzrc", "offer"),
        ("sp1qqgste7k9hx0qftg6qmwlkqtwuy6cycyavzmzj85c6qdfhjdpdjtdgqju", "silent payment"),
        ("0x52908400098527886E0F7030069857D2E4169EE7", "another currency"),
        ("ltc1qw508d6qejxtdg4y5r3zarvary0c5xw7kgmn4n9", "another currency"),
        ("xpub661MyMwAqRbcFtXgS5sYJABqqG9YLmC4Q1Rdap9gSE8NqtwybGhePY2gZ29", "extended public key"),
        ("https://example.com/pay", "web page"),
        ("\u{20bf}alice@example.com", "name"),
        ("alice@example.com", "name"),
        ("hello", "begins with \"bcrt1\""),
        ("", "nothing was entered"),
        ("   ", "nothing was entered"),
        ("1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN3", "letter is wrong"),
        ("1BvBMSEYstWetqTFn5Au4m0GFg7xJaNVN2", "position 23"),
        ("bcrt1qs758ursh4q9z627kt3pp5yysm78ddny6txaqgx", "position 44"),
    ] {
        assert!(reason(text).contains(says), "{text}: {}", reason(text));
    }
}

#[test]
fn secrets_are_not_repeated() {
    let words = "abandon ability able about above absent absorb abstract absurd abuse access accident";
    let numbered: String =
        words.split(' ').enumerate().map(|(at, word)| format!("{}. {word} ", at + 1)).collect();
    for secret in [
        words,
        &words.to_uppercase(),
        &numbered,
        "5HueCGU8rMjxEXxiPuD5BDku4MkFqeZyd4dZ1jvhTVqvbTLvyTJ",
        "cVt4o7BGAig1UXywgGSmARhxMdzP5qvQsxKkSsc1XEkw3tDTQFpy",
        "xprv9s21ZrQH143K3QTDL4LXw2F7HEK3wJUD2nW2nRk4stbPy6cq3jPPqjiChkVvvNKmPGJxWUtg6LnF5kejMRNNU3TGtRBeJgk33yuGBxrMPHi",
        "e8f32e723decf4051aefac8e2c93c9c5b214313817cdb01a1494b917c8436b35",
        "cVt4o7BGAig1UXywgGSmARhxMd\nzP5qvQsxKkSsc1XEkw3tDTQFpy",
        "pay cVt4o7BGAig1UXywgGSmARhxMdzP5qvQsxKkSsc1XEkw3tDTQFpy",
        "bcrt1qs758ursh4q9z627kt3pp5yysm78ddny6txaqgw\ncVt4o7BGAig1UXywgGSmARhxMdzP5qvQsxKkSsc1XEkw3tDTQFpy",
        "0xe8f32e723decf4051aefac8e2c93c9c5b214313817cdb01a1494b917c8436b35",
        "key e8f32e723decf4051aefac8e2c93c9c5b214313817cdb01a1494b917c8436b35",
        "p2wpkh:cVt4o7BGAig1UXywgGSmARhxMdzP5qvQsxKkSsc1XEkw3tDTQFpy",
        "bitcoin:cVt4o7BGAig1UXywgGSmARhxMdzP5qvQsxKkSsc1XEkw3tDTQFpy?amount=1",
        "tr(xprv9s21ZrQH143K3QTDL4LXw2F7HEK3wJUD2nW2nRk4stbPy6cq3jPPqjiChkVvvNKmPGJxWUtg6LnF5kejMRNNU3TGtRBeJgk33yuGBxrMPHi/86h)",
        "uprv8tXDerPXZ1QsVNjUJWTurs9kA1KGfKUAts74GCkcXtU8GwnH33GDRbNJpEqTvipfCyycARtQJhmdfWf8oKt41X9LL1zeD2pLsWmxEk3VAwd",
        "nsec1vl029mgpspedva04g90vltkh6fvh240zqtv9k0t9af8935ke9laqsnlfe5",
    ] {
        let error = parse(secret).expect_err("no address");
        let text = format!("{error} {error:?}");
        assert!(text.contains("secret"), "{text}");
        for part in secret.split_whitespace().filter(|part| part.len() > 4) {
            assert!(!text.contains(part), "{part}");
        }
    }
}

#[test]
fn an_error_of_a_link_gives_its_reason_and_not_its_texts() {
    let key = "cVt4o7BGAig1UXywgGSmARhxMdzP5qvQsxKkSsc1XEkw3tDTQFpy";
    let message = "Donation%20for%20the%20new%20roof%20of%20our%20old%20school%20house%20in%20the%20hills";
    for link in [
        format!("bitcoin:{REGTEST}?amount=1e8&message={message}"),
        format!("bitcoin:?message={message}&amount=1e8&label={key}"),
        format!("bitcoin:{REGTEST}?label={key}&amount=1e8"),
    ] {
        let error = parse(&link).expect_err("no amount").to_string();
        assert!(error.contains("digits"), "{error}");
        assert!(!error.contains("Donation") && !error.contains(key), "{error}");
    }
}

#[test]
fn the_addresses_of_bip350_are_read_and_refused_as_it_says() {
    let program = |text: &str| {
        let networks = [Network::Bitcoin, Network::Testnet];
        let read = networks.map(|network| Destination::parse(text, network));
        let known = |read: &Result<Destination, WalletError>| match read {
            Ok(destination) => Some(hex::encode(destination.script_pubkey())),
            Err(WalletError::AddressType { .. }) => Some("unknown".to_owned()),
            Err(_) => None,
        };
        read.iter().find_map(known)
    };
    for (text, script) in [
        ("BC1QW508D6QEJXTDG4Y5R3ZARVARY0C5XW7KV8F3T4", "0014751e76e8199196d454941c45d1b3a323f1433bd6"),
        (
            "tb1qrp33g0q5c5txsp9arysrx4k6zdkfs4nce4xj0gdcccefvpysxf3q0sl5k7",
            "00201863143c14c5166804bd19203356da136c985678cd4d27a1b8c6329604903262",
        ),
        ("bc1pw508d6qejxtdg4y5r3zarvary0c5xw7kw508d6qejxtdg4y5r3zarvary0c5xw7kt5nd6y", "unknown"),
        ("BC1SW50QGDZ25J", "unknown"),
        ("bc1zw508d6qejxtdg4y5r3zarvaryvaxxpcs", "unknown"),
        (
            "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqzk5jj0",
            "512079be667ef9dcbbac55a06295ce870b07029bfcdb2dce28d959f2815b16f81798",
        ),
    ] {
        assert_eq!(program(text).as_deref(), Some(script), "{text}");
    }
    for text in [
        "tc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vq5zuyut",
        "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqh2y7hd",
        "tb1z0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vqglt7rf",
        "BC1S0XLXVLHEMJA6C4DQV22UAPCTQUPFHLXM9H8Z3K2E72Q4K9HCZ7VQ54WELL",
        "bc1qw508d6qejxtdg4y5r3zarvary0c5xw7kemeawh",
        "tb1q0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vq24jc47",
        "bc1p38j9r5y49hruaue7wxjce0updqjuyyx0kh56v8s25huc6995vvpql3jow4",
        "BC130XLXVLHEMJA6C4DQV22UAPCTQUPFHLXM9H8Z3K2E72Q4K9HCZ7VQ7ZWS8R",
        "bc1pw5dgrnzv",
        "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7v8n0nx0muaewav253zgeav",
        "BC1QR508D6QEJXTDG4Y5R3ZARVARYV98GJ9P",
        "tb1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vq47Zagq",
        "bc1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7v07qwwzcrf",
        "tb1p0xlxvlhemja6c4dqv22uapctqupfhlxm9h8z3k2e72q4k9hcz7vpggkg4j",
        "bc1gmk9yu",
    ] {
        assert_eq!(program(text), None, "{text}");
    }
}

proptest::proptest! {
    #[test]
    fn nothing_that_is_entered_panics(text: String, query: String, bytes: Vec<u8>) {
        let _any = parse(&text);
        let _any = parse(&format!("bitcoin:{text}"));
        let _any = parse(&format!("bitcoin:{REGTEST}?{query}&amount={text}"));
        let _any = parse(&format!("bcrt1{text}"));
        let _any = parse(&String::from_utf8_lossy(&bytes));
    }
}
