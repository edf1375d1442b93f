/// <reference lib="esnext.disposable" preserve="true" />
/**
 * What a shop hears of its invoices from `quorate/server`, and how it checks it: who sent it, by its signature (as Standard Webhooks has it), and that the payment is final, by the
 * proofs that it carries. Needs `quorate/verify` alone, and runs wherever WebCrypto does.
 *
 * @example
 * ```ts no-run
 * import { openWebhook } from "quorate/webhooks";
 * declare const orders: { get(order: string): Promise<{ address: string; amount: bigint }>; shipOnce(order: string): Promise<void> };
 * export async function POST(request: Request): Promise<Response> {
 *   const event = await openWebhook(await request.text(), request.headers, { secret: "whsec_…", federation: id });
 *   const order = await orders.get(event.invoice.order);
 *   const isPaid = event.invoice.state === "paid" || event.invoice.state === "overpaid";
 *   // It is told again when something else changes, such as what was paid back.
 *   if (isPaid && event.invoice.address === order.address && event.verified.amount >= order.amount) await orders.shipOnce(event.invoice.order);
 *   return new Response();
 * }
 * ```
 *
 * @packageDocumentation
 */
import { checkCount, checkOptions, checkText, refuse } from "./checks.js";
import { QuorateError } from "./errors.js";
import type { Invoice, InvoiceState } from "./invoice.js";
import type { Finality } from "./types.js";
import { Federation, init, type FinalTransaction } from "./verify.js";

/** An invoice as JSON has it: amounts in satoshis as decimal numbers, times in UTC (ISO 8601). */
export interface InvoiceData {
  readonly order: string;
  readonly state: InvoiceState;
  readonly address: string;
  readonly uri: string;
  readonly amount: string;
  readonly tolerance: string;
  readonly minimum: Invoice["minimum"];
  readonly received: string;
  readonly pending: string;
  readonly missing: string;
  readonly refundable: string;
  readonly created: string;
  readonly expires: string;
  readonly cancelled?: string;
  readonly memo?: string;
  readonly fiat?: Invoice["fiat"];
  readonly payments: readonly { readonly outpoint: string; readonly amount: string; readonly at: string; readonly finality?: Finality; readonly height?: number; readonly good: boolean }[];
  readonly refunds: readonly { readonly id: string; readonly txid?: string; readonly amount: string }[];
}

/** What a server says of an invoice. */
export interface WebhookBody {
  /** `invoice.` and its state. */
  readonly type: `invoice.${InvoiceState}`;
  /** When it was written. */
  readonly timestamp: string;
  /** Counts up with each that is said of this invoice: one with a lower number is older, whenever it comes. */
  readonly sequence: number;
  readonly invoice: InvoiceData;
  /** By txid, the finality proof (JSON) of what is final of its payments. What is only in a block has none. */
  readonly proofs: Readonly<Record<string, string>>;
  /** The federation's document (JSON), which is checked against the id that the receiver pins. */
  readonly document: string;
}

/** What was received, with what of it was checked. */
export interface WebhookEvent extends WebhookBody {
  /** The same for each attempt to deliver it: take in each id once. */
  readonly id: string;
  /** What its proofs show, whoever sent it. Compare address and amount with what you know of the order. */
  readonly verified: {
    /**
     * Sum of what final transactions pay to the invoice's address, in satoshis, as certain as `minimum` asks for. What only a block makes final is not in it, for it has no such
     * proof: paid on the chain, or enforced below a height that is past.
     */
    readonly amount: bigint;
    readonly transactions: readonly FinalTransaction[];
  };
}

/** How to open what was received. */
export interface WebhookOptions {
  /** As the server has it; several while it changes. */
  readonly secret: string | readonly string[];
  /** Id of the federation, 64 hex digits, from a source that you trust. */
  readonly federation: string;
  /** How old it may be, in seconds: an old one may be sent again by whoever has seen it. @defaultValue 300 */
  readonly seconds?: number;
  /** The least that counts. `"attested"` takes the nodes' word for what its payer alone can sign. @defaultValue `"enforced"` */
  readonly minimum?: Finality;
  /** Height of the chain as you know it. With it, what is enforced below a height that is past counts for nothing: only a block makes it final. */
  readonly height?: number;
}

const BODY_MAX = 16 << 20;
const SECONDS = 300;
const encoder = /* @__PURE__ */ new TextEncoder();

/** Headers of a request, of `fetch` or of Node. */
export type WebhookHeaders = Headers | Readonly<Record<string, string | readonly string[] | undefined>>;

/**
 * Opens a webhook: checks its signature and age, and every proof in it.
 *
 * @param body - as it was received, not parsed.
 * @throws {@link QuorateError} `invalid_webhook`: it is from somebody else, too old, or not what it should be: answer with 400. `invalid_federation`, `invalid_proof`: its sender
 * says what is not so.
 */
export async function openWebhook(body: string, headers: WebhookHeaders, options: WebhookOptions): Promise<WebhookEvent> {
  const { secret, federation: pinned, seconds = SECONDS, height = 0, minimum = "enforced" } = checkOptions("options", options, ["secret", "federation", "seconds", "height", "minimum"]);
  checkText("federation", pinned);
  checkCount("seconds", seconds);
  checkCount("height", height);
  if (minimum !== "enforced" && minimum !== "attested") refuse("minimum", "has to be enforced or attested");
  if (checkText("body", body).length > BODY_MAX) throw invalid("it is too large");
  const [id, timestamp, signatures] = ["webhook-id", "webhook-timestamp", "webhook-signature"].map((name) => header(headers, name));
  if (id === undefined || timestamp === undefined || signatures === undefined) throw invalid("a header is missing");
  const at = Number(timestamp);
  if (!Number.isSafeInteger(at) || Math.abs(Date.now() / 1_000 - at) > seconds) throw invalid("it was sent too long ago, or a clock is wrong");
  const keys = (typeof secret === "string" ? [secret] : secret).map(keyOf);
  const signed = encoder.encode(`${id}.${timestamp}.${body}`);
  if (!(await isSigned(keys, signatures, signed))) throw invalid("its signature is not by this secret");
  const said = read(body);
  await init();
  const transactions = verified(said, pinned);
  const holds = ({ finality, deadline = 0 }: FinalTransaction): boolean => (finality === "enforced" ? deadline > height : minimum === "attested");
  const outputs = transactions.filter(holds).flatMap((transaction) => transaction.outputs);
  const amount = outputs.reduce((sum, { address, value }) => (address === said.invoice.address ? sum + value : sum), 0n);
  return { ...said, id, verified: { amount, transactions } };
}

function verified({ document, proofs }: WebhookBody, pinned: string): readonly FinalTransaction[] {
  try {
    using federation = new Federation(document, pinned);
    const transactions = Object.entries(proofs).map(([txid, proof]) => {
      const transaction = federation.verifyProof(proof);
      if (transaction.txid !== txid) throw new QuorateError("invalid_proof", "it is the proof of another transaction");
      return transaction;
    });
    const spent = transactions.flatMap(({ inputs }) => inputs);
    if (new Set(spent).size !== spent.length) throw new QuorateError("invalid_proof", "two of them spend the same coin: only one can be in the chain");
    return transactions;
  } catch (error) {
    // It is the sender's argument, and not the caller's.
    const { code, message } = QuorateError.from(error);
    throw code === "invalid_argument" ? invalid(message) : error;
  }
}

/** Headers that sign a body for whoever has the same secrets. */
export async function signedHeaders(secrets: readonly string[], id: string, seconds: number, body: string): Promise<Record<string, string>> {
  const signed = encoder.encode(`${id}.${seconds}.${body}`);
  const signatures = await Promise.all(secrets.map(async (secret) => `v1,${base64(await crypto.subtle.sign("HMAC", await importKey(keyOf(secret), "sign"), signed))}`));
  return { "webhook-id": id, "webhook-timestamp": String(seconds), "webhook-signature": signatures.join(" ") };
}

/** The bytes of a secret, `whsec_` and 24 to 64 of them in base64. */
export function keyOf(secret: string): Uint8Array<ArrayBuffer> {
  const [, text = ""] = /^whsec_([A-Za-z0-9+/]+={0,2})$/.exec(checkText("secret", secret)) ?? [];
  const bytes = bytesOf(text);
  return bytes !== undefined && bytes.length >= 24 && bytes.length <= 64 ? bytes : refuse("secret", "has to be whsec_ and 24 to 64 random bytes in base64");
}

async function isSigned(keys: readonly Uint8Array<ArrayBuffer>[], signatures: string, signed: Uint8Array<ArrayBuffer>): Promise<boolean> {
  const given = signatures.split(" ").flatMap((one) => (one.startsWith("v1,") ? [bytesOf(one.slice(3))] : []));
  // In constant time.
  for (const key of keys) {
    const imported = await importKey(key, "verify");
    for (const signature of given.slice(0, 8)) if (signature !== undefined && (await crypto.subtle.verify("HMAC", imported, signature, signed))) return true;
  }
  return false;
}

function importKey(key: Uint8Array<ArrayBuffer>, usage: "sign" | "verify"): Promise<CryptoKey> {
  return crypto.subtle.importKey("raw", key, { name: "HMAC", hash: "SHA-256" }, false, [usage]);
}

function header(headers: WebhookHeaders, name: string): string | undefined {
  if (headers instanceof Headers) return headers.get(name) ?? undefined;
  const value = Object.entries(headers).find(([key]) => key.toLowerCase() === name)?.[1];
  return typeof value === "string" ? value : undefined;
}

const STATES: readonly InvoiceState[] = ["waiting", "partial", "paid", "overpaid", "late", "expired", "cancelled", "refunded"];

/** What was signed is looked at, too: its reader relies on what its type says. */
function read(body: string): WebhookBody {
  let said: WebhookBody;
  try {
    said = JSON.parse(body) as WebhookBody;
  } catch {
    throw invalid("it is no JSON");
  }
  const isText = (...texts: unknown[]): boolean => texts.every((text) => typeof text === "string");
  const isAmount = (...amounts: unknown[]): boolean => amounts.every((amount) => typeof amount === "string" && /^\d{1,16}$/.test(amount));
  const isList = (list: unknown): list is Record<string, unknown>[] => Array.isArray(list) && list.every((one) => typeof one === "object" && one !== null);
  const { type, timestamp, sequence, invoice, proofs, document } = said ?? {};
  const { order, state, address, uri, amount, tolerance, received, pending, missing, refundable, created, expires, payments, refunds } = invoice ?? {};
  const isGood =
    isText(timestamp, document, order, address, uri, created, expires) &&
    isAmount(amount, tolerance, received, pending, missing, refundable) &&
    Number.isSafeInteger(sequence) &&
    STATES.includes(state as InvoiceState) &&
    type === `invoice.${state}` &&
    typeof proofs === "object" && proofs !== null && isText(...Object.values(proofs)) &&
    isList(payments) && payments.every((payment) => isText(payment["outpoint"], payment["at"]) && isAmount(payment["amount"])) &&
    isList(refunds) && refunds.every((refund) => isText(refund["id"]) && isAmount(refund["amount"]));
  if (!isGood) throw invalid("it does not say of an invoice what it should");
  return said;
}

function invalid(why: string): QuorateError {
  return new QuorateError("invalid_webhook", `the webhook is refused: ${why}`);
}

function base64(bytes: ArrayBuffer): string {
  return btoa(String.fromCharCode(...new Uint8Array(bytes)));
}

function bytesOf(text: string): Uint8Array<ArrayBuffer> | undefined {
  try {
    return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  } catch {
    return undefined;
  }
}
