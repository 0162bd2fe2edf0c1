// Figures as text, in the language of the page.
import { currentLanguage, formatNumber, t } from "../app/i18n.js";

export const NONE = "–";

/** Milliseconds: "85 ms", "1.9 s". */
export function duration(ms) {
  if (ms === null || ms === undefined) return NONE;
  if (ms < 10) return `${formatNumber(ms, 1)} ms`;
  return ms < 1000 ? `${formatNumber(ms, 0)} ms` : seconds(ms / 1000);
}

export function seconds(s) {
  return `${formatNumber(s, s < 10 ? 1 : 0)} s`;
}

/** Megabytes: "255 MB", "3.4 GB". */
export function memory(mb) {
  if (mb === null || mb === undefined) return NONE;
  return mb < 1000 ? `${formatNumber(mb, 0)} MB` : `${formatNumber(mb / 1000, 1)} GB`;
}

export function percent(share) {
  return new Intl.NumberFormat(currentLanguage(), { style: "percent", maximumFractionDigits: 0 }).format(share);
}

const TIME = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };
const DATE = { dateStyle: "medium", timeStyle: "short", hourCycle: "h23" };

/** Seconds since 1970 as a time of the day. */
export const clock = (at) => new Intl.DateTimeFormat(currentLanguage(), TIME).format(1000 * at);
export const date = (at) => new Intl.DateTimeFormat(currentLanguage(), DATE).format(1000 * at);

/** The device time that an answer may use: "1.0 s + 20 ms for each prompt token + 200 ms for each further token". */
export function budget(limits) {
  const parts = [duration(limits.latency_ms)];
  if (limits.prompt_token_ms) parts.push(t("live.budget.prompt", { ms: duration(limits.prompt_token_ms) }));
  if (limits.token_ms) parts.push(t("live.budget.token", { ms: duration(limits.token_ms) }));
  return parts.join(" + ");
}

/** How the request ended. An error's code stays as it is, because the documentation and the log have it. */
export function ending(answer) {
  if (["stop", "length", "tool_calls", "cancelled"].includes(answer.ending)) return t(`live.ending.${answer.ending}`);
  return answer.ending;
}

export const isBad = (answer) => answer.is_slow || (answer.status !== 200 && answer.ending !== "cancelled");
