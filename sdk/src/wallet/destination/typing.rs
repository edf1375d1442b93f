//! Where an address was mistyped.
//!
//! The checksums of bech32 and bech32m (BIP173, BIP350) have distance 5: two wrong letters have one place where they
//! can be, for each of the two. BIP173 asks software to say where, and never what would be right: a guess that is wrong
//! sends money elsewhere.

/// Letters of the data part, in the order of their values.
const CHARSET: &str = "qpzry9x8gf2tvdw0s3jn54khce6mua7l";
const GENERATOR: [u32; 5] = [0x3b6a_57b2, 0x2650_8e6d, 0x1ea1_19fa, 0x3d42_33dd, 0x2a14_62b3];
/// What the checksum comes to: bech32 for witness version 0, bech32m for all others.
const BECH32: u32 = 1;
const BECH32M: u32 = 0x2bc8_30a3;
/// Longest address.
const LENGTH_MAX: usize = 90;

/// What is wrong with a text that begins like an address of a network (`hrp` and the separator). Positions are counted
/// from 1, from the beginning of the text.
pub(super) fn what_is_wrong(text: &str, hrp: &str) -> String {
    if text.len() > LENGTH_MAX {
        return "it is too long for an address".to_owned();
    }
    let lower = text.to_ascii_lowercase();
    if text != lower && text != text.to_ascii_uppercase() {
        return "it mixes capital and small letters".to_owned();
    }
    let data_at = hrp.len() + 1;
    let mut data = Vec::new();
    for (index, letter) in lower.char_indices().skip(data_at) {
        match CHARSET.find(letter).and_then(|value| u32::try_from(value).ok()) {
            Some(value) => data.push(value),
            None => {
                let position = lower.get(..index).map_or(0, |before| before.chars().count()) + 1;
                return format!("an address has no {letter:?}, which is at position {position}");
            }
        }
    }
    match locate(hrp, &data).as_deref() {
        Some([]) => "its checksum fits, but it is no address: whoever made it made a mistake".to_owned(),
        Some([one]) => format!("there is a typing error at position {}", data_at + one + 1),
        Some([one, other]) => {
            let (one, other) = (data_at + one + 1, data_at + other + 1);
            format!("there are typing errors at positions {one} and {other}")
        }
        Some(_) | None => {
            "it has typing errors, or letters are missing: compare it with the original".to_owned()
        }
    }
}

/// The one or two places in the data part where it is wrong; none if its checksum fits. Which of the two checksums it
/// is of is told by its first letter, which may be wrong itself: `None` where both have a place for the errors.
fn locate(hrp: &str, data: &[u32]) -> Option<Vec<usize>> {
    let expanded = hrp.bytes().map(|byte| u32::from(byte) >> 5);
    let expanded = expanded.chain([0]).chain(hrp.bytes().map(|byte| u32::from(byte) & 31));
    let sum = expanded.chain(data.iter().copied()).fold(1, step);
    let effects = effects(data.len());
    let targets = [BECH32, BECH32M];
    if targets.contains(&sum) {
        return Some(Vec::new());
    }
    let only = |mut found: Vec<Vec<usize>>| if found.len() == 1 { found.pop() } else { None };
    let single: Vec<_> = targets
        .iter()
        .filter_map(|target| place_of(&effects, sum ^ target))
        .map(|place| vec![place])
        .collect();
    if !single.is_empty() {
        return only(single);
    }
    // The other error has to have the effect that is left.
    let pair = |target: &u32| {
        let mut pairs = effects.iter().filter_map(|(effect, place)| {
            let other = place_of(&effects, sum ^ target ^ effect)?;
            (*place < other).then(|| vec![*place, other])
        });
        pairs.next()
    };
    only(targets.iter().filter_map(pair).collect())
}

/// By what every single wrong letter changes the sum, with its place.
fn effects(length: usize) -> Vec<(u32, usize)> {
    let mut effects = Vec::new();
    for error in 1..32 {
        let mut effect = error;
        for place in (0..length).rev() {
            effects.push((effect, place));
            effect = step(effect, 0);
        }
    }
    effects
}

fn place_of(effects: &[(u32, usize)], effect: u32) -> Option<usize> {
    effects.iter().find(|(one, _)| *one == effect).map(|(_, place)| *place)
}

/// One step of the checksum (BIP173).
fn step(sum: u32, value: u32) -> u32 {
    let top = sum >> 25;
    let next = ((sum & 0x1ff_ffff) << 5) ^ value;
    GENERATOR.iter().enumerate().fold(
        next,
        |next, (bit, generator)| {
            if (top >> bit) & 1 == 1 { next ^ generator } else { next }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const V0: &str = "bcrt1qs758ursh4q9z627kt3pp5yysm78ddny6txaqgw";
    const V1: &str = "bc1p5cyxnuxmeuwuvkwfem96lqzszd02n6xdcjrs20cac6yqjjwudpxqkedrcr";

    /// The address with other letters at positions, counted from 1.
    fn with(address: &str, changes: &[(usize, char)]) -> String {
        let change = |(index, letter)| {
            let changed = changes.iter().find(|(position, _)| *position == index + 1);
            changed.map_or(letter, |(_, to)| *to)
        };
        address.chars().enumerate().map(change).collect()
    }

    #[test]
    fn one_or_two_wrong_letters_are_found_wherever_they_are_or_no_place_is_named() {
        let (mut named, mut all) = (0, 0);
        for (address, hrp) in [(V0, "bcrt"), (V1, "bc")] {
            assert!(address.parse::<bitcoin::Address<_>>().is_ok(), "{address}");
            for one in hrp.len() + 2..=address.len() {
                for to in CHARSET.chars() {
                    let found = what_is_wrong(&with(address, &[(one, to)]), hrp);
                    let right = address.chars().nth(one - 1) == Some(to);
                    let says = format!("there is a typing error at position {one}");
                    assert!(right || found == says, "{address}, {to} at {one}: {found}");
                }
                for other in one + 1..=address.len() {
                    for to in ['q', 'd', '7'] {
                        let text = with(address, &[(one, to), (other, to)]);
                        let changed = |at: usize| text.chars().nth(at - 1) != address.chars().nth(at - 1);
                        if !(changed(one) && changed(other)) {
                            continue;
                        }
                        let found = what_is_wrong(&text, hrp);
                        let says = format!("there are typing errors at positions {one} and {other}");
                        assert!(found == says || found.contains("compare"), "{text}: {found}");
                        named += u32::from(found == says);
                        all += 1;
                    }
                }
            }
        }
        assert!(named * 100 > all * 95, "{named} of {all}");
    }

    /// Under the wrong one of the two checksums, these errors would be elsewhere.
    #[test]
    fn no_place_is_named_where_both_checksums_have_one() {
        let found = what_is_wrong("bc1pw508s6qejxtdg4y5r3zarvary0c5xw7kv8f3t4", "bc");
        assert!(found.contains("compare"), "{found}");
    }

    #[test]
    fn what_else_can_be_wrong_is_said() {
        for (text, says) in [
            (V0.replace("qs7", "qS7"), "capital and small"),
            (V0.replace("qs7", "qb7"), "no 'b', which is at position 7"),
            (V0.replace("qs7", "q\u{e9}7"), "at position 7"),
            (V0.to_uppercase(), "its checksum fits"),
            (V0[..40].to_owned(), "letters are missing"),
            (format!("{V0}{V0}{V0}"), "too long"),
        ] {
            let found = what_is_wrong(&text, "bcrt");
            assert!(found.contains(says), "{text}: {found}");
        }
    }
}
