import { randomUUID } from "node:crypto";
import { link, readFile, unlink, writeFile } from "node:fs/promises";
import { inUse } from "../storage.js";

/**
 * A lock file that names the process that holds it. It appears whole or not at all (`link`). One that was left by a process that is gone is removed
 * under a lock of its own, and only while it says so, so that nobody removes what another has just taken. Processes in different containers cannot see each other: do not share
 * a directory between them.
 */
export async function lock(path: string, name: string): Promise<() => Promise<void>> {
  const mine = `${path}.${randomUUID()}`;
  await writeFile(mine, (await identity(process.pid)) ?? String(process.pid), { mode: 0o600 });
  try {
    await take(mine, path, name);
    return () => unlink(path).catch(() => undefined);
  } finally {
    await unlink(mine);
  }
}

async function take(mine: string, path: string, name: string): Promise<void> {
  while (!(await linked(mine, path))) {
    const state = await stateOf(path);
    if (state === "held") throw inUse(name);
    // Let go in this moment: try again, and remove nothing, for another may have it by now.
    if (state === "free") continue;
    const removing = `${path}.removing`;
    await take(mine, removing, name);
    try {
      // Nobody else removes, and who holds it is gone: what is stale now stays until it is removed here.
      if ((await stateOf(path)) === "stale") await unlink(path);
    } finally {
      await unlink(removing);
    }
  }
}

/** Makes a lock file of one that is written already; `false` if there is one. */
async function linked(mine: string, path: string): Promise<boolean> {
  try {
    await link(mine, path);
    return true;
  } catch (error) {
    if (isCode(error, "EEXIST")) return false;
    throw error;
  }
}

async function stateOf(path: string): Promise<"free" | "held" | "stale"> {
  const holder = await readIfThere(path);
  if (holder === undefined) return "free";
  return (await isAlive(holder)) ? "held" : "stale";
}

/** A file's text, or `undefined` if there is none. That it cannot be read is no sign that nobody holds it. */
async function readIfThere(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    if (isCode(error, "ENOENT") || isCode(error, "ESRCH")) return undefined;
    throw error;
  }
}

/** A process by its id and, where the system tells, when it started: ids are used again, in containers at once. */
async function identity(pid: number): Promise<string | undefined> {
  const stat = await readIfThere(`/proc/${pid}/stat`);
  // The name, in parentheses, may contain anything; the start is the 20th field after it (proc(5)).
  const started = stat?.slice(stat.lastIndexOf(")") + 2).split(" ")[19];
  return started === undefined ? undefined : `${pid} ${started}`;
}

async function isAlive(holder: string): Promise<boolean> {
  const pid = Number(holder.split(" ")[0]);
  if (!Number.isInteger(pid) || pid <= 0) return false;
  if (holder.includes(" ")) return (await identity(pid)) === holder;
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return isCode(error, "EPERM");
  }
}

export function isCode(error: unknown, code: string): boolean {
  return error instanceof Error && "code" in error && error.code === code;
}
