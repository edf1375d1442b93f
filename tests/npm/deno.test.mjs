// The package from its tarball in Deno, with files to keep a wallet in. (Bun's binary is not to be had from npm alone.)
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { chmodSync, existsSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { test } from "node:test";
import { startDevnet } from "../browser/support.mjs";
import { emptyProject } from "./support.mjs";

const DENO = `node_modules/@deno/${process.platform}-${process.arch}-glibc/deno`;

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

test("a payment in Deno", { timeout: 120_000 }, async (context) => {
  const directory = mkdtempSync(join(tmpdir(), "quorate-deno-"));
  const devnet = await startDevnet();
  try {
    emptyProject(directory, "deno@2.9.6");
    writeFileSync(join(directory, "pay.mjs"), CODE);
    const deno = join(directory, DENO);
    if (!existsSync(deno) && !process.env.CI) return context.skip("npm has no Deno for this platform");
    chmodSync(deno, 0o755);
    const options = ["run", "--allow-all", "--no-remote", "pay.mjs", devnet.bridge, devnet.federation, devnet.site, join(directory, "wallets")];
    const said = execFileSync(deno, options, { cwd: directory, encoding: "utf8", timeout: 60_000 });
    assert.match(said, /enforced 5000n/);
  } finally {
    await devnet.stop();
    rmSync(directory, { recursive: true, force: true });
  }
});
