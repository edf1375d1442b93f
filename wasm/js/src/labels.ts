// What people call their payments, addresses and coins, kept with the wallet and encrypted like it, and exchanged as BIP329 has it.
import { checkOptions, checkText, refuse } from "./checks.js";
import { Rows, type Save } from "./rows.js";
import type { Label, LabelType } from "./types.js";

/** Labels of a wallet at most. */
const LABELS_MAX = 100_000;
/** Characters of a label that are kept; BIP329 suggests it. */
const LABEL_MAX = 255;
/** Characters of a text to import, and its lines. */
const IMPORT_MAX = 64 * 1024 * 1024;
const LINES_MAX = 200_000;

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
  // Half of a pair of code units is no character, and no link takes it.
  const text = label.replace(/\p{Cs}/gu, "\ufffd").replace(/[\p{Cc}\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]+/gu, " ").trim();
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

/** What a text has of BIP329: labels, and by outpoint whether an output may be spent. Lines that are neither are left out, as it says. */
export interface Imported {
  readonly labels: readonly Label[];
  readonly spendable: ReadonlyMap<string, boolean>;
}

/** One line after the other: a text of somebody else is not cut into millions of pieces first. */
function* linesOf(text: string): Generator<string> {
  let lines = 0;
  for (let from = 0; from < text.length; ) {
    const found = text.indexOf("\n", from);
    const end = found < 0 ? text.length : found;
    if (++lines > LINES_MAX) refuse("text", `has more than ${LINES_MAX} lines`);
    yield text.slice(from, end);
    from = end + 1;
  }
}

export function parseLabels(text: string): Imported {
  if (checkText("text", text).length > IMPORT_MAX) refuse("text", `is longer than ${IMPORT_MAX} characters`);
  const labels = new Map<string, Label>();
  const spendable = new Map<string, boolean>();
  for (const line of linesOf(text)) {
    if (!line.trimStart().startsWith("{")) continue;
    let read: Record<string, unknown>;
    try {
      read = JSON.parse(line) as Record<string, unknown>;
    } catch {
      continue;
    }
    const { type, ref, label, spendable: may } = read;
    if (!isLabel(type, ref)) continue;
    if (type === "output" && typeof may === "boolean") spendable.set(ref as string, may);
    const kept = typeof label === "string" ? clean(label) : "";
    if (kept !== "") labels.set(`${type}/${ref as string}`, { type, ref: ref as string, label: kept });
  }
  return { labels: [...labels.values()], spendable };
}

/** Lines of BIP329, with the outputs that are not to be spent. */
export function writeLabels(labels: readonly Label[], frozen: readonly string[]): string {
  const left = new Set(frozen);
  const lines: object[] = labels.map((one) => (one.type === "output" && left.delete(one.ref) ? { ...one, spendable: false } : one));
  for (const ref of left) lines.push({ type: "output", ref, spendable: false });
  return lines.map((line) => `${JSON.stringify(line)}\n`).join("");
}

/** The labels of one wallet, by type and reference. */
export class Labels {
  readonly #rows = new Rows("label/");

  /** Takes the labels out of what was stored. */
  static take(state: Map<string, Uint8Array>): Labels {
    const labels = new Labels();
    labels.#rows.take(state);
    return labels;
  }

  get all(): readonly Label[] {
    return [...this.#rows.all].flatMap(([name, text]) => {
      const [type, ref] = name.split("/");
      return isLabel(type, ref) ? [{ type, ref: ref as string, label: clean(text) }] : [];
    });
  }

  /** Sets some, each anew, and takes away those that are empty, once `save` has made it durable. */
  set(labels: readonly Label[], save: Save): Promise<void> {
    return this.#rows.inTurn(save, async (keep) => {
      const change = new Map(labels.map(({ type, ref, label }) => [`${type}/${ref}`, label === "" ? undefined : label]));
      const { all } = this.#rows;
      const fresh = [...change].filter(([name, text]) => text !== undefined && !all.has(name)).length;
      if (all.size + fresh > LABELS_MAX) refuse("labels", `a wallet has ${LABELS_MAX} at most`);
      await keep(change);
    });
  }
}
