// Loss curves of one run: a chart for each of its tasks, a line for each trial.

import { PALETTE } from "./colours.js";
import { draw, make } from "./dom.js";
import { compact, ticks } from "./scale.js";

const HEIGHT = 220;
const BOX = { left: 46, right: 10, top: 10, bottom: 34 };
const DASHES = [null, "6 3", "2 3"];
const LISTED = 6;
// A curve whose peak is this many times further from the lowest loss than the median peak may leave the picture.
const BLOWN_UP = 2;

export function drawLosses(place, losses) {
  if (!losses.length) place.replaceChildren(make("p", { class: "none" }, "The run has not begun."));
  else place.replaceChildren(...losses.map((one) => chartOf(one, losses.length > 1, place.clientWidth)));
}

function chartOf(losses, named, width) {
  const best = losses.curves.reduce((one, curve) => (less(curve.best, one?.best) ? curve : one), null);
  const head = named ? [make("h4", {}, losses.task)] : [];
  if (losses.note) head.push(make("p", { class: "none" }, losses.note));
  if (!best) return make("div", { class: "chart" }, ...head, make("p", { class: "none" }, "No loss yet."));
  const picture = pictureOf(losses, best, Math.max(width, 260));
  return make("div", { class: "chart" }, ...head, picture, legendOf(losses, picture));
}

function pictureOf(losses, best, width) {
  const inner = { width: width - BOX.left - BOX.right, height: HEIGHT - BOX.top - BOX.bottom };
  const [low, high] = limits(losses);
  const most = Math.max(losses.total_samples, 1);
  const x = (samples) => (samples / most) * inner.width;
  const y = (loss) => (1 - (loss - low) / (high - low)) * inner.height;
  const what = losses.split === "train" ? "training" : "validation";
  const told = `${losses.task}: ${losses.curves.length} of ${losses.trials} trials have a ${what} loss; ` +
    `the best is ${best.trial} with ${best.best.toFixed(4)}.`;
  const base = losses.base === null ? [] : [
    draw("line", { class: "base", x1: 0, x2: inner.width, y1: y(losses.base), y2: y(losses.base) }),
    draw("text", { x: inner.width - 2, y: y(losses.base) + (y(losses.base) < 14 ? 13 : -4), "text-anchor": "end" },
      `base ${compact(losses.base)}`)];
  const marks = [
    ...ticks(low, high, 4).flatMap((loss) => [
      draw("line", {
        class: "grid", x1: BOX.left, x2: width - BOX.right, y1: y(loss) + BOX.top, y2: y(loss) + BOX.top }),
      draw("text", { x: BOX.left - 7, y: y(loss) + BOX.top + 4, "text-anchor": "end" }, compact(loss))]),
    ...ticks(0, most, Math.max(2, inner.width / 80)).map((samples) =>
      draw("text", { x: x(samples) + BOX.left, y: HEIGHT - 20, "text-anchor": "middle" }, compact(samples))),
    draw("text", { x: width - BOX.right, y: HEIGHT - 4, "text-anchor": "end" }, "training samples")];
  // A picture inside the picture: what leaves it is cut off, but for the dots of trials that have come to their end.
  const lines = draw("svg", { x: BOX.left, y: BOX.top, width: inner.width + 6, height: inner.height }, ...base,
    ...losses.curves.filter((curve) => curve !== best).map((curve) => lineOf(curve, x, y, "")),
    lineOf(best, x, y, "best"));
  return draw("svg", { role: "img", width, height: HEIGHT, viewBox: `0 0 ${width} ${HEIGHT}`, "aria-label": told },
    ...marks, lines);
}

function lineOf(curve, x, y, kind) {
  let path = "";
  let last = null;
  let pen = "M";
  curve.losses.forEach((loss, index) => {
    if (loss === null) pen = "M";
    else {
      last = [x(curve.samples[index]), y(loss)];
      path += `${pen}${last[0].toFixed(1)},${last[1].toFixed(1)}`;
      pen = "L";
    }
  });
  const group = draw("g", { class: `curve ${kind} ${curve.status}`, "data-trial": curve.trial },
    draw("title", {}, inWords(curve)));
  if (last) {
    const look = { stroke: colourOf(curve), "stroke-dasharray": DASHES[Math.floor(curve.index / PALETTE.length) % 3] };
    const broken = curve.losses.at(-1) === null;
    group.append(draw("path", { d: path, fill: "none", ...look }), broken
      ? draw("path", { d: `M${last[0] - 4},${last[1] - 4}l8,8m0,-8l-8,8`, stroke: look.stroke })
      : draw("circle", { cx: last[0], cy: last[1], r: kind ? 4 : 3, fill: look.stroke }));
  }
  return group;
}

function legendOf(losses, picture) {
  const sorted = [...losses.curves].sort((a, b) => (less(a.best, b.best) ? -1 : 1));
  const entries = sorted.slice(0, LISTED).map((curve) => {
    const dot = make("i");
    dot.style.background = colourOf(curve);
    const entry = make("li", { class: "badge" }, dot, inWords(curve));
    const line = [...picture.querySelectorAll(".curve")].find((one) => one.dataset.trial === curve.trial);
    entry.addEventListener("pointerenter", () => { picture.classList.add("dim"); line.classList.add("lit"); });
    entry.addEventListener("pointerleave", () => { picture.classList.remove("dim"); line.classList.remove("lit"); });
    return entry;
  });
  const hidden = sorted.length - LISTED;
  if (hidden > 0) entries.push(make("li", { class: "none" }, `and ${hidden} more`));
  return make("ul", { class: "legend", "aria-label": `Trials of ${losses.task}, best first` }, ...entries);
}

function inWords(curve) {
  const loss = curve.best === null ? "not finite" : curve.best.toFixed(4);
  return `${curve.trial}: ${loss}${curve.status === "running" ? "" : `, ${curve.fate}`}`;
}

function limits(losses) {
  const finite = losses.curves.map((curve) => curve.losses.filter((loss) => loss !== null)).filter((one) => one.length);
  const peaks = finite.map((one) => Math.max(...one)).sort((a, b) => a - b);
  const known = losses.base === null ? [] : [losses.base];
  const low = Math.min(...finite.flat(), ...known);
  const usual = low + BLOWN_UP * (peaks[Math.floor(peaks.length / 2)] - low);
  const high = Math.max(...peaks.filter((peak) => peak <= usual), ...known, low);
  const margin = 0.06 * (high - low) || 0.05 * Math.max(Math.abs(high), 1);
  return [low - margin, high + margin];
}

function colourOf(curve) {
  return PALETTE[curve.index % PALETTE.length];
}

function less(a, b) {
  return (a ?? Infinity) < (b ?? Infinity);
}
