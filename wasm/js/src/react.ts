/**
 * React hooks around an open wallet. Each takes `undefined` while there is none yet.
 *
 * @example
 * ```tsx no-run
 * import { useBalance, useConnection } from "quorate/react";
 * function Header({ wallet }: { wallet: Wallet | undefined }) {
 *   const balance = useBalance(wallet);
 *   return <p>{useConnection(wallet)}: {balance?.spendable.toString()} sat</p>;
 * }
 * ```
 *
 * @packageDocumentation
 */
import { useCallback, useEffect, useRef, useState } from "react";
import type { Balance, Connection, HistoryEntry, PaymentRequest, PaymentState, Quote, Receipt, WalletEvent } from "./types.js";
import { QuorateError } from "./errors.js";
import type { OpenWallet } from "./wallet.js";

/** Calls a listener for every event of the wallet, while the component is mounted. */
export function useEvents(wallet: OpenWallet | undefined, listener: (event: WalletEvent) => void): void {
  const latest = useRef(listener);
  latest.current = listener;
  useEffect(() => {
    if (wallet === undefined) return undefined;
    const stop = new AbortController();
    void (async () => {
      for await (const event of wallet.events({ signal: stop.signal })) {
        if (stop.signal.aborted) return;
        try {
          latest.current(event);
        } catch (error) {
          // The listener's own error, shown where errors of event handlers are shown.
          reportError(error);
        }
      }
    })();
    return () => stop.abort();
  }, [wallet]);
}

/** Reads something of the wallet, now and after every event that may have changed it. */
function useRead<T>(wallet: OpenWallet | undefined, read: (wallet: OpenWallet) => Promise<T>): T | undefined {
  const [found, setFound] = useState<{ readonly of: OpenWallet; readonly value: T }>();
  const reading = useRef(0);
  const latest = useRef(read);
  latest.current = read;
  const refresh = useCallback(() => {
    const mine = ++reading.current;
    if (wallet === undefined) return;
    // Of several readings under way only the last counts; a wallet that is closed keeps what it showed.
    latest.current(wallet).then((value) => mine === reading.current && setFound({ of: wallet, value }), () => undefined);
  }, [wallet]);
  useEffect(refresh, [refresh]);
  useEvents(wallet, refresh);
  // Never what another wallet had.
  return found !== undefined && found.of === wallet ? found.value : undefined;
}

/** Whether the wallet is connected: `ready` once payments can be made. `undefined` before there is a wallet. */
export function useConnection(wallet: OpenWallet | undefined): Connection | undefined {
  return useRead(wallet, (open) => open.connection());
}

/** What the wallet has. */
export function useBalance(wallet: OpenWallet | undefined): Balance | undefined {
  return useRead(wallet, (open) => open.balance());
}

/** Payments in and out. */
export function useHistory(wallet: OpenWallet | undefined): readonly HistoryEntry[] | undefined {
  return useRead(wallet, (open) => open.history());
}

/** A payment being made. */
export interface Sending {
  /** Pays; the state, the receipt or the error appear here. While a payment is under way it gives that one's result and sends nothing. */
  readonly send: (request: PaymentRequest | Quote) => Promise<Receipt | undefined>;
  /** Whether a payment is under way. */
  readonly sending: boolean;
  /** Known once the payment is saved: from then on it goes on even if the page is closed. */
  readonly txid: string | undefined;
  /** Where it stands. */
  readonly state: PaymentState | undefined;
  readonly receipt: Receipt | undefined;
  readonly error: QuorateError | undefined;
  /** Forgets the last payment. */
  readonly reset: () => void;
}

type Shown = Omit<Sending, "send" | "reset">;

interface Current {
  txid: string | undefined;
  readonly early: Map<string, PaymentState>;
  result: Promise<Receipt | undefined>;
}

const NOTHING_SENT: Shown = { sending: false, txid: undefined, state: undefined, receipt: undefined, error: undefined };

/** Makes payments one at a time and shows how they go. */
export function useSend(wallet: OpenWallet | undefined): Sending {
  const [shown, setShown] = useState<Shown>(NOTHING_SENT);
  const attempt = useRef(0);
  const current = useRef<Current>(undefined);
  const reset = useCallback(() => {
    attempt.current += 1;
    current.current = undefined;
    setShown(NOTHING_SENT);
  }, []);
  // Another wallet's payments are not this one's.
  useEffect(() => reset, [wallet, reset]);
  useEvents(wallet, (event) => {
    if (event.type !== "payment" || current.current === undefined) return;
    const { txid, early } = current.current;
    // The first states may come before `send` gives the txid.
    if (txid === undefined) early.set(event.txid, event);
    else if (event.txid === txid) setShown((before) => ({ ...before, state: event }));
  });
  const send = useCallback(
    (request: PaymentRequest | Quote): Promise<Receipt | undefined> => {
      // A second click is not a second payment.
      if (current.current !== undefined) return current.current.result;
      reset();
      if (wallet === undefined) return Promise.resolve(undefined);
      const mine = attempt.current;
      const show = (what: Partial<Shown>): void => {
        if (attempt.current === mine) setShown((before) => ({ ...before, ...what }));
      };
      const making: Current = { txid: undefined, early: new Map(), result: Promise.resolve(undefined) };
      const pay = async (): Promise<Receipt | undefined> => {
        try {
          const txid = await wallet.send(request);
          making.txid = txid;
          show({ txid, state: making.early.get(txid) });
          making.early.clear();
          const receipt = await wallet.outcome(txid);
          show({ receipt });
          return receipt;
        } catch (thrown) {
          const error = QuorateError.from(thrown);
          const { code, message, details } = error;
          // The same key is the same payment, however often it is asked for.
          const isOver = request.idempotencyKey !== undefined && (code === "payment_failed" || code === "payment_rejected");
          show({ error: isOver ? new QuorateError(code, message, { details, cause: thrown }) : error });
          return undefined;
        } finally {
          show({ sending: false });
          if (current.current === making) current.current = undefined;
        }
      };
      current.current = making;
      show({ sending: true });
      making.result = pay();
      return making.result;
    },
    [wallet, reset],
  );
  return { ...shown, send, reset };
}
