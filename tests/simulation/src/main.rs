//! `sim`: runs seeds and reports what broke, which faults fired, and how fast it went.
fn main() {
    let seed = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(1);
    let count: u64 = std::env::args().nth(2).and_then(|text| text.parse().ok()).unwrap_or(1);
    let verbose = std::env::args().nth(3).is_some();
    let started = std::time::Instant::now();
    let mut counters = quorate_simulation::Counters::default();
    for seed in seed..seed + count {
        let report = quorate_simulation::run(quorate_simulation::Options { seed, bug: None, verbose });
        counters.merge(&report.counters);
        if report.violation.is_some() || count < 5 {
            println!(
                "{seed} {:?} events {} sim {:?} finals {} {:?}",
                report.violation, report.events, report.simulated, report.finals, report.trace
            );
        }
    }
    println!("{:?} {:?} missing {:?}", started.elapsed(), counters.0, counters.missing());
}
