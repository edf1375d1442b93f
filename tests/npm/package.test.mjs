// The package as it is published: its files, its size, and what it does in Node on a real federation.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { copyFileSync, mkdtempSync, readFileSync, readdirSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { brotliCompressSync, constants } from "node:zlib";
import * as btc from "@scure/btc-signer";
import { QuorateError, Wallet, federationDocument } from "quorate";
import * as verify from "quorate/verify";
import { startDevnet } from "../browser/support.mjs";
import { fund, spendable } from "./support.mjs";

const PACKAGE = "wasm/js";
/** What the modules may weigh, brotli, in bytes; `npm run bench` has the figures. Raise it knowingly. */
const BUDGET = JSON.parse(readFileSync("wasm/js/size-budget.json", "utf8"));
const REGTEST = { bech32: "bcrt", pubKeyHash: 0x6f, scriptHash: 0xc4, wif: 0xef };

let directory, devnet;

before(async () => {
  directory = mkdtempSync(join(tmpdir(), "quorate-npm-"));
  devnet = await startDevnet();
});
after(async () => {
  await devnet?.stop();
  rmSync(directory, { recursive: true, force: true });
  // Whatever keeps Node alive now was not closed; fails where it would hang.
  setTimeout(() => {
    console.error("something is still open:", process.getActiveResourcesInfo());
    process.exit(1);
  }, 10_000).unref();
});

const coded = (code) => (error) => error instanceof QuorateError && error instanceof Error && error.code === code;

test("the package holds what it should and nothing else", () => {
  const [{ files }] = JSON.parse(execFileSync("npm", ["pack", "--dry-run", "--json"], { cwd: PACKAGE, encoding: "utf8" }));
  const names = files.map(({ path }) => path).filter((path) => !/^dist\/[\w/-]+\.(js|js\.map|d\.ts)$/.test(path));
  assert.deepEqual(names.sort(), ["LICENSE-APACHE", "LICENSE-MIT", "README.md", "dist/quorate.wasm", "dist/verify.wasm", "package.json"]);
  const { exports } = JSON.parse(readFileSync(join(PACKAGE, "package.json"), "utf8"));
  for (const entry of Object.values(exports)) {
    for (const file of typeof entry === "string" ? [entry] : Object.values(entry)) readFileSync(join(PACKAGE, file));
  }
});

test("publint and attw find nothing wrong", () => {
  execFileSync("npx", ["--no-install", "publint", "--strict", PACKAGE], { stdio: ["ignore", "ignore", "inherit"] });
  // The two modules are files, not code: they have no types.
  const files = ["--exclude-entrypoints", "quorate.wasm", "verify.wasm"];
  execFileSync("npx", ["--no-install", "attw", "--pack", PACKAGE, "--profile", "esm-only", ...files], { stdio: ["ignore", "ignore", "inherit"] });
});

test("CommonJS can require it", () => {
  const code = "const { init, generateWords } = require('quorate'); init().then(() => process.stdout.write(String(generateWords().split(' ').length)))";
  assert.equal(execFileSync(process.execPath, ["-e", code], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] }), "12");
});

test("the inline file has everything inside", async () => {
  const alone = join(directory, "alone.mjs");
  copyFileSync(join(PACKAGE, "dist/inline.js"), alone);
  const inline = await import(alone);
  await inline.init();
  assert.equal(inline.generateWords().split(" ").length, 12);
  const wallet = await inline.Wallet.create({ bridge: devnet.bridge, federation: devnet.federation, storage: "memory" }).catch((error) => error.code);
  // A browser's file: in a runtime without sockets of its own it says that it cannot connect.
  if (typeof WebSocket === "undefined") assert.equal(wallet, "bridge_unreachable");
  else await wallet.close();
});

test("the modules need nothing but their bindings, and stay within their size", () => {
  for (const name of ["quorate", "verify"]) {
    const bytes = readFileSync(join(PACKAGE, "dist", `${name}.wasm`));
    const imports = WebAssembly.Module.imports(new WebAssembly.Module(bytes)).map(({ module }) => module);
    assert.deepEqual([...new Set(imports)], [`./${name}_bg.js`]);
    const size = brotliCompressSync(bytes, { params: { [constants.BROTLI_PARAM_QUALITY]: 11, [constants.BROTLI_PARAM_LGWIN]: 24 } }).length;
    assert.ok(size <= BUDGET[name] * 1.05, `${name}.wasm is ${size} bytes with brotli, its budget is ${BUDGET[name]} and 5 %`);
  }
});

test("no file of the package logs, evaluates text or has a global effect", () => {
  const read = (folder) =>
    readdirSync(folder, { withFileTypes: true }).flatMap((entry) =>
      entry.isDirectory() ? read(join(folder, entry.name)) : entry.name.endsWith(".js") ? [join(folder, entry.name)] : [],
    );
  for (const file of read(join(PACKAGE, "dist"))) {
    const text = readFileSync(file, "utf8").replace(/\/\*[^]*?\*\//g, "");
    assert.doesNotMatch(text, /\beval\(|new Function\(/, file);
    if (!file.includes("glue") && !/worker\.js|inline\.js/.test(file)) assert.doesNotMatch(text, /console\./, file);
  }
});

test("two wallets in Node: pay, verify, close in between, open again", { timeout: 120_000 }, async () => {
  const connection = { bridge: devnet.bridge, federation: devnet.federation };
  const options = { ...connection, directory, name: "alice", password: "pass" };
  let alice = await Wallet.create(options);
  await assert.rejects(Wallet.create(options), coded("wallet_in_use"));
  await assert.rejects(Wallet.create({ ...connection, directory, name: "x" }), coded("password_required"));
  await assert.rejects(Wallet.create({ ...options, name: "y", words: "abandon abandon" }), coded("invalid_words"));
  await assert.rejects(Wallet.create({ ...options, name: "z", federation: "00".repeat(32) }), coded("invalid_federation"));
  const bob = await Wallet.create({ ...connection, storage: "memory", name: "bob" });
  await Promise.all([alice.ready(), bob.ready()]);
  await alice.synced();
  assert.equal(await alice.connection(), "ready");
  const own = await alice.unusedAddress();
  assert.equal(await alice.unusedAddress(), own, "shown again until somebody pays to it");
  await fund(devnet, own, 500_000);
  await spendable(alice, 500_000n);
  assert.notEqual(await alice.unusedAddress(), own);
  assert.notEqual(await alice.nextAddress(), await alice.unusedAddress(), "a payer's own address is shown to nobody else");

  const to = await bob.nextAddress();
  const psbt = btc.Transaction.fromPSBT(Buffer.from(await alice.createPsbt({ to, amount: 120_000n }), "base64"));
  assert.equal(psbt.inputsLength, 1);
  assert.equal(psbt.getInput(0).witnessUtxo?.amount, 500_000n);

  const arriving = bob.paymentTo(to, { amount: 120_000n, signal: AbortSignal.timeout(30_000) });
  const states = [];
  alice.on("payment", ({ state }) => states.push(state));
  const receipt = await alice.pay({ to, amount: 120_000n });
  assert.equal(receipt.finality, "enforced");
  const arrived = await arriving;
  assert.equal(arrived.amount, 120_000n);
  assert.equal(arrived.transactions[0]?.txid, receipt.txid);
  assert.ok(["submitted", "approved", "final"].every((state) => states.includes(state)), states.join());

  assert.deepEqual(await alice.outcome(receipt.txid), receipt, "also when it has ended");
  await assert.rejects(alice.outcome("00".repeat(32)), coded("unknown_payment"));
  // What was spent since has arrived all the same.
  assert.equal((await alice.coins()).find(({ address }) => address === own), undefined);
  const spent = await alice.paymentTo(own, { amount: 500_000n });
  assert.equal(spent.amount, 500_000n);

  // An independent implementation reads the same from the proof, and so does the small verifier.
  await verify.init();
  const federation = new verify.Federation(await federationDocument(devnet.bridge), devnet.federation);
  assert.equal(federation.info.quorum, 3);
  const verified = federation.verifyProof(receipt.proof);
  const transaction = btc.Transaction.fromRaw(Buffer.from(verified.transaction, "hex"));
  assert.equal(transaction.id, receipt.txid);
  assert.equal(verified.txid, receipt.txid);
  const fee = 500_000n - verified.outputs.reduce((sum, { value }) => sum + value, 0n);
  const output = verified.outputs.find(({ address }) => address === to);
  assert.equal(output?.value, 120_000n);
  const theirs = Array.from({ length: transaction.outputsLength }, (_, vout) => transaction.getOutputAddress(vout, REGTEST));
  assert.deepEqual(verified.outputs.map(({ address }) => address), theirs);
  assert.ok(verified.deadline > 0 && verified.signers === 3, "final without a confirmation until a height");
  const forged = JSON.parse(receipt.proof);
  assert.ok(!("account" in forged), "the payee does not learn the payer's account");
  forged.spent[0].value += 1;
  assert.throws(() => federation.verifyProof(JSON.stringify(forged)), (error) => error.code === "invalid_proof");

  // Errors say what is missing, with the figures.
  await assert.rejects(alice.pay({ to, amount: 10_000_000n }), (error) => coded("insufficient_funds")(error) && error.details.spendableSat === 500_000n - 120_000n - fee);
  await assert.rejects(Wallet.create({ ...connection, storage: "memory", name: "wide", gapLimit: 0 }), coded("invalid_argument"));
  await assert.rejects(alice.pay({ to: "hello", amount: 1n }), coded("invalid_address"));
  await assert.rejects(alice.pay({ to, amount: 1n }), coded("dust"));
  await assert.rejects(alice.pay({ to }), coded("amount_missing"));

  await assert.rejects(alice.pay({ to, amount: 10_000n }, { signal: AbortSignal.abort() }), { name: "AbortError" });
  assert.equal((await alice.history()).length, 2, "what is aborted before it begins sends nothing");

  const before = [await alice.balance(), await alice.history()];
  const words = await alice.revealWords({ password: "pass" });
  await assert.rejects(alice.revealWords({ password: "wrong" }), coded("wrong_password"));
  await alice.changeUnlock({ password: "pass" }, { password: "another" });
  const waiting = assert.rejects(alice.paymentTo(own, { amount: 10_000_000n }), coded("closed"));
  await alice.close();
  await waiting;
  await assert.rejects(alice.balance(), coded("closed"));
  await assert.rejects(Wallet.open({ directory, name: "alice", password: "pass" }), coded("wrong_password"));
  await assert.rejects(Wallet.open({ directory, name: "nobody", password: "pass" }), coded("wallet_missing"));
  assert.equal(await Wallet.exists({ directory, name: "alice" }), true);
  assert.equal(await Wallet.exists({ directory, name: "nobody" }), false);

  // Without its bridge a wallet still shows what it knew.
  alice = await Wallet.open({ directory, name: "alice", password: "another", bridge: "ws://127.0.0.1:9" });
  assert.deepEqual((await alice.balance()).spendable, before[0].spendable);
  assert.deepEqual((await alice.history()).map(({ txid }) => txid), before[1].map(({ txid }) => txid));
  assert.equal(await alice.proof(receipt.txid), receipt.proof);
  assert.equal(await alice.connection(), "offline");
  await alice.ready();
  await alice.close();

  const stored = readFileSync(join(directory, "alice.wallet"), "latin1");
  const decoded = [...stored.matchAll(/"([A-Za-z0-9+/=]{40,})"/g)].map(([, text]) => Buffer.from(text ?? "", "base64").toString("latin1")).join();
  for (const secret of [words, words.split(" ").slice(0, 2).join(" "), own, receipt.txid]) {
    assert.ok(!stored.includes(secret) && !decoded.includes(secret), "stored in the clear");
  }

  // A crash in the middle of a write costs that write and nothing else.
  const path = join(directory, "alice.wallet");
  writeFileSync(path, Buffer.concat([readFileSync(path), Buffer.from([0, 0, 1, 0, 1, 2, 3])]));
  const again = await Wallet.open({ directory, name: "alice", password: "another" });
  await again.ready();
  assert.equal(await again.revealWords({ password: "another" }), words);

  const watching = await Wallet.watch({ ...connection, record: again.account.record });
  assert.equal((await watching.coins()).some(({ address: at }) => at === own), false);
  assert.notEqual(await watching.nextAddress(), own, "addresses that were used are known before one is given out");
  await spendable(watching, 1n);
  // The record does not say where the recovery key comes from; the wallet with the words does.
  const [described] = again.account.descriptor.split("#");
  assert.equal(watching.account.descriptor.split("#")[0], described.replace(/\[[0-9a-f]{8}\/87'\/1'\/0'\]/, ""));
  await assert.rejects(watching.pay({ to, amount: 1_000n }), coded("watch_only"));
  for (const wallet of [again, watching, bob]) await wallet.close();
});

test("a wallet backs itself up, refreshes what is old, and lifts what waits", { timeout: 60_000 }, async () => {
  const options = { bridge: devnet.bridge, federation: devnet.federation, storage: "memory" };
  const wallet = await Wallet.create({ ...options, name: "lifts", recoveryDelay: 1_500 });
  await wallet.ready();
  await fund(devnet, await wallet.unusedAddress(), 100_000);
  await spendable(wallet, 100_000n);
  const sheet = await wallet.backup();
  assert.ok(sheet.includes(await wallet.revealWords()) && sheet.includes(wallet.account.descriptor), sheet);
  assert.match(wallet.account.descriptor, /older\(1500\)/);
  assert.ok(!(await wallet.backup(undefined, { words: false })).includes(await wallet.revealWords()));
  const [coin] = await wallet.coins();
  assert.equal(coin.expiresAt, coin.block.height + 1_500 - 288);
  assert.equal(await wallet.refreshQuote(), undefined, "nothing is old");
  assert.equal(await wallet.refresh({ feeRate: 1 }), undefined);
  await wallet.setAutoRefresh(5);
  await wallet.setAutoRefresh(undefined);
  for (const rate of [0, 1e6]) await assert.rejects(wallet.setAutoRefresh(rate), coded("fee_rate_out_of_range"));
  const [txid] = coin.outpoint.split(":");
  await assert.rejects(wallet.bumpQuote(txid, { feeRate: 10 }), coded("nothing_to_lift"), "it is in a block");
  await assert.rejects(wallet.bump("no txid", { feeRate: 10 }), coded("invalid_argument"));

  // What it pays itself waits for a block: its change lifts it.
  const other = await Wallet.create({ ...options, name: "payee" });
  const to = await other.nextAddress();
  const inBlock = other.paymentTo(to, { amount: 20_000n, minimum: "confirmed", signal: AbortSignal.timeout(40_000) });
  for (const minimum of ["sure", "toString"]) await assert.rejects(other.paymentTo(to, { amount: 1n, minimum }), coded("invalid_argument"));
  const paid = await wallet.pay({ to, amount: 20_000n, feeRate: 1 });
  const quote = await wallet.bumpQuote(paid.txid, { feeRate: 20 });
  assert.ok(quote > 4_000n && quote < 8_000n, String(quote));
  const lifted = await wallet.bump(paid.txid, { feeRate: 20 });
  assert.equal(lifted.finality, "enforced");
  const { transactions } = await inBlock;
  assert.equal(transactions[0].txid, paid.txid);
  assert.ok((await other.history())[0].confirmations > 0, "it was not told before its block");
  for (const one of [wallet, other]) await one.close();
  await assert.rejects(Wallet.create({ ...options, name: "short", recoveryDelay: 288 }), coded("invalid_account"), "not above the margin");
});

test("a lock is held by one, anybody who closes and opens meanwhile", { timeout: 60_000 }, async () => {
  const options = { bridge: devnet.bridge, federation: devnet.federation, directory, key: new Uint8Array(32), name: "contended" };
  await (await Wallet.create(options)).close();
  let [open, opened] = [0, 0];
  const opener = async () => {
    for (let round = 0; round < 12; round += 1) {
      try {
        const wallet = await Wallet.open(options);
        open += 1;
        opened += 1;
        assert.equal(open, 1, "two have it open");
        await wallet.balance();
        open -= 1;
        await wallet.close();
      } catch (error) {
        if (error.code !== "wallet_in_use") throw error;
      }
    }
  };
  await Promise.all(Array.from({ length: 6 }, opener));
  assert.ok(opened > 0);
  assert.deepEqual(readdirSync(directory).filter((file) => file.startsWith("contended.wallet.")), [], "nothing is left behind");
});

test("opening can be given up", { timeout: 60_000 }, async () => {
  const options = { bridge: devnet.bridge, federation: devnet.federation, directory, password: "pass", name: "given-up" };
  const reason = new Error("the user left");
  await assert.rejects(Wallet.create({ ...options, signal: AbortSignal.abort(reason) }), reason);
  assert.equal(await Wallet.exists(options), false, "nothing was begun");
  // What is aborted before it begins asks nothing, and its failure is nobody's unhandled one.
  await assert.rejects(federationDocument("ws://127.0.0.1:9", { signal: AbortSignal.abort(reason) }), reason);
  const stop = new AbortController();
  const creating = Wallet.create({ ...options, bridge: "ws://127.0.0.1:9", name: "unreachable", signal: stop.signal });
  stop.abort(reason);
  await assert.rejects(creating, reason);
});

test("a lock that a dead process left is taken over by one, and one only", { timeout: 60_000 }, async () => {
  const options = { bridge: devnet.bridge, federation: devnet.federation, directory, password: "pass", name: "locked" };
  const wallet = await Wallet.create(options);
  assert.equal(await Wallet.exists(options), true, "that it is open elsewhere does not matter");
  await wallet.close();
  // The same process id, started at another time: what a container leaves behind.
  for (const left of [`${process.pid} 1`, "999999999", ""]) {
    writeFileSync(join(directory, "locked.wallet.lock"), left);
    writeFileSync(join(directory, "locked.wallet.lock.removing"), left);
    const opened = await Promise.allSettled(Array.from({ length: 8 }, () => Wallet.open(options)));
    const open = opened.filter(({ status }) => status === "fulfilled");
    for (const { value } of open) await value.close();
    assert.equal(open.length, 1, JSON.stringify(opened.map(({ reason }) => reason?.message)));
    for (const { reason } of opened) if (reason) assert.equal(reason.code, "wallet_in_use");
  }
  const left = readdirSync(directory).filter((file) => file.startsWith("locked.wallet."));
  assert.deepEqual(left, [], "nothing is left behind");
});

test("what is damaged in the middle is not cut off but said", { timeout: 60_000 }, async () => {
  const options = { bridge: devnet.bridge, federation: devnet.federation, directory, password: "pass", name: "damaged" };
  await (await Wallet.create(options)).close();
  const path = join(directory, "damaged.wallet");
  const bytes = readFileSync(path);
  bytes[40] ^= 1;
  writeFileSync(path, bytes);
  await assert.rejects(Wallet.open(options), coded("storage_damaged"));
  assert.deepEqual(readFileSync(path), bytes, "it is left as it was");
});

test("calls that overlap do not disturb each other", { timeout: 60_000 }, async () => {
  const wallet = await Wallet.create({ bridge: devnet.bridge, federation: devnet.federation, storage: "memory", name: "busy" });
  const calls = Array.from({ length: 200 }, (_, index) => [
    wallet.balance(),
    wallet.nextAddress(),
    wallet.history(),
    wallet.pay({ to: "hello", amount: BigInt(index) }).catch((error) => error.code),
  ]).flat();
  const results = await Promise.all(calls);
  const addresses = results.filter((_, index) => index % 4 === 1);
  assert.equal(new Set(addresses).size, 200, "every address is given out once");
  const events = wallet.events();
  const pair = Promise.all([events.next(), events.next()]);
  await wallet.nextAddress();
  await wallet.close();
  assert.ok((await pair).length === 2);
});
