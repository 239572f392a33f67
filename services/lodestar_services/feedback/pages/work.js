// Keys, the clock, and ranking by drag. Everything works without this script, more slowly.
"use strict";

const form = document.getElementById("work");
const say = (text) => { document.getElementById("said").textContent = text; };
const writing = (target) => target.matches("textarea, select, input:not([type=radio]):not([type=checkbox])");

function pick(name, value) {
  const input = form.querySelector(`input[name="${name}"][value="${value}"]`);
  if (!input) return false;
  input.checked = true;
  input.focus();
  return true;
}

function send(action) {
  form.requestSubmit(form.querySelector(`button[name="do"][value="${action}"]`));
}

// --- what the digits and letters mean, by form --------------------------------------------------------------------
const choices = [...form.querySelectorAll('input[name="choice"]')];
const strong = choices.length > 4;

function pairKey(key) {
  const meaning = strong ? { a: "a2", b: "b2", "=": "tie", x: "bad" } : { a: "a", b: "b", "=": "tie", x: "bad" };
  if (strong && /^[1-7]$/.test(key)) return pick("choice", choices[Number(key) - 1].value);
  return key in meaning && pick("choice", meaning[key]);
}

// A scale or a question is "the one at hand": the one that has the focus, else the first without an answer.
const questions = [...form.querySelectorAll("fieldset.scale, fieldset.mark")];
const answered = (question) => question.querySelector("input:checked") !== null;

function questionKey(key) {
  const focused = document.activeElement.closest("fieldset.scale, fieldset.mark");
  const open = questions.find((one) => !answered(one));
  let question = focused && !answered(focused) ? focused : open || focused || questions[0];
  if (/^[0-9]$/.test(key) && !question.matches(".scale")) question = questions.find((one) => one.matches(".scale"));
  const value = { y: "yes", n: "no" }[key] || key;
  const input = question && question.querySelector(`input[value="${value}"]`);
  if (!input) return false;
  input.checked = true;
  const next = questions.slice(questions.indexOf(question)).find((one) => !answered(one));
  (next ? next.querySelector("input") : input).focus();
  return true;
}

// --- ranking ------------------------------------------------------------------------------------------------------
const list = document.getElementById("ranking");
const rows = () => [...list.children];
const place = (row) => row.querySelector("select");

function renumber() {
  let at = 0;
  rows().forEach((row, i) => {
    if (i === 0 || !row.classList.contains("tied")) at = i + 1;
    if (i === 0) row.classList.remove("tied");
    place(row).value = String(at);
  });
}

function describe(row) {
  say(`${row.getAttribute("aria-label")}: place ${place(row).value}${row.classList.contains("tied") ? ", tied" : ""}`);
}

function move(row, by) {
  const all = rows(), to = all.indexOf(row) + by;
  if (to < 0 || to >= all.length) return;
  row.classList.remove("tied");
  const after = all[all.indexOf(row) + 1];
  if (after) after.classList.remove("tied");
  if (by < 0) list.insertBefore(row, all[to]); else list.insertBefore(row, all[to].nextSibling);
  renumber();
  row.focus();
  describe(row);
}

function rankingKey(event) {
  const row = document.activeElement.closest("#ranking > li");
  const key = event.key;
  const letter = key.length === 1 ? "abcdefghi".indexOf(key.toLowerCase()) : -1;
  if (letter >= 0) {
    const named = rows().find((one) => one.dataset.reply === String(letter));
    if (named) { named.focus(); return true; }
    return false;
  }
  if (!row || document.activeElement.matches("select")) return false;
  if (key === "ArrowUp" || key === "ArrowDown") { move(row, key === "ArrowUp" ? -1 : 1); return true; }
  if (/^[1-9]$/.test(key) && Number(key) <= rows().length) { move(row, Number(key) - 1 - rows().indexOf(row)); return true; }
  if (key === "=" && rows().indexOf(row) > 0) { row.classList.toggle("tied"); renumber(); describe(row); return true; }
  return false;
}

function startRanking() {
  list.classList.add("live");
  document.getElementById("ranking-hint").textContent =
    "Drag replies into order, or: a letter or Tab chooses a reply, ↑ and ↓ or a digit move it, = ties it with the one above.";
  const given = rows().map((row) => Number(place(row).value || 0));
  if (given.every(Boolean)) {
    rows().sort((a, b) => place(a).value - place(b).value).forEach((row, i, all) => {
      row.classList.toggle("tied", i > 0 && place(row).value === place(all[i - 1]).value);
      list.append(row);
    });
  }
  list.addEventListener("change", () => {
    rows().sort((a, b) => (place(a).value || 99) - (place(b).value || 99)).forEach((row, i, all) => {
      row.classList.toggle("tied", i > 0 && place(row).value !== "" && place(row).value === place(all[i - 1]).value);
      list.append(row);
    });
  });
  let held = null, moved = false;
  list.addEventListener("pointerdown", (event) => {
    if (event.target.closest("select, label") || event.button > 0) return;
    held = event.target.closest("#ranking > li"); moved = false;
  });
  document.addEventListener("pointermove", (event) => {
    if (!held) return;
    event.preventDefault();
    held.classList.add("moving");
    const other = rows().find((row) => row !== held && event.clientY > row.getBoundingClientRect().top && event.clientY < row.getBoundingClientRect().bottom);
    if (!other) return;
    const box = other.getBoundingClientRect(), before = event.clientY < box.top + box.height / 2;
    held.classList.remove("tied");
    list.insertBefore(held, before ? other : other.nextSibling);
    moved = true;
    renumber();
  });
  const drop = () => { if (!held) return; held.classList.remove("moving"); if (moved) describe(held); held = null; };
  document.addEventListener("pointerup", drop);
  document.addEventListener("pointercancel", drop);
  rows()[0].focus();
}

// --- all forms ----------------------------------------------------------------------------------------------------
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) {
    if (event.key === "Enter" && !event.altKey) { event.preventDefault(); send("send"); }
    return;
  }
  if (writing(event.target)) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  let done = false;
  if (key === "s") { done = true; send("skip"); }
  else if (key === "u") { done = true; document.getElementById("undo").requestSubmit(); }
  else if (key === "Enter" && !event.target.closest("button, a, summary")) { done = true; send("send"); }
  else if (list) done = rankingKey(event);
  else if (choices.length) done = pairKey(key);
  else if (questions.length) done = questionKey(key);
  if (done) event.preventDefault();
});

let sent = false;
form.addEventListener("submit", (event) => { if (sent) event.preventDefault(); sent = true; });
window.addEventListener("pageshow", () => { sent = false; });

const clock = document.getElementById("clock");
const began = Date.now() - 1000 * Number(clock.dataset.seconds);
setInterval(() => {
  const seconds = Math.max(0, Math.floor((Date.now() - began) / 1000));
  clock.textContent = `${String(Math.floor(seconds / 60)).padStart(2, "0")}:${String(seconds % 60).padStart(2, "0")}`;
}, 1000);

if (list) startRanking();
const wrong = document.querySelector(".problem[id]");
if (wrong) wrong.scrollIntoView({ block: "center" });
