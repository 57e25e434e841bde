// Lists of any length, of which only the visible rows are in the document.

// A table whose rows have one height. `columns` has names, classes and functions that make cells; `open` is called with
// the row that the user chose.
function virtualTable({ label, columns, rowHeight, open, className }) {
  let rows = [];
  let current = 0;
  let shown = [-1, -1];
  const head = el("div", { role: "row", class: "row head", "aria-rowindex": 1 },
    columns.map((column) => el("span", { role: "columnheader", class: column.class }, column.name)));
  const body = el("div", { role: "rowgroup", class: "rows" });
  const box = el("div", { class: `table ${className || ""}`, role: "grid", "aria-label": label, tabindex: 0, "aria-colcount": columns.length },
    el("div", { role: "rowgroup", class: "heads" }, head), body);

  const visible = () => Math.max(1, Math.ceil(box.clientHeight / rowHeight));
  function draw(force) {
    const first = Math.max(0, Math.floor(box.scrollTop / rowHeight) - 4);
    const last = Math.min(rows.length, first + visible() + 10);
    if (!force && shown[0] === first && shown[1] === last) return;
    shown = [first, last];
    body.style.height = `${rows.length * rowHeight}px`;
    const made = [];
    for (let at = first; at < last; at += 1) {
      const row = el("div", {
        role: "row", class: `row${at === current ? " current" : ""}${rows[at].critical ? " critical" : ""}`, id: `${box.id}-${at}`,
        "aria-rowindex": at + 2, "aria-selected": at === current ? "true" : "false",
      }, columns.map((column) => el("span", { role: "gridcell", class: column.class }, column.cell(rows[at], at))));
      row.style.transform = `translateY(${at * rowHeight}px)`;
      row.addEventListener("click", () => {
        select(at);
        open(rows[at], at);
      });
      made.push(row);
    }
    body.replaceChildren(...made);
    if (current >= first && current < last) box.setAttribute("aria-activedescendant", `${box.id}-${current}`);
    else box.removeAttribute("aria-activedescendant");
  }
  function select(at) {
    if (rows.length === 0) return;
    current = Math.max(0, Math.min(rows.length - 1, at));
    const top = current * rowHeight;
    const room = box.clientHeight - rowHeight;
    if (top < box.scrollTop) box.scrollTop = top;
    else if (top + rowHeight > box.scrollTop + room) box.scrollTop = top + rowHeight - room;
    draw(true);
  }
  box.addEventListener("scroll", frame(() => draw(false)));
  box.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const page = Math.max(1, visible() - 2);
    const moves = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: page, PageUp: -page, Home: -rows.length, End: rows.length };
    if (event.key in moves && (event.key.length > 1 || singleKeys())) select(current + moves[event.key]);
    else if (event.key === "Enter" && rows.length > 0) open(rows[current], current);
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  new ResizeObserver(frame(() => draw(true))).observe(box);
  box.id = `t${(virtualTable.count = (virtualTable.count || 0) + 1)}`;
  return {
    box,
    set(values) {
      rows = values;
      current = Math.min(current, Math.max(0, rows.length - 1));
      box.setAttribute("aria-rowcount", rows.length + 1);
      draw(true);
    },
    draw: () => draw(true),
    select,
    current: () => rows[current],
    find: (test) => rows.findIndex(test),
  };
}
// Lets keys lead from a search to what it found.
function leadsTo(search, table) {
  search.addEventListener("keydown", (event) => {
    if (event.key !== "ArrowDown" && event.key !== "Enter") return;
    table.box.focus();
    event.preventDefault();
  });
}
const singleKeys = () => byId("keys").checked;
