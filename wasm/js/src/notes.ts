// What an application keeps with a wallet, encrypted like it.
import { checkText, refuse } from "./checks.js";
import { Rows, type Save } from "./rows.js";

/** Notes of a wallet at most, and their length in characters. */
const NOTES_MAX = 100_000;
const NAME_MAX = 300;
const NOTE_MAX = 65_536;

export function checkNote(name: string, text: string | undefined): void {
  if (checkText("name", name) === "" || name.length > NAME_MAX) refuse("name", `has to have 1 to ${NAME_MAX} characters`);
  if (text !== undefined && checkText("text", text).length > NOTE_MAX) refuse("text", `is longer than ${NOTE_MAX} characters`);
}

/** The notes of one wallet. */
export class Notes {
  readonly #rows = new Rows("note/");

  /** Takes the notes out of what was stored. */
  static take(state: Map<string, Uint8Array>): Notes {
    const notes = new Notes();
    notes.#rows.take(state);
    return notes;
  }

  /** Those whose names begin so. */
  of(beginning: string): ReadonlyMap<string, string> {
    return new Map([...this.#rows.all].filter(([name]) => name.startsWith(beginning)));
  }

  /** Keeps one, or takes it away, once `save` has made it durable. */
  set(name: string, text: string | undefined, save: Save): Promise<void> {
    return this.#rows.inTurn(save, (keep) => {
      const { all } = this.#rows;
      if (text !== undefined && !all.has(name) && all.size >= NOTES_MAX) refuse("name", `a wallet keeps ${NOTES_MAX} notes at most`);
      return keep(new Map([[name, text]]));
    });
  }
}
