// One payment with all that is known of it: to look up, to note something, to show to others.
import { useEffect, useRef, useState, type FormEvent } from "react";
import type { HistoryEntry } from "quorate";
import type { OpenWallet } from "quorate/worker";
import { Address, Copy, Field, Problem, useAction } from "./ui.js";
import { useUnit } from "./units.js";

export function Payment({ wallet, entry, standing, onBack }: { wallet: OpenWallet; entry: HistoryEntry; standing: string; onBack: () => void }) {
  const { unit } = useUnit();
  const heading = useRef<HTMLHeadingElement>(null);
  const [proof, setProof] = useState<string>();
  const { txid, received, spent, to, fee, block, blockTime, confirmations } = entry;
  useEffect(() => heading.current?.focus(), []);
  useEffect(() => {
    let live = true;
    void wallet.proof(txid).then((found) => live && setProof(found));
    return () => void (live = false);
  }, [wallet, txid, entry.finality]);
  const net = received - spent;
  return (
    <section className="card" aria-label="Payment">
      <h2 ref={heading} tabIndex={-1}>{net < 0n ? "Sent" : "Received"} {unit.show(net < 0n ? -net : net)}</h2>
      <dl className="facts">
        {to.map(({ address, amount, label }) => (
          <Recipient key={address} address={address} label={label} amount={unit.show(amount)} />
        ))}
        {fee !== undefined && <><dt>Fee</dt><dd>{unit.show(fee)}</dd></>}
        <dt>Stands</dt>
        <dd>{standing}</dd>
        <dt>Block</dt>
        <dd>{block ? <>{block.height.toLocaleString("en-US")}{blockTime && <>, {new Date(blockTime * 1000).toLocaleString()}</>}, {confirmations} confirmation{confirmations === 1 ? "" : "s"}</> : "In none yet"}</dd>
        <dt>Transaction</dt>
        <dd className="mono">{txid}</dd>
      </dl>
      <Note wallet={wallet} txid={txid} note={entry.label ?? ""} />
      {proof !== undefined && <p className="hint">The proof shows anybody who knows the federation's id that this payment is final.</p>}
      <div className="row">
        {proof !== undefined && <Copy text={proof} label="Copy proof" />}
        <Copy text={txid} label="Copy transaction id" />
        <button type="button" onClick={onBack}>Back</button>
      </div>
    </section>
  );
}

function Recipient({ address, label, amount }: { address: string; label: string | undefined; amount: string }) {
  return (
    <>
      <dt>{amount} to</dt>
      <dd>{label && <>{label}<br /></>}<Address text={address} /></dd>
    </>
  );
}

/** What its owner calls it; it stays on this device, encrypted with the wallet. */
function Note({ wallet, txid, note }: { wallet: OpenWallet; txid: string; note: string }) {
  const [text, setText] = useState(note);
  const { busy, error, run } = useAction();
  const submit = (event: FormEvent) => {
    event.preventDefault();
    run(() => wallet.setLabel({ type: "tx", ref: txid, label: text.trim() }));
  };
  return (
    <form onSubmit={submit}>
      <Field label="Note" hint="For yourself. It is kept on this device, and in a backup file.">
        {(id) => <input id={id} maxLength={200} value={text} onChange={(event) => setText(event.target.value)} />}
      </Field>
      <Problem error={error} />
      {text.trim() !== note && <button className="quiet" disabled={busy}>Save note</button>}
    </form>
  );
}
