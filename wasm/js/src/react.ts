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
import type { Balance, Connection, HistoryEntry, PaymentRequest, PaymentState, Receipt, WalletEvent } from "./types.js";
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
  const [value, setValue] = useState<T>();
  const reading = useRef(0);
  const latest = useRef(read);
  latest.current = read;
  const refresh = useCallback(() => {
    const mine = ++reading.current;
    if (wallet === undefined) return setValue(undefined);
    // Of several readings under way only the last counts; a wallet that is closed keeps what it showed.
    latest.current(wallet).then((found) => mine === reading.current && setValue(found), () => undefined);
  }, [wallet]);
  useEffect(refresh, [refresh]);
  useEvents(wallet, refresh);
  return value;
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
  /** Pays; the state, the receipt or the error appear here. */
  readonly send: (request: PaymentRequest) => Promise<Receipt | undefined>;
  /** Known once it has been submitted. */
  readonly txid: string | undefined;
  /** Where it stands. */
  readonly state: PaymentState | undefined;
  readonly receipt: Receipt | undefined;
  readonly error: QuorateError | undefined;
  /** Forgets the last payment. */
  readonly reset: () => void;
}

const NOTHING_SENT = { txid: undefined, state: undefined, receipt: undefined, error: undefined };

/** Makes payments one at a time and shows how they go. */
export function useSend(wallet: OpenWallet | undefined): Sending {
  const [shown, setShown] = useState<Omit<Sending, "send" | "reset">>(NOTHING_SENT);
  const attempt = useRef(0);
  const sent = useRef<{ txid: string | undefined; readonly states: Map<string, PaymentState> }>(undefined);
  const reset = useCallback(() => {
    attempt.current += 1;
    sent.current = undefined;
    setShown(NOTHING_SENT);
  }, []);
  useEvents(wallet, (event) => {
    if (event.type !== "payment" || sent.current === undefined) return;
    // The first states may come before `send` gives the txid.
    sent.current.states.set(event.txid, event);
    if (event.txid === sent.current.txid) setShown((before) => ({ ...before, state: event }));
  });
  const send = useCallback(
    async (request: PaymentRequest) => {
      reset();
      if (wallet === undefined) return undefined;
      const mine = attempt.current;
      const show = (what: Partial<Sending>) => {
        if (attempt.current === mine) setShown((before) => ({ ...before, ...what }));
      };
      const current = { txid: undefined as string | undefined, states: new Map<string, PaymentState>() };
      sent.current = current;
      try {
        const txid = await wallet.send(request);
        current.txid = txid;
        show({ txid, state: current.states.get(txid) });
        const receipt = await wallet.outcome(txid);
        show({ receipt });
        return receipt;
      } catch (thrown) {
        show({ error: QuorateError.from(thrown) });
        return undefined;
      }
    },
    [wallet, reset],
  );
  return { ...shown, send, reset };
}
