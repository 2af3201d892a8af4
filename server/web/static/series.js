// Points of lines: joined for a chart, smoothed, thinned. Knows nothing about drawing.

// The moving average that forgets by `weight` in [0, 1) each point, started without a bias.
// https://arxiv.org/abs/1412.6980, section 3
export function smooth(values, weight) {
  if (weight === 0) return values;
  let sum = 0;
  let total = 0;
  return values.map((value) => {
    if (value === null) return null;
    sum = weight * sum + (1 - weight) * value;
    total = weight * total + (1 - weight);
    return sum / total;
  });
}

// One list of x for all lines, and for each line its y there, undefined where it has none.
export function join(lines) {
  const present = lines.filter((line) => line.x.length > 0);
  if (present.length === 0) return [[], ...lines.map(() => [])];
  const same = present.every((line) => line.x === present[0].x);
  const x = same ? present[0].x : [...new Set(present.flatMap((line) => line.x))].sort((a, b) => a - b);
  if (same) return [x, ...lines.map((line) => (line.x.length ? line.y : x.map(() => undefined)))];
  const place = new Map(x.map((value, index) => [value, index]));
  return [
    x,
    ...lines.map((line) => {
      const y = new Array(x.length).fill(undefined);
      line.x.forEach((value, index) => { y[place.get(value)] = line.y[index]; });
      return y;
    }),
  ];
}

// About `count` of the rows, evenly, the first and the last among them.
export function pick(length, count) {
  if (length <= count) return [...Array(length).keys()];
  return [...Array(count).keys()].map((row) => Math.round((row * (length - 1)) / (count - 1)));
}
