import { QuorateError } from "./errors.js";
import type { WaitOptions, WalletEvent } from "./types.js";

/** Events that a slow reader may lag behind before it is told that it missed some. */
const BUFFER_EVENTS_MAX = 1024;

type Sink = (event: WalletEvent | undefined) => void;

/** Hands events to any number of readers. */
export class EventHub {
  #sinks = new Set<Sink>();
  #ended = false;

  /** Takes an event; `undefined` is the end. */
  push(event: WalletEvent | undefined): void {
    if (event === undefined) this.#ended = true;
    for (const sink of [...this.#sinks]) sink(event);
    if (event === undefined) this.#sinks.clear();
  }

  /** Calls `listener` for every event of a type, until the function that it gives is called or the signal is aborted. */
  on<T extends WalletEvent["type"]>(
    type: T,
    listener: (event: Extract<WalletEvent, { type: T }>) => void,
    { signal }: WaitOptions = {},
  ): () => void {
    const sink: Sink = (event) => {
      // A listener that throws must not keep others from hearing.
      if (event?.type === type) queueMicrotask(() => listener(event as Extract<WalletEvent, { type: T }>));
    };
    const stop = (): void => {
      this.#sinks.delete(sink);
      signal?.removeEventListener("abort", stop);
    };
    if (!signal?.aborted && !this.#ended) {
      this.#sinks.add(sink);
      signal?.addEventListener("abort", stop, { once: true });
    }
    return stop;
  }

  /** Every event from now on. */
  iterate({ signal }: WaitOptions = {}): AsyncIterableIterator<WalletEvent> & AsyncDisposable {
    const queue: WalletEvent[] = [];
    let missed = 0;
    let done = this.#ended || signal?.aborted === true;
    let wake: (() => void) | undefined;
    const sink: Sink = (event) => {
      if (event === undefined) done = true;
      else if (queue.length < BUFFER_EVENTS_MAX) queue.push(event);
      else missed += 1;
      wake?.();
    };
    const stop = (): void => {
      done = true;
      this.#sinks.delete(sink);
      signal?.removeEventListener("abort", stop);
      wake?.();
    };
    if (!done) {
      this.#sinks.add(sink);
      signal?.addEventListener("abort", stop, { once: true });
    }
    let turn: Promise<unknown> = Promise.resolve();
    const next = async (): Promise<IteratorResult<WalletEvent, undefined>> => {
      for (;;) {
        const event = queue.shift();
        if (event !== undefined) return { done: false, value: event };
        if (missed > 0) {
          const value: WalletEvent = { type: "lagged", missed };
          missed = 0;
          return { done: false, value };
        }
        if (done) return { done: true, value: undefined };
        await new Promise<void>((resolve) => (wake = resolve));
        wake = undefined;
      }
    };
    return {
      next: () => {
        const result = turn.then(next);
        turn = result;
        return result;
      },
      return: async () => {
        stop();
        queue.length = 0;
        missed = 0;
        return { done: true, value: undefined };
      },
      [Symbol.asyncIterator]() {
        return this;
      },
      async [Symbol.asyncDispose]() {
        stop();
      },
    };
  }

  /** Waits until `check` gives something, asking it now and after every event. */
  async until<T>(check: () => Promise<T | undefined>, { signal }: WaitOptions = {}): Promise<T> {
    const events = this.iterate(signal === undefined ? {} : { signal });
    try {
      for (;;) {
        signal?.throwIfAborted();
        const found = await check();
        if (found !== undefined) return found;
        if ((await events.next()).done) {
          signal?.throwIfAborted();
          throw new QuorateError("closed", "the wallet has been closed");
        }
      }
    } finally {
      await events.return?.();
    }
  }
}
