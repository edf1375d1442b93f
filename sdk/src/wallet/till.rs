//! Which of an account's addresses one of several tills gives out.

/// Tills of one account at most: nodes follow an account twenty addresses ahead.
pub const TILLS_MAX: u32 = 16;

/// One of several wallets of the same account that give out addresses without asking each other: of each row of as many
/// addresses as there are tills, each gives out the one with its number.
///
/// ```
/// use quorate::wallet::Till;
/// assert!(Till::new(0, 3).is_some(), "the first of three");
/// assert!(Till::new(3, 3).is_none(), "they are counted from 0");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Till {
    number: u32,
    of: u32,
}

impl Default for Till {
    /// The only one.
    fn default() -> Self {
        Self { number: 0, of: 1 }
    }
}

impl Till {
    /// Till `number`, counted from 0, of so many; `None` if there is none of this number, or there are more than
    /// [`TILLS_MAX`].
    pub fn new(number: u32, of: u32) -> Option<Self> {
        (number < of && of <= TILLS_MAX).then_some(Self { number, of })
    }

    /// The first index from `next` on that is this one's.
    pub(super) fn first(self, next: u32) -> u32 {
        let ahead = (self.number + self.of - next % self.of) % self.of;
        next.saturating_add(ahead)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_index_is_one_tills_and_the_only_one_has_all() {
        for of in 1..=TILLS_MAX {
            let tills: Vec<Till> =
                (0..of).map(|number| Till::new(number, of).expect("one of them")).collect();
            for next in 0..100 {
                let firsts: Vec<u32> = tills.iter().map(|till| till.first(next)).collect();
                let mut sorted = firsts.clone();
                sorted.sort_unstable();
                assert_eq!(sorted, (next..next + of).collect::<Vec<_>>());
                for (till, first) in tills.iter().zip(firsts) {
                    assert_eq!(first % of, till.number);
                }
            }
        }
        assert_eq!(Till::default().first(7), 7);
        assert_eq!(Till::new(0, 0), None);
        assert_eq!(Till::new(0, TILLS_MAX + 1), None);
    }
}
