// How wallets begin and end, whatever happens in between; and what TypeScript makes of the package in a plain project.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { MemoryStorage, QuorateError, Wallet } from "quorate";
import { QuorateError as InlineError } from "quorate/inline";
import { Wallet as WorkerWallet } from "quorate/worker";
import { startDevnet } from "../browser/support.mjs";

let devnet;
before(async () => (devnet = await startDevnet()));
after(() => devnet?.stop());

/** A storage in memory that asks first what is to become of each change. */
function asking(decide) {
  const storage = new MemoryStorage();
  const open = storage.open.bind(storage);
  storage.open = async (name) => {
    const store = await open(name);
    const apply = store.apply.bind(store);
    store.apply = async (change) => {
      await decide(change);
      await apply(change);
    };
    return store;
  };
  return storage;
}

test("a wallet whose making is given up in the middle is not there", { timeout: 60_000 }, async () => {
  const reason = new Error("the user left");
  for (const words of [undefined, "abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon abandon about"]) {
    const stop = new AbortController();
    const storage = asking(() => stop.abort(reason));
    const options = { bridge: devnet.bridge, federation: devnet.federation, storage, password: "pass" };
    await assert.rejects(Wallet.create({ ...options, ...(words && { words }), signal: stop.signal }), reason);
    assert.equal(await Wallet.exists({ storage }), false);
    await (await Wallet.create(options)).close();
  }
});

test("a wallet that cannot save says so, to everybody, and ends", { timeout: 60_000 }, async () => {
  let full = false;
  const storage = asking(() => {
    if (full) throw new Error("the disk is full");
  });
  const wallet = await Wallet.create({ bridge: devnet.bridge, federation: devnet.federation, storage, password: "pass" });
  await wallet.ready();
  const events = wallet.events();
  full = true;
  await assert.rejects(wallet.nextAddress(), (error) => error.code === "storage_failed" && /disk is full/.test(error.message));
  let last;
  for await (const event of events) last = event;
  assert.equal(last.type, "closed");
  assert.equal(last.error.code, "storage_failed");
  assert.equal(await wallet.connection(), "closed");
  await wallet.close();
  full = false;
  const again = await Wallet.open({ storage, password: "pass" });
  await again.ready();
  const ending = again.events();
  await again.close();
  for await (const event of ending) last = event;
  assert.deepEqual(last, { type: "closed" }, "nothing is wrong with a wallet that was closed");
});

test("a till that is kept gives no address twice, whatever happens to its page", { timeout: 60_000 }, async () => {
  const connection = { bridge: devnet.bridge, federation: devnet.federation };
  const owner = await Wallet.create({ ...connection, storage: "memory", name: "owner" });
  const { record } = owner.account;
  const storage = new MemoryStorage();
  const till = { ...connection, record, storage, password: "till" };
  const given = new Set();
  for (let sale = 0; sale < 3; sale++) {
    const wallet = await Wallet.watch(till);
    assert.ok(wallet.account.watchOnly);
    given.add(await wallet.nextAddress());
    await wallet.close();
  }
  assert.equal(given.size, 3);
  const opened = await Wallet.open({ storage, password: "till" });
  assert.ok(opened.account.watchOnly);
  assert.ok(!given.has(await opened.nextAddress()));
  await assert.rejects(opened.revealWords({ password: "till" }), { code: "watch_only" });
  await opened.close();
  const other = await Wallet.create({ ...connection, storage: "memory", name: "other" });
  await assert.rejects(Wallet.watch({ ...till, record: other.account.record }), { code: "wallet_exists" });
  await assert.rejects(Wallet.watch({ ...till, password: "wrong" }), { code: "wrong_password" });
  await assert.rejects(Wallet.watch({ ...connection, record, name: "till" }), { code: "password_required" });
  for (const wallet of [owner, other]) await wallet.close();
});

test("an error of another copy of the package keeps what it says", () => {
  const foreign = new InlineError("dust", "too little", { retryable: true, details: { least: 330n } });
  assert.ok(!(foreign instanceof QuorateError));
  const error = QuorateError.from(foreign);
  assert.deepEqual([error.code, error.retryable, error.details], ["dust", true, { least: 330n }]);
});

test("what a worker cannot have is refused with a code", async () => {
  const options = { bridge: devnet.bridge, federation: devnet.federation, password: "pass" };
  await assert.rejects(WorkerWallet.create({ ...options, storage: new MemoryStorage() }), { code: "invalid_argument" });
  await assert.rejects(WorkerWallet.create(options), { code: "worker_failed" });
});

test("what nobody can mean is refused by name before anything is done", { timeout: 60_000 }, async () => {
  const refused = { code: "invalid_argument", retryable: false };
  const options = { bridge: devnet.bridge, federation: devnet.federation, storage: "memory", name: "checked" };
  const header = "00".repeat(80);
  const wrong = [
    { bridge: undefined },
    { bridge: [] },
    { federation: 7 },
    { gaplimit: 30 },
    { gapLimit: 2.5 },
    { account: -1 },
    { words: 12 },
    { paymentMax: 1 },
    { checkpoint: { height: -1, header } },
    { checkpoint: { height: 1 } },
  ];
  for (const one of wrong) await assert.rejects(Wallet.create({ ...options, ...one }), refused, JSON.stringify(one));
  await assert.rejects(Wallet.create(), refused);
  await assert.rejects(WorkerWallet.create({ ...options, gaplimit: 30 }), refused);
  const wallet = await Wallet.create(options);
  const to = await wallet.nextAddress();
  for (const amount of [undefined, null, NaN, 0n, -1n, 1, "abc", 2_100_000_000_000_001n, 1n << 63n, 1n << 64n]) {
    await assert.rejects(wallet.paymentTo(to, { amount }), refused, String(amount));
    if (amount !== undefined) await assert.rejects(wallet.pay({ to, amount }), refused, String(amount));
  }
  await assert.rejects(wallet.paymentTo(to), refused);
  await assert.rejects(wallet.paymentTo(to, { amount: 1n, minimun: "confirmed" }), refused);
  const requests = [undefined, null, "text", [], {}, { to: 5 }, { to, amount: 1_000n, fee: 2 }, { to, feeRate: NaN }, { to, feeRate: "2" }];
  for (const request of requests) {
    for (const call of ["pay", "send", "createPsbt"]) await assert.rejects(wallet[call](request), refused, `${call} ${JSON.stringify(request?.to)}`);
  }
  await assert.rejects(wallet.pay({ to, amount: 1_000n }, { sginal: undefined }), refused);
  for (const call of ["ready", "synced", "nextAddress", "unusedAddress"]) await assert.rejects(wallet[call]({ timeout: 5 }), refused, call);
  for (const call of ["outcome", "payPsbt", "attest"]) {
    await assert.rejects(wallet[call](), refused, call);
    await assert.rejects(wallet[call]("00", { timeout: 5 }), refused, call);
  }
  await assert.rejects(wallet.backup(undefined, { word: false }), refused);
  await assert.rejects(wallet.backup(undefined, { words: "no" }), refused);
  assert.throws(() => wallet.events({ timeout: 5 }), refused);
  assert.throws(() => wallet.on("tip", () => {}, { timeout: 5 }), refused);
  await assert.rejects(wallet.bump("00".repeat(32)), refused);
  await assert.rejects(wallet.setAutoRefresh(-1), refused);
  for (const amount of ["21000000.00000001", "92233720368.54775807", "92233720368.54775808", "184467440737.09551615"]) {
    const link = `bitcoin:${to}?amount=${amount}`;
    await assert.rejects(wallet.parseDestination(link), { code: "amount_too_large" });
    await assert.rejects(wallet.pay({ to: link }), { code: "amount_too_large" });
  }
  assert.equal((await wallet.balance()).spendable, 0n, "it answers all the same");
  await wallet.close();
});

test("in a plain TypeScript project nothing is any", () => {
  mkdirSync("target", { recursive: true });
  const directory = mkdtempSync("target/plain-");
  try {
    const options = { strict: true, noEmit: true, target: "ES2022", lib: ["ES2023", "DOM"], module: "ESNext", moduleResolution: "Bundler", types: [], skipLibCheck: true };
    writeFileSync(join(directory, "tsconfig.json"), JSON.stringify({ compilerOptions: options, include: ["use.ts"] }));
    const code = `
import { OpenWallet, Wallet } from "quorate";
import { Federation } from "quorate/verify";
export async function use(wallet: Wallet, federation: Federation): Promise<bigint | undefined> {
  for await (const event of wallet.events()) if (event.type === "received") return event.amount;
  // @ts-expect-error There is no such thing.
  wallet.events().nonsense;
  // @ts-expect-error There is no such thing.
  federation.nonsense;
  // @ts-expect-error Wallets are made or opened.
  new OpenWallet();
  // @ts-expect-error Wallets are made or opened.
  new Wallet();
  return undefined;
}
`;
    writeFileSync(join(directory, "use.ts"), code);
    execFileSync("npx", ["--no-install", "tsc", "-p", directory], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
  } catch (error) {
    assert.fail(error.stdout ?? error);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
});
