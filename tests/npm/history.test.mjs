// A history in parts, and as a file.
import assert from "node:assert/strict";
import { test } from "node:test";
import { exportHistory } from "quorate";
import { checkHistory, select } from "../../wasm/js/dist/history.js";

const block = (height) => ({ block: { height, hash: "00".repeat(32) }, blockTime: 1_700_000_000 + height, confirmations: 1 });
const entry = (txid, received, spent, more) => ({ txid, received, spent, to: [], confirmations: 0, ...more });
const HISTORY = [
  entry("a", 5_000n, 0n, { ...block(10), finality: "enforced" }),
  entry("b", 3_000n, 5_000n, { ...block(11), finality: "enforced", fee: 200n, to: [{ address: "bcrt1qx", amount: 1_000n }, { address: "bcrt1qy", amount: 800n }] }),
  entry("c", 7n, 0n, { ...block(12), conflicted: { txid: "d", block: { height: 12, hash: "00" } } }),
  entry("e", 0n, 3_000n, { finality: "attested", fee: 1n }),
  entry("f", 0n, 9n, { payment: { state: "failed", message: 'said "no", twice', retryable: false } }),
];

const part = (options) => select(HISTORY, checkHistory(options)).map(({ txid }) => txid).join("");

test("a history is given in the part that is wanted", () => {
  assert.equal(part({}), "abcef");
  assert.equal(part({ direction: "in" }), "ac");
  assert.equal(part({ direction: "out" }), "bef");
  assert.equal(part({ from: 11 }), "bcef", "what is in no block is later than all");
  assert.equal(part({ from: 11, until: 12 }), "b");
  assert.equal(part({ limit: 2 }), "ef");
  assert.equal(part({ limit: 2, before: "e" }), "bc");
  assert.equal(part({ limit: 2, before: "b" }), "a");
  assert.equal(part({ before: "a" }), "");
  assert.equal(part({ limit: 1, direction: "in", before: "e" }), "c");
});

test("what nobody can mean is refused", () => {
  for (const options of [{ limit: 0 }, { limit: 1.5 }, { direction: "both" }, { from: -1 }, { before: 3 }, { last: 3 }, { before: "z" }, null]) {
    assert.throws(() => part(options), { code: "invalid_argument" }, JSON.stringify(options));
  }
  assert.throws(() => exportHistory(HISTORY, "xml"), { code: "invalid_argument" });
});

test("a history is a file for a spreadsheet", () => {
  const lines = exportHistory(HISTORY, "csv").split("\r\n");
  assert.equal(lines.length, 7, "a line of names, five entries, and the end of the last");
  assert.equal(lines[0], "txid,time,height,received_sat,spent_sat,fee_sat,balance_change_sat,finality,state,to,label");
  assert.equal(lines[1], "a,2023-11-14T22:13:30.000Z,10,5000,0,,5000,enforced,confirmed,,");
  assert.equal(lines[2], "b,2023-11-14T22:13:31.000Z,11,3000,5000,200,-2000,enforced,confirmed,bcrt1qx=1000 bcrt1qy=800,");
  assert.deepEqual(lines.slice(3, 6).map((line) => line.split(",")[8]), ["conflicted", "final", "failed"]);
  assert.ok(!exportHistory(HISTORY, "csv").includes("twice"), "nothing that somebody else wrote");
  assert.equal(exportHistory([], "csv"), `${lines[0]}\r\n`);
  const rows = JSON.parse(exportHistory(HISTORY, "json"));
  assert.deepEqual(rows[1], {
    txid: "b",
    time: "2023-11-14T22:13:31.000Z",
    height: 11,
    received_sat: 3000,
    spent_sat: 5000,
    fee_sat: 200,
    balance_change_sat: -2000,
    finality: "enforced",
    state: "confirmed",
    to: "bcrt1qx=1000 bcrt1qy=800",
    label: null,
  });
  const labels = ['=HYPERLINK("evil")', 'said "no", twice', "-2"].map((label) => exportHistory([{ ...HISTORY[0], label }], "csv").split("\r\n")[1].split("confirmed,,")[1]);
  assert.deepEqual(labels, [`"'=HYPERLINK(""evil"")"`, '"said ""no"", twice"', "'-2"], "no formula, and one field");
  assert.equal(exportHistory([{ ...HISTORY[0], label: "x;=1\ty" }], "csv").split("\r\n")[1].split("confirmed,,")[1], '"x,=1,y"', "nor where semicolons or tabs part fields");
  assert.ok(exportHistory([{ ...HISTORY[0], label: "\uff1d1" }], "csv").includes(",'\uff1d1"));
});
