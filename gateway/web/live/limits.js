// What each API key with limits uses now, if the configuration has limits.
import { h } from "../app/dom.js";
import { formatNumber, t } from "../app/i18n.js";

const LIMITS = [["requests", "requests_per_minute"], ["tokens", "tokens_per_minute"], ["running", "concurrent_requests"]];

export function limitsPart() {
  const rows = h("tbody", {});
  const head = ["key", ...LIMITS.map(([, limit]) => limit)].map((key) => h("th", { scope: "col" }, t(`live.column.${key}`)));
  const table = h("table", {},
    h("caption", { class: "visually-hidden" }, t("live.limits")),
    h("thead", {}, h("tr", {}, ...head)), rows);
  const element = h("section", { class: "live-part", "aria-labelledby": "live-limits", hidden: true },
    h("h2", { id: "live-limits" }, t("live.limits")),
    h("div", { class: "live-scroll", tabindex: "0", role: "region", "aria-label": t("live.limits") }, table));

  return {
    element,
    update(keys) {
      element.hidden = keys.length === 0;
      rows.replaceChildren(...keys.map(row));
    },
    reset() {},
  };
}

function row(use) {
  const isFull = LIMITS.some(([used, limit]) => use[limit] !== null && use[used] >= use[limit]);
  return h("tr", { class: isFull ? "bad" : "" },
    h("th", { scope: "row" }, use.key || t("live.limits.all")),
    ...LIMITS.map(([used, limit]) => h("td", {}, use[limit] === null ? formatNumber(use[used], 0) :
      t("live.limits.of", { used: formatNumber(use[used], 0), limit: formatNumber(use[limit], 0) }))));
}
