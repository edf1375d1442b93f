// A PostgreSQL server of the test's own, where there is one.
import { execFileSync, spawn } from "node:child_process";
import { once } from "node:events";
import { chownSync, existsSync, mkdtempSync, readdirSync, rmSync } from "node:fs";
import { tmpdir, userInfo } from "node:os";
import { join } from "node:path";
import { PATIENCE_MS, freePort } from "../browser/support.mjs";

/** Debian's place; elsewhere the programs are looked for in PATH. */
const DEBIAN = "/usr/lib/postgresql";

function programs() {
  const versions = existsSync(DEBIAN) ? readdirSync(DEBIAN).sort((one, other) => Number(other) - Number(one)) : [];
  const places = [...versions.map((version) => join(DEBIAN, version, "bin")), ...(process.env.PATH ?? "").split(":")];
  return places.find((place) => existsSync(join(place, "initdb")) && existsSync(join(place, "postgres")));
}

/** Starts a server; `undefined` where PostgreSQL is not installed. As root it runs as `postgres`: it refuses to be root's. */
export async function startPostgres() {
  const bin = programs();
  if (bin === undefined) return undefined;
  const directory = mkdtempSync(join(tmpdir(), "quorate-postgres-"));
  const isRoot = userInfo().uid === 0;
  const as = isRoot ? ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] : [];
  if (isRoot) {
    const id = (flag) => Number(execFileSync("id", [flag, "postgres"], { encoding: "utf8" }));
    chownSync(directory, id("-u"), id("-g"));
  }
  const run = (program, ...options) => [[...as, join(bin, program)][0], [...as, join(bin, program), ...options].slice(1)];
  const data = join(directory, "data");
  const [initdb, initdbOptions] = run("initdb", "-D", data, "-A", "trust", "-U", "postgres", "--no-sync");
  execFileSync(initdb, initdbOptions, { stdio: ["ignore", "ignore", "inherit"] });
  const port = await freePort();
  const [postgres, options] = run("postgres", "-D", data, "-p", String(port), "-c", "listen_addresses=127.0.0.1", "-k", directory);
  const child = spawn(postgres, options, { stdio: ["ignore", "ignore", "pipe"] });
  await new Promise((resolve, reject) => {
    let seen = "";
    const late = setTimeout(() => reject(new Error(`PostgreSQL does not start: ${seen}`)), PATIENCE_MS);
    child.once("exit", () => reject(new Error(`PostgreSQL has ended: ${seen}`)));
    child.stderr.setEncoding("utf8").on("data", (text) => {
      seen += text;
      if (!seen.includes("ready to accept connections")) return;
      clearTimeout(late);
      resolve();
    });
  });
  child.removeAllListeners("exit");
  return {
    url: `postgres://postgres@127.0.0.1:${port}/postgres`,
    stop: async () => {
      // Fast: whoever is connected is cut off.
      if (child.exitCode === null && child.kill("SIGINT")) await once(child, "exit");
      rmSync(directory, { recursive: true, force: true });
    },
  };
}
