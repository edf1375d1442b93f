// Empty projects with the package from its tarball, and the README's code in them.
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { PATIENCE_MS } from "../browser/support.mjs";

/** Makes an empty project that has the package, and others. */
export function emptyProject(directory, ...packages) {
  const [{ filename }] = JSON.parse(execFileSync("npm", ["pack", "--json", "--pack-destination", directory], { cwd: "wasm/js", encoding: "utf8" }));
  writeFileSync(join(directory, "package.json"), JSON.stringify({ name: "empty", private: true, type: "module" }));
  execFileSync("npm", ["install", "--no-audit", "--no-fund", "--silent", ...packages, join(directory, filename)], { cwd: directory });
}

/** The README's five minutes, with this devnet's addresses. */
export function readmeCode(devnet) {
  const [, code = ""] = /## Five minutes[^]*?```js\n([^]*?)```/.exec(readFileSync("wasm/js/README.md", "utf8")) ?? [];
  assert.match(code, /alice\.pay/);
  return code
    .replace('bridge: "ws://127.0.0.1:…", federation: "…"', `bridge: "${devnet.bridge}", federation: "${devnet.federation}"`)
    .replaceAll("http://127.0.0.1:8480", devnet.site);
}

/** Opens a page that runs the README's code, and waits until payer and payee have said that the payment is final. */
export async function pageThatPays(context, url) {
  const page = await context.newPage();
  try {
    const said = [];
    const done = new Promise((resolve, reject) => {
      page.on("console", (message) => {
        said.push(message.text());
        if (message.text().includes("verified by the payee")) resolve();
      });
      page.on("pageerror", (error) => reject(error));
      setTimeout(() => reject(new Error(`no payment; the page said: ${said.join("; ")}`)), PATIENCE_MS).unref();
    });
    await page.goto(url);
    await done;
    assert.ok(said.some((text) => text.includes("is final for the payer")), said.join("; "));
  } finally {
    await page.close();
  }
}

/** Play money for an address, in a block. */
export async function fund(devnet, address, amount) {
  const body = JSON.stringify({ address, amount });
  const answer = await fetch(`${devnet.site}/devnet/fund`, { method: "POST", headers: { "content-type": "application/json" }, body });
  assert.ok(answer.ok, await answer.text());
}

/** Waits until a wallet can spend so much. */
export async function spendable(wallet, amount) {
  const enough = async () => (await wallet.balance()).spendable >= amount;
  const events = wallet.events({ signal: AbortSignal.timeout(PATIENCE_MS) });
  while (!(await enough())) assert.ok(!(await events.next()).done, "the money does not arrive");
  await events.return();
}
