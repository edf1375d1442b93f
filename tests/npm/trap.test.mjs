// What happens if the module traps: nothing waits for ever, nothing stays locked, and the next wallet has a new instance.
import assert from "node:assert/strict";
import { createServer } from "node:net";
import { after, before, test } from "node:test";
import { MemoryStorage, Wallet, generateWords, init } from "quorate";
import * as verify from "quorate/verify";
import engine from "../../wasm/js/dist/glue/quorate.js";
import verifier from "../../wasm/js/dist/glue/verify.js";
import { startDevnet } from "../browser/support.mjs";

let devnet;
before(async () => (devnet = await startDevnet()));
after(() => devnet?.stop());

/** No memory is there: the module traps as at any fault of its own. */
const NOWHERE = 0xffff_fff0;

async function trap(initialise) {
  // Bindings that are loaded give what they call.
  const exports = await initialise();
  const name = Object.keys(exports).find((one) => one === "federation_info");
  assert.throws(() => exports[name](NOWHERE), { code: "internal" });
}

test("a module that traps ends all wallets, and they can be opened again", { timeout: 60_000 }, async () => {
  const storage = new MemoryStorage();
  const options = { storage, password: "pass" };
  const wallets = [];
  for (const name of ["one", "two"]) wallets.push(await Wallet.create({ bridge: devnet.bridge, federation: devnet.federation, ...options, name }));
  const ends = wallets.map(async (wallet) => {
    let last;
    for await (const event of wallet.events()) last = event;
    return last;
  });
  const never = "00".repeat(32);
  const waiting = wallets.map((wallet) => assert.rejects(wallet.outcome(never), { code: "internal", retryable: true }));
  await trap(engine);
  await Promise.all(waiting);
  for (const end of await Promise.all(ends)) assert.deepEqual([end.type, end.error?.code], ["closed", "internal"]);
  for (const [index, wallet] of wallets.entries()) {
    await assert.rejects(wallet.balance(), { code: "internal" });
    await wallet.close();
    const again = await Wallet.open({ ...options, name: index === 0 ? "one" : "two" });
    await again.ready();
    assert.equal(again.account.id, wallet.account.id);
    await again.close();
  }
  await init();
  assert.equal(generateWords().split(" ").length, 12);
});

test("a wallet that is being made when the module traps is not there, and can be made", { timeout: 60_000 }, async () => {
  // A bridge that takes connections and says nothing.
  const sockets = new Set();
  const mute = createServer((socket) => sockets.add(socket.on("error", () => undefined)));
  await new Promise((resolve) => mute.listen(0, "127.0.0.1", resolve));
  const options = { federation: devnet.federation, storage: new MemoryStorage(), password: "pass" };
  const connected = new Promise((resolve) => mute.once("connection", resolve));
  const making = assert.rejects(Wallet.create({ ...options, bridge: `ws://127.0.0.1:${mute.address().port}` }), { code: "internal", retryable: true });
  await connected;
  await trap(engine);
  await making;
  await (await Wallet.create({ ...options, bridge: devnet.bridge })).close();
  for (const socket of sockets) socket.destroy();
  mute.close();
});

test("a verifier that traps is loaded anew", async () => {
  await verify.init();
  await trap(verifier);
  assert.throws(() => new verify.HeaderChain("regtest"), { code: "internal" });
  await verify.init();
  const chain = new verify.HeaderChain("regtest");
  assert.equal(chain.extend([]), 0);
});

test("an object that is used after it was let go of is an error of its own, and ends nothing", async () => {
  await verify.init();
  const [lost, kept] = [new verify.HeaderChain("regtest"), new verify.HeaderChain("regtest")];
  lost[Symbol.dispose]();
  assert.throws(() => lost.extend([]), { code: "internal", message: /null pointer/ });
  assert.equal(kept.extend([]), 0);
});
