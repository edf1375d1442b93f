/**
 * Everything of `quorate`, with the engine inside the JavaScript file: for `file://`, extensions, and wherever a second file is a nuisance. It is a third
 * larger.
 *
 * @packageDocumentation
 */
export * from "./index.js";
