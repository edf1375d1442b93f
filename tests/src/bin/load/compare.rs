//! Two programs of the nodes in turn, so that what the machine does meanwhile meets both.

use crate::Row;

/// What the second program takes for each thing that the first takes, in the mean of all turns, and how far the turns
/// are apart.
pub(crate) fn print(nodes: u16, before: &[Vec<Row>], after: &[Vec<Row>], json: bool) {
    let Some(first) = before.first() else { return };
    for (index, row) in first.iter().enumerate() {
        let ratios = |of: fn(&Row) -> f64| {
            let turns = before.iter().zip(after);
            let each =
                turns.filter_map(|(before, after)| Some(of(after.get(index)?) / of(before.get(index)?)));
            let each: Vec<f64> = each.collect();
            let mean = each.iter().sum::<f64>() / f64::from(u32::try_from(each.len()).unwrap_or(u32::MAX));
            let ends = [f64::min, f64::max].map(|end| each.iter().copied().reduce(end).unwrap_or(f64::NAN));
            (mean, ends)
        };
        let (cpu, [least, most]) = ratios(|row| row.cpu_nodes + row.cpu_bridge + row.cpu_wallets);
        let (p50, _) = ratios(|row| row.p50);
        let (kind, pace) = (row.kind.to_string(), row.pace.to_string());
        if json {
            println!(
                "{}",
                serde_json::json!({"nodes": nodes, "kind": kind, "pace": pace, "cpu_ratio": cpu,
                    "cpu_ratio_least": least, "cpu_ratio_most": most, "p50_ratio": p50})
            );
        } else {
            println!(
                "{nodes:>5}  {kind:<8}  {pace:<12}  CPU {cpu:.2} ({least:.2} to {most:.2}), p50 {p50:.2} of before"
            );
        }
    }
}
