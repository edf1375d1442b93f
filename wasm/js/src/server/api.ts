// The HTTP interface of an invoice server: JSON, a bearer token, and nothing that is not bounded.
import { createHash, timingSafeEqual } from "node:crypto";
import type { IncomingMessage, ServerResponse } from "node:http";
import { optional, checkText, refuse } from "../checks.js";
import { QuorateError, type Code } from "../errors.js";
import { exportInvoices } from "../invoice-books.js";
import type { Invoice, InvoiceState } from "../invoice.js";
import type { InvoiceOptions, Invoices } from "../invoices.js";
import type { OpenWallet } from "../wallet.js";
import { dataOf, type Delivery, type Outbox } from "./outbox.js";

/** Bytes of a request. */
const BODY_MAX = 16 << 10;
/** Longest wait for an invoice, and how many may wait at a time. */
const WAIT_MAX_S = 60;
const WAITING_MAX = 1_000;
/** For an invoice to be made. */
const SOON_MS = 30_000;
/** Invoices of an answer, at most and if nobody says. */
const PAGE_MAX = 1_000;
const PAGE = 100;

const STATES: readonly InvoiceState[] = ["waiting", "partial", "paid", "overpaid", "late", "expired", "cancelled", "refunded"];

/** What the interface is of. */
export interface Served {
  readonly wallet: OpenWallet;
  readonly invoices: Invoices;
  readonly outbox: Outbox;
}

interface Answer {
  readonly status?: number;
  readonly type?: string;
  readonly body: unknown;
}

class Refused extends Error {
  readonly status: number;
  readonly code: string;

  constructor(status: number, code: string, message: string) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Errors that are the caller's. All others are the server's, or pass. */
const CALLERS: ReadonlySet<Code> = new Set<Code>(["invalid_argument"]);

/** Answers requests. */
export class Api {
  readonly #served: Served;
  readonly #token: Buffer;
  #waiting = 0;

  constructor(served: Served, token: string) {
    this.#served = served;
    this.#token = digest(token);
  }

  async handle(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const answer = await this.#answer(request, response).catch(failure);
    const { status = 200, type = "application/json", body } = answer;
    if (response.destroyed) return;
    const text = typeof body === "string" ? body : `${JSON.stringify(body)}\n`;
    response.writeHead(status, { "content-type": `${type}; charset=utf-8`, "cache-control": "no-store", "x-content-type-options": "nosniff" });
    response.end(text);
    // What it did not read is not waited for.
    if (status === 413) request.destroy();
  }

  async #answer(request: IncomingMessage, response: ServerResponse): Promise<Answer> {
    const path = request.url ?? "/";
    if (!URL.canParse(path, "http://server")) throw nothing();
    const { pathname, searchParams } = new URL(path, "http://server");
    const method = request.method ?? "GET";
    if (pathname === "/health") return { body: { status: "ok", connection: await this.#served.wallet.connection() } };
    if (!this.#isAllowed(request.headers.authorization)) throw new Refused(401, "unauthorised", "the header Authorization: Bearer, with the server's token, is needed");
    const parts = pathname.split("/").slice(1).map(decode);
    if ([...parts, ...searchParams.values()].some((part) => /[\p{Cc}\p{Cs}]/u.test(part))) throw nothing();
    const [version, kind, name, action] = parts;
    if (version !== "v1" || parts.length > 4) throw nothing();
    const route = `${method} ${kind ?? ""}${name === undefined ? "" : "/*"}${action === undefined ? "" : `/${action}`}`;
    return this.#route(route, name ?? "", { request, response, search: searchParams });
  }

  async #route(route: string, name: string, { request, response, search }: { request: IncomingMessage; response: ServerResponse; search: URLSearchParams }): Promise<Answer> {
    const { invoices, outbox, wallet } = this.#served;
    switch (route) {
      case "POST invoices": {
        const options = optionsOf(await read(request));
        const known = await invoices.get(options.order);
        return { status: known === undefined ? 201 : 200, body: dataOf(await soon(invoices.create(options))) };
      }
      case "GET invoices":
        return { body: page(await invoices.list(), search) };
      case "GET invoices/*":
        return { body: dataOf(await this.#wait(name, search, response)) };
      case "DELETE invoices/*":
        if ((await invoices.get(name)) !== undefined) await invoices.forget(name);
        await outbox.forget(name);
        return { body: { order: name, forgotten: true } };
      case "POST invoices/*/cancel":
        await this.#of(name);
        return { body: dataOf(await invoices.cancel(name)) };
      case "POST invoices/*/refunded": {
        await this.#of(name);
        const { txid, amount } = await read(request);
        return { body: dataOf(await invoices.markRefunded(name, { txid: checkText("txid", txid), amount: satoshis("amount", amount) })) };
      }
      case "GET export": {
        const format = search.get("format") === "csv" ? "csv" : "json";
        return { type: format === "csv" ? "text/csv" : "application/json", body: exportInvoices(await invoices.list(), format) };
      }
      case "GET deliveries": {
        const state = search.get("state") ?? undefined;
        if (state !== undefined && !["waiting", "delivered", "failed"].includes(state)) refuse("state", "has to be waiting, delivered or failed");
        return { body: { deliveries: await outbox.list(state as Delivery["state"] | undefined, search.get("order") ?? undefined) } };
      }
      case "POST deliveries/*/retry":
        if (!(await outbox.retry(name))) throw new Refused(404, "unknown_delivery", "there is nothing of this id to be sent to anybody who is told");
        return { body: { id: name, state: "waiting" } };
      case "GET federation":
        return { body: await wallet.federationDocument() };
      case "GET status":
        return { body: await this.#status() };
      default:
        throw nothing();
    }
  }

  async #status(): Promise<unknown> {
    const { invoices, outbox, wallet } = this.#served;
    const states: Partial<Record<InvoiceState, number>> = {};
    for (const { state } of await invoices.list()) states[state] = (states[state] ?? 0) + 1;
    const [connection, tip, deliveries] = await Promise.all([wallet.connection(), wallet.tip(), outbox.counts()]);
    return { connection, height: tip.height, network: wallet.account.network, account: wallet.account.id, invoices: states, deliveries };
  }

  async #of(order: string): Promise<Invoice> {
    const invoice = await this.#served.invoices.get(order);
    if (invoice === undefined) throw new Refused(404, "unknown_order", "there is no invoice of this order");
    return invoice;
  }

  /** An invoice, at once or as soon as it is over. */
  async #wait(order: string, search: URLSearchParams, response: ServerResponse): Promise<Invoice> {
    const invoice = await this.#of(order);
    const seconds = Math.min(count("wait", search.get("wait"), 0), WAIT_MAX_S);
    if (seconds === 0) return invoice;
    if (this.#waiting >= WAITING_MAX) throw new Refused(503, "busy", "too many wait for invoices; ask without `wait`, or try again");
    this.#waiting += 1;
    const gone = new AbortController();
    const leave = (): void => gone.abort();
    response.once("close", leave);
    try {
      return await this.#served.invoices.settled(order, { signal: AbortSignal.any([gone.signal, AbortSignal.timeout(seconds * 1_000)]) });
    } catch (error) {
      if (QuorateError.from(error).code === "closed") throw error;
      return await this.#of(order);
    } finally {
      response.off("close", leave);
      this.#waiting -= 1;
    }
  }

  #isAllowed(header: string | undefined): boolean {
    const [, given = ""] = /^Bearer +(\S+)$/i.exec(header ?? "") ?? [];
    return timingSafeEqual(digest(given), this.#token);
  }
}

function digest(text: string): Buffer {
  return createHash("sha256").update(text).digest();
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    throw nothing();
  }
}

const nothing = (): Refused => new Refused(404, "unknown_path", "there is nothing here");

function failure(error: unknown): Answer {
  if (error instanceof Refused) return { status: error.status, body: { code: error.code, message: error.message, retryable: error.status === 503 } };
  const { code, message, retryable } = QuorateError.from(error);
  const passes = retryable || code === "closed" || code === "storage_failed";
  return { status: CALLERS.has(code) ? 400 : passes ? 503 : 500, body: { code, message, retryable: passes } };
}

/** Before a wallet was synced for the first time it does not know which address is the next. */
async function soon<T>(answer: Promise<T>): Promise<T> {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Refused(503, "not_synced", "the wallet has not heard from a bridge yet; the same request gives the invoice later")), SOON_MS);
  });
  try {
    return await Promise.race([answer, late]);
  } finally {
    clearTimeout(timer);
    answer.catch(() => undefined);
  }
}

/** The body of a request: an object. */
async function read(request: IncomingMessage): Promise<Record<string, unknown>> {
  const pieces: Buffer[] = [];
  let length = 0;
  for await (const piece of request as AsyncIterable<Buffer>) {
    length += piece.length;
    if (length > BODY_MAX) throw new Refused(413, "too_large", `a request may have ${BODY_MAX} bytes`);
    pieces.push(piece);
  }
  let body: unknown;
  try {
    body = JSON.parse(Buffer.concat(pieces).toString("utf8"));
  } catch {
    refuse("body", "is no JSON");
  }
  return typeof body === "object" && body !== null && !Array.isArray(body) ? (body as Record<string, unknown>) : refuse("body", "has to be a JSON object");
}

/** An amount: a decimal number as text, or a whole number. */
function satoshis(name: string, value: unknown): bigint {
  if (typeof value === "number" && Number.isSafeInteger(value) && value >= 0) return BigInt(value);
  return typeof value === "string" && /^\d{1,16}$/.test(value) ? BigInt(value) : refuse(name, "has to be a whole number of satoshis");
}

function count(name: string, value: string | null, otherwise: number): number {
  if (value === null) return otherwise;
  return /^\d{1,9}$/.test(value) ? Number(value) : refuse(name, "has to be a whole number");
}

function optionsOf(body: Record<string, unknown>): InvoiceOptions {
  const { amount, tolerance, ...rest } = body;
  const amounts = {
    ...(amount !== undefined && { amount: satoshis("amount", amount) }),
    ...(tolerance !== undefined && { tolerance: optional(satoshis, "tolerance", tolerance) }),
  };
  checkText("order", rest["order"]);
  // What else there is is looked at where invoices are made.
  return { ...rest, ...amounts } as unknown as InvoiceOptions;
}

/** Invoices in the order in which they were made, after one of them. */
function page(all: readonly Invoice[], search: URLSearchParams): unknown {
  const [state, after] = [search.get("state"), search.get("after")];
  const limit = Math.min(count("limit", search.get("limit"), PAGE), PAGE_MAX);
  if (state !== null && !STATES.includes(state as InvoiceState)) refuse("state", `has to be one of ${STATES.join(", ")}`);
  const from = after === null ? 0 : all.findIndex(({ order }) => order === after) + 1;
  if (after !== null && from === 0) refuse("after", "there is no invoice of this order");
  const found = all.slice(from).filter((invoice) => state === null || invoice.state === state);
  return { invoices: found.slice(0, limit).map(dataOf), more: found.length > limit };
}
