import { readFile } from "node:fs/promises";
import { QuorateError } from "../errors.js";
import type { WalletStorage } from "../storage.js";
import type { WasmSource } from "../wasm.js";
import { FileStorage } from "./files.js";
import type { SocketFactory } from "./web.js";

/** The engine, read from beside this file. */
export function wasmSource(): WasmSource {
  return readFile(new URL("../quorate.wasm", import.meta.url));
}

/** The verifier, read from beside this file. */
export function verifySource(): WasmSource {
  return readFile(new URL("../verify.wasm", import.meta.url));
}

/** Files in `directory`, `~/.quorate` if it is absent. */
export function defaultStorage(directory?: string): WalletStorage {
  return new FileStorage(directory);
}

/** The runtime's own sockets, or those of the package `ws`: Node has had them since version 22. */
export async function socketFactory(): Promise<SocketFactory | undefined> {
  if (typeof WebSocket !== "undefined") return undefined;
  try {
    const { WebSocket: Socket } = (await import("ws")) as { WebSocket: new (url: string, protocol: string) => WebSocket };
    return (url, protocol) => new Socket(url, protocol);
  } catch (cause) {
    const message = "this runtime has no WebSocket: use Node 22 or later, or `npm install ws`";
    throw new QuorateError("websocket_unavailable", message, { cause });
  }
}
