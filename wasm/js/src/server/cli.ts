#!/usr/bin/env node
// An invoice server by itself: `quorate-server`, told by its environment what to do.
import { readFile } from "node:fs/promises";
import { QuorateError } from "../errors.js";
import { InvoiceServer, type ServerOptions } from "./index.js";

const HELP = `quorate-server: invoices on a server of your own. It is told by its environment:

  QUORATE_BRIDGE          address of a bridge, wss://…; several with commas between
  QUORATE_FEDERATION      id of the federation, 64 hex digits
  QUORATE_RECORD          record of the account that is paid
  QUORATE_DATABASE        path of a SQLite file, or a postgres:// URL
  QUORATE_PASSWORD        encrypts what is stored
  QUORATE_TOKEN           of the HTTP interface, 32 characters or more
  QUORATE_WEBHOOK         where payments are told, https://…
  QUORATE_WEBHOOK_SECRET  whsec_ and 24 to 64 random bytes in base64; two with a comma between while it changes
  QUORATE_LISTEN          address and port (127.0.0.1:8490)

Of a secret a file can be named in its place: QUORATE_PASSWORD_FILE=/run/secrets/password.
`;

async function setting(name: string): Promise<string | undefined> {
  const file = process.env[`${name}_FILE`];
  if (file === undefined) return process.env[name] === "" ? undefined : process.env[name];
  return readFile(file, "utf8").then(
    (text) => text.trim(),
    (cause: Error) => {
      throw new QuorateError("invalid_argument", `${name}_FILE cannot be read: ${cause.message}`, { cause });
    },
  );
}

async function needed(name: string): Promise<string> {
  const value = await setting(name);
  if (value === undefined) throw new QuorateError("invalid_argument", `${name} is not set; quorate-server --help says what it is`);
  return value;
}

async function options(): Promise<ServerOptions> {
  const listen = (await setting("QUORATE_LISTEN")) ?? "127.0.0.1:8490";
  const [, host = "", port = ""] = /^\[?([^\]]+)\]?:(\d+)$/.exec(listen) ?? [];
  if (host === "") throw new QuorateError("invalid_argument", "QUORATE_LISTEN has to be an address and a port, such as 0.0.0.0:8490");
  const webhook = await setting("QUORATE_WEBHOOK");
  return {
    bridge: (await needed("QUORATE_BRIDGE")).split(","),
    federation: await needed("QUORATE_FEDERATION"),
    record: await needed("QUORATE_RECORD"),
    database: await needed("QUORATE_DATABASE"),
    password: await needed("QUORATE_PASSWORD"),
    token: await needed("QUORATE_TOKEN"),
    webhooks: webhook === undefined ? [] : [{ url: webhook, secrets: (await needed("QUORATE_WEBHOOK_SECRET")).split(",") }],
    host,
    port: Number(port),
  };
}

async function main(): Promise<void> {
  if (process.argv.length > 2) {
    process.stdout.write(HELP);
    if (!["--help", "-h"].includes(process.argv[2] ?? "")) process.exitCode = 2;
    return;
  }
  const server = await InvoiceServer.start(await options());
  for (const signal of ["SIGINT", "SIGTERM"] as const) process.once(signal, () => void server.close());
  process.stdout.write(`listening on ${server.url}\n`);
  await server.ended();
}

main().catch((error: unknown) => {
  const { code, message } = QuorateError.from(error);
  process.stderr.write(`quorate-server: ${message} (${code})\n`);
  process.exitCode = 1;
});
