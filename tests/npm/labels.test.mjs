// What people call their payments, addresses and coins.
import assert from "node:assert/strict";
import { mkdtempSync, readFileSync, readdirSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { Wallet } from "quorate";
import { Labels, clean, parseLabels, writeLabels } from "../../wasm/js/dist/labels.js";
import { startDevnet } from "../browser/support.mjs";
import { fund, spendable } from "./support.mjs";

let devnet, directory;
before(async () => {
  devnet = await startDevnet();
  directory = mkdtempSync(join(tmpdir(), "quorate-labels-"));
});
after(async () => {
  rmSync(directory, { recursive: true, force: true });
  await devnet?.stop();
});

const TXID = "ab".repeat(32);

test("lines of BIP329 are read, and what is none is left out", () => {
  // The examples of the BIP.
  const vectors = [
    { type: "tx", ref: "f91d0a8a78462bc59398f2c5d7a84fcff491c26ba54c4833478b202796c8aafd", label: "Transaction", origin: "wpkh([d34db33f/84'/0'/0'])" },
    { type: "addr", ref: "bc1q34aq5drpuwy3wgl9lhup9892qp6svr8ldzyy7c", label: "Address" },
    { type: "pubkey", ref: "0283409659355b6d1cc3c32decd5d561abaac86c37a353b52895a5e6c196d6f448", label: "Public Key" },
    { type: "input", ref: "f91d0a8a78462bc59398f2c5d7a84fcff491c26ba54c4833478b202796c8aafd:0", label: "Input" },
    { type: "output", ref: "f91d0a8a78462bc59398f2c5d7a84fcff491c26ba54c4833478b202796c8aafd:1", label: "Output", spendable: false },
    {
      type: "xpub",
      ref: "xpub661MyMwAqRbcFtXgS5sYJABqqG9YLmC4Q1Rdap9gSE8NqtwybGhePY2gZ29ESFjqJoCu1Rupje8YtGqsefD265TMg7usUDFdp6W1EGMcet8",
      label: "Extended Public Key",
    },
  ];
  const text = `${vectors.map((line) => JSON.stringify(line)).join("\r\n")}\n\nnonsense\n[1]\nnull\n{"type":"tx","ref":"short","label":"x"}\n{"type":"constructor","ref":"x","label":"x"}\n{"type":"tx","ref":"${TXID}"}`;
  const { labels, spendable: may } = parseLabels(text);
  assert.deepEqual(labels, vectors.map(({ type, ref, label }) => ({ type, ref, label })));
  assert.deepEqual([...may], [[vectors[4].ref, false]]);
  const written = writeLabels(labels, [vectors[4].ref, `${TXID}:7`]);
  assert.deepEqual(parseLabels(written).labels, labels);
  assert.deepEqual([...parseLabels(written).spendable], [[vectors[4].ref, false], [`${TXID}:7`, false]]);
});

test("labels that would spoil a page are cleaned", () => {
  assert.equal(clean(" a\u202eb\u0000\n c "), "a b  c");
  assert.equal(Array.from(clean("\u{1f600}".repeat(300))).length, 255, "no half of a character");
});

test("a text of somebody else is bounded, and of several lines for one thing the last counts", () => {
  const line = (more) => `${JSON.stringify({ type: "output", ref: `${TXID}:0`, ...more })}\n`;
  assert.throws(() => parseLabels("\n".repeat(200_001)), { code: "invalid_argument" });
  assert.throws(() => parseLabels("x".repeat(64 * 1024 * 1024 + 1)), { code: "invalid_argument" });
  const { labels, spendable } = parseLabels((line({ label: "a", spendable: true }) + line({ label: "b", spendable: false })).repeat(50_000));
  assert.deepEqual([labels.map(({ label }) => label), [...spendable]], [["b"], [[`${TXID}:0`, false]]]);
});

test("of labels that are set at once the last call stays, and there is a limit", async () => {
  const labels = new Labels();
  const saved = [];
  // The first one takes longer to be saved.
  const save = (wait) => async (change) => {
    for (let turn = 0; turn < wait; turn += 1) await Promise.resolve();
    saved.push([...change.values()].map((value) => new TextDecoder().decode(value)).join());
  };
  const label = (text, ref = TXID) => ({ type: "tx", ref, label: text });
  await Promise.all([labels.set([label("first")], save(50)), labels.set([label("second")], save(0))]);
  assert.deepEqual([saved, labels.all], [["first", "second"], [label("second")]]);
  await assert.rejects(labels.set([label("lost")], () => Promise.reject(new Error("disk full"))));
  assert.deepEqual(labels.all, [label("second")], "what is not durable is not there");
  const many = (from, count) => Array.from({ length: count }, (_, index) => label("x", (from + index).toString(16).padStart(64, "0")));
  const both = await Promise.allSettled([labels.set(many(0, 60_000), save(0)), labels.set(many(60_000, 60_000), save(0))]);
  assert.deepEqual(both.map(({ status }) => status), ["fulfilled", "rejected"]);
  assert.equal(labels.all.length, 60_001);
});

test("labels are kept with the wallet, encrypted, and come with history and coins", { timeout: 60_000 }, async () => {
  const options = { directory, name: "labels", password: "correct horse" };
  let wallet = await Wallet.create({ ...options, bridge: devnet.bridge, federation: devnet.federation });
  await wallet.ready();
  const address = await wallet.nextAddress();
  await fund(devnet, address, 50_000);
  await spendable(wallet, 50_000n);
  const [coin] = await wallet.coins();
  const txid = coin.outpoint.slice(0, 64);
  await wallet.setLabel({ type: "addr", ref: address, label: "order 4711" });
  await wallet.setLabel({ type: "tx", ref: txid, label: "the first one" });
  assert.equal((await wallet.coins())[0].label, "order 4711");
  for (const wrong of [{ type: "tx", ref: "x", label: "" }, { type: "memo", ref: txid, label: "" }, { type: "tx", ref: txid }, { type: "tx", ref: txid, label: "", more: 1 }]) {
    await assert.rejects(wallet.setLabel(wrong), { code: "invalid_argument" }, JSON.stringify(wrong));
  }
  await wallet.freeze(coin.outpoint);
  const text = await wallet.exportLabels();
  await wallet.close();
  await assert.rejects(wallet.setLabel({ type: "tx", ref: txid, label: "late" }), { code: "closed" });

  const stored = readdirSync(directory, { recursive: true, withFileTypes: true }).filter((file) => file.isFile());
  for (const file of stored) {
    const bytes = readFileSync(join(file.parentPath ?? file.path, file.name));
    const values = bytes.toString("latin1").match(/[\w+/-]{8,}=*/g) ?? [];
    for (const one of [bytes, ...values.map((value) => Buffer.from(value, "base64"))]) assert.ok(!one.includes("order 4711"), "nobody reads it");
  }
  wallet = await Wallet.open(options);
  assert.deepEqual((await wallet.labels()).map(({ label }) => label).sort(), ["order 4711", "the first one"]);
  assert.equal((await wallet.history())[0].label, "the first one");
  await wallet.setLabel({ type: "tx", ref: txid, label: "" });
  await wallet.unfreeze(coin.outpoint);
  assert.equal((await wallet.labels()).length, 1, "an empty one takes it away");
  const told = [];
  wallet.on("labels", () => told.push("labels"));
  assert.deepEqual(await wallet.importLabels(`${text}{"type":"output","ref":"${TXID}:9","spendable":false}\n`), { labels: 2, coins: 1, unknownCoins: 1 });
  assert.deepEqual(told, ["labels"], "who shows labels hears of it");
  assert.deepEqual([(await wallet.labels()).length, (await wallet.coins())[0].frozen], [2, true]);
  const words = await wallet.revealWords({ password: "correct horse" });
  await wallet.close();
  // On another device, before it knows which coins are its own.
  const restored = await Wallet.create({ bridge: devnet.bridge, federation: devnet.federation, words, storage: "memory", name: "restored" });
  assert.deepEqual(await restored.importLabels(text), { labels: 2, coins: 1, unknownCoins: 0 });
  assert.deepEqual((await restored.coins()).map(({ frozen, label }) => [frozen, label]), [[true, "order 4711"]]);
  await restored.close();
});
