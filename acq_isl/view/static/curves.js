// Measurements over time: a chart for each, wells (or all fields together) strong, fields thin.

import { span } from "./panels.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 520, HEIGHT = 220, LEFT = 52, RIGHT = 10, TOP = 8, BOTTOM = 30;
const MOST_LINES = 80;
const HUES = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b38600", "#56b4e9"];
const SPANS = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
const SCALES = { fraction: [100, "% of the area"], um: [1, "µm"] };

/** Draw what is known of a run's curves; the field that is looked at stands out. */
export function drawCurves(box, note, run, selected) {
  const curves = [...run.curves.values()].filter((curve) => curve.points.length);
  const times = Math.max(0, ...curves.map((curve) => curve.points.length));
  box.closest("section").hidden = times < 2;
  const place = selected ? selected.key.position : "";
  const key = `${run.curvesStamp} ${place}`;
  if (times < 2 || box.dataset.key === key) return;
  box.dataset.key = key;
  const names = [...new Set(curves.map((curve) => curve.name))];
  box.replaceChildren(...names.map((name) => chart(name, curves.filter((curve) => curve.name === name), place)));
  const thinned = curves.some((curve) => curve.left_out);
  note.textContent = `${thinned ? "of many time points the least and largest of each stretch; " : ""}everything is in measurements.csv`;
}

function chart(name, curves, place) {
  const [scale, unit] = SCALES[curves[0].unit] || [1, curves[0].unit];
  const wells = curves.filter((curve) => curve.level === "well");
  const fields = curves.filter((curve) => curve.level === "field");
  const strong = [...(wells.length <= HUES.length ? wells : []), ...fields.filter((curve) => curve.place === place)];
  const rest = curves.filter((curve) => !strong.includes(curve));
  const shown = [...rest.slice(0, Math.max(MOST_LINES - strong.length, 0)), ...strong];
  const axes = frame(shown, strong, scale);
  const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, role: "img" });
  svg.setAttribute("aria-label", `${name} over time: ${strong.map((curve) => describe(curve, scale, unit)).join("; ") || `${shown.length} fields`}`);
  for (const [y, text] of axes.yTicks) {
    add(svg, "path", { class: "grid", d: `M${LEFT} ${y}H${WIDTH - RIGHT}` });
    add(svg, "text", { x: LEFT - 6, y: y + 4, class: "y" }, text);
  }
  for (const [x, text] of axes.xTicks) add(svg, "text", { x, y: HEIGHT - 10, class: "x" }, text);
  for (const curve of shown) draw(svg, curve, axes.at, scale, strong.indexOf(curve));
  const figure = document.createElement("figure");
  const caption = document.createElement("figcaption");
  caption.append(Object.assign(document.createElement("b"), { textContent: name }), ` ${unit}`);
  const key = document.createElement("ul");
  key.className = "key";
  key.append(...strong.map((curve, n) => entry(HUES[n % HUES.length], describe(curve, scale, unit))));
  const thin = shown.length - strong.length;
  if (thin) key.append(entry("", `thin lines: ${thin < rest.length ? `${thin} of ${rest.length}` : thin} ${fields.length ? "other fields" : "wells"}`));
  if (curves.some((curve) => curve.points.some((point) => point.value === null))) key.append(entry("", "× no value"));
  figure.append(caption, svg, key);
  return figure;
}

/** Places of the drawing, and its ticks. */
function frame(shown, strong, scale) {
  const points = shown.flatMap((curve) => curve.points);
  const times = points.map((point) => point.elapsed_s);
  const known = shown.flatMap((curve) => curve.points.filter((point) => point.value !== null).flatMap((point) => {
    const by = strong.includes(curve) ? point.doubt ?? 0 : 0;
    // What cannot be below 0 is not drawn below 0, whatever its doubt.
    return [scale * Math.max(point.value - by, Math.min(point.value, 0)), scale * (point.value + by)];
  }));
  const [first, last] = widen(least(times), most(times));
  const ticks = rounds(...widen(least(known, 0), most(known, 1)));
  const low = Math.min(ticks[0], least(known, 0)), high = Math.max(ticks.at(-1), most(known, 1));
  const at = (x, y) => [
    LEFT + ((x - first) / (last - first)) * (WIDTH - LEFT - RIGHT),
    HEIGHT - BOTTOM - ((y - low) / (high - low)) * (HEIGHT - TOP - BOTTOM),
  ].map((value) => Math.round(10 * value) / 10);
  const [seconds, unit] = SPANS.find(([one]) => one <= Math.max(last / 2, 1));
  const xTicks = rounds(first / seconds, last / seconds).filter((tick) => tick * seconds >= first && tick * seconds <= last);
  return {
    at: (x, y) => at(x, y === null ? low : y),
    xTicks: xTicks.map((tick) => [at(tick * seconds, low)[0], `${tick} ${unit}`]),
    yTicks: ticks.map((tick) => [at(first, tick)[1], `${tick}`]),
  };
}

function draw(svg, curve, at, scale, number) {
  const hue = number < 0 ? "" : HUES[number % HUES.length];
  const runs = [[]];
  for (const point of curve.points) {
    if (point.value !== null) runs.at(-1).push(point);
    else if (runs.at(-1).length) runs.push([]);
  }
  const path = (some) => some.map((pair, n) => `${n ? "L" : "M"}${pair.join(" ")}`).join("");
  for (const points of runs.filter((some) => some.length)) {
    if (hue && points.every((point) => point.doubt !== null)) {
      const edge = (sign) => points.map((point) => at(point.elapsed_s, scale * Math.max(point.value + sign * point.doubt, Math.min(point.value, 0))));
      add(svg, "path", { class: "band", fill: hue, d: `${path([...edge(1), ...edge(-1).reverse()])}Z` });
    }
    const line = path(points.map((point) => at(point.elapsed_s, scale * point.value)));
    // A point alone is drawn as a dot, which a round cap makes of a line of no length.
    add(svg, "path", { class: hue ? "line strong" : "line", ...(hue ? { stroke: hue } : {}), d: points.length > 1 ? line : `${line}h0` });
  }
  for (const point of curve.points.filter((one) => one.value === null)) {
    const [x, y] = at(point.elapsed_s, null);
    const mark = add(svg, "text", { class: "missing", x, y: y + 4 }, "×");
    add(mark, "title", {}, `${curve.place}, time ${point.time + 1}: ${point.why}`);
  }
}

/** Place, newest value and when. */
function describe(curve, scale, unit) {
  const point = curve.points.findLast((one) => one.value !== null);
  if (!point) return `${curve.place}: no value`;
  const digits = (value) => (unit === "objects" ? value.toFixed(1) : Number(value.toPrecision(2)));
  const by = point.doubt === null ? "" : ` ± ${digits(scale * point.doubt)}`;
  const mean = curve.level === "well" ? `mean of ${point.fields}` : "";
  return `${[curve.place, mean].filter(Boolean).join(", ")}: ${digits(scale * point.value)}${by} at ${span(point.elapsed_s)}`;
}

function entry(hue, text) {
  const item = document.createElement("li");
  if (hue) {
    const swatch = document.createElement("i");
    swatch.style.background = hue;
    item.append(swatch);
  }
  item.append(text);
  return item;
}

const least = (values, none = 0) => values.reduce((low, value) => Math.min(low, value), values.length ? Infinity : none);
const most = (values, none = 1) => values.reduce((high, value) => Math.max(high, value), values.length ? -Infinity : none);
const widen = (low, high) => (high > low ? [low, high] : [low - Math.abs(low) / 2, high + (Math.abs(high) / 2 || 1)]);

/** Round numbers from at most low to at least high. */
function rounds(low, high) {
  const rough = (high - low) / 4, decade = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((nice) => nice * decade).find((nice) => nice >= rough * 0.999);
  const found = [];
  for (let n = Math.floor(low / step + 1e-6); n <= Math.ceil(high / step - 1e-6); n++) found.push(Number((n * step).toPrecision(6)));
  return found;
}

function make(name, set) {
  const one = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(set)) one.setAttribute(key, value);
  return one;
}

function add(parent, name, set, text = "") {
  const one = make(name, set);
  one.textContent = text;
  parent.append(one);
  return one;
}
