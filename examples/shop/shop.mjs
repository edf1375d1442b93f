// The shop: goods, orders, and what it hears from its invoice server. It ships when the proofs in a webhook show that enough was paid to the address that it has in its own books:
// neither the invoice server nor the bridge could make it ship for nothing. What somebody paid on the chain, without the federation, has no such proof: of that the shop takes its
// own server's word, which has verified the block, up to a limit.
import { randomUUID } from "node:crypto";
import { EventEmitter, once } from "node:events";
import { createServer } from "node:http";
import { join } from "node:path";
import webPush from "web-push";
import { openWebhook } from "quorate/webhooks";
import { Orders } from "./orders.mjs";
import { SCRIPT, WORKER, front, missing, order as orderPage } from "./pages.mjs";

const GOODS = new Map([
  ["tea", { name: "Green tea", amount: 18_000n }],
  ["notebook", { name: "Notebook", amount: 24_000n }],
  ["pen", { name: "Fountain pen", amount: 90_000n }],
]);
/** In satoshis, what is believed of payments in blocks. */
const BELIEVED_MAX = 50_000n;
const BODY_MAX = 1 << 20;
/** Orders that wait to be paid: each has an address that is watched, and anybody can make them. */
const OPEN_MAX = 1_000;
/** Push services of the browsers that there are: the shop calls nobody else for a stranger. */
const PUSH_SERVICES = /^(fcm\.googleapis\.com|[\w-]+\.push\.services\.mozilla\.com|[\w.-]+\.notify\.windows\.com|[\w.-]+\.push\.apple\.com)$/;
const WAIT_MS = 25_000;
/** Nobody's page needs more, and nobody else's may show it. */
const HEADERS = { "content-security-policy": "default-src 'self'; style-src 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'", "x-content-type-options": "nosniff", "referrer-policy": "no-referrer" };

/**
 * Starts the shop.
 *
 * @param options - `server` and `token` of its invoice server, `federation`, the webhook's `secret`, `directory` of its books, `port`, and `push`: keys of Web Push (VAPID), if
 * customers may be told when their page is closed.
 */
export async function startShop({ server, token, federation, secret, directory, port = 8_491, push }) {
  const orders = new Orders(join(directory, "orders.sqlite"));
  /** Orders that stand otherwise. */
  const changed = new EventEmitter().setMaxListeners(0);

  async function buy(item) {
    const { name, amount } = GOODS.get(item);
    if (orders.waiting(new Date()) >= OPEN_MAX) throw new Busy("too many orders wait to be paid");
    const id = randomUUID();
    const body = JSON.stringify({ order: id, amount: String(amount), memo: name });
    const answer = await fetch(`${server}/v1/invoices`, { method: "POST", headers: { authorization: `Bearer ${token}`, "content-type": "application/json" }, body, signal: AbortSignal.timeout(40_000) });
    if (!answer.ok) throw new Error(`the invoice server answered with ${answer.status}`);
    const { address, uri, expires } = await answer.json();
    orders.add({ id, item: name, amount, address, uri, expires });
    return id;
  }

  /** What the invoice server says: believed as far as its proofs go. */
  async function paid(body, headers) {
    const event = await openWebhook(body, headers, { secret, federation });
    const order = orders.get(event.invoice.order);
    if (order === undefined) return;
    let { state } = event.invoice;
    const mined = event.invoice.payments.filter(({ finality, height }) => finality === undefined && height !== undefined).reduce((sum, { amount }) => sum + BigInt(amount), 0n);
    const shown = event.verified.amount + (mined <= BELIEVED_MAX ? mined : 0n);
    if (isPaid(state) && (event.invoice.address !== order.address || shown < BigInt(order.amount))) {
      console.error(`order ${order.id}: said to be paid, and not shown to be; look at it`);
      state = "partial";
    }
    if (!orders.stand(order.id, state, event.sequence)) return;
    changed.emit(order.id);
    // Once, and nobody waits for it: the page has it, too.
    if (isPaid(state) && !isPaid(order.state) && order.push !== null) notify(JSON.parse(order.push), order).catch(() => undefined);
  }

  async function notify(subscription, { id, item }) {
    const message = JSON.stringify({ title: "Paid", body: `Your payment for ${item} is final.`, url: `/orders/${id}` });
    const { endpoint, headers, body } = webPush.generateRequestDetails(subscription, message, { vapidDetails: push, TTL: 3_600, contentEncoding: "aes128gcm" });
    await fetch(endpoint, { method: "POST", headers, body, redirect: "manual", signal: AbortSignal.timeout(10_000) });
  }

  /** Waits until an order stands otherwise than its page says. */
  async function news(id, known, response) {
    const gone = new AbortController();
    response.once("close", () => gone.abort());
    const signal = AbortSignal.any([gone.signal, AbortSignal.timeout(WAIT_MS)]);
    if (orders.get(id).state === known) await once(changed, id, { signal }).catch(() => undefined);
    return { state: orders.get(id).state };
  }

  async function handle(request, response) {
    if (!URL.canParse(request.url, "http://shop")) throw new Refused("there is no such address");
    const { pathname, searchParams } = new URL(request.url, "http://shop");
    const send = (status, type, body, more = {}) => response.writeHead(status, { "content-type": type, ...HEADERS, ...more }).end(body);
    const html = (body, status = 200) => send(status, "text/html; charset=utf-8", body, { "cache-control": "no-store" });
    const [, kind, id, action] = pathname.split("/");
    if (request.method === "GET" && pathname === "/") return html(front(GOODS));
    if (request.method === "GET" && pathname === "/order.js") return send(200, "text/javascript", SCRIPT);
    if (request.method === "GET" && pathname === "/push.js") return send(200, "text/javascript", WORKER);
    if (request.method === "POST" && pathname === "/paid") {
      await paid(await read(request), request.headers);
      return response.writeHead(204).end();
    }
    if (request.method === "POST" && pathname === "/orders") {
      const item = new URLSearchParams(await read(request)).get("item") ?? "";
      if (!GOODS.has(item)) return html(missing(), 404);
      return response.writeHead(303, { location: `/orders/${await buy(item)}` }).end();
    }
    const order = kind === "orders" && id !== undefined ? orders.get(id) : undefined;
    if (order === undefined) return html(missing(), 404);
    if (request.method === "GET" && action === undefined) return html(orderPage(order, { pushKey: push?.publicKey ?? "" }));
    if (request.method === "GET" && action === "state") return send(200, "application/json", JSON.stringify(await news(id, searchParams.get("known"), response)));
    if (request.method === "POST" && action === "push" && push !== undefined) {
      orders.setPush(id, subscriptionOf(await read(request)));
      return response.writeHead(204).end();
    }
    return html(missing(), 404);
  }

  const http = createServer((request, response) =>
    handle(request, response).catch((error) => {
      // What comes from outside and is not good is no news for the log, nor is one that has gone.
      const isOutside = error instanceof Refused || ["invalid_webhook", "invalid_proof", "invalid_federation"].includes(error.code);
      if (!isOutside && !(error instanceof Busy) && !request.destroyed) console.error(error);
      if (!response.headersSent) response.writeHead(isOutside ? 400 : 503, { "content-type": "text/plain" }).end(isOutside ? `${error.message}\n` : "try again in a moment\n");
    }),
  );
  http.listen(port, "127.0.0.1");
  await once(http, "listening");
  return {
    url: `http://127.0.0.1:${http.address().port}`,
    async close() {
      http.close();
      http.closeAllConnections();
      orders.close();
    },
  };
}

class Refused extends Error {}
class Busy extends Error {}

const isPaid = (state) => state === "paid" || state === "overpaid";

async function read(request) {
  const pieces = [];
  let length = 0;
  for await (const piece of request) {
    if ((length += piece.length) > BODY_MAX) throw new Refused("the request is too large");
    pieces.push(piece);
  }
  return Buffer.concat(pieces).toString("utf8");
}

/** What a browser says of itself. */
function subscriptionOf(text) {
  try {
    const { endpoint, keys: { p256dh, auth } } = JSON.parse(text);
    const { protocol, hostname } = new URL(endpoint);
    const isKnown = protocol === "https:" && PUSH_SERVICES.test(hostname);
    if (!isKnown && process.env.SHOP_PUSH_ANYWHERE !== "1") throw new Error("it is of no push service that this shop knows");
    if (Buffer.from(p256dh, "base64url").length !== 65 || Buffer.from(auth, "base64url").length !== 16) throw new Error("its keys are none");
    return { endpoint, keys: { p256dh, auth } };
  } catch (error) {
    throw new Refused(`the push subscription is refused: ${error.message}`);
  }
}
