// The line of figures below an answer.
import { h } from "../app/dom.js";
import { formatNumber, t } from "../app/i18n.js";

export function statsLine(node) {
  if (node.live || !node.ttftMs) return null;
  const parts = [t("stats.ttft", { s: formatNumber(node.ttftMs / 1000, 2) })];
  const { usage } = node;
  const speed = usage && node.streamMs > 0 ? (usage.completion_tokens - 1) / (node.streamMs / 1000) : 0;
  if (speed > 0) parts.push(t("stats.speed", { speed: formatNumber(speed, 1) }));
  if (usage) {
    parts.push(t("stats.tokens", { n: usage.completion_tokens }));
    const cached = usage.prompt_tokens_details?.cached_tokens ?? 0;
    parts.push(t(cached ? "stats.prompt.cached" : "stats.prompt", { n: usage.prompt_tokens, cached }));
  }
  return h("span", { class: "stats" }, parts.map((part) => h("span", {}, part)));
}
