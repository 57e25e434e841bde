// The timeline and the graph, on canvases: only what is visible is drawn, once a frame.

let colours = {};
function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["good", "bad", "odd", "calm", "dim", "text", "quiet", "line", "page", "card", "accent", "on-good", "on-bad", "on-odd", "on-calm", "on-dim"])
    colours[name] = style.getPropertyValue(`--${name}`).trim();
}
readColours();
const redraws = new Set();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  readColours();
  redraws.forEach((redraw) => redraw());
});

const FONT = "12px system-ui, sans-serif";
const widths = new Map();
// Returns the beginning of a text that fits, and remembers how long texts are.
function fitting(context, text, room) {
  if (!widths.has(text)) widths.set(text, context.measureText(text).width);
  const width = widths.get(text);
  if (width <= room) return text;
  const chars = Math.floor((text.length * room) / width) - 1;
  return chars < 2 ? "" : `${text.slice(0, chars)}…`;
}

// A canvas with a view of a plane, which can be moved and scaled. A chart says what is where:
// `size()` is that of the plane at scale 1, `draw(context, view, width, height)` draws, `at(x, y, view)` is the step at a
// point, `move(step, key)` is the next step in a direction, `box(step, view)` is where a step is.
function chart(name, help, make) {
  const canvas = el("canvas", { tabindex: 0, role: "application", "aria-roledescription": name.toLowerCase(), "aria-label": `${name}. ${help}` });
  const status = el("p", { class: "chart-status", role: "status", "aria-live": "polite" }, help);
  const view = { x: 0, y: 0, scale: 1, width: 0, height: 0 };
  const state = { canvas, view, current: null };
  const parts = make(state);
  const context = canvas.getContext("2d");

  const draw = frame(() => {
    const ratio = devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (width === 0 || height === 0) return;
    if (view.width !== width || view.height !== height) {
      const isFirst = view.width === 0;
      [view.width, view.height] = [width, height];
      if (isFirst) parts.fit(view);
    }
    if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
      canvas.width = Math.round(width * ratio);
      canvas.height = Math.round(height * ratio);
    }
    parts.limit(view);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.font = FONT;
    context.textBaseline = "middle";
    context.clearRect(0, 0, width, height);
    parts.draw(context, view);
  });
  redraws.add(draw);
  new ResizeObserver(draw).observe(canvas);

  function zoom(factor, x = view.width / 2, y = view.height / 2) {
    parts.zoom(view, factor, x, y);
    draw();
  }
  function choose(step) {
    state.current = step;
    if (step) {
      status.textContent = describe(step);
      parts.show(step, view);
    }
    draw();
  }
  let drag = null;
  canvas.addEventListener("pointerdown", (event) => {
    drag = { x: event.offsetX, y: event.offsetY, moved: false };
    canvas.setPointerCapture(event.pointerId);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!drag) {
      const step = parts.at(event.offsetX, event.offsetY, view);
      canvas.style.cursor = step ? "pointer" : "grab";
      if (step) status.textContent = describe(step);
      return;
    }
    const [dx, dy] = [event.offsetX - drag.x, event.offsetY - drag.y];
    if (!drag.moved && Math.abs(dx) + Math.abs(dy) < 4) return;
    view.x -= dx;
    view.y -= dy;
    drag = { x: event.offsetX, y: event.offsetY, moved: true };
    draw();
  });
  canvas.addEventListener("pointerup", (event) => {
    if (drag && !drag.moved) {
      const step = parts.at(event.offsetX, event.offsetY, view);
      if (step) {
        choose(step);
        openStep(step);
      }
    }
    drag = null;
  });
  canvas.addEventListener("wheel", (event) => {
    if (event.ctrlKey || event.metaKey) zoom(Math.exp(-event.deltaY / 300), event.offsetX, event.offsetY);
    else {
      const before = [view.x, view.y];
      view.x += event.shiftKey ? event.deltaY : event.deltaX;
      view.y += event.shiftKey ? 0 : event.deltaY;
      parts.limit(view);
      // At its end, the page scrolls.
      if (view.x === before[0] && view.y === before[1]) return;
      draw();
    }
    event.preventDefault();
  }, { passive: false });
  canvas.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const keys = { j: "ArrowDown", k: "ArrowUp", h: "ArrowLeft", l: "ArrowRight" };
    const key = (singleKeys() && keys[event.key]) || event.key;
    if (key.startsWith("Arrow") || key === "Home" || key === "End") choose(parts.move(state.current, key) || state.current);
    else if (key === "Enter" && state.current) openStep(state.current);
    else if (key === "+" || key === "=") zoom(1.5);
    else if (key === "-") zoom(1 / 1.5);
    else if (key === "0") {
      parts.fit(view);
      draw();
    } else return;
    event.preventDefault();
    event.stopPropagation();
  });
  const button = (text, label, act) => el("button", { type: "button", "aria-label": label, onclick: act }, text);
  const tools = el("div", { class: "tools" },
    button("+", "Zoom in", () => zoom(1.5)), button("−", "Zoom out", () => zoom(1 / 1.5)),
    button("All", "Show all", () => {
      parts.fit(view);
      draw();
    }),
    el("span", { class: "quiet" }, parts.note));
  return { node: el("div", { class: `chart ${parts.className}` }, tools, canvas, status), draw, choose };
}

function describe(step) {
  const parts = [nameOf(step), stateOf(step)[1]];
  if (step.start !== undefined) parts.push(`from ${duration(step.start)} for ${duration(step.took)}`);
  if (step.wait >= 100) parts.push(`waited ${duration(step.wait)}`);
  if (step.critical) parts.push("on the critical path");
  return parts.join(" · ");
}

// A timeline: as many lanes as steps ran at once, and how many ran above them.
const LANE = 22;
const AXIS = 22;
const LOAD = 44;
const timeline = () => chart("Timeline", "Arrow keys go from step to step, Enter shows one, + and − zoom.", (state) => {
  const bars = [...didRun].sort((a, b) => a.start - b.start || a.index - b.index);
  const ends = [];
  const lanes = [];
  bars.forEach((step, at) => {
    let lane = ends.findIndex((end) => end <= step.start);
    if (lane < 0) lane = ends.push(0) - 1;
    ends[lane] = Math.max(step.until, step.start + 1);
    step.lane = lane;
    step.at = at;
    (lanes[lane] = lanes[lane] || []).push(step);
  });
  const x = (time, view) => time * view.scale - view.x;
  const scaled = (scale, view) => Math.min(Math.max(scale, (view.width - 16) / total), 20);
  const limit = (view) => {
    view.scale = scaled(view.scale, view);
    view.x = Math.max(-8, Math.min(view.x, total * view.scale - view.width + 8));
    view.y = Math.max(0, Math.min(view.y, ends.length * LANE + AXIS + LOAD + 8 - view.height));
  };
  return {
    className: "timeline",
    note: `${count(ends.length, "lane")}, at most ${count(mostAtOnce, "step")} at once; the critical path has an outline`,
    fit(view) {
      view.scale = (view.width - 16) / total;
      [view.x, view.y] = [-8, 0];
    },
    limit,
    zoom(view, factor, px) {
      const time = (px + view.x) / view.scale;
      view.scale = scaled(view.scale * factor, view);
      view.x = time * view.scale - px;
    },
    show(step, view) {
      const [left, right] = [x(step.start, view), x(step.until, view)];
      if (left < 0 || left > view.width - 40) view.x += left - view.width / 3;
      else if (right > view.width && right - left < view.width) view.x += right - view.width + 8;
      const top = step.lane * LANE - view.y + AXIS + LOAD;
      if (top < AXIS + LOAD) view.y -= AXIS + LOAD - top;
      if (top > view.height - LANE) view.y += top - view.height + LANE + 4;
    },
    at(px, py, view) {
      if (py < AXIS + LOAD) return null;
      const lane = lanes[Math.floor((py + view.y - AXIS - LOAD) / LANE)];
      if (!lane) return null;
      const time = (px + view.x) / view.scale;
      const slack = 3 / view.scale;
      return lane.find((step) => step.start - slack <= time && time <= step.until + slack) || null;
    },
    move(step, key) {
      if (!step || key === "Home") return bars[0];
      if (key === "End") return bars[bars.length - 1];
      if (key === "ArrowRight") return bars[step.at + 1];
      if (key === "ArrowLeft") return bars[step.at - 1];
      // The step of the next lane that is nearest in time.
      const lane = lanes[step.lane + (key === "ArrowDown" ? 1 : -1)];
      const middle = (step.start + step.until) / 2;
      const far = (other) => Math.abs((other.start + other.until) / 2 - middle);
      return lane && lane.reduce((best, other) => (far(other) < far(best) ? other : best));
    },
    draw(context, view) {
      const [from, to] = [view.x / view.scale, (view.x + view.width) / view.scale];
      const ticks = ticksOf(view, from, to);
      grid(context, view, ticks, x);
      for (const lane of lanes) {
        const top = AXIS + LOAD + lane[0].lane * LANE - view.y;
        if (top > view.height || top < -LANE) continue;
        let covered = -1;
        for (const step of lane) {
          if (step.until < from) continue;
          if (step.start > to) break;
          const left = Math.max(x(step.start, view), -4);
          const right = Math.min(Math.max(x(step.until, view), x(step.start, view) + 1.5), view.width + 4);
          // Bars that are narrower than a pixel are drawn once.
          if (right <= covered && step !== state.current) continue;
          covered = right;
          const colour = stateOf(step)[2];
          context.fillStyle = colours[colour];
          // A gap between bars, if there is room for one.
          context.fillRect(left, top + 2, right - left > 4 ? right - left - 1 : right - left, LANE - 4);
          if (step.critical && right - left > 3) {
            context.strokeStyle = colours.text;
            context.lineWidth = 2;
            context.strokeRect(left + 1, top + 3, right - left - 2, LANE - 6);
          }
          if (right - left > 30) {
            context.fillStyle = colours[`on-${colour}`];
            context.fillText(fitting(context, `${stateOf(step)[0]} ${nameOf(step)}`, right - left - 12), left + 6, top + LANE / 2);
          }
          if (step === state.current) {
            context.strokeStyle = colours.accent;
            context.lineWidth = 3;
            context.strokeRect(left - 2, top, right - left + 4, LANE);
          }
        }
      }
      context.fillStyle = colours.card;
      context.fillRect(0, 0, view.width, AXIS + LOAD);
      // How many steps ran at once.
      context.fillStyle = colours.quiet;
      context.globalAlpha = 0.35;
      context.beginPath();
      const height = (running) => AXIS + LOAD - 4 - (running / Math.max(1, mostAtOnce)) * (LOAD - 10);
      const [first, last] = [Math.max(from, 0), Math.min(to, total)];
      let before = runningAt(first);
      context.moveTo(x(first, view), height(0));
      context.lineTo(x(first, view), height(before));
      for (let at = loadAfter(first); at < load.length && load[at][0] <= last; at += 1) {
        context.lineTo(x(load[at][0], view), height(before));
        context.lineTo(x(load[at][0], view), height(load[at][1]));
        before = load[at][1];
      }
      context.lineTo(x(last, view), height(before));
      context.lineTo(x(last, view), height(0));
      context.fill();
      context.globalAlpha = 1;
      labels(context, view, ticks, x);
    },
  };
});

// Returns the moments that have a line, and the time between two of them.
function ticksOf(view, from, to) {
  const wanted = ((to - from) / view.width) * 90;
  const steps_ = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1e3, 2e3, 5e3, 1e4, 15e3, 3e4, 6e4, 12e4, 3e5, 6e5, 18e5, 36e5, 72e5, 216e5];
  const tick = steps_.find((step) => step >= wanted) || Math.ceil(wanted / 864e5) * 864e5;
  const moments = [];
  for (let at = Math.max(0, Math.ceil(from / tick) * tick); at <= Math.min(to, total); at += tick) moments.push(at);
  return { tick, moments };
}
function grid(context, view, { moments }, x) {
  context.strokeStyle = colours.line;
  context.lineWidth = 1;
  context.beginPath();
  for (const at of moments) {
    const left = Math.round(x(at, view)) + 0.5;
    context.moveTo(left, AXIS);
    context.lineTo(left, view.height);
  }
  context.stroke();
}
function labels(context, view, { tick, moments }, x) {
  context.fillStyle = colours.quiet;
  for (const at of moments) {
    const label = tick < 1000 ? `${(at / 1000).toFixed(tick < 10 ? 3 : tick < 100 ? 2 : 1)}s` : clock(at);
    context.fillText(label, Math.min(x(at, view) + 4, view.width - context.measureText(label).width - 4), AXIS / 2);
  }
}
function clock(ms) {
  const seconds = Math.round(ms / 1000);
  const pad = (number) => String(number).padStart(2, "0");
  if (seconds < 60) return `${seconds}s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)}m${pad(seconds % 60)}s`;
  return `${Math.floor(seconds / 3600)}h${pad(Math.floor(seconds / 60) % 60)}m`;
}

// The graph: columns by the distance from the first steps.
const NODE = { width: 168, height: 28, column: 236, row: 40 };
const graph = () => chart("Graph", "Arrow keys go along the edges and up and down, Enter shows a step, + and − zoom.", (state) => {
  const columns = [];
  for (const index of order) {
    const step = steps[index];
    (columns[step.depth] = columns[step.depth] || []).push(step);
  }
  // Steps stand near those that they wait for.
  columns.forEach((column, depth) => {
    if (depth > 0) {
      const middle = (step) => step.parents.reduce((sum, parent) => sum + steps[parent].y, 0) / step.parents.length;
      column.forEach((step) => (step.near = middle(step)));
      column.sort((a, b) => a.near - b.near || a.index - b.index);
    }
    column.forEach((step, at) => {
      step.row = at;
      step.x = depth * NODE.column;
    });
    const height = column.length * NODE.row;
    column.forEach((step, at) => (step.y = at * NODE.row - height / 2));
  });
  const tallest = Math.max(1, ...columns.map((column) => column.length)) * NODE.row;
  const width = columns.length * NODE.column - (NODE.column - NODE.width);
  const left = (step, view) => step.x * view.scale - view.x;
  const top = (step, view) => (step.y + tallest / 2) * view.scale - view.y;
  return {
    className: "graph",
    note: `${count(steps.length, "step")} in ${count(columns.length, "column")}; the critical path is bold, a solid edge is builds_in, a dashed one depends_on`,
    fit(view) {
      const scale = Math.min((view.width - 32) / width, (view.height - 32) / tallest, 1);
      // A graph that is too large begins at its beginning.
      view.scale = Math.max(scale, Math.min(1, 0.06));
      view.x = Math.min((width * view.scale - view.width) / 2, -16);
      view.y = (tallest * view.scale - view.height) / 2;
    },
    limit(view) {
      view.scale = Math.min(Math.max(view.scale, 0.02), 3);
      view.x = Math.max(-view.width + 80, Math.min(view.x, width * view.scale - 80));
      view.y = Math.max(-view.height + 80, Math.min(view.y, tallest * view.scale - 80));
    },
    zoom(view, factor, px, py) {
      const scale = Math.min(Math.max(view.scale * factor, 0.02), 3);
      view.x = ((px + view.x) / view.scale) * scale - px;
      view.y = ((py + view.y) / view.scale) * scale - py;
      view.scale = scale;
    },
    show(step, view) {
      if (view.scale < 0.5) {
        view.scale = 0.8;
        view.x = step.x * view.scale - view.width / 2;
        view.y = (step.y + tallest / 2) * view.scale - view.height / 2;
      }
      const [x, y] = [left(step, view), top(step, view)];
      if (x < 8 || x > view.width - NODE.width * view.scale - 8) view.x += x - view.width / 2 + (NODE.width * view.scale) / 2;
      if (y < 8 || y > view.height - NODE.height * view.scale - 8) view.y += y - view.height / 2;
    },
    at(px, py, view) {
      const [x, y] = [(px + view.x) / view.scale, (py + view.y) / view.scale - tallest / 2];
      const column = columns[Math.floor(x / NODE.column)];
      if (!column || x % NODE.column > NODE.width) return null;
      const step = column[Math.floor((y - column[0].y) / NODE.row)];
      return step && y - step.y <= NODE.height ? step : null;
    },
    move(step, key) {
      if (!step || key === "Home") return columns[0] && columns[0][0];
      if (key === "End") return columns[columns.length - 1][0];
      if (key === "ArrowRight") return steps[step.children[0]];
      if (key === "ArrowLeft") return steps[step.parents[0]];
      return columns[step.depth][step.row + (key === "ArrowDown" ? 1 : -1)];
    },
    draw(context, view) {
      const shown = [];
      const isIn = (step) => {
        const [x, y] = [left(step, view), top(step, view)];
        return x < view.width && y < view.height && x + NODE.width * view.scale > 0 && y + NODE.height * view.scale > 0;
      };
      for (const column of columns) for (const step of column) if (isIn(step)) shown.push(step);
      const visible = new Set(shown);
      const [w, h] = [NODE.width * view.scale, NODE.height * view.scale];
      const edges = [[], [], []];
      const add = (from, to) => {
        const kind = from.critical && to.critical ? 2 : to.base === from.index ? 1 : 0;
        edges[kind].push([left(from, view) + w, top(from, view) + h / 2, left(to, view), top(to, view) + h / 2]);
      };
      for (const step of shown) {
        for (const parent of step.parents) add(steps[parent], step);
        for (const child of step.children) if (!visible.has(steps[child])) add(step, steps[child]);
      }
      edges.forEach((lines, kind) => {
        context.strokeStyle = kind === 2 ? colours.text : colours.quiet;
        context.globalAlpha = kind === 2 ? 1 : lines.length > 4000 ? 0.15 : 0.55;
        context.lineWidth = kind === 2 ? 2.5 : 1;
        context.setLineDash(kind === 0 ? [4, 3] : []);
        context.beginPath();
        for (const [x1, y1, x2, y2] of lines) {
          const bend = Math.min(60 * view.scale, Math.abs(x2 - x1) / 2);
          context.moveTo(x1, y1);
          context.bezierCurveTo(x1 + bend, y1, x2 - bend, y2, x2, y2);
        }
        context.stroke();
      });
      context.setLineDash([]);
      context.globalAlpha = 1;
      context.font = `${12 * view.scale}px system-ui, sans-serif`;
      for (const step of shown) {
        const [x, y] = [left(step, view), top(step, view)];
        const state_ = stateOf(step);
        context.fillStyle = view.scale > 0.3 ? colours.card : colours[state_[2]];
        context.fillRect(x, y, Math.max(w, 2), Math.max(h, 2));
        if (view.scale > 0.3) {
          context.fillStyle = colours[state_[2]];
          context.fillRect(x, y, 22 * view.scale, h);
          context.fillStyle = colours[`on-${state_[2]}`];
          context.fillText(state_[0], x + 6 * view.scale, y + h / 2);
          context.fillStyle = colours.text;
          context.fillText(fitting(context, nameOf(step), 130), x + 28 * view.scale, y + h / 2);
          context.strokeStyle = step.critical ? colours.text : colours.line;
          context.lineWidth = step.critical ? 2 : 1;
          context.strokeRect(x + 0.5, y + 0.5, w - 1, h - 1);
        }
        if (step === state.current) {
          context.strokeStyle = colours.accent;
          context.lineWidth = 3;
          context.strokeRect(x - 3, y - 3, Math.max(w, 2) + 6, Math.max(h, 2) + 6);
        }
      }
      context.font = FONT;
    },
  };
});
