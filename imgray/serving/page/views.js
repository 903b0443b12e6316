/* What is shown of the collection: pictures and ranked images. Nothing here asks for more. */

import { blob, pictureOf } from "./api.js";

const THUMBNAIL = 256;

/** An element with properties and children. */
export function el(tag, properties = {}, ...children) {
  const node = Object.assign(document.createElement(tag), properties);
  node.append(...children);
  return node;
}

/** The address of a place on this page. */
export function linkTo(place) {
  const words = Object.entries(place).filter(([, value]) => value !== undefined);
  return `#${new URLSearchParams(words)}`;
}

/** An id that keeps its beginning and its end. */
export function shortened(id, length = 30) {
  const letters = [...id];
  if (letters.length <= length) return id;
  const head = Math.floor((length - 1) * 0.4);
  return `${letters.slice(0, head).join("")}…${letters.slice(head + 1 - length).join("")}`;
}

// --- Pictures ----------------------------------------------------------------------------------

const near = new IntersectionObserver(
  (entries) => {
    for (const { isIntersecting, target } of entries) {
      if (isIntersecting) {
        near.unobserve(target);
        load(target);
      }
    }
  },
  { rootMargin: "300px" },
);

async function load(img) {
  const path = pictureOf(img.dataset.id, img.dataset.size);
  try {
    fill(img, await blob(path, { priority: "low" }));
  } catch {
    img.classList.add("missing");
  }
}

function fill(img, data) {
  const url = URL.createObjectURL(data);
  const done = () => URL.revokeObjectURL(url);
  img.addEventListener("load", done, { once: true });
  img.addEventListener("error", () => { done(); img.classList.add("missing"); }, { once: true });
  img.src = url;
  return img;
}

/** A picture of an image, `{id}` of the collection (loaded once in sight) or `{file}`. */
export function photo(image, size, alt) {
  const img = el("img", { alt });
  if (image.file) return fill(img, image.file);
  Object.assign(img.dataset, { id: image.id, size });
  near.observe(img);
  return img;
}

/** A link to take an image of the collection; whoever makes it says where it leads. */
export function thumbnail(id) {
  const link = el("a", { title: id, ariaLabel: id });
  link.append(photo({ id }, THUMBNAIL, ""));
  return el("li", {}, link);
}

/** Ranked images; pictures that `before` already shows are moved, not loaded anew. */
export function ranking(answer, before) {
  const shown = [...before.querySelectorAll("img[data-id]")].map((img) => [img.dataset.id, img]);
  const kept = new Map(shown);
  const entry = ({ id, score, captions }) => {
    const box = el("div", { className: "box" }, kept.get(id) ?? photo({ id }, THUMBNAIL, ""));
    const caption = el("figcaption", {}, el("b", {}, score.toFixed(3)), " ", shortened(id));
    const said = captions.slice(0, 1).map((text) => el("span", { className: "caption", title: captions.join("\n") }, text));
    caption.append(...said);
    const link = el("a", { href: linkTo({ tab: "search", id }), title: id });
    link.append(el("figure", {}, box, caption));
    return el("li", {}, link);
  };
  const nodes = [el("ol", { className: "ranking" }, ...answer.results.map(entry))];
  if (!answer.results.length) nodes[0] = el("p", {}, "No image of the collection matches.");
  const { missing, total } = answer.shards;
  if (missing.length) {
    const text = `Incomplete: ${missing.length} of ${total} shards did not answer (${missing.join(", ")}).`;
    nodes.unshift(el("p", { className: "warning" }, text));
  }
  return nodes;
}
