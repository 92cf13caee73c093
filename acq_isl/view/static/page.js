// The page: what is shown and what is pressed. The run is in run.js, pictures in paint.js, the map in map.js.

import { Connection, takeToken } from "./connection.js";
import { drawCurves } from "./curves.js";
import { StageMap, rankColor } from "./map.js";
import { compose, decode, put, tinted } from "./paint.js";
import { drawCounts, drawDecisions, drawWaterfall, ms, readable, span } from "./panels.js";
import { Run, fieldId } from "./run.js";

const $ = (id) => document.getElementById(id);
const SILENT_MS = 4000;
const PHASES = { overview: "imaging without stain", predict: "predicting labels", revisit: "fluorescence" };
const STATES = { running: "running", paused: "paused", stopping: "stopping", ended: "ended", failed: "failed" };
const OVER = ["ended", "failed"];

const run = new Run();
// Gray is kept low, so that hues keep their colour where a cell is bright in both.
const look = { light: { on: true, opacity: 0.55 }, labels: [], doubt: { on: true, opacity: 0.5 } };
let follow = true, selected = null, role = "reader", link = "lost", linkText = "connecting", lookChanged = true, waiting = false, noticeUntil = 0;
const map = new StageMap($("mosaic"), $("outlines"), (id) => { follow = false; selected = run.fields.get(id); redraw(); });

const connection = new Connection(takeToken(), {
  async packet(message, jpegs) {
    const pictures = await Promise.all(jpegs.map(decode));
    if (message.run !== run.id) { selected = null; follow = true; $("layers").dataset.labels = ""; }
    const field = run.take(message, pictures);
    if (field && field === selected) selected = field;
    redraw();
  },
  role(given) { role = given; redraw(); },
  link(state, text) { link = state; linkText = text; redraw(); },
  answer(answer) { notice(answer.text, answer.taken ? "" : "bad", 6000); },
});

/** Draw once per frame, however much arrives. A timer helps where a hidden tab gets no frames. */
function redraw() {
  if (waiting) return;
  waiting = true;
  const go = () => { if (waiting) { waiting = false; draw(); } };
  requestAnimationFrame(go);
  setTimeout(go, 500);
}

function draw() {
  if (follow && run.newest) selected = run.newest;
  drawHead();
  drawLayers();
  drawField();
  map.draw(run, look, selected, lookChanged);
  drawMapNotes();
  drawCounts($("counts"), run.status);
  drawDecisions($("decisions"), $("idle"), run, look, (key) => { follow = false; selected = run.fields.get(fieldId(key)); redraw(); });
  drawWaterfall($("waterfall"), $("after"), run.status);
  $("waterfall").closest("section").hidden = Boolean(run.status && OVER.includes(run.status.state) && !run.status.progress.latencies.length);
  drawCurves($("curves"), $("curves-note"), run, selected);
  lookChanged = false;
}

function silent() {
  const { status } = run;
  return link !== "open" || (status && !OVER.includes(status.state) && performance.now() - run.statusAt > SILENT_MS);
}

function drawHead() {
  const { plan, status } = run;
  if (plan) {
    $("name").textContent = plan.name;
    document.title = `${status ? STATES[status.state] : ""} · ${plan.name} · acq-isl`;
    $("choice").textContent = plan.choice ? `choose ${plan.choice}` : "";
    $("foot").textContent = `${plan.scope} · model ${plan.model || "none"}`;
  }
  const over = status && OVER.includes(status.state);
  const state = link === "refused" ? "no access" : silent() && !over ? (status ? "no contact" : "connecting") : status ? STATES[status.state] : "waiting";
  $("state").textContent = state;
  $("state").dataset.state = silent() && !over ? "silent" : status ? status.state : "connecting";
  $("why").textContent = status ? status.why : "";
  if (status) {
    const { step, progress } = status;
    const done = step.total ? step.done / step.total : 0;
    $("done").style.width = `${Math.round(100 * (over ? 1 : done))}%`;
    const many = status.time_point && status.time_point.total > 1;
    const time = many ? `time ${status.time_point.number} of ${status.time_point.total}` : "";
    const phase = over ? (status.state === "ended" ? "done" : "") : `${PHASES[step.phase]} ${step.done} of ${step.total}`;
    $("phase").textContent = [time, phase].filter(Boolean).join(" · ");
    const late = status.late_time_points;
    $("late").textContent = late ? `${late} ${late > 1 ? "intervals" : "interval"} between time points could not be kept` : "";
    $("step").textContent = over ? "" : step.text;
    const left = progress.remaining_s === null ? null : Math.max(progress.remaining_s - (status.state === "running" ? (performance.now() - run.statusAt) / 1000 : 0), 0);
    $("remaining").textContent = over ? span(status.elapsed_s) : left === null ? "–" : `${span(Math.max(left, 1))} left`;
    $("elapsed").textContent = over ? "took" : `${span(status.elapsed_s)} so far`;
    const good = progress.engine.startsWith("ready");
    $("engine").textContent = `engine: ${progress.engine || "–"}`;
    $("engine-mark").className = good ? "good" : progress.engine ? "bad" : "";
  }
  drawCommands(over);
  if (performance.now() > noticeUntil) {
    if (over && link !== "open") notice(`The run is over, and so is its page. The report: ${status.report || plan?.folder}`, status.state === "failed" ? "bad" : "");
    else if (link === "refused" || link === "lost") notice(linkText, link === "refused" ? "bad" : "");
    else if (silent() && !over && status) notice("nothing was heard of the run for some seconds; it may be gone, or this computer is very busy", "");
    else if (status && status.state === "failed") notice(status.why, "bad");
    else if (status && status.report) notice("The run is over.", "", 0, ["Open the report", openReport]);
    else $("notice").hidden = true;
  }
}

function drawCommands(over) {
  const { status } = run;
  $("commands").hidden = role !== "operator" || over;
  const can = link === "open" && status && !OVER.includes(status.state) && status.state !== "stopping";
  $("pause").disabled = $("stop").disabled = !can;
  $("pause").textContent = status && status.state === "paused" ? "Resume" : "Pause";
}

function notice(text, kind, stay = 0, action = null) {
  const box = $("notice");
  if (stay) noticeUntil = performance.now() + stay;
  const key = text + kind + (action ? action[0] : "");
  if (box.dataset.key !== key) {
    box.dataset.key = key;
    box.textContent = text;
    if (action) {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = action[0];
      button.onclick = action[1];
      box.append(button);
    }
  }
  box.dataset.kind = kind;
  box.hidden = false;
}

async function openReport() {
  const page = window.open("", "_blank");
  const answer = await fetch("/report", { headers: connection.token ? { Authorization: `Bearer ${connection.token}` } : {} });
  if (!answer.ok) { page?.close(); return notice(await answer.text(), "bad", 6000); }
  const address = URL.createObjectURL(await answer.blob());
  if (page) page.location = address; else location.assign(address);
}

// --- layers ---------------------------------------------------------------------------------------

function drawLayers() {
  const { labels } = run;
  const key = labels.map((label) => label.name + label.color).join();
  const box = $("layers");
  if (box.dataset.labels === key && box.children.length > 1) return;
  box.dataset.labels = key;
  look.labels = labels.map((label, n) => look.labels[n] || { on: true, opacity: 1 });
  lookChanged = true;
  const rows = labels.map((label, n) => layer(`${label.name} (predicted)${label.model ? `, ${label.model}` : ""}`, label.color, look.labels[n], `label-${n}`));
  if (labels.length) rows.push(layer("doubt, as a haze", "#969aa6", look.doubt, "doubt"));
  rows.push(layer("transmitted light", "#ffffff", look.light, "light"));
  box.replaceChildren(box.firstElementChild, ...rows);
}

function layer(name, color, set, id) {
  const row = document.createElement("div");
  row.className = "layer";
  const label = document.createElement("label");
  const check = Object.assign(document.createElement("input"), { type: "checkbox", checked: set.on, id: `show-${id}` });
  const swatch = document.createElement("i");
  swatch.style.background = color;
  label.append(check, swatch, name);
  const slider = Object.assign(document.createElement("input"), { type: "range", min: 0, max: 100, step: 5, value: 100 * set.opacity, id: `opacity-${id}` });
  slider.setAttribute("aria-label", `strength of ${name}`);
  check.onchange = () => { set.on = check.checked; lookChanged = true; redraw(); };
  slider.oninput = () => { set.opacity = slider.value / 100; lookChanged = true; redraw(); };
  row.append(label, slider);
  return row;
}

function toggle(id) {
  $(`show-${id}`)?.click();
}

// --- the field in large ---------------------------------------------------------------------------

let drawnField = "";

function drawField() {
  $("follow").setAttribute("aria-pressed", follow);
  if (!selected) return;
  const key = `${selected.id} ${selected.stamp} ${run.range} ${role} ${link}`;
  if (key === drawnField && !lookChanged) return;
  drawnField = key;
  const { planned, light, predicted } = selected;
  const picture = compose(selected, run, look);
  const on = predicted && look.labels.some((one) => one.on);
  $("frame").classList.toggle("predicted", Boolean(on));
  $("badge").textContent = on ? "PREDICTED – not measured" : picture ? "MEASURED – transmitted light" : "no picture kept";
  $("save").disabled = !picture;
  if (picture) {
    put($("view"), picture);
    const shown = run.labels.filter((_, n) => on && look.labels[n].on).map((label) => `${label.name} (predicted)`);
    $("view").setAttribute("aria-label", `${selected.key.position}: ${[...shown, look.light.on ? "transmitted light (measured)" : ""].filter(Boolean).join(", ")}`);
    scaleBar(picture.width * (light || predicted).event.pixel_size_um);
  }
  const where = planned || light?.event;
  $("place").textContent = where ? `${selected.key.position} ${run.several ? `· time ${selected.key.time + 1} ` : ""}· x ${where.x_um.toFixed(1)}, y ${where.y_um.toFixed(1)} µm` : selected.key.position;
  drawFluorescence();
  drawAbout();
}

/** The picture as a PNG; that it is predicted is written into it, so that it goes wherever the file goes. */
function savePicture() {
  const view = $("view"), strip = Math.max(Math.round(view.height / 16), 18);
  const canvas = Object.assign(document.createElement("canvas"), { width: view.width, height: view.height + strip });
  const context = canvas.getContext("2d");
  context.fillStyle = $("frame").classList.contains("predicted") ? "#7a4b00" : "#333";
  context.fillRect(0, 0, canvas.width, strip);
  context.fillStyle = "#fff";
  context.font = `bold ${Math.round(strip * 0.55)}px sans-serif`;
  context.fillText(`${$("badge").textContent} · ${run.place(selected.key)}`, strip / 3, strip * 0.72, canvas.width - strip);
  context.drawImage(view, 0, strip);
  canvas.toBlob((blob) => {
    const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(blob), download: `${run.place(selected.key).replace(/[^\w.-]+/g, "_")}.png` });
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
}

function scaleBar(width) {
  const most = 0.3 * width;
  const decade = 10 ** Math.floor(Math.log10(most));
  const um = [5, 2, 1].map((n) => n * decade).find((n) => n <= most) || decade;
  $("scale").style.width = `${(100 * um) / width}%`;
  $("scale").textContent = um >= 1000 ? `${um / 1000} mm` : `${um} µm`;
}

function drawFluorescence() {
  const box = $("fluorescence");
  box.hidden = !selected.fluorescence.size;
  box.replaceChildren(...[...selected.fluorescence].map(([channel, plane]) => {
    const figure = document.createElement("figure");
    const canvas = document.createElement("canvas");
    put(canvas, tinted(plane, null));
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${channel}, measured`);
    figure.innerHTML = `<div class="frame"><span class="badge">MEASURED</span></div><figcaption></figcaption>`;
    figure.firstElementChild.append(canvas);
    figure.lastElementChild.textContent = `${channel} (measured)`;
    return figure;
  }));
}

function drawAbout() {
  const { ranked, refused, failed, predicted, planned } = selected;
  const line = document.createElement("div");
  line.className = "line";
  const title = document.createElement("h3");
  if (ranked && ranked.rank !== null) {
    const rank = Object.assign(document.createElement("span"), { className: `rank${ranked.chosen ? " chosen" : ""}`, textContent: ranked.rank });
    rank.title = "rank";
    title.append(rank);
  }
  title.append(run.place(selected.key) + (ranked?.chosen ? ", chosen" : ""));
  line.append(title);
  if (role === "operator" && planned && !OVER.includes(run.status?.state)) line.append(goThere(planned));
  const list = document.createElement("ul");
  const say = (text, kind = "") => list.append(Object.assign(document.createElement("li"), { textContent: text, className: kind }));
  if (failed) say(`Something went wrong here: ${failed.what}. ${failed.why}`, "warn");
  if (ranked) say(ranked.reason);
  if (refused) { say(`${refused.state === "refused" ? "The model refused this stack" : "Not predicted"}: ${refused.reason}`, "warn"); say(`To do: ${refused.fix}`); }
  for (const measured of predicted?.event.measured || []) if (!ranked?.reason.includes(measured.name)) say(`${measured.name}: ${readable(measured)}`);
  for (const text of predicted?.event.warnings || []) say(`Note: ${text}`, "warn");
  if (predicted) {
    const { times } = predicted.event;
    say(`predicted ${ms(times.transfer_ms + times.wait_ms + times.infer_ms + times.decode_ms)} after its last slice`, "soft");
  } else if (!refused) say(selected.light ? "imaged; the prediction is on its way" : "planned");
  $("about").replaceChildren(line, list);
}

function goThere(planned) {
  const button = Object.assign(document.createElement("button"), { type: "button", className: "quiet", id: "go", textContent: "Go there (pauses)" });
  button.title = "After the present stack: move the stage here, take one plane in transmitted light, and pause";
  button.disabled = link !== "open";
  button.onclick = () => connection.send({ kind: "go_to", x_um: planned.x_um, y_um: planned.y_um });
  return button;
}

function drawMapNotes() {
  const fields = run.plan ? map.fields(run) : [];
  if (!fields.length) return;
  const predicted = fields.filter((one) => one.predicted || one.ranked).length;
  const chosen = fields.filter((one) => one.ranked?.chosen).length;
  $("map-note").textContent = `${predicted} of ${fields.length} fields predicted${chosen ? `, ${chosen} chosen` : ""}${map.toScale ? "" : "; far apart on the stage, so set in rows"}`;
  const any = fields.some((one) => one.predicted) && look.labels.some((one) => one.on);
  $("stage").classList.toggle("predicted", any);
  $("map-badge").textContent = any ? "PREDICTED" : "MEASURED";
  $("map-badge").classList.toggle("predicted-badge", any);
  const key = `${fields.some((one) => one.ranked)}`;
  if ($("map-key").dataset.key === key) return;
  $("map-key").dataset.key = key;
  const gradient = `linear-gradient(90deg, ${[1, 2, 3, 4, 5, 6].map((n) => rankColor(n, 6)).join()})`;
  const items = key === "true" ? [["outline: rank, best to last", gradient], ["white: chosen", "#fff"]] : [["dashed: planned", ""]];
  $("map-key").replaceChildren(...items.map(([text, background]) => {
    const item = document.createElement("li");
    if (background) {
      const swatch = document.createElement("i");
      swatch.style.background = background;
      swatch.style.border = "1px solid var(--soft)";
      item.append(swatch);
    }
    item.append(text);
    return item;
  }));
}

// --- commands and keys ------------------------------------------------------------------------------

$("pause").onclick = () => connection.send({ kind: run.status?.state === "paused" ? "resume" : "pause" });
$("stop").onclick = () => $("ask-stop").showModal();
$("ask-stop").onclose = () => $("ask-stop").returnValue === "yes" && connection.send({ kind: "stop" });
$("ask-stop").addEventListener("cancel", () => { $("ask-stop").returnValue = "no"; });
$("keys").onclick = () => $("show-keys").showModal();
$("follow").onclick = () => { follow = !follow; redraw(); };
$("save").onclick = savePicture;
$("wall").onclick = () => $("wall").setAttribute("aria-pressed", document.documentElement.classList.toggle("wall"));
$("theme").onclick = () => {
  const next = { "": "light", light: "dark", dark: "" }[document.documentElement.dataset.theme || ""];
  setTheme(next);
  localStorage.setItem("acq-isl-theme", next);
};

function setTheme(theme) {
  if (theme) document.documentElement.dataset.theme = theme; else delete document.documentElement.dataset.theme;
  $("theme").textContent = `Theme: ${theme || "auto"}`;
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  if (event.target.matches("input[type=range], input[type=text], textarea")) return;
  const { key } = event;
  if (/^[1-9]$/.test(key)) toggle(`label-${key - 1}`);
  else if (key === "d") toggle("doubt");
  else if (key === "l") toggle("light");
  else if (key === "f") $("follow").click();
  else if (key === "w") $("wall").click();
  else if (key === "t") $("theme").click();
  else if (key === "?") $("keys").click();
  else if (key === "p" && !$("commands").hidden && !$("pause").disabled) $("pause").click();
  else if (key === "s" && !$("commands").hidden && !$("stop").disabled) $("stop").click();
  else if (!(key.startsWith("Arrow") && selected && map.step(selected.id, key))) return;
  event.preventDefault();
});

setTheme(localStorage.getItem("acq-isl-theme") || "");
setInterval(redraw, 1000);
