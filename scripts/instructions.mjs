// npm run bench -- instructions [--write]: counts the instructions of a payment's steps (valgrind's callgrind) and compares them with bench/instructions.json.
// Instructions are the same on a noisy machine, where time is not. `npm test` runs it on its own build; --write records what is found as the new figures.
import { execFile, execFileSync } from 'node:child_process';
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { promisify } from 'node:util';

const program = `${process.env.CARGO_TARGET_DIR}/debug/instructions`;
const recorded = 'bench/instructions.json';
// Compilers and machines differ by more than this; with the same ones only a change of the code does.
const tolerance = 0.05;
const slack = 2_000;
const times = [1, 4];

/** Instructions of a whole run. */
const collected = async (step, count) => {
  const options = ['--tool=callgrind', '--callgrind-out-file=/dev/null', program, step, String(count)];
  const { stderr } = await promisify(execFile)('valgrind', options);
  const found = /Collected : (\d+)/.exec(stderr);
  if (found === null) throw new Error(`valgrind says nothing of ${step}: ${stderr}`);
  return Number(found[1]);
};

const steps = execFileSync(program, { encoding: 'utf8' }).trim().split('\n');
const counts = {};
for (const step of steps) {
  const [few, many] = await Promise.all(times.map((count) => collected(step, count)));
  counts[step] = Math.round((many - few) / (times[1] - times[0]));
}
const said = (command, ...options) => execFileSync(command, options, { encoding: 'utf8' }).trim();
const [host, release] = ['host', 'release'].map((what) => new RegExp(`^${what}: (.*)$`, 'm').exec(said('rustc', '-vV'))[1]);
const compiler = `rustc ${release}, ${said('cc', '--version').split('\n')[0]}, ${host}`;
const before = existsSync(recorded) ? JSON.parse(readFileSync(recorded, 'utf8')) : { compiler, steps: {} };
const risen = [];
for (const [step, count] of Object.entries(counts)) {
  const known = before.steps[step] ?? count;
  const ratio = count / known;
  if (count > known * (1 + tolerance) + slack) risen.push(step);
  console.log(`${step.padEnd(18)} ${String(count).padStart(12)}  ${ratio.toFixed(3)}`);
}
if (process.argv.includes('--write')) {
  writeFileSync(recorded, `${JSON.stringify({ compiler, steps: counts }, null, 2)}\n`);
} else if (before.compiler !== compiler) {
  console.log(`recorded with ${before.compiler}; this is ${compiler}: nothing is compared, --write records this one's`);
} else if (risen.length > 0) {
  console.error(`more instructions than recorded: ${risen.join(', ')}. Look why; if it has to be, \`npm run bench -- instructions --write\``);
  process.exit(1);
}
