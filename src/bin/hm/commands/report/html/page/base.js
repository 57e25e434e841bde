// The run, and what all views need: elements, times, states.

const run = JSON.parse(document.getElementById("run").textContent);
const steps = run.steps;
const byId = (id) => document.getElementById(id);

// Makes an element. Text is always text, never HTML. Names of attributes are those of this script.
function el(name, attributes, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (key === "class") node.className = value;
    else if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value === true ? "" : String(value));
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return node;
}

// Each state has a sign and a word besides its colour.
const STATES = {
  passed: ["✓", "passed", "good"],
  flaky: ["≈", "flaky", "odd"],
  cache_hit: ["◆", "cached", "calm"],
  failed: ["✗", "failed", "bad"],
  failed_allowed: ["!", "failed (allowed)", "odd"],
  skipped: ["–", "skipped", "dim"],
  canceled: ["⊘", "cancelled", "dim"],
  timed_out: ["⏱", "timed out", "bad"],
  out_of_memory: ["▣", "out of memory", "bad"],
  infrastructure: ["⚠", "could not run", "bad"],
  none: ["…", "not ended", "dim"],
};
const stateOf = (step) => STATES[step.status || "none"] || ["?", String(step.status), "dim"];
const RESULTS = {
  passed: ["passed", "good"],
  failed: ["failed", "bad"],
  timed_out: ["timed out", "bad"],
  cancelled: ["cancelled", "odd"],
  could_not_run: ["could not run", "bad"],
  running: ["still running when this was written", "odd"],
  interrupted: ["interrupted", "odd"],
};
const badge = (state) => el("span", { class: `state ${state[2]}` }, el("i", { "aria-hidden": "true" }, state[0]), ` ${state[1]}`);

function duration(ms) {
  if (ms === undefined || ms === null) return "–";
  const seconds = ms / 1000;
  if (seconds < 10) return `${seconds.toFixed(2)}s`;
  if (seconds < 60) return `${seconds.toFixed(1)}s`;
  const pad = (number) => String(Math.floor(number)).padStart(2, "0");
  if (seconds < 3600) return `${Math.floor(seconds / 60)}m${pad(seconds % 60)}s`;
  return `${Math.floor(seconds / 3600)}h${pad((seconds / 60) % 60)}m`;
}
function size(bytes) {
  if (bytes === undefined || bytes === null) return "–";
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (bytes >= 1024 && unit < units.length - 1) {
    bytes /= 1024;
    unit += 1;
  }
  return `${unit === 0 ? bytes : bytes.toFixed(1)} ${units[unit]}`;
}
const count = (number, noun) => `${number.toLocaleString("en")} ${noun}${number === 1 ? "" : "s"}`;
const nameOf = (step) => step.label || step.key;

// What follows from the run.
const byKey = new Map();
steps.forEach((step, index) => {
  step.index = index;
  step.parents = [...new Set([...(step.base === undefined ? [] : [step.base]), ...(step.needs || [])])];
  step.children = [];
  byKey.set(step.key, step);
});
steps.forEach((step) => step.parents.forEach((parent) => steps[parent].children.push(step.index)));

// An order in which each step comes after those that it waits for, and how far it is from the first ones.
const order = [];
{
  const missing = steps.map((step) => step.parents.length);
  steps.forEach((step) => missing[step.index] === 0 && order.push(step.index));
  for (let at = 0; at < order.length; at += 1) {
    const step = steps[order[at]];
    step.depth = step.parents.reduce((depth, parent) => Math.max(depth, steps[parent].depth + 1), 0);
    for (const child of step.children) {
      missing[child] -= 1;
      if (missing[child] === 0) order.push(child);
    }
  }
  // The journal of a damaged run may have circles.
  for (const step of steps) {
    if (step.depth === undefined) {
      step.depth = 0;
      order.push(step.index);
    }
  }
}

const lastMoment = steps.reduce((last, step) => Math.max(last, step.end || 0, step.start || 0), 0);
const total = Math.max(run.duration_ms || lastMoment, lastMoment, 1);
const didRun = steps.filter((step) => step.start !== undefined);
for (const step of didRun) {
  step.until = step.end === undefined ? total : step.end;
  const ready = step.parents.reduce((last, parent) => Math.max(last, steps[parent].end || 0), 0);
  step.ready = Math.min(ready, step.start);
  step.wait = step.start - step.ready;
}

// How many steps ran at once: the changes, by time.
const load = [];
{
  const changes = didRun.flatMap((step) => [[step.start, 1], [step.until, -1]]);
  changes.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  let running = 0;
  for (const [at, change] of changes) {
    running += change;
    if (load.length > 0 && load[load.length - 1][0] === at) load[load.length - 1][1] = running;
    else load.push([at, running]);
  }
}
const mostAtOnce = load.reduce((most, [, running]) => Math.max(most, running), 0);
// Returns the index of the first change after a moment.
function loadAfter(ms) {
  let [low, high] = [0, load.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (load[middle][0] <= ms) low = middle + 1;
    else high = middle;
  }
  return low;
}
function runningAt(ms) {
  const after = loadAfter(ms);
  return after === 0 ? 0 : load[after - 1][1];
}

// The path of steps that took the longest together, as `hm run` prints it.
const criticalPath = [];
{
  const ends = steps.map(() => [0, -1]);
  let last = -1;
  for (const index of order) {
    let [longest, parent] = [0, -1];
    for (const above of steps[index].parents) if (ends[above][0] > longest) [longest, parent] = [ends[above][0], above];
    ends[index] = [longest + (steps[index].start === undefined ? 0 : steps[index].took || 0), parent];
    if (last < 0 || ends[index][0] > ends[last][0]) last = index;
  }
  for (let at = last; at >= 0; at = ends[at][1]) if (steps[at].took && steps[at].start !== undefined) criticalPath.unshift(at);
}
const isCritical = new Set(criticalPath.length > 1 ? criticalPath : []);
steps.forEach((step) => (step.critical = isCritical.has(step.index)));

const FAILED = new Set(["failed", "timed_out", "out_of_memory", "infrastructure"]);
const failed = steps.filter((step) => FAILED.has(step.status));

function quote(word) {
  return /^[A-Za-z0-9_.,:=@%+/-]+$/.test(word) ? word : `'${word.replace(/'/g, "'\\''")}'`;
}
const typed = (step) => quote(`${run.run.slice(0, 8)}/${step.key}`);

function say(text) {
  byId("live").textContent = text;
}
function frame(draw) {
  let waits = false;
  return () => {
    if (waits) return;
    waits = true;
    requestAnimationFrame(() => {
      waits = false;
      draw();
    });
  };
}
function later(act, ms) {
  let timer = 0;
  return (...values) => {
    clearTimeout(timer);
    timer = setTimeout(() => act(...values), ms);
  };
}
function copyButton(text) {
  const button = el("button", { type: "button", class: "copy", "aria-label": `Copy: ${text}` }, "Copy");
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(text);
      button.textContent = "Copied";
      say("Copied");
    } catch {
      // Without the right to use the clipboard, the text is selected instead.
      const range = document.createRange();
      range.selectNodeContents(button.previousElementSibling || button);
      getSelection().removeAllRanges();
      getSelection().addRange(range);
    }
    setTimeout(() => (button.textContent = "Copy"), 1500);
  });
  return button;
}
const command = (text) => el("div", { class: "command" }, el("code", {}, text), copyButton(text));
