//! Any two of seven nodes misbehave in every way the simulation knows, and nothing else goes wrong: every payment
//! finishes, soon.

use quorate_simulation::{Counters, Fault, Options, Weather, run};
use std::time::Duration;

/// Two evil nodes of seven, a sound network and sound disks.
const TWO_OF_SEVEN: Weather = Weather {
    nodes: 7,
    drop: 0,
    duplicate: 0,
    delay: 0,
    machine_faults_ms: 0,
    network_faults_ms: 0,
    blocks_ms: 3_000,
    reorganisations: 0,
    byzantine: 2,
    forgetful: 0,
    work: 16,
    storm: Duration::from_secs(20),
    succession: None,
    replace: false,
    theft: None,
};

#[test]
fn with_two_of_seven_evil_every_payment_finishes_in_at_most_three_sessions() {
    let mut counters = Counters::default();
    let mut sessions = 0;
    for seed in 1..=40 {
        let report = run(Options { seed, weather: Some(TWO_OF_SEVEN), ..Options::default() });
        assert_eq!(report.violation, None, "seed {seed}");
        assert!(report.sessions_max <= 3, "seed {seed}: {} sessions", report.sessions_max);
        sessions = sessions.max(report.sessions_max);
        counters.merge(&report.counters);
    }
    assert!(sessions > 1, "some session was spoilt");
    let tried =
        [Fault::Withhold, Fault::GarbageShare, Fault::GarbageCommitment, Fault::GarbageVote, Fault::Stale];
    for fault in tried {
        assert!(counters.0.contains_key(&fault), "{fault:?} never fired");
    }
}
