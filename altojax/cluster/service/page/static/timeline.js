// The timeline: one lane a GPU, one bar a stay of a task on neighbouring GPUs.

import { coloursOf, readableOn } from "./colours.js";
import { draw, keep, make } from "./dom.js";
import { clock, duration, timeTicks } from "./scale.js";

const LEAST_WIDTH = 560;
const RIGHT = 12;
const AXIS = 26;
const CHARACTER = 6.4;

// Draws into `place` what lies between `pastS` seconds ago (null is all) and the end of what is planned.
export function drawTimeline(place, state, nowS, pastS) {
  const lanes = state.nodes.reduce((sum, [, gpus]) => sum + gpus, 0);
  const bars = state.bars.map((bar) => ({ ...bar, until: endOf(bar, nowS) }));
  const from = bars.reduce((least, bar) => Math.min(least, bar.start_s), nowS);
  const low = pastS === null ? from : Math.max(from, nowS - pastS);
  const high = bars.reduce((most, bar) => Math.max(most, bar.until), Math.max(nowS, low + 60));
  const width = Math.max(LEAST_WIDTH, place.clientWidth);
  const height = lanes <= 16 ? 24 : lanes <= 40 ? 17 : lanes <= 80 ? 11 : lanes <= 400 ? 6 : 4;
  const left = 14 + CHARACTER * Math.min(14, Math.max(4, ...state.nodes.map(([node]) => node.length + 3)));
  const scale = (width - left - RIGHT) / (high - low);
  const x = (atS) => left + (Math.min(Math.max(atS, low), high) - low) * scale;
  const frame = { width, height, left, lanes, x, low, high, madeS: state.made_s, nowS };

  const colours = coloursOf(state.tenants.map((tenant) => tenant.name));
  const shown = bars.filter((bar) => bar.until >= low && bar.start_s <= high);
  const picture = draw("svg", { role: "img", width, height: lanes * height + 6, "aria-label": inWords(state) },
    ...grid(frame, state.nodes), ...shown.flatMap((bar) => barOf(bar, frame, colours)),
    draw("line", { class: "now", x1: x(nowS), x2: x(nowS), y1: 0, y2: lanes * height + 2 }));
  // At first, what is going on; later, where the reader has scrolled to.
  const scrolled = place.childElementCount ? place.scrollLeft : x(nowS) - 0.6 * place.clientWidth;
  const down = place.scrollTop;
  place.replaceChildren(axis(frame), picture);
  place.scrollLeft = scrolled;
  place.scrollTop = down;
}

// Names the colours of tenants in a list.
export function drawLegend(place, state) {
  const colours = coloursOf(state.tenants.map((tenant) => tenant.name));
  keep(place, state.tenants, {
    key: (tenant) => tenant.name,
    create: (tenant) => make("li", { class: "badge" }, make("i"), tenant.name),
    update: (entry, tenant) => { entry.firstChild.style.background = colours.get(tenant.name); },
  });
}

function endOf(bar, nowS) {
  return bar.kind === "running" ? Math.max(bar.end_s ?? nowS, nowS) : bar.end_s;
}

function inWords(state) {
  const count = (kind) => new Set(state.bars.filter((bar) => bar.kind === kind).map((bar) => bar.task)).size;
  return `${state.busy} of ${state.gpus} GPUs are held; ${count("running")} tasks run, ` +
    `${count("planned")} are planned.`;
}

function axis({ width, left, x, low, high, madeS, nowS }) {
  const { times, step } = timeTicks(madeS + low, madeS + high, (width - left) / 92);
  const labels = times.map((at) => draw("text", { x: x(at - madeS), y: 17, "text-anchor": "middle" },
    step >= 86400 ? clock(at).replace(" 00:00", "") : clock(at, { seconds: step < 60, day: false })));
  const clear = labels.filter((label) => Math.abs(label.getAttribute("x") - x(nowS)) > (step < 60 ? 46 : 34));
  return draw("svg", { class: "axis", width, height: AXIS, "aria-hidden": "true" }, ...clear,
    draw("text", { class: "now", x: x(nowS), y: 17, "text-anchor": "middle" }, "now"));
}

function grid({ width, height, left, lanes, x, low, high, madeS }, nodes) {
  const { times } = timeTicks(madeS + low, madeS + high, (width - left) / 92);
  const lines = times.map((at) => draw("line", {
    class: "grid", x1: x(at - madeS), x2: x(at - madeS), y1: 0, y2: lanes * height }));
  let lane = 0;
  for (const [node, gpus] of nodes) {
    const middle = (lane + gpus / 2) * height + 4;
    lines.push(draw("line", { class: "grid", x1: 0, x2: width - RIGHT, y1: lane * height, y2: lane * height }));
    if (gpus * height >= 11) lines.push(draw("text", { class: "node", x: 0, y: middle }, short(node)));
    for (let gpu = 0; gpu < gpus && height >= 15; gpu += 1) {
      lines.push(draw("text", { x: left - 9, y: (lane + gpu + 0.5) * height + 4, "text-anchor": "end" }, `${gpu}`));
    }
    lane += gpus;
  }
  return lines;
}

function barOf(bar, { height, x, madeS, nowS }, colours) {
  const gap = height >= 11 ? 2 : 0.5;
  const colour = colours.get(bar.tenant) ?? "#7F7F7F";
  const box = { y: bar.lane * height + gap / 2, height: bar.lanes * height - gap, rx: height >= 11 ? 3 : 0 };
  const [begin, end] = [x(bar.start_s), x(bar.until)];
  const piece = (kind, from, to) => draw("rect", {
    ...box, class: `bar ${kind}`, x: from, width: Math.max(1, to - from - 0.5), fill: colour,
    stroke: kind === "planned" ? colour : null });
  const pieces = [piece(bar.kind === "running" ? "left" : bar.kind, begin, end)];
  if (bar.kind === "running") pieces.push(piece("running", begin, x(nowS)));
  if (bar.outcome === "failed") pieces.push(draw("line", {
    class: "failed", x1: end - 1.5, x2: end - 1.5, y1: box.y, y2: box.y + box.height }));
  const group = draw("g", {}, draw("title", {}, told(bar, madeS)), ...pieces);
  if (box.height >= 11 && bar.task.length * CHARACTER < end - begin - 8) {
    const onSolid = bar.kind === "running" && x(nowS) - begin > bar.task.length * CHARACTER + 8;
    const label = draw("text", { class: "label faint", x: begin + 6, y: box.y + box.height / 2 + 4 }, bar.task);
    if (onSolid) label.style.fill = readableOn(colour);
    group.append(label);
  }
  return [group];
}

function told(bar, madeS) {
  const verb = { past: "ran", running: "runs since", planned: "planned for" }[bar.kind];
  const until = bar.end_s === null ? "" : ` to ${bar.kind === "past" ? "" : "about "}${clock(madeS + bar.end_s)}`;
  const length = bar.end_s === null ? "" : ` (${duration(bar.end_s - bar.start_s)})`;
  const outcome = bar.kind === "past" ? `, ${bar.outcome}` : "";
  return `${bar.task} of ${bar.tenant}: ${verb} ${clock(madeS + bar.start_s)}${until}${length}${outcome}`;
}

function short(name) {
  return name.length > 12 ? `${name.slice(0, 11)}…` : name;
}
