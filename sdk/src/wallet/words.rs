//! Secret words (BIP39), as people write them down and enter them.

use super::{WalletError, WordsError};
use bip39::{Language, Mnemonic};
use std::fmt;
use zeroize::Zeroizing;

/// How many words there may be.
const COUNTS: [usize; 5] = [12, 15, 18, 21, 24];
/// The first so many letters of a word tell it from all others of the list (BIP39); backups in metal have no more.
const TELLING_LETTERS: usize = 4;

/// Secret words of a wallet; redacted in `Debug`, erased on drop.
///
/// ```
/// use quorate::wallet::SecretWords;
/// let words = SecretWords::parse(
///     "1. Abandon 2. abandon 3. abandon abandon, abandon, abandon ABANDON aban aban aban abandon about",
/// )?;
/// assert_eq!(words.reveal().split(' ').count(), 12);
/// # Ok::<(), quorate::wallet::WalletError>(())
/// ```
#[derive(Clone)]
pub struct SecretWords {
    mnemonic: Mnemonic,
    /// Empty if there is none.
    passphrase: Zeroizing<String>,
}

impl SecretWords {
    /// Twelve new words from 16 bytes of the platform's randomness (BIP39).
    ///
    /// # Errors
    /// The platform has no source of randomness.
    pub fn generate() -> Result<Self, WalletError> {
        let mut entropy = Zeroizing::new([0; 16]);
        getrandom::getrandom(entropy.as_mut()).map_err(|_| WalletError::Randomness)?;
        Mnemonic::from_entropy(entropy.as_ref()).map(Self::of).map_err(|_| WalletError::Randomness)
    }

    /// Reads words of the English list, in capital or small letters; numbers, punctuation and white space between them
    /// do not matter, and the first four letters stand for a word. Checks count, spelling and checksum.
    ///
    /// # Errors
    /// [`WalletError::Words`] says which words are wrong, and repeats none.
    pub fn parse(text: &str) -> Result<Self, WalletError> {
        let lower = Zeroizing::new(text.to_lowercase());
        let given: Vec<&str> = lower.split(is_between).filter(|word| !word.is_empty()).collect();
        let positions = |is: fn(&str) -> bool| -> Vec<usize> {
            given.iter().enumerate().filter(|(_, word)| is(word)).map(|(index, _)| index + 1).collect()
        };
        if !positions(|word| !word.is_ascii()).is_empty() {
            return Err(WordsError::Language.into());
        }
        if !COUNTS.contains(&given.len()) {
            return Err(WordsError::Count { found: given.len() }.into());
        }
        let unknown = positions(|word| find(word).is_none());
        if unknown.len() == given.len() {
            return Err(WordsError::Language.into());
        }
        if !unknown.is_empty() {
            return Err(WordsError::Unknown { positions: unknown }.into());
        }
        let known: Vec<&str> = given.iter().filter_map(|word| find(word)).collect();
        let normal = Zeroizing::new(known.join(" "));
        let mnemonic = Mnemonic::parse_in_normalized(Language::English, &normal);
        mnemonic.map(Self::of).map_err(|_| WordsError::Checksum.into())
    }

    fn of(mnemonic: Mnemonic) -> Self {
        Self { mnemonic, passphrase: Zeroizing::default() }
    }

    /// With a passphrase (BIP39): each one makes another wallet of the same words, and none can be told to be wrong. An
    /// empty one is none. It is normalised (NFKD), but not in WebAssembly, where JavaScript has to do that.
    ///
    /// ```
    /// use quorate::wallet::SecretWords;
    /// let words = SecretWords::generate()?.with_passphrase("correct horse");
    /// assert!(words.has_passphrase() && !words.reveal().contains("horse"));
    /// # Ok::<(), quorate::wallet::WalletError>(())
    /// ```
    #[must_use]
    pub fn with_passphrase(self, passphrase: &str) -> Self {
        Self { passphrase: Zeroizing::new(passphrase.to_owned()), ..self }
    }

    /// Whether there is a passphrase beside the words.
    pub fn has_passphrase(&self) -> bool {
        !self.passphrase.is_empty()
    }

    /// The words in the clear, for the user's backup, without the passphrase.
    pub fn reveal(&self) -> Zeroizing<String> {
        Zeroizing::new(self.mnemonic.to_string())
    }

    /// The seed of all keys (BIP39).
    pub(super) fn seed(&self) -> Zeroizing<[u8; 64]> {
        // The tables of the normalisation are large, and each JavaScript engine has them.
        #[cfg(target_arch = "wasm32")]
        let seed = self.mnemonic.to_seed_normalized(&self.passphrase);
        #[cfg(not(target_arch = "wasm32"))]
        let seed = self.mnemonic.to_seed(self.passphrase.as_str());
        Zeroizing::new(seed)
    }
}

impl fmt::Debug for SecretWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretWords(..)")
    }
}

/// Whether a character is between words: accents that stand alone are parts of words.
fn is_between(one: char) -> bool {
    let is_accent = matches!(one, '\u{300}'..='\u{36f}' | '\u{3099}'..='\u{309a}');
    !one.is_alphabetic() && !is_accent
}

/// The word of the English list.
fn find(word: &str) -> Option<&'static str> {
    // Of all that begin with it the word itself comes first. (`word_list` would put a second list into the module.)
    match Language::English.words_by_prefix(word) {
        [first, ..] if *first == word => Some(first),
        [one] if word.len() == TELLING_LETTERS => Some(one),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WORDS: &str = "legal winner thank year wave sausage worth useful legal winner thank yellow";

    fn error(text: &str) -> WordsError {
        match SecretWords::parse(text) {
            Err(WalletError::Words(error)) => error,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn words_are_read_as_people_write_them() {
        let numbered: String =
            WORDS.split(' ').enumerate().map(|(at, word)| format!("{}) {word}\r\n", at + 1)).collect();
        let short: Vec<&str> = WORDS.split(' ').map(|word| &word[..word.len().min(4)]).collect();
        for text in [
            WORDS.to_owned(),
            format!("\n  {}\t", WORDS.to_uppercase()),
            WORDS.replace(' ', ", "),
            WORDS.replace(' ', "\u{3000}"),
            WORDS.replace(' ', "\u{a0}\u{200b}"),
            WORDS.replace(' ', "-"),
            numbered,
            short.join(" "),
        ] {
            let read = SecretWords::parse(&text).expect(&text);
            assert_eq!(read.reveal().as_str(), WORDS, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_places_from_one_and_without_words() {
        let change = |positions: &[usize], to: &str| {
            let word = |(at, word)| if positions.contains(&(at + 1)) { to } else { word };
            WORDS.split(' ').enumerate().map(word).collect::<Vec<_>>().join(" ")
        };
        for (text, is) in [
            (change(&[1], "leagl"), WordsError::Unknown { positions: vec![1] }),
            (change(&[3, 12], "lega"), WordsError::Checksum),
            (change(&[3, 12], "xyzzy"), WordsError::Unknown { positions: vec![3, 12] }),
            (change(&[12], "year"), WordsError::Checksum),
            (change(&[2], "gagn\u{e9}"), WordsError::Language),
            ("abaco abbaglio abbinato abete abisso abolire abrasivo abrogato accadere accenno accusato acetone".into(), WordsError::Language),
            ("\u{3042}\u{3044}\u{3053}\u{304f}\u{3057}\u{3093}".into(), WordsError::Language),
            (format!("{WORDS} legal"), WordsError::Count { found: 13 }),
            (String::new(), WordsError::Count { found: 0 }),
        ] {
            let found = error(&text);
            assert_eq!(found, is, "{text}");
            let says = format!("{found} {found:?}");
            let leaks = |word: &str| word.len() > 4 && says.contains(word);
            assert!(!text.split_whitespace().any(leaks), "{says}");
        }
        let text = error(&change(&[3, 7, 12], "xyzzy")).to_string();
        assert!(text.starts_with("words 3, 7 and 12 are not"), "{text}");
    }

    #[test]
    fn seeds_are_those_of_bip39() {
        // The passphrase is that of Trezor's vectors.
        let seed = |passphrase| SecretWords::parse(WORDS).expect("words").with_passphrase(passphrase).seed();
        for (passphrase, begins) in [
            ("", "878386efb78845b3355bd15ea4d39ef97d179cb712b77d5c12b6be415fffeffe"),
            ("TREZOR", "2e8905819b8723fe2c1d161860e5ee1830318dbf49a83bd451cfb8440c28bd6f"),
        ] {
            assert!(hex::encode(*seed(passphrase)).starts_with(begins), "{passphrase}");
        }
        assert_eq!(*seed("caf\u{e9} \u{fb01}"), *seed("cafe\u{301} fi"), "NFKD");
        assert_ne!(*seed("Caf\u{e9}"), *seed("caf\u{e9}"));
    }

    proptest::proptest! {
        #[test]
        fn nothing_that_is_entered_panics(text: String) {
            let _any = SecretWords::parse(&text);
        }
    }
}
