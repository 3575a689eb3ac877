// The colours of the reports (jaxrun/plots/plot_style.py, altojax/report/figures.py), which colour-blind readers can tell apart.

export const PALETTE =
  ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7F7F7F"];

export const STATUS = {
  running: "#0072B2", stopping: "#E69F00", waiting: "#8C6D31", submitted: "#8C6D31", paused: "#CC79A7",
  ended: "#009E73", failed: "#D55E00", refused: "#D55E00", cancelled: "#7F7F7F", merged: "#56B4E9",
};

// The colour of each name, by its place in the list.
export function coloursOf(names) {
  return new Map(names.map((name, index) => [name, PALETTE[index % PALETTE.length]]));
}

// White or ink, whichever stands out more; by relative luminance as in WCAG 2.
export function readableOn(colour) {
  const parts = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16) / 255);
  const linear = parts.map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  const luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
  return 1.05 / (luminance + 0.05) > (luminance + 0.05) / 0.063 ? "#ffffff" : "#1f2328";
}
