// What callers pass is looked at before anything is done with it: at run time there are no types.
import { QuorateError } from "./errors.js";
import type { Opening, Till } from "./opening.js";
import type { PaymentRequest, Quote, Recipient } from "./types.js";
import type { Unlock } from "./vault.js";

/** All bitcoin that there can be, in satoshis. */
const MAX_MONEY = 2_100_000_000_000_000n;

export function refuse(name: string, why: string): never {
  throw new QuorateError("invalid_argument", `${name}: ${why}`);
}

/** What was passed, for a message: short, and nothing of what is inside. */
function kindOf(value: unknown): string {
  if (value === null) return "null";
  if (typeof value === "bigint" || typeof value === "number" || typeof value === "boolean") return `${typeof value} ${value}`;
  return typeof value;
}

/** An object with no other options than these: a misspelt one would change nothing in silence. */
export function checkOptions<T extends object>(what: string, options: T | undefined, names: readonly string[]): T {
  if (typeof options !== "object" || options === null || Array.isArray(options)) refuse(what, `has to be an object, not ${kindOf(options)}`);
  for (const name of Object.keys(options)) {
    if (!names.includes(name)) refuse(what, `there is no option ${name.slice(0, 40)}; there are ${names.join(", ")}`);
  }
  return options;
}

export function checkText(name: string, value: unknown): string {
  return typeof value === "string" ? value : refuse(name, `has to be a string, not ${kindOf(value)}`);
}

export function checkFlag(name: string, value: unknown): boolean {
  return typeof value === "boolean" ? value : refuse(name, `has to be true or false, not ${kindOf(value)}`);
}

export function checkAmount(name: string, value: unknown): bigint {
  if (typeof value !== "bigint") refuse(name, `has to be a bigint of satoshis, not ${kindOf(value)}`);
  return value >= 1n && value <= MAX_MONEY ? value : refuse(name, "has to be from 1 satoshi to 21 million bitcoin");
}

/** Which rates are out of bounds is the engine's to say. */
export function checkFeeRate(name: string, value: unknown): number {
  return typeof value === "number" && !Number.isNaN(value) ? value : refuse(name, `has to be a number of sat/vB, not ${kindOf(value)}`);
}

/** A height, a number of blocks, of addresses, of an account. */
export function checkCount(name: string, value: unknown): number {
  return typeof value === "number" && Number.isInteger(value) && value >= 0 && value < 2 ** 31 ? value : refuse(name, `has to be a whole number from 0 on, not ${kindOf(value)}`);
}

/** `undefined` if it is absent. */
export function optional<T>(check: (name: string, value: unknown) => T, name: string, value: unknown): T | undefined {
  return value === undefined ? undefined : check(name, value);
}

/** A quote, which may have gone through a page's state. */
export function checkQuote(quote: Quote): Quote {
  const names = ["psbt", "amount", "fee", "total", "feeRate", "change", "coins", "unconfirmed", "most", "idempotencyKey"];
  checkText("psbt", checkOptions("quote", quote, names).psbt);
  checkKey(quote.idempotencyKey);
  return quote;
}

function checkKey(key: unknown): void {
  if (optional(checkText, "idempotencyKey", key) === "") refuse("idempotencyKey", "must not be empty");
}

export function checkPayment(request: PaymentRequest): PaymentRequest {
  const names = ["to", "amount", "data", "coins", "feeRate", "idempotencyKey"];
  const { to, amount, data, coins, feeRate, idempotencyKey } = checkOptions("payment", request, names);
  if (Array.isArray(to)) {
    if (to.length === 0) refuse("to", "at least one recipient is needed");
    if (amount !== undefined) refuse("amount", "several recipients have amounts of their own");
    (to as readonly Recipient[]).forEach((one) => checkRecipient(checkOptions("to", one, ["to", "amount"])));
    if (to.filter((one: Recipient) => one.amount === "everything").length > 1) refuse("to", "everything can go to one of them only");
  } else {
    checkRecipient({ to: to as string, ...(amount !== undefined && { amount }) });
  }
  if (data !== undefined && !(data instanceof Uint8Array)) refuse("data", `has to be a Uint8Array, not ${kindOf(data)}`);
  if (coins !== undefined && !Array.isArray(coins)) refuse("coins", `has to be an array, not ${kindOf(coins)}`);
  if (coins?.length === 0) refuse("coins", "at least one is needed; leave it out to have them selected");
  coins?.forEach((coin) => checkText("coins", coin));
  optional(checkFeeRate, "feeRate", feeRate);
  checkKey(idempotencyKey);
  return request;
}

function checkRecipient({ to, amount }: Recipient): void {
  checkText("to", to);
  if (amount !== "everything") optional(checkAmount, "amount", amount);
}

/** Checks a password or key. */
export function checkUnlock(name: string, unlock: unknown): Unlock {
  const { password, key } = checkOptions(name, unlock as { readonly password?: string; readonly key?: Uint8Array }, ["password", "key"]);
  if ((password === undefined) === (key === undefined)) refuse(name, "has to have either a password or a key");
  optional(checkText, `${name}.password`, password);
  if (key !== undefined && !(key instanceof Uint8Array)) refuse(`${name}.key`, `has to be a Uint8Array, not ${kindOf(key)}`);
  return password !== undefined ? { password } : { key: key as Uint8Array };
}

function checkTill(till: Till | undefined): void {
  if (till === undefined) return;
  const { number, of } = checkOptions("till", till, ["number", "of"]);
  checkCount("till.number", number);
  checkCount("till.of", of);
  if (number >= of || of > 16) refuse("till", "has to be one of at most 16, counted from 0");
}

/** Names of all options of `create`, `open`, `restore` and `watch`: an application may have one object for all of them. */
const OPTIONS = [
  ...["bridge", "signal", "name", "storage", "directory", "password", "key"],
  ...["file", "fileUnlock"],
  ...["federation", "words", "passphrase", "record", "account", "gapLimit", "till", "recoveryDelay", "paymentMax", "checkpoint"],
];

/**
 * Looks at what was passed, here and in the page before a worker is asked.
 *
 * @throws {@link QuorateError} `invalid_argument`
 */
export function checkOpening({ mode, options }: Opening): void {
  checkOptions("options", options, OPTIONS);
  if ((mode !== "open" && mode !== "restore") || options.bridge !== undefined) {
    const urls: readonly unknown[] = Array.isArray(options.bridge) ? options.bridge : [options.bridge];
    if (urls.length === 0) refuse("bridge", "at least one is needed");
    urls.forEach((url) => checkText("bridge", url));
  }
  if (mode === "open") return;
  if (mode === "restore") {
    if (!(options.file instanceof Uint8Array)) refuse("file", `has to be a Uint8Array, not ${kindOf(options.file)}`);
    checkUnlock("fileUnlock", options.fileUnlock);
    return;
  }
  checkText("federation", options.federation);
  optional(checkCount, "gapLimit", options.gapLimit);
  checkTill(options.till);
  const { checkpoint } = options;
  if (checkpoint !== undefined) {
    const { height, header } = checkOptions("checkpoint", checkpoint, ["height", "header"]);
    checkCount("checkpoint.height", height);
    checkText("checkpoint.header", header);
  }
  if (mode === "watch") {
    checkText("record", options.record);
    return;
  }
  optional(checkText, "words", options.words);
  optional(checkText, "passphrase", options.passphrase);
  optional(checkCount, "account", options.account);
  optional(checkCount, "recoveryDelay", options.recoveryDelay);
  optional(checkAmount, "paymentMax", options.paymentMax);
}
