// The models of the gateway, and the list to choose from.
import { get } from "../app/api.js";
import { h } from "../app/dom.js";
import { formatNumber, t } from "../app/i18n.js";

const FAST_MS = 2_000; // while a model is loading
const SLOW_MS = 30_000;

/** The models of `/v1/models`, without aliases, as long as the chat is shown. `onChange()` is called after each change. */
export class Models {
  #timer = 0;
  #generation = 0;
  cards = [];
  aliases = new Map(); // alias -> model

  constructor(onChange) {
    this.onChange = onChange;
  }

  start() {
    const current = ++this.#generation;
    const poll = async () => {
      clearTimeout(this.#timer);
      if (document.visibilityState === "visible") await this.refresh();
      if (current !== this.#generation) return;
      const isLoading = !this.cards.length || this.cards.some((card) => card.state === "loading");
      this.#timer = setTimeout(poll, isLoading ? FAST_MS : SLOW_MS);
    };
    return poll();
  }

  stop() {
    this.#generation += 1;
    clearTimeout(this.#timer);
  }

  /** Ask the gateway. A failure leaves the list as it is. */
  async refresh() {
    let data;
    try {
      ({ data } = await get("/v1/models"));
    } catch (error) {
      this.error = error;
      this.onChange();
      return;
    }
    this.error = null;
    this.cards = data.filter((card) => !card.root && chats(card));
    this.aliases = new Map(data.filter((card) => card.root).map((card) => [card.id, card.root]));
    this.onChange();
  }

  card(name) {
    return this.cards.find((card) => card.id === (this.aliases.get(name) ?? name));
  }

  /** The model for a new chat: `wanted` if the gateway has it, else the first that is ready. */
  choose(wanted) {
    const known = this.card(wanted) ?? this.cards.find((card) => card.state === "ready") ?? this.cards[0];
    return known?.id ?? wanted;
  }
}

/** False for a model that only makes embeddings or scores. */
function chats(card) {
  return !card.capabilities?.length || card.capabilities.includes("chat");
}

/** Fill the list `select` and choose `model`, also if the gateway does not have it. */
export function fillPicker(select, models, model) {
  const chosen = models.card(model)?.id ?? model;
  const options = models.cards.map((card) => h("option", { value: card.id }, optionText(card)));
  if (chosen && !models.card(chosen)) options.push(h("option", { value: chosen }, models.cards.length ? t("models.gone", { name: chosen }) : chosen));
  if (!options.length) options.push(h("option", { value: "" }, t(models.error ? "models.unknown" : "models.waiting")));
  const texts = (list) => list.map((option) => `${option.value}\n${option.textContent}`).join("\n");
  if (texts([...select.options]) !== texts(options)) select.replaceChildren(...options);
  select.value = chosen;
}

function optionText(card) {
  return card.state === "ready" ? card.id : `${card.id} – ${t(`models.state.${card.state}`)}`;
}

/** The properties of a model in one line. */
export function modelLine(card) {
  const parts = [card.device.toUpperCase()];
  if (card.context_length) parts.push(t("models.context", { n: card.context_length }));
  if (card.tokens_per_s) parts.push(t("stats.speed", { speed: formatNumber(card.tokens_per_s, 1) }));
  if (card.state !== "ready") parts.push(card.detail || t(`models.state.${card.state}`));
  return parts.join(" · ");
}
