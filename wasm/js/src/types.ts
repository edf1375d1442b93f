import type { QuorateError } from "./errors.js";

/** Which promise stands behind a final transaction: no conflicting one can be signed, or a quorum attests that it knows of none. */
export type Finality = "enforced" | "attested";

/** Bitcoin networks. */
export type Network = "bitcoin" | "testnet" | "testnet4" | "signet" | "regtest";

/** What a wallet has, in satoshis, by how sure it is. */
export interface Balance {
  /** Verified and free. */
  readonly spendable: bigint;
  /** Announced, but not verified; or verified, and waiting for blocks: what an attested transaction paid, or one whose block is not deep enough. */
  readonly incoming: bigint;
  /** Reserved by a payment that is under way. */
  readonly locked: bigint;
  /** Block rewards that wait for their hundredth block. */
  readonly immature: bigint;
  /** Too old to pay with: `pay({ to: await wallet.unusedAddress(), amount: "everything" })` moves them home, and they are spendable when that is confirmed. */
  readonly expired: bigint;
}

/** A block of the wallet's own header chain. */
export interface Block {
  readonly height: number;
  readonly hash: string;
}

/** An unspent output of the wallet. */
export interface Coin {
  /** `txid:vout`. */
  readonly outpoint: string;
  /** In satoshis. */
  readonly value: bigint;
  readonly address: string;
  readonly keychain: "receive" | "change";
  /** Index of its address in the keychain. */
  readonly index: number;
  /** Set once it is final by a verified proof. */
  readonly finality?: Finality;
  /** Set once it is in a block by a verified proof. */
  readonly block?: Block;
  /** The transaction that it is reserved for. */
  readonly lockedBy?: string;
  /** The transaction that spent it, final or in a block by a verified proof. Such coins are told of by address only. */
  readonly spentBy?: string;
  /** Set if the transaction that creates it can be in no block any more: it is no coin. */
  readonly conflicted?: Conflict;
  /** Height of the chain from which it cannot be paid with, unless it is moved home before; set for coins in a block. */
  readonly expiresAt?: number;
  /** Whether payments leave it out ({@link OpenWallet.freeze}). */
  readonly frozen: boolean;
  /** What its owner calls it, or else its address. */
  readonly label?: string;
}

/** A node's reason to reject a payment, as the protocol names it. */
export interface Reject {
  readonly node: number;
  readonly reason: string;
  readonly [fact: string]: unknown;
}

/** Where a payment of this wallet stands. */
export type PaymentState =
  | { readonly state: "submitted" }
  | { readonly state: "voting"; readonly votes: number; readonly quorum: number; readonly nodes: number }
  | { readonly state: "approved" }
  | { readonly state: "signing"; readonly attempt: number }
  | { readonly state: "final"; readonly finality: Finality; readonly proof: string }
  | { readonly state: "rejected"; readonly rejects: readonly Reject[]; readonly retryable: boolean }
  | { readonly state: "failed"; readonly message: string; readonly retryable: boolean };

/** What a block has in place of a transaction that can be in none any more, because both spend one coin. */
export interface Conflict {
  readonly txid: string;
  readonly block: Block;
}

/** A transaction that concerns the wallet. */
export interface HistoryEntry {
  readonly txid: string;
  /** Paid to this wallet, in satoshis; change included. */
  readonly received: bigint;
  /** Spent by this wallet, in satoshis; change and fee included. */
  readonly spent: bigint;
  /** Set once it is final by a verified proof. */
  readonly finality?: Finality;
  /** Set once it is in a block by a verified proof. */
  readonly block?: Block;
  /** Time of that block, in seconds since 1970. */
  readonly blockTime?: number;
  /** 0 while it is in no block. */
  readonly confirmations: number;
  /** What miners got of it, in satoshis; set for a payment of this wallet that is final. */
  readonly fee?: bigint;
  /** Whom this wallet paid, without its own addresses; empty for what it received and before it is final. */
  readonly to: readonly { readonly address: string; readonly amount: bigint; readonly label?: string }[];
  /** What its owner calls it ({@link OpenWallet.setLabel}). */
  readonly label?: string;
  /** Set if it can be in no block any more, by a verified proof: what a block has instead. Nothing was paid by it. */
  readonly conflicted?: Conflict;
  /** What the Bitcoin network has against it at present, by the bridge's word. It is final all the same, and nodes try again; if its fee is too low by now, {@link Wallet.bump} it. */
  readonly refusal?: string;
  /** Set for a payment of this wallet that is not final: how it stands, or how it ended if it came to nothing. */
  readonly payment?: PaymentState;
}

/** The least that is taken for paid: final for good or in a block, final by the nodes' word alone too, or in a block. */
export type Minimum = Finality | "confirmed";

/** What a label is of (BIP329). */
export type LabelType = "tx" | "addr" | "pubkey" | "input" | "output" | "xpub";

/** What its owner calls a payment, an address or a coin. */
export interface Label {
  readonly type: LabelType;
  /** The txid, address, key or `txid:vout`. */
  readonly ref: string;
  /** At most 255 characters, without control and bidirectional ones. */
  readonly label: string;
}

/** What {@link OpenWallet.importLabels} took. */
export interface ImportedLabels {
  readonly labels: number;
  /** Coins of this wallet that are frozen or not now, as the text says. */
  readonly coins: number;
  /** Coins that the text says something of and this wallet does not have. */
  readonly unknownCoins: number;
}

/** Which part of a history is wanted; all of it without any. */
export interface HistoryOptions {
  /** Only what this wallet was paid, or only what it paid. */
  readonly direction?: "in" | "out";
  /** Only what is in a block of this height or a later one, or in none. */
  readonly from?: number;
  /** Only what is in a block below this height. */
  readonly until?: number;
  /** The txid of an entry: only what comes before it. Together with `limit` this gives page after page, the latest first. */
  readonly before?: string;
  /** So many at most, the latest ones. */
  readonly limit?: number;
}

/** A payment that is final, with its verified proof. */
export interface Receipt {
  readonly txid: string;
  readonly finality: Finality;
  /** The proof as JSON, for the payee or for keeping. */
  readonly proof: string;
}

/** What {@link Wallet.refresh} would do. */
export interface RefreshQuote {
  /** Coins that are moved home, in one transaction. */
  readonly coins: number;
  /** What they are worth together, in satoshis. */
  readonly amount: bigint;
  /** What it costs, in satoshis. */
  readonly fee: bigint;
  /** Whether they have expired: then they are spendable again once the transaction is in a block, else at once. */
  readonly expired: boolean;
}

/** How far a wallet has come with its bridge: `ready` once payments can be made. It connects by itself, until it is closed. */
export type Connection = "offline" | "connected" | "ready" | "closed";

/** What a wallet tells. */
export type WalletEvent =
  | { readonly type: "connected" }
  | { readonly type: "disconnected"; readonly reason: string; readonly retryInMs: number }
  | { readonly type: "ready" }
  | { readonly type: "synced" }
  | { readonly type: "epoch"; readonly epoch: number }
  | { readonly type: "balance"; readonly balance: Balance }
  | ({ readonly type: "payment"; readonly txid: string } & PaymentState)
  | { readonly type: "received"; readonly txid: string; readonly amount: bigint; readonly finality: Finality }
  | { readonly type: "confirmed"; readonly txid: string; readonly block: Block }
  /** By a verified proof, a block contradicts a transaction of this wallet: what it paid is not paid. */
  | { readonly type: "conflicted"; readonly txid: string; readonly by: Conflict }
  /** How the Bitcoin network takes a final transaction, by the bridge's word: `refusal` says what it has against it, absent once it waits for its block. */
  | { readonly type: "broadcasting"; readonly txid: string; readonly refusal?: string }
  /** A coin will be too old to pay with within two weeks, or is: {@link Wallet.refresh}. Once for each coin, and again after a restart. */
  | { readonly type: "coinExpiring"; readonly outpoint: string; readonly value: bigint; readonly expiresAt: number }
  | { readonly type: "refreshFailed"; readonly reason: string }
  /** A label was set or taken away. */
  | { readonly type: "labels" }
  | { readonly type: "tip"; readonly tip: Block }
  /** The wallet's tip is older than 12 hours: the bridge withholds blocks, or the clock is wrong. Payments from others wait for a younger one; `time` is the tip's, in seconds since 1970. */
  | { readonly type: "tipStale"; readonly tip: Block; readonly time: number }
  | { readonly type: "lagged"; readonly missed: number }
  | { readonly type: "refused"; readonly error: { readonly code: string; readonly message: string; readonly retry: boolean } }
  | { readonly type: "serverMisbehaved"; readonly what: string }
  /** The last event. With an error if the wallet did not end because it was asked to: `storage_failed` or `worker_failed`. Open it again. */
  | { readonly type: "closed"; readonly error?: QuorateError };

/** What an account is, forever. */
export interface AccountInfo {
  /** The account's id, 64 hex digits. */
  readonly id: string;
  /** Public output descriptor with checksum, to watch or recover with any descriptor wallet. */
  readonly descriptor: string;
  /** The account record as JSON: what {@link Wallet.watch} takes. */
  readonly record: string;
  readonly network: Network;
  /** The federation's id, 64 hex digits. */
  readonly federation: string;
  /** Whether the wallet has no keys. */
  readonly watchOnly: boolean;
}

/** Who is paid. */
export interface Recipient {
  /** Address or `bitcoin:` link (BIP21, BIP321). */
  readonly to: string;
  /** In satoshis, or, for one of them, everything that is spendable less the fee and what the others get; what the link asks for if absent. */
  readonly amount?: bigint | "everything";
}

/** A payment to make. */
export interface PaymentRequest {
  /** Address or `bitcoin:` link (BIP21, BIP321), or several recipients that are paid in one transaction. */
  readonly to: string | readonly Recipient[];
  /**
   * In satoshis, or everything that is spendable less the fee; what the link asks for if absent. Several recipients have amounts of their own. Coins that
   * cost more than they are worth, and frozen ones, are no part of everything.
   */
  readonly amount?: bigint | "everything";
  /** In sat/vB; the server's estimate if absent. */
  readonly feeRate?: number;
  /** Up to 80 bytes that the transaction says on the chain, for everybody to read. */
  readonly data?: Uint8Array;
  /** The coins to spend as `txid:vout`, all of them and no others; the wallet selects if absent. */
  readonly coins?: readonly string[];
  /**
   * A key of your own for this payment, such as an invoice's number. The payment is made once for each key, also after the wallet was closed and opened
   * again: asked for again with the same key, it is the same payment, whatever became of it. This stored wallet remembers the last 10,000 keys; another device, or a wallet that was restored
   * from its words, does not know them.
   */
  readonly idempotencyKey?: string;
}

/** A payment as it would be made: nothing is reserved. Amounts are in satoshis. */
export interface Quote {
  /** The payment, base64 (BIP174). */
  readonly psbt: string;
  /** What is paid to those whom the request names. */
  readonly amount: bigint;
  readonly fee: bigint;
  /** What leaves the wallet: amount and fee. */
  readonly total: bigint;
  /** What the fee comes to, in sat/vB. */
  readonly feeRate: number;
  /** What comes back to this wallet. */
  readonly change: bigint;
  /** The coins that are spent, as `txid:vout`. */
  readonly coins: readonly string[];
  /** Whether one of them is in no block yet: the payment is final all the same, and waits for it on the chain. */
  readonly unconfirmed: boolean;
  /** The most that the first recipient could be paid, the others unchanged; absent if that is nothing, or it is an address of this wallet. */
  readonly most?: bigint;
  /** The request's: the quote is paid once for it. */
  readonly idempotencyKey?: string;
}

/** An address or `bitcoin:` URI, read and checked. */
export interface Destination {
  readonly address: string;
  /** In satoshis. */
  readonly amount?: bigint;
  /** Who is paid, as the link says and nobody checked: at most 256 characters on one line, none of them invisible or turning others around. */
  readonly label?: string;
  /** What for, in the same way. */
  readonly message?: string;
}

/** For calls that wait. Aborting stops the waiting, not what is under way. */
export interface WaitOptions {
  readonly signal?: AbortSignal;
}

/** A header to start verification at, from a source that you trust. */
export interface Checkpoint {
  /** A multiple of 2016 on networks that retarget. */
  readonly height: number;
  /** 80 bytes in hex. */
  readonly header: string;
}
