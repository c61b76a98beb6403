"use strict";
// Tables that are sorted by their headings and filtered by pair, recipe and method; without it they are plain.
const KEYS = ["pair", "recipe", "method"];
const grids = [...document.querySelectorAll("table.grid")];

function numberIn(cell) {
  const text = cell.firstChild?.textContent ?? ""; // footnotes and links to runs come after it
  const found = text.match(/[+-]?\d+(\.\d+)?(e[+-]?\d+)?/);
  return found && !text.startsWith("N.A.") ? Number(found[0]) : NaN;
}

function compare(a, b, column, sign) {
  if (column === 0) return sign * a.cells[0].textContent.localeCompare(b.cells[0].textContent, undefined, { numeric: true });
  const [x, y] = [numberIn(a.cells[column]), numberIn(b.cells[column])];
  if (isNaN(x) || isNaN(y)) return isNaN(x) - isNaN(y); // what has no number stays below
  return sign * (x - y);
}

function sortable(grid) {
  const heads = [...grid.tHead.rows[1].cells];
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") !== "descending" && column > 0 || head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...grid.tBodies[0].rows];
      grid.tBodies[0].append(...rows.sort((a, b) => compare(a, b, column, down ? -1 : 1)));
    });
  });
}

function filter(grid, wanted) {
  const rows = [...grid.tBodies[0].rows];
  const heads = [...grid.tHead.rows[1].cells];
  // What a cell is about stands at its row or at its column, whichever has it in common.
  const fits = (row, head) => KEYS.every((key) => !wanted[key] || (row.dataset[key] ?? head.dataset[key]) === wanted[key]);
  const count = heads.length;
  const shown = new Array(count).fill(false);
  shown[0] = true;
  for (const row of rows) {
    const own = heads.slice(1).map((head) => fits(row, head));
    row.hidden = !own.some(Boolean);
    own.forEach((fit, index) => { shown[index + 1] ||= fit; });
  }
  for (const row of [grid.tHead.rows[1], ...rows]) {
    [...row.cells].forEach((cell, column) => { cell.hidden = !shown[column]; });
  }
  let column = 1;
  for (const group of [...grid.tHead.rows[0].cells].slice(1)) {
    group.dataset.span ||= group.colSpan;
    const span = Number(group.dataset.span);
    const left = shown.slice(column, column + span).filter(Boolean).length;
    group.hidden = left === 0;
    group.colSpan = left || 1;
    column += span;
  }
  grid.closest(".scroll").hidden = !shown.slice(1).some(Boolean);
}

function controls(form) {
  for (const key of KEYS) {
    const told = [...document.querySelectorAll(`table.grid [data-${key}]`)];
    const values = [...new Set(told.map((element) => element.dataset[key]))].filter(Boolean);
    const label = document.createElement("label");
    const select = document.createElement("select");
    select.name = key;
    select.append(new Option("all", ""), ...values.map((value) => new Option(value, value)));
    label.append(key, select);
    form.append(label);
  }
  form.addEventListener("change", () => {
    const wanted = Object.fromEntries(new FormData(form));
    grids.forEach((grid) => filter(grid, wanted));
  });
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = grids.length === 0;
}

grids.forEach(sortable);
controls(document.querySelector("form.controls"));
