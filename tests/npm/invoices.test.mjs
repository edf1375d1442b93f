// Invoices: each kind of payment, and books that agree with the chain.
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { Wallet } from "quorate";
import { Invoices, exportInvoices } from "quorate/invoices";
import { satoshisFor, standing } from "../../wasm/js/dist/invoice.js";
import { startDevnet } from "../browser/support.mjs";
import { fund, spendable } from "./support.mjs";

let devnet, directory;
before(async () => {
  devnet = await startDevnet();
  directory = mkdtempSync(join(tmpdir(), "quorate-invoices-"));
});
after(async () => {
  rmSync(directory, { recursive: true, force: true });
  await devnet?.stop();
});

const coded = (code) => (error) => error.code === code || assert.fail(`${error.code}: ${error.message}`);

const KEPT = { order: "1", address: "bcrt1qa", amount: "1000", tolerance: "10", minimum: "enforced", created: 0, expires: 100, seen: {}, refunds: [] };
const txid = (number) => String(number).padStart(64, "0");
const coin = (number, value, more = {}) => ({ outpoint: `${txid(number)}:7`, value: BigInt(value), finality: "enforced", ...more });
const seen = (...times) => Object.fromEntries(times.map((at, number) => [txid(number), at]));
const refund = (amount, id = "1") => ({ id, txid: txid(99), amount: String(amount) });

test("what arrives, when and how certain it is decide how an invoice stands", () => {
  const cases = [
    ["waiting", {}, [], 50],
    ["waiting", {}, [], 100],
    ["expired", {}, [], 101],
    ["cancelled", { cancelled: 50 }, [], 60],
    ["partial", { seen: seen(10) }, [coin(0, 500)], 50],
    ["paid", { seen: seen(10) }, [coin(0, 1_000)], 50],
    ["paid", { seen: seen(10) }, [coin(0, 990)], 50, { missing: 10n }],
    ["partial", { seen: seen(10) }, [coin(0, 989)], 50],
    ["paid", { seen: seen(10) }, [coin(0, 1_010)], 50],
    ["overpaid", { seen: seen(10) }, [coin(0, 1_011)], 50, { refundable: 11n }],
    ["paid", { seen: seen(10, 90) }, [coin(0, 500), coin(1, 500)], 500],
    // The second half came too late, or after it was cancelled.
    ["late", { seen: seen(10, 101) }, [coin(0, 500), coin(1, 500)], 500, { refundable: 1_000n }],
    ["late", { cancelled: 20, seen: seen(30) }, [coin(0, 1_000)], 50, { refundable: 1_000n }],
    // Once paid it stays so, whatever comes after.
    ["overpaid", { seen: seen(10, 400) }, [coin(0, 1_000), coin(1, 500)], 500, { refundable: 500n }],
    // Over, and not enough.
    ["partial", { seen: seen(10) }, [coin(0, 500)], 101, { refundable: 500n }],
    ["refunded", { seen: seen(101), refunds: [refund(1_000)] }, [coin(0, 1_000)], 500, { refundable: 0n }],
    ["paid", { seen: seen(10), refunds: [refund(200)] }, [coin(0, 1_200)], 500, { refundable: 0n }],
    ["late", { seen: seen(101), refunds: [refund(400)] }, [coin(0, 1_000)], 500, { refundable: 600n }],
    // What is on its way back is not back, and cannot be given twice.
    ["late", { seen: seen(101), refunds: [{ id: "1", amount: "1000" }] }, [coin(0, 1_000)], 500, { refundable: 0n }],
    // Paid, given back and paid again is paid by what is left.
    ["partial", { seen: seen(10, 30), refunds: [refund(500)] }, [coin(0, 500), coin(1, 500)], 50, { missing: 500n }],
    // What was paid in time stays so, but not without the money.
    // One that is being paid back is not paid by what comes meanwhile.
    ["partial", { seen: seen(10, 30), refunds: [{ id: "1", amount: "500" }] }, [coin(0, 500), coin(1, 500)], 50],
    ["paid", { paid: 20, seen: seen(400) }, [coin(0, 1_000)], 500],
    ["paid", { paid: 20, seen: seen(10), refunds: [refund(300)] }, [coin(0, 1_000)], 500, { refundable: 0n }],
    ["expired", { paid: 20, seen: seen(10) }, [coin(0, 1_000, { conflicted: {} })], 500],
    // Not as certain as it has to be.
    ["partial", { seen: seen(10) }, [coin(0, 1_000, { finality: "attested" })], 50, { received: 0n, pending: 1_000n }],
    ["paid", { minimum: "attested", seen: seen(10) }, [coin(0, 1_000, { finality: "attested" })], 50],
    ["partial", { minimum: "confirmed", seen: seen(10) }, [coin(0, 1_000)], 50],
    ["paid", { minimum: "confirmed", seen: seen(10) }, [coin(0, 1_000, { block: { height: 7 } })], 50],
    // What conflicts with a block is nothing.
    ["waiting", { seen: seen(10) }, [coin(0, 1_000, { conflicted: {} })], 50, { received: 0n, pending: 0n }],
  ];
  for (const [state, kept, coins, now, more = {}] of cases) {
    const invoice = standing({ ...KEPT, ...kept }, coins, now);
    for (const [name, value] of Object.entries({ state, ...more })) assert.equal(invoice[name], value, `${name} of ${state} ${JSON.stringify(kept)} at ${now}`);
  }
  assert.equal(standing({ ...KEPT, amount: "150000000", memo: "a&b" }, [], 0).uri, "bitcoin:bcrt1qa?amount=1.5&message=a%26b");
  assert.equal(standing({ ...KEPT, amount: "100000000" }, [], 0).uri, "bitcoin:bcrt1qa?amount=1");
  assert.equal(standing(KEPT, [], 0).uri, "bitcoin:bcrt1qa?amount=0.00001");
});

test("prices become satoshis without floating point, rounded up", () => {
  assert.equal(satoshisFor({ amount: "12.50", rate: "50000" }), 25_000n);
  assert.equal(satoshisFor({ amount: "0.1", rate: "30000.1" }), 334n);
  assert.equal(satoshisFor({ amount: "1", rate: "3" }), 33_333_334n);
  for (const bad of [{ amount: "1,5", rate: "3" }, { amount: "1e3", rate: "3" }, { amount: "-1", rate: "3" }, { amount: "1", rate: "0" }, { amount: "1", rate: "" }]) {
    assert.throws(() => satoshisFor(bad), coded("invalid_argument"));
  }
});

test("what is spent before it was looked at has arrived all the same, and only what changed is looked at", { timeout: 30_000 }, async () => {
  const [listeners, notes, asked] = [new Map(), new Map(), []];
  let [open, all] = [[], []];
  const wallet = {
    on: (type, listener) => (listeners.set(type, [...(listeners.get(type) ?? []), listener]), () => undefined),
    notes: async () => notes,
    setNote: async (name, text) => void (text === undefined ? notes.delete(name) : notes.set(name, text)),
    synced: async () => undefined,
    reserve: async ({ order }) => `bcrt1p${order}`,
    tip: async () => ({ height: 7 }),
    history: async () => [],
    coins: async () => open,
    coinsAt: async (address) => (asked.push(address), all.filter((one) => one.address === address)),
  };
  const say = (type, event = {}) => listeners.get(type)?.forEach((listener) => listener({ type, ...event }));
  const invoices = await Invoices.open(wallet);
  for (const order of ["one", "two", "three"]) await invoices.create({ order, amount: 1_000n, seconds: 60 });
  await invoices.list();

  // One arrives and stays: nobody asks about the others.
  const first = invoices.settled("one");
  assert.equal((await invoices.get("one")).state, "waiting");
  asked.length = 0;
  open = all = [coin(1, 1_000, { address: "bcrt1pone" })];
  say("received", { txid: txid(1) });
  assert.equal((await first).state, "paid");
  await invoices.list();
  assert.deepEqual([...new Set(asked)], ["bcrt1pone"]);

  // One is spent at once: it never is among what is unspent.
  const second = invoices.settled("two");
  assert.equal((await invoices.get("two")).state, "waiting");
  all = [...all, coin(2, 1_000, { address: "bcrt1ptwo", spentBy: txid(9) })];
  say("received", { txid: txid(2) });
  assert.equal((await second).state, "paid");
  assert.equal((await invoices.get("three")).state, "waiting");
  invoices.close();
});

test("a shop's day: every kind of payment, a restart, and books that agree", { timeout: 180_000 }, async () => {
  const connection = { bridge: devnet.bridge, federation: devnet.federation };
  const payer = await Wallet.create({ ...connection, storage: "memory", name: "payer" });
  const stored = { directory, name: "shop", password: "p" };
  let shop = await Wallet.create({ ...connection, ...stored });
  await Promise.all([payer.ready(), shop.ready()]);
  const own = await payer.unusedAddress();
  for (let coin = 0; coin < 6; coin += 1) await fund(devnet, own, 200_000);
  await spendable(payer, 1_200_000n);
  let invoices = await Invoices.open(shop, { rate: async (currency) => (currency === "EUR" ? "50000" : assert.fail(currency)) });
  const told = [];
  invoices.on((invoice) => told.push(`${invoice.order} ${invoice.state}`));

  const exact = await invoices.create({ order: "exact", amount: 25_000n, memo: "two\u202e coffees" });
  assert.equal(exact.state, "waiting");
  assert.equal(exact.memo, "two  coffees", "text of somebody else spoils no page");
  assert.deepEqual(await invoices.create({ order: "exact", amount: 99n }), exact, "one invoice for an order");
  const settled = invoices.settled("exact");
  await payer.pay({ to: exact.uri });
  assert.equal((await settled).state, "paid");

  const fiat = await invoices.create({ order: "fiat", fiat: { currency: "EUR", amount: "12.50" } });
  assert.equal(fiat.amount, 25_000n);
  await payer.pay({ to: fiat.address, amount: 24_000n });
  const partial = await invoices.get("fiat");
  assert.deepEqual([partial.state, partial.missing], ["partial", 1_000n]);
  await payer.pay({ to: fiat.address, amount: 3_000n });
  const over = await invoices.settled("fiat");
  assert.deepEqual([over.state, over.refundable, over.payments.length], ["overpaid", 2_000n, 2]);

  const short = await invoices.create({ order: "short", amount: 10_000n, seconds: 1 });
  const expired = await invoices.settled("short");
  assert.equal(expired.state, "expired", "nobody has to look for it");
  await payer.pay({ to: short.address, amount: 10_000n });
  const late = new Promise((resolve) => invoices.on((invoice) => invoice.order === "short" && invoice.state === "late" && resolve(invoice)));
  assert.equal((await late).refundable, 10_000n);

  const cancelled = await invoices.create({ order: "cancelled", amount: 10_000n });
  assert.equal((await invoices.cancel("cancelled")).state, "cancelled");
  await payer.pay({ to: cancelled.address, amount: 10_000n });

  // The chain alone is enough, once it is in a block, and not before where a block is asked for.
  const chain = await invoices.create({ order: "chain", amount: 40_000n, minimum: "confirmed" });
  const mined = invoices.settled("chain", { signal: AbortSignal.timeout(30_000) });
  await fund(devnet, chain.address, 40_000);
  assert.equal((await mined).state, "paid");

  // The page is loaded anew in the middle of a sale.
  const open = await invoices.create({ order: "open", amount: 30_000n, seconds: 3_600 });
  assert.equal(await Invoices.open(shop), invoices, "one for each wallet");
  const interrupted = invoices.settled("open");
  invoices.close();
  await assert.rejects(interrupted, coded("closed"));
  await assert.rejects(invoices.get("open"), coded("closed"));
  await shop.close();
  await payer.pay({ to: open.uri });
  shop = await Wallet.open(stored);
  invoices = await Invoices.open(shop);
  assert.equal((await invoices.settled("open", { signal: AbortSignal.timeout(30_000) })).state, "paid");
  assert.deepEqual((await invoices.get("exact")).payments.map(({ outpoint, at }) => [outpoint, at]), (await settled).payments.map(({ outpoint, at }) => [outpoint, at]), "as it was");
  assert.equal((await invoices.get("cancelled")).state, "late", "what came after it was taken back is shown");

  // Back to the payer, once, whatever is asked twice.
  const home = await payer.nextAddress();
  const [back, twice] = await Promise.all([invoices.refund("fiat", { to: home }), invoices.refund("fiat", { to: home })]);
  for (const one of [back, twice, await invoices.refund("fiat", { to: home, amount: 2_000n })]) {
    assert.deepEqual([one.state, one.refundable, one.refunds.length], ["paid", 0n, 1], "not a second time");
  }
  await assert.rejects(invoices.refund("fiat", { to: home, amount: 1_000n }), coded("invalid_argument"));
  await assert.rejects(invoices.refund("fiat", { to: own }), coded("invalid_argument"));
  // A part of the goods came back. The first attempt cannot be paid, and the second goes elsewhere.
  await assert.rejects(invoices.refund("open", { to: "bcrt1qwrong", amount: 5_000n, id: "returned" }), coded("invalid_address"));
  const part = await invoices.refund("open", { to: home, amount: 5_000n, id: "returned" });
  assert.deepEqual([part.state, part.refunds[0].amount], ["paid", 5_000n]);
  assert.equal((await invoices.refund("short", { to: home })).state, "refunded");
  await assert.rejects(invoices.refund("exact", { to: home }), coded("invalid_argument"));
  await assert.rejects(invoices.refund("open", { to: home, amount: 25_001n, id: "more" }), coded("invalid_argument"));
  await assert.rejects(invoices.refund("nothing", { to: home }), coded("invalid_argument"));
  await assert.rejects(invoices.create({ order: "x", fiat: { currency: "EUR", amount: "1" } }), coded("invalid_argument"));
  await assert.rejects(invoices.create({ order: "x", amount: 10n, tolerance: 10n }), coded("invalid_argument"));
  await assert.rejects(invoices.create({ order: "x", amount: 10n, minimum: "never" }), coded("invalid_argument"));

  // The books: what arrived is what the history has.
  const list = await invoices.list();
  assert.deepEqual(list.map(({ order }) => order), ["exact", "fiat", "short", "cancelled", "chain", "open"]);
  const history = await shop.history({ direction: "in" });
  const received = list.reduce((sum, invoice) => sum + invoice.received, 0n);
  assert.equal(received, history.reduce((sum, entry) => sum + entry.received, 0n));
  const [head, ...rows] = exportInvoices(list, "csv").trimEnd().split("\r\n");
  assert.deepEqual([head.split(",")[0], rows.length], ["order", 6]);
  assert.equal(JSON.parse(exportInvoices(list, "json"))[1].price, "12.50");
  assert.throws(() => exportInvoices(list, "xml"), coded("invalid_argument"));
  assert.ok(told.includes("exact paid") && told.includes("fiat partial") && told.includes("short expired"), told.join());
  // The same refund at another fee rate is refused, and not made anew.
  await assert.rejects(invoices.refund("fiat", { to: home, feeRate: 7 }), coded("invalid_argument"));
  await assert.rejects(invoices.refund("open", { to: home, amount: 1_000n, id: "fee", feeRate: -1 }), coded("invalid_argument"));
  assert.equal((await invoices.get("open")).refunds.length, 1);
  await invoices.create({ order: "waits", amount: 1_000n });
  const forgotten = assert.rejects(invoices.settled("waits"), coded("invalid_argument"));
  await invoices.forget("waits");
  await forgotten;
  await invoices.forget("exact");
  assert.equal(await invoices.get("exact"), undefined);
  const anew = await invoices.create({ order: "exact", amount: 25_000n });
  assert.deepEqual([anew.address, anew.state, anew.received], [exact.address, "waiting", 0n], "what was paid for the one before is not for this one");
  await shop.close();
  await assert.rejects(invoices.list().then(() => invoices.get("open")), coded("closed"));
  await payer.close();
});
