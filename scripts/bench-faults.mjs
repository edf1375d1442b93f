// Writes the checkers' figures into bench/results.json, beside the rows of the other suites.
import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";

const directory = process.argv[2];
const read = (name) => JSON.parse(readFileSync(`${directory}/${name}.json`, "utf8"));
const [sim, bugs, model] = [read("sim"), read("bugs"), read("model")];
const row = (metric, unit, value, params = {}) => ({ suite: "faults", metric, unit, value, params });
const rows = [
  row("simulated_over_real", "ratio", sim.simulated_s / sim.cpu_s, { threads: 1 }),
  row("seeds_per_minute", "1/min", (60 * sim.seeds) / sim.wall_s),
  row("seeds_clean", "seeds", sim.seeds - sim.failures.length),
  row("events_per_second", "1/s", sim.events / sim.cpu_s, { threads: 1 }),
  row("planted_bugs_caught", "bugs", bugs.length),
  row("planted_bug_slowest_s", "s", Math.max(...bugs.map((bug) => bug.seconds))),
  row("model_states", "states", model.small_states, { transactions: 2, outpoints: 1, complete: true }),
  row("model_states", "states", model.large_states, { transactions: 3, outpoints: 2, complete: false }),
  row("model_counterexamples", "variants", model.variants),
];
const path = "bench/results.json";
const results = JSON.parse(readFileSync(path, "utf8"));
const commit = execFileSync("git", ["rev-parse", "--short", "HEAD"], { encoding: "utf8" }).trim();
results.rows = results.rows.filter((kept) => kept.suite !== "faults").concat(rows.map((row) => ({ ...row, commit })));
writeFileSync(path, `${JSON.stringify(results, null, 2)}\n`);
for (const { metric, value, unit } of rows) console.log(`${metric.padEnd(28)} ${Number(value.toFixed(2))} ${unit}`);
