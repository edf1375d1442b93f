import { useEffect, useState, type FormEvent } from "react";
import type { Sending } from "quorate/react";
import type { Destination, PaymentState } from "quorate";
import type { OpenWallet } from "quorate/worker";
import { Scan, canScan } from "./scan.js";
import { Field, Problem, parseSats, sats, useAction } from "./ui.js";

/** A payment takes well under a second. */
const STOP_AFTER_MS = 5_000;

/** What the wallet reads in what was typed, pasted or scanned: shown before it is paid. */
function useDestination(wallet: OpenWallet, text: string): { found?: Destination; error?: unknown } {
  const [read, setRead] = useState<{ text: string; found?: Destination; error?: unknown }>({ text: "" });
  useEffect(() => {
    if (text.trim() === "") return;
    wallet.parseDestination(text).then((found) => setRead({ text, found }), (error: unknown) => setRead({ text, error }));
  }, [wallet, text]);
  return read.text === text ? read : {};
}

/** What to show while a payment is made; it is saved once it has a txid, and goes on from then on whatever happens to the page. */
function progressOf(txid: string | undefined, state: PaymentState | undefined): { text: string; value: number } {
  if (txid === undefined) return { text: "Preparing", value: 0.2 };
  switch (state?.state) {
    case "voting": return { text: `The federation votes: ${state.votes} of ${state.quorum}`, value: 1 + state.votes / state.quorum };
    case "approved": return { text: "Approved; signing here", value: 2.3 };
    case "signing": return { text: "The nodes sign", value: 2.6 };
    case "final": return { text: "Final", value: 3 };
    default: return { text: "Submitted", value: 0.5 };
  }
}

/** Paying. What is under way is kept by the page, so that it is still here when its user comes back from another section. */
export function Send({ wallet, sending, ready }: { wallet: OpenWallet; sending: Sending; ready: boolean }) {
  const [to, setTo] = useState("");
  const [amount, setAmount] = useState("");
  const [scanning, setScanning] = useState(false);
  const [started, setStarted] = useState<number>();
  const [took, setTook] = useState<number>();
  const { send, txid, state, receipt, error, reset } = sending;
  const destination = useDestination(wallet, to);
  const asked = destination.found?.amount;
  useEffect(() => {
    if (receipt && started !== undefined && took === undefined) setTook(performance.now() - started);
  }, [receipt, started, took]);

  const wanted = asked ?? parseSats(amount);
  const busy = sending.sending;
  const submit = (event: FormEvent) => {
    event.preventDefault();
    setStarted(performance.now());
    setTook(undefined);
    // What the button says is what is paid.
    void send({ to, amount: wanted });
  };
  const again = () => {
    reset();
    setStarted(undefined);
    setTo("");
    setAmount("");
  };

  if (receipt) {
    return (
      <section className="card done" role="status">
        <svg className="mark" viewBox="0 0 16 16" aria-hidden="true"><circle cx="8" cy="8" r="7" /><path d="M4.5 8.2l2.4 2.4 4.6-5" /></svg>
        <h1>Final{took !== undefined && ` in ${(took / 1000).toFixed(2)} s`}</h1>
        <p className="soft">Nobody can undo this payment, not even you. Verified in this browser.</p>
        <p className="mono" data-testid="txid">{receipt.txid}</p>
        <button type="button" onClick={again}>Send another</button>
      </section>
    );
  }
  if (busy) {
    const { text, value } = progressOf(txid, state);
    return (
      <section className="card" role="status">
        <h2>{text}…</h2>
        <progress max={3} value={value} aria-label="Progress of the payment" />
        {txid !== undefined && <Stop wallet={wallet} txid={txid} />}
      </section>
    );
  }
  if (scanning) return <section className="card"><Scan onFound={(text) => { setTo(text); setScanning(false); }} onCancel={() => setScanning(false)} /></section>;
  return (
    <form className="card" onSubmit={submit} aria-label="Send">
      <Field label="To" hint="A bitcoin address or a bitcoin: link.">
        {(id) => <textarea id={id} className="mono" rows={2} autoComplete="off" spellCheck={false} value={to} onChange={(event) => setTo(event.target.value)} />}
      </Field>
      {canScan && <button type="button" className="quiet" onClick={() => setScanning(true)}>Scan a code</button>}
      {asked === undefined && (
        <Field label="Amount" hint="In satoshis.">
          {(id) => <input id={id} inputMode="numeric" value={amount} onChange={(event) => setAmount(event.target.value)} />}
        </Field>
      )}
      {destination.found?.label && <p className="hint">To {destination.found.label}</p>}
      <Problem error={error ?? destination.error} />
      <button disabled={!ready || !destination.found || !wanted}>{wanted ? `Pay ${sats(wanted)}` : "Pay"}</button>
      {!ready && <p className="hint">Waiting for the federation…</p>}
    </form>
  );
}

/** After a while in which a payment did not come to its end, offers to stop it. */
function Stop({ wallet, txid }: { wallet: OpenWallet; txid: string }) {
  const [late, setLate] = useState(false);
  const { busy, error, run } = useAction();
  useEffect(() => {
    const timer = setTimeout(() => setLate(true), STOP_AFTER_MS);
    return () => clearTimeout(timer);
  }, []);
  if (!late) return null;
  return (
    <>
      <p className="hint">This takes longer than it should. If you stop it and it can still be stopped, the money is yours again.</p>
      <Problem error={error} />
      <button type="button" className="quiet" disabled={busy} onClick={() => run(() => wallet.cancel(txid))}>Stop the payment</button>
    </>
  );
}
