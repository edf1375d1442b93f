/**
 * Everything of `quorate`, with the engine inside the JavaScript file: for `file://`, extensions, and wherever a second file is a nuisance. It is a third
 * larger. The first call of `init` has to be this one's, so import nothing from `quorate` itself beside it.
 *
 * @packageDocumentation
 */
import base64 from "quorate-engine-base64";
import { init as initFrom } from "./init.js";

export * from "./index.js";

let bytes: Uint8Array<ArrayBuffer> | undefined;

/** Loads the engine from within this file. */
export async function init(): Promise<void> {
  bytes ??= Uint8Array.from(atob(base64), (character) => character.charCodeAt(0));
  await initFrom(bytes);
}
