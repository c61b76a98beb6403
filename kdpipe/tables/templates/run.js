"use strict";
// Draws a run's learning curve from its history: one chart of accuracies, one of losses.

const SIZE = { width: 520, height: 260, left: 52, right: 12, top: 12, bottom: 36 };
const NAMES = { train_top1: "training", val_top1: "validation", test_top1: "test" };

/** An SVG element with attributes and children. */
function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

/** The columns of CSV text of numbers; what is not a number is null. */
function columns(text) {
  const [head, ...lines] = text.trim().split("\n");
  const read = (value) => (value === undefined || value.trim() === "" || !Number.isFinite(Number(value)) ? null : Number(value));
  const rows = lines.map((line) => line.split(",").map(read));
  return Object.fromEntries(head.split(",").map((name, i) => [name, rows.map((row) => row[i] ?? null)]));
}

/** About five round numbers from `low` to `high`. */
function ticks(low, high, whole) {
  const rough = (high - low) / 5 || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  let step = [1, 2, 5, 10].map((m) => m * power).find((s) => s >= rough);
  if (whole) step = Math.max(1, Math.round(step));
  const found = [];
  for (let tick = Math.ceil(low / step); tick * step <= high + step * 1e-9; tick += 1) found.push(tick * step);
  return found.map((tick) => Number(tick.toPrecision(10)));
}

/** One chart: lines of (name, values) over the epochs. */
function chart(title, unit, epochs, lines) {
  const values = lines.flatMap(([, own]) => own.filter((value) => value !== null));
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const [first, last] = [epochs[0], epochs[epochs.length - 1]];
  const { width, height, left, right, top, bottom } = SIZE;
  const x = (epoch) => left + ((epoch - first) / (last - first || 1)) * (width - left - right);
  const y = (value) => height - bottom - ((value - low) / (high - low || 1)) * (height - top - bottom);
  const drawn = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", class: "chart" });
  const said = lines.map(([name, own]) => `${name} ${own.findLast((value) => value !== null)}`).join(", ");
  drawn.append(svg("title", {}, `${title} by epoch; at the end: ${said}`));
  for (const tick of ticks(low, high, false)) {
    drawn.append(
      svg("line", { class: "rule", x1: left, x2: width - right, y1: y(tick), y2: y(tick) }),
      svg("text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, String(tick)),
    );
  }
  for (const tick of ticks(first, last, true)) {
    drawn.append(svg("text", { x: x(tick), y: height - bottom + 18, "text-anchor": "middle" }, String(tick)));
  }
  drawn.append(svg("text", { x: (left + width) / 2, y: height - 4, "text-anchor": "middle" }, "epoch"));
  lines.forEach(([, own], i) => {
    const points = own.map((value, at) => (value === null ? null : [x(epochs[at]), y(value)])).filter(Boolean);
    const path = points.map(([px, py], at) => `${at ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`).join("");
    drawn.append(svg("path", { class: `line line-${i % 4}`, d: path }));
    if (points.length === 1) drawn.append(svg("circle", { class: `dot line-${i % 4}`, cx: points[0][0], cy: points[0][1], r: 3 }));
  });
  const key = lines.map(([name], i) => element("li", {}, element("span", { class: `key line-${i % 4}`, "aria-hidden": "true" }), name));
  return element(
    "figure",
    { class: "curve" },
    element("figcaption", {}, unit ? `${title} (${unit})` : title),
    drawn,
    element("ul", { class: "keys" }, ...key),
  );
}

const history_ = columns(JSON.parse(document.getElementById("history").textContent));
const place = document.querySelector("[data-curve]");
const epochs = history_.epoch ?? [];
const some = ([, own]) => own?.some((value) => value !== null);
const scores = Object.entries(NAMES).map(([column, name]) => [name, history_[column]]).filter(some);
const terms = Object.keys(history_).filter((column) => column.startsWith("loss_"));
const parts = terms.length > 1 ? terms.map((column) => [column.slice(5), history_[column]]) : [];
const losses = [["loss", history_.loss], ...parts].filter(some).slice(0, 4);
if (epochs.length && scores.length) place.append(chart("Accuracy", "top-1, %", epochs, scores));
if (epochs.length && losses.length) place.append(chart("Training loss", "", epochs, losses));
if (!place.children.length) place.append(element("p", {}, "The run has no epoch behind it yet."));
