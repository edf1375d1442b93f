// The npm package's figures, into bench/results.json: sizes and compile times against other packages, FROST and verification against JavaScript
// and WebAssembly engines, and payments in a browser. Everything is compared within one run.
import { execFileSync } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { brotliCompressSync, constants, gzipSync } from "node:zlib";
import { schnorr, schnorr_FROST as noble } from "@noble/curves/secp256k1.js";
import { FrostGroup, FrostParty, frostAggregate, init } from "../wasm/js/dist/index.js";
import * as verify from "../wasm/js/dist/verify.js";
import { servePackage, startBrowser, startDevnet } from "../tests/browser/support.mjs";

const PEERS = ["bitcoindevkit@0.1.5", "@breeztech/breez-sdk-spark@0.19.2", "tiny-secp256k1@2.2.4"];
const PAYMENTS = 200;
const MESSAGE = new TextEncoder().encode("thirty-two bytes are signed here");
const DIST = "wasm/js/dist";

const rows = [];
function row(metric, unit, value, params = {}) {
  rows.push({ suite: "npm", metric, unit, value, params });
  console.log(`${metric.padEnd(22)} ${String(Number(value.toPrecision(4))).padStart(12)} ${unit.padEnd(6)} ${Object.values(params).join(" ")}`);
}

/** CPU time of one call in microseconds: the least of several rounds, because others use this machine too. */
async function cpuMicros(call, calls) {
  let least = Infinity;
  for (let round = 0; round < 7; round += 1) {
    const start = process.cpuUsage();
    for (let at = 0; at < calls; at += 1) await call();
    const { user, system } = process.cpuUsage(start);
    least = Math.min(least, (user + system) / calls);
  }
  return least;
}

/** By nearest rank. */
const percentile = (sorted, share) => sorted[Math.ceil(share * sorted.length) - 1];

function sizes(modules) {
  for (const [name, path] of Object.entries(modules)) {
    const bytes = readFileSync(path);
    row("size", "B", bytes.length, { module: name, form: "raw" });
    row("size", "B", gzipSync(bytes, { level: 9 }).length, { module: name, form: "gzip" });
    row("size", "B", brotliCompressSync(bytes, { params: { [constants.BROTLI_PARAM_QUALITY]: 11 } }).length, { module: name, form: "brotli" });
  }
}

async function frost() {
  const [min, max] = [3, 4];
  const numbers = Array.from({ length: max }, (_, index) => index + 1);
  const identifiers = numbers.map((number) => noble.Identifier.fromNumber(number));
  const deal = noble.trustedDealer({ min, max }, identifiers);
  const key = deal.public.commitments[0];
  const verifyingShares = new Map(numbers.map((number, index) => [number, deal.public.verifyingShares[identifiers[index]]]));
  const group = new FrostGroup({ key, threshold: min, verifyingShares });
  const secrets = identifiers.slice(0, min).map((identifier) => deal.secretShares[identifier]);
  const parties = secrets.map((secret, index) => new FrostParty({ identifier: index + 1, secretShare: secret.signingShare, groupKey: key, threshold: min }));
  const whole = (sign, aggregate) => () => aggregate(sign());
  const ours = whole(
    () => {
      const commitments = new Map(parties.map((party, index) => [index + 1, party.commit()]));
      const round = { message: MESSAGE, commitments };
      return { round, shares: new Map(parties.map((party, index) => [index + 1, party.sign(round)])) };
    },
    ({ round, shares }) => frostAggregate(group, round, shares),
  );
  const theirs = whole(
    () => {
      const made = secrets.map((secret) => noble.commit(secret));
      const list = made.map(({ commitments }) => commitments);
      return { list, shares: secrets.map((secret, index) => noble.signShare(secret, deal.public, made[index].nonces, list, MESSAGE)) };
    },
    ({ list, shares }) => noble.aggregate(deal.public, list, MESSAGE, Object.fromEntries(shares.map((share, index) => [identifiers[index], share]))),
  );
  // Commitments, shares of all signers, and their sum, checked.
  const [wasm, js] = [await cpuMicros(ours, 20), await cpuMicros(theirs, 20)];
  row("frost_session_cpu", "us", wasm, { engine: "quorate", signers: min });
  row("frost_session_cpu", "us", js, { engine: "@noble/curves", signers: min });
  row("frost_session_ratio", "ratio", js / wasm, { against: "@noble/curves" });
}

async function verification(peers, { document, id, proof }) {
  const tiny = await import(createRequire(`${peers}/`).resolve("tiny-secp256k1"));
  const secret = schnorr.utils.randomSecretKey();
  const [signature, publicKey] = [schnorr.sign(MESSAGE, secret), schnorr.getPublicKey(secret)];
  await verify.init();
  const federation = new verify.Federation(document, id);
  // The account is known after the first; then one signature, the addresses and the transaction are checked.
  const cpu = {
    quorate: await cpuMicros(() => federation.verifyProof(proof), 100),
    "quorate, new federation": await cpuMicros(() => new verify.Federation(document, id).verifyProof(proof), 10),
    "@noble/curves": await cpuMicros(() => schnorr.verify(signature, MESSAGE, publicKey), 100),
    "tiny-secp256k1": await cpuMicros(() => tiny.verifySchnorr(MESSAGE, publicKey, signature), 100),
  };
  row("proof_verify_cpu", "us", cpu.quorate, { engine: "quorate/verify" });
  row("proof_verify_cpu", "us", cpu["quorate, new federation"], { engine: "quorate/verify, federation included" });
  row("bip340_verify_cpu", "us", cpu["@noble/curves"], { engine: "@noble/curves" });
  row("bip340_verify_cpu", "us", cpu["tiny-secp256k1"], { engine: "tiny-secp256k1" });
}

async function compileTimes(page, modules) {
  const times = {};
  for (const name of Object.keys(modules)) {
    const rounds = await page.evaluate(async (path) => {
      const bytes = await (await fetch(path)).arrayBuffer();
      const rounds = [];
      for (let round = 0; round < 9; round += 1) {
        const start = performance.now();
        await WebAssembly.compile(bytes.slice(0));
        rounds.push(performance.now() - start);
      }
      return rounds;
    }, `/modules/${encodeURIComponent(name)}.wasm`);
    times[name] = Math.min(...rounds);
    row("compile_ms", "ms", times[name], { module: name, in: "Chromium" });
  }
  for (const [name, path] of Object.entries(modules)) {
    const bytes = readFileSync(path);
    let least = Infinity;
    for (let round = 0; round < 9; round += 1) {
      const start = performance.now();
      await WebAssembly.compile(Uint8Array.from(bytes));
      least = Math.min(least, performance.now() - start);
    }
    row("compile_ms", "ms", least, { module: name, in: "Node" });
  }
  row("compile_ratio", "ratio", times.bitcoindevkit / times.quorate, { against: "bitcoindevkit", in: "Chromium" });
}

/** From the first call to a module that answers, each time in a new page or process: fetched or read, compiled, instantiated. */
async function initTimes(page, url) {
  const least = { Chromium: Infinity, Node: Infinity };
  const code = 'const { init } = await import("./wasm/js/dist/index.js"); const start = performance.now(); await init(); console.log(performance.now() - start);';
  for (let round = 0; round < 7; round += 1) {
    await page.goto(url);
    const took = await page.evaluate(async () => {
      const { init } = await import("/index.js");
      const start = performance.now();
      await init();
      return performance.now() - start;
    });
    least.Chromium = Math.min(least.Chromium, took);
    least.Node = Math.min(least.Node, Number(execFileSync(process.execPath, ["--input-type=module", "--eval", code], { encoding: "utf8" })));
  }
  for (const [runtime, ms] of Object.entries(least)) row("init_ms", "ms", ms, { module: "quorate", in: runtime });
}

async function payments(page, devnet) {
  const { times, proof, document } = await page.evaluate(
    async ([options, site, payments]) => {
      const { Wallet, federationDocument } = await import("/index.js");
      const [alice, bob] = await Promise.all(["alice", "bob"].map((name) => Wallet.create({ ...options, storage: "memory", name })));
      await Promise.all([alice.ready(), bob.ready()]);
      const body = JSON.stringify({ address: await alice.nextAddress(), amount: 100_000_000 });
      await fetch(`${site}/devnet/fund`, { method: "POST", headers: { "content-type": "application/json" }, body });
      for await (const event of alice.events()) if (event.type === "balance" && event.balance.spendable > 0n) break;
      const times = { payer: [], payee: [] };
      let proof;
      for (let at = 0; at < payments; at += 1) {
        const to = await bob.nextAddress();
        const start = performance.now();
        const arriving = bob.paymentTo(to, { amount: 10_000n }).then(() => times.payee.push(performance.now() - start));
        ({ proof } = await alice.pay({ to, amount: 10_000n }));
        times.payer.push(performance.now() - start);
        await arriving;
      }
      return { times, proof, document: await federationDocument(options.bridge) };
    },
    [{ bridge: devnet.bridge, federation: devnet.federation }, devnet.site, PAYMENTS],
  );
  for (const [who, all] of Object.entries(times)) {
    all.sort((left, right) => left - right);
    row("finality_p50_ms", "ms", percentile(all, 0.5), { by: who, in: "Chromium", n: 4 });
    row("finality_p99_ms", "ms", percentile(all, 0.99), { by: who, in: "Chromium", n: 4 });
  }
  return { proof, document, id: devnet.federation };
}

const directory = mkdtempSync(join(tmpdir(), "quorate-bench-"));
const started = [];
try {
  writeFileSync(join(directory, "package.json"), JSON.stringify({ name: "peers", private: true }));
  execFileSync("npm", ["install", "--ignore-scripts", "--no-audit", "--no-fund", "--silent", ...PEERS], { cwd: directory });
  const modules = {
    quorate: join(DIST, "quorate.wasm"),
    "quorate/verify": join(DIST, "verify.wasm"),
    bitcoindevkit: join(directory, "node_modules/bitcoindevkit/bitcoindevkit_bg.wasm"),
    "breez-sdk-spark": join(directory, "node_modules/@breeztech/breez-sdk-spark/web/breez_sdk_spark_wasm_bg.wasm"),
  };
  sizes(modules);
  await init();
  await frost();
  const devnet = await startDevnet();
  started.push(devnet);
  const browser = await startBrowser();
  started.push(browser);
  const server = await servePackage(Object.fromEntries(Object.entries(modules).map(([name, path]) => [`/modules/${encodeURIComponent(name)}.wasm`, path])));
  started.push(server);
  const page = await browser.context.newPage();
  await page.goto(server.url);
  await compileTimes(page, modules);
  await initTimes(page, server.url);
  await verification(directory, await payments(page, devnet));
} finally {
  for (const one of started.reverse()) await one.stop();
  rmSync(directory, { recursive: true, force: true });
}
const path = "bench/results.json";
const results = JSON.parse(readFileSync(path, "utf8"));
const commit = execFileSync("git", ["rev-parse", "--short", "HEAD"], { encoding: "utf8" }).trim();
results.rows = results.rows.filter((kept) => kept.suite !== "npm").concat(rows.map((row) => ({ ...row, commit })));
writeFileSync(path, `${JSON.stringify(results, null, 2)}\n`);
