// Numbers, durations and sizes for people. Unknown is a dash, never a zero.

export const UNKNOWN = "–";

const isKnown = (value) => value !== null && value !== undefined && !Number.isNaN(value);

// 4 significant digits, short also where it is very large or small.
export function number(value, digits = 4) {
  if (!isKnown(value)) return UNKNOWN;
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) {
    const [mantissa, exponent] = value.toExponential(Math.min(2, digits - 1)).split("e");
    return `${Number(mantissa)}e${Number(exponent)}`;
  }
  return String(Number(value.toPrecision(digits)));
}

export const loss = (nats) => (isKnown(nats) ? nats.toFixed(4) : UNKNOWN);

export const whole = (value) => (isKnown(value) ? Math.round(value).toLocaleString("en") : UNKNOWN);

// 1234567 as 1.23 M
export function compact(value) {
  if (!isKnown(value)) return UNKNOWN;
  for (const [unit, size] of [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]]) {
    if (Math.abs(value) >= size) return `${Number((value / size).toPrecision(3))} ${unit}`;
  }
  return String(Number(value.toPrecision(3)));
}

export const percent = (ratio) =>
  isKnown(ratio) ? `${Number((100 * ratio).toPrecision(3))} %` : UNKNOWN;

export function bytes(count) {
  if (!isKnown(count)) return UNKNOWN;
  for (const [unit, size] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]]) {
    if (count >= size) return `${Number((count / size).toPrecision(3))} ${unit}`;
  }
  return `${count} B`;
}

// 5 ms, 1.2 s, 3 min 20 s, 2 h 5 min, 3 d 4 h
export function seconds(value) {
  if (!isKnown(value)) return UNKNOWN;
  if (value < 1) return `${Number((1000 * value).toPrecision(3))} ms`;
  if (value < 60) return `${Number(value.toPrecision(3))} s`;
  const minutes = Math.floor(value / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(value % 60)} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export const clock = (unixSeconds) =>
  isKnown(unixSeconds) ? new Date(1000 * unixSeconds).toLocaleString("sv") : UNKNOWN;

// 5 s ago, 3 min ago; a date when it is longer than a day
export function ago(unixSeconds) {
  if (!isKnown(unixSeconds)) return UNKNOWN;
  const passed = Math.max(0, Date.now() / 1000 - unixSeconds);
  if (passed < 60) return `${Math.floor(passed)} s ago`;
  if (passed < 3600) return `${Math.floor(passed / 60)} min ago`;
  if (passed < 86400) return `${Math.floor(passed / 3600)} h ago`;
  return clock(unixSeconds).slice(0, 10);
}
