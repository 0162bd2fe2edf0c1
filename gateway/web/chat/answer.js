// One answer: the request, and the message that grows with the stream.
import { ApiError, asApiError, send } from "../app/api.js";
import { t } from "../app/i18n.js";
import { events } from "./sse.js";

/** An answer in progress. `onChange()` is called for each piece, `onEnd()` once. */
export class Answer {
  #stop = new AbortController();

  constructor(node, body, { onChange, onEnd }) {
    Object.assign(this, { node, onChange, onEnd });
    node.live = true;
    node.at = Date.now();
    this.finished = this.#run(body);
  }

  /** Close the connection; the gateway stops the model. */
  stop() {
    this.#stop.abort();
  }

  async #run(body) {
    const { node } = this;
    try {
      await this.#stream(body);
      if (!node.ending) throw new ApiError("network", t("error.lost"));
    } catch (error) {
      const { kind, message, status, code, retryAfterS } = asApiError(error);
      node.ending = kind === "stopped" ? "stopped" : "error";
      if (kind !== "stopped") node.error = { kind, message, status, code, retryAfterS, at: Date.now() };
    }
    node.at = Date.now();
    delete node.live;
    this.onEnd();
  }

  async #stream(body) {
    const { node } = this;
    const options = { method: "POST", signal: this.#stop.signal, headers: { "x-gateway-truncation": "auto" } };
    const started = performance.now();
    const reply = await send("/v1/chat/completions", { ...options, body });
    const dropped = /^messages=(\d+)/.exec(reply.headers.get("x-gateway-truncated") ?? "");
    if (dropped) node.dropped = Number(dropped[1]);
    node.limit = reply.headers.get("x-gateway-max-tokens") ?? "";
    node.expectedMs = Number(reply.headers.get("x-gateway-predicted-ttft-ms"));
    this.onChange();
    let first = null;
    for await (const data of events(reply)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new ApiError("http", chunk.error.message, { code: chunk.error.code, status: 200 });
      if (addChunk(node, chunk)) {
        const now = performance.now();
        first ??= now;
        node.ttftMs = first - started;
        node.streamMs = now - first;
      }
      this.onChange();
    }
  }
}

/** Add a chunk of the stream to the message. True if it has a part of the answer. */
function addChunk(node, chunk) {
  if (chunk.usage) node.usage = chunk.usage;
  if (chunk.model) node.model = chunk.model;
  const choice = chunk.choices?.[0];
  if (!choice) return false;
  if (choice.finish_reason) node.ending = choice.finish_reason;
  const { content, reasoning_content: reasoning, tool_calls: calls = [] } = choice.delta;
  if (content) node.content += content;
  if (reasoning) node.reasoning = (node.reasoning ?? "") + reasoning;
  for (const call of calls) addCall((node.calls ??= []), call);
  return Boolean(content || reasoning || calls.length);
}

function addCall(calls, piece) {
  const call = (calls[piece.index ?? 0] ??= { name: "", arguments: "" });
  if (piece.function?.name) call.name = piece.function.name;
  call.arguments += piece.function?.arguments ?? "";
}

/** The body of the request for an answer after the messages of `path`. Settings without a value are not sent. */
export function bodyOf(model, path, settings) {
  const { system, ...sampling } = settings;
  const messages = path.map((node) => ({ role: node.role, content: contentOf(node) }));
  if (system) messages.unshift({ role: "system", content: system });
  return { ...(model ? { model } : {}), messages, ...sampling, stream: true, stream_options: { include_usage: true } };
}

/** The text of a message, with its attachments. */
function contentOf(node) {
  const files = (node.attachments ?? []).map((file) => `File ${file.name}:\n\n${fenced(file.text)}`);
  return [...files, node.content].filter((part) => part).join("\n\n");
}

/** A text as a code block of Markdown, whatever the text has. */
function fenced(text) {
  const longest = Math.max(2, ...[...text.matchAll(/`+/g)].map((found) => found[0].length));
  const fence = "`".repeat(longest + 1);
  return `${fence}\n${text}\n${fence}`;
}
