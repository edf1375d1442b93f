//! Runs too deep to be found by breadth, played step by step.

use quorate_model::{Action, Outcome, Protocol, State, Target, Variant};
use stateright::Model as _;
use std::collections::BTreeSet;

fn free() -> Outcome {
    BTreeSet::new()
}

fn only(target: Target) -> Outcome {
    BTreeSet::from([target])
}

fn play(model: &Protocol, steps: impl IntoIterator<Item = Action>) -> State {
    let mut state = model.init_states().remove(0);
    for step in steps {
        let mut possible = Vec::new();
        model.actions(&state, &mut possible);
        assert!(possible.contains(&step), "the rules allow {step:?}, among {possible:?}");
        state = model.next_state(&state, step).expect("it changes something");
    }
    state
}

/// Why nonce commitments and packages are bound to the rounds: node 0 commits to transaction 0 in round 0 and is not
/// heard in the first release; transaction 1 is certified in round 1 and node 1 commits to it; the second release
/// hears node 0 and is forced to transaction 0; node 2 commits to that in round 2. If the two commits to transaction
/// 0 counted together it would be final, and a third release that hears nodes 0 and 1 is forced to transaction 1.
fn commits_of_two_rounds(variant: Variant) -> bool {
    let model = Protocol { transactions: vec![vec![0], vec![0]], rounds: 2, variant };
    let at = |tx, round| (tx, vec![(0, round)]);
    let steps = [
        Action::Vote(0, 0),
        Action::Vote(1, 0),
        Action::Commit(0, at(0, 0)),
        Action::Promise(1, 0),
        Action::Promise(2, 0),
        Action::Release(1, 0, 0, free()),
        Action::Release(2, 0, 0, free()),
        Action::Vote(1, 1),
        Action::Vote(2, 1),
        Action::Commit(1, at(1, 1)),
        Action::Release(0, 0, 0, free()),
        Action::Promise(0, 0),
        Action::Promise(2, 0),
        Action::Release(0, 0, 1, only(at(0, 0))),
        Action::Release(2, 0, 1, only(at(0, 0))),
        Action::Vote(0, 0),
        Action::Vote(2, 0),
        Action::Commit(2, at(0, 2)),
        Action::Promise(0, 0),
        Action::Release(1, 0, 1, only(at(0, 0))),
        Action::Promise(1, 0),
        Action::Release(0, 0, 2, only(at(1, 1))),
        Action::Release(1, 0, 2, only(at(1, 1))),
    ];
    let state = play(&model, steps);
    let finals = model.finals(&state);
    let forced_away = model.outcomes(&state, 0, 2).iter().flatten().any(|forced| forced.0 == 1);
    assert!(forced_away, "the third release may be forced to transaction 1");
    finals.contains(&0)
}

#[test]
fn commits_of_two_rounds_must_not_count_together() {
    assert!(commits_of_two_rounds(Variant::MixedRounds), "transaction 0 is final and released to another");
    assert!(!commits_of_two_rounds(Variant::Correct), "bound to rounds, it is not final");
}

/// Why a release carries every certificate of the highest round. Transaction 1 spends outpoints 0 and 1. It is
/// certified in rounds 0 and 0, but outpoint 1 is released, free; then it is certified in rounds 0 and 1, and nodes 0
/// and 1 commit to that: it is final. The release of outpoint 0 hears the faulty node name the old certificate, which
/// the release of outpoint 1 makes void.
fn tied_certificates(variant: Variant) -> bool {
    let model = Protocol { transactions: vec![vec![0], vec![0, 1], vec![1]], rounds: 1, variant };
    let new = || (1, vec![(0, 0), (1, 1)]);
    let state = play(
        &model,
        [
            Action::Vote(0, 1),
            Action::Vote(1, 1),
            Action::Promise(0, 1),
            Action::Promise(1, 1),
            Action::Release(0, 1, 0, free()),
            Action::Release(1, 1, 0, free()),
            Action::Vote(0, 1),
            Action::Vote(1, 1),
            Action::Commit(0, new()),
            Action::Commit(1, new()),
            Action::Promise(0, 0),
            Action::Promise(2, 0),
        ],
    );
    assert!(model.finals(&state).contains(&1), "it is final");
    model.outcomes(&state, 0, 0).iter().all(|forced| model.holds(&state, 0, forced, 1))
}

#[test]
fn an_old_certificate_does_not_hide_the_one_that_made_it_final() {
    assert!(
        !tied_certificates(Variant::OneOfTied),
        "a release that carries only the old one can be taken for void"
    );
    assert!(tied_certificates(Variant::Correct), "one that carries both cannot");
}
