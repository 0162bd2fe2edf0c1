// Tokens and requests of the last days, if the gateway keeps a history.
import { get } from "../app/api.js";
import { h } from "../app/dom.js";
import { currentLanguage, formatNumber, t } from "../app/i18n.js";

const DAYS = 7;
const EVERY_MS = 60_000;

export function usagePart() {
  const content = h("div", { class: "live-scroll", tabindex: "0", role: "region", "aria-labelledby": "live-usage" });
  const element = h("section", { class: "live-part", "aria-labelledby": "live-usage", hidden: true },
    h("h2", { id: "live-usage" }, t("live.usage", { n: DAYS })), content);
  let nextAt = 0;

  return {
    element,
    async update(hasUsage) {
      if (!hasUsage || performance.now() < nextAt) return;
      nextAt = performance.now() + EVERY_MS;
      try {
        show(await get(`/gateway/usage?days=${DAYS}`));
      } catch {
        element.hidden = true; // no history: it is off, or this gateway has none
      }
    },
    reset() {
      nextAt = 0;
    },
  };

  function show(usage) {
    const days = usage.days ?? [];
    element.hidden = days.length === 0;
    content.replaceChildren(table(days));
  }
}

/** The columns of the table: the field of a day, which is also the name of the column. */
const COLUMNS = ["requests", "errors", "prompt_tokens", "completion_tokens"];

function table(days) {
  const head = ["day", ...COLUMNS].map((key) => h("th", { scope: "col" }, t(`live.column.${key}`)));
  return h("table", {}, h("thead", {}, h("tr", {}, ...head)), h("tbody", {}, ...days.map(row)));
}

function row(day) {
  const name = new Intl.DateTimeFormat(currentLanguage(), { dateStyle: "medium", timeZone: "UTC" });
  const values = COLUMNS.map((key) => h("td", {}, formatNumber(day[key] ?? 0)));
  return h("tr", {}, h("th", { scope: "row" }, name.format(new Date(`${day.day}T00:00:00Z`))), ...values);
}
