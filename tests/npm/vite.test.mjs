// The README's five minutes: an empty Vite project, the package from its tarball, a payment that is final; in development, as built, and as built in
// an extension.
import { execFileSync, spawn } from "node:child_process";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";
import { after, before, test } from "node:test";
import { PATIENCE_MS, freePort, startAll, startBrowser, startDevnet } from "../browser/support.mjs";
import { emptyProject, pageThatPays, readmeCode } from "./support.mjs";

const VITE = resolve("node_modules/vite/bin/vite.js");
const PAGE = '<!doctype html><html lang="en"><title>Empty</title><script type="module" src="/src/main.js"></script></html>';
let directory, devnet, browser;

before(async () => {
  directory = mkdtempSync(join(tmpdir(), "quorate-vite-"));
  [devnet, browser] = await startAll(startDevnet(), startBrowser());
  emptyProject(directory);
  mkdirSync(join(directory, "src"));
  writeFileSync(join(directory, "index.html"), PAGE);
  writeFileSync(join(directory, "src/main.js"), readmeCode(devnet));
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
  try {
    await pageThatPays(browser.context, server.url);
  } finally {
    server.stop();
  }
}

test("an empty Vite project pays in development", { timeout: 3 * PATIENCE_MS }, () => pays([]));

test("and as it is built", { timeout: 3 * PATIENCE_MS }, async () => {
  execFileSync(process.execPath, [VITE, "build"], { cwd: directory, stdio: ["ignore", "ignore", "inherit"] });
  await pays(["preview"]);
});

test("and in an extension, under the content policy of manifest version 3", { timeout: 3 * PATIENCE_MS }, async () => {
  const extension = join(directory, "extension");
  execFileSync(process.execPath, [VITE, "build", "--outDir", extension], { cwd: directory, stdio: ["ignore", "ignore", "inherit"] });
  const manifest = {
    manifest_version: 3,
    name: "Empty",
    version: "1",
    action: { default_popup: "index.html" },
    host_permissions: ["http://127.0.0.1/*"],
    content_security_policy: { extension_pages: "script-src 'self' 'wasm-unsafe-eval'; object-src 'self'" },
    background: { service_worker: "background.js" },
  };
  writeFileSync(join(extension, "manifest.json"), JSON.stringify(manifest));
  writeFileSync(join(extension, "background.js"), "");
  const chrome = await startBrowser({ extension });
  try {
    const worker = chrome.context.serviceWorkers()[0] ?? (await chrome.context.waitForEvent("serviceworker"));
    await pageThatPays(chrome.context, new URL("index.html", worker.url()).href);
  } finally {
    await chrome.stop();
  }
});
