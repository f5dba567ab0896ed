"use strict";
// Search, sort, filters and thresholds of the table of rows. Texts of rows are only ever set as text, never as HTML.

const PAGE_ROWS = 25;
const data = JSON.parse(document.getElementById("data").textContent);
const table = data.table;
const scores = unpack(data.ranks);
const state = { threshold: null, sort: "score", falling: true, page: 0, shown: [] };
const element = (id) => document.getElementById(id);
const count = (number) => number.toLocaleString("en-US");

/** The packed scores, in falling order. */
function unpack(ranks) {
  const bytes = Uint8Array.from(atob(ranks.scores), (character) => character.charCodeAt(0));
  return ranks.bytes === 4 ? new Float32Array(bytes.buffer) : new Float64Array(bytes.buffer);
}

/** Number of packed scores at or above a threshold, by bisection. */
function reached(threshold) {
  let low = 0;
  let high = scores.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (scores[middle] >= threshold) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** Lowest and highest possible number of rows whose score is at or above a threshold. */
function flaggedRows(threshold) {
  const { exact, step } = data.ranks;
  const found = reached(threshold);
  if (found < exact || step === 1) return [found, found];
  const low = exact + (found - exact) * step;
  return [low, Math.min(low + step - 1, data.scored)];
}

/** Whether a row of the table would be flagged: rows without a score always are. */
function wouldFlag(row) {
  return table.score[row] === null || table.score[row] >= state.threshold;
}

/** Create an element with a text. */
function made(tag, text, name) {
  const created = document.createElement(tag);
  if (text !== undefined) created.textContent = text;
  if (name) created.className = name;
  return created;
}

function decimal(value) {
  return value === null ? "–" : value.toFixed(3).replace("-", "−");
}

/** Number of rows that the threshold would flag, in words. */
function describeThreshold() {
  const [low, high] = flaggedRows(state.threshold);
  const number = low === high ? count(low) : `${count(low)} to ${count(high)}`;
  const share = data.scored ? ((100 * (low + high)) / 2 / data.scored).toFixed(2) : "0";
  const rest = data.unscored ? ` Rows without a score, which are always flagged: ${count(data.unscored)}.` : "";
  element("would-flag").textContent = `${number} of ${count(data.scored)} rows (${share} %) would be flagged.${rest}`;
  element("change").textContent = data.flagged === null ? "" : compareWithSelection(low, high);
  element("command").textContent = `larf-curate select ${data.scoredFolder} --threshold ${state.threshold} -o selection`;
}

/** The difference to the selection, in words. */
function compareWithSelection(low, high) {
  const selected = `The selection flags ${count(data.flagged)} rows with a score`;
  if (low === data.flagged && high === low) return `${selected}, as many.`;
  if (low > data.flagged) return `${selected}: this threshold ${count(low - data.flagged)} more.`;
  return high < data.flagged ? `${selected}: this threshold ${count(data.flagged - high)} fewer.` : `${selected}.`;
}

function setThreshold(value) {
  if (!Number.isFinite(value)) return;
  state.threshold = value;
  element("threshold").value = String(value);
  element("slider").value = String(value);
  describeThreshold();
  update();
}

/** Whether a row has the searched words and the chosen values. */
function matches(row, words, filters) {
  if (!filters.every(([values, wanted]) => values[row] === wanted)) return false;
  const side = element("side").value;
  if (side === "flagged" && !wouldFlag(row)) return false;
  if (side === "kept" && wouldFlag(row)) return false;
  if (side === "changed" && wouldFlag(row) === Boolean(table.flagged[row] || table.score[row] === null)) return false;
  if (!words.length) return true;
  const text = `${table.request[row]} ${table.answer[row]} ${table.id[row] ?? ""}`.toLowerCase();
  return words.every((word) => text.includes(word));
}

function chosenFilters() {
  return [...document.querySelectorAll("select[data-filter]")]
    .filter((select) => select.value !== "")
    .map((select) => [table.labels[select.dataset.filter], Number(select.value)]);
}

/** Values by which the table is sorted. */
function sortValues() {
  const columns = { row: table.row, score: table.score, guard: table.guard };
  return columns[state.sort] ?? table.labels[state.sort];
}

function compare(values, first, second) {
  const [a, b] = [values[first], values[second]];
  if (a === b) return table.row[first] - table.row[second];
  if (a === null || b === null) return a === null ? 1 : -1;
  return (a < b ? -1 : 1) * (state.falling ? -1 : 1);
}

/** Filter, sort and show the table from its first page. */
function update() {
  const words = element("search").value.toLowerCase().split(/\s+/).filter(Boolean);
  const filters = chosenFilters();
  const values = sortValues();
  state.shown = table.row.map((_, row) => row).filter((row) => matches(row, words, filters));
  state.shown.sort((first, second) => compare(values, first, second));
  state.page = 0;
  showPage();
}

function showPage() {
  const first = state.page * PAGE_ROWS;
  const rows = state.shown.slice(first, first + PAGE_ROWS);
  element("table-rows").replaceChildren(...rows.map(tableRow));
  const last = first + rows.length;
  const found = state.shown.length === 1 ? "1 row" : `${count(state.shown.length)} rows`;
  element("found").textContent = rows.length ? `${found}: ${count(first + 1)} to ${count(last)} shown` : "No row matches.";
  element("before").disabled = state.page === 0;
  element("after").disabled = last >= state.shown.length;
}

/** A row of the table. */
function tableRow(row) {
  const created = made("tr");
  const flagged = wouldFlag(row);
  created.append(
    made("td", decimal(table.score[row]), "number"),
    made("td", flagged ? "flagged" : "kept", flagged ? "mark flagged" : "mark"),
    textCell(row),
    labelsCell(row),
    made("td", count(table.row[row]), "number"),
  );
  return created;
}

function textCell(row) {
  const cell = made("td", undefined, "texts");
  for (const [text, name] of [[table.request[row], "request"], [table.answer[row], "answer"]]) {
    if (!text) continue;
    const part = made("p", text, name);
    part.dir = "auto";
    cell.append(part);
  }
  if (table.id[row]) cell.append(made("bdi", table.id[row], "id"));
  return cell;
}

function labelsCell(row) {
  const cell = made("td", undefined, "labels");
  for (const [name, indices] of Object.entries(table.labels)) {
    if (indices[row] < 0) continue;
    const part = made("p");
    part.append(made("span", `${name}: `), made("bdi", table.values[name][indices[row]]));
    cell.append(part);
  }
  if (table.guard[row] !== null) cell.append(made("p", `guard: ${decimal(table.guard[row])}`));
  return cell;
}

/** A filter for each kind of label that has several values. */
function addFilters() {
  for (const [name, values] of Object.entries(table.values)) {
    if (values.length < 2) continue;
    const select = made("select");
    select.dataset.filter = name;
    select.append(new Option("all", ""), ...values.map((value, index) => new Option(value, String(index))));
    select.addEventListener("change", update);
    const label = made("label", name);
    label.append(select);
    element("filters").append(label);
  }
}

function addSorting() {
  for (const button of document.querySelectorAll("button[data-sort]")) {
    button.addEventListener("click", () => {
      state.falling = state.sort === button.dataset.sort ? !state.falling : button.dataset.sort === "score";
      state.sort = button.dataset.sort;
      for (const head of document.querySelectorAll("th[aria-sort]")) head.removeAttribute("aria-sort");
      button.parentElement.setAttribute("aria-sort", state.falling ? "descending" : "ascending");
      update();
    });
  }
}

/** Show the text of a point of a plot below it: tooltips of browsers come late, and never on a phone. */
function addHover() {
  for (const figure of document.querySelectorAll("figure")) {
    const shown = figure.querySelector(".hover");
    if (!shown) continue;
    const show = (event) => {
      const title = event.target.querySelector?.(":scope > title");
      if (title) shown.textContent = title.textContent;
    };
    figure.addEventListener("pointerover", show);
    figure.addEventListener("click", show);
  }
}

/** The score that the highest 5 % reach. */
function highestScores() {
  const { exact, step } = data.ranks;
  const rank = Math.max(Math.round(data.scored * 0.05) - 1, 0);
  return scores[rank < exact ? rank : exact + Math.floor((rank - exact) / step)];
}

/** Set the range of the slider, and the threshold to that of the selection or else to the highest 5 %. */
function addThreshold() {
  const slider = element("slider");
  slider.min = String(scores[scores.length - 1]);
  slider.max = String(scores[0]);
  slider.step = "any";
  slider.addEventListener("input", () => setThreshold(Number(slider.value)));
  element("threshold").addEventListener("change", (event) => setThreshold(Number(event.target.value)));
  setThreshold(data.threshold ?? highestScores());
}

function turnPage(step) {
  state.page += step;
  showPage();
}

function start() {
  addHover();
  if (!scores.length) return;
  element("explore").hidden = false;
  addFilters();
  addSorting();
  element("search").addEventListener("input", update);
  element("side").addEventListener("change", update);
  element("before").addEventListener("click", () => turnPage(-1));
  element("after").addEventListener("click", () => turnPage(1));
  addThreshold();
}

start();
