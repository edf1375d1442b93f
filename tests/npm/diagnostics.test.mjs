// What a wallet says of itself to its developer has nothing in it that is its owner's alone.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Recorder, report } from "../../wasm/js/dist/diagnostics.js";

const TXID = "ab".repeat(32);
const ADDRESS = "bcrt1pf6pyu0706wfud29ger3uqhuygr036pepdh80a3kvp3cng6psd90sk2ew25";

test("events become lines without addresses, amounts and whole ids", () => {
  const recorder = new Recorder();
  recorder.note({ type: "received", txid: TXID, amount: 12_345n, finality: "enforced" });
  recorder.note({ type: "payment", txid: TXID, state: "failed", message: `${ADDRESS} \u001b[31mis\u202ered\nxpub${"6".repeat(100)}`, retryable: false });
  recorder.note({ type: "serverMisbehaved", what: "x".repeat(10_000) });
  recorder.note({ type: "refused", error: { code: "limit_exceeded", message: `of ${TXID}:0`, retry: true } });
  const [received, failed, misbehaved, refused] = recorder.lines.map(({ level, text }) => `${level} ${text}`);
  assert.equal(received, "info received by abababab…, enforced");
  assert.equal(failed, "warn payment abababab…: failed, bcrt…  [31mis red …");
  assert.equal(misbehaved.length, "warn ".length + 300);
  assert.equal(refused, "warn refused, limit_exceeded: of abababab…:0");
});

test("the latest lines are kept, and who listens hears each", async () => {
  const recorder = new Recorder();
  const heard = [];
  const stop = recorder.listen(({ text }) => heard.push(text));
  for (let height = 0; height < 250; height += 1) recorder.note({ type: "tip", tip: { height, hash: "" } });
  await Promise.resolve();
  stop();
  recorder.note({ type: "ready" });
  await Promise.resolve();
  assert.deepEqual([heard.length, heard.at(-1)], [250, "tip 249"]);
  assert.deepEqual([recorder.lines.length, recorder.lines[0].text, recorder.lines.at(-1).text], [200, "tip 51", "ready"]);
});

test("a report counts what there is", () => {
  const coin = (more) => ({ outpoint: `${TXID}:0`, value: 777_777n, address: ADDRESS, keychain: "receive", index: 0, frozen: false, ...more });
  const text = report(
    {
      network: "regtest",
      federation: "cd".repeat(32),
      watchOnly: false,
      connection: "ready",
      tip: 103,
      balance: { spendable: 777_777n, incoming: 0n },
      coins: [coin({}), coin({ frozen: true }), coin({ finality: "enforced" }), coin({ finality: "enforced" })],
      history: [{ txid: TXID, received: 1n, spent: 0n, to: [], confirmations: 0, payment: { state: "voting" } }],
    },
    [],
  );
  const { balance, coins, history, tip } = JSON.parse(text);
  assert.deepEqual({ balance, coins, history, tip }, { balance: ["spendable"], coins: { unconfirmed: 1, frozen: 1, enforced: 2 }, history: { voting: 1 }, tip: 103 });
  for (const own of [TXID, ADDRESS, "777777"]) assert.ok(!text.includes(own), own);
});
