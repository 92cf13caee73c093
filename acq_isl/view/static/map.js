// All fields at their stage coordinates: one canvas of pictures, one SVG of outlines one can press.

import { compose } from "./paint.js";

const SVG = "http://www.w3.org/2000/svg";
const THUMB_PX = 192;
const MOSAIC_PX = 1600;
// As in the report: fields that fill less of their common frame than this are set in rows.
const SPARSE = 0.15;
// From best to last: light to dark, and told apart with every kind of colour vision.
const RANKS = [[253, 231, 120], [184, 200, 90], [90, 178, 124], [50, 130, 142], [62, 84, 140], [70, 45, 100]];

export function rankColor(rank, of) {
  const place = of < 2 ? 0 : ((rank - 1) / (of - 1)) * (RANKS.length - 1);
  const low = Math.min(Math.floor(place), RANKS.length - 2);
  const mix = RANKS[low].map((c, i) => Math.round(c + (RANKS[low + 1][i] - c) * (place - low)));
  return `rgb(${mix.join(" ")})`;
}

/** Where each field is drawn, in micrometres: {boxes: Map id -> {x, y, w, h}, around, toScale}. */
export function layout(fields, [width, height]) {
  const boxes = new Map(fields.map((one) => [one.id, { x: one.planned.x_um - width / 2, y: one.planned.y_um - height / 2, w: width, h: height }]));
  const around = frameOf([...boxes.values()]);
  const distinct = new Set(fields.map((one) => `${one.planned.x_um} ${one.planned.y_um}`)).size;
  if ((distinct * width * height) / (around.w * around.h) >= SPARSE && distinct === fields.length) return { boxes, around, toScale: true };
  const columns = Math.ceil(Math.sqrt(fields.length * 1.5));
  fields.forEach((one, n) => boxes.set(one.id, { x: (n % columns) * width * 1.06, y: Math.floor(n / columns) * height * 1.06, w: width, h: height }));
  return { boxes, around: frameOf([...boxes.values()]), toScale: fields.length === 1 };
}

function frameOf(boxes) {
  const x = Math.min(...boxes.map((b) => b.x)), y = Math.min(...boxes.map((b) => b.y));
  return { x, y, w: Math.max(...boxes.map((b) => b.x + b.w)) - x, h: Math.max(...boxes.map((b) => b.y + b.h)) - y };
}

export class StageMap {
  constructor(canvas, svg, chosen) {
    this.canvas = canvas;
    this.svg = svg;
    this.chosen = chosen;
    this.nodes = new Map();
    this.drawn = new Map();
    svg.addEventListener("keydown", (event) => this.move(event));
  }

  /** The fields of the latest time point that has begun. */
  fields(run) {
    const planned = [...run.fields.values()].filter((one) => one.planned);
    const begun = planned.filter((one) => one.light || one.predicted || one.refused || one.failed || one.thumb);
    const time = begun.length ? Math.max(...begun.map((one) => one.key.time)) : 0;
    return planned.filter((one) => one.key.time === time);
  }

  draw(run, look, selected, lookChanged) {
    const fields = run.plan ? this.fields(run) : [];
    if (!fields.length) return;
    const shape = fields.map((one) => one.id).join(" ");
    if (shape !== this.shape) {
      this.place(run, fields, shape);
      for (const field of run.fields.values()) if (!this.nodes.has(field.id)) field.thumb = null;
    }
    const context = this.canvas.getContext("2d");
    const scale = this.canvas.width / this.around.w;
    const range = JSON.stringify(run.range);
    this.ranked = fields.filter((one) => one.ranked && one.ranked.rank !== null).length;
    for (const field of fields) {
      const changed = lookChanged || this.drawn.get(field.id) !== field.stamp + range;
      if (changed) this.picture(context, field, run, look, scale, range);
      this.outline(field, run, field === selected);
    }
  }

  place(run, fields, shape) {
    this.shape = shape;
    const { boxes, around, toScale } = layout(fields, run.plan.fov_um);
    Object.assign(this, { boxes, around, toScale, order: fields.map((one) => one.id) });
    const scale = Math.min(MOSAIC_PX / Math.max(around.w, around.h), THUMB_PX / Math.max(...run.plan.fov_um) * 2);
    this.canvas.width = Math.max(Math.round(around.w * scale), 1);
    this.canvas.height = Math.max(Math.round(around.h * scale), 1);
    this.svg.setAttribute("viewBox", `${around.x} ${around.y} ${around.w} ${around.h}`);
    this.svg.replaceChildren();
    this.nodes.clear();
    this.drawn.clear();
    for (const field of fields) this.node(field);
  }

  node(field) {
    const box = this.boxes.get(field.id);
    const unit = Math.min(box.w, box.h);
    const make = (name, parent, set) => {
      const one = document.createElementNS(SVG, name);
      for (const [key, value] of Object.entries(set)) one.setAttribute(key, value);
      parent.append(one);
      return one;
    };
    const at = (inset) => ({ x: box.x + inset, y: box.y + inset, width: box.w - 2 * inset, height: box.h - 2 * inset });
    const group = make("g", this.svg, { role: "button", tabindex: this.nodes.size ? -1 : 0, "data-field": field.id });
    const planned = make("rect", group, { class: "planned", ...at(unit * 0.04), "stroke-width": unit * 0.012 });
    const hit = make("rect", group, { class: "hit", ...at(0) });
    const dark = make("rect", group, { class: "ring", ...at(unit * 0.035), stroke: "#000", "stroke-width": unit * 0.07, visibility: "hidden" });
    const ring = make("rect", group, { class: "ring", ...at(unit * 0.03), stroke: "none", "stroke-width": unit * 0.04 });
    const now = make("rect", group, { class: "now", ...at(unit * 0.085), "stroke-width": unit * 0.02, "stroke-dasharray": `${unit * 0.06} ${unit * 0.04}`, visibility: "hidden" });
    const mark = make("g", group, { visibility: "hidden", transform: `translate(${box.x + box.w - unit * 0.19} ${box.y + unit * 0.19})` });
    const disc = make("circle", mark, { r: unit * 0.13, stroke: "#000", "stroke-width": unit * 0.015 });
    const number = make("text", mark, { y: unit * 0.06, "font-size": unit * 0.17 });
    const word = make("text", group, { x: box.x + box.w / 2, y: box.y + box.h / 2 + unit * 0.04, "font-size": unit * 0.11, fill: "#fff", stroke: "#000", "stroke-width": unit * 0.025, "paint-order": "stroke" });
    const title = make("title", group, {});
    group.addEventListener("click", () => this.choose(field.id));
    group.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        event.stopPropagation();
        this.choose(field.id);
      }
    });
    this.nodes.set(field.id, { group, planned, hit, dark, ring, now, mark, disc, number, word, title });
  }

  picture(context, field, run, look, scale, range) {
    const box = this.boxes.get(field.id);
    const width = field.light ? field.light.picture.width : field.predicted ? field.predicted.means[0].width : 0;
    if (width) {
      const step = Math.max(Math.floor(width / Math.max(box.w * scale, THUMB_PX)), 1);
      const picture = compose(field, run, look, step);
      field.thumb ||= document.createElement("canvas");
      field.thumb.width = picture.width;
      field.thumb.height = picture.height;
      field.thumb.getContext("2d").putImageData(picture, 0, 0);
    }
    const x = Math.round((box.x - this.around.x) * scale), y = Math.round((box.y - this.around.y) * scale);
    const right = Math.round((box.x + box.w - this.around.x) * scale), bottom = Math.round((box.y + box.h - this.around.y) * scale);
    context.imageSmoothingQuality = "high";
    if (field.thumb) context.drawImage(field.thumb, x, y, right - x, bottom - y);
    this.drawn.set(field.id, field.stamp + range);
  }

  outline(field, run, selected) {
    const node = this.nodes.get(field.id);
    const { ranked, refused, failed, predicted } = field;
    const of = this.ranked;
    const set = (one, name, value) => one.getAttribute(name) !== String(value) && one.setAttribute(name, value);
    const show = (one, on) => set(one, "visibility", on ? "visible" : "hidden");
    const rank = ranked && ranked.rank !== null ? ranked.rank : null;
    show(node.planned, !field.thumb);
    set(node.ring, "stroke", ranked && ranked.chosen ? "#fff" : rank !== null ? rankColor(rank, of) : "none");
    show(node.dark, ranked && ranked.chosen);
    show(node.now, selected);
    show(node.mark, rank !== null);
    if (rank !== null) {
      node.number.textContent = rank;
      const color = ranked.chosen ? "#fff" : rankColor(rank, of);
      set(node.disc, "fill", color);
      set(node.number, "fill", ranked.chosen || (rank - 1) / Math.max(of - 1, 1) < 0.5 ? "#000" : "#fff");
    }
    const word = refused ? (refused.state === "refused" ? "refused" : "waits") : failed && !predicted ? "failed" : "";
    if (node.word.textContent !== word) node.word.textContent = word;
    const text = `${run.place(field.key)}: ${ranked ? ranked.reason : refused ? refused.reason : failed ? `${failed.what}: ${failed.why}` : predicted ? "predicted" : field.thumb ? "imaged, prediction on its way" : "planned"}`;
    if (node.title.textContent !== text) node.title.textContent = text; // and the name of the button
    set(node.group, "aria-pressed", selected);
  }

  choose(id) {
    for (const [one, node] of this.nodes) node.group.setAttribute("tabindex", one === id ? 0 : -1);
    this.chosen(id);
  }

  /** Arrow keys: the nearest field in that direction. */
  move(event) {
    const id = event.target.closest?.("[data-field]")?.dataset.field;
    if (id && this.step(id, event.key)) {
      event.preventDefault();
      event.stopPropagation();
    }
  }

  step(id, key) {
    const direction = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
    const from = this.boxes?.get(id);
    if (!direction || !from) return false;
    let best = null, least = Infinity;
    for (const [other, box] of this.boxes) {
      const dx = box.x - from.x, dy = box.y - from.y;
      const along = dx * direction[0] + dy * direction[1];
      const across = Math.abs(dx * direction[1]) + Math.abs(dy * direction[0]);
      if (along > 1e-6 && along + 3 * across < least) [best, least] = [other, along + 3 * across];
    }
    if (best === null) return true;
    this.choose(best);
    this.nodes.get(best).group.focus();
    return true;
  }
}
