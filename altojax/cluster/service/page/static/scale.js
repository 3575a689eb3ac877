// Numbers and times as people read them, and where an axis has its ticks.

const NICE_S = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400];
const DAY_S = 86400;

// Seconds since the epoch -> "14:03", with seconds where asked for, with the day where it is not today.
export function clock(epochS, { seconds = false, day = true } = {}) {
  const date = new Date(epochS * 1000);
  const parts = [date.getHours(), date.getMinutes(), ...(seconds ? [date.getSeconds()] : [])];
  const time = parts.map((part) => String(part).padStart(2, "0")).join(":");
  if (!day || date.toDateString() === new Date().toDateString()) return time;
  return `${date.toLocaleDateString("en", { day: "numeric", month: "short" })} ${time}`;
}

// "8 s", "12 min", "1 h 05 min", "3 d 4 h".
export function duration(seconds) {
  if (seconds === null) return "–";
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 120) return `${whole} s`;
  const minutes = Math.round(whole / 60);
  if (minutes < 120) return `${minutes} min`;
  const hours = Math.floor(minutes / 60);
  if (hours < 48) return `${hours} h ${String(minutes % 60).padStart(2, "0")} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

// "1 node", "4 nodes".
export function counted(count, what) {
  return `${count} ${what}${count === 1 ? "" : "s"}`;
}

export function percent(share) {
  const value = Math.round(1000 * share) / 10 || 0;
  return `${value !== 0 && Math.abs(value) < 10 ? value.toFixed(1) : value.toFixed(0)} %`;
}

export function compact(value) {
  const size = Math.abs(value);
  for (const [limit, suffix] of [[1e9, "G"], [1e6, "M"], [1e3, "k"]]) {
    if (size >= limit) return `${Number((value / limit).toPrecision(3))}${suffix}`;
  }
  return `${Number(value.toPrecision(4))}`;
}

// Round numbers in [low, high], about `count` of them.
export function ticks(low, high, count) {
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((factor) => factor * power >= rough);
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return Array.from({ length: last - first + 1 }, (_, index) => (first + index) * step);
}

// Full minutes, hours or days of local time in [low, high] (seconds since the epoch), at most `count` of them.
export function timeTicks(low, high, count) {
  const rough = (high - low) / count;
  const step = NICE_S.find((one) => one >= rough) ?? DAY_S * Math.ceil(rough / DAY_S);
  const zoneS = new Date(low * 1000).getTimezoneOffset() * 60;
  const times = [];
  for (let at = Math.ceil((low - zoneS) / step) * step + zoneS; at <= high; at += step) times.push(at);
  return { times, step };
}
