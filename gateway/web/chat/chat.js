// The chat: connects the list of conversations, the messages, and the box to write in.
import { ask } from "../app/dialog.js";
import { h, icon, iconButton } from "../app/dom.js";
import { t } from "../app/i18n.js";
import { askForKey } from "../app/key_dialog.js";
import { Composer } from "./composer.js";
import { modelLine, Models } from "./models.js";
import { Session } from "./session.js";
import { askForSettings } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { Thread } from "./thread.js";
import { download, imported } from "./transfer.js";
import { showVersion, titleOf } from "./tree.js";

let session = null;
let view = null;

export function show(section) {
  const isFirst = session === null;
  session ??= new Session();
  view = new View(section);
  if (isFirst) session.start().then(() => view?.showNotice());
}

export function hide() {
  view.close();
  view = null;
}

class View {
  constructor(section) {
    this.models = new Models(() => this.#showModels());
    this.sidebar = new Sidebar(this.#sidebarActions());
    this.empty = h("div", { class: "empty-chat" });
    this.thread = new Thread((node) => this.#messageActions(node), this.empty);
    this.composer = new Composer(this.#composerActions(), session.draft);
    this.notice = h("div", { class: "notice", role: "status" });
    this.title = h("span", { class: "chat-title" });
    const create = iconButton("add", t("chat.new"), () => this.#sidebarActions().create());
    const head = h("div", { class: "chat-head" }, this.sidebar.toggle, this.title, create);
    const main = h("div", { class: "chat-main" }, head, this.notice, this.thread.element, this.composer.element);
    section.replaceChildren(h("h1", { class: "visually-hidden" }, t("view.chat")), this.sidebar.element, this.sidebar.cover, main);
    this.composer.acceptDrops(main);
    this.sidebar.main = main;
    this.onKey = (event) => event.key === "Escape" && this.#escape();
    document.addEventListener("keydown", this.onKey);
    session.onShow = () => this.#showConversation();
    session.onNode = (node) => this.#showNode(node);
    session.onList = () => this.#showList();
    this.#showConversation();
    this.#showList();
    this.models.start();
    this.composer.focus();
  }

  close() {
    this.models.stop();
    document.removeEventListener("keydown", this.onKey);
    session.onShow = session.onNode = session.onList = () => {};
  }

  showNotice() {
    const key = session.problem && `notice.${session.problem}`;
    if (this.notice.dataset.key === key) return;
    this.notice.dataset.key = key;
    this.notice.replaceChildren(...(key ? [h("div", { class: "note warning" }, icon("warning"), h("p", {}, t(key)))] : []));
  }

  #escape() {
    if (document.querySelector("dialog[open]")) return;
    if (this.sidebar.isOpen) this.sidebar.open(false);
    else session.stop();
  }

  #showConversation() {
    const { id } = session.conversation;
    this.thread.show(session.conversation, id !== this.shown || session.isLive);
    this.shown = id;
    this.composer.showLive(session.isLive);
    this.#showModels();
    this.#showEmpty();
  }

  #showNode(node) {
    this.thread.changed(node);
    if (!node.live) {
      this.composer.showLive(session.isLive);
      if (node.error) this.models.refresh();
    }
  }

  #showList() {
    this.title.textContent = titleOf(session.conversation);
    this.sidebar.show(session.entries, session.conversation.id, session.liveIds);
    this.showNotice();
  }

  #showModels() {
    const { conversation } = session;
    if (!conversation.nodes.length || !conversation.model) conversation.model = this.models.choose(conversation.model);
    this.composer.showModels(this.models, conversation.model);
    this.#showEmpty();
  }

  #showEmpty() {
    const card = this.models.card(session.conversation.model);
    const { error } = this.models;
    const failed = error && h("p", { role: "alert" }, error.status === 401 ? t("failure.invalid_api_key") : error.message);
    const enter = error?.status === 401 && h("button", { type: "button", class: "button primary", on: { click: () => this.#enterKey() } }, t("failure.enterKey"));
    const line = card && h("p", { class: "help" }, `${card.id} · ${modelLine(card)}`);
    const { system } = session.conversation.settings;
    this.empty.replaceChildren(
      ...[h("p", { class: "empty-title" }, t("chat.empty")), failed || line, enter, system && h("p", { class: "help" }, t("chat.system", { system: system.slice(0, 200) }))].filter((each) => each),
    );
  }

  #send(message) {
    if (session.isLive) return false;
    session.send(session.conversation.leaf, message);
    return true;
  }

  #pick(model) {
    session.pick(model);
    this.#showEmpty();
  }

  async #settings(focus) {
    const changed = await askForSettings(session.conversation.settings, focus);
    if (changed) session.changeSettings(changed);
    this.#showEmpty();
  }

  async #enterKey() {
    if (await askForKey(false)) await this.models.refresh();
  }

  #messageActions(node) {
    const whenIdle = (action) => (value) => session.isLive || action(value);
    const answer = (start) =>
      whenIdle(() => {
        start();
        this.composer.focusStop(); // the button that had the focus is gone
      });
    const again = answer(() => session.answer(node.parent));
    return {
      again,
      goOn: answer(() => session.goOn(node)),
      changeLimit: () => this.#settings("max_tokens"),
      enterKey: async () => (await askForKey(true)) && again(),
      newChat: () => session.create(),
      edit: whenIdle((content) => session.send(node.parent, { content, attachments: node.attachments })),
      show: whenIdle((other) => session.changeLeaf((conversation) => showVersion(conversation, other))),
    };
  }

  #composerActions() {
    return {
      send: (message) => this.#send(message),
      stop: () => session.stop(),
      settings: () => this.#settings(),
      pick: (model) => this.#pick(model),
      card: () => this.models.card(session.conversation.model),
    };
  }

  #sidebarActions() {
    return {
      create: () => {
        session.create();
        this.composer.focus();
      },
      open: async (id) => {
        await session.open(id);
        this.composer.focus();
      },
      rename: (id, title) => session.rename(id, title),
      remove: (id) => session.remove(id),
      exportOne: async (id) => download(await session.all([id])),
      exportAll: async () => download(await session.all(session.entries.map((entry) => entry.id))),
      importFile: (file) => this.#import(file),
    };
  }

  async #import(file) {
    const conversations = imported(await file.text());
    if (conversations.length) await session.add(conversations);
    else await ask(t("list.import"), h("p", {}, t("import.failed", { name: file.name })), { action: "" });
  }
}
