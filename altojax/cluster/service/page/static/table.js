// The tables of tasks and of tenants.

import { coloursOf, STATUS } from "./colours.js";
import { keep, make, setText } from "./dom.js";
import { clock, counted, duration, percent } from "./scale.js";

const MOST_ROWS = 400;

export const GROUPS = {
  all: () => true,
  running: (row) => row.phase === "running",
  waiting: (row) => row.phase === "waiting",
  over: (row) => row.phase === "over",
};

// Running first, by expected end; then waiting, by expected start; then over, newest first.
export function inOrder(rows) {
  const rank = (row) => (GROUPS.running(row) ? 0 : GROUPS.waiting(row) ? 1 : 2);
  const when = (row) => [row.end_s ?? Infinity, row.start_s ?? Infinity, -(row.end_s ?? row.submitted_s)][rank(row)];
  return [...rows].sort((a, b) => rank(a) - rank(b) || when(a) - when(b) || a.submitted_s - b.submitted_s);
}

// Draws the rows of one group that hold all words; says below how many it left out.
export function drawTasks(body, more, state, nowS, { group, words, onChange }) {
  const wanted = words.toLowerCase().split(/\s+/).filter(Boolean);
  const matching = inOrder(state.rows).filter((row) => {
    const text = `${row.name} ${row.tenant} ${row.status} ${row.note}`.toLowerCase();
    return GROUPS[group](row) && wanted.every((word) => text.includes(word));
  });
  keep(body, matching.slice(0, MOST_ROWS), {
    key: (row) => row.name,
    create: (row) => createRow(row, onChange),
    update: (element, row) => updateRow(element, row, state.made_s, nowS),
  });
  const hidden = matching.length - MOST_ROWS;
  const told = [
    matching.length ? "" : state.rows.length ? "No task is like that." : "No task was submitted yet.",
    hidden > 0 ? `${hidden} more are not shown: search for them.` : "",
    state.older && GROUPS[group]({ phase: "over" }) ? `${state.older} that are over longer are not listed.` : "",
  ];
  setText(more, told.filter(Boolean).join(" "));
}

function createRow(row, onChange) {
  const status = make("span", { class: "badge" }, make("i"), make("span"));
  const done = make("span", { class: "done", "aria-hidden": "true" }, make("b"));
  const buttons = ["pause", "resume", "cancel"].map((wish) => {
    const button = make("button", { type: "button", "aria-label": `${wish} ${row.name}` }, wish);
    button.addEventListener("click", () => onChange(row.name, wish));
    return button;
  });
  return make("tr", {},
    make("th", { scope: "row" }, make("span"), make("small")),
    make("td"), make("td", {}, status, done), make("td", { class: "number" }),
    make("td"), make("td"), make("td"), make("td", { class: "note-cell" }),
    make("td", { class: "change" }, ...buttons));
}

function updateRow(element, row, madeS, nowS) {
  const [name, tenant, status, gpus, submitted, start, end, note, change] = element.cells;
  setText(name.children[0], row.name);
  setText(name.children[1], [
    row.trials ? counted(row.trials, "trial") : "",
    row.attempt > 1 ? `attempt ${row.attempt}` : "",
  ].filter(Boolean).join(", "));
  setText(tenant, row.tenant || "–");
  const [dot, word] = status.children[0].children;
  dot.style.background = STATUS[row.status] ?? "currentColor";
  setText(word, row.status);
  showDone(status.children[1], row, nowS);
  setText(gpus, row.gpus === null ? `${row.widths.join(", ")}` : `${row.gpus}`);
  gpus.classList.toggle("expected", !row.where);
  gpus.title = row.where || `can use ${row.widths.join(", ")}`;
  showTime(submitted, madeS, row.submitted_s, true);
  showTime(start, madeS, row.start_s, row.started);
  showTime(end, madeS, row.end_s, row.ended);
  if (row.started && row.ended) end.title = `${end.title}, ${duration(row.end_s - row.start_s)} after its start`;
  setText(note, row.note);
  const [pause, resume, cancel] = change.children;
  pause.hidden = GROUPS.over(row) || row.status === "paused" || row.status === "stopping";
  resume.hidden = row.status !== "paused";
  cancel.hidden = GROUPS.over(row);
}

function showTime(cell, madeS, atS, was) {
  setText(cell, atS === null ? "–" : `${was ? "" : "≈ "}${clock(madeS + atS)}`);
  cell.classList.toggle("expected", !was);
  cell.title = atS === null ? "" : `${was ? "" : "expected "}${clock(madeS + atS, { seconds: true })}`;
}

function showDone(bar, row, nowS) {
  const share = GROUPS.running(row) && row.end_s !== null && row.start_s !== null
    ? (nowS - row.start_s) / Math.max(row.end_s - row.start_s, 1) : null;
  bar.hidden = share === null;
  if (share !== null) bar.firstChild.style.width = `${100 * Math.min(Math.max(share, 0), 1)}%`;
}

export function drawTenants(body, tenants) {
  const colours = coloursOf(tenants.map((tenant) => tenant.name));
  keep(body, tenants, {
    key: (tenant) => tenant.name,
    create: () => make("tr", {},
      make("th", { scope: "row" }, make("span", { class: "badge" }, make("i"), make("span"))),
      ...Array.from({ length: 6 }, () => make("td", { class: "number" })),
      make("td", {}, make("span", { class: "share", "aria-hidden": "true" }, make("b"), make("i")), make("small"))),
    update: (element, tenant) => {
      const [name, weight, gpus, quota, running, waiting, hours, share] = element.cells;
      const colour = colours.get(tenant.name);
      name.firstChild.firstChild.style.background = colour;
      setText(name.firstChild.lastChild, tenant.name);
      setText(weight, `${tenant.weight}`);
      setText(gpus, `${tenant.gpus}`);
      setText(quota, tenant.quota === null ? "–" : `${tenant.quota}`);
      setText(running, `${tenant.running}`);
      setText(waiting, `${tenant.waiting}`);
      setText(hours, (tenant.gpu_s / 3600).toFixed(tenant.gpu_s < 36000 ? 2 : 0));
      const [used, due] = share.firstChild.children;
      used.style.width = `${100 * tenant.used}%`;
      used.style.background = colour;
      due.style.left = `${100 * tenant.due}%`;
      setText(share.lastChild, `${percent(tenant.used)}; ${percent(tenant.due)} by weight`);
    },
  });
}
