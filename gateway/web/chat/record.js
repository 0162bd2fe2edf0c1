// Checks a stored or imported conversation. What is damaged is left out, so that the rest can be shown.
import { newId } from "./tree.js";

const text = (value) => (typeof value === "string" ? value : "");
const number = (value, otherwise) => (Number.isFinite(value) ? value : otherwise);
const list = (value) => (Array.isArray(value) ? value.filter((each) => each && typeof each === "object") : []);
const object = (value) => (value && typeof value === "object" && !Array.isArray(value) ? value : {});

/** The conversation in a value of any kind; null if it is none. */
export function conversationOf(value) {
  if (!value || typeof value !== "object" || !Array.isArray(value.nodes)) return null;
  const nodes = [];
  const ids = new Set();
  for (const node of list(value.nodes).map(nodeOf)) {
    if (node === null || ids.has(node.id)) continue;
    if (!ids.has(node.parent)) node.parent = null; // a message comes after its parent, so there are no circles
    ids.add(node.id);
    nodes.push(node);
  }
  const now = Date.now();
  return {
    id: text(value.id) || newId(),
    title: text(value.title),
    created: number(value.created, now),
    updated: number(value.updated, now),
    model: text(value.model),
    settings: settingsOf(value.settings),
    nodes,
    leaf: ids.has(value.leaf) ? value.leaf : (nodes.at(-1)?.id ?? null),
  };
}

function nodeOf(value) {
  if (!text(value.id) || !["user", "assistant"].includes(value.role)) return null;
  const { live, ...stored } = value; // `live` is of the tab that writes it
  return {
    ...stored,
    parent: text(value.parent) || null,
    at: number(value.at, Date.now()),
    content: text(value.content),
    reasoning: text(value.reasoning),
    attachments: list(value.attachments).map((each) => ({ name: text(each.name), text: text(each.text) })),
    calls: list(value.calls).map((each) => ({ name: text(each.name), arguments: text(each.arguments) })).filter((each) => each.name),
    model: text(value.model),
    ending: text(value.ending),
    error: value.error || value.ending === "error" ? object(value.error) : null,
    usage: value.usage ? object(value.usage) : null,
  };
}

/** Settings with valid values. A setting without a value is the gateway's default. */
export function settingsOf(value) {
  const given = object(value);
  const settings = {};
  if (text(given.system)) settings.system = given.system;
  for (const name of ["temperature", "top_p", "max_tokens", "seed"]) {
    if (Number.isFinite(given[name])) settings[name] = given[name];
  }
  return settings;
}
