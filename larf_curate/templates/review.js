"use strict";
// Texts of rows reach the page through textContent and value only, which never read them as HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const element = (id) => document.getElementById(id);
const answers = new Map(); // by index of the row; a comment alone has an empty decision
const drafts = new Map(); // corrected answers that were begun, by index of the row
let current = 0;
let editing = 0; // the row whose answer is in the editor
let unsaved = 0;
let stored = true; // whether the browser keeps the decisions

// One entry per row, so that two windows with this page do not overwrite each other's decisions.
const key = (index) => `larf-curate review ${data.digest} ${index}`;

function keep(name, value) {
  try {
    if (value === null) localStorage.removeItem(name);
    else localStorage.setItem(name, JSON.stringify(value));
  } catch {
    stored = false;
    tell("This browser does not keep decisions of this page. Save them before you close it.");
  }
}

function kept(name) {
  try {
    return JSON.parse(localStorage.getItem(name));
  } catch {
    return null;
  }
}

function restore(index) {
  const answer = kept(key(index));
  if (answer && ["", ...data.decisions].includes(answer.decision)) answers.set(index, answer);
  else answers.delete(index);
}

const isDecided = (index) => Boolean(answers.get(index)?.decision);

function tell(text) {
  element("notice").textContent = text;
  element("notice").hidden = !text;
}

// What changes the direction of text, or has no width or shape, is shown by its code point.
const hidden = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u200b\u200e\u200f\u202a-\u202e\u2060-\u2069\ud800-\udfff\ufeff\ufff9-\ufffb]/gu;
const visible = (text) => text.replace(hidden, (c) => `[U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}]`);

function append(parent, tag, text, className) {
  const child = document.createElement(tag);
  child.textContent = text;
  if (className) child.className = className;
  parent.append(child);
  return child;
}

function show(index) {
  closeEditor();
  current = Math.max(0, Math.min(index, data.rows.length - 1));
  const row = data.rows[current];
  const turns = element("turns");
  turns.replaceChildren();
  for (const [role, text] of row?.turns ?? []) {
    const turn = append(turns, "article", "", role === "assistant" ? "turn assistant" : "turn");
    append(turn, "h3", visible(role));
    append(turn, "p", visible(text)).dir = "auto";
  }
  element("evidence").textContent = visible(row?.evidence ?? "");
  scrollTo(0, 0);
  update();
}

function update() {
  const answer = answers.get(current);
  const total = data.rows.length;
  const decided = [...answers.values()].filter((one) => one.decision).length;
  element("position").textContent = total ? `Row ${current + 1} of ${total}` : "No row was flagged";
  element("progress").textContent = `${decided} of ${total} decided`;
  element("bar").value = decided;
  element("comment").value = answer?.comment ?? "";
  const corrected = answer?.corrected_answer ? `. Corrected answer: ${visible(answer.corrected_answer)}` : "";
  element("decided").textContent = answer?.decision ? `Your decision: ${answer.decision}${corrected}` : "Not decided yet";
  for (const button of document.querySelectorAll("[data-decision]")) {
    button.hidden = !button.dataset.decision && !answer?.decision;
    button.setAttribute("aria-pressed", String(button.dataset.decision === answer?.decision));
    button.disabled = !total || (button.dataset.decision === "edit" && data.rows[current].answer === null);
  }
}

function record(decision, corrected) {
  const comment = element("comment").value.trim();
  const earlier = answers.get(current)?.corrected_answer;
  if (earlier !== undefined && corrected === undefined) drafts.set(current, earlier);
  const answer = decision || comment ? { decision, time: new Date().toISOString() } : null;
  if (answer && corrected !== undefined) answer.corrected_answer = corrected;
  if (answer && comment) answer.comment = comment;
  if (answer) answers.set(current, answer);
  else answers.delete(current);
  unsaved += 1;
  keep(key(current), answer);
}

function decide(decision) {
  if (!data.rows.length) return;
  if (decision === "edit") {
    openEditor();
    return;
  }
  record(decision);
  if (decision) goOn();
  else update();
}

// The next row that is not decided, after this one or else from the beginning.
function goOn() {
  const total = data.rows.length;
  for (let step = 1; step <= total; step += 1) {
    const index = (current + step) % total;
    if (!isDecided(index)) {
      show(index);
      element("row").focus({ preventScroll: true });
      return;
    }
  }
  show(current);
  tell(`All ${total} rows are decided. Save the decisions (S), then give the file to larf-curate review import.`);
}

function openEditor() {
  const row = data.rows[current];
  if (row.answer === null) {
    tell("This row has no answer that could be corrected.");
    return;
  }
  element("corrected").value = drafts.get(current) ?? answers.get(current)?.corrected_answer ?? row.answer;
  editing = current;
  element("editor").hidden = false;
  element("decisions").hidden = true;
  element("corrected").focus();
}

function closeEditor() {
  if (!element("editor").hidden) drafts.set(editing, element("corrected").value);
  element("editor").hidden = true;
  element("decisions").hidden = false;
}

// As the import compares: it does not count an edit that leaves the answer as it was.
const compared = (text) => text.replaceAll("\r\n", "\n").trim();

function submitEdit() {
  const corrected = element("corrected").value;
  if (!corrected.trim()) {
    tell("An edit needs the corrected answer.");
    return;
  }
  if (compared(corrected) === compared(data.rows[current].answer)) {
    tell("This is the answer as it was. Correct it, or press Escape and decide otherwise.");
    return;
  }
  tell("");
  record("edit", corrected);
  closeEditor();
  drafts.delete(current);
  goOn();
}

function save() {
  const annotator = element("annotator").value.trim();
  const decisions = [...answers].sort(([a], [b]) => a - b).map(([index, answer]) => ({
    larf_row_id: data.rows[index].id,
    content_digest: data.rows[index].digest,
    ...answer,
  }));
  const file = { kind: data.kind, version: 1, selection: data.digest, annotator, decisions };
  const url = URL.createObjectURL(new Blob([JSON.stringify(file, null, 1)], { type: "application/json" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = `decisions${annotator ? `-${annotator.replace(/[^\p{L}\p{N}]+/gu, "-")}` : ""}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
  unsaved = 0;
  tell(`Saved ${decisions.length} rows as ${link.download}.`);
}

function onKey(event) {
  const inEditor = !element("editor").hidden;
  const typing = Boolean(event.target.closest?.("input, textarea"));
  if (event.key === "Escape") {
    if (inEditor) closeEditor();
    document.activeElement?.blur();
    return;
  }
  if (inEditor && event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    submitEdit();
    return;
  }
  if (typing && event.key === "Enter" && !inEditor) event.target.blur();
  if (typing || inEditor || event.ctrlKey || event.metaKey || event.altKey) return;
  const actions = {
    ArrowLeft: () => show(current - 1),
    ArrowRight: () => show(current + 1),
    s: save,
    c: () => element("comment").focus(),
    0: () => decide(""),
  };
  data.decisions.forEach((name, index) => { actions[index + 1] = () => decide(name); });
  let pressed = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  // The key by its place, for keyboards whose digits need Shift, or whose letters are not Latin.
  if (pressed.length === 1 && !(pressed in actions)) pressed = event.code.replace(/^(Digit|Numpad|Key)/, "").toLowerCase();
  const action = actions[pressed];
  if (action && !event.repeat) {
    event.preventDefault();
    tell("");
    action();
  } else if (action && event.key.startsWith("Arrow")) action();
}

document.addEventListener("keydown", onKey);
element("previous").addEventListener("click", () => show(current - 1));
element("next").addEventListener("click", () => show(current + 1));
element("save").addEventListener("click", save);
element("cancel").addEventListener("click", closeEditor);
element("editor").addEventListener("submit", (event) => { event.preventDefault(); submitEdit(); });
element("annotator").addEventListener("change", () => keep("larf-curate annotator", element("annotator").value));
element("comment").addEventListener("change", () => {
  if (!data.rows.length) return;
  const answer = answers.get(current);
  record(answer?.decision ?? "", answer?.corrected_answer);
});
for (const button of document.querySelectorAll("[data-decision]")) {
  button.addEventListener("click", () => { tell(""); decide(button.dataset.decision); });
}
addEventListener("storage", (event) => {
  const index = data.rows.findIndex((_, i) => key(i) === event.key);
  if (index < 0) return;
  restore(index);
  if (element("editor").hidden) update();
});
addEventListener("beforeunload", (event) => { if (unsaved && !stored) event.preventDefault(); });

element("annotator").value = kept("larf-curate annotator") ?? "";
data.rows.forEach((_, index) => restore(index));
const first = data.rows.findIndex((_, index) => !isDecided(index));
show(Math.max(first, 0));
