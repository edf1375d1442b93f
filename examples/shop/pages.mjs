// What customers see. It works without JavaScript; with it, the page notices by itself that the payment is final, and can be closed meanwhile.
import { renderSVG } from "uqr";

const STYLE = `
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; background: light-dark(#f4f6f4, #101514); color: light-dark(#14201c, #e8efec); }
* { box-sizing: border-box; } body { margin: 0 auto; max-width: 34rem; padding: 1rem; } h1 { font-size: 1.5rem; line-height: 1.2; }
.card { background: light-dark(#fff, #19211f); border: 1px solid light-dark(#d8dfdb, #2d3936); border-radius: 1rem; padding: 1.25rem; margin-top: 1rem; display: grid; gap: 0.8rem; }
.row { display: flex; justify-content: space-between; align-items: center; gap: 1rem; } .mono { font: 0.875rem/1.5 ui-monospace, monospace; overflow-wrap: anywhere; }
p { margin: 0; } .soft { color: light-dark(#51625b, #9db0a8); } .qr { background: #fff; padding: 0.5rem; border-radius: 0.8rem; max-width: 17rem; margin: 0 auto; } .qr svg { display: block; width: 100%; }
button, a.button { font: inherit; font-weight: 600; padding: 0.7rem 1.1rem; border: 0; border-radius: 0.7rem; background: light-dark(#17614f, #5fd0b1); color: light-dark(#fff, #08201a); cursor: pointer; text-decoration: none; text-align: center; }
button.quiet { background: none; color: inherit; border: 1px solid currentColor; } :focus-visible { outline: 3px solid currentColor; outline-offset: 2px; }`;

const ICON = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 9 9'%3E%3Ccircle cx='4.5' cy='4.5' r='4' fill='%2317614f'/%3E%3C/svg%3E";

export const escape = (text) => String(text).replace(/[&<>"']/g, (letter) => `&#${letter.charCodeAt(0)};`);
const sats = (amount) => `${String(amount).replace(/\B(?=(\d{3})+$)/g, " ")} sat`;

function page(title, body, script = "") {
  return `<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1"><title>${escape(title)}</title><link rel="icon" href="${ICON}"><style>${STYLE}</style>
<body><header class="row"><strong>Tea and paper</strong></header><main>${body}</main>${script}</body></html>`;
}

/** What is sold. */
export function front(goods) {
  const cards = [...goods].map(
    ([id, { name, amount }]) => `<form class="card" method="post" action="/orders"><div class="row"><h2>${escape(name)}</h2><span>${sats(amount)}</span></div>
<input type="hidden" name="item" value="${escape(id)}"><button>Buy ${escape(name)}</button></form>`,
  );
  return page("Tea and paper", `<h1>What we have</h1>${cards.join("")}`);
}

const STANDS = {
  paid: ["Thank you", "Your payment is final. This server has verified that by the federation's signatures, and your order is on its way."],
  overpaid: ["Thank you", "Your payment is final, and more than we asked for. Write to us, and we pay the rest back."],
  partial: ["Not all of it", "Something arrived, and it is not all. Pay the rest to the same address."],
  late: ["Too late", "Your payment arrived after its time. Write to us, and we pay it back or send your order."],
  expired: ["Its time is over", "Nothing was paid. Order again if you like."],
  cancelled: ["Cancelled", "This order was cancelled."],
  refunded: ["Paid back", "Your money is on its way back."],
};

/** An order, as it stands. */
export function order({ id, item, amount, address, uri, state }, { pushKey }) {
  const [title, text] = STANDS[state] ?? ["Pay", "Scan it with your wallet, or open it there. A payment takes a second."];
  const open = state === "waiting" || state === "partial";
  const pay = open
    ? `<div class="qr" role="img" aria-label="QR code of the payment">${renderSVG(uri)}</div><p class="mono" data-address>${escape(address)}</p><a class="button" href="${escape(uri)}">Open in a wallet</a>
<button class="quiet" hidden data-push="${escape(pushKey)}">Tell me when this page is closed</button>`
    : `<a class="button" href="/">Back to the shop</a>`;
  const body = `<section class="card"><div class="row"><h1>${escape(title)}</h1><span>${sats(amount)}</span></div><p role="status" data-state="${escape(state)}">${escape(text)}</p>${pay}<p class="soft">Order ${escape(id)}: ${escape(item)}</p></section>`;
  return page(title, body, open ? `<script type="module" src="/order.js"></script>` : "");
}

export function missing() {
  return page("Nothing here", `<section class="card"><h1>There is nothing here</h1><a class="button" href="/">Back to the shop</a></section>`);
}

/** Waits for news of the order, and asks to be told of it later. */
export const SCRIPT = `
const path = location.pathname;
const { state } = document.querySelector("[data-state]").dataset;
const button = document.querySelector("[data-push]");
if ("PushManager" in globalThis && button.dataset.push !== "") {
  button.hidden = false;
  button.onclick = async () => {
    button.disabled = true;
    try {
      const worker = await navigator.serviceWorker.register("/push.js");
      const subscription = await worker.pushManager.subscribe({ userVisibleOnly: true, applicationServerKey: button.dataset.push });
      const answer = await fetch(path + "/push", { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(subscription) });
      button.textContent = answer.ok ? "You will be told" : "Keep this page open: you cannot be told otherwise";
    } catch {
      button.textContent = "Keep this page open: this browser does not want it otherwise";
    }
  };
}
for (;;) {
  try {
    const answer = await fetch(path + "/state?known=" + state);
    if (answer.ok && (await answer.json()).state !== state) location.reload();
  } catch {
    await new Promise((resolve) => setTimeout(resolve, 2000));
  }
}`;

/** Shows what the shop says when no page is open. */
export const WORKER = `
self.addEventListener("push", (event) => {
  const { title, body, url } = event.data.json();
  event.waitUntil(self.registration.showNotification(title, { body, data: url, tag: url }));
});
self.addEventListener("notificationclick", (event) => {
  event.notification.close();
  event.waitUntil(self.clients.openWindow(event.notification.data));
});`;
