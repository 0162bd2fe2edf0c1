// The live view: models, latency of the last answers, usage, and the log.
import { announce } from "../app/announce.js";
import { get } from "../app/api.js";
import { h, icon, textButton } from "../app/dom.js";
import { addTexts, t } from "../app/i18n.js";
import { key } from "../app/key.js";
import { askForKey } from "../app/key_dialog.js";
import { answersPart } from "./answers.js";
import en from "./en.js";
import { clock, date, memory } from "./format.js";
import { limitsPart } from "./limits.js";
import { logPart } from "./log.js";
import { modelsPart } from "./models.js";
import { startPolling } from "./poll.js";
import { usagePart } from "./usage.js";
import zh from "./zh.js";

addTexts({ en, "zh-CN": zh });

let shown = null;

export function show(section) {
  hide();
  shown = liveView(section);
}

export function hide() {
  shown?.close();
  shown = null;
}

function liveView(section) {
  const problem = h("p", {});
  const button = textButton("", () => onButton(), { class: "button small" });
  const note = h("div", { class: "note warning live-note", hidden: true }, icon("warning"), problem, button);
  const about = h("p", { class: "live-about" }, t("live.waiting"));
  const parts = {
    models: modelsPart(() => poller.retry()), limits: limitsPart(), answers: answersPart(), usage: usagePart(), log: logPart(),
  };
  section.replaceChildren(
    h("div", { class: "live" },
      h("div", { class: "live-head" }, h("h1", {}, t("live.title")), about),
      note, ...Object.values(parts).map((part) => part.element), links()),
  );
  let startedAt = null;
  let isAway = false;
  let keyTimer = 0;
  let onButton = () => {};

  function inform(text, label, action) {
    note.hidden = false;
    problem.textContent = text;
    button.textContent = label;
    onButton = action;
  }

  async function enterKey() {
    if (await askForKey(false)) poller.retry();
  }

  /** A key can also be entered with the button of the header, or in the chat. */
  function waitForKey(refusedKey = key()) {
    clearInterval(keyTimer);
    keyTimer = setInterval(() => {
      if (key() === refusedKey) return;
      clearInterval(keyTimer);
      poller.retry();
    }, 500);
  }

  const poller = startPolling({
    async read(signal) {
      const [live, log] = await Promise.all([
        get(`/gateway/live?after=${parts.answers.last()}`, { signal }),
        get(`/gateway/log?after=${parts.log.last()}`, { signal }),
      ]);
      return { live, log };
    },
    show({ live, log }) {
      if (isAway) announce(t("live.back"));
      isAway = false;
      note.hidden = true;
      const isRestarted = startedAt !== null && startedAt !== live.started_at;
      startedAt = live.started_at;
      if (isRestarted) {
        for (const part of Object.values(parts)) part.reset();
        poller.retry(); // this answer begins after a number of the gateway that ended
        return;
      }
      about.replaceChildren(...aboutTexts(live));
      parts.models.update(live.models);
      parts.limits.update(live.keys);
      parts.answers.update(live);
      parts.log.update(log.lines);
      parts.usage.update(live.has_usage);
    },
    away(waitS, error) {
      if (!isAway) announce(t("live.away"));
      isAway = true;
      const text = t("live.away.next", { n: waitS });
      inform(error?.kind === "http" ? `${error.message} ${text}` : `${t("live.away")} ${text}`, t("live.retry"), () => poller.retry());
    },
    refused(error) {
      if (error.status === 401) {
        inform(error.message, t("live.key"), enterKey);
        waitForKey();
      } else inform(error.message, t("live.retry"), () => poller.retry());
    },
  });
  return {
    close() {
      poller.stop();
      clearInterval(keyTimer);
      parts.answers.close();
    },
  };
}

/** What other programs read. */
function links() {
  const link = (path, key) => h("a", { href: path, target: "_blank", rel: "noopener" }, t(key));
  return h("p", { class: "live-links" }, `${t("live.links")} `,
    link("/schema", "live.links.schema"), link("/readyz", "live.links.ready"), link("/metrics", "live.links.metrics"));
}

function aboutTexts(live) {
  const texts = [
    t("live.version", { version: live.version }),
    live.chip,
    t("live.since", { time: date(live.started_at) }),
    t("live.memory", { size: memory(live.gateway.memory_mb) }),
    t("live.updated", { time: clock(live.now) }),
  ];
  const spans = texts.filter(Boolean).map((text) => h("span", {}, text));
  if (live.config_file) spans.push(h("span", { class: "live-file" }, live.config_file));
  return spans;
}
