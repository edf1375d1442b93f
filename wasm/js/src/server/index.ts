/// <reference lib="esnext.disposable" preserve="true" />
/**
 * Invoices on a server of a shop's own (Node): it watches the account and has no key, keeps invoices in a database, answers over HTTP, and tells of what arrives by signed webhooks
 * that carry the finality proofs (`quorate/webhooks`).
 *
 * @example
 * ```ts no-run
 * import { InvoiceServer } from "quorate/server";
 * const server = await InvoiceServer.start({
 *   bridge: "wss://bridge.example", federation, record: "…",
 *   database: "shop.sqlite", password: "of what is stored", token: "a long random text",
 *   webhooks: [{ url: "https://shop.example/paid", secrets: ["whsec_…"] }],
 * });
 * console.log(server.url);
 * ```
 *
 * @packageDocumentation
 */
import { createServer, type Server } from "node:http";
import type { AddressInfo } from "node:net";
import { checkCount, checkOptions, checkText, optional, refuse } from "../checks.js";
import { QuorateError } from "../errors.js";
import { Invoices, type InvoicesOptions } from "../invoices.js";
import type { Invoice } from "../invoice.js";
import { Wallet, type Checkpoint, type Till, type WaitOptions } from "../index.js";
import type { OpenWallet } from "../wallet.js";
import { keyOf } from "../webhooks.js";
import { Api } from "./api.js";
import { DatabaseStorage, openDatabase, type Database } from "./database.js";
import { Outbox, type Endpoint, type Shown } from "./outbox.js";

export type { Delivery, Endpoint } from "./outbox.js";

/** How to start a server. */
export interface ServerOptions extends WaitOptions, InvoicesOptions {
  /** Address of a bridge, `wss://` or `ws://`; several are tried in turn. */
  readonly bridge: string | readonly string[];
  /** Id of the federation, 64 hex digits, from a source that you trust. */
  readonly federation: string;
  /** Record of the account that is paid, as `AccountInfo.record` has it. With it, addresses can be made and payments be seen, and nothing be spent. */
  readonly record: string;
  /** Path of a SQLite file (needs the package `node-sqlite3-wasm`), or a `postgres://` URL (needs `pg`). One server has it at a time. */
  readonly database: string;
  /**
   * Encrypts what is stored of the account and its invoices. What is told by webhooks is stored as it is sent, in clear: until it is taken and 30 days longer, or for 90 days
   * if it is not.
   */
  readonly password: string;
  /** Of the HTTP interface, at least 32 characters. */
  readonly token: string;
  /** Who is told, by `https:` or on this machine. @defaultValue nobody */
  readonly webhooks?: readonly Endpoint[];
  /** @defaultValue `"127.0.0.1"` */
  readonly host?: string;
  /** @defaultValue `8490` */
  readonly port?: number;
  /** If the account gives out addresses in other places, too: its owner's wallet, other servers. */
  readonly till?: Till;
  /** How many addresses after the last used one are watched from the beginning. @defaultValue 20 */
  readonly gapLimit?: number;
  /** Where header verification starts. @defaultValue the genesis block */
  readonly checkpoint?: Checkpoint;
}

const NAMES = ["bridge", "federation", "record", "database", "password", "token", "webhooks", "host", "port", "till", "gapLimit", "checkpoint", "rate", "signal"];
const WALLET = "server";
const SWEEP_MS = 3_600_000;
/** Invoices that nothing came for are kept so long after their time. */
const UNPAID_KEPT_MS = 30 * 86_400_000;
/** Payments of one invoice whose proofs are shown. */
const SHOWN_MAX = 100;
const TOKEN_MIN = 32;
const PORT = 8_490;
/** Connections at a time, and how long a request may take to come. */
const CONNECTIONS_MAX = 1_024;
const REQUEST_MS = 10_000;

/** A running server. */
export class InvoiceServer implements AsyncDisposable {
  /** The invoices, for a program that has the server inside. */
  readonly invoices: Invoices;
  /** The account that is watched. */
  readonly wallet: OpenWallet;
  readonly #database: Database;
  readonly #outbox: Outbox;
  readonly #http: Server;
  readonly #over: Promise<void>;
  readonly #sweeping: NodeJS.Timeout;
  #end: (error?: unknown) => void = () => undefined;
  #closing: Promise<void> | undefined;

  private constructor(database: Database, wallet: OpenWallet, invoices: Invoices, endpoints: readonly Endpoint[], token: string) {
    [this.#database, this.wallet, this.invoices] = [database, wallet, invoices];
    this.#over = new Promise((resolve, reject) => (this.#end = (error) => (error === undefined ? resolve() : reject(error))));
    this.#over.catch(() => undefined);
    this.#outbox = new Outbox(database, endpoints, (error) => void this.#fail(error));
    const api = new Api({ wallet, invoices, outbox: this.#outbox }, token);
    this.#http = createServer({ requestTimeout: REQUEST_MS, headersTimeout: REQUEST_MS, maxHeaderSize: 8 << 10 }, (request, response) => void api.handle(request, response));
    this.#http.maxConnections = CONNECTIONS_MAX;
    wallet.on("closed", ({ error }) => void this.#fail(error ?? new QuorateError("closed", "the wallet has been closed")));
    database.onLost((error) => void this.#fail(error));
    invoices.on(({ order }) => void this.#note(order).catch((error: unknown) => this.#fail(error)));
    this.#sweeping = setInterval(() => void this.#sweep().catch((error: unknown) => this.#fail(error)), SWEEP_MS);
    this.#sweeping.unref();
  }

  /**
   * Starts a server, or goes on with what its database has.
   *
   * @throws {@link QuorateError} `invalid_argument`; `storage_failed`, `storage_unavailable`, `wallet_in_use`: of the database; `wrong_password`; and as `Wallet.watch`.
   */
  static async start(options: ServerOptions): Promise<InvoiceServer> {
    const { database: place, password, token, webhooks = [], host = "127.0.0.1", port = PORT, rate, ...watched } = checkServer(options);
    const database = await openDatabase(place);
    let wallet: OpenWallet | undefined;
    let server: InvoiceServer | undefined;
    try {
      const storage = new DatabaseStorage(database);
      wallet = await Wallet.watch({ ...watched, storage, name: WALLET, password }).catch((error: unknown) => {
        throw QuorateError.from(error).code === "wallet_exists" ? new QuorateError("other_wallet", "the database is of another account or federation") : error;
      });
      const invoices = await Invoices.open(wallet, rate === undefined ? {} : { rate });
      server = new InvoiceServer(database, wallet, invoices, webhooks, token);
      // What was not told before the last end is told now.
      const orders = (await invoices.list()).map(({ order }) => order);
      for (const order of orders) await server.#note(order);
      await server.#outbox.start(new Set(orders));
      await server.#sweep();
      await server.#listen(host, port);
      return server;
    } catch (error) {
      await server?.close();
      await wallet?.close();
      await database.close();
      throw error;
    }
  }

  /** Where it listens. */
  get url(): string {
    const { address, family, port } = this.#http.address() as AddressInfo;
    return `http://${family === "IPv6" ? `[${address}]` : address}:${port}`;
  }

  /** Waits for its end; fails if nobody asked for it, such as with `storage_failed`: start it again. */
  ended(): Promise<void> {
    return this.#over;
  }

  #listen(host: string, port: number): Promise<void> {
    return new Promise((resolve, reject) => {
      const failed = (cause: Error): void => reject(new QuorateError("invalid_argument", `port: ${host} port ${port} cannot be listened on: ${cause.message}`, { cause }));
      this.#http.once("error", failed);
      this.#http.listen(port, host, () => {
        this.#http.off("error", failed);
        this.#http.on("error", (error) => void this.#fail(error));
        resolve();
      });
    });
  }

  #note(order: string): Promise<void> {
    return this.#outbox.note(order, async () => {
      const invoice = await this.invoices.get(order);
      return invoice && { invoice, shown: () => this.#shown(invoice) };
    });
  }

  /** Forgets what came to nothing long ago: whoever asks for invoices and does not pay would fill the wallet. */
  async #sweep(): Promise<void> {
    const now = Date.now();
    for (const { order, state, payments, expires } of await this.invoices.list()) {
      if ((state !== "expired" && state !== "cancelled") || payments.length > 0 || expires.getTime() > now - UNPAID_KEPT_MS) continue;
      await this.invoices.forget(order);
      await this.#outbox.forget(order);
    }
    await this.#outbox.sweep(now);
  }

  /** What shows to others that its payments are final. */
  async #shown({ payments }: Invoice): Promise<Shown> {
    // Of very many the largest: more would be dust, and too much for one message.
    const largest = [...payments].sort((one, other) => (one.amount < other.amount ? 1 : -1));
    const txids = [...new Set(largest.map(({ outpoint }) => outpoint.slice(0, 64)))].slice(0, SHOWN_MAX);
    const proofs = await Promise.all(txids.map(async (txid) => [txid, await this.wallet.proof(txid)] as const));
    return { proofs: Object.fromEntries(proofs.filter((pair): pair is readonly [string, string] => pair[1] !== undefined)), document: await this.wallet.federationDocument() };
  }

  async #fail(error: unknown): Promise<void> {
    if (this.#closing === undefined) await this.#close(error);
  }

  /** Ends it. Whoever waits for an invoice is told that it ends; what waits to be delivered is by the next one. */
  close(): Promise<void> {
    return this.#close(undefined);
  }

  #close(error: unknown): Promise<void> {
    this.#closing ??= (async () => {
      clearInterval(this.#sweeping);
      const closed = new Promise<void>((resolve) => this.#http.close(() => resolve()));
      this.invoices.close();
      await this.#outbox.close();
      await this.wallet.close().catch(() => undefined);
      await this.#database.close().catch(() => undefined);
      this.#http.closeIdleConnections();
      this.#http.closeAllConnections();
      await closed;
      this.#end(error);
    })();
    return this.#closing;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

function checkServer(options: ServerOptions): ServerOptions {
  const { token, database, password, webhooks, host, port } = checkOptions("options", options, NAMES);
  for (const [name, text] of Object.entries({ database, password, record: options.record, federation: options.federation })) checkText(name, text);
  if (password === "") refuse("password", "is empty");
  if (checkText("token", token).length < TOKEN_MIN || /\s/.test(token)) refuse("token", `has to be at least ${TOKEN_MIN} characters without white space`);
  optional(checkText, "host", host);
  if (optional(checkCount, "port", port) !== undefined && (port as number) > 65_535) refuse("port", "has to be at most 65535");
  if (webhooks !== undefined && !Array.isArray(webhooks)) refuse("webhooks", "has to be a list");
  for (const endpoint of webhooks ?? []) checkEndpoint(endpoint);
  if (new Set(webhooks?.map(({ url }) => url)).size !== (webhooks ?? []).length) refuse("webhooks", "two of them have the same URL");
  return options;
}

function checkEndpoint(endpoint: Endpoint): void {
  const { url, secrets } = checkOptions("webhooks", endpoint, ["url", "secrets"]);
  const where = URL.canParse(checkText("url", url)) ? new URL(url) : refuse("webhooks", "the url is none");
  const here = ["localhost", "127.0.0.1", "[::1]"].includes(where.hostname);
  if (where.username !== "" || where.password !== "") refuse("webhooks", "the url must not have a password in it: what is sent is signed");
  if (where.protocol !== "https:" && !(where.protocol === "http:" && here)) refuse("webhooks", "the url has to be https:, or http: on this machine");
  if (!Array.isArray(secrets) || secrets.length === 0) refuse("webhooks", "secrets: at least one is needed");
  secrets.forEach(keyOf);
}
