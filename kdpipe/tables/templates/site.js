"use strict";
// What every page has: light or dark, tables that sort, filters, and data that are loaded when needed.

const root = document.documentElement;
const SHOWN = 100;

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

/** The choice between light and dark that the reader made before, if the browser keeps such things. */
const theme = {
  get() {
    try {
      return localStorage.getItem("kdpipe-theme");
    } catch {
      return null;
    }
  },
  set(value) {
    root.dataset.theme = value;
    try {
      localStorage.setItem("kdpipe-theme", value);
    } catch {
      return; // this page alone
    }
  },
};
if (theme.get()) root.dataset.theme = theme.get();

function themeButton(button) {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const dark = () => (root.dataset.theme || (system.matches ? "dark" : "light")) === "dark";
  const name = () => {
    button.textContent = dark() ? "Light" : "Dark";
    button.setAttribute("aria-label", dark() ? "Use light colours" : "Use dark colours");
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    theme.set(dark() ? "light" : "dark");
    name();
  });
  system.addEventListener("change", name);
  name();
}

/** Load a script of data once, then call back; pages on a disk cannot fetch, but scripts they can load. */
const loading = {};
function load(address, then) {
  loading[address] ||= new Promise((resolve) => {
    const tag = element("script", { src: address });
    tag.addEventListener("load", resolve);
    document.head.append(tag);
  });
  loading[address].then(then);
}

/** A heading that sorts; `state` is `ascending`, `descending` or null. */
function heading(label, className, state, key, onclick) {
  return element(
    "th",
    { scope: "col", class: className || null, "aria-sort": state },
    element("button", { type: "button", "data-sort": key, onclick }, label),
  );
}

/** Compares two values; what is empty comes last, whichever the direction. */
function compare(a, b, sign) {
  const empty = (value) => value === null || value === "";
  if (empty(a) || empty(b)) return empty(a) - empty(b);
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  return sign * String(a).localeCompare(String(b), "en", { numeric: true });
}

/** A table of the page becomes one that sorts: up, down, as it was. */
function sortable(table) {
  const body = table.tBodies[0];
  const rows = [...body.rows];
  const heads = [...table.tHead.rows[0].cells];
  let sorted = null;
  let direction = null;
  const value = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent.trim();
    return text !== "" && !Number.isNaN(Number(text)) ? Number(text) : text === "–" ? "" : text;
  };
  heads.forEach((head, column) => {
    const button = element("button", { type: "button" }, head.textContent);
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const first = head.classList.contains("number") ? "descending" : "ascending";
      const second = first === "descending" ? "ascending" : "descending";
      direction = sorted !== column ? first : direction === first ? second : null;
      sorted = direction ? column : null;
      const sign = direction === "descending" ? -1 : 1;
      const shown = [...rows];
      if (direction) shown.sort((a, b) => compare(value(a, column), value(b, column), sign));
      body.append(...shown);
      for (const other of heads) other.removeAttribute("aria-sort");
      if (direction) head.setAttribute("aria-sort", direction);
    });
  });
}

/** Filters over the rows of a table: words anywhere, and choices by the rows' data. */
function filters(box) {
  const rows = [...document.getElementById(box.dataset.filters).tBodies[0].rows];
  const words = box.querySelector("[data-words]");
  const choices = [...box.querySelectorAll("[data-key]")];
  for (const choice of choices) {
    const values = new Set(rows.map((row) => row.dataset[choice.dataset.key]));
    choice.append(...[...values].sort().map((value) => element("option", {}, value)));
    choice.parentElement.hidden = values.size < 2;
  }
  const draw = () => {
    const asked = words.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const row of rows) {
      const text = row.textContent.toLowerCase();
      const keeps =
        asked.every((word) => text.includes(word)) &&
        choices.every((choice) => !choice.value || row.dataset[choice.dataset.key] === choice.value);
      row.hidden = !keeps;
      shown += keeps;
    }
    box.querySelector("[data-status]").textContent = shown < rows.length ? `${shown} of ${rows.length} shown` : "";
  };
  box.addEventListener("input", draw);
  box.hidden = false;
}

/** The runs that an environment made, listed when asked for. */
function madeBy(details) {
  const [list, more] = [details.querySelector("ul"), details.querySelector("button")];
  const add = () => {
    const names = globalThis.made[Number(details.dataset.made)];
    const next = names.slice(list.children.length, list.children.length + SHOWN);
    list.append(
      ...next.map((name) => element("li", {}, element("a", { href: `runs/${encodeURIComponent(name)}.html` }, name))),
    );
    more.hidden = list.children.length >= names.length;
  };
  details.addEventListener("toggle", () => {
    if (details.open && !list.children.length) load("data/made.js", add);
  });
  more.addEventListener("click", add);
}

document.addEventListener("DOMContentLoaded", () => {
  themeButton(document.querySelector("[data-theme-button]"));
  document.querySelectorAll("table[data-sortable]").forEach(sortable);
  document.querySelectorAll("[data-filters]").forEach(filters);
  document.querySelectorAll("[data-made]").forEach(madeBy);
});
