// Makes the two files of the npm package that have to stand alone, the worker and the one with the engine inside, and puts the licences beside them.
import { build } from "esbuild";
import { copyFileSync, readFileSync } from "node:fs";

for (const licence of ["LICENSE-APACHE", "LICENSE-MIT"]) copyFileSync(licence, `wasm/js/${licence}`);

const source = "wasm/js/src";
const common = {
  bundle: true,
  format: "esm",
  target: "es2022",
  minify: true,
  legalComments: "none",
  conditions: ["browser"],
  logLevel: "warning",
};

const platform = (name) => ({ "#platform": `./${source}/platform/${name}.ts` });

await build({ ...common, alias: platform("worker-file"), entryPoints: [`${source}/worker.ts`], outfile: "wasm/js/dist/worker.js", sourcemap: true });

const engine = {
  name: "engine",
  setup({ onResolve, onLoad }) {
    onResolve({ filter: /^quorate-engine-base64$/ }, ({ path }) => ({ path, namespace: "engine" }));
    onLoad({ filter: /.*/, namespace: "engine" }, () => ({
      contents: readFileSync("wasm/js/dist/quorate.wasm").toString("base64"),
      loader: "text",
    }));
  },
};
await build({ ...common, alias: platform("inline-file"), entryPoints: [`${source}/inline.ts`], outfile: "wasm/js/dist/inline.js", plugins: [engine] });
