// Counters, decisions, waterfall: numbers as people write them.

import { compose, put } from "./paint.js";
import { fieldId } from "./run.js";

const SVG = "http://www.w3.org/2000/svg";
const STAGES = { expose: "expose", transfer: "send", wait: "wait", infer: "infer", decode: "decode", decide: "decide" };
const MAX_SHOWN = 40;

export function span(seconds) {
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${String(s % 60).padStart(2, "0")} s`;
  return `${Math.floor(s / 3600)} h ${String(Math.floor((s % 3600) / 60)).padStart(2, "0")} min`;
}

export function ms(value) {
  if (value >= 10000) return `${(value / 1000).toFixed(1)} s`;
  if (value >= 1000) return `${(value / 1000).toFixed(2)} s`;
  return value >= 10 ? `${Math.round(value)} ms` : `${value.toFixed(1)} ms`;
}

/** As rules.measurements.readable: 12.3 ± 0.4 % of the area, 41 ± 3.0 objects. */
export function readable(measured) {
  const { value, doubt, unit } = measured;
  if (value === null) return "no number";
  const [scale, digits, name] = { fraction: [100, 1, "% of the area"], objects: [1, 0, "objects"] }[unit] || [1, 3, unit];
  const by = doubt === null ? "" : ` ± ${(doubt * scale).toFixed(Math.max(digits, 1))}`;
  return `${(value * scale).toFixed(digits)}${by} ${name}`;
}

function element(name, text, kind = "") {
  return Object.assign(document.createElement(name), { textContent: text, className: kind });
}

export function drawCounts(box, status) {
  const progress = status ? status.progress : null;
  const counts = progress ? progress.counts : null;
  const rows = [
    ["captured", counts?.captured, ""],
    ["predicted", counts?.predicted, ""],
    ["on their way", progress?.late, ""],
    ["refused", counts?.refused, counts?.refused ? "warn" : ""],
    ["unpredicted", counts?.spooled, counts?.spooled ? "warn" : ""],
    ["lost", counts?.lost, counts?.lost ? "bad" : "good"],
  ];
  const key = JSON.stringify(rows);
  if (box.dataset.key === key) return;
  box.dataset.key = key;
  box.replaceChildren(...rows.map(([name, number, kind]) => {
    const row = element("div", "", kind);
    row.id = `count-${name.replaceAll(" ", "-")}`;
    row.append(element("dt", name), element("dd", number ?? "–"));
    return row;
  }));
}

export function drawDecisions(list, idle, run, look, show) {
  const all = [...run.decisions].sort(([a], [b]) => b - a);
  const acted = all.filter(([, decided]) => decided.done !== "nothing");
  const chosen = [...run.fields.values()].filter((field) => field.ranked?.chosen).sort((a, b) => b.key.time - a.key.time || a.ranked.rank - b.ranked.rank);
  const looked = all.length - acted.length;
  idle.textContent = looked ? `${looked} times a trigger looked and did nothing` : "";
  // Chosen fields stand together, best first, above what was done before they were chosen.
  const since = Math.max(0, ...chosen.map((field) => field.rankedSeq));
  const rows = [
    ...acted.slice(0, MAX_SHOWN).map(([seq, decided]) => ({ seq, key: decided.key, title: decided.what, why: decided.why, done: decided.done, rule: decided.rule, time: decided.time_s })),
    ...chosen.slice(0, MAX_SHOWN).map(({ ranked, rankedSeq }) => ({ seq: rankedSeq, key: ranked.key, title: `chosen, rank ${ranked.rank}`, why: ranked.reason.replace(/^Chosen: /, ""), done: "", rule: "" })),
  ].sort((a, b) => (b.time ? b.seq : since) - (a.time ? a.seq : since));
  const stamp = (row) => run.fields.get(row.key ? fieldId(row.key) : "")?.stamp ?? 0;
  const key = rows.map((row) => `${row.seq}:${stamp(row)}:${row.done}`).join() + JSON.stringify(look);
  if (list.dataset.key === key) return;
  list.dataset.key = key;
  list.replaceChildren(...rows.map((row) => decision(row, run, look, show)));
}

function decision(row, run, look, show) {
  const item = element("li", "", row.done.split(":")[0]);
  const field = row.key ? run.fields.get(fieldId(row.key)) : null;
  const picture = field && compose(field, run, look, 4);
  if (picture) {
    const button = element("button", "", field.predicted ? "predicted" : "");
    button.type = "button";
    button.setAttribute("aria-label", `show ${run.place(row.key)}${field.predicted ? " (predicted)" : ""}`);
    const canvas = document.createElement("canvas");
    put(canvas, picture);
    button.append(canvas);
    button.onclick = () => show(row.key);
    item.append(button);
  } else item.append(element("span", "", "no-picture"));
  item.append(element("b", `${row.title}${row.key ? ` · ${run.place(row.key)}` : ""}`));
  item.append(element("p", row.why));
  const last = element("p", "", "soft");
  if (row.time) last.append(element("time", new Date(row.time * 1000).toLocaleTimeString()), " · ");
  last.append([row.rule, row.done].filter(Boolean).join(" · "));
  if (last.textContent) item.append(last);
  return item;
}

export function drawWaterfall(body, after, status) {
  const stages = status ? status.progress.latencies : [];
  const key = JSON.stringify(stages);
  if (body.dataset.key === key) return;
  body.dataset.key = key;
  if (!stages.length) { after.textContent = "nothing predicted yet"; return; }
  // Exposing takes as long as the camera wants; what comes after it is what we answer for.
  const shown = stages.filter((latency) => latency.stage !== "expose");
  const total = shown.reduce((sum, latency) => sum + latency.p50_ms, 0);
  let start = 0;
  const reach = Math.max(...shown.map((latency) => { const end = start + Math.max(latency.p95_ms, latency.p50_ms); start += latency.p50_ms; return end; }), total, 0.001);
  start = 0;
  after.textContent = `${ms(total)} after the last exposure of a field (p50)`;
  body.replaceChildren(...stages.map((latency) => {
    const row = document.createElement("tr");
    const cell = element("td", "", "cell");
    if (latency.stage !== "expose") {
      cell.append(bar((1000 * start) / reach, (1000 * latency.p50_ms) / reach, (1000 * latency.p95_ms) / reach));
      start += latency.p50_ms;
    }
    row.append(element("td", STAGES[latency.stage] || latency.stage), cell, element("td", ms(latency.p50_ms)), element("td", ms(latency.p95_ms)));
    return row;
  }));
}

function bar(start, p50, p95) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 1000 20");
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("aria-hidden", "true");
  const add = (name, set) => {
    const one = document.createElementNS(SVG, name);
    for (const [k, v] of Object.entries(set)) one.setAttribute(k, v);
    svg.append(one);
  };
  add("rect", { class: "rail", x: 0, y: 6, width: 1000, height: 8, rx: 2 });
  add("rect", { class: "p50", x: start, y: 3, width: Math.max(p50, 3), height: 14 });
  add("path", { class: "p95", d: `M${start + p50} 10H${start + Math.max(p95, p50)}M${start + Math.max(p95, p50)} 3V17` });
  return svg;
}
