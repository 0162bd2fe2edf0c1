// What went wrong with an answer, as a sentence with the next step, and the buttons for that step.
import { h, icon, textButton } from "../app/dom.js";
import { t } from "../app/i18n.js";

/** Codes of the gateway that have their own sentence, `failure.CODE`. */
const CODES = [
  "context_length_exceeded",
  "deadline_exceeded",
  "engine_failed",
  "first_token_too_late",
  "invalid_api_key",
  "latency_breaker_open",
  "model_not_found",
  "model_not_ready",
  "permission_denied",
  "rate_limit_exceeded",
  "request_too_large",
  "upstream_failed",
];

/** The note below an answer that did not end well; null if it did. `actions`: again, goOn, changeLimit, enterKey, newChat. */
export function failureNote(node, actions) {
  if (node.live || node.role !== "assistant") return null;
  if (node.ending === "length") return cutNote(node, actions);
  if (node.ending === "stopped") return note("", t("failure.stopped"), "", buttons(node, actions));
  if (node.ending === "error") return errorNote(node, actions);
  if (!node.ending) return note("warning", t("failure.incomplete"), "", buttons(node, actions));
  return null;
}

function cutNote(node, actions) {
  const [, count, isDefault] = /^(\S+)( \(default\))?/.exec(node.limit ?? "") ?? [];
  const n = node.usage?.completion_tokens;
  const byDefault = isDefault && count !== "context";
  const text = t(byDefault ? "failure.cut.default" : n ? "failure.cut" : "failure.cut.plain", { n });
  const limit = textButton(t("failure.changeLimit"), actions.changeLimit);
  return note("warning", text, "", [continueButton(actions, true), limit]);
}

function errorNote(node, actions) {
  const { error } = node;
  const code = CODES.includes(error.code) ? error.code : "";
  const sentence = code ? t(`failure.${code}`) : error.kind === "network" ? t("failure.network") : t("failure.other");
  const isComplete = error.kind === "network" || code === "invalid_api_key"; // the rest is for programs
  const detail = isComplete ? "" : error.message;
  const more = buttons(node, actions);
  if (error.code === "invalid_api_key") more.unshift(textButton(t("failure.enterKey"), actions.enterKey));
  if (error.code === "context_length_exceeded") more.unshift(textButton(t("chat.new"), actions.newChat));
  return note("danger", sentence, detail, more, "alert");
}

/** Continue, if there is a part of an answer, and try again. A refusal with a time to wait counts down. */
function buttons(node, actions) {
  const again = textButton(t("failure.again"), actions.again, { "data-action": "again" });
  countDown(again, node.error);
  return node.content ? [continueButton(actions), again] : [again];
}

function continueButton(actions, isPrimary = false) {
  return textButton(t("failure.continue"), actions.goOn, { class: isPrimary ? "button primary" : "button" });
}

function countDown(button, error) {
  const until = (error?.at ?? 0) + 1000 * (error?.retryAfterS ?? 0);
  const show = () => {
    const left = Math.ceil((until - Date.now()) / 1000);
    button.textContent = left > 0 ? t("failure.again.in", { n: left }) : t("failure.again");
    if (left > 0) setTimeout(() => button.isConnected && show(), 1000);
  };
  if (until > Date.now()) setTimeout(show);
}

function note(kind, text, detail, more, role = null) {
  const lines = h("div", { class: "note-text" }, h("p", {}, text), detail ? h("p", { class: "note-detail" }, detail) : null);
  return h("div", { class: `note ${kind}`, role }, kind ? icon("warning") : null, lines, h("div", { class: "note-buttons" }, more));
}
