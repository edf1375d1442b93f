import { useState, type FormEvent } from "react";
import type { OpenWallet } from "quorate/worker";
import { Copy, Field, Problem, useAction } from "./ui.js";

export function Settings({ wallet, lock }: { wallet: OpenWallet; lock: () => void }) {
  const { account } = wallet;
  return (
    <>
      <section className="card" aria-label="Account">
        <h2>Your account in any wallet</h2>
        <p className="soft">This descriptor is public. With it any descriptor wallet can watch the account, and with your words recover it, without Quorate, once the time lock of a coin has passed.</p>
        <p className="mono" data-testid="descriptor">{account.descriptor}</p>
        <div className="row">
          <Copy text={account.descriptor} label="Copy descriptor" />
          <Copy text={account.record} label="Copy account record" />
        </div>
        <p className="hint">The account record lets a checkout take payments without your keys.</p>
      </section>
      <Words wallet={wallet} />
      <section className="card" aria-label="Federation">
        <h2>Federation</h2>
        <p className="mono">{account.federation}</p>
        <p className="hint">Network: {account.network}. Everything that this wallet shows was verified against this id.</p>
      </section>
      <section className="card"><button type="button" className="quiet" onClick={lock}>Lock wallet</button></section>
    </>
  );
}

function Words({ wallet }: { wallet: OpenWallet }) {
  const [password, setPassword] = useState("");
  const [shown, setShown] = useState<string[]>();
  const { busy, error, run } = useAction();
  const submit = (event: FormEvent) => {
    event.preventDefault();
    run(async () => {
      setShown((await wallet.revealWords({ password })).split(" "));
      setPassword("");
    });
  };
  return (
    <form className="card" onSubmit={submit} aria-label="Backup">
      <h2>Backup</h2>
      {shown ? (
        <>
          <ol className="words">{shown.map((word, index) => <li key={index}>{word}</li>)}</ol>
          <button type="button" className="quiet" onClick={() => setShown(undefined)}>Hide</button>
        </>
      ) : (
        <>
          <Field label="Password">
            {(id) => <input id={id} type="password" autoComplete="current-password" value={password} onChange={(event) => setPassword(event.target.value)} />}
          </Field>
          <Problem error={error} />
          <button className="quiet" disabled={busy || password === ""}>Show the twelve words</button>
        </>
      )}
    </form>
  );
}
