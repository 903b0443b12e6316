/* The controls of a model's inputs, drawn from its declaration: slots of pictures, and texts.

A slot is a box with a picture; of several, one is chosen, which the collection, the clipboard and
a file dropped elsewhere fill. */

import { el, photo, shortened } from "./views.js";

const PICTURES = ["picture", "class map"];

/** Whether an input or an output is a picture. */
export function isPicture({ type }) {
  return PICTURES.includes(type);
}

/** A name of the declaration as a person reads it. */
export function readable(name) {
  const text = name.replaceAll("_", " ");
  return text.charAt(0).toUpperCase() + text.slice(1);
}

/** The slots of the inputs that are pictures; the first bears the ids of the page's one picture. */
export function slots(inputs) {
  const pictures = Object.entries(inputs).filter(([, input]) => isPicture(input));
  return pictures.map(([name, input], place) => slot(name, input, place === 0, pictures.length > 1));
}

function slot(name, { required }, first, several) {
  const file = el("input", { type: "file", accept: "image/*" });
  const button = el("label", { className: "button" }, "Choose a file", file);
  const remove = el("button", { type: "button", className: "remove", hidden: true }, "Remove");
  remove.ariaLabel = `Remove ${readable(name)}`;
  const caption = el("figcaption", {}, "No image");
  const figure = el("figure", {}, el("div", { className: "box" }), caption);
  if (first) [figure.id, file.id] = ["preview", "file"];
  const node = el("div", { className: "slot" }, figure, button, remove);
  Object.assign(node.dataset, { input: name, kept: required && !several });
  if (several) {
    const choice = el("input", { type: "radio", name: "slot", value: name, checked: first });
    node.prepend(el("label", { className: "choice" }, choice, ` ${readable(name)}`, optional(required)));
    node.role = "group";
    node.ariaLabel = readable(name);
  }
  return node;
}

/** Show an image, or none, in a slot, unless it is there already. */
export function fill(slot, image) {
  const { shown } = slot;
  if (image?.id === shown?.id && image?.file === shown?.file) return;
  slot.shown = image;
  const name = image?.id ?? (image?.file.name || "Pasted image");
  slot.querySelector(".box").replaceChildren(...(image ? [photo(image, 512, name)] : []));
  const caption = slot.querySelector("figcaption");
  caption.textContent = image ? shortened(name, 40) : "No image";
  caption.title = image ? name : "";
  slot.querySelector(".remove").hidden = !image || slot.dataset.kept === "true";
}

/** The fields of the other inputs: a text, one of some texts, or JSON. */
export function fields(inputs) {
  const others = Object.entries(inputs).filter(([, input]) => !isPicture(input));
  return others.map(([name, input]) => {
    if (input.choices) return el("label", {}, readable(name), optional(input.required), choice(name, input));
    const text = input.type === "text";
    const area = el("textarea", { name, rows: text ? 3 : 2, spellcheck: text });
    if (text) area.maxLength = input.longest;
    else area.placeholder = example(input);
    const hint = text ? [] : [el("small", {}, ` ${expected(input)}, as JSON`)];
    return el("label", {}, readable(name), ...hint, optional(input.required), area);
  });
}

function choice(name, { choices }) {
  const option = (value) => el("option", { value }, value);
  return el("select", { name }, option(""), ...choices.map(option));
}

function optional(required) {
  return required ? "" : el("small", {}, " (optional)");
}

function expected({ type, dim, skeleton }) {
  if (dim) return `${dim.toLocaleString("en")} numbers`;
  return skeleton ? `x, y and visibility of ${skeleton.join(", ")}` : type;
}

function example({ dim, skeleton }) {
  if (skeleton) return "[[12, 30, 1], …]";
  return dim > 4 ? "[0.5, -1, …]" : JSON.stringify(Array.from({ length: dim ?? 0 }, () => 0));
}
