// The last lines of the gateway's log, with a filter and a pause.
import { h, textButton } from "../app/dom.js";
import { t } from "../app/i18n.js";
import { clock } from "./format.js";

const MOST = 500;
const LEVELS = { all: ["DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"], warnings: ["WARNING", "ERROR", "CRITICAL"], errors: ["ERROR", "CRITICAL"] };

export function logPart() {
  const list = h("div", { class: "log", role: "log", "aria-live": "off", tabindex: "0", "aria-labelledby": "live-log" });
  const level = h("select", { id: "live-level", on: { change: () => draw() } },
    ...Object.keys(LEVELS).map((name) => h("option", { value: name }, t(`live.log.${name}`))));
  const pause = textButton(t("live.log.pause"), () => setPaused(!isPaused), { class: "button small", "aria-pressed": "false" });
  const empty = h("p", { class: "live-empty" }, t("live.log.empty"));
  const element = h("section", { class: "live-part", "aria-labelledby": "live-log" },
    h("div", { class: "live-row" },
      h("h2", { id: "live-log" }, t("live.log")),
      h("label", { class: "live-choice", for: "live-level" }, h("span", {}, t("live.log.level")), level), pause),
    empty, list);
  let lines = [];
  let isPaused = false;
  let heldBack = 0;

  function setPaused(value) {
    isPaused = value;
    pause.setAttribute("aria-pressed", String(value));
    if (!value) heldBack = 0;
    label();
    if (!value) draw();
  }

  function label() {
    pause.textContent = isPaused ? t("live.log.continue", { n: heldBack }) : t("live.log.pause");
  }

  const isShown = (line) => LEVELS[level.value].includes(line.level);

  function draw() {
    list.replaceChildren(...lines.filter(isShown).map(element_of));
    list.scrollTop = list.scrollHeight;
    empty.hidden = list.childElementCount > 0;
    list.hidden = !empty.hidden;
  }

  function add(fresh) {
    const isAtEnd = list.scrollHeight - list.scrollTop - list.clientHeight < 30;
    list.append(...fresh.filter(isShown).map(element_of));
    while (list.childElementCount > MOST) list.firstElementChild.remove();
    empty.hidden = list.childElementCount > 0;
    list.hidden = !empty.hidden;
    if (isAtEnd) list.scrollTop = list.scrollHeight;
  }

  draw();
  return {
    element,
    last: () => lines.at(-1)?.n ?? 0,
    update(fresh) {
      lines = [...lines, ...fresh].slice(-MOST);
      heldBack += isPaused ? fresh.length : 0;
      if (isPaused) label();
      else if (fresh.length) add(fresh);
    },
    reset() {
      lines = [];
      draw();
    },
  };
}

function element_of(line) {
  return h("div", { class: `log-line ${line.level.toLowerCase()}` },
    h("time", {}, clock(line.time)),
    h("span", { class: "log-level" }, line.level),
    h("span", { class: "log-text", lang: "en" }, line.text));
}
