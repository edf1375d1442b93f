import { useEffect, useId, useRef, useState, type ReactNode } from "react";
import { renderSVG } from "uqr";

const SAT_PER_BTC = 100_000_000n;

/** Satoshis as people read them. */
export function sats(amount: bigint): string {
  return `${amount.toLocaleString("en-US").replaceAll(",", "\u202f")} sat`;
}

/** Satoshis as BTC for a BIP21 URI. */
export function btc(amount: bigint): string {
  return `${amount / SAT_PER_BTC}.${String(amount % SAT_PER_BTC).padStart(8, "0")}`.replace(/\.?0+$/, "");
}

/** An address in groups of four, which people can compare; its ends stand out. */
export function Address({ text }: { text: string }) {
  const groups = text.match(/.{1,4}/g) ?? [];
  return (
    <span className="mono groups" data-testid="payee">
      {groups.map((group, index) => {
        const end = index < 2 || index >= groups.length - 2;
        return <span key={index}>{end ? <strong>{group}</strong> : group}{index < groups.length - 1 && " "}</span>;
      })}
    </span>
  );
}

/** Reads a whole number of satoshis. */
export function parseSats(text: string): bigint | undefined {
  // Digits, alone or in groups of three; never a decimal point, which would be a hundred million times more than was meant.
  const grouped = /^\d{1,3}(?:[\s_,\u202f]\d{3})+$|^\d{1,16}$/.test(text.trim());
  const digits = text.replace(/\D/g, "");
  return grouped && BigInt(digits) > 0n ? BigInt(digits) : undefined;
}

/** What went wrong, in words. */
export function words(error: unknown): string {
  const text = error instanceof Error ? error.message : String(error);
  return text.charAt(0).toUpperCase() + text.slice(1) + (/[.!?]$/.test(text) ? "" : ".");
}

export function Qr({ text, label }: { text: string; label: string }) {
  const svg = renderSVG(text, { border: 2, whiteColor: "#ffffff", blackColor: "#10201c" });
  return <div className="qr" role="img" aria-label={label} dangerouslySetInnerHTML={{ __html: svg }} />;
}

export function Copy({ text, label }: { text: string; label: string }) {
  const [copied, setCopied] = useState(false);
  useEffect(() => {
    if (!copied) return undefined;
    const timer = setTimeout(() => setCopied(false), 1500);
    return () => clearTimeout(timer);
  }, [copied]);
  const copy = () => void navigator.clipboard.writeText(text).then(() => setCopied(true));
  return (
    <button type="button" className="quiet" onClick={copy}>
      {copied ? "Copied" : label}
    </button>
  );
}

export function Field({ label, hint, children }: { label: string; hint?: string | undefined; children: (id: string) => ReactNode }) {
  const id = useId();
  const field = useRef<HTMLDivElement>(null);
  // The input says by itself what is written below it.
  useEffect(() => {
    const input = field.current?.querySelector(`#${CSS.escape(id)}`);
    if (hint) input?.setAttribute("aria-describedby", `${id}-hint`);
    else input?.removeAttribute("aria-describedby");
  }, [id, hint]);
  return (
    <div className="field" ref={field}>
      <label htmlFor={id}>{label}</label>
      {children(id)}
      {hint && <p className="hint" id={`${id}-hint`}>{hint}</p>}
    </div>
  );
}

export function Problem({ error }: { error: unknown }) {
  return error === undefined ? null : (
    <p className="problem" role="alert">
      {words(error)}
    </p>
  );
}

/** Runs something that takes time, one at a time, and keeps its error. */
export function useAction(): { busy: boolean; error: unknown; run: (action: () => Promise<void>) => void; clear: () => void } {
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<unknown>();
  const run = (action: () => Promise<void>) => {
    setBusy(true);
    setError(undefined);
    action()
      .catch(setError)
      .finally(() => setBusy(false));
  };
  return { busy, error, run, clear: () => setError(undefined) };
}

export function Shell({ title, aside, children }: { title: string; aside?: ReactNode; children: ReactNode }) {
  return (
    <div className="shell">
      <header>
        <span className="brand">
          <svg viewBox="0 0 16 16" aria-hidden="true">
            <circle cx="8" cy="8" r="7" />
            <path d="M4.5 8.2l2.4 2.4 4.6-5" />
          </svg>
          {title}
        </span>
        {aside}
      </header>
      <main>{children}</main>
    </div>
  );
}
