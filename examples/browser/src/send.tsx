import { useEffect, useRef, useState, type FormEvent } from "react";
import type { Sending } from "quorate/react";
import type { Destination, PaymentState, Quote } from "quorate";
import type { OpenWallet } from "quorate/worker";
import { Scan, canScan } from "./scan.js";
import { Address, Field, Problem, useAction } from "./ui.js";
import { useUnit } from "./units.js";

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
  const { unit } = useUnit();
  const [to, setTo] = useState("");
  const [amount, setAmount] = useState("");
  const [everything, setEverything] = useState(false);
  const [scanning, setScanning] = useState(false);
  const [review, setReview] = useState<Review>();
  const [started, setStarted] = useState<number>();
  const [took, setTook] = useState<number>();
  const { send, txid, state, receipt, error, reset } = sending;
  const destination = useDestination(wallet, to);
  const quoting = useAction();
  const asked = destination.found?.amount;
  useEffect(() => {
    if (receipt && started !== undefined && took === undefined) setTook(performance.now() - started);
  }, [receipt, started, took]);

  const wanted = asked ?? (everything ? "everything" : unit.parse(amount));
  const busy = sending.sending;
  // What was wrong is wrong no more once something else is asked for.
  const edited = () => {
    reset();
    quoting.clear();
  };
  const submit = (event: FormEvent) => {
    event.preventDefault();
    const found = destination.found;
    if (!found || !wanted) return;
    quoting.run(async () => {
      reset();
      setReview({ destination: found, quote: await wallet.quote({ to, amount: wanted }) });
    });
  };
  const pay = (quote: Quote) => {
    setStarted(performance.now());
    setTook(undefined);
    setReview(undefined);
    // What was shown is what is paid.
    void send(quote);
  };
  const again = () => {
    reset();
    setStarted(undefined);
    setTo("");
    setAmount("");
    setEverything(false);
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
  if (review) return <Confirm review={review} ready={ready} onPay={pay} onBack={() => setReview(undefined)} />;
  return (
    <form className="card" onSubmit={submit} aria-label="Send">
      <Field label="To" hint="A bitcoin address or a bitcoin: link.">
        {(id) => <textarea id={id} className="mono" rows={2} autoComplete="off" spellCheck={false} value={to} onChange={(event) => { setTo(event.target.value); edited(); }} />}
      </Field>
      <Problem error={destination.error} />
      {canScan && <button type="button" className="quiet" onClick={() => setScanning(true)}>Scan a code</button>}
      {asked === undefined && (
        <>
          <Field label="Amount" hint={everything ? "All that is spendable, less the fee." : unit.hint}>
            {(id) => <input id={id} inputMode="decimal" disabled={everything} value={everything ? "" : amount} onChange={(event) => { setAmount(event.target.value); edited(); }} />}
          </Field>
          <button type="button" className="quiet" aria-pressed={everything} onClick={() => { setEverything(!everything); edited(); }}>Everything</button>
        </>
      )}
      {destination.found?.label && <p className="hint">To {destination.found.label}</p>}
      <Problem error={quoting.error ?? error} />
      <button disabled={!ready || quoting.busy || !destination.found || !wanted}>{typeof wanted === "bigint" ? `Review ${unit.show(wanted)}` : "Review"}</button>
      {!ready && <p className="hint">Waiting for the federation…</p>}
    </form>
  );
}

/** A payment as it would be made, and to whom. */
interface Review {
  readonly destination: Destination;
  readonly quote: Quote;
}

/** What is paid, at what fee, and what that means: the last step before it is. */
function Confirm({ review: { destination, quote }, ready, onPay, onBack }: { review: Review; ready: boolean; onPay: (quote: Quote) => void; onBack: () => void }) {
  const { unit } = useUnit();
  const heading = useRef<HTMLHeadingElement>(null);
  useEffect(() => heading.current?.focus(), []);
  return (
    <section className="card" aria-label="Review">
      <h2 ref={heading} tabIndex={-1}>Pay this?</h2>
      <dl className="facts">
        <dt>To</dt>
        <dd>
          {destination.label && <span className="soft">{destination.label} (as the link says)<br /></span>}
          <Address text={destination.address} />
        </dd>
        {destination.message && <><dt>For</dt><dd>{destination.message} <span className="soft">(as the link says)</span></dd></>}
        <dt>Amount</dt>
        <dd>{unit.show(quote.amount)}</dd>
        <dt>Fee</dt>
        <dd>{unit.show(quote.fee)} <span className="soft">({quote.feeRate.toFixed(1)} sat/vB)</span></dd>
        <dt>Total</dt>
        <dd><strong>{unit.show(quote.total)}</strong></dd>
        <dt>Final</dt>
        <dd>At once: the federation co-signs it, and no second payment of these coins can be signed. Its block follows.</dd>
      </dl>
      {quote.unconfirmed && <p className="hint">It spends money that is in no block yet, and waits for that one's block.</p>}
      <button type="button" disabled={!ready} onClick={() => onPay(quote)}>Pay {unit.show(quote.amount)}</button>
      <button type="button" className="quiet" onClick={onBack}>Back</button>
      {!ready && <p className="hint">Waiting for the federation…</p>}
    </section>
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
