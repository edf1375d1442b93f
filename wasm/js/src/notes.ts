// What an application keeps with a wallet, encrypted like it.
import { checkText, refuse } from "./checks.js";

/** Notes of a wallet at most, and their length in characters. */
const NOTES_MAX = 100_000;
const NAME_MAX = 300;
const NOTE_MAX = 65_536;

const PREFIX = "note/";
type Saved = Map<string, Uint8Array | null>;

export function checkNote(name: string, text: string | undefined): void {
  if (checkText("name", name) === "" || name.length > NAME_MAX) refuse("name", `has to have 1 to ${NAME_MAX} characters`);
  if (text !== undefined && checkText("text", text).length > NOTE_MAX) refuse("text", `is longer than ${NOTE_MAX} characters`);
}

/** The notes of one wallet. */
export class Notes {
  readonly #all = new Map<string, string>();
  #turn: Promise<void> = Promise.resolve();

  /** Takes the notes out of what was stored; the rest is the engine's. */
  static take(state: Map<string, Uint8Array>): Notes {
    const notes = new Notes();
    for (const [key, value] of [...state]) {
      if (!key.startsWith(PREFIX)) continue;
      state.delete(key);
      notes.#all.set(key.slice(PREFIX.length), new TextDecoder().decode(value));
    }
    return notes;
  }

  /** Those whose names begin so. */
  of(beginning: string): ReadonlyMap<string, string> {
    return new Map([...this.#all].filter(([name]) => name.startsWith(beginning)));
  }

  /** Keeps one, or takes it away, once `save` has made it durable. One after the other: the last call stays. */
  set(name: string, text: string | undefined, save: (change: Saved) => Promise<void>): Promise<void> {
    const set = this.#turn.then(async () => {
      if (text !== undefined && !this.#all.has(name) && this.#all.size >= NOTES_MAX) refuse("name", `a wallet keeps ${NOTES_MAX} notes at most`);
      await save(new Map([[PREFIX + name, text === undefined ? null : new TextEncoder().encode(text)]]));
      if (text === undefined) this.#all.delete(name);
      else this.#all.set(name, text);
    });
    this.#turn = set.catch(() => undefined);
    return set;
  }
}
