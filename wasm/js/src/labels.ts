// What people call their payments, addresses and coins, kept with the wallet and encrypted like it, and exchanged as BIP329 has it.
import { checkOptions, checkText, refuse } from "./checks.js";
import type { Label, LabelType } from "./types.js";

/** Labels of a wallet at most. */
const LABELS_MAX = 100_000;
/** Characters of a label that are kept; BIP329 suggests it. */
const LABEL_MAX = 255;
/** Characters of a text to import. */
const IMPORT_MAX = 64 * 1024 * 1024;

/** What a label of each type is of. */
const REFS: Record<LabelType, RegExp> = {
  tx: /^[0-9a-f]{64}$/,
  addr: /^[0-9A-Za-z]{14,100}$/,
  pubkey: /^([0-9a-f]{64}|0[23][0-9a-f]{64}|04[0-9a-f]{128})$/,
  input: /^[0-9a-f]{64}:(0|[1-9]\d{0,9})$/,
  output: /^[0-9a-f]{64}:(0|[1-9]\d{0,9})$/,
  xpub: /^[1-9A-HJ-NP-Za-km-z]{100,120}$/,
};

/** Without what would spoil a page: control and bidirectional characters, and more than fits. */
export function clean(label: string): string {
  const text = label.replace(/[\p{Cc}\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]+/gu, " ").trim();
  return Array.from(text).slice(0, LABEL_MAX).join("");
}

/** Whether a type is one, and the reference one of it. */
function isLabel(type: unknown, ref: unknown): type is LabelType {
  return typeof type === "string" && Object.hasOwn(REFS, type) && typeof ref === "string" && REFS[type as LabelType].test(ref);
}

/**
 * Looks at what was passed.
 *
 * @throws {@link QuorateError} `invalid_argument`
 */
export function checkLabel(label: Label): Label {
  const { type, ref, label: text } = checkOptions("label", label, ["type", "ref", "label"]);
  if (typeof type !== "string" || !Object.hasOwn(REFS, type)) refuse("type", `has to be one of ${Object.keys(REFS).join(", ")}`);
  if (!isLabel(type, checkText("ref", ref))) refuse("ref", `is no reference of type ${type}, as BIP329 has them`);
  return { type, ref, label: clean(checkText("label", text)) };
}

/** What a text has of BIP329: labels, and which outputs are not to be spent or may be. Lines that are neither are left out, as it says. */
export interface Imported {
  readonly labels: readonly Label[];
  readonly spendable: readonly { readonly outpoint: string; readonly spendable: boolean }[];
}

export function parseLabels(text: string): Imported {
  if (checkText("text", text).length > IMPORT_MAX) refuse("text", `is longer than ${IMPORT_MAX} characters`);
  const [labels, spendable]: [Label[], Imported["spendable"][number][]] = [[], []];
  for (const line of text.split(/\r?\n/)) {
    let read: unknown;
    try {
      read = JSON.parse(line);
    } catch {
      continue;
    }
    if (typeof read !== "object" || read === null) continue;
    const { type, ref, label, spendable: may } = read as Record<string, unknown>;
    if (!isLabel(type, ref)) continue;
    if (type === "output" && typeof may === "boolean") spendable.push({ outpoint: ref as string, spendable: may });
    const kept = typeof label === "string" ? clean(label) : "";
    if (kept !== "") labels.push({ type, ref: ref as string, label: kept });
  }
  return { labels, spendable };
}

/** Lines of BIP329, with the outputs that are not to be spent. */
export function writeLabels(labels: readonly Label[], frozen: readonly string[]): string {
  const left = new Set(frozen);
  const lines: object[] = labels.map((one) => (one.type === "output" && left.delete(one.ref) ? { ...one, spendable: false } : one));
  for (const ref of left) lines.push({ type: "output", ref, spendable: false });
  return lines.map((line) => `${JSON.stringify(line)}\n`).join("");
}

const PREFIX = "label/";
type Saved = Map<string, Uint8Array | null>;

/** The labels of one wallet, by type and reference. */
export class Labels {
  readonly #all = new Map<string, Label>();

  /** Takes the labels out of what was stored; the rest is the engine's. */
  static take(state: Map<string, Uint8Array>): Labels {
    const labels = new Labels();
    for (const [key, value] of [...state]) {
      if (!key.startsWith(PREFIX)) continue;
      state.delete(key);
      const [type, ref] = key.slice(PREFIX.length).split("/");
      if (isLabel(type, ref)) labels.#all.set(key, { type, ref: ref as string, label: clean(new TextDecoder().decode(value)) });
    }
    return labels;
  }

  get all(): readonly Label[] {
    return [...this.#all.values()];
  }

  /** Sets some, each anew, and takes away those that are empty, once `save` has made it durable. */
  async set(labels: readonly Label[], save: (change: Saved) => Promise<void>): Promise<void> {
    const change: Saved = new Map();
    for (const { type, ref, label } of labels) change.set(`${PREFIX}${type}/${ref}`, label === "" ? null : new TextEncoder().encode(label));
    const fresh = [...change].filter(([key, value]) => value !== null && !this.#all.has(key)).length;
    if (this.#all.size + fresh > LABELS_MAX) refuse("labels", `a wallet has ${LABELS_MAX} at most`);
    if (change.size > 0) await save(change);
    for (const { type, ref, label } of labels) {
      const key = `${PREFIX}${type}/${ref}`;
      if (label === "") this.#all.delete(key);
      else this.#all.set(key, { type, ref, label });
    }
  }
}
