import { useEffect, useState, type FormEvent } from "react";
import { useSend } from "quorate/react";
import type { PaymentState } from "quorate";
import type { OpenWallet } from "quorate/worker";
import { Scan, canScan } from "./scan.js";
import { Field, Problem, parseSats, sats } from "./ui.js";

/** Reads what it can of a `bitcoin:` URI, to show it; the wallet reads and checks it again. */
function amountOf(to: string): bigint | undefined {
  const found = /^bitcoin:[^?]*\?(.*)$/i.exec(to.trim());
  const amount = found && new URLSearchParams(found[1]).get("amount");
  const parts = amount && /^(\d+)(?:\.(\d{1,8}))?$/.exec(amount);
  return parts ? BigInt(parts[1] + (parts[2] ?? "").padEnd(8, "0")) : undefined;
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

export function Send({ wallet, ready }: { wallet: OpenWallet; ready: boolean }) {
  const [to, setTo] = useState("");
  const [amount, setAmount] = useState("");
  const [scanning, setScanning] = useState(false);
  const [started, setStarted] = useState<number>();
  const [took, setTook] = useState<number>();
  const { send, txid, state, receipt, error, reset } = useSend(wallet);
  const asked = amountOf(to);
  useEffect(() => {
    if (receipt && started !== undefined && took === undefined) setTook(performance.now() - started);
  }, [receipt, started, took]);

  const wanted = asked ?? parseSats(amount);
  const busy = started !== undefined && !receipt && !error;
  const submit = (event: FormEvent) => {
    event.preventDefault();
    setStarted(performance.now());
    setTook(undefined);
    void send(asked === undefined ? { to, amount: wanted } : { to });
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
      <Problem error={error} />
      <button disabled={!ready || to.trim() === "" || !wanted}>{wanted ? `Pay ${sats(wanted)}` : "Pay"}</button>
      {!ready && <p className="hint">Waiting for the federation…</p>}
    </form>
  );
}
