// The package from its tarball in Deno, with files to keep a wallet in. (Bun's binary is not to be had from npm alone.)
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { chmodSync, existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { test } from "node:test";
import { startDevnet } from "../browser/support.mjs";

const DENO = resolve(`node_modules/@deno/${process.platform}-${process.arch}-glibc/deno`);

const CODE = `
import { Wallet } from "quorate";
const [bridge, federation, site, directory] = Deno.args;
const options = { bridge, federation, directory, name: "alice", password: "p" };
let alice = await Wallet.create(options);
await alice.ready();
const body = JSON.stringify({ address: await alice.nextAddress(), amount: 1_000_000 });
await fetch(site + "/devnet/fund", { method: "POST", headers: { "content-type": "application/json" }, body });
for await (const event of alice.events()) if (event.type === "balance" && event.balance.spendable > 0n) break;
await alice.close();
alice = await Wallet.open(options);
const bob = await Wallet.create({ bridge, federation, storage: "memory", name: "bob" });
await Promise.all([alice.ready(), bob.ready()]);
const to = await bob.nextAddress();
const arriving = bob.paymentTo(to, { amount: 5_000n });
const { finality } = await alice.pay({ to, amount: 5_000n });
console.log(finality, (await arriving).amount);
await alice.close();
await bob.close();
`;

const missing = !existsSync(DENO) && !process.env.CI ? "there is no Deno for this platform in node_modules" : false;

test("a payment in Deno", { timeout: 90_000, skip: missing }, async () => {
  const directory = mkdtempSync(join(tmpdir(), "quorate-deno-"));
  const devnet = await startDevnet();
  try {
    const [{ filename }] = JSON.parse(execFileSync("npm", ["pack", "--json", "--pack-destination", directory], { cwd: "wasm/js", encoding: "utf8" }));
    writeFileSync(join(directory, "package.json"), JSON.stringify({ name: "empty", private: true, type: "module" }));
    execFileSync("npm", ["install", "--no-audit", "--no-fund", "--silent", join(directory, filename)], { cwd: directory });
    writeFileSync(join(directory, "pay.mjs"), CODE);
    chmodSync(DENO, 0o755);
    const options = ["run", "--allow-all", "--no-remote", "pay.mjs", devnet.bridge, devnet.federation, devnet.site, join(directory, "wallets")];
    const said = execFileSync(DENO, options, { cwd: directory, encoding: "utf8", timeout: 60_000 });
    assert.match(said, /enforced 5000n/);
  } finally {
    await devnet.stop();
    rmSync(directory, { recursive: true, force: true });
  }
});
