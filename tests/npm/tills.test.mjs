// Addresses for orders, and several tills of one account.
import assert from "node:assert/strict";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { Wallet } from "quorate";
import { Orders, checkOrder } from "../../wasm/js/dist/orders.js";
import { startDevnet } from "../browser/support.mjs";
import { fund } from "./support.mjs";

let devnet, directory;
before(async () => {
  devnet = await startDevnet();
  directory = mkdtempSync(join(tmpdir(), "quorate-tills-"));
});
after(async () => {
  rmSync(directory, { recursive: true, force: true });
  await devnet?.stop();
});

const coded = (code) => (error) => error.code === code || assert.fail(`${error.code}: ${error.message}`);

test("an order has one address, whoever asks at once, and the oldest go", async () => {
  const stored = new Map();
  const save = async (change) => change.forEach((value, key) => (value === null ? stored.delete(key) : stored.set(key, value)));
  let given = 0;
  const next = async () => `address ${(given += 1)}`;
  const orders = new Orders();
  const same = await Promise.all([1, 2, 3].map(() => orders.reserve("a", next, save)));
  assert.deepEqual([...new Set(same)], ["address 1"]);
  await assert.rejects(orders.reserve("b", next, async () => Promise.reject(new Error("full disk"))), /full disk/);
  assert.equal(await orders.reserve("b", next, save), "address 3", "what could not be kept was given to nobody");
  for (let order = 2; order < 100_000; order += 1) await orders.reserve(`order ${order}`, next, save);
  assert.equal(stored.size, 100_000);
  // As they come back from a store, in whatever order.
  const state = new Map([...stored].reverse());
  state.set("order/broken", new Uint8Array([1]));
  state.set("keychains", new Uint8Array([1]));
  const again = Orders.take(state);
  assert.deepEqual([...state.keys()], ["keychains"]);
  assert.equal(await again.reserve("a", next, save), "address 1");
  await again.reserve("one more", next, save);
  assert.equal(stored.size, 100_000);
  assert.ok(!stored.has("order/a") && stored.has("order/b"), "the oldest went");
  for (const bad of ["", "x".repeat(201), 7]) assert.throws(() => checkOrder(bad), coded("invalid_argument"));
});

test("two tills never give out the same address, and an order keeps its own over a restart", { timeout: 60_000 }, async () => {
  const connection = { bridge: devnet.bridge, federation: devnet.federation };
  const owner = await Wallet.create({ ...connection, storage: "memory", name: "owner" });
  await owner.ready();
  const { record } = owner.account;
  const options = (number) => ({ ...connection, record, directory, name: `till ${number}`, password: "p", till: { number, of: 2 } });
  const tills = [await Wallet.watch(options(0)), await Wallet.watch(options(1))];
  await assert.rejects(Wallet.watch({ ...connection, record, till: { number: 2, of: 2 } }), coded("invalid_argument"));
  await assert.rejects(Wallet.watch({ ...connection, record, till: { number: 0, of: 17 } }), coded("invalid_argument"));

  const given = [];
  for (let sale = 0; sale < 15; sale += 1) for (const till of tills) given.push(await till.reserve({ order: `sale ${sale}` }));
  assert.equal(new Set(given).size, 30);
  const known = await Promise.all(Array.from({ length: 30 }, (_, index) => owner.addressAt(index)));
  assert.deepEqual(given, known, "each in its turn");
  await assert.rejects(owner.addressAt(-1), coded("invalid_argument"));
  await assert.rejects(Wallet.watch({ ...options(0), till: { number: 1, of: 2 } }), coded("wallet_in_use"));

  // One that nobody could look ahead for: the last of the first till.
  await tills[0].close();
  for (const till of [{ number: 1, of: 2 }, { number: 0, of: 3 }, undefined]) await assert.rejects(Wallet.watch({ ...options(0), till }), coded("invalid_argument"));
  const again = await Wallet.open({ directory, name: "till 0", password: "p" });
  assert.equal(await again.reserve({ order: "sale 14" }), given[28]);
  await again.synced();
  const arriving = again.paymentTo(given[28], { amount: 30_000n, minimum: "confirmed" });
  await fund(devnet, given[28], 30_000);
  assert.equal((await arriving).amount, 30_000n);
  assert.equal(await again.reserve({ order: "new" }), await owner.addressAt(30), "it goes on with its own");
  await Promise.all([again.close(), tills[1].close(), owner.close()]);
});
