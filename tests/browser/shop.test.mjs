// The example shop, as a customer has it: buys in a browser, pays with a wallet of its own, and is told, with the page open and closed.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { createECDH, createDecipheriv, hkdfSync, randomBytes } from "node:crypto";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { Wallet } from "quorate";
import { DEVNET, PATIENCE_MS, SHOTS, freePort, startBrowser } from "./support.mjs";
import { fund, spendable } from "../npm/support.mjs";

let directory, shop, payer, browser;

before(async () => {
  directory = mkdtempSync(join(tmpdir(), "quorate-shop-"));
  const [port, server, bridge, web] = await Promise.all(Array.from({ length: 4 }, freePort));
  const env = { ...process.env, QUORATE_DEVNET: DEVNET, SHOP_DIRECTORY: directory, SHOP_PORT: String(port), SHOP_SERVER_PORT: String(server), SHOP_PUSH_ANYWHERE: "1" };
  const options = ["--nodes", "4", "--bridge", `127.0.0.1:${bridge}`, "--web", `127.0.0.1:${web}`, "--pages", "examples/browser/dist"];
  const child = spawn(process.execPath, ["examples/shop/main.mjs", ...options], { env, stdio: ["ignore", "pipe", "inherit"] });
  let said = "";
  await new Promise((resolve, reject) => {
    child.once("exit", (code) => reject(new Error(`the shop ended with ${code}: ${said}`)));
    child.stdout.setEncoding("utf8").on("data", (text) => {
      said += text;
      if (said.includes("Open the shop")) resolve();
    });
  });
  child.removeAllListeners("exit");
  const find = (pattern) => said.match(pattern)?.[1] ?? "";
  shop = { child, url: `http://127.0.0.1:${port}`, server: `http://127.0.0.1:${server}`, devnet: { site: find(/wallet +(http:\S+?)\/ /), bridge: find(/bridge +(ws:\S+)/), federation: find(/id ([0-9a-f]{64})/) } };
  payer = await Wallet.create({ bridge: shop.devnet.bridge, federation: shop.devnet.federation, storage: "memory", name: "customer" });
  await payer.ready();
  for (let coin = 0; coin < 2; coin += 1) await fund(shop.devnet, await payer.nextAddress(), 500_000);
  await spendable(payer, 1_000_000n);
  browser = await startBrowser();
});
after(async () => {
  await browser?.stop();
  await payer?.close();
  if (shop !== undefined) {
    shop.child.kill("SIGTERM");
    await once(shop.child, "exit");
  }
  rmSync(directory, { recursive: true, force: true });
});

test("a customer buys, pays, and the page says so by itself", { timeout: 120_000 }, async () => {
  const page = await browser.context.newPage();
  const problems = [];
  page.on("pageerror", (error) => problems.push(error.message));
  page.on("console", (message) => message.type() === "error" && problems.push(message.text()));
  await page.goto(`${shop.url}/`);
  await page.screenshot({ path: `${SHOTS}/shop-front.png`, fullPage: true });
  await page.getByRole("button", { name: "Buy Green tea" }).click();
  await page.getByRole("heading", { name: "Pay" }).waitFor();
  await page.screenshot({ path: `${SHOTS}/shop-order.png`, fullPage: true });
  const uri = await page.getByRole("link", { name: "Open in a wallet" }).getAttribute("href");
  const { address, amount } = await payer.parseDestination(uri);
  assert.equal(amount, 18_000n);
  await payer.pay({ to: address, amount });
  await page.getByRole("heading", { name: "Thank you" }).waitFor({ timeout: PATIENCE_MS });
  await page.screenshot({ path: `${SHOTS}/shop-paid.png`, fullPage: true });
  assert.deepEqual(problems, []);
  await page.close();
});

test("a payment on the chain, which has no proof, is believed up to a limit", { timeout: 60_000 }, async () => {
  const { token } = JSON.parse(readFileSync(join(directory, "secrets.json"), "utf8"));
  const ask = async (path) => (await fetch(`${shop.server}${path}`, { headers: { authorization: `Bearer ${token}` } })).json();
  for (const [item, amount, state] of [["pen", 90_000, "partial"], ["notebook", 24_000, "paid"]]) {
    const bought = await fetch(`${shop.url}/orders`, { method: "POST", redirect: "manual", body: new URLSearchParams({ item }) });
    const order = bought.headers.get("location");
    const id = order.split("/").at(-1);
    const [, address] = /data-address>([^<]+)</.exec(await (await fetch(`${shop.url}${order}`)).text());
    // Two pages of one customer.
    const pages = [1, 2].map(() => fetch(`${shop.url}${order}/state?known=waiting`));
    await fund(shop.devnet, address, amount);
    for (const page of pages) assert.ok(["partial", "paid"].includes((await (await page).json()).state));
    assert.equal((await ask(`/v1/invoices/${id}?wait=30`)).state, "paid", "by the word of the invoice server");
    // The shop has heard of it.
    for (let heard = false; !heard; ) heard = (await ask(`/v1/deliveries?order=${id}`)).deliveries.some(({ state, type }) => state === "delivered" && type === "invoice.paid");
    assert.equal((await (await fetch(`${shop.url}${order}/state?known=none`)).json()).state, state, item);
  }
});

test("one whose page is closed is told by Web Push", { timeout: 60_000 }, async () => {
  const heard = [];
  const service = createServer(async (request, response) => {
    const pieces = [];
    for await (const piece of request) pieces.push(piece);
    heard.push({ headers: request.headers, body: Buffer.concat(pieces) });
    response.writeHead(201).end();
    service.emit("heard");
  }).listen(0, "127.0.0.1");
  await once(service, "listening");
  const bought = await fetch(`${shop.url}/orders`, { method: "POST", redirect: "manual", body: new URLSearchParams({ item: "pen" }) });
  const order = `${shop.url}${bought.headers.get("location")}`;
  const page = await (await fetch(order)).text();
  const [, address] = /data-address>([^<]+)</.exec(page);
  const customer = createECDH("prime256v1");
  customer.generateKeys();
  const auth = randomBytes(16);
  const keys = { p256dh: customer.getPublicKey("base64url"), auth: auth.toString("base64url") };
  const subscribe = (endpoint) => fetch(`${order}/push`, { method: "POST", body: JSON.stringify({ endpoint, keys }) });
  assert.equal((await subscribe("no url")).status, 400);
  assert.equal((await subscribe(`http://127.0.0.1:${service.address().port}/push/1`)).status, 204);
  const told = once(service, "heard");
  await payer.pay({ to: address, amount: 90_000n });
  await told;
  const [{ headers, body }] = heard;
  assert.equal(headers["content-encoding"], "aes128gcm");
  assert.match(headers.authorization, /^vapid /);
  const said = JSON.parse(decrypt(body, customer, auth));
  assert.deepEqual([said.title, said.url], ["Paid", new URL(order).pathname]);
  service.close();
});

test("nobody else says that an order is paid", { timeout: 60_000 }, async () => {
  const bought = await fetch(`${shop.url}/orders`, { method: "POST", redirect: "manual", body: new URLSearchParams({ item: "tea" }) });
  const order = bought.headers.get("location");
  const forged = JSON.stringify({ type: "invoice.paid", invoice: { order: order.split("/").at(-1), state: "paid" }, proofs: {}, document: "{}" });
  const headers = { "webhook-id": "msg_1", "webhook-timestamp": String(Math.floor(Date.now() / 1_000)), "webhook-signature": "v1,AAAA" };
  assert.equal((await fetch(`${shop.url}/paid`, { method: "POST", headers, body: forged })).status, 400);
  assert.equal((await fetch(`${shop.url}/paid`, { method: "POST", body: "{" })).status, 400);
  // One that has the secret, and lies.
  const { secret } = JSON.parse(readFileSync(join(directory, "secrets.json"), "utf8"));
  const { signedHeaders } = await import("../../wasm/js/dist/webhooks.js");
  const none = { tolerance: "0", received: "18000", pending: "0", missing: "0", refundable: "0", created: "", expires: "", uri: "", payments: [], refunds: [] };
  const invoice = { ...none, order: order.split("/").at(-1), address: "bcrt1p", amount: "18000", state: "paid" };
  const lie = JSON.stringify({ type: "invoice.paid", timestamp: "", sequence: 1, invoice, proofs: {}, document: await payer.federationDocument() });
  const signed = await signedHeaders([secret], "msg_2", Math.floor(Date.now() / 1_000), lie);
  assert.equal((await fetch(`${shop.url}/paid`, { method: "POST", headers: signed, body: lie })).status, 204);
  assert.match(await (await fetch(`${shop.url}${order}`)).text(), /data-state="partial"/, "it is not shown to be paid");
  for (const path of ["/orders", "/orders/none", "/nothing"]) assert.equal((await fetch(`${shop.url}${path}`)).status, 404, path);
});

/** What a browser does with a push (RFC 8188, RFC 8291). */
function decrypt(body, customer, auth) {
  const [salt, length] = [body.subarray(0, 16), body[20]];
  const [sender, sealed] = [body.subarray(21, 21 + length), body.subarray(21 + length)];
  const derive = (secret, salt, info, bytes) => Buffer.from(hkdfSync("sha256", secret, salt, info, bytes));
  const secret = derive(customer.computeSecret(sender), auth, Buffer.concat([Buffer.from("WebPush: info\0"), customer.getPublicKey(), sender]), 32);
  const [key, nonce] = [derive(secret, salt, "Content-Encoding: aes128gcm\0", 16), derive(secret, salt, "Content-Encoding: nonce\0", 12)];
  const open = createDecipheriv("aes-128-gcm", key, nonce);
  open.setAuthTag(sealed.subarray(-16));
  const padded = Buffer.concat([open.update(sealed.subarray(0, -16)), open.final()]);
  return padded.subarray(0, padded.lastIndexOf(2)).toString("utf8");
}
