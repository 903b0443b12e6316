/* The page: which image, which tab, and what happens when either changes.

Both are named in the address (#tab=search&id=...), so that Back, reloading and links work. Files
have a name there for as long as the page is open. */

import { Refused, about, json, useKey } from "./api.js";
import { bars, edged, el, linkTo, photo, ranking, segmented, shortened, thumbnail } from "./views.js";

const $ = (selector) => document.querySelector(selector);
const [panel, result, facts, options] = ["#panel", "#result", "#facts", "#options"].map($);
const tabs = [...document.querySelectorAll("[role=tab]")];
const PIECE = 12;

const files = new Map();
const state = { index: null, models: [], tab: "search", image: null, listed: 0 };
let work = new AbortController();

// --- Tasks: each gives the nodes to show and a line of facts -----------------------------------

const TASKS = {
  async search(signal) {
    const { top, prefix } = options.elements;
    const sliders = [...$("#weights").querySelectorAll("input")];
    const weights = Object.fromEntries(sliders.map((input) => [input.name, input.valueAsNumber]));
    const asked = { top: top.valueAsNumber, prefix: prefix.value, weights };
    const [query, request] = about(state.image, asked, signal);
    const answer = await json(`search${query}`, request);
    if (answer.version !== state.index.version) await readIndex();
    const { version, images } = state.index;
    const facts = [count(answer.results.length, "result"), `index ${version.slice(0, 12)}`];
    return [ranking(answer, result), [...facts, count(images, "image")]];
  },
  async classify(signal) {
    const [query, request] = about(state.image, { top: 10, ...model() }, signal);
    const answer = await json(`classify${query}`, request);
    return [bars(answer), named(answer)];
  },
  async segment(signal) {
    const answer = await painted("segment", signal);
    return [segmented(answer, state.image), named(answer)];
  },
  async edges(signal) {
    const answer = await painted("edges", signal);
    const share = `edges on ${(100 * answer.edge_share).toFixed(1)}\u00a0% of the pixels`;
    return [edged(answer, state.image), [...named(answer), share]];
  },
};

async function painted(route, signal) {
  const [query, request] = about(state.image, { picture: true, ...model() }, signal);
  return json(route + query, request);
}

/** The chosen model, where there is more than one. */
function model() {
  return $("#model").hidden ? {} : { model: options.elements.model.value };
}

function named({ model, fingerprint }) {
  return [`model ${model}`, `fingerprint ${fingerprint.slice(0, 12)}`];
}

function count(number, what) {
  return `${number.toLocaleString("en")} ${what}${number === 1 ? "" : "s"}`;
}

/** Run the tab's task on the image; what an earlier run still answers is dropped. */
async function run() {
  work.abort();
  work = new AbortController();
  const { signal } = work;
  if (!state.image) return blank();
  panel.ariaBusy = "true";
  try {
    const started = performance.now();
    const [nodes, words] = await TASKS[state.tab](signal);
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

function blank() {
  const last = state.index ? ", choose a file or take one from the collection." : " or choose a file.";
  const text = `Drop an image on the page, paste it${last}`;
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

// --- The place: tab and image, as the address names them ---------------------------------------

/** Show what the address names. */
function show() {
  const place = new URLSearchParams(location.hash.slice(1));
  const open = tabs.filter((tab) => tab.ariaDisabled !== "true").map(nameOf);
  const tab = open.includes(place.get("tab")) ? place.get("tab") : open[0];
  if (!tab) return report(new Refused(0, "this service has neither an index nor a model"));
  select(tab);
  quiet();
  const [id, file] = [place.get("id"), files.get(place.get("file"))];
  preview(id !== null ? { id } : file ? { file } : null);
  run();
}

function nameOf(tab) {
  return tab.id.replace("tab-", "");
}

function select(name) {
  if (name !== state.tab) clear();
  state.tab = name;
  for (const tab of tabs) {
    tab.ariaSelected = String(nameOf(tab) === name);
    tab.tabIndex = nameOf(tab) === name ? 0 : -1;
  }
  panel.setAttribute("aria-labelledby", `tab-${name}`);
  for (const part of options.querySelectorAll("[data-tabs]")) part.hidden = part.dataset.tabs !== name;
  const fit = state.models.filter(({ kind }) => kind === name);
  $("#model").hidden = fit.length < 2;
  const chosen = options.elements.model.value;
  const choice = ({ name }) => el("option", { value: name, selected: name === chosen }, name);
  options.elements.model.replaceChildren(...fit.map(choice));
  for (const link of $("#collection").querySelectorAll("a")) {
    link.href = linkTo({ tab: name, id: link.title });
  }
}

function preview(image) {
  if (image?.id === state.image?.id && image?.file === state.image?.file) return;
  state.image = image;
  const name = image?.id ?? (image?.file.name || "Pasted image");
  $("#preview .box").replaceChildren(...(image ? [photo(image, 512, name)] : []));
  $("#preview figcaption").textContent = image ? shortened(name, 40) : "No image";
  $("#preview figcaption").title = image ? name : "";
}

function take(file) {
  if (!file) return;
  const name = Date.now().toString(36);
  files.set(name, file);
  location.hash = linkTo({ tab: state.tab, file: name });
}

// --- What the service has ----------------------------------------------------------------------

async function start() {
  try {
    const [, { models }] = await Promise.all([readIndex(), json("models")]);
    state.models = models;
  } catch (fault) {
    return report(fault);
  }
  for (const tab of tabs) {
    const kind = nameOf(tab);
    const fit = kind === "search" ? state.index : state.models.some((model) => model.kind === kind);
    tab.ariaDisabled = String(!fit);
    tab.title = fit ? "" : `This service has no ${kind === "search" ? "index" : `model that can ${kind}`}`;
  }
  show();
  if (state.index && !state.listed) list();
}

async function readIndex() {
  const known = Object.keys(state.index?.features ?? {}).join();
  state.index = await json("index").catch((fault) => {
    if (fault.status === 404) return null;
    throw fault;
  });
  $("#collection").hidden = !state.index;
  const names = Object.keys(state.index?.features ?? {});
  if (names.join() !== known) $("#weights").replaceChildren(...names.map(slider));
}

function slider(name) {
  const input = el("input", { type: "range", name, min: 0, max: 2, step: 0.1, value: 1 });
  const value = el("output", {}, "1.0");
  input.addEventListener("input", () => { value.textContent = input.valueAsNumber.toFixed(1); });
  return el("label", { title: name }, el("span", {}, name), " ", value, input);
}

async function list() {
  try {
    const { ids, images } = await json(`images?offset=${state.listed}&limit=${PIECE}`);
    state.listed += ids.length;
    $("#collection ul").append(...ids.map((id) => thumbnail(id, state.tab)));
    $("#more").hidden = !ids.length || state.listed >= images;
  } catch (fault) {
    report(fault);
  }
}

// --- Events ------------------------------------------------------------------------------------

window.addEventListener("hashchange", () => {
  if (location.hash !== "#panel") show();
});

for (const tab of tabs) {
  tab.addEventListener("click", () => open(tab));
  tab.addEventListener("keydown", (event) => {
    const able = tabs.filter((one) => one.ariaDisabled !== "true");
    const last = able.length - 1;
    const at = able.indexOf(tab);
    const steps = { ArrowRight: at < last ? at + 1 : 0, ArrowLeft: at ? at - 1 : last, Home: 0, End: last };
    if (!(event.key in steps)) return;
    event.preventDefault();
    open(able[steps[event.key]]);
  });
}

function open(tab) {
  if (!tab || tab.ariaDisabled === "true") return;
  tab.focus();
  const place = new URLSearchParams(location.hash.slice(1));
  place.set("tab", nameOf(tab));
  history.replaceState(null, "", `#${place}`);
  show();
}

let waiting;
options.addEventListener("input", (event) => {
  if (event.target.id === "opacity") {
    result.style.setProperty("--opacity", event.target.value / 100);
    $("[for=opacity]").textContent = `${event.target.value} %`;
    return;
  }
  clearTimeout(waiting);
  waiting = setTimeout(run, 200);
});
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

$("#file").addEventListener("change", (event) => {
  take(event.target.files[0]);
  event.target.value = "";
});
document.addEventListener("paste", (event) => take(event.clipboardData.files[0]));
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("dropping");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("dropping");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  take(event.dataTransfer.files[0]);
});
$("#more").addEventListener("click", list);

start();
