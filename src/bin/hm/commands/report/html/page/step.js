// The panel of a step.

let openedStep = null;
let openedFrom = null;

const facts = (pairs) => el("dl", { class: "facts" }, pairs.filter((pair) => pair && pair[1] !== undefined && pair[1] !== null)
  .map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
const stepLink = (index) => {
  const step = steps[index];
  return el("button", { type: "button", class: "link", onclick: () => openStep(step) }, badge(stateOf(step)), ` ${nameOf(step)}`);
};
function links(indices) {
  const shown = indices.slice(0, 30).map((index) => el("li", {}, stepLink(index)));
  if (indices.length > 30) shown.push(el("li", { class: "quiet" }, `and ${indices.length - 30} more`));
  return el("ul", { class: "plain" }, shown);
}

// Says why a step started when it did.
function waited(step) {
  if (step.start === undefined) return null;
  const last = step.parents.filter((parent) => steps[parent].end === step.ready && step.ready > 0).map((parent) => steps[parent])[0];
  const ready = last ? `when ${nameOf(last)} ended, at ${duration(step.ready)}` : "at once";
  if (step.wait < 100) return `Nothing held it up: it could start ${ready}.`;
  const running = runningAt(step.ready);
  return `It could start ${ready}, and waited ${duration(step.wait)} for a free slot or for memory, while `
    + `${count(running, "other step")} ran. At most ${mostAtOnce} ran at once in this run.`;
}

function section(title, ...children) {
  return el("section", {}, el("h3", {}, title), children);
}

function openStep(step, needle) {
  const panel = byId("panel");
  if (!openedStep) openedFrom = document.activeElement;
  openedStep = step;
  const log = logView(step);
  const close = el("button", { type: "button", class: "close", "aria-label": "Close", onclick: closeStep }, "✕");
  const attempts = step.attempts || [];
  const cache = step.cache || [];
  const parts = [
    el("div", { class: "panel-head" }, el("h2", { id: "step-title", tabindex: -1 }, nameOf(step)), close),
    el("p", { class: "panel-state" }, badge(stateOf(step)),
      step.exit !== undefined && step.exit !== 0 ? ` exit ${step.exit}` : null,
      step.critical ? el("span", { class: "tag" }, "critical path") : null,
      step.label ? el("code", { class: "quiet" }, step.key) : null),
    step.message ? el("pre", { class: "message" }, step.message) : null,
    facts([
      ["Took", step.took === undefined ? null : duration(step.took)],
      ["Started", step.start === undefined ? null : `${duration(step.start)} after the start`],
      ["Waited", step.wait >= 100 ? duration(step.wait) : null],
      ["Peak memory", step.peak === undefined ? null : size(step.peak)],
      ["CPU time", step.cpu === undefined ? null : duration(step.cpu)],
      ["Runner", step.runner],
      ["Image", step.image],
      ["Services", step.services && step.services.join(", ")],
    ]),
    step.cmd ? section("Command", el("pre", { class: "cmd", tabindex: 0, "aria-label": "Command" }, step.cmd[0]),
      step.cmd[1] ? el("p", { class: "quiet" }, `and ${size(step.cmd[1])} more`) : null) : null,
    section("Log", log.node),
    FAILED.has(step.status) ? section("Look into it", command(`hm logs ${typed(step)}`), command(`hm shell ${typed(step)}`)) : null,
    step.tests ? section("Tests", testsOf(step)) : null,
    attempts.length > 1 ? section("Attempts", el("ol", { class: "plain" }, attempts.map(([number, start, end, retry]) =>
      el("li", {}, `${number}: from ${duration(start)} for ${end === null ? "–" : duration(end - start)}${retry ? `: ${retry}` : ""}`)))) : null,
    waited(step) ? section("Why it started then", el("p", {}, waited(step))) : null,
    cache.length > 0 ? section("Cache", el("ul", { class: "plain" }, cache.map((line) => el("li", {}, line)))) : null,
    step.parents.length > 0 ? section(`Waits for ${step.parents.length}`, links(step.parents)) : null,
    step.children.length > 0 ? section(`${step.children.length} wait for it`, links(step.children)) : null,
    step.outputs ? section("Outputs", el("ul", { class: "plain" },
      step.outputs.map(([name, bytes]) => el("li", {}, el("code", {}, name), ` ${size(bytes)}`)),
      step.more_outputs ? el("li", { class: "quiet" }, `and ${step.more_outputs} more`) : null)) : null,
    step.net ? section("Connections", el("ul", { class: "plain" }, step.net.map((net) => el("li", {}, netLine(net))),
      step.more_net ? el("li", { class: "quiet" }, `and ${step.more_net} more`) : null),
      step.more_net ? command(`hm logs --network ${typed(step)}`) : null) : null,
  ];
  panel.replaceChildren(...parts.filter(Boolean));
  panel.setAttribute("aria-labelledby", "step-title");
  panel.hidden = false;
  document.body.classList.add("with-panel");
  panel.scrollTop = 0;
  byId("step-title").focus({ preventScroll: true });
  if (needle) log.find(needle);
  remember();
}
function closeStep() {
  if (!openedStep) return;
  openedStep = null;
  byId("panel").hidden = true;
  byId("panel").replaceChildren();
  document.body.classList.remove("with-panel");
  if (openedFrom && openedFrom.isConnected) openedFrom.focus({ preventScroll: true });
  openedFrom = null;
  remember();
}

const testCounts = (tests) => [count(tests.tests, "test"), tests.failed ? `${tests.failed} failed` : null, tests.skipped ? `${tests.skipped} skipped` : null]
  .filter(Boolean).join(", ");
function testsOf(step) {
  const failures = step.tests.failures || [];
  return [
    el("p", {}, testCounts(step.tests)),
    el("ul", { class: "plain tests" }, failures.map((test) => el("li", {},
      el("span", { class: "state bad" }, el("i", { "aria-hidden": "true" }, "✗"), " failed"), " ", el("code", {}, test.name),
      test.message ? el("div", { class: "quiet" }, test.message) : null))),
    step.tests.failed > failures.length ? el("p", { class: "quiet" }, `and ${step.tests.failed - failures.length} more`) : null,
  ];
}
const netLine = (net) => [
  net.blocked ? el("span", { class: "state bad" }, "✗ blocked ") : null,
  `${net.protocol} ${net.to}${net.blocked ? "" : ` ${net.end}`}`,
  net.reason ? `: ${net.reason}` : null,
  net.sent || net.received ? el("span", { class: "quiet" }, ` sent ${size(net.sent)}, received ${size(net.received)} in ${duration(net.took)}`) : null,
  net.count > 1 ? el("span", { class: "quiet" }, ` (${net.count} times)`) : null,
];
