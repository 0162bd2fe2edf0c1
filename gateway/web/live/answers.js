// The latency of the last answers: two plots, and the same values as a table.
import { h } from "../app/dom.js";
import { t } from "../app/i18n.js";
import { onTheme } from "../app/theme.js";
import { clock, duration, ending, isBad, NONE } from "./format.js";
import { latencyPlot } from "./plot.js";

const MOST = 200;
const ALL = "";

let redraw = () => {};
onTheme(() => redraw());

export function answersPart() {
  const select = h("select", { id: "live-model", on: { change: () => draw() } });
  const plots = [
    latencyPlot({ title: t("live.ttft"), value: "ttft_ms", limit: "limit_ttft_ms" }),
    latencyPlot({ title: t("live.per_token"), value: "per_token_ms", limit: "limit_per_token_ms" }),
  ];
  const empty = h("p", { class: "live-empty" }, t("live.empty"));
  const body = h("tbody", {});
  const table = h("details", { class: "live-table", on: { toggle: () => draw() } },
    h("summary", {}, t("live.table")),
    h("div", { class: "live-scroll", tabindex: "0", role: "region", "aria-label": t("live.table") },
      h("table", {},
        h("caption", { class: "visually-hidden" }, t("live.table.caption")),
        h("thead", {}, h("tr", {}, ...COLUMNS.map(([key]) => h("th", { scope: "col" }, t(`live.column.${key}`))))), body)));
  const element = h("section", { class: "live-part", "aria-labelledby": "live-answers" },
    h("div", { class: "live-row" },
      h("h2", { id: "live-answers" }, t("live.answers")),
      h("label", { class: "live-choice", for: "live-model" }, h("span", {}, t("live.of_model")), select)),
    empty,
    h("div", { class: "plots" }, ...plots.map((plot) => plot.element)),
    h("p", { class: "help" }, t("live.plot.help")),
    table);
  let answers = [];
  let models = "";

  function chosen() {
    return select.value === ALL ? answers : answers.filter((answer) => answer.model === select.value);
  }

  function draw() {
    const rows = chosen();
    empty.hidden = rows.length > 0;
    for (const plot of plots) plot.draw(rows);
    body.replaceChildren(...(table.open ? rows.toReversed().map(row) : []));
  }

  redraw = draw;
  return {
    element,
    last: () => answers.at(-1)?.seq ?? 0,
    update(live) {
      const names = live.models.map((model) => model.model);
      const key = JSON.stringify(names);
      if (key !== models) showModels(select, names);
      if (key === models && live.answers.length === 0) return;
      models = key;
      answers = [...answers, ...live.answers].slice(-MOST);
      draw();
    },
    reset() {
      answers = [];
      draw();
    },
    close() {
      redraw = () => {};
      for (const plot of plots) plot.close();
    },
  };
}

function showModels(select, names) {
  const before = select.value;
  const option = (value, text) => h("option", { value }, text);
  select.replaceChildren(option(ALL, t("live.all_models")), ...names.map((name) => option(name, name)));
  select.value = names.includes(before) ? before : ALL;
}

/** The columns of the table: name and text of a value. */
const COLUMNS = [
  ["time", (answer) => clock(answer.at)],
  ["model", (answer) => `${answer.model || answer.requested}${answer.target ? ` (${answer.target})` : ""}`],
  ["ttft", (answer) => duration(answer.ttft_ms)],
  ["limit_ttft", (answer) => duration(answer.limit_ttft_ms)],
  ["per_token", (answer) => duration(answer.per_token_ms)],
  ["limit_per_token", (answer) => duration(answer.limit_per_token_ms)],
  ["prompt", (answer) => t("live.prompt", { all: answer.prompt_tokens, cached: answer.cached_tokens })],
  ["tokens", (answer) => String(answer.completion_tokens)],
  ["ending", (answer) => (answer.is_slow ? t("live.slow", { ending: ending(answer) }) : ending(answer))],
  ["key", (answer) => answer.key || NONE],
];

function row(answer) {
  return h("tr", { class: isBad(answer) ? "bad" : null },
    ...COLUMNS.map(([key, text]) => h(key === "time" ? "th" : "td", key === "time" ? { scope: "row" } : {}, text(answer))));
}
