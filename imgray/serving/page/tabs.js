/* The tabs: search, those of the kinds of models that every page has, and those that this service adds. */

import { readable } from "./inputs.js";
import { el } from "./views.js";

const list = document.querySelector("[role=tablist]");
const OTHER = "models"; // the tab of models without a kind

/** The tab of a model. */
export function tabOf({ kind }) {
  return kind && kind !== "search" ? kind : OTHER;
}

/** Names of the tabs that the service can fill. */
export function able() {
  return tabs().filter((tab) => tab.ariaDisabled !== "true").map(nameOf);
}

/** Add the tabs that some models need, and turn off those that neither they nor an index fill. */
export function offer(models, indexed) {
  const kinds = new Set(models.map(tabOf));
  const known = new Set(tabs().map(nameOf));
  const added = [...kinds].filter((kind) => !known.has(kind));
  added.sort((one, other) => (one === OTHER) - (other === OTHER));
  for (const kind of added) {
    const tab = el("button", { type: "button", role: "tab", id: `tab-${kind}` }, readable(kind));
    tab.setAttribute("aria-controls", "panel");
    list.append(tab);
  }
  for (const tab of tabs()) {
    const name = nameOf(tab);
    const fit = name === "search" ? indexed : kinds.has(name);
    tab.ariaDisabled = String(!fit);
    tab.title = fit ? "" : `This service has no ${name === "search" ? "index" : `model that can ${name}`}`;
  }
}

/** Show a tab as the open one. */
export function mark(name) {
  for (const tab of tabs()) {
    tab.ariaSelected = String(nameOf(tab) === name);
    tab.tabIndex = nameOf(tab) === name ? 0 : -1;
  }
}

/** Call `open` with the name of a tab that is clicked on, or moved to with the keys. */
export function follow(open) {
  const to = (name) => {
    if (!able().includes(name)) return;
    document.getElementById(`tab-${name}`).focus();
    open(name);
  };
  list.addEventListener("click", ({ target }) => {
    if (target.role === "tab") to(nameOf(target));
  });
  list.addEventListener("keydown", (event) => {
    const names = able();
    const last = names.length - 1;
    const at = names.indexOf(nameOf(event.target));
    const steps = { ArrowRight: at < last ? at + 1 : 0, ArrowLeft: at ? at - 1 : last, Home: 0, End: last };
    if (!(event.key in steps)) return;
    event.preventDefault();
    to(names[steps[event.key]]);
  });
}

function tabs() {
  return [...list.children];
}

function nameOf(tab) {
  return tab.id.replace("tab-", "");
}
