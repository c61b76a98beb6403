"use strict";
// Draws a study's tables and its list of runs from the data that the page loads. Text is only ever set as text.

const runPage = (index) => `../runs/${encodeURIComponent(tables.runs[index])}.html`;

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

/** A place on the page with a table: what is chosen in it, and how it is drawn. */
class Shown {
  constructor(place, blocks) {
    this.place = place;
    this.blocks = blocks;
    this.block = blocks[0];
    this.sort = { column: null, descending: true };
    this.filters = { method: "", recipe: "", pair: "" };
    this.printed = true;
    this.listen();
    this.draw();
  }

  find(selector) {
    return this.place.querySelector(selector);
  }

  listen() {
    const buttons = this.place.querySelectorAll("[data-block]");
    for (const button of buttons) {
      button.addEventListener("click", () => {
        this.block = this.blocks[Number(button.dataset.block)];
        this.sort = { column: null, descending: true };
        for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
        this.draw();
      });
    }
    for (const input of this.place.querySelectorAll("[data-filter]")) {
      input.addEventListener("input", () => {
        const text = input.value.trim();
        this.filters[input.dataset.filter] = input.dataset.filter === "method" ? text.toLowerCase() : text;
        this.draw();
      });
    }
    this.find("[data-printed]")?.addEventListener("input", (event) => {
      this.printed = event.target.checked;
      this.draw();
    });
  }

  /** Numbers of the columns that the filters leave. */
  columns() {
    const { recipe, pair } = this.filters;
    const keeps = ([group, label]) => (!recipe || label === recipe) && (!pair || group === pair);
    return this.block.columns.map((column, i) => (keeps(column) ? i : -1)).filter((i) => i >= 0);
  }

  /** The rows that the filter leaves, in the chosen order; rows without a number come last. */
  rows() {
    const rows = this.block.rows.filter(([label]) => label.toLowerCase().includes(this.filters.method));
    const { column, descending } = this.sort;
    if (column === null) return rows;
    const value = ([label, , cells]) => (column === "label" ? label : (cells[column][1] ?? null));
    return rows.sort((a, b) => compare(value(a), value(b), descending ? -1 : 1));
  }

  draw() {
    const { block } = this;
    const columns = this.columns();
    const rows = this.rows();
    const groups = grouped(columns.map((i) => block.columns[i][0])).map(([group, span]) =>
      element("th", { class: "group", scope: "colgroup", colspan: span }, group),
    );
    const heads = columns.map((i) => this.sortable(i, block.columns[i][1], "number"));
    const body = rows.map(([label, kind, cells]) =>
      element(
        "tr",
        { class: kind },
        element("th", { scope: "row" }, label),
        ...columns.map((i) => this.cell(label, block.columns[i], cells[i])),
      ),
    );
    this.find("[data-table]").replaceChildren(
      element(
        "table",
        { class: block.pale ? "grid pale" : "grid" },
        element("caption", {}, block.title),
        element(
          "thead",
          {},
          element("tr", {}, element("td"), ...groups),
          element("tr", {}, this.sortable("label", block.corner, ""), ...heads),
        ),
        element("tbody", {}, ...body),
      ),
    );
    this.find("[data-notes]")?.replaceChildren(...block.notes.map((note) => element("p", {}, note)));
    this.find("[data-behind]").hidden = true;
    const [allRows, allColumns] = [block.rows.length, block.columns.length];
    const every = rows.length === allRows && columns.length === allColumns;
    const status = this.find("[data-status]");
    if (status) {
      status.textContent = every
        ? ""
        : `${rows.length} of ${allRows} rows, ${columns.length} of ${allColumns} columns`;
    }
  }

  /** A heading that sorts: best first, then worst first, then as the study lists the rows. */
  sortable(column, label, kind) {
    const bestFirst = column !== "label" && this.block.better !== "lower";
    const mine = this.sort.column === column;
    const state = mine ? (this.sort.descending ? "descending" : "ascending") : null;
    return heading(label, kind, state, column, () => {
      if (!mine) this.sort = { column, descending: bestFirst };
      else if (this.sort.descending === bestFirst) this.sort = { column, descending: !bestFirst };
      else this.sort = { column: null, descending: true };
      this.draw();
      this.find(`[data-sort="${column}"]`).focus();
    });
  }

  cell(row, [pair, recipe], [text, , runs = [], mark, note, beside]) {
    const about = [row, recipe, pair].filter(Boolean).join(", ");
    let shown = text;
    if (runs.length === 1) shown = element("a", { href: runPage(runs[0]), title: `The run: ${about}` }, text);
    if (runs.length > 1) {
      const onclick = (event) => this.behind(event.currentTarget, about, runs);
      shown = element("button", { type: "button", title: `The ${runs.length} runs: ${about}`, onclick }, text);
    }
    return element(
      "td",
      { class: `number ${mark || ""}`.trim() },
      shown,
      note ? element("sup", {}, note) : null,
      beside && this.printed ? element("span", { class: "beside" }, beside) : null,
    );
  }

  /** List the runs behind a cell below the table. */
  behind(button, about, runs) {
    const box = this.find("[data-behind]");
    const links = runs.map((i) => element("li", {}, element("a", { href: runPage(i) }, tables.runs[i])));
    const onclick = () => {
      box.hidden = true;
      button.focus();
    };
    box.replaceChildren(
      element("p", {}, `${runs.length} runs: ${about} `, element("button", { type: "button", onclick }, "Close")),
      element("ul", {}, ...links),
    );
    box.hidden = false;
    links[0].firstChild.focus();
  }
}

/** The list of a study's runs, loaded when it is opened. */
function listRuns(details) {
  const find = details.querySelector("[data-find]");
  const more = details.querySelector("[data-more]");
  const heads = ["method", "recipe", "networks", "seed", "status", details.dataset.main, "run"];
  let shown = SHOWN;
  let texts = [];
  const draw = () => {
    const words = find.value.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = [...texts.keys()].filter((i) => words.every((word) => texts[i].includes(word)));
    const rows = kept.slice(0, shown).map((i) => {
      const [row, recipe, pair, seed, status, value] = globalThis.runs[i];
      return element(
        "tr",
        {},
        element("th", { scope: "row" }, row),
        element("td", {}, recipe),
        element("td", {}, pair),
        element("td", { class: "number" }, String(seed)),
        element("td", { class: status === "finished" ? null : "warn" }, status),
        element("td", { class: "number" }, value ?? ""),
        element("td", {}, element("a", { href: runPage(i), title: tables.runs[i] }, tables.runs[i].split("-").pop())),
      );
    });
    details.querySelector("[data-runs]").replaceChildren(
      element(
        "table",
        {},
        element("thead", {}, element("tr", {}, ...heads.map((head) => element("th", { scope: "col" }, head)))),
        element("tbody", {}, ...rows),
      ),
    );
    more.hidden = kept.length <= shown;
    details.querySelector("[data-status]").textContent = `${rows.length} of ${kept.length} runs shown`;
  };
  find.addEventListener("input", () => {
    shown = SHOWN;
    draw();
  });
  more.addEventListener("click", () => {
    shown += 4 * SHOWN;
    draw();
  });
  details.addEventListener("toggle", () => {
    if (!details.open || texts.length) return;
    load(details.dataset.runsOf, () => {
      texts = globalThis.runs.map(([row, recipe, pair, seed, status], i) =>
        `${row} ${recipe} ${pair} seed ${seed} ${status} ${tables.runs[i]}`.toLowerCase(),
      );
      draw();
    });
  });
}

const grid = document.querySelector("[data-study]");
if (grid) new Shown(grid, tables.measures);
for (const place of document.querySelectorAll("[data-series]")) {
  new Shown(place, [tables.series[Number(place.dataset.series)]]);
}
document.querySelectorAll("[data-runs-of]").forEach(listRuns);
