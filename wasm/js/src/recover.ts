/// <reference lib="esnext.disposable" preserve="true" />
/**
 * Leaving: words and descriptor alone move every coin once its recovery path is open. No bridge and no node of a federation is asked.
 *
 * @example
 * ```ts no-run
 * import { Recovery, esplora } from "quorate/recover";
 * using recovery = await Recovery.open(sheet);
 * const source = esplora("https://mempool.space/signet/api");
 * const found = await recovery.find(source);
 * const sweep = recovery.sweep(found, { to: "tb1q…", feeRate: 5 });
 * console.log(`${sweep.amount} sat arrive, ${sweep.fee} sat are paid`);
 * await source.broadcast(recovery.sign(sweep.psbt, { words }).transaction);
 * ```
 *
 * @packageDocumentation
 */
import * as glue from "./glue/quorate.js";
import { QuorateError, callNow } from "./errors.js";
import { init, untilTrap } from "./init.js";
import type { Network } from "./types.js";

export { QuorateError, type ErrorDetails } from "./errors.js";
export { init } from "./init.js";
export type { Network } from "./types.js";
export type { WasmSource } from "./wasm.js";

/** What a source knows of an address. */
export interface AddressCoins {
  /** Whether anything was ever paid to it. */
  readonly used: boolean;
  /** Its unspent outputs: `txid:vout`, satoshis, height of the block, if it is in one. */
  readonly coins: readonly { readonly outpoint: string; readonly value: bigint; readonly height?: number | undefined }[];
}

/** Who answers questions about the chain. */
export interface CoinSource {
  /** Hash of the block at height 0, in hex: which network it is on. */
  genesis(): Promise<string>;
  /** Height of its tip. */
  tip(): Promise<number>;
  /** What it knows of an address. */
  coinsAt(address: string): Promise<AddressCoins>;
}

/** A coin of the account. */
export interface RecoverableCoin {
  /** `txid:vout`. */
  readonly outpoint: string;
  /** In satoshis. */
  readonly value: bigint;
  /** Whether it is at a change address, and the address's index. */
  readonly change: boolean;
  readonly index: number;
  /** Height of its block; absent while it waits for one. */
  readonly height?: number;
  /** Height of the first block that can have its sweep. */
  readonly opensAt?: number;
}

/** What was found, at a height. */
export interface FoundCoins {
  readonly tip: number;
  readonly coins: readonly RecoverableCoin[];
}

/** An unsigned sweep. */
export interface Sweep {
  /** For {@link Recovery.sign}, or for any wallet that has the words. */
  readonly psbt: string;
  /** What arrives, in satoshis. */
  readonly amount: bigint;
  /** What it costs, in satoshis. */
  readonly fee: bigint;
  /** Coins that stay: not open yet, one time too many for one transaction, or worth less than their part of the fee. */
  readonly left: readonly RecoverableCoin[];
}

/** A sweep that any Bitcoin node takes. */
export interface SignedSweep {
  /** Complete, in hex. */
  readonly transaction: string;
  readonly txid: string;
  /** In satoshis. */
  readonly fee: bigint;
}

/** What a PSBT would do. */
export interface InspectedPsbt {
  /** Where it pays to, and how much in satoshis. */
  readonly outputs: readonly { readonly address: string; readonly value: bigint }[];
  /** By the amounts that it names, in satoshis; signatures hold for no others. */
  readonly fee: bigint;
}

/** What a backup says. */
export interface BackupInfo {
  readonly network: Network;
  readonly descriptor: string;
  /** Blocks after its own from which a coin can be moved. */
  readonly recoveryDelay: number;
  /** Id of the federation that the account was made with, if the sheet has it. Leaving does not need it. */
  readonly federation?: string;
  /** Height from which its wallet had seen blocks. */
  readonly birthday: number;
  /** Whether the sheet has the words. */
  readonly hasWords: boolean;
  /** Whether a passphrase is needed beside the words. It is not on the sheet. */
  readonly needsPassphrase: boolean;
}

/** An account that is to be left. */
export class Recovery implements Disposable {
  readonly #inner: glue.Recovery;

  private constructor(inner: glue.Recovery) {
    this.#inner = inner;
  }

  /**
   * Reads a backup sheet ({@link OpenWallet.backup}, `quorate backup`), or a descriptor alone.
   *
   * @param options.network - Needed with a descriptor alone.
   * @throws {@link QuorateError} `invalid_backup`, `invalid_descriptor`, `wrong_network`, `invalid_words`.
   */
  static async open(backup: string, options: { readonly network?: Network } = {}): Promise<Recovery> {
    await init();
    return new Recovery(callNow(() => new glue.Recovery(backup, options.network)));
  }

  /** What the backup says. */
  get info(): BackupInfo {
    return this.#inner.info() as BackupInfo;
  }

  /**
   * Finds the account's coins. The source learns the account's addresses.
   *
   * @throws {@link QuorateError} `source_unavailable` with what the source threw as `cause`, `source_wrong_network`.
   */
  async find(source: CoinSource, options: { readonly signal?: AbortSignal } = {}): Promise<FoundCoins> {
    const { signal } = options;
    let cause: unknown;
    const ask = async <T>(question: () => Promise<T>): Promise<T> => {
      signal?.throwIfAborted();
      try {
        return await question();
      } catch (error) {
        cause ??= error;
        throw error;
      }
    };
    try {
      const { genesis, network } = this.#inner.info() as BackupInfo & { genesis: string };
      if ((await ask(() => source.genesis())) !== genesis) {
        throw new QuorateError("source_wrong_network", `the source is of another network than the account, which is on ${network}`);
      }
      const tip = await ask(() => source.tip());
      if (!Number.isSafeInteger(tip) || tip < 0 || tip >= 2 ** 31) throw new Error(`its tip is no height: ${tip}`);
      const coins = (await untilTrap(() => this.#inner.find((address: string) => ask(() => source.coinsAt(address))))) as RecoverableCoin[];
      return { tip, coins };
    } catch (error) {
      signal?.throwIfAborted();
      if (error instanceof QuorateError && error.code !== "source_unavailable") throw error;
      const why = cause instanceof Error ? cause.message : String(cause ?? error);
      throw new QuorateError("source_unavailable", `the source does not answer: ${why}`, { retryable: true, cause: cause ?? error });
    }
  }

  /**
   * Reads coins that were written down: `TXID:VOUT SATOSHIS HEIGHT ADDRESS` on each line, as block explorers show them.
   *
   * @throws {@link QuorateError} `invalid_coin_list`, which names the line.
   */
  readList(text: string): readonly RecoverableCoin[] {
    return callNow(() => this.#inner.readList(text) as RecoverableCoin[]);
  }

  /**
   * Builds the transaction that moves all open coins to one address.
   *
   * @param options.feeRate - In sat/vB.
   * @throws {@link QuorateError} `nothing_open`, `insufficient_funds`, `fee_rate_out_of_range`, `invalid_address`, `wrong_network`.
   */
  sweep(found: FoundCoins, options: { readonly to: string; readonly feeRate: number }): Sweep {
    return callNow(() => this.#inner.sweep(found.coins, found.tip, options.to, options.feeRate) as Sweep);
  }

  /** What a PSBT would do: look at it before you sign one that comes from elsewhere. @throws {@link QuorateError} `invalid_psbt`. */
  inspect(psbt: string): InspectedPsbt {
    return callNow(() => this.#inner.inspect(psbt) as InspectedPsbt);
  }

  /**
   * Signs a sweep, offline. Of a PSBT that comes from elsewhere, look at outputs and fee first ({@link Recovery.inspect}).
   *
   * @param options - `words`: the secret words; those of the sheet if absent. `passphrase`: the one beside them, if there is one.
   * @throws {@link QuorateError} `other_words`, `invalid_words`, `invalid_psbt`.
   */
  sign(psbt: string, options: { readonly words?: string; readonly passphrase?: string } = {}): SignedSweep {
    return callNow(() => this.#inner.sign(psbt, options.words, options.passphrase?.normalize("NFKD")) as SignedSweep);
  }

  [Symbol.dispose](): void {
    this.#inner.free();
  }
}

/** A server of Esplora's HTTP API, such as those of mempool.space and blockstream.info. */
export interface Esplora extends CoinSource {
  /** Its estimate for six blocks, in sat/vB; `undefined` if it has none. */
  feeRate(): Promise<number | undefined>;
  /** Sends a transaction (hex). Gives its txid. */
  broadcast(transaction: string): Promise<string>;
}

interface EsploraStats {
  readonly chain_stats: { readonly tx_count: number };
  readonly mempool_stats: { readonly tx_count: number };
}

interface EsploraCoin {
  readonly txid: string;
  readonly vout: number;
  readonly value: number;
  readonly status: { readonly block_height?: number };
}

/** Blocks within which a sweep should be mined. */
const TARGET_BLOCKS = "6";
/** Longest answer that is waited for, in milliseconds. */
const TIMEOUT_MS = 30_000;

/**
 * Asks an Esplora server. It learns the account's addresses; run one of your own to keep them to yourself.
 *
 * @param url - The address of its API, as `https://mempool.space/signet/api`.
 */
export function esplora(url: string): Esplora {
  const base = url.replace(/\/+$/, "");
  const ask = async (path: string, body?: string): Promise<string> => {
    const signal = AbortSignal.timeout(TIMEOUT_MS);
    const answer = await fetch(base + path, { signal, ...(body !== undefined && { method: "POST", body }) });
    const text = await answer.text();
    if (!answer.ok) throw new QuorateError("source_unavailable", `${base}${path}: ${answer.status} ${text.slice(0, 300)}`, { retryable: answer.status >= 500 || answer.status === 429 });
    return text;
  };
  const json = async <T>(path: string): Promise<T> => JSON.parse(await ask(path)) as T;
  return {
    genesis: () => ask("/block-height/0"),
    tip: async () => Number(await ask("/blocks/tip/height")),
    coinsAt: async (address) => {
      const { chain_stats, mempool_stats } = await json<EsploraStats>(`/address/${address}`);
      if (chain_stats.tx_count + mempool_stats.tx_count === 0) return { used: false, coins: [] };
      const coins = await json<EsploraCoin[]>(`/address/${address}/utxo`);
      return {
        used: true,
        coins: coins.map(({ txid, vout, value, status }) => ({ outpoint: `${txid}:${vout}`, value: BigInt(value), height: status.block_height })),
      };
    },
    feeRate: async () => (await json<Record<string, number>>("/fee-estimates"))[TARGET_BLOCKS],
    broadcast: (transaction) => ask("/tx", transaction),
  };
}
