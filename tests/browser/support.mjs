// A devnet with its pages, and a browser to look at them.
import { spawn } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer as createHttpServer } from "node:http";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join, normalize } from "node:path";
import { chromium } from "playwright-core";

const target = process.env.CARGO_TARGET_DIR ?? "target";
export const DEVNET = process.env.QUORATE_DEVNET ?? join(target, "debug", "test-devnet");
/** Screenshots are kept here. */
export const SHOTS = "target/screenshots";
/** Longest wait for anything; conditions end waits much earlier. */
export const PATIENCE_MS = 30_000;

/** A free TCP port, at this moment. */
export function freePort() {
  return new Promise((resolve, reject) => {
    const server = createServer().once("error", reject);
    server.listen(0, "127.0.0.1", () => {
      const { port } = server.address();
      server.close(() => resolve(port));
    });
  });
}

/** Starts a devnet and gives its addresses. */
export async function startDevnet({ nodes = 4, pages = "examples/browser/dist", bridge, directory } = {}) {
  const bridgeAt = bridge ?? `127.0.0.1:${await freePort()}`;
  const options = ["--nodes", String(nodes), "--bridge", bridgeAt, "--pages", pages];
  if (directory) options.push("--data-dir", directory);
  const child = spawn(DEVNET, options, { stdio: ["ignore", "pipe", "inherit"] });
  const text = await new Promise((resolve, reject) => {
    let seen = "";
    child.once("error", reject);
    child.once("exit", (code) => reject(new Error(`the devnet ended with ${code}: ${seen}`)));
    child.stdout.setEncoding("utf8").on("data", (chunk) => {
      seen += chunk;
      if (seen.includes("Stop with Ctrl-C")) resolve(seen);
    });
  });
  const find = (pattern) => text.match(pattern)?.[1] ?? "";
  return {
    site: find(/wallet +(http:\S+?)\/ /),
    bridge: find(/bridge +(ws:\S+)/),
    federation: find(/id ([0-9a-f]{64})/),
    rpc: find(/chain RPC +(http:\S+)/),
    stop: () =>
      new Promise((resolve) => {
        child.removeAllListeners("exit");
        child.once("exit", resolve);
        child.kill("SIGTERM");
      }),
  };
}

/** Asks the devnet's chain. */
export async function askChain(url, method, ...params) {
  const answer = await fetch(url, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify({ id: 1, method, params }) });
  const { result, error } = await answer.json();
  if (error) throw new Error(error.message);
  return result;
}

/** What of Esplora's HTTP API it takes to leave, for any page, answered from the devnet's chain: unspent outputs alone make an address used. */
export async function serveEsplora(rpc, scriptOf) {
  const coins = async (address) => (await askChain(rpc, "scantxoutset", "start", [`raw(${scriptOf(address)})`])).unspents;
  const routes = [
    [/^\/block-height\/(\d+)$/, async (height) => askChain(rpc, "getblockhash", Number(height))],
    [/^\/blocks\/tip\/height$/, async () => String(await askChain(rpc, "getblockcount"))],
    [/^\/fee-estimates$/, async () => JSON.stringify({ 6: 2.5 })],
    [/^\/address\/(\w+)$/, async (address) => JSON.stringify({ chain_stats: { tx_count: (await coins(address)).length }, mempool_stats: { tx_count: 0 } })],
    [/^\/address\/(\w+)\/utxo$/, async (address) => JSON.stringify((await coins(address)).map(({ txid, vout, amount, height }) =>
      ({ txid, vout, value: Math.round(amount * 1e8), status: { confirmed: true, block_height: height } })))],
  ];
  const server = createHttpServer(async (request, response) => {
    response.setHeader("access-control-allow-origin", "*");
    try {
      if (request.method === "POST" && request.url === "/tx") {
        let body = "";
        for await (const chunk of request) body += chunk;
        return response.end(await askChain(rpc, "sendrawtransaction", body));
      }
      for (const [pattern, answer] of routes) {
        const found = pattern.exec(request.url ?? "");
        if (found) return response.end(await answer(found[1]));
      }
      response.writeHead(404).end("not found");
    } catch (error) {
      response.writeHead(400).end(String(error));
    }
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { url: `http://127.0.0.1:${server.address().port}`, stop: () => server.close() };
}

/** The output script of a Taproot address (BIP350), in hex. */
export function taprootScript(address) {
  const charset = "qpzry9x8gf2tvdw0s3jn54khce6mua7l";
  const digits = [...address.slice(address.lastIndexOf("1") + 2, -6)].map((character) => charset.indexOf(character));
  let bits = 0, value = 0, hex = "";
  for (const digit of digits) {
    value = (value << 5) | digit;
    bits += 5;
    if (bits >= 8) {
      bits -= 8;
      hex += ((value >> bits) & 255).toString(16).padStart(2, "0");
      value &= (1 << bits) - 1;
    }
  }
  return `5120${hex}`;
}

/** Starts Debian's Chromium with an empty profile, and perhaps an unpacked extension. */
export async function startBrowser({ extension } = {}) {
  const executablePath = process.env.CHROMIUM ?? "/usr/bin/chromium";
  if (!existsSync(executablePath)) throw new Error(`${executablePath} is missing: install chromium, or name it in CHROMIUM`);
  mkdirSync(SHOTS, { recursive: true });
  const profile = mkdtempSync(join(tmpdir(), "quorate-browser-"));
  const context = await chromium.launchPersistentContext(profile, {
    executablePath,
    headless: true,
    viewport: { width: 900, height: 900 },
    args: [
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
      ...(extension === undefined ? [] : [`--disable-extensions-except=${extension}`, `--load-extension=${extension}`]),
    ],
    ...(extension !== undefined && { ignoreDefaultArgs: ["--disable-extensions"] }),
  });
  context.setDefaultTimeout(PATIENCE_MS);
  return {
    context,
    stop: async () => {
      await context.close();
      rmSync(profile, { recursive: true, force: true });
    },
  };
}

/** Waits until all have started. If one cannot, the others are stopped: a process that stays would keep the tests from ending. */
export async function startAll(...starting) {
  const settled = await Promise.allSettled(starting);
  const failed = settled.find(({ status }) => status === "rejected");
  if (failed !== undefined) {
    await Promise.allSettled(settled.map(({ value }) => value?.stop()));
    throw failed.reason;
  }
  return settled.map(({ value }) => value);
}

const TYPES = { js: "text/javascript", wasm: "application/wasm" };

/** The package as it is built, for a page without a bundler; `files` are others by their path. */
export async function servePackage(files = {}) {
  const page = '<!doctype html><script type="importmap">{"imports":{"#platform":"/platform/web.js"}}</script>';
  const server = createHttpServer((request, response) => {
    const path = normalize(new URL(request.url ?? "/", "http://localhost").pathname);
    response.setHeader("content-type", TYPES[path.split(".").pop()] ?? "text/html");
    if (path === "/") return response.end(page);
    try {
      response.end(readFileSync(files[path] ?? join("wasm/js/dist", path)));
    } catch {
      response.writeHead(404).end();
    }
  });
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  return { url: `http://localhost:${server.address().port}/`, stop: () => server.close() };
}

/** A page whose uncaught errors fail the test. */
export async function openPage(context, url, problems) {
  const page = await context.newPage();
  page.on("pageerror", (error) => problems.push(`${url}: ${error.message}`));
  page.on("console", (message) => message.type() === "error" && problems.push(`${url}: ${message.text()}`));
  await page.goto(url);
  return page;
}

export async function shot(page, name) {
  await page.screenshot({ path: join(SHOTS, `${name}.png`), fullPage: true });
}
