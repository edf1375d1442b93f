// Whatever a wallet waits for, in a page: a worker, the browser's database, or its module may end or never answer, and everything that waits ends all the same.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { PATIENCE_MS, servePackage, startAll, startBrowser, startDevnet } from "./support.mjs";

let devnet, browser, server, page, connection;
before(async () => {
  [devnet, browser, server] = await startAll(startDevnet(), startBrowser(), servePackage());
  page = await browser.context.newPage();
  await page.goto(server.url);
  connection = { bridge: devnet.bridge, federation: devnet.federation };
});
after(async () => {
  server?.stop();
  await browser?.stop();
  await devnet?.stop();
});

test("a worker that ends silently ends its wallet, which can be opened again", { timeout: 2 * PATIENCE_MS }, async () => {
  const said = await page.evaluate(async (connection) => {
    const { Wallet } = await import("/worker-client.js");
    const mortal = `import ${JSON.stringify(new URL("/worker.js", location.href).href)}; addEventListener("message", ({ data }) => data === "die" && close());`;
    let made;
    const worker = () => (made = new Worker(URL.createObjectURL(new Blob([mortal], { type: "text/javascript" })), { type: "module" }));
    const options = { name: "mortal", password: "pass" };
    const wallet = await Wallet.create({ ...connection, ...options }, { worker, wasm: new URL("/quorate.wasm", location.href).href });
    const events = wallet.events();
    made.postMessage("die");
    const waiting = wallet.nextAddress().catch(({ code, retryable }) => ({ code, retryable }));
    let last;
    for await (const event of events) last = event;
    const again = await Wallet.open(options);
    await again.ready();
    await again.close();
    return { waited: await waiting, last: last.type, why: last.error?.code, connection: await wallet.connection() };
  }, connection);
  assert.deepEqual(said, { waited: { code: "worker_failed", retryable: true }, last: "closed", why: "worker_failed", connection: "closed" });
});

test("a database that never answers is given up with the signal", { timeout: 2 * PATIENCE_MS }, async () => {
  const said = await page.evaluate(async (connection) => {
    const { Wallet } = await import("/index.js");
    const { open } = IDBFactory.prototype;
    IDBFactory.prototype.open = () => ({});
    try {
      const signal = AbortSignal.timeout(50);
      return await Wallet.create({ ...connection, name: "mute", password: "pass", signal }).then(() => "made", (error) => error.name);
    } finally {
      IDBFactory.prototype.open = open;
    }
  }, connection);
  assert.equal(said, "TimeoutError");
});

test("a database that is lost ends the wallet, which can be opened again at once", { timeout: 2 * PATIENCE_MS }, async () => {
  const said = await page.evaluate(async (connection) => {
    const { Wallet } = await import("/index.js");
    const options = { name: "lost", password: "pass" };
    const wallet = await Wallet.create({ ...connection, ...options });
    await wallet.ready();
    const { transaction } = IDBDatabase.prototype;
    IDBDatabase.prototype.transaction = () => {
      throw new DOMException("the connection was lost", "InvalidStateError");
    };
    const code = await wallet.nextAddress().then(() => "given", (error) => error.code);
    IDBDatabase.prototype.transaction = transaction;
    for await (const event of wallet.events()) if (event.type === "closed") break;
    const again = await Wallet.open(options);
    const address = await again.nextAddress();
    await again.close();
    return { code, given: address.startsWith("bcrt1p") };
  }, connection);
  assert.deepEqual(said, { code: "storage_failed", given: true });
});
