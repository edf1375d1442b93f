/// <reference lib="esnext.disposable" preserve="true" />
/**
 * What a page can check that trusts nobody but the federation whose id it pins: finality proofs, accounts, blocks. A small
 * module of its own, without keys or sockets.
 *
 * @packageDocumentation
 */
import initialise, * as glue from "./glue/verify.js";
import { verifySource } from "#platform";
import { callNow } from "./errors.js";
import type { Checkpoint, Finality, Network } from "./types.js";
import { Trap } from "./trap.js";
import { memoisedInit, type WasmSource } from "./wasm.js";

export { QuorateError, type Code, type ErrorDetails } from "./errors.js";
export type { Checkpoint, Finality, Network } from "./types.js";
export type { WasmSource } from "./wasm.js";

const trap = /* @__PURE__ */ new Trap({ __wbg_reset_state: glue.__wbg_reset_state, replaceExports: glue.replaceExports });

/** Loads the verifier; everything else here needs it. See `init` of `quorate`. */
export const init: (source?: WasmSource) => Promise<void> = /* @__PURE__ */ memoisedInit(initialise, verifySource, trap);

/** What a federation's document says. */
export interface FederationInfo {
  readonly id: string;
  readonly network: Network;
  readonly epoch: number;
  /** The group's public key, 33 bytes in hex. */
  readonly groupKey: string;
  readonly nodes: number;
  /** Nodes that make a payment final. */
  readonly quorum: number;
  /** Blocks after which an owner can move coins without the federation. */
  readonly recoveryDelay: number;
  readonly members: readonly { readonly id: number; readonly identityKey: string }[];
}

/** A transaction that is final, verified. */
export interface FinalTransaction {
  readonly txid: string;
  readonly finality: Finality;
  /** Complete, in hex. */
  readonly transaction: string;
  /**
   * For `enforced`: the block height below which it is final without a confirmation. Compare it with a tip of your own (`Headers`); at that height or later, and always if it
   * is 0, only a block makes it final.
   */
  readonly deadline?: number;
  /** Nodes whose signatures show it. */
  readonly signers: number;
  /** Spent outpoints, `txid:vout`. */
  readonly inputs: readonly string[];
  readonly outputs: readonly {
    readonly vout: number;
    /** In satoshis. */
    readonly value: bigint;
    readonly scriptPubkey: string;
    readonly address?: string;
  }[];
}

/**
 * A federation, verified against its id.
 *
 * @example
 * ```ts no-run
 * import { Federation, init } from "quorate/verify";
 * await init();
 * using federation = new Federation(documentJson, "the id that you pin");
 * const { txid, outputs } = federation.verifyProof(proofJson);
 * ```
 */
export class Federation implements Disposable {
  readonly #inner: glue.Federation;

  /**
   * @param document - JSON, from a bridge's `/federation` or {@link OpenWallet.federationDocument}.
   * @param id - 64 hex digits, from a source that you trust.
   * @throws {@link QuorateError} `invalid_federation`.
   */
  constructor(document: string, id: string) {
    this.#inner = callNow(() => new glue.Federation(document, id));
  }

  /** What the document says. */
  get info(): FederationInfo {
    return this.#inner.info() as FederationInfo;
  }

  /** Checks a finality proof (JSON). @throws {@link QuorateError} `invalid_proof`: do not take the transaction for final. */
  verifyProof(proof: string): FinalTransaction {
    return callNow(() => this.#inner.verifyProof(proof) as FinalTransaction);
  }

  /** Checks an account's certificate (JSON). @throws {@link QuorateError} `invalid_account`. */
  verifyAccount(certificate: string): { readonly id: string; readonly descriptor: string } {
    return callNow(() => this.#inner.verifyAccount(certificate) as { id: string; descriptor: string });
  }

  [Symbol.dispose](): void {
    this.#inner.free();
  }
}

/** A chain of block headers, with proof of work and difficulty checked. */
export class HeaderChain implements Disposable {
  readonly #inner: glue.Headers;

  /** Starts at the genesis block, or at a header that you trust. */
  constructor(network: Network, checkpoint?: Checkpoint) {
    this.#inner = callNow(() => new glue.Headers(network, checkpoint?.height, checkpoint?.header));
  }

  /** Takes in consecutive headers, 80 bytes in hex each. Gives the height of the tip. @throws {@link QuorateError} `invalid_headers`. */
  extend(headers: readonly string[]): number {
    return callNow(() => this.#inner.extend([...headers]));
  }

  /**
   * Checks that a transaction is in a block of the chain. Gives its confirmations.
   *
   * @param proof - JSON, as a server's `Proof` message has it.
   * @throws {@link QuorateError} `invalid_inclusion`.
   */
  verifyInclusion(txid: string, proof: string): number {
    return callNow(() => this.#inner.verifyInclusion(txid, proof));
  }

  [Symbol.dispose](): void {
    this.#inner.free();
  }
}
