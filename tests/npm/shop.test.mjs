// A shop's thousand invoices with every kind of payment: how each stands in the end, and books that agree with the chain.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { Wallet } from "quorate";
import { Invoices, exportInvoices } from "quorate/invoices";
import { askChain, startDevnet } from "../browser/support.mjs";
import { fund, spendable } from "./support.mjs";

const INVOICES = 1_000;
const PAYERS = 8;
const PRICE = 10_000n;
/** What one pays, and what an invoice is then: of how many payments, its state, and what arrived. */
const KINDS = {
  exact: { parts: [PRICE], state: "paid" },
  split: { parts: [4_000n, 6_000n], state: "paid" },
  over: { parts: [12_500n], state: "overpaid", refundable: 2_500n },
  under: { parts: [9_000n], state: "partial" },
  late: { parts: [PRICE], state: "late", refundable: PRICE },
  double: { parts: [PRICE, PRICE], state: "overpaid", refundable: PRICE },
  cancelled: { parts: [PRICE], state: "late", refundable: PRICE },
  chain: { parts: [PRICE], state: "paid" },
};

let devnet, connection;
before(async () => {
  devnet = await startDevnet();
  connection = { bridge: devnet.bridge, federation: devnet.federation };
});
after(() => devnet?.stop());

/** The output script of a Taproot address, in hex (BIP350). */
function scriptOf(address) {
  const digits = [...address.slice(address.lastIndexOf("1") + 2, -6)].map((letter) => "qpzry9x8gf2tvdw0s3jn54khce6mua7l".indexOf(letter));
  const bits = digits.map((digit) => digit.toString(2).padStart(5, "0")).join("");
  return `5120${bits.slice(0, 256).match(/.{4}/g).map((nibble) => Number.parseInt(nibble, 2).toString(16)).join("")}`;
}

/** What the chain has at each of some addresses, unspent. */
async function chainHas(addresses) {
  const scripts = new Map(addresses.map((address) => [scriptOf(address), address]));
  const { unspents } = await askChain(devnet.rpc, "scantxoutset", "start", [...scripts.keys()].map((script) => `raw(${script})`));
  const sums = new Map(addresses.map((address) => [address, 0n]));
  for (const { scriptPubKey, amount } of unspents) {
    const address = scripts.get(scriptPubKey);
    sums.set(address, sums.get(address) + BigInt(Math.round(amount * 1e8)));
  }
  return sums;
}

const mine = () => fetch(`${devnet.site}/devnet/mine`, { method: "POST" });

/** Pays; what is too far from a block waits for one. */
async function pay(payer, to, amount) {
  for (;;) {
    try {
      return await payer.pay({ to, amount });
    } catch (error) {
      if (error.code !== "unconfirmed_chain") throw error;
      const tip = (await payer.tip()).height;
      await mine();
      const blocks = payer.events({ signal: AbortSignal.timeout(30_000) });
      while ((await payer.tip()).height <= tip) assert.ok(!(await blocks.next()).done, "no block comes");
      await blocks.return();
    }
  }
}

/** Does something for all, some at a time. */
async function each(items, hands, work) {
  const queue = [...items];
  await Promise.all(hands.map(async (hand) => { for (let item = queue.shift(); item !== undefined; item = queue.shift()) await work(item, hand); }));
}

/** Waits until a condition holds that invoices or the wallet may change. */
async function until(wallet, holds, what) {
  const events = wallet.events({ signal: AbortSignal.timeout(60_000) });
  while (!(await holds())) assert.ok(!(await events.next()).done, what());
  await events.return();
}

test("a thousand invoices, paid in every way", { timeout: 400_000 }, async () => {
  const shop = await Wallet.create({ ...connection, storage: "memory", name: "shop" });
  const payers = await Promise.all(Array.from({ length: PAYERS }, (_, number) => Wallet.create({ ...connection, storage: "memory", name: `payer ${number}` })));
  await Promise.all([shop, ...payers].map((wallet) => wallet.ready()));
  for (const payer of payers) {
    const address = await payer.unusedAddress();
    for (let coin = 0; coin < 4; coin += 1) await fund(devnet, address, 1_000_000);
  }
  await Promise.all(payers.map((payer) => spendable(payer, 4_000_000n)));

  const started = performance.now();
  const invoices = await Invoices.open(shop);
  const kinds = Object.keys(KINDS);
  const orders = Array.from({ length: INVOICES }, (_, number) => `${kinds[number % kinds.length]} ${number}`);
  const kindOf = (order) => KINDS[order.split(" ")[0]];
  for (const order of orders) {
    await invoices.create({ order, amount: PRICE, seconds: order.startsWith("late") ? 1 : 3_600, tolerance: 100n, minimum: order.startsWith("chain") ? "confirmed" : "enforced" });
  }
  const made = performance.now();
  for (const order of orders.filter((order) => order.startsWith("cancelled"))) await invoices.cancel(order);
  const late = orders.filter((order) => order.startsWith("late"));
  await Promise.all(late.map((order) => invoices.settled(order)));

  const paid = orders.filter((order) => !order.startsWith("chain"));
  const toPay = paid.flatMap((order) => kindOf(order).parts.map((amount) => ({ order, amount })));
  const addresses = new Map((await invoices.list()).map(({ order, address }) => [order, address]));
  assert.equal(new Set(addresses.values()).size, INVOICES);
  await Promise.all([
    each(toPay, payers, ({ order, amount }, payer) => pay(payer, addresses.get(order), amount)),
    each(orders.filter((order) => order.startsWith("chain")), [0], (order) => fund(devnet, addresses.get(order), Number(PRICE))),
  ]);
  const sold = performance.now();
  await mine();

  // Each stands as its kind should, by itself.
  const wrong = async () =>
    (await invoices.list()).filter(({ order, state, received, refundable, payments }) => {
      const { parts, state: wanted, refundable: back = 0n } = kindOf(order);
      return state !== wanted || received !== parts.reduce((sum, part) => sum + part, 0n) || refundable !== back || payments.some(({ height }) => height === undefined);
    });
  await until(shop, async () => (await wrong()).length === 0, () => "some invoices never stand as they should");

  // What the shop thinks it has is in the chain, invoice by invoice, and all of it.
  const list = await invoices.list();
  const chain = await chainHas(list.map(({ address }) => address));
  for (const { order, address, received } of list) assert.equal(chain.get(address), received, order);
  const total = list.reduce((sum, { received }) => sum + received, 0n);
  assert.equal((await shop.balance()).spendable, total);

  // What was too much or too late goes back, and the books say so.
  const refunds = list.filter(({ refundable }) => refundable > 0n).slice(0, 100);
  const home = await payers[0].nextAddress();
  let fees = 0n;
  for (const { order, refundable, state } of refunds) {
    const after = await invoices.refund(order, { to: home });
    assert.deepEqual([after.refundable, after.refunds[0].amount, after.state], [0n, refundable, state === "late" ? "refunded" : "paid"], order);
  }
  for (const { fee } of await shop.history({ direction: "out" })) fees += fee;
  const back = refunds.reduce((sum, { refundable }) => sum + refundable, 0n);
  const left = async () => { const { spendable, pending = 0n } = await shop.balance(); return [spendable, pending]; };
  await until(shop, async () => (await left())[0] === total - back - fees, () => `${total} - ${back} - ${fees}`);
  const books = JSON.parse(exportInvoices(await invoices.list(), "json"));
  assert.equal(books.length, INVOICES);
  console.log(`# ${INVOICES} invoices: made in ${((made - started) / 1e3).toFixed(1)} s, ${toPay.length} payments in ${((sold - made) / 1e3).toFixed(1)} s`);
  await Promise.all([shop, ...payers].map((wallet) => wallet.close()));
});
