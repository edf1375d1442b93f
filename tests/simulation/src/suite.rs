//! Many seeds: on all cores, some of them twice, with the sum of what fired.

use crate::{Counters, Fault, Options, Report, Weather, faults::Dice, run};
use quorate_rules::Bug;
use serde::Serialize;
use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Every so many seeds, one is run a second time and the traces are compared.
const TWICE_EVERY: u64 = 25;
/// From so many seeds on, every fault has to have fired.
const ENOUGH_SEEDS: u64 = 400;

/// What many seeds gave.
#[derive(Debug, Default, Serialize)]
pub struct Summary {
    /// Seeds run.
    pub seeds: u64,
    /// Seeds run twice.
    pub compared: u64,
    /// Events handled.
    pub events: u64,
    /// Statements that the oracle looked at.
    pub checks: u64,
    /// Transactions that became final.
    pub finals: u64,
    /// Simulated time, in seconds.
    pub simulated_s: f64,
    /// Processor time, in seconds: wall time of each seed, summed.
    pub cpu_s: f64,
    /// Wall time, in seconds.
    pub wall_s: f64,
    /// How often each fault fired.
    pub faults: Counters,
    /// Seeds that broke something, with what.
    pub failures: Vec<(u64, String)>,
}

impl Summary {
    fn add(&mut self, report: &Report, took: Duration) {
        self.seeds += 1;
        self.events += report.events;
        self.checks += report.checks;
        self.finals += u64::try_from(report.finals).unwrap_or(0);
        self.simulated_s += report.simulated.as_secs_f64();
        self.cpu_s += took.as_secs_f64();
        self.faults.merge(&report.counters);
        if let Some(violation) = &report.violation {
            self.failures.push((report.seed, violation.clone()));
        }
    }

    /// Faults that should have fired in so many seeds and did not.
    pub fn missing(&self) -> Vec<Fault> {
        if self.seeds < ENOUGH_SEEDS { Vec::new() } else { self.faults.missing() }
    }

    /// Seeds, to divide by.
    pub fn seeds_f64(&self) -> f64 {
        f64::from(u32::try_from(self.seeds).unwrap_or(u32::MAX))
    }

    /// Whether nothing broke and everything was tried.
    pub fn is_clean(&self) -> bool {
        self.failures.is_empty() && self.missing().is_empty()
    }
}

/// Runs `count` seeds from `first` on, on `threads` threads. A seed that breaks something ends the run early.
pub fn run_seeds(first: u64, count: u64, threads: usize) -> Summary {
    let (next, stop) = (AtomicU64::new(first), AtomicBool::new(false));
    let summary = Mutex::new(Summary::default());
    let started = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    let begun = Instant::now();
                    let options = Options { seed, ..Options::default() };
                    let mut report = run(options);
                    let took = begun.elapsed();
                    let twice = seed % TWICE_EVERY == 0;
                    if twice && run(options).trace != report.trace {
                        report.violation.get_or_insert("the same seed gave two different runs".to_owned());
                    }
                    if report.violation.is_some() {
                        stop.store(true, Ordering::Relaxed);
                    }
                    let mut summary = summary.lock().unwrap_or_else(PoisonError::into_inner);
                    summary.compared += u64::from(twice);
                    summary.add(&report, took);
                }
            });
        }
    });
    let mut summary = summary.into_inner().unwrap_or_else(PoisonError::into_inner);
    summary.wall_s = started.elapsed().as_secs_f64();
    summary
}

/// How a planted bug was found.
#[derive(Debug, Serialize)]
pub struct Catch {
    /// The bug.
    pub bug: Bug,
    /// The seed that showed it.
    pub seed: u64,
    /// The invariant that it broke.
    pub violation: String,
    /// After this time, in seconds.
    pub seconds: f64,
}

/// Looks for a planted bug, seed by seed; `None` if so many seeds do not show it.
pub fn hunt(bug: Bug, seeds: u64) -> Option<Catch> {
    let started = Instant::now();
    let shows = |seed: &u64| can_show(bug, &Weather::draw(&mut Dice::new(*seed, &[])));
    (1..=seeds).filter(shows).find_map(|seed| {
        let report = run(Options { seed, bug: Some(bug), ..Options::default() });
        let violation = report.violation?;
        Some(Catch { bug, seed, violation, seconds: started.elapsed().as_secs_f64() })
    })
}

/// Whether the rule that a bug breaks comes up at all in what a seed plans.
fn can_show(bug: Bug, weather: &Weather) -> bool {
    match bug {
        Bug::SealForgetsCommits | Bug::VoteAfterSeal | Bug::IgnoreInherited => weather.succession.is_some(),
        Bug::TakeLate => weather.theft.is_some(),
        _any_time => true,
    }
}
