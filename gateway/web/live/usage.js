// Requests and tokens of the last days, by day, model and key, if the gateway keeps a history.
import { get } from "../app/api.js";
import { h } from "../app/dom.js";
import { currentLanguage, formatNumber, t } from "../app/i18n.js";
import { duration, NONE } from "./format.js";

const DAYS = 7;
const EVERY_MS = 60_000;
const COUNTS = ["requests", "answered", "refused", "failed", "cancelled", "prompt_tokens", "completion_tokens"];
const TIMES = ["ttft_p50_ms", "ttft_p95_ms"];

export function usagePart() {
  const tables = h("div", { class: "live-usage" });
  const element = h("section", { class: "live-part", "aria-labelledby": "live-usage", hidden: true },
    h("h2", { id: "live-usage" }, t("live.usage", { n: DAYS })), tables);
  let nextAt = 0;

  return {
    element,
    async update(hasUsage) {
      element.hidden = !hasUsage || tables.childElementCount === 0;
      if (!hasUsage || performance.now() < nextAt) return;
      nextAt = performance.now() + EVERY_MS;
      try {
        const usage = await get(`/gateway/usage?days=${DAYS}`);
        tables.replaceChildren(...tablesOf(usage));
      } catch {
        tables.replaceChildren(); // the history cannot be read now
      }
      element.hidden = tables.childElementCount === 0;
    },
    reset() {
      nextAt = 0;
    },
  };
}

function tablesOf(usage) {
  if (usage.by_day.length === 0) return [];
  const found = [table("day", usage.by_day, day), table("model", usage.by_model, (name) => name || t("live.usage.unknown"))];
  if (usage.by_key.some((each) => each.name)) found.push(table("key", usage.by_key, (name) => name || NONE));
  return found;
}

function table(kind, rows, nameOf) {
  const head = [kind, ...COUNTS, ...TIMES].map((key) => h("th", { scope: "col" }, t(`live.column.${key}`)));
  return h("div", { class: "live-scroll", tabindex: "0", role: "region", "aria-label": t(`live.usage.${kind}`) },
    h("table", {},
      h("caption", { class: "visually-hidden" }, t(`live.usage.${kind}`)),
      h("thead", {}, h("tr", {}, ...head)),
      h("tbody", {}, ...rows.map((each) => row(nameOf(each.name), each)))));
}

function row(name, usage) {
  return h("tr", {},
    h("th", { scope: "row" }, name),
    ...COUNTS.map((key) => h("td", {}, formatNumber(usage[key]))),
    ...TIMES.map((key) => h("td", {}, duration(usage[key]))));
}

/** "2026-11-30" is a day in the gateway's time zone, so it gets none here. */
function day(name) {
  return new Intl.DateTimeFormat(currentLanguage(), { dateStyle: "medium", timeZone: "UTC" }).format(new Date(`${name}T00:00:00Z`));
}
