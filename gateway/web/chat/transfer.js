// Conversations as a JSON file, to keep or to move to another browser.
import { conversationOf } from "./record.js";
import { newId, titleOf } from "./tree.js";

const FORMAT = "npu-gateway-conversations";

export function download(conversations) {
  const file = { format: FORMAT, version: 1, conversations };
  const url = URL.createObjectURL(new Blob([JSON.stringify(file, null, 1)], { type: "application/json" }));
  const link = document.createElement("a");
  link.href = url;
  link.download = `${fileName(conversations)}.json`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

function fileName(conversations) {
  const title = conversations.length === 1 ? titleOf(conversations[0]) : "";
  return title.replace(/[^\p{L}\p{N}]+/gu, "-").replace(/^-+|-+$/g, "").slice(0, 50) || "npu-gateway-conversations";
}

/** The conversations of a file's text. Each gets a new id, so nothing stored is changed. Empty: not such a file. */
export function imported(text) {
  let file;
  try {
    file = JSON.parse(text);
  } catch {
    return [];
  }
  if (file?.format !== FORMAT || !Array.isArray(file.conversations)) return [];
  const found = file.conversations.map(conversationOf).filter((conversation) => conversation?.nodes.length);
  return found.map((conversation) => ({ ...conversation, id: newId() }));
}
