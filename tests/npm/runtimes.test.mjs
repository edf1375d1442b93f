// The package from its tarball in the runtimes beside Node and browsers: a payment in each.
import assert from "node:assert/strict";
import { execFile, execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { chmodSync, existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { promisify } from "node:util";
import { startDevnet } from "../browser/support.mjs";
import { emptyProject } from "./support.mjs";

/** Where npm puts each program of this platform. */
const PROGRAMS = {
  deno: `@deno/${process.platform}-${process.arch}-glibc/deno`,
  bun: `@oven/bun-${process.platform}-${process.arch === "arm64" ? "aarch64" : process.arch}/bin/bun`,
  workerd: `@cloudflare/workerd-${process.platform}-${process.arch === "x64" ? "64" : process.arch}/bin/workerd`,
};
const LIMIT_MS = 120_000;

/** Two wallets, of which one is closed and opened again in between, and a payment; keeps the first in files where there are any. */
const PAY = `
import { Wallet } from "quorate";
export async function pay([bridge, federation, site, directory]) {
  const options = { bridge, federation, name: "alice", ...(directory ? { directory, password: "p" } : { storage: "memory" }) };
  let alice = await Wallet.create(options);
  await alice.ready();
  const body = JSON.stringify({ address: await alice.nextAddress(), amount: 1_000_000 });
  await fetch(site + "/devnet/fund", { method: "POST", headers: { "content-type": "application/json" }, body });
  for await (const event of alice.events()) if (event.type === "balance" && event.balance.spendable > 0n) break;
  if (directory) {
    await alice.close();
    alice = await Wallet.open(options);
  }
  const bob = await Wallet.create({ bridge, federation, storage: "memory", name: "bob" });
  await Promise.all([alice.ready(), bob.ready()]);
  const to = await bob.nextAddress();
  const arriving = bob.paymentTo(to, { amount: 5_000n });
  const { finality } = await alice.pay({ to, amount: 5_000n });
  const said = finality + " " + (await arriving).amount;
  await alice.close();
  await bob.close();
  return said;
}
`;
const COMMAND = `import process from "node:process"; import { pay } from "./pay.mjs"; console.log(await pay(process.argv.slice(2)));`;
const WORKER = `
import { pay } from "./pay.mjs";
export default { fetch: async (request) => new Response(await pay(await request.json()).catch((error) => error.stack)) };
`;

let directory, devnet;

before(async () => {
  directory = mkdtempSync(join(tmpdir(), "quorate-runtimes-"));
  devnet = await startDevnet();
  // Their programs come as packages of their own, so their own set-up, which may want to download, need not run.
  emptyProject(directory, "--ignore-scripts", "deno@2.9.6", "bun@1.4.5", "workerd@1.20261117.1");
  writeFileSync(join(directory, "pay.mjs"), PAY);
  writeFileSync(join(directory, "command.mjs"), COMMAND);
  writeFileSync(join(directory, "worker.mjs"), WORKER);
});
after(async () => {
  await devnet?.stop();
  rmSync(directory, { recursive: true, force: true });
});

/** The runtime's program; without one for this platform the test is skipped, except in CI. */
function program(context, name) {
  const path = join(directory, "node_modules", PROGRAMS[name]);
  if (!existsSync(path) && !process.env.CI) return context.skip(`npm has no ${name} for this platform`);
  chmodSync(path, 0o755);
  return path;
}

async function command(context, name, ...options) {
  const path = program(context, name);
  if (path === undefined) return;
  const kept = join(directory, `wallets-${name}`);
  const args = [...options, "command.mjs", devnet.bridge, devnet.federation, devnet.site, kept];
  const { stdout } = await promisify(execFile)(path, args, { cwd: directory, timeout: LIMIT_MS });
  assert.equal(stdout.trim(), "enforced 5000");
}

test("a payment in Deno", { timeout: LIMIT_MS }, (context) => command(context, "deno", "run", "--allow-all", "--no-remote"));

test("a payment in Bun", { timeout: LIMIT_MS }, (context) => command(context, "bun", "run"));

test("a payment in a Cloudflare worker", { timeout: LIMIT_MS }, async (context) => {
  const path = program(context, "workerd");
  if (path === undefined) return;
  // What a bundler for workers does: one file, and the modules beside it as modules.
  const bundle = ["worker.mjs", "--bundle", "--format=esm", "--conditions=workerd", "--loader:.wasm=copy", "--asset-names=[name]", "--outdir=worker"];
  execFileSync(join(process.cwd(), "node_modules/.bin/esbuild"), [...bundle, "--log-level=error"], { cwd: directory });
  writeFileSync(join(directory, "workerd.capnp"), `
using Workerd = import "/workerd/workerd.capnp";
const config :Workerd.Config = (
  services = [
    ( name = "wallet", worker = (
      modules = [
        ( name = "worker.js", esModule = embed "worker/worker.js" ),
        ( name = "quorate.wasm", wasm = embed "worker/quorate.wasm" ),
        ( name = "verify.wasm", wasm = embed "worker/verify.wasm" ),
      ],
      compatibilityDate = "2026-11-01",
    ) ),
    ( name = "internet", network = ( allow = ["local"] ) ),
  ],
  sockets = [ ( name = "http", address = "127.0.0.1:0", http = (), service = "wallet" ) ],
);
`);
  const child = spawn(path, ["serve", "--control-fd=3", "workerd.capnp"], { cwd: directory, stdio: ["ignore", "inherit", "inherit", "pipe"] });
  try {
    const body = JSON.stringify([devnet.bridge, devnet.federation, devnet.site]);
    // It says on which port it listens.
    const [told] = await Promise.race([once(child.stdio[3], "data"), once(child, "exit").then(([code]) => assert.fail(`workerd ended with ${code}`))]);
    const answer = await fetch(`http://127.0.0.1:${JSON.parse(told).port}/`, { method: "POST", body });
    assert.equal(await answer.text(), "enforced 5000");
  } finally {
    child.kill();
  }
});
