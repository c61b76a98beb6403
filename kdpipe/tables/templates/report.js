"use strict";
// Builds each study's table and list of runs from the JSON of the page. Text is only ever set as text.

const data = JSON.parse(document.getElementById("data").textContent);
const runNames = Object.keys(data.runs);
const PAGE = 50;

/** An element with attributes, and children that are elements or text. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "onclick") made.addEventListener("click", value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** Neighbouring equal values as [value, count]. */
function grouped(values) {
  const groups = [];
  for (const value of values) {
    const last = groups[groups.length - 1];
    if (last && last[0] === value) last[1] += 1;
    else groups.push([value, 1]);
  }
  return groups;
}

/** A study's section: what is chosen in it, and how it is drawn. */
class Study {
  constructor(section) {
    this.section = section;
    this.data = data.studies[section.dataset.study];
    this.metric = Object.keys(this.data.tables)[0];
    this.sort = { column: null, descending: true };
    this.filters = { method: "", recipe: "", pair: "", run: "" };
    this.only = null; // numbers of the runs behind a chosen cell
    this.shown = PAGE;
    this.listen();
    this.drawTable();
    this.drawRuns();
  }

  find(selector) {
    return this.section.querySelector(selector);
  }

  listen() {
    for (const button of this.section.querySelectorAll("[data-metric]")) {
      button.addEventListener("click", () => this.chooseMeasure(button));
    }
    for (const input of this.section.querySelectorAll("[data-filter]")) {
      input.addEventListener("input", () => {
        this.filters[input.dataset.filter] = input.value.trim().toLowerCase();
        this.shown = PAGE;
        if (input.dataset.filter === "run") this.drawRuns();
        else this.drawTable();
      });
    }
    this.find("[data-more]").addEventListener("click", () => {
      this.shown += 4 * PAGE;
      this.drawRuns();
    });
    this.find("[data-all]").addEventListener("click", () => this.showRuns(null));
  }

  chooseMeasure(button) {
    this.metric = button.dataset.metric;
    this.sort = { column: null, descending: true };
    for (const other of this.section.querySelectorAll("[data-metric]")) {
      other.setAttribute("aria-pressed", String(other === button));
    }
    this.drawTable();
  }

  /** Numbers of the columns that the filters leave. */
  columns() {
    const { recipe, pair } = this.filters;
    const keeps = (column) =>
      (!recipe || column.recipe.toLowerCase() === recipe) && (!pair || column.pair.toLowerCase() === pair);
    return this.data.columns.map((column, i) => (keeps(column) ? i : -1)).filter((i) => i >= 0);
  }

  /** The rows that the filter leaves, in the chosen order; rows without a number come last. */
  rows(table) {
    const rows = table.rows.filter((row) => row.label.toLowerCase().includes(this.filters.method));
    const { column, descending } = this.sort;
    if (column === null) return rows;
    const sign = descending ? -1 : 1;
    if (column === "label") return rows.sort((a, b) => sign * a.label.localeCompare(b.label));
    const value = (row) => row.cells[column].value;
    return rows.sort((a, b) => {
      if (value(a) === null || value(b) === null) return (value(a) === null) - (value(b) === null);
      return sign * (value(a) - value(b));
    });
  }

  drawTable() {
    const table = this.data.tables[this.metric];
    if (!table) return; // a study of chains or benches
    const columns = this.columns();
    const rows = this.rows(table);
    const heads = columns.map((i) => this.data.columns[i]);
    const groups = grouped(heads.map((head) => head.pair)).map(([pair, span]) =>
      element("th", { class: "group", scope: "colgroup", colspan: span }, pair),
    );
    const labels = columns.map((i) => this.sortable(i, this.data.columns[i].recipe, "number"));
    const body = rows.map((row) =>
      element(
        "tr",
        { class: row.kind },
        element("th", { scope: "row" }, row.label),
        ...columns.map((i) => this.cell(row, i)),
      ),
    );
    this.find("[data-table]").replaceChildren(
      element(
        "table",
        { class: "grid" },
        element("caption", {}, table.title),
        element(
          "thead",
          {},
          element("tr", {}, element("td"), ...groups),
          element("tr", {}, this.sortable("label", "method", ""), ...labels),
        ),
        element("tbody", {}, ...body),
      ),
    );
    const all = table.rows.length;
    const every = rows.length === all && columns.length === this.data.columns.length;
    this.find("[data-status]").textContent = every
      ? ""
      : `${rows.length} of ${all} rows, ${columns.length} of ${this.data.columns.length} columns`;
  }

  /** A heading that sorts: best first, then worst first, then as the study lists the rows. */
  sortable(column, label, kind) {
    const table = this.data.tables[this.metric];
    const bestFirst = column !== "label" && table.better !== "lower";
    const mine = this.sort.column === column;
    const direction = this.sort.descending ? "descending" : "ascending";
    const click = () => {
      if (!mine) this.sort = { column, descending: bestFirst };
      else if (this.sort.descending === bestFirst) this.sort = { column, descending: !bestFirst };
      else this.sort = { column: null, descending: true };
      this.drawTable();
      this.find(`[data-sort="${column}"]`).focus();
    };
    return element(
      "th",
      { scope: "col", class: kind, "aria-sort": mine ? direction : null },
      element("button", { type: "button", "data-sort": column, onclick: click }, label),
    );
  }

  cell(row, column) {
    const { text, mark, note, runs } = row.cells[column];
    const { pair, recipe } = this.data.columns[column];
    const classes = `number ${mark || ""}`.trim();
    if (!runs.length) return element("td", { class: classes }, text, note ? element("sup", {}, note) : null);
    const title = `Show the runs: ${row.label}, ${recipe}, ${pair}`;
    const button = element("button", { type: "button", title, onclick: () => this.showRuns(runs) }, text);
    return element("td", { class: classes }, button, note ? element("sup", {}, note) : null);
  }

  /** Show the runs behind a cell, or all when `runs` is null. */
  showRuns(runs) {
    this.only = runs && new Set(runs);
    this.shown = PAGE;
    this.drawRuns();
    const details = this.find("details");
    details.open = true;
    details.querySelector("summary").focus();
    details.scrollIntoView({ block: "nearest" });
  }

  drawRuns() {
    const words = this.filters.run.split(/\s+/).filter(Boolean);
    const text = (run) =>
      `${run.row} ${run.recipe} ${run.pair} seed ${run.seed} ${run.status} ${runNames[run.run]}`.toLowerCase();
    const found = this.data.runs.filter(
      (run) =>
        (!this.only || this.only.has(run.run)) &&
        (!words.length || words.every((word) => text(run).includes(word))),
    );
    const title = this.data.tables[Object.keys(this.data.tables)[0]].title;
    const heads = ["method", "recipe", "networks", "seed", "status", title, "run", ""];
    this.find("[data-runs]").replaceChildren(
      element(
        "table",
        {},
        element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
        element("tbody", {}, ...found.slice(0, this.shown).map((run) => this.runRow(run))),
      ),
    );
    this.find("[data-more]").hidden = found.length <= this.shown;
    this.find("[data-all]").hidden = !this.only;
    const shown = Math.min(found.length, this.shown);
    this.find("[data-run-status]").textContent = `${shown} of ${found.length} runs shown`;
  }

  runRow(run) {
    const name = runNames[run.run];
    const { link, id } = data.runs[name];
    const rule = run.rule ? ` (${run.rule})` : "";
    const from = run.epoch ? `${run.row} from teacher epoch ${run.epoch}${rule}` : run.row + rule;
    const toggle = element("button", { type: "button", "aria-expanded": "false" }, "settings");
    const row = element(
      "tr",
      {},
      element("th", { scope: "row" }, from),
      element("td", {}, run.recipe),
      element("td", {}, run.pair),
      element("td", { class: "number" }, String(run.seed)),
      element("td", { class: run.status === "finished" ? null : "warn" }, run.status),
      element("td", { class: "number" }, run.value === null ? "" : run.value),
      element("td", {}, link ? element("a", { href: link, title: name }, id) : id),
      element("td", {}, toggle),
    );
    let opened = null;
    toggle.addEventListener("click", () => {
      if (opened) opened.remove();
      opened = opened ? null : element("tr", {}, element("td", { colspan: 8 }, ...settings(name)));
      if (opened) row.after(opened);
      toggle.setAttribute("aria-expanded", String(Boolean(opened)));
    });
    return row;
  }
}

/** A run's settings with where each came from, its protocol, data, and where it was made. */
function settings(name) {
  const run = data.runs[name];
  const list = (pairs) =>
    element(
      "dl",
      { class: "settings" },
      ...pairs.flatMap(([key, value, source]) => [
        element("dt", {}, key),
        element("dd", {}, value, source ? element("span", { class: "faint" }, ` (${source})`) : null),
      ]),
    );
  const part = (title, pairs) => [element("h3", {}, title), list(pairs)];
  const seconds = run.seconds ? [["training", `${run.seconds.toFixed(1)} s`]] : [];
  const made = run.environment === undefined ? [] : [...seconds, ...data.shared[run.environment]];
  return [
    element("p", {}, element("code", {}, name)),
    ...part(`${run.kind === "teacher" ? "Recipe" : "Method"} ${run.objective}`, run.settings),
    ...part(`Protocol ${run.protocol[0]}`, data.shared[run.protocol[1]]),
    ...part(`Data ${run.data[0]}`, data.shared[run.data[1]]),
    ...(made.length ? part("Made with", made) : []),
  ];
}

for (const section of document.querySelectorAll("[data-study]")) new Study(section);
