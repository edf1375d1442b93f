// What a wallet developer does daily: quotes, several recipients, chosen coins, payments that are made once, what people paste.
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { QuorateError, Wallet, checkWords, federationDocument, init, parseDestination } from "quorate";
import { Federation, init as initVerifier } from "quorate/verify";
import { startDevnet } from "../browser/support.mjs";
import { fund, spendable } from "./support.mjs";

let devnet, directory, connection;
before(async () => {
  devnet = await startDevnet();
  directory = mkdtempSync(join(tmpdir(), "quorate-payments-"));
  connection = { bridge: devnet.bridge, federation: devnet.federation };
  await Promise.all([init(), initVerifier()]);
});
after(async () => {
  rmSync(directory, { recursive: true, force: true });
  await devnet?.stop();
});

const coded = (code) => (error) => error instanceof QuorateError && error.code === code;
const ELSEWHERE = "bcrt1qs758ursh4q9z627kt3pp5yysm78ddny6txaqgw";

let made = 0;
async function funded(...amounts) {
  const wallet = await Wallet.create({ ...connection, storage: "memory", name: `wallet ${++made}` });
  await wallet.ready();
  for (const amount of amounts) await fund(devnet, await wallet.nextAddress(), amount);
  await spendable(wallet, BigInt(amounts.reduce((sum, amount) => sum + amount, 0)));
  return wallet;
}

test("a quote is what is paid then, once", { timeout: 60_000 }, async () => {
  const wallet = await funded(100_000);
  const request = { to: ELSEWHERE, amount: 30_000n, feeRate: 3 };
  const quote = await wallet.quote(request);
  assert.equal(quote.amount, 30_000n);
  assert.equal(quote.total, quote.amount + quote.fee);
  assert.equal(quote.total + quote.change, 100_000n);
  assert.ok(quote.feeRate >= 3 && quote.feeRate < 3.2, String(quote.feeRate));
  assert.equal(quote.coins.length, 1);
  assert.equal(quote.unconfirmed, false);
  assert.equal((await wallet.balance()).spendable, 100_000n, "nothing is reserved");
  const most = await wallet.quote({ ...request, amount: quote.most });
  assert.deepEqual([most.change, most.total], [0n, 100_000n]);
  await assert.rejects(wallet.quote({ ...request, amount: quote.most + 1n }), coded("insufficient_funds"));

  const receipt = await wallet.pay(quote);
  assert.equal((await wallet.balance()).spendable, quote.change);
  assert.equal((await wallet.pay(quote)).txid, receipt.txid, "the same payment, not another one");
  await assert.rejects(wallet.pay(most), (error) => coded("coin_not_spendable")(error) && !error.retryable, "its coin is spent");
  await assert.rejects(wallet.pay({ ...quote, memo: "x" }), coded("invalid_argument"));
  const [, paid] = await wallet.history();
  assert.deepEqual(await wallet.history({ direction: "out", limit: 1 }), [paid]);
  const said = await wallet.diagnostics();
  assert.equal(JSON.parse(said).connection, "ready");
  assert.ok(said.includes(`payment ${receipt.txid.slice(0, 8)}…: final, enforced`), said);
  for (const own of [receipt.txid, ELSEWHERE, wallet.account.descriptor, wallet.account.id, await wallet.unusedAddress()]) assert.ok(!said.includes(own), own);
  assert.deepEqual([paid.txid, paid.fee, paid.to], [receipt.txid, quote.fee, [{ address: ELSEWHERE, amount: 30_000n }]]);
  await wallet.close();
  const last = JSON.parse(await wallet.diagnostics());
  assert.deepEqual([last.connection, last.tip, last.log.at(-1).split(" ").slice(1)], ["closed", { error: "closed" }, ["info", "closed"]], "also when it has ended");
});

test("several are paid in one transaction, of chosen coins, with data", { timeout: 60_000 }, async () => {
  const wallet = await funded(50_000, 60_000, 70_000);
  const shop = await funded();
  const [one, two] = [await shop.nextAddress(), await shop.nextAddress()];
  const coins = new Map((await wallet.coins()).map((coin) => [coin.value, coin.outpoint]));
  await wallet.freeze(coins.get(70_000n));
  assert.deepEqual((await wallet.coins()).filter((coin) => coin.frozen).map((coin) => coin.value), [70_000n]);
  assert.deepEqual((await wallet.quote({ to: ELSEWHERE, amount: "everything" })).coins.toSorted(), [coins.get(50_000n), coins.get(60_000n)].toSorted());
  await assert.rejects(wallet.quote({ to: ELSEWHERE, amount: 120_000n }), coded("insufficient_funds"));

  const receipt = await wallet.pay({
    to: [{ to: one, amount: 10_000n }, { to: ELSEWHERE, amount: "everything" }, { to: `BITCOIN:${two.toUpperCase()}?AMOUNT=0.0002` }],
    data: new TextEncoder().encode("order 17"),
    coins: [coins.get(70_000n)],
  });
  const document = await federationDocument(devnet.bridge);
  const verified = new Federation(document, devnet.federation).verifyProof(receipt.proof);
  const paid = new Map(verified.outputs.map(({ address, value }) => [address, value]));
  assert.equal(paid.get(one), 10_000n);
  assert.equal(paid.get(two), 20_000n);
  assert.ok(paid.get(ELSEWHERE) > 39_000n && paid.get(ELSEWHERE) < 40_000n, String(paid.get(ELSEWHERE)));
  assert.ok(verified.transaction.includes(Buffer.from("order 17").toString("hex")));
  assert.equal((await shop.paymentTo(two, { amount: 20_000n })).amount, 20_000n);
  assert.equal((await wallet.balance()).spendable, 110_000n);
  await wallet.unfreeze(coins.get(70_000n));

  for (const [payment, code] of [
    [{ to: [] }, "invalid_argument"],
    [{ to: [{ to: one }], amount: 1n }, "invalid_argument"],
    [{ to: [{ to: one, amount: "everything" }, { to: two, amount: "everything" }] }, "invalid_argument"],
    [{ to: [{ to: one, amount: 5_000n, memo: "x" }] }, "invalid_argument"],
    [{ to: one, amount: 5_000n, data: "text" }, "invalid_argument"],
    [{ to: one, amount: 5_000n, coins: "all" }, "invalid_argument"],
    [{ to: one, amount: 5_000n, coins: ["x"] }, "invalid_argument"],
    [{ to: one, amount: 5_000n, coins: [] }, "invalid_argument"],
    [{ to: one, amount: 5_000n, idempotencyKey: "" }, "invalid_argument"],
    [{ to: [{ to: one, amount: 5_000n }, { to: two }] }, "amount_missing"],
    [{ to: [{ to: one, amount: 5_000n }, { to: two, amount: 2_099_999_999_999_999n }] }, "amount_too_large"],
    [{ to: one, amount: 5_000n, data: new Uint8Array(81) }, "data_too_long"],
    [{ to: one, amount: 5_000n, coins: [`${"00".repeat(32)}:0`] }, "coin_not_spendable"],
  ]) {
    await assert.rejects(wallet.pay(payment), coded(code), JSON.stringify(payment, (_, value) => (typeof value === "bigint" ? Number(value) : value)));
  }
  await wallet.close();
  await shop.close();
});

test("a payment is made once for each key, also by a wallet that is opened again", { timeout: 60_000 }, async () => {
  const options = { directory, name: "once", password: "pass" };
  let wallet = await Wallet.create({ ...connection, ...options });
  await wallet.ready();
  await fund(devnet, await wallet.nextAddress(), 100_000);
  await spendable(wallet, 100_000n);
  const payment = { to: ELSEWHERE, amount: 20_000n, idempotencyKey: "invoice 17" };
  const [first, second] = await Promise.all([wallet.pay(payment), wallet.pay(payment)]);
  assert.equal(first.txid, second.txid);
  await wallet.close();
  wallet = await Wallet.open(options);
  assert.equal(await wallet.send(payment), first.txid);
  assert.equal((await wallet.pay(payment)).txid, first.txid);
  await assert.rejects(wallet.createPsbt(payment), coded("invalid_argument"));
  const again = await wallet.quote(payment);
  await assert.rejects(wallet.pay(again), (error) => coded("key_reused")(error) && error.details.txid === first.txid, "a new quote for the same key");
  await assert.rejects(wallet.pay({ ...payment, amount: 20_001n }), (error) => coded("key_reused")(error) && error.details.txid === first.txid);
  assert.equal((await wallet.history()).filter((entry) => entry.spent > 0n).length, 1);
  await wallet.close();
});

test("wrong words are named by their places", () => {
  assert.throws(() => checkWords("legal winer thank year wave sausage worth useful legal winner thank yelow"), (error) => {
    assert.deepEqual(error.details, { positions: [2, 12] });
    return coded("invalid_words")(error) && !/winer|yelow/.test(error.message);
  });
  assert.equal(checkWords("1) Legal 2) winn thank, year wave sausage worth usef LEGAL winner thank yellow").split(" ").length, 12);
});

test("what people paste is read, or named", () => {
  const read = (text) => parseDestination(text, "regtest");
  assert.equal(read(`BITCOIN:${ELSEWHERE.toUpperCase()}?AMOUNT=0.00001&x=1&x=2&label`).amount, 1_000n);
  assert.equal(read(`bitcoin:?bcrt=${ELSEWHERE}&label=%E2%80%AEevil%0A`).label, "evil");
  assert.equal(read(ELSEWHERE.replace(/(.{4})/g, "$1 ")).address, ELSEWHERE);
  for (const [text, says] of [
    ["lnbcrt500u1p3qqqqq", /Lightning invoice/],
    [ELSEWHERE.replace("qs7", "qs8"), /typing error at position 8/],
    [`bitcoin:${ELSEWHERE}?REQ-x=1`, /requires "x"/],
    [`bitcoin:${ELSEWHERE}?amount=1e8`, /digits/],
    [Array(12).fill("abandon").join(" "), /^(?!.*abandon).*secret/],
  ]) {
    assert.throws(() => read(text), (error) => coded("invalid_address")(error) && says.test(error.message), text);
  }
});

test("many small coins become one", { timeout: 60_000 }, async () => {
  const wallet = await funded(20_000, 30_000, 60, 40_000);
  const frozen = (await wallet.coins()).find(({ value }) => value === 40_000n);
  await wallet.freeze(frozen.outpoint);
  const shown = await wallet.unusedAddress();
  const quote = await wallet.consolidateQuote({ feeRate: 2 });
  assert.deepEqual([quote.coins.length, quote.change], [2, 0n], "neither the frozen one nor the one that costs more than it is worth");
  assert.equal(quote.amount, 50_000n - quote.fee);
  assert.deepEqual(await wallet.consolidateQuote({ feeRate: 2 }), quote, "asking changes nothing");
  const receipt = await wallet.consolidate({ feeRate: 2 });
  assert.equal(receipt.finality, "enforced");
  const values = (await wallet.coins()).map(({ value }) => value).sort();
  assert.deepEqual(values, [60n, 40_000n, quote.amount].sort());
  const made = (await wallet.coins()).find(({ outpoint }) => outpoint.startsWith(receipt.txid));
  assert.equal(made.keychain, "change", "no payer is given its address");
  assert.equal(await wallet.unusedAddress(), shown, "nor are addresses for payers used up");
  assert.equal(await wallet.consolidate({ feeRate: 2 }), undefined, "there is one");
  await wallet.close();
});

test("coins that together do not pay for it are left as they are", { timeout: 60_000 }, async () => {
  const wallet = await funded(150, 160);
  assert.equal(await wallet.consolidate({ feeRate: 2 }), undefined);
  await wallet.close();
});
