// What an invoice is and how it stands, without a wallet: what has arrived, when, and what that makes of it.
import { QuorateError } from "./errors.js";
import type { Coin, Finality, Minimum } from "./types.js";

/** How an invoice stands. */
export type InvoiceState =
  /** Nothing has arrived. */
  | "waiting"
  /** Something has, and not enough. */
  | "partial"
  | "paid"
  /** More than was asked for arrived, beyond the tolerance. */
  | "overpaid"
  /** Its time is over or it was cancelled, and enough arrived, but not all of it before. */
  | "late"
  /** Its time is over, and nothing has arrived. */
  | "expired"
  /** It was cancelled, and nothing has arrived. */
  | "cancelled"
  /** What arrived was paid back. */
  | "refunded";

/** A price in another currency, as it was when the invoice was made. */
export interface Fiat {
  /** Such as `"EUR"`. */
  readonly currency: string;
  /** A decimal number. */
  readonly amount: string;
  /** Price of one bitcoin, a decimal number. */
  readonly rate: string;
}

/** Something that arrived for an invoice. */
export interface InvoicePayment {
  /** `txid:vout`. */
  readonly outpoint: string;
  /** In satoshis. */
  readonly amount: bigint;
  /** When this wallet verified it first, or the time of its block if that is earlier; now, of one on its way. */
  readonly at: Date;
  readonly finality?: Finality;
  /** Height of the block that it is in, if it is in one. */
  readonly height?: number;
  /** Whether it is as certain as the invoice asks for. */
  readonly good: boolean;
}

/** A payment back. */
export interface Refund {
  /** What the shop calls it. */
  readonly id: string;
  /** Absent while it is not known to be final. */
  readonly txid?: string;
  /** In satoshis. */
  readonly amount: bigint;
}

/** An invoice, as it stands. Amounts are in satoshis. */
export interface Invoice {
  /** What the shop calls it. */
  readonly order: string;
  readonly address: string;
  /** To show as a QR code, or to link to (BIP21). */
  readonly uri: string;
  readonly amount: bigint;
  readonly memo?: string;
  readonly fiat?: Fiat;
  /** How much more or less is all right. */
  readonly tolerance: bigint;
  /** The least that counts as paid. */
  readonly minimum: Minimum;
  readonly created: Date;
  readonly expires: Date;
  readonly cancelled?: Date;
  readonly state: InvoiceState;
  /** Sum of what arrived and is as certain as it has to be. */
  readonly received: bigint;
  /** Sum of what is on its way. */
  readonly pending: bigint;
  /** What is missing of the amount. */
  readonly missing: bigint;
  /** What could be paid back: all that was too much, or all of an invoice that came to nothing. */
  readonly refundable: bigint;
  readonly payments: readonly InvoicePayment[];
  readonly refunds: readonly Refund[];
}

/** What is kept of a refund, from before it is made. */
export interface KeptRefund {
  readonly id: string;
  readonly amount: string;
  readonly to?: string;
  readonly feeRate?: number;
  readonly txid?: string;
}

/** What is kept of an invoice. */
export interface Kept {
  readonly order: string;
  readonly address: string;
  readonly amount: string;
  readonly memo?: string;
  readonly fiat?: Fiat;
  readonly tolerance: string;
  readonly minimum: Minimum;
  /** Milliseconds since 1970. */
  readonly created: number;
  readonly expires: number;
  readonly cancelled?: number;
  /** By txid, when it was verified first, or when its block was made. */
  readonly seen: Readonly<Record<string, number>>;
  /** Those of which the time of their block is known. */
  readonly mined?: readonly string[];
  /** What had been paid to its address before it was made. */
  readonly before?: readonly string[];
  /** When it was paid in time. */
  readonly paid?: number;
  readonly refunds: readonly KeptRefund[];
  /** By refund, how many attempts came to nothing. */
  readonly failed?: Readonly<Record<string, number>>;
}

/** Whether a coin is as certain as is asked for. */
export const ENOUGH: Readonly<Record<Minimum, (coin: Coin) => boolean>> = {
  attested: (coin) => coin.finality !== undefined || coin.block !== undefined,
  enforced: (coin) => coin.finality === "enforced" || coin.block !== undefined,
  confirmed: (coin) => coin.block !== undefined,
};

const sum = (payments: readonly InvoicePayment[]): bigint => payments.reduce((total, { amount }) => total + amount, 0n);
const least = (value: bigint): bigint => (value > 0n ? value : 0n);

/** Transactions of one invoice whose time is kept; of more, which somebody sends for no good reason, it is not. */
export const DATED_MAX = 200;

/** Whether a coin is proven, be it as certain as is asked for or not. A server's word alone dates nothing. */
const isProven = (coin: Coin): boolean => coin.finality !== undefined || coin.block !== undefined;

export const txidOf = ({ outpoint }: { readonly outpoint: string }): string => outpoint.slice(0, 64);

/** How an invoice stands with these coins at its address, at a time. */
export function standing(kept: Kept, coins: readonly Coin[], now: number): Invoice {
  const [amount, tolerance] = [BigInt(kept.amount), BigInt(kept.tolerance)];
  const payments = coins.filter((coin) => !coin.conflicted).map((coin): InvoicePayment => {
    const at = new Date(kept.seen[txidOf(coin)] ?? now);
    const { outpoint, value, finality, block } = coin;
    return { outpoint, amount: value, at, ...(finality && { finality }), ...(block && { height: block.height }), good: ENOUGH[kept.minimum](coin) };
  });
  payments.sort((one, other) => one.at.getTime() - other.at.getTime() || (one.outpoint < other.outpoint ? -1 : 1));
  const ends = Math.min(kept.expires, kept.cancelled ?? Number.POSITIVE_INFINITY);
  const over = now > ends;
  const good = payments.filter((payment) => payment.good);
  const received = sum(good);
  const refunds = kept.refunds.map(({ id, txid, amount: back }): Refund => ({ id, ...(txid !== undefined && { txid }), amount: BigInt(back) }));
  const total = (some: readonly Refund[]): bigint => some.reduce((all, refund) => all + refund.amount, 0n);
  // What is on its way back is not there to be paid back again.
  const [back, done] = [total(refunds), total(refunds.filter(({ txid }) => txid !== undefined))];
  const enough = amount - tolerance;
  // Once it was paid in time it stays so, whatever comes after or is given back; but not without the money.
  const inTime = kept.paid !== undefined || sum(good.filter(({ at }) => at.getTime() <= ends)) - back >= enough;
  const paid = inTime && received >= enough;
  const state = ((): InvoiceState => {
    if (done > 0n && done >= received) return "refunded";
    if (paid) return received - done - amount > tolerance ? "overpaid" : "paid";
    if (over && received >= enough) return "late";
    if (payments.length > 0) return "partial";
    if (kept.cancelled !== undefined) return "cancelled";
    return over ? "expired" : "waiting";
  })();
  // Of what is paid in time, what was too much; of all else, all that came.
  const spare = paid ? received - amount : over ? received : 0n;
  return {
    order: kept.order,
    address: kept.address,
    uri: uriOf(kept),
    amount,
    ...(kept.memo !== undefined && { memo: kept.memo }),
    ...(kept.fiat !== undefined && { fiat: kept.fiat }),
    tolerance,
    minimum: kept.minimum,
    created: new Date(kept.created),
    expires: new Date(kept.expires),
    ...(kept.cancelled !== undefined && { cancelled: new Date(kept.cancelled) }),
    state,
    received,
    pending: sum(payments) - received,
    missing: least(paid ? amount - received : amount - received + done),
    refundable: least(spare - back),
    payments,
    refunds,
  };
}

/** What is proven and has no date yet, or none of its block; of many the largest. */
export function undated(kept: Kept, coins: readonly Coin[]): readonly Coin[] {
  const mined = new Set(kept.mined);
  const known = new Set(Object.keys(kept.seen));
  return coins
    .filter((coin) => isProven(coin) && !coin.conflicted && (!known.has(txidOf(coin)) || (coin.block !== undefined && !mined.has(txidOf(coin)))))
    .sort((one, other) => (one.value < other.value ? 1 : -1))
    .filter((coin) => known.has(txidOf(coin)) || (known.size < DATED_MAX && known.add(txidOf(coin))));
}

/** Dates coins: from now, or from their blocks, which know better of a wallet that was away. */
export function date(kept: Kept, coins: readonly Coin[], blockTimes: ReadonlyMap<string, number | undefined>, now: number): Kept {
  const [seen, mined] = [{ ...kept.seen }, new Set(kept.mined)];
  for (const coin of coins) {
    const txid = txidOf(coin);
    const time = coin.block === undefined ? undefined : blockTimes.get(txid);
    if (time !== undefined) mined.add(txid);
    seen[txid] = Math.min(seen[txid] ?? now, (time ?? Number.POSITIVE_INFINITY) * 1_000);
  }
  return { ...kept, seen, mined: [...mined] };
}

/** Keeps that an invoice was paid in time, as long as the money is there and not all given back: what comes later does not undo it. */
export function notePaid(kept: Kept, { state }: Invoice, now: number): Kept {
  const paid = state === "paid" || state === "overpaid";
  if (paid) return kept.paid === undefined ? { ...kept, paid: now } : kept;
  if (kept.paid === undefined) return kept;
  const { paid: _undone, ...rest } = kept;
  return rest;
}

/** What was kept; `undefined` if it is something else's. */
export function readKept(text: string): Kept | undefined {
  try {
    const kept = JSON.parse(text) as Kept;
    standing(kept, [], 0);
    return kept;
  } catch {
    return undefined;
  }
}

/** What listeners hear changes of. */
export function fingerprint({ state, received, pending, refunds, expires, cancelled, payments }: Invoice, now: number): string {
  const over = cancelled !== undefined || now > expires.getTime();
  return [state, received, pending, over, ...refunds.map(({ id, txid }) => `${id}${txid}`), ...payments.map(({ outpoint, height }) => `${outpoint}${height}`)].join(" ");
}

function uriOf({ address, amount, memo }: Kept): string {
  const digits = amount.padStart(9, "0");
  const bitcoin = `${digits.slice(0, -8)}.${digits.slice(-8)}`.replace(/\.?0+$/, "");
  return `bitcoin:${address}?amount=${bitcoin}${memo === undefined ? "" : `&message=${encodeURIComponent(memo)}`}`;
}

/** A decimal number as a whole one of so many digits after the point. */
function decimal(name: string, text: string, digits: number): bigint {
  const [, whole = "", part = ""] = /^(\d{1,15})(?:\.(\d{1,8}))?$/.exec(text) ?? [];
  if (whole === "") throw new QuorateError("invalid_argument", `${name}: ${JSON.stringify(text)} is no decimal number`);
  return BigInt(whole + part.padEnd(digits, "0"));
}

/**
 * What a price comes to in satoshis, at the price of one bitcoin, rounded up.
 *
 * @throws {@link QuorateError} `invalid_argument`
 */
export function satoshisFor({ amount, rate }: Pick<Fiat, "amount" | "rate">): bigint {
  const [price, of] = [decimal("fiat.amount", amount, 8), decimal("fiat.rate", rate, 8)];
  if (of === 0n) throw new QuorateError("invalid_argument", "fiat.rate: a bitcoin has a price above 0");
  return (price * 100_000_000n + of - 1n) / of;
}
