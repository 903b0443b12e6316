/* What a model has answered, as its outputs are declared: pictures, scores, texts and vectors. */

import { isPicture, readable } from "./inputs.js";
import { el, photo } from "./views.js";

const NUMBERS = 8; // of a vector that are shown

/** The nodes of an answer: what is painted beside the pictures of the record, then all else. */
export function answered({ inputs, outputs }, found, values) {
  const names = Object.keys(outputs).filter((name) => name in found);
  const painted = names.find((name) => isPicture(outputs[name]));
  const map = painted && found[painted].labels;
  const shares = map && names.find((name) => outputs[name].type === "labels" && tells(found[name], map));
  const rest = names.filter((name) => name !== painted && name !== shares);
  const nodes = rest.map((name) => said(name, outputs[name].type, found[name], rest.length > 1));
  if (!painted) return nodes;
  const pictures = Object.entries(values).filter(([name]) => isPicture(inputs[name]));
  const alone = pictures.length && Object.values(inputs).filter(isPicture).length === 1;
  nodes.unshift((alone && !map ? compared : pair)(painted, found[painted], pictures));
  if (map) nodes.splice(1, 0, legend(map, found[shares]));
  return nodes;
}

/** Whether labels are of the classes of a map, and so can stand in its legend. */
function tells(labels, map) {
  const names = new Set(labels.map(({ name }) => name));
  return names.size === map.length && map.every(({ name }) => names.has(name));
}

// --- What is painted ---------------------------------------------------------------------------

/** The pictures of a record beside what is painted of them; a map of classes lies over the first. */
function pair(name, painted, pictures) {
  const before = pictures.map(([one, image]) => {
    return figure(readable(one), painted, photo(image, 1024, readable(one)));
  });
  const over = painted.labels && pictures.length;
  const img = el("img", { alt: over ? "" : readable(name), src: painted.data });
  img.classList.toggle("map", Boolean(painted.labels));
  img.classList.toggle("mask", Boolean(over));
  const layers = over ? [photo(pictures[0][1], 1024, readable(pictures[0][0])), img] : [img];
  return el("div", { className: "pair" }, ...before, figure(readable(name), painted, ...layers));
}

/** A picture and, right of a line that a slider moves, what is painted of it. */
function compared(name, painted, [[one, image]]) {
  const titles = [one, name].map(readable);
  const before = photo(image, 1024, titles[0]);
  const after = el("img", { className: "after", alt: titles[1], src: painted.data });
  const line = el("input", { type: "range", min: 0, max: 100, value: 50, ariaLabel: titles.join(" and ") });
  const made = figure("", painted, before, after, line);
  const move = () => made.style.setProperty("--at", line.value / 100);
  line.addEventListener("input", move);
  move();
  made.className = "compared";
  made.querySelector("figcaption").replaceChildren(...titles.map((title) => el("span", {}, title)));
  return made;
}

function figure(title, { width, height }, ...layers) {
  const box = el("div", { className: "layers" }, ...layers);
  const made = el("figure", {}, box, el("figcaption", {}, title));
  made.style.setProperty("--ratio", width / height);
  return made;
}

/** The classes that occur in a map with their colours and, where they are known, their shares. */
function legend(map, shares) {
  const colours = new Map(map.map(({ name, color }) => [name, color]));
  const row = ({ name, score }) => {
    const swatch = el("i", { className: "swatch" });
    swatch.style.backgroundColor = colours.get(name);
    const share = score === undefined ? [] : [el("b", {}, `${(100 * score).toFixed(1)}\u00a0%`)];
    return el("li", {}, swatch, el("span", {}, name), ...share);
  };
  return el("ul", { className: "legend" }, ...(shares ?? map).map(row));
}

// --- What is said ------------------------------------------------------------------------------

const SAID = {
  labels: (_, labels) => bars(labels.map(({ name, score }) => [name, score])),
  scores: (name, found) => bars(typeof found === "number" ? [[readable(name), found]] : Object.entries(found)),
  text: (_, text) => el("p", { className: "text" }, text),
  vector: (_, numbers) => el("p", { className: "vector" }, vector(numbers)),
};

function said(name, type, found, several) {
  const show = SAID[type] ?? (() => el("pre", {}, JSON.stringify(found, null, 1)));
  const titled = several && typeof found !== "number";
  const title = titled ? [el("h2", {}, readable(name))] : [];
  return el("div", { className: "said" }, ...title, show(name, found));
}

/** Numbers by name, with bars where all of them lie between 0 and 1. */
function bars(pairs) {
  const shares = pairs.every(([, number]) => number >= 0 && number <= 1);
  const row = ([name, number]) => {
    const bar = el("div", { className: "bar", hidden: !shares });
    bar.style.setProperty("--share", number);
    return el("li", {}, el("span", {}, name), el("b", {}, shares ? number.toFixed(3) : number.toPrecision(4)), bar);
  };
  return el("ol", { className: "bars" }, ...pairs.map(row));
}

function vector(numbers) {
  const first = numbers.slice(0, NUMBERS).map((number) => number.toPrecision(3));
  const more = numbers.length > NUMBERS ? ", …" : "";
  return `${numbers.length.toLocaleString("en")} numbers: ${first.join(", ")}${more}`;
}
