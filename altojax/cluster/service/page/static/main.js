// The page: asks for the queue's state every two seconds and draws what changed.

import { Cards } from "./cards.js";
import { keep, make, setText } from "./dom.js";
import { clock, counted, duration, percent } from "./scale.js";
import { ask, change, forget, token } from "./server.js";
import { drawTasks, drawTenants, GROUPS } from "./table.js";
import { drawLegend, drawTimeline } from "./timeline.js";

const EVERY_MS = 2000;
const HIDDEN_EVERY_MS = 20000;
const REDRAW_S = 10;
const DAY_S = 86400;
const PAST = { "1 h": 3600, "6 h": 21600, "1 day": DAY_S, all: null };
const STATE = "state.json";

const byId = (id) => document.getElementById(id);
const cards = new Cards(byId("cards"), byId("more-cards"));
let state = null;
let seen = { nowS: 0, atMs: 0 };
let past = null;
let drawnS = -Infinity;
let group = "all";
let timer = null;

async function poll() {
  clearTimeout(timer);
  try {
    const { data, nowS } = await ask(STATE);
    seen = { nowS, atMs: performance.now() };
    state = data ?? state;
    show(data !== null);
  } catch (error) {
    const since = state ? `; shown is ${clock(state.made_s + seen.nowS, { seconds: true })}` : "";
    link("lost", `${error.status ? error.message : "no answer"}${since}`);
  }
  timer = setTimeout(poll, document.hidden ? HIDDEN_EVERY_MS : EVERY_MS);
}

function queueNow() {
  return seen.nowS + (performance.now() - seen.atMs) / 1000;
}

function show(changed) {
  const nowS = queueNow();
  link(state.alive ? "live" : "lost", state.alive ? "live" : "nobody orchestrates: the lease has run out");
  if (past === null) choosePast(nowS);
  if (changed || nowS - drawnS > REDRAW_S) showTimeline(nowS);
  showTasks(nowS);
  if (!changed) return;
  drawLegend(byId("colours"), state);
  setText(byId("about"), [
    `${counted(state.gpus, "GPU")} on ${counted(state.nodes_there, "node")}`,
    state.holder && `orchestrated by ${state.holder}`,
    `queue since ${clock(state.made_s)}`,
  ].filter(Boolean).join(" · "));
  showFacts();
  cards.draw(state);
  drawTenants(byId("users"), state.tenants);
  for (const [name, belongs] of Object.entries(GROUPS)) {
    const unlisted = belongs({ phase: "over" }) ? state.older : 0;
    setText(byId(`which-${name}`).nextElementSibling, `${name} ${state.rows.filter(belongs).length + unlisted}`);
  }
}

function showTimeline(nowS) {
  drawTimeline(byId("timeline").querySelector(".plot"), state, nowS, PAST[past]);
  drawnS = nowS;
}

function showFacts() {
  const live = state.rows.filter((row) => !GROUPS.over(row));
  const last = live.length && live.every((row) => row.end_s !== null || row.status === "paused")
    ? Math.max(...live.map((row) => row.end_s ?? 0)) : null;
  const count = (...statuses) => statuses.reduce((sum, status) => sum + (state.counts[status] ?? 0), 0);
  const facts = [
    ["running", count("running", "stopping")],
    ["waiting", count("waiting", "submitted")],
    ["ended", count("ended")],
    ["failed", count("failed", "refused")],
    ["GPUs held", `${state.busy} of ${state.gpus}`],
    ["all ended by", last ? `≈ ${clock(state.made_s + last)}` : "–"],
    ["gap to the bound", state.gap === null ? "–" : percent(state.gap)],
  ];
  keep(byId("facts"), facts, {
    key: ([name]) => name,
    create: ([name]) => make("div", {}, make("dt", {}, name), make("dd")),
    update: (card, [name, value]) => {
      setText(card.lastChild, `${value}`);
      if (name === "gap to the bound" && state.bound_s !== null) {
        card.title = `plan of ${duration(state.makespan_s)} made by ${state.rule}; ` +
          `by the energy bound none takes less than ${duration(state.bound_s)}`;
      }
    },
  });
}

function showTasks(nowS) {
  drawTasks(byId("rows"), byId("more"), state, nowS, { group, words: byId("words").value, onChange });
}

function link(kind, words) {
  byId("link").className = `link ${kind}`;
  setText(byId("link").querySelector("span"), words);
}

function choices(place, names, chosen, onChoice) {
  for (const name of names) {
    const id = `${place.id}-${name.replaceAll(" ", "-")}`;
    const input = make("input", { type: "radio", name: place.id, id, value: name, checked: name === chosen });
    input.addEventListener("change", () => onChoice(name));
    place.append(input, make("label", { for: id }, name));
  }
}

function choosePast(nowS) {
  past = nowS > DAY_S ? "1 day" : "all";
  byId(`past-${past.replaceAll(" ", "-")}`).checked = true;
}

function onChange(name, wish) {
  if (wish !== "cancel") {
    send(name, wish);
    return;
  }
  byId("sure").dataset.task = name;
  setText(byId("sure-question"), `Cancel ${name}? It saves and stops, and is not started again.`);
  byId("sure").showModal();
}

async function send(name, wish) {
  try {
    await change(`jobs/${encodeURIComponent(name)}/${wish}`);
    setText(byId("said"), `Asked to ${wish} ${name}.`);
    poll();
  } catch (error) {
    if (error.status === 401) lock();
    setText(byId("said"), error.message);
  }
}

async function unlock(given) {
  token.set(given);
  try {
    await change("token");
    document.body.classList.add("may-change");
    byId("forget").hidden = false;
    byId("token").value = "";
    setText(byId("said"), "Tasks can be changed from this tab.");
    forget(STATE);
    poll();
  } catch (error) {
    lock();
    setText(byId("said"), error.status === 401 ? "That is not the token of the queue's serve.json." : error.message);
  }
}

function lock() {
  token.forget();
  document.body.classList.remove("may-change");
  byId("forget").hidden = true;
}

choices(byId("past"), Object.keys(PAST), null, (name) => {
  past = name;
  if (state) showTimeline(queueNow());
});
choices(byId("which"), Object.keys(GROUPS), group, (name) => {
  group = name;
  if (state) showTasks(queueNow());
});
byId("words").addEventListener("input", () => state && showTasks(queueNow()));
byId("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  unlock(byId("token").value.trim());
});
byId("sure-yes").addEventListener("click", () => send(byId("sure").dataset.task, "cancel"));
byId("forget").addEventListener("click", () => {
  lock();
  setText(byId("said"), "The token is forgotten.");
});
new ResizeObserver(() => state && showTimeline(queueNow())).observe(byId("timeline").querySelector(".plot"));
document.addEventListener("visibilitychange", () => document.hidden || poll());
const brought = location.hash.match(/^#token=(.+)$/)?.[1];
// Not for the history, nor for whoever looks at the address.
if (brought) history.replaceState(null, "", location.pathname);
if (brought ?? token.get()) unlock(brought ?? token.get());
poll();
