// One message on the page.
import { announce } from "../app/announce.js";
import { h, icon, iconButton } from "../app/dom.js";
import { formatNumber, t } from "../app/i18n.js";
import { copyButton } from "./copy.js";
import { editForm } from "./edit.js";
import { failureNote } from "./failure.js";
import { MarkdownView } from "./markdown.js";
import { statsLine } from "./stats.js";

/**
 * The element of a message and what changes in it.
 *
 * `versions`: the messages that can be shown in its place. `actions`: again, goOn, changeLimit, enterKey, newChat, edit(text),
 * show(node).
 */
export class MessageView {
  constructor(node, versions, actions) {
    Object.assign(this, { node, versions, actions });
    const who = node.role === "user" ? t("message.you") : node.model || t("message.assistant");
    this.name = h("h2", { class: node.role === "user" ? "visually-hidden" : "message-name" }, who);
    this.body = h("div", { class: "message-body" });
    this.foot = h("div", { class: "message-foot" });
    this.note = h("div", { class: "message-note" });
    this.element = h("article", { class: `message ${node.role}`, data: { id: node.id } }, this.name, this.body, this.note, this.foot);
    if (node.role === "user") this.#buildUser();
    else this.#buildAnswer();
    this.update();
  }

  /** Show what the message has now. */
  update() {
    const { node } = this;
    if (node.role === "assistant") this.#updateAnswer();
    if (node.live && this.#wasLive) return;
    this.#wasLive = Boolean(node.live);
    this.element.setAttribute("aria-busy", node.live ? "true" : "false");
    this.note.replaceChildren(...[this.#dropped(), failureNote(node, this.actions)].filter((each) => each));
    this.foot.replaceChildren(...(node.live ? [] : this.#tools()));
  }

  #wasLive = false;

  #buildUser() {
    const { node } = this;
    const files = (node.attachments ?? []).map((file) =>
      h("details", { class: "file" }, h("summary", {}, icon("file"), h("span", {}, file.name)), h("pre", { tabindex: "0" }, file.text)),
    );
    this.body.append(...files, h("p", { class: "plain" }, node.content));
  }

  #buildAnswer() {
    this.thought = h("p", { class: "plain" });
    this.thoughtName = h("summary", {}, "");
    this.reasoning = h("details", { class: "fold", hidden: true }, this.thoughtName, this.thought);
    this.text = h("div", { class: "text" });
    this.markdown = new MarkdownView(this.text);
    this.calls = h("div", { class: "calls" });
    this.waitingText = h("span", {});
    this.waiting = h("p", { class: "waiting", hidden: true }, h("span", { class: "dot" }), this.waitingText);
    this.body.append(this.reasoning, this.text, this.calls, this.waiting);
  }

  #updateAnswer() {
    const { node } = this;
    const isLive = Boolean(node.live);
    if (node.model) this.name.textContent = node.model;
    this.reasoning.hidden = !node.reasoning;
    this.thought.textContent = node.reasoning ?? "";
    this.thoughtName.textContent = t(isLive && !node.content ? "message.thinking" : "message.thoughts");
    this.markdown.update(node.content, { isFinal: !isLive, isRead: isLive || this.#wasLive });
    const seconds = (node.expectedMs ?? 0) / 1000;
    this.waitingText.textContent = seconds > 1 ? t("message.waiting.for", { s: formatNumber(seconds, 0) }) : t("message.waiting");
    this.waiting.hidden = !isLive || Boolean(node.content || node.reasoning || node.calls?.length);
    if (this.calls.childElementCount !== (node.calls?.length ?? 0) || isLive || this.#wasLive) this.#showCalls();
    this.element.classList.toggle("answering", isLive);
    if (this.#wasLive && !isLive) announce(t("message.complete"));
  }

  #showCalls() {
    const open = [...this.calls.children].map((each) => each.open);
    const calls = (this.node.calls ?? []).map((call, index) =>
      h(
        "details",
        { class: "fold", open: open[index] },
        h("summary", {}, t("message.call", { name: call?.name ?? "" })),
        h("pre", { tabindex: "0" }, indented(call?.arguments ?? "")),
      ),
    );
    this.calls.replaceChildren(...calls);
  }

  #dropped() {
    const n = this.node.dropped;
    return n && !this.node.live ? h("div", { class: "note" }, h("p", {}, t("message.dropped", { n }))) : null;
  }

  #tools() {
    const { node, actions } = this;
    const tools = [this.#versionButtons()];
    if (node.content) tools.push(copyButton(() => node.content));
    if (node.role === "user") tools.push(iconButton("edit", t("message.edit"), () => this.#edit(), { class: "icon-button small" }));
    else tools.push(iconButton("retry", t("message.again"), actions.again, { class: "icon-button small" }), statsLine(node));
    return tools.filter((each) => each);
  }

  #versionButtons() {
    const { node, versions, actions } = this;
    const index = versions.indexOf(node);
    if (versions.length < 2) return null;
    const button = (name, label, other) =>
      iconButton(name, t(label), () => actions.show(other), { class: "icon-button small", disabled: !other });
    return h(
      "span",
      { class: "versions" },
      button("previous", "message.previous", versions[index - 1]),
      h("span", { class: "version" }, `${index + 1} / ${versions.length}`),
      button("next", "message.next", versions[index + 1]),
    );
  }

  #edit() {
    const close = () => {
      form.replaceWith(this.body);
      this.foot.hidden = false;
      this.foot.querySelector("button:last-of-type")?.focus();
    };
    const form = editForm(this.node.content, { save: this.actions.edit, close });
    this.body.replaceWith(form);
    this.foot.hidden = true;
    form.querySelector("textarea").focus();
  }
}

function indented(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
