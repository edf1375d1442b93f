// npm run --silent bench -- load --json | node scripts/bench-svg.mjs > docs/load.svg: what a payment takes, a bar for each row.
import { readFileSync } from "node:fs";

const rows = readFileSync(0, "utf8").split("\n").filter((line) => line.startsWith("{")).map((line) => JSON.parse(line)).filter((row) => row.pace !== undefined);
if (rows.length === 0) throw new Error("no rows: give the output of `load --json`");

/** CPU of a payment by who takes it, in milliseconds; colours that are told apart without hue. */
const PARTS = [
  ["nodes", "#1b4f72", (row) => row.cpu_nodes],
  ["bridge and chain", "#5dade2", (row) => row.cpu_bridge],
  ["wallets", "#d6eaf8", (row) => row.cpu_wallets],
];
const [left, width, bar, gap, top] = [250, 460, 18, 10, 56];
const most = Math.max(...rows.map((row) => row.cpu_nodes + row.cpu_bridge + row.cpu_wallets)) / 1_000;
const scale = (ms) => (ms / most) * width;
const height = top + rows.length * (bar + gap) + 12;

const escaped = (text) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
const text = (x, y, content, more = "") => `<text x="${x.toFixed(1)}" y="${y.toFixed(1)}" ${more}>${escaped(content)}</text>`;
const pace = ({ in_flight: count, rate }) => (count === undefined ? `${rate} a second` : count === 1 ? "one at a time" : `${count} at a time`);
const named = (row) => {
  const inputs = row.inputs > 1 ? `, ${row.inputs} coins` : "";
  const apart = row.apart > 0 || row.away > 0 ? `, ${row.apart}/${row.away} ms away` : "";
  return `${row.nodes} nodes, ${row.kind}, ${pace(row.pace)}${inputs}${apart}`;
};

const drawn = [text(10, 18, "CPU time of a payment, all processes, in milliseconds; median latency beside it", 'font-weight="bold"')];
let at = left;
for (const [name, colour] of PARTS) {
  drawn.push(`<rect x="${at}" y="28" width="12" height="12" fill="${colour}" stroke="#1b4f72" stroke-width="0.5"/>`, text(at + 17, 38, name));
  at += 40 + name.length * 7;
}
for (const [index, row] of rows.entries()) {
  const y = top + index * (bar + gap);
  drawn.push(text(left - 8, y + 13, named(row), 'text-anchor="end"'));
  let x = left;
  let sum = 0;
  for (const [, colour, cpu] of PARTS) {
    const ms = cpu(row) / 1_000;
    drawn.push(`<rect x="${x.toFixed(1)}" y="${y}" width="${scale(ms).toFixed(1)}" height="${bar}" fill="${colour}" stroke="#1b4f72" stroke-width="0.5"/>`);
    x += scale(ms);
    sum += ms;
  }
  drawn.push(text(x + 6, y + 13, `${sum.toFixed(1)}, p50 ${row.p50.toFixed(1)}`));
}
process.stdout.write(
  `<svg xmlns="http://www.w3.org/2000/svg" width="${left + width + 130}" height="${height}" font-family="sans-serif" font-size="12" role="img" aria-label="CPU time and latency of a payment">
<rect width="100%" height="100%" fill="#ffffff"/>
${drawn.join("\n")}
</svg>
`,
);
