//! The checksum of output descriptors (BIP380).

const INPUT: &str =
    "0123456789()[],'/*abcdefgh@:$%{}IJKLMNOPQRSTUVWXYZ&+-.;<=>?!^_|~ijklmnopqrstuvwxyzABCDEFGH`#\"\\ ";
const OUTPUT: &[u8; 32] = b"qpzry9x8gf2tvdw0s3jn54khce6mua7l";
const GENERATOR: [u64; 5] = [0xf5_dee5_1989, 0xa9_fdca_3312, 0x1b_ab10_e32d, 0x37_06b1_677a, 0x64_4d62_6ffd];

/// The eight-character checksum of a descriptor without its `#`, or `None` if a character is not allowed in one
/// (BIP380).
///
/// ```
/// assert_eq!(quorate::account::checksum("raw(deadbeef)").as_deref(), Some("89f8spxm"));
/// ```
pub fn checksum(descriptor: &str) -> Option<String> {
    let mut state = 1;
    let mut class = 0;
    let mut count = 0;
    for character in descriptor.chars() {
        let position = u64::try_from(INPUT.find(character)?).ok()?;
        state = step(state, position & 31);
        class = class * 3 + (position >> 5);
        count += 1;
        if count == 3 {
            state = step(state, class);
            (class, count) = (0, 0);
        }
    }
    if count > 0 {
        state = step(state, class);
    }
    for _ in 0..8 {
        state = step(state, 0);
    }
    state ^= 1;
    let symbol = |index: u64| {
        let value = usize::try_from((state >> (5 * (7 - index))) & 31).ok()?;
        OUTPUT.get(value).map(|byte| char::from(*byte))
    };
    (0..8).map(symbol).collect()
}

fn step(state: u64, value: u64) -> u64 {
    let top = state >> 35;
    let shifted = ((state & 0x7_ffff_ffff) << 5) ^ value;
    GENERATOR
        .iter()
        .enumerate()
        .filter(|(bit, _)| (top >> bit) & 1 == 1)
        .fold(shifted, |state, (_, generator)| state ^ generator)
}
