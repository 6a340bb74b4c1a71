/** Builds the page into the folder given as argument. The same sources and lock give the same bytes.
 *
 * usage: node build.mjs OUT
 */

import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { basename, dirname, join, relative } from "node:path";
import { fileURLToPath } from "node:url";
import * as esbuild from "esbuild";

const HERE = dirname(fileURLToPath(import.meta.url));
const out = process.argv[2];
if (!out) throw new Error("usage: node build.mjs OUT");

/** KaTeX's style sheet names each font in three formats; every browser of today reads the first. */
const onlyWoff2 = {
  name: "only-woff2",
  setup(build) {
    build.onLoad({ filter: /katex\.css$/ }, ({ path }) => {
      const css = readFileSync(path, "utf8");
      return { contents: css.replace(/,\s*url\([^)]*\.(?:woff|ttf)\)\s*format\("[^"]*"\)/g, ""), loader: "css" };
    });
  },
};

const result = await esbuild.build({
  absWorkingDir: HERE,
  entryPoints: { main: "src/main.tsx", theme: "src/theme.ts", icon: "icon.svg" },
  outdir: "out",
  write: false,
  bundle: true,
  minify: true,
  splitting: true,
  format: "esm",
  target: ["es2022"],
  charset: "utf8",
  jsx: "automatic",
  jsxImportSource: "preact",
  loader: { ".woff2": "file", ".svg": "copy" },
  entryNames: "[name]-[hash]",
  chunkNames: "[name]-[hash]",
  assetNames: "[name]-[hash]",
  legalComments: "none", // licences.txt has them whole
  metafile: true,
  plugins: [onlyWoff2],
  logLevel: "warning",
});

rmSync(out, { recursive: true, force: true });
mkdirSync(join(out, "assets"), { recursive: true });
for (const file of result.outputFiles) writeFileSync(join(out, "assets", basename(file.path)), file.contents);

const outputs = Object.entries(result.metafile.outputs);
const places = {};
for (const [path, { entryPoint, cssBundle }] of outputs) {
  if (!entryPoint) continue;
  const name = basename(entryPoint).replace(/\..*$/, "");
  if (["main", "theme", "icon"].includes(name)) places[name] = `assets/${basename(path)}`;
  if (name === "main") places.style = `assets/${basename(cssBundle)}`;
}
const page = readFileSync(join(HERE, "index.html"), "utf8");
writeFileSync(
  join(out, "index.html"),
  page.replace(/\{(\w+)\}/g, (_, name) => places[name] ?? fail(`index.html: no ${name} was built`)),
);
writeFileSync(join(out, "licences.txt"), licences());
writeFileSync(join(out, "built-from.txt"), `${sources()}\n`);

/** The licence of every package that something in the bundle came from. */
function licences() {
  const packages = new Set();
  for (const input of Object.keys(result.metafile.inputs)) {
    const found = input.match(/^node_modules\/((?:@[^/]+\/)?[^/]+)\//);
    if (found) packages.add(found[1]);
  }
  const parts = [...packages].sort().map((name) => {
    const folder = join(HERE, "node_modules", name);
    const about = JSON.parse(readFileSync(join(folder, "package.json"), "utf8"));
    const file = readdirSync(folder).find((one) => /^licen[cs]e/i.test(one)) ?? fail(`${name} has no licence file`);
    const text = readFileSync(join(folder, file), "utf8").replace(/\r\n/g, "\n").trim();
    return `${name} ${about.version} (${about.license})\n\n${text}\n`;
  });
  return `The page contains parts of these packages.\n\n${parts.join(`\n${"-".repeat(80)}\n\n`)}`;
}

/** What the build depends on, as one hash; tests compute it again to find a build that is out of date. */
function sources() {
  const files = ["build.mjs", "icon.svg", "index.html", "package-lock.json", ...walk(join(HERE, "src"))].sort();
  const hash = createHash("sha256");
  for (const file of files) {
    const digest = createHash("sha256").update(readFileSync(join(HERE, file))).digest("hex");
    hash.update(`${file} ${digest}\n`);
  }
  return hash.digest("hex");
}

function walk(folder) {
  return readdirSync(folder, { withFileTypes: true }).flatMap((entry) => {
    const path = join(folder, entry.name);
    return entry.isDirectory() ? walk(path) : [relative(HERE, path).replaceAll("\\", "/")];
  });
}

function fail(why) {
  throw new Error(why);
}
