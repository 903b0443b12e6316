/* The page: which tab and model, what they are asked about, and what happens when it changes.

All of it is named in the address (#tab=search&id=...), so that Back, reloading and links work. Files
have a name there for as long as the page is open. */

import { Refused, about, json, record, useKey } from "./api.js";
import { fields, fill, isPicture, readable, slots } from "./inputs.js";
import { answered } from "./outputs.js";
import * as tabs from "./tabs.js";
import { el, linkTo, ranking, shortened, thumbnail } from "./views.js";

const $ = (selector) => document.querySelector(selector);
const [panel, result, facts, options] = ["#panel", "#result", "#facts", "#options"].map($);
const PIECE = 12;
const NO_WORDS = "The index of this service knows pictures alone. One of imgray index --joint is searched by words too.";

const files = new Map();
const state = { index: null, models: [], tab: "search", model: searchable(null), values: {}, listed: 0 };
let work = new AbortController();

// --- Questions: each gives the nodes to show and a line of facts --------------------------------

/** What a search is asked about, as a model would declare it. */
function searchable(index) {
  const inputs = { image: { type: "picture", required: !index?.joint } };
  if (index?.joint) inputs.text = { type: "text", required: false };
  return { inputs, outputs: {} };
}

async function search(signal) {
  const { top, prefix, fusion } = options.elements;
  const asked = { top: top.valueAsNumber, prefix: prefix.value, weights: numbers("#weights") };
  if (isBlend()) Object.assign(asked, { modalities: numbers("#blend"), fusion: fusion.value });
  const [query, request] = about(state.values, asked, signal);
  const answer = await json(`search${query}`, request);
  if (answer.version !== state.index.version) await readIndex();
  const { version, images } = state.index;
  const facts = [count(answer.results.length, "result"), `index ${version.slice(0, 12)}`];
  return [ranking(answer, result), [...facts, count(images, "image")]];
}

function numbers(place) {
  const sliders = [...$(place).querySelectorAll("[type=range]")];
  return Object.fromEntries(sliders.map((input) => [input.name, input.valueAsNumber]));
}

/** Whether a picture and words are searched with together. */
function isBlend() {
  return state.tab === "search" && "image" in state.values && "text" in state.values;
}

async function ask(signal) {
  const { model, values } = state;
  const longest = options.elements.longest.value;
  const asked = new URLSearchParams({ picture: true, ...(longest && { longest }) });
  const answer = await json(`models/${model.name}?${asked}`, record(values, signal));
  const facts = [`model ${answer.model}`, `fingerprint ${answer.fingerprint.slice(0, 12)}`];
  return [answered(model, answer.outputs, values), facts];
}

function count(number, what) {
  return `${number.toLocaleString("en")} ${what}${number === 1 ? "" : "s"}`;
}

/** Ask about the inputs; what an earlier question is still answered with is dropped. */
async function run() {
  work.abort();
  work = new AbortController();
  const { signal } = work;
  const missing = lacking();
  if (missing.length) return blank(missing);
  panel.ariaBusy = "true";
  try {
    const started = performance.now();
    const [nodes, words] = await (state.tab === "search" ? search : ask)(signal);
    signal.throwIfAborted();
    const taken = Math.round(performance.now() - started);
    quiet();
    result.replaceChildren(...nodes);
    facts.textContent = [...words, `${taken}\u00a0ms`].join(" · ");
  } catch (fault) {
    if (!signal.aborted) report(fault);
  } finally {
    if (!signal.aborted) panel.ariaBusy = "false";
  }
}

/** The required inputs that are not given; of a model that requires none, all if none is. */
function lacking() {
  const { model, values } = state;
  const required = Object.keys(model.inputs).filter((name) => model.inputs[name].required);
  if (!required.length && !Object.keys(values).length) return Object.keys(model.inputs);
  return required.filter((name) => !(name in values));
}

function blank(missing) {
  const last = state.index ? ", choose a file or take one from the collection." : " or choose a file.";
  const words = state.tab === "search" && state.index?.joint ? " Or search by words." : "";
  const picture = `Drop an image on the page, paste it${last}${words}`;
  const single = words || (Object.keys(state.model.inputs).length === 1 && slotNames().length);
  const text = single ? picture : `Still to be given: ${missing.map(readable).join(", ")}.`;
  quiet();
  result.replaceChildren(el("p", { className: "hint" }, text));
  facts.textContent = "";
  panel.ariaBusy = "false";
}

function quiet() {
  $("#alert").replaceChildren();
  $("#key").hidden = true;
}

function report(fault) {
  if (!(fault instanceof Refused)) console.error(fault);
  $("#alert").textContent = fault.message;
  $("#key").hidden = fault.status !== 401;
  if (fault.status === 401) $("#key input").focus();
  clear();
}

function clear() {
  result.replaceChildren();
  facts.textContent = "";
}

// --- The place: tab, model and inputs, as the address names them --------------------------------

function place() {
  return new URLSearchParams(location.hash.slice(1));
}

/** What the address calls an input; the first picture and what is called text are the same on all tabs. */
function key(kind, name) {
  return name === slotNames()[0] || name === kind ? kind : `${kind}.${name}`;
}

/** The words of the address with an input changed: to an image `{id}` or `{file}`, a text, or nothing. */
function changed(name, value) {
  const words = place();
  words.set("tab", state.tab);
  const kinds = typeof value === "string" ? { text: value } : { id: value?.id, file: value?.file };
  for (const [kind, word] of Object.entries(kinds)) {
    if (word) words.set(key(kind, name), word);
    else words.delete(key(kind, name));
  }
  return words;
}

/** Show what the address names. */
function show() {
  const words = place();
  const open = tabs.able();
  const tab = open.includes(words.get("tab")) ? words.get("tab") : open[0];
  if (!tab) return report(new Refused(0, "this service has neither an index nor a model"));
  select(tab, words.get("model"));
  quiet();
  readValues(words);
  choose(slotNames().find((name) => !(name in state.values)));
  $("#weights").hidden = tab === "search" && !("image" in state.values) && "text" in state.values;
  $("#blend").hidden = !isBlend();
  run();
}

function readValues(words) {
  const before = state.values.text;
  state.values = {};
  for (const [name, input] of Object.entries(state.model.inputs)) {
    const [id, file, text] = ["id", "file", "text"].map((kind) => words.get(key(kind, name)));
    if (!isPicture(input)) give(name, text?.trim() ? text : undefined);
    else if (id !== null) give(name, { id });
    else if (files.has(file)) give(name, { file: files.get(file) });
  }
  for (const node of $("#slots").children) fill(node, state.values[node.dataset.input] ?? null);
  if (state.values.text !== before) $("#wanted").value = state.values.text ?? "";
  for (const area of $("#words").elements) {
    if (area !== document.activeElement) area.value = state.values[area.name] ?? "";
  }
}

function give(name, value) {
  if (value === undefined) delete state.values[name];
  else state.values[name] = value;
}

function select(name, wanted) {
  if (name !== state.tab) clear();
  state.tab = name;
  tabs.mark(name);
  panel.setAttribute("aria-labelledby", `tab-${name}`);
  const fit = state.models.filter((model) => tabs.tabOf(model) === name);
  const model = name === "search" ? state.search : (fit.find((one) => one.name === wanted) ?? fit[0]);
  for (const part of ["#ranking", "#line"]) $(part).hidden = name !== "search";
  $("#model").hidden = fit.length < 2;
  const choice = ({ name }) => el("option", { value: name, selected: name === model.name }, name);
  $("#model select").replaceChildren(...fit.map(choice));
  if (model !== state.model) draw(model);
}

/** Draw the controls of a model's inputs. */
function draw(model) {
  clear();
  state.model = model;
  $("#slots").replaceChildren(...slots(model.inputs));
  $("#words").replaceChildren(...(model === state.search ? [] : fields(model.inputs)));
  $("#words").hidden = !$("#words").elements.length;
  $("#collection").hidden = !state.index || !slotNames().length;
  const maps = Object.values(model.outputs).some(({ type }) => type === "class map");
  const { longest } = options.elements;
  $("#longest").hidden = !model.longest;
  [longest.value, longest.max, longest.placeholder] = ["", model.longest ?? "", model.longest ?? ""];
  $("#mask").hidden = !maps || !slotNames().length;
}

function slotNames() {
  return Object.keys(state.model.inputs).filter((name) => isPicture(state.model.inputs[name]));
}

/** The slot that an image goes to which is not meant for another; the present one, if none is named. */
function choose(name) {
  const choices = [...$("#slots").querySelectorAll("[type=radio]")];
  for (const choice of choices) choice.checked = name ? choice.value === name : choice.checked;
  const to = choices.length ? ` for ${readable(chosen())}` : "";
  $("#collection h2").textContent = `Collection${to}`;
  for (const link of $("#collection").querySelectorAll("a")) link.href = `#${changed(chosen(), { id: link.title })}`;
}

function chosen() {
  return $("#slots [type=radio]:checked")?.value ?? slotNames()[0];
}

function take(file, name = chosen()) {
  if (!file || !name) return;
  const word = `${Date.now().toString(36)}${files.size}`;
  files.set(word, file);
  location.hash = changed(name, { file: word });
}

// --- What the service has ----------------------------------------------------------------------

async function start() {
  try {
    const [, { models }] = await Promise.all([readIndex(), json("models")]);
    state.models = models;
  } catch (fault) {
    return report(fault);
  }
  tabs.offer(state.models, Boolean(state.index));
  draw(state.model);
  show();
  if (state.index && !state.listed) list();
}

async function readIndex() {
  const known = Object.keys(state.index?.features ?? {}).join();
  const words = Boolean(state.index?.joint);
  state.index = await json("index").catch((fault) => {
    if (fault.status === 404) return null;
    throw fault;
  });
  $("#collection").hidden = !state.index || !slotNames().length;
  const names = Object.keys(state.index?.features ?? {});
  if (names.join() !== known) $("#weights").replaceChildren(...names.map(slider));
  if (!state.search || Boolean(state.index?.joint) !== words) offerWords();
}

/** Let words be searched with, or say why not. */
function offerWords() {
  state.search = searchable(state.index);
  const able = Boolean(state.index?.joint);
  for (const control of $("#line").elements) control.disabled = !able;
  $("#no-words").textContent = able ? "" : NO_WORDS;
}

function slider(name) {
  const input = el("input", { type: "range", id: `weight-${name}`, name, min: 0, max: 2, step: 0.1, value: 1 });
  const value = el("output", {}, "1.0");
  return el("label", { title: name, htmlFor: input.id }, el("span", {}, shortened(name, 20)), " ", value, input);
}

async function list() {
  try {
    const { ids, images } = await json(`images?offset=${state.listed}&limit=${PIECE}`);
    state.listed += ids.length;
    $("#collection ul").append(...ids.map(thumbnail));
    choose();
    $("#more").hidden = !ids.length || state.listed >= images;
  } catch (fault) {
    report(fault);
  }
}

// --- Events ------------------------------------------------------------------------------------

window.addEventListener("hashchange", () => {
  if (location.hash !== "#panel") show();
});

tabs.follow((name) => {
  const words = place();
  words.set("tab", name);
  words.delete("model");
  moved(words);
});

/** Show another place without a step in the history. */
function moved(words) {
  history.replaceState(null, "", `#${words}`);
  show();
}

let waiting;
options.addEventListener("input", (event) => {
  if (event.target.id === "opacity") {
    result.style.setProperty("--opacity", event.target.value / 100);
    $("[for=opacity]").textContent = `${event.target.value} %`;
    return;
  }
  const shown = event.target.labels[0].querySelector("output");
  if (shown) shown.textContent = event.target.valueAsNumber.toFixed(1);
  later(run, 200);
});
$("#model").addEventListener("change", ({ target }) => {
  const words = place();
  words.set("tab", state.tab);
  words.set("model", target.value);
  moved(words);
});
$("#words").addEventListener("input", ({ target }) => {
  history.replaceState(null, "", `#${changed(target.name, target.value)}`);
  choose();
  later(show, 400);
});
$("#words").addEventListener("submit", (event) => event.preventDefault());
$("#line").addEventListener("submit", (event) => {
  event.preventDefault();
  const place = `#${changed("text", $("#wanted").value.trim())}`;
  if (place === location.hash) run();
  else location.hash = place;
});
$("#wanted").addEventListener("input", ({ target }) => {
  if (!target.value) target.form.requestSubmit();
});

function later(act, milliseconds) {
  clearTimeout(waiting);
  waiting = setTimeout(act, milliseconds);
}

options.addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});

$("#key").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey($("#key input").value);
  $("#key").reset();
  start();
});

// A result that is searched on with goes away: the focus moves to what takes its place.
result.addEventListener("click", (event) => {
  if (!event.target.closest("a") || event.ctrlKey || event.metaKey || event.shiftKey) return;
  panel.focus({ preventScroll: true });
  window.scrollTo(0, 0);
});
$(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  panel.focus();
});

$("#slots").addEventListener("change", ({ target }) => {
  if (target.type === "radio") return choose();
  take(target.files[0], slotOf(target));
  target.value = "";
});
$("#slots").addEventListener("click", ({ target }) => {
  if (target.matches(".remove")) location.hash = changed(slotOf(target));
});

function slotOf(node) {
  return node.closest?.(".slot")?.dataset.input;
}

document.addEventListener("paste", (event) => take(event.clipboardData.files[0]));
document.addEventListener("dragover", (event) => {
  if (!event.dataTransfer.types.includes("Files")) return;
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  document.body.classList.remove("dropping");
  if (!event.dataTransfer.files.length) return;
  event.preventDefault();
  take(event.dataTransfer.files[0], slotOf(event.target));
});
$("#more").addEventListener("click", list);

start();
