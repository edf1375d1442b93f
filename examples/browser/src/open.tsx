import { useEffect, useState, type FormEvent } from "react";
import { Wallet } from "quorate/worker";
import type { Devnet } from "./devnet.js";
import { PASSWORD_LENGTH_MIN } from "./security.js";
import { Field, Problem, Shell, useAction } from "./ui.js";


type Step = "looking" | "welcome" | "restore" | "unlock" | "backup";

/** One wallet per federation and name, so that a new devnet does not meet the wallet of the last. */
export function walletName(devnet: Devnet | null): string {
  const name = new URLSearchParams(location.search).get("wallet") ?? "main";
  return devnet ? `${name}-${devnet.federation.slice(0, 12)}` : name;
}

export function Open({ devnet, onOpen }: { devnet: Devnet | null; onOpen: (wallet: Wallet) => void }) {
  const name = walletName(devnet);
  const [step, setStep] = useState<Step>("looking");
  const [made, setMade] = useState<{ wallet: Wallet; words: string[] }>();
  const looking = useAction();
  const look = () => looking.run(async () => setStep((await Wallet.exists({ name })) ? "unlock" : "welcome"));
  useEffect(look, []);

  if (step === "looking") {
    return (
      <Shell title="Quorate wallet">
        {looking.error !== undefined && (
          <section className="card">
            <Problem error={looking.error} />
            <button type="button" onClick={look}>Try again</button>
          </section>
        )}
      </Shell>
    );
  }
  if (made) return <Backup words={made.words} onDone={() => onOpen(made.wallet)} />;
  return (
    <Shell title="Quorate wallet">
      {step === "unlock" ? (
        <Unlock name={name} devnet={devnet} onOpen={onOpen} />
      ) : (
        <Create
          key={step}
          name={name}
          devnet={devnet}
          restore={step === "restore"}
          onSwitch={() => setStep(step === "restore" ? "welcome" : "restore")}
          onMade={(wallet, words) => (words ? setMade({ wallet, words }) : onOpen(wallet))}
        />
      )}
    </Shell>
  );
}

function Unlock({ name, devnet, onOpen }: { name: string; devnet: Devnet | null; onOpen: (wallet: Wallet) => void }) {
  const [password, setPassword] = useState("");
  const { busy, error, run } = useAction();
  const submit = (event: FormEvent) => {
    event.preventDefault();
    run(async () => onOpen(await Wallet.open({ name, password, ...(devnet && { bridge: devnet.bridge }) })));
  };
  return (
    <form className="card" onSubmit={submit}>
      <h1>Welcome back</h1>
      <Field label="Password">
        {(id) => (
          <input id={id} type="password" autoComplete="current-password" autoFocus value={password} onChange={(event) => setPassword(event.target.value)} />
        )}
      </Field>
      <Problem error={error} />
      <button disabled={busy || password === ""}>{busy ? "Opening…" : "Open wallet"}</button>
    </form>
  );
}

interface CreateProps {
  name: string;
  devnet: Devnet | null;
  restore: boolean;
  onSwitch: () => void;
  onMade: (wallet: Wallet, words: string[] | undefined) => void;
}

function Create({ name, devnet, restore, onSwitch, onMade }: CreateProps) {
  const [password, setPassword] = useState("");
  const [again, setAgain] = useState("");
  const [words, setWords] = useState("");
  const [passphrase, setPassphrase] = useState("");
  const [bridge, setBridge] = useState(devnet?.bridge ?? "");
  const [federation, setFederation] = useState(devnet?.federation ?? "");
  const { busy, error, run } = useAction();
  const different = again !== "" && again !== password;
  const complete = password.length >= PASSWORD_LENGTH_MIN && again === password && bridge && federation && (!restore || words);
  const submit = (event: FormEvent) => {
    event.preventDefault();
    run(async () => {
      const options = { bridge, federation, name, password };
      const wallet = await Wallet.create(restore ? { ...options, words, passphrase } : options);
      await navigator.storage?.persist?.();
      onMade(wallet, restore ? undefined : (await wallet.revealWords({ password })).split(" "));
    });
  };
  return (
    <form className="card" onSubmit={submit}>
      <div>
        <h1>{restore ? "Restore a wallet" : "Payments that are final at once"}</h1>
        <p className="soft">
          {restore ? "From the twelve words of its backup." : "With keys that never leave this device. No one can spend for you, and you can leave without anybody's help."}
        </p>
      </div>
      {restore && (
        <Field label="Twelve words">
          {(id) => <textarea id={id} rows={3} autoComplete="off" autoCapitalize="none" spellCheck={false} value={words} onChange={(event) => setWords(event.target.value)} />}
        </Field>
      )}
      {restore && (
        <details>
          <summary>Passphrase</summary>
          <Field label="Passphrase beside the words" hint="Only if the wallet was made with one. No passphrase is wrong: another one opens another wallet.">
            {(id) => <input id={id} type="password" autoComplete="off" value={passphrase} onChange={(event) => setPassphrase(event.target.value)} />}
          </Field>
        </details>
      )}
      <Field label="Password" hint={`At least ${PASSWORD_LENGTH_MIN} characters. It encrypts the wallet on this device; the words are the backup.`}>
        {(id) => <input id={id} type="password" autoComplete="new-password" value={password} onChange={(event) => setPassword(event.target.value)} />}
      </Field>
      <Field label="Password again" hint={different ? "The two passwords differ." : undefined}>
        {(id) => <input id={id} type="password" autoComplete="new-password" aria-invalid={different} value={again} onChange={(event) => setAgain(event.target.value)} />}
      </Field>
      <details open={!devnet}>
        <summary>Federation</summary>
        <div className="card">
          <Field label="Bridge">
            {(id) => <input id={id} inputMode="url" placeholder="wss://" value={bridge} onChange={(event) => setBridge(event.target.value.trim())} />}
          </Field>
          <Field label="Federation id" hint="From a source that you trust: everything is verified against it.">
            {(id) => <input id={id} className="mono" value={federation} onChange={(event) => setFederation(event.target.value.trim())} />}
          </Field>
        </div>
      </details>
      <Problem error={error} />
      <button disabled={busy || !complete}>{busy ? "Making the wallet…" : restore ? "Restore" : "Create wallet"}</button>
      <button type="button" className="quiet" onClick={onSwitch}>{restore ? "Make a new wallet instead" : "I have twelve words"}</button>
      {restore && <p className="hint">Is the federation gone? <a href="./recover.html">Move your coins without it.</a></p>}
    </form>
  );
}

/** Shows the words, then asks for two of them. */
function Backup({ words, onDone }: { words: string[]; onDone: () => void }) {
  const [asked] = useState(() => {
    const [first = 0, step = 0] = crypto.getRandomValues(new Uint32Array(2));
    const one = first % words.length;
    return [one, (one + 1 + (step % (words.length - 1))) % words.length].sort((a, b) => a - b);
  });
  const [checking, setChecking] = useState(false);
  const [answers, setAnswers] = useState(["", ""]);
  const right = asked.every((index, place) => answers[place]?.trim().toLowerCase() === words[index]);
  return (
    <Shell title="Quorate wallet">
      <section className="card">
        <h1>{checking ? "Let us check" : "Write these words down"}</h1>
        <p className="soft">
          {checking ? "So that you can be sure of your backup." : "On paper, in this order. Anybody who has them has your money; without them a lost device is lost money."}
        </p>
        {checking ? (
          <form className="field" onSubmit={(event) => { event.preventDefault(); if (right) onDone(); }}>
            {asked.map((index, place) => (
              <Field key={index} label={`Word ${index + 1}`}>
                {(id) => (
                  <input id={id} data-word={index} autoComplete="off" autoCapitalize="none" value={answers[place]}
                    onChange={(event) => setAnswers(answers.map((old, at) => (at === place ? event.target.value : old)))} />
                )}
              </Field>
            ))}
            <button disabled={!right}>Done</button>
            <button type="button" className="quiet" onClick={() => setChecking(false)}>Show the words again</button>
          </form>
        ) : (
          <>
            <ol className="words" data-testid="words">{words.map((word, index) => <li key={index}>{word}</li>)}</ol>
            <button type="button" onClick={() => setChecking(true)}>I have written them down</button>
          </>
        )}
      </section>
    </Shell>
  );
}
