/* Requests to the service: the API key, one new attempt after 503, errors in the server's words. */

const V1 = new URL("../v1/", import.meta.url);
const KEY = "imgray-api-key";
const LONGEST_WAIT = 30;

/** An answer that is an error, or none at all (status 0). */
export class Refused extends Error {
  constructor(status, message, field = null) {
    super(field ? `${field}: ${message}` : message);
    this.status = status;
  }
}

/** Send this key from now on, until the browser tab is closed. */
export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

/** The JSON of an answer. */
export async function json(path, options) {
  return (await request(path, options)).json();
}

/** The bytes of an answer. */
export async function blob(path, options) {
  return (await request(path, options)).blob();
}

/** What a route is asked about an image, `{id}` of the collection or `{file}`, a text, or both. */
export function about({ image, text }, options, signal) {
  const headers = { Accept: "application/json" };
  if (!image?.file) {
    headers["Content-Type"] = "application/json";
    return ["", { method: "POST", headers, signal, body: JSON.stringify({ id: image?.id, text, ...options }) }];
  }
  const words = Object.entries(options).filter(([, value]) => value !== undefined);
  const written = (value) => (typeof value === "object" ? JSON.stringify(value) : value);
  const query = new URLSearchParams(words.map(([name, value]) => [name, written(value)]));
  if (text !== undefined) return [`?${query}`, record({ image, text }, signal)];
  // Another type than an image's would make the server read the file as options.
  const type = image.file.type;
  headers["Content-Type"] = type.startsWith("image/") ? type : "application/octet-stream";
  return [`?${query}`, { method: "POST", headers, signal, body: image.file }];
}

/** What a model is asked about its inputs by name: `{id}`, `{file}` or a text each. */
export function record(values, signal) {
  const body = new FormData();
  for (const [name, value] of Object.entries(values)) {
    body.append(name, value.file ?? value.id ?? value);
  }
  return { method: "POST", headers: { Accept: "application/json" }, signal, body };
}

/** Where an image of the collection lies, at most `size` pixels long. */
export function pictureOf(id, size) {
  return `images/${id.split("/").map(encodeURIComponent).join("/")}?size=${size}`;
}

async function request(path, options = {}) {
  for (let attempt = 0; ; attempt += 1) {
    const headers = new Headers(options.headers);
    const key = sessionStorage.getItem(KEY);
    if (key) headers.set("Authorization", `Bearer ${key}`);
    const response = await fetch(new URL(path, V1), { ...options, headers }).catch((fault) => {
      if (fault.name === "AbortError") throw fault;
      throw new Refused(0, "no answer from the service");
    });
    if (response.ok) return response;
    if (response.status !== 503 || attempt > 0) throw await refusal(response);
    await pause(Number(response.headers.get("Retry-After")) || 1, options.signal);
  }
}

async function refusal(response) {
  const { error } = await response.json().catch(() => ({}));
  const message = error?.message ?? `${response.status} ${response.statusText}`;
  return new Refused(response.status, message, error?.field);
}

function pause(seconds, signal) {
  return new Promise((resolve, reject) => {
    setTimeout(resolve, 1000 * Math.min(seconds, LONGEST_WAIT));
    signal?.addEventListener("abort", () => reject(signal.reason), { once: true });
  });
}
