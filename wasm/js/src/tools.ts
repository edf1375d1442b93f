import * as glue from "./glue/quorate.js";
import { callNow } from "./errors.js";
import type { Destination, Network } from "./types.js";

/** Twelve new secret words (BIP39). Call `init` first. */
export function generateWords(): string {
  return callNow(() => glue.generateWords());
}

/**
 * Checks secret words of the English list (BIP39) and gives them in their normal form. Capital letters, numbers and punctuation between words do not
 * matter, and the first four letters stand for a word. Call `init` first.
 *
 * @throws {@link QuorateError} `invalid_words`, which says which ones are wrong, counted from 1, and repeats none.
 */
export function checkWords(words: string): string {
  return callNow(() => glue.checkWords(words));
}

/**
 * Reads an address or `bitcoin:` link (BIP21, BIP321) and checks it against the network. Call `init` first.
 *
 * @throws {@link QuorateError} `invalid_address`, `wrong_network`, `unknown_address_type`.
 *
 * @example
 * ```ts
 * import { init, parseDestination } from "quorate";
 * await init();
 * const { amount } = parseDestination("bitcoin:bcrt1qs758ursh4q9z627kt3pp5yysm78ddny6txaqgw?amount=0.5", "regtest");
 * console.assert(amount === 50_000_000n);
 * ```
 */
export function parseDestination(text: string, network: Network): Destination {
  return callNow(() => glue.parseDestination(text, network) as Destination);
}

/**
 * Checks evidence (JSON, from a node's `/api/v1/evidence`) that a node cheated. Call `init` first.
 *
 * @param document - The federation's document as JSON.
 * @param id - The federation's id that you pin.
 * @throws {@link QuorateError} `invalid_evidence`: the node is not to blame.
 */
export function verifyEvidence(document: string, id: string, evidence: string): { readonly node: number; readonly kind: string } {
  return callNow(() => {
    const federation = new glue.Federation(document, id);
    try {
      return federation.verifyEvidence(evidence) as { node: number; kind: string };
    } finally {
      federation.free();
    }
  });
}
