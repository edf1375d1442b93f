//! Text that somebody else wrote, made fit to be shown.

/// Most characters that are kept.
const CHARACTERS_MAX: usize = 256;

/// The text without what is not seen or changes how other characters are shown, on one line, cut where it is too long;
/// `None` if nothing is left.
pub(super) fn shown(text: &str) -> Option<String> {
    let visible = text.chars().map(|one| if one.is_whitespace() { ' ' } else { one });
    let visible: String = visible.filter(|one| !one.is_control() && !is_invisible(*one)).collect();
    let words: Vec<&str> = visible.split_whitespace().collect();
    let line = words.join(" ");
    if line.is_empty() {
        return None;
    }
    let mut kept: String = line.chars().take(CHARACTERS_MAX).collect();
    if kept.len() < line.len() {
        kept.pop();
        kept.push('…');
    }
    Some(kept)
}

/// Characters of direction (UAX #9), without width, for annotations, and tags. The joiners are letters of some scripts
/// and hold emoji together.
fn is_invisible(one: char) -> bool {
    matches!(one,
        '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{180e}' | '\u{2800}' | '\u{3164}' | '\u{200b}' | '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_seen_is_left_out() {
        for (text, is) in [
            ("Coffee", Some("Coffee")),
            ("  two\nlines\t and\u{2028}more ", Some("two lines and more")),
            ("\u{202e}gnp.exe\u{202c}", Some("gnp.exe")),
            ("a\u{0}b\u{7}\u{1b}[31mc", Some("ab[31mc")),
            ("pay\u{200b}pal\u{feff}", Some("paypal")),
            ("\u{1f469}\u{200d}\u{1f4bb} Ada", Some("\u{1f469}\u{200d}\u{1f4bb} Ada")),
            ("\u{2066}\u{2069}\n", None),
            ("", None),
        ] {
            assert_eq!(shown(text).as_deref(), is, "{text:?}");
        }
    }

    #[test]
    fn it_is_bounded_in_characters() {
        let long = "\u{e9}".repeat(10_000);
        let kept = shown(&long).expect("something");
        assert_eq!(kept.chars().count(), CHARACTERS_MAX);
        assert!(kept.ends_with('…'));
        assert_eq!(shown(&"x".repeat(CHARACTERS_MAX)), Some("x".repeat(CHARACTERS_MAX)));
    }
}
