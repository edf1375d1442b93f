//! What nodes estimate that it costs to be mined: a wallet is told what lies in the middle, so that no few of them can
//! make it pay too much, or too little to be mined.

use crate::{
    interest::WalletId,
    tips::{LinkId, faulty_max},
};
use quorate_protocol::wire::FeeEstimates;
use std::{collections::BTreeMap, time::Duration};

/// Time for which the nodes' answers are told again.
const FRESH: Duration = Duration::from_secs(10);
/// Wait for nodes that do not answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);

/// A session's question.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) session: WalletId,
    pub(crate) id: Option<u64>,
}

/// The nodes' answers, and who waits for them.
#[derive(Debug)]
pub(crate) struct Estimates {
    /// Nodes that may lie.
    faulty: usize,
    /// Nodes that have to answer: no federation decides anything with fewer.
    needed: usize,
    answers: BTreeMap<LinkId, FeeEstimates>,
    /// When the nodes were asked.
    asked: Option<Duration>,
    questions: Vec<Question>,
}

impl Estimates {
    /// Of a federation with so many nodes.
    pub(crate) fn new(nodes: usize) -> Self {
        let faulty = faulty_max(nodes);
        Self { faulty, needed: 2 * faulty + 1, answers: BTreeMap::new(), asked: None, questions: Vec::new() }
    }

    /// A node's stream is gone, and with it what it said.
    pub(crate) fn forget(&mut self, link: LinkId) {
        self.answers.remove(&link);
    }

    /// A session asks. Gives whether the nodes have to be asked.
    pub(crate) fn ask(&mut self, now: Duration, question: Question) -> bool {
        self.questions.push(question);
        let stale = self.asked.is_none_or(|asked| now >= asked + FRESH);
        if stale {
            self.answers.clear();
            self.asked = Some(now);
        }
        stale
    }

    /// How many questions of a session wait.
    pub(crate) fn waiting(&self, session: WalletId) -> usize {
        self.questions.iter().filter(|question| question.session == session).count()
    }

    /// A node's answer.
    pub(crate) fn take(&mut self, link: LinkId, estimates: FeeEstimates) {
        self.answers.insert(link, estimates);
    }

    /// A session is over.
    pub(crate) fn close(&mut self, session: WalletId) {
        self.questions.retain(|question| question.session != session);
    }

    /// The questions that can be answered when so many nodes are connected, with the answer; nothing as an answer if
    /// no node has given any in time.
    pub(crate) fn ready(
        &mut self,
        now: Option<Duration>,
        nodes: usize,
    ) -> (Vec<Question>, Option<FeeEstimates>) {
        let asked = self.asked.unwrap_or_default();
        let all = self.answers.len() >= nodes.max(self.needed);
        let late = now.is_some_and(|now| now >= asked + ANSWER_TIMEOUT);
        if self.questions.is_empty() || !(all || late) {
            return (Vec::new(), None);
        }
        let answers: Vec<_> = self.answers.values().copied().collect();
        let told = if answers.len() < self.needed { None } else { middle(&answers, self.faulty) };
        if told.is_none() {
            // The next one asks anew.
            self.asked = None;
        }
        (std::mem::take(&mut self.questions), told)
    }
}

/// The median of each estimate, and the highest floor but f, with which enough nodes vote. With 2f + 1 answers or more
/// each lies between what two honest nodes say.
fn middle(answers: &[FeeEstimates], faulty: usize) -> Option<FeeEstimates> {
    let last = answers.len().checked_sub(1)?;
    let pick = |place: usize, of: fn(&FeeEstimates) -> u64| {
        let mut values: Vec<u64> = answers.iter().map(of).collect();
        values.sort_unstable();
        values.get(place).copied()
    };
    let floor = pick(last.saturating_sub(faulty), |one| one.floor)?;
    Some(FeeEstimates {
        next_block: pick(last / 2, |one| one.next_block)?.max(floor),
        six_blocks: pick(last / 2, |one| one.six_blocks)?.max(floor),
        day: pick(last / 2, |one| one.day)?.max(floor),
        floor,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(rate: u64) -> FeeEstimates {
        FeeEstimates { next_block: rate, six_blocks: rate, day: rate, floor: rate }
    }

    #[test]
    fn a_third_of_the_nodes_moves_nothing_beyond_what_the_others_say() {
        assert_eq!(middle(&[], 0), None);
        assert_eq!(middle(&[all(7)], 0), Some(all(7)));
        for lie in [0, 249, 1_000_000, u64::MAX] {
            for liars in 0..=2 {
                let honest = [260, 250, 255, 270, 265, 252, 251];
                // All, and no more than a quorum.
                for answered in [7, 5] {
                    let answers: Vec<_> = (0..answered)
                        .map(|node| all(if node < liars { lie } else { honest[node] }))
                        .collect();
                    let told = middle(&answers, 2).expect("answers");
                    for rate in [told.next_block, told.six_blocks, told.day, told.floor] {
                        assert!((250..=270).contains(&rate), "{lie} of {liars}: {told:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn an_estimate_is_not_below_the_floor_that_two_thirds_vote_with() {
        let cheap = FeeEstimates { next_block: 300, six_blocks: 250, day: 250, floor: 250 };
        let dear = FeeEstimates { floor: 400, next_block: 400, six_blocks: 400, day: 400 };
        assert_eq!(middle(&[cheap, cheap, dear, dear], 1), Some(dear), "two of four do not vote for less");
        assert_eq!(middle(&[cheap, cheap, cheap, dear], 1), Some(cheap));
    }
}
