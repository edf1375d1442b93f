/// <reference lib="esnext.disposable" preserve="true" />
import * as glue from "./glue/quorate.js";
import { QuorateError, callNow } from "./errors.js";

/** A compressed point. */
const POINT_BYTES = 33;
const IDENTIFIER_MAX = 65_535;

/** A signer's public nonce commitments, 33 bytes each. */
export interface FrostCommitments {
  readonly hiding: Uint8Array;
  readonly binding: Uint8Array;
}

/** What is signed, and by whom. */
export interface FrostRound {
  readonly message: Uint8Array;
  /** Commitments of everyone who signs, by identifier. */
  readonly commitments: ReadonlyMap<number, FrostCommitments>;
  /** Sign for the key as BIP341 tweaks it without scripts (BIP86). @defaultValue false */
  readonly taproot?: boolean;
}

/**
 * One party of a FROST group (RFC 9591, secp256k1 with Taproot's keys), with its share of the secret key. A wallet's own part in joint payments needs none of
 * this; it is for applications that sign together otherwise. Call `init` first.
 */
export class FrostParty implements Disposable {
  readonly #inner: glue.FrostParty;
  #nonces: glue.FrostNonces | undefined;
  #disposed = false;

  /**
   * @param options.identifier - 1 to 65535.
   * @param options.secretShare - 32 bytes.
   * @param options.groupKey - 33 bytes.
   */
  constructor(options: { identifier: number; secretShare: Uint8Array; groupKey: Uint8Array; threshold: number }) {
    const { identifier, secretShare, groupKey, threshold } = options;
    checkIdentifiers([identifier]);
    this.#inner = callNow(() => new glue.FrostParty(identifier, secretShare, groupKey, threshold));
  }

  /**
   * Makes fresh nonces for the next signature and gives their commitments. Nonces of before that have not signed are gone.
   *
   * @param randomness - For test vectors: 64 bytes instead of the platform's own.
   */
  commit(randomness?: Uint8Array): FrostCommitments {
    this.#nonces?.free();
    const nonces = callNow(() => this.#inner.commit(randomness));
    this.#nonces = nonces;
    return { hiding: nonces.hiding, binding: nonces.binding };
  }

  /** This party's signature share, 32 bytes. Its nonces are used up, whatever comes of it. */
  sign(round: FrostRound): Uint8Array {
    const nonces = this.#nonces;
    this.#nonces = undefined;
    const used = { code: "nonces_used", message: "commit before every signature" };
    return callNow(() => {
      if (nonces === undefined) throw used;
      const packed = packageOf(round);
      try {
        return this.#inner.sign(packed, nonces, round.taproot ?? false);
      } finally {
        packed.free();
        nonces.free();
      }
    });
  }

  [Symbol.dispose](): void {
    this.#nonces?.free();
    this.#nonces = undefined;
    if (this.#disposed) return;
    this.#disposed = true;
    this.#inner.free();
  }
}

/** The public side of a FROST group. */
export class FrostGroup implements Disposable {
  /** @internal */
  readonly inner: glue.FrostGroup;

  /**
   * @param options.key - The group's key, 33 bytes.
   * @param options.verifyingShares - Everyone's public share, 33 bytes each, by identifier.
   */
  constructor(options: { key: Uint8Array; threshold: number; verifyingShares: ReadonlyMap<number, Uint8Array> }) {
    const { key, threshold, verifyingShares } = options;
    checkIdentifiers(verifyingShares.keys());
    if ([...verifyingShares.values()].some((share) => share.length !== POINT_BYTES)) {
      throw new QuorateError("invalid_argument", `verifyingShares: each has ${POINT_BYTES} bytes`);
    }
    const shares = new Uint8Array(POINT_BYTES * verifyingShares.size);
    [...verifyingShares.values()].forEach((share, index) => shares.set(share, POINT_BYTES * index));
    const identifiers = Uint16Array.from(verifyingShares.keys());
    this.inner = callNow(() => new glue.FrostGroup(key, threshold, identifiers, shares));
  }

  [Symbol.dispose](): void {
    this.inner.free();
  }
}

/**
 * Adds up signature shares to a BIP340 signature of 64 bytes.
 *
 * @throws {@link QuorateError} `invalid_share`, which names whose share is wrong.
 */
export function frostAggregate(group: FrostGroup, round: FrostRound, shares: ReadonlyMap<number, Uint8Array>): Uint8Array {
  return callNow(() => {
    const packed = packageOf(round);
    try {
      checkIdentifiers(shares.keys());
      for (const [identifier, share] of shares) packed.addShare(identifier, share);
      return packed.aggregate(group.inner, round.taproot ?? false);
    } finally {
      packed.free();
    }
  });
}

/** The engine takes 16 bits and would cut off the rest. */
function checkIdentifiers(identifiers: Iterable<number>): void {
  for (const identifier of identifiers) {
    if (!Number.isInteger(identifier) || identifier < 1 || identifier > IDENTIFIER_MAX) {
      throw new QuorateError("invalid_argument", `identifier: ${identifier} is not a whole number from 1 to ${IDENTIFIER_MAX}`);
    }
  }
}

function packageOf({ message, commitments }: FrostRound): glue.FrostPackage {
  checkIdentifiers(commitments.keys());
  const packed = new glue.FrostPackage(message);
  for (const [identifier, { hiding, binding }] of commitments) packed.addCommitments(identifier, hiding, binding);
  return packed;
}
