// The box at the bottom of the chat: text, files, model, settings, send and stop.
import { announce } from "../app/announce.js";
import { h, icon, iconButton } from "../app/dom.js";
import { t } from "../app/i18n.js";
import { write } from "../app/storage.js";
import { FileRefused, readFile } from "./attachments.js";
import { fillPicker } from "./models.js";
import { fitHeight, isEnter } from "./textarea.js";

/**
 * `actions`: send({content, attachments}), stop, settings, pick(model), card() -> the chosen model. `draft`: `{text, files}`, what is
 * written and not sent; it outlives the composer.
 */
export class Composer {
  constructor(actions, draft) {
    Object.assign(this, { actions, draft });
    this.area = h("textarea", {
      class: "composer-text", rows: "1", "aria-label": t("composer.label"), placeholder: t("composer.hint"),
      on: { input: () => this.#changed(), keydown: (event) => this.#key(event), paste: (event) => this.#paste(event) },
    });
    this.chips = h("ul", { class: "chips", hidden: true, "aria-label": t("composer.files") });
    this.problem = h("div", { class: "note danger", role: "alert", hidden: true });
    this.picker = h("select", {
      class: "picker", "aria-label": t("composer.model"), on: { change: () => actions.pick(this.picker.value) },
    });
    this.input = h("input", { type: "file", multiple: true, hidden: true, on: { change: () => this.#picked() } });
    this.sendButton = iconButton("send", t("composer.send"), () => this.#send(), { class: "icon-button send" });
    this.stopButton = iconButton("stop", t("composer.stop"), actions.stop, { class: "icon-button send", hidden: true });
    this.element = h(
      "div",
      { class: "composer" },
      this.problem,
      h(
        "div",
        { class: "composer-box" },
        this.chips,
        this.area,
        h(
          "div",
          { class: "composer-row" },
          iconButton("attach", t("composer.attach"), () => this.input.click()),
          iconButton("settings", t("settings.title"), actions.settings),
          this.picker,
          this.input,
          this.sendButton,
          this.stopButton,
        ),
      ),
    );
    this.area.value = draft.text;
    this.#showFiles();
    requestAnimationFrame(() => this.#changed());
  }

  /** Accept files that are dropped on `element`. */
  acceptDrops(element) {
    const isFile = (event) => event.dataTransfer?.types.includes("Files");
    element.addEventListener("dragover", (event) => {
      if (!isFile(event)) return;
      event.preventDefault();
      element.classList.add("dropping");
    });
    element.addEventListener("dragleave", (event) => {
      if (!element.contains(event.relatedTarget)) element.classList.remove("dropping");
    });
    element.addEventListener("drop", (event) => {
      element.classList.remove("dropping");
      if (!isFile(event)) return;
      event.preventDefault();
      this.#attach([...event.dataTransfer.files]);
    });
  }

  showModels(models, model) {
    fillPicker(this.picker, models, model);
  }

  /** `isLive`: an answer is in progress, so there is stop instead of send. */
  showLive(isLive) {
    const hadFocus = [this.sendButton, this.stopButton].includes(document.activeElement);
    this.sendButton.hidden = isLive;
    this.stopButton.hidden = !isLive;
    if (hadFocus) this.area.focus();
  }

  focusStop() {
    this.stopButton.focus();
  }

  focus() {
    this.area.focus();
  }

  #changed() {
    this.draft.text = this.area.value;
    write("draft", this.draft.text, "sessionStorage");
    fitHeight(this.area);
    this.sendButton.disabled = !this.area.value.trim() && !this.draft.files.length;
  }

  #key(event) {
    if (!isEnter(event)) return;
    event.preventDefault();
    this.#send();
  }

  #send() {
    if (this.sendButton.disabled || this.sendButton.hidden) return;
    this.#refuse("");
    const attachments = this.draft.files.map(({ name, text }) => ({ name, text }));
    const sent = this.actions.send({ content: this.area.value.trim(), attachments });
    if (!sent) return;
    this.area.value = "";
    this.draft.files = [];
    this.#showFiles();
  }

  #paste(event) {
    const files = [...event.clipboardData.files];
    if (!files.length || event.clipboardData.types.includes("text/plain")) return;
    event.preventDefault();
    this.#attach(files);
  }

  #picked() {
    this.#attach([...this.input.files]);
    this.input.value = "";
  }

  async #attach(files) {
    this.#refuse("");
    for (const file of files) {
      const used = this.draft.files.reduce((sum, each) => sum + each.tokens, 0);
      try {
        const read = await readFile(file, this.actions.card(), used);
        this.draft.files.push(read);
        announce(t("file.added", { name: read.name }));
      } catch (error) {
        this.#refuse(error instanceof FileRefused ? error.message : t("file.unreadable", { name: file.name }));
      }
    }
    this.#showFiles();
    this.area.focus();
  }

  #refuse(text) {
    this.problem.hidden = !text;
    this.problem.replaceChildren(...(text ? [icon("warning"), h("p", {}, text)] : []));
  }

  #showFiles() {
    this.chips.hidden = !this.draft.files.length;
    this.chips.replaceChildren(...this.draft.files.map((file) => this.#chip(file)));
    this.#changed();
  }

  #chip(file) {
    const remove = () => {
      this.draft.files = this.draft.files.filter((each) => each !== file);
      this.#showFiles();
      this.area.focus();
    };
    return h(
      "li",
      { class: "chip" },
      icon("file"),
      h("span", { class: "chip-name" }, file.name),
      h("span", { class: "chip-size" }, t("stats.tokens", { n: file.tokens })),
      iconButton("close", t("file.remove", { name: file.name }), remove, { class: "icon-button small" }),
    );
  }
}
