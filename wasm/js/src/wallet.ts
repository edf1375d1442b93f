/// <reference lib="esnext.disposable" preserve="true" />
import type { Backend, Payment } from "./backend.js";
import { checkAmount, checkCount, checkFeeRate, checkFlag, checkOptions, checkPayment, checkQuote, checkText, checkUnlock, optional } from "./checks.js";
import { Recorder, report, type LogLine } from "./diagnostics.js";
import { QuorateError, abortable } from "./errors.js";
import { EventHub } from "./events.js";
import { checkHistory, select } from "./history.js";
import { ENOUGH } from "./invoice.js";
import { checkNote } from "./notes.js";
import { checkOrder } from "./orders.js";
import { checkLabel, parseLabels, writeLabels } from "./labels.js";
import type {
  AccountInfo,
  Balance,
  Block,
  Coin,
  Connection,
  Destination,
  Finality,
  HistoryEntry,
  HistoryOptions,
  ImportedLabels,
  Label,
  LabelType,
  Minimum,
  PaymentRequest,
  Quote,
  Receipt,
  RefreshQuote,
  WaitOptions,
  WalletEvent,
} from "./types.js";
import type { Unlock } from "./vault.js";

/** A payment that arrived. */
export interface IncomingPayment {
  readonly address: string;
  /** Sum of what arrived at the address, in satoshis. */
  readonly amount: bigint;
  /** The transactions, each with its proof if it is final; those without are in a block. */
  readonly transactions: readonly { readonly txid: string; readonly finality?: Finality; readonly proof?: string }[];
}

/** What was passed, checked. */
function paymentOf(request: PaymentRequest | Quote): Payment {
  if (typeof request !== "object" || request === null || !("psbt" in request)) return checkPayment(request);
  const { psbt, idempotencyKey } = checkQuote(request);
  return { psbt, idempotencyKey };
}

/** A label if there is one. */
function labelled(label: string | undefined): { readonly label?: string } {
  return label === undefined ? {} : { label };
}

/** Names of {@link WaitOptions}. */
const WAIT = ["signal"];

/**
 * An open wallet. Everything that it shows it has verified; a server is trusted with nothing.
 *
 * Amounts are satoshis as `bigint`. Calls may overlap as they like.
 */
export class OpenWallet implements AsyncDisposable {
  readonly #backend: Backend;
  readonly #events = new EventHub();
  readonly #recorder = new Recorder();
  #labels: Promise<ReadonlyMap<string, string>> | undefined;

  #ended = false;
  readonly #awake = (): void => void this.#backend.request("wake").catch(() => undefined);

  protected constructor(backend: Backend) {
    this.#backend = backend;
    backend.listen((event) => (event === undefined ? void this.#end() : this.#tell(event)));
    globalThis.addEventListener?.("online", this.#awake);
    globalThis.addEventListener?.("visibilitychange", this.#awake);
  }

  #tell(event: WalletEvent): void {
    this.#recorder.note(event);
    this.#events.push(event);
  }

  /** Tells that it is over, and why if nobody asked for it. */
  async #end(): Promise<void> {
    if (this.#ended) return;
    this.#ended = true;
    globalThis.removeEventListener?.("online", this.#awake);
    globalThis.removeEventListener?.("visibilitychange", this.#awake);
    const error = await this.#backend.request("balance").then(() => undefined, (thrown: unknown) => QuorateError.from(thrown));
    this.#tell({ type: "closed", ...(error !== undefined && error.code !== "closed" && { error }) });
    this.#events.push(undefined);
  }

  /** The account: id, descriptor, network. */
  get account(): AccountInfo {
    return this.#backend.account;
  }

  /** How far the wallet has come with its bridge, now. */
  async connection(): Promise<Connection> {
    return this.#ended ? "closed" : this.#backend.request("connection");
  }

  /**
   * Reads what a user typed, pasted or scanned: an address or a `bitcoin:` link (BIP21, BIP321), checked against the wallet's network. Show what it says
   * before you pay.
   *
   * @throws {@link QuorateError} `invalid_address`, `wrong_network`, `unknown_address_type`.
   */
  async parseDestination(text: string): Promise<Destination> {
    return this.#backend.request("parseDestination", checkText("text", text));
  }

  /** Waits until the federation has certified the account, in this run or in one before. It may be offline all the same: see `connection`. */
  async ready(options: WaitOptions = {}): Promise<void> {
    const { signal } = checkOptions("options", options, WAIT);
    await abortable(() => this.#backend.request("ready"), signal);
  }

  /** Waits until what the wallet shows is as of now. */
  async synced(options: WaitOptions = {}): Promise<void> {
    const { signal } = checkOptions("options", options, WAIT);
    await abortable(() => this.#backend.request("synced"), signal);
  }

  /** What the wallet has. */
  balance(): Promise<Balance> {
    return this.#backend.request("balance");
  }

  /** Its unspent outputs. */
  async coins(): Promise<readonly Coin[]> {
    const [coins, called] = await Promise.all([this.#backend.request("coins"), this.#called()]);
    return coins.map((coin) => ({ ...coin, ...labelled(called("output", coin.outpoint) ?? called("addr", coin.address)) }));
  }

  /**
   * Payments in and out, in the order of their blocks; what waits for one is last. `exportHistory` makes a file of them.
   *
   * @throws {@link QuorateError} `invalid_argument`: `before` names no entry.
   */
  async history(options: HistoryOptions = {}): Promise<readonly HistoryEntry[]> {
    const checked = checkHistory(options);
    const [history, called] = await Promise.all([this.#backend.request("history"), this.#called()]);
    return select(history, checked).map((entry) => {
      const to = entry.to.map((one) => ({ ...one, ...labelled(called("addr", one.address)) }));
      return { ...entry, to, ...labelled(called("tx", entry.txid)) };
    });
  }

  /**
   * Says what its owner calls a payment (`tx`), an address (`addr`), a coin (`output`) or anything else that BIP329 knows; an empty label takes it away.
   * It is kept with the wallet, encrypted like it, once this resolves. It comes back with {@link history} and {@link coins}.
   *
   * @throws {@link QuorateError} `invalid_argument`, `storage_failed`.
   *
   * @example
   * ```ts no-run
   * await wallet.setLabel({ type: "addr", ref: await wallet.nextAddress(), label: "order 4711" });
   * ```
   */
  async setLabel(label: Label): Promise<void> {
    await this.#setLabels([checkLabel(label)]);
  }

  /** All labels. */
  labels(): Promise<readonly Label[]> {
    return this.#backend.request("labels");
  }

  /** All labels and frozen coins as BIP329 has them, a line of JSON for each: for another wallet, or as a backup of what words do not restore. It tells much about its owner. */
  async exportLabels(): Promise<string> {
    const [labels, coins] = await Promise.all([this.labels(), this.#backend.request("coins")]);
    return writeLabels(labels, coins.filter((coin) => coin.frozen).map((coin) => coin.outpoint));
  }

  /**
   * Takes labels of another wallet (BIP329), each in the place of the one that is there, and freezes or unfreezes coins of this wallet as it says, for which
   * it waits until the wallet is synced: before, it does not know which coins are its own. Lines that are none are left out.
   *
   * @returns How many labels it took; how many coins it froze or unfroze, or found so; and how many of which it says something are no coins of this wallet.
   * @throws {@link QuorateError} `invalid_argument`: more than 64 MiB or 200,000 lines.
   */
  async importLabels(text: string, options: WaitOptions = {}): Promise<ImportedLabels> {
    const { signal } = checkOptions("options", options, WAIT);
    const { labels, spendable } = parseLabels(text);
    await this.#setLabels(labels);
    if (spendable.size > 0) await this.synced(signal === undefined ? {} : { signal });
    const own = new Map((await this.#backend.request("coins")).map((coin) => [coin.outpoint, coin.frozen]));
    let coins = 0;
    for (const [outpoint, may] of spendable) {
      const frozen = own.get(outpoint);
      if (frozen === undefined) continue;
      signal?.throwIfAborted();
      try {
        if (frozen === may) await this.#backend.request("setFrozen", outpoint, !may);
        coins += 1;
      } catch (error) {
        // It has been spent meanwhile.
        if (QuorateError.from(error).code !== "coin_not_spendable") throw error;
      }
    }
    return { labels: labels.length, coins, unknownCoins: spendable.size - coins };
  }

  async #setLabels(labels: readonly Label[]): Promise<void> {
    try {
      await this.#backend.request("setLabels", labels);
    } finally {
      this.#labels = undefined;
      if (!this.#ended) this.#tell({ type: "labels" });
    }
  }

  /**
   * Keeps a text of the application's with the wallet, encrypted like it, in its backup file too; `undefined` takes it away. At most 100,000, of 65,536 characters each.
   *
   * @throws {@link QuorateError} `invalid_argument`, `storage_failed`.
   */
  async setNote(name: string, text: string | undefined): Promise<void> {
    checkNote(name, text);
    await this.#backend.request("setNote", name, text);
  }

  /** Texts that were kept with {@link setNote}, of all names that begin so. */
  async notes(beginning = ""): Promise<ReadonlyMap<string, string>> {
    return this.#backend.request("notes", checkText("beginning", beginning));
  }

  /** Everything that ever arrived at an address of this wallet, spent or not, conflicting or not. */
  async coinsAt(address: string): Promise<readonly Coin[]> {
    return this.#backend.request("coinsAt", checkText("address", address));
  }

  /** All labels are asked for once after each change: a worker would have to send them each time. */
  async #called(): Promise<(type: LabelType, ref: string) => string | undefined> {
    this.#labels ??= this.labels().then((all) => new Map(all.map(({ type, ref, label }) => [`${type} ${ref}`, label])));
    const labels = await this.#labels;
    return (type, ref) => labels.get(`${type} ${ref}`);
  }

  /** The verified proof that a transaction is final, as JSON: to show, to keep, or to hand on to anyone. */
  async proof(txid: string): Promise<string | undefined> {
    return this.#backend.request("proof", checkText("txid", txid));
  }

  /** The tip of the wallet's own header chain. */
  tip(): Promise<Block> {
    return this.#backend.request("tip");
  }

  /** The fee rate that is used if a request names none, in sat/vB. */
  feeRate(): Promise<number> {
    return this.#backend.request("feeRate");
  }

  /** The federation's document as JSON: with its id, all that `quorate/verify` needs. */
  federationDocument(): Promise<string> {
    return this.#backend.request("federation");
  }

  /** Gives out the next address to be paid at: one for each payer or sale. A wallet that was restored or is watched waits for its first sync. */
  async nextAddress(options: WaitOptions = {}): Promise<string> {
    const { signal } = checkOptions("options", options, WAIT);
    return abortable(() => this.#backend.request("nextAddress"), signal);
  }

  /**
   * The receive address of an index below 2^31; nothing changes by asking. One that was not given out is given to somebody by {@link nextAddress} later, and one beyond
   * the {@link CreateOptions.gapLimit} is not watched: to ask for money, use {@link reserve} or {@link nextAddress}.
   */
  async addressAt(index: number): Promise<string> {
    return this.#backend.request("addressAt", checkCount("index", index));
  }

  /**
   * The address of an order: a new one, and the same whenever this order is named again, also after a restart. The wallet keeps the last 100,000 orders. Several tills
   * of an account have a {@link CreateOptions.till} each, so that no two give out the same.
   *
   * @param options - `order`: what the shop calls it, at most 200 characters.
   *
   * @example
   * ```ts no-run
   * const address = await wallet.reserve({ order: "4711" });
   * await wallet.paymentTo(address, { amount: 25_000n });
   * ```
   */
  async reserve(options: { readonly order: string } & WaitOptions): Promise<string> {
    const { order, signal } = checkOptions("options", options, ["order", ...WAIT]);
    const checked = checkOrder(order);
    return abortable(() => this.#backend.request("reserve", checked), signal);
  }

  /**
   * Gives the same address until somebody pays to it: for a page that shows "your address". `nextAddress` never gives this one to a payer of its own. A wallet that is restored from its
   * words looks {@link CreateOptions.gapLimit} addresses ahead, so those that nobody pays to should not become many.
   */
  async unusedAddress(options: WaitOptions = {}): Promise<string> {
    const { signal } = checkOptions("options", options, WAIT);
    return abortable(() => this.#backend.request("unusedAddress"), signal);
  }

  /** Builds a payment as a PSBT in base64 (BIP174, BIP371), without reserving or sending anything. */
  async createPsbt(request: PaymentRequest): Promise<string> {
    const checked = checkPayment(request);
    if (checked.idempotencyKey !== undefined) throw new QuorateError("invalid_argument", "idempotencyKey: a PSBT does not carry it; use quote() and pay()");
    return this.#backend.request("createPsbt", checked);
  }

  /**
   * Says what a payment would be, without reserving or sending anything: show it to who pays, then {@link pay} exactly that.
   *
   * @throws {@link QuorateError} as {@link OpenWallet.send}.
   *
   * @example
   * ```ts no-run
   * const quote = await wallet.quote({ to: "bcrt1qs758ursh4q9z627kt3pp5yysm78ddny6txaqgw", amount: 5_000n });
   * if (confirm(`${quote.amount} sat and a fee of ${quote.fee}?`)) await wallet.pay(quote);
   * ```
   */
  async quote(request: PaymentRequest): Promise<Quote> {
    const quote = await this.#backend.request("quote", checkPayment(request));
    return { ...quote, ...(request.idempotencyKey !== undefined && { idempotencyKey: request.idempotencyKey }) };
  }

  /**
   * Leaves a coin (`txid:vout`) out of payments until {@link unfreeze}; it is kept with the wallet. A payment that names it spends it all the same.
   *
   * @throws {@link QuorateError} `coin_not_spendable`: it is no unspent coin of this wallet.
   */
  async freeze(outpoint: string): Promise<void> {
    await this.#backend.request("setFrozen", checkText("outpoint", outpoint), true);
  }

  /** Lets payments spend a coin (`txid:vout`) again. */
  async unfreeze(outpoint: string): Promise<void> {
    await this.#backend.request("setFrozen", checkText("outpoint", outpoint), false);
  }

  /**
   * Submits a payment and gives its txid as soon as it is saved: from then on the payment goes on whatever happens to this page, at the
   * latest when the wallet is opened again. How it goes on is told by `payment` events and by {@link outcome}. A quote is paid as it is.
   *
   * @throws {@link QuorateError} such as `insufficient_funds`, `dust`, `invalid_address`, `invalid_argument`; nothing has been sent then.
   */
  async send(request: PaymentRequest | Quote): Promise<string> {
    return this.#backend.request("send", paymentOf(request));
  }

  /**
   * Pays and waits until the payment is final by a proof that this wallet verified. A quote is paid as it is, or not: `coin_not_spendable` says that one
   * of its coins went elsewhere meanwhile. Neither a quote nor a request with an `idempotencyKey` is paid twice.
   *
   * A payment that was submitted goes on by itself, whatever becomes of the page: when the wallet is opened again it is ended.
   *
   * @throws {@link QuorateError} as {@link OpenWallet.send}, and `payment_rejected` or `payment_failed` with the coins free again.
   */
  async pay(request: PaymentRequest | Quote, options: WaitOptions = {}): Promise<Receipt> {
    const { signal } = checkOptions("options", options, WAIT);
    const checked = paymentOf(request);
    return abortable(() => this.#backend.request("pay", checked), signal);
  }

  /**
   * Waits until a payment that was submitted is final, be it by `send` or before the wallet was opened.
   *
   * @throws {@link QuorateError} as {@link OpenWallet.pay}, and `unknown_payment`.
   */
  async outcome(txid: string, options: WaitOptions = {}): Promise<Receipt> {
    const { signal } = checkOptions("options", options, WAIT);
    checkText("txid", txid);
    return abortable(() => this.#backend.request("outcome", txid), signal);
  }

  /** Authorises and submits a PSBT of this account, and waits until it is final. */
  async payPsbt(psbt: string, options: WaitOptions = {}): Promise<Receipt> {
    const { signal } = checkOptions("options", options, WAIT);
    checkText("psbt", psbt);
    return abortable(() => this.#backend.request("pay", { psbt }), signal);
  }

  /** Submits a signed transaction (hex) of coins in anybody's sole custody, and waits until it is attested. */
  async attest(transaction: string, options: WaitOptions = {}): Promise<Receipt> {
    const { signal } = checkOptions("options", options, WAIT);
    checkText("transaction", transaction);
    return abortable(() => this.#backend.request("attest", transaction), signal);
  }

  /**
   * What {@link refresh} would do next and cost, `undefined` if no coin is old. Coins can be paid with until two days before their recovery path opens.
   *
   * @param options - `feeRate` in sat/vB; the server's estimate if absent.
   */
  async refreshQuote(options: { readonly feeRate?: number } = {}): Promise<RefreshQuote | undefined> {
    const { feeRate } = checkOptions("options", options, ["feeRate"]);
    return this.#backend.request("refreshQuote", optional(checkFeeRate, "feeRate", feeRate));
  }

  /**
   * Moves old coins home, which makes them young, and waits until that is final: up to 64 of them in one transaction, expired ones first. `undefined`
   * if there is nothing to do; call it again until then.
   *
   * @param options - `feeRate` in sat/vB; the server's estimate if absent, as long as it is in proportion.
   */
  async refresh(options: { readonly feeRate?: number } & WaitOptions = {}): Promise<Receipt | undefined> {
    const { feeRate, signal } = checkOptions("options", options, ["feeRate", ...WAIT]);
    optional(checkFeeRate, "feeRate", feeRate);
    return abortable(() => this.#backend.request("refresh", feeRate), signal);
  }

  /**
   * What {@link consolidate} would do next: a quote for {@link pay}, whose `amount` is what the one coin is worth then. `undefined` if there are not two
   * coins to put together, or nothing would be left of them. Asking changes nothing.
   *
   * @param options - `feeRate` in sat/vB; the server's estimate if absent, as long as it is in proportion.
   */
  async consolidateQuote(options: { readonly feeRate?: number } = {}): Promise<Quote | undefined> {
    const { feeRate } = checkOptions("options", options, ["feeRate"]);
    return this.#backend.request("consolidateQuote", optional(checkFeeRate, "feeRate", feeRate));
  }

  /**
   * Makes one coin of many small ones, up to 64 of them in one payment to an address of this wallet that no payer is given, the smallest first, and waits
   * until that is final. `undefined` if there is nothing to do. Coins that are in no block yet, are frozen or cost more than they are worth are left
   * alone. Best while fees are low: each coin costs some 58 vB now rather than when it is needed.
   *
   * @param options - `feeRate` in sat/vB; the server's estimate if absent, as long as it is in proportion.
   * @throws {@link QuorateError} as {@link OpenWallet.pay}.
   */
  async consolidate(options: { readonly feeRate?: number } & WaitOptions = {}): Promise<Receipt | undefined> {
    const { feeRate, signal } = checkOptions("options", options, ["feeRate", ...WAIT]);
    const quote = await this.consolidateQuote(feeRate === undefined ? {} : { feeRate });
    return quote === undefined ? undefined : this.pay(quote, signal === undefined ? {} : { signal });
  }

  /** What {@link bump} would cost, in satoshis. */
  async bumpQuote(txid: string, options: { readonly feeRate: number }): Promise<bigint> {
    const { feeRate } = checkOptions("options", options, ["feeRate"]);
    return this.#backend.request("bumpQuote", checkText("txid", txid), checkFeeRate("feeRate", feeRate));
  }

  /**
   * Lifts a final transaction that waits for its block, one that this wallet paid or was paid by: a payment to this wallet that spends an output of it
   * and pays for both (child pays for parent). Waits until that is final.
   *
   * @param options - `feeRate` in sat/vB, that both come to.
   * @throws {@link QuorateError} `nothing_to_lift`, `insufficient_funds`, and as {@link OpenWallet.pay}.
   */
  async bump(txid: string, options: { readonly feeRate: number } & WaitOptions): Promise<Receipt> {
    const { feeRate, signal } = checkOptions("options", options, ["feeRate", ...WAIT]);
    checkText("txid", txid);
    checkFeeRate("feeRate", feeRate);
    return abortable(() => this.#backend.request("bump", txid, feeRate), signal);
  }

  /**
   * Lets the wallet move coins home by itself when they grow old, while it is open: once per block, at the server's estimate and at most at this fee
   * rate in sat/vB. `undefined`, as at first, lets it not. After one that failed (event `refreshFailed`) it waits a day.
   *
   * @throws {@link QuorateError} `fee_rate_out_of_range`, `coins_short_lived`.
   */
  async setAutoRefresh(feeRateMax: number | undefined): Promise<void> {
    await this.#backend.request("setAutoRefresh", optional(checkFeeRate, "feeRateMax", feeRateMax));
  }

  /** Asks the federation to stop a payment that is not final yet. Its outcome comes as a `payment` event. */
  async cancel(txid: string): Promise<void> {
    await this.#backend.request("cancel", checkText("txid", txid));
  }

  /**
   * Waits until what arrived at an address, by verified proofs, is at least `amount`: hand over the goods then. What has been spent since counts too.
   * `minimum` says which promise is enough: `"enforced"`, final for good or in a block; `"attested"`, by the nodes' word alone too, which its payer can
   * still undo on the chain; `"confirmed"`, in a block. Give each sale an address of its own; two tills of one account give out the same ones, so let
   * one of them do it.
   *
   * @defaultValue `minimum` is `"enforced"`
   * @throws {@link QuorateError} `invalid_argument` for another minimum, or an amount that is none.
   */
  async paymentTo(address: string, options: { readonly amount: bigint; readonly minimum?: Minimum } & WaitOptions): Promise<IncomingPayment> {
    const { amount: wanted, minimum = "enforced" } = checkOptions("options", options, ["amount", "minimum", ...WAIT]);
    checkText("address", address);
    checkAmount("amount", wanted);
    const enough = Object.hasOwn(ENOUGH, minimum) ? ENOUGH[minimum] : undefined;
    if (enough === undefined) throw new QuorateError("invalid_argument", `minimum: ${String(minimum)} is none of ${Object.keys(ENOUGH).join(", ")}`);
    const check = async (): Promise<IncomingPayment | undefined> => {
      const coins = (await this.#backend.request("coinsAt", address)).filter((coin) => !coin.conflicted && enough(coin));
      const amount = coins.reduce((sum, coin) => sum + coin.value, 0n);
      if (amount < wanted) return undefined;
      const txids = [...new Set(coins.map((coin) => coin.outpoint.slice(0, 64)))];
      const transactions = txids.map(async (txid) => {
        const finality = coins.find((coin) => coin.outpoint.startsWith(txid))?.finality;
        const proof = await this.proof(txid);
        return { txid, ...(finality && { finality }), ...(proof !== undefined && { proof }) };
      });
      return { address, amount, transactions: await Promise.all(transactions) };
    };
    return this.#events.until(check, options);
  }

  /**
   * Everything that happens from now on. A reader that is too slow gets a `lagged` event instead of what it missed.
   *
   * @example
   * ```ts no-run
   * for await (const event of wallet.events({ signal: AbortSignal.timeout(60_000) })) {
   *   if (event.type === "received") console.log(event.amount, "satoshis, final");
   * }
   * ```
   */
  events(options: WaitOptions = {}): AsyncIterableIterator<WalletEvent> & AsyncDisposable {
    return this.#events.iterate(checkOptions("options", options, WAIT));
  }

  /** Calls a listener for every event of a type. Gives a function that ends it. */
  on<T extends WalletEvent["type"]>(
    type: T,
    listener: (event: Extract<WalletEvent, { type: T }>) => void,
    options: WaitOptions = {},
  ): () => void {
    return this.#events.on(type, listener, checkOptions("options", options, WAIT));
  }

  /**
   * Calls a listener with a line for everything that happens, for an application's own log. Gives a function that ends it. Lines have no addresses, no
   * amounts and nothing secret, and name transactions by their first eight digits.
   *
   * @example
   * ```ts no-run
   * wallet.onLog(({ level, text }) => console[level](text));
   * ```
   */
  onLog(listener: (line: LogLine) => void): () => void {
    return this.#recorder.listen(listener);
  }

  /**
   * A text for a bug report, as JSON: network and federation, how the wallet is connected, of what it has how many, and the last 200 lines of
   * {@link onLog}. No words, keys, addresses, amounts, whole txids, paths or URLs. It can be had of a wallet that has failed, too: what that does not say any more is
   * the code of its error.
   */
  async diagnostics(): Promise<string> {
    const { network, federation, watchOnly } = this.account;
    const [connection, tip, balance, coins, history] = await Promise.allSettled([
      this.connection(),
      this.tip(),
      this.balance(),
      this.#backend.request("coins"),
      this.#backend.request("history"),
    ]);
    return report({ network, federation, watchOnly, connection, tip, balance, coins, history }, this.#recorder.lines);
  }

  /**
   * The secret words, for the user's backup. Anybody who has them has the money.
   *
   * @param unlock - The wallet's password or key, asked again; not needed for one in memory.
   */
  revealWords(unlock?: Unlock): Promise<string> {
    return this.#backend.request("revealWords", unlock);
  }

  /**
   * The backup as text, to be printed or kept as a file: words, descriptor, network and birthday. It is all that its owner needs to move every coin
   * without any node or bridge, once the account's recovery delay has passed (`quorate recover`). Anybody who has it has the money.
   *
   * @param unlock - The wallet's password or key, asked again; not needed for one in memory.
   * @param options - `words: false` leaves the words out, for a sheet that shows what the account owns and moves nothing.
   */
  async backup(unlock?: Unlock, options: { readonly words?: boolean } = {}): Promise<string> {
    const { words } = checkOptions("options", options, ["words"]);
    return this.#backend.request("backup", unlock, optional(checkFlag, "words", words) ?? true);
  }

  /**
   * The whole wallet as one encrypted file: the words, and all that they do not restore, such as labels, payments under way, proofs and which address comes next.
   * {@link Wallet.restore} goes on with it on another device. Whoever has the file and its password has the money.
   *
   * Use one of the two at a time: both would give out the same addresses. What came after the file is learned from the federation, but for labels, notes and the keys of
   * payments: make a new file now and then.
   *
   * @param fileUnlock - Password or key of the file, best another than the wallet's.
   * @param unlock - The wallet's password or key, asked again; not needed for one in memory.
   * @throws {@link QuorateError} `wrong_password`; `watch_only`: the account is only watched, and nothing of it is stored.
   *
   * @example
   * ```ts no-run
   * const file = await wallet.backupFile({ password: "another horse" }, { password: "correct horse" });
   * location.href = URL.createObjectURL(new Blob([file]));
   * ```
   */
  async backupFile(fileUnlock: Unlock, unlock?: Unlock): Promise<Uint8Array<ArrayBuffer>> {
    return this.#backend.request("backupFile", checkUnlock("fileUnlock", fileUnlock), optional(checkUnlock, "unlock", unlock));
  }

  /** Replaces password or key. */
  async changeUnlock(from: Unlock, to: Unlock): Promise<void> {
    await this.#backend.request("changeUnlock", from, to);
  }

  /** Ends the wallet and lets another tab or process open it. Waiting calls end with the code `closed`. */
  async close(): Promise<void> {
    await this.#backend.close();
    await this.#end();
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }
}

export { QuorateError };
