// An invoice server: over HTTP, on SQLite and PostgreSQL, killed and started again, with receivers that fail, and with webhooks that somebody forged.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, rmSync, statSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { QuorateError, Wallet } from "quorate";
import { InvoiceServer } from "quorate/server";
import { openWebhook } from "quorate/webhooks";
import { PATIENCE_MS, freePort, startDevnet } from "../browser/support.mjs";
import { startPostgres } from "./postgres.mjs";
import { fund, spendable } from "./support.mjs";

const TOKEN = "0123456789abcdef0123456789abcdef";
const SECRET = `whsec_${Buffer.alloc(32, 7).toString("base64")}`;
const OTHER_SECRET = `whsec_${Buffer.alloc(32, 8).toString("base64")}`;

let devnet, directory, owner, payer, receiver;

before(async () => {
  directory = mkdtempSync(join(tmpdir(), "quorate-server-"));
  devnet = await startDevnet();
  const connection = { bridge: devnet.bridge, federation: devnet.federation, storage: "memory" };
  [owner, payer] = await Promise.all(["owner", "payer"].map((name) => Wallet.create({ ...connection, name })));
  await Promise.all([owner.ready(), payer.ready()]);
  for (let coin = 0; coin < 4; coin += 1) await fund(devnet, await payer.nextAddress(), 1_000_000);
  await spendable(payer, 4_000_000n);
  receiver = await startReceiver();
});
after(async () => {
  await Promise.all([owner?.close(), payer?.close()]);
  receiver?.close();
  await devnet?.stop();
  rmSync(directory, { recursive: true, force: true });
});

/** A shop that hears of its invoices. It answers as `answer` says, and keeps what it heard. */
async function startReceiver() {
  const heard = [];
  const waiters = new Set();
  const self = { heard, answer: () => 204 };
  const server = createServer(async (request, response) => {
    let body = "";
    for await (const piece of request.setEncoding("utf8")) body += piece;
    const one = { body, headers: request.headers, said: JSON.parse(body) };
    const status = self.answer(one);
    heard.push({ ...one, status });
    response.writeHead(status).end();
    for (const look of [...waiters]) look();
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  self.url = `http://127.0.0.1:${server.address().port}/paid`;
  self.close = () => server.close();
  /** The first that is taken and of this kind, since `from`. */
  self.taken = (order, type, from = 0) =>
    new Promise((resolve, reject) => {
      const late = setTimeout(() => reject(new Error(`${order} is never ${type}: ${JSON.stringify(heard.map(({ said, status }) => [said.invoice.order, said.type, status]))}`)), PATIENCE_MS);
      const look = () => {
        const found = heard.slice(from).find(({ said, status }) => status === 204 && said.invoice.order === order && said.type === type);
        if (found === undefined) return;
        waiters.delete(look);
        clearTimeout(late);
        resolve(found);
      };
      waiters.add(look);
      look();
    });
  return self;
}

const optionsFor = (database, more = {}) => ({
  ...{ bridge: devnet.bridge, federation: devnet.federation, record: owner.account.record, database, password: "stored", token: TOKEN, port: 0 },
  ...{ webhooks: [{ url: receiver.url, secrets: [SECRET] }], ...more },
});

/** Asks a server; gives status and what it says. */
async function ask(url, path, { method = "GET", body, token = TOKEN } = {}) {
  const headers = { authorization: `Bearer ${token}`, ...(body !== undefined && { "content-type": "application/json" }) };
  const answer = await fetch(`${url}${path}`, { method, headers, ...(body !== undefined && { body: typeof body === "string" ? body : JSON.stringify(body) }) });
  const text = await answer.text();
  return { status: answer.status, text, said: answer.headers.get("content-type").includes("json") ? JSON.parse(text) : undefined };
}

const coded = (code) => (error) => error instanceof QuorateError && error.code === code;
const checked = { secret: SECRET, get federation() { return devnet.federation; } };

/** The life of a server with a database: what it is told, what it tells, and that it goes on where it stopped. */
async function life(place, name) {
  const server = await InvoiceServer.start(optionsFor(place));
  const order = (number) => `${name}/${number} ü`;
  const path = (number) => `/v1/invoices/${encodeURIComponent(order(number))}`;
  const made = await ask(server.url, "/v1/invoices", { method: "POST", body: { order: order(1), amount: "20000", memo: "tea" } });
  assert.equal(made.status, 201, made.text);
  assert.deepEqual([made.said.state, made.said.amount, made.said.missing], ["waiting", "20000", "20000"]);
  const again = await ask(server.url, "/v1/invoices", { method: "POST", body: { order: order(1), amount: 30_000 } });
  assert.deepEqual([again.status, again.said], [200, made.said], "one invoice for each order");
  await assert.rejects(InvoiceServer.start(optionsFor(place)), coded("wallet_in_use"));

  // Paid while somebody waits; a receiver that fails at first is told again.
  let refusals = 1;
  receiver.answer = ({ said }) => (said.invoice.order === order(1) && refusals-- > 0 ? 500 : 204);
  const waiting = ask(server.url, `${path(1)}?wait=30`);
  await payer.pay({ to: made.said.address, amount: 20_000n });
  const paid = await waiting;
  assert.deepEqual([paid.said.state, paid.said.received], ["paid", "20000"]);
  const { body, headers } = await receiver.taken(order(1), "invoice.paid");
  const event = await openWebhook(body, headers, checked);
  assert.deepEqual([event.invoice.address, event.verified.amount, event.verified.transactions.length], [made.said.address, 20_000n, 1]);
  const attempts = receiver.heard.filter(({ said }) => said.invoice.order === order(1) && said.sequence === event.sequence);
  assert.deepEqual(attempts.map(({ status }) => status), [500, 204]);
  assert.equal(new Set(attempts.map(({ headers }) => headers["webhook-id"])).size, 1, "the same for each attempt");
  const { said: listed } = await ask(server.url, `/v1/deliveries?order=${encodeURIComponent(order(1))}`);
  assert.ok(listed.deliveries.some(({ id, state, attempts }) => id === event.id && state === "delivered" && attempts === 2), JSON.stringify(listed));

  // What is paid while it is away is told when it is back.
  const second = await server.invoices.create({ order: order(2), amount: 10_000n });
  const third = await ask(server.url, "/v1/invoices", { method: "POST", body: { order: order(3), amount: 5_000, seconds: 0 } });
  assert.ok(third.status === 201 || third.status === 200);
  await receiver.taken(order(3), "invoice.expired");
  await server.close();
  await server.ended();
  await payer.pay({ to: second.address, amount: 10_000n });
  const back = await InvoiceServer.start(optionsFor(place));
  const { body: later, headers: laterHeaders } = await receiver.taken(order(2), "invoice.paid");
  assert.equal((await openWebhook(later, laterHeaders, checked)).verified.amount, 10_000n);
  assert.deepEqual((await ask(back.url, path(1))).said.state, "paid", "kept");
  const told = receiver.heard.filter(({ said }) => said.invoice.order === order(1)).length;

  const { said: all } = await ask(back.url, "/v1/invoices?limit=2");
  assert.deepEqual([all.invoices.map((one) => one.order), all.more], [[order(1), order(2)], true]);
  const { said: rest } = await ask(back.url, `/v1/invoices?after=${encodeURIComponent(order(2))}&state=expired`);
  assert.deepEqual([rest.invoices.map((one) => one.order), rest.more], [[order(3)], false]);
  assert.match((await ask(back.url, "/v1/export?format=csv")).text, /^order,state,.*\r\n/);
  const { said: status } = await ask(back.url, "/v1/status");
  assert.deepEqual([status.invoices, status.deliveries], [{ paid: 2, expired: 1 }, { waiting: 0, undeliverable: 0, failed: 0 }]);
  assert.equal((await ask(back.url, path(3), { method: "DELETE" })).status, 200);
  assert.equal((await ask(back.url, path(3))).status, 404);
  const refund = await ask(back.url, `${path(1)}/refunded`, { method: "POST", body: { txid: "ab".repeat(32), amount: "20000" } });
  assert.equal(refund.said.state, "refunded");
  await receiver.taken(order(1), "invoice.refunded");
  assert.equal(receiver.heard.filter(({ said }) => said.invoice.order === order(1)).length, told + 1, "told once");
  await back.close();
  await assert.rejects(InvoiceServer.start({ ...optionsFor(place), password: "another" }), coded("wrong_password"));
  await assert.rejects(InvoiceServer.start({ ...optionsFor(place), record: payer.account.record }), coded("other_wallet"));
}

test("a server on SQLite", { timeout: 120_000 }, async () => {
  const place = join(directory, "made", "shop.sqlite");
  await life(place, "sqlite");
  assert.equal(statSync(place).mode & 0o077, 0, "for nobody else to read");
  writeFileSync(join(directory, "other.sqlite"), "this is no database".repeat(100));
  await assert.rejects(InvoiceServer.start(optionsFor(join(directory, "other.sqlite"))), coded("storage_failed"));
});

test("a server on PostgreSQL, which ends with its connection and goes on", { timeout: 180_000 }, async (t) => {
  const postgres = await startPostgres();
  if (postgres === undefined) {
    assert.notEqual(process.env.CI, "true", "PostgreSQL is missing, and here nothing may be skipped");
    return t.skip("PostgreSQL is not installed (Debian: apt install postgresql)");
  }
  try {
    await life(postgres.url, "postgres");
    const server = await InvoiceServer.start(optionsFor(postgres.url));
    const ended = server.ended();
    await postgres.stop();
    await assert.rejects(ended, coded("storage_failed"), "without being asked for anything");
    await assert.rejects(InvoiceServer.start(optionsFor(postgres.url)), (error) => coded("storage_failed")(error) && !error.message.includes("postgres://"));
  } finally {
    await postgres.stop();
  }
});

test("each is told in order, once, and wherever it is told now", { timeout: 120_000 }, async () => {
  const place = join(directory, "told.sqlite");
  const other = await startReceiver();
  const both = [receiver, other].map(({ url }) => ({ url, secrets: [SECRET] }));
  /** Numbers of what was taken of an order; an answer that a closing server did not hear is asked for again. */
  const heard = (of, order) => [...new Set(of.heard.filter(({ said, status }) => status === 204 && said.invoice.order === order).map(({ said }) => said.sequence))];
  // One that takes nothing holds up nobody else.
  receiver.answer = () => 503;
  let server = await InvoiceServer.start(optionsFor(place, { webhooks: both }));
  const pay = async (order, amount) => {
    const { address } = await server.invoices.create({ order, amount });
    await payer.pay({ to: address, amount });
  };
  await pay("moved", 4_000n);
  await other.taken("moved", "invoice.paid");
  await server.close();
  // Nobody is told at the first address any more: what waited for it goes to the one that there is.
  const third = await startReceiver();
  server = await InvoiceServer.start(optionsFor(place, { webhooks: [{ url: third.url, secrets: [SECRET] }] }));
  await third.taken("moved", "invoice.paid");

  // An order that was forgotten and is there again is told of with later numbers.
  const { sequence } = (await third.taken("moved", "invoice.paid")).said;
  assert.equal((await ask(server.url, "/v1/invoices/moved", { method: "DELETE" })).status, 200);
  assert.equal((await ask(server.url, "/v1/invoices/moved", { method: "DELETE" })).status, 200, "once more");
  assert.deepEqual((await ask(server.url, "/v1/deliveries?order=moved")).said.deliveries, []);
  await pay("moved", 4_000n);
  await third.taken("moved", "invoice.paid", third.heard.length);
  assert.ok(heard(third, "moved").at(-1) > sequence);

  // Time alone is no news: neither here nor after a start.
  const before = heard(third, "moved").length;
  await server.close();
  const clock = Date.now;
  Date.now = () => clock() + 3_600_000;
  try {
    server = await InvoiceServer.start(optionsFor(place, { webhooks: [{ url: third.url, secrets: [SECRET] }] }));
    await pay("later", 5_000n);
    await third.taken("later", "invoice.paid");
    assert.equal(heard(third, "moved").length, before);
    await server.close();
  } finally {
    Date.now = clock;
  }

  // What failed is told again when its owner asks for it.
  third.answer = () => 500;
  server = await InvoiceServer.start(optionsFor(place, { webhooks: [{ url: third.url, secrets: [SECRET] }] }));
  await pay("again", 6_000n);
  const waiting = async () => (await ask(server.url, "/v1/deliveries?state=waiting&order=again")).said.deliveries.find(({ type, attempts }) => type === "invoice.paid" && attempts > 0);
  let delivery;
  while ((delivery = await waiting()) === undefined);
  assert.match(delivery.failure, /500/);
  third.answer = () => 204;
  assert.equal((await ask(server.url, `/v1/deliveries/${delivery.id}/retry`, { method: "POST" })).status, 200);
  await third.taken("again", "invoice.paid");
  await server.close();
  other.close();
  third.close();
});

test("a server of its own that is killed loses nothing", { timeout: 120_000 }, async () => {
  const port = await freePort();
  const secret = join(directory, "secret");
  writeFileSync(secret, `${SECRET}\n`);
  const env = {
    ...process.env,
    ...{ QUORATE_BRIDGE: devnet.bridge, QUORATE_FEDERATION: devnet.federation, QUORATE_RECORD: owner.account.record, QUORATE_DATABASE: join(directory, "killed.sqlite") },
    ...{ QUORATE_PASSWORD: "stored", QUORATE_TOKEN: TOKEN, QUORATE_WEBHOOK: receiver.url, QUORATE_WEBHOOK_SECRET_FILE: secret, QUORATE_LISTEN: `127.0.0.1:${port}` },
  };
  const run = async (more = {}) => {
    const child = spawn(process.execPath, ["wasm/js/dist/server/cli.js"], { env: { ...env, ...more }, stdio: ["ignore", "pipe", "pipe"] });
    let said = "";
    for (const stream of [child.stdout, child.stderr]) stream.setEncoding("utf8").on("data", (text) => (said += text));
    await Promise.race([once(child.stdout, "data"), once(child, "exit")]);
    return { child, said: () => said, url: `http://127.0.0.1:${port}` };
  };
  receiver.answer = () => 503;
  const first = await run();
  assert.match(first.said(), /^listening on http:\/\/127\.0\.0\.1:\d+\n$/);
  const { said: invoice } = await ask(first.url, "/v1/invoices", { method: "POST", body: { order: "killed", amount: "7000" } });
  await payer.pay({ to: invoice.address, amount: 7_000n });
  assert.equal((await ask(first.url, "/v1/invoices/killed?wait=30")).said.state, "paid");
  first.child.kill("SIGKILL");
  await once(first.child, "exit");
  const from = receiver.heard.length;
  receiver.answer = () => 204;
  const second = await run();
  assert.match(second.said(), /^listening/);
  await receiver.taken("killed", "invoice.paid", from);
  assert.equal((await ask(second.url, "/v1/invoices/killed")).said.address, invoice.address);
  second.child.kill("SIGTERM");
  assert.deepEqual(await once(second.child, "exit"), [0, null]);

  const bad = await run({ QUORATE_TOKEN: "short" });
  if (bad.child.exitCode === null) await once(bad.child, "exit");
  assert.equal(bad.child.exitCode, 1);
  assert.match(bad.said(), /token: has to be at least 32 characters.*\(invalid_argument\)\n$/);
});

test("nobody without the token, and nothing that is not bounded", { timeout: 60_000 }, async () => {
  const server = await InvoiceServer.start(optionsFor(join(directory, "limits.sqlite"), { webhooks: [] }));
  const status = async (path, options) => (await ask(server.url, path, options)).status;
  const refused = async (body) => {
    const { status, said } = await ask(server.url, "/v1/invoices", { method: "POST", body });
    return [status, said.code];
  };
  assert.equal(await status("/v1/invoices", { token: "guessed" }), 401);
  assert.equal(await status("/v1/nothing", { token: "guessed" }), 401, "nor does it say what there is");
  assert.deepEqual((await ask(server.url, "/health", { token: "none" })).said.status, "ok");
  for (const order of ["a\u0000b", "\ud800", "line\nbreak"]) assert.deepEqual(await refused({ order, amount: "5000" }), [400, "invalid_argument"], JSON.stringify(order));
  for (const path of ["/v1/deliveries?order=%00", "/", "/v2/invoices", "/v1/invoices/none", "/v1/%ff", "//", "/v1/invoices/a/b/c"]) assert.equal(await status(path), 404, path);
  assert.deepEqual(await refused({ order: "1" }), [400, "invalid_argument"]);
  assert.deepEqual(await refused({ order: "1", amount: "-5" }), [400, "invalid_argument"]);
  assert.deepEqual(await refused({ order: "1", amount: 1.5 }), [400, "invalid_argument"]);
  assert.deepEqual(await refused({ order: "1", amount: "2100000000000001" }), [400, "invalid_argument"]);
  assert.deepEqual(await refused({ order: 1, amount: "5000" }), [400, "invalid_argument"]);
  assert.deepEqual(await refused({ order: "1", amount: "5000", colour: "red" }), [400, "invalid_argument"]);
  assert.deepEqual(await refused("[1]"), [400, "invalid_argument"]);
  assert.deepEqual(await refused("{"), [400, "invalid_argument"]);
  assert.deepEqual(await refused(`{"order": "${"x".repeat(20_000)}"}`), [413, "too_large"]);
  assert.equal(await status("/v1/invoices?limit=x"), 400);
  assert.equal(await status("/v1/invoices?state=gone"), 400);
  assert.equal(await status("/v1/deliveries/none/retry", { method: "POST" }), 404);
  // Who waits is told that it ends.
  await ask(server.url, "/v1/invoices", { method: "POST", body: { order: "1", amount: "5000" } });
  const waits = ask(server.url, "/v1/invoices/1?wait=60").catch((error) => error);
  await ask(server.url, "/v1/status");
  await server.close();
  await waits;
  for (const [options, what] of [
    [{ token: "short" }, /token/],
    [{ webhooks: [{ url: "http://shop.example/", secrets: [SECRET] }] }, /https/],
    [{ webhooks: [{ url: receiver.url, secrets: ["whsec_AAAA"] }] }, /secret/],
    [{ webhooks: [{ url: "https://user:word@shop.example/", secrets: [SECRET] }] }, /password/],
    [{ webhooks: [{ url: receiver.url, secrets: [] }] }, /secrets/],
    [{ password: "" }, /password/],
    [{ colour: "red" }, /colour/],
  ]) {
    await assert.rejects(InvoiceServer.start(optionsFor(join(directory, "limits.sqlite"), options)), (error) => coded("invalid_argument")(error) && what.test(error.message));
  }
});

test("a forged webhook is refused", { timeout: 60_000 }, async () => {
  receiver.answer = () => 204;
  const from = receiver.heard.length;
  const server = await InvoiceServer.start(optionsFor(join(directory, "forged.sqlite"), { webhooks: [{ url: receiver.url, secrets: [OTHER_SECRET, SECRET] }] }));
  const { address } = await server.invoices.create({ order: "forged", amount: 9_000n });
  await payer.pay({ to: address, amount: 9_000n });
  const { body, headers, said } = await receiver.taken("forged", "invoice.paid", from);
  await server.close();
  for (const secret of [SECRET, OTHER_SECRET, ["whsec_" + Buffer.alloc(24).toString("base64"), SECRET]]) assert.equal((await openWebhook(body, headers, { ...checked, secret })).verified.amount, 9_000n);
  assert.equal((await openWebhook(body, new Headers(Object.entries(headers).map(([name, value]) => [name, String(value)])), checked)).verified.amount, 9_000n);
  const refused = (given, code) => assert.rejects(openWebhook(given.body ?? body, given.headers ?? headers, { ...checked, ...given.options }), coded(code));
  await refused({ body: body.replace('"9000"', '"9001"') }, "invalid_webhook");
  await refused({ headers: { ...headers, "webhook-id": "msg_1" } }, "invalid_webhook");
  await refused({ headers: { ...headers, "webhook-timestamp": String(Number(headers["webhook-timestamp"]) - 1) } }, "invalid_webhook");
  await refused({ headers: { ...headers, "webhook-signature": "v1,AAAA v1,!! x" } }, "invalid_webhook");
  await refused({ headers: {} }, "invalid_webhook");
  await refused({ options: { secret: `whsec_${Buffer.alloc(32, 9).toString("base64")}` } }, "invalid_webhook");
  await refused({ options: { federation: "00".repeat(32) } }, "invalid_federation");
  await refused({ options: { secret: "whsec_short" } }, "invalid_argument");
  const clock = Date.now;
  Date.now = () => clock() + 301_000;
  try {
    await refused({}, "invalid_webhook");
  } finally {
    Date.now = clock;
  }
  // A sender that has the secret, and lies.
  const [txid, proof] = Object.entries(said.proofs)[0];
  const lie = (change) => refuseSigned(JSON.stringify({ ...said, ...change }));
  // Another digit in the last of its signatures.
  const broken = proof.replace(/([0-9a-f])([0-9a-f]{9}"[^0-9a-f]*)$/, (_, digit, rest) => `${digit === "0" ? "1" : "0"}${rest}`);
  assert.notEqual(broken, proof);
  assert.equal(await lie({ proofs: { [txid]: broken } }), "invalid_proof");
  assert.equal(await lie({ proofs: { ["00".repeat(32)]: proof } }), "invalid_proof");
  assert.equal(await lie({ document: "{}" }), "invalid_webhook");
  assert.equal(await lie({ proofs: { [txid]: 1 } }), "invalid_webhook");
  assert.equal(await lie({ invoice: undefined }), "invalid_webhook");
  for (const change of [{ sequence: "1" }, { type: "invoice.expired" }, { invoice: { ...said.invoice, payments: undefined } }, { invoice: { ...said.invoice, amount: "x" } }]) assert.equal(await lie(change), "invalid_webhook", JSON.stringify(change));
  assert.equal(await lie({ proofs: {} }), 0n, "without a proof nothing is shown");
  assert.equal(await lie({ invoice: { ...said.invoice, address: await owner.nextAddress() } }), 0n, "nor of another address");
  assert.equal((await signedAndOpened(JSON.stringify(said), { height: 10_000_000 })).verified.amount, 0n, "past its deadline only a block makes it final");
});

async function signedAndOpened(body, more = {}) {
  const { signedHeaders } = await import("../../wasm/js/dist/webhooks.js");
  return openWebhook(body, await signedHeaders([SECRET], "msg_lie", Math.floor(Date.now() / 1_000), body), { secret: SECRET, federation: devnet.federation, ...more });
}

const refuseSigned = (body) => signedAndOpened(body).then(({ verified }) => verified.amount, (error) => error.code);
