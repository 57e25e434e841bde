// The views, and what moves between them.

const views = [];
let shownView = null;

function view(id, name, make, number) {
  views.push({ id, name, make, number, node: null });
}
const openRow = (step) => openStep(step);
const bar = (step) => {
  if (step.start === undefined) return "";
  const node = el("span", { class: "bar" }, el("span", { class: `fill ${stateOf(step)[2]}` }));
  const fill = node.firstChild;
  fill.style.left = `${(step.start / total) * 100}%`;
  fill.style.width = `max(2px, ${((step.until - step.start) / total) * 100}%)`;
  return node;
};
const title = (step) => [nameOf(step), step.label ? el("span", { class: "quiet key" }, ` ${step.key}`) : null];

// --- Overview

function failureOf(step) {
  const log = step.excerpt;
  const lines = log ? log.lines.map((line, at) => {
    let isErr = false;
    for (let i = 0; i + 1 < log.err.length; i += 2) isErr = isErr || (at >= log.err[i] && at < log.err[i] + log.err[i + 1]);
    return el("div", { class: `line${isErr ? " err" : ""}` },
      el("span", { class: "stream" }, isErr ? "stderr " : ""), el("span", { class: "text" }, coloured(line)));
  }) : [];
  return el("article", { class: "failure" },
    el("h3", {}, el("button", { type: "button", class: "link", onclick: () => openStep(step) }, nameOf(step)), " ", badge(stateOf(step))),
    el("p", { class: "quiet" }, [
      step.exit !== undefined && step.status !== "infrastructure" ? `exit ${step.exit}` : null,
      duration(step.took), (step.attempts || []).length > 1 ? `attempt ${step.attempts.length}` : null,
      step.image ? `${step.runner}, from ${step.image}` : step.base !== undefined ? `${step.runner}, from ${steps[step.base].key}` : step.runner,
    ].filter(Boolean).join(" · ")),
    step.message ? el("pre", { class: "message" }, step.message) : null,
    step.tests && step.tests.failed ? testsOf(step) : null,
    lines.length ? el("div", { class: "excerpt", tabindex: 0, role: "region", "aria-label": `Last lines of ${nameOf(step)}` }, lines) : el("p", { class: "quiet" }, "It printed nothing."),
    el("div", { class: "commands" }, command(`hm logs ${typed(step)}`), command(`hm shell ${typed(step)}`)));
}
function ranked(name, list, value) {
  if (list.length === 0) return null;
  const most = Math.max(...list.map((step) => value(step)[0]), 1);
  return el("section", { class: "ranked" }, el("h2", {}, name), el("ol", {}, list.map((step) => {
    const [number, text] = value(step);
    const fill = el("span", { class: `fill ${stateOf(step)[2]}` });
    fill.style.width = `${Math.max(1, (number / most) * 100)}%`;
    return el("li", {}, el("button", { type: "button", class: "link", onclick: () => openStep(step) }, nameOf(step)),
      el("span", { class: "number" }, text), el("span", { class: "bar", "aria-hidden": "true" }, fill));
  })));
}
function overview() {
  const top = (value) => [...steps].filter((step) => value(step) > 0).sort((a, b) => value(b) - value(a)).slice(0, 8);
  const named = (name, list, text) => list.length === 0 ? null
    : el("section", {}, el("h2", {}, `${name} (${list.length})`), el("ul", { class: "plain" }, list.slice(0, 20).map((step) =>
        el("li", {}, stepLink(step.index), text ? el("span", { class: "quiet" }, ` ${text(step)}`) : null)),
      list.length > 20 ? el("li", { class: "quiet" }, `and ${list.length - 20} more: see the steps`) : null));
  const shown = failed.filter((step) => step.excerpt).slice(0, 50);
  const others = failed.filter((step) => !shown.includes(step));
  const failures = failed.length === 0 ? null : el("section", { "aria-labelledby": "failures" },
    el("h2", { id: "failures" }, `Failures (${failed.length})`), shown.map(failureOf), others.slice(0, 50).map(failureOf),
    others.length > 50 ? el("p", {}, `and ${others.length - 50} more: see the steps`) : null);
  const path = criticalPath.map((index) => steps[index]);
  const pathMs = path.reduce((sum, step) => sum + step.took, 0);
  const shownPath = path.length > 40 ? [...path].sort((a, b) => b.took - a.took).slice(0, 40).sort((a, b) => a.start - b.start) : path;
  return el("div", { class: "overview" }, failures,
    el("div", { class: "cards" },
      path.length > 1 ? ranked(`Critical path: ${duration(pathMs)}`, shownPath, (step) => [step.took, duration(step.took)]) : null,
      ranked("Slowest", top((step) => (step.start === undefined ? 0 : step.took || 0)), (step) => [step.took, duration(step.took)]),
      ranked("Waited longest", top((step) => (step.wait >= 100 ? step.wait : 0)), (step) => [step.wait, duration(step.wait)]),
      ranked("Most memory", top((step) => step.peak || 0), (step) => [step.peak, size(step.peak)]),
      ranked("Most CPU", top((step) => step.cpu || 0), (step) => [step.cpu, duration(step.cpu)])),
    el("div", { class: "cards" },
      named("Flaky", steps.filter((step) => step.status === "flaky"), (step) => `passed on attempt ${(step.attempts || []).length}`),
      named("Failed, but allowed", steps.filter((step) => step.status === "failed_allowed"), (step) => `exit ${step.exit}`),
      named("Used the network", steps.filter((step) => step.net), (step) => count(step.net.length + (step.more_net || 0), "connection")),
      named("With services", steps.filter((step) => step.services), (step) => step.services.join(", ")),
      named("Skipped", steps.filter((step) => step.status === "skipped"), (step) => step.message || "")));
}

// --- Steps

const SORTS = {
  plan: ["Order of the plan", (a, b) => a.index - b.index],
  start: ["Start", (a, b) => (a.start === undefined ? Infinity : a.start) - (b.start === undefined ? Infinity : b.start) || a.index - b.index],
  took: ["Duration", (a, b) => (b.took || 0) - (a.took || 0)],
  wait: ["Time waited", (a, b) => (b.wait || 0) - (a.wait || 0)],
  peak: ["Peak memory", (a, b) => (b.peak || 0) - (a.peak || 0)],
  cpu: ["CPU time", (a, b) => (b.cpu || 0) - (a.cpu || 0)],
  name: ["Name", (a, b) => nameOf(a).localeCompare(nameOf(b), "en")],
};
function stepsView() {
  const table = virtualTable({
    label: "Steps", rowHeight: 30, open: openRow, className: "steps",
    columns: [
      { name: "State", class: "c-state", cell: (step) => badge(stateOf(step)) },
      { name: "Step", class: "c-name", cell: title },
      { name: "When", class: "c-bar", cell: bar },
      { name: "Took", class: "c-number", cell: (step) => (step.start === undefined ? "–" : duration(step.took)) },
      { name: "Waited", class: "c-number c-wide", cell: (step) => (step.wait >= 100 ? duration(step.wait) : "–") },
      { name: "Peak", class: "c-number c-wide", cell: (step) => size(step.peak) },
      { name: "CPU", class: "c-number c-wide", cell: (step) => duration(step.cpu) },
    ],
  });
  const search = el("input", { type: "search", placeholder: "Filter by name", "aria-label": "Filter steps by name", class: "search" });
  const sort = el("select", { "aria-label": "Sort by" }, Object.entries(SORTS).map(([id, [name]]) => el("option", { value: id }, name)));
  const tally = new Map();
  for (const step of steps) tally.set(step.status || "none", (tally.get(step.status || "none") || 0) + 1);
  const wanted = new Set();
  const chips = [...tally].map(([status, number]) => {
    const chip = el("button", { type: "button", class: "chip", "aria-pressed": "false" }, badge(STATES[status] || ["?", status, "dim"]), ` ${number.toLocaleString("en")}`);
    chip.addEventListener("click", () => {
      if (!wanted.delete(status)) wanted.add(status);
      chip.setAttribute("aria-pressed", String(wanted.has(status)));
      update();
    });
    return chip;
  });
  const shown = el("span", { class: "quiet" });
  function update() {
    const text = search.value.toLowerCase();
    const rows = steps.filter((step) => (wanted.size === 0 || wanted.has(step.status || "none"))
      && (!text || step.key.toLowerCase().includes(text) || nameOf(step).toLowerCase().includes(text)));
    rows.sort(SORTS[sort.value][1]);
    table.set(rows);
    shown.textContent = `${rows.length.toLocaleString("en")} of ${count(steps.length, "step")}`;
    say(shown.textContent);
  }
  search.addEventListener("input", later(update, 80));
  leadsTo(search, table);
  sort.addEventListener("change", update);
  update();
  return { node: el("div", { class: "fill-view" }, el("div", { class: "tools" }, search, el("label", {}, "Sort by ", sort), shown),
    el("div", { class: "chips", role: "group", "aria-label": "States" }, chips), table.box), search, shown: table.draw, focus: () => table.box };
}

// --- Logs

const MAX_HITS = 5000;
function logsView() {
  const search = el("input", { type: "search", placeholder: "Search all logs", "aria-label": "Search all logs", class: "search" });
  const onlyErr = el("input", { type: "checkbox" });
  const found = el("span", { class: "quiet", role: "status", "aria-live": "polite" });
  const table = virtualTable({
    label: "Lines that were found", rowHeight: 24, className: "hits", open: (hit) => openStep(hit.step, search.value),
    columns: [
      { name: "Step", class: "c-hit-step", cell: (hit) => nameOf(hit.step) },
      { name: "Line", class: "c-hit-line", cell: (hit) => marked(hit.text, hit.text, search.value.toLowerCase()) },
    ],
  });
  let turn = 0;
  async function update() {
    const mine = (turn += 1);
    const needle = search.value.toLowerCase();
    if (!needle) {
      table.set([]);
      found.textContent = `Logs of ${count(steps.filter((step) => step.logs).length, "step")}. Long ones have only their ends here.`;
      return;
    }
    const hits = [];
    let until = performance.now() + 12;
    for (const step of steps) {
      for (const attempt of step.logs || []) {
        const log = readLog(step.index, attempt);
        if (!log) continue;
        for (let at = 0; at < log.plain.length && hits.length < MAX_HITS; at += 1) {
          if (onlyErr.checked && !log.isErr.has(at)) continue;
          const place = log.plain[at].toLowerCase().indexOf(needle);
          // What surrounds it is enough.
          if (place >= 0) hits.push({ step, text: place > 80 ? `…${log.plain[at].slice(place - 60, place + 200)}` : log.plain[at].slice(0, 260) });
        }
      }
      if (performance.now() > until) {
        // The page stays responsive, and a newer search takes over.
        await new Promise((resolve) => setTimeout(resolve));
        if (mine !== turn) return;
        until = performance.now() + 12;
      }
    }
    table.set(hits);
    found.textContent = hits.length >= MAX_HITS ? `the first ${count(MAX_HITS, "line")}` : hits.length ? count(hits.length, "line") : "nothing found";
  }
  search.addEventListener("input", later(update, 150));
  leadsTo(search, table);
  onlyErr.addEventListener("change", update);
  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", update, { once: true });
  update();
  return { node: el("div", { class: "fill-view" }, el("div", { class: "tools" }, search, el("label", {}, onlyErr, " only stderr"), found), table.box),
    search, shown: table.draw, focus: () => table.box };
}

// --- Tests and connections

function testsView() {
  const tested = steps.filter((step) => step.tests);
  const sum = (name) => tested.reduce((all, step) => all + step.tests[name], 0);
  const row = (step) => el("tr", {}, el("th", { scope: "row" }, stepLink(step.index)),
    ["tests", "failed", "skipped"].map((name) => el("td", { class: name === "failed" && step.tests.failed ? "bad" : "" }, step.tests[name].toLocaleString("en"))));
  const withFailures = tested.filter((step) => step.tests.failed > 0);
  return el("div", {}, el("h2", {}, `Tests: ${testCounts({ tests: sum("tests"), failed: sum("failed"), skipped: sum("skipped") })}`),
    withFailures.slice(0, 100).map((step) => el("section", { class: "failure" }, el("h3", {}, stepLink(step.index)), testsOf(step))),
    el("table", { class: "plain-table" }, el("caption", {}, "Counts by step"),
      el("thead", {}, el("tr", {}, ["Step", "Tests", "Failed", "Skipped"].map((name) => el("th", { scope: "col" }, name)))),
      el("tbody", {}, [...withFailures, ...tested.filter((step) => step.tests.failed === 0)].slice(0, 1000).map(row))));
}
function networkView() {
  const connected = steps.filter((step) => step.net);
  const rows = connected.flatMap((step) => step.net.map((net) => ({ step, net })));
  rows.sort((a, b) => Number(b.net.blocked) - Number(a.net.blocked));
  const table = virtualTable({
    label: "Connections", rowHeight: 28, className: "net", open: ({ step }) => openStep(step),
    columns: [
      { name: "Step", class: "c-hit-step", cell: ({ step }) => nameOf(step) },
      { name: "Connection", class: "c-hit-line", cell: ({ net }) => netLine(net) },
    ],
  });
  table.set(rows);
  const blocked = rows.filter(({ net }) => net.blocked).length;
  const more = connected.reduce((all, step) => all + (step.more_net || 0), 0);
  const text = [count(rows.length, "connection"), blocked ? `${blocked} blocked` : null, more ? `${more} more: hm logs --network ${run.run.slice(0, 8)}` : null];
  return { node: el("div", { class: "fill-view" }, el("p", { class: "quiet" }, text.filter(Boolean).join(" · ")), table.box), shown: table.draw, focus: () => table.box };
}

// --- Between views

function charted(make) {
  const made = make();
  return { node: made.node, shown: made.draw, focus: () => made.node.querySelector("canvas"), chart: made };
}
view("overview", "Overview", () => ({ node: overview() }));
view("steps", `Steps ${steps.length.toLocaleString("en")}`, stepsView);
if (didRun.length) view("timeline", "Timeline", () => charted(timeline));
if (steps.length) view("graph", "Graph", () => charted(graph));
if (steps.some((step) => step.logs)) view("logs", "Logs", logsView);
if (steps.some((step) => step.tests)) view("tests", "Tests", () => ({ node: testsView() }));
if (steps.some((step) => step.net)) view("network", "Network", networkView);

function showView(id, focus) {
  const wanted = views.find((other) => other.id === id) || views[0];
  if (!wanted.parts) {
    wanted.parts = wanted.make();
    wanted.parts.node.id = `view-${wanted.id}`;
    wanted.parts.node.classList.add("view");
    wanted.parts.node.setAttribute("role", "tabpanel");
    wanted.parts.node.setAttribute("aria-labelledby", `tab-${wanted.id}`);
    byId("main").append(wanted.parts.node);
  }
  for (const other of views) {
    const is = other === wanted;
    if (other.parts) other.parts.node.hidden = !is;
    const tab = byId(`tab-${other.id}`);
    tab.setAttribute("aria-selected", String(is));
    tab.tabIndex = is ? 0 : -1;
    if (is && focus === "tab") tab.focus();
  }
  shownView = wanted;
  document.body.dataset.view = wanted.id;
  if (wanted.parts.shown) wanted.parts.shown();
  if (focus === "view" && wanted.parts.focus) wanted.parts.focus().focus();
  remember();
}
// The address has what is shown, so that it can be sent and reloaded.
let isReady = false;
function remember() {
  if (!isReady) return;
  const parts = [`view=${shownView.id}`];
  if (openedStep) parts.push(`step=${encodeURIComponent(openedStep.key)}`);
  try {
    history.replaceState(null, "", `#${parts.join("&")}`);
  } catch {
    // A page in a frame may have no address.
  }
}
function recall() {
  const wanted = new Map(location.hash.slice(1).split("&").map((part) => part.split("=")));
  const key = (() => {
    try {
      return decodeURIComponent(wanted.get("step") || "");
    } catch {
      return "";
    }
  })();
  showView(wanted.get("view") || "overview");
  if (byKey.has(key)) openStep(byKey.get(key));
}

function head() {
  const [text, colour] = RESULTS[run.result] || [run.result, "dim"];
  byId("title").textContent = run.pipeline;
  document.title = `${run.pipeline} ${text} · hm report`;
  byId("result").textContent = text;
  byId("result").classList.add(colour);
  const started = new Date(run.started_at);
  const tally = (status) => steps.filter((step) => step.status === status).length;
  const sum = (value) => steps.reduce((all, step) => all + (value(step) || 0), 0);
  const hungriest = steps.reduce((most, step) => ((step.peak || 0) > (most ? most.peak : 0) ? step : most), null);
  const tested = steps.filter((step) => step.tests);
  const facts_ = [
    ["Took", duration(run.duration_ms === undefined ? lastMoment : run.duration_ms)],
    ["Started", el("time", { datetime: started.toISOString() }, `${started.toISOString().slice(0, 16).replace("T", " ")} UTC`)],
    ["Steps", [count(steps.length, "step"), failed.length ? `${failed.length} failed` : null, tally("cache_hit") ? `${tally("cache_hit")} cached` : null,
      tally("flaky") ? `${tally("flaky")} flaky` : null, tally("skipped") ? `${tally("skipped")} skipped` : null].filter(Boolean).join(", ")],
    tested.length ? ["Tests", testCounts({ tests: sum((step) => step.tests && step.tests.tests), failed: sum((step) => step.tests && step.tests.failed), skipped: sum((step) => step.tests && step.tests.skipped) })] : null,
    criticalPath.length > 1 ? ["Critical path", duration(criticalPath.reduce((all, index) => all + steps[index].took, 0))] : null,
    hungriest ? ["Peak memory", `${size(hungriest.peak)} (${nameOf(hungriest)})`] : null,
    sum((step) => step.cpu) ? ["CPU", duration(sum((step) => step.cpu))] : null,
    ["Run", el("code", {}, run.run.slice(0, 8))],
  ].filter(Boolean);
  byId("facts").append(...facts_.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
  views.forEach((each, at) => byId("tabs").append(el("button", {
    type: "button", role: "tab", id: `tab-${each.id}`, "aria-controls": `view-${each.id}`, "aria-keyshortcuts": at + 1,
    onclick: () => showView(each.id),
  }, each.name)));
  byId("tabs").addEventListener("keydown", (event) => {
    const at = views.indexOf(shownView);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: views.length - 1 }[event.key];
    if (to === undefined) return;
    showView(views[(to + views.length) % views.length].id, "tab");
    event.preventDefault();
  });
}
function nextFailed(by) {
  if (failed.length === 0) return say("No step failed");
  const at = openedStep ? failed.indexOf(openedStep) : by > 0 ? -1 : 0;
  openStep(failed[(at + by + failed.length) % failed.length]);
}
document.addEventListener("keydown", (event) => {
  const help = byId("help");
  if (event.ctrlKey || event.metaKey || event.altKey || help.open) return;
  if (event.key === "Escape") return closeStep();
  if (event.target.closest("input, select, textarea") || !singleKeys()) return;
  const number = Number(event.key);
  if (event.key === "/") {
    const search = document.activeElement.closest("#panel") ? byId("panel").querySelector("input[type=search]") : shownView.parts.search;
    if (search) search.focus();
    else {
      showView("steps");
      shownView.parts.search.focus();
    }
  } else if (event.key === "?") help.showModal();
  else if (event.key === "n") nextFailed(1);
  else if (event.key === "p") nextFailed(-1);
  else if (number >= 1 && number <= views.length) showView(views[number - 1].id, "view");
  else return;
  event.preventDefault();
});
byId("help-open").addEventListener("click", () => byId("help").showModal());
head();
recall();
isReady = true;
