// A conversation is a tree of messages. An edit and a new answer add a version next to the old one; nothing is lost.
// The message `leaf` is the end of the path that is shown.

export const newId = () => Array.from(crypto.getRandomValues(new Uint8Array(12)), (byte) => byte.toString(16).padStart(2, "0")).join("");

/** A conversation without messages. `settings`: its system prompt and sampling. */
export function newConversation(model, settings) {
  const now = Date.now();
  return { id: newId(), title: "", created: now, updated: now, model, settings: { ...settings }, nodes: [], leaf: null };
}

/** Add a message after `parent` and show it. */
export function addNode(conversation, parent, fields) {
  const node = { id: newId(), parent, at: Date.now(), content: "", ...fields };
  conversation.nodes.push(node);
  conversation.leaf = node.id;
  conversation.updated = node.at;
  return node;
}

export function nodeOf(conversation, id) {
  return conversation.nodes.find((node) => node.id === id) ?? null;
}

/** The messages from the first one to `id`, in order. */
export function pathTo(conversation, id) {
  const path = [];
  const seen = new Set();
  for (let node = nodeOf(conversation, id); node && !seen.has(node.id); node = nodeOf(conversation, node.parent)) {
    seen.add(node.id);
    path.unshift(node);
  }
  return path;
}

/** The versions of a message, oldest first. */
export function versions(conversation, node) {
  return conversation.nodes.filter((each) => each.parent === node.parent && each.role === node.role);
}

/** Show another version of a message, with the newest messages after it. */
export function showVersion(conversation, node) {
  let last = node;
  for (let next = node; next; next = conversation.nodes.findLast((each) => each.parent === last.id)) last = next;
  conversation.leaf = last.id;
}

/** The title that the user gave, or the start of the first message. */
export function titleOf(conversation) {
  if (conversation.title) return conversation.title;
  const first = conversation.nodes.find((node) => node.role === "user");
  const text = first ? first.content.trim() || first.attachments?.[0]?.name || "" : "";
  return text.replace(/\s+/g, " ").slice(0, 80);
}
