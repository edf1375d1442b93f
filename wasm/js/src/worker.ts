// The engine in a web worker: a self-contained file, started by worker-client.ts.
import type { Backend, Methods } from "./backend.js";
import { QuorateError, abortable } from "./errors.js";
import { init } from "./init.js";
import { openLocal, type Opening } from "./opening.js";
import type { WasmSource } from "./wasm.js";

/** From the page. */
export type ToWorker =
  | {
      readonly id: number;
      readonly type: "open";
      readonly opening: Opening;
      readonly wasm: string | WebAssembly.Module | ArrayBuffer;
      /** Name of a lock to hold as long as this worker lives. */
      readonly life?: string;
    }
  | { readonly id: number; readonly type: "request"; readonly method: keyof Methods; readonly args: unknown[] }
  | { readonly id: number; readonly type: "abort" }
  | { readonly id: number; readonly type: "close" };

/** To the page. */
export type FromWorker =
  | { readonly id: number; readonly value: unknown }
  | { readonly id: number; readonly error: ReturnType<QuorateError["toJSON"]> }
  | { readonly event: unknown }
  /** It holds its lock. */
  | { readonly alive: true }
  /** There was no wallet of the name, and it begins to store one. */
  | { readonly fresh: true };

let backend: Backend | undefined;
const aborting = new AbortController();

async function handle(message: ToWorker): Promise<unknown> {
  switch (message.type) {
    case "open":
      if (message.life !== undefined) live(message.life);
      await abortable(() => init(message.wasm as WasmSource), aborting.signal);
      backend = await openLocal({ ...message.opening, options: { ...message.opening.options, signal: aborting.signal } } as Opening, () =>
        postMessage({ fresh: true } satisfies FromWorker),
      );
      backend.listen((event) => postMessage({ event } satisfies FromWorker));
      return backend.account;
    case "request":
      if (backend === undefined) throw new QuorateError("closed", "no wallet is open");
      return (backend.request as (method: keyof Methods, ...args: unknown[]) => Promise<unknown>)(message.method, ...message.args);
    case "abort":
      aborting.abort();
      return undefined;
    case "close":
      await backend?.close();
      return undefined;
  }
}

/** The browser lets go of the lock when this worker ends, however it does. */
function live(name: string): void {
  void navigator.locks?.request(name, () => {
    postMessage({ alive: true } satisfies FromWorker);
    return new Promise<never>(() => undefined);
  });
}

addEventListener("message", ({ data }: MessageEvent<ToWorker>) => {
  handle(data).then(
    (value) => postMessage({ id: data.id, value } satisfies FromWorker),
    (error: unknown) => postMessage({ id: data.id, error: QuorateError.from(error).toJSON() } satisfies FromWorker),
  );
});
