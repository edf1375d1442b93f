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
import type { Balance, HistoryEntry, PaymentRequest, PaymentState, Receipt, WalletEvent } from "./types.js";
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

/** Whether the wallet is connected: `ready` once payments can be made. */
export function useConnection(wallet: OpenWallet | undefined): "connecting" | "connected" | "ready" | "offline" {
  const [state, setState] = useState<"connecting" | "connected" | "ready" | "offline">("connecting");
  useEffect(() => {
    setState("connecting");
    let current = true;
    // It may have become ready before anyone listened.
    wallet?.ready().then(() => current && setState((before) => (before === "offline" ? before : "ready")), () => undefined);
    return () => {
      current = false;
    };
  }, [wallet]);
  useEvents(wallet, ({ type }) => {
    if (type === "connected" || type === "ready") setState(type);
    else if (type === "disconnected") setState("offline");
  });
  return state;
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
  /** Where it stands. */
  readonly state: PaymentState | undefined;
  readonly receipt: Receipt | undefined;
  readonly error: QuorateError | undefined;
  /** Forgets the last payment. */
  readonly reset: () => void;
}

/** Makes payments one at a time and shows how they go. */
export function useSend(wallet: OpenWallet | undefined): Sending {
  const [state, setState] = useState<PaymentState>();
  const [receipt, setReceipt] = useState<Receipt>();
  const [error, setError] = useState<QuorateError>();
  const txid = useRef<string>(undefined);
  const reset = useCallback(() => {
    txid.current = undefined;
    setState(undefined);
    setReceipt(undefined);
    setError(undefined);
  }, []);
  useEvents(wallet, (event) => {
    if (event.type !== "payment") return;
    if (event.state === "submitted" && txid.current === "") txid.current = event.txid;
    if (event.txid === txid.current) setState(event);
  });
  const send = useCallback(
    async (request: PaymentRequest) => {
      reset();
      if (wallet === undefined) return undefined;
      txid.current = "";
      try {
        const paid = await wallet.pay(request);
        setReceipt(paid);
        return paid;
      } catch (thrown) {
        setError(QuorateError.from(thrown));
        return undefined;
      }
    },
    [wallet, reset],
  );
  return { send, state, receipt, error, reset };
}
