// The list of conversations. On a narrow page it lies over the chat and opens with a button.
import { ask, confirm } from "../app/dialog.js";
import { h, icon, iconButton, textButton } from "../app/dom.js";
import { t } from "../app/i18n.js";

const MANY = 8; // conversations; a longer list can be searched
const NARROW = matchMedia("(max-width: 800px)"); // as in chat.css

/** `main`: what the open list covers; the view sets it. `actions`: create, open(id), rename(id, title), remove(id), exportOne(id), exportAll, importFile(file). */
export class Sidebar {
  constructor(actions) {
    this.actions = actions;
    this.list = h("ul", { class: "conversations" });
    this.search = h("input", {
      type: "search", hidden: true, "aria-label": t("list.search"), placeholder: t("list.search"), on: { input: () => this.#filter() },
    });
    this.empty = h("p", { class: "help empty" }, t("list.empty"));
    this.input = h("input", { type: "file", accept: "application/json,.json", hidden: true, on: { change: () => this.#import() } });
    this.element = h(
      "nav",
      { class: "sidebar", id: "conversations", "aria-label": t("list.label") },
      h("div", { class: "sidebar-head" }, newButton(() => this.#do(actions.create)), this.search),
      this.list,
      this.empty,
      h(
        "div",
        { class: "sidebar-foot" },
        textButton(t("list.import"), () => this.input.click(), { class: "button quiet" }),
        textButton(t("list.export"), actions.exportAll, { class: "button quiet" }),
        this.input,
      ),
    );
    this.cover = h("div", { class: "cover", on: { click: () => this.open(false) } });
    this.toggle = iconButton("menu", t("list.label"), () => this.open(!this.isOpen), {
      class: "icon-button toggle", "aria-expanded": "false", "aria-controls": "conversations",
    });
    NARROW.onchange = () => this.isOpen && this.open(false); // replaces the listener of the last view
  }

  get isOpen() {
    return this.element.classList.contains("open");
  }

  open(isOpen) {
    this.element.classList.toggle("open", isOpen);
    this.cover.classList.toggle("open", isOpen);
    this.toggle.setAttribute("aria-expanded", String(isOpen));
    this.main.inert = isOpen;
    (isOpen ? this.element.querySelector("button") : this.toggle).focus();
  }

  /** `entries`: `{id, title}` in order. `live`: the ids with an answer in progress. */
  show(entries, current, live) {
    const state = JSON.stringify([entries.map(({ id, title }) => [id, title]), current, [...live]]);
    if (state === this.#state) return;
    this.#state = state;
    this.empty.hidden = entries.length > 0;
    this.search.hidden = entries.length < MANY;
    const focused = this.list.contains(document.activeElement) ? document.activeElement : null;
    const row = focused?.closest("li");
    const index = row ? [...row.querySelectorAll("button")].indexOf(focused) : 0;
    this.list.replaceChildren(...entries.map((entry) => this.#row(entry, entry.id === current, live.has(entry.id))));
    this.#filter();
    if (row) this.list.querySelectorAll(`[data-id="${CSS.escape(row.dataset.id)}"] button`)[index]?.focus();
  }

  #state = "";

  #filter() {
    const wanted = this.search.hidden ? "" : this.search.value.trim().toLowerCase();
    for (const row of this.list.children) row.hidden = !row.querySelector(".row-title").textContent.toLowerCase().includes(wanted);
  }

  #row(entry, isCurrent, isLive) {
    const title = entry.title || t("list.untitled");
    const open = h(
      "button",
      { type: "button", class: "row-title", "aria-current": isCurrent ? "true" : null, on: { click: () => this.#do(() => this.actions.open(entry.id)) } },
      h("span", {}, title),
      isLive ? h("span", { class: "dot" }, h("span", { class: "visually-hidden" }, t("list.live"))) : null,
    );
    const small = { class: "icon-button small" };
    return h(
      "li",
      { class: isCurrent ? "row current" : "row", data: { id: entry.id } },
      open,
      h(
        "span",
        { class: "row-tools" },
        iconButton("edit", t("list.rename", { title }), () => this.#rename(entry), small),
        iconButton("download", t("list.exportOne", { title }), () => this.actions.exportOne(entry.id), small),
        iconButton("trash", t("list.delete", { title }), () => this.#remove(entry, title), small),
      ),
    );
  }

  async #rename(entry) {
    const input = h("input", { name: "title", id: "title", maxlength: "200", autofocus: true });
    input.value = entry.title;
    const values = await ask(t("list.rename.title"), h("label", { class: "field", for: "title" }, h("span", {}, t("list.title")), input));
    if (values) this.actions.rename(entry.id, values.get("title").trim());
  }

  async #remove(entry, title) {
    if (await confirm(t("list.delete.title"), t("list.delete.text", { title }), t("list.delete.action"))) {
      this.actions.remove(entry.id);
    }
  }

  #import() {
    const [file] = this.input.files;
    this.input.value = "";
    if (file) this.#do(() => this.actions.importFile(file));
  }

  #do(action) {
    if (this.isOpen) this.open(false);
    action();
  }
}

function newButton(onClick) {
  const button = textButton("", onClick, { class: "button new" });
  button.append(icon("add"), t("chat.new"));
  return button;
}
