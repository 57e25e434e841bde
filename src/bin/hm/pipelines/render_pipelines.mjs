// Prints the pipelines that the given files export, as one JSON object on descriptor 3.
//
// Run by `hm` as `node --input-type=module --eval SOURCE PROJECT HARMONT FILE...`, or `bun --eval SOURCE ...`, in a
// sandbox. HARMONT is the directory of the package `@harmont/hm`, or empty. Standard output is standard error for the files themselves,
// so that whatever they print cannot mix with the answer.

import fs from "node:fs";
import module from "node:module";
import path from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const [project, harmont, ...files] = process.argv.slice(1);

function answer(value) {
  // Half a character, which `slice` leaves, is no text to the reader of the answer.
  const whole = (key, value) => (typeof value === "string" ? (value.toWellFormed?.() ?? value) : value);
  const bytes = Buffer.from(JSON.stringify(value, whole));
  for (let at = 0; at < bytes.length; ) at += fs.writeSync(3, bytes, at);
  process.exit(0);
}

const bun = globalThis.Bun;
if (bun ? !bun.plugin || !bun.resolveSync : !module.registerHooks || !module.stripTypeScriptTypes)
  answer({ too_old: bun ? `Bun ${bun.version}` : `Node ${process.version}` });

// Node warns that removing types is experimental. Its versions differ in the options against that.
const emitWarning = process.emitWarning;
process.emitWarning = (warning, ...rest) => {
  if ((rest[0]?.type ?? rest[0]) !== "ExperimentalWarning") emitWarning.call(process, warning, ...rest);
};

// Where the package is, if the project does not have it: source or compiled.
const ENTRIES = {
  "@harmont/hm": ["index.ts", "index.js", "index.mjs"],
  "@harmont/hm/toolchains": ["toolchains/index.ts", "toolchains/index.js", "toolchains.mjs"],
};

class Missing extends Error {}

function given(specifier) {
  const found = ENTRIES[specifier].map((name) => path.join(harmont, name)).find((file) => fs.existsSync(file));
  if (!harmont || !found) throw new Missing(specifier);
  return pathToFileURL(found).href;
}

// The file that is loaded last, in which errors without a place are.
let loading;

// The package that the files import. Another copy would not know the steps that this one made.
let imported;

function prepareNode() {
  module.registerHooks({
    resolve(specifier, context, next) {
      try {
        const found = next(specifier, context);
        if (specifier === "@harmont/hm") imported ??= found.url;
        return found;
      } catch (error) {
        if (Object.hasOwn(ENTRIES, specifier))
          return { url: given(specifier), format: "module", shortCircuit: true };
        // TypeScript names the file that it would compile to.
        if (/^\.{1,2}\/.*\.m?js$/.test(specifier)) return next(specifier.replace(/js$/, "ts"), context);
        throw error;
      }
    },
    load(url, context, next) {
      if (!/^file:.*\.m?ts$/.test(url)) return next(url, context);
      const text = fs.readFileSync(fileURLToPath(url), "utf8");
      loading = url;
      let source;
      try {
        source = module.stripTypeScriptTypes(text, { mode: "strip" });
      } catch (error) {
        if (error.code === "ERR_UNSUPPORTED_TYPESCRIPT_SYNTAX") {
          source = module.stripTypeScriptTypes(text, { mode: "transform", sourceMap: true, sourceUrl: url });
        } else {
          error.file = url;
          throw error;
        }
      }
      return { format: "module", source, shortCircuit: true };
    },
  });
}

// Bun removes types and finds `x.ts` for `x.js` by itself. Only the package may be unknown to it.
function prepareBun() {
  for (const specifier of Object.keys(ENTRIES)) {
    try {
      bun.resolveSync(specifier, path.dirname(files[0]));
    } catch {
      const load = async () => ({ exports: await import(given(specifier)), loader: "object" });
      bun.plugin({ name: specifier, setup: (build) => build.module(specifier, load) });
    }
  }
}

if (bun) prepareBun();
else prepareNode();

// Variables that the files ask for in vain: few are shown to a pipeline.
const missed = new Set();
process.env = new Proxy(process.env, {
  get(env, name) {
    if (typeof name === "string" && !(name in env) && missed.size < 64 && name.length < 256) missed.add(name);
    return env[name];
  },
  // Without it, an assignment defines a property, which the environment refuses.
  set(env, name, value) {
    env[name] = value;
    return true;
  },
});

// An error, and what led to it.
function* causes(error) {
  // Any value can be thrown, and a cause may be a circle.
  for (let depth = 0; error !== undefined && error !== null && depth < 8; depth += 1) {
    yield error;
    error = error.cause ?? error.errors?.[0];
  }
}

function firstLine(error) {
  const lines = String(error?.message ?? error).split("\n").map((text) => text.trim());
  return lines.find((text) => text && !/^[,|·╭│╰]/.test(text))?.replace(/^(x|×)\s+/, "") ?? "";
}

// The last line of the project's own files that an error comes from.
function located(error) {
  const stack = String(error?.stack ?? "");
  const toPath = (place) => (place.startsWith("file:") ? fileURLToPath(place) : place);
  const own = (file) => file.startsWith(project + path.sep) && fs.existsSync(file);
  const places = [...stack.matchAll(/((?:file:\/\/)?\/[^\s()]+?):(\d+)(?::\d+)?\)?$/gm)]
    .map((match) => [toPath(match[1]), Number(match[2])])
    .filter(([file]) => own(file));
  const inSource = /\[(\d+):\d+\]/.exec(String(error?.message ?? ""));
  let file, line;
  // What Bun cannot compile or find has its place.
  const position = (error?.position ?? error?.errors?.[0]?.position) || undefined;
  if (position?.file && own(position.file)) [file, line] = [position.file, position.line];
  else if (error?.referrer && own(toPath(error.referrer))) file = toPath(error.referrer);
  else if (error?.file) [file, line] = [toPath(error.file), Number(inSource?.[1] ?? /:(\d+)\n/.exec(stack)?.[1] ?? 1)];
  else if (places.length) [file, line] = places[0];
  else if (loading && own(toPath(loading))) file = toPath(loading);
  const source = line && fs.readFileSync(file, "utf8").split("\n")[line - 1]?.trim().slice(0, 500);
  const name = error?.constructor?.name ?? typeof error;
  const kind = { BuildMessage: "SyntaxError", ResolveMessage: "Error" }[name] ?? name;
  const message = [...causes(error)].map(firstLine).filter(Boolean).join(": ");
  return { file: file && path.relative(project, file), line, kind, message, source };
}

// The package that a file would import, if it imports only parts of it.
function packageOf(file) {
  try {
    if (bun) return pathToFileURL(bun.resolveSync("@harmont/hm", path.dirname(file))).href;
    return pathToFileURL(module.createRequire(file).resolve("@harmont/hm")).href;
  } catch {
    return given("@harmont/hm");
  }
}

try {
  const definitions = [];
  for (const file of files) {
    const loaded = await import(pathToFileURL(file));
    const exported = loaded.default ?? loaded.pipelines;
    definitions.push(...(Array.isArray(exported) ? exported : exported ? [exported] : []));
  }
  const { renderEnvelope } = await import(imported ?? packageOf(files[0]));
  const envelope = renderEnvelope(definitions, { basePath: process.cwd() });
  // The package and Node ask for these themselves.
  for (const name of ["HM_PIPELINE_ORG", "FORCE_COLOR", "NODE_V8_COVERAGE", "WATCH_REPORT_DEPENDENCIES"])
    missed.delete(name);
  answer({ envelope, missed: [...missed].sort() });
} catch (error) {
  if (error instanceof Missing) answer({ missing: "@harmont/hm" });
  answer({ error: located(error), missed: [...missed].sort() });
}
