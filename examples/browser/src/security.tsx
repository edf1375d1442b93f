// What locks the wallet on this device, and how it leaves it.
import { useState, type FormEvent } from "react";
import { Wallet, type OpenWallet } from "quorate/worker";
import { Field, Problem, useAction } from "./ui.js";

export const PASSWORD_LENGTH_MIN = 8;

export function ChangePassword({ wallet }: { wallet: OpenWallet }) {
  const [from, setFrom] = useState("");
  const [to, setTo] = useState("");
  const [done, setDone] = useState(false);
  const { busy, error, run } = useAction();
  const submit = (event: FormEvent) => {
    event.preventDefault();
    run(async () => {
      setDone(false);
      await wallet.changeUnlock({ password: from }, { password: to });
      setFrom("");
      setTo("");
      setDone(true);
    });
  };
  return (
    <form className="card" onSubmit={submit} aria-label="Change password">
      <h2>Change the password</h2>
      <Field label="Present password">
        {(id) => <input id={id} type="password" autoComplete="current-password" value={from} onChange={(event) => setFrom(event.target.value)} />}
      </Field>
      <Field label="New password" hint={`At least ${PASSWORD_LENGTH_MIN} characters.`}>
        {(id) => <input id={id} type="password" autoComplete="new-password" value={to} onChange={(event) => setTo(event.target.value)} />}
      </Field>
      <Problem error={error} />
      {done && <p role="status">The password was changed.</p>}
      <button className="quiet" disabled={busy || from === "" || to.length < PASSWORD_LENGTH_MIN}>Change password</button>
    </form>
  );
}

/** Erases the wallet from this device, for whoever can type that it is meant. */
export function Erase({ wallet, name, lock }: { wallet: OpenWallet; name: string; lock: () => Promise<void> }) {
  const [text, setText] = useState("");
  const { busy, error, run } = useAction();
  const submit = (event: FormEvent) => {
    event.preventDefault();
    run(async () => {
      await wallet.close();
      await Wallet.erase({ name });
      await lock();
    });
  };
  return (
    <form className="card" onSubmit={submit} aria-label="Erase">
      <h2>Erase this wallet</h2>
      <p className="soft">From this device alone: your words and the sheet bring it back. Without them the money is gone.</p>
      <Field label="Type erase">{(id) => <input id={id} autoComplete="off" value={text} onChange={(event) => setText(event.target.value)} />}</Field>
      <Problem error={error} />
      <button className="quiet danger" disabled={busy || text.trim().toLowerCase() !== "erase"}>Erase</button>
    </form>
  );
}
