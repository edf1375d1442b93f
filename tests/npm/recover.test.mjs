// Leaving with the npm package: words and descriptor, a chain to ask, and no node or bridge.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { askChain, serveEsplora, startDevnet, taprootScript } from "../browser/support.mjs";
import { Wallet } from "quorate";
import { Recovery, esplora } from "quorate/recover";
import { fund } from "./support.mjs";

/** The least that regtest allows with the federation's margin: its coins can be received, and taken along. */
const DELAY = 289;
const ELSEWHERE = "bcrt1qw508d6qejxtdg4y5r3zarvary0c5xw7kygt080";
const coded = (code) => (error) => error.code === code;
let devnet, server;

before(async () => {
  devnet = await startDevnet({ nodes: 4 });
  server = await serveEsplora(devnet.rpc, taprootScript);
});
after(async () => {
  server?.stop();
  await devnet?.stop();
});

test("an account is left with its sheet alone", { timeout: 120_000 }, async () => {
  const wallet = await Wallet.create({ bridge: devnet.bridge, federation: devnet.federation, storage: "memory", name: "leaves", recoveryDelay: DELAY, passphrase: "caf\u00e9" });
  await wallet.ready();
  const first = await wallet.nextAddress();
  await fund(devnet, first, 100_000);
  await fund(devnet, await wallet.nextAddress(), 50_000);
  const [sheet, words] = [await wallet.backup(), await wallet.revealWords()];
  const descriptor = wallet.account.descriptor;
  await wallet.close();

  const recovery = await Recovery.open(sheet);
  assert.ok(sheet.includes("passphrase: needed") && !/caf(\u00e9|e\u0301)/u.test(sheet), "a passphrase is on no sheet");
  const { network, recoveryDelay, hasWords, needsPassphrase, federation } = recovery.info;
  const wanted = { network: "regtest", recoveryDelay: DELAY, hasWords: true, needsPassphrase: true, federation: devnet.federation };
  assert.deepEqual({ network, recoveryDelay, hasWords, needsPassphrase, federation }, wanted);
  const source = esplora(`${server.url}/`);
  const early = await recovery.find(source);
  assert.deepEqual(early.coins.map(({ value, change, index }) => [value, change, index]), [[100_000n, false, 0], [50_000n, false, 1]]);
  assert.equal(early.coins[0].opensAt, early.coins[0].height + DELAY);
  assert.throws(() => recovery.sweep(early, { to: ELSEWHERE, feeRate: 2 }), coded("nothing_open"));

  // The federation is not asked; blocks come all the same.
  await askChain(devnet.rpc, "generatetoaddress", DELAY - 1, ELSEWHERE);
  const found = await recovery.find(source);
  const sweep = recovery.sweep(found, { to: ELSEWHERE, feeRate: await source.feeRate() });
  assert.equal(sweep.amount + sweep.fee + sweep.left.reduce((sum, { value }) => sum + value, 0n), 150_000n);
  for (const [options, code] of [[{ to: ELSEWHERE, feeRate: 0.1 }, "fee_rate_out_of_range"], [{ to: "nowhere", feeRate: 1 }, "invalid_address"]]) {
    assert.throws(() => recovery.sweep(found, options), coded(code));
  }
  const others = "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about";
  assert.throws(() => recovery.sign(sweep.psbt, { words: others }), coded("other_words"));
  assert.throws(() => recovery.sign("no PSBT"), coded("invalid_psbt"));
  assert.deepEqual(recovery.inspect(sweep.psbt), { outputs: [{ address: ELSEWHERE, value: sweep.amount }], fee: sweep.fee });
  assert.throws(() => recovery.inspect("cHNidP8="), coded("invalid_psbt"));
  for (const passphrase of [undefined, "", "cafe"]) assert.throws(() => recovery.sign(sweep.psbt, { passphrase }), coded("other_words"));
  // As another keyboard writes it.
  const passphrase = "cafe\u0301";
  const signed = recovery.sign(sweep.psbt, { passphrase });
  assert.equal(await source.broadcast(signed.transaction), signed.txid);
  await assert.rejects(source.broadcast(`${signed.transaction}00`), coded("source_unavailable"));

  // The descriptor alone finds the same; the words come when they are needed.
  const watching = await Recovery.open(descriptor, { network: "regtest" });
  assert.equal(watching.info.hasWords, false);
  assert.throws(() => watching.sign(sweep.psbt), coded("invalid_argument"));
  assert.equal(watching.sign(sweep.psbt, { words, passphrase }).txid, signed.txid);
  const [coin] = found.coins;
  const list = `# mine\n${coin.outpoint} ${coin.value} ${coin.height} ${first}\n`;
  assert.deepEqual(watching.readList(list), [coin]);
  assert.throws(() => watching.readList("nonsense"), coded("invalid_coin_list"));
});

test("what cannot be left so is said", { timeout: 60_000 }, async () => {
  await assert.rejects(Recovery.open("nothing"), coded("invalid_backup"));
  await assert.rejects(Recovery.open("tr(nothing)", { network: "regtest" }), coded("invalid_descriptor"));
  const wallet = await Wallet.create({ bridge: devnet.bridge, federation: devnet.federation, storage: "memory", name: "asks" });
  const { descriptor } = wallet.account;
  await wallet.close();
  await assert.rejects(Recovery.open(descriptor, { network: "bitcoin" }), coded("wrong_network"));
  await assert.rejects(Recovery.open(descriptor), coded("invalid_argument"));
  const recovery = await Recovery.open(descriptor, { network: "regtest" });
  await assert.rejects(recovery.find(esplora("http://127.0.0.1:1")), (error) => error.code === "source_unavailable" && error.retryable && error.cause instanceof Error);
  const other = { ...esplora(server.url), genesis: async () => "00".repeat(32) };
  await assert.rejects(recovery.find(other), coded("source_wrong_network"));
  const lies = { ...esplora(server.url), coinsAt: async () => ({ used: true, coins: [{ outpoint: "no outpoint", value: 1n }] }) };
  await assert.rejects(recovery.find(lies), coded("source_unavailable"));
  const nowhere = { ...esplora(server.url), tip: async () => Number("<html>") };
  await assert.rejects(recovery.find(nowhere), (error) => error.code === "source_unavailable" && error.message.includes("no height"));
  const failing = { ...esplora(server.url), coinsAt: () => { throw new Error("out of order"); } };
  await assert.rejects(recovery.find(failing), (error) => error.code === "source_unavailable" && error.message.includes("out of order"));
  await assert.rejects(recovery.find(esplora(server.url), { signal: AbortSignal.abort() }), (error) => error.name === "AbortError");
});
