// Conversations in the browser's database (IndexedDB), shared by all tabs. Without one they live until the tab closes.
import { conversationOf } from "./record.js";
import { titleOf } from "./tree.js";

const NAME = "npu-gateway";
const memory = new Map();
const listeners = new Set();
const channel = "BroadcastChannel" in window ? new BroadcastChannel(NAME) : null;
let opened = null;

channel?.addEventListener("message", (event) => {
  for (const listener of listeners) listener(event.data);
});

/** Call `listener` with `{id, deleted}` when another tab has changed a conversation. */
export function onOtherTab(listener) {
  listeners.add(listener);
}

/** A promise of false if conversations are lost when the tab closes. */
export async function isKept() {
  return (await database()) !== null;
}

/** `{id, title, updated}` of each conversation, newest first. */
export async function list() {
  const db = await database();
  const rows = db ? await done(db.transaction("titles").objectStore("titles").getAll()) : [];
  const entries = [...rows, ...[...memory.values()].map(entryOf)];
  return entries.filter((row) => typeof row.id === "string").sort((a, b) => b.updated - a.updated);
}

/** The conversation, or null. */
export async function load(id) {
  if (memory.has(id)) return conversationOf(structuredClone(memory.get(id)));
  const db = await database();
  const value = db ? await done(db.transaction("conversations").objectStore("conversations").get(id)) : null;
  return conversationOf(value);
}

/**
 * Store a conversation. Messages that another tab has added since are added to it. `isNew`: it was never stored; else it is
 * not stored if another tab has deleted it. Returns "saved", "deleted" or "full"; a full conversation stays in this tab.
 */
export async function save(conversation, isNew) {
  const db = await database();
  try {
    const result = db ? await put(db, conversation, isNew) : keep(conversation, "saved");
    if (result === "saved") channel?.postMessage({ id: conversation.id, deleted: false });
    return result;
  } catch {
    return keep(conversation, "full");
  }
}

export async function remove(id) {
  memory.delete(id);
  const db = await database();
  if (db) {
    const transaction = db.transaction(["conversations", "titles"], "readwrite");
    transaction.objectStore("conversations").delete(id);
    transaction.objectStore("titles").delete(id);
    await finished(transaction);
  }
  channel?.postMessage({ id, deleted: true });
}

function keep(conversation, result) {
  memory.set(conversation.id, structuredClone(conversation));
  return result;
}

async function put(db, conversation, isNew) {
  const transaction = db.transaction(["conversations", "titles"], "readwrite");
  const conversations = transaction.objectStore("conversations");
  const stored = conversationOf(await done(conversations.get(conversation.id)));
  if (!stored && !isNew && !memory.has(conversation.id)) return "deleted";
  if (stored) merge(conversation, stored);
  conversations.put(conversation);
  transaction.objectStore("titles").put(entryOf(conversation));
  await finished(transaction);
  memory.delete(conversation.id);
  return "saved";
}

/** Add the messages of `stored` that `conversation` does not have, or that have changed since. */
function merge(conversation, stored) {
  const own = new Map(conversation.nodes.map((node) => [node.id, node]));
  for (const node of stored.nodes) {
    const mine = own.get(node.id);
    if (!mine) conversation.nodes.push(node);
    else if (node.at > mine.at && !mine.live) Object.assign(mine, node);
  }
}

function entryOf(conversation) {
  return { id: conversation.id, title: titleOf(conversation), updated: conversation.updated };
}

function database() {
  opened ??= open().catch(() => null);
  return opened;
}

function open() {
  return new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => {
      request.result.createObjectStore("conversations", { keyPath: "id" });
      request.result.createObjectStore("titles", { keyPath: "id" });
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
    request.onblocked = () => reject(new Error("blocked"));
  });
}

function done(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function finished(transaction) {
  return new Promise((resolve, reject) => {
    transaction.oncomplete = () => resolve();
    transaction.onerror = () => reject(transaction.error);
    transaction.onabort = () => reject(transaction.error);
  });
}
