// Logs: parsed when they are shown or searched.

const parsed = new Map();
function readLog(index, attempt) {
  const id = `log-${index}-${attempt}`;
  if (!parsed.has(id)) {
    const element = byId(id);
    if (!element) return null;
    const log = JSON.parse(element.textContent);
    log.plain = log.lines.map((line) => line.replace(/\x1b\[[0-9;:]*m/g, ""));
    log.isErr = new Set();
    for (let at = 0; at + 1 < log.err.length; at += 2) for (let i = 0; i < log.err[at + 1]; i += 1) log.isErr.add(log.err[at] + i);
    parsed.set(id, log);
  }
  return parsed.get(id);
}
function timeOf(log, line) {
  let [low, high] = [0, log.at.length / 2];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (log.at[2 * middle] <= line) low = middle + 1;
    else high = middle;
  }
  return low === 0 ? null : log.at[2 * low - 1];
}

// Makes coloured text of a line. Logs have no other escape sequences.
function coloured(line) {
  if (!line.includes("\x1b")) return [line];
  const parts = [];
  let style = "";
  line.split(/\x1b\[([0-9;:]*)m/).forEach((part, at) => {
    if (at % 2 === 0) {
      if (part) parts.push(style ? el("span", { class: style }, part) : part);
      return;
    }
    let classes = style ? style.split(" ") : [];
    const codes = part === "" ? [0] : part.split(/[;:]/).map(Number);
    for (let i = 0; i < codes.length; i += 1) {
      const code = codes[i];
      if (code === 0) classes = [];
      else if (code === 1) classes.push("bold");
      else if (code === 2) classes.push("faint");
      else if (code === 4) classes.push("under");
      else if (code === 38 || code === 48) i += codes[i + 1] === 5 ? 2 : 4;
      else if (code === 39) classes = classes.filter((name) => !name.startsWith("c"));
      else if ((code >= 30 && code <= 37) || (code >= 90 && code <= 97))
        classes = [...classes.filter((name) => !name.startsWith("c")), `c${code % 10}`];
      else if (code === 22) classes = classes.filter((name) => name !== "bold" && name !== "faint");
    }
    style = [...new Set(classes)].join(" ");
  });
  return parts;
}

// Shows where a text was found in a line.
function marked(line, plain, needle) {
  if (!needle) return coloured(line);
  const found = [];
  const folded = plain.toLowerCase();
  let from = 0;
  for (let at = folded.indexOf(needle); at >= 0 && found.length < 200; at = folded.indexOf(needle, from)) {
    found.push(plain.slice(from, at), el("mark", {}, plain.slice(at, at + needle.length)));
    from = at + needle.length;
  }
  return found.length === 0 ? coloured(line) : [...found, plain.slice(from)];
}

const LINE = 18;
function logView(step) {
  let log = null;
  let needle = "";
  let hits = [];
  let hit = -1;
  const body = el("div", { class: "log-lines" });
  const box = el("div", { class: "log", tabindex: 0, role: "region", "aria-label": `Log of ${nameOf(step)}` }, body);
  const note = el("p", { class: "quiet log-note" });
  const search = el("input", { type: "search", placeholder: "Search this log", "aria-label": "Search this log" });
  const found = el("span", { class: "quiet", role: "status", "aria-live": "polite" });

  let shown = [-1, -1];
  function draw(force) {
    if (!log) return;
    const first = Math.max(0, Math.floor(box.scrollTop / LINE) - 10);
    const last = Math.min(log.lines.length, first + Math.ceil(box.clientHeight / LINE) + 20);
    if (!force && shown[0] === first && shown[1] === last) return;
    shown = [first, last];
    body.style.height = `${log.lines.length * LINE}px`;
    const made = [];
    let second = first > 0 ? timeOf(log, first - 1) : null;
    for (let at = first; at < last; at += 1) {
      const time = timeOf(log, at);
      const line = el("div", { class: `line${log.isErr.has(at) ? " err" : ""}${at === hits[hit] ? " hit" : ""}` },
        el("span", { class: "time", "aria-hidden": "true" }, time === null || time === second ? "" : clock(time * 1000)),
        log.isErr.has(at) ? el("span", { class: "stream" }, "stderr ") : el("span", { class: "stream" }),
        el("span", { class: "text" }, marked(log.lines[at], log.plain[at], needle)));
      line.style.transform = `translateY(${at * LINE}px)`;
      made.push(line);
      second = time;
    }
    body.replaceChildren(...made);
  }
  function go(to) {
    if (hits.length === 0) return;
    hit = (to + hits.length) % hits.length;
    box.scrollTop = hits[hit] * LINE - box.clientHeight / 2;
    found.textContent = `${hit + 1} of ${count(hits.length, "line")}`;
    draw(true);
  }
  function find(text) {
    needle = text.toLowerCase();
    hits = [];
    hit = -1;
    if (needle && log) log.plain.forEach((line, at) => line.toLowerCase().includes(needle) && hits.push(at));
    found.textContent = needle ? (hits.length ? count(hits.length, "line") : "nothing found") : "";
    if (hits.length) go(0);
    else draw(true);
  }
  search.addEventListener("input", later(() => find(search.value), 120));
  search.addEventListener("keydown", (event) => {
    if (event.key !== "Enter") return;
    event.preventDefault();
    go(hit + (event.shiftKey ? -1 : 1));
  });
  box.addEventListener("scroll", frame(() => draw(false)));
  new ResizeObserver(frame(() => draw(true))).observe(box);

  function show(attempt) {
    log = readLog(step.index, attempt);
    if (!log) {
      note.textContent = document.readyState === "loading" ? "The log is being loaded." : "There is no log.";
      document.addEventListener("DOMContentLoaded", () => !log && show(attempt), { once: true });
      return;
    }
    const of = attempt === 0 ? "It is that of the run that made the cached result. " : "";
    if (log.error) note.textContent = `The log could not be read: ${log.error}`;
    else if (log.cut > 0) note.replaceChildren(`${of}The first ${size(log.cut)} of ${size(log.size)} are not on this page.`, command(`hm logs ${typed(step)}`));
    else note.textContent = `${of}${count(log.lines.length, "line")}, ${size(log.size)}`;
    find(search.value);
    // The end is what matters.
    requestAnimationFrame(() => {
      if (hits.length === 0) box.scrollTop = log.lines.length * LINE;
      draw(true);
    });
  }
  const attempts = step.logs || [];
  const choice = attempts.length > 1
    ? el("label", {}, "Attempt ", el("select", { onchange: (event) => show(Number(event.target.value)) },
        attempts.map((attempt) => el("option", { value: attempt, selected: attempt === attempts[attempts.length - 1] }, String(attempt)))))
    : null;
  if (attempts.length > 0) queueMicrotask(() => show(attempts[attempts.length - 1]));
  const button = (text, label, by) => el("button", { type: "button", "aria-label": label, onclick: () => go(hit + by) }, text);
  return {
    node: attempts.length === 0
      ? el("p", { class: "quiet" }, "It printed nothing.")
      : el("div", { class: "log-view" },
          el("div", { class: "tools" }, search, button("↑", "Previous match", -1), button("↓", "Next match", 1), found, choice), box, note),
    find(text) {
      search.value = text;
      find(text);
    },
    search,
  };
}
