// What a wallet says of itself to its developer has nothing in it that is its owner's alone.
import assert from "node:assert/strict";
import { test } from "node:test";
import { Recorder, report } from "../../wasm/js/dist/diagnostics.js";

const TXID = "ab".repeat(32);
const ADDRESS = "bcrt1pf6pyu0706wfud29ger3uqhuygr036pepdh80a3kvp3cng6psd90sk2ew25";

const text = (event) => {
  const recorder = new Recorder();
  recorder.note(event);
  const [{ level, text }] = recorder.lines;
  return `${level} ${text}`;
};
const failed = (message) => text({ type: "payment", txid: TXID, state: "failed", message, retryable: false }).replace("warn payment abababab…: failed, ", "");

test("events become lines without addresses, amounts and whole ids", () => {
  assert.equal(text({ type: "received", txid: TXID, amount: 12_345n, finality: "enforced" }), "info received by abababab…, enforced");
  assert.equal(text({ type: "serverMisbehaved", what: "x ".repeat(10_000) }).length, "warn ".length + 300);
  assert.equal(text({ type: "refused", error: { code: "limit_exceeded", message: "whatever a server likes to say", retry: true } }), "warn refused, limit_exceeded");
  assert.equal(text({ type: "closed", error: { code: "storage_failed", message: "/home/alice/.quorate/savings.wallet cannot be written" } }), "warn closed, storage_failed");
  assert.equal(text({ type: "disconnected", reason: "wss://alice:secret@bridge.example/?token=abc: refused", retryInMs: 5 }), "info disconnected: wss://… refused; again in 5 ms");
});

test("what is told of others is redacted by its kind", () => {
  const kinds = [
    [`${ADDRESS} is\u202ered\u001b[31m`, "… is red [31m"],
    ["to 1BvBMSEYstWetqTFn5Au4m4GFg7xJaNVN2 or 3J98t1WpEZ73CNmQviecrnyiWrnqRhWNLy", "to … or …"],
    [`of xpub${"6".repeat(107)}, zpub${"6".repeat(107)}`, "of …, …"],
    [`key 02${"cd".repeat(32)}`, "key …"],
    [`coin ${TXID}:1`, "coin abababab…:1"],
    ["70736274ff0100".repeat(20), "…"],
    [`cHNidP8BAHECAAAAA${"A/+b".repeat(30)}==`, "…"],
    ["0.00123 BTC are needed, 1,500 sat and 7 satoshis are spendable", "… BTC are needed, … sat and … satoshis are spendable"],
    ["cannot write /home/alice/.quorate/savings.wallet", "cannot write …"],
    ["cannot write C:\\Users\\alice\\savings or '~/savings'", "cannot write … or '…'"],
    ["3 of 5 nodes answered, round 2, after 1.5 s", "3 of 5 nodes answered, round 2, after 1.5 s"],
  ];
  for (const [said, kept] of kinds) assert.equal(failed(said), kept);
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

const fulfilled = (value) => ({ status: "fulfilled", value });
const FACTS = { network: "regtest", federation: "cd".repeat(32), watchOnly: false };

test("a report counts what there is", () => {
  const coin = (more) => ({ outpoint: `${TXID}:0`, value: 777_777n, address: ADDRESS, keychain: "receive", index: 0, frozen: false, ...more });
  const all = [coin({}), coin({ frozen: true }), coin({ finality: "enforced" }), coin({ finality: "enforced" })];
  const said = report(
    {
      ...FACTS,
      connection: fulfilled("ready"),
      tip: fulfilled({ height: 103, hash: "" }),
      balance: fulfilled({ spendable: 777_777n, incoming: 0n }),
      coins: fulfilled(all),
      history: fulfilled([{ txid: TXID, received: 1n, spent: 0n, to: [], confirmations: 0, payment: { state: "voting" } }]),
    },
    [],
  );
  const { balance, coins, history, tip } = JSON.parse(said);
  assert.deepEqual({ balance, coins, history, tip }, { balance: ["spendable"], coins: { unconfirmed: 1, frozen: 1, enforced: 2 }, history: { voting: 1 }, tip: 103 });
  for (const own of [TXID, ADDRESS, "777777"]) assert.ok(!said.includes(own), own);
});

test("a report of a wallet that has failed says why, and has the lines", () => {
  const answer = { status: "rejected", reason: { code: "storage_failed", message: "/home/alice/savings is full" } };
  const said = report({ ...FACTS, connection: fulfilled("closed"), tip: answer, balance: answer, coins: answer, history: answer }, [{ time: 0, level: "warn", text: "closed, storage_failed" }]);
  const { connection, tip, coins, log } = JSON.parse(said);
  assert.deepEqual([connection, tip, coins, log], ["closed", { error: "storage_failed" }, { error: "storage_failed" }, ["1970-01-01T00:00:00.000Z warn closed, storage_failed"]]);
  assert.ok(!said.includes("alice"));
});
