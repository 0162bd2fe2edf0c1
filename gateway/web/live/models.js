// One card for each model: state, circuit breaker, queue, speed, cache, memory, and the buttons to load and unload.
import { announce } from "../app/announce.js";
import { post } from "../app/api.js";
import { h, icon, textButton } from "../app/dom.js";
import { formatNumber, t } from "../app/i18n.js";
import { budget, memory, NONE, percent, seconds } from "./format.js";

/** Icon and colour of each state of a model and of a breaker. The words are always there too. */
const LOOKS = {
  ready: ["check", "good"],
  loading: ["retry", "busy"],
  restarting: ["retry", "warning"],
  failed: ["warning", "danger"],
  unloaded: ["stop", "idle"],
  closed: ["stop", "idle"],
};
const BREAKER_LOOKS = { closed: ["check", "good"], half_open: ["retry", "warning"], open: ["warning", "danger"] };

/** `changed` is called after a model was loaded or unloaded. */
export function modelsPart(changed) {
  const list = h("div", { class: "models" });
  const element = h("section", { class: "live-part", "aria-labelledby": "live-models" },
    h("h2", { id: "live-models" }, t("live.models")), list);
  const cards = new Map();

  return {
    element,
    update(models) {
      const names = new Set(models.map((model) => model.model));
      for (const [name, card] of cards) {
        if (names.has(name)) continue;
        card.element.remove();
        cards.delete(name);
      }
      for (const model of models) {
        if (!cards.has(model.model)) {
          const card = modelCard(model.model, changed);
          cards.set(model.model, card);
          list.append(card.element);
        }
        cards.get(model.model).update(model);
      }
    },
    reset() {
      list.replaceChildren();
      cards.clear();
    },
  };
}

function modelCard(name, changed) {
  const figure = (key) => {
    const [value, note] = [h("span", {}), h("small", {})];
    const show = (text, more = "") => {
      setText(value, text);
      setText(note, more);
    };
    return { show, row: h("div", {}, h("dt", {}, t(key)), h("dd", {}, value, " ", note)) };
  };
  const figures = {
    speed: figure("live.speed"),
    queue: figure("live.queue"),
    cache: figure("live.cache"),
    memory: figure("live.memory.model"),
    limit: figure("live.limit"),
  };
  const state = h("span", { class: "badge" });
  const kind = h("p", { class: "model-kind" });
  const detail = h("p", { class: "model-detail", lang: "en", hidden: true });
  const breaker = h("div", { class: "breaker" });
  const error = h("div", { class: "note danger", role: "alert", hidden: true });
  const button = textButton("", () => (button.dataset.action ? act(button.dataset.action) : null), { class: "button small" });
  const element = h("article", { class: "model", "aria-label": name },
    h("div", { class: "model-head" }, h("h3", {}, name), state),
    kind, detail, breaker,
    h("dl", { class: "figures" }, ...Object.values(figures).map((each) => each.row)),
    error, h("div", { class: "model-buttons" }, button));
  let lastBreaker = null;
  let isActing = false;

  async function act(action) {
    isActing = true;
    button.disabled = true;
    button.textContent = t(`live.${action}.now`);
    error.hidden = true;
    try {
      await post(`/v1/models/${name.split("/").map(encodeURIComponent).join("/")}/${action}`, {});
      announce(t(`live.${action}.done`, { name }));
    } catch (problem) {
      error.replaceChildren(icon("warning"), h("p", {}, problem.message));
      error.hidden = false;
    } finally {
      isActing = false;
      changed();
    }
  }

  return {
    element,
    update(model) {
      const engine = model.engine;
      badge(state, LOOKS[model.load_state] ?? LOOKS.loading, t(`live.state.${model.load_state}`));
      setText(kind, kindOf(model));
      detail.hidden = !engine.detail && !model.background;
      setText(detail, [engine.detail, model.background].filter(Boolean).join(" · "));
      showBreaker(breaker, model);
      figures.speed.show(...speedOf(model));
      figures.queue.show(...queueOf(model));
      figures.cache.show(...cacheOf(model.prefix_cache));
      figures.memory.show(memory(model.memory_mb));
      figures.limit.show(...limitOf(model.budget));
      if (!isActing) showButton(button, model);
      if (lastBreaker !== null && lastBreaker !== model.breaker.state) {
        announce(`${name}: ${t(`live.breaker.${model.breaker.state}`)}`);
      }
      lastBreaker = model.breaker.state;
    },
  };
}

function badge(element, [name, look], text) {
  const key = `${look} ${text}`;
  if (element.dataset.shown === key) return;
  element.dataset.shown = key;
  element.className = `badge ${look}`;
  element.replaceChildren(icon(name), h("span", {}, text));
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function kindOf(model) {
  const { engine, aliases } = model;
  const parts = [t(`live.device.${engine.device}`)];
  if (engine.context_length) parts.push(t("live.context", { n: engine.context_length }));
  if (engine.cpu_nodes) parts.push(t("live.cpu_nodes", { n: engine.cpu_nodes }));
  if (aliases.length) parts.push(t("live.aliases", { names: aliases.join(", ") }));
  return parts.join(" · ");
}

/** The state in words, with what follows from it. */
function showBreaker(element, model) {
  const { state, reason, retry_after_s: waitS, bad, judged } = model.breaker;
  const isOff = model.budget === null;
  const lines = [];
  if (!isOff && state === "closed" && judged) lines.push(t("live.breaker.judged", { bad, judged }));
  if (state === "open") lines.push(t("live.breaker.next", { n: Math.max(1, Math.ceil(waitS)) }));
  const key = JSON.stringify([isOff, state, lines, reason]);
  if (element.dataset.shown === key) return;
  element.dataset.shown = key;
  element.dataset.state = isOff ? "off" : state;
  const words = h("span", { class: "badge" });
  if (isOff) badge(words, ["stop", "idle"], t("live.breaker.off"));
  else badge(words, BREAKER_LOOKS[state], t(`live.breaker.${state}`));
  element.replaceChildren(words, ...lines.map((line) => h("span", {}, line)));
  if (state !== "closed" && reason) element.append(h("span", { lang: "en" }, reason));
}

/** Tokens per second now, and the published figure for this model on this chip. */
function speedOf(model) {
  const now = model.tokens_per_s;
  const published = model.published_tokens_per_s;
  const value = now === null ? t("live.speed.none") : t("live.speed.now", { now: formatNumber(now, 1) });
  if (!published) return [value];
  const values = { share: percent((now ?? 0) / published), published: formatNumber(published, 1) };
  return [value, t(now === null ? "live.speed.published" : "live.speed.share", values)];
}

function queueOf(model) {
  const waiting = t("live.queue.waiting", { n: model.waiting });
  const waitS = model.expected_wait_s;
  const more = waitS >= 0.1 ? `${waiting}, ${t("live.queue.wait", { time: seconds(waitS) })}` : waiting;
  return [t("live.queue.running", { n: model.running }), more];
}

function cacheOf({ hit_tokens: hits, prompt_tokens: all }) {
  return all ? [percent(hits / all), t("live.cache.share", { n: all })] : [NONE];
}

function limitOf(limits) {
  if (limits === null) return [t("live.limit.none")];
  return [budget(limits), t(limits.is_measured ? "live.limit.measured" : "live.limit.set")];
}

function showButton(button, model) {
  const isReady = model.load_state === "ready";
  const isBusy = ["loading", "restarting"].includes(model.load_state);
  button.hidden = !model.can_unload;
  button.disabled = isBusy;
  button.dataset.action = isReady ? "unload" : "load";
  setText(button, t(isBusy ? "live.load.now" : `live.${button.dataset.action}`));
  button.setAttribute("aria-label", `${button.textContent}: ${model.model}`);
}
