// The README's five minutes: an empty Vite project, the package from its tarball, a payment that is final; in development and as built.
import assert from "node:assert/strict";
import { execFileSync, spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { after, before, test } from "node:test";
import { PATIENCE_MS, freePort, startBrowser, startDevnet } from "../browser/support.mjs";

const VITE = resolve("node_modules/vite/bin/vite.js");
let directory, devnet, browser;

/** The code of the README, with this devnet's addresses. */
function readme() {
  const [, code = ""] = /## Five minutes[^]*?```js\n([^]*?)```/.exec(readFileSync("wasm/js/README.md", "utf8")) ?? [];
  assert.match(code, /alice\.pay/);
  return code
    .replace('bridge: "ws://127.0.0.1:…", federation: "…"', `bridge: "${devnet.bridge}", federation: "${devnet.federation}"`)
    .replaceAll("http://127.0.0.1:8480", devnet.site);
}

before(async () => {
  directory = mkdtempSync(join(tmpdir(), "quorate-vite-"));
  [devnet, browser] = await Promise.all([startDevnet(), startBrowser()]);
  const [{ filename }] = JSON.parse(execFileSync("npm", ["pack", "--json", "--pack-destination", directory], { cwd: "wasm/js", encoding: "utf8" }));
  writeFileSync(join(directory, "package.json"), JSON.stringify({ name: "empty", private: true, type: "module" }));
  execFileSync("npm", ["install", "--no-audit", "--no-fund", "--silent", join(directory, filename)], { cwd: directory });
  mkdirSync(join(directory, "src"));
  writeFileSync(join(directory, "index.html"), '<!doctype html><html lang="en"><title>Empty</title><script type="module" src="/src/main.js"></script></html>');
  writeFileSync(join(directory, "src/main.js"), readme());
});
after(async () => {
  await browser?.stop();
  await devnet?.stop();
  rmSync(directory, { recursive: true, force: true });
});

async function serve(args) {
  const port = await freePort();
  const child = spawn(process.execPath, [VITE, ...args, "--port", String(port), "--strictPort", "--host", "127.0.0.1"], { cwd: directory, stdio: ["ignore", "pipe", "inherit"] });
  await new Promise((started, failed) => {
    child.once("exit", (code) => failed(new Error(`vite ended with ${code}`)));
    child.stdout.setEncoding("utf8").on("data", (text) => text.includes(String(port)) && started());
  });
  return { url: `http://127.0.0.1:${port}/`, stop: () => child.kill() };
}

async function pays(args) {
  const server = await serve(args);
  const page = await browser.context.newPage();
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
    await page.goto(server.url);
    await done;
    assert.ok(said.some((text) => text.includes("is final for the payer")), said.join("; "));
  } finally {
    await page.close();
    server.stop();
  }
}

test("an empty Vite project pays in development", { timeout: 3 * PATIENCE_MS }, () => pays([]));

test("and as it is built", { timeout: 3 * PATIENCE_MS }, async () => {
  execFileSync(process.execPath, [VITE, "build"], { cwd: directory, stdio: ["ignore", "ignore", "inherit"] });
  await pays(["preview"]);
});
