// The rules of the house that no compiler keeps: node scripts/check-house.mjs
//
// * The crates of rules have no runtime, socket or store in their tree.
// * No circle of imports between the files of a crate.
// * The lock file of the fuzz targets fits.
// * Machines that share a crate with a driver know nothing of a runtime or a clock.
// * Comments have up to 120 columns.
// * The two clippy.toml of the crates of rules say the same.
// * Subjects of commits have up to 60 characters, and a body says why.
// * Paths and tests that the documents name exist.
import { execFileSync } from "node:child_process";
import { existsSync, readFileSync } from "node:fs";
import { dirname, join } from "node:path";

const problems = [];
const files = (...patterns) =>
  execFileSync("git", ["ls-files", "-co", "--exclude-standard", "--", ...patterns], { encoding: "utf8", maxBuffer: 1 << 26 })
    .split("\n")
    .filter((file) => file && existsSync(file));
const read = (file) => readFileSync(file, "utf8");

// Crates whose dependencies cannot do I/O, and what must not be among them.
const PURE = ["quorate-protocol", "quorate-rules"];
const IMPURE = /^(tokio|axum|hyper|quinn|redb|reqwest|rustls|mio|socket2|async-std|smol)\b/;
for (const crate of PURE) {
  const tree = execFileSync("cargo", ["tree", "--locked", "-p", crate, "-e", "normal", "--prefix", "none", "--target", "all"], { encoding: "utf8" });
  for (const line of new Set(tree.split("\n"))) {
    if (IMPURE.test(line)) problems.push(`${crate} depends on ${line.trim()}: rules cannot have a runtime, socket or store`);
  }
}

// The fuzz targets are a workspace of their own; nobody notices when their lock file falls behind.
try {
  execFileSync("cargo", ["metadata", "--locked", "--format-version", "1", "--manifest-path", "tests/fuzz/Cargo.toml"], { stdio: "ignore", maxBuffer: 1 << 28 });
} catch {
  problems.push("tests/fuzz/Cargo.lock is stale: cargo metadata --manifest-path tests/fuzz/Cargo.toml");
}

// Circles of imports. A file that only declares and re-exports modules is no place of its own.
const CRATES = ["sdk", "sdk/protocol", "sdk/quic", "node", "node/rules", "node/devnet", "bridge", "wasm", "tests/simulation", "tests/model", "tests"];
for (const crate of CRATES) {
  const root = join(crate, "src");
  const sources = files(`${root}/*.rs`, `${root}/**/*.rs`).filter((file) => !/(^|\/)(tests|main)\.rs$/.test(file));
  const modules = new Map();
  for (const file of sources) {
    const name = file.slice(root.length + 1, -3).replace(/(^|\/)(mod|lib)$/, "").replaceAll("/", "::");
    modules.set(name, file);
  }
  // `a::b::Item` → the file of the longest module in it.
  const owner = (path) => {
    for (let parts = path.split("::"); parts.length > 0; parts = parts.slice(0, -1)) {
      if (modules.has(parts.join("::"))) return parts.join("::");
    }
    return undefined;
  };
  const flatten = (prefix, text) => {
    const paths = [];
    let depth = 0;
    let start = 0;
    const piece = (end) => {
      const part = text.slice(start, end).trim();
      if (!part) return;
      const brace = part.indexOf("{");
      if (brace < 0) paths.push(prefix + part.replace(/ as .*/, ""));
      else paths.push(...flatten(prefix + part.slice(0, brace), part.slice(brace + 1, part.lastIndexOf("}"))));
    };
    for (let i = 0; i < text.length; i++) {
      if (text[i] === "{") depth++;
      if (text[i] === "}") depth--;
      if (text[i] === "," && depth === 0) {
        piece(i);
        start = i + 1;
      }
    }
    piece(text.length);
    return paths;
  };
  // Where re-exported names come from, so that `crate::Name` counts for the file that has it.
  const exported = new Map();
  const graph = new Map();
  const uses = (name) => {
    const text = read(modules.get(name)).replace(/#\[cfg\(test\)\]\s*mod tests \{[\s\S]*$/, "").replace(/\/\/.*$/gm, "");
    const module = name.split("::").filter(Boolean);
    // Paths in the code count like those at its head.
    const inline = [...text.matchAll(/(?<!use )\bcrate::([a-z_]\w*(?:::\w+)*)/g)].map(([, path]) => ({ pub: false, path, local: true }));
    return inline.concat([...text.matchAll(/^\s*(pub(?:\([^)]*\))?\s+)?use\s+([^;]+);/gm)].flatMap(([, pub, path]) =>
      flatten("", path.replace(/\s+/g, " ")).map((path) => ({
        pub: Boolean(pub),
        path: path
          .replace(/^crate::/, "")
          .replace(/^self::/, [...module, ""].join("::"))
          .replace(/^super::/, [...module.slice(0, -1), ""].join("::"))
          .replace(/^::/, ""),
        local: /^(crate|self|super)\b/.test(path) || modules.has([...module, path.split("::")[0]].join("::")),
        child: modules.has([...module, path.split("::")[0]].join("::")),
      })).map((one) => (one.child && !/^(crate|self|super)/.test(one.path) ? { ...one, path: [...module, one.path].join("::") } : one)),
    ));
  };
  for (const name of modules.keys()) {
    for (const one of uses(name)) if (one.pub && one.local) exported.set([name, one.path.split("::").pop()].filter(Boolean).join("::"), one.path);
  }
  const resolve = (path) => {
    for (let hops = 0; hops < 5 && exported.has(path); hops++) path = exported.get(path);
    return owner(path);
  };
  for (const name of modules.keys()) {
    const targets = new Set(uses(name).filter((one) => one.local && !one.pub).map((one) => resolve(one.path)));
    targets.delete(name);
    targets.delete(undefined);
    targets.delete("");
    graph.set(name, targets);
  }
  const state = new Map();
  const visit = (name, trail) => {
    if (state.get(name) === "done") return;
    if (trail.includes(name)) {
      problems.push(`${crate}: a circle of imports: ${[...trail.slice(trail.indexOf(name)), name].join(" → ")}`);
      return;
    }
    for (const next of graph.get(name) ?? []) visit(next, [...trail, name]);
    state.set(name, "done");
  };
  for (const name of graph.keys()) visit(name, []);
}

// Machines beside their drivers.
const MACHINES = ["bridge/src/{machine,hub,session,relays}*", "bridge/src/machine/*", "sdk/src/session/*", "sdk/src/wallet/*"];
for (const file of files(...MACHINES.flatMap(braces)).filter((file) => file.endsWith(".rs") && !/tests\.rs$/.test(file))) {
  const code = read(file).replace(/#\[cfg\(test\)\]\s*mod tests \{[\s\S]*$/, "").replace(/\/\/.*$/gm, "");
  const found = code.match(/\btokio\b|\basync\b|\bquinn\b|Instant::now|SystemTime::now|thread::/)?.[0];
  if (found) problems.push(`${file}: a machine knows nothing of ${found}`);
}
function braces(pattern) {
  const [, head, choices, tail] = pattern.match(/^(.*)\{(.*)\}(.*)$/) ?? [];
  return choices ? choices.split(",").map((choice) => head + choice + tail) : [pattern];
}

// Prose that nobody has to scroll for.
for (const file of files("*.rs")) {
  read(file).split("\n").forEach((line, index) => {
    if (line.length > 120 && /^\s*\/\//.test(line) && !/https?:|^\s*\/\/[/!]? \|/.test(line)) problems.push(`${file}:${index + 1}: a comment of ${line.length} characters`);
  });
}

const settings = ["node/rules/clippy.toml", "sdk/protocol/clippy.toml"].map(read);
if (settings[0] !== settings[1]) problems.push("node/rules/clippy.toml and sdk/protocol/clippy.toml differ");

// Commits since this is checked; a shallow clone may not have them.
const SINCE = "74918e1";
let log = "";
try {
  log = execFileSync("git", ["log", "--no-merges", "--format=%h%x00%s%x00%b%x01", `${SINCE}..HEAD`], { encoding: "utf8", stdio: ["ignore", "pipe", "ignore"] });
} catch {}
for (const commit of log.split("\x01").map((one) => one.trim()).filter(Boolean)) {
  const [hash, subject, body] = commit.split("\0");
  if (subject.length > 60) problems.push(`commit ${hash}: its subject has ${subject.length} characters`);
  if (!body.trim()) problems.push(`commit ${hash}: no body says why`);
}

// Documents: paths and test names in backticks.
const all = new Set(files());
const names = files("*.rs", "*.mjs", "*.ts").map(read).join("\n");
const folders = new Set([...all].flatMap((file) => {
  const up = [];
  for (let dir = dirname(file); dir !== "."; dir = dirname(dir)) up.push(dir);
  return up;
}));
for (const document of files("*.md").filter((file) => !/CHANGELOG/.test(file))) {
  for (const [, code] of read(document).matchAll(/`([^`\n]+)`/g)) {
    const path = code.match(/^((?:sdk|node|bridge|wasm|tests|scripts|docs|examples|bench|node)\/[\w./-]+?)\/?$/)?.[1];
    if (path && !all.has(path) && !folders.has(path) && !existsSync(path)) problems.push(`${document}: there is no ${path}`);
    if (/^[\w/]+\.rs$/.test(code)) {
      const found = [...all].filter((file) => file === code || file.endsWith(`/${code}`));
      if (found.length === 0) problems.push(`${document}: there is no ${code}`);
      // A table of rules has to say which file it means; ARCHITECTURE's drawings say it above.
      if (found.length > 1 && /safety/.test(document)) problems.push(`${document}: ${code} may be ${found.join(" or ")}`);
    }
    const test = code.match(/^(?:[\w.]+(?:::|: ))*([a-z][a-z0-9]*(?:_[a-z0-9]+){3,})$/)?.[1];
    if (test && !names.includes(test)) problems.push(`${document}: there is no ${test}`);
  }
  for (const [, target] of read(document).matchAll(/\]\((?!https?:|#)([^)#\s]+)[^)]*\)/g)) {
    if (!existsSync(join(dirname(document), target))) problems.push(`${document}: the link to ${target} leads nowhere`);
  }
}

for (const problem of problems) console.error(`house: ${problem}`);
if (problems.length > 0) process.exit(1);
console.log("the house is in order");
